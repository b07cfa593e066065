//! QoS policies, their rules, and what has them.

use super::*;

async fn policy(cloud: &Harness, fields: Value) -> Value {
    create(cloud, "qos/policies", json!({"policy": fields})).await
}

#[tokio::test]
async fn policies_have_rules_of_five_kinds_which_do_not_contradict_each_other() {
    let cloud = Harness::new().await;
    let made = policy(&cloud, json!({"name": "q", "description": "d"})).await;
    has(
        &made,
        json!({"name": "q", "description": "d", "shared": false, "is_default": false, "rules": [], "tags": []}),
    );
    let id = text(&made, "id");
    let path = format!("qos/policies/{id}");
    let mut rules = Vec::new();
    for (kind, fields, shown) in [
        (
            "bandwidth_limit_rule",
            json!({"max_kbps": 1000}),
            json!({"max_kbps": 1000, "max_burst_kbps": 0, "direction": "egress"}),
        ),
        (
            "bandwidth_limit_rule",
            json!({"max_kbps": "9", "direction": "ingress"}),
            json!({"max_kbps": 9, "direction": "ingress"}),
        ),
        ("dscp_marking_rule", json!({"dscp_mark": 26}), json!({"dscp_mark": 26})),
        (
            "minimum_bandwidth_rule",
            json!({"min_kbps": 1000}),
            json!({"min_kbps": 1000, "direction": "egress"}),
        ),
        (
            "packet_rate_limit_rule",
            json!({"max_kpps": 5}),
            json!({"max_kpps": 5, "max_burst_kpps": 0, "direction": "egress"}),
        ),
        (
            "minimum_packet_rate_rule",
            json!({"min_kpps": 5, "direction": "any"}),
            json!({"min_kpps": 5, "direction": "any"}),
        ),
    ] {
        let made = create(&cloud, &format!("{path}/{kind}s"), json!({ kind: fields })).await;
        has(&made, shown);
        rules.push((kind, text(&made, "id")));
    }
    for (kind, fields, status, error) in [
        ("bandwidth_limit_rule", json!({"max_kbps": 1}), 409, "QoSRulesConflict"),
        ("dscp_marking_rule", json!({"dscp_mark": 8}), 409, "QoSRulesConflict"),
        ("dscp_marking_rule", json!({"dscp_mark": 7}), 400, "HTTPBadRequest"),
        (
            "minimum_bandwidth_rule",
            json!({"min_kbps": 10, "direction": "ingress"}),
            409,
            "QoSRuleParameterConflict",
        ),
        ("minimum_packet_rate_rule", json!({"min_kpps": 1, "direction": "ingress"}), 409, "QoSRulesConflict"),
        ("bandwidth_limit_rule", json!({}), 400, "HTTPBadRequest"),
        ("bandwidth_limit_rule", json!({"max_kbps": -1}), 400, "HTTPBadRequest"),
        ("bandwidth_limit_rule", json!({"max_kbps": 3_000_000_000_u32}), 400, "InvalidInput"),
    ] {
        refused(&cloud, Method::POST, &format!("{path}/{kind}s"), json!({ kind: fields }), status, error)
            .await;
    }
    let (kind, rule) = &rules[0];
    let body = json!({"bandwidth_limit_rule": {"max_kbps": 999}});
    let at = format!("{path}/{kind}s/{rule}");
    refused(&cloud, Method::PUT, &at, body, 409, "QoSRuleParameterConflict").await;
    let body = json!({"bandwidth_limit_rule": {"max_burst_kbps": 50}});
    let reply = ask(&cloud, Method::PUT, &at, body).await;
    assert_eq!(
        reply.json(),
        json!({"bandwidth_limit_rule": {
            "id": rule, "max_kbps": 1000, "max_burst_kbps": 50, "direction": "egress",
        }})
    );
    let reply =
        ask(&cloud, Method::GET, &format!("{path}/bandwidth_limit_rules?direction=ingress"), Value::Null)
            .await;
    assert_eq!(reply.json()["bandwidth_limit_rules"].as_array().unwrap().len(), 1);
    let alias = format!("qos/alias_{}s/{}", rules[2].0, rules[2].1);
    assert_eq!(
        ask(&cloud, Method::GET, &alias, Value::Null).await.json()["dscp_marking_rule"]["dscp_mark"],
        26
    );
    assert_eq!(ask(&cloud, Method::DELETE, &alias, Value::Null).await.status, 204);
    let wrong = format!("{path}/dscp_marking_rules/{rule}");
    refused(&cloud, Method::GET, &wrong, Value::Null, 404, "QosRuleNotFound").await;
    let row = ask(&cloud, Method::GET, &path, Value::Null).await.json();
    let shown = row["policy"]["rules"].as_array().unwrap();
    assert_eq!(shown.len(), 5);
    has(&shown[0], json!({"type": "bandwidth_limit", "qos_policy_id": id, "max_kbps": 1000}));
    let types = ask(&cloud, Method::GET, "qos/rule-types", Value::Null).await.json();
    let held = ["bandwidth_limit", "dscp_marking", "packet_rate_limit"].map(|name| json!({"type": name}));
    assert_eq!(types["rule_types"], json!(held));
    let types = ask(&cloud, Method::GET, "qos/rule-types?all_rules=true", Value::Null).await.json();
    assert_eq!(types["rule_types"].as_array().unwrap().len(), 5);
    assert_eq!(ask(&cloud, Method::PUT, &format!("{path}/tags/a"), Value::Null).await.status, 201);
}

#[tokio::test]
async fn networks_and_ports_have_policies_that_stay_while_they_are_used() {
    let cloud = Harness::new().await;
    let one = text(&policy(&cloud, json!({"name": "1", "is_default": true})).await, "id");
    let two = text(&policy(&cloud, json!({"name": "2"})).await, "id");
    let body = json!({"policy": {"name": "3", "is_default": true}});
    refused(&cloud, Method::POST, "qos/policies", body, 409, "QoSPolicyDefaultAlreadyExists").await;
    let network = create(&cloud, "networks", json!({"network": {}})).await;
    has(&network, json!({"qos_policy_id": one}));
    let id = text(&network, "id");
    let ports = json!({"ports": [{"network_id": id, "qos_policy_id": two}, {"network_id": id, "qos_policy_id": two}]});
    let ports = ask(&cloud, Method::POST, "ports", ports).await.json();
    has(&ports["ports"][1], json!({"qos_policy_id": two, "qos_network_policy_id": one}));
    let body = json!({"port": {"network_id": id, "qos_policy_id": "none"}});
    refused(&cloud, Method::POST, "ports", body, 404, "QosPolicyNotFound").await;
    for policy in [&one, &two] {
        refused(
            &cloud,
            Method::DELETE,
            &format!("qos/policies/{policy}"),
            Value::Null,
            409,
            "QosPolicyInUse",
        )
        .await;
    }
    for port in ports["ports"].as_array().unwrap() {
        let body = json!({"port": {"qos_policy_id": null}});
        let reply = ask(&cloud, Method::PUT, &format!("ports/{}", text(port, "id")), body).await;
        assert_eq!(reply.json()["port"]["qos_policy_id"], Value::Null);
    }
    let body = json!({"network": {"qos_policy_id": two}});
    assert_eq!(ask(&cloud, Method::PUT, &format!("networks/{id}"), body).await.status, 200);
    assert_eq!(ask(&cloud, Method::DELETE, &format!("qos/policies/{one}"), Value::Null).await.status, 204);
    refused(&cloud, Method::DELETE, &format!("qos/policies/{two}"), Value::Null, 409, "QosPolicyInUse").await;
}

#[tokio::test]
async fn rule_types_tell_what_of_them_is_held() {
    let cloud = Harness::new().await;
    let shown = async |name: &str| {
        ask(&cloud, Method::GET, &format!("qos/rule-types/{name}"), Value::Null).await.json()["rule_type"]
            .clone()
    };
    let rate = json!({"start": 0, "end": 2_147_483_647});
    assert_eq!(
        shown("bandwidth_limit").await,
        json!({"type": "bandwidth_limit", "drivers": [{"name": "wisp", "supported_parameters": [
            {"parameter_name": "max_kbps", "parameter_type": "range", "parameter_values": rate},
            {"parameter_name": "max_burst_kbps", "parameter_type": "range", "parameter_values": rate},
            {"parameter_name": "direction", "parameter_type": "choices", "parameter_values": ["ingress", "egress"]},
        ]}]})
    );
    assert_eq!(shown("minimum_bandwidth").await, json!({"type": "minimum_bandwidth", "drivers": []}));
    let marks = &shown("dscp_marking").await["drivers"][0]["supported_parameters"][0]["parameter_values"];
    assert_eq!(marks.as_array().unwrap().len(), 21);
    refused(&cloud, Method::GET, "qos/rule-types/none", Value::Null, 404, "QosRuleTypeNotFound").await;
}

#[tokio::test]
async fn least_rates_are_refused_where_they_would_have_to_hold() {
    let cloud = Harness::new().await;
    let id = text(&policy(&cloud, json!({"name": "least"})).await, "id");
    let network = text(&create(&cloud, "networks", json!({"network": {}})).await, "id");
    let port = text(&create(&cloud, "ports", json!({"port": {"network_id": network}})).await, "id");
    let (rules, body) = (
        format!("qos/policies/{id}/minimum_bandwidth_rules"),
        json!({"minimum_bandwidth_rule": {"min_kbps": 1}}),
    );
    let (on_port, on_network) = (format!("ports/{port}"), format!("networks/{network}"));
    let (take_port, take_network) =
        (json!({"port": {"qos_policy_id": id}}), json!({"network": {"qos_policy_id": id}}));
    let none = json!({"port": {"qos_policy_id": null}});

    assert_eq!(ask(&cloud, Method::PUT, &on_port, take_port.clone()).await.status, 200);
    refused(&cloud, Method::POST, &rules, body.clone(), 409, "QosRuleNotSupported").await;
    assert_eq!(ask(&cloud, Method::PUT, &on_port, none).await.status, 200);
    create(&cloud, &rules, body).await;
    refused(&cloud, Method::PUT, &on_port, take_port, 409, "QosRuleNotSupported").await;
    refused(&cloud, Method::PUT, &on_network, take_network, 409, "QosRuleNotSupportedByNetwork").await;
    for (path, body) in [
        ("ports", json!({"port": {"network_id": network, "qos_policy_id": id}})),
        ("networks", json!({"network": {"qos_policy_id": id}})),
    ] {
        let reply = ask(&cloud, Method::POST, path, body).await;
        assert_eq!(reply.status, 409, "{}", reply.json());
    }
}

#[tokio::test]
async fn managers_make_policies_and_members_do_not() {
    let cloud = Harness::new().await;
    for (role, expected) in [("manager", 201), ("member", 403)] {
        let token = cloud.user_token(role, role).await;
        let headers = [("x-auth-token", token.as_str())];
        let body = json!({"policy": {"name": role}});
        let reply = cloud.call(Method::POST, "/network/v2.0/qos/policies", &headers, body).await;
        assert_eq!(reply.status, expected, "{role}: {}", reply.json());
        let body = json!({"policy": {"name": role, "shared": true}});
        let reply = cloud.call(Method::POST, "/network/v2.0/qos/policies", &headers, body).await;
        assert_eq!(refusal(&reply), (403, "PolicyNotAuthorized".into()));
    }
}
