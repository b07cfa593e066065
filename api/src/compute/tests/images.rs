//! Images of servers and images as Nova shows them; and what of bodies its schemas do not know.

use control::driver::volumes::{Place, VolumePaths, Volumes};

use super::*;

impl Cloud {
    /// With a host that pretends, but for its disks.
    async fn with_disks() -> Self {
        let cloud = Self::new().await;
        let state = cloud.harness.directory();
        let (root, images) = (state.join("volumes/fake-0"), state.join("images"));
        let paths = VolumePaths { root, places: vec![Place::Files.into()], images, bucket: None };
        let volumes = Volumes::open(paths).unwrap();
        cloud.harness.start_host(FakeDriver::new("fake-0", None).unwrap().with_volumes(volumes)).await;
        cloud
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn image_of_a_server_is_told_by_its_place_and_later_by_its_id() {
    let cloud = Cloud::with_disks().await;
    let image = cloud.image().await;
    let id = cloud.server(&image, json!({})).await;
    cloud.until(&id, "ACTIVE").await;
    let act = |version, body| {
        let (cloud, path) = (&cloud, format!("/servers/{id}/action"));
        async move { cloud.post(&path, version, body).await }
    };
    let made = act("2.44", json!({"createImage": {"name": "one", "metadata": {"k": "v"}}})).await;
    assert_eq!((made.status.as_u16(), made.bytes.len()), (202, 0));
    let location = made.header("location").unwrap().to_owned();
    let first = location.strip_prefix("http://cloud.test/image/images/").unwrap();
    cloud.until(&id, "ACTIVE").await;
    let shown =
        cloud.harness.admin(Method::GET, &format!("/image/v2/images/{first}"), Value::Null).await.json();
    assert_eq!(
        (&shown["status"], &shown["k"], &shown["os_distro"], &shown["base_image_ref"], &shown["size"]),
        (&json!("active"), &json!("v"), &json!("tiny"), &json!(image), &json!(4096))
    );
    assert_eq!((&shown["owner_user_name"], &shown["owner_project_name"]), (&json!("admin"), &json!("admin")));
    let made = act("2.45", json!({"createImage": {"name": "two"}})).await;
    assert_eq!((made.status.as_u16(), made.header("location")), (202, None));
    assert_eq!(members(&made.json()), ["image_id"]);
    let busy = act("2.45", json!({"createImage": {"name": "three"}})).await;
    assert!(matches!(busy.status.as_u16(), 202 | 409), "{:?}", busy.json());
    cloud.until(&id, "ACTIVE").await;
    let series =
        |rotation| json!({"createBackup": {"name": "b", "backup_type": "daily", "rotation": rotation}});
    let made = act("2.45", series(json!("1"))).await;
    assert_eq!((made.status.as_u16(), members(&made.json())), (202, vec!["image_id"]));
    cloud.until(&id, "ACTIVE").await;
    let made = act("2.45", series(json!(0))).await;
    assert_eq!((made.status.as_u16(), made.bytes.len()), (202, 0));
    cloud.until(&id, "ACTIVE").await;
    let actions = cloud.get(&format!("/servers/{id}/os-instance-actions"), "2.84").await.json();
    let first = &actions["instanceActions"][0];
    assert_eq!((&first["action"], &first["message"]), (&json!("createBackup"), &Value::Null));
    let request = first["request_id"].as_str().unwrap();
    let shown = cloud.get(&format!("/servers/{id}/os-instance-actions/{request}"), "2.84").await.json();
    let event = &shown["instanceAction"]["events"][0];
    assert_eq!((&event["event"], &event["result"]), (&json!("compute_backup_instance"), &json!("Success")));
    let fields = ["details", "event", "finish_time", "host", "hostId", "result", "start_time", "traceback"];
    assert_eq!(members(event), fields);
    for wrong in [
        json!({"createImage": {}}),
        json!({"createImage": null}),
        json!({"createImage": {"name": ""}}),
        json!({"createImage": {"name": "x".repeat(256)}}),
        json!({"createImage": {"name": "n", "metadata": {"k": 1}}}),
        json!({"createImage": {"name": "n", "metadata": {"": "v"}}}),
        json!({"createImage": {"name": "n", "other": 1}}),
        series(json!(-1)),
        series(json!("x")),
        series(Value::Null),
        json!({"createBackup": {"name": "b", "rotation": 1}}),
    ] {
        let refused = act("2.45", wrong.clone()).await;
        assert_eq!(refused.status, 400, "{wrong}: {:?}", refused.json());
    }
    let missing = cloud.post("/servers/nope/action", "2.1", json!({"createImage": {"name": "n"}})).await;
    assert_eq!(missing.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_novas_schemas_do_not_know_are_refused_by_name() {
    let cloud = Cloud::with_host().await;
    let id = cloud.server(&cloud.image().await, json!({})).await;
    cloud.until(&id, "ACTIVE").await;
    let action = format!("/servers/{id}/action");
    let disk = json!({"boot_index": 0, "source_type": "image", "uuid": "x", "bus": "y"});
    let server = json!({"name": "s", "imageRef": "x", "flavorRef": "42", "networks": "none",
        "block_device_mapping_v2": [disk]});
    for (method, path, body) in [
        (Method::POST, action.as_str(), json!({"reboot": {"type": "HARD", "x": 1}})),
        (Method::POST, &action, json!({"lock": {"x": 1}})),
        (Method::POST, &action, json!({"os-resetState": {"state": "active", "x": 1}})),
        (Method::POST, &action, json!({"addSecurityGroup": {"name": "default", "x": 1}})),
        (Method::POST, &action, json!({"os-getConsoleOutput": {"length": 1, "x": 1}})),
        (Method::PUT, &format!("/servers/{id}"), json!({"server": {"name": "n"}, "x": 1})),
        (Method::POST, "/servers", json!({ "server": server })),
        (Method::POST, "/flavors", json!({"flavor": {"name": "f", "ram": 1, "vcpus": 1, "disk": 1}, "x": 1})),
        (Method::PUT, "/flavors/42", json!({"flavor": {"description": "d"}, "x": 1})),
        (Method::POST, "/flavors/42/os-extra_specs", json!({"extra_specs": {"a": "b"}, "x": 1})),
        (Method::POST, "/flavors/42/action", json!({"addTenantAccess": {"tenant": "t", "x": 1}})),
        (Method::PUT, "/os-quota-sets/p", json!({"quota_set": {"cores": 1}, "x": 1})),
    ] {
        let refused = cloud.call(method, path, "2.100", body.clone()).await;
        let message = refused.json()["badRequest"]["message"].as_str().unwrap_or_default().to_owned();
        let named = message.contains("'x'") || message.contains("`x`") || message.contains("'bus'");
        assert!(refused.status == 400 && named, "{path} {body}: {} {message}", refused.status);
    }
    let old = cloud.post(&action, "2.72", json!({"lock": {"x": 1}})).await;
    assert_eq!(old.status, 202, "before 2.73 it says nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_shown_by_nova_until_2_35_and_their_properties_until_2_38() {
    let cloud = Cloud::with_disks().await;
    let image = cloud.image().await;
    let id = cloud.server(&image, json!({})).await;
    cloud.until(&id, "ACTIVE").await;
    let body = json!({"createImage": {"name": "shot", "metadata": {"k": "v"}}});
    let made = cloud.post(&format!("/servers/{id}/action"), "2.45", body).await.json();
    let shot = made["image_id"].as_str().unwrap().to_owned();
    cloud.until(&id, "ACTIVE").await;
    let path = format!("/images/{shot}");
    let shown = cloud.get(&path, "2.35").await.json()["image"].take();
    let fields = [
        "OS-EXT-IMG-SIZE:size",
        "created",
        "id",
        "links",
        "metadata",
        "minDisk",
        "minRam",
        "name",
        "progress",
        "server",
        "status",
        "updated",
    ];
    assert_eq!(members(&shown), fields);
    assert_eq!(
        (&shown["status"], &shown["progress"], &shown["server"]["id"], &shown["metadata"]["k"]),
        (&json!("ACTIVE"), &json!(100), &json!(id), &json!("v"))
    );
    assert_eq!(shown["links"][2]["rel"], "alternate");
    let names = async |query: &str| {
        let listed = cloud.get(&format!("/images{query}"), "2.1").await.json();
        let names =
            listed["images"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap().to_owned());
        names.collect::<Vec<_>>()
    };
    assert_eq!(names("").await, ["shot", "i", "tiny"]);
    assert_eq!(names("/detail?limit=1").await, ["shot"]);
    assert_eq!(names("?type=snapshot").await, ["shot"]);
    assert_eq!(names(&format!("?server={id}")).await, ["shot"]);
    assert_eq!(names("?status=active&name=i").await, ["i"]);
    assert_eq!(names("?changes-since=2099-01-01T00:00:00Z").await, [""; 0]);
    assert_eq!(cloud.get("/images?minDisk=x", "2.1").await.status, 400);
    let metadata = format!("{path}/metadata");
    let added = cloud.post(&metadata, "2.38", json!({"metadata": {"a": "b"}})).await.json();
    assert_eq!((&added["metadata"]["a"], &added["metadata"]["k"]), (&json!("b"), &json!("v")));
    let put = |path: String, body| cloud.call(Method::PUT, path.leak(), "2.38", body);
    let alone = put(metadata.clone(), json!({"metadata": {"c": "d"}})).await.json();
    assert_eq!(alone, json!({"metadata": {"c": "d"}}));
    assert_eq!(put(format!("{metadata}/c"), json!({"meta": {"x": "y"}})).await.status, 400);
    let set = put(format!("{metadata}/c"), json!({"meta": {"c": "e"}})).await.json();
    assert_eq!(set, json!({"meta": {"c": "e"}}));
    assert_eq!(cloud.get(&format!("{metadata}/c"), "2.38").await.json(), set);
    assert_eq!(cloud.call(Method::DELETE, &format!("{metadata}/c"), "2.38", Value::Null).await.status, 204);
    assert_eq!(cloud.get(&format!("{metadata}/c"), "2.38").await.status, 404);
    for gone in ["/images".to_owned(), path.clone()] {
        assert_eq!(cloud.get(&gone, "2.36").await.status, 404, "{gone}");
    }
    assert_eq!(cloud.get(&metadata, "2.39").await.status, 404);
    assert_eq!(cloud.call(Method::DELETE, &path, "2.35", Value::Null).await.status, 204);
    assert_eq!(cloud.get(&path, "2.35").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_disk_is_as_its_image_says_where_nobody_asks_for_another() {
    let cloud = Cloud::new().await;
    let said = async |image: &str, asked: Option<&str>| {
        let mut server = json!({"name": "s", "imageRef": image, "flavorRef": "42", "networks": "none"});
        if let Some(asked) = asked {
            server["OS-DCF:diskConfig"] = json!(asked);
        }
        let made = cloud.post("/servers", "2.37", json!({ "server": server })).await;
        let code = made.status.as_u16();
        (code, if code == 202 { made.json()["server"]["OS-DCF:diskConfig"].take() } else { made.json() })
    };
    let (image, token) = (cloud.image().await, cloud.harness.admin_token().await);
    assert_eq!(said(&image, None).await, (202, json!("MANUAL")));
    let path = format!("/image/v2/images/{image}");
    for (op, says, shown) in [("add", "Yes", "AUTO"), ("replace", "Disabled", "MANUAL")] {
        let request = axum::http::Request::builder()
            .method(Method::PATCH)
            .uri(&path)
            .header("x-auth-token", &token)
            .header("content-type", "application/openstack-images-v2.1-json-patch")
            .body(json!([{"op": op, "path": "/auto_disk_config", "value": says}]).to_string().into())
            .unwrap();
        assert_eq!(cloud.harness.send(request).await.status, 200);
        let of_image = cloud.get(&format!("/images/{image}"), "2.35").await.json();
        assert_eq!(of_image["image"]["OS-DCF:diskConfig"], shown);
        assert_eq!(said(&image, None).await, (202, json!(shown)), "{says}");
        assert_eq!(said(&image, Some("MANUAL")).await, (202, json!("MANUAL")), "{says}");
    }
    let (code, refused) = said(&image, Some("AUTO")).await;
    let message = format!("Requested image {image} has automatic disk resize disabled.");
    assert_eq!((code, &refused["badRequest"]["message"]), (400, &json!(message)), "{refused}");
}
