//! Announcements of routers and answers of DHCPv6, as far as a guest with one address of each kind needs them.

use core::net::Ipv6Addr;

/// The ICMPv6 type of an announcement.
const ROUTER_ADVERTISEMENT: u8 = 134;

/// One announcement (RFC 4861 §4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announcement<'a> {
    /// How long the router is a default router, in seconds; 0 means that it is none.
    pub lifetime_s: u16,
    /// Addresses are to be had by DHCPv6.
    pub managed: bool,
    options: &'a [u8],
}

/// A prefix (RFC 4861 §4.6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// The prefix's address.
    pub network: Ipv6Addr,
    /// Its length in bits, at most 128.
    pub length: u8,
    /// Hosts make themselves addresses of it.
    pub autonomous: bool,
    /// For how many seconds it holds; 0 means that it does no longer.
    pub valid_s: u32,
}

/// The announcement in an IPv6 packet without extension headers, and who sent it.
pub fn announcement(packet: &[u8]) -> Option<(Ipv6Addr, Announcement<'_>)> {
    let (header, message) = packet.split_first_chunk::<40>()?;
    let source = Ipv6Addr::from(*header[8..24].first_chunk::<16>()?);
    // From this link (§6.1.2).
    if header[7] != 255 || source.segments()[0] & 0xffc0 != 0xfe80 {
        return None;
    }
    match message {
        [ROUTER_ADVERTISEMENT, 0, _, _, _, flags, high, low, rest @ ..] => Some((
            source,
            Announcement {
                lifetime_s: u16::from_be_bytes([*high, *low]),
                managed: flags & 0x80 != 0,
                options: rest.get(8..)?,
            },
        )),
        _ => None,
    }
}

impl<'a> Announcement<'a> {
    /// The prefixes, up to the first malformed option.
    pub fn prefixes(&self) -> impl Iterator<Item = Prefix> + 'a {
        let mut rest = self.options;
        let mut option = move || {
            let length = usize::from(*rest.get(1)?) * 8;
            let (option, left) = rest.split_at_checked(length).filter(|_| length > 0)?;
            rest = left;
            Some(option)
        };
        core::iter::from_fn(move || option().map(prefix)).flatten()
    }
}

fn prefix(option: &[u8]) -> Option<Prefix> {
    let &[3, 4, length, flags, a, b, c, d, ..] = option else { return None };
    let network = Ipv6Addr::from(*option.get(16..)?.first_chunk::<16>()?);
    let autonomous = flags & 0x40 != 0;
    (length <= 128).then_some(Prefix {
        network,
        length,
        autonomous,
        valid_s: u32::from_be_bytes([a, b, c, d]),
    })
}

/// The address with its lifetime in seconds that a DHCPv6 reply (RFC 8415 §8) to a transaction gives.
pub fn leased(message: &[u8], transaction: [u8; 3]) -> Option<(Ipv6Addr, u32)> {
    const REPLY: u8 = 7;
    const ASSOCIATION: u16 = 3;
    const ADDRESS: u16 = 5;
    let (&[kind, a, b, c], options) = message.split_first_chunk()?;
    if (kind, [a, b, c]) != (REPLY, transaction) {
        return None;
    }
    let associations = dhcp_options(options).filter(|(code, _)| *code == ASSOCIATION);
    // Identifier and two times come first.
    let inner = associations.flat_map(|(_, value)| dhcp_options(value.get(12..).unwrap_or_default()));
    let mut addresses = inner.filter(|(code, _)| *code == ADDRESS).filter_map(|(_, value)| {
        let valid_s = u32::from_be_bytes(*value.get(20..)?.first_chunk()?);
        Some((Ipv6Addr::from(*value.first_chunk::<16>()?), valid_s))
    });
    addresses.find(|(_, valid_s)| *valid_s > 0)
}

fn dhcp_options(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    core::iter::from_fn(move || {
        let (&[a, b, c, d], after) = rest.split_first_chunk()?;
        let (value, left) = after.split_at_checked(usize::from(u16::from_be_bytes([c, d])))?;
        rest = left;
        Some((u16::from_be_bytes([a, b]), value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(hop_limit: u8, options: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 40];
        packet[7] = hop_limit;
        packet[8..24].copy_from_slice(&"fe80::1".parse::<Ipv6Addr>().unwrap().octets());
        packet.extend_from_slice(&[134, 0, 0, 0, 64, 0x80, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0]);
        packet.extend_from_slice(options);
        packet
    }

    fn option(length: u8) -> Vec<u8> {
        let mut option = vec![3, 4, length, 0xc0, 0, 0, 0, 9, 0, 0, 0, 9, 0, 0, 0, 0];
        option.extend_from_slice(&"2001:db8::".parse::<Ipv6Addr>().unwrap().octets());
        option
    }

    #[test]
    fn prefixes_are_read_among_other_options() {
        let options = [&[5, 1, 0, 0, 0, 0, 5, 0][..], &option(64), &option(129), &option(48), &[3]].concat();
        let bytes = packet(255, &options);
        let (router, announcement) = announcement(&bytes).unwrap();
        assert_eq!(
            (router, announcement.lifetime_s, announcement.managed),
            ("fe80::1".parse().unwrap(), 1800, true)
        );
        let found: Vec<_> = announcement.prefixes().map(|prefix| (prefix.length, prefix.valid_s)).collect();
        assert_eq!(found, [(64, 9), (48, 9)]);
    }

    #[test]
    fn announcements_from_elsewhere_and_broken_ones_are_none() {
        assert_eq!(announcement(&packet(64, &[])), None);
        assert_eq!(announcement(&packet(255, &[])[..50]), None);
        assert_eq!(announcement(&packet(255, &[3, 0, 0, 0])).unwrap().1.prefixes().count(), 0);
    }

    #[test]
    fn leased_address_is_that_of_the_own_transaction() {
        let address: Ipv6Addr = "2001:db8::7".parse().unwrap();
        let lease = [&address.octets()[..], &[0, 0, 0, 9, 0, 0, 0, 9]].concat();
        let reply = [&[7, 1, 2, 3, 0, 3, 0, 40][..], &[0; 12], &[0, 5, 0, 24], &lease].concat();
        assert_eq!(leased(&reply, [1, 2, 3]), Some((address, 9)));
        assert_eq!(leased(&reply, [1, 2, 4]), None);
        assert_eq!(leased(&reply[..30], [1, 2, 3]), None);
    }
}
