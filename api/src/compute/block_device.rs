//! The disks that a new server begins with (Compute API: `block_device_mapping_v2`): its image, or volumes that are there
//! or come into being with it.

use control::service::server::volume::{DeviceSource, NewDevice};
use serde::Deserialize;
use serde_json::Value;

use crate::error::Fault;
use crate::microversion::Microversion;

/// One entry. What only some hypervisors have (`disk_bus`, `device_type`, `guest_format`) is taken and not used.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BlockDevice {
    uuid: Option<String>,
    source_type: Option<String>,
    destination_type: Option<String>,
    #[serde(default)]
    boot_index: Value,
    #[serde(default, deserialize_with = "super::flag")]
    delete_on_termination: Option<bool>,
    #[serde(default, deserialize_with = "super::number")]
    volume_size: Option<u32>,
    volume_type: Option<String>,
    device_name: Option<String>,
    tag: Option<String>,
    no_device: Option<Value>,
    #[serde(rename = "connection_info")]
    _connection_info: Option<Value>,
    #[serde(rename = "device_type")]
    _device_type: Option<Value>,
    #[serde(rename = "disk_bus")]
    _disk_bus: Option<Value>,
    #[serde(rename = "guest_format")]
    _guest_format: Option<Value>,
}

impl BlockDevice {
    /// The order in which it is booted from; none or a negative one is never.
    fn boot_index(&self) -> Result<Option<u64>, Fault> {
        let wrong = || Fault::malformed("Block Device Mapping is Invalid: boot_index is no integer.");
        let number = match &self.boot_index {
            Value::Null => return Ok(None),
            Value::Number(number) => number.as_i64().ok_or_else(wrong)?,
            Value::String(text) if text.is_empty() || text == "None" => return Ok(None),
            Value::String(text) => text.parse().map_err(|_| wrong())?,
            _ => return Err(wrong()),
        };
        Ok(u64::try_from(number).ok())
    }

    fn is_the_image_itself(&self) -> Result<bool, Fault> {
        Ok(self.source_type.as_deref() == Some("image")
            && self.destination_type.as_deref().unwrap_or("local") == "local"
            && self.delete_on_termination != Some(false)
            && self.boot_index()? == Some(0))
    }

    fn into_device(self, version: Microversion) -> Result<NewDevice, Fault> {
        let boot = self.boot_index()? == Some(0);
        if let Some(other) =
            self.destination_type.as_deref().filter(|kind| !["local", "volume"].contains(kind))
        {
            return Err(Fault::malformed(format!(
                "Invalid input for field/attribute destination_type. Value: {other}. It is local or volume."
            )));
        }
        let to_volume = match (self.source_type.as_deref(), self.destination_type.as_deref()) {
            (Some("volume" | "snapshot"), None) => true,
            (_, destination) => destination == Some("volume"),
        };
        if !to_volume || self.no_device.is_some() {
            return Err(Fault::not_implemented("a block device that is local besides the image's own"));
        }
        if self.tag.is_some() && !version.at_least(2, 42) {
            return Err(Fault::malformed("Additional properties are not allowed ('tag' was unexpected)"));
        }
        if self.volume_type.is_some() && !version.at_least(2, 67) {
            return Err(Fault::malformed(
                "Additional properties are not allowed ('volume_type' was unexpected)",
            ));
        }
        let missing = || Fault::malformed("Block Device Mapping is Invalid: its uuid is missing.");
        let uuid = self.uuid.filter(|uuid| !uuid.is_empty());
        let source = match self.source_type.as_deref() {
            Some("volume") => DeviceSource::Volume(uuid.ok_or_else(missing)?),
            Some("image") => DeviceSource::Image(uuid.ok_or_else(missing)?),
            Some("snapshot") => DeviceSource::Snapshot(uuid.ok_or_else(missing)?),
            Some("blank") => DeviceSource::Blank,
            _ => {
                return Err(Fault::malformed("Block Device Mapping is Invalid: its source_type is unknown."));
            }
        };
        if matches!(source, DeviceSource::Image(_) | DeviceSource::Blank) && self.volume_size.is_none() {
            return Err(Fault::malformed(
                "Block Device Mapping is Invalid: Images and blank devices with destination_type 'volume' need to have a \
                 non-zero size specified",
            ));
        }
        Ok(NewDevice {
            source,
            size_gib: self.volume_size.map(u64::from),
            volume_type: self.volume_type.filter(|kind| !kind.is_empty()),
            boot,
            delete_on_termination: self.delete_on_termination.unwrap_or(false),
            device: self.device_name.filter(|_| !boot),
            tag: self.tag,
        })
    }
}

/// The image to boot from, empty if it is a volume, and the volumes: `imageRef` and the list may say the same.
pub(super) fn devices(
    image_ref: String,
    list: Vec<BlockDevice>,
    version: Microversion,
) -> Result<(String, Vec<NewDevice>), Fault> {
    let mut image = image_ref.rsplit('/').next().unwrap_or_default().to_owned();
    let mut devices = Vec::new();
    for device in list {
        if !device.is_the_image_itself()? {
            devices.push(device.into_device(version)?);
            continue;
        }
        match device.uuid {
            Some(uuid) if image.is_empty() || uuid == image => image = uuid,
            _ => return Err(Fault::malformed("Block Device Mapping is Invalid: its image is not imageRef.")),
        }
    }
    match (devices.iter().filter(|device| device.boot).count(), image.is_empty()) {
        (0, true) => Err(Fault::malformed(
            "Invalid image identifier or unable to access: neither image nor block device is given.",
        )),
        (0, false) | (1, true) => Ok((image, devices)),
        _ => Err(Fault::malformed(
            "Block Device Mapping is Invalid: Boot sequence for the instance and image/block device mapping \
             combination is not valid.",
        )),
    }
}
