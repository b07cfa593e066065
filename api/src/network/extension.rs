//! What of Neutron's extensions is there: exactly what is implemented.

use axum::Json;
use serde_json::{Value, json};

use super::{listing, shown};
use crate::context::{AppState, Authenticated, Filters, RequestUrl, Segments};
use crate::error::Fault;

/// Alias, name, description.
const EXTENSIONS: [(&str, &str, &str); 14] = [
    ("allowed-address-pairs", "Allowed Address Pairs", "Provides allowed address pairs"),
    ("binding", "Port Binding", "Expose port bindings of a virtual port to external application"),
    ("external-net", "Neutron external network", "Adds external network attribute to network resource."),
    ("net-mtu", "Network MTU", "Provides MTU attribute for a network resource."),
    (
        "net-mtu-writable",
        "Network MTU (writable)",
        "Provides a writable MTU attribute for a network resource.",
    ),
    ("pagination", "Pagination support", "Extension that indicates that pagination is enabled."),
    ("port-security", "Port Security", "Provides port security"),
    ("project-id", "project_id field enabled", "Extension that indicates that project_id field is enabled."),
    ("provider", "Provider Network", "Expose mapping of virtual networks to physical networks"),
    ("quotas", "Quota management support", "Expose functions for quotas management per project"),
    (
        "quota_details",
        "Quota details management support",
        "Expose functions for quotas usage statistics per project",
    ),
    ("security-group", "security-group", "The security groups extension."),
    ("sorting", "Sorting support", "Extension that indicates that sorting is enabled."),
    ("standard-attr-tag", "Tag support for networks", "Enables to set tag on resources."),
];

fn row(extension: &(&str, &str, &str)) -> Value {
    let (alias, name, description) = extension;
    json!({
        "id": alias, "alias": alias, "name": name, "description": description, "links": [],
        "updated": "2026-11-01T00:00:00-00:00",
    })
}

fn without_id(mut row: Value) -> Value {
    if let Some(map) = row.as_object_mut() {
        map.remove("id");
    }
    row
}

/// `GET /v2.0/extensions`.
pub(super) async fn list(_: Authenticated, filters: Filters, url: RequestUrl) -> Result<Json<Value>, Fault> {
    let Json(mut body) = listing("extensions", EXTENSIONS.iter().map(row).collect(), &filters, &url)?;
    if let Some(rows) = body["extensions"].as_array_mut() {
        rows.iter_mut().for_each(|row| *row = without_id(row.take()));
    }
    Ok(Json(body))
}

/// `GET /v2.0/extensions/{alias}`.
pub(super) async fn show(
    _: Authenticated,
    Segments(alias): Segments<String>,
    filters: Filters,
) -> Result<Json<Value>, Fault> {
    let extension = EXTENSIONS.iter().find(|(known, _, _)| *known == alias);
    let extension = extension.ok_or_else(|| control::error::Error::not_found("Extension", alias))?;
    Ok(shown("extension", without_id(row(extension)), &filters))
}

/// `GET /v2.0`: the collections.
pub(super) async fn resources(axum::extract::State(state): axum::extract::State<AppState>) -> Json<Value> {
    let resource = |collection: &str, name: &str| {
        let href = format!("{}/network/v2.0/{collection}", state.public_url());
        json!({"collection": collection, "name": name, "links": [{"rel": "self", "href": href}]})
    };
    Json(json!({"resources": [
        resource("networks", "network"),
        resource("subnets", "subnet"),
        resource("ports", "port"),
        resource("security-groups", "security_group"),
        resource("security-group-rules", "security_group_rule"),
    ]}))
}
