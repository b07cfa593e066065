//! What to do so that a host's network becomes what is wanted: a pure difference, safe to compute and carry out again
//! at any time.
//!
//! The order holds the invariants: what is in the way goes first, taps before the bridges they are ports of; bridges
//! come before filters and filters before taps, so no frame of a guest meets a bridge whose rules are not in place.

mod router;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::IpNet;

use crate::filter::{Filter, FilterChange, WantedFilter};
use crate::names::OwnerTag;
use crate::spec::{Bridge, HostNetwork, InterfaceName, NamespaceName, Tap, Vxlan};
pub use router::{ObservedEnd, ObservedRouter, RouterOperation};

/// What a host's network is: only what carries our tag, and the names that others have taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Our bridges.
    pub bridges: BTreeMap<InterfaceName, ObservedBridge>,
    /// Our VXLAN devices.
    pub vxlans: BTreeMap<InterfaceName, ObservedVxlan>,
    /// Our taps.
    pub taps: BTreeMap<InterfaceName, ObservedPort>,
    /// Our routers, by their namespaces.
    pub routers: BTreeMap<NamespaceName, ObservedRouter>,
    /// The host's ends of our routers' links.
    pub router_links: BTreeMap<InterfaceName, ObservedPort>,
    /// Links of ours whose kind is not what their name says: only good for removal.
    pub misshapen: BTreeSet<InterfaceName>,
    /// The names of all other links.
    pub foreign: BTreeSet<InterfaceName>,
    /// What the packet filter holds; absent if it is missing or damaged.
    pub filter: Option<Filter>,
}

/// A bridge of ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedBridge {
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether it is set up.
    pub is_up: bool,
    /// The host's addresses on it, link-local ones left out.
    pub addresses: BTreeSet<IpNet>,
}

/// A port of a bridge.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedPort {
    /// The bridge it is a port of.
    pub bridge: Option<InterfaceName>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether it is set up.
    pub is_up: bool,
}

/// A VXLAN device of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedVxlan {
    /// The network identifier.
    pub vni: u32,
    /// This host's tunnel address.
    pub local: Option<Ipv4Addr>,
    /// The tunnel addresses it floods to.
    pub peers: BTreeSet<Ipv4Addr>,
    /// It as a port.
    pub port: ObservedPort,
}

/// One step; each may fail without making a later plan wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Remove a link of ours.
    DeleteLink(InterfaceName),
    /// Make a bridge with our alias; it is down and bare.
    CreateBridge {
        /// Its name.
        name: InterfaceName,
    },
    /// Set a bridge's MTU, close it to the host or open it, and set it up.
    ConfigureBridge {
        /// Its name.
        name: InterfaceName,
        /// MTU in bytes.
        mtu: u32,
        /// Whether the host takes part in the network.
        has_host: bool,
        /// Whether it does so with IPv6 too.
        has_ipv6: bool,
    },
    /// Give the host an address on a bridge.
    AddAddress {
        /// The bridge.
        bridge: InterfaceName,
        /// The address with its prefix.
        address: IpNet,
    },
    /// Take an address of the host's from a bridge.
    RemoveAddress {
        /// The bridge.
        bridge: InterfaceName,
        /// The address with its prefix.
        address: IpNet,
    },
    /// Make the packet filter anew.
    RebuildFilter(WantedFilter),
    /// Change what the packet filter holds.
    ChangeFilter(FilterChange),
    /// Make a VXLAN device with our alias; it is down.
    CreateVxlan {
        /// Its name.
        name: InterfaceName,
        /// The network identifier.
        vni: u32,
        /// This host's tunnel address.
        local: Ipv4Addr,
    },
    /// Let a VXLAN device flood to another host.
    AddFlood {
        /// The device.
        vxlan: InterfaceName,
        /// The other host.
        peer: Ipv4Addr,
    },
    /// Stop a VXLAN device from flooding to another host.
    RemoveFlood {
        /// The device.
        vxlan: InterfaceName,
        /// The other host.
        peer: Ipv4Addr,
    },
    /// Make a persistent tap with our alias; it is down.
    CreateTap {
        /// Its name.
        name: InterfaceName,
    },
    /// A step about the router with this namespace.
    Router(NamespaceName, RouterOperation),
    /// Make a tap, a VXLAN device or a router's link a port of a bridge, with an MTU, and set it up.
    ConfigurePort {
        /// The tap, device or link.
        name: InterfaceName,
        /// The bridge.
        bridge: InterfaceName,
        /// MTU in bytes.
        mtu: u32,
    },
}

impl Operation {
    /// The link or namespace it is about, if it is about one.
    #[must_use]
    pub fn subject(&self) -> Option<&str> {
        match self {
            Self::DeleteLink(name)
            | Self::CreateBridge { name }
            | Self::ConfigureBridge { name, .. }
            | Self::CreateVxlan { name, .. }
            | Self::CreateTap { name }
            | Self::ConfigurePort { name, .. } => Some(name),
            Self::Router(name, _) => Some(name),
            Self::AddAddress { bridge, .. } | Self::RemoveAddress { bridge, .. } => Some(bridge),
            Self::AddFlood { vxlan, .. } | Self::RemoveFlood { vxlan, .. } => Some(vxlan),
            Self::RebuildFilter(_) | Self::ChangeFilter(_) => None,
        }
    }
}

/// The steps from what is observed to what is wanted, in an order that can be carried out; none if nothing differs.
///
/// A wanted name that a foreign link has is asked for all the same: the kernel refuses it, and the foreign link stays
/// as it is.
#[must_use]
pub fn plan(tag: OwnerTag, wanted: &HostNetwork, observed: &Observed) -> Vec<Operation> {
    let vxlans: BTreeMap<&str, (&str, &Bridge, &Vxlan)> = wanted
        .bridges
        .iter()
        .filter_map(|(name, bridge)| {
            bridge.vxlan.as_ref().map(|vxlan| (vxlan.name.as_str(), (name.as_str(), bridge, vxlan)))
        })
        .collect();
    let mut operations = deletions(wanted, observed, &vxlans);
    for (name, bridge) in &wanted.bridges {
        plan_bridge(&mut operations, name, bridge, observed.bridges.get(name));
    }
    operations.extend(plan_filter(tag, wanted, observed));
    for (name, (bridge_name, bridge, vxlan)) in &vxlans {
        let present = observed.vxlans.get(*name).filter(|present| is_same_tunnel(present, vxlan));
        plan_vxlan(&mut operations, bridge_name, bridge.mtu, vxlan, present);
    }
    for (name, tap) in &wanted.taps {
        plan_tap(&mut operations, name, tap, observed.taps.get(name));
    }
    operations.extend(plan_routers(wanted, observed));
    operations
}

/// The steps about routers alone, those that go first left out; their bridges are there.
fn plan_routers(wanted: &HostNetwork, observed: &Observed) -> Vec<Operation> {
    let mut operations = Vec::new();
    for (name, router) in &wanted.routers {
        let present = observed.routers.get(name);
        router::plan_router(&mut operations, name, router, present, &observed.router_links);
    }
    operations
}

/// As [`plan`], for one router of an otherwise settled host: its bridges are there, and `observed` holds its namespace
/// and its links. Without it in `wanted` it is removed.
#[must_use]
pub fn plan_one_router(wanted: &HostNetwork, observed: &Observed) -> Vec<Operation> {
    let mut operations = router::deletions(&wanted.routers, &observed.routers, &observed.router_links);
    operations.extend(plan_routers(wanted, observed));
    operations
}

fn deletions(
    wanted: &HostNetwork,
    observed: &Observed,
    vxlans: &BTreeMap<&str, (&str, &Bridge, &Vxlan)>,
) -> Vec<Operation> {
    let taps = observed.taps.keys().filter(|name| !wanted.taps.contains_key(*name));
    let tunnels = observed.vxlans.iter().filter(|(name, present)| {
        vxlans.get(name.as_str()).is_none_or(|(_, _, wanted)| !is_same_tunnel(present, wanted))
    });
    let bridges = observed.bridges.keys().filter(|name| !wanted.bridges.contains_key(*name));
    let mut operations = router::deletions(&wanted.routers, &observed.routers, &observed.router_links);
    let links = taps
        .chain(tunnels.map(|(name, _)| name))
        .chain(&observed.misshapen)
        .chain(bridges)
        .map(|name| Operation::DeleteLink(name.clone()));
    operations.extend(links);
    operations
}

/// A VXLAN device's identifier and own address are fixed when it is made.
fn is_same_tunnel(present: &ObservedVxlan, wanted: &Vxlan) -> bool {
    present.vni == wanted.vni && present.local == Some(wanted.local)
}

fn plan_bridge(
    operations: &mut Vec<Operation>,
    name: &str,
    bridge: &Bridge,
    present: Option<&ObservedBridge>,
) {
    if present.is_none() {
        operations.push(Operation::CreateBridge { name: name.to_owned() });
    }
    let empty = BTreeSet::new();
    let addresses = present.map_or(&empty, |present| &present.addresses);
    let wanted: BTreeSet<IpNet> = bridge.host_addresses.iter().copied().collect();
    let has_host = !wanted.is_empty();
    let has_ipv6 = has_ipv6_address(&wanted);
    let is_configured = present.is_some_and(|present| {
        present.is_up
            && present.mtu == bridge.mtu
            && present.addresses.is_empty() != has_host
            && has_ipv6_address(&present.addresses) == has_ipv6
    });
    if !is_configured {
        let name = name.to_owned();
        operations.push(Operation::ConfigureBridge { name, mtu: bridge.mtu, has_host, has_ipv6 });
    }
    let bridge = || name.to_owned();
    operations.extend(
        addresses.difference(&wanted).map(|a| Operation::RemoveAddress { bridge: bridge(), address: *a }),
    );
    operations.extend(
        wanted.difference(addresses).map(|a| Operation::AddAddress { bridge: bridge(), address: *a }),
    );
}

fn has_ipv6_address(addresses: &BTreeSet<IpNet>) -> bool {
    addresses.iter().any(|address| matches!(address, IpNet::V6(_)))
}

fn plan_filter(tag: OwnerTag, wanted: &HostNetwork, observed: &Observed) -> Option<Operation> {
    let wanted = WantedFilter::of(wanted, observed.filter.as_ref(), tag);
    let Some(present) = &observed.filter else {
        return Some(Operation::RebuildFilter(wanted));
    };
    let change = present.change_to(&wanted);
    (!change.is_empty()).then_some(Operation::ChangeFilter(change))
}

fn plan_vxlan(
    operations: &mut Vec<Operation>,
    bridge: &str,
    mtu: u32,
    vxlan: &Vxlan,
    present: Option<&ObservedVxlan>,
) {
    let name = || vxlan.name.clone();
    if present.is_none() {
        operations.push(Operation::CreateVxlan { name: name(), vni: vxlan.vni, local: vxlan.local });
    }
    let empty = BTreeSet::new();
    let peers = present.map_or(&empty, |present| &present.peers);
    operations
        .extend(peers.difference(&vxlan.peers).map(|p| Operation::RemoveFlood { vxlan: name(), peer: *p }));
    operations.extend(vxlan.peers.difference(peers).map(|p| Operation::AddFlood { vxlan: name(), peer: *p }));
    plan_port(operations, &vxlan.name, bridge, mtu, present.map(|present| &present.port));
}

fn plan_tap(operations: &mut Vec<Operation>, name: &str, tap: &Tap, present: Option<&ObservedPort>) {
    if present.is_none() {
        operations.push(Operation::CreateTap { name: name.to_owned() });
    }
    plan_port(operations, name, &tap.bridge, tap.mtu, present);
}

fn plan_port(
    operations: &mut Vec<Operation>,
    name: &str,
    bridge: &str,
    mtu: u32,
    present: Option<&ObservedPort>,
) {
    let is_configured =
        present.is_some_and(|p| p.is_up && p.mtu == mtu && p.bridge.as_deref() == Some(bridge));
    if !is_configured {
        operations.push(Operation::ConfigurePort { name: name.to_owned(), bridge: bridge.to_owned(), mtu });
    }
}

#[cfg(test)]
mod tests;
