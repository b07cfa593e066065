//! A volume as the wire shows it (Block Storage API: show a volume's details), in every microversion.

use control::caller::Caller;
use control::model::volume::VolumeAttachment;
use control::policy::Default;
use control::service::volume::VolumeView;
use control::service::volume::change::python_flag;
use serde_json::{Map, Value, json};

use super::{links, sees, time};
use crate::context::AppState;
use crate::microversion::Microversion;

/// The short form of a list.
pub(super) fn brief(state: &AppState, view: &VolumeView) -> Value {
    let volume = &view.volume.row;
    json!({"id": volume.id, "name": volume.name, "links": links(state, "volumes", &volume.id)})
}

/// What a creation and a change answer.
pub(super) fn short(state: &AppState, version: Microversion, view: &VolumeView) -> Value {
    let volume = &view.volume.row;
    let mut body = json!({
        "id": volume.id,
        "name": volume.name,
        "description": volume.description,
        "status": volume.status.name(),
        "size": volume.size_gib,
        "availability_zone": volume.zone,
        "created_at": time(volume.created_at),
        "updated_at": volume.updated_at.map(time),
        "attachments": attachments(view),
        "volume_type": view.type_name,
        "snapshot_id": volume.snapshot_id,
        "source_volid": volume.source_volume_id,
        "metadata": volume.metadata,
        "links": links(state, "volumes", &volume.id),
        "user_id": volume.user_id,
        "bootable": if volume.bootable { "true" } else { "false" },
        "encrypted": view.encrypted,
        "replication_status": null,
        "consistencygroup_id": null,
        "multiattach": volume.multiattach,
        "migration_status": volume.migration_status,
    });
    if let Some(body) = body.as_object_mut() {
        since_versions(version, view, body);
    }
    body
}

/// The long form.
pub(super) fn full(state: &AppState, caller: &Caller, version: Microversion, view: &VolumeView) -> Value {
    let volume = &view.volume.row;
    let mut body = short(state, version, view);
    if sees(caller, "volume_extension:volume_tenant_attribute", Default::Reader) {
        body["os-vol-tenant-attr:tenant_id"] = json!(volume.project_id);
    }
    if sees(caller, "volume_extension:volume_host_attribute", Default::Admin) {
        body["os-vol-host-attr:host"] = json!(state.control.volume_pool_name(volume));
    }
    if sees(caller, "volume_extension:volume_mig_status_attribute", Default::Admin) {
        body["os-vol-mig-status-attr:migstat"] = json!(volume.migration_status);
        body["os-vol-mig-status-attr:name_id"] = Value::Null;
    }
    if caller.is_admin() {
        if version.at_least(3, 21) {
            body["provider_id"] = Value::Null;
        }
        if version.at_least(3, 61) {
            body["cluster_name"] = Value::Null;
        }
    }
    let shows_image = sees(caller, "volume_extension:volume_image_metadata:show", Default::Reader);
    if shows_image && !volume.image_metadata.is_empty() {
        body["volume_image_metadata"] = json!(volume.image_metadata);
    }
    // What Cinder keeps among the administrator's properties shows among the owner's.
    let mut metadata = volume.metadata.clone();
    metadata.extend(volume.admin_metadata.clone());
    if volume.attachments.len() == 1 && !metadata.contains_key("readonly") && volume.read_only {
        metadata.insert("readonly".to_owned(), python_flag(true).to_owned());
    }
    body["metadata"] = json!(metadata);
    body
}

fn since_versions(version: Microversion, view: &VolumeView, body: &mut Map<String, Value>) {
    let volume = &view.volume.row;
    let mut since = |minor: u16, key: &str, value: Value| {
        if version.at_least(3, minor) {
            body.insert(key.to_owned(), value);
        }
    };
    since(13, "group_id", json!(volume.group_id));
    since(48, "service_uuid", Value::Null);
    // Nobody shares a target: there are none. From 3.69 on that has a word of its own.
    since(48, "shared_targets", if version.at_least(3, 69) { Value::Null } else { json!(false) });
    since(63, "volume_type_id", json!(volume.type_id));
    if let Some(encryption) = &volume.encryption {
        since(64, "encryption_key_id", json!(encryption.key_id));
    }
    since(65, "consumes_quota", json!(true));
}

fn attachments(view: &VolumeView) -> Value {
    let attached = view.attachments.iter().filter(|attachment| attachment.row.attached_at.is_some());
    attached.map(|attachment| of_volume(&attachment.row)).collect()
}

/// An attachment inside of its volume.
fn of_volume(attachment: &VolumeAttachment) -> Value {
    json!({
        "id": attachment.volume_id,
        "attachment_id": attachment.id,
        "volume_id": attachment.volume_id,
        "server_id": attachment.server_id,
        "host_name": attachment.host,
        "device": attachment.mountpoint,
        "attached_at": attachment.attached_at.map(time),
    })
}
