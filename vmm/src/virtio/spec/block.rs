//! Block devices (VIRTIO 1.3 §5.2).

use virtio_bindings::virtio_blk as header;

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
