//! Consoles (VIRTIO 1.3 §5.3).

/// Index of `receiveq` of port 0.
pub const QUEUE_RX: usize = 0;
/// Index of `transmitq` of port 0.
pub const QUEUE_TX: usize = 1;

/// `cols` and `rows` are valid.
pub const F_SIZE: u64 = 1 << 0;
