//! The constants of VIRTIO 1.3, under the names that the rest of the VMM uses: their only home. Here are
//! those that all devices share; what one device, one transport or the queues have stands in a file of its own.
//!
//! Numbers come from the kernel's own headers (`virtio-bindings`) where these have them. Feature bits are masks,
//! not bit numbers.

pub mod balloon;
pub mod block;
pub mod console;
pub mod mem;
pub mod mmio;
pub mod net;
pub mod pci;
pub mod pmem;
pub mod ring;
pub mod vsock;

use virtio_bindings::{virtio_config, virtio_ids, virtio_ring};

/// Device types (VIRTIO 1.3 §5).
pub mod device_type {
    use super::virtio_ids;

    /// A network card (§5.1).
    pub const NET: u32 = virtio_ids::VIRTIO_ID_NET;
    /// A block device (§5.2).
    pub const BLOCK: u32 = virtio_ids::VIRTIO_ID_BLOCK;
    /// A console (§5.3).
    pub const CONSOLE: u32 = virtio_ids::VIRTIO_ID_CONSOLE;
    /// Persistent memory (§5.19).
    pub const PMEM: u32 = virtio_ids::VIRTIO_ID_PMEM;
    /// A memory balloon (§5.5).
    pub const BALLOON: u32 = virtio_ids::VIRTIO_ID_BALLOON;
    /// Memory that comes and goes (§5.15).
    pub const MEM: u32 = virtio_ids::VIRTIO_ID_MEM;
    /// A socket device (§5.10).
    pub const VSOCK: u32 = virtio_ids::VIRTIO_ID_VSOCK;
    /// An entropy source (§5.4).
    pub const RNG: u32 = virtio_ids::VIRTIO_ID_RNG;

    /// What people call a device of this type.
    #[must_use]
    pub fn name(device_type: u32) -> &'static str {
        match device_type {
            NET => "network device",
            BLOCK => "disk",
            CONSOLE => "virtio console",
            PMEM => "persistent memory",
            BALLOON => "memory balloon",
            MEM => "memory that comes and goes",
            VSOCK => "socket device",
            RNG => "entropy source",
            _ => "virtio device of a type that is not known here",
        }
    }
}

/// Bits of the device status field (§2.1).
pub mod status {
    use super::virtio_config;

    /// The guest has noticed the device.
    pub const ACKNOWLEDGE: u32 = virtio_config::VIRTIO_CONFIG_S_ACKNOWLEDGE;
    /// The guest knows how to drive it.
    pub const DRIVER: u32 = virtio_config::VIRTIO_CONFIG_S_DRIVER;
    /// The driver is set up.
    pub const DRIVER_OK: u32 = virtio_config::VIRTIO_CONFIG_S_DRIVER_OK;
    /// Feature negotiation is over.
    pub const FEATURES_OK: u32 = virtio_config::VIRTIO_CONFIG_S_FEATURES_OK;
    /// The device cannot go on without a reset.
    pub const NEEDS_RESET: u32 = virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
    /// The guest has given up on the device.
    pub const FAILED: u32 = virtio_config::VIRTIO_CONFIG_S_FAILED;
}

/// Feature bits that belong to no device type (§6).
pub mod feature {
    use super::{virtio_config, virtio_ring};

    /// Descriptors may point to a table of descriptors.
    pub const RING_INDIRECT_DESC: u64 = 1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
    /// `used_event` and `avail_event` say when to notify.
    pub const RING_EVENT_IDX: u64 = 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX;
    /// Not a legacy device.
    pub const VERSION_1: u64 = 1 << virtio_config::VIRTIO_F_VERSION_1;
}
