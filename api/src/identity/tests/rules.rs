//! Rules of passwords, kinds of tokens, and what ends them.

use axum::http::Method;
use control::settings::{IdentitySettings, SecurityCompliance, TokenProvider};
use serde_json::{Value, json};

use super::assignments::{made, role, status};
use super::{login, project};
use crate::harness::{ADMIN_PASSWORD, Harness};

const TOKENS: &str = "/identity/v3/auth/tokens";

async fn with(security: SecurityCompliance) -> Harness {
    Harness::with(IdentitySettings { security, ..IdentitySettings::default() }).await
}

async fn logs_in(cloud: &Harness, user: &str, password: &str) -> u16 {
    let reply = cloud.call(Method::POST, TOKENS, &[], login(user, password, Value::Null)).await;
    reply.status.as_u16()
}

async fn changes(cloud: &Harness, user: &str, from: &str, to: &str) -> u16 {
    let body = json!({"user": {"original_password": from, "password": to}});
    let path = format!("/identity/v3/users/{user}/password");
    cloud.call(Method::POST, &path, &[], body).await.status.as_u16()
}

#[tokio::test]
async fn user_is_locked_out_after_failures_and_the_administrator_lets_in_again() {
    let rules = SecurityCompliance { lockout_failure_attempts: Some(2), ..SecurityCompliance::default() };
    let cloud = with(rules).await;
    let user = made(&cloud, "user", "users", json!({"name": "u", "password": "geheim"})).await;
    assert_eq!(logs_in(&cloud, "u", "x").await, 401);
    assert_eq!(logs_in(&cloud, "u", "geheim").await, 201);
    for _ in 0..2 {
        assert_eq!(logs_in(&cloud, "u", "x").await, 401);
    }
    assert_eq!(logs_in(&cloud, "u", "geheim").await, 401);
    let path = format!("/identity/v3/users/{user}");
    let options = json!({"user": {"options": {"ignore_lockout_failure_attempts": true}}});
    assert_eq!(cloud.admin(Method::PATCH, &path, options).await.status, 200);
    assert_eq!(logs_in(&cloud, "u", "geheim").await, 201);
}

#[tokio::test]
async fn passwords_keep_history_age_form_and_first_use() {
    let rules = SecurityCompliance {
        unique_last_password_count: 2,
        password_regex: Some(regex::Regex::new("^[a-z]{4,}").unwrap()),
        password_regex_description: "four small letters".into(),
        change_password_upon_first_use: true,
        ..SecurityCompliance::default()
    };
    let cloud = with(rules).await;
    let bad = json!({"user": {"name": "x", "password": "123"}});
    assert_eq!(cloud.admin(Method::POST, "/identity/v3/users", bad).await.status, 400);
    let user = made(&cloud, "user", "users", json!({"name": "u", "password": "erstes"})).await;
    assert_eq!(logs_in(&cloud, "u", "erstes").await, 401);
    assert_eq!(changes(&cloud, &user, "falsch", "zweites").await, 401);
    assert_eq!(changes(&cloud, &user, "erstes", "erstes").await, 400);
    assert_eq!(changes(&cloud, &user, "erstes", "zweites").await, 204);
    assert_eq!(logs_in(&cloud, "u", "zweites").await, 201);
    assert_eq!(changes(&cloud, &user, "zweites", "erstes").await, 400);
    assert_eq!(changes(&cloud, &user, "zweites", "drittes").await, 204);
    assert_eq!(changes(&cloud, &user, "drittes", "erstes").await, 204);
    let cloud =
        with(SecurityCompliance { minimum_password_age_days: 1, ..SecurityCompliance::default() }).await;
    let user = made(&cloud, "user", "users", json!({"name": "u", "password": "erstes"})).await;
    assert_eq!(changes(&cloud, &user, "erstes", "zweites").await, 204);
    assert_eq!(changes(&cloud, &user, "zweites", "drittes").await, 400);
}

#[tokio::test]
async fn expiry_of_passwords_is_shown_and_can_be_asked_for() {
    let cloud =
        with(SecurityCompliance { password_expires_days: Some(30), ..SecurityCompliance::default() }).await;
    let user = made(&cloud, "user", "users", json!({"name": "u", "password": "geheim"})).await;
    let shown = cloud.admin(Method::GET, &format!("/identity/v3/users/{user}"), Value::Null).await.json();
    assert!(shown["user"]["password_expires_at"].as_str().unwrap().ends_with(".000000Z"));
    let query = "/identity/v3/users?password_expires_at=lt:2001-01-01T00:00:00Z";
    assert_eq!(cloud.admin(Method::GET, query, Value::Null).await.json()["users"], json!([]));
}

#[tokio::test]
async fn every_kind_of_token_is_shown_rescoped_revoked_and_rotated() {
    for token_provider in [TokenProvider::Fernet, TokenProvider::Jws, TokenProvider::Uuid] {
        let cloud = Harness::with(IdentitySettings { token_provider, ..IdentitySettings::default() }).await;
        let body = login("admin", ADMIN_PASSWORD, project("admin"));
        let reply = cloud.call(Method::POST, TOKENS, &[], body).await;
        assert_eq!(reply.status, 201, "{token_provider:?}");
        let token = reply.header("x-subject-token").unwrap().to_owned();
        let headers = [("x-auth-token", token.as_str()), ("x-subject-token", token.as_str())];
        let shown = cloud.get(&format!("{TOKENS}?nocatalog&allow_expired=1"), &headers).await;
        assert_eq!(shown.status, 200);
        assert!(shown.json()["token"].get("catalog").is_none());
        assert_eq!(shown.json()["token"]["expires_at"], reply.json()["token"]["expires_at"]);
        let rotated =
            cloud.call(Method::POST, "/identity/v3/OS-WISP/token_keys", &headers, Value::Null).await;
        let wanted = if token_provider == TokenProvider::Uuid { 501 } else { 200 };
        assert_eq!(rotated.status, wanted, "{:?}", rotated.json());
        assert_eq!(cloud.get(TOKENS, &headers).await.status, 200);
        assert_eq!(cloud.call(Method::DELETE, TOKENS, &headers, Value::Null).await.status, 204);
        assert_eq!(cloud.get(TOKENS, &headers).await.status, 401);
        let events = cloud.admin(Method::GET, "/identity/v3/OS-REVOKE/events", Value::Null).await.json();
        assert_eq!(events["events"][0]["audit_id"], reply.json()["token"]["audit_ids"][0]);
    }
}

#[tokio::test]
async fn disabling_ends_tokens_at_once_and_enabling_does_not_bring_them_back() {
    let cloud = Harness::new().await;
    let user = made(&cloud, "user", "users", json!({"name": "u", "password": "geheim"})).await;
    let place = made(&cloud, "project", "projects", json!({"name": "p"})).await;
    let member = role(&cloud, "member").await;
    assert_eq!(
        status(&cloud, Method::PUT, &format!("projects/{place}/users/{user}/roles/{member}")).await,
        204
    );
    for (kind, path) in [("user", format!("users/{user}")), ("project", format!("projects/{place}"))] {
        let reply = cloud.call(Method::POST, TOKENS, &[], login("u", "geheim", project("p"))).await;
        let token = reply.header("x-subject-token").unwrap().to_owned();
        let headers = [("x-auth-token", token.as_str())];
        assert_eq!(cloud.get("/identity/v3/auth/projects", &headers).await.status, 200);
        for enabled in [false, true] {
            let body = json!({ kind: {"enabled": enabled} });
            let changed = cloud.admin(Method::PATCH, &format!("/identity/v3/{path}"), body).await;
            assert_eq!(changed.status, 200);
            assert_eq!(cloud.get("/identity/v3/auth/projects", &headers).await.status, 401, "{kind}");
        }
    }
}

#[tokio::test]
async fn manager_of_a_domain_manages_it_and_no_other() {
    let cloud = Harness::new().await;
    let domain = made(&cloud, "domain", "domains", json!({"name": "d"})).await;
    let boss =
        made(&cloud, "user", "users", json!({"name": "b", "password": "x", "domain_id": domain})).await;
    let manager = role(&cloud, "manager").await;
    let grant = format!("domains/{domain}/users/{boss}/roles/{manager}");
    assert_eq!(status(&cloud, Method::PUT, &grant).await, 204);
    let user = json!({"id": boss, "password": "x"});
    let identity = json!({"methods": ["password"], "password": {"user": user}});
    let body = json!({"auth": {"identity": identity, "scope": {"domain": {"id": domain}}}});
    let reply = cloud.call(Method::POST, TOKENS, &[], body).await;
    let token = reply.header("x-subject-token").unwrap().to_owned();
    let headers = [("x-auth-token", token.as_str())];
    let own = cloud.call(Method::POST, "/identity/v3/users", &headers, json!({"user": {"name": "n"}})).await;
    assert_eq!((own.status.as_u16(), &own.json()["user"]["domain_id"]), (201, &json!(domain)));
    let other = json!({"user": {"name": "n", "domain_id": "default"}});
    assert_eq!(cloud.call(Method::POST, "/identity/v3/users", &headers, other).await.status, 403);
    let listed = cloud.get("/identity/v3/users", &headers).await.json();
    assert_eq!(listed["users"].as_array().unwrap().len(), 2);
    let id = own.json()["user"]["id"].as_str().unwrap().to_owned();
    for (name, wanted) in [("member", 204), ("admin", 403)] {
        let role = role(&cloud, name).await;
        let path = format!("/identity/v3/domains/{domain}/users/{id}/roles/{role}");
        assert_eq!(cloud.call(Method::PUT, &path, &headers, Value::Null).await.status, wanted, "{name}");
    }
}
