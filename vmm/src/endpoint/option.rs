//! Options that somebody chose for a port, by the names that dnsmasq and so Neutron's users know, or by number: from
//! their text to the bytes of a message. What is no option here, or does not fit one, is not served: as with dnsmasq, its
//! port works without it.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::Ipv4Net;

use super::packet::domain_name;
use crate::config::DhcpOption;

/// The name of what is no option but a field: the next server of a boot (RFC 2131 §2, `siaddr`).
pub(super) const NEXT_SERVER: &str = "server-ip-address";
/// Bytes of an option's value in DHCP (RFC 2132 §2).
const BYTES_MAX: usize = 255;

/// What an option's value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Addresses, by comma.
    Addresses,
    /// A whole number of so many bytes.
    Number(usize),
    /// Text as it is.
    Text,
    /// Domain names, by comma.
    Names,
    /// Destinations and next hops by turns, by comma (RFC 3442).
    Routes,
}

/// Names, numbers and kinds (RFC 2132 and its followers; IANA's BOOTP registry).
const IPV4: [(&str, u8, Kind); 42] = [
    ("time-offset", 2, Kind::Number(4)),
    ("router", 3, Kind::Addresses),
    ("dns-server", 6, Kind::Addresses),
    ("log-server", 7, Kind::Addresses),
    ("lpr-server", 9, Kind::Addresses),
    ("hostname", 12, Kind::Text),
    ("boot-file-size", 13, Kind::Number(2)),
    ("domain-name", 15, Kind::Text),
    ("swap-server", 16, Kind::Addresses),
    ("root-path", 17, Kind::Text),
    ("extension-path", 18, Kind::Text),
    ("ip-forward-enable", 19, Kind::Number(1)),
    ("policy-filter", 21, Kind::Addresses),
    ("max-datagram-reassembly", 22, Kind::Number(2)),
    ("default-ttl", 23, Kind::Number(1)),
    ("mtu", 26, Kind::Number(2)),
    ("broadcast", 28, Kind::Addresses),
    ("router-discovery", 31, Kind::Number(1)),
    ("router-solicitation", 32, Kind::Addresses),
    ("static-route", 33, Kind::Addresses),
    ("arp-timeout", 35, Kind::Number(4)),
    ("tcp-ttl", 37, Kind::Number(1)),
    ("tcp-keepalive", 38, Kind::Number(4)),
    ("nis-domain", 40, Kind::Text),
    ("nis-server", 41, Kind::Addresses),
    ("ntp-server", 42, Kind::Addresses),
    ("netbios-ns", 44, Kind::Addresses),
    ("netbios-dd", 45, Kind::Addresses),
    ("netbios-nodetype", 46, Kind::Number(1)),
    ("vendor-class", 60, Kind::Text),
    ("nis+-domain", 64, Kind::Text),
    ("nis+-server", 65, Kind::Addresses),
    ("tftp-server", 66, Kind::Text),
    ("bootfile-name", 67, Kind::Text),
    ("smtp-server", 69, Kind::Addresses),
    ("pop3-server", 70, Kind::Addresses),
    ("posix-timezone", 100, Kind::Text),
    ("tzdb-timezone", 101, Kind::Text),
    ("ipv6-only", 108, Kind::Number(4)),
    ("domain-search", 119, Kind::Names),
    ("classless-static-route", 121, Kind::Routes),
    ("tftp-server-address", 150, Kind::Addresses),
];

/// The same of DHCPv6 (IANA's DHCPv6 registry).
const IPV6: [(&str, u16, Kind); 12] = [
    ("sip-server-domain", 21, Kind::Names),
    ("sip-server", 22, Kind::Addresses),
    ("dns-server", 23, Kind::Addresses),
    ("domain-search", 24, Kind::Names),
    ("nis-server", 27, Kind::Addresses),
    ("nis+-server", 28, Kind::Addresses),
    ("nis-domain", 29, Kind::Names),
    ("nis+-domain", 30, Kind::Names),
    ("sntp-server", 31, Kind::Addresses),
    ("posix-timezone", 41, Kind::Text),
    ("tzdb-timezone", 42, Kind::Text),
    ("bootfile-url", 59, Kind::Text),
];

/// What a message is made of, and what this server says itself: nobody's to choose.
const OWN_IPV4: [u8; 14] = [0, 1, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 61, 82];
const OWN_IPV6: std::ops::RangeInclusive<u16> = 1..=20;
const OWN_IPV6_TOO: [u16; 4] = [0, 25, 26, 32];

/// An option of DHCP: its number and its value, of which an empty one takes the option away.
pub(super) fn ipv4(option: &DhcpOption) -> Option<(u8, Vec<u8>)> {
    let found = match option.name.parse::<u8>() {
        Ok(code) => (code, IPV4.iter().find(|(_, known, _)| *known == code).map(|(_, _, kind)| *kind)),
        Err(_) => {
            let (_, code, kind) = IPV4.iter().find(|(name, _, _)| *name == option.name)?;
            (*code, Some(*kind))
        }
    };
    let (code, kind) = found;
    if OWN_IPV4.contains(&code) || code == u8::MAX {
        return None;
    }
    let value = option.value.as_str();
    let address = |text: &str| text.parse::<Ipv4Addr>().ok().map(|address| address.octets().to_vec());
    let bytes = bytes(kind, value, address)?;
    (bytes.len() <= BYTES_MAX).then_some((code, bytes))
}

/// An option of DHCPv6.
pub(super) fn ipv6(option: &DhcpOption) -> Option<(u16, Vec<u8>)> {
    let (code, kind) = match option.name.parse::<u16>() {
        Ok(code) => (code, IPV6.iter().find(|(_, known, _)| *known == code).map(|(_, _, kind)| *kind)),
        Err(_) => {
            let (_, code, kind) = IPV6.iter().find(|(name, _, _)| *name == option.name)?;
            (*code, Some(*kind))
        }
    };
    if OWN_IPV6.contains(&code) || OWN_IPV6_TOO.contains(&code) {
        return None;
    }
    // As dnsmasq has them, addresses may be in brackets.
    let address = |text: &str| {
        let text = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        text.parse::<Ipv6Addr>().ok().map(|address| address.octets().to_vec())
    };
    let bytes = bytes(kind, &option.value, address)?;
    (bytes.len() <= BYTES_MAX).then_some((code, bytes))
}

/// Of an option of which only the number is known, addresses are addresses and all else is text.
fn bytes(kind: Option<Kind>, value: &str, address: impl Fn(&str) -> Option<Vec<u8>>) -> Option<Vec<u8>> {
    let each = |read: &dyn Fn(&str) -> Option<Vec<u8>>| -> Option<Vec<u8>> {
        Some(value.split(',').map(|part| read(part.trim())).collect::<Option<Vec<_>>>()?.concat())
    };
    if value.is_empty() {
        return Some(Vec::new());
    }
    match kind {
        Some(Kind::Addresses) => each(&address),
        Some(Kind::Names) => each(&domain_name),
        Some(Kind::Text) => Some(value.as_bytes().to_vec()),
        Some(Kind::Routes) => routes(value),
        Some(Kind::Number(length)) => {
            let bytes = value.trim().parse::<u32>().ok()?.to_be_bytes();
            let (high, low) = bytes.split_at(bytes.len() - length);
            high.iter().all(|byte| *byte == 0).then(|| low.to_vec())
        }
        None => Some(each(&address).unwrap_or_else(|| value.as_bytes().to_vec())),
    }
}

fn routes(value: &str) -> Option<Vec<u8>> {
    let parts: Vec<&str> = value.split(',').map(str::trim).collect();
    let (routes, []) = parts.as_chunks::<2>() else { return None };
    let mut bytes = Vec::new();
    for [destination, hop] in routes {
        let destination: Ipv4Net = destination.parse().ok()?;
        let significant = usize::from(destination.prefix_len().div_ceil(8));
        bytes.push(destination.prefix_len());
        bytes.extend_from_slice(&destination.network().octets()[..significant]);
        bytes.extend_from_slice(&hop.parse::<Ipv4Addr>().ok()?.octets());
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn option(name: &str, value: &str) -> DhcpOption {
        DhcpOption { name: name.to_owned(), value: value.to_owned() }
    }

    #[test]
    fn names_and_numbers_are_the_same_options() {
        let read = |name, value| ipv4(&option(name, value)).unwrap();
        assert_eq!(read("bootfile-name", "pxelinux.0"), (67, b"pxelinux.0".to_vec()));
        assert_eq!(read("67", "pxelinux.0"), (67, b"pxelinux.0".to_vec()));
        assert_eq!(read("mtu", "1400"), (26, vec![5, 120]));
        assert_eq!(read("ntp-server", "10.0.0.1, 10.0.0.2"), (42, vec![10, 0, 0, 1, 10, 0, 0, 2]));
        assert_eq!(read("domain-search", "a,b.c"), (119, b"\x01a\0\x01b\x01c\0".to_vec()));
        assert_eq!(
            read("classless-static-route", "10.1.0.0/16,10.0.0.1"),
            (121, vec![16, 10, 1, 10, 0, 0, 1])
        );
        assert_eq!(read("router", ""), (3, vec![]));
        assert_eq!(read("200", "1.2.3.4"), (200, vec![1, 2, 3, 4]));
        assert_eq!(read("200", "text"), (200, b"text".to_vec()));
        let of_ipv6 = ipv6(&option("dns-server", "[2001:db8::1]")).unwrap();
        assert_eq!((of_ipv6.0, of_ipv6.1.len()), (23, 16));
        assert_eq!(ipv6(&option("59", "http://x/")), Some((59, b"http://x/".to_vec())));
    }

    #[test]
    fn what_is_no_option_or_not_for_choosing_is_not_served() {
        let long = "x".repeat(256);
        for (name, value) in [
            ("no-such-option", "x"),
            ("53", "1"),
            ("255", "1"),
            ("256", "1"),
            ("mtu", "70000"),
            ("mtu", "-1"),
            ("ntp-server", "here"),
            ("classless-static-route", "10.1.0.0/16"),
            ("bootfile-name", &long),
        ] {
            assert_eq!(ipv4(&option(name, value)), None, "{name} {value}");
        }
        for (name, value) in [("3", "1"), ("router", "::1"), ("dns-server", "10.0.0.1"), ("32", "1")] {
            assert_eq!(ipv6(&option(name, value)), None, "{name} {value}");
        }
    }
}
