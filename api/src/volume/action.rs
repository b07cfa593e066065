//! What is asked of a volume by `POST /volumes/{id}/action`: one key names the action, its value what it needs.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use control::caller::Caller;
use control::model::volume::Status;
use control::service::image::ImageChange;
use control::service::volume::attachment::NewAttachment;
use control::service::volume::change::Properties;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::attachment::{ConnectionInfo, connection_info};
use super::kind::InnerType;
use super::{lenient_flag, properties, size, time, with};
use crate::context::{AppState, Authenticated, Body, Segments};
use crate::error::Fault;
use crate::microversion::Microversion;
use crate::openapi::answer;
use crate::openapi::answer::{Accepted, Answered, Answers, TAKEN, Taken};

/// What an action answers.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum Answer {
    Connection(Connection),
    Metadata(ImageMetadata),
}

#[derive(Serialize, JsonSchema)]
pub(super) struct Connection {
    connection_info: ConnectionInfo,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct ImageMetadata {
    metadata: BTreeMap<String, String>,
}

/// An image that is being made.
#[derive(Serialize, JsonSchema)]
pub(super) struct Upload {
    #[serde(rename = "os-volume_upload_image")]
    image: UploadedImage,
}

#[derive(Serialize, JsonSchema)]
struct UploadedImage {
    id: String,
    updated_at: Option<String>,
    status: &'static str,
    display_description: Option<String>,
    size: u64,
    volume_type: Option<InnerType>,
    image_id: String,
    container_format: String,
    disk_format: String,
    image_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    visibility: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    protected: Option<bool>,
}

/// Each action's own way to say that it is done.
pub(super) enum Acted {
    Taken,
    Done,
    Answer(Box<Answer>),
    Upload(Box<Upload>),
}

impl IntoResponse for Acted {
    fn into_response(self) -> Response {
        match self {
            Self::Taken => TAKEN.into_response(),
            Self::Done => ().into_response(),
            Self::Answer(answer) => Json(answer).into_response(),
            Self::Upload(upload) => answer::Status::<202, _>(Json(upload)).into_response(),
        }
    }
}

impl Answered for Acted {
    fn describe(answers: &mut Answers) {
        <()>::describe(answers);
        Taken::describe(answers);
        answers.or::<Json<Answer>>();
        answers.or::<Accepted<Upload>>();
    }
}

/// `POST /volumes/{id}/action`.
pub(super) async fn act(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
    Body(body): Body<Map<String, Value>>,
) -> Result<Acted, Fault> {
    let Some((name, value)) = body.iter().next().filter(|_| body.len() == 1) else {
        return Err(Fault::malformed("There is no such action: exactly one is named in a body."));
    };
    let action = Action { state: &state, caller: &caller, id: &id, version, value };
    match name.as_str() {
        "os-attach"
        | "os-detach"
        | "os-force_detach"
        | "os-reserve"
        | "os-unreserve"
        | "os-begin_detaching"
        | "os-roll_detaching"
        | "os-terminate_connection" => action.attach(name).await?,
        "os-initialize_connection" => return action.connection().await,
        "os-set_bootable" => {
            let bootable = action.flag("bootable")?;
            state.control.volume_set_bootable(&caller, &id, bootable).await?;
            return Ok(Acted::Done);
        }
        "os-set_image_metadata" | "os-unset_image_metadata" | "os-show_image_metadata" => {
            return action.image_metadata(name).await;
        }
        "os-volume_upload_image" => return action.upload().await,
        other => action.change(other).await?,
    }
    Ok(Acted::Taken)
}

struct Action<'a> {
    state: &'a AppState,
    caller: &'a Caller,
    id: &'a str,
    version: Microversion,
    value: &'a Value,
}

impl Action<'_> {
    fn flag(&self, key: &str) -> Result<bool, Fault> {
        let missing =
            || Fault::malformed(format!("Invalid input for field/attribute {key}: it is required."));
        lenient_flag(key, &self.value[key])?.ok_or_else(missing)
    }

    fn text(&self, key: &str) -> Result<&str, Fault> {
        let missing =
            || Fault::malformed(format!("Invalid input for field/attribute {key}: a text is required."));
        self.value[key].as_str().filter(|text| !text.is_empty()).ok_or_else(missing)
    }

    async fn attach(&self, name: &str) -> Result<(), Fault> {
        let Self { state, caller, id, value, .. } = *self;
        let control = &state.control;
        let owned = |key: &str| value[key].as_str().map(str::to_owned);
        match name {
            "os-attach" => {
                let (server_id, host) = (owned("instance_uuid"), owned("host_name"));
                if server_id.is_none() && host.is_none() {
                    return Err(Fault::malformed("Invalid input: instance_uuid or host_name is required."));
                }
                let mode = owned("mode").unwrap_or_else(|| "rw".to_owned());
                if mode != "rw" && mode != "ro" {
                    return Err(Fault::malformed("Invalid input for field/attribute mode: it is rw or ro."));
                }
                let said = [("host", host), ("mountpoint", Some(self.text("mountpoint")?.to_owned()))];
                let connector: BTreeMap<String, Value> =
                    said.into_iter().filter_map(|(key, text)| Some((key.to_owned(), json!(text?)))).collect();
                let volume_id = id.to_owned();
                let new =
                    NewAttachment { volume_id, server_id, connector: Some(connector), mode: Some(mode) };
                Ok(control.volume_attach(caller, new).await?)
            }
            "os-detach" | "os-force_detach" | "os-terminate_connection" => {
                let one = owned("attachment_id");
                Ok(control.volume_detach(caller, id, one.as_deref()).await?)
            }
            "os-reserve" => {
                Ok(control.volume_step(caller, id, &[Status::Available], Status::Attaching).await?)
            }
            "os-unreserve" => {
                let from = [Status::Reserved, Status::Attaching];
                Ok(control.volume_step(caller, id, &from, Status::Available).await?)
            }
            "os-begin_detaching" => {
                Ok(control.volume_step(caller, id, &[Status::InUse], Status::Detaching).await?)
            }
            _ => Ok(control.volume_step(caller, id, &[Status::Detaching], Status::InUse).await?),
        }
    }

    /// What a connector outside of this cloud would need: nothing here leads out of a host.
    async fn connection(&self) -> Result<Acted, Fault> {
        if !self.value["connector"].is_object() {
            return Err(Fault::malformed("Invalid input for field/attribute connector: it is required."));
        }
        let view = self.state.control.volume(self.caller, self.id).await?;
        let row = &view.volume.row;
        let connection_info = connection_info(self.state, &row.id, row.host.as_deref(), row.read_only);
        Ok(Acted::Answer(Box::new(Answer::Connection(Connection { connection_info }))))
    }

    async fn image_metadata(&self, name: &str) -> Result<Acted, Fault> {
        let Self { state, caller, id, .. } = *self;
        let control = &state.control;
        let view = match name {
            "os-set_image_metadata" => {
                let set = properties(&self.value["metadata"])?;
                control.volume_properties_set(caller, id, Properties::Image, set, false).await?
            }
            "os-unset_image_metadata" => {
                let key = self.text("key")?;
                control.volume_property_unset(caller, id, Properties::Image, key).await?;
                return Ok(Acted::Done);
            }
            _ => control.volume(caller, id).await?,
        };
        let metadata = view.volume.row.image_metadata.clone();
        Ok(Acted::Answer(Box::new(Answer::Metadata(ImageMetadata { metadata }))))
    }

    async fn change(&self, name: &str) -> Result<(), Fault> {
        let Self { state, caller, id, version, value } = *self;
        let control = &state.control;
        match name {
            "os-extend" => {
                let new_size = size(&value["new_size"])?.ok_or_else(|| {
                    Fault::malformed("Invalid input for field/attribute new_size: an integer is required.")
                })?;
                Ok(control.volume_extend(caller, id, new_size, version.at_least(3, 42)).await?)
            }
            "os-reset_status" => self.reset().await,
            "os-force_delete" => Ok(control.volume_delete(caller, id, false, true).await?),
            "os-update_readonly_flag" => {
                Ok(control.volume_set_read_only(caller, id, self.flag("readonly")?).await?)
            }
            "os-retype" => {
                let policy = value["migration_policy"].as_str().unwrap_or("never");
                if !matches!(policy, "never" | "on-demand") {
                    return Err(Fault::malformed("migration_policy must be 'on-demand' or 'never'"));
                }
                let may_move = policy == "on-demand";
                Ok(control.volume_retype(caller, id, self.text("new_type")?, may_move).await?)
            }
            "revert" if version.at_least(3, 40) => {
                Ok(control.volume_revert(caller, id, self.text("snapshot_id")?).await?)
            }
            "os-unmanage" => Ok(control.volume_unmanage(caller, id).await?),
            "os-migrate_volume" => Ok(control.volume_migrate(caller, id, self.text("host")?).await?),
            "os-migrate_volume_completion" => {
                Err(Fault::not_implemented("moving a volume by somebody else than its host"))
            }
            "os-reimage" if version.at_least(3, 68) => Err(Fault::not_implemented("reimaging a volume")),
            "os-extend_volume_completion" if version.at_least(3, 71) => {
                Err(Fault::not_implemented("completing an extension from outside"))
            }
            other => Err(Fault::malformed(format!("There is no such action: {other}"))),
        }
    }

    async fn reset(&self) -> Result<(), Fault> {
        let Self { state, caller, id, value, .. } = *self;
        let status = match value["status"].as_str() {
            None => None,
            Some(text) => Some(Status::of_name(text).ok_or_else(|| {
                Fault::malformed(format!("Invalid input for field/attribute status. Value: {text}."))
            })?),
        };
        let detached = match value["attach_status"].as_str() {
            None | Some("attached") => false,
            Some("detached") => true,
            Some(other) => {
                return Err(Fault::malformed(format!(
                    "Invalid input for field/attribute attach_status. Value: {other}."
                )));
            }
        };
        let migration = value["migration_status"].as_str();
        if status.is_none() && value["attach_status"].is_null() && migration.is_none() {
            return Err(Fault::malformed(
                "Invalid input for field/attribute os-reset_status: it names no state.",
            ));
        }
        Ok(state.control.volume_reset(caller, id, status, detached, migration).await?)
    }

    async fn upload(&self) -> Result<Acted, Fault> {
        let Self { state, caller, id, value, version } = *self;
        let name = self.text("image_name")?.to_owned();
        let text = |key: &str, otherwise: &str| value[key].as_str().unwrap_or(otherwise).to_owned();
        let (disk_format, container_format) = (text("disk_format", "raw"), text("container_format", "bare"));
        if disk_format != "raw" || container_format != "bare" {
            return Err(Fault::not_implemented("an image of a volume in a format other than raw in bare"));
        }
        let force = lenient_flag("force", &value["force"])?.unwrap_or(false);
        let visibility =
            if version.at_least(3, 1) { text("visibility", "private") } else { "private".to_owned() };
        let protected = lenient_flag("protected", &value["protected"])?.unwrap_or(false);
        let described = vec![
            ImageChange::Name(Some(name.clone())),
            ImageChange::DiskFormat(Some(disk_format.clone())),
            ImageChange::ContainerFormat(Some(container_format.clone())),
            ImageChange::Visibility(visibility.clone()),
            ImageChange::Protected(protected),
        ];
        let (view, image) = state.control.volume_upload(caller, id, force, described).await?;
        let volume = &view.volume.row;
        let kind = state.control.volume_type(caller, &volume.type_id).await.ok();
        let image = UploadedImage {
            id: volume.id.clone(),
            updated_at: volume.updated_at.map(time),
            status: volume.status.name(),
            display_description: volume.description.clone(),
            size: volume.size_gib,
            volume_type: kind.map(|kind| super::kind::inside(&kind.row)),
            image_id: image.row.id.clone(),
            container_format,
            disk_format,
            image_name: name,
            visibility: with(version, 1, visibility),
            protected: with(version, 1, protected),
        };
        Ok(Acted::Upload(Box::new(Upload { image })))
    }
}
