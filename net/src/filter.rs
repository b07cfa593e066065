//! Which packets pass, as set elements and chains: computed from what is wanted, pure. [`crate::nftables`] holds the
//! rules that read them.
//!
//! The fixed rules are the same on every host; what a port or a bridge adds is a few elements, each a hash look-up
//! away, so a packet costs the same with one port and with thousands. What has no element is dropped: a tap of ours
//! that nothing was said about can send nothing and is sent nothing.
//!
//! Security groups add chains: one per group and direction with its rules, and one per direction for each set of
//! groups that ports have (a [`Policy`]), with a jump to each. Chains keep their names whatever they hold: a changed
//! group is its chain emptied and filled in one transaction, however many ports have it. A port names its policy by
//! bytes, not by a chain: an element that leads to a chain has the kernel walk all that lead to one. The members of groups
//! that rules name are elements, too: one that comes or goes changes no chain.

mod element;
mod ending;
mod groups;
mod members;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::names::OwnerTag;
use crate::spec::{Bridge, Direction, Group, HostNetwork, InterfaceName, Tap};
pub use element::{Element, Target};
pub use ending::Ending;
pub(crate) use ending::Judge;
pub(crate) use groups::has_types;
pub use groups::{Chain, ChainName, Content, Policy, is_chain_name};
use members::{forgets, members_of};

/// The mark bits that belong to the packet filter on frames of our bridges: see [`crate::nftables`].
pub const MARK_BITS: u32 = 0x7000_0000;

const DIRECTIONS: [Direction; 2] = [Direction::Egress, Direction::Ingress];

/// Everything the rules look up, and the chains there are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// The facts.
    pub elements: BTreeSet<Element>,
    /// The chains of groups.
    pub chains: BTreeMap<ChainName, Held>,
}

/// What a chain holds, as far as it is known.
#[derive(Debug, Clone)]
pub struct Held {
    /// What tells it apart.
    pub content: Content,
    /// All of it, if we have made it.
    pub chain: Option<Arc<Chain>>,
}

impl Held {
    fn is(&self, chain: &Chain) -> bool {
        match &self.chain {
            Some(known) => **known == *chain,
            None => self.content == Content::of(chain),
        }
    }
}

impl From<&Arc<Chain>> for Held {
    fn from(chain: &Arc<Chain>) -> Self {
        Self { content: Content::of(chain), chain: Some(Arc::clone(chain)) }
    }
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        self.content == other.content
    }
}

impl Eq for Held {}

/// Chains that can be made, by their names.
pub type Chains = BTreeMap<ChainName, Arc<Chain>>;

/// A filter that can be made: with what its chains hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WantedFilter {
    /// The facts.
    pub elements: BTreeSet<Element>,
    /// The chains of groups.
    pub chains: Chains,
}

/// What turns one filter into another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FilterChange {
    /// Chains to make.
    pub add_chains: Chains,
    /// Chains that are there and hold something else from now on.
    pub refill_chains: Chains,
    /// Chains that stay as they are, with other members of the groups that they name.
    pub relearn_chains: Chains,
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

/// What of a host's network is another one than before, as far as the filter is concerned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changed {
    /// Taps.
    pub taps: BTreeSet<InterfaceName>,
    /// Groups.
    pub groups: BTreeSet<u32>,
}

impl Changed {
    /// The taps and groups that differ.
    #[must_use]
    pub fn between(before: &HostNetwork, after: &HostNetwork) -> Self {
        Self { taps: differing(&before.taps, &after.taps), groups: differing(&before.groups, &after.groups) }
    }
}

fn differing<K: Ord + Clone, V: PartialEq>(before: &BTreeMap<K, V>, after: &BTreeMap<K, V>) -> BTreeSet<K> {
    let gone = before.keys().filter(|key| !after.contains_key(*key));
    let other = after.iter().filter(|(key, value)| before.get(*key) != Some(*value)).map(|(key, _)| key);
    gone.chain(other).cloned().collect()
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
        let numbers: BTreeSet<&u32> = network.taps.values().flat_map(|tap| &tap.groups).collect();
        let groups = GroupChains::of(&network.groups, numbers);
        let tells_targets = network.taps.values().any(is_stateless);
        for (name, tap) in &network.taps {
            wanted.add_tap(name, tap, &groups, tells_targets);
        }
        wanted.elements.extend(wanted.chains.values().flat_map(|chain| members_of(chain)));
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
        let tells_targets = present.tells_targets();
        let mut bridges = BTreeSet::new();
        for (name, tap) in ports {
            wanted.add_tap(name, tap, &groups, tells_targets);
            bridges.extend(network.bridges.get_key_value(&tap.bridge).map(|(name, _)| name));
        }
        for name in &bridges {
            wanted.elements.extend(bridge_elements(name, &network.bridges[*name]));
        }
        wanted.add_zones(bridges.into_iter(), Some(present), tag);
        wanted
    }

    /// It as what is there.
    #[must_use]
    pub fn names(&self) -> Filter {
        let chains = self.chains.iter().map(|(name, chain)| (name.clone(), Held::from(chain)));
        Filter { elements: self.elements.clone(), chains: chains.collect() }
    }

    fn add_tap(&mut self, name: &str, tap: &Tap, groups: &GroupChains, tells_targets: bool) {
        self.elements.extend(source_elements(name, tap));
        if !tap.port_security {
            return;
        }
        let policy = Policy::of(&tap.groups);
        self.elements.insert(Element::Policy(name.to_owned(), policy));
        if tap.stateless {
            self.elements.insert(Element::Stateless(name.to_owned()));
        }
        if tells_targets {
            let target = if tap.stateless { Target::Untracked } else { Target::Tracked };
            self.elements.insert(Element::Target(name.to_owned(), tap.bridge.clone(), tap.mac, target));
        }
        let chains = tap.groups.iter().filter_map(|number| groups.0.get(number)).flatten();
        self.chains.extend(chains.map(|(name, chain)| (name.clone(), Arc::clone(chain))));
        for direction in DIRECTIONS {
            let chain = || Arc::new(Chain::Port { direction, groups: tap.groups.clone() });
            self.chains.entry(policy.chain(direction)).or_insert_with(chain);
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

fn is_stateless(tap: &Tap) -> bool {
    tap.port_security && tap.stateless
}

/// The chains of groups by number: made once, however many ports have them.
struct GroupChains(BTreeMap<u32, [(ChainName, Arc<Chain>); 2]>);

impl GroupChains {
    /// A group that is not there allows nothing.
    fn of<'a>(groups: &BTreeMap<u32, Group>, numbers: impl IntoIterator<Item = &'a u32>) -> Self {
        let nothing = Group::default();
        let chains = numbers.into_iter().map(|number| {
            let group = groups.get(number).unwrap_or(&nothing);
            let chains = DIRECTIONS.map(|direction| {
                let chain = Arc::new(Chain::of_group(direction, group));
                (Chain::name_of_group(direction, *number), chain)
            });
            (*number, chains)
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
        let superfluous = self.chains.keys().filter(|name| !wanted.chains.contains_key(*name));
        let remove_chains = superfluous.cloned().collect();
        FilterChange { remove_chains, ..self.change_from(&self.elements, wanted) }
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
        let made = change.add_chains.iter().chain(&change.refill_chains).chain(&change.relearn_chains);
        self.chains.extend(made.map(|(name, chain)| (name.clone(), Held::from(chain))));
    }

    /// Whether it is known what every chain holds.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.chains.values().all(|held| held.chain.is_some())
    }

    /// Takes over what is known of chains that hold the same.
    pub fn recall(&mut self, known: &Self) {
        for (name, held) in &mut self.chains {
            if let Some(known) = known.chains.get(name).filter(|known| *known == held) {
                held.chain.clone_from(&known.chain);
            }
        }
    }

    /// What turns this filter into one that says about a port what is wanted, and about its bridge. Where a group of its
    /// has changed, the change holds for the other ports that have the group, too; all else stays as it is. Chains that
    /// nothing needs any more stay until [`Filter::change_to`] sees them.
    #[must_use]
    pub fn change_for_port(&self, network: &HostNetwork, name: &str, tag: OwnerTag) -> FilterChange {
        let taps = BTreeSet::from([name.to_owned()]);
        if network.taps.contains_key(name) {
            self.change_for(network, &Changed { taps, ..Changed::default() }, tag)
        } else {
            FilterChange::default()
        }
    }

    /// As [`Filter::change_for_port`], for all that differs from what this filter was made for.
    #[must_use]
    pub fn change_for(&self, network: &HostNetwork, changed: &Changed, tag: OwnerTag) -> FilterChange {
        let ports = changed.taps.iter().filter_map(|name| network.taps.get_key_value(name));
        if !self.tells_targets() && ports.clone().any(|(_, tap)| is_stateless(tap)) {
            // The first that is stateless: of all others it is told now that they are not.
            return self.change_to(&WantedFilter::of(network, Some(self), tag));
        }
        let mut wanted = WantedFilter::of_ports(network, ports, self, tag);
        for (name, chain) in GroupChains::of(&network.groups, &changed.groups).0.into_values().flatten() {
            if self.chains.contains_key(&name) {
                wanted.chains.insert(name, chain);
            }
        }
        let links = changed.taps.iter().map(String::as_str).chain(wanted.elements.iter().map(Element::link));
        let links: BTreeSet<&str> = links.collect();
        let mut present: BTreeSet<Element> =
            links.iter().flat_map(|link| self.of_link(link).cloned().collect::<Vec<_>>()).collect();
        let (gone, come) = self.member_changes(&wanted.chains);
        present.extend(gone);
        wanted.elements.extend(come);
        self.change_from(&present, &wanted)
    }

    /// What removes all that this filter says about a link.
    #[must_use]
    pub fn removal_of_link(&self, link: &str) -> FilterChange {
        self.change_from(&self.of_link(link).cloned().collect(), &WantedFilter::default())
    }

    /// What lets it say `wanted` in place of a part of what it says; no chain goes.
    fn change_from(&self, part: &BTreeSet<Element>, wanted: &WantedFilter) -> FilterChange {
        let mut change = FilterChange {
            add: wanted.elements.difference(part).cloned().collect(),
            remove: part.difference(&wanted.elements).cloned().collect(),
            ..FilterChange::default()
        };
        for (name, chain) in &wanted.chains {
            let differing = match self.chains.get(name) {
                None => &mut change.add_chains,
                Some(held) if held.is(chain) && !forgets(&change.remove, held, chain) => continue,
                Some(held) if held.content == Content::of(chain) => &mut change.relearn_chains,
                Some(_) => &mut change.refill_chains,
            };
            differing.insert(name.clone(), Arc::clone(chain));
        }
        change.ending = Ending::of(self, &change, wanted);
        change
    }

    /// Whether a port of the host is stateless.
    fn tells_targets(&self) -> bool {
        let first = Element::Stateless(InterfaceName::new());
        matches!(self.elements.range(first..).next(), Some(Element::Stateless(_)))
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

    /// The policy of each port.
    fn policies(&self) -> impl Iterator<Item = (&InterfaceName, Policy)> {
        let policies = self.elements.range(Element::Policy(InterfaceName::new(), Policy::FIRST)..);
        policies.map_while(|element| match element {
            Element::Policy(tap, policy) => Some((tap, *policy)),
            _ => None,
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
mod tests;
