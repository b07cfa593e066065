//! Services, endpoints, regions, and the documents of rules that some services keep here.

use axum::Json;
use axum::extract::State;
use control::caller::Caller;
use control::model::catalog::{Endpoint, PolicyDocument, Region, Service};
use control::model::identity::Extra;
use control::model::random_hex_id;
use control::service::identity::catalog::CatalogService;
use schemars::JsonSchema;
use serde::Serialize;

use super::fields::{Fields, Result};
use super::resource::{Object, One, Resource, fits, fits_flag, new_row, one};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, Segments};
use crate::error::Fault;
use crate::openapi::answer::{Created, Status};
use crate::page::KeystoneLinks;

/// Services as clients see them.
pub(super) struct Services;

#[derive(Serialize, JsonSchema)]
pub(super) struct OwnService {
    id: String,
    #[serde(rename = "type")]
    kind: String,
    enabled: bool,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
}

impl Resource for Services {
    type Row = Service;
    type Own = OwnService;
    const ONE: &'static str = "service";
    const MANY: &'static str = "services";
    const PATH: &'static str = "services";

    fn show(_: &AppState, row: &Service) -> OwnService {
        OwnService {
            id: row.id.clone(),
            kind: row.kind.clone(),
            enabled: row.enabled,
            name: row.name.clone().unwrap_or_default(),
            description: row.description.clone(),
        }
    }

    fn extra(row: &Service) -> Option<&Extra> {
        Some(&row.extra)
    }

    fn wanted(filters: &Filters, row: &Service) -> Result<bool, Fault> {
        Ok(fits(filters, "name", row.name.as_deref().unwrap_or_default()) && filters.allow("type", &row.kind))
    }

    fn blank(_: &AppState, _: &Caller, _: &mut Fields) -> Result<Service> {
        Ok(Service { id: random_hex_id(), enabled: true, ..Service::default() })
    }

    fn apply(row: &mut Service, mut fields: Fields) -> Result<()> {
        fields.name("type", &mut row.kind)?;
        fields.optional("name", &mut row.name)?;
        fields.optional("description", &mut row.description)?;
        fields.flag("enabled", &mut row.enabled)?;
        fields.rest(&mut row.extra);
        Ok(())
    }
}

/// Endpoints as clients see them.
pub(super) struct Endpoints;

#[derive(Serialize, JsonSchema)]
pub(super) struct OwnEndpoint {
    id: String,
    service_id: String,
    interface: String,
    region: Option<String>,
    region_id: Option<String>,
    url: String,
    enabled: bool,
}

impl Resource for Endpoints {
    type Row = Endpoint;
    type Own = OwnEndpoint;
    const ONE: &'static str = "endpoint";
    const MANY: &'static str = "endpoints";
    const PATH: &'static str = "endpoints";

    fn show(state: &AppState, row: &Endpoint) -> OwnEndpoint {
        OwnEndpoint {
            id: row.id.clone(),
            service_id: row.service_id.clone(),
            interface: row.interface.clone(),
            region: row.region_id.clone(),
            region_id: row.region_id.clone(),
            url: state.control.endpoint_url(row),
            enabled: row.enabled,
        }
    }

    fn extra(row: &Endpoint) -> Option<&Extra> {
        Some(&row.extra)
    }

    fn wanted(filters: &Filters, row: &Endpoint) -> Result<bool, Fault> {
        let region = row.region_id.as_deref().unwrap_or_default();
        Ok(filters.allow("service_id", &row.service_id)
            && filters.allow("interface", &row.interface)
            && filters.allow("region_id", region)
            && filters.allow("region", region)
            && fits_flag(filters, "enabled", row.enabled))
    }

    fn blank(_: &AppState, _: &Caller, _: &mut Fields) -> Result<Endpoint> {
        Ok(Endpoint { id: random_hex_id(), enabled: true, ..Endpoint::default() })
    }

    fn apply(row: &mut Endpoint, mut fields: Fields) -> Result<()> {
        fields.name("service_id", &mut row.service_id)?;
        fields.name("interface", &mut row.interface)?;
        fields.name("url", &mut row.url)?;
        fields.optional("region_id", &mut row.region_id)?;
        fields.flag("enabled", &mut row.enabled)?;
        fields.rest(&mut row.extra);
        Ok(())
    }
}

/// Regions as clients see them.
pub(super) struct Regions;

#[derive(Serialize, JsonSchema)]
pub(super) struct OwnRegion {
    id: String,
    description: String,
    parent_region_id: Option<String>,
}

impl Resource for Regions {
    type Row = Region;
    type Own = OwnRegion;
    const ONE: &'static str = "region";
    const MANY: &'static str = "regions";
    const PATH: &'static str = "regions";

    fn show(_: &AppState, row: &Region) -> OwnRegion {
        OwnRegion {
            id: row.id.clone(),
            description: row.description.clone(),
            parent_region_id: row.parent_region_id.clone(),
        }
    }

    fn extra(row: &Region) -> Option<&Extra> {
        Some(&row.extra)
    }

    fn wanted(filters: &Filters, row: &Region) -> Result<bool, Fault> {
        Ok(filters.allow("parent_region_id", row.parent_region_id.as_deref().unwrap_or_default()))
    }

    fn blank(_: &AppState, _: &Caller, fields: &mut Fields) -> Result<Region> {
        let id = fields.nullable("id")?.flatten().filter(|id| !id.is_empty());
        Ok(Region { id: id.unwrap_or_else(random_hex_id), ..Region::default() })
    }

    fn apply(row: &mut Region, mut fields: Fields) -> Result<()> {
        fields.text("description", &mut row.description)?;
        fields.optional("parent_region_id", &mut row.parent_region_id)?;
        fields.rest(&mut row.extra);
        Ok(())
    }
}

/// Identity API v3: create endpoint.
pub(super) async fn create_endpoint(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(body): Body<Object>,
) -> Result<Created<One<Endpoints>>, Fault> {
    let mut fields = Fields::of(body, "endpoint", true)?;
    own_region(&state, &caller, &mut fields).await?;
    let row = new_row::<Endpoints>(&state, &caller, fields)?;
    let stored = state.control.entity_create(&caller, row).await?;
    Ok(Status(one(&state, &stored)))
}

/// Identity API v3: update endpoint.
pub(super) async fn update_endpoint(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<Object>,
) -> Answer<One<Endpoints>> {
    let mut fields = Fields::of(body, "endpoint", false)?;
    own_region(&state, &caller, &mut fields).await?;
    let change = |row: &mut Endpoint| Endpoints::apply(row, fields.clone());
    let stored = state.control.entity_update(&caller, &id, change).await?;
    Ok(one::<Endpoints>(&state, &stored))
}

/// Makes the region that `region`, the field's older name, says, if it is not there: so Keystone does, for that name
/// alone.
async fn own_region(state: &AppState, caller: &Caller, fields: &mut Fields) -> Result<()> {
    let Some(Some(id)) = fields.nullable("region")? else { return Ok(()) };
    if fields.has("region_id") {
        return Ok(());
    }
    if state.control.look_up::<Region>(&id).is_none() {
        let row = Region { id: id.clone(), ..Region::default() };
        state.control.entity_create(caller, row).await?;
    }
    fields.put("region_id", id.into());
    Ok(())
}

/// Identity API v3: create a region of an id that the client chooses.
pub(super) async fn put_region(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<Object>,
) -> Result<Created<One<Regions>>, Fault> {
    let mut fields = Fields::of(body, "region", true)?;
    if fields.nullable("id")?.flatten().is_some_and(|own| own != id) {
        return Err(Fault::malformed("Conflicting region IDs specified in the path and the body"));
    }
    let mut row = new_row::<Regions>(&state, &caller, fields)?;
    row.id = id;
    let stored = state.control.entity_create(&caller, row).await?;
    Ok(Status(one(&state, &stored)))
}

/// Documents of rules as clients see them.
pub(super) struct Policies;

#[derive(Serialize, JsonSchema)]
pub(super) struct OwnPolicy {
    id: String,
    #[serde(rename = "type")]
    kind: String,
    blob: String,
}

impl Resource for Policies {
    type Row = PolicyDocument;
    type Own = OwnPolicy;
    const ONE: &'static str = "policy";
    const MANY: &'static str = "policies";
    const PATH: &'static str = "policies";

    fn show(_: &AppState, row: &PolicyDocument) -> OwnPolicy {
        OwnPolicy { id: row.id.clone(), kind: row.kind.clone(), blob: row.blob.clone() }
    }

    fn extra(row: &PolicyDocument) -> Option<&Extra> {
        Some(&row.extra)
    }

    fn wanted(filters: &Filters, row: &PolicyDocument) -> Result<bool, Fault> {
        Ok(filters.allow("type", &row.kind))
    }

    fn blank(_: &AppState, _: &Caller, _: &mut Fields) -> Result<PolicyDocument> {
        Ok(PolicyDocument { id: random_hex_id(), ..PolicyDocument::default() })
    }

    fn apply(row: &mut PolicyDocument, mut fields: Fields) -> Result<()> {
        fields.name("type", &mut row.kind)?;
        fields.name("blob", &mut row.blob)?;
        fields.rest(&mut row.extra);
        Ok(())
    }
}

/// A service in a token's catalog.
#[derive(Serialize, JsonSchema)]
pub(super) struct CatalogEntry {
    id: String,
    #[serde(rename = "type")]
    kind: String,
    name: String,
    endpoints: Vec<CatalogEndpoint>,
}

#[derive(Serialize, JsonSchema)]
struct CatalogEndpoint {
    id: String,
    interface: String,
    region: Option<String>,
    region_id: Option<String>,
    url: String,
}

/// A token's catalog.
pub(super) fn shown(state: &AppState, user_id: &str, project_id: Option<&str>) -> Vec<CatalogEntry> {
    let service = |entry: &CatalogService| {
        let endpoints = entry.endpoints.iter().map(|(endpoint, url)| {
            let row = &endpoint.row;
            CatalogEndpoint {
                id: row.id.clone(),
                interface: row.interface.clone(),
                region: row.region_id.clone(),
                region_id: row.region_id.clone(),
                url: url.clone(),
            }
        });
        let row = &entry.service.row;
        CatalogEntry {
            id: row.id.clone(),
            kind: row.kind.clone(),
            name: row.name.clone().unwrap_or_default(),
            endpoints: endpoints.collect(),
        }
    };
    state.control.catalog(user_id, project_id).iter().map(service).collect()
}

/// The catalog alone.
#[derive(Serialize, JsonSchema)]
pub(super) struct Catalog {
    catalog: Vec<CatalogEntry>,
    links: KeystoneLinks,
}

/// Identity API v3: get service catalog.
pub(super) async fn of_token(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    url: crate::context::RequestUrl,
) -> Answer<Catalog> {
    if caller.scope == control::caller::Scope::Unscoped {
        return Err(control::error::Error::Forbidden { action: "identity:get_auth_catalog" }.into());
    }
    let catalog = shown(&state, &caller.user_id, caller.project_id());
    Ok(Json(Catalog { catalog, links: KeystoneLinks::whole(&url) }))
}
