//! What a guest says of its memory (VIRTIO 1.3 §5.5.6.3).

use serde::{Deserialize, Serialize};

use crate::memory::GuestMemory;
use crate::virtio::queue::Chain;
use crate::virtio::spec::balloon as spec;

/// The most statistics that one buffer has; there are some twenty.
pub const STATISTICS_MAX: u64 = 64;

/// What a guest says of its memory, in bytes and counts since its start (§5.5.6.4); what it does not say is absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Statistics {
    /// All that it manages.
    pub total_bytes: Option<u64>,
    /// Not used for anything.
    pub free_bytes: Option<u64>,
    /// What could be had without swapping.
    pub available_bytes: Option<u64>,
    /// Caches of files.
    pub cached_bytes: Option<u64>,
    /// Read from swap.
    pub swapped_in_bytes: Option<u64>,
    /// Written to swap.
    pub swapped_out_bytes: Option<u64>,
    /// Page faults that needed a disk.
    pub major_faults: Option<u64>,
    /// Other page faults.
    pub minor_faults: Option<u64>,
}

impl Statistics {
    /// What a guest says: tags of 16 bits, each with a value of 64 (§5.5.6.3).
    pub(super) fn read(memory: &GuestMemory, chain: &Chain) -> Self {
        const BYTES: u64 = 10;
        let mut statistics = Self::default();
        for index in 0..(chain.readable_bytes() / BYTES).min(STATISTICS_MAX) {
            let mut bytes = [0; BYTES as usize];
            if chain.read_at(memory, index * BYTES, &mut bytes) < bytes.len() {
                break;
            }
            let [low, high, value @ ..] = bytes;
            let place = match u16::from_le_bytes([low, high]) {
                spec::S_SWAP_IN => &mut statistics.swapped_in_bytes,
                spec::S_SWAP_OUT => &mut statistics.swapped_out_bytes,
                spec::S_MAJFLT => &mut statistics.major_faults,
                spec::S_MINFLT => &mut statistics.minor_faults,
                spec::S_MEMFREE => &mut statistics.free_bytes,
                spec::S_MEMTOT => &mut statistics.total_bytes,
                spec::S_AVAIL => &mut statistics.available_bytes,
                spec::S_CACHES => &mut statistics.cached_bytes,
                _ => continue,
            };
            *place = Some(u64::from_le_bytes(value));
        }
        statistics
    }
}
