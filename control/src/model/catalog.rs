//! Rows of the identity service about services: the catalog, and how much of a service's resources one may have.

use serde::{Deserialize, Serialize};

use super::identity::Extra;

/// A service of the catalog.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its id.
    pub id: String,
    /// `compute` and the like.
    pub kind: String,
    /// `nova` and the like.
    pub name: Option<String>,
    /// Free text.
    pub description: Option<String>,
    /// In the catalog.
    pub enabled: bool,
    /// All else that was given.
    pub extra: Extra,
}

/// Where a service is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its id.
    pub id: String,
    /// The service.
    pub service_id: String,
    /// The region.
    pub region_id: Option<String>,
    /// `public`, `internal` or `admin`.
    pub interface: String,
    /// Where; may hold Keystone's placeholders such as `$(project_id)s`. `$(public_endpoint)s` stands for the URL that
    /// the cloud has at the time.
    pub url: String,
    /// In the catalog.
    pub enabled: bool,
    /// All else that was given.
    pub extra: Extra,
}

/// A region.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// Its id, which is its name too.
    pub id: String,
    /// Free text.
    pub description: String,
    /// The region it is in.
    pub parent_region_id: Option<String>,
    /// All else that was given.
    pub extra: Extra,
}

/// Endpoints by what they have in common; its projects have them in their catalogs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointGroup {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Free text.
    pub description: Option<String>,
    /// What its endpoints have: `service_id`, `region_id`, `interface`.
    pub filters: std::collections::BTreeMap<String, String>,
}

/// An endpoint or a group of them in a project's catalog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointFilter {
    /// `{project}/endpoint/{endpoint}` or `{project}/group/{endpoint group}`.
    pub id: String,
}

/// A document of rules that some service keeps here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyDocument {
    /// Its id.
    pub id: String,
    /// Its media type.
    pub kind: String,
    /// The rules.
    pub blob: String,
    /// All else that was given.
    pub extra: Extra,
}

/// How much of a resource there is by default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisteredLimit {
    /// Its id.
    pub id: String,
    /// The service.
    pub service_id: String,
    /// The region, if it is about one.
    pub region_id: Option<String>,
    /// What is counted.
    pub resource_name: String,
    /// How many; -1 is without bound.
    pub default_limit: i64,
    /// Free text.
    pub description: Option<String>,
}

/// How much of a resource one project or domain may have instead.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Its id.
    pub id: String,
    /// The project it is for.
    pub project_id: Option<String>,
    /// Or the domain it is for.
    pub domain_id: Option<String>,
    /// The service.
    pub service_id: String,
    /// The region, if it is about one.
    pub region_id: Option<String>,
    /// What is counted.
    pub resource_name: String,
    /// How many; -1 is without bound.
    pub resource_limit: i64,
    /// Free text.
    pub description: Option<String>,
}
