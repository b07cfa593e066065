//! Attachments (Block Storage API: attachments, microversion 3.27 and later).

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use control::model::volume::VolumeAttachment;
use control::service::volume::attachment::NewAttachment;
use control::store::Stored;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::filter;
use super::listing::{Detail, Listed, Listing, Page};
use super::{since, time};
use crate::context::{Answer, AppState, Authenticated, Body, Segments};
use crate::error::Fault;
use crate::microversion::Microversion;
use crate::openapi::answer::{DONE, Done};
use crate::page::SortValue;

/// What the list is sorted by.
const SORT_KEYS: [&str; 7] =
    ["id", "volume_id", "status", "attach_status", "instance_id", "project_id", "created_at"];

impl Listed for VolumeAttachment {
    const MANY: &'static str = "attachments";
    const SORT_KEYS: &'static [&'static str] = &SORT_KEYS;
    const FILTERS: &'static [&'static str] = &filter::ATTACHMENTS;
}

#[derive(Serialize, JsonSchema)]
pub(super) struct AttachmentBrief {
    id: String,
    status: &'static str,
    instance: Option<String>,
    volume_id: String,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Attachment")]
pub(super) struct AttachmentFull {
    #[serde(flatten)]
    brief: AttachmentBrief,
    attach_mode: String,
    attached_at: String,
    detached_at: &'static str,
    connection_info: AttachmentConnection,
}

/// What leads to the disk, once somebody has said where from.
#[derive(Default, Serialize, JsonSchema)]
struct AttachmentConnection {
    #[serde(flatten)]
    data: Option<ConnectionData>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attachment_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    driver_volume_type: Option<&'static str>,
}

#[derive(Serialize, JsonSchema)]
struct ConnectionData {
    volume_id: String,
    host: Option<String>,
    access_mode: &'static str,
    encrypted: bool,
    qos_specs: Option<BTreeMap<String, Value>>,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct ConnectionInfo {
    driver_volume_type: &'static str,
    data: ConnectionData,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct OneAttachment {
    attachment: AttachmentFull,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct AttachmentsLeft {
    attachments: Vec<AttachmentFull>,
}

fn brief(attachment: &VolumeAttachment) -> AttachmentBrief {
    AttachmentBrief {
        id: attachment.id.clone(),
        status: attachment.status.name(),
        instance: attachment.server_id.clone(),
        volume_id: attachment.volume_id.clone(),
    }
}

fn full(state: &AppState, attachment: &VolumeAttachment) -> AttachmentFull {
    let connected = !attachment.connector.is_empty();
    let read_only = attachment.mode == "ro";
    let (volume_id, host) = (&attachment.volume_id, attachment.host.as_deref());
    let connection = || AttachmentConnection {
        data: Some(connection_info(state, volume_id, host, read_only).data),
        attachment_id: Some(attachment.id.clone()),
        driver_volume_type: Some("local"),
    };
    AttachmentFull {
        brief: brief(attachment),
        attach_mode: attachment.mode.clone(),
        attached_at: attachment.attached_at.map(time).unwrap_or_default(),
        detached_at: "",
        connection_info: if connected { connection() } else { AttachmentConnection::default() },
    }
}

/// What whoever connects needs to know: the host has the volume as a file, and nothing leads to it from outside.
pub(super) fn connection_info(
    state: &AppState,
    volume_id: &str,
    host: Option<&str>,
    read_only: bool,
) -> ConnectionInfo {
    let data = ConnectionData {
        volume_id: volume_id.to_owned(),
        host: host.map(str::to_owned),
        access_mode: if read_only { "ro" } else { "rw" },
        encrypted: state.control.volume_is_encrypted(volume_id),
        qos_specs: state.control.volume_front_end_specs(volume_id),
    };
    ConnectionInfo { driver_volume_type: "local", data }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateBody {
    attachment: CreateFields,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateFields {
    volume_uuid: String,
    instance_uuid: Option<String>,
    connector: Option<BTreeMap<String, Value>>,
    mode: Option<String>,
}

/// `POST /attachments`.
pub(super) async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Body(body): Body<CreateBody>,
) -> Answer<OneAttachment> {
    since(version, 27)?;
    let fields = body.attachment;
    let mode = fields.mode.filter(|_| version.at_least(3, 54));
    if mode.as_ref().is_some_and(|mode| mode != "rw" && mode != "ro") {
        return Err(Fault::malformed("Invalid input for field/attribute mode: it is rw or ro."));
    }
    let new = NewAttachment {
        volume_id: fields.volume_uuid,
        server_id: fields.instance_uuid,
        connector: fields.connector,
        mode,
    };
    let made = state.control.volume_attachment_create(&caller, new).await?;
    Ok(Json(OneAttachment { attachment: full(&state, &made.row) }))
}

/// `GET /attachments`, `GET /attachments/detail`.
pub(super) async fn list(
    listing: Listing<VolumeAttachment>,
) -> Answer<Page<VolumeAttachment, Detail<AttachmentFull, AttachmentBrief>>> {
    since(listing.version, 27)?;
    let all = listing.all()?;
    let tests = listing.tests()?;
    let mut rows = listing.state.control.volume_attachments(&listing.caller, all).await?;
    rows.retain(|stored| tests.hold(|key| column(&stored.row, key), &[]));
    let show = |stored: Arc<Stored<VolumeAttachment>>| match listing.detail {
        true => Detail::Full(full(&listing.state, &stored.row)),
        false => Detail::Brief(brief(&stored.row)),
    };
    listing.counted_page(rows, sort_value, show)
}

fn sort_value(attachment: &VolumeAttachment, key: &str) -> Option<SortValue> {
    match key {
        "created_at" => Some(SortValue::from(attachment.created_at)),
        other => column(attachment, other).map(|text| text.as_str().into()),
    }
}

fn column(attachment: &VolumeAttachment, key: &str) -> Option<String> {
    Some(match key {
        "id" => attachment.id.clone(),
        "volume_id" => attachment.volume_id.clone(),
        "status" | "attach_status" => attachment.status.name().to_owned(),
        "instance_id" => attachment.server_id.clone()?,
        "project_id" => attachment.project_id.clone(),
        _ => return None,
    })
}

/// `GET /attachments/{id}`.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
) -> Answer<OneAttachment> {
    since(version, 27)?;
    let stored = state.control.volume_attachment(&caller, &id).await?;
    Ok(Json(OneAttachment { attachment: full(&state, &stored.row) }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UpdateBody {
    attachment: UpdateFields,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UpdateFields {
    connector: BTreeMap<String, Value>,
}

/// `PUT /attachments/{id}`.
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
    Body(body): Body<UpdateBody>,
) -> Answer<OneAttachment> {
    since(version, 27)?;
    let stored = state.control.volume_attachment_update(&caller, &id, body.attachment.connector).await?;
    Ok(Json(OneAttachment { attachment: full(&state, &stored.row) }))
}

/// `DELETE /attachments/{id}`: answers with what is left of the volume's.
pub(super) async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
) -> Answer<AttachmentsLeft> {
    since(version, 27)?;
    let volume_id = state.control.volume_attachment(&caller, &id).await?.row.volume_id.clone();
    state.control.volume_attachment_delete(&caller, &id).await?;
    let left = match state.control.volume(&caller, &volume_id).await {
        Ok(view) => view.attachments.iter().map(|stored| full(&state, &stored.row)).collect(),
        Err(_) => Vec::new(),
    };
    Ok(Json(AttachmentsLeft { attachments: left }))
}

/// `POST /attachments/{id}/action`: `os-complete` (microversion 3.44).
pub(super) async fn act(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
    Body(body): Body<BTreeMap<String, Value>>,
) -> Result<Done, Fault> {
    since(version, 44)?;
    if !body.contains_key("os-complete") || body.len() != 1 {
        return Err(Fault::malformed("There is no such action: os-complete is the one."));
    }
    state.control.volume_attachment_complete(&caller, &id).await?;
    Ok(DONE)
}
