//! Volumes (Block Storage API: volumes): made, listed, shown, described, deleted, summed up.

use std::collections::{BTreeMap, BTreeSet};

use axum::Json;
use axum::extract::State;
use control::model::volume::Volume;
use control::service::volume::NewVolume;
use control::service::volume::change::VolumeUpdate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::filter;
use super::listing::{Detail, Listed, Listing, Page};
use super::volume_view::{OneVolume, Shown, VolumeBrief, brief, full, short};
use super::{lenient_flag, properties, size, text_or_null, with};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, Segments};
use crate::error::Fault;
use crate::microversion::Microversion;
use crate::openapi::answer::{Accepted, Status, TAKEN, Taken};
use crate::page::SortValue;
use crate::wording::Kept;

/// What the list is sorted by.
const SORT_KEYS: [&str; 14] = [
    "id",
    "name",
    "display_name",
    "status",
    "size",
    "bootable",
    "availability_zone",
    "created_at",
    "updated_at",
    "host",
    "project_id",
    "user_id",
    "volume_type_id",
    "volume_type",
];

impl Listed for Volume {
    const MANY: &'static str = "volumes";
    const SORT_KEYS: &'static [&'static str] = &SORT_KEYS;
    const FILTERS: &'static [&'static str] = &filter::VOLUMES;
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateBody {
    volume: Kept<CreateFields>,
    /// Taken and not used: no filter here reads hints.
    #[serde(rename = "OS-SCH-HNT:scheduler_hints")]
    _hints: Option<Value>,
}

#[derive(Deserialize)]
struct CreateFields {
    name: Option<String>,
    display_name: Option<String>,
    description: Option<String>,
    display_description: Option<String>,
    #[serde(default)]
    size: Value,
    availability_zone: Option<String>,
    volume_type: Option<String>,
    metadata: Option<BTreeMap<String, String>>,
    #[serde(rename = "imageRef")]
    image_ref: Option<String>,
    image_id: Option<String>,
    snapshot_id: Option<String>,
    source_volid: Option<String>,
    backup_id: Option<String>,
    group_id: Option<String>,
    consistencygroup_id: Option<String>,
    #[serde(default)]
    multiattach: Value,
}

/// `POST /volumes`.
pub(super) async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Body(body): Body<CreateBody>,
) -> Result<Accepted<OneVolume>, Fault> {
    // Before 3.53 what nobody knows is passed over.
    let fields = match version.at_least(3, 53) {
        true => body.volume.whole("volume")?,
        false => body.volume.fields,
    };
    let new = fields.into_new(version)?;
    let made = state.control.volume_create(&caller, new).await?;
    Ok(Status(Json(OneVolume { volume: short(&state, version, &made) })))
}

impl CreateFields {
    fn into_new(self, version: Microversion) -> Result<NewVolume, Fault> {
        let some = |text: Option<String>| text.filter(|text| !text.is_empty());
        if some(self.consistencygroup_id).is_some() {
            return Err(Fault::not_implemented("consistency groups; groups are what came after them and"));
        }
        let image = some(self.image_ref).or(some(self.image_id));
        let image_id = image.map(|image| image.rsplit('/').next().unwrap_or_default().to_owned());
        let snapshot_id = some(self.snapshot_id);
        let source_volume_id = some(self.source_volid);
        let backup_id = some(self.backup_id);
        if backup_id.is_some() && !version.at_least(3, 47) {
            return Err(Fault::malformed("backup_id came with microversion 3.47."));
        }
        let size_gib = size(&self.size)?;
        if size_gib.is_none() && snapshot_id.is_none() && source_volume_id.is_none() && backup_id.is_none() {
            return Err(Fault::malformed(
                "Invalid input received: Volume size must be an integer and greater than 0; size is missing.",
            ));
        }
        let multiattach = lenient_flag("multiattach", &self.multiattach)?.unwrap_or(false);
        if multiattach && version.at_least(3, 50) {
            return Err(Fault::malformed(
                "multiattach parameter has been removed. The default behavior is to use multiattach enabled volume \
                 types.",
            ));
        }
        Ok(NewVolume {
            name: self.name.or(self.display_name).map(|name| name.trim().to_owned()),
            description: self.description.or(self.display_description),
            size_gib,
            zone: some(self.availability_zone),
            volume_type: some(self.volume_type),
            metadata: self.metadata.unwrap_or_default(),
            image_id,
            snapshot_id,
            source_volume_id,
            backup_id,
            group_id: some(self.group_id),
            multiattach,
            host: None,
        })
    }
}

/// `GET /volumes`, `GET /volumes/detail`.
pub(super) async fn list(listing: Listing<Volume>) -> Answer<Page<Volume, Detail<Shown, VolumeBrief>>> {
    // An id that is empty is no list.
    if listing.path().ends_with("volumes/") {
        return Err(Fault::NoRoute);
    }
    let (state, caller, version) = (&listing.state, &listing.caller, listing.version);
    let all = listing.all()?;
    let tests = listing.tests()?;
    let mut rows = state.control.volumes(caller, all).await?;
    rows.retain(|stored| {
        tests.hold(|key| column(&stored.row, key), &[&stored.row.metadata, &stored.row.image_metadata])
    });
    listing.counted_page(rows, sort_value, |stored| {
        let view = state.control.volume_view(stored);
        match listing.detail {
            true => Detail::Full(full(state, caller, version, &view)),
            false => Detail::Brief(brief(state, &view)),
        }
    })
}

/// A column as filters compare it.
fn column(volume: &Volume, key: &str) -> Option<String> {
    Some(match key {
        "id" => volume.id.clone(),
        "name" | "display_name" => volume.name.clone().unwrap_or_default(),
        "status" => volume.status.name().to_owned(),
        "bootable" => volume.bootable.to_string(),
        "multiattach" => volume.multiattach.to_string(),
        "size" => volume.size_gib.to_string(),
        "project_id" | "tenant_id" => volume.project_id.clone(),
        "user_id" => volume.user_id.clone(),
        "host" => volume.host.clone()?,
        "availability_zone" => volume.zone.clone(),
        "migration_status" => volume.migration_status.clone()?,
        "group_id" => volume.group_id.clone()?,
        "snapshot_id" => volume.snapshot_id.clone()?,
        "source_volid" => volume.source_volume_id.clone()?,
        "volume_type_id" => volume.type_id.clone(),
        "description" => volume.description.clone()?,
        "created_at" => volume.created_at.to_string(),
        "updated_at" => volume.updated_at?.to_string(),
        _ => return None,
    })
}

fn sort_value(volume: &Volume, key: &str) -> Option<SortValue> {
    Some(match key {
        "id" => volume.id.as_str().into(),
        "name" | "display_name" => volume.name.as_deref().into(),
        "status" => volume.status.name().into(),
        "size" => volume.size_gib.into(),
        "bootable" => volume.bootable.into(),
        "availability_zone" => volume.zone.as_str().into(),
        "created_at" => volume.created_at.into(),
        "updated_at" => volume.updated_at.into(),
        "host" => volume.host.as_deref().into(),
        "project_id" => volume.project_id.as_str().into(),
        "user_id" => volume.user_id.as_str().into(),
        "volume_type_id" | "volume_type" => volume.type_id.as_str().into(),
        _ => return None,
    })
}

/// `GET /volumes/{id}`.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
) -> Answer<OneVolume> {
    let view = state.control.volume(&caller, &id).await?;
    Ok(Json(OneVolume { volume: full(&state, &caller, version, &view) }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UpdateBody {
    volume: Map<String, Value>,
}

/// `PUT /volumes/{id}`.
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
    Body(body): Body<UpdateBody>,
) -> Answer<OneVolume> {
    let mut update = VolumeUpdate::default();
    if body.volume.is_empty() {
        return Err(Fault::malformed(
            "Invalid input for field/attribute volume. Value: {}. It names nothing to change.",
        ));
    }
    for (key, value) in &body.volume {
        match key.as_str() {
            "name" | "display_name" => {
                update.name = Some(text_or_null(key, value)?.map(|name| name.trim().to_owned()));
            }
            "description" | "display_description" => update.description = Some(text_or_null(key, value)?),
            "metadata" if value.is_null() => {}
            "metadata" => update.metadata = Some(properties(value)?),
            other => {
                return Err(Fault::malformed(format!(
                    "Additional properties are not allowed ('{other}' was unexpected)"
                )));
            }
        }
    }
    let view = state.control.volume_update(&caller, &id, update).await?;
    Ok(Json(OneVolume { volume: short(&state, version, &view) }))
}

/// `DELETE /volumes/{id}`.
pub(super) async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
    filters: Filters,
) -> Result<Taken, Fault> {
    let cascade = filters.flag("cascade")?.unwrap_or(false);
    let force = version.at_least(3, 23) && filters.flag("force")?.unwrap_or(false);
    state.control.volume_delete(&caller, &id, cascade, force).await?;
    Ok(TAKEN)
}

/// What all volumes come to.
#[derive(Serialize, JsonSchema)]
pub(super) struct SummaryAnswer {
    #[serde(rename = "volume-summary")]
    summary: Summary,
}

#[derive(Serialize, JsonSchema)]
struct Summary {
    total_count: usize,
    total_size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<BTreeMap<String, BTreeSet<String>>>,
}

/// `GET /volumes/summary` (microversion 3.12).
pub(super) async fn summary(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    filters: Filters,
) -> Answer<SummaryAnswer> {
    super::since(version, 12)?;
    let all = filters.flag("all_tenants")?.unwrap_or(false);
    let rows = state.control.volumes(&caller, all).await?;
    let size: u64 = rows.iter().map(|stored| stored.row.size_gib).sum();
    let mut metadata: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (key, value) in rows.iter().flat_map(|stored| &stored.row.metadata) {
        metadata.entry(key.clone()).or_default().insert(value.clone());
    }
    let metadata = with(version, 36, metadata);
    Ok(Json(SummaryAnswer { summary: Summary { total_count: rows.len(), total_size: size, metadata } }))
}
