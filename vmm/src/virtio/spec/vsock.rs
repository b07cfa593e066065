//! Socket devices (VIRTIO 1.3 §5.10).

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
