//! What a policy file hides: each rule of a read, what it refuses, and that it refuses nothing else.

use serde_json::json;

use super::Cloud;

/// Each rule, and all that it refuses.
fn reads(id: &str, host: &str, request: &str) -> Vec<(&'static str, Vec<String>)> {
    let server = |below: &str| vec![format!("servers/{id}{below}")];
    vec![
        ("servers:index", vec!["servers".to_owned()]),
        ("servers:detail", vec!["servers/detail".to_owned()]),
        ("servers:show", server("")),
        ("server-metadata:index", server("/metadata")),
        ("server-metadata:show", server("/metadata/k")),
        ("os-server-tags:index", server("/tags")),
        ("os-server-tags:show", server("/tags/t")),
        ("ips:index", server("/ips")),
        ("os-attach-interfaces:list", server("/os-interface")),
        ("os-security-groups:list", server("/os-security-groups")),
        ("os-volumes-attachments:index", server("/os-volume_attachments")),
        ("os-instance-actions:list", server("/os-instance-actions")),
        ("os-instance-actions:show", server(&format!("/os-instance-actions/{request}"))),
        ("os-server-password:show", server("/os-server-password")),
        ("servers:migrations:index", server("/migrations")),
        ("os-hypervisors:list", vec!["os-hypervisors".to_owned()]),
        ("os-hypervisors:list-detail", vec!["os-hypervisors/detail".to_owned()]),
        ("os-hypervisors:show", vec![format!("os-hypervisors/{host}")]),
        ("os-hypervisors:statistics", vec!["os-hypervisors/statistics".to_owned()]),
        ("os-hypervisors:uptime", vec![format!("os-hypervisors/{host}/uptime")]),
        ("os-services:list", vec!["os-services".to_owned()]),
        ("os-availability-zone:list", vec!["os-availability-zone".to_owned()]),
        ("os-availability-zone:detail", vec!["os-availability-zone/detail".to_owned()]),
        ("os-flavor-extra-specs:index", vec!["flavors/42/os-extra_specs".to_owned()]),
        ("os-keypairs:index", vec!["os-keypairs".to_owned()]),
        ("os-aggregates:index", vec!["os-aggregates".to_owned()]),
        ("os-server-groups:index", vec!["os-server-groups".to_owned()]),
        ("os-migrations:index", vec!["os-migrations".to_owned()]),
        ("extensions", vec!["extensions".to_owned()]),
        ("limits", vec!["limits".to_owned()]),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn file_that_forbids_a_read_of_compute_hides_that_and_nothing_else() {
    let cloud = Cloud::with_host().await;
    let images = cloud.harness.admin(axum::http::Method::GET, "/image/v2/images", json!(null)).await.json();
    let image = images["images"][0]["id"].as_str().unwrap().to_owned();
    let body = json!({"server": {
        "name": "s", "imageRef": image, "flavorRef": "42", "networks": "none", "metadata": {"k": "v"}, "tags": ["t"],
    }});
    let made = cloud.post("/servers", "2.52", body).await;
    assert_eq!(made.status, 202, "{}", made.json());
    let request = made.header("x-compute-request-id").unwrap().to_owned();
    let id = made.json()["server"]["id"].as_str().unwrap().to_owned();
    let hosts = cloud.get("/os-hypervisors", "2.87").await.json();
    let host = hosts["hypervisors"][0]["id"].as_str().unwrap().to_owned();
    let token = cloud.harness.admin_token().await;
    let headers = [("x-auth-token", token.as_str()), ("openstack-api-version", "compute 2.87")];
    let reads = reads(&id, &host, &request);
    for (rule, refused) in &reads {
        let name =
            if rule.starts_with("compute:") { (*rule).to_owned() } else { format!("os_compute_api:{rule}") };
        let ruled = cloud.harness.ruled(&format!("\"{name}\": \"!\"\n")).await;
        for path in reads.iter().flat_map(|(_, paths)| paths) {
            let reply = ruled.get(&format!("/compute/v2.1/{path}"), &headers).await;
            let wanted = if refused.contains(path) { 403 } else { 200 };
            // That a tag is there is answered without a word.
            let status = if reply.status == 204 { 200 } else { reply.status.as_u16() };
            assert_eq!(status, wanted, "{rule}: {path}: {}", reply.json());
        }
    }
    // A file may let others, too: all but what lies in other projects.
    let reader = cloud.harness.user_token("reads", "reader").await;
    let headers = [("x-auth-token", reader.as_str())];
    let path = "/compute/v2.1/os-hypervisors";
    assert_eq!(cloud.harness.get(path, &headers).await.status, 403);
    let ruled = cloud.harness.ruled("\"os_compute_api:os-hypervisors:list\": \"role:reader\"\n").await;
    assert_eq!(ruled.get(path, &headers).await.status, 200);
}
