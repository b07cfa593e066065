//! The network service over HTTP: what is answered, in which form, and what is refused by which name.

mod groups;
mod hosts;
mod lists;
mod names;
mod pools;
mod providers;
mod qos;
mod routers;
mod sharing;
mod topology;
mod v6;

use axum::http::Method;
use serde_json::{Value, json};

use crate::harness::{Harness, Reply};

/// Makes something as the administrator and returns it.
async fn create(cloud: &Harness, path: &str, body: Value) -> Value {
    let name = body.as_object().unwrap().keys().next().unwrap().clone();
    let reply = cloud.admin(Method::POST, &format!("/network/v2.0/{path}"), body).await;
    assert_eq!(reply.status, 201, "{path}: {}", reply.json());
    reply.json()[name].clone()
}

/// Makes a network with one subnet; their ids.
async fn network(cloud: &Harness, name: &str, cidr: &str) -> (String, String) {
    let network = create(cloud, "networks", json!({"network": {"name": name}})).await;
    let network = text(&network, "id");
    let body = json!({"subnet": {"network_id": network, "cidr": cidr, "ip_version": 4}});
    let subnet = create(cloud, "subnets", body).await;
    (network, text(&subnet, "id"))
}

fn text(row: &Value, key: &str) -> String {
    row[key].as_str().unwrap_or_else(|| panic!("no {key} in {row}")).to_owned()
}

/// Asks for something as the administrator.
async fn ask(cloud: &Harness, method: Method, path: &str, body: Value) -> Reply {
    cloud.admin(method, &format!("/network/v2.0/{path}"), body).await
}

/// The status and the type of a refusal.
fn refusal(reply: &Reply) -> (u16, String) {
    let kind = reply.json()["NeutronError"]["type"].as_str().unwrap_or_default().to_owned();
    (reply.status.as_u16(), kind)
}

/// Asserts that this is refused so.
async fn refused(cloud: &Harness, method: Method, path: &str, body: Value, status: u16, kind: &str) {
    let reply = ask(cloud, method.clone(), path, body.clone()).await;
    assert_eq!(refusal(&reply), (status, kind.to_owned()), "{method} {path} {body}: {}", reply.json());
}

/// Asserts that these fields of a row are so.
fn has(row: &Value, fields: Value) {
    for (key, wanted) in fields.as_object().unwrap() {
        assert_eq!(row[key], *wanted, "{key} of {row}");
    }
}
