//! The discovery documents: what each service answers at its root and at its version, without a token. Clients choose
//! URLs and microversions by them.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::context::AppState;
use crate::microversion::{COMPUTE, PLACEMENT, VOLUME};
use crate::openapi::{Routes, get};

/// When the newest version of each API was published: Keystone's, Nova's and Cinder's own dates.
const UPDATED_IDENTITY: &str = "2020-04-07T00:00:00Z";
const UPDATED_COMPUTE: &str = "2013-07-23T11:33:21Z";
const UPDATED_VOLUME: &str = "2023-08-31T00:00:00Z";
const UPDATED_NETWORK: &str = "2013-01-23T00:00:00-00:00";

fn media_types(kind: &str) -> Value {
    json!([{"base": "application/json", "type": format!("application/vnd.openstack.{kind}+json")}])
}

/// Keystone's.
pub fn identity() -> Routes {
    fn version(url: &str) -> Value {
        json!({
            "id": "v3.14",
            "status": "stable",
            "updated": UPDATED_IDENTITY,
            "links": [{"rel": "self", "href": format!("{url}/identity/v3/")}],
            "media-types": media_types("identity-v3"),
        })
    }
    async fn root(State(state): State<AppState>) -> (StatusCode, Json<Value>) {
        let values = json!([version(state.public_url())]);
        (StatusCode::MULTIPLE_CHOICES, Json(json!({"versions": {"values": values}})))
    }
    async fn v3(State(state): State<AppState>) -> Json<Value> {
        Json(json!({"version": version(state.public_url())}))
    }
    Routes::new().route("/", get(root)).route("/v3", get(v3))
}

/// Nova's.
pub fn compute() -> Routes {
    fn version(url: &str) -> Value {
        json!({
            "id": "v2.1",
            "status": "CURRENT",
            "version": COMPUTE.maximum.to_string(),
            "min_version": COMPUTE.minimum.to_string(),
            "updated": UPDATED_COMPUTE,
            "links": [{"rel": "self", "href": format!("{url}/compute/v2.1/")}],
        })
    }
    async fn root(State(state): State<AppState>) -> Json<Value> {
        Json(json!({"versions": [version(state.public_url())]}))
    }
    async fn v21(State(state): State<AppState>) -> Json<Value> {
        let mut version = version(state.public_url());
        version["media-types"] = media_types("compute");
        version["media-types"][0]["type"] = json!("application/vnd.openstack.compute+json;version=2.1");
        Json(json!({"version": version}))
    }
    Routes::new().route("/", get(root)).route("/v2.1", get(v21))
}

/// Cinder's.
pub fn volume() -> Routes {
    fn versions(url: &str) -> Value {
        json!({"versions": [{
            "id": "v3.0",
            "status": "CURRENT",
            "version": VOLUME.maximum.to_string(),
            "min_version": VOLUME.minimum.to_string(),
            "updated": UPDATED_VOLUME,
            "links": [{"rel": "self", "href": format!("{url}/volume/v3/")}],
            "media-types": media_types("volume"),
        }]})
    }
    async fn root(State(state): State<AppState>) -> (StatusCode, Json<Value>) {
        (StatusCode::MULTIPLE_CHOICES, Json(versions(state.public_url())))
    }
    async fn v3(State(state): State<AppState>) -> Json<Value> {
        Json(versions(state.public_url()))
    }
    Routes::new().route("/", get(root)).route("/v3", get(v3))
}

/// The versions of the Image API whose requests are understood; each is listed, as Glance does.
const IMAGE_VERSIONS: [&str; 11] =
    ["v2.17", "v2.16", "v2.15", "v2.9", "v2.7", "v2.6", "v2.5", "v2.4", "v2.3", "v2.1", "v2.0"];

/// Glance's.
pub fn image() -> Routes {
    fn versions(url: &str) -> Value {
        let version = |(place, id): (usize, &&str)| {
            json!({
                "id": id,
                "status": if place == 0 { "CURRENT" } else { "SUPPORTED" },
                "links": [{"rel": "self", "href": format!("{url}/image/v2/")}],
            })
        };
        json!({"versions": IMAGE_VERSIONS.iter().enumerate().map(version).collect::<Vec<_>>()})
    }
    async fn root(State(state): State<AppState>) -> (StatusCode, Json<Value>) {
        (StatusCode::MULTIPLE_CHOICES, Json(versions(state.public_url())))
    }
    async fn listed(State(state): State<AppState>) -> Json<Value> {
        Json(versions(state.public_url()))
    }
    Routes::new().route("/", get(root)).route("/v2", get(root)).route("/versions", get(listed))
}

/// Neutron's; the document of the version itself is the network module's, which knows its resources.
pub fn network() -> Routes {
    async fn root(State(state): State<AppState>) -> Json<Value> {
        Json(json!({"versions": [{
            "id": "v2.0",
            "status": "CURRENT",
            "updated": UPDATED_NETWORK,
            "links": [{"rel": "self", "href": format!("{}/network/v2.0/", state.public_url())}],
        }]}))
    }
    Routes::new().route("/", get(root))
}

/// Placement's.
pub fn placement() -> Routes {
    async fn root() -> Json<Value> {
        Json(json!({"versions": [{
            "id": "v1.0",
            "status": "CURRENT",
            "max_version": PLACEMENT.maximum.to_string(),
            "min_version": PLACEMENT.minimum.to_string(),
            "links": [{"rel": "self", "href": ""}],
        }]}))
    }
    Routes::new().route("/", get(root))
}
