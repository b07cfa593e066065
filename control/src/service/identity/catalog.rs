//! The catalog: which services there are and where. A new cloud's endpoints name the URL that clients reach it by with
//! Keystone's `$(public_endpoint)s`, so a cloud that moves to another URL is right at its next start.

use std::sync::Arc;

use super::{
    Entity, NAME_CHARACTERS_MAX, Removal, Rules, check_extra, check_text, invalid, require, require_valid,
    rules,
};
use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::catalog::{Endpoint, EndpointFilter, EndpointGroup, Limit, PolicyDocument, Region};
use crate::model::catalog::{RegisteredLimit, Service};
use crate::model::random_hex_id;
use crate::store::{Cache, Stored, Txn};

/// Type, name and path of each service of a new cloud. Nova's and Cinder's carry their version, since some clients skip
/// discovery.
const SERVICES: [(&str, &str, &str); 6] = [
    ("identity", "keystone", "/identity"),
    ("compute", "nova", "/compute/v2.1"),
    ("network", "neutron", "/network"),
    ("image", "glance", "/image"),
    ("block-storage", "cinder", "/volume/v3"),
    ("placement", "placement", "/placement"),
];
/// Where a service can be reached by whom.
pub const INTERFACES: [&str; 3] = ["public", "internal", "admin"];
/// The longest URL in bytes.
const URL_BYTES_MAX: usize = 2048;
/// The longest document of rules in bytes.
const BLOB_BYTES_MAX: usize = 128 << 10;
/// Keystone's placeholder for the URL that the cloud is reached by.
const PUBLIC: &str = "$(public_endpoint)s";
/// How many regions may stand inside each other, so that no walk up is without end.
const REGION_DEPTH_MAX: usize = 16;

/// A service of a token's catalog with its endpoints, their URLs filled in.
#[derive(Debug, Clone)]
pub struct CatalogService {
    /// The service.
    pub service: Arc<Stored<Service>>,
    /// Each endpoint with its URL.
    pub endpoints: Vec<(Arc<Stored<Endpoint>>, String)>,
}

impl Entity for Service {
    const NOUN: &'static str = "Service";
    const RULES: Rules = rules!("service", "services");

    fn admit(&self, _: &Cache, _: Option<&Self>) -> Result<()> {
        if self.kind.is_empty() || self.kind.chars().count() > NAME_CHARACTERS_MAX {
            return Err(invalid(format!("a service's type has 1 to {NAME_CHARACTERS_MAX} characters")));
        }
        check_text("name", self.name.as_deref().unwrap_or_default())?;
        check_text("description", self.description.as_deref().unwrap_or_default())?;
        check_extra(&self.extra)
    }

    fn dependents(&self, removal: &mut Removal<'_>) {
        removal.entities::<Endpoint>(|row| row.service_id == self.id);
        removal.entities::<Limit>(|row| row.service_id == self.id);
        removal.entities::<RegisteredLimit>(|row| row.service_id == self.id);
    }
}

impl Entity for Endpoint {
    const NOUN: &'static str = "Endpoint";
    const RULES: Rules = rules!("endpoint", "endpoints");

    fn admit(&self, _: &Cache, _: Option<&Self>) -> Result<()> {
        if !INTERFACES.contains(&self.interface.as_str()) {
            return Err(invalid(format!("the interface '{}' is not one of {INTERFACES:?}", self.interface)));
        }
        if self.url.is_empty() || self.url.len() > URL_BYTES_MAX || filled(&self.url, "", "", None).is_none()
        {
            return Err(invalid(format!(
                "Malformed endpoint URL ({}), see ERROR log for details.",
                self.url
            )));
        }
        check_extra(&self.extra)
    }

    fn bind(&self, cache: &Cache, _: Option<&Self>, txn: Txn) -> Result<Txn> {
        let txn = require_valid::<Service>(cache, txn, &self.service_id)?;
        match &self.region_id {
            Some(region) => require_valid::<Region>(cache, txn, region),
            None => Ok(txn),
        }
    }

    fn dependents(&self, removal: &mut Removal<'_>) {
        let suffix = format!("/endpoint/{}", self.id);
        removal.rows::<EndpointFilter>(|row| row.id.ends_with(&suffix));
    }
}

impl Entity for Region {
    const NOUN: &'static str = "Region";
    const RULES: Rules = rules!("region", "regions");

    fn listable(_: &Caller) -> bool {
        true
    }

    fn readable(&self, _: &Caller) -> bool {
        true
    }

    fn admit(&self, cache: &Cache, _: Option<&Self>) -> Result<()> {
        if self.id.is_empty() || self.id.chars().count() > NAME_CHARACTERS_MAX || self.id.contains('/') {
            return Err(invalid(format!("a region's id has 1 to {NAME_CHARACTERS_MAX} characters, no /")));
        }
        check_text("description", &self.description)?;
        check_extra(&self.extra)?;
        let mut above = self.parent_region_id.clone();
        for _ in 0..REGION_DEPTH_MAX {
            match above {
                None => return Ok(()),
                Some(id) if id == self.id => break,
                Some(id) => above = cache.get::<Self>(&id).and_then(|row| row.row.parent_region_id.clone()),
            }
        }
        Err(invalid("a region is not inside itself, nor deeper than regions may be"))
    }

    fn bind(&self, cache: &Cache, _: Option<&Self>, txn: Txn) -> Result<Txn> {
        match &self.parent_region_id {
            Some(parent) => require::<Self>(cache, txn, parent),
            None => Ok(txn),
        }
    }

    fn dismiss(&self, cache: &Cache) -> Result<()> {
        let used = cache.find::<Endpoint>(|row| row.region_id.as_ref() == Some(&self.id)).is_some();
        if used {
            return Err(Error::Forbidden { action: "the deletion of a region with endpoints" });
        }
        Ok(())
    }

    fn dependents(&self, removal: &mut Removal<'_>) {
        removal.entities::<Self>(|row| row.parent_region_id.as_ref() == Some(&self.id));
    }
}

impl Entity for EndpointGroup {
    const NOUN: &'static str = "Endpoint Group";
    const RULES: Rules = rules!("endpoint_group", "endpoint_groups");

    fn unique(&self) -> Vec<String> {
        vec![format!("endpoint_group_name/{}", self.name)]
    }

    fn label(&self) -> &str {
        &self.name
    }

    fn admit(&self, _: &Cache, _: Option<&Self>) -> Result<()> {
        super::check_name("endpoint group", &self.name, NAME_CHARACTERS_MAX)?;
        check_text("description", self.description.as_deref().unwrap_or_default())?;
        let known = |key: &String| ["service_id", "region_id", "interface"].contains(&key.as_str());
        if self.filters.is_empty() || !self.filters.keys().all(known) {
            return Err(invalid("filters are of service_id, region_id and interface, and at least one"));
        }
        match self.filters.get("interface") {
            Some(interface) if !INTERFACES.contains(&interface.as_str()) => {
                Err(invalid(format!("the interface '{interface}' is not one of {INTERFACES:?}")))
            }
            _ => Ok(()),
        }
    }

    fn dependents(&self, removal: &mut Removal<'_>) {
        let suffix = format!("/group/{}", self.id);
        removal.rows::<EndpointFilter>(|row| row.id.ends_with(&suffix));
    }
}

impl EndpointGroup {
    /// Whether an endpoint is of the group.
    pub fn holds(&self, endpoint: &Endpoint) -> bool {
        self.filters.iter().all(|(key, value)| match key.as_str() {
            "service_id" => endpoint.service_id == *value,
            "region_id" => endpoint.region_id.as_ref() == Some(value),
            _ => endpoint.interface == *value,
        })
    }
}

impl Entity for PolicyDocument {
    const NOUN: &'static str = "Policy";
    const RULES: Rules = rules!("policy", "policies");

    fn admit(&self, _: &Cache, _: Option<&Self>) -> Result<()> {
        if self.kind.is_empty() || self.kind.len() > NAME_CHARACTERS_MAX || self.blob.len() > BLOB_BYTES_MAX {
            return Err(invalid(format!(
                "a policy has a type of 1 to {NAME_CHARACTERS_MAX} characters and a blob of at most \
                 {BLOB_BYTES_MAX} bytes"
            )));
        }
        check_extra(&self.extra)
    }
}

impl Control {
    /// What a token's catalog shows to a user in a project: services and endpoints that are enabled, and where the
    /// project has endpoints or groups of its own (OS-EP-FILTER), those alone.
    pub fn catalog(&self, user_id: &str, project_id: Option<&str>) -> Vec<CatalogService> {
        let cache = self.db.cache();
        let own = project_id.map(|id| project_filter(cache, id)).unwrap_or_default();
        let endpoints = cache.filter::<Endpoint>(|row| {
            row.enabled && (own.is_empty() || own.iter().any(|filter| filter(row)))
        });
        let mut services = cache.filter::<Service>(|row| row.enabled);
        services.sort_by_key(|service| {
            let known = SERVICES.iter().position(|(kind, _, _)| *kind == service.row.kind);
            (known.unwrap_or(SERVICES.len()), service.create_revision)
        });
        let with = |service: Arc<Stored<Service>>| {
            let of = endpoints.iter().filter(|endpoint| endpoint.row.service_id == service.row.id);
            let filled = of.filter_map(|endpoint| {
                let url = filled(&endpoint.row.url, self.public_url(), user_id, project_id)?;
                Some((endpoint.clone(), url))
            });
            CatalogService { endpoints: filled.collect(), service }
        };
        services.into_iter().map(with).collect()
    }

    /// An endpoint's URL as it is shown: the cloud's own URL filled in, all other placeholders as they are.
    pub fn endpoint_url(&self, endpoint: &Endpoint) -> String {
        endpoint.url.replace(PUBLIC, self.public_url())
    }

    /// The name of the first region.
    pub fn region(&self) -> &str {
        &self.settings.region
    }

    /// Puts an endpoint or a group of them into a project's catalog, or takes it out.
    ///
    /// # Errors
    /// `Forbidden`, `NotFound`.
    pub async fn endpoint_filter_set(
        &self,
        caller: &Caller,
        filter: &EndpointFilter,
        there: bool,
    ) -> Result<()> {
        crate::policy::require_admin(caller, "identity:add_endpoint_to_project")?;
        self.db
            .transact(|cache| {
                let stored = cache.get::<EndpointFilter>(&filter.id);
                match (there, stored) {
                    (true, _) => Ok(Txn::new().put(filter)),
                    (false, Some(stored)) => Ok(Txn::new().delete(&stored)),
                    (false, None) => Err(Error::not_found("Endpoint of the project", &filter.id)),
                }
            })
            .await
    }

    /// The endpoints and groups of all projects.
    pub async fn endpoint_filter_list(&self, caller: &Caller) -> Result<Vec<Arc<Stored<EndpointFilter>>>> {
        crate::policy::require_admin(caller, "identity:list_endpoints_for_project")?;
        self.db.caught_up().await?;
        Ok(self.db.list())
    }
}

type EndpointTest = Box<dyn Fn(&Endpoint) -> bool>;

/// What the endpoints of a project's catalog are, where it has any of its own.
fn project_filter(cache: &Cache, project_id: &str) -> Vec<EndpointTest> {
    let own = cache.list_under::<EndpointFilter>(&format!("{project_id}/"));
    let mut tests: Vec<EndpointTest> = Vec::new();
    for filter in own {
        let mut parts = filter.row.id.splitn(3, '/').skip(1);
        match (parts.next(), parts.next()) {
            (Some("endpoint"), Some(id)) => {
                let id = id.to_owned();
                tests.push(Box::new(move |endpoint| endpoint.id == id));
            }
            (Some("group"), Some(id)) => {
                if let Some(group) = cache.get::<EndpointGroup>(id) {
                    tests.push(Box::new(move |endpoint| group.row.holds(endpoint)));
                }
            }
            _ => {}
        }
    }
    tests
}

/// A URL with Keystone's placeholders filled in; none if one of them has no value, or is none.
fn filled(url: &str, public_url: &str, user_id: &str, project_id: Option<&str>) -> Option<String> {
    let mut out = String::with_capacity(url.len() + public_url.len());
    let mut rest = url;
    // Both ways to write them; `admit` asks with empty values whether all are known.
    while let Some(at) = rest.find(['$', '%']).filter(|at| rest[at + 1..].starts_with('(')) {
        let (before, after) = rest.split_at(at);
        let (name, after) = after[2..].split_once(")s")?;
        out.push_str(before);
        out.push_str(match name {
            "public_endpoint" => public_url,
            "user_id" => user_id,
            "project_id" | "tenant_id" => match project_id {
                Some(id) => id,
                None if public_url.is_empty() => "",
                None => return None,
            },
            _ => return None,
        });
        rest = after;
    }
    out.push_str(rest);
    Some(out)
}

/// The rows of a new cloud's catalog.
pub(crate) fn first_catalog(region: &str) -> Txn {
    let region = Region { id: region.to_owned(), ..Region::default() };
    let mut txn = Txn::new().create(&region);
    for (kind, name, path) in SERVICES {
        let service = Service {
            id: random_hex_id(),
            kind: kind.to_owned(),
            name: Some(name.to_owned()),
            enabled: true,
            ..Service::default()
        };
        txn = txn.create(&service);
        for interface in INTERFACES {
            txn = txn.create(&Endpoint {
                id: random_hex_id(),
                service_id: service.id.clone(),
                region_id: Some(region.id.clone()),
                interface: interface.to_owned(),
                url: format!("{PUBLIC}{path}"),
                enabled: true,
                ..Endpoint::default()
            });
        }
    }
    txn
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_filled_in_and_those_of_a_project_left_out_without_one() {
        let url = "$(public_endpoint)s/v1/%(tenant_id)s/$(user_id)s";
        assert_eq!(filled(url, "http://h", "u", Some("p")).as_deref(), Some("http://h/v1/p/u"));
        assert_eq!(filled(url, "http://h", "u", None), None);
        assert_eq!(filled("http://h/$(nothing)s", "http://h", "u", None), None);
        assert_eq!(filled("http://h/$(public_endpoint)", "http://h", "u", None), None);
        assert_eq!(filled("http://h/100%", "http://h", "u", None).as_deref(), Some("http://h/100%"));
    }
}
