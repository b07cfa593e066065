//! Volumes of servers: attached and detached while a server is off, or at any time where its host can, and those that a
//! server begins with. The server's row, the volume's and the attachment's change in one transaction.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::create::{NewServers, check_size, usable_image};
use super::find_for_change;
use super::lifecycle::record;
use super::plug::{disk_of, may_plug, runs};
use super::power::action_record;
use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::compute::{Flavor, Server, ServerVolume};
use crate::model::image::Image;
use crate::model::random_uuid;
use crate::model::volume::{AttachStatus, Status, Volume, VolumeAttachment};
use crate::service::volume::attachment::{attach, detach};
use crate::service::volume::{self, NewVolume};
use crate::store::{Cache, Stored, Txn};

/// The most volumes of one server: virtio-mmio has windows for 15 disks and network devices.
pub const VOLUMES_MAX: usize = 12;
/// The longest device name in bytes.
const DEVICE_BYTES_MAX: usize = 32;

/// A volume that a server shall get.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewServerVolume {
    /// The volume.
    pub volume_id: String,
    /// The device's name, if its owner wishes one.
    pub device: Option<String>,
    /// The device's tag (microversion 2.49).
    pub tag: Option<String>,
    /// It is deleted with the server (microversion 2.79).
    pub delete_on_termination: bool,
}

/// What a device of a new server begins as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceSource {
    /// A volume that is there.
    Volume(String),
    /// A new volume of an image.
    Image(String),
    /// A new volume of a snapshot.
    Snapshot(String),
    /// A new, empty volume.
    Blank,
}

/// A volume that a new server begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDevice {
    /// What it begins as.
    pub source: DeviceSource,
    /// The size of a new volume in GiB.
    pub size_gib: Option<u64>,
    /// The type of a new volume.
    pub volume_type: Option<String>,
    /// The server boots from it.
    pub boot: bool,
    /// It is deleted with the server.
    pub delete_on_termination: bool,
    /// The device's name, if its owner wishes one.
    pub device: Option<String>,
    /// The device's tag.
    pub tag: Option<String>,
}

impl Control {
    /// Gives a server a volume: from its next start on, or at once where its host can.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`; `Invalid` for a volume that is not free; `Conflict` if the server's state, its host or a
    /// device's name is in the way.
    pub async fn server_volume_attach(
        &self,
        caller: &Caller,
        id: &str,
        new: &NewServerVolume,
    ) -> Result<ServerVolume> {
        self.db.caught_up().await?;
        self.db
            .transact_with(|cache| {
                let stored =
                    find_for_change(cache, caller, id, "os_compute_api:os-volumes-attachments:create")?;
                let mut server = stored.row.clone();
                let found =
                    volume::find_for_change(cache, caller, &new.volume_id, "volume:attachment_create")?;
                if server.volumes.iter().any(|attached| attached.volume_id == new.volume_id) {
                    let message = format!(
                        "Invalid volume: volume {} is already attached to instance {id}",
                        new.volume_id
                    );
                    return Err(Error::invalid("InvalidVolume", message));
                }
                may_plug(cache, &server, "attach_volume", "disks", None)?;
                if found.row.host != server.host {
                    let message = format!("Volume {} is on another host than instance {id}.", new.volume_id);
                    return Err(Error::conflict("VolumeOnOtherHost", message));
                }
                let mut row = found.row.clone();
                let status = if runs(&server) { AttachStatus::Attaching } else { AttachStatus::Attached };
                let attachment = attach(&mut row, Some(id), status)?;
                let (attached, attachment) = place(&mut server, attachment, new, false)?;
                touch(&mut server, caller, "attach_volume");
                let txn = Txn::new().update(&stored, &server).update(&found, &row).create(&attachment);
                Ok((txn, attached))
            })
            .await
    }

    /// Takes a volume from a server: at once while that is off, else when its guest lets it go. Asked again, the guest is
    /// asked again.
    ///
    /// # Errors
    /// `NotFound`, also for a volume that the server has not; `Forbidden`; `Invalid` for the one it boots from;
    /// `Conflict` if the server's state or its host is in the way.
    pub async fn server_volume_detach(&self, caller: &Caller, id: &str, volume_id: &str) -> Result<()> {
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored =
                    find_for_change(cache, caller, id, "os_compute_api:os-volumes-attachments:delete")?;
                let mut server = stored.row.clone();
                let attached = of_server(&server, volume_id)?.clone();
                if attached.boot {
                    return Err(Error::invalid("InvalidVolume", "Cannot detach a root device volume"));
                }
                let disk = disk_of(cache, volume_id);
                may_plug(cache, &server, "detach_volume", "disks", Some(&disk))?;
                touch(&mut server, caller, "detach_volume");
                if runs(&server) {
                    return Ok(ask_back(cache, &stored, server, &attached));
                }
                server.volumes.retain(|one| one.volume_id != volume_id);
                Ok(detach(cache, Txn::new().update(&stored, &server), &attached.attachment_id, None))
            })
            .await
    }

    /// Says whether a volume of a server is deleted with it (microversion 2.85).
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`.
    pub async fn server_volume_keep(
        &self,
        caller: &Caller,
        id: &str,
        volume_id: &str,
        delete_on_termination: bool,
    ) -> Result<()> {
        let action = "os_compute_api:os-volumes-attachments:update";
        let changed = self.server_change(caller, id, action, |server| {
            of_server(server, volume_id)?;
            for attached in server.volumes.iter_mut().filter(|one| one.volume_id == volume_id) {
                attached.delete_on_termination = delete_on_termination;
            }
            Ok(())
        });
        changed.await.map(drop)
    }

    /// Adds the volumes that a new server begins with to its transaction; those that are new get these `ids`.
    pub(crate) fn add_server_volumes(
        &self,
        cache: &Cache,
        mut txn: Txn,
        caller: &Caller,
        (server, devices, ids): (&mut Server, &[NewDevice], &[String]),
    ) -> Result<Txn> {
        let mut host: Option<String> = None;
        for (device, new_id) in devices.iter().zip(ids) {
            let (attachment, at) = match &device.source {
                DeviceSource::Volume(id) => {
                    let stored = volume::find_for_change(cache, caller, id, "volume:attachment_create")?;
                    let mut row = stored.row.clone();
                    if device.boot && !row.bootable {
                        return Err(invalid(format!("Volume {id} is not bootable.")));
                    }
                    let attachment = attach(&mut row, Some(&server.id), AttachStatus::Attached)?;
                    txn = txn.update(&stored, &row);
                    (attachment, row.host)
                }
                source => {
                    let new = new_volume(source, device, server, host.clone());
                    let project = server.project_id.clone();
                    let prepared = self.volume_prepare(cache, txn, caller, &project, &new, new_id)?;
                    let (prepared, mut row) = prepared;
                    let attachment = attach(&mut row, Some(&server.id), AttachStatus::Reserved)?;
                    txn = prepared.create(&row);
                    (attachment, row.host)
                }
            };
            match (&host, at) {
                (_, None) => return Err(invalid("no host has room for its volume.")),
                (None, Some(at)) => host = Some(at),
                (Some(host), Some(at)) if *host != at => {
                    return Err(invalid("its volumes are on different hosts."));
                }
                _ => {}
            }
            let wish = NewServerVolume {
                volume_id: attachment.volume_id.clone(),
                device: device.device.clone(),
                tag: device.tag.clone(),
                delete_on_termination: device.delete_on_termination,
            };
            let (_, attachment) = place(server, attachment, &wish, device.boot)?;
            txn = txn.create(&attachment);
        }
        Ok(txn)
    }
}

fn new_volume(source: &DeviceSource, device: &NewDevice, server: &Server, host: Option<String>) -> NewVolume {
    let mut new = NewVolume {
        name: Some(String::new()),
        description: Some(String::new()),
        size_gib: device.size_gib,
        volume_type: device.volume_type.clone(),
        host,
        zone: server.availability_zone.clone(),
        ..NewVolume::default()
    };
    match source {
        DeviceSource::Image(id) => new.image_id = Some(id.clone()),
        DeviceSource::Snapshot(id) => new.snapshot_id = Some(id.clone()),
        DeviceSource::Blank | DeviceSource::Volume(_) => {}
    }
    new
}

/// The image that a new server's root disk begins as, and the properties that say how it boots; no image for one that
/// boots from a volume.
pub(crate) fn boot_source(
    cache: &Cache,
    caller: &Caller,
    new: &NewServers,
    flavor: &Flavor,
) -> Result<(Option<Image>, BTreeMap<String, String>)> {
    let Some(device) = new.devices.iter().find(|device| device.boot) else {
        let image = usable_image(cache, caller, &new.image_id)?;
        check_size(flavor, &image)?;
        let properties = image.properties.clone();
        return Ok((Some(image), properties));
    };
    let properties = match &device.source {
        DeviceSource::Volume(id) => volume::find(cache, caller, id)?.row.image_metadata.clone(),
        DeviceSource::Snapshot(id) => {
            let snapshot = volume::snapshot::find(cache, caller, id)?;
            let volume = cache.get::<Volume>(&snapshot.row.volume_id);
            volume.map(|volume| volume.row.image_metadata.clone()).unwrap_or_default()
        }
        DeviceSource::Image(id) => volume::create::image_metadata(&usable_image(cache, caller, id)?),
        DeviceSource::Blank => return Err(invalid("a server cannot boot from an empty volume.")),
    };
    Ok((None, properties))
}

/// The host that a server's volumes are on.
pub(crate) fn host_of_volumes(cache: &Cache, server: &Server) -> Option<String> {
    server.volumes.iter().find_map(|attached| cache.get::<Volume>(&attached.volume_id)?.row.host.clone())
}

/// Takes the volumes of a server that goes from it.
pub(crate) fn release_volumes(cache: &Cache, txn: Txn, server: &Server) -> Txn {
    server.volumes.iter().fold(txn, |txn, attached| {
        let delete = attached.delete_on_termination.then_some(server.request_id.as_str());
        detach(cache, txn, &attached.attachment_id, delete)
    })
}

fn of_server<'s>(server: &'s Server, volume_id: &str) -> Result<&'s ServerVolume> {
    let found = server.volumes.iter().find(|attached| attached.volume_id == volume_id);
    found.ok_or_else(|| Error::NotFound { kind: "Volume attachment", id: format!("of volume {volume_id}") })
}

/// A transaction that asks the guest of a server that runs for a volume.
fn ask_back(cache: &Cache, stored: &Stored<Server>, mut server: Server, attached: &ServerVolume) -> Txn {
    for one in server.volumes.iter_mut().filter(|one| one.attachment_id == attached.attachment_id) {
        one.detaching = true;
    }
    let txn = Txn::new().update(stored, &server);
    let Some(volume) = cache.get::<Volume>(&attached.volume_id) else { return txn };
    // Others may have it too.
    if volume.row.status != Status::InUse || volume.row.attachments.len() > 1 {
        return txn;
    }
    let mut row = volume.row.clone();
    row.status = Status::Detaching;
    row.updated_at = Some(Timestamp::now());
    txn.update(&volume, &row)
}

/// Notes the attachment in the server's row, under a device's name that is free.
fn place(
    server: &mut Server,
    mut attachment: VolumeAttachment,
    new: &NewServerVolume,
    boot: bool,
) -> Result<(ServerVolume, VolumeAttachment)> {
    if server.volumes.len() >= VOLUMES_MAX {
        let message = format!("A server has at most {VOLUMES_MAX} volumes.");
        return Err(Error::conflict("TooManyDiskDevices", message));
    }
    let taken = |device: &str| {
        (device == "/dev/vda" && !boot) || server.volumes.iter().any(|attached| attached.device == device)
    };
    let wished = new.device.as_deref().filter(|device| !device.is_empty() && *device != "auto");
    let device = match wished {
        _ if boot => "/dev/vda".to_owned(),
        Some(device) => {
            let device = if device.starts_with('/') { device.to_owned() } else { format!("/dev/{device}") };
            let name = device.strip_prefix("/dev/").unwrap_or_default();
            let good = !name.is_empty()
                && device.len() <= DEVICE_BYTES_MAX
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
            if !good {
                let message = format!("The supplied device path ({device}) is invalid.");
                return Err(Error::invalid("InvalidDevicePath", message));
            }
            if taken(&device) {
                let message = format!("The supplied device path ({device}) is in use.");
                return Err(Error::conflict("DevicePathInUse", message));
            }
            device
        }
        None => {
            let free = (b'b'..=b'z').map(|letter| format!("/dev/vd{}", char::from(letter)));
            free.into_iter().find(|device| !taken(device)).unwrap_or_else(|| "/dev/vdb".to_owned())
        }
    };
    attachment.mountpoint = Some(device.clone());
    attachment.host.clone_from(&server.host);
    let attached = ServerVolume {
        volume_id: attachment.volume_id.clone(),
        attachment_id: attachment.id.clone(),
        device,
        boot,
        read_only: attachment.mode == "ro",
        delete_on_termination: new.delete_on_termination,
        tag: new.tag.clone(),
        detaching: false,
    };
    server.volumes.push(attached.clone());
    // As the guest sees them: by their names.
    server.volumes.sort_by(|a, b| (a.device.len(), &a.device).cmp(&(b.device.len(), &b.device)));
    Ok((attached, attachment))
}

/// Notes what was asked of a server's devices: its host must hear of it.
pub(super) fn touch(server: &mut Server, caller: &Caller, action: &str) {
    server.generation += 1;
    server.updated_at = Timestamp::now();
    record(server, action_record(caller, action));
}

fn invalid(message: impl std::fmt::Display) -> Error {
    Error::invalid("InvalidBDM", format!("Block Device Mapping is Invalid: {message}"))
}

/// Ids for the volumes that come into being with a server.
pub(crate) fn new_ids(devices: &[NewDevice]) -> Vec<String> {
    devices.iter().map(|_| random_uuid()).collect()
}

/// Whether a snapshot or a volume is what a device begins as; then only one server can be made at once.
pub(crate) fn is_one_thing(device: &NewDevice) -> bool {
    matches!(device.source, DeviceSource::Volume(_))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::server::test::server;

    fn attachment(volume_id: &str) -> VolumeAttachment {
        VolumeAttachment {
            id: random_uuid(),
            volume_id: volume_id.to_owned(),
            project_id: "p".to_owned(),
            server_id: None,
            host: None,
            mountpoint: None,
            mode: "rw".to_owned(),
            status: AttachStatus::Attached,
            connector: BTreeMap::new(),
            attached_at: None,
            created_at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn devices_get_the_first_free_name_and_stand_in_the_order_of_their_names() {
        let mut server = server();
        let wish = |device: Option<&str>| NewServerVolume {
            device: device.map(str::to_owned),
            ..NewServerVolume::default()
        };
        let mut add = |wished, boot| {
            place(&mut server, attachment("v"), &wish(wished), boot).map(|(attached, _)| attached.device)
        };
        assert_eq!(add(Some("/dev/vdc"), false).unwrap(), "/dev/vdc");
        assert_eq!(add(None, false).unwrap(), "/dev/vdb");
        assert_eq!(add(None, false).unwrap(), "/dev/vdd");
        assert_eq!(add(None, true).unwrap(), "/dev/vda");
        assert!(matches!(add(Some("vdc"), false), Err(Error::Conflict { .. })));
        assert!(matches!(add(Some("/dev/../x"), false), Err(Error::Invalid { .. })));
        let devices: Vec<&str> = server.volumes.iter().map(|attached| attached.device.as_str()).collect();
        assert_eq!(devices, ["/dev/vda", "/dev/vdb", "/dev/vdc", "/dev/vdd"]);
    }
}
