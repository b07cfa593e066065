//! Trunks, metering, agents, zones, counts of addresses, quotas of projects.

use control::driver::fake::FakeDriver;

use super::*;

pub(super) async fn port(cloud: &Harness, network: &str) -> String {
    text(&create(cloud, "ports", json!({"port": {"network_id": network}})).await, "id")
}

fn vlan(port: &str, id: u16) -> Value {
    json!({"port_id": port, "segmentation_type": "vlan", "segmentation_id": id})
}

#[tokio::test]
async fn trunks_carry_ports_and_say_what_they_cannot() {
    let cloud = Harness::new().await;
    let (network, _) = network(&cloud, "n", "10.0.0.0/24").await;
    let big = create(&cloud, "networks", json!({"network": {"mtu": 9000}})).await;
    let (parent, one, two) =
        (port(&cloud, &network).await, port(&cloud, &network).await, port(&cloud, &network).await);
    let large = port(&cloud, &text(&big, "id")).await;
    let body = json!({"trunk": {"port_id": parent, "name": "t", "sub_ports": [vlan(&one, 5)]}});
    let made = create(&cloud, "trunks", body.clone()).await;
    has(
        &made,
        json!({
            "name": "t", "port_id": parent, "status": "DOWN", "admin_state_up": true, "revision_number": 0,
            "sub_ports": [vlan(&one, 5)], "tags": [],
        }),
    );
    let path = format!("trunks/{}", text(&made, "id"));
    refused(&cloud, Method::POST, "trunks", body, 409, "ParentPortInUse").await;
    let body = json!({"trunk": {"port_id": one}});
    refused(&cloud, Method::POST, "trunks", body, 409, "TrunkPortInUse").await;
    let body = json!({"trunk": {"port_id": "none"}});
    refused(&cloud, Method::POST, "trunks", body, 404, "PortNotFound").await;
    let add = format!("{path}/add_subports");
    for (sub_port, status, kind) in [
        (vlan(&two, 5), 409, "DuplicateSubPort"),
        (vlan(&one, 6), 409, "TrunkPortInUse"),
        (vlan(&parent, 6), 409, "ParentPortInUse"),
        (vlan(&large, 6), 409, "SubPortMtuGreaterThanTrunkPortMtu"),
        (vlan(&two, 4095), 400, "InvalidInput"),
        (json!({"port_id": two}), 400, "InvalidInput"),
        (json!({"port_id": two, "segmentation_type": "q", "segmentation_id": 1}), 400, "InvalidInput"),
    ] {
        refused(&cloud, Method::PUT, &add, json!({"sub_ports": [sub_port]}), status, kind).await;
    }
    let reply = ask(&cloud, Method::PUT, &add, json!({"sub_ports": [vlan(&two, 6)]})).await;
    assert_eq!(reply.json()["sub_ports"], json!([vlan(&one, 5), vlan(&two, 6)]));
    let reply = ask(&cloud, Method::GET, &format!("{path}/get_subports"), Value::Null).await;
    assert_eq!(reply.json(), json!({"sub_ports": [vlan(&one, 5), vlan(&two, 6)]}));
    let details = ask(&cloud, Method::GET, &format!("ports/{parent}"), Value::Null).await.json();
    assert_eq!(details["port"]["trunk_details"]["sub_ports"][0]["segmentation_id"], 5);
    refused(&cloud, Method::DELETE, &format!("ports/{parent}"), Value::Null, 409, "PortInUseAsTrunkParent")
        .await;
    refused(&cloud, Method::DELETE, &format!("ports/{one}"), Value::Null, 409, "PortInUseAsSubPort").await;
    let gone = |port: &str| json!({"sub_ports": [{"port_id": port}]});
    let remove = format!("{path}/remove_subports");
    refused(&cloud, Method::PUT, &remove, gone(&large), 404, "SubPortNotFound").await;
    assert_eq!(ask(&cloud, Method::PUT, &remove, gone(&one)).await.status, 200);
    assert_eq!(ask(&cloud, Method::DELETE, &format!("ports/{one}"), Value::Null).await.status, 204);
    let down = |up: bool| json!({"trunk": {"admin_state_up": up}});
    assert_eq!(ask(&cloud, Method::PUT, &path, down(false)).await.status, 200);
    refused(&cloud, Method::PUT, &remove, gone(&two), 409, "TrunkDisabled").await;
    refused(&cloud, Method::DELETE, &path, Value::Null, 409, "TrunkDisabled").await;
    assert_eq!(ask(&cloud, Method::PUT, &path, down(true)).await.status, 200);
    assert_eq!(ask(&cloud, Method::DELETE, &path, Value::Null).await.status, 204);
    assert_eq!(ask(&cloud, Method::DELETE, &format!("ports/{parent}"), Value::Null).await.status, 204);
}

#[tokio::test]
async fn labels_and_their_rules_are_kept_for_administrators() {
    let cloud = Harness::new().await;
    let body = json!({"metering_label": {"name": "l", "description": "d"}});
    let label = create(&cloud, "metering/metering-labels", body).await;
    has(&label, json!({"name": "l", "description": "d", "shared": false}));
    let rule = |fields: Value| {
        let mut rule = json!({"metering_label_id": label["id"], "direction": "ingress"});
        rule.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        json!({"metering_label_rule": rule})
    };
    let path = "metering/metering-label-rules";
    let made = create(&cloud, path, rule(json!({"remote_ip_prefix": "10.0.0.0/24"}))).await;
    has(&made, json!({"remote_ip_prefix": "10.0.0.0/24", "excluded": false, "source_ip_prefix": null}));
    refused(&cloud, Method::POST, path, rule(json!({})), 400, "InvalidInput").await;
    let strange = json!({"metering_label_rule": {
        "metering_label_id": "none", "direction": "egress", "source_ip_prefix": "10.0.0.0/8",
    }});
    refused(&cloud, Method::POST, path, strange, 404, "MeteringLabelNotFound").await;
    let listed = ask(&cloud, Method::GET, &format!("{path}?id=33"), Value::Null).await.json();
    assert_eq!(listed, json!({"metering_label_rules": []}));
    let token = cloud.user_token("m", "member").await;
    let headers = [("x-auth-token", token.as_str())];
    let reply = cloud.get("/network/v2.0/metering/metering-labels", &headers).await;
    assert_eq!(reply.json(), json!({"metering_labels": []}));
    let gone = format!("metering/metering-labels/{}", text(&label, "id"));
    assert_eq!(ask(&cloud, Method::DELETE, &gone, Value::Null).await.status, 204);
    let gone = format!("{path}/{}", text(&made, "id"));
    refused(&cloud, Method::GET, &gone, Value::Null, 404, "MeteringLabelRuleNotFound").await;
}

#[tokio::test]
async fn agents_and_zones_are_those_of_the_hosts() {
    let cloud = Harness::new().await;
    assert_eq!(ask(&cloud, Method::GET, "agents", Value::Null).await.json(), json!({"agents": []}));
    cloud.start_host(FakeDriver::new("fake-0", None).unwrap()).await;
    let agents = ask(&cloud, Method::GET, "agents", Value::Null).await.json();
    let agent = &agents["agents"][0];
    has(
        agent,
        json!({"alive": true, "admin_state_up": true, "availability_zone": "nova", "description": null}),
    );
    let path = format!("agents/{}", text(agent, "id"));
    let reply = ask(&cloud, Method::PUT, &path, json!({"agent": {"description": "d"}})).await;
    assert_eq!(reply.json()["agent"]["description"], "d");
    for up in [false, true] {
        let body = json!({"agent": {"admin_state_up": up}});
        let reply = ask(&cloud, Method::PUT, &path, body).await;
        assert_eq!(reply.json()["agent"]["admin_state_up"], up);
    }
    refused(&cloud, Method::DELETE, &path, Value::Null, 409, "AgentInUse").await;
    let wished = |zone: &str| json!({"availability_zone_hints": [zone]});
    for (collection, one) in [("networks", "network"), ("routers", "router")] {
        let made = create(&cloud, collection, json!({ one: wished("nova") })).await;
        assert_eq!(made["availability_zone_hints"], json!(["nova"]));
        refused(
            &cloud,
            Method::POST,
            collection,
            json!({ one: wished("moon") }),
            404,
            "AvailabilityZoneNotFound",
        )
        .await;
    }
    refused(&cloud, Method::GET, "agents/none", Value::Null, 404, "AgentNotFound").await;
    let zones = ask(&cloud, Method::GET, "availability_zones", Value::Null).await.json();
    assert_eq!(
        zones,
        json!({"availability_zones": [
            {"name": "nova", "resource": "network", "state": "available"},
        ]})
    );
    let token = cloud.user_token("m", "reader").await;
    let reply = cloud.get("/network/v2.0/agents", &[("x-auth-token", token.as_str())]).await;
    assert_eq!(reply.json(), json!({"agents": []}));
    let reply = ask(&cloud, Method::GET, "service-providers", Value::Null).await;
    assert_eq!(reply.json(), json!({"service_providers": []}));
}

#[tokio::test]
async fn addresses_are_counted_and_topologies_are_tried() {
    let cloud = Harness::new().await;
    let (network, subnet) = network(&cloud, "n", "10.0.0.0/24").await;
    port(&cloud, &network).await;
    let body = json!({"subnet": {"network_id": network, "cidr": "2001:db8::/64", "ip_version": 6}});
    create(&cloud, "subnets", body).await;
    let row =
        ask(&cloud, Method::GET, &format!("network-ip-availabilities/{network}"), Value::Null).await.json();
    has(&row["network_ip_availability"], json!({"network_id": network, "network_name": "n", "used_ips": 2}));
    let query = format!("network-ip-availabilities?network_id={network}&ip_version=4");
    let rows = ask(&cloud, Method::GET, &query, Value::Null).await.json();
    has(&rows["network_ip_availabilities"][0], json!({"total_ips": 253, "used_ips": 2}));
    let of_subnet = &rows["network_ip_availabilities"][0]["subnet_ip_availability"][0];
    has(of_subnet, json!({"subnet_id": subnet, "cidr": "10.0.0.0/24", "ip_version": 4, "total_ips": 253}));
    let project = text(&create(&cloud, "networks", json!({"network": {}})).await, "project_id");
    let path = format!("auto-allocated-topology/{project}");
    refused(&cloud, Method::GET, &path, Value::Null, 409, "AutoAllocationFailure").await;
    let body = json!({"network": {"router:external": true, "is_default": true}});
    create(&cloud, "networks", body).await;
    let body = json!({"subnetpool": {"name": "d", "prefixes": ["10.0.0.0/8"], "is_default": true}});
    create(&cloud, "subnetpools", body).await;
    let reply = ask(&cloud, Method::GET, &format!("{path}?fields=dry-run"), Value::Null).await;
    assert_eq!(reply.json()["auto_allocated_topology"]["id"], "dry-run=pass");
    refused(&cloud, Method::GET, &format!("{path}?fields=id"), Value::Null, 400, "BadRequest").await;
}

#[tokio::test]
async fn quotas_of_projects_are_listed_where_they_are_not_the_defaults() {
    let cloud = Harness::new().await;
    let project = text(&create(&cloud, "networks", json!({"network": {}})).await, "project_id");
    assert_eq!(ask(&cloud, Method::GET, "quotas", Value::Null).await.json(), json!({"quotas": []}));
    let body = json!({"quota": {"rbac_policy": 3, "trunk": 4}});
    assert_eq!(ask(&cloud, Method::PUT, &format!("quotas/{project}"), body).await.status, 200);
    let rows = ask(&cloud, Method::GET, "quotas", Value::Null).await.json();
    has(&rows["quotas"][0], json!({"project_id": project, "rbac_policy": 3, "trunk": 4, "network": 100}));
    let row = ask(&cloud, Method::GET, &format!("quotas/{project}/default"), Value::Null).await.json();
    has(&row["quota"], json!({"rbac_policy": 10, "trunk": -1, "subnetpool": -1, "network": 100}));
    let row = ask(&cloud, Method::GET, &format!("quotas/{project}/details"), Value::Null).await.json();
    assert_eq!(row["quota"]["network"], json!({"limit": 100, "used": 1, "reserved": 0}));
    assert_eq!(ask(&cloud, Method::DELETE, &format!("quotas/{project}"), Value::Null).await.status, 204);
}
