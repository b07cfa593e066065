//! Network devices (VIRTIO 1.3 §5.1).

use virtio_bindings::virtio_net as header;

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
