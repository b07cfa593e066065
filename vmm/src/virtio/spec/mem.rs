//! Memory that comes and goes (VIRTIO 1.3 §5.15).

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
