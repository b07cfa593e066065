//! Disks that a backend has and no row knows: listed, and taken over as volumes and snapshots (Block Storage API: manageable
//! volumes and snapshots, microversion 3.8; the extensions `os-volume-manage` and `os-snapshot-manage` at any).

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{FromRequestParts, OriginalUri, State};
use axum::http::Uri;
use axum::http::request::Parts;
use control::service::volume::manage::{Manageable, NewManaged, NewManagedSnapshot};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::since;
use super::snapshot::{self, OneSnapshot};
use super::volume_view::{OneVolume, short};
use crate::context::{Answer, AppState, Authenticated, Body, Filters};
use crate::error::Fault;
use crate::microversion::Microversion;
use crate::openapi::answer::{Accepted, Status};
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
) -> Answer<ManageableVolumes> {
    let volumes = list(state, caller, version, &filters, &uri, false).await?;
    Ok(Json(ManageableVolumes { volumes }))
}

/// `GET /manageable_snapshots`, `GET /manageable_snapshots/detail`.
pub(super) async fn snapshots(
    state: State<AppState>,
    caller: Authenticated,
    version: Microversion,
    DiskQuery(filters): DiskQuery,
    OriginalUri(uri): OriginalUri,
) -> Answer<ManageableSnapshots> {
    let snapshots = list(state, caller, version, &filters, &uri, true).await?;
    Ok(Json(ManageableSnapshots { snapshots }))
}

async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    filters: &Filters,
    uri: &Uri,
    of_snapshots: bool,
) -> Result<Vec<Disk>, Fault> {
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
    Ok(page.map(|one| show(one, of_snapshots, detail)).collect())
}

#[derive(Serialize, JsonSchema)]
pub(super) struct ManageableVolumes {
    #[serde(rename = "manageable-volumes")]
    volumes: Vec<Disk>,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct ManageableSnapshots {
    #[serde(rename = "manageable-snapshots")]
    snapshots: Vec<Disk>,
}

/// A disk of a backend.
#[derive(Serialize, JsonSchema)]
struct Disk {
    reference: SourceName,
    size: u64,
    safe_to_manage: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_reference: Option<Option<SourceId>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cinder_id: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason_not_safe: Option<Option<&'static str>>,
    /// Always null.
    #[serde(skip_serializing_if = "Option::is_none")]
    extra_info: Option<Option<String>>,
}

#[derive(Serialize, JsonSchema)]
struct SourceName {
    #[serde(rename = "source-name")]
    name: String,
}

#[derive(Serialize, JsonSchema)]
struct SourceId {
    #[serde(rename = "source-id")]
    id: String,
}

fn show(disk: &Manageable, of_snapshots: bool, detail: bool) -> Disk {
    let taken = disk.taken.as_ref();
    let volume = taken.and_then(|(_, volume)| volume.clone());
    Disk {
        reference: SourceName { name: disk.name.clone() },
        size: disk.size_gib,
        safe_to_manage: taken.is_none(),
        source_reference: of_snapshots.then(|| volume.map(|id| SourceId { id })),
        cinder_id: detail.then(|| taken.map(|(id, _)| id.clone())),
        reason_not_safe: detail.then(|| taken.map(|_| "already managed")),
        extra_info: detail.then_some(None),
    }
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
) -> Result<Accepted<OneVolume>, Fault> {
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
    Ok(Status(Json(OneVolume { volume: short(&state, version, &view) })))
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
) -> Result<Accepted<OneSnapshot>, Fault> {
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
    Ok(Status(Json(OneSnapshot { snapshot: snapshot::short(version, &made.row) })))
}
