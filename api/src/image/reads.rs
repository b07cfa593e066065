//! What a policy file hides: each rule of a read, what it refuses, and that it refuses nothing else.

use axum::body::Body;
use axum::http::{Method, Request};
use serde_json::{Value, json};

use crate::harness::Harness;

const NAMESPACES: &str = "metadefs/namespaces";

/// What the service answers to who may not see it.
const HIDING: [&str; 2] = ["get_image", "get_metadef_namespace"];

/// Posts what there is to be read; what is answered.
async fn made(cloud: &Harness, path: &str, body: Value) -> Value {
    let reply = cloud.admin(Method::POST, &format!("/image/v2/{path}"), body).await;
    assert!(reply.status.is_success(), "{path}: {}", reply.json());
    reply.json()
}

/// An image with data that is shared with a project, and a namespace with one of everything; the image's id.
async fn things(cloud: &Harness) -> String {
    let image =
        json!({"name": "one", "disk_format": "raw", "container_format": "bare", "visibility": "shared"});
    let id = made(cloud, "images", image).await["id"].as_str().unwrap().to_owned();
    let upload = Request::put(format!("/image/v2/images/{id}/file"))
        .header("x-auth-token", cloud.admin_token().await)
        .header("content-type", "application/octet-stream");
    assert_eq!(cloud.send(upload.body(Body::from("data")).unwrap()).await.status, 204);
    made(cloud, &format!("images/{id}/members"), json!({"member": "other"})).await;
    made(cloud, NAMESPACES, json!({"namespace": "n", "visibility": "public"})).await;
    made(cloud, &format!("{NAMESPACES}/n/objects"), json!({"name": "o"})).await;
    let property = json!({"name": "p", "title": "p", "type": "string"});
    made(cloud, &format!("{NAMESPACES}/n/properties"), property).await;
    made(cloud, &format!("{NAMESPACES}/n/tags/t"), Value::Null).await;
    made(cloud, &format!("{NAMESPACES}/n/resource_types"), json!({"name": "OS::Nova::Server"})).await;
    id
}

/// Each rule, and all that it refuses: with 404 where the service hides what it refuses, else with 403.
fn reads(id: &str) -> Vec<(&'static str, Vec<String>)> {
    let image = |below: &str| format!("images/{id}{below}");
    let namespace = |below: &str| format!("{NAMESPACES}/n{below}");
    let in_namespace = ["", "/objects", "/objects/o", "/properties", "/properties/p", "/tags", "/tags/t"]
        .into_iter()
        .chain(["/resource_types"]);
    vec![
        ("get_images", vec!["images".to_owned()]),
        ("get_image", ["", "/file", "/members", "/members/other"].map(image).to_vec()),
        ("download_image", vec![image("/file")]),
        ("get_members", vec![image("/members")]),
        ("get_member", vec![image("/members/other")]),
        ("get_metadef_namespaces", vec![NAMESPACES.to_owned()]),
        ("get_metadef_namespace", in_namespace.map(namespace).collect()),
        ("get_metadef_objects", vec![namespace(""), namespace("/objects")]),
        ("get_metadef_object", vec![namespace("/objects/o")]),
        ("get_metadef_properties", vec![namespace(""), namespace("/properties")]),
        ("get_metadef_property", vec![namespace("/properties/p")]),
        ("get_metadef_tags", vec![namespace(""), namespace("/tags")]),
        ("get_metadef_tag", vec![namespace("/tags/t")]),
        (
            "list_metadef_resource_types",
            vec![
                namespace(""),
                namespace("/resource_types"),
                NAMESPACES.to_owned(),
                "metadefs/resource_types".to_owned(),
            ],
        ),
        ("stores_info_detail", vec!["info/stores/detail".to_owned()]),
        ("tasks_api_access", vec!["tasks".to_owned()]),
    ]
}

/// The status of a read, and what it says.
async fn read(cloud: &Harness, token: &str, path: &str) -> (u16, Value) {
    let reply = cloud.get(&format!("/image/v2/{path}"), &[("x-auth-token", token)]).await;
    (reply.status.as_u16(), reply.json())
}

#[tokio::test]
async fn file_that_forbids_a_read_hides_that_and_nothing_else() {
    let cloud = Harness::new().await;
    let reads = reads(&things(&cloud).await);
    let token = cloud.admin_token().await;
    for (rule, refused) in &reads {
        let ruled = cloud.ruled(&format!("\"{rule}\": \"!\"\n")).await;
        for path in reads.iter().flat_map(|(_, paths)| paths) {
            let wanted = match refused.contains(path) {
                false => 200,
                true if HIDING.contains(rule) => 404,
                true => 403,
            };
            let (status, body) = read(&ruled, &token, path).await;
            assert_eq!(status, wanted, "{rule}: {path}: {body}");
        }
    }
}

#[tokio::test]
async fn lists_leave_out_what_a_file_hides() {
    let cloud = Harness::new().await;
    things(&cloud).await;
    let token = cloud.admin_token().await;
    let policy = "\"get_image\": \"'public':%(visibility)s\"\n\"get_metadef_resource_type\": \"!\"\n";
    let ruled = cloud.ruled(policy).await;
    let (_, listed) = read(&ruled, &token, "images").await;
    let names: Vec<&Value> = listed["images"].as_array().unwrap().iter().map(|one| &one["name"]).collect();
    assert_eq!(names, ["tiny"]);
    let (status, listed) = read(&ruled, &token, &format!("{NAMESPACES}/n/resource_types")).await;
    assert_eq!((status, &listed["resource_type_associations"]), (200, &json!([])));
}

#[tokio::test]
async fn without_a_file_readers_read_and_members_download() {
    let cloud = Harness::new().await;
    let id = things(&cloud).await;
    let reader = cloud.user_token("reads", "reader").await;
    let member = cloud.user_token("member", "member").await;
    for (rule, paths) in reads(&id) {
        for path in paths {
            let of_administrators = ["stores_info_detail", "tasks_api_access"].contains(&rule);
            let wanted = |may| if may { 200 } else { 403 };
            let (status, body) = read(&cloud, &member, &path).await;
            assert_eq!(status, wanted(!of_administrators), "{rule}: {path}: {body}");
            let (status, body) = read(&cloud, &reader, &path).await;
            let may = !of_administrators && !path.ends_with("/file");
            assert_eq!(status, wanted(may), "{rule}: {path}: {body}");
        }
    }
}

#[tokio::test]
async fn file_says_who_changes_images_and_what_was_made_is_answered_though_it_may_not_be_seen() {
    let cloud = Harness::new().await;
    let id = things(&cloud).await;
    let member = cloud.user_token("member", "member").await;
    let headers = [("x-auth-token", member.as_str())];
    let policy = "\"delete_image\": \"rule:admin_api\"\n\"deactivate\": \"!\"\n\"publicize_image\": \"\"\n";
    let ruled = cloud.ruled(policy).await;
    let path = format!("/image/v2/images/{id}");
    assert_eq!(ruled.call(Method::DELETE, &path, &headers, Value::Null).await.status, 403);
    let deactivate = format!("{path}/actions/deactivate");
    assert_eq!(ruled.admin(Method::POST, &deactivate, Value::Null).await.status, 403);
    let reactivate = format!("{path}/actions/reactivate");
    assert_eq!(ruled.admin(Method::POST, &reactivate, Value::Null).await.status, 204);
    let public = json!({"name": "p", "visibility": "public"});
    let reply = ruled.call(Method::POST, "/image/v2/images", &headers, public.clone()).await;
    assert_eq!(reply.status, 201, "{}", reply.json());
    let refused = cloud.call(Method::POST, "/image/v2/images", &headers, public).await;
    assert_eq!(refused.status, 403, "{}", refused.json());
    let ruled = cloud.ruled("\"get_image\": \"!\"\n\"get_metadef_namespace\": \"!\"\n").await;
    let unseen = made(&ruled, "images", json!({"name": "unseen"})).await;
    assert_eq!(unseen["status"], "queued");
    assert_eq!(ruled.admin(Method::DELETE, &path, Value::Null).await.status, 404);
    assert_eq!(made(&ruled, NAMESPACES, json!({"namespace": "m"})).await["namespace"], "m");
}
