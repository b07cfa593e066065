//! Which packets pass, as set elements and chains: computed from what is wanted, pure. [`crate::nftables`] holds the
//! rules that read them.
//!
//! The fixed rules are the same on every host; what a port or a bridge adds is a few elements, each a hash look-up
//! away, so a packet costs the same with one port and with thousands. What has no element is dropped: a tap of ours
//! that nothing was said about can send nothing and is sent nothing.
//!
//! Security groups add chains: one per group and direction with its rules, and one per direction for each set of
//! groups that ports have, with a jump to each. A chain's name tells its content, so two filters with the same names
//! are the same, and a changed group is a new chain that ports are moved to in one transaction.

mod ending;
mod groups;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::names::OwnerTag;
use crate::spec::{Bridge, Direction, Group, HostNetwork, InterfaceName, Tap};
pub use ending::Ending;
pub(crate) use ending::Judge;
pub(crate) use groups::has_types;
pub use groups::{Chain, ChainName, is_chain_name, rule_count};

/// The mark bits that belong to the packet filter on frames of our bridges: see [`crate::nftables`].
pub const MARK_BITS: u32 = 0x7000_0000;

/// One fact that the rules look up.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Element {
    /// The tap has no port security: whatever its guest sends passes, and it is sent everything.
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
    /// What this chain lets through may begin, in this direction.
    Groups(InterfaceName, Direction, ChainName),
    /// Frames between ports of the bridge are no business of the host's IP forwarding.
    Bridged(InterfaceName),
    /// The host has addresses on the bridge and answers there.
    Gateway(InterfaceName),
    /// Connections on the bridge are tracked apart from all others, under this number.
    Zone(InterfaceName, u16),
    /// The same, for the bridge family's own tracking.
    BridgeZone(InterfaceName, u16),
}

/// Everything the rules look up, and the chains there are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// The facts.
    pub elements: BTreeSet<Element>,
    /// The chains of groups.
    pub chains: BTreeSet<ChainName>,
}

/// A filter that can be made: with what its chains hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WantedFilter {
    /// The facts.
    pub elements: BTreeSet<Element>,
    /// The chains of groups.
    pub chains: BTreeMap<ChainName, Chain>,
}

/// What turns one filter into another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FilterChange {
    /// Chains to make.
    pub add_chains: BTreeMap<ChainName, Chain>,
    /// Facts to add.
    pub add: BTreeSet<Element>,
    /// Facts to remove.
    pub remove: BTreeSet<Element>,
    /// Chains to remove, which nothing is left to need.
    pub remove_chains: BTreeSet<ChainName>,
    /// The connections that end with it.
    pub ending: Ending,
}

impl FilterChange {
    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl WantedFilter {
    /// What a host's network needs. Bridges keep the zones that `present` gives them; `tag` says where new numbers
    /// start, so that clouds on one host seldom share one.
    #[must_use]
    pub fn of(network: &HostNetwork, present: Option<&Filter>, tag: OwnerTag) -> Self {
        let mut wanted = Self::default();
        for (name, bridge) in &network.bridges {
            wanted.elements.extend(bridge_elements(name, bridge));
        }
        wanted.add_zones(network.bridges.keys(), present, tag);
        let groups = GroupChains::of(&network.groups, network.groups.keys());
        for (name, tap) in &network.taps {
            wanted.add_tap(name, tap, &groups);
        }
        wanted
    }

    /// What some ports and their bridges need.
    fn of_ports<'a>(
        network: &'a HostNetwork,
        ports: impl Iterator<Item = (&'a InterfaceName, &'a Tap)> + Clone,
        present: &Filter,
        tag: OwnerTag,
    ) -> Self {
        let mut wanted = Self::default();
        let numbers: BTreeSet<&u32> = ports.clone().flat_map(|(_, tap)| &tap.groups).collect();
        let groups = GroupChains::of(&network.groups, numbers);
        let mut bridges = BTreeSet::new();
        for (name, tap) in ports {
            wanted.add_tap(name, tap, &groups);
            bridges.extend(network.bridges.get_key_value(&tap.bridge).map(|(name, _)| name));
        }
        for name in &bridges {
            wanted.elements.extend(bridge_elements(name, &network.bridges[*name]));
        }
        wanted.add_zones(bridges.into_iter(), Some(present), tag);
        wanted
    }

    /// It without what its chains hold.
    #[must_use]
    pub fn names(&self) -> Filter {
        Filter { elements: self.elements.clone(), chains: self.chains.keys().cloned().collect() }
    }

    fn add_tap(&mut self, name: &str, tap: &Tap, groups: &GroupChains) {
        self.elements.extend(source_elements(name, tap));
        if !tap.port_security {
            return;
        }
        for direction in [Direction::Egress, Direction::Ingress] {
            let chains = tap.groups.iter().filter_map(|number| groups.0.get(&(*number, direction)));
            let mut jumps = BTreeSet::new();
            for (chain_name, chain) in chains {
                jumps.insert(chain_name.clone());
                if !self.chains.contains_key(chain_name) {
                    self.chains.insert(chain_name.clone(), chain.clone());
                }
            }
            let chain = Chain::Port { direction, groups: jumps };
            let chain_name = chain.name();
            self.elements.insert(Element::Groups(name.to_owned(), direction, chain_name.clone()));
            self.chains.insert(chain_name, chain);
        }
    }

    fn add_zones<'a>(
        &mut self,
        bridges: impl Iterator<Item = &'a InterfaceName>,
        present: Option<&Filter>,
        tag: OwnerTag,
    ) {
        let zones: BTreeMap<&str, u16> = present.iter().flat_map(|filter| filter.zones()).collect();
        let mut taken: BTreeSet<u16> = zones.values().copied().collect();
        for name in bridges {
            let zone = zones.get(name.as_str()).copied().unwrap_or_else(|| free_zone(&taken, tag));
            taken.insert(zone);
            self.elements.insert(Element::Zone(name.clone(), zone));
            self.elements.insert(Element::BridgeZone(name.clone(), zone));
        }
    }
}

/// The chains of groups by number and direction: named once, however many ports have them.
struct GroupChains(BTreeMap<(u32, Direction), (ChainName, Chain)>);

impl GroupChains {
    fn of<'a>(groups: &BTreeMap<u32, Group>, numbers: impl IntoIterator<Item = &'a u32>) -> Self {
        let groups = numbers.into_iter().filter_map(|number| groups.get_key_value(number));
        let chains = groups.flat_map(|(number, group)| {
            [Direction::Egress, Direction::Ingress].map(|direction| {
                let chain = Chain::of_group(direction, group);
                ((*number, direction), (chain.name(), chain))
            })
        });
        Self(chains.collect())
    }
}

/// A zone that no bridge has: 0 is everybody's. With 65535 bridges there is none left and they share.
fn free_zone(taken: &BTreeSet<u16>, tag: OwnerTag) -> u16 {
    let start = tag.number();
    let mut numbers = (0..=u16::MAX).map(|offset| start.wrapping_add(offset)).filter(|number| *number != 0);
    numbers.find(|number| !taken.contains(number)).unwrap_or(u16::MAX)
}

impl Filter {
    /// What turns this filter into another.
    #[must_use]
    pub fn change_to(&self, wanted: &WantedFilter) -> FilterChange {
        let add_chains = wanted.chains.iter().filter(|(name, _)| !self.chains.contains(*name));
        let remove = self.elements.difference(&wanted.elements).cloned().collect();
        FilterChange {
            add_chains: add_chains.map(|(name, chain)| (name.clone(), chain.clone())).collect(),
            add: wanted.elements.difference(&self.elements).cloned().collect(),
            ending: Ending::of(self, &remove, wanted),
            remove,
            remove_chains: self
                .chains
                .iter()
                .filter(|name| !wanted.chains.contains_key(*name))
                .cloned()
                .collect(),
        }
    }

    /// Carries a change out.
    pub fn apply(&mut self, change: &FilterChange) {
        for element in &change.remove {
            self.elements.remove(element);
        }
        for name in &change.remove_chains {
            self.chains.remove(name);
        }
        self.elements.extend(change.add.iter().cloned());
        self.chains.extend(change.add_chains.keys().cloned());
    }

    /// What turns this filter into one that says about a port what is wanted, and about its bridge. Where a group of its
    /// has changed, the change holds for the other ports that have the group, too; all else stays as it is. Chains that
    /// nothing needs any more stay until [`Filter::change_to`] sees them.
    #[must_use]
    pub fn change_for_port(&self, network: &HostNetwork, name: &str, tag: OwnerTag) -> FilterChange {
        let Some((name, tap)) = network.taps.get_key_value(name) else { return FilterChange::default() };
        let alone = WantedFilter::of_ports(network, [(name, tap)].into_iter(), self, tag);
        let change = self.change_of_links(&alone);
        let changes_group = change.add_chains.values().any(|chain| matches!(chain, Chain::Group { .. }));
        if !changes_group {
            return change;
        }
        let known: BTreeSet<&str> = self.elements.iter().map(Element::link).collect();
        let shares = |(other, other_tap): &(&InterfaceName, &Tap)| {
            *other == name || (known.contains(other.as_str()) && !other_tap.groups.is_disjoint(&tap.groups))
        };
        let sharing = WantedFilter::of_ports(network, network.taps.iter().filter(shares), self, tag);
        self.change_of_links(&sharing)
    }

    /// What removes all that this filter says about a link.
    #[must_use]
    pub fn removal_of_link(&self, link: &str) -> FilterChange {
        let remove = self.of_link(link).cloned().collect();
        let ending = Ending::of(self, &remove, &WantedFilter::default());
        FilterChange { remove, ending, ..FilterChange::default() }
    }

    /// What turns this filter into one that says exactly `wanted` about every link that `wanted` says anything about.
    fn change_of_links(&self, wanted: &WantedFilter) -> FilterChange {
        let links: BTreeSet<&str> = wanted.elements.iter().map(Element::link).collect();
        let present: BTreeSet<Element> =
            links.iter().flat_map(|link| self.of_link(link).cloned().collect::<Vec<_>>()).collect();
        let wanted_chains = wanted.chains.keys().filter(|name| self.chains.contains(*name));
        let part = Self { elements: present, chains: wanted_chains.cloned().collect() };
        let mut change = part.change_to(wanted);
        change.remove_chains.clear();
        change
    }

    /// What it says about a link, found without a search: elements are in the order of their kinds, then of links.
    fn of_link<'a>(&'a self, link: &'a str) -> impl Iterator<Item = &'a Element> {
        Element::first_of_each_kind(link).into_iter().flat_map(move |first| {
            let kind = std::mem::discriminant(&first);
            let is_of =
                move |element: &&Element| std::mem::discriminant(*element) == kind && element.link() == link;
            self.elements.range(first..).take_while(is_of)
        })
    }

    /// The zone of each bridge.
    pub(crate) fn zones(&self) -> impl Iterator<Item = (&str, u16)> {
        let zones = self.elements.range(Element::Zone(InterfaceName::new(), 0)..);
        zones.map_while(|element| match element {
            Element::Zone(bridge, zone) => Some((bridge.as_str(), *zone)),
            _ => None,
        })
    }
}

impl Element {
    /// What is not after any element about this link, of each kind.
    fn first_of_each_kind(link: &str) -> [Self; 12] {
        let link = || link.to_owned();
        [
            Self::Open(link()),
            Self::Mac(link(), [0; 6]),
            Self::Ipv4(link(), Ipv4Addr::UNSPECIFIED),
            Self::Ipv4Prefix(link(), Ipv4Net::default()),
            Self::Ipv6Port(link()),
            Self::Ipv6(link(), Ipv6Addr::UNSPECIFIED),
            Self::Ipv6Prefix(link(), Ipv6Net::default()),
            Self::Groups(link(), Direction::Ingress, ChainName::new()),
            Self::Bridged(link()),
            Self::Gateway(link()),
            Self::Zone(link(), 0),
            Self::BridgeZone(link(), 0),
        ]
    }

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
            | Self::Groups(link, _, _)
            | Self::Bridged(link)
            | Self::Gateway(link)
            | Self::Zone(link, _)
            | Self::BridgeZone(link, _) => link,
        }
    }
}

fn bridge_elements(name: &str, bridge: &Bridge) -> BTreeSet<Element> {
    let mut elements = BTreeSet::from([Element::Bridged(name.to_owned())]);
    if !bridge.host_addresses.is_empty() {
        elements.insert(Element::Gateway(name.to_owned()));
    }
    elements
}

/// What the guest may send from. Single addresses stay apart from prefixes: their set is a hash that an element enters
/// in constant time, where the one of prefixes is rebuilt and takes no overlapping ones.
fn source_elements(name: &str, tap: &Tap) -> BTreeSet<Element> {
    if !tap.port_security {
        return BTreeSet::from([Element::Open(name.to_owned())]);
    }
    let mut elements = BTreeSet::from([Element::Mac(name.to_owned(), tap.mac)]);
    let addresses: Vec<IpNet> = tap.addresses.iter().copied().collect();
    let addresses = IpNet::aggregate(&addresses);
    elements.extend(addresses.iter().map(|address| source(name, *address)));
    if addresses.iter().any(|address| matches!(address, IpNet::V6(_))) {
        elements.insert(Element::Ipv6Port(name.to_owned()));
        elements.insert(Element::Ipv6(name.to_owned(), link_local(tap.mac)));
    }
    elements
}

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
    fn all_about_a_link_is_found_and_nothing_else() {
        let mut wanted = crate::testing::network(&[(1, 1), (2, 1), (3, 2)]);
        let all = ["10.9.0.1/32", "0.0.0.0/8", "10.8.0.0/16", "2001:db8::1/128", "2001:db8:1::/48", "::/64"];
        for tap in wanted.taps.values_mut() {
            tap.addresses = all.iter().map(|net| net.parse().unwrap()).collect();
        }
        let open = wanted.taps.values_mut().next().unwrap();
        open.port_security = false;
        wanted.bridges.values_mut().next().unwrap().host_addresses = vec!["10.9.0.1/24".parse().unwrap()];
        let filter = WantedFilter::of(&wanted, None, OwnerTag::new(7)).names();
        let links: BTreeSet<&str> = filter.elements.iter().map(Element::link).collect();
        assert_eq!(links.len(), 5);
        for link in links {
            let found: Vec<&Element> = filter.of_link(link).collect();
            let searched: Vec<&Element> = filter.elements.iter().filter(|e| e.link() == link).collect();
            assert_eq!(found, searched, "{link}");
        }
        assert_eq!(filter.zones().count(), 2);
    }

    #[test]
    fn one_ipv4_address_is_two_elements() {
        let elements = source_elements("t", &tap(&["10.0.0.5/32"]));
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
        let elements = source_elements("t", &tap(&["2001:db8::5/128"]));
        assert!(
            elements.contains(&Element::Ipv6("t".to_owned(), "fe80::f816:3eff:fe01:203".parse().unwrap()))
        );
    }

    #[test]
    fn port_without_ipv6_address_has_no_ipv6() {
        let elements = source_elements("t", &tap(&["10.0.0.0/24"]));
        assert!(!elements.iter().any(|element| matches!(element, Element::Ipv6Port(_) | Element::Ipv6(..))));
    }

    #[test]
    fn port_without_security_is_open() {
        let open = Tap { port_security: false, ..tap(&["10.0.0.5/32"]) };
        assert_eq!(source_elements("t", &open), BTreeSet::from([Element::Open("t".to_owned())]));
    }

    #[test]
    fn changed_group_reaches_the_ports_that_have_it_and_no_others() {
        let bridges = [("b".to_owned(), Bridge { mtu: 1500, ..Bridge::default() })].into();
        let port = |groups: &[u32]| Tap { groups: groups.iter().copied().collect(), ..tap(&["10.0.0.5/32"]) };
        let taps = [("t1", [1]), ("t2", [1]), ("t3", [2])];
        let taps = taps.into_iter().map(|(name, groups)| (name.to_owned(), port(&groups))).collect();
        let mut network = HostNetwork { bridges, taps, groups: BTreeMap::new(), ..HostNetwork::default() };
        let tag = OwnerTag::new(1);
        let mut filter = WantedFilter::of(&network, None, tag).names();
        assert!(filter.change_for_port(&network, "t1", tag).is_empty());
        let rule = crate::spec::Rule {
            direction: Direction::Egress,
            ip_version: 4,
            protocol: None,
            ports: None,
            remote: crate::spec::Remote::Any,
        };
        network.groups.insert(1, Group { rules: [rule.clone()].into() });
        network.groups.insert(2, Group { rules: [rule].into() });
        network.taps.insert("t4".to_owned(), port(&[1]));
        network.taps.insert("t5".to_owned(), port(&[1]));
        let change = filter.change_for_port(&network, "t4", tag);
        let links: BTreeSet<&str> = change.add.iter().map(Element::link).collect();
        assert_eq!(links, ["t1", "t2", "t4"].into());
        filter.apply(&change);
        assert!(filter.change_for_port(&network, "t2", tag).is_empty());
    }

    #[test]
    fn overlapping_sources_become_one_prefix() {
        let elements = source_elements("t", &tap(&["10.0.0.0/8", "10.1.0.0/16", "10.1.1.1/32"]));
        let prefixes = elements.iter().filter(|element| !matches!(element, Element::Mac(..)));
        assert_eq!(
            prefixes.collect::<Vec<_>>(),
            [&Element::Ipv4Prefix("t".to_owned(), "10.0.0.0/8".parse().unwrap())]
        );
    }

    #[test]
    fn bridges_keep_their_zones_and_share_none() {
        let tag = OwnerTag::new(0xffff);
        let bridge = Bridge { mtu: 1500, ..Bridge::default() };
        let network = |names: &[&str]| HostNetwork {
            bridges: names.iter().map(|name| ((*name).to_owned(), bridge.clone())).collect(),
            ..HostNetwork::default()
        };
        let zones = |filter: &WantedFilter| -> BTreeMap<String, u16> {
            let zone = |element: &Element| match element {
                Element::Zone(name, zone) => Some((name.clone(), *zone)),
                _ => None,
            };
            filter.elements.iter().filter_map(zone).collect()
        };
        let first = WantedFilter::of(&network(&["b", "d"]), None, tag);
        assert_eq!(zones(&first), [("b".to_owned(), 0xffff), ("d".to_owned(), 1)].into());
        let second = WantedFilter::of(&network(&["a", "d"]), Some(&first.names()), tag);
        assert_eq!(zones(&second), [("a".to_owned(), 2), ("d".to_owned(), 1)].into());
    }
}
