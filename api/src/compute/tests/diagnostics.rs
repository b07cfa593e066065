//! How servers fare, and what the cloud's networks count.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn diagnostics_are_an_administrators_and_of_running_servers_in_the_form_of_their_version() {
    let cloud = Cloud::with_host().await;
    let id = cloud.server(&cloud.image().await, json!({})).await;
    cloud.until(&id, "ACTIVE").await;
    let path = format!("/servers/{id}/diagnostics");
    let old = cloud.get(&path, "2.47").await;
    assert_eq!(old.status, 200);
    assert_eq!(members(&old.json()), ["memory"]);
    let shown = cloud.get(&path, "2.48").await.json();
    assert!(shown["uptime"].is_u64(), "{shown}");
    let ram = shown["memory_details"]["maximum"].clone();
    assert_eq!(old.json()["memory"], json!(ram.as_u64().unwrap() * 1024));
    let nothing = Value::Null;
    let disk = json!({
        "read_bytes": nothing, "read_requests": nothing, "write_bytes": nothing, "write_requests": nothing,
        "errors_count": nothing,
    });
    assert_eq!(
        shown,
        json!({
            "state": "running", "driver": "libvirt", "hypervisor": "kvm", "hypervisor_os": "linux",
            "uptime": shown["uptime"], "config_drive": false, "num_cpus": 1, "num_nics": 0, "num_disks": 1,
            "memory_details": {"maximum": ram, "used": nothing},
            "cpu_details": [{"id": 0, "time": nothing, "utilisation": nothing}],
            "nic_details": [], "disk_details": [disk],
        })
    );
    let token = cloud.harness.user_token("reader", "reader").await;
    let headers = [("x-auth-token", token.as_str())];
    let reply = cloud.harness.get(&format!("/compute/v2.1{path}"), &headers).await;
    assert!(matches!(reply.status.as_u16(), 403 | 404), "{}", reply.status);
    assert_eq!(cloud.get("/servers/none/diagnostics", "2.48").await.status, 404);
    cloud.post(&format!("/servers/{id}/action"), "2.48", json!({"os-stop": null})).await;
    cloud.until(&id, "SHUTOFF").await;
    let reply = cloud.get(&path, "2.48").await;
    assert_eq!(reply.status, 409);
    let said = reply.json()["conflictingRequest"]["message"].to_string();
    assert!(said.contains("'get_diagnostics'") && said.contains("power state shutdown"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_an_administrators_by_either_header_and_say_which_hosts_answer() {
    let cloud = Cloud::with_host().await;
    let token = cloud.harness.admin_token().await;
    for header in [("x-auth-token", token.clone()), ("authorization", format!("Bearer {token}"))] {
        let reply = cloud.harness.get("/metrics", &[(header.0, header.1.as_str())]).await;
        assert_eq!(reply.status, 200);
        assert_eq!(reply.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
        let text = String::from_utf8(reply.bytes.to_vec()).unwrap();
        assert!(text.contains("\nwisp_host_answers{host=\"fake-0\"} 1\n"), "{text}");
    }
    assert_eq!(cloud.harness.get("/metrics", &[]).await.status, 401);
    assert_eq!(cloud.harness.get("/metrics", &[("authorization", "Basic eA==")]).await.status, 401);
    let token = cloud.harness.user_token("reader", "reader").await;
    assert_eq!(cloud.harness.get("/metrics", &[("x-auth-token", token.as_str())]).await.status, 403);
}
