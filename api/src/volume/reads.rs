//! What a policy file hides: each rule of a read, what it refuses, and that it refuses nothing else.

use std::time::Duration;

use axum::http::Method;
use control::driver::fake::FakeDriver;
use control::driver::volumes::{Place, VolumePaths, Volumes};
use serde_json::{Value, json};

use crate::harness::Harness;

/// One of everything that is listed and shown.
struct Things {
    volume: String,
    snapshot: String,
    backup: String,
    group: String,
    group_snapshot: String,
    transfer: String,
    kind: String,
    project: String,
}

async fn made(cloud: &Harness, path: &str, body: Value) -> String {
    let token = cloud.admin_token().await;
    let headers = [("x-auth-token", token.as_str()), ("openstack-api-version", "volume 3.71")];
    let reply = cloud.call(Method::POST, &format!("/volume/v3/{path}"), &headers, body).await;
    let body = reply.json();
    assert!(reply.status.is_success(), "{path}: {body}");
    let (_, made) = body.as_object().and_then(|body| body.iter().next()).unwrap();
    made["id"].as_str().unwrap().to_owned()
}

/// What is made of a part of the service, once its host has it.
async fn ready(cloud: &Harness, many: &str, body: Value) -> String {
    let id = made(cloud, many, body).await;
    let token = cloud.admin_token().await;
    for _ in 0..500 {
        let (_, shown) = read(cloud, &token, &format!("{many}/{id}")).await;
        let (_, thing) = shown.as_object().and_then(|shown| shown.iter().next()).unwrap();
        if thing["status"] == "available" {
            return id;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("one of {many} is not made");
}

impl Things {
    async fn made(cloud: &Harness) -> Self {
        let (root, images) = (cloud.directory().join("volumes"), cloud.directory().join("images"));
        let paths = VolumePaths { root, places: vec![Place::Files.into()], images, bucket: None };
        let volumes = Volumes::open(paths).unwrap();
        cloud.start_host(FakeDriver::new("fake-0", None).unwrap().with_volumes(volumes)).await;
        let volume = ready(cloud, "volumes", json!({"volume": {"size": 1}})).await;
        let snapshot = ready(cloud, "snapshots", json!({"snapshot": {"volume_id": volume}})).await;
        let backup = ready(cloud, "backups", json!({"backup": {"volume_id": volume}})).await;
        let kind = made(cloud, "types", json!({"volume_type": {"name": "kind"}})).await;
        let group_type = made(cloud, "group_types", json!({"group_type": {"name": "kind"}})).await;
        let group = json!({"group": {"group_type": group_type, "volume_types": [kind]}});
        let group = made(cloud, "groups", group).await;
        let part = json!({"volume": {"size": 1, "volume_type": kind, "group_id": group}});
        ready(cloud, "volumes", part).await;
        let copy = json!({"group_snapshot": {"group_id": group}});
        let group_snapshot = ready(cloud, "group_snapshots", copy).await;
        let offered = ready(cloud, "volumes", json!({"volume": {"size": 1}})).await;
        let transfer = made(cloud, "volume-transfers", json!({"transfer": {"volume_id": offered}})).await;
        let caller = cloud.control.token_caller(&cloud.admin_token().await, String::new()).await.unwrap();
        let project = caller.project_id().unwrap().to_owned();
        Self { volume, snapshot, backup, group, group_snapshot, transfer, kind, project }
    }

    /// Each rule, and all that it refuses: with 404 where the service hides what it refuses, else with 403.
    fn reads(&self) -> Vec<(&'static str, Vec<String>)> {
        let Self { volume, snapshot, backup, group, group_snapshot, transfer, kind, project } = self;
        let rows: [(&'static str, &[&str]); 22] = [
            ("volume:get_all", &["volumes", "volumes/detail", "volumes/summary"]),
            ("volume:get", &[&format!("volumes/{volume}"), &format!("volumes/{volume}/metadata")]),
            ("volume:get_volume_metadata", &[&format!("volumes/{volume}/metadata")]),
            ("volume:get_all_snapshots", &["snapshots", "snapshots/detail"]),
            (
                "volume:get_snapshot",
                &[&format!("snapshots/{snapshot}"), &format!("snapshots/{snapshot}/metadata")],
            ),
            ("volume:get_snapshot_metadata", &[&format!("snapshots/{snapshot}/metadata")]),
            ("backup:get_all", &["backups", "backups/detail"]),
            ("backup:get", &[&format!("backups/{backup}")]),
            ("group:get_all", &["groups", "groups/detail"]),
            ("group:get", &[&format!("groups/{group}")]),
            ("group:get_all_group_snapshots", &["group_snapshots", "group_snapshots/detail"]),
            ("group:get_group_snapshot", &[&format!("group_snapshots/{group_snapshot}")]),
            ("volume:get_all_transfers", &["volume-transfers", "volume-transfers/detail"]),
            ("volume:get_transfer", &[&format!("volume-transfers/{transfer}")]),
            ("message:get_all", &["messages"]),
            ("volume_extension:type_get_all", &["types"]),
            ("volume_extension:type_get", &[&format!("types/{kind}"), "types/default"]),
            ("volume_extension:types_extra_specs:index", &[&format!("types/{kind}/extra_specs")]),
            (
                "volume_extension:quotas:show",
                &[&format!("os-quota-sets/{project}"), &format!("os-quota-sets/{project}/defaults")],
            ),
            ("volume_extension:services:index", &["os-services"]),
            ("volume_extension:hosts", &["os-hosts"]),
            ("scheduler_extension:scheduler_stats:get_pools", &["scheduler-stats/get_pools"]),
        ];
        rows.map(|(rule, paths)| (rule, paths.iter().map(|path| (*path).to_owned()).collect())).to_vec()
    }
}

/// The status of a read, and what it says.
async fn read(cloud: &Harness, token: &str, path: &str) -> (u16, Value) {
    let headers = [("x-auth-token", token), ("openstack-api-version", "volume 3.71")];
    let reply = cloud.get(&format!("/volume/v3/{path}"), &headers).await;
    (reply.status.as_u16(), reply.json())
}

#[tokio::test]
async fn file_that_forbids_a_read_hides_that_and_nothing_else() {
    let cloud = Harness::new().await;
    let things = Things::made(&cloud).await;
    let token = cloud.admin_token().await;
    let reads = things.reads();
    for (rule, refused) in &reads {
        let ruled = cloud.ruled(&format!("\"{rule}\": \"!\"\n")).await;
        for path in reads.iter().flat_map(|(_, paths)| paths) {
            let wanted = match (refused.contains(path), *rule) {
                (false, _) => 200,
                (true, "volume:get") => 404,
                (true, _) => 403,
            };
            let (status, body) = read(&ruled, &token, path).await;
            assert_eq!(status, wanted, "{rule}: {path}: {body}");
        }
    }
}

#[tokio::test]
async fn without_a_file_readers_read_their_project_and_what_is_administrators_is_not_theirs() {
    let cloud = Harness::new().await;
    let things = Things::made(&cloud).await;
    let reader = cloud.user_token("reads", "reader").await;
    for (rule, paths) in things.reads() {
        let of_administrators =
            ["services:index", "hosts", "get_pools"].iter().any(|name| rule.ends_with(name));
        for path in paths {
            let (status, body) = read(&cloud, &reader, &path).await;
            assert_eq!(status, if of_administrators { 403 } else { 200 }, "{rule}: {path}: {body}");
        }
    }
    let (_, shown) = read(&cloud, &reader, &format!("volumes/{}", things.volume)).await;
    assert_eq!(shown["volume"]["os-vol-tenant-attr:tenant_id"], json!(things.project));
    assert_eq!(shown["volume"].get("os-vol-host-attr:host"), None);
}

#[tokio::test]
async fn file_may_show_each_user_its_own_volumes_alone_and_administrators_attributes_to_all() {
    let cloud = Harness::new().await;
    let things = Things::made(&cloud).await;
    let member = cloud.user_token("member", "member").await;
    let policy = "\"volume:get\": \"user_id:%(user_id)s\"\n\
                  \"volume_extension:volume_host_attribute\": \"\"\n\
                  \"volume_extension:volume_tenant_attribute\": \"rule:admin_api\"\n";
    let ruled = cloud.ruled(policy).await;
    let headers = [("x-auth-token", member.as_str())];
    let body = json!({"volume": {"size": 1}});
    let made = ruled.call(Method::POST, "/volume/v3/volumes", &headers, body).await;
    let own = made.json()["volume"]["id"].as_str().unwrap().to_owned();
    let (status, shown) = read(&ruled, &member, &format!("volumes/{own}")).await;
    assert_eq!(status, 200, "{shown}");
    assert!(shown["volume"].get("os-vol-host-attr:host").is_some(), "{shown}");
    assert_eq!(shown["volume"].get("os-vol-tenant-attr:tenant_id"), None);
    assert_eq!(read(&ruled, &member, &format!("volumes/{}", things.volume)).await.0, 404);
    // What cannot be seen cannot be changed either, nor copied.
    let other = format!("/volume/v3/volumes/{}", things.volume);
    assert_eq!(ruled.call(Method::DELETE, &other, &headers, Value::Null).await.status, 404);
    let copy = json!({"volume": {"size": 1, "source_volid": things.volume}});
    let copied = ruled.call(Method::POST, "/volume/v3/volumes", &headers, copy).await;
    assert_eq!(copied.status, 404, "{:?}", copied.json());
}

#[tokio::test]
async fn what_was_made_is_answered_though_it_may_not_be_seen() {
    let cloud = Harness::new().await;
    let things = Things::made(&cloud).await;
    let policy = "\"backup:get\": \"!\"\n\"volume:get_snapshot\": \"!\"\n\"group:get\": \"!\"\n";
    let ruled = cloud.ruled(policy).await;
    let one =
        made(&ruled, "snapshots", json!({"snapshot": {"volume_id": things.volume, "force": true}})).await;
    assert_eq!(read(&ruled, &cloud.admin_token().await, &format!("snapshots/{one}")).await.0, 403);
    let ruled = cloud.ruled("\"volume:get\": \"!\"\n").await;
    let one = made(&ruled, "volumes", json!({"volume": {"size": 1}})).await;
    assert_eq!(read(&ruled, &cloud.admin_token().await, &format!("volumes/{one}")).await.0, 404);
}
