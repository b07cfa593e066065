//! Topologies that are made for projects.

use super::hosts::port;
use super::*;

/// A cloud where a topology can be made, and its path for the administrator's project.
async fn ready() -> (Harness, String, String) {
    let cloud = Harness::new().await;
    let body = json!({"network": {"router:external": true, "is_default": true}});
    let outside = create(&cloud, "networks", body).await;
    let project = text(&outside, "project_id");
    let outside = text(&outside, "id");
    let body = json!({"subnet": {"network_id": outside, "ip_version": 4, "cidr": "203.0.113.0/24"}});
    create(&cloud, "subnets", body).await;
    for (name, prefix, length) in [("four", "10.0.0.0/8", 26), ("six", "2001:db8::/48", 64)] {
        let body = json!({"subnetpool": {
            "name": name, "prefixes": [prefix], "default_prefixlen": length, "is_default": true,
        }});
        create(&cloud, "subnetpools", body).await;
    }
    (cloud, format!("auto-allocated-topology/{project}"), outside)
}

async fn count(cloud: &Harness, collection: &str) -> usize {
    let rows = ask(cloud, Method::GET, collection, Value::Null).await.json();
    rows[collection].as_array().unwrap().len()
}

async fn counts(cloud: &Harness) -> [usize; 4] {
    let mut counts = [0; 4];
    for (count_of, collection) in counts.iter_mut().zip(["networks", "subnets", "routers", "ports"]) {
        *count_of = count(cloud, collection).await;
    }
    counts
}

#[tokio::test(flavor = "multi_thread")]
async fn topology_is_made_once_whoever_asks_and_goes_as_a_whole() {
    let (cloud, path, outside) = ready().await;
    let before = counts(&cloud).await;
    let asked = (0..4).map(|_| ask(&cloud, Method::GET, &path, Value::Null));
    let asked = futures_util::future::join_all(asked).await;
    let ids: std::collections::BTreeSet<String> =
        asked.iter().map(|reply| text(&reply.json()["auto_allocated_topology"], "id")).collect();
    let id = ids.first().unwrap();
    assert_eq!(ids.len(), 1);
    let network = ask(&cloud, Method::GET, &format!("networks/{id}"), Value::Null).await.json();
    has(
        &network["network"],
        json!({"name": "auto_allocated_network", "admin_state_up": true, "shared": false}),
    );
    let subnets =
        ask(&cloud, Method::GET, &format!("subnets?network_id={id}&sort_key=name&sort_dir=asc"), Value::Null)
            .await
            .json();
    has(&subnets["subnets"][0], json!({"name": "auto_allocated_subnet_v4", "cidr": "10.0.0.0/26"}));
    has(&subnets["subnets"][1], json!({"name": "auto_allocated_subnet_v6", "cidr": "2001:db8::/64"}));
    let routers = ask(&cloud, Method::GET, "routers", Value::Null).await.json();
    has(&routers["routers"][0]["external_gateway_info"], json!({"network_id": outside}));
    let router = text(&routers["routers"][0], "id");
    let query = format!("ports?device_id={router}&device_owner=network:router_interface");
    let ports = ask(&cloud, Method::GET, &query, Value::Null).await.json();
    assert_eq!(ports["ports"].as_array().unwrap().len(), 2);

    let port = port(&cloud, id).await;
    refused(&cloud, Method::DELETE, &path, Value::Null, 409, "NetworkInUse").await;
    assert_eq!(ask(&cloud, Method::DELETE, &format!("ports/{port}"), Value::Null).await.status, 204);
    for _ in 0..2 {
        assert_eq!(ask(&cloud, Method::DELETE, &path, Value::Null).await.status, 204);
        assert_eq!(counts(&cloud).await, before);
    }
    let quotas = path.replace("auto-allocated-topology/", "quotas/") + "/details";
    let used = ask(&cloud, Method::GET, &quotas, Value::Null).await.json();
    assert_eq!((&used["quota"]["router"]["used"], &used["quota"]["network"]["used"]), (&json!(0), &json!(1)));
}

#[tokio::test]
async fn topology_that_cannot_be_made_whole_leaves_nothing() {
    let (cloud, path, _) = ready().await;
    let before = counts(&cloud).await;
    let project = path.rsplit('/').next().unwrap();
    for (resource, kind) in [("subnet", "OverQuota"), ("router", "OverQuota"), ("port", "OverQuota")] {
        let limit = |limit: i64| json!({"quota": {resource: limit}});
        let quota = format!("quotas/{project}");
        assert_eq!(ask(&cloud, Method::PUT, &quota, limit(1)).await.status, 200);
        if resource == "router" {
            assert_eq!(ask(&cloud, Method::PUT, &quota, limit(0)).await.status, 200);
        }
        refused(&cloud, Method::GET, &path, Value::Null, 409, kind).await;
        assert_eq!(counts(&cloud).await, before, "{resource}");
        assert_eq!(ask(&cloud, Method::DELETE, &quota, Value::Null).await.status, 204);
    }
    // A pool of the addresses outside.
    let pools = ask(&cloud, Method::GET, "subnetpools?name=four", Value::Null).await.json();
    let pool = format!("subnetpools/{}", text(&pools["subnetpools"][0], "id"));
    assert_eq!(ask(&cloud, Method::DELETE, &pool, Value::Null).await.status, 204);
    let body = json!({"subnetpool": {
        "name": "clash", "prefixes": ["203.0.113.0/24"], "default_prefixlen": 26, "is_default": true,
    }});
    create(&cloud, "subnetpools", body).await;
    refused(&cloud, Method::GET, &path, Value::Null, 409, "AutoAllocationFailure").await;
    assert_eq!(counts(&cloud).await, before);
    let body = json!({"network": {"router:external": true, "is_default": true}});
    refused(&cloud, Method::POST, "networks", body, 409, "DefaultExternalNetworkExists").await;
    let reader = cloud.user_token("r", "reader").await;
    let reply = cloud.get(&format!("/network/v2.0/{path}"), &[("x-auth-token", &reader)]).await;
    assert_eq!(reply.status, 403, "{:?}", reply.json());
}

#[tokio::test]
async fn topology_goes_with_its_network_and_is_made_anew() {
    let (cloud, path, _) = ready().await;
    let first =
        text(&ask(&cloud, Method::GET, &path, Value::Null).await.json()["auto_allocated_topology"], "id");
    let routers = ask(&cloud, Method::GET, "routers", Value::Null).await.json();
    let router = text(&routers["routers"][0], "id");
    let subnets = ask(&cloud, Method::GET, &format!("subnets?network_id={first}"), Value::Null).await.json();
    for subnet in subnets["subnets"].as_array().unwrap() {
        let body = json!({"subnet_id": subnet["id"]});
        let path = format!("routers/{router}/remove_router_interface");
        assert_eq!(ask(&cloud, Method::PUT, &path, body).await.status, 200);
    }
    assert_eq!(ask(&cloud, Method::DELETE, &format!("routers/{router}"), Value::Null).await.status, 204);
    assert_eq!(ask(&cloud, Method::DELETE, &format!("networks/{first}"), Value::Null).await.status, 204);
    let second =
        text(&ask(&cloud, Method::GET, &path, Value::Null).await.json()["auto_allocated_topology"], "id");
    assert_ne!(first, second);
}
