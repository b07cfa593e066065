//! The discovery documents: what each service answers at its root and at its version, without a token. Clients choose
//! URLs and microversions by them.

use axum::Json;
use axum::extract::State;
use schemars::JsonSchema;
use serde::Serialize;

use crate::context::AppState;
use crate::microversion::{COMPUTE, Offer, PLACEMENT, VOLUME};
use crate::openapi::answer::Status;
use crate::openapi::{Routes, get};

/// When the newest version of each API was published: Keystone's, Nova's and Cinder's own dates.
const UPDATED_IDENTITY: &str = "2020-04-07T00:00:00Z";
const UPDATED_COMPUTE: &str = "2013-07-23T11:33:21Z";
const UPDATED_VOLUME: &str = "2023-08-31T00:00:00Z";
const UPDATED_NETWORK: &str = "2013-01-23T00:00:00-00:00";

/// What is said of a version; each service says a part of it.
#[derive(Default, Serialize, JsonSchema)]
struct Version {
    id: &'static str,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    updated: Option<&'static str>,
    links: [Link; 1],
    #[serde(rename = "media-types", skip_serializing_if = "Option::is_none")]
    media_types: Option<[MediaType; 1]>,
}

#[derive(Default, Serialize, JsonSchema)]
struct Link {
    rel: &'static str,
    href: String,
}

#[derive(Serialize, JsonSchema)]
struct MediaType {
    base: &'static str,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Serialize, JsonSchema)]
struct OneVersion {
    version: Version,
}

#[derive(Serialize, JsonSchema)]
struct Versions {
    versions: Vec<Version>,
}

/// Keystone's list, one deeper than the others'.
#[derive(Serialize, JsonSchema)]
struct Values {
    values: [Version; 1],
}

#[derive(Serialize, JsonSchema)]
struct VersionValues {
    versions: Values,
}

/// Several to choose from.
type Choices<T> = Status<300, Json<T>>;

fn own(href: String) -> [Link; 1] {
    [Link { rel: "self", href }]
}

fn media_types(kind: &str) -> Option<[MediaType; 1]> {
    Some([MediaType { base: "application/json", kind: format!("application/vnd.openstack.{kind}+json") }])
}

fn offered(version: Version, offer: Offer) -> Version {
    Version {
        version: Some(offer.maximum.to_string()),
        min_version: Some(offer.minimum.to_string()),
        ..version
    }
}

/// Keystone's.
pub fn identity() -> Routes {
    fn version(url: &str) -> Version {
        Version {
            id: "v3.14",
            status: "stable",
            updated: Some(UPDATED_IDENTITY),
            links: own(format!("{url}/identity/v3/")),
            media_types: media_types("identity-v3"),
            ..Version::default()
        }
    }
    async fn root(State(state): State<AppState>) -> Choices<VersionValues> {
        let values = [version(state.public_url())];
        Status(Json(VersionValues { versions: Values { values } }))
    }
    async fn v3(State(state): State<AppState>) -> Json<OneVersion> {
        Json(OneVersion { version: version(state.public_url()) })
    }
    Routes::new().route("/", get(root)).route("/v3", get(v3))
}

/// Nova's.
pub fn compute() -> Routes {
    fn version(url: &str) -> Version {
        let version = Version {
            id: "v2.1",
            status: "CURRENT",
            updated: Some(UPDATED_COMPUTE),
            links: own(format!("{url}/compute/v2.1/")),
            ..Version::default()
        };
        offered(version, COMPUTE)
    }
    async fn root(State(state): State<AppState>) -> Json<Versions> {
        Json(Versions { versions: vec![version(state.public_url())] })
    }
    async fn v21(State(state): State<AppState>) -> Json<OneVersion> {
        let kind = "application/vnd.openstack.compute+json;version=2.1".to_owned();
        let media_types = Some([MediaType { base: "application/json", kind }]);
        Json(OneVersion { version: Version { media_types, ..version(state.public_url()) } })
    }
    Routes::new().route("/", get(root)).route("/v2.1", get(v21))
}

/// Cinder's.
pub fn volume() -> Routes {
    fn versions(url: &str) -> Json<Versions> {
        let version = Version {
            id: "v3.0",
            status: "CURRENT",
            updated: Some(UPDATED_VOLUME),
            links: own(format!("{url}/volume/v3/")),
            media_types: media_types("volume"),
            ..Version::default()
        };
        Json(Versions { versions: vec![offered(version, VOLUME)] })
    }
    async fn root(State(state): State<AppState>) -> Choices<Versions> {
        Status(versions(state.public_url()))
    }
    async fn v3(State(state): State<AppState>) -> Json<Versions> {
        versions(state.public_url())
    }
    Routes::new().route("/", get(root)).route("/v3", get(v3))
}

/// The versions of the Image API whose requests are understood; each is listed, as Glance does.
const IMAGE_VERSIONS: [&str; 11] =
    ["v2.17", "v2.16", "v2.15", "v2.9", "v2.7", "v2.6", "v2.5", "v2.4", "v2.3", "v2.1", "v2.0"];

/// Glance's.
pub fn image() -> Routes {
    fn versions(url: &str) -> Json<Versions> {
        let version = |(place, id): (usize, &&'static str)| Version {
            id,
            status: if place == 0 { "CURRENT" } else { "SUPPORTED" },
            links: own(format!("{url}/image/v2/")),
            ..Version::default()
        };
        Json(Versions { versions: IMAGE_VERSIONS.iter().enumerate().map(version).collect() })
    }
    async fn root(State(state): State<AppState>) -> Choices<Versions> {
        Status(versions(state.public_url()))
    }
    async fn listed(State(state): State<AppState>) -> Json<Versions> {
        versions(state.public_url())
    }
    Routes::new().route("/", get(root)).route("/v2", get(root)).route("/versions", get(listed))
}

/// Neutron's; the document of the version itself is the network module's, which knows its resources.
pub fn network() -> Routes {
    async fn root(State(state): State<AppState>) -> Json<Versions> {
        let version = Version {
            id: "v2.0",
            status: "CURRENT",
            updated: Some(UPDATED_NETWORK),
            links: own(format!("{}/network/v2.0/", state.public_url())),
            ..Version::default()
        };
        Json(Versions { versions: vec![version] })
    }
    Routes::new().route("/", get(root))
}

/// Placement's.
pub fn placement() -> Routes {
    async fn root() -> Json<Versions> {
        let version = Version {
            id: "v1.0",
            status: "CURRENT",
            max_version: Some(PLACEMENT.maximum.to_string()),
            min_version: Some(PLACEMENT.minimum.to_string()),
            links: own(String::new()),
            ..Version::default()
        };
        Json(Versions { versions: vec![version] })
    }
    Routes::new().route("/", get(root))
}
