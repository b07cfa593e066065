//! Keystone as clients see it.

mod access;
mod assignments;
mod configured;
mod oauth;
mod reads;
mod rules;

use axum::http::Method;
use serde_json::{Value, json};

use crate::harness::{ADMIN_PASSWORD, Harness};

fn login(user: &str, password: &str, scope: Value) -> Value {
    let user = json!({"name": user, "domain": {"id": "default"}, "password": password});
    let mut auth = json!({"identity": {"methods": ["password"], "password": {"user": user}}});
    if !scope.is_null() {
        auth["scope"] = scope;
    }
    json!({ "auth": auth })
}

fn project(name: &str) -> Value {
    json!({"project": {"name": name, "domain": {"name": "Default"}}})
}

#[tokio::test]
async fn login_gives_a_token_with_roles_and_catalog_and_the_token_holds_until_revoked() {
    let cloud = Harness::new().await;
    let body = login("admin", ADMIN_PASSWORD, project("admin"));
    let reply = cloud.call(Method::POST, "/identity/v3/auth/tokens", &[], body).await;
    assert_eq!(reply.status, 201, "{:?}", reply.json());
    let token = reply.header("x-subject-token").unwrap().to_owned();
    assert!(token.len() <= 255);
    let facts = reply.json()["token"].clone();
    let roles: Vec<&str> =
        facts["roles"].as_array().unwrap().iter().filter_map(|r| r["name"].as_str()).collect();
    assert_eq!(roles, ["admin", "manager", "member", "reader"]);
    assert_eq!(facts["catalog"].as_array().unwrap().len(), 6);
    assert_eq!(facts["project"]["domain"]["name"], "Default");
    assert!(facts["expires_at"].as_str().unwrap().ends_with(".000000Z"));

    let headers = [("x-auth-token", token.as_str()), ("x-subject-token", token.as_str())];
    let shown = cloud.get("/identity/v3/auth/tokens", &headers).await;
    assert_eq!((shown.status.as_u16(), &shown.json()["token"]["audit_ids"]), (200, &facts["audit_ids"]));
    assert_eq!(
        cloud.call(Method::DELETE, "/identity/v3/auth/tokens", &headers, Value::Null).await.status,
        204
    );
    let after = cloud.get("/identity/v3/auth/tokens", &headers).await;
    assert_eq!(after.status, 401);
    assert_eq!(after.json()["error"]["code"], 401);
    assert_eq!(after.header("www-authenticate"), Some("Keystone uri=\"http://cloud.test/identity\""));
}

#[tokio::test]
async fn every_wrong_login_is_the_same_401() {
    let cloud = Harness::new().await;
    let mut answers = Vec::new();
    for body in [
        login("admin", "wrong", Value::Null),
        login("nobody", "wrong", Value::Null),
        login("admin", ADMIN_PASSWORD, project("nowhere")),
        login("admin", ADMIN_PASSWORD, json!({"domain": {"id": "default"}})),
    ] {
        let reply = cloud.call(Method::POST, "/identity/v3/auth/tokens", &[], body).await;
        assert_eq!(reply.status, 401);
        answers.push(reply.json());
    }
    answers.dedup();
    assert_eq!(answers.len(), 1);
    let reply = cloud.call(Method::POST, "/identity/v3/auth/tokens", &[], json!({"auth": {}})).await;
    assert_eq!(reply.status, 400);
}

#[tokio::test]
async fn token_is_rescoped_and_keeps_its_end() {
    let cloud = Harness::new().await;
    let body = login("admin", ADMIN_PASSWORD, json!("unscoped"));
    let unscoped = cloud.call(Method::POST, "/identity/v3/auth/tokens", &[], body).await;
    assert!(unscoped.json()["token"].get("catalog").is_none());
    let token = unscoped.header("x-subject-token").unwrap();
    let scope = json!({"system": {"all": true}});
    let body = json!({"auth": {"identity": {"methods": ["token"], "token": {"id": token}}, "scope": scope}});
    let system = cloud.call(Method::POST, "/identity/v3/auth/tokens", &[], body).await;
    assert_eq!(system.status, 201);
    let (before, after) = (&unscoped.json()["token"], &system.json()["token"]);
    assert_eq!(after["system"]["all"], true);
    assert_eq!(after["expires_at"], before["expires_at"]);
    assert_eq!(after["methods"], json!(["password", "token"]));
    assert_eq!(after["audit_ids"][1], before["audit_ids"][0]);
}

#[tokio::test]
async fn second_project_has_its_member_and_loses_it_at_once() {
    let cloud = Harness::new().await;
    let made = cloud.admin(Method::POST, "/identity/v3/projects", json!({"project": {"name": "p2"}})).await;
    assert_eq!(made.status, 201);
    let project_id = made.json()["project"]["id"].as_str().unwrap().to_owned();
    let again = cloud.admin(Method::POST, "/identity/v3/projects", json!({"project": {"name": "p2"}})).await;
    assert_eq!(again.status, 409);
    let user = json!({"user": {"name": "u2", "password": "geheim", "email": "a@b", "enabled": true}});
    let user = cloud.admin(Method::POST, "/identity/v3/users", user).await.json();
    let user_id = user["user"]["id"].as_str().unwrap();
    assert!(user["user"].get("password_hash").is_none());
    assert_eq!(user["user"]["email"], "a@b");
    let roles = cloud.admin(Method::GET, "/identity/v3/roles?name=member", Value::Null).await.json();
    let role_id = roles["roles"][0]["id"].as_str().unwrap();
    let grant = format!("/identity/v3/projects/{project_id}/users/{user_id}/roles/{role_id}");
    assert_eq!(cloud.admin(Method::PUT, &grant, Value::Null).await.status, 204);
    assert_eq!(cloud.admin(Method::HEAD, &grant, Value::Null).await.status, 204);

    let body = login("u2", "geheim", project("p2"));
    let reply = cloud.call(Method::POST, "/identity/v3/auth/tokens", &[], body).await;
    assert_eq!(reply.status, 201, "{:?}", reply.json());
    let token = reply.header("x-subject-token").unwrap().to_owned();
    let headers = [("x-auth-token", token.as_str())];
    assert_eq!(cloud.get("/identity/v3/users", &headers).await.status, 403);
    let own = cloud.get(&format!("/identity/v3/users/{user_id}"), &headers).await;
    assert_eq!(own.status, 200);
    let named = "/identity/v3/role_assignments?include_names=True";
    let shown = cloud.get(named, &headers).await.json();
    assert_eq!(shown["role_assignments"][0]["role"]["name"], "member");
    assert_eq!(shown["role_assignments"].as_array().unwrap().len(), 1);

    assert_eq!(cloud.admin(Method::DELETE, &grant, Value::Null).await.status, 204);
    assert_eq!(cloud.get("/identity/v3/auth/projects", &headers).await.status, 401);
}

#[tokio::test]
async fn new_password_ends_the_tokens_of_the_old_one() {
    let cloud = Harness::new().await;
    let users = cloud.admin(Method::GET, "/identity/v3/users?name=admin", Value::Null).await.json();
    let id = users["users"][0]["id"].as_str().unwrap();
    let old = cloud.admin_token().await;
    let change = json!({"user": {"password": "neu", "original_password": ADMIN_PASSWORD}});
    let path = format!("/identity/v3/users/{id}/password");
    assert_eq!(cloud.call(Method::POST, &path, &[("x-auth-token", &old)], change).await.status, 204);
    assert_eq!(cloud.get("/identity/v3/auth/projects", &[("x-auth-token", &old)]).await.status, 401);
    let body = login("admin", "neu", Value::Null);
    let reply = cloud.call(Method::POST, "/identity/v3/auth/tokens", &[], body).await;
    assert_eq!(reply.status, 201);
    let token = reply.header("x-subject-token").unwrap();
    assert_eq!(cloud.get("/identity/v3/auth/projects", &[("x-auth-token", token)]).await.status, 200);
}

#[tokio::test]
async fn names_are_looked_up_by_404_then_list() {
    let cloud = Harness::new().await;
    for collection in ["projects", "users", "roles", "domains", "services"] {
        let reply = cloud.admin(Method::GET, &format!("/identity/v3/{collection}/admin"), Value::Null).await;
        assert_eq!(reply.status, 404, "{collection}");
        assert_eq!(reply.json()["error"]["title"], "Not Found");
    }
    let found = cloud.admin(Method::GET, "/identity/v3/projects?name=admin", Value::Null).await.json();
    assert_eq!(found["projects"].as_array().unwrap().len(), 1);
    assert_eq!(found["links"]["self"], "http://cloud.test/identity/v3/projects?name=admin");
}
