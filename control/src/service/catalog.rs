//! The catalog: which services there are and where. It follows from the public URL; nothing of it is stored, so a cloud
//! that moves to another URL is right at its next start.

use uuid::Uuid;

use crate::Control;

/// A service of the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogService {
    /// Its id, the same at every start.
    pub id: String,
    /// `compute` and the like.
    pub kind: &'static str,
    /// `nova` and the like.
    pub name: &'static str,
    /// Where it is; the same for all interfaces.
    pub url: String,
    /// Its endpoints.
    pub endpoints: Vec<CatalogEndpoint>,
}

/// An endpoint of the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogEndpoint {
    /// Its id, the same at every start.
    pub id: String,
    /// `public`, `internal` or `admin`.
    pub interface: &'static str,
}

/// Type, name and path of each service. Nova's and Cinder's carry their version, since some clients skip discovery.
const SERVICES: [(&str, &str, &str); 6] = [
    ("identity", "keystone", "/identity"),
    ("compute", "nova", "/compute/v2.1"),
    ("network", "neutron", "/network"),
    ("image", "glance", "/image"),
    ("block-storage", "cinder", "/volume/v3"),
    ("placement", "placement", "/placement"),
];

const INTERFACES: [&str; 3] = ["public", "internal", "admin"];

impl Control {
    /// The services with their endpoints.
    pub fn catalog(&self) -> Vec<CatalogService> {
        let id = |name: &str| Uuid::new_v5(&Uuid::NAMESPACE_URL, name.as_bytes()).simple().to_string();
        let service = |(kind, name, path): (&'static str, &'static str, &str)| CatalogService {
            id: id(kind),
            kind,
            name,
            url: format!("{}{path}", self.public_url()),
            endpoints: INTERFACES
                .map(|interface| CatalogEndpoint { id: id(&format!("{kind}/{interface}")), interface })
                .into(),
        };
        SERVICES.into_iter().map(service).collect()
    }

    /// The name of the one region.
    pub fn region(&self) -> &str {
        &self.settings.region
    }
}
