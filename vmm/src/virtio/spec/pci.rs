//! The PCI transport (VIRTIO 1.3 §4.1): numbers of a function, its capabilities, and the common configuration structure as
//! offsets in bytes.

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
