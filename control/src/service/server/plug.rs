//! Devices of servers that run: who may plug, and what a host's report makes of the devices that come and go.
//!
//! A volume that comes is `attaching` until its guest has it, and one that goes is `detaching`, and nobody else's, until
//! its guest has let it go: as long as that takes, or until the server is off. One that turns out to be there until
//! then, which is not known of a server that has only just started, is `in-use` again, and the action has failed.

use jiff::Timestamp;

use super::interface::forget;
use crate::Control;
use crate::agent::protocol::InstanceObserved;
use crate::error::{Error, Result};
use crate::model::compute::{Host, Server, ServerVolume, VmState};
use crate::model::network::Port;
use crate::model::volume::{AttachStatus, Status, Volume, VolumeAttachment};
use crate::service::volume::attachment::detach;
use crate::store::{Cache, Txn};

/// A server takes and gives devices, `what`, while it is off, and while it runs only where its host can plug; `device` is
/// the one that it gives.
pub(super) fn may_plug(
    cache: &Cache,
    server: &Server,
    action: &str,
    what: &str,
    device: Option<&str>,
) -> Result<()> {
    let id = &server.id;
    let refuse = |attribute: &str, state: &str| {
        let message = format!("Cannot '{action}' instance {id} while it is in {attribute} {state}");
        Err(Error::conflict("InstanceInvalidState", message))
    };
    if let Some(task) = &server.task {
        return refuse("task_state", task);
    }
    let why = match server.vm_state {
        VmState::Building | VmState::Error => return refuse("vm_state", server.vm_state.name()),
        VmState::Stopped => return Ok(()),
        VmState::Active | VmState::Paused => {
            let host = server.host.as_ref().and_then(|host| cache.get::<Host>(host));
            let can_plug = host.is_some_and(|host| host.row.report.hot_plug);
            match device {
                Some(device) if can_plug && server.fixed_devices.contains(device) => {
                    format!("its guest has {device} by virtio-mmio until it is off")
                }
                _ if can_plug => return Ok(()),
                _ => format!("its host cannot plug {what} into a running guest"),
            }
        }
    };
    let message = format!("Instance {id} runs, and {why}. Stop it, then do this.");
    Err(Error::conflict("InstanceCannotPlug", message))
}

/// Whether devices come to it and go from it by its host's doing.
pub(super) fn runs(server: &Server) -> bool {
    matches!(server.vm_state, VmState::Active | VmState::Paused)
}

/// By what a server's host knows a volume.
pub(super) fn disk_of(cache: &Cache, volume_id: &str) -> String {
    let volume = cache.get::<Volume>(volume_id);
    volume.map_or_else(|| volume_id.to_owned(), |volume| volume.row.disk().to_owned())
}

/// Adds to the transaction that takes in a report about the newest generation what follows for the server's devices, and
/// notes it in its row; whether a port went from the server.
pub(crate) fn settle_devices(
    cache: &Cache,
    mut txn: Txn,
    server: &mut Server,
    report: &InstanceObserved,
    now: Timestamp,
) -> (Txn, bool) {
    if report.generation < server.generation {
        return (txn, false);
    }
    let devices = &report.devices;
    if server.fixed_devices != devices.fixed {
        server.fixed_devices.clone_from(&devices.fixed);
    }
    for attached in server.volumes.clone() {
        let disk = disk_of(cache, &attached.volume_id);
        if attached.detaching {
            if devices.fixed.contains(&disk) {
                txn = kept(cache, txn, server, &attached, now);
            } else if !devices.leaving.contains(&disk) {
                txn = taken(cache, txn, server, &attached);
            }
        } else if is_attaching(cache, &attached) {
            txn = match devices.missing.get(&disk) {
                None => given(cache, txn, &attached, now),
                Some(_) => taken(cache, txn, server, &attached),
            };
        }
    }
    let lost: Vec<String> =
        server.port_ids.iter().filter(|id| devices.missing.contains_key(*id)).cloned().collect();
    for id in &lost {
        forget(server, id);
        if let Some(port) = cache.get::<Port>(id) {
            txn = Control::release_server_port(cache, txn, &port);
        }
    }
    if !lost.is_empty() {
        server.generation += 1;
    }
    (txn, !lost.is_empty())
}

fn is_attaching(cache: &Cache, attached: &ServerVolume) -> bool {
    let attachment = cache.get::<VolumeAttachment>(&attached.attachment_id);
    attachment.is_some_and(|attachment| attachment.row.status == AttachStatus::Attaching)
}

/// The guest has it.
fn given(cache: &Cache, txn: Txn, attached: &ServerVolume, now: Timestamp) -> Txn {
    let Some(attachment) = cache.get::<VolumeAttachment>(&attached.attachment_id) else { return txn };
    let mut row = attachment.row.clone();
    row.status = AttachStatus::Attached;
    row.attached_at = Some(now);
    let txn = txn.update(&attachment, &row);
    let Some(volume) = cache.get::<Volume>(&attached.volume_id) else { return txn };
    if volume.row.status != Status::Attaching {
        return txn;
    }
    let row = Volume { status: Status::InUse, updated_at: Some(now), ..volume.row.clone() };
    txn.update(&volume, &row)
}

/// The guest has it until it is off, as nobody knew yet when it was asked back: it stays its server's.
fn kept(cache: &Cache, txn: Txn, server: &mut Server, attached: &ServerVolume, now: Timestamp) -> Txn {
    for one in server.volumes.iter_mut().filter(|one| one.attachment_id == attached.attachment_id) {
        one.detaching = false;
    }
    // Its host is to hear of it.
    server.generation += 1;
    let volume = cache.get::<Volume>(&attached.volume_id);
    let Some(volume) = volume.filter(|volume| volume.row.status == Status::Detaching) else { return txn };
    let row = Volume { status: Status::InUse, updated_at: Some(now), ..volume.row.clone() };
    txn.update(&volume, &row)
}

/// The guest has let it go, or never got it.
fn taken(cache: &Cache, txn: Txn, server: &mut Server, attached: &ServerVolume) -> Txn {
    server.volumes.retain(|one| one.attachment_id != attached.attachment_id);
    if !attached.detaching {
        // Its host is to hear of it.
        server.generation += 1;
    }
    detach(cache, txn, &attached.attachment_id, None)
}
