//! Which packets pass, as set elements: computed from what is wanted, pure. [`crate::nftables`] holds the rules that
//! read them.
//!
//! The rules are the same on every host; what a port or a bridge adds is a few elements, each a hash look-up away, so
//! a packet costs the same with one port and with thousands. What has no element is dropped: a tap of ours that
//! nothing was said about can send nothing.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::spec::{Bridge, HostNetwork, InterfaceName, Tap};

/// One fact that the rules look up.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Element {
    /// The tap has no port security: whatever its guest sends passes.
    Open(InterfaceName),
    /// The guest may send from this MAC.
    Mac(InterfaceName, [u8; 6]),
    /// The guest may send from this address.
    Ipv4(InterfaceName, Ipv4Addr),
    /// The guest may send from every address of this prefix.
    Ipv4Prefix(InterfaceName, Ipv4Net),
    /// The guest may send IPv6 at all.
    Ipv6Port(InterfaceName),
    /// The guest may send from this address.
    Ipv6(InterfaceName, Ipv6Addr),
    /// The guest may send from every address of this prefix.
    Ipv6Prefix(InterfaceName, Ipv6Net),
    /// Frames between ports of the bridge are no business of the host's IP forwarding.
    Bridged(InterfaceName),
    /// The host has addresses on the bridge and answers there.
    Gateway(InterfaceName),
}

/// Everything the rules look up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// The facts.
    pub elements: BTreeSet<Element>,
}

/// What turns one filter into another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FilterChange {
    /// Facts to add.
    pub add: BTreeSet<Element>,
    /// Facts to remove.
    pub remove: BTreeSet<Element>,
}

impl FilterChange {
    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.add.is_empty() && self.remove.is_empty()
    }
}

impl Filter {
    /// What a host's network needs.
    #[must_use]
    pub fn wanted(network: &HostNetwork) -> Self {
        let bridges = network.bridges.iter().flat_map(|(name, bridge)| bridge_elements(name, bridge));
        let taps = network.taps.iter().flat_map(|(name, tap)| tap_elements(name, tap));
        Self { elements: bridges.chain(taps).collect() }
    }

    /// What turns this filter into another.
    #[must_use]
    pub fn change_to(&self, wanted: &Self) -> FilterChange {
        FilterChange {
            add: wanted.elements.difference(&self.elements).cloned().collect(),
            remove: self.elements.difference(&wanted.elements).cloned().collect(),
        }
    }

    /// Carries a change out.
    pub fn apply(&mut self, change: &FilterChange) {
        self.elements.retain(|element| !change.remove.contains(element));
        self.elements.extend(change.add.iter().cloned());
    }

    /// What turns this filter into one that says exactly `wanted` about a link, and the same about all others.
    #[must_use]
    pub fn change_of_link(&self, link: &str, wanted: &BTreeSet<Element>) -> FilterChange {
        let present: BTreeSet<Element> =
            self.elements.iter().filter(|element| element.link() == link).cloned().collect();
        FilterChange {
            add: wanted.difference(&present).cloned().collect(),
            remove: present.difference(wanted).cloned().collect(),
        }
    }
}

impl Element {
    /// The link it is about.
    #[must_use]
    pub fn link(&self) -> &str {
        match self {
            Self::Open(link)
            | Self::Mac(link, _)
            | Self::Ipv4(link, _)
            | Self::Ipv4Prefix(link, _)
            | Self::Ipv6Port(link)
            | Self::Ipv6(link, _)
            | Self::Ipv6Prefix(link, _)
            | Self::Bridged(link)
            | Self::Gateway(link) => link,
        }
    }
}

/// What a bridge needs.
#[must_use]
pub fn bridge_elements(name: &str, bridge: &Bridge) -> BTreeSet<Element> {
    let mut elements = BTreeSet::from([Element::Bridged(name.to_owned())]);
    if !bridge.host_addresses.is_empty() {
        elements.insert(Element::Gateway(name.to_owned()));
    }
    elements
}

/// What a tap needs.
#[must_use]
pub fn tap_elements(name: &str, tap: &Tap) -> BTreeSet<Element> {
    if !tap.port_security {
        return BTreeSet::from([Element::Open(name.to_owned())]);
    }
    let mut elements = BTreeSet::from([Element::Mac(name.to_owned(), tap.mac)]);
    elements.extend(tap.addresses.iter().map(|address| source(name, *address)));
    if tap.addresses.iter().any(|address| matches!(address, IpNet::V6(_))) {
        elements.insert(Element::Ipv6Port(name.to_owned()));
        elements.insert(Element::Ipv6(name.to_owned(), link_local(tap.mac)));
    }
    elements
}

/// An allowed source. Single addresses stay apart from prefixes: their set is a hash that an element enters in constant
/// time, where the one of prefixes is rebuilt.
fn source(name: &str, address: IpNet) -> Element {
    let name = name.to_owned();
    match address.trunc() {
        IpNet::V4(net) if net.prefix_len() == 32 => Element::Ipv4(name, net.addr()),
        IpNet::V4(net) => Element::Ipv4Prefix(name, net),
        IpNet::V6(net) if net.prefix_len() == 128 => Element::Ipv6(name, net.addr()),
        IpNet::V6(net) => Element::Ipv6Prefix(name, net),
    }
}

/// The link-local address that a MAC gives (RFC 4291, appendix A).
fn link_local([a, b, c, d, e, f]: [u8; 6]) -> Ipv6Addr {
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tap(addresses: &[&str]) -> Tap {
        Tap {
            bridge: "b".to_owned(),
            mtu: 1500,
            mac: [0xfa, 0x16, 0x3e, 1, 2, 3],
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            port_security: true,
            groups: BTreeSet::new(),
        }
    }

    #[test]
    fn one_ipv4_port_is_two_elements() {
        let elements = tap_elements("t", &tap(&["10.0.0.5/32"]));
        assert_eq!(
            elements,
            BTreeSet::from([
                Element::Mac("t".to_owned(), [0xfa, 0x16, 0x3e, 1, 2, 3]),
                Element::Ipv4("t".to_owned(), Ipv4Addr::new(10, 0, 0, 5)),
            ])
        );
    }

    #[test]
    fn ipv6_port_may_use_its_link_local_address() {
        let elements = tap_elements("t", &tap(&["2001:db8::5/128"]));
        assert!(
            elements.contains(&Element::Ipv6("t".to_owned(), "fe80::f816:3eff:fe01:203".parse().unwrap()))
        );
    }

    #[test]
    fn port_without_ipv6_address_has_no_ipv6() {
        let elements = tap_elements("t", &tap(&["10.0.0.0/24"]));
        assert!(!elements.iter().any(|element| matches!(element, Element::Ipv6Port(_) | Element::Ipv6(..))));
    }

    #[test]
    fn port_without_security_is_open() {
        let open = Tap { port_security: false, ..tap(&["10.0.0.5/32"]) };
        assert_eq!(tap_elements("t", &open), BTreeSet::from([Element::Open("t".to_owned())]));
    }
}
