//! Persistent memory (VIRTIO 1.3 §5.19).

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
