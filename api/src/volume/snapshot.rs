//! Snapshots (Block Storage API: volume snapshots).

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use control::caller::Caller;
use control::model::volume::{Snapshot, Status};
use control::policy::Default;
use control::service::volume::snapshot::NewSnapshot;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::filter;
use super::listing::{Listed, Listing, Page};
use super::{lenient_flag, sees, text_or_null, time, with};
use crate::context::{Answer, AppState, Authenticated, Body, Segments};
use crate::error::Fault;
use crate::microversion::Microversion;
use crate::openapi::answer::{self, Accepted, TAKEN, Taken};
use crate::page::SortValue;

/// What the list is sorted by.
const SORT_KEYS: [&str; 8] =
    ["id", "name", "display_name", "status", "volume_id", "volume_size", "created_at", "updated_at"];

impl Listed for Snapshot {
    const MANY: &'static str = "snapshots";
    const SORT_KEYS: &'static [&'static str] = &SORT_KEYS;
    const FILTERS: &'static [&'static str] = &filter::SNAPSHOTS;
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Snapshot")]
pub(super) struct Shown {
    id: String,
    name: Option<String>,
    description: Option<String>,
    volume_id: String,
    status: &'static str,
    size: u64,
    metadata: BTreeMap<String, String>,
    created_at: String,
    updated_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group_snapshot_id: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    consumes_quota: Option<bool>,
    #[serde(rename = "os-extended-snapshot-attributes:progress", skip_serializing_if = "Option::is_none")]
    progress: Option<String>,
    #[serde(rename = "os-extended-snapshot-attributes:project_id", skip_serializing_if = "Option::is_none")]
    project_id: Option<String>,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct OneSnapshot {
    pub(super) snapshot: Shown,
}

pub(super) fn short(version: Microversion, snapshot: &Snapshot) -> Shown {
    Shown {
        id: snapshot.id.clone(),
        name: snapshot.name.clone(),
        description: snapshot.description.clone(),
        volume_id: snapshot.volume_id.clone(),
        status: snapshot.status.name(),
        size: snapshot.size_gib,
        metadata: snapshot.metadata.clone(),
        created_at: time(snapshot.created_at),
        updated_at: snapshot.updated_at.map(time),
        group_snapshot_id: with(version, 14, snapshot.group_snapshot_id.clone()),
        user_id: with(version, 41, snapshot.user_id.clone()),
        consumes_quota: with(version, 65, true),
        progress: None,
        project_id: None,
    }
}

fn full(caller: &Caller, version: Microversion, snapshot: &Snapshot) -> Shown {
    let short = short(version, snapshot);
    if !sees(caller, "volume_extension:extended_snapshot_attributes", Default::Reader) {
        return short;
    }
    let done = if snapshot.status == Status::Available { "100%" } else { "0%" };
    let progress = snapshot.progress.as_deref().unwrap_or(done);
    Shown { progress: Some(progress.to_owned()), project_id: Some(snapshot.project_id.clone()), ..short }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateBody {
    snapshot: CreateFields,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateFields {
    #[serde(default)]
    volume_id: Option<String>,
    name: Option<String>,
    display_name: Option<String>,
    description: Option<String>,
    display_description: Option<String>,
    metadata: Option<BTreeMap<String, String>>,
    force: Option<Value>,
}

/// `POST /snapshots`.
pub(super) async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Body(body): Body<CreateBody>,
) -> Result<Accepted<OneSnapshot>, Fault> {
    let fields = body.snapshot;
    let asked = fields.force.as_ref().map(|force| lenient_flag("force", force)).transpose()?.flatten();
    // From 3.66 on a volume's being in use is no obstacle, and the word is gone but for clients that say what holds.
    let force = match (version.at_least(3, 66), asked) {
        (true, Some(false)) => {
            return Err(Fault::malformed(
                "The 'force' parameter is invalid since microversion 3.66: it is always true.",
            ));
        }
        (true, _) => true,
        (false, asked) => asked.unwrap_or(false),
    };
    let new = NewSnapshot {
        // None is no volume's id.
        volume_id: fields.volume_id.unwrap_or_default(),
        name: fields.name.or(fields.display_name).map(|name| name.trim().to_owned()),
        description: fields.description.or(fields.display_description),
        metadata: fields.metadata.unwrap_or_default(),
        force,
        group_snapshot_id: None,
    };
    let made = state.control.volume_snapshot_create(&caller, new).await?;
    Ok(answer::Status(Json(OneSnapshot { snapshot: short(version, &made.row) })))
}

/// `GET /snapshots`, `GET /snapshots/detail`.
pub(super) async fn list(listing: Listing<Snapshot>) -> Answer<Page<Snapshot, Shown>> {
    let version = listing.version;
    let all = listing.all()?;
    let tests = listing.tests()?;
    let mut rows = listing.state.control.volume_snapshots(&listing.caller, all).await?;
    rows.retain(|stored| tests.hold(|key| column(&stored.row, key), &[&stored.row.metadata]));
    listing.counted_page(rows, sort_value, |stored| match listing.detail {
        true => full(&listing.caller, version, &stored.row),
        false => short(version, &stored.row),
    })
}

fn column(snapshot: &Snapshot, key: &str) -> Option<String> {
    Some(match key {
        "id" => snapshot.id.clone(),
        "name" | "display_name" => snapshot.name.clone().unwrap_or_default(),
        "status" => snapshot.status.name().to_owned(),
        "volume_id" => snapshot.volume_id.clone(),
        "project_id" => snapshot.project_id.clone(),
        "description" => snapshot.description.clone()?,
        "group_snapshot_id" => snapshot.group_snapshot_id.clone()?,
        "availability_zone" => "nova".to_owned(),
        "created_at" => snapshot.created_at.to_string(),
        "updated_at" => snapshot.updated_at?.to_string(),
        _ => return None,
    })
}

fn sort_value(snapshot: &Snapshot, key: &str) -> Option<SortValue> {
    Some(match key {
        "id" => snapshot.id.as_str().into(),
        "name" | "display_name" => snapshot.name.as_deref().into(),
        "status" => snapshot.status.name().into(),
        "volume_id" => snapshot.volume_id.as_str().into(),
        "volume_size" => snapshot.size_gib.into(),
        "created_at" => snapshot.created_at.into(),
        "updated_at" => snapshot.updated_at.into(),
        _ => return None,
    })
}

/// `GET /snapshots/{id}`.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
) -> Answer<OneSnapshot> {
    let stored = state.control.volume_snapshot(&caller, &id).await?;
    Ok(Json(OneSnapshot { snapshot: full(&caller, version, &stored.row) }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UpdateBody {
    snapshot: Map<String, Value>,
}

/// `PUT /snapshots/{id}`.
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
    Body(body): Body<UpdateBody>,
) -> Answer<OneSnapshot> {
    let mut name = None;
    let mut description = None;
    for (key, value) in &body.snapshot {
        match key.as_str() {
            "name" | "display_name" => name = Some(text_or_null(key, value)?),
            "description" | "display_description" => description = Some(text_or_null(key, value)?),
            other => {
                return Err(Fault::malformed(format!(
                    "Additional properties are not allowed ('{other}' was unexpected)"
                )));
            }
        }
    }
    if body.snapshot.is_empty() {
        return Err(Fault::malformed(
            "Invalid input for field/attribute snapshot. It names nothing to change.",
        ));
    }
    let change = |snapshot: &mut Snapshot| {
        if let Some(name) = &name {
            snapshot.name.clone_from(name);
        }
        if let Some(description) = &description {
            snapshot.description.clone_from(description);
        }
        Ok(())
    };
    let stored = state.control.volume_snapshot_update(&caller, &id, change).await?;
    Ok(Json(OneSnapshot { snapshot: short(version, &stored.row) }))
}

/// `DELETE /snapshots/{id}`.
pub(super) async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<Taken, Fault> {
    state.control.volume_snapshot_delete(&caller, &id, false).await?;
    Ok(TAKEN)
}

/// `POST /snapshots/{id}/action`.
pub(super) async fn act(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<Map<String, Value>>,
) -> Result<Taken, Fault> {
    let Some((name, value)) = body.iter().next().filter(|_| body.len() == 1) else {
        return Err(Fault::malformed("There is no such action: exactly one is named in a body."));
    };
    perform(&state, &caller, &id, name, value).await?;
    Ok(TAKEN)
}

async fn perform(
    state: &AppState,
    caller: &Caller,
    id: &str,
    name: &str,
    value: &Value,
) -> Result<(), Fault> {
    match name {
        "os-reset_status" | "os-update_snapshot_status" => {
            let status = value["status"].as_str().and_then(Status::of_name).filter(|status| {
                matches!(
                    status,
                    Status::Available
                        | Status::Creating
                        | Status::Deleting
                        | Status::Error
                        | Status::ErrorDeleting
                )
            });
            let status =
                status.ok_or_else(|| Fault::malformed("Invalid input for field/attribute status."))?;
            if name == "os-reset_status" {
                return Ok(state.control.volume_snapshot_reset(caller, id, status).await?);
            }
            let progress = value["progress"].as_str();
            if progress.is_some_and(|text| !text.ends_with('%') || text.len() > 4) {
                return Err(Fault::malformed("Invalid input for field/attribute progress."));
            }
            Ok(state.control.volume_snapshot_progress(caller, id, status, progress).await?)
        }
        "os-force_delete" => Ok(state.control.volume_snapshot_delete(caller, id, true).await?),
        "os-unmanage" => Ok(state.control.volume_snapshot_unmanage(caller, id).await?),
        other => Err(Fault::malformed(format!("There is no such action: {other}"))),
    }
}
