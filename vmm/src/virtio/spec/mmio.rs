//! Registers of the memory-mapped transport (VIRTIO 1.3 §4.2.2), as offsets in bytes.

use virtio_bindings::virtio_mmio as header;

/// "virt", little-endian.
pub const MAGIC: u32 = u32::from_le_bytes(*b"virt");
/// The version of a transport that is not legacy.
pub const VERSION_MODERN: u32 = 2;
/// `VendorID` that we report: "WISP", little-endian.
pub const VENDOR: u32 = u32::from_le_bytes(*b"WISP");

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
