//! Disks that a backend has and no row knows: listed, and taken over as volumes and snapshots (Block Storage API: manageable
//! volumes and snapshots, microversion 3.8; the extensions `os-volume-manage` and `os-snapshot-manage` at any).

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{FromRequestParts, OriginalUri, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, Uri};
use control::service::volume::manage::{Manageable, NewManaged, NewManagedSnapshot};
use serde::Deserialize;
use serde_json::{Value, json};

use super::volume_view::short;
use super::{since, snapshot};
use crate::context::{Answer, AppState, Authenticated, Body, Filters};
use crate::error::Fault;
use crate::microversion::Microversion;
use crate::openapi::{Extracted, Operation};

/// The most disks of one page.
const PAGE_MAX: usize = 1000;

/// The extensions' paths are older than the resources'.
fn check(version: Microversion, uri: &Uri) -> Result<(), Fault> {
    if uri.path().contains("/manageable_") { since(version, 8) } else { Ok(()) }
}

/// The query of a list of disks: which backend's, and which of them.
pub(super) struct DiskQuery(Filters);

impl FromRequestParts<AppState> for DiskQuery {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Fault> {
        Filters::from_request_parts(parts, state).await.map(Self)
    }
}

impl Extracted for DiskQuery {
    fn describe(operation: &mut Operation) {
        for word in ["host", "marker", "sort"] {
            operation.query(word, json!({"type": "string"}));
        }
        for word in ["limit", "offset"] {
            operation.query(word, json!({"type": "integer", "minimum": 0}));
        }
    }
}

/// `GET /manageable_volumes`, `GET /manageable_volumes/detail`.
pub(super) async fn volumes(
    state: State<AppState>,
    caller: Authenticated,
    version: Microversion,
    DiskQuery(filters): DiskQuery,
    OriginalUri(uri): OriginalUri,
) -> Answer<Value> {
    list(state, caller, version, &filters, &uri, false).await
}

/// `GET /manageable_snapshots`, `GET /manageable_snapshots/detail`.
pub(super) async fn snapshots(
    state: State<AppState>,
    caller: Authenticated,
    version: Microversion,
    DiskQuery(filters): DiskQuery,
    OriginalUri(uri): OriginalUri,
) -> Answer<Value> {
    list(state, caller, version, &filters, &uri, true).await
}

async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    filters: &Filters,
    uri: &Uri,
    of_snapshots: bool,
) -> Answer<Value> {
    check(version, uri)?;
    if filters.get("cluster").is_some() {
        return Err(Fault::not_implemented("a cluster of backends"));
    }
    let host = filters.get("host");
    let host = host.ok_or_else(|| Fault::malformed("Host must be specified in query parameters"))?;
    let number = |name: &str, default: usize| match filters.get(name) {
        None => Ok(default),
        Some(text) => text.parse().map_err(|_| Fault::malformed(format!("{name} must be an integer"))),
    };
    let (limit, offset) = (number("limit", PAGE_MAX)?.min(PAGE_MAX), number("offset", 0)?);
    let mut found = state.control.volume_manageable(&caller, host, of_snapshots).await?;
    match filters.get("sort").unwrap_or("reference") {
        "size" | "size:desc" => found.sort_by_key(|one| std::cmp::Reverse(one.size_gib)),
        "size:asc" => found.sort_by_key(|one| one.size_gib),
        "reference:desc" => found.reverse(),
        "reference" | "reference:asc" => {}
        other => return Err(Fault::malformed(format!("Invalid sort keys passed: {other}"))),
    }
    if let Some(marker) = filters.get("marker") {
        // A reference, as it was shown.
        let at = found.iter().position(|one| marker.contains(&one.name));
        let at = at.ok_or_else(|| Fault::malformed(format!("marker not found: {marker}")))?;
        found.drain(..=at);
    }
    let detail = uri.path().ends_with("/detail");
    let page = found.iter().skip(offset).take(limit);
    let shown: Vec<Value> = page.map(|one| show(one, of_snapshots, detail)).collect();
    let collection = if of_snapshots { "manageable-snapshots" } else { "manageable-volumes" };
    Ok(Json(json!({ collection: shown })))
}

fn show(disk: &Manageable, of_snapshots: bool, detail: bool) -> Value {
    let mut body = json!({
        "reference": {"source-name": disk.name},
        "size": disk.size_gib,
        "safe_to_manage": disk.taken.is_none(),
    });
    let volume = disk.taken.as_ref().and_then(|(_, volume)| volume.as_ref());
    if of_snapshots {
        body["source_reference"] = json!(volume.map(|id| json!({"source-id": id})));
    }
    if detail {
        body["cinder_id"] = json!(disk.taken.as_ref().map(|(id, _)| id));
        body["reason_not_safe"] = json!(disk.taken.as_ref().map(|_| "already managed"));
        body["extra_info"] = Value::Null;
    }
    body
}

/// How a disk is named: by either key, since a disk's name is its id.
#[derive(Deserialize)]
struct Reference {
    #[serde(rename = "source-name")]
    name: Option<String>,
    #[serde(rename = "source-id")]
    id: Option<String>,
}

impl Reference {
    fn disk(self) -> Result<String, Fault> {
        let disk = self.name.or(self.id);
        disk.ok_or_else(|| Fault::malformed("Invalid input for field/attribute ref: give `source-name`."))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ManageBody {
    volume: ManageFields,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ManageFields {
    host: Option<String>,
    cluster: Option<String>,
    #[serde(rename = "ref")]
    reference: Reference,
    name: Option<String>,
    description: Option<String>,
    volume_type: Option<String>,
    /// A volume is where its host is.
    #[serde(rename = "availability_zone")]
    _zone: Option<String>,
    metadata: Option<BTreeMap<String, String>>,
    bootable: Option<bool>,
}

/// `POST /manageable_volumes`.
pub(super) async fn manage(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    OriginalUri(uri): OriginalUri,
    Body(body): Body<ManageBody>,
) -> Result<(StatusCode, Json<Value>), Fault> {
    check(version, &uri)?;
    let fields = body.volume;
    if fields.cluster.is_some() {
        return Err(Fault::not_implemented("a cluster of backends"));
    }
    let new = NewManaged {
        disk: fields.reference.disk()?,
        pool: fields.host.ok_or_else(|| Fault::malformed("Invalid input for field/attribute host."))?,
        name: fields.name,
        description: fields.description,
        volume_type: fields.volume_type,
        metadata: fields.metadata.unwrap_or_default(),
        bootable: fields.bootable.unwrap_or(false),
    };
    let made = state.control.volume_manage(&caller, &new).await?;
    let view = state.control.volume_view(made);
    Ok((StatusCode::ACCEPTED, Json(json!({"volume": short(&state, version, &view)}))))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ManageSnapshotBody {
    snapshot: ManageSnapshotFields,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ManageSnapshotFields {
    volume_id: String,
    #[serde(rename = "ref")]
    reference: Reference,
    name: Option<String>,
    description: Option<String>,
    metadata: Option<BTreeMap<String, String>>,
}

/// `POST /manageable_snapshots`.
pub(super) async fn manage_snapshot(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    OriginalUri(uri): OriginalUri,
    Body(body): Body<ManageSnapshotBody>,
) -> Result<(StatusCode, Json<Value>), Fault> {
    check(version, &uri)?;
    let fields = body.snapshot;
    let new = NewManagedSnapshot {
        disk: fields.reference.disk()?,
        volume_id: fields.volume_id,
        name: fields.name,
        description: fields.description,
        metadata: fields.metadata.unwrap_or_default(),
    };
    let made = state.control.volume_snapshot_manage(&caller, &new).await?;
    Ok((StatusCode::ACCEPTED, Json(json!({"snapshot": snapshot::short(version, &made.row)}))))
}
