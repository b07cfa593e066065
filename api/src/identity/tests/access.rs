//! Application credentials, trusts, EC2 keys, limits and the catalog's rows.

use axum::http::Method;
use serde_json::{Value, json};

use super::assignments::{made, role, status};
use super::{login, project};
use crate::harness::Harness;

const TOKENS: &str = "/identity/v3/auth/tokens";

/// A user with the role `member` in a project, and a token of it.
async fn member(cloud: &Harness, name: &str, place: &str) -> (String, String) {
    let user = made(cloud, "user", "users", json!({"name": name, "password": "geheim"})).await;
    let member = role(cloud, "member").await;
    let grant = format!("projects/{place}/users/{user}/roles/{member}");
    assert_eq!(status(cloud, Method::PUT, &grant).await, 204);
    let token = token(cloud, login(name, "geheim", project("p"))).await.unwrap();
    (user, token)
}

async fn token(cloud: &Harness, body: Value) -> Result<String, u16> {
    let reply = cloud.call(Method::POST, TOKENS, &[], body).await;
    let token = reply.header("x-subject-token").map(str::to_owned);
    token.ok_or(reply.status.as_u16())
}

#[tokio::test]
async fn application_credential_is_good_for_its_roles_and_requests_alone() {
    let cloud = Harness::new().await;
    let place = made(&cloud, "project", "projects", json!({"name": "p"})).await;
    let (user, own) = member(&cloud, "u", &place).await;
    let headers = [("x-auth-token", own.as_str())];
    let path = format!("/identity/v3/users/{user}/application_credentials");
    let rule = json!({"service": "compute", "method": "GET", "path": "/v2.1/servers"});
    let wanted = json!({"name": "ac", "roles": [{"name": "reader"}], "access_rules": [rule]});
    let made = cloud.call(Method::POST, &path, &headers, json!({"application_credential": wanted})).await;
    assert_eq!(made.status, 201, "{:?}", made.json());
    let made = made.json()["application_credential"].clone();
    let again = json!({"application_credential": {"name": "ac"}});
    assert_eq!(cloud.call(Method::POST, &path, &headers, again).await.status, 409);
    let identity = |credential: Value| {
        json!({"auth": {"identity": {
            "methods": ["application_credential"], "application_credential": credential,
        }}})
    };
    let by_id = json!({"id": made["id"], "secret": made["secret"]});
    let by_name = json!({"name": "ac", "secret": made["secret"], "user": {"id": user}});
    assert!(token(&cloud, identity(by_name)).await.is_ok());
    let wrong = json!({"id": made["id"], "secret": "wrong"});
    assert_eq!(token(&cloud, identity(wrong)).await, Err(401));
    let reply = cloud.call(Method::POST, TOKENS, &[], identity(by_id.clone())).await;
    let facts = reply.json()["token"].clone();
    assert_eq!(facts["application_credential"]["restricted"], true);
    assert_eq!(facts["roles"][0]["name"], "reader");
    assert_eq!(facts["roles"].as_array().unwrap().len(), 1);
    let bounded = reply.header("x-subject-token").unwrap().to_owned();
    let headers = [("x-auth-token", bounded.as_str())];
    assert_eq!(cloud.get("/compute/v2.1/servers", &headers).await.status, 200);
    assert_eq!(cloud.get("/compute/v2.1/servers/detail", &headers).await.status, 401);
    assert_eq!(cloud.get(&path, &headers).await.status, 401);
    let rescope = json!({"auth": {"identity": {"methods": ["token"], "token": {"id": bounded}}}});
    assert_eq!(token(&cloud, rescope).await, Err(403));
    let rules =
        cloud.get(&format!("/identity/v3/users/{user}/access_rules"), &[("x-auth-token", &own)]).await;
    let rule = rules.json()["access_rules"][0]["id"].as_str().unwrap().to_owned();
    let rule = format!("/identity/v3/users/{user}/access_rules/{rule}");
    let own_headers = [("x-auth-token", own.as_str())];
    assert_eq!(cloud.call(Method::DELETE, &rule, &own_headers, Value::Null).await.status, 403);
    // The role goes, and with it the credential and its tokens.
    let member = role(&cloud, "member").await;
    let grant = format!("projects/{place}/users/{user}/roles/{member}");
    assert_eq!(status(&cloud, Method::DELETE, &grant).await, 204);
    assert_eq!(cloud.get("/compute/v2.1/servers", &headers).await.status, 401);
    assert_eq!(token(&cloud, identity(by_id)).await, Err(401));
}

#[tokio::test]
async fn restricted_credential_makes_no_other_and_an_expired_one_no_token() {
    let cloud = Harness::new().await;
    let place = made(&cloud, "project", "projects", json!({"name": "p"})).await;
    let (user, own) = member(&cloud, "u", &place).await;
    let path = format!("/identity/v3/users/{user}/application_credentials");
    let make = async |token: &str, wanted: Value| {
        let body = json!({"application_credential": wanted});
        cloud.call(Method::POST, &path, &[("x-auth-token", token)], body).await
    };
    assert_eq!(make(&own, json!({"name": "a", "expires_at": "2001-01-01T00:00:00"})).await.status, 400);
    assert_eq!(make(&own, json!({"name": "a", "roles": [{"name": "admin"}]})).await.status, 400);
    let made = make(&own, json!({"name": "a", "secret": "mine"})).await.json();
    let credential = json!({"id": made["application_credential"]["id"], "secret": "mine"});
    let identity =
        json!({"methods": ["application_credential"], "application_credential": credential.clone()});
    let bounded = token(&cloud, json!({"auth": {"identity": identity}})).await.unwrap();
    assert_eq!(make(&bounded, json!({"name": "b"})).await.status, 403);
    let free = make(&own, json!({"name": "c", "secret": "mine", "unrestricted": true})).await.json();
    let credential = json!({"id": free["application_credential"]["id"], "secret": "mine"});
    let identity = json!({"methods": ["application_credential"], "application_credential": credential});
    let free = token(&cloud, json!({"auth": {"identity": identity}})).await.unwrap();
    assert_eq!(make(&free, json!({"name": "d"})).await.status, 201);
    let other = made_other(&cloud).await;
    let others = format!("/identity/v3/users/{other}/application_credentials");
    let body = json!({"application_credential": {"name": "x"}});
    assert_eq!(cloud.call(Method::POST, &others, &[("x-auth-token", &own)], body).await.status, 403);
}

async fn made_other(cloud: &Harness) -> String {
    made(cloud, "user", "users", json!({"name": "other"})).await
}

#[tokio::test]
async fn trust_lends_its_roles_for_so_many_tokens() {
    let cloud = Harness::new().await;
    let place = made(&cloud, "project", "projects", json!({"name": "p"})).await;
    let (trustor, own) = member(&cloud, "lender", &place).await;
    let trustee = made(&cloud, "user", "users", json!({"name": "borrower", "password": "leihe"})).await;
    let wanted = json!({
        "trustor_user_id": trustor, "trustee_user_id": trustee, "project_id": place, "impersonation": true,
        "roles": [{"name": "reader"}], "remaining_uses": 1,
    });
    let trusts = "/identity/v3/OS-TRUST/trusts";
    let reply = cloud.call(Method::POST, trusts, &[("x-auth-token", &own)], json!({"trust": wanted})).await;
    assert_eq!(reply.status, 201, "{:?}", reply.json());
    let trust = reply.json()["trust"]["id"].as_str().unwrap().to_owned();
    let scope = json!({"OS-TRUST:trust": {"id": trust}});
    let reply = cloud.call(Method::POST, TOKENS, &[], login("borrower", "leihe", scope.clone())).await;
    assert_eq!(reply.status, 201, "{:?}", reply.json());
    let facts = reply.json()["token"].clone();
    assert_eq!(facts["user"]["id"], trustor);
    assert_eq!(facts["OS-TRUST:trust"]["trustee_user"]["id"], trustee);
    assert_eq!(facts["roles"].as_array().unwrap().len(), 1);
    let lent = reply.header("x-subject-token").unwrap().to_owned();
    assert_eq!(token(&cloud, login("borrower", "leihe", scope.clone())).await, Err(403));
    assert_eq!(token(&cloud, login("lender", "geheim", scope)).await, Err(403));
    let path = format!("{trusts}/{trust}");
    assert_eq!(cloud.get("/identity/v3/auth/projects", &[("x-auth-token", &lent)]).await.status, 200);
    let deleted = cloud.call(Method::DELETE, &path, &[("x-auth-token", &own)], Value::Null).await;
    assert_eq!(deleted.status, 204);
    assert!(
        cloud.get("/identity/v3/auth/projects", &[("x-auth-token", &lent)]).await.status.is_client_error()
    );
    let beyond = json!({"trust": {
        "trustor_user_id": trustor, "trustee_user_id": trustee, "project_id": place, "impersonation": false,
        "roles": [{"name": "admin"}],
    }});
    assert_eq!(cloud.call(Method::POST, trusts, &[("x-auth-token", &own)], beyond).await.status, 404);
}

#[tokio::test]
async fn ec2_secret_signs_for_its_user_and_is_sealed_in_the_store() {
    let cloud = Harness::new().await;
    let place = made(&cloud, "project", "projects", json!({"name": "p"})).await;
    let (user, own) = member(&cloud, "u", &place).await;
    let path = format!("/identity/v3/users/{user}/credentials/OS-EC2");
    let headers = [("x-auth-token", own.as_str())];
    let made = cloud.call(Method::POST, &path, &headers, json!({"tenant_id": place})).await;
    assert_eq!(made.status, 201, "{:?}", made.json());
    let key = made.json()["credential"].clone();
    let secret = key["secret"].as_str().unwrap();
    let bytes = std::fs::read(cloud.directory().join("store.redb")).unwrap();
    let stored = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(stored(&user) && !stored(secret));
    let listed = cloud.get(&path, &headers).await.json();
    assert_eq!(listed["credentials"][0]["secret"], secret);
    let code = ring::hmac::Key::new(ring::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret.as_bytes());
    let code = ring::hmac::sign(&code, b"GET\n\n");
    let base64 = |bytes: &[u8]| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes);
    let mut signed =
        json!({"access": key["access"], "token": base64(b"GET\n\n"), "signature": base64(code.as_ref())});
    let body = json!({"credentials": signed});
    let refused = cloud.call(Method::POST, "/identity/v3/s3tokens", &headers, body.clone()).await;
    assert_eq!(refused.status, 403);
    let reply = cloud.admin(Method::POST, "/identity/v3/s3tokens", body).await;
    assert_eq!(reply.status, 200, "{:?}", reply.json());
    assert_eq!(reply.json()["token"]["user"]["id"], user);
    assert_eq!(reply.json()["token"]["methods"], json!(["ec2credential"]));
    signed["signature"] = json!("wrong");
    let reply = cloud.admin(Method::POST, "/identity/v3/s3tokens", json!({"credentials": signed})).await;
    assert_eq!(reply.status, 401);
    let access = format!("{path}/{}", key["access"].as_str().unwrap());
    assert_eq!(cloud.call(Method::DELETE, &access, &headers, Value::Null).await.status, 204);
    assert_eq!(cloud.get(&access, &headers).await.status, 404);
}

#[tokio::test]
async fn limits_need_what_they_refer_to() {
    let cloud = Harness::new().await;
    let services = cloud.admin(Method::GET, "/identity/v3/services?type=compute", Value::Null).await.json();
    let service = services["services"][0]["id"].clone();
    let place = made(&cloud, "project", "projects", json!({"name": "p"})).await;
    let limit = json!({"limits": [{
        "service_id": service, "project_id": place, "resource_name": "cores", "resource_limit": 5,
    }]});
    assert_eq!(cloud.admin(Method::POST, "/identity/v3/limits", limit.clone()).await.status, 400);
    let registered = json!({"registered_limits": [
        {"service_id": service, "resource_name": "cores", "default_limit": 10},
        {"service_id": service, "resource_name": "ram", "default_limit": -1},
    ]});
    let made = cloud.admin(Method::POST, "/identity/v3/registered_limits", registered.clone()).await;
    assert_eq!(made.status, 201, "{:?}", made.json());
    assert_eq!(cloud.admin(Method::POST, "/identity/v3/registered_limits", registered).await.status, 409);
    let id = made.json()["registered_limits"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(cloud.admin(Method::POST, "/identity/v3/limits", limit).await.status, 201);
    assert_eq!(status(&cloud, Method::DELETE, &format!("registered_limits/{id}")).await, 403);
    assert_eq!(status(&cloud, Method::GET, "limits/model").await, 200);
}

#[tokio::test]
async fn catalog_is_rows_and_follows_the_public_url() {
    let cloud = Harness::new().await;
    let service = made(&cloud, "service", "services", json!({"type": "object-store", "name": "swift"})).await;
    let url = "http://swift.test/v1/AUTH_$(project_id)s";
    let body = json!({"service_id": service, "interface": "public", "url": url, "region_id": "RegionOne"});
    let endpoint = made(&cloud, "endpoint", "endpoints", body).await;
    let catalog = cloud.admin(Method::GET, "/identity/v3/auth/catalog", Value::Null).await.json();
    let entries = catalog["catalog"].as_array().unwrap();
    let find = |kind: &str| entries.iter().find(|entry| entry["type"] == kind).unwrap();
    let swift = find("object-store")["endpoints"][0]["url"].as_str().unwrap().to_owned();
    assert!(swift.starts_with("http://swift.test/v1/AUTH_") && swift.len() == 26 + 32, "{swift}");
    let public = find("image")["endpoints"].as_array().unwrap();
    assert!(public.iter().all(|endpoint| endpoint["url"] == "http://cloud.test/image"));
    let shown = cloud.admin(Method::GET, "/identity/v3/endpoints?interface=admin", Value::Null).await.json();
    assert!(
        shown.to_string().contains("http://cloud.test/identity") && !shown.to_string().contains("$(public")
    );
    assert_eq!(status(&cloud, Method::DELETE, "regions/RegionOne").await, 403);
    assert_eq!(status(&cloud, Method::DELETE, &format!("services/{service}")).await, 204);
    assert_eq!(status(&cloud, Method::GET, &format!("endpoints/{endpoint}")).await, 404);
}

#[tokio::test]
async fn bodies_that_keystones_schemas_close_have_no_field_of_another_name() {
    let cloud = Harness::new().await;
    let admin = cloud.control.token_caller(&cloud.admin_token().await, String::new()).await.unwrap();
    let credentials = format!("/identity/v3/users/{}/application_credentials", admin.user_id);
    let rule = json!({"service": "compute", "method": "GET", "path": "/v2.1/servers"});
    let with = |extra: Value, of: &Value| {
        let mut all = of.as_object().unwrap().clone();
        all.extend(extra.as_object().unwrap().clone());
        Value::Object(all)
    };
    for (what, status) in [
        (json!({"name": "a", "access_rules": [with(json!({"a": 1}), &rule)]}), 400),
        (json!({"name": "a", "roles": [{"name": "reader", "a": 1}]}), 400),
        // The credential itself is open, as in Keystone.
        (json!({"name": "a", "a": 1, "access_rules": [rule]}), 201),
    ] {
        let body = json!({ "application_credential": what });
        let reply = cloud.admin(Method::POST, &credentials, body).await;
        assert_eq!(reply.status, status, "{}", reply.json());
    }
    let services = cloud.admin(Method::GET, "/identity/v3/services", Value::Null).await.json();
    let service = &services["services"][0]["id"];
    let limit = json!({"service_id": service, "resource_name": "r", "default_limit": 1});
    let path = "/identity/v3/registered_limits";
    let body = |limits: Value, more: Value| with(more, &json!({ "registered_limits": limits }));
    for (wrong, status) in [
        (body(json!([with(json!({"a": 1}), &limit)]), json!({})), 400),
        (body(json!([limit]), json!({"a": 1})), 400),
        (body(json!([limit]), json!({})), 201),
    ] {
        assert_eq!(cloud.admin(Method::POST, path, wrong.clone()).await.status, status, "{wrong}");
    }
}
