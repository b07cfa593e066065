//! The header of a packet (VIRTIO 1.3 §5.10.6), as the bytes lie.

use super::super::spec::vsock as spec;

/// `struct virtio_vsock_hdr`: src_cid u64, dst_cid u64, src_port u32, dst_port u32, len u32, type u16, op u16, flags u32,
/// buf_alloc u32, fwd_cnt u32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    /// Who sends.
    pub src_cid: u64,
    /// To whom.
    pub dst_cid: u64,
    /// The sender's port.
    pub src_port: u32,
    /// The receiver's.
    pub dst_port: u32,
    /// Bytes of data behind the header.
    pub length: u32,
    /// The kind of socket.
    pub kind: u16,
    /// What it is for.
    pub op: u16,
    /// What is shut down.
    pub flags: u32,
    /// Bytes that the sender can hold of this connection.
    pub buf_alloc: u32,
    /// Bytes that it has passed on, in all, wrapping.
    pub fwd_cnt: u32,
}

fn number<const N: usize>(bytes: &[u8; spec::HEADER_BYTES], at: usize) -> [u8; N] {
    let mut number = [0; N];
    number.copy_from_slice(&bytes[at..at + N]);
    number
}

impl Header {
    /// The header that `bytes` are; every bytes are one.
    #[must_use]
    pub fn parse(bytes: &[u8; spec::HEADER_BYTES]) -> Self {
        Self {
            src_cid: u64::from_le_bytes(number(bytes, 0)),
            dst_cid: u64::from_le_bytes(number(bytes, 8)),
            src_port: u32::from_le_bytes(number(bytes, 16)),
            dst_port: u32::from_le_bytes(number(bytes, 20)),
            length: u32::from_le_bytes(number(bytes, 24)),
            kind: u16::from_le_bytes(number(bytes, 28)),
            op: u16::from_le_bytes(number(bytes, 30)),
            flags: u32::from_le_bytes(number(bytes, 32)),
            buf_alloc: u32::from_le_bytes(number(bytes, 36)),
            fwd_cnt: u32::from_le_bytes(number(bytes, 40)),
        }
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; spec::HEADER_BYTES] {
        let mut bytes = [0; spec::HEADER_BYTES];
        let mut put = |at: usize, number: &[u8]| bytes[at..at + number.len()].copy_from_slice(number);
        put(0, &self.src_cid.to_le_bytes());
        put(8, &self.dst_cid.to_le_bytes());
        put(16, &self.src_port.to_le_bytes());
        put(20, &self.dst_port.to_le_bytes());
        put(24, &self.length.to_le_bytes());
        put(28, &self.kind.to_le_bytes());
        put(30, &self.op.to_le_bytes());
        put(32, &self.flags.to_le_bytes());
        put(36, &self.buf_alloc.to_le_bytes());
        put(40, &self.fwd_cnt.to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_is_its_bytes_in_order() {
        let mut bytes = [0; spec::HEADER_BYTES];
        bytes.iter_mut().zip(1..).for_each(|(byte, value)| *byte = value);
        let header = Header::parse(&bytes);
        assert_eq!((header.src_cid, header.dst_port), (0x0807_0605_0403_0201, 0x1817_1615));
        assert_eq!((header.op, header.fwd_cnt), (0x201f, 0x2c2b_2a29));
        assert_eq!(header.encode(), bytes);
    }
}
