//! IP packets in frames: headers with what follows them, and what several protocols make of MAC addresses and names.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{IpNumber, Ipv4HeaderSlice, Ipv6HeaderSlice, UdpHeaderSlice};

/// Bytes of a label of a domain name at most (RFC 1035 §2.3.4).
const LABEL_BYTES_MAX: usize = 63;
/// Bytes of an encoded domain name at most (RFC 1035 §2.3.4).
const NAME_BYTES_MAX: usize = 255;

/// The MAC that answers for an address which is nobody else's: locally administered, made of the address.
pub(super) fn mac_of(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x00, a, b, c, d]
}

/// The link-local address that a MAC gives (RFC 4291, appendix A).
pub(super) fn link_local([a, b, c, d, e, f]: [u8; 6]) -> Ipv6Addr {
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// The MAC of an IPv6 multicast group (RFC 2464 §7).
pub(super) fn mac_of_group(group: Ipv6Addr) -> [u8; 6] {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}

/// The header and what follows it; the rest may be longer than the packet by Ethernet's padding.
pub(super) fn ipv4(packet: &[u8]) -> Option<(Ipv4HeaderSlice<'_>, &[u8])> {
    let header = Ipv4HeaderSlice::from_slice(packet).ok()?;
    let payload = packet.get(header.slice().len()..)?;
    Some((header, payload))
}

/// The header and what follows it, without Ethernet's padding. Jumbograms (RFC 2675) fit no frame.
pub(super) fn ipv6(packet: &[u8]) -> Option<(Ipv6HeaderSlice<'_>, &[u8])> {
    let header = Ipv6HeaderSlice::from_slice(packet).ok()?;
    let payload = packet.get(header.slice().len()..)?;
    let end = usize::from(header.payload_length()).min(payload.len());
    Some((header, &payload[..end]))
}

/// UDP's ports and payload, if this is UDP and its first fragment.
pub(super) fn udp_in_ipv4<'a>(
    header: &Ipv4HeaderSlice<'_>,
    payload: &'a [u8],
) -> Option<(UdpHeaderSlice<'a>, &'a [u8])> {
    let first = header.protocol() == IpNumber::UDP && header.fragments_offset().value() == 0;
    first.then(|| udp(payload)).flatten()
}

/// UDP's ports and payload.
pub(super) fn udp(payload: &[u8]) -> Option<(UdpHeaderSlice<'_>, &[u8])> {
    let ports = UdpHeaderSlice::from_slice(payload).ok()?;
    let end = usize::from(ports.length()).min(payload.len());
    let message = payload.get(ports.slice().len()..end).unwrap_or_default();
    Some((ports, message))
}

/// Where UDP or TCP goes, if this is its first fragment.
pub(super) fn destination_port(protocol: IpNumber, payload: &[u8]) -> Option<u16> {
    let port = payload.get(2..4)?;
    [IpNumber::UDP, IpNumber::TCP].contains(&protocol).then(|| u16::from_be_bytes([port[0], port[1]]))
}

/// A domain name as DNS writes it, uncompressed (RFC 1035 §3.1); none if it is no name.
pub(super) fn domain_name(text: &str) -> Option<Vec<u8>> {
    let mut name = Vec::new();
    for label in text.trim_end_matches('.').split('.') {
        if label.is_empty() || label.len() > LABEL_BYTES_MAX {
            return None;
        }
        name.push(u8::try_from(label.len()).ok()?);
        name.extend_from_slice(label.as_bytes());
    }
    name.push(0);
    (name.len() <= NAME_BYTES_MAX).then_some(name)
}

/// Where a frame that begins so goes, if it carries TCP right behind an IP header and has no tag.
pub(crate) fn tcp_destination(head: &[u8]) -> Option<IpAddr> {
    const TCP: u8 = 6;
    match (head.get(12..14)?, head.get(14)? >> 4) {
        ([0x08, 0x00], 4) if *head.get(23)? == TCP => {
            head.get(30..34)?.first_chunk::<4>().map(|address| IpAddr::from(*address))
        }
        ([0x86, 0xdd], 6) if *head.get(20)? == TCP => {
            head.get(38..54)?.first_chunk::<16>().map(|address| IpAddr::from(*address))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_labels_with_their_lengths() {
        assert_eq!(domain_name("a.example.").unwrap(), b"\x01a\x07example\0");
        for none in ["", ".", "a..b", &"x".repeat(64), &["abcdefgh"; 30].join(".")] {
            assert_eq!(domain_name(none), None, "{none}");
        }
    }
}
