//! What a VMM tells of its guest's devices: which they are, and how far each is.

use serde::{Deserialize, Serialize};

use super::NicStatus;

/// What a device is known by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceName {
    /// A disk, by its serial number.
    Disk(String),
    /// A network device, by its MAC address.
    Nic([u8; 6]),
}

/// How far a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceState {
    /// The guest has it, and it can be taken away.
    Present,
    /// The guest has it until it ends: it is on virtio-mmio.
    Fixed,
    /// The guest was asked to let it go, and has it still.
    Leaving,
    /// It is not there.
    Gone,
}

/// One device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// Which.
    pub device: DeviceName,
    /// How far it is.
    pub state: DeviceState,
    /// A disk's size in bytes.
    #[serde(default)]
    pub bytes: Option<u64>,
    /// How a disk's files are read and written.
    #[serde(default)]
    pub engine: Option<DiskEngine>,
    /// A network device's queues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nic: Option<NicStatus>,
}

/// How a disk's requests reach its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskEngine {
    /// Many at a time, by the kernel's io_uring.
    IoUring,
    /// One after the other: the kernel allows no io_uring, or the disk does not say where its bytes lie.
    Synchronous,
}
