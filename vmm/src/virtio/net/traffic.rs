//! What a network device holds of its guest's traffic: how much goes, and how it is marked.
//!
//! Packets count as what they are on the wire: one with segments still to be cut counts each, with the headers that it
//! will have. A direction that has to wait does so until its time has come, and nothing of it is looked at before.
//!
//! Must never know: queues, links, timers.

use std::time::{Duration, Instant};

use super::super::Error;
use super::super::limiter::{BucketState, Clock, Cost, Direction, Limiter};
use super::super::spec::net as spec;
use super::frame::carried;
use crate::config::{DSCP_MAX, DiskLimits, Traffic};

/// Ethernet, IPv4 and TCP without options: what each segment has at least before its payload.
const SEGMENT_HEADER_BYTES: u64 = 14 + 20 + 20;

/// The limits of both directions with their clock, and the mark.
pub(super) struct Shaper {
    limiter: Limiter,
    clock: Clock,
    traffic: Traffic,
    /// When what waits is worth another look, to the guest and from it.
    due: [Option<Instant>; 2],
}

impl Shaper {
    /// Holds traffic to `traffic` by `clock`.
    pub(super) fn new(traffic: &Traffic, clock: Clock) -> Result<Self, Error> {
        let limiter = limiter(traffic, clock())?;
        Ok(Self { limiter, clock, traffic: *traffic, due: [None; 2] })
    }

    /// Holds it to something else from now on. Bursts are there anew: no guest can bring this about.
    pub(super) fn change(&mut self, traffic: &Traffic) -> Result<(), Error> {
        self.limiter = limiter(traffic, (self.clock)())?;
        self.traffic = *traffic;
        self.wake();
        Ok(())
    }

    /// What it holds it to.
    pub(super) fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Whether a packet may go now. If not, none of its direction may until [`Self::wake`] was called.
    pub(super) fn admit(&mut self, direction: Direction, packet: &[u8]) -> bool {
        self.admit_of(direction, packet, packet.len())
    }

    /// The same of a packet of so many bytes that begins so.
    pub(super) fn admit_of(&mut self, direction: Direction, head: &[u8], packet_bytes: usize) -> bool {
        if self.limiter.is_unlimited() {
            return true;
        }
        let now = (self.clock)();
        match self.limiter.admit(cost(direction, head, packet_bytes), now) {
            Ok(()) => true,
            Err(wait) => {
                self.due[index(direction)] = Some(now + wait);
                false
            }
        }
    }

    /// Whether anything may go at any time.
    pub(super) fn is_unlimited(&self) -> bool {
        self.limiter.is_unlimited()
    }

    pub(super) fn is_waiting(&self, direction: Direction) -> bool {
        self.due[index(direction)].is_some()
    }

    /// How long until something that waits is worth another look.
    pub(super) fn delay(&self) -> Option<Duration> {
        let due = self.due.into_iter().flatten().min()?;
        Some(due.saturating_duration_since((self.clock)()))
    }

    /// Time has passed. What was counted is kept: looking early gains nothing.
    pub(super) fn wake(&mut self) {
        self.due = [None; 2];
    }

    /// What was counted, for a snapshot.
    pub(super) fn save(&self) -> Vec<BucketState> {
        self.limiter.save()
    }

    /// Goes on from what was counted.
    pub(super) fn restore(&mut self, buckets: &[BucketState]) {
        self.limiter.restore(buckets);
    }

    /// Marks a frame that the guest sends.
    pub(super) fn mark(&self, frame: &mut [u8]) {
        if let Some(dscp) = self.traffic.dscp {
            mark(frame, dscp);
        }
    }
}

fn limiter(traffic: &Traffic, now: Instant) -> Result<Limiter, Error> {
    if let Some(dscp) = traffic.dscp.filter(|dscp| *dscp > DSCP_MAX) {
        return Err(Error::Config { what: "code point", value: dscp.to_string(), allowed: "0 to 63" });
    }
    let Traffic { ingress: read, egress: write, .. } = *traffic;
    Limiter::new(&DiskLimits { read, write, ..DiskLimits::default() }, now)
}

fn index(direction: Direction) -> usize {
    match direction {
        Direction::Read => 0,
        Direction::Write => 1,
    }
}

/// What a packet of so many bytes with its `virtio_net_hdr`, which begins so, takes.
fn cost(direction: Direction, packet: &[u8], packet_bytes: usize) -> Cost {
    let frame_bytes = packet_bytes.saturating_sub(spec::HEADER_BYTES) as u64;
    let at = spec::HEADER_GSO_SIZE;
    let segment_bytes = packet.get(at..at + 2).map_or(0, |size| u16::from_le_bytes([size[0], size[1]]));
    let is_whole = packet.get(spec::HEADER_GSO_TYPE).is_none_or(|kind| *kind == spec::GSO_NONE);
    if is_whole || segment_bytes == 0 {
        return Cost { direction, bytes: frame_bytes, operations: 1 };
    }
    let payload_bytes = frame_bytes.saturating_sub(SEGMENT_HEADER_BYTES);
    let operations = payload_bytes.div_ceil(u64::from(segment_bytes)).max(1);
    Cost { direction, bytes: frame_bytes + (operations - 1) * SEGMENT_HEADER_BYTES, operations }
}

/// Puts a code point into the header of an IP packet, beside the two bits that are not its (RFC 2474 §3, RFC 3168 §5).
fn mark(frame: &mut [u8], dscp: u8) {
    let Some((kind, packet)) = carried(frame) else { return };
    match kind {
        [0x08, 0x00] => mark_ipv4(packet, dscp),
        [0x86, 0xdd] => mark_ipv6(packet, dscp),
        _ => {}
    }
}

fn mark_ipv4(packet: &mut [u8], dscp: u8) {
    let Some(header) = packet.first_chunk_mut::<20>().filter(|header| header[0] >> 4 == 4) else { return };
    let before = u16::from_be_bytes([header[0], header[1]]);
    header[1] = dscp << 2 | header[1] & 3;
    let after = u16::from_be_bytes([header[0], header[1]]);
    // RFC 1624, equation 3: what was wrong stays as wrong.
    let sum = [u16::from_be_bytes([header[10], header[11]]), before].map(|word| u32::from(!word));
    let mut sum = sum.iter().sum::<u32>() + u32::from(after);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    header[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

/// Version, traffic class and flow label share the first word (RFC 8200 §3).
fn mark_ipv6(packet: &mut [u8], dscp: u8) {
    let Some(header) = packet.first_chunk_mut::<40>().filter(|header| header[0] >> 4 == 6) else { return };
    header[0] = 0x60 | dscp >> 2;
    header[1] = (dscp & 3) << 6 | header[1] & 0x3f;
}

#[cfg(test)]
mod tests {
    use etherparse::{Ipv4Header, Ipv4HeaderSlice, Ipv6HeaderSlice, PacketBuilder};

    use super::*;

    fn ipv4(ecn: u8) -> Vec<u8> {
        let mut header =
            Ipv4Header::new(8, 64, etherparse::IpNumber::UDP, [10, 0, 0, 1], [10, 0, 0, 2]).unwrap();
        header.ecn = ecn.try_into().unwrap();
        header.identification = 0xbeef;
        let builder = PacketBuilder::ethernet2([1; 6], [2; 6])
            .ip(etherparse::IpHeaders::Ipv4(header, Default::default()));
        let mut frame = Vec::new();
        builder.udp(1, 2).write(&mut frame, &[7; 5]).unwrap();
        frame
    }

    /// The same with tags.
    fn tagged(frame: &[u8], tags: &[[u8; 4]]) -> Vec<u8> {
        [&frame[..12], &tags.concat(), &frame[12..]].concat()
    }

    #[test]
    fn mark_is_in_the_header_of_ipv4_whose_checksum_is_right_and_nothing_else_changes() {
        for ecn in 0..4 {
            for dscp in 0..=DSCP_MAX {
                let before = ipv4(ecn);
                let mut after = before.clone();
                mark(&mut after, dscp);
                let header = Ipv4HeaderSlice::from_slice(&after[14..]).unwrap().to_header();
                assert_eq!((header.dscp.value(), header.ecn.value()), (dscp, ecn));
                assert_eq!(header.header_checksum, header.calc_header_checksum(), "{dscp}");
                after[15] = before[15];
                after[24..26].copy_from_slice(&before[24..26]);
                assert_eq!(after, before);
            }
        }
    }

    #[test]
    fn mark_is_in_the_traffic_class_of_ipv6_beside_its_flow_label() {
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2([1; 6], [2; 6]).ipv6([3; 16], [4; 16], 64);
        builder.udp(1, 2).write(&mut frame, &[7; 5]).unwrap();
        frame[14..18].copy_from_slice(&[0x6f, 0xfa, 0xbc, 0xde]);
        let before = frame.clone();
        mark(&mut frame, 46);
        let header = Ipv6HeaderSlice::from_slice(&frame[14..]).unwrap();
        assert_eq!((header.version(), header.traffic_class()), (6, 46 << 2 | 3));
        assert_eq!(header.flow_label().value(), 0xa_bcde);
        assert_eq!(frame[18..], before[18..]);
    }

    #[test]
    fn mark_is_found_behind_tags_and_what_is_no_whole_ip_packet_stays() {
        let plain = ipv4(0);
        let mut marked = plain.clone();
        mark(&mut marked, 10);
        let (inner, outer) = ([0x81, 0, 0, 5], [0x88, 0xa8, 0, 6]);
        for tags in [&[inner][..], &[outer, inner]] {
            let mut frame = tagged(&plain, tags);
            mark(&mut frame, 10);
            assert_eq!(frame, tagged(&marked, tags));
        }
        let mut arp = plain.clone();
        arp[12..14].copy_from_slice(&[8, 6]);
        let mut other_version = plain.clone();
        other_version[14] = 0x55;
        for mut frame in
            [arp, other_version, tagged(&plain, &[inner; 3]), plain[..33].to_vec(), vec![0; 13], vec![]]
        {
            let before = frame.clone();
            mark(&mut frame, 10);
            assert_eq!(frame, before);
        }
    }

    #[test]
    fn segments_that_will_be_cut_count_each_with_its_headers() {
        let packet = |kind: u8, segment_bytes: u16, frame_bytes: usize| {
            let mut packet = vec![0; spec::HEADER_BYTES + frame_bytes];
            packet[spec::HEADER_GSO_TYPE] = kind;
            packet[spec::HEADER_GSO_SIZE..][..2].copy_from_slice(&segment_bytes.to_le_bytes());
            let Cost { bytes, operations, .. } = cost(Direction::Write, &packet, packet.len());
            (bytes, operations)
        };
        assert_eq!(packet(spec::GSO_NONE, 100, 1514), (1514, 1));
        assert_eq!(packet(spec::GSO_TCPV4, 1000, 54 + 3000), (54 * 3 + 3000, 3));
        assert_eq!(packet(spec::GSO_TCPV6, 1000, 54 + 3001), (54 * 4 + 3001, 4));
        assert_eq!(packet(spec::GSO_TCPV4, 0, 1514), (1514, 1));
        assert_eq!(packet(spec::GSO_TCPV4, u16::MAX, 20), (20, 1));
    }
}
