//! Services, endpoints and the region: the catalog's parts one by one.

use axum::Json;
use axum::extract::State;
use control::error::Error;
use control::service::catalog::{CatalogEndpoint, CatalogService};
use serde_json::{Value, json};

use crate::context::{Answer, AppState, Authenticated, Filters, RequestUrl, Segments};

fn collection(name: &str, rows: Vec<Value>, url: &RequestUrl) -> Json<Value> {
    Json(json!({ name: rows, "links": {"self": url.itself(), "next": null, "previous": null} }))
}

fn show(state: &AppState, service: &CatalogService) -> Value {
    json!({
        "id": service.id,
        "type": service.kind,
        "name": service.name,
        "description": "",
        "enabled": true,
        "links": {"self": format!("{}/identity/v3/services/{}", state.public_url(), service.id)},
    })
}

fn show_one_endpoint(state: &AppState, service: &CatalogService, endpoint: &CatalogEndpoint) -> Value {
    json!({
        "id": endpoint.id,
        "service_id": service.id,
        "interface": endpoint.interface,
        "region": state.control.region(),
        "region_id": state.control.region(),
        "url": service.url,
        "enabled": true,
        "links": {"self": format!("{}/identity/v3/endpoints/{}", state.public_url(), endpoint.id)},
    })
}

fn region(state: &AppState) -> Value {
    let id = state.control.region();
    json!({
        "id": id,
        "description": "",
        "parent_region_id": null,
        "links": {"self": format!("{}/identity/v3/regions/{id}", state.public_url())},
    })
}

/// Identity API v3: list services.
pub(super) async fn list_services(
    State(state): State<AppState>,
    _: Authenticated,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Value> {
    let services = state.control.catalog();
    let wanted = services.iter().filter(|s| filters.allow("name", s.name) && filters.allow("type", s.kind));
    Ok(collection("services", wanted.map(|service| show(&state, service)).collect(), &url))
}

/// Identity API v3: show service details.
pub(super) async fn show_service(
    State(state): State<AppState>,
    _: Authenticated,
    Segments(id): Segments<String>,
) -> Answer<Value> {
    let services = state.control.catalog();
    let service = services.iter().find(|service| service.id == id);
    let service = service.ok_or_else(|| Error::not_found("Service", id))?;
    Ok(Json(json!({"service": show(&state, service)})))
}

/// Identity API v3: list endpoints.
pub(super) async fn list_endpoints(
    State(state): State<AppState>,
    _: Authenticated,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Value> {
    let region = state.control.region();
    let mut rows = Vec::new();
    for service in &state.control.catalog() {
        let wanted = service.endpoints.iter().filter(|endpoint| {
            filters.allow("service_id", &service.id)
                && filters.allow("interface", endpoint.interface)
                && filters.allow("region_id", region)
                && filters.allow("region", region)
        });
        rows.extend(wanted.map(|endpoint| show_one_endpoint(&state, service, endpoint)));
    }
    Ok(collection("endpoints", rows, &url))
}

/// Identity API v3: show endpoint details.
pub(super) async fn show_endpoint(
    State(state): State<AppState>,
    _: Authenticated,
    Segments(id): Segments<String>,
) -> Answer<Value> {
    let services = state.control.catalog();
    let found = services.iter().find_map(|service| {
        let endpoint = service.endpoints.iter().find(|endpoint| endpoint.id == id)?;
        Some(show_one_endpoint(&state, service, endpoint))
    });
    Ok(Json(json!({"endpoint": found.ok_or_else(|| Error::not_found("Endpoint", id))?})))
}

/// Identity API v3: list regions.
pub(super) async fn list_regions(
    State(state): State<AppState>,
    _: Authenticated,
    url: RequestUrl,
) -> Answer<Value> {
    Ok(collection("regions", vec![region(&state)], &url))
}

/// Identity API v3: show region details.
pub(super) async fn show_region(
    State(state): State<AppState>,
    _: Authenticated,
    Segments(id): Segments<String>,
) -> Answer<Value> {
    if id != state.control.region() {
        return Err(Error::not_found("Region", id).into());
    }
    Ok(Json(json!({"region": region(&state)})))
}
