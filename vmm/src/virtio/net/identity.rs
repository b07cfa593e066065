//! Who the guest is on its network, when it goes on from a snapshot as another.
//!
//! A system that runs has its MAC address in its memory and does not look at the device again. So it keeps the address, and the
//! network sees the other one: in the Ethernet header, and where ARP and neighbour discovery carry it (RFC 826, RFC 4861
//! §4.6.1). What the endpoint answers never leaves the VMM and is not touched. Other protocols that carry hardware addresses
//! (DHCP to a server on the network, 802.1X) are not translated.
//!
//! Must never know: queues, links.

use std::time::{Duration, Instant};

use super::frame::carried;

/// How long the link is down: long enough that no driver takes both changes for none.
const DOWN: Duration = Duration::from_millis(100);

/// The two addresses, mostly the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    /// The network's.
    pub(super) mac: [u8; 6],
    /// The guest's own.
    pub(super) guest_mac: [u8; 6],
}

impl Identity {
    pub(super) fn of(mac: [u8; 6]) -> Self {
        Self { mac, guest_mac: mac }
    }

    /// Translates a frame that the guest sends.
    pub(super) fn to_link(self, frame: &mut [u8]) {
        if self.mac != self.guest_mac {
            translate(frame, self.guest_mac, self.mac, Way::Source);
        }
    }

    /// Translates a frame for the guest.
    pub(super) fn to_guest(self, frame: &mut [u8]) {
        if self.mac != self.guest_mac {
            translate(frame, self.mac, self.guest_mac, Way::Destination);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Source,
    Destination,
}

fn replace(bytes: Option<&mut [u8]>, from: [u8; 6], to: [u8; 6]) -> bool {
    match bytes {
        Some(bytes) if bytes == from => {
            bytes.copy_from_slice(&to);
            true
        }
        _ => false,
    }
}

fn translate(frame: &mut [u8], from: [u8; 6], to: [u8; 6], way: Way) {
    let header = match way {
        Way::Source => 6..12,
        Way::Destination => 0..6,
    };
    replace(frame.get_mut(header), from, to);
    let Some((kind, packet)) = carried(frame) else { return };
    match kind {
        [0x08, 0x06] => {
            // Sender's and target's hardware address of an ARP packet for Ethernet and IPv4.
            let place = if way == Way::Source { 8..14 } else { 18..24 };
            if packet.starts_with(&[0, 1, 8, 0, 6, 4]) {
                replace(packet.get_mut(place), from, to);
            }
        }
        [0x86, 0xdd] => translate_neighbour(packet, from, to),
        _ => {}
    }
}

/// The link-layer addresses in the options of a neighbour discovery message, with its checksum.
fn translate_neighbour(packet: &mut [u8], from: [u8; 6], to: [u8; 6]) {
    const ICMPV6: u8 = 58;
    const HEADER_BYTES: usize = 40;
    const LINK_LAYER_ADDRESSES: [u8; 2] = [1, 2];
    if packet.get(6) != Some(&ICMPV6) {
        return;
    }
    let Some(message) = packet.get_mut(HEADER_BYTES..) else { return };
    let mut at = match message.first() {
        Some(133) => 8,
        Some(134) => 16,
        Some(135 | 136) => 24,
        _ => return,
    };
    // Each turn goes on by eight bytes at least, and a frame is not long.
    while let Some(&[kind, units]) = message.get(at..at + 2) {
        if units == 0 {
            return;
        }
        if LINK_LAYER_ADDRESSES.contains(&kind) && replace(message.get_mut(at + 2..at + 8), from, to) {
            mend_checksum(message, from, to);
        }
        at += usize::from(units) * 8;
    }
}

/// RFC 1624, equation 3: what was wrong stays as wrong. The addresses lie at an even place.
fn mend_checksum(message: &mut [u8], from: [u8; 6], to: [u8; 6]) {
    let Some(place) = message.get_mut(2..4) else { return };
    let words = |mac: [u8; 6]| [0, 2, 4].map(|at| u32::from(u16::from_be_bytes([mac[at], mac[at + 1]])));
    let mut sum = u32::from(!u16::from_be_bytes([place[0], place[1]]));
    sum += words(from).iter().map(|word| !word & 0xffff).sum::<u32>() + words(to).iter().sum::<u32>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    place.copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

/// How far a link's going down and up again is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flap {
    None,
    /// It goes down when the guest goes on.
    Due,
    /// It is down until then.
    Down(Instant),
}

impl Flap {
    /// The guest goes on; whether its link goes down now.
    pub(super) fn begin(&mut self) -> bool {
        let due = *self == Self::Due;
        if due {
            *self = Self::Down(Instant::now() + DOWN);
        }
        due
    }

    /// How long until it comes up.
    pub(super) fn delay(&self) -> Option<Duration> {
        match self {
            Self::Down(until) => Some(until.saturating_duration_since(Instant::now())),
            Self::None | Self::Due => None,
        }
    }

    /// Whether it comes up now.
    pub(super) fn end(&mut self) -> bool {
        let over = matches!(self, Self::Down(until) if *until <= Instant::now());
        if over {
            *self = Self::None;
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{Icmpv6Type, PacketBuilder, PacketHeaders, TransportHeader};

    use super::*;

    const OLD: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const NEW: [u8; 6] = [2, 0xff, 0xfe, 0, 0x10, 0x77];
    const PEER: [u8; 6] = [2, 9, 9, 9, 9, 9];

    fn identity() -> Identity {
        Identity { mac: NEW, guest_mac: OLD }
    }

    fn arp(source: [u8; 6], destination: [u8; 6], sender: [u8; 6], target: [u8; 6]) -> Vec<u8> {
        let head = [&destination[..], &source, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]].concat();
        [&head[..], &sender, &[10, 0, 0, 1], &target, &[10, 0, 0, 2]].concat()
    }

    #[test]
    fn guests_address_is_another_on_the_network_and_its_own_to_itself() {
        let mut frame = arp(OLD, [0xff; 6], OLD, [0; 6]);
        identity().to_link(&mut frame);
        assert_eq!(frame, arp(NEW, [0xff; 6], NEW, [0; 6]));
        let mut frame = arp(PEER, NEW, PEER, NEW);
        identity().to_guest(&mut frame);
        assert_eq!(frame, arp(PEER, OLD, PEER, OLD));
        let mut tagged = arp(OLD, PEER, OLD, PEER);
        tagged.splice(12..12, [0x81, 0, 0, 7]);
        identity().to_link(&mut tagged);
        assert_eq!((&tagged[6..12], &tagged[26..32]), (&NEW[..], &NEW[..]));
    }

    #[test]
    fn neighbour_discovery_carries_it_with_a_checksum_that_is_right() {
        for option in [[1, 1], [2, 1]] {
            let body = [&[0xfe; 16][..], &[14, 1, 0, 0, 0, 0, 0, 0], &option, &OLD].concat();
            let builder = PacketBuilder::ethernet2(OLD, PEER).ipv6([3; 16], [4; 16], 255);
            let builder = builder.icmpv6_raw(135, 0, [0; 4]);
            let mut frame = Vec::new();
            builder.write(&mut frame, &body).unwrap();
            identity().to_link(&mut frame);
            assert!(frame.ends_with(&NEW));
            let headers = PacketHeaders::from_ethernet_slice(&frame).unwrap();
            let Some(TransportHeader::Icmpv6(header)) = headers.transport else { panic!() };
            let again = Icmpv6Type::calc_checksum(&header.icmp_type, [3; 16], [4; 16], &frame[62..]).unwrap();
            assert_eq!(header.checksum, again);
        }
    }

    #[test]
    fn what_is_somebody_elses_stays_and_nothing_is_too_short() {
        for frame in [arp(PEER, [1; 6], PEER, PEER), vec![], vec![0; 13], vec![0x86; 60]] {
            let mut after = frame.clone();
            identity().to_link(&mut after);
            identity().to_guest(&mut after);
            assert_eq!(after, frame);
        }
        let whole = arp(OLD, PEER, OLD, PEER);
        for length in 0..whole.len() {
            identity().to_link(&mut whole[..length].to_vec());
        }
        let mut endless = vec![0; 100];
        endless[12..14].copy_from_slice(&[0x86, 0xdd]);
        endless[20] = 58;
        endless[54] = 135;
        identity().to_link(&mut endless);
    }

    #[test]
    fn link_goes_down_once_and_comes_up_when_its_time_has_come() {
        let mut flap = Flap::None;
        assert!(!flap.begin() && flap.delay().is_none());
        flap = Flap::Due;
        assert!(flap.begin() && !flap.begin() && !flap.end());
        assert!(flap.delay().is_some_and(|delay| delay <= DOWN));
        flap = Flap::Down(Instant::now());
        assert!(flap.end() && !flap.end() && flap.delay().is_none());
    }
}
