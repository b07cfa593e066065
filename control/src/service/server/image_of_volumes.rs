//! Images of servers that boot from a volume: a snapshot of each of their volumes, and an image without data that says by
//! its properties which these are (`block_device_mapping`, `bdm_v2`, `root_device_name`). A server that is made of such an
//! image begins with volumes of the snapshots.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::create::NewServers;
use super::image::{NewServerImage, described, shared_with_owner};
use super::lifecycle::{may_become_image, record};
use super::power::action_record;
use super::volume::{DeviceSource, NewDevice, VOLUMES_MAX};
use crate::Control;
use crate::agent::protocol::{InstanceState, PoolReport};
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::compute::{Host, Server, ServerVolume};
use crate::model::image::Image;
use crate::model::random_uuid;
use crate::model::volume::Volume;
use crate::service::image::new_image;
use crate::service::image_access;
use crate::service::image_data::without_data;
use crate::service::volume::snapshot::{self, NewSnapshot};
use crate::store::{Cache, Stored, Txn};

/// The property that names the volumes.
const MAPPING: &str = "block_device_mapping";

impl Control {
    /// What an image of a server that boots from a volume takes: rows of it, of the snapshots and of the server.
    pub(crate) fn image_of_volumes(
        &self,
        cache: &Cache,
        caller: &Caller,
        (image_id, stored): (&str, &Stored<Server>),
        new: &NewServerImage,
    ) -> Result<Txn> {
        let mut server = stored.row.clone();
        may_become_image(&server, new.action())?;
        record(&mut server, action_record(caller, new.action()));
        server.updated_at = Timestamp::now();
        let mut txn = Txn::new().update(stored, &server);
        let mut mapping = Vec::new();
        for attached in &server.volumes {
            let volume = cache.get::<Volume>(&attached.volume_id);
            let volume = volume.ok_or_else(|| Error::not_found("Volume", &attached.volume_id))?;
            refuse_while_written(cache, &server, &volume.row)?;
            let snapshot = NewSnapshot {
                volume_id: attached.volume_id.clone(),
                name: Some(format!("snapshot for {}", new.name)),
                description: volume.row.description.clone(),
                force: true,
                ..NewSnapshot::default()
            };
            let (mut row, id) = (volume.row.clone(), random_uuid());
            txn = snapshot::prepare(cache, txn, caller, &snapshot, &mut row, &id)?.update(&volume, &row);
            mapping.push(entry(attached, &row, &id));
        }
        let more = BTreeMap::from([
            (MAPPING.to_owned(), Value::from(mapping).to_string()),
            ("bdm_v2".to_owned(), "True".to_owned()),
            ("root_device_name".to_owned(), "/dev/vda".to_owned()),
        ]);
        let image = without_data(described(cache, caller, image_id.to_owned(), &server, new, more)?);
        Ok(shared_with_owner(new_image(cache, txn, &image)?, &image, &server))
    }
}

/// A volume of which there is a snapshot, as Nova's images name it.
fn entry(attached: &ServerVolume, volume: &Volume, snapshot_id: &str) -> Value {
    json!({
        "boot_index": if attached.boot { Value::from(0) } else { Value::Null },
        "delete_on_termination": attached.delete_on_termination,
        "destination_type": "volume",
        "device_name": attached.device,
        "device_type": "disk",
        "disk_bus": "virtio",
        "guest_format": null,
        "image_id": null,
        "no_device": null,
        "snapshot_id": snapshot_id,
        "source_type": "snapshot",
        "tag": attached.tag,
        "volume_id": null,
        "volume_size": volume.size_gib,
        "volume_type": null,
    })
}

/// A guest that runs writes to its volumes: only some backends can copy them meanwhile.
fn refuse_while_written(cache: &Cache, server: &Server, volume: &Volume) -> Result<()> {
    let runs = matches!(
        server.observed,
        Some(InstanceState::Running | InstanceState::Paused | InstanceState::Stopping)
    );
    let host = server.host.as_ref().and_then(|host| cache.get::<Host>(host));
    let of_volume =
        |pool: &&PoolReport| volume.backend.as_ref().is_none_or(|backend| *backend == pool.backend);
    let copies = host
        .is_some_and(|host| host.row.report.pools.iter().find(of_volume).is_some_and(|p| p.copies_in_use));
    if runs && !copies {
        let message = format!(
            "Instance {} runs, and its host cannot copy the volumes that a running guest writes to. Stop it, then do this.",
            server.id
        );
        return Err(Error::conflict("InstanceInvalidState", message));
    }
    Ok(())
}

/// A request for a server of an image that stands for volumes, as one for these volumes.
///
/// # Errors
/// `Invalid` where the image's list of them is none.
pub(super) fn with_volumes_of_image(
    cache: &Cache,
    caller: &Caller,
    mut new: NewServers,
) -> Result<NewServers> {
    let image =
        cache.get::<Image>(&new.image_id).filter(|image| image_access::may_see(cache, caller, &image.row));
    let Some(mapping) = image.as_ref().and_then(|image| image.row.properties.get(MAPPING)) else {
        return Ok(new);
    };
    let wrong = || {
        let message = format!(
            "Block Device Mapping is Invalid: that of image {} is no list of snapshots.",
            new.image_id
        );
        Error::invalid("InvalidBDM", message)
    };
    let entries: Vec<Value> = serde_json::from_str(mapping).map_err(|_| wrong())?;
    let devices: Option<Vec<NewDevice>> = entries.iter().take(VOLUMES_MAX + 1).map(device).collect();
    let devices = devices.ok_or_else(wrong)?;
    // What the request says of a device wins.
    let own = devices
        .into_iter()
        .filter(|of_image| !of_image.boot || !new.devices.iter().any(|device| device.boot));
    let devices: Vec<NewDevice> = own.chain(new.devices.clone()).collect();
    if devices.iter().filter(|device| device.boot).count() != 1 {
        return Err(wrong());
    }
    new.devices = devices;
    new.image_id = String::new();
    Ok(new)
}

fn device(entry: &Value) -> Option<NewDevice> {
    let text = |name: &str| entry[name].as_str().map(str::to_owned);
    if entry["source_type"] != "snapshot" || entry["destination_type"] != "volume" {
        return None;
    }
    let boot = entry["boot_index"].as_i64() == Some(0);
    Some(NewDevice {
        source: DeviceSource::Snapshot(text("snapshot_id")?),
        size_gib: entry["volume_size"].as_u64(),
        volume_type: text("volume_type"),
        boot,
        delete_on_termination: entry["delete_on_termination"].as_bool().unwrap_or(false),
        device: text("device_name").filter(|_| !boot),
        tag: text("tag"),
    })
}
