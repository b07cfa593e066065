//! Frames of a load over the network, as far as it needs them: ARP (RFC 826), and UDP (RFC 768) and TCP (RFC 9293) in IPv4.
//! Checksums of both are left to the device: what is written has the pseudo-header's sum (VIRTIO 1.3 §5.1.6.2), and what comes in was
//! looked at before.

use core::net::Ipv4Addr;
use core::ops::Range;

/// Ethernet's and IPv4's headers, in bytes; neither has anything optional.
pub const IP_END: usize = 14 + 20;
/// With UDP's.
pub const UDP_END: usize = IP_END + 8;
/// With TCP's, without options.
pub const TCP_END: usize = IP_END + 20;
/// With the options of a segment that begins a connection: the longest headers written.
pub const HEADERS_MAX: usize = TCP_END + 8;
/// Bytes of an ARP packet in its frame.
pub const ARP_END: usize = 14 + 28;
/// Where UDP and TCP have their checksums, after the IPv4 header.
pub const UDP_CHECKSUM: u16 = 6;
/// TCP's.
pub const TCP_CHECKSUM: u16 = 16;

/// The acknowledgement is valid.
pub const ACK: u8 = 0x10;
/// Data shall be passed on.
pub const PUSH: u8 = 0x08;
/// The connection is cut.
pub const RESET: u8 = 0x04;
/// It begins.
pub const SYN: u8 = 0x02;
/// Its sender has no more to say.
pub const FIN: u8 = 0x01;

const UDP: u8 = 17;
const TCP: u8 = 6;

/// Somebody on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// The MAC address.
    pub mac: [u8; 6],
    /// The IPv4 address.
    pub address: Ipv4Addr,
}

/// Two ends of a conversation; the peer's MAC address is that of the next hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Ours.
    pub own: Host,
    /// Our port.
    pub own_port: u16,
    /// The other's.
    pub peer: Host,
    /// Its port.
    pub peer_port: u16,
}

/// A TCP segment without what it carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Segment {
    /// The number of its first byte.
    pub sequence: u32,
    /// The next byte that its sender expects.
    pub acknowledgement: u32,
    /// [`ACK`] and the like.
    pub flags: u8,
    /// The window as it stands in the header.
    pub window: u16,
    /// The largest segment that its sender takes (RFC 9293 §3.7.1), if it says so.
    pub largest: Option<u16>,
    /// By how many bits its sender's windows are shifted (RFC 7323 §2), if it says so.
    pub shift: Option<u8>,
    /// How many bytes it carries.
    pub bytes: u32,
}

/// What a frame is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    /// Somebody asks who has `target`, or says so.
    Arp {
        /// Whether it asks.
        asks: bool,
        /// Who.
        from: Host,
        /// Whom it asks or tells.
        target: Ipv4Addr,
    },
    /// A datagram, and where in the frame its payload is.
    Datagram(Flow, Range<usize>),
    /// A segment.
    Segment(Flow, Segment),
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

fn long(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from(word(bytes, at)?) << 16 | u32::from(word(bytes, at + 2)?))
}

fn mac(bytes: &[u8], at: usize) -> Option<[u8; 6]> {
    bytes.get(at..at + 6)?.try_into().ok()
}

fn address(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    long(bytes, at).map(Ipv4Addr::from)
}

/// Reads a frame of `length` bytes, of which `bytes` are the first; none that is of another kind, a fragment or malformed.
pub fn read(bytes: &[u8], length: usize) -> Option<Packet> {
    match word(bytes, 12)? {
        0x0806 => read_arp(bytes),
        0x0800 => read_ipv4(bytes, length),
        _ => None,
    }
}

fn read_arp(bytes: &[u8]) -> Option<Packet> {
    // Ethernet and IPv4, with addresses of their lengths.
    if bytes.get(14..20)? != [0, 1, 8, 0, 6, 4] {
        return None;
    }
    let asks = match word(bytes, 20)? {
        1 => true,
        2 => false,
        _ => return None,
    };
    let from = Host { mac: mac(bytes, 22)?, address: address(bytes, 28)? };
    Some(Packet::Arp { asks, from, target: address(bytes, 38)? })
}

fn read_ipv4(bytes: &[u8], length: usize) -> Option<Packet> {
    const MORE_OR_OFFSET: u16 = 0x3fff;
    if bytes.get(14)? != &0x45 || word(bytes, 20)? & MORE_OR_OFFSET != 0 {
        return None;
    }
    let end = 14 + usize::from(word(bytes, 16)?);
    if end > length {
        return None;
    }
    let flow = Flow {
        own: Host { mac: mac(bytes, 0)?, address: address(bytes, 30)? },
        own_port: word(bytes, 36)?,
        peer: Host { mac: mac(bytes, 6)?, address: address(bytes, 26)? },
        peer_port: word(bytes, 34)?,
    };
    match *bytes.get(23)? {
        UDP => {
            let end = (IP_END + usize::from(word(bytes, 38)?)).min(end);
            bytes.get(UDP_END..end)?;
            Some(Packet::Datagram(flow, UDP_END..end))
        }
        TCP => {
            let options = IP_END + usize::from(bytes.get(46)? >> 4) * 4;
            if options < TCP_END || options > end {
                return None;
            }
            let mut segment = Segment {
                sequence: long(bytes, 38)?,
                acknowledgement: long(bytes, 42)?,
                flags: *bytes.get(47)?,
                window: word(bytes, 48)?,
                bytes: (end - options) as u32,
                ..Segment::default()
            };
            read_options(bytes.get(TCP_END..options)?, &mut segment);
            Some(Packet::Segment(flow, segment))
        }
        _ => None,
    }
}

/// RFC 9293 §3.1: what cannot be followed ends the list.
fn read_options(mut options: &[u8], segment: &mut Segment) {
    while let [kind, rest @ ..] = options {
        match (kind, rest) {
            (0, _) => return,
            (1, _) => {
                options = rest;
                continue;
            }
            (2, [4, high, low, ..]) => segment.largest = Some(u16::from_be_bytes([*high, *low])),
            (3, [3, shift, ..]) => segment.shift = Some((*shift).min(14)),
            _ => {}
        }
        let length = rest.first().map_or(0, |length| usize::from(*length));
        match options.get(length..) {
            Some(after) if length >= 2 => options = after,
            _ => return,
        }
    }
}

/// Writes a question for `to`'s MAC address (which is ignored then), or an answer to it; how long the frame is.
pub fn write_arp(frame: &mut [u8; HEADERS_MAX], asks: bool, from: Host, to: Host) -> usize {
    let (to_frame, to_packet) = if asks { ([0xff; 6], [0; 6]) } else { (to.mac, to.mac) };
    frame[..6].copy_from_slice(&to_frame);
    frame[6..12].copy_from_slice(&from.mac);
    frame[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, if asks { 1 } else { 2 }]);
    frame[22..28].copy_from_slice(&from.mac);
    frame[28..32].copy_from_slice(&from.address.octets());
    frame[32..38].copy_from_slice(&to_packet);
    frame[38..42].copy_from_slice(&to.address.octets());
    ARP_END
}

/// Writes the headers of a datagram with so many bytes of payload.
pub fn write_datagram(frame: &mut [u8; HEADERS_MAX], flow: &Flow, payload_bytes: u16) {
    write_ipv4(frame, flow, UDP, 8 + payload_bytes);
    frame[38..40].copy_from_slice(&(8 + payload_bytes).to_be_bytes());
}

/// Writes the headers of a segment; how long they are.
pub fn write_segment(frame: &mut [u8; HEADERS_MAX], flow: &Flow, segment: &Segment) -> usize {
    let end = if segment.flags & SYN == 0 { TCP_END } else { HEADERS_MAX };
    write_ipv4(frame, flow, TCP, (end - IP_END) as u16 + segment.bytes as u16);
    frame[38..42].copy_from_slice(&segment.sequence.to_be_bytes());
    frame[42..46].copy_from_slice(&segment.acknowledgement.to_be_bytes());
    frame[46] = ((end - IP_END) as u8 / 4) << 4;
    frame[47] = segment.flags;
    frame[48..50].copy_from_slice(&segment.window.to_be_bytes());
    frame[52..54].fill(0);
    let [high, low] = segment.largest.unwrap_or(0).to_be_bytes();
    // What is left out is a list that has ended, or four that say nothing.
    let scale = segment.shift.map_or([1; 4], |shift| [3, 3, shift, 1]);
    frame[54..58].copy_from_slice(&[2, 4, high, low]);
    frame[58..62].copy_from_slice(&scale);
    end
}

/// Both headers, the ports, and the sum that the device begins with.
fn write_ipv4(frame: &mut [u8; HEADERS_MAX], flow: &Flow, protocol: u8, bytes: u16) {
    frame[..6].copy_from_slice(&flow.peer.mac);
    frame[6..12].copy_from_slice(&flow.own.mac);
    frame[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
    frame[16..18].copy_from_slice(&(20 + bytes).to_be_bytes());
    // Not to be cut; no number is needed then (RFC 6864).
    frame[18..24].copy_from_slice(&[0, 0, 0x40, 0, 64, protocol]);
    frame[24..26].fill(0);
    frame[26..30].copy_from_slice(&flow.own.address.octets());
    frame[30..34].copy_from_slice(&flow.peer.address.octets());
    let header = sum(&frame[14..34]);
    frame[24..26].copy_from_slice(&(!header).to_be_bytes());
    frame[34..36].copy_from_slice(&flow.own_port.to_be_bytes());
    frame[36..38].copy_from_slice(&flow.peer_port.to_be_bytes());
    let [high, low] = bytes.to_be_bytes();
    let addresses: [u8; 8] = core::array::from_fn(|at| frame[26 + at]);
    let pseudo = fold(u32::from(sum(&addresses)) + u32::from(sum(&[0, protocol, high, low])));
    let at = IP_END + usize::from(if protocol == UDP { UDP_CHECKSUM } else { TCP_CHECKSUM });
    frame[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
}

/// The ones' complement sum of 16-bit words (RFC 1071), of an even number of bytes.
fn sum(bytes: &[u8]) -> u16 {
    fold(bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum())
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use etherparse::{PacketBuilder, PacketHeaders, TransportHeader};

    use super::*;

    fn flow() -> Flow {
        Flow {
            own: Host { mac: [2, 0, 0, 0, 0, 1], address: Ipv4Addr::new(10, 0, 0, 1) },
            own_port: 4001,
            peer: Host { mac: [2, 0, 0, 0, 0, 2], address: Ipv4Addr::new(10, 0, 0, 2) },
            peer_port: 9,
        }
    }

    /// The same as its receiver sees it.
    fn there(flow: Flow) -> Flow {
        Flow { own: flow.peer, own_port: flow.peer_port, peer: flow.own, peer_port: flow.own_port }
    }

    /// What a device does with the checksum that it is given to finish.
    fn finish(frame: &mut [u8], at: u16) {
        let padded: Vec<u8> = frame[IP_END..].iter().copied().chain(vec![0; frame.len() % 2]).collect();
        let at = IP_END + usize::from(at);
        frame[at..at + 2].copy_from_slice(&(!sum(&padded)).to_be_bytes());
    }

    #[test]
    fn datagrams_and_segments_are_those_of_others_once_their_checksums_are_finished() {
        let (ours, payload) = (flow(), [7; 33]);
        let builder = || {
            let builder = PacketBuilder::ethernet2(ours.own.mac, ours.peer.mac);
            builder.ipv4(ours.own.address.octets(), ours.peer.address.octets(), 64)
        };
        let (mut head, mut theirs) = ([0xee; HEADERS_MAX], Vec::new());
        write_datagram(&mut head, &ours, 33);
        let mut frame = [&head[..UDP_END], &payload].concat();
        finish(&mut frame, UDP_CHECKSUM);
        builder().udp(4001, 9).write(&mut theirs, &payload).unwrap();
        assert_eq!(frame, theirs);
        assert_eq!(read(&frame, frame.len()), Some(Packet::Datagram(there(ours), UDP_END..UDP_END + 33)));

        let segment = Segment {
            sequence: 0xfedc_ba98,
            acknowledgement: 0x0102_0304,
            flags: ACK | PUSH,
            window: 500,
            bytes: 33,
            ..Segment::default()
        };
        let end = write_segment(&mut head, &ours, &segment);
        let mut frame = [&head[..end], &payload].concat();
        finish(&mut frame, TCP_CHECKSUM);
        theirs.clear();
        let builder = builder().tcp(4001, 9, 0xfedc_ba98, 500).ack(0x0102_0304).psh();
        builder.write(&mut theirs, &payload).unwrap();
        assert_eq!(frame, theirs);
        assert_eq!(read(&frame, frame.len()), Some(Packet::Segment(there(ours), segment)));
        // Only the headers have to be at hand.
        assert_eq!(read(&frame[..end], frame.len()), Some(Packet::Segment(there(ours), segment)));
    }

    #[test]
    fn segments_that_begin_a_connection_say_what_their_sender_takes() {
        let begins = Segment { flags: SYN, largest: Some(1410), shift: Some(7), ..Segment::default() };
        let mut head = [0; HEADERS_MAX];
        let end = write_segment(&mut head, &flow(), &begins);
        assert_eq!(read(&head[..end], end), Some(Packet::Segment(there(flow()), begins)));
        let headers = PacketHeaders::from_ethernet_slice(&head[..end]).unwrap();
        let Some(TransportHeader::Tcp(tcp)) = headers.transport else { panic!("{headers:?}") };
        assert_eq!(tcp.options_iterator().filter(Result::is_ok).count(), 3);
        let plain = Segment { shift: None, ..begins };
        let end = write_segment(&mut head, &flow(), &plain);
        assert_eq!(read(&head[..end], end), Some(Packet::Segment(there(flow()), plain)));
        for options in [
            &[4, 2, 2, 4, 5, 130, 3, 3, 7][..],
            &[1, 2, 4, 5, 130, 8, 10, 0],
            &[2, 0, 2, 4],
            &[2, 40, 2],
            &[3],
        ] {
            let mut segment = Segment::default();
            read_options(options, &mut segment);
            assert!(segment.largest.is_none_or(|largest| largest == 1410), "{options:?}");
        }
    }

    #[test]
    fn questions_for_addresses_are_asked_and_answered() {
        let Flow { own, peer, .. } = flow();
        let mut frame = [0; HEADERS_MAX];
        for (asks, to) in [(true, [0xff; 6]), (false, peer.mac)] {
            let end = write_arp(&mut frame, asks, own, peer);
            assert_eq!((end, &frame[..6]), (ARP_END, &to[..]));
            let expected = Packet::Arp { asks, from: own, target: peer.address };
            assert_eq!(read(&frame[..end], end), Some(expected));
        }
    }

    #[test]
    fn what_is_of_another_kind_or_cut_short_is_nothing() {
        let mut head = [0; HEADERS_MAX];
        let end = write_segment(&mut head, &flow(), &Segment::default());
        for length in 0..end {
            assert_eq!(read(&head[..length], length), None, "{length}");
            assert_eq!(read(&head[..end], length), None, "{length}");
        }
        for (at, value) in [(12, 0x86), (14, 0x46), (20, 0x20), (21, 1), (23, 1), (46, 0x40), (46, 0xf0)] {
            let mut other = head;
            other[at] = value;
            assert_eq!(read(&other[..end], end), None, "{at}");
        }
    }
}
