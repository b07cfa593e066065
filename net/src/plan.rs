//! What to do so that a host's network becomes what is wanted: a pure difference, safe to compute and carry out again
//! at any time.
//!
//! The order holds the invariants: what is in the way goes first, taps before the bridges they are ports of; bridges
//! come before filters and filters before taps, so no frame of a guest meets a bridge whose rules are not in place.

mod fabric;
mod router;
mod subport;
mod tunnel;
mod uplink;

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::filter::{Filter, FilterChange, WantedFilter};
use crate::names::OwnerTag;
use crate::spec::{Bridge, Fabric, HostNetwork, InterfaceName, NamespaceName, Subport};
pub use fabric::{FabricOperation, ObservedFabric};
pub use router::{ObservedEnd, ObservedRouter, RouterOperation};
pub use tunnel::{ObservedVxlan, Tunnel, TunnelOperation};
pub use uplink::{ObservedVlan, UplinkOperation};

/// What a host's network is: only what carries our tag, and the names that others have taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Our bridges.
    pub bridges: BTreeMap<InterfaceName, ObservedBridge>,
    /// Our VXLAN devices, and networks' parts of the one that they share.
    pub vxlans: BTreeMap<InterfaceName, ObservedVxlan>,
    /// The VXLAN device that networks share, and its bridge.
    pub fabric: Option<ObservedFabric>,
    /// The links that are there of these two, in whatever state.
    pub fabric_links: BTreeSet<InterfaceName>,
    /// Our VLAN devices.
    pub vlans: BTreeMap<InterfaceName, ObservedVlan>,
    /// Our taps.
    pub taps: BTreeMap<InterfaceName, ObservedPort>,
    /// What carries a VLAN of a tap's frames, as a port of its own: each with the tap as its interface.
    pub subports: BTreeMap<InterfaceName, ObservedVlan>,
    /// Our routers, by their namespaces.
    pub routers: BTreeMap<NamespaceName, ObservedRouter>,
    /// The host's ends of our routers' links.
    pub router_links: BTreeMap<InterfaceName, ObservedPort>,
    /// Links of ours whose kind is not what their name says: only good for removal.
    pub misshapen: BTreeSet<InterfaceName>,
    /// All other links.
    pub foreign: BTreeMap<InterfaceName, ObservedPort>,
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

/// A link that is a port of a bridge, or can be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedPort {
    /// The bridge it is a port of.
    pub bridge: Option<InterfaceName>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether it is set up.
    pub is_up: bool,
}

/// What a host has to do with IPv6 on a bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ipv6Reach {
    /// Nothing.
    Off,
    /// It answers in place of ports on other hosts, without an address of its own.
    Neighbours,
    /// It has addresses there.
    Host,
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
        /// What it has to do with IPv6 there.
        ipv6: Ipv6Reach,
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
    /// A step about what networks share of VXLAN.
    Fabric(Fabric, FabricOperation),
    /// A step about a network's way to other hosts.
    Tunnel(Tunnel, TunnelOperation),
    /// A step about this VLAN device, or about an interface that is not ours.
    Uplink(InterfaceName, UplinkOperation),
    /// Make a persistent tap with our alias; it is down.
    CreateTap {
        /// Its name.
        name: InterfaceName,
    },
    /// Make a device of ours on a tap, for a VLAN of the tap's frames; it is down.
    CreateSubport {
        /// Its name.
        name: InterfaceName,
        /// What it is on.
        on: Subport,
    },
    /// A step about the router with this namespace.
    Router(NamespaceName, RouterOperation),
    /// Make a link of ours a port of a bridge, with an MTU, and set it up.
    ConfigurePort {
        /// The tap, device or router's link.
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
            | Self::Tunnel(Tunnel { port: name, .. }, _)
            | Self::Fabric(Fabric { bridge: name, .. }, _)
            | Self::Uplink(name, _)
            | Self::CreateTap { name }
            | Self::CreateSubport { name, .. }
            | Self::ConfigurePort { name, .. } => Some(name),
            Self::Router(name, _) => Some(name),
            Self::AddAddress { bridge, .. } | Self::RemoveAddress { bridge, .. } => Some(bridge),
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
    let mut operations = deletions(wanted, observed);
    for (name, bridge) in &wanted.bridges {
        plan_bridge(&mut operations, name, bridge, observed.bridges.get(name));
    }
    operations.extend(plan_filter(tag, wanted, observed));
    tunnel::plan_tunnels(&mut operations, wanted, observed);
    uplink::plan_uplinks(&mut operations, wanted, observed);
    subport::plan_taps(&mut operations, wanted, observed);
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

/// As [`plan`], for the ways to other hosts of bridges that are there.
#[must_use]
pub fn plan_tunnels(wanted: &HostNetwork, observed: &Observed) -> Vec<Operation> {
    let superfluous = tunnel::superfluous(wanted, observed).into_iter();
    let mut operations = superfluous.map(|name| Operation::DeleteLink(name.clone())).collect();
    tunnel::plan_tunnels(&mut operations, wanted, observed);
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

fn deletions(wanted: &HostNetwork, observed: &Observed) -> Vec<Operation> {
    let taps = subport::superfluous(wanted, observed);
    let tunnels = tunnel::superfluous(wanted, observed);
    let vlans = uplink::superfluous(wanted, observed);
    let bridges = observed.bridges.keys().filter(|name| !wanted.bridges.contains_key(*name));
    let mut operations = router::deletions(&wanted.routers, &observed.routers, &observed.router_links);
    let links = taps
        .into_iter()
        .chain(tunnels)
        .chain(vlans)
        .chain(&observed.misshapen)
        .chain(bridges)
        .map(|name| Operation::DeleteLink(name.clone()));
    operations.extend(links);
    operations
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
        let ipv6 = match (has_ipv6, &bridge.vxlan) {
            (true, _) => Ipv6Reach::Host,
            (false, Some(_)) => Ipv6Reach::Neighbours,
            (false, None) => Ipv6Reach::Off,
        };
        operations.push(Operation::ConfigureBridge { name, mtu: bridge.mtu, has_host, ipv6 });
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
