//! Volumes of servers (Compute API: servers with volume attachments).

use axum::Json;
use axum::extract::State;
use control::error::Error;
use control::model::compute::{Server, ServerVolume};
use control::service::server::volume::NewServerVolume;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::with;
use crate::context::{Answer, AppState, Authenticated, Body, Filters, Segments};
use crate::error::Fault;
use crate::microversion::Microversion;
use crate::openapi::answer::{TAKEN, Taken};
use crate::page::{Direction, Page};

/// A volume that a server has. Before 2.89 a volume's id is the attachment's too.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "VolumeAttachment")]
#[serde(rename_all = "camelCase")]
struct Shown {
    server_id: String,
    volume_id: String,
    device: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(rename = "attachment_id", skip_serializing_if = "Option::is_none")]
    attachment_id: Option<String>,
    #[serde(rename = "bdm_uuid", skip_serializing_if = "Option::is_none")]
    bdm_uuid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<Option<String>>,
    #[serde(rename = "delete_on_termination", skip_serializing_if = "Option::is_none")]
    delete_on_termination: Option<bool>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Attachments {
    volume_attachments: Vec<Shown>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct OneAttachment {
    volume_attachment: Shown,
}

fn shown(version: Microversion, server_id: &str, attached: &ServerVolume, made: bool) -> Shown {
    let own_id = with(version, 89, attached.attachment_id.clone()).filter(|_| !made);
    Shown {
        server_id: server_id.to_owned(),
        volume_id: attached.volume_id.clone(),
        device: attached.device.clone(),
        id: own_id.is_none().then(|| attached.volume_id.clone()),
        attachment_id: own_id.clone(),
        bdm_uuid: own_id,
        tag: with(version, 70, attached.tag.clone()),
        delete_on_termination: with(version, 79, attached.delete_on_termination),
    }
}

/// `GET /servers/{id}/os-volume_attachments`.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
    filters: Filters,
) -> Answer<Attachments> {
    let view = state.control.server_seen(&caller, &id, "os_compute_api:os-volumes-attachments:index").await?;
    let rows = view.row.volumes.clone();
    let page = Page::of(&filters, &[("device", Direction::Ascending)])?;
    let slice = page.cut(
        rows,
        |one| &one.volume_id,
        |one, key| (key == "device").then(|| one.device.as_str().into()),
    )?;
    // This list has no links.
    let attachments = slice.rows.iter().map(|one| shown(version, &id, one, false));
    Ok(Json(Attachments { volume_attachments: attachments.collect() }))
}

fn find<'s>(server: &'s Server, volume_id: &str) -> Result<&'s ServerVolume, Fault> {
    let found = server.volumes.iter().find(|one| one.volume_id == volume_id);
    let missing = || Error::NotFound { kind: "Volume attachment", id: format!("of volume {volume_id}") };
    found.ok_or_else(|| missing().into())
}

/// `GET /servers/{id}/os-volume_attachments/{volume}`.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments((id, volume)): Segments<(String, String)>,
) -> Answer<OneAttachment> {
    let view = state.control.server_seen(&caller, &id, "os_compute_api:os-volumes-attachments:show").await?;
    let attached = find(&view.row, &volume)?;
    Ok(Json(OneAttachment { volume_attachment: shown(version, &id, attached, false) }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AttachBody {
    #[serde(rename = "volumeAttachment")]
    attachment: AttachFields,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AttachFields {
    #[serde(rename = "volumeId")]
    volume_id: String,
    device: Option<String>,
    tag: Option<String>,
    #[serde(default, deserialize_with = "super::flag")]
    delete_on_termination: Option<bool>,
}

/// `POST /servers/{id}/os-volume_attachments`.
pub(super) async fn attach(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
    Body(body): Body<AttachBody>,
) -> Answer<OneAttachment> {
    let fields = body.attachment;
    newer(version, fields.tag.is_some(), 49, "tag")?;
    newer(version, fields.delete_on_termination.is_some(), 79, "delete_on_termination")?;
    let new = NewServerVolume {
        volume_id: fields.volume_id,
        device: fields.device,
        tag: fields.tag,
        delete_on_termination: fields.delete_on_termination.unwrap_or(false),
    };
    let attached = state.control.server_volume_attach(&caller, &id, &new).await?;
    Ok(Json(OneAttachment { volume_attachment: shown(version, &id, &attached, true) }))
}

/// Refuses a field that came with a later microversion.
pub(super) fn newer(version: Microversion, there: bool, minor: u16, name: &str) -> Result<(), Fault> {
    if there && !version.at_least(2, minor) {
        return Err(Fault::malformed(format!(
            "Additional properties are not allowed ('{name}' was unexpected); it came with microversion 2.{minor}."
        )));
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UpdateBody {
    #[serde(rename = "volumeAttachment")]
    attachment: UpdateFields,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UpdateFields {
    #[serde(rename = "volumeId")]
    volume_id: String,
    #[serde(default, deserialize_with = "super::flag")]
    delete_on_termination: Option<bool>,
    device: Option<String>,
    tag: Option<String>,
    id: Option<String>,
    #[serde(rename = "serverId")]
    server_id: Option<String>,
}

/// `PUT /servers/{id}/os-volume_attachments/{volume}`: from 2.85 on more than which volume.
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments((id, volume)): Segments<(String, String)>,
    Body(body): Body<UpdateBody>,
) -> Result<Taken, Fault> {
    let fields = body.attachment;
    newer(version, fields.delete_on_termination.is_some(), 85, "delete_on_termination")?;
    let view = state.control.server(&caller, &id).await?;
    let attached = find(&view.row, &volume)?;
    if fields.volume_id != volume {
        return Err(Fault::not_implemented("swapping the volume of a server for another"));
    }
    let same = |said: &Option<String>, is: &str| said.as_ref().is_none_or(|said| said == is);
    let unchanged = same(&fields.device, &attached.device)
        && same(&fields.id, &volume)
        && same(&fields.server_id, &id)
        && fields.tag.as_ref().is_none_or(|tag| Some(tag) == attached.tag.as_ref());
    if !unchanged {
        return Err(Fault::malformed("Only delete_on_termination of a volume attachment can be changed."));
    }
    if let Some(delete) = fields.delete_on_termination {
        state.control.server_volume_keep(&caller, &id, &volume, delete).await?;
    }
    Ok(TAKEN)
}

/// `DELETE /servers/{id}/os-volume_attachments/{volume}`.
pub(super) async fn detach(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, volume)): Segments<(String, String)>,
) -> Result<Taken, Fault> {
    state.control.server_volume_detach(&caller, &id, &volume).await?;
    Ok(TAKEN)
}
