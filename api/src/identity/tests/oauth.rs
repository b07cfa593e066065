//! OAuth 1.0a from a consumer to a token, signed as clients sign.

use axum::body::Body;
use axum::http::{Method, Request};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use serde_json::{Value, json};

use super::assignments::{made, role, status};
use super::{login, project};
use crate::harness::{Harness, Reply};

const TOKENS: &str = "/identity/v3/auth/tokens";

/// A key and its secret.
#[derive(Clone)]
struct Key {
    id: String,
    secret: String,
}

fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// The header of a signed `POST`.
fn signed(path: &str, consumer: &Key, token: Option<&Key>, more: &[(&str, &str)]) -> String {
    let now = jiff::Timestamp::now().as_second().to_string();
    let nonce = control::model::random_hex_id();
    let mut parameters = vec![
        ("oauth_consumer_key", consumer.id.as_str()),
        ("oauth_nonce", &nonce),
        ("oauth_signature_method", "HMAC-SHA1"),
        ("oauth_timestamp", &now),
        ("oauth_version", "1.0"),
    ];
    parameters.extend(token.map(|token| ("oauth_token", token.id.as_str())));
    parameters.extend(more);
    parameters.sort_unstable();
    let pairs: Vec<String> =
        parameters.iter().map(|(name, value)| format!("{}={}", encoded(name), encoded(value))).collect();
    let url = format!("http://cloud.test{path}");
    let text = format!("POST&{}&{}", encoded(&url), encoded(&pairs.join("&")));
    let key = format!("{}&{}", encoded(&consumer.secret), encoded(token.map_or("", |token| &token.secret)));
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, key.as_bytes());
    let signature = encoded(&STANDARD.encode(hmac::sign(&key, text.as_bytes())));
    let said: Vec<String> =
        parameters.iter().map(|(name, value)| format!("{name}=\"{}\"", encoded(value))).collect();
    format!("OAuth realm=\"\", {}, oauth_signature=\"{signature}\"", said.join(", "))
}

/// Posts; the key that is answered, if one is.
async fn post(cloud: &Harness, path: &str, authorization: &str, project: Option<&str>) -> Result<Key, u16> {
    let mut request = Request::post(path).header("authorization", authorization);
    if let Some(project) = project {
        request = request.header("requested-project-id", project);
    }
    let reply = cloud.send(request.body(Body::empty()).unwrap()).await;
    if reply.status != 201 {
        return Err(reply.status.as_u16());
    }
    assert_eq!(reply.header("content-type"), Some("application/x-www-form-urlencoded"));
    let text = String::from_utf8(reply.bytes.to_vec()).unwrap();
    let part = |name: &str| {
        let found = text.split('&').find_map(|pair| pair.strip_prefix(&format!("{name}=")));
        found.unwrap_or_default().to_owned()
    };
    assert!(!part("oauth_expires_at").is_empty());
    Ok(Key { id: part("oauth_token"), secret: part("oauth_token_secret") })
}

async fn consumer(cloud: &Harness) -> Key {
    let body = json!({"consumer": {"description": "a program"}});
    let reply = cloud.admin(Method::POST, "/identity/v3/OS-OAUTH1/consumers", body).await;
    assert_eq!(reply.status, 201);
    let made = reply.json()["consumer"].clone();
    let path = format!("/identity/v3/OS-OAUTH1/consumers/{}", made["id"].as_str().unwrap());
    let shown = cloud.admin(Method::GET, &path, Value::Null).await.json();
    assert_eq!(
        (&shown["consumer"]["secret"], &shown["consumer"]["description"]),
        (&Value::Null, &json!("a program"))
    );
    let text = |name: &str| made[name].as_str().unwrap().to_owned();
    Key { id: text("id"), secret: text("secret") }
}

async fn authorize(cloud: &Harness, token: &str, request: &Key, roles: Value) -> Reply {
    let path = format!("/identity/v3/OS-OAUTH1/authorize/{}", request.id);
    cloud.call(Method::PUT, &path, &[("x-auth-token", token)], json!({ "roles": roles })).await
}

async fn log_in(cloud: &Harness, consumer: &Key, access: &Key) -> Reply {
    let body = json!({"auth": {"identity": {"methods": ["oauth1"], "oauth1": {}}}});
    let header = signed(TOKENS, consumer, Some(access), &[]);
    cloud.call(Method::POST, TOKENS, &[("authorization", &header)], body).await
}

const REQUEST: &str = "/identity/v3/OS-OAUTH1/request_token";
const ACCESS: &str = "/identity/v3/OS-OAUTH1/access_token";

#[tokio::test]
async fn consumer_acts_for_a_user_with_what_was_granted_until_it_is_taken_back() {
    let cloud = Harness::new().await;
    let place = made(&cloud, "project", "projects", json!({"name": "p"})).await;
    let user = made(&cloud, "user", "users", json!({"name": "u", "password": "geheim"})).await;
    let member = role(&cloud, "member").await;
    assert_eq!(
        status(&cloud, Method::PUT, &format!("projects/{place}/users/{user}/roles/{member}")).await,
        204
    );
    let own = cloud.call(Method::POST, TOKENS, &[], login("u", "geheim", project("p"))).await;
    let own = own.header("x-subject-token").unwrap().to_owned();
    let consumer = consumer(&cloud).await;
    let request = post(&cloud, REQUEST, &signed(REQUEST, &consumer, None, &[]), Some(&place)).await.unwrap();
    // By default administrators alone grant, as in Keystone; here a file lets everybody.
    assert_eq!(authorize(&cloud, &own, &request, json!([{"name": "reader"}])).await.status, 403);
    let cloud = cloud.ruled("\"identity:authorize_request_token\": \"\"\n").await;
    assert_eq!(authorize(&cloud, &own, &request, json!([{"name": "admin"}])).await.status, 401);
    let early = signed(ACCESS, &consumer, Some(&request), &[("oauth_verifier", "abcdefgh")]);
    assert_eq!(post(&cloud, ACCESS, &early, None).await.err(), Some(401));
    let granted = authorize(&cloud, &own, &request, json!([{"name": "reader"}])).await.json();
    let verifier = granted["token"]["oauth_verifier"].as_str().unwrap().to_owned();
    let wrong = signed(ACCESS, &consumer, Some(&request), &[("oauth_verifier", "abcdefgh")]);
    assert_eq!(post(&cloud, ACCESS, &wrong, None).await.err(), Some(401));
    let right = signed(ACCESS, &consumer, Some(&request), &[("oauth_verifier", &verifier)]);
    let access = post(&cloud, ACCESS, &right, None).await.unwrap();
    // Neither the request nor its signature is good for another.
    assert!(post(&cloud, ACCESS, &right, None).await.is_err());

    let reply = log_in(&cloud, &consumer, &access).await;
    assert_eq!(reply.status, 201, "{}", reply.json());
    let facts = reply.json()["token"].clone();
    assert_eq!(facts["methods"], json!(["oauth1"]));
    assert_eq!((&facts["user"]["id"], &facts["project"]["id"]), (&json!(user), &json!(place)));
    assert_eq!(facts["OS-OAUTH1"], json!({"access_token_id": access.id, "consumer_id": consumer.id}));
    assert_eq!(facts["roles"].as_array().unwrap().len(), 1);
    let token = reply.header("x-subject-token").unwrap().to_owned();
    assert!(token.len() <= 255);
    let headers = [("x-auth-token", token.as_str())];
    assert_eq!(cloud.get("/compute/v2.1/servers", &headers).await.status, 200);
    // What was handed on hands nothing on.
    let other = post(&cloud, REQUEST, &signed(REQUEST, &consumer, None, &[]), Some(&place)).await.unwrap();
    assert_eq!(authorize(&cloud, &token, &other, json!([{"name": "reader"}])).await.status, 403);
    let rescope = json!({"auth": {"identity": {"methods": ["token"], "token": {"id": token}}}});
    assert_eq!(cloud.call(Method::POST, TOKENS, &[], rescope).await.status, 403);

    let rights = format!("/identity/v3/users/{user}/OS-OAUTH1/access_tokens");
    assert_eq!(cloud.get(&rights, &[("x-auth-token", &own)]).await.status, 403);
    let listed = cloud.admin(Method::GET, &rights, Value::Null).await.json();
    assert_eq!(listed["access_tokens"][0]["id"], access.id.as_str());
    let right = format!("{rights}/{}", access.id);
    let shown = cloud.admin(Method::GET, &right, Value::Null).await.json();
    assert_eq!(shown["access_token"]["authorizing_user_id"], user.as_str());
    let roles = cloud.admin(Method::GET, &format!("{right}/roles"), Value::Null).await.json();
    let reader = roles["roles"][0]["id"].as_str().unwrap();
    assert_eq!(cloud.admin(Method::GET, &format!("{right}/roles/{reader}"), Value::Null).await.status, 200);
    assert_eq!(cloud.admin(Method::GET, &format!("{right}/roles/{member}"), Value::Null).await.status, 404);
    assert_eq!(cloud.admin(Method::DELETE, &right, Value::Null).await.status, 204);
    assert_eq!(cloud.get("/compute/v2.1/servers", &headers).await.status, 401);
    assert_eq!(log_in(&cloud, &consumer, &access).await.status, 401);
}

#[tokio::test]
async fn signatures_that_do_not_hold_are_refused_alike_whoever_is_there() {
    let cloud = Harness::new().await;
    let place = made(&cloud, "project", "projects", json!({"name": "p"})).await;
    let consumer = consumer(&cloud).await;
    let nobody = Key { id: "nobody".into(), ..consumer.clone() };
    let guess = Key { secret: "guess".into(), ..consumer.clone() };
    for key in [&nobody, &guess] {
        let header = signed(REQUEST, key, None, &[]);
        assert_eq!(post(&cloud, REQUEST, &header, Some(&place)).await.err(), Some(401));
    }
    let header = signed(REQUEST, &consumer, None, &[]);
    assert_eq!(post(&cloud, REQUEST, &header, None).await.err(), Some(400));
    assert_eq!(post(&cloud, REQUEST, "Basic x", Some(&place)).await.err(), Some(400));
    assert_eq!(post(&cloud, REQUEST, &header, Some("nowhere")).await.err(), Some(404));
    assert_eq!(
        post(&cloud, REQUEST, &header, Some(&place)).await.err(),
        Some(401),
        "a signature is good once"
    );
    let header = signed(REQUEST, &consumer, None, &[]);
    assert!(post(&cloud, &format!("{REQUEST}?a=b"), &header, Some(&place)).await.is_err());
    let body = json!({"auth": {"identity": {"methods": ["oauth1"], "oauth1": {}}}});
    assert_eq!(cloud.call(Method::POST, TOKENS, &[], body).await.status, 400);
    let secret = json!({"consumer": {"secret": "mine"}});
    let path = format!("/identity/v3/OS-OAUTH1/consumers/{}", consumer.id);
    assert_eq!(cloud.admin(Method::PATCH, &path, secret).await.status, 400);
    // With the consumer goes what it asked for.
    let header = signed(REQUEST, &consumer, None, &[]);
    assert!(post(&cloud, REQUEST, &header, Some(&place)).await.is_ok());
    assert_eq!(cloud.admin(Method::DELETE, &path, Value::Null).await.status, 204);
    let header = signed(REQUEST, &consumer, None, &[]);
    assert_eq!(post(&cloud, REQUEST, &header, Some(&place)).await.err(), Some(401));
}
