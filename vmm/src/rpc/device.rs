//! What a VMM tells of its guest's devices: which they are, and how far each is.

use serde::{Deserialize, Serialize};

use super::NicStatus;
use crate::config::DiskLimits;

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
    /// What became of a disk's requests; nothing of a VMM of before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<DiskCounts>,
    /// What a disk's guest is held to; nothing of a VMM of before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<DiskLimits>,
    /// A network device's queues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nic: Option<NicStatus>,
}

/// A virtio device, whether it comes and goes or is there to the end, with what went through its queues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioStatus {
    /// What people call such a device.
    pub kind: String,
    /// Which it is, of disks and network devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceName>,
    /// A driver has started it at some time.
    pub driven: bool,
    /// Each queue, in the order in which the device numbers them.
    pub queues: Vec<QueueTraffic>,
}

/// What went through a queue since this process has had the guest, or the guest the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct QueueTraffic {
    /// Requests that were done, or buffers that were used.
    pub requests: u64,
    /// Bytes of theirs that the device was given to read, the device's own headers among them.
    pub from_guest_bytes: u64,
    /// Bytes that it wrote, likewise.
    pub to_guest_bytes: u64,
}

/// What became of a disk's requests since this process has had the guest, or the guest the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DiskCounts {
    /// Flushes that the guest asked for.
    pub flushes: u64,
    /// Requests that failed, as the guest was told: what the host could not read or write, and what was no request.
    pub failures: u64,
    /// How often a request had to wait for a limit, and all behind it.
    pub throttled: u64,
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
