//! The constants of VIRTIO 1.3, under the names that the rest of the VMM uses: their only home.
//!
//! Numbers come from the kernel's own headers (`virtio-bindings`) where these have them. Feature bits are masks,
//! not bit numbers.

use virtio_bindings::{virtio_blk, virtio_config, virtio_ids, virtio_mmio, virtio_net, virtio_ring};

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

/// Split virtqueues (§2.7).
pub mod ring {
    use super::virtio_ring;

    /// The driver asks for no interrupt (`VIRTQ_AVAIL_F_NO_INTERRUPT`, §2.7.6).
    pub const AVAIL_F_NO_INTERRUPT: u16 = virtio_ring::VRING_AVAIL_F_NO_INTERRUPT as u16;
    /// Bytes of either ring before its elements: flags u16, idx u16.
    pub const AVAIL_HEADER_BYTES: u64 = 4;
    /// Likewise.
    pub const USED_HEADER_BYTES: u64 = 4;
    /// Bytes of an element of the used ring: id u32, len u32.
    pub const USED_ELEMENT_BYTES: u64 = 8;
    /// Bytes of an element of the available ring.
    pub const AVAIL_ELEMENT_BYTES: u64 = 2;
    /// The device asks for no notification (`VIRTQ_USED_F_NO_NOTIFY`, §2.7.8).
    pub const USED_F_NO_NOTIFY: u16 = virtio_ring::VRING_USED_F_NO_NOTIFY as u16;
    /// What the descriptor table's address is a multiple of (§2.7).
    pub const DESC_ALIGNMENT: u64 = virtio_ring::VRING_DESC_ALIGN_SIZE as u64;
    /// What the available ring's is.
    pub const AVAIL_ALIGNMENT: u64 = virtio_ring::VRING_AVAIL_ALIGN_SIZE as u64;
    /// What the used ring's is.
    pub const USED_ALIGNMENT: u64 = virtio_ring::VRING_USED_ALIGN_SIZE as u64;
    /// The chain continues (§2.7.5).
    pub const DESC_F_NEXT: u16 = virtio_ring::VRING_DESC_F_NEXT as u16;
    /// The device writes this buffer (§2.7.5).
    pub const DESC_F_WRITE: u16 = virtio_ring::VRING_DESC_F_WRITE as u16;
    /// The buffer is a table of descriptors (§2.7.5.3).
    pub const DESC_F_INDIRECT: u16 = virtio_ring::VRING_DESC_F_INDIRECT as u16;
    /// Bytes of one descriptor.
    pub const DESC_BYTES: u64 = 16;
}

/// Registers of the memory-mapped transport (§4.2.2), as offsets in bytes.
pub mod mmio {
    use super::virtio_mmio as header;

    /// "virt", little-endian.
    pub const MAGIC: u32 = u32::from_le_bytes(*b"virt");
    /// The version of a transport that is not legacy.
    pub const VERSION_MODERN: u32 = 2;
    /// `VendorID` that we report: "WISP", little-endian.
    pub const VENDOR: u32 = u32::from_le_bytes(*b"WISP");
    /// Bytes of one device's register window, its configuration space included.
    pub const WINDOW_BYTES: u64 = 0x1000;

    /// `MagicValue`, R.
    pub const MAGIC_VALUE: u32 = header::VIRTIO_MMIO_MAGIC_VALUE;
    /// `Version`, R.
    pub const VERSION: u32 = header::VIRTIO_MMIO_VERSION;
    /// `DeviceID`, R.
    pub const DEVICE_ID: u32 = header::VIRTIO_MMIO_DEVICE_ID;
    /// `VendorID`, R.
    pub const VENDOR_ID: u32 = header::VIRTIO_MMIO_VENDOR_ID;
    /// `DeviceFeatures`, R.
    pub const DEVICE_FEATURES: u32 = header::VIRTIO_MMIO_DEVICE_FEATURES;
    /// `DeviceFeaturesSel`, W.
    pub const DEVICE_FEATURES_SEL: u32 = header::VIRTIO_MMIO_DEVICE_FEATURES_SEL;
    /// `DriverFeatures`, W.
    pub const DRIVER_FEATURES: u32 = header::VIRTIO_MMIO_DRIVER_FEATURES;
    /// `DriverFeaturesSel`, W.
    pub const DRIVER_FEATURES_SEL: u32 = header::VIRTIO_MMIO_DRIVER_FEATURES_SEL;
    /// `QueueSel`, W.
    pub const QUEUE_SEL: u32 = header::VIRTIO_MMIO_QUEUE_SEL;
    /// `QueueSizeMax`, R.
    pub const QUEUE_SIZE_MAX: u32 = header::VIRTIO_MMIO_QUEUE_NUM_MAX;
    /// `QueueSize`, W.
    pub const QUEUE_SIZE: u32 = header::VIRTIO_MMIO_QUEUE_NUM;
    /// `QueueReady`, RW.
    pub const QUEUE_READY: u32 = header::VIRTIO_MMIO_QUEUE_READY;
    /// `QueueNotify`, W.
    pub const QUEUE_NOTIFY: u32 = header::VIRTIO_MMIO_QUEUE_NOTIFY;
    /// `InterruptStatus`, R.
    pub const INTERRUPT_STATUS: u32 = header::VIRTIO_MMIO_INTERRUPT_STATUS;
    /// `InterruptACK`, W.
    pub const INTERRUPT_ACK: u32 = header::VIRTIO_MMIO_INTERRUPT_ACK;
    /// `Status`, RW.
    pub const STATUS: u32 = header::VIRTIO_MMIO_STATUS;
    /// `QueueDescLow`, W.
    pub const QUEUE_DESC_LOW: u32 = header::VIRTIO_MMIO_QUEUE_DESC_LOW;
    /// `QueueDescHigh`, W.
    pub const QUEUE_DESC_HIGH: u32 = header::VIRTIO_MMIO_QUEUE_DESC_HIGH;
    /// `QueueDriverLow`, W.
    pub const QUEUE_DRIVER_LOW: u32 = header::VIRTIO_MMIO_QUEUE_AVAIL_LOW;
    /// `QueueDriverHigh`, W.
    pub const QUEUE_DRIVER_HIGH: u32 = header::VIRTIO_MMIO_QUEUE_AVAIL_HIGH;
    /// `QueueDeviceLow`, W.
    pub const QUEUE_DEVICE_LOW: u32 = header::VIRTIO_MMIO_QUEUE_USED_LOW;
    /// `QueueDeviceHigh`, W.
    pub const QUEUE_DEVICE_HIGH: u32 = header::VIRTIO_MMIO_QUEUE_USED_HIGH;
    /// `SHMLenLow`, R; all ones says that the region does not exist.
    pub const SHM_LEN_LOW: u32 = header::VIRTIO_MMIO_SHM_LEN_LOW;
    /// `SHMBaseHigh`, R; the last of the shared-memory registers.
    pub const SHM_BASE_HIGH: u32 = header::VIRTIO_MMIO_SHM_BASE_HIGH;
    /// `ConfigGeneration`, R.
    pub const CONFIG_GENERATION: u32 = header::VIRTIO_MMIO_CONFIG_GENERATION;
    /// Start of the device's configuration space.
    pub const CONFIG: u32 = header::VIRTIO_MMIO_CONFIG;

    /// `InterruptStatus`: buffers were used.
    pub const INTERRUPT_QUEUE: u32 = header::VIRTIO_MMIO_INT_VRING;
    /// `InterruptStatus`: the configuration (or the status) changed.
    pub const INTERRUPT_CONFIG: u32 = header::VIRTIO_MMIO_INT_CONFIG;
}

/// The PCI transport (§4.1): numbers of a function, its capabilities, and the common configuration structure as
/// offsets in bytes.
pub mod pci {
    /// The vendor of every virtio function (§4.1.2).
    pub const VENDOR: u16 = 0x1af4;
    /// The device number is this and the device type.
    pub const DEVICE_BASE: u16 = 0x1040;
    /// The revision of a function that is not transitional, at the least.
    pub const REVISION: u8 = 1;
    /// The subsystem's device number of a function that is not transitional, at the least (§4.1.2.1).
    pub const SUBSYSTEM: u16 = 0x40;

    /// The id of vendor-specific capabilities.
    pub const CAP_VENDOR: u8 = 9;
    /// `cfg_type`: common configuration.
    pub const CAP_COMMON: u8 = 1;
    /// `cfg_type`: notifications.
    pub const CAP_NOTIFY: u8 = 2;
    /// `cfg_type`: ISR status.
    pub const CAP_ISR: u8 = 3;
    /// `cfg_type`: device configuration.
    pub const CAP_DEVICE: u8 = 4;
    /// `cfg_type`: access to the BAR through configuration space.
    pub const CAP_PCI: u8 = 5;
    /// Offset of `bar` in a capability.
    pub const CAP_BAR_AT: usize = 4;
    /// Offset of `offset` in a capability.
    pub const CAP_OFFSET_AT: usize = 8;
    /// Offset of `length` in a capability.
    pub const CAP_LENGTH_AT: usize = 12;
    /// Offset of `pci_cfg_data` in the capability for access through configuration space.
    pub const CAP_DATA_AT: usize = 16;

    /// A vector's number that means none.
    pub const NO_VECTOR: u16 = 0xffff;
    /// ISR status: buffers were used.
    pub const ISR_QUEUE: u8 = 1;
    /// ISR status: the configuration (or the status) changed.
    pub const ISR_CONFIG: u8 = 2;

    /// `device_feature_select`, u32.
    pub const DEVICE_FEATURE_SELECT: u64 = 0;
    /// `device_feature`, u32, read-only.
    pub const DEVICE_FEATURE: u64 = 4;
    /// `driver_feature_select`, u32.
    pub const DRIVER_FEATURE_SELECT: u64 = 8;
    /// `driver_feature`, u32.
    pub const DRIVER_FEATURE: u64 = 12;
    /// `config_msix_vector`, u16.
    pub const CONFIG_MSIX_VECTOR: u64 = 16;
    /// `num_queues`, u16, read-only.
    pub const NUM_QUEUES: u64 = 18;
    /// `device_status`, u8.
    pub const DEVICE_STATUS: u64 = 20;
    /// `config_generation`, u8, read-only.
    pub const CONFIG_GENERATION: u64 = 21;
    /// `queue_select`, u16.
    pub const QUEUE_SELECT: u64 = 22;
    /// `queue_size`, u16.
    pub const QUEUE_SIZE: u64 = 24;
    /// `queue_msix_vector`, u16.
    pub const QUEUE_MSIX_VECTOR: u64 = 26;
    /// `queue_enable`, u16.
    pub const QUEUE_ENABLE: u64 = 28;
    /// `queue_notify_off`, u16, read-only.
    pub const QUEUE_NOTIFY_OFF: u64 = 30;
    /// `queue_desc`, u64 as two halves.
    pub const QUEUE_DESC: u64 = 32;
    /// `queue_driver`, likewise.
    pub const QUEUE_DRIVER: u64 = 40;
    /// `queue_device`, likewise; the last register here.
    pub const QUEUE_DEVICE: u64 = 48;
    /// Bytes of the structure up to and with `queue_device`.
    pub const COMMON_BYTES: u32 = 56;
}

/// Block devices (§5.2).
pub mod block {
    use super::virtio_blk as header;

    /// The unit of all block addresses in bytes, whatever `blk_size` says (§5.2.6).
    pub const SECTOR_BYTES: u64 = 512;

    /// `size_max` is valid.
    pub const F_SIZE_MAX: u64 = 1 << header::VIRTIO_BLK_F_SIZE_MAX;
    /// `seg_max` is valid.
    pub const F_SEG_MAX: u64 = 1 << header::VIRTIO_BLK_F_SEG_MAX;
    /// The disk is read-only.
    pub const F_RO: u64 = 1 << header::VIRTIO_BLK_F_RO;
    /// `blk_size` is valid.
    pub const F_BLK_SIZE: u64 = 1 << header::VIRTIO_BLK_F_BLK_SIZE;
    /// The cache can be flushed.
    pub const F_FLUSH: u64 = 1 << header::VIRTIO_BLK_F_FLUSH;
    /// The topology fields are valid.
    pub const F_TOPOLOGY: u64 = 1 << header::VIRTIO_BLK_F_TOPOLOGY;
    /// There are `num_queues` queues.
    pub const F_MQ: u64 = 1 << header::VIRTIO_BLK_F_MQ;
    /// Ranges can be discarded.
    pub const F_DISCARD: u64 = 1 << header::VIRTIO_BLK_F_DISCARD;
    /// Ranges can be zeroed.
    pub const F_WRITE_ZEROES: u64 = 1 << header::VIRTIO_BLK_F_WRITE_ZEROES;

    /// Request: read.
    pub const T_IN: u32 = header::VIRTIO_BLK_T_IN;
    /// Request: write.
    pub const T_OUT: u32 = header::VIRTIO_BLK_T_OUT;
    /// Request: flush.
    pub const T_FLUSH: u32 = header::VIRTIO_BLK_T_FLUSH;
    /// Request: the serial.
    pub const T_GET_ID: u32 = header::VIRTIO_BLK_T_GET_ID;
    /// Request: discard.
    pub const T_DISCARD: u32 = header::VIRTIO_BLK_T_DISCARD;
    /// Request: zero.
    pub const T_WRITE_ZEROES: u32 = header::VIRTIO_BLK_T_WRITE_ZEROES;
    /// Flag of a `T_WRITE_ZEROES` segment: the range may be unmapped.
    pub const WRITE_ZEROES_FLAG_UNMAP: u32 = header::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;

    /// Status: done.
    pub const S_OK: u8 = header::VIRTIO_BLK_S_OK as u8;
    /// Status: failed.
    pub const S_IOERR: u8 = header::VIRTIO_BLK_S_IOERR as u8;
    /// Status: no such request.
    pub const S_UNSUPP: u8 = header::VIRTIO_BLK_S_UNSUPP as u8;

    /// Bytes of the answer to `T_GET_ID`.
    pub const ID_BYTES: usize = header::VIRTIO_BLK_ID_BYTES as usize;
    /// Bytes of a request's header: type u32, reserved u32, sector u64 (§5.2.6).
    pub const REQUEST_HEADER_BYTES: usize = 16;
    /// Bytes of one discard or zero segment: sector u64, sectors u32, flags u32 (§5.2.6).
    pub const RANGE_BYTES: usize = 16;
}

/// Network devices (§5.1).
pub mod net {
    use super::virtio_net as header;

    /// Index of `receiveq1`; that of the next pair is [`QUEUES_OF_PAIR`] further, and so on (§5.1.2).
    pub const QUEUE_RX: usize = 0;
    /// Index of `transmitq1`, likewise.
    pub const QUEUE_TX: usize = 1;
    /// Queues of a pair; `controlq` is behind the last pair, or behind the first without [`F_MQ`].
    pub const QUEUES_OF_PAIR: usize = 2;

    /// The device takes packets with partial checksums.
    pub const F_CSUM: u64 = 1 << header::VIRTIO_NET_F_CSUM;
    /// The driver takes packets with partial checksums.
    pub const F_GUEST_CSUM: u64 = 1 << header::VIRTIO_NET_F_GUEST_CSUM;
    /// `mtu` is valid.
    pub const F_MTU: u64 = 1 << header::VIRTIO_NET_F_MTU;
    /// `mac` is valid.
    pub const F_MAC: u64 = 1 << header::VIRTIO_NET_F_MAC;
    /// The driver takes TSOv4.
    pub const F_GUEST_TSO4: u64 = 1 << header::VIRTIO_NET_F_GUEST_TSO4;
    /// The driver takes TSOv6.
    pub const F_GUEST_TSO6: u64 = 1 << header::VIRTIO_NET_F_GUEST_TSO6;
    /// The device takes TSOv4.
    pub const F_HOST_TSO4: u64 = 1 << header::VIRTIO_NET_F_HOST_TSO4;
    /// The device takes TSOv6.
    pub const F_HOST_TSO6: u64 = 1 << header::VIRTIO_NET_F_HOST_TSO6;
    /// A packet may span several receive buffers.
    pub const F_MRG_RXBUF: u64 = 1 << header::VIRTIO_NET_F_MRG_RXBUF;
    /// `status` is valid.
    pub const F_STATUS: u64 = 1 << header::VIRTIO_NET_F_STATUS;

    /// There is a control queue.
    pub const F_CTRL_VQ: u64 = 1 << header::VIRTIO_NET_F_CTRL_VQ;
    /// `max_virtqueue_pairs` is valid, and the driver may use as many.
    pub const F_MQ: u64 = 1 << header::VIRTIO_NET_F_MQ;

    /// A command's `class` and `command`: use so many pairs, a u16 (§5.1.6.5.6).
    pub const CTRL_MQ_VQ_PAIRS_SET: [u8; 2] =
        [header::VIRTIO_NET_CTRL_MQ as u8, header::VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET as u8];
    /// `ack`: done.
    pub const CTRL_OK: u8 = header::VIRTIO_NET_OK as u8;
    /// `ack`: refused.
    pub const CTRL_ERR: u8 = header::VIRTIO_NET_ERR as u8;

    /// `status`: the link is up.
    pub const S_LINK_UP: u16 = header::VIRTIO_NET_S_LINK_UP as u16;

    /// Bytes of `virtio_net_hdr` with `num_buffers`: flags u8, gso_type u8, hdr_len u16, gso_size u16,
    /// csum_start u16, csum_offset u16, num_buffers u16 (§5.1.6).
    pub const HEADER_BYTES: usize = 12;
    /// Offset of `gso_type` in the header.
    pub const HEADER_GSO_TYPE: usize = 1;
    /// Offset of `gso_size` in the header.
    pub const HEADER_GSO_SIZE: usize = 4;
    /// Offset of `num_buffers` in the header.
    pub const HEADER_NUM_BUFFERS: usize = 10;
    /// Header flag: the checksum is partial.
    pub const HDR_F_NEEDS_CSUM: u8 = header::VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
    /// No segmentation.
    pub const GSO_NONE: u8 = header::VIRTIO_NET_HDR_GSO_NONE as u8;
    /// TCP over IPv4.
    pub const GSO_TCPV4: u8 = header::VIRTIO_NET_HDR_GSO_TCPV4 as u8;
    /// TCP over IPv6.
    pub const GSO_TCPV6: u8 = header::VIRTIO_NET_HDR_GSO_TCPV6 as u8;
}

/// Consoles (§5.3).
pub mod console {
    /// Index of `receiveq` of port 0.
    pub const QUEUE_RX: usize = 0;
    /// Index of `transmitq` of port 0.
    pub const QUEUE_TX: usize = 1;

    /// `cols` and `rows` are valid.
    pub const F_SIZE: u64 = 1 << 0;
}

/// Socket devices (§5.10).
pub mod vsock {
    /// Index of the receive queue.
    pub const QUEUE_RX: usize = 0;
    /// Index of the transmit queue.
    pub const QUEUE_TX: usize = 1;
    /// Index of the event queue.
    pub const QUEUE_EVENT: usize = 2;

    /// There are stream sockets (`VIRTIO_VSOCK_F_STREAM`).
    pub const F_STREAM: u64 = 1 << 0;

    /// The host's address (§5.10.4).
    pub const HOST_CID: u64 = 2;
    /// Bytes of a packet's header (§5.10.6).
    pub const HEADER_BYTES: usize = 44;
    /// `type`: a stream.
    pub const TYPE_STREAM: u16 = 1;
    /// `op`: may a connection begin?
    pub const OP_REQUEST: u16 = 1;
    /// `op`: it may.
    pub const OP_RESPONSE: u16 = 2;
    /// `op`: there is none, or it is over.
    pub const OP_RST: u16 = 3;
    /// `op`: a direction is over.
    pub const OP_SHUTDOWN: u16 = 4;
    /// `op`: data.
    pub const OP_RW: u16 = 5;
    /// `op`: how much room there is.
    pub const OP_CREDIT_UPDATE: u16 = 6;
    /// `op`: how much room is there?
    pub const OP_CREDIT_REQUEST: u16 = 7;
    /// Flag of a shutdown: who says so receives no more.
    pub const SHUTDOWN_RECEIVE: u32 = 1;
    /// Flag of a shutdown: who says so sends no more.
    pub const SHUTDOWN_SEND: u32 = 2;
    /// Both flags.
    pub const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;
    /// `id` of an event: all connections are gone, and the guest's address may be another one (§5.10.6.7).
    pub const EVENT_TRANSPORT_RESET: u32 = 0;
}

/// Memory balloons (§5.5).
pub mod balloon {
    /// Index of the queue of pages that the guest gives.
    pub const QUEUE_INFLATE: usize = 0;
    /// Index of the queue of pages that it takes back.
    pub const QUEUE_DEFLATE: usize = 1;
    /// Index of the queue of statistics.
    pub const QUEUE_STATISTICS: usize = 2;
    /// Index of the queue of hints; of reports for a driver that takes no hints and does not count their queue.
    pub const QUEUE_HINTS: usize = 3;
    /// Index of the queue of reports.
    pub const QUEUE_REPORTS: usize = 4;

    /// There are statistics (`VIRTIO_BALLOON_F_STATS_VQ`).
    pub const F_STATS_VQ: u64 = 1 << 1;
    /// A guest without memory takes pages back by itself (`VIRTIO_BALLOON_F_DEFLATE_ON_OOM`).
    pub const F_DEFLATE_ON_OOM: u64 = 1 << 2;
    /// Free pages are hinted at when the device asks (`VIRTIO_BALLOON_F_FREE_PAGE_HINT`).
    pub const F_FREE_PAGE_HINT: u64 = 1 << 3;
    /// The driver says what it fills free pages with (`VIRTIO_BALLOON_F_PAGE_POISON`).
    pub const F_PAGE_POISON: u64 = 1 << 4;
    /// Free pages are reported (`VIRTIO_BALLOON_F_PAGE_REPORTING`).
    pub const F_PAGE_REPORTING: u64 = 1 << 5;

    /// Bytes of the configuration space: num_pages u32 @0, actual u32 @4, free_page_hint_cmd_id u32 @8, poison_val u32 @12 (§5.5.4).
    pub const CONFIG_BYTES: usize = 16;
    /// Offset of `actual`.
    pub const CONFIG_ACTUAL: u64 = 4;
    /// Offset of `poison_val`.
    pub const CONFIG_POISON: u64 = 12;
    /// `free_page_hint_cmd_id`, and what a driver says last: no more hints (`VIRTIO_BALLOON_CMD_ID_STOP`).
    pub const HINTS_STOP: u32 = 0;
    /// `free_page_hint_cmd_id`: what was hinted at may be used again (`VIRTIO_BALLOON_CMD_ID_DONE`).
    pub const HINTS_DONE: u32 = 1;
    /// The least number of a request for hints.
    pub const HINTS_FIRST: u32 = 2;

    /// Statistic: bytes read from swap.
    pub const S_SWAP_IN: u16 = 0;
    /// Statistic: bytes written to swap.
    pub const S_SWAP_OUT: u16 = 1;
    /// Statistic: major faults.
    pub const S_MAJFLT: u16 = 2;
    /// Statistic: minor faults.
    pub const S_MINFLT: u16 = 3;
    /// Statistic: free bytes.
    pub const S_MEMFREE: u16 = 4;
    /// Statistic: all bytes.
    pub const S_MEMTOT: u16 = 5;
    /// Statistic: available bytes.
    pub const S_AVAIL: u16 = 6;
    /// Statistic: bytes of caches.
    pub const S_CACHES: u16 = 7;
}

/// Memory that comes and goes (§5.15).
pub mod mem {
    /// Bytes of a request: type u16 @0, address u64 @8, blocks u16 @16.
    pub const REQUEST_BYTES: usize = 24;
    /// Those of one that is about all memory.
    pub const REQUEST_HEADER_BYTES: usize = 8;
    /// `type`: blocks come.
    pub const REQUEST_PLUG: u16 = 0;
    /// `type`: blocks go.
    pub const REQUEST_UNPLUG: u16 = 1;
    /// `type`: all blocks go.
    pub const REQUEST_UNPLUG_ALL: u16 = 2;
    /// `type`: the guest asks whether blocks are plugged.
    pub const REQUEST_STATE: u16 = 3;
    /// Bytes of an answer: type u16 @0, state u16 @8.
    pub const RESPONSE_BYTES: usize = 10;
    /// `type`: it is done.
    pub const RESPONSE_ACK: u16 = 0;
    /// `type`: it is not wanted now.
    pub const RESPONSE_NACK: u16 = 1;
    /// `type`: it cannot be now, and may be tried again.
    pub const RESPONSE_BUSY: u16 = 2;
    /// `type`: it cannot be.
    pub const RESPONSE_ERROR: u16 = 3;
    /// `state`: all of them are plugged.
    pub const STATE_PLUGGED: u16 = 0;
    /// `state`: none is.
    pub const STATE_UNPLUGGED: u16 = 1;
    /// `state`: some are.
    pub const STATE_MIXED: u16 = 2;
}

/// Persistent memory (§5.19).
pub mod pmem {
    /// Bytes of a request: type u32.
    pub const REQUEST_BYTES: usize = 4;
    /// `type`: what was written becomes durable.
    pub const REQUEST_FLUSH: u32 = 0;
    /// Bytes of an answer: ret u32.
    pub const RESPONSE_BYTES: usize = 4;
    /// `ret`: it is.
    pub const RESPONSE_OK: u32 = 0;
    /// `ret`: it is not, minus one.
    pub const RESPONSE_FAILED: u32 = u32::MAX;
}
