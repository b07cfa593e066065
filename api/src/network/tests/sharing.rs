//! RBAC policies: what is shared with another project, and what is not taken away while it is used.

use super::*;
use crate::harness::ADMIN_PASSWORD;

/// A member of another project: the project's id, and a token.
async fn stranger(cloud: &Harness) -> (String, String) {
    let made = async |path: &str, body: Value| {
        let reply = cloud.admin(Method::POST, &format!("/identity/v3/{path}"), body).await;
        assert_eq!(reply.status, 201, "{}", reply.json());
        reply.json()
    };
    let project = text(&made("projects", json!({"project": {"name": "other"}})).await["project"], "id");
    let user = json!({"user": {"name": "bob", "password": ADMIN_PASSWORD}});
    let user = text(&made("users", user).await["user"], "id");
    let roles = cloud.admin(Method::GET, "/identity/v3/roles?name=member", Value::Null).await.json();
    let role = text(&roles["roles"][0], "id");
    let grant = format!("/identity/v3/projects/{project}/users/{user}/roles/{role}");
    assert_eq!(cloud.admin(Method::PUT, &grant, Value::Null).await.status, 204);
    let auth = json!({"auth": {
        "identity": {"methods": ["password"], "password": {"user": {"id": user, "password": ADMIN_PASSWORD}}},
        "scope": {"project": {"id": project}},
    }});
    let reply = cloud.call(Method::POST, "/identity/v3/auth/tokens", &[], auth).await;
    (project, reply.header("x-subject-token").unwrap().to_owned())
}

async fn as_stranger(cloud: &Harness, token: &str, method: Method, path: &str, body: Value) -> Reply {
    cloud.call(method, &format!("/network/v2.0/{path}"), &[("x-auth-token", token)], body).await
}

fn policy(kind: &str, id: &str, action: &str, target: &str) -> Value {
    json!({"rbac_policy": {"object_type": kind, "object_id": id, "action": action, "target_tenant": target}})
}

#[tokio::test]
async fn a_network_is_shared_with_one_project_until_nobody_there_uses_it() {
    let cloud = Harness::new().await;
    let (project, token) = stranger(&cloud).await;
    let (network, subnet) = network(&cloud, "n", "10.0.0.0/24").await;
    let path = format!("networks/{network}");
    let see = async |path: &str| as_stranger(&cloud, &token, Method::GET, path, Value::Null).await;
    assert_eq!(refusal(&see(&path).await), (404, "NetworkNotFound".into()));
    let made =
        create(&cloud, "rbac-policies", policy("network", &network, "access_as_shared", &project)).await;
    has(
        &made,
        json!({
            "object_type": "network", "object_id": network, "action": "access_as_shared",
            "target_tenant": project, "target_project": project,
        }),
    );
    assert_eq!(see(&path).await.json()["network"]["shared"], true);
    assert_eq!(see(&format!("subnets/{subnet}")).await.status, 200);
    let own = ask(&cloud, Method::GET, &path, Value::Null).await.json();
    assert_eq!(own["network"]["shared"], false, "it is as the caller has it");
    let body = json!({"network": {"name": "mine"}});
    let reply = as_stranger(&cloud, &token, Method::PUT, &path, body).await;
    assert_eq!(refusal(&reply), (403, "PolicyNotAuthorized".into()));
    let port = json!({"port": {"network_id": network}});
    let port = as_stranger(&cloud, &token, Method::POST, "ports", port).await;
    assert_eq!(port.status, 201, "{}", port.json());
    let rule = format!("rbac-policies/{}", text(&made, "id"));
    refused(&cloud, Method::DELETE, &rule, Value::Null, 409, "RbacPolicyInUse").await;
    let other = json!({"rbac_policy": {"target_tenant": "0".repeat(32)}});
    refused(&cloud, Method::PUT, &rule, other, 409, "RbacPolicyInUse").await;
    let all = create(&cloud, "rbac-policies", policy("network", &network, "access_as_shared", "*")).await;
    assert_eq!(ask(&cloud, Method::GET, &path, Value::Null).await.json()["network"]["shared"], true);
    assert_eq!(ask(&cloud, Method::DELETE, &rule, Value::Null).await.status, 204, "all may use it");
    let body = json!({"network": {"shared": false}});
    refused(&cloud, Method::PUT, &path, body.clone(), 409, "InvalidSharedSetting").await;
    let port = format!("ports/{}", text(&port.json()["port"], "id"));
    assert_eq!(as_stranger(&cloud, &token, Method::DELETE, &port, Value::Null).await.status, 204);
    assert_eq!(ask(&cloud, Method::PUT, &path, body).await.status, 200);
    let gone = format!("rbac-policies/{}", text(&all, "id"));
    refused(&cloud, Method::GET, &gone, Value::Null, 404, "RbacPolicyNotFound").await;
    assert_eq!(see(&path).await.status, 404);
}

#[tokio::test]
async fn what_a_network_says_of_itself_is_a_policy_too() {
    let cloud = Harness::new().await;
    let body = json!({"network": {"name": "n", "shared": true, "router:external": true}});
    let id = text(&create(&cloud, "networks", body).await, "id");
    let path = format!("rbac-policies?object_id={id}");
    let policies =
        async || ask(&cloud, Method::GET, &path, Value::Null).await.json()["rbac_policies"].clone();
    let both = policies().await;
    assert_eq!(both.as_array().unwrap().len(), 2);
    let shared = both.as_array().unwrap().iter().find(|row| row["action"] == "access_as_shared").unwrap();
    let rule = format!("rbac-policies/{}", text(shared, "id"));
    assert_eq!(ask(&cloud, Method::DELETE, &rule, Value::Null).await.status, 204);
    let row = ask(&cloud, Method::GET, &format!("networks/{id}"), Value::Null).await.json();
    has(&row["network"], json!({"shared": false, "router:external": true}));
    assert_eq!(ask(&cloud, Method::DELETE, &format!("networks/{id}"), Value::Null).await.status, 204);
    assert_eq!(policies().await, json!([]));
}

#[tokio::test]
async fn groups_pools_and_scopes_are_shared_and_kept_while_used() {
    let cloud = Harness::new().await;
    let (project, token) = stranger(&cloud).await;
    let group = create(&cloud, "security-groups", json!({"security_group": {"name": "g"}})).await;
    let addresses =
        create(&cloud, "address-groups", json!({"address_group": {"addresses": ["10.0.0.1"]}})).await;
    let scope =
        create(&cloud, "address-scopes", json!({"address_scope": {"name": "s", "ip_version": 4}})).await;
    let body = json!({"subnetpool": {"name": "p", "prefixes": ["10.0.0.0/16"], "default_prefixlen": 24}});
    let pool = create(&cloud, "subnetpools", body).await;
    let mut rules = Vec::new();
    for (kind, member, path, row) in [
        ("security_group", "security_group", "security-groups", &group),
        ("address_group", "address_group", "address-groups", &addresses),
        ("address_scope", "address_scope", "address-scopes", &scope),
        ("subnetpool", "subnetpool", "subnetpools", &pool),
    ] {
        let id = text(row, "id");
        let path = format!("{path}/{id}");
        let see = async || as_stranger(&cloud, &token, Method::GET, &path, Value::Null).await;
        assert_eq!(see().await.status, 404, "{kind}");
        let body = policy(kind, &id, "access_as_external", &project);
        refused(&cloud, Method::POST, "rbac-policies", body, 400, "InvalidActionForType").await;
        let made = create(&cloud, "rbac-policies", policy(kind, &id, "access_as_shared", &project)).await;
        assert_eq!(see().await.json()[member]["shared"], true, "{kind}");
        rules.push(format!("rbac-policies/{}", text(&made, "id")));
    }
    let make = async |path: &str, body: Value| {
        let reply = as_stranger(&cloud, &token, Method::POST, path, body).await;
        assert_eq!(reply.status, 201, "{path}: {}", reply.json());
        reply.json()
    };
    let net = make("networks", json!({"network": {}})).await;
    let net = text(&net["network"], "id");
    make("subnets", json!({"subnet": {"network_id": net, "subnetpool_id": pool["id"], "ip_version": 4}}))
        .await;
    make("ports", json!({"port": {"network_id": net, "security_groups": [group["id"]]}})).await;
    let body =
        json!({"subnetpool": {"name": "q", "prefixes": ["10.1.0.0/16"], "address_scope_id": scope["id"]}});
    make("subnetpools", body).await;
    let own =
        as_stranger(&cloud, &token, Method::GET, "security-groups?name=default", Value::Null).await.json();
    let rule = json!({"security_group_rule": {
        "security_group_id": own["security_groups"][0]["id"], "direction": "ingress",
        "remote_address_group_id": addresses["id"],
    }});
    make("security-group-rules", rule).await;
    for rule in rules {
        refused(&cloud, Method::DELETE, &rule, Value::Null, 409, "RbacPolicyInUse").await;
    }
}

#[tokio::test]
async fn policies_are_for_what_is_one_s_own_and_for_all_only_by_administrators() {
    let cloud = Harness::new().await;
    let (project, token) = stranger(&cloud).await;
    let (id, _) = network(&cloud, "n", "10.0.0.0/24").await;
    for (body, status, kind) in [
        (policy("network", &id, "access_as_shared", "*"), 403, "PolicyNotAuthorized"),
        (policy("network", &id, "access_as_shared", &project), 404, "NetworkNotFound"),
        (policy("router", &id, "access_as_shared", &project), 400, "InvalidInput"),
        (policy("network", &id, "access", &project), 400, "InvalidActionForType"),
        (policy("network", &id, "access_as_shared", "bob"), 400, "InvalidInput"),
    ] {
        let reply = as_stranger(&cloud, &token, Method::POST, "rbac-policies", body.clone()).await;
        assert_eq!(refusal(&reply), (status, kind.to_owned()), "{body}");
    }
    let body = policy("network", &id, "access_as_shared", &project);
    create(&cloud, "rbac-policies", body.clone()).await;
    refused(&cloud, Method::POST, "rbac-policies", body, 409, "DuplicateRbacPolicy").await;
    let body = policy("network", &id, "access_as_shared", &"0".repeat(32));
    let reply = as_stranger(&cloud, &token, Method::POST, "rbac-policies", body).await;
    assert_eq!(refusal(&reply), (400, "InvalidInput".into()), "it sees it, but may not share it");
    for n in 1..10 {
        create(&cloud, "rbac-policies", policy("network", &id, "access_as_shared", &format!("{n:032}")))
            .await;
    }
    let body = policy("network", &id, "access_as_shared", &"f".repeat(32));
    refused(&cloud, Method::POST, "rbac-policies", body, 409, "OverQuota").await;
}
