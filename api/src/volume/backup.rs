//! Backups (Block Storage API: backups).

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use control::caller::Caller;
use control::model::volume::{Backup, Status};
use control::policy::Default;
use control::service::volume::backup::NewBackup;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::filter;
use super::listing::{Detail, Listed, Listing, Page};
use super::{Link, lenient_flag, links, properties, sees, text_or_null, time, with};
use crate::context::{Answer, AppState, Authenticated, Body, Segments};
use crate::error::Fault;
use crate::microversion::Microversion;
use crate::openapi::answer::{self, Accepted, Created, TAKEN, Taken};
use crate::page::SortValue;

/// What the list is sorted by.
const SORT_KEYS: [&str; 7] = ["id", "name", "status", "volume_id", "size", "created_at", "updated_at"];

impl Listed for Backup {
    const MANY: &'static str = "backups";
    const SORT_KEYS: &'static [&'static str] = &SORT_KEYS;
    const FILTERS: &'static [&'static str] = &filter::BACKUPS;
}

#[derive(Serialize, JsonSchema)]
pub(super) struct BackupBrief {
    id: String,
    name: Option<String>,
    links: [Link; 2],
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<BTreeMap<String, String>>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Backup")]
pub(super) struct BackupFull {
    #[serde(flatten)]
    brief: BackupBrief,
    description: Option<String>,
    status: &'static str,
    volume_id: String,
    snapshot_id: Option<String>,
    size: u64,
    object_count: u32,
    container: Option<String>,
    availability_zone: String,
    fail_reason: Option<String>,
    is_incremental: bool,
    has_dependent_backups: bool,
    data_timestamp: String,
    created_at: String,
    updated_at: Option<String>,
    #[serde(rename = "os-backup-project-attr:project_id", skip_serializing_if = "Option::is_none")]
    project_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encryption_key_id: Option<Option<String>>,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct OneBackup {
    backup: BackupFull,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct MadeBackup {
    backup: BackupBrief,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct RestoreAnswer {
    restore: Restored,
}

#[derive(Serialize, JsonSchema)]
struct Restored {
    backup_id: String,
    volume_id: String,
    volume_name: String,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct RecordAnswer {
    #[serde(rename = "backup-record")]
    record: Record,
}

#[derive(Serialize, JsonSchema)]
struct Record {
    backup_service: String,
    backup_url: String,
}

fn brief(state: &AppState, backup: &Backup) -> BackupBrief {
    let links = links(state, "backups", &backup.id);
    BackupBrief { id: backup.id.clone(), name: backup.name.clone(), links, metadata: None }
}

/// What a creation and a change answer.
fn short(state: &AppState, version: Microversion, backup: &Backup) -> BackupBrief {
    BackupBrief { metadata: with(version, 43, backup.metadata.clone()), ..brief(state, backup) }
}

fn full(state: &AppState, caller: &Caller, version: Microversion, backup: &Backup) -> BackupFull {
    let shows_project = sees(caller, "backup:backup_project_attribute", Default::Admin);
    let key_id = backup.encryption.as_ref().map(|encryption| encryption.key_id.clone());
    BackupFull {
        brief: short(state, version, backup),
        description: backup.description.clone(),
        status: backup.status.name(),
        volume_id: backup.volume_id.clone(),
        snapshot_id: backup.snapshot_id.clone(),
        size: backup.size_gib,
        object_count: 1,
        container: backup.container.clone(),
        availability_zone: backup.zone.clone(),
        fail_reason: backup.fail_reason.clone(),
        is_incremental: backup.parent_id.is_some(),
        has_dependent_backups: backup.dependents > 0,
        data_timestamp: time(backup.data_at),
        created_at: time(backup.created_at),
        updated_at: backup.updated_at.map(time),
        project_id: with(version, 18, backup.project_id.clone()).filter(|_| shows_project),
        user_id: with(version, 56, backup.user_id.clone()),
        encryption_key_id: with(version, 64, key_id),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateBody {
    backup: CreateFields,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateFields {
    volume_id: String,
    snapshot_id: Option<String>,
    name: Option<String>,
    description: Option<String>,
    container: Option<String>,
    #[serde(default)]
    incremental: Value,
    #[serde(default)]
    force: Value,
    metadata: Option<BTreeMap<String, String>>,
    availability_zone: Option<String>,
}

/// `POST /backups`.
pub(super) async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Body(body): Body<CreateBody>,
) -> Result<Accepted<MadeBackup>, Fault> {
    let fields = body.backup;
    if fields.metadata.is_some() && !version.at_least(3, 43) {
        return Err(Fault::malformed("Additional properties are not allowed ('metadata' was unexpected)"));
    }
    let new = NewBackup {
        volume_id: fields.volume_id,
        snapshot_id: fields.snapshot_id.filter(|id| !id.is_empty()),
        name: fields.name.map(|name| name.trim().to_owned()),
        description: fields.description,
        container: fields.container.filter(|container| !container.is_empty()),
        incremental: lenient_flag("incremental", &fields.incremental)?.unwrap_or(false),
        force: lenient_flag("force", &fields.force)?.unwrap_or(false),
        metadata: fields.metadata.unwrap_or_default(),
        zone: fields.availability_zone.filter(|_| version.at_least(3, 51)),
    };
    let made = state.control.volume_backup_create(&caller, new).await?;
    Ok(answer::Status(Json(MadeBackup { backup: short(&state, version, &made.row) })))
}

/// `GET /backups`, `GET /backups/detail`.
pub(super) async fn list(listing: Listing<Backup>) -> Answer<Page<Backup, Detail<BackupFull, BackupBrief>>> {
    let (state, version) = (&listing.state, listing.version);
    let all = listing.all()?;
    let tests = listing.tests()?;
    let mut rows = state.control.volume_backups(&listing.caller, all).await?;
    rows.retain(|stored| tests.hold(|key| column(&stored.row, key), &[&stored.row.metadata]));
    listing.counted_page(rows, sort_value, |stored| match listing.detail {
        true => Detail::Full(full(state, &listing.caller, version, &stored.row)),
        false => Detail::Brief(brief(state, &stored.row)),
    })
}

fn sort_value(backup: &Backup, key: &str) -> Option<SortValue> {
    match key {
        "created_at" => Some(SortValue::from(backup.created_at)),
        "updated_at" => Some(backup.updated_at.into()),
        "size" => Some(backup.size_gib.into()),
        other => column(backup, other).map(|text| text.as_str().into()),
    }
}

fn column(backup: &Backup, key: &str) -> Option<String> {
    Some(match key {
        "id" => backup.id.clone(),
        "name" => backup.name.clone().unwrap_or_default(),
        "status" => backup.status.name().to_owned(),
        "volume_id" => backup.volume_id.clone(),
        "snapshot_id" => backup.snapshot_id.clone()?,
        "project_id" => backup.project_id.clone(),
        "created_at" => backup.created_at.to_string(),
        "updated_at" => backup.updated_at?.to_string(),
        _ => return None,
    })
}

/// `GET /backups/{id}`.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
) -> Answer<OneBackup> {
    let stored = state.control.volume_backup(&caller, &id).await?;
    Ok(Json(OneBackup { backup: full(&state, &caller, version, &stored.row) }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UpdateBody {
    backup: Map<String, Value>,
}

/// `PUT /backups/{id}` (microversion 3.9).
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
    Body(body): Body<UpdateBody>,
) -> Answer<MadeBackup> {
    super::since(version, 9)?;
    if body.backup.is_empty() {
        return Err(Fault::malformed("Missing updated parameters in request body."));
    }
    let (mut name, mut description, mut metadata) = (None, None, None);
    for (key, value) in &body.backup {
        match key.as_str() {
            "name" => name = Some(text_or_null(key, value)?),
            "description" => description = Some(text_or_null(key, value)?),
            "metadata" if version.at_least(3, 43) => metadata = Some(properties(value)?),
            other => {
                return Err(Fault::malformed(format!(
                    "Additional properties are not allowed ('{other}' was unexpected)"
                )));
            }
        }
    }
    let change = |backup: &mut Backup| {
        if let Some(name) = &name {
            backup.name.clone_from(name);
        }
        if let Some(description) = &description {
            backup.description.clone_from(description);
        }
        if let Some(metadata) = &metadata {
            backup.metadata.clone_from(metadata);
        }
    };
    let stored = state.control.volume_backup_update(&caller, &id, change).await?;
    Ok(Json(MadeBackup { backup: short(&state, version, &stored.row) }))
}

/// `DELETE /backups/{id}`.
pub(super) async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<Taken, Fault> {
    state.control.volume_backup_delete(&caller, &id, false).await?;
    Ok(TAKEN)
}

/// `POST /backups/{id}/action`.
pub(super) async fn act(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<Map<String, Value>>,
) -> Result<Taken, Fault> {
    match body.iter().next().filter(|_| body.len() == 1).map(|(name, value)| (name.as_str(), value)) {
        Some(("os-reset_status", value)) => {
            let status = value["status"].as_str().and_then(Status::of_name);
            let status = status.filter(|status| matches!(status, Status::Available | Status::Error));
            let status =
                status.ok_or_else(|| Fault::malformed("Invalid input for field/attribute status."))?;
            state.control.volume_backup_reset(&caller, &id, status).await?;
        }
        Some(("os-force_delete", _)) => state.control.volume_backup_delete(&caller, &id, true).await?,
        _ => return Err(Fault::malformed("There is no such action.")),
    }
    Ok(TAKEN)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RestoreBody {
    restore: Option<RestoreFields>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RestoreFields {
    volume_id: Option<String>,
    name: Option<String>,
}

/// `POST /backups/{id}/restore`.
pub(super) async fn restore(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<RestoreBody>,
) -> Result<Accepted<RestoreAnswer>, Fault> {
    let fields = body.restore.unwrap_or_default();
    let (volume_id, volume_name) =
        state.control.volume_backup_restore(&caller, &id, fields.volume_id.as_deref(), fields.name).await?;
    let restore = Restored { backup_id: id, volume_id, volume_name };
    Ok(answer::Status(Json(RestoreAnswer { restore })))
}

/// `GET /backups/{id}/export_record`.
pub(super) async fn export_record(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<RecordAnswer> {
    let (service, record) = state.control.volume_backup_export(&caller, &id).await?;
    Ok(Json(RecordAnswer { record: Record { backup_service: service.to_owned(), backup_url: record } }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ImportBody {
    #[serde(rename = "backup-record")]
    record: ImportFields,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ImportFields {
    backup_service: String,
    backup_url: String,
}

/// `POST /backups/import_record`.
pub(super) async fn import_record(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(body): Body<ImportBody>,
) -> Result<Created<MadeBackup>, Fault> {
    let ImportFields { backup_service, backup_url } = body.record;
    let made = state.control.volume_backup_import(&caller, &backup_service, &backup_url).await?;
    Ok(answer::Status(Json(MadeBackup { backup: brief(&state, &made.row) })))
}
