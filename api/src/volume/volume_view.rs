//! A volume as the wire shows it (Block Storage API: show a volume's details), in every microversion.

use std::collections::BTreeMap;

use control::caller::Caller;
use control::model::volume::VolumeAttachment;
use control::policy::Default;
use control::service::volume::VolumeView;
use control::service::volume::change::python_flag;
use schemars::JsonSchema;
use serde::Serialize;

use super::{Link, links, sees, time, with};
use crate::context::AppState;
use crate::microversion::Microversion;

/// The short form of a list.
#[derive(Serialize, JsonSchema)]
pub(super) struct VolumeBrief {
    id: String,
    name: Option<String>,
    links: [Link; 2],
}

/// A volume; the fields that have a prefix are of its long form.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Volume")]
pub(super) struct Shown {
    id: String,
    name: Option<String>,
    description: Option<String>,
    status: &'static str,
    size: u64,
    availability_zone: String,
    created_at: String,
    updated_at: Option<String>,
    attachments: Vec<AttachmentOfVolume>,
    volume_type: String,
    snapshot_id: Option<String>,
    source_volid: Option<String>,
    metadata: BTreeMap<String, String>,
    links: [Link; 2],
    user_id: String,
    bootable: &'static str,
    encrypted: bool,
    /// Always null.
    replication_status: Option<String>,
    /// Always null.
    consistencygroup_id: Option<String>,
    multiattach: bool,
    migration_status: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group_id: Option<Option<String>>,
    /// Always null.
    #[serde(skip_serializing_if = "Option::is_none")]
    service_uuid: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shared_targets: Option<Option<bool>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    volume_type_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encryption_key_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    consumes_quota: Option<bool>,
    #[serde(rename = "os-vol-tenant-attr:tenant_id", skip_serializing_if = "Option::is_none")]
    project_id: Option<String>,
    #[serde(rename = "os-vol-host-attr:host", skip_serializing_if = "Option::is_none")]
    host: Option<Option<String>>,
    #[serde(rename = "os-vol-mig-status-attr:migstat", skip_serializing_if = "Option::is_none")]
    migration: Option<Option<String>>,
    /// Always null.
    #[serde(rename = "os-vol-mig-status-attr:name_id", skip_serializing_if = "Option::is_none")]
    name_id: Option<Option<String>>,
    /// Always null.
    #[serde(skip_serializing_if = "Option::is_none")]
    provider_id: Option<Option<String>>,
    /// Always null.
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster_name: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    volume_image_metadata: Option<BTreeMap<String, String>>,
}

/// An attachment inside of its volume.
#[derive(Serialize, JsonSchema)]
struct AttachmentOfVolume {
    id: String,
    attachment_id: String,
    volume_id: String,
    server_id: Option<String>,
    host_name: Option<String>,
    device: Option<String>,
    attached_at: Option<String>,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct OneVolume {
    pub(super) volume: Shown,
}

pub(super) fn brief(state: &AppState, view: &VolumeView) -> VolumeBrief {
    let volume = &view.volume.row;
    let links = links(state, "volumes", &volume.id);
    VolumeBrief { id: volume.id.clone(), name: volume.name.clone(), links }
}

/// What a creation and a change answer.
pub(super) fn short(state: &AppState, version: Microversion, view: &VolumeView) -> Shown {
    let volume = &view.volume.row;
    let attached = view.attachments.iter().filter(|attachment| attachment.row.attached_at.is_some());
    // Nobody shares a target: there are none. From 3.69 on that has a word of its own.
    let shared_targets = (!version.at_least(3, 69)).then_some(false);
    let key_id = volume.encryption.as_ref().map(|encryption| encryption.key_id.clone());
    Shown {
        id: volume.id.clone(),
        name: volume.name.clone(),
        description: volume.description.clone(),
        status: volume.status.name(),
        size: volume.size_gib,
        availability_zone: volume.zone.clone(),
        created_at: time(volume.created_at),
        updated_at: volume.updated_at.map(time),
        attachments: attached.map(|attachment| of_volume(&attachment.row)).collect(),
        volume_type: view.type_name.clone(),
        snapshot_id: volume.snapshot_id.clone(),
        source_volid: volume.source_volume_id.clone(),
        metadata: volume.metadata.clone(),
        links: links(state, "volumes", &volume.id),
        user_id: volume.user_id.clone(),
        bootable: if volume.bootable { "true" } else { "false" },
        encrypted: view.encrypted,
        replication_status: None,
        consistencygroup_id: None,
        multiattach: volume.multiattach,
        migration_status: volume.migration_status.clone(),
        group_id: with(version, 13, volume.group_id.clone()),
        service_uuid: with(version, 48, None),
        shared_targets: with(version, 48, shared_targets),
        volume_type_id: with(version, 63, volume.type_id.clone()),
        encryption_key_id: key_id.and_then(|key_id| with(version, 64, key_id)),
        consumes_quota: with(version, 65, true),
        project_id: None,
        host: None,
        migration: None,
        name_id: None,
        provider_id: None,
        cluster_name: None,
        volume_image_metadata: None,
    }
}

/// The long form.
pub(super) fn full(state: &AppState, caller: &Caller, version: Microversion, view: &VolumeView) -> Shown {
    let volume = &view.volume.row;
    let mut shown = short(state, version, view);
    if sees(caller, "volume_extension:volume_tenant_attribute", Default::Reader) {
        shown.project_id = Some(volume.project_id.clone());
    }
    if sees(caller, "volume_extension:volume_host_attribute", Default::Admin) {
        shown.host = Some(state.control.volume_pool_name(volume));
    }
    if sees(caller, "volume_extension:volume_mig_status_attribute", Default::Admin) {
        shown.migration = Some(volume.migration_status.clone());
        shown.name_id = Some(None);
    }
    if caller.is_admin() {
        shown.provider_id = with(version, 21, None);
        shown.cluster_name = with(version, 61, None);
    }
    let shows_image = sees(caller, "volume_extension:volume_image_metadata:show", Default::Reader);
    if shows_image && !volume.image_metadata.is_empty() {
        shown.volume_image_metadata = Some(volume.image_metadata.clone());
    }
    // What Cinder keeps among the administrator's properties shows among the owner's.
    shown.metadata.extend(volume.admin_metadata.clone());
    if volume.attachments.len() == 1 && !shown.metadata.contains_key("readonly") && volume.read_only {
        shown.metadata.insert("readonly".to_owned(), python_flag(true).to_owned());
    }
    shown
}

fn of_volume(attachment: &VolumeAttachment) -> AttachmentOfVolume {
    AttachmentOfVolume {
        id: attachment.volume_id.clone(),
        attachment_id: attachment.id.clone(),
        volume_id: attachment.volume_id.clone(),
        server_id: attachment.server_id.clone(),
        host_name: attachment.host.clone(),
        device: attachment.mountpoint.clone(),
        attached_at: attachment.attached_at.map(time),
    }
}
