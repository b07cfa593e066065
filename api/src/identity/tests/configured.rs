//! Configurations of domains.

use axum::http::Method;
use serde_json::{Value, json};

use super::assignments::made;
use crate::harness::{Harness, Reply};

async fn ask(cloud: &Harness, method: Method, path: &str, config: Value) -> Reply {
    let body = if config.is_null() { Value::Null } else { json!({ "config": config }) };
    cloud.admin(method, &format!("/identity/v3/domains/{path}"), body).await
}

async fn config(cloud: &Harness, path: &str) -> Value {
    let reply = ask(cloud, Method::GET, path, Value::Null).await;
    assert_eq!(reply.status, 200, "{path}: {}", reply.json());
    reply.json()["config"].clone()
}

#[tokio::test]
async fn configuration_is_kept_by_group_and_option_and_what_is_sensitive_is_never_shown() {
    let cloud = Harness::new().await;
    let id = made(&cloud, "domain", "domains", json!({"name": "d"})).await;
    let own = format!("{id}/config");
    let wanted = json!({"identity": {"driver": "ldap"}, "ldap": {"url": "ldap://h", "password": "geheim"}});
    let reply = ask(&cloud, Method::PUT, &own, wanted.clone()).await;
    let shown = json!({"identity": {"driver": "ldap"}, "ldap": {"url": "ldap://h"}});
    assert_eq!((reply.status.as_u16(), reply.json()["config"].clone()), (201, shown.clone()));
    assert_eq!(ask(&cloud, Method::PUT, &own, wanted).await.status, 200);
    assert_eq!(config(&cloud, &own).await, shown);
    assert_eq!(config(&cloud, &format!("{own}/ldap")).await, json!({"ldap": {"url": "ldap://h"}}));
    assert_eq!(config(&cloud, &format!("{own}/ldap/url")).await, json!({"url": "ldap://h"}));
    let sensitive = format!("{own}/ldap/password");
    assert_eq!(ask(&cloud, Method::GET, &sensitive, Value::Null).await.status, 404);
    // It is there all the same, and can be changed and taken away.
    assert_eq!(ask(&cloud, Method::PATCH, &sensitive, json!({"password": "other"})).await.status, 200);
    assert_eq!(ask(&cloud, Method::DELETE, &sensitive, Value::Null).await.status, 204);
    assert_eq!(ask(&cloud, Method::DELETE, &sensitive, Value::Null).await.status, 404);
    let stored = std::fs::read(cloud.directory().join("store.redb")).unwrap();
    assert!(!stored.windows(6).any(|bytes| bytes == b"geheim"));

    let changed = ask(&cloud, Method::PATCH, &own, json!({"ldap": {"suffix": "dc=x"}})).await;
    let shown = json!({"identity": {"driver": "ldap"}, "ldap": {"url": "ldap://h", "suffix": "dc=x"}});
    assert_eq!(changed.json()["config"], shown);
    let group =
        ask(&cloud, Method::PATCH, &format!("{own}/identity"), json!({"identity": {"list_limit": 5}})).await;
    assert_eq!(group.json()["config"]["identity"], json!({"driver": "ldap", "list_limit": 5}));
    assert_eq!(ask(&cloud, Method::DELETE, &format!("{own}/identity"), Value::Null).await.status, 204);
    assert_eq!(ask(&cloud, Method::GET, &format!("{own}/identity"), Value::Null).await.status, 404);
    let gone = json!({"identity": {"driver": "sql"}});
    assert_eq!(ask(&cloud, Method::PATCH, &format!("{own}/identity"), gone).await.status, 404);
    assert_eq!(ask(&cloud, Method::DELETE, &own, Value::Null).await.status, 204);
    assert_eq!(ask(&cloud, Method::GET, &own, Value::Null).await.status, 404);
}

#[tokio::test]
async fn configuration_that_is_none_is_refused_and_defaults_are_readable() {
    let cloud = Harness::new().await;
    let id = made(&cloud, "domain", "domains", json!({"name": "d"})).await;
    let own = format!("{id}/config");
    for (wrong, status) in [
        (json!({}), 403),
        (json!({"nonsense": {"a": "b"}}), 403),
        (json!({"ldap": {"nonsense": "b"}}), 403),
        (json!({"ldap": {}}), 403),
        (json!({"ldap": "text"}), 400),
        (json!({"ldap": {"url": {"a": "b"}}}), 400),
        (json!({"ldap": {"url": "x".repeat(5000)}}), 400),
    ] {
        assert_eq!(ask(&cloud, Method::PUT, &own, wrong.clone()).await.status, status, "{wrong}");
    }
    let fits = json!({"identity": {"driver": "sql"}});
    assert_eq!(ask(&cloud, Method::PUT, "nobody/config", fits.clone()).await.status, 404);
    assert_eq!(ask(&cloud, Method::PUT, &own, fits.clone()).await.status, 201);
    let two = json!({"identity": {"driver": "sql"}, "ldap": {"url": "x"}});
    assert_eq!(ask(&cloud, Method::PATCH, &format!("{own}/identity"), two).await.status, 403);
    assert_eq!(config(&cloud, "config/identity/driver/default").await, json!({"driver": "sql"}));
    assert_eq!(config(&cloud, "config/default").await["ldap"]["pool_size"], 10);
    assert_eq!(ask(&cloud, Method::GET, "config/ldap/password/default", Value::Null).await.status, 403);
    let rules = config(&cloud, "default/config/security_compliance").await;
    assert_eq!(rules["security_compliance"]["password_regex"], Value::Null);

    let reader = cloud.user_token("reads", "reader").await;
    let headers = [("x-auth-token", reader.as_str())];
    let path = format!("/identity/v3/domains/{own}");
    assert_eq!(cloud.get(&path, &headers).await.status, 403);
    let ruled = cloud.ruled("\"identity:get_domain_config\": \"role:reader\"\n").await;
    assert_eq!(ruled.get(&path, &headers).await.json()["config"], fits);
    // With the domain its configuration goes.
    let off = json!({"domain": {"enabled": false}});
    let domain = format!("/identity/v3/domains/{id}");
    assert_eq!(cloud.admin(Method::PATCH, &domain, off).await.status, 200);
    assert_eq!(cloud.admin(Method::DELETE, &domain, Value::Null).await.status, 204);
    assert_eq!(cloud.admin(Method::GET, &path, Value::Null).await.status, 404);
}
