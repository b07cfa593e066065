//! Glance as clients see it.

use axum::body::Body;
use axum::http::{Method, Request};
use control::caller::{Caller, RoleLevel, Scope};
use serde_json::{Value, json};

use crate::harness::{Harness, Reply};

async fn create(cloud: &Harness, body: Value) -> String {
    let reply = cloud.admin(Method::POST, "/image/v2/images", body).await;
    assert_eq!(reply.status, 201, "{:?}", reply.json());
    reply.json()["id"].as_str().unwrap().to_owned()
}

async fn put_file(cloud: &Harness, id: &str, body: Body) -> Reply {
    let request = Request::put(format!("/image/v2/images/{id}/file"))
        .header("x-auth-token", cloud.admin_token().await)
        .header("content-type", "application/octet-stream");
    cloud.send(request.body(body).unwrap()).await
}

async fn patch(cloud: &Harness, id: &str, body: Value) -> Reply {
    let request = Request::patch(format!("/image/v2/images/{id}"))
        .header("x-auth-token", cloud.admin_token().await)
        .header("content-type", super::patch::MEDIA_TYPE);
    cloud.send(request.body(body.to_string().into()).unwrap()).await
}

fn described(name: &str) -> Value {
    json!({"name": name, "disk_format": "raw", "container_format": "bare", "owner_specified.openstack.md5": ""})
}

#[tokio::test]
async fn image_goes_in_and_comes_out_with_its_checksums() {
    let cloud = Harness::new().await;
    let id = create(&cloud, described("one")).await;
    assert_eq!(put_file(&cloud, &id, Body::from("hello")).await.status, 204);
    let shown = cloud.admin(Method::GET, &format!("/image/v2/images/{id}"), Value::Null).await.json();
    assert_eq!(shown["status"], "active");
    assert_eq!(shown["size"], 5);
    assert_eq!(shown["checksum"], "5d41402abc4b2a76b9719d911017c592");
    assert_eq!(shown["os_hash_algo"], "sha512");
    assert_eq!(shown["os_hash_value"].as_str().unwrap().len(), 128);
    assert_eq!(shown["owner_specified.openstack.md5"], "");
    let file = cloud.admin(Method::GET, &format!("/image/v2/images/{id}/file"), Value::Null).await;
    assert_eq!((file.status.as_u16(), &file.bytes[..]), (200, &b"hello"[..]));
    assert_eq!(file.header("content-md5"), Some("5d41402abc4b2a76b9719d911017c592"));
    assert_eq!(put_file(&cloud, &id, Body::from("again")).await.status, 409);
    assert_eq!(cloud.admin(Method::DELETE, &format!("/image/v2/images/{id}"), Value::Null).await.status, 204);
    let gone = cloud.admin(Method::GET, &format!("/image/v2/images/{id}"), Value::Null).await;
    assert_eq!((gone.status.as_u16(), gone.json()["title"].clone()), (404, json!("Not Found")));
}

#[tokio::test]
async fn broken_upload_leaves_nothing_and_the_image_queued() {
    let cloud = Harness::new().await;
    let id = create(&cloud, described("broken")).await;
    let pieces = [Ok("half of it"), Err(std::io::Error::other("the line broke"))];
    let broken = Body::from_stream(futures_util::stream::iter(pieces));
    assert_eq!(put_file(&cloud, &id, broken).await.status, 400);
    let path = format!("/image/v2/images/{id}");
    for _ in 0..100 {
        if cloud.admin(Method::GET, &path, Value::Null).await.json()["status"] == "queued" {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let shown = cloud.admin(Method::GET, &path, Value::Null).await.json();
    assert_eq!((&shown["status"], &shown["size"]), (&json!("queued"), &Value::Null));
    assert_eq!(cloud.admin(Method::GET, &format!("{path}/file"), Value::Null).await.status, 204);
    assert_eq!(put_file(&cloud, &id, Body::from("whole")).await.status, 204);
}

#[tokio::test]
async fn patch_changes_all_or_nothing() {
    let cloud = Harness::new().await;
    let id = create(&cloud, described("p")).await;
    let all = json!([
        {"op": "add", "path": "/name", "value": "q"},
        {"op": "add", "path": "/os_type", "value": "linux"},
        {"op": "add", "path": "/tags", "value": ["t2", "t1"]},
        {"op": "replace", "path": "/min_disk", "value": 2},
        {"op": "add", "path": "/a~1b", "value": "c"},
    ]);
    let changed = patch(&cloud, &id, all).await;
    assert_eq!(changed.status, 200, "{:?}", changed.json());
    let shown = changed.json();
    assert_eq!((&shown["name"], &shown["os_type"]), (&json!("q"), &json!("linux")));
    assert_eq!((&shown["tags"], &shown["a/b"]), (&json!(["t1", "t2"]), &json!("c")));
    let half = json!([{"op": "add", "path": "/name", "value": "r"}, {"op": "remove", "path": "/nothing"}]);
    assert_eq!(patch(&cloud, &id, half).await.status, 409);
    assert_eq!(patch(&cloud, &id, json!([{"op": "replace", "path": "/size", "value": 1}])).await.status, 403);
    assert_eq!(patch(&cloud, &id, json!([{"op": "add", "path": "/x/y", "value": "1"}])).await.status, 400);
    assert_eq!(patch(&cloud, &id, json!([{"op": "add", "path": "/min_ram", "value": -1}])).await.status, 400);
    let removed = patch(&cloud, &id, json!([{"op": "remove", "path": "/os_type"}])).await.json();
    assert_eq!((&removed["name"], removed.get("os_type")), (&json!("q"), None));
}

#[tokio::test]
async fn protected_image_stays() {
    let cloud = Harness::new().await;
    let mut body = described("kept");
    body["protected"] = json!(true);
    let id = create(&cloud, body).await;
    let path = format!("/image/v2/images/{id}");
    assert_eq!(cloud.admin(Method::DELETE, &path, Value::Null).await.status, 403);
    patch(&cloud, &id, json!([{"op": "replace", "path": "/protected", "value": false}])).await;
    assert_eq!(cloud.admin(Method::DELETE, &path, Value::Null).await.status, 204);
}

#[tokio::test]
async fn lists_are_filtered_and_paged() {
    let cloud = Harness::new().await;
    for name in ["a", "b", "c"] {
        create(&cloud, described(name)).await;
    }
    let names = |reply: Reply| -> Vec<String> {
        let body = reply.json();
        let images = body["images"].as_array().unwrap_or_else(|| panic!("{body}"));
        images.iter().filter_map(|image| image["name"].as_str().map(str::to_owned)).collect()
    };
    let get = async |path: &str| cloud.admin(Method::GET, &format!("/image{path}"), Value::Null).await;
    assert_eq!(names(get("/v2/images?name=b").await), ["b"]);
    assert_eq!(names(get("/v2/images?name=in:a,c&sort=name:asc").await), ["a", "c"]);
    assert_eq!(names(get("/v2/images?visibility=public").await), ["tiny"]);
    assert_eq!(names(get("/v2/images?status=queued&sort=name:desc").await), ["c", "b", "a"]);
    assert_eq!(names(get("/v2/images?os_hidden=true").await), Vec::<String>::new());
    let first = get("/v2/images?status=queued&sort_key=name&sort_dir=asc&limit=2").await.json();
    let next = first["next"].as_str().unwrap().to_owned();
    assert!(next.starts_with("/v2/images?"), "{next}");
    assert_eq!(names(get(&next).await), ["c"]);
    assert_eq!(get("/v2/images?marker=nonsense").await.status, 400);
}

#[tokio::test]
async fn images_are_seen_by_their_project_and_by_those_they_are_shared_with() {
    let cloud = Harness::new().await;
    let id = create(&cloud, described("mine")).await;
    let stranger = Caller {
        user_id: "u".into(),
        scope: Scope::Project("other".into()),
        role: Some(RoleLevel::Member),
        request_id: String::new(),
        ..Caller::default()
    };
    let control = &cloud.control;
    assert!(control.image_get(&stranger, &id).await.is_err());
    assert_eq!(control.image_list(&stranger).await.unwrap().len(), 1, "the public image tiny");
    let members = format!("/image/v2/images/{id}/members");
    let added = cloud.admin(Method::POST, &members, json!({"member": "other"})).await;
    assert_eq!((added.status.as_u16(), added.json()["status"].clone()), (200, json!("pending")));
    assert!(control.image_get(&stranger, &id).await.is_ok());
    assert!(control.image_delete(&stranger, &id).await.is_err());
    control.image_member_update(&stranger, &id, "other", "accepted").await.unwrap();
    let shown = cloud.admin(Method::GET, &format!("{members}/other"), Value::Null).await.json();
    assert_eq!(shown["status"], "accepted");
    assert_eq!(cloud.admin(Method::DELETE, &format!("{members}/other"), Value::Null).await.status, 204);
    assert!(control.image_get(&stranger, &id).await.is_err());
    let public = vec![control::service::image::ImageChange::Visibility("public".into())];
    assert!(control.image_create(&stranger, None, public).await.is_err());
}

#[tokio::test]
async fn quota_bounds_number_and_bytes() {
    let cloud = Harness::new().await;
    let caller = cloud.control.token_caller(&cloud.admin_token().await, String::new()).await.unwrap();
    let project = caller.project_id().unwrap();
    use control::service::quota::Resource::{ImageMib, Images};
    cloud.control.quota_set(&caller, project, &[(Images, 2), (ImageMib, 1)]).await.unwrap();
    let id = create(&cloud, described("last")).await;
    let over = cloud.admin(Method::POST, "/image/v2/images", described("over")).await;
    assert_eq!((over.status.as_u16(), over.json()["title"].clone()), (413, json!("Payload Too Large")));
    assert_eq!(put_file(&cloud, &id, Body::from("x")).await.status, 413);
    cloud.control.quota_set(&caller, project, &[(ImageMib, 2)]).await.unwrap();
    assert_eq!(put_file(&cloud, &id, Body::from("x")).await.status, 204);
    cloud.control.image_delete(&caller, &id).await.unwrap();
    assert_eq!(cloud.control.quotas_of(project).await.unwrap()[&ImageMib].used, 1, "tiny");
}

#[tokio::test]
async fn patches_of_the_older_kind_add_only_what_is_not_there() {
    let cloud = Harness::new().await;
    let id = create(&cloud, described("p")).await;
    let older = async |body: Value| {
        let request = Request::patch(format!("/image/v2/images/{id}"))
            .header("x-auth-token", cloud.admin_token().await)
            .header("content-type", super::patch::MEDIA_TYPE_DRAFT);
        cloud.send(request.body(body.to_string().into()).unwrap()).await
    };
    let changed = older(json!([{"replace": "/name", "value": "q"}, {"add": "/k", "value": "v"}])).await;
    assert_eq!((changed.status.as_u16(), &changed.json()["name"]), (200, &json!("q")));
    assert_eq!(older(json!([{"add": "/k", "value": "w"}])).await.status, 409);
    assert_eq!(older(json!([{"add": "/name", "value": "w"}])).await.status, 409);
    assert_eq!(older(json!([{"add": "/x", "remove": "/k", "value": "w"}])).await.status, 400);
    assert_eq!(older(json!([{"remove": "/k"}])).await.status, 200);
    for (status, operation) in [
        (400, json!({"op": "add", "path": "name", "value": "x"})),
        (400, json!({"op": "add", "path": "/", "value": "x"})),
        (400, json!({"op": "add", "path": "/a~2", "value": "x"})),
        (400, json!({"op": "add", "path": "/a//b", "value": "x"})),
        (400, json!({"op": "move", "path": "/a", "value": "x"})),
        (400, json!({"op": "add", "path": "/a"})),
        (400, json!({"op": "add", "path": "/a", "value": 7})),
        (400, json!("add")),
        (403, json!({"op": "remove", "path": "/name"})),
        (403, json!({"op": "add", "path": "/os_glance_x", "value": "x"})),
        (403, json!({"op": "add", "path": "/locations/-", "value": {}})),
        (403, json!({"op": "replace", "path": "/deleted", "value": "x"})),
    ] {
        assert_eq!(patch(&cloud, &id, json!([operation])).await.status, status, "{operation}");
    }
}

#[tokio::test]
async fn list_refuses_what_it_does_not_understand() {
    let cloud = Harness::new().await;
    let mut body = described("a, b");
    body["tags"] = json!(["t1", "t2"]);
    create(&cloud, body).await;
    let get = async |query: &str| {
        let reply = cloud.admin(Method::GET, &format!("/image/v2/images?{query}"), Value::Null).await;
        let images = reply.json()["images"].as_array().map_or(0, Vec::len);
        (reply.status.as_u16(), images)
    };
    assert_eq!(get("name=in:%22a,%20b%22,tiny").await, (200, 2));
    assert_eq!(get("tag=t1&tag=t2").await, (200, 1));
    assert_eq!(get("tag=t1&tag=t3").await, (200, 0));
    assert_eq!(get("container_format=in:bare,ovf&status=active").await, (200, 1));
    assert_eq!(get("size_min=1").await, (200, 1));
    assert_eq!(get("created_at=gt:2020-01-01T00:00:00Z").await, (200, 2));
    assert_eq!(get("updated_at=lt:2020-01-01T00:00:00").await, (200, 0));
    assert_eq!(get("owner_specified.openstack.md5=").await, (200, 1));
    for bad in [
        "visibility=odd",
        "member_status=odd",
        "sort=odd",
        "sort_key=name&sort_dir=up",
        "sort=name&sort_key=name",
        "sort_key=name&sort_key=size&sort_key=id&sort_dir=asc&sort_dir=asc",
        "limit=-1",
        "limit=x",
        "size_min=-1",
        "created_at=gt:yesterday",
        "name=in:%22a",
        "changes-since=2020-01-01T00:00:00",
        "os_hidden=maybe",
        "os_hidden=1",
        "protected=",
        "protected=yes",
    ] {
        assert_eq!(get(bad).await.0, 400, "{bad}");
    }
}

#[tokio::test]
async fn range_of_an_image_is_served_alone() {
    let cloud = Harness::new().await;
    let id = create(&cloud, described("r")).await;
    assert_eq!(put_file(&cloud, &id, Body::from("0123456789")).await.status, 204);
    let token = cloud.admin_token().await;
    let get = async |range: &str| {
        let headers = [("x-auth-token", token.as_str()), ("range", range)];
        cloud.get(&format!("/image/v2/images/{id}/file"), &headers).await
    };
    let part = get("bytes=2-4").await;
    assert_eq!((part.status.as_u16(), &part.bytes[..]), (206, &b"234"[..]));
    assert_eq!(part.header("content-range"), Some("bytes 2-4/10"));
    assert_eq!(part.header("content-length"), Some("3"));
    assert_eq!(get("bytes=-2").await.bytes, "89");
    assert_eq!(get("bytes=10-").await.status, 416);
}

#[tokio::test]
async fn metadata_definitions_are_made_changed_and_deleted_with_what_is_in_them() {
    let cloud = Harness::new().await;
    let root = "/image/v2/metadefs/namespaces";
    let call = async |method: Method, path: &str, body: Value| {
        let reply = cloud.admin(method, &format!("{root}{path}"), body).await;
        (reply.status.as_u16(), reply.json())
    };
    let property = json!({"name": "cpu", "title": "CPU", "type": "integer", "minimum": 1});
    let whole = json!({
        "namespace": "N", "visibility": "public", "tags": [{"name": "t"}],
        "objects": [{"name": "o", "properties": {"cpu": {"title": "CPU", "type": "integer"}}}],
        "properties": {"p": {"title": "P", "type": "string", "enum": ["a"]}},
        "resource_type_associations": [{"name": "OS::Glance::Image", "prefix": "hw_"}],
    });
    let (status, made) = call(Method::POST, "", whole.clone()).await;
    assert_eq!((status, &made["self"]), (201, &json!("/v2/metadefs/namespaces/N")), "{made}");
    assert_eq!(call(Method::POST, "", whole).await.0, 409);
    let (_, shown) = call(Method::GET, "/N?resource_type=OS::Glance::Image", Value::Null).await;
    assert_eq!(shown["properties"]["hw_p"]["type"], "string", "{shown}");
    assert_eq!(call(Method::POST, "/N/properties", property.clone()).await.0, 201);
    assert_eq!(call(Method::POST, "/N/properties", property).await.0, 409);
    assert_eq!(call(Method::POST, "/N/properties", json!({"name": "x", "type": "string"})).await.0, 400);
    let odd = json!({"name": "x", "title": "X", "type": "string", "odd": 1});
    assert_eq!(call(Method::POST, "/N/properties", odd).await.0, 400);
    assert_eq!(call(Method::PUT, "/N/objects/o", json!({"name": "o2"})).await.0, 200);
    assert_eq!(call(Method::GET, "/N/objects/o", Value::Null).await.0, 404);
    assert_eq!(call(Method::POST, "/N/tags", json!({"tags": [{"name": "a"}, {"name": "b"}]})).await.0, 201);
    let (_, tags) = call(Method::GET, "/N/tags?sort_key=name&sort_dir=asc", Value::Null).await;
    let names: Vec<_> = tags["tags"].as_array().unwrap().iter().map(|tag| tag["name"].clone()).collect();
    assert_eq!(names, ["a", "b"]);
    // What is no boolean says nothing, so the tags take the place of those that are there.
    for (append, names) in [("on", &["a", "b", "c"][..]), ("maybe", &["c"]), ("off", &["c"])] {
        let headers = [("x-auth-token", &*cloud.admin_token().await), ("x-openstack-append", append)];
        let path = format!("{root}/N/tags");
        let new = json!({"tags": [{"name": "c"}]});
        assert_eq!(cloud.call(Method::POST, &path, &headers, new).await.status, 201, "{append}");
        let (_, tags) = call(Method::GET, "/N/tags?sort_key=name&sort_dir=asc", Value::Null).await;
        let told: Vec<_> = tags["tags"].as_array().unwrap().iter().map(|tag| tag["name"].clone()).collect();
        assert_eq!(told, names, "{append}");
    }
    let kept = json!({"tags": [{"name": "a"}, {"name": "b"}]});
    assert_eq!(call(Method::POST, "/N/tags", kept).await.0, 201);
    let renamed = json!({"namespace": "M", "protected": true});
    assert_eq!(call(Method::PUT, "/N", renamed.clone()).await.0, 200);
    assert_eq!(call(Method::DELETE, "/M/tags/a", Value::Null).await.0, 403);
    assert_eq!(call(Method::DELETE, "/M", Value::Null).await.0, 403);
    assert_eq!(call(Method::PUT, "/M", json!({"namespace": "M", "protected": false})).await.0, 200);
    assert_eq!(call(Method::DELETE, "/M/tags/a", Value::Null).await.0, 204);
    assert_eq!(call(Method::DELETE, "/M", Value::Null).await.0, 204);
    assert_eq!(call(Method::GET, "/M", Value::Null).await.0, 404);
    let (status, _) = call(Method::POST, "", json!({"namespace": "N"})).await;
    assert_eq!(status, 201, "the name is free again");
    let (_, empty) = call(Method::GET, "/N/objects", Value::Null).await;
    assert_eq!(empty["objects"], json!([]));
}

/// Waits until an image is in this state; the image.
async fn until(cloud: &Harness, id: &str, done: impl Fn(&Value) -> bool) -> Value {
    let path = format!("/image/v2/images/{id}");
    for _ in 0..500 {
        let image = cloud.admin(Method::GET, &path, Value::Null).await.json();
        if done(&image) {
            return image;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("{}", cloud.admin(Method::GET, &path, Value::Null).await.json());
}

#[tokio::test]
async fn staged_data_is_imported_by_a_task() {
    let cloud = Harness::new().await;
    let _running = cloud.control.start_reconcilers();
    let id = create(&cloud, described("staged")).await;
    let import = json!({"method": {"name": "glance-direct"}});
    let path = format!("/image/v2/images/{id}");
    let ask =
        async |body: Value| cloud.admin(Method::POST, &format!("{path}/import"), body).await.status.as_u16();
    assert_eq!(ask(import.clone()).await, 409, "nothing is staged");
    let request = Request::put(format!("{path}/stage"))
        .header("x-auth-token", cloud.admin_token().await)
        .header("content-type", "application/octet-stream");
    assert_eq!(cloud.send(request.body(Body::from("hello")).unwrap()).await.status, 204);
    let staged = until(&cloud, &id, |image| image["status"] == "uploading").await;
    assert_eq!((&staged["size"], &staged["checksum"]), (&json!(5), &Value::Null));
    for bad in [
        json!({}),
        json!({"method": {}}),
        json!({"method": {"name": "odd"}}),
        json!({"method": {"name": "glance-direct"}, "all_stores": "yes"}),
        json!({"method": {"name": "glance-direct"}, "all_stores": true, "stores": ["file"]}),
        json!({"method": {"name": "web-download"}}),
    ] {
        assert_eq!(ask(bad.clone()).await, 400, "{bad}");
    }
    let unknown = json!({"method": {"name": "glance-direct"}, "stores": ["odd"]});
    assert_eq!(ask(unknown).await, 409);
    assert_eq!(ask(import.clone()).await, 202);
    let active = until(&cloud, &id, |image| image["status"] == "active").await;
    assert_eq!(active["checksum"], "5d41402abc4b2a76b9719d911017c592");
    assert_eq!((&active["stores"], active.get("os_glance_import_task")), (&json!("file"), None));
    let tasks = cloud.admin(Method::GET, &format!("{path}/tasks"), Value::Null).await.json();
    assert_eq!(tasks["tasks"][0]["status"], "success");
    assert_eq!(tasks["tasks"][0]["input"]["import_req"], import);
    assert_eq!(ask(import).await, 409, "it is active");
    let copy = json!({"method": {"name": "copy-image"}, "stores": ["file"]});
    assert_eq!(ask(copy).await, 400, "it is there");
    let from_store = cloud.admin(Method::DELETE, &format!("/image/v2/stores/file/{id}"), Value::Null).await;
    assert_eq!(from_store.status, 403, "the only store");
}

#[tokio::test]
async fn web_download_is_refused_or_fails_without_a_trace() {
    let cloud = Harness::new().await;
    let _running = cloud.control.start_reconcilers();
    let id = create(&cloud, described("web")).await;
    let path = format!("/image/v2/images/{id}/import");
    let ask = async |url: &str| {
        let body = json!({"method": {"name": "web-download", "uri": url}});
        cloud.admin(Method::POST, &path, body).await.status.as_u16()
    };
    for refused in
        ["http://127.0.0.1/x", "http://169.254.169.254/latest", "file:///etc/passwd", "http://h:22/x"]
    {
        assert_eq!(ask(refused).await, 400, "{refused}");
    }
    assert_eq!(ask("http://localhost/x").await, 202, "only its address tells");
    let failed = until(&cloud, &id, |image| image["os_glance_failed_import"] == "file").await;
    assert_eq!(failed["status"], "queued");
    let tasks = cloud.admin(Method::GET, "/image/v2/tasks?status=failure", Value::Null).await.json();
    let task = tasks["tasks"][0]["id"].as_str().unwrap().to_owned();
    let task = cloud.admin(Method::GET, &format!("/image/v2/tasks/{task}"), Value::Null).await.json();
    assert!(task["message"].as_str().unwrap().contains("not public"), "{task}");
    let input = json!({
        "import_from": "http://localhost/x", "import_from_format": "raw",
        "image_properties": {"name": "t", "disk_format": "raw", "container_format": "bare"},
    });
    let made = cloud.admin(Method::POST, "/image/v2/tasks", json!({"type": "import", "input": input})).await;
    assert_eq!(made.status, 201);
    let image = made.json()["image_id"].as_str().unwrap().to_owned();
    let gone = async || {
        cloud.admin(Method::GET, &format!("/image/v2/images/{image}"), Value::Null).await.status == 404
    };
    for _ in 0..500 {
        if gone().await {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert!(gone().await, "what a failed task made is gone");
}

#[tokio::test]
async fn service_says_what_it_has() {
    let cloud = Harness::new().await;
    let get = async |path: &str| {
        let reply = cloud.admin(Method::GET, &format!("/image/v2{path}"), Value::Null).await;
        (reply.status.as_u16(), reply.json())
    };
    assert_eq!(get("/info/stores").await.1["stores"][0]["id"], "file");
    assert_eq!(get("/info/stores/detail").await.1["stores"][0]["type"], "file");
    let (_, usage) = get("/info/usage").await;
    assert_eq!(usage["usage"]["image_count_total"], json!({"limit": 100, "usage": 1}));
    assert_eq!(get("/cache").await.0, 404);
    for name in ["image", "images", "member", "members", "task", "tasks"] {
        assert_eq!(get(&format!("/schemas/{name}")).await.1["name"], name);
    }
    assert_eq!(get("/schemas/metadefs/resource_types").await.1["name"], "resource_type_associations");
    assert_eq!(get("/schemas/odd").await.0, 404);
    assert_eq!(get("/images/").await.0, 404, "an image without an id");
    let id = create(&cloud, described("l")).await;
    let location =
        json!({"url": "http://h/x", "validation_data": {"os_hash_algo": "md5", "os_hash_value": "00"}});
    let path = format!("/image/v2/images/{id}/locations");
    assert_eq!(cloud.admin(Method::POST, &path, location).await.status, 400);
    assert_eq!(get(&format!("/images/{id}/locations")).await, (200, json!([])));
}
