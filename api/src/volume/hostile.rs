//! What no client should send, sent to every part of the service: an answer in Cinder's form, 400, 404 or 413, and never
//! 500.

mod bodies;

use axum::http::Method;
use serde_json::{Value, json};

use self::bodies::right_bodies;
use crate::harness::{Harness, Reply};

/// Every list there is.
const LISTS: [&str; 17] = [
    "volumes",
    "volumes/detail",
    "snapshots",
    "snapshots/detail",
    "backups",
    "backups/detail",
    "attachments",
    "attachments/detail",
    "groups",
    "groups/detail",
    "group_snapshots",
    "group_snapshots/detail",
    "volume-transfers",
    "volume-transfers/detail",
    "messages",
    "types",
    "group_types",
];

/// What stands for an id and is none.
fn no_ids() -> Vec<String> {
    let long = "a".repeat(4000);
    [
        "nonsense",
        "%00",
        "%ff",
        "..%2f..%2fetc",
        "%E2%98%83",
        "00000000-0000-4000-8000-000000000000",
        "-1",
        &long,
    ]
    .map(str::to_owned)
    .to_vec()
}

/// Values of every type that a field may not have.
fn wrong_values() -> Vec<Value> {
    vec![
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(1.5),
        json!(1e300),
        json!(u64::MAX),
        json!(""),
        json!("\u{0}"),
        json!("nonsense"),
        json!("x".repeat(300)),
        json!([]),
        json!([1, "a", null]),
        json!({}),
        json!({"a": {"b": "c"}}),
        json!({"a": 1}),
        json!({"": "c"}),
    ]
}

struct Hostile {
    cloud: Harness,
}

impl Hostile {
    async fn new() -> Self {
        Self { cloud: Harness::new().await }
    }

    async fn at(&self, version: &str, method: Method, path: &str, body: Value) -> Reply {
        let token = self.cloud.admin_token().await;
        let version = format!("volume {version}");
        let headers = [("x-auth-token", token.as_str()), ("openstack-api-version", version.as_str())];
        self.cloud.call(method, &format!("/volume/v3/{path}"), &headers, body).await
    }

    async fn newest(&self, method: Method, path: &str, body: Value) -> Reply {
        self.at("3.71", method, path, body).await
    }

    /// Asks for what must be refused.
    async fn refused(&self, status: u16, method: Method, path: &str, body: Value) {
        let reply = self.newest(method.clone(), path, body.clone()).await;
        let asked = format!("{method} {path} {body}").chars().take(300).collect::<String>();
        assert_eq!(reply.status, status, "{asked}: {}", reply.json());
        check_form(&reply, &asked);
    }

    /// Asks for what may be refused, and must not break anything.
    async fn survived(&self, method: Method, path: &str, body: Value) -> Reply {
        let reply = self.newest(method.clone(), path, body.clone()).await;
        check_form(&reply, &format!("{method} {path} {body}").chars().take(300).collect::<String>());
        reply
    }

    async fn made(&self, path: &str, body: Value) -> String {
        let reply = self.newest(Method::POST, path, body).await;
        assert!(reply.status.is_success(), "{path}: {}", reply.json());
        let body = reply.json();
        let (_, made) = body.as_object().unwrap().iter().next().unwrap();
        made["id"].as_str().unwrap().to_owned()
    }

    /// A volume that is free as far as the service knows, though no host has it.
    async fn volume(&self) -> String {
        let id = self.made("volumes", json!({"volume": {"size": 1}})).await;
        let reset = json!({"os-reset_status": {"status": "available"}});
        let reply = self.newest(Method::POST, &format!("volumes/{id}/action"), reset).await;
        assert_eq!(reply.status, 202, "{}", reply.json());
        id
    }
}

/// A refusal says so in Cinder's form: one name, with a code that is the status, and a sentence.
fn check_form(reply: &Reply, asked: &str) {
    let status = reply.status.as_u16();
    if status < 400 {
        return;
    }
    let body = reply.json();
    // What is known not to be there says so.
    assert!(matches!(status, 400 | 403 | 404 | 409 | 413 | 501), "{asked}: {status} {body}");
    let (name, fault) = body.as_object().and_then(|body| body.iter().next()).unwrap_or_else(|| {
        panic!("{asked}: {status} without a body");
    });
    let named = match status {
        400 => name == "badRequest",
        403 => name == "forbidden",
        404 => name == "itemNotFound",
        409 => name == "conflictingRequest",
        413 => name == "overLimit",
        _ => name == "notImplemented",
    };
    let says = fault["message"].as_str().is_some_and(|message| !message.is_empty());
    assert!(named && says && fault["code"] == status, "{asked}: {status} {body}");
}

#[tokio::test]
async fn lists_refuse_keys_directions_limits_and_markers_that_are_none_even_where_they_are_empty() {
    let hostile = Hostile::new().await;
    for list in LISTS {
        for query in [
            "sort_key=nonsense",
            "sort=nonsense:asc",
            "sort_key=id&sort_key=nonsense",
            "sort_key=",
            "sort_key=id&sort_dir=up",
            "sort=id:up",
            "sort=id,id,id,id,id,id,id,id,id,id,id",
            "limit=-1",
            "limit=nonsense",
            "limit=99999999999999999999",
            "limit=1.5",
            "offset=-1",
            "offset=nonsense",
            "offset=99999999999999999999",
        ] {
            hostile.refused(400, Method::GET, &format!("{list}?{query}"), Value::Null).await;
        }
        for marker in ["nonsense", "%00", "00000000-0000-4000-8000-000000000000"] {
            hostile.refused(404, Method::GET, &format!("{list}?marker={marker}"), Value::Null).await;
        }
        for query in
            ["limit=%ff", "a%00b=1", "=", "&&&", "limit=1&limit=2", "metadata=%7B", "status=%F0%9F%92%A9"]
        {
            hostile.survived(Method::GET, &format!("{list}?{query}"), Value::Null).await;
        }
    }
    for list in &LISTS[..14] {
        hostile.refused(400, Method::GET, &format!("{list}?all_tenants=maybe"), Value::Null).await;
    }
    for list in ["volumes", "volumes/detail", "snapshots", "snapshots/detail", "backups", "backups/detail"] {
        hostile.refused(400, Method::GET, &format!("{list}?with_count=maybe"), Value::Null).await;
        hostile.refused(400, Method::GET, &format!("{list}?nonsense=1"), Value::Null).await;
        hostile.refused(400, Method::GET, &format!("{list}?created_at=gt:nonsense"), Value::Null).await;
    }
}

#[tokio::test]
async fn ids_that_are_none_are_not_found() {
    let hostile = Hostile::new().await;
    let action = json!({"os-reset_status": {"status": "available"}});
    for id in no_ids() {
        for path in [
            "volumes/ID",
            "snapshots/ID",
            "backups/ID",
            "attachments/ID",
            "volume-transfers/ID",
            "groups/ID",
            "group_snapshots/ID",
            "group_types/ID",
            "types/ID",
            "qos-specs/ID",
            "messages/ID",
            "volumes/ID/encryption",
            "volumes/ID/encryption/ID",
            "volumes/ID/metadata",
            "volumes/ID/metadata/ID",
            "snapshots/ID/metadata",
            "types/ID/extra_specs",
            "types/ID/encryption",
            "backups/ID/export_record",
            "group_types/ID/group_specs",
        ] {
            let path = path.replace("ID", &id);
            hostile.refused(404, Method::GET, &path, Value::Null).await;
        }
        for path in ["volumes", "snapshots", "backups", "attachments", "volume-transfers", "messages"] {
            hostile.refused(404, Method::DELETE, &format!("{path}/{id}"), Value::Null).await;
        }
        for path in ["group_types", "types", "qos-specs", "group_snapshots"] {
            hostile.refused(404, Method::DELETE, &format!("{path}/{id}"), Value::Null).await;
        }
        for path in ["volumes", "snapshots", "backups"] {
            hostile.refused(404, Method::POST, &format!("{path}/{id}/action"), action.clone()).await;
        }
        for (path, body) in [
            ("volumes/ID", json!({"volume": {"name": "n"}})),
            ("snapshots/ID", json!({"snapshot": {"name": "n"}})),
            ("backups/ID", json!({"backup": {"name": "n"}})),
            ("groups/ID", json!({"group": {"name": "n"}})),
            ("types/ID", json!({"volume_type": {"name": "n"}})),
            ("group_types/ID", json!({"group_type": {"name": "n"}})),
        ] {
            hostile.refused(404, Method::PUT, &path.replace("ID", &id), body).await;
        }
    }
    // What is referred to in a body: its own kind of not found.
    for (path, body, status) in [
        ("volumes", json!({"volume": {"size": 1, "snapshot_id": "nonsense"}}), 404),
        ("volumes", json!({"volume": {"size": 1, "source_volid": "nonsense"}}), 404),
        ("volumes", json!({"volume": {"size": 1, "backup_id": "nonsense"}}), 404),
        ("volumes", json!({"volume": {"size": 1, "imageRef": "nonsense"}}), 400),
        ("volumes", json!({"volume": {"size": 1, "volume_type": "nonsense"}}), 404),
        ("volumes", json!({"volume": {"size": 1, "group_id": "nonsense"}}), 404),
        ("snapshots", json!({"snapshot": {"volume_id": "nonsense"}}), 404),
        ("backups", json!({"backup": {"volume_id": "nonsense"}}), 404),
        ("volume-transfers", json!({"transfer": {"volume_id": "nonsense"}}), 404),
        ("attachments", json!({"attachment": {"volume_uuid": "nonsense"}}), 404),
        ("groups", json!({"group": {"group_type": "nonsense", "volume_types": ["nonsense"]}}), 404),
        ("group_snapshots", json!({"group_snapshot": {"group_id": "nonsense"}}), 404),
    ] {
        hostile.refused(status, Method::POST, path, body).await;
    }
}

#[tokio::test]
async fn sizes_that_are_none_are_refused() {
    let hostile = Hostile::new().await;
    let volume = hostile.volume().await;
    for size in [
        json!(0),
        json!(-1),
        json!(1.5),
        json!(true),
        json!("0"),
        json!("-1"),
        json!("nonsense"),
        json!(""),
        json!(" 1"),
        json!("1e3"),
        json!("0x10"),
        json!("99999999999999999999999999"),
        json!([1]),
        json!({"a": 1}),
        json!(1_u64 << 31),
        json!(i64::MAX),
        json!(u64::MAX),
        json!(1e300),
    ] {
        hostile.refused(400, Method::POST, "volumes", json!({"volume": {"size": size}})).await;
        let extend = json!({"os-extend": {"new_size": size}});
        hostile.refused(400, Method::POST, &format!("volumes/{volume}/action"), extend).await;
    }
    hostile.refused(400, Method::POST, "volumes", json!({"volume": {"size": null}})).await;
    hostile.refused(400, Method::POST, "volumes", json!({"volume": {}})).await;
    // More than the project may have: Cinder's 413.
    hostile.refused(413, Method::POST, "volumes", json!({"volume": {"size": 2000}})).await;
    let extend = json!({"os-extend": {"new_size": 2000}});
    hostile.survived(Method::POST, &format!("volumes/{volume}/action"), extend).await;
    let limits = hostile.newest(Method::GET, "limits", Value::Null).await.json();
    assert_eq!(limits["limits"]["absolute"]["totalGigabytesUsed"], 1, "what was refused is not counted");
}

#[tokio::test]
async fn texts_and_properties_that_are_too_long_or_too_many_are_refused() {
    let hostile = Hostile::new().await;
    let volume = hostile.volume().await;
    let long = "x".repeat(256);
    let many: Value = (0..200).map(|number| (format!("k{number}"), json!("v"))).collect();
    for fields in [
        json!({"size": 1, "name": long}),
        json!({"size": 1, "description": long}),
        json!({"size": 1, "metadata": {"k": long}}),
        json!({"size": 1, "metadata": {long.clone(): "v"}}),
        json!({"size": 1, "metadata": {"": "v"}}),
        json!({"size": 1, "metadata": many}),
    ] {
        hostile.refused(400, Method::POST, "volumes", json!({"volume": fields})).await;
    }
    let path = format!("volumes/{volume}/metadata");
    for metadata in
        [json!({"k": long}), json!({long.clone(): "v"}), json!({"": "v"}), many.clone(), json!({"k": 1})]
    {
        for method in [Method::POST, Method::PUT] {
            hostile.refused(400, method, &path, json!({"metadata": metadata})).await;
        }
    }
    hostile.refused(400, Method::PUT, &format!("{path}/k"), json!({"meta": {"other": "v"}})).await;
    hostile.refused(400, Method::PUT, &format!("{path}/k"), json!({"meta": {"k": "v", "l": "w"}})).await;
    for (list, kind) in [("snapshots", "snapshot"), ("backups", "backup"), ("volume-transfers", "transfer")] {
        let body = json!({kind: {"volume_id": volume, "name": long}});
        hostile.refused(400, Method::POST, list, body).await;
    }
    hostile.refused(400, Method::POST, "types", json!({"volume_type": {"name": long}})).await;
    hostile.refused(400, Method::POST, "group_types", json!({"group_type": {"name": long}})).await;
    hostile.refused(400, Method::POST, "qos-specs", json!({"qos_specs": {"name": long}})).await;
    // A body that is no end of one.
    let huge = json!({"volume": {"size": 1, "description": "x".repeat(600 << 10)}});
    hostile.refused(413, Method::POST, "volumes", huge).await;
}

#[tokio::test]
async fn bodies_that_are_none_are_refused() {
    let hostile = Hostile::new().await;
    let volume = hostile.volume().await;
    let token = hostile.cloud.admin_token().await;
    for path in
        ["volumes", "snapshots", "backups", "attachments", "groups", "types", "qos-specs", "group_types"]
    {
        for body in [json!([]), json!("text"), json!(1), json!({}), json!({"nonsense": {}})] {
            hostile.refused(400, Method::POST, path, body).await;
        }
        for text in ["", "{", "nonsense", "{\"volume\": ", "\u{0}", &"[".repeat(100_000)] {
            let request = axum::http::Request::builder()
                .method(Method::POST)
                .uri(format!("/volume/v3/{path}"))
                .header("x-auth-token", &token)
                .header("openstack-api-version", "volume 3.71")
                .header("content-type", "application/json")
                .body(axum::body::Body::from(text.to_owned()))
                .unwrap();
            let reply = hostile.cloud.send(request).await;
            let asked: String = format!("{path} {text}").chars().take(100).collect();
            assert_eq!(reply.status, 400, "{asked}: {}", reply.json());
            check_form(&reply, &asked);
        }
    }
    let action = format!("volumes/{volume}/action");
    for body in [
        json!({}),
        json!({"nonsense": {}}),
        json!({"os-extend": null}),
        json!({"os-extend": {}}),
        json!({"os-extend": {"new_size": 2}, "os-detach": {}}),
        json!({"os-reset_status": {}}),
        json!({"os-reset_status": {"status": "nonsense"}}),
        json!({"os-set_bootable": {}}),
        json!({"os-set_bootable": {"bootable": "nonsense"}}),
        json!({"os-update_readonly_flag": {"readonly": "nonsense"}}),
        json!({"os-retype": {}}),
        json!({"os-retype": {"new_type": "nonsense"}}),
        json!({"os-volume_upload_image": {}}),
        json!({"os-set_image_metadata": {"metadata": {"k": 1}}}),
        json!({"os-unset_image_metadata": {}}),
        json!({"revert": {}}),
        json!({"os-attach": {"mode": "nonsense"}}),
    ] {
        hostile.refused(400, Method::POST, &action, body).await;
    }
    // Fields that Cinder's schemas do not know.
    for (path, body) in [
        ("backups", json!({"backup": {"volume_id": volume, "nonsense": 1}})),
        ("attachments", json!({"attachment": {"volume_uuid": volume, "nonsense": 1}})),
        ("groups", json!({"group": {"group_type": "a", "volume_types": ["b"], "nonsense": 1}})),
        ("volume-transfers", json!({"transfer": {"volume_id": volume, "nonsense": 1}})),
    ] {
        hostile.refused(400, Method::POST, path, body).await;
    }
    let update = json!({"volume": {"nonsense": 1}});
    hostile.refused(400, Method::PUT, &format!("volumes/{volume}"), update).await;
}

#[tokio::test]
async fn no_field_of_any_type_breaks_anything() {
    let hostile = Hostile::new().await;
    for (method, path, key, fields) in right_bodies(&hostile).await {
        for wrong in wrong_values() {
            hostile.survived(method.clone(), &path, json!({key: wrong})).await;
            let Some(known) = fields.as_object() else { continue };
            for field in known.keys() {
                let mut changed = fields.clone();
                changed[field] = wrong.clone();
                hostile.survived(method.clone(), &path, json!({key: changed})).await;
            }
        }
    }
}

#[tokio::test]
async fn members_that_cinders_schemas_do_not_know_are_refused_by_name() {
    let hostile = Hostile::new().await;
    for (method, path, body) in [
        (Method::POST, "volumes", json!({"volume": {"size": 1}, "x": 1})),
        (Method::PUT, "volumes/v", json!({"volume": {"name": "n"}, "x": 1})),
        (Method::POST, "snapshots", json!({"snapshot": {"volume_id": "v", "x": 1}})),
        (Method::POST, "snapshots", json!({"snapshot": {"volume_id": "v"}, "x": 1})),
        (Method::PUT, "snapshots/s", json!({"snapshot": {"name": "n"}, "x": 1})),
        (Method::PUT, "backups/b", json!({"backup": {"name": "n"}, "x": 1})),
        (Method::POST, "types", json!({"volume_type": {"name": "n", "x": 1}})),
        (Method::PUT, "os-quota-sets/p", json!({"quota_set": {"volumes": 1}, "x": 1})),
        (Method::PUT, "os-quota-class-sets/default", json!({"quota_class_set": {"volumes": 1}, "x": 1})),
        (Method::PUT, "os-services/enable", json!({"host": "h", "binary": "b", "x": 1})),
    ] {
        let refused = hostile.newest(method, path, body.clone()).await;
        let message = refused.json()["badRequest"]["message"].as_str().unwrap_or_default().to_owned();
        assert!(
            refused.status == 400 && message.contains("'x'"),
            "{path} {body}: {} {message}",
            refused.status
        );
    }
}

#[tokio::test]
async fn new_volumes_field_that_nobody_knows_is_passed_over_before_3_53_and_refused_from_then_on() {
    let cloud = Harness::new().await;
    let token = cloud.admin_token().await;
    for (version, status) in [("3.0", 202), ("3.52", 202), ("3.53", 400), ("3.71", 400)] {
        let version = format!("volume {version}");
        let headers = [("x-auth-token", token.as_str()), ("openstack-api-version", version.as_str())];
        let body = json!({"volume": {"size": 1, "bananas": true}});
        let reply = cloud.call(Method::POST, "/volume/v3/volumes", &headers, body).await;
        assert_eq!(reply.status, status, "{version}: {}", reply.json());
        if status == 400 {
            let message = reply.json()["badRequest"]["message"].as_str().unwrap().to_owned();
            assert!(message.contains("'bananas' was unexpected"), "{message}");
        }
        let body = json!({"volume": {"size": 1, "metadata": {"bananas": "any"}}});
        assert_eq!(cloud.call(Method::POST, "/volume/v3/volumes", &headers, body).await.status, 202);
    }
}
