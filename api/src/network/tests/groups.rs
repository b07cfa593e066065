//! Security groups: their rules, address groups, what new groups begin with.

use super::*;

async fn group(cloud: &Harness, name: &str) -> Value {
    create(cloud, "security-groups", json!({"security_group": {"name": name}})).await
}

fn rule(group: &str, fields: Value) -> Value {
    let mut rule = json!({"security_group_id": group, "direction": "ingress"});
    rule.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    json!({"security_group_rule": rule})
}

#[tokio::test]
async fn what_rules_cannot_say_is_refused_by_name() {
    let cloud = Harness::new().await;
    let id = text(&group(&cloud, "g").await, "id");
    for (fields, status, kind, said) in [
        (
            json!({"protocol": "tcp", "port_range_min": -16, "port_range_max": 80}),
            400,
            "SecurityGroupInvalidPortValue",
            "Invalid value for port -16",
        ),
        (
            json!({"protocol": "tcp", "port_range_min": 80, "port_range_max": 65536}),
            400,
            "SecurityGroupInvalidPortValue",
            "Invalid value for port 65536",
        ),
        (
            json!({"protocol": "tcp", "port_range_min": 80, "port_range_max": 79}),
            400,
            "SecurityGroupInvalidPortRange",
            "port_range_min must be <= port_range_max",
        ),
        (
            json!({"protocol": "tcp", "port_range_max": 6}),
            400,
            "SecurityGroupInvalidPortRange",
            "port_range_min must be <= port_range_max",
        ),
        (
            json!({"protocol": "icmp", "port_range_min": 1, "port_range_max": 256}),
            400,
            "SecurityGroupInvalidIcmpValue",
            "Invalid value for ICMP code",
        ),
        (
            json!({"protocol": "icmp", "port_range_min": 300, "port_range_max": 1}),
            400,
            "SecurityGroupInvalidIcmpValue",
            "Invalid value for ICMP type",
        ),
        (
            json!({"protocol": "icmp", "port_range_max": 6}),
            400,
            "SecurityGroupMissingIcmpType",
            "ICMP type (port-range-min) is missing",
        ),
        (json!({"protocol": "nothing"}), 400, "SecurityGroupRuleInvalidProtocol", "nothing"),
        (
            json!({"ethertype": "IPv6", "remote_ip_prefix": "10.0.0.0/8"}),
            400,
            "SecurityGroupRuleParameterConflict",
            "Conflicting value ethertype",
        ),
        (
            json!({"remote_ip_prefix": "10.0.0.0/8", "remote_group_id": id}),
            400,
            "SecurityGroupMultipleRemoteEntites",
            "Only remote_ip_prefix",
        ),
        (json!({"remote_address_group_id": "none"}), 404, "AddressGroupNotFound", "none"),
        (json!({"remote_group_id": "none"}), 404, "SecurityGroupNotFound", "none"),
    ] {
        let reply = ask(&cloud, Method::POST, "security-group-rules", rule(&id, fields.clone())).await;
        assert_eq!(refusal(&reply), (status, kind.to_owned()), "{fields}");
        let message = reply.json()["NeutronError"]["message"].to_string();
        assert!(message.contains(said), "{fields}: {message}");
    }
}

#[tokio::test]
async fn address_groups_hold_addresses_and_are_kept_while_rules_name_them() {
    let cloud = Harness::new().await;
    let body =
        json!({"address_group": {"name": "a", "addresses": ["10.0.0.7", "10.1.0.5/24", "2001:db8::1"]}});
    let made = create(&cloud, "address-groups", body).await;
    let addresses = json!(["10.0.0.7/32", "10.1.0.0/24", "2001:db8::1/128"]);
    has(&made, json!({"name": "a", "description": "", "addresses": addresses, "shared": false}));
    let path = format!("address-groups/{}", text(&made, "id"));
    let of = |texts: &[&str]| json!({"addresses": texts});
    let reply = ask(&cloud, Method::PUT, &format!("{path}/add_addresses"), of(&["10.2.0.0/16"])).await.json();
    assert_eq!(reply["address_group"]["addresses"].as_array().unwrap().len(), 4);
    let body = of(&["10.2.0.0/16", "10.3.0.0/16"]);
    refused(&cloud, Method::PUT, &format!("{path}/add_addresses"), body, 400, "AddressesAlreadyExist").await;
    let body = of(&["10.3.0.0/16"]);
    refused(&cloud, Method::PUT, &format!("{path}/remove_addresses"), body, 404, "AddressesNotFound").await;
    refused(&cloud, Method::PUT, &format!("{path}/add_addresses"), of(&["ten"]), 400, "InvalidInput").await;
    let reply = ask(&cloud, Method::PUT, &format!("{path}/remove_addresses"), of(&["10.0.0.7"])).await;
    assert_eq!(reply.status, 200);
    let group = text(&group(&cloud, "g").await, "id");
    let body = rule(&group, json!({"protocol": "tcp", "remote_address_group_id": made["id"]}));
    let named = create(&cloud, "security-group-rules", body.clone()).await;
    has(
        &named,
        json!({"remote_address_group_id": made["id"], "remote_ip_prefix": null, "belongs_to_default_sg": false}),
    );
    refused(&cloud, Method::POST, "security-group-rules", body, 409, "SecurityGroupRuleExists").await;
    refused(&cloud, Method::DELETE, &path, Value::Null, 409, "AddressGroupInUse").await;
    let gone = format!("security-group-rules/{}", text(&named, "id"));
    assert_eq!(ask(&cloud, Method::DELETE, &gone, Value::Null).await.status, 204);
    assert_eq!(ask(&cloud, Method::DELETE, &path, Value::Null).await.status, 204);
    for _ in 0..10 {
        create(&cloud, "address-groups", json!({"address_group": {}})).await;
    }
    refused(&cloud, Method::POST, "address-groups", json!({"address_group": {}}), 409, "OverQuota").await;
}

#[tokio::test]
async fn new_groups_begin_with_the_rules_that_an_administrator_says() {
    let cloud = Harness::new().await;
    let path = "default-security-group-rules";
    let rules =
        ask(&cloud, Method::GET, path, Value::Null).await.json()["default_security_group_rules"].clone();
    assert_eq!(rules.as_array().unwrap().len(), 4);
    let egress = rules.as_array().unwrap().iter().find(|rule| rule["direction"] == "egress").unwrap();
    has(egress, json!({"ethertype": "IPv4", "used_in_default_sg": true, "used_in_non_default_sg": true}));
    let gone = format!("{path}/{}", text(egress, "id"));
    let body = |port: u16| {
        json!({"default_security_group_rule": {
            "direction": "ingress", "protocol": "tcp", "port_range_min": port, "port_range_max": port,
            "remote_group_id": "PARENT",
        }})
    };
    let made = create(&cloud, path, body(22)).await;
    has(
        &made,
        json!({"used_in_default_sg": false, "used_in_non_default_sg": true, "remote_group_id": "PARENT"}),
    );
    refused(&cloud, Method::POST, path, body(22), 409, "DefaultSecurityGroupRuleExists").await;
    assert_eq!(ask(&cloud, Method::DELETE, &gone, Value::Null).await.status, 204);
    refused(&cloud, Method::DELETE, &gone, Value::Null, 404, "DefaultSecurityGroupRuleNotFound").await;
    let group = group(&cloud, "g").await;
    let rules = group["security_group_rules"].as_array().unwrap();
    assert_eq!(rules.len(), 2, "{rules:?}");
    let own = rules.iter().find(|rule| rule["port_range_min"] == 22).unwrap();
    assert_eq!(own["remote_group_id"], group["id"]);
    assert!(rules.iter().any(|rule| rule["direction"] == "egress" && rule["ethertype"] == "IPv6"));
    let token = cloud.user_token("m", "member").await;
    let headers = [("x-auth-token", token.as_str())];
    let reply = cloud.call(Method::POST, &format!("/network/v2.0/{path}"), &headers, body(23)).await;
    assert_eq!(refusal(&reply), (403, "PolicyNotAuthorized".into()));
}

#[tokio::test]
async fn stateless_groups_are_apart_from_stateful_ones_and_stay_so_while_ports_have_them() {
    let cloud = Harness::new().await;
    let [plain, other] =
        [true, false].map(|stateful| json!({"security_group": {"name": "g", "stateful": stateful}}));
    let stateless = create(&cloud, "security-groups", other).await;
    has(&stateless, json!({"stateful": false}));
    let stateful = create(&cloud, "security-groups", plain).await;
    let [stateless, stateful] = [stateless, stateful].map(|group| text(&group, "id"));
    let network = text(&create(&cloud, "networks", json!({"network": {"name": "n"}})).await, "id");
    let port = |groups: &[&str]| json!({"port": {"network_id": network, "security_groups": groups}});
    let mixed = [stateless.as_str(), stateful.as_str()];
    refused(&cloud, Method::POST, "ports", port(&mixed), 409, "SecurityGroupConflict").await;
    let made = create(&cloud, "ports", port(&[&stateless])).await;
    let own = format!("ports/{}", text(&made, "id"));
    let body = json!({"port": {"security_groups": mixed}});
    refused(&cloud, Method::PUT, &own, body, 409, "SecurityGroupConflict").await;
    let path = format!("security-groups/{stateless}");
    let to = |stateful: bool| json!({"security_group": {"stateful": stateful}});
    refused(&cloud, Method::PUT, &path, to(true), 409, "SecurityGroupInUse").await;
    assert_eq!(ask(&cloud, Method::PUT, &path, to(false)).await.status, 200);
    assert_eq!(ask(&cloud, Method::DELETE, &own, Value::Null).await.status, 204);
    let changed = ask(&cloud, Method::PUT, &path, to(true)).await.json();
    has(&changed["security_group"], json!({"stateful": true}));
}
