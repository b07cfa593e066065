//! Groups and their snapshots (Block Storage API: generic volume groups, microversions 3.11 to 3.20).

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::State;
use control::caller::Caller;
use control::model::volume::{Group, GroupSnapshot, Status};
use control::policy::Default;
use control::service::volume::group::{GroupUpdate, NewGroup};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::listing::{Detail, Listed, Listing, Page};
use super::{lenient_flag, sees, since, time, with};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, Segments};
use crate::error::Fault;
use crate::microversion::Microversion;
use crate::openapi::answer::{self, Accepted, TAKEN, Taken};
use crate::page::SortValue;

/// What the lists are sorted by.
const SORT_KEYS: [&str; 3] = ["id", "name", "created_at"];

impl Listed for Group {
    const MANY: &'static str = "groups";
    const SORT_KEYS: &'static [&'static str] = &SORT_KEYS;
    const FILTERS: &'static [&'static str] = &["name", "list_volume"];
}

impl Listed for GroupSnapshot {
    const MANY: &'static str = "group_snapshots";
    const SORT_KEYS: &'static [&'static str] = &SORT_KEYS;
    const FILTERS: &'static [&'static str] = &[];
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Group")]
pub(super) struct GroupFull {
    id: String,
    name: String,
    description: Option<String>,
    status: &'static str,
    availability_zone: String,
    created_at: String,
    group_type: String,
    volume_types: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group_snapshot_id: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_group_id: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    volumes: Option<BTreeSet<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replication_status: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    project_id: Option<String>,
}

/// A group, or a snapshot of one.
#[derive(Serialize, JsonSchema)]
pub(super) struct GroupBrief {
    id: String,
    name: String,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct OneGroup {
    group: GroupFull,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct MadeGroup {
    group: GroupBrief,
}

fn full(state: &AppState, caller: &Caller, version: Microversion, group: &Group, volumes: bool) -> GroupFull {
    let shows_project = sees(caller, "group:group_project_attribute", Default::Admin);
    GroupFull {
        id: group.id.clone(),
        name: group.name.clone().unwrap_or_default(),
        description: group.description.clone(),
        status: state.control.volume_group_status(group).name(),
        availability_zone: group.zone.clone(),
        created_at: time(group.created_at),
        group_type: group.group_type_id.clone(),
        volume_types: group.volume_type_ids.clone(),
        group_snapshot_id: with(version, 14, group.group_snapshot_id.clone()),
        source_group_id: with(version, 14, group.source_group_id.clone()),
        volumes: with(version, 25, group.volume_ids.clone()).filter(|_| volumes),
        replication_status: with(version, 38, "disabled"),
        project_id: with(version, 58, group.project_id.clone()).filter(|_| shows_project),
    }
}

fn brief(id: &str, name: Option<&String>) -> GroupBrief {
    GroupBrief { id: id.to_owned(), name: name.cloned().unwrap_or_default() }
}

/// `GET /groups`, `GET /groups/detail`.
pub(super) async fn list(listing: Listing<Group>) -> Answer<Page<Group, Detail<GroupFull, GroupBrief>>> {
    let (state, version) = (&listing.state, listing.version);
    since(version, 13)?;
    let all = listing.all()?;
    let volumes = listing.filters.flag("list_volume")?.unwrap_or(false);
    let mut rows = state.control.volume_groups(&listing.caller, all).await?;
    let name = |group: &Group| group.name.clone().unwrap_or_default();
    rows.retain(|stored| listing.filters.allow("name", &name(&stored.row)));
    let sort = |group: &Group, key: &str| sort_value(&group.id, group.name.as_deref(), group.created_at, key);
    listing.counted_page(rows, sort, |stored| match listing.detail {
        true => Detail::Full(full(state, &listing.caller, version, &stored.row, volumes)),
        false => Detail::Brief(brief(&stored.row.id, stored.row.name.as_ref())),
    })
}

fn sort_value(id: &str, name: Option<&str>, created_at: Timestamp, key: &str) -> Option<SortValue> {
    Some(match key {
        "created_at" => created_at.into(),
        "name" => name.into(),
        _ => id.into(),
    })
}

/// `GET /groups/{id}`.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
    filters: Filters,
) -> Answer<OneGroup> {
    since(version, 13)?;
    let volumes = filters.flag("list_volume")?.unwrap_or(false);
    let stored = state.control.volume_group(&caller, &id).await?;
    Ok(Json(OneGroup { group: full(&state, &caller, version, &stored.row, volumes) }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateBody {
    group: CreateFields,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateFields {
    name: Option<String>,
    description: Option<String>,
    group_type: String,
    volume_types: Vec<String>,
    availability_zone: Option<String>,
}

/// `POST /groups`.
pub(super) async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Body(body): Body<CreateBody>,
) -> Result<Accepted<MadeGroup>, Fault> {
    since(version, 13)?;
    let CreateFields { name, description, group_type, volume_types, availability_zone } = body.group;
    let new = NewGroup { name, description, group_type, volume_types, zone: availability_zone };
    let made = state.control.volume_group_create(&caller, new).await?;
    Ok(answer::Status(Json(MadeGroup { group: brief(&made.row.id, made.row.name.as_ref()) })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CopyBody {
    #[serde(rename = "create-from-src")]
    source: CopyFields,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CopyFields {
    name: Option<String>,
    description: Option<String>,
    group_snapshot_id: Option<String>,
    source_group_id: Option<String>,
}

/// `POST /groups/action`: a group of what another has.
pub(super) async fn copy(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Body(body): Body<CopyBody>,
) -> Result<Accepted<MadeGroup>, Fault> {
    since(version, 14)?;
    let CopyFields { name, description, group_snapshot_id, source_group_id } = body.source;
    let of = (group_snapshot_id.as_deref(), source_group_id.as_deref());
    let made = state.control.volume_group_copy(&caller, (name, description), of.0, of.1).await?;
    Ok(answer::Status(Json(MadeGroup { group: brief(&made.row.id, made.row.name.as_ref()) })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UpdateBody {
    group: UpdateFields,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UpdateFields {
    name: Option<String>,
    description: Option<String>,
    add_volumes: Option<String>,
    remove_volumes: Option<String>,
}

/// `PUT /groups/{id}`.
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
    Body(body): Body<UpdateBody>,
) -> Result<Taken, Fault> {
    since(version, 13)?;
    let UpdateFields { name, description, add_volumes, remove_volumes } = body.group;
    if name.is_none() && description.is_none() && add_volumes.is_none() && remove_volumes.is_none() {
        return Err(Fault::malformed(
            "Name, description, add_volumes, and remove_volumes can not be all empty in the request body.",
        ));
    }
    let ids = |text: Option<String>| -> Vec<String> {
        text.iter()
            .flat_map(|text| text.split(','))
            .map(str::trim)
            .filter(|id| !id.is_empty())
            .map(str::to_owned)
            .collect()
    };
    let update = GroupUpdate { name, description, add: ids(add_volumes), remove: ids(remove_volumes) };
    state.control.volume_group_update(&caller, &id, &update).await?;
    Ok(TAKEN)
}

/// The one action of a body.
fn action(body: &Map<String, Value>) -> Result<(&str, &Value), Fault> {
    let one = body.iter().next().filter(|_| body.len() == 1);
    let one =
        one.ok_or_else(|| Fault::malformed("There is no such action: exactly one is named in a body."))?;
    Ok((one.0.as_str(), one.1))
}

fn status_of(value: &Value) -> Result<Status, Fault> {
    let status = value["status"].as_str().and_then(Status::of_name);
    status.ok_or_else(|| Fault::malformed("Invalid input for field/attribute status."))
}

/// `POST /groups/{id}/action`.
pub(super) async fn act(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
    Body(body): Body<Map<String, Value>>,
) -> Result<Taken, Fault> {
    since(version, 13)?;
    match action(&body)? {
        ("delete", value) => {
            let volumes = lenient_flag("delete-volumes", &value["delete-volumes"])?.unwrap_or(false);
            state.control.volume_group_delete(&caller, &id, volumes).await?;
        }
        ("reset_status", value) if version.at_least(3, 20) => {
            state.control.volume_group_reset(&caller, &id, status_of(value)?).await?;
        }
        (
            "enable_replication"
            | "disable_replication"
            | "failover_replication"
            | "list_replication_targets",
            _,
        ) => {
            return Err(Fault::not_implemented("replication"));
        }
        (other, _) => return Err(Fault::malformed(format!("There is no such action: {other}"))),
    }
    Ok(TAKEN)
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "GroupSnapshot")]
pub(super) struct SnapshotFull {
    id: String,
    name: String,
    description: Option<String>,
    status: &'static str,
    group_id: String,
    group_type_id: String,
    created_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    project_id: Option<String>,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct OneGroupSnapshot {
    group_snapshot: SnapshotFull,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct MadeGroupSnapshot {
    group_snapshot: MadeSnapshot,
}

#[derive(Serialize, JsonSchema)]
struct MadeSnapshot {
    #[serde(flatten)]
    brief: GroupBrief,
    group_type_id: String,
}

fn snapshot_full(
    state: &AppState,
    caller: &Caller,
    version: Microversion,
    snapshot: &GroupSnapshot,
) -> SnapshotFull {
    let shows_project = sees(caller, "group:group_snapshot_project_attribute", Default::Admin);
    SnapshotFull {
        id: snapshot.id.clone(),
        name: snapshot.name.clone().unwrap_or_default(),
        description: snapshot.description.clone(),
        status: state.control.volume_group_snapshot_status(snapshot).name(),
        group_id: snapshot.group_id.clone(),
        group_type_id: snapshot.group_type_id.clone(),
        created_at: time(snapshot.created_at),
        project_id: with(version, 58, snapshot.project_id.clone()).filter(|_| shows_project),
    }
}

/// `GET /group_snapshots`, `GET /group_snapshots/detail`.
pub(super) async fn snapshots(
    listing: Listing<GroupSnapshot>,
) -> Answer<Page<GroupSnapshot, Detail<SnapshotFull, GroupBrief>>> {
    let (state, version) = (&listing.state, listing.version);
    since(version, 14)?;
    let rows = state.control.volume_group_snapshots(&listing.caller, listing.all()?).await?;
    let sort = |one: &GroupSnapshot, key: &str| sort_value(&one.id, one.name.as_deref(), one.created_at, key);
    listing.page(rows, sort, |stored| match listing.detail {
        true => Detail::Full(snapshot_full(state, &listing.caller, version, &stored.row)),
        false => Detail::Brief(brief(&stored.row.id, stored.row.name.as_ref())),
    })
}

/// `GET /group_snapshots/{id}`.
pub(super) async fn snapshot(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
) -> Answer<OneGroupSnapshot> {
    since(version, 14)?;
    let stored = state.control.volume_group_snapshot(&caller, &id).await?;
    let group_snapshot = snapshot_full(&state, &caller, version, &stored.row);
    Ok(Json(OneGroupSnapshot { group_snapshot }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SnapshotBody {
    group_snapshot: SnapshotFields,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SnapshotFields {
    group_id: String,
    name: Option<String>,
    description: Option<String>,
}

/// `POST /group_snapshots`.
pub(super) async fn snapshot_create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Body(body): Body<SnapshotBody>,
) -> Result<Accepted<MadeGroupSnapshot>, Fault> {
    since(version, 14)?;
    let SnapshotFields { group_id, name, description } = body.group_snapshot;
    let made = state.control.volume_group_snapshot_create(&caller, &group_id, name, description).await?;
    let brief = brief(&made.row.id, made.row.name.as_ref());
    let group_snapshot = MadeSnapshot { brief, group_type_id: made.row.group_type_id.clone() };
    Ok(answer::Status(Json(MadeGroupSnapshot { group_snapshot })))
}

/// `DELETE /group_snapshots/{id}`.
pub(super) async fn snapshot_delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
) -> Result<Taken, Fault> {
    since(version, 14)?;
    state.control.volume_group_snapshot_delete(&caller, &id).await?;
    Ok(TAKEN)
}

/// `POST /group_snapshots/{id}/action`.
pub(super) async fn snapshot_act(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
    Body(body): Body<Map<String, Value>>,
) -> Result<Taken, Fault> {
    since(version, 19)?;
    let ("reset_status", value) = action(&body)? else {
        return Err(Fault::malformed("There is no such action: reset_status is the one."));
    };
    state.control.volume_group_snapshot_reset(&caller, &id, status_of(value)?).await?;
    Ok(TAKEN)
}
