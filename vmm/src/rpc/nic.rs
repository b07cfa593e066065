//! A network device's queues, as a VMM tells of them.

use serde::{Deserialize, Serialize};

use crate::config::Traffic;

/// A network device's pairs of queues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicStatus {
    /// How many of them the guest's driver uses, the first ones: at least one.
    pub used: u16,
    /// Each with what went through it since this process has had the guest, or the guest the device.
    pub pairs: Vec<PairStatus>,
    /// What its guest is held to; nothing of a VMM of before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Traffic>,
}

/// A pair of queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PairStatus {
    /// To the guest, what its VMM answers included.
    pub receive: QueueCounts,
    /// From the guest, what its VMM takes included.
    pub transmit: QueueCounts,
}

/// What went through a queue. A packet whose segments are still to be cut is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct QueueCounts {
    /// Packets.
    pub packets: u64,
    /// Their bytes, without the header of virtio.
    pub bytes: u64,
    /// Packets that were lost here: what the host did not take, or the guest had no buffers for that could hold it, or what was
    /// no packet.
    pub drops: u64,
}
