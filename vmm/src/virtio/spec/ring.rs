//! Split virtqueues (VIRTIO 1.3 §2.7).

use virtio_bindings::virtio_ring;

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
