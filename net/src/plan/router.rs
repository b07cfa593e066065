//! Routers: what to do so that each has its namespace, its links, addresses and routes, and translates what it shall.
//!
//! Translations come before links, so nothing of the inside is seen outside under its own address; routes come last,
//! since they need their link up.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::{ObservedPort, Operation};
use crate::nftables::{Limits, Marks, Meters};
use crate::spec::{InterfaceName, NamespaceName, Nat, Router, RouterLink};

/// A router's namespace as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedRouter {
    /// The router's ends of its links; what is not ours is left out.
    pub links: BTreeMap<InterfaceName, ObservedEnd>,
    /// The routes that somebody has set.
    pub routes: BTreeSet<(IpNet, IpAddr)>,
    /// What is translated; absent if the table is missing or damaged.
    pub nat: Option<Nat>,
    /// What its meters say of themselves, if it has any.
    pub meters: Option<String>,
    /// What is held of its traffic, if anything is.
    pub limits: Option<Limits>,
    /// What is marked of it, as that says of itself, if anything is.
    pub marks: Option<String>,
}

/// The router's end of a link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedEnd {
    /// Its MAC.
    pub mac: [u8; 6],
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether it is set up.
    pub is_up: bool,
    /// Its addresses, link-local ones left out.
    pub addresses: BTreeSet<IpNet>,
}

/// One step about a router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouterOperation {
    /// Make its namespace.
    Create,
    /// Remove its namespace.
    Delete,
    /// Make its table of translations anew.
    RebuildNat(Nat),
    /// Change what it translates, from one to another with the same outside.
    ChangeNat {
        /// What it translates.
        from: Nat,
        /// What it shall.
        to: Nat,
    },
    /// Count by these meters from now on, or by none.
    SetMeters(Option<Meters>),
    /// Hold its traffic to something else.
    SetLimits {
        /// What is held.
        from: Option<Limits>,
        /// What shall be.
        to: Option<Limits>,
    },
    /// Mark what it lets out so from now on, or not.
    SetMarks(Option<Marks>),
    /// Make a link, both ends down.
    CreateLink {
        /// Its name.
        link: InterfaceName,
        /// The MAC of the router's end.
        mac: [u8; 6],
    },
    /// Give the router an address.
    AddAddress {
        /// The link.
        link: InterfaceName,
        /// The address with its prefix.
        address: IpNet,
        /// The MAC to announce it with, where the link is up already.
        announce: Option<[u8; 6]>,
    },
    /// Take an address from the router.
    RemoveAddress {
        /// The link.
        link: InterfaceName,
        /// The address with its prefix.
        address: IpNet,
    },
    /// Set the router's end up.
    SetUp {
        /// The link.
        link: InterfaceName,
        /// MTU in bytes.
        mtu: u32,
    },
    /// Add a route, or change its next hop.
    SetRoute(IpNet, IpAddr),
    /// Remove a route.
    RemoveRoute(IpNet, IpAddr),
}

/// What goes first: links of routers that nobody wants or that cannot be changed into what is wanted, and namespaces.
pub(super) fn deletions(
    wanted: &BTreeMap<NamespaceName, Router>,
    observed: &BTreeMap<NamespaceName, ObservedRouter>,
    ends: &BTreeMap<InterfaceName, ObservedPort>,
) -> Vec<Operation> {
    let fitting: BTreeSet<&str> = wanted
        .iter()
        .flat_map(|(name, router)| {
            let present = observed.get(name);
            let fits = move |(link, wanted): &(&InterfaceName, &RouterLink)| {
                present.is_some_and(|present| is_same(present, link, wanted))
            };
            router.links.iter().filter(fits).map(|(link, _)| link.as_str())
        })
        .collect();
    // One end goes with the other, so the one that the host has is enough, and one in a namespace alone is none.
    let stray = ends.keys().filter(|link| !fitting.contains(link.as_str()));
    let stray = stray.map(|link| Operation::DeleteLink(link.clone()));
    let gone = observed.keys().filter(|name| !wanted.contains_key(*name));
    let gone = gone.map(|name| Operation::Router(name.clone(), RouterOperation::Delete));
    stray.chain(gone).collect()
}

/// The rest, for one router.
pub(super) fn plan_router(
    operations: &mut Vec<Operation>,
    name: &NamespaceName,
    router: &Router,
    present: Option<&ObservedRouter>,
    ends: &BTreeMap<InterfaceName, ObservedPort>,
) {
    let nothing = ObservedRouter::default();
    let mut push = |operation| operations.push(Operation::Router(name.clone(), operation));
    if present.is_none() {
        push(RouterOperation::Create);
    }
    let present = present.unwrap_or(&nothing);
    match &present.nat {
        Some(nat) if *nat == router.nat => {}
        Some(nat) if nat.outside == router.nat.outside => {
            push(RouterOperation::ChangeNat { from: nat.clone(), to: router.nat.clone() });
        }
        _ => push(RouterOperation::RebuildNat(router.nat.clone())),
    }
    let meters = Meters::of(router);
    if present.meters != meters.as_ref().map(Meters::told) {
        push(RouterOperation::SetMeters(meters));
    }
    let limits = Limits::of(router);
    if present.limits != limits {
        push(RouterOperation::SetLimits { from: present.limits.clone(), to: limits });
    }
    let marks = Marks::of(router);
    if present.marks != marks.as_ref().map(Marks::told) {
        push(RouterOperation::SetMarks(marks));
    }
    // The kernel forgets routes with the addresses that their next hops are reached by.
    let mut forgets_routes = false;
    for (link, wanted) in &router.links {
        let end = present.links.get(link).filter(|_| ends.contains_key(link));
        let end = end.filter(|_| is_same(present, link, wanted));
        forgets_routes |= plan_link(operations, name, link, wanted, end, ends.get(link));
    }
    let mut push = |operation| operations.push(Operation::Router(name.clone(), operation));
    for (destination, via) in present.routes.iter().filter(|route| !is_kept(router, route)) {
        push(RouterOperation::RemoveRoute(*destination, *via));
    }
    for (destination, via) in &router.routes {
        if forgets_routes || !present.routes.contains(&(*destination, *via)) {
            push(RouterOperation::SetRoute(*destination, *via));
        }
    }
}

/// A route that is wanted, or whose next hop alone is not: that is changed.
fn is_kept(router: &Router, (destination, _): &(IpNet, IpAddr)) -> bool {
    router.routes.iter().any(|(wanted, _)| wanted == destination)
}

/// A link's MAC is fixed when it is made.
fn is_same(present: &ObservedRouter, link: &str, wanted: &RouterLink) -> bool {
    present.links.get(link).is_some_and(|end| end.mac == wanted.mac)
}

/// Plans one link; returns whether an address or the whole link was there before and is not any more.
fn plan_link(
    operations: &mut Vec<Operation>,
    name: &NamespaceName,
    link: &InterfaceName,
    wanted: &RouterLink,
    end: Option<&ObservedEnd>,
    host_end: Option<&ObservedPort>,
) -> bool {
    let mut push = |operation| operations.push(Operation::Router(name.clone(), operation));
    let of_link = || link.clone();
    if end.is_none() {
        push(RouterOperation::CreateLink { link: of_link(), mac: wanted.mac });
    }
    let nothing = BTreeSet::new();
    let addresses = end.map_or(&nothing, |end| &end.addresses);
    let is_up = end.is_some_and(|end| end.is_up);
    let removed: Vec<_> = addresses.difference(&wanted.addresses).collect();
    for address in &removed {
        push(RouterOperation::RemoveAddress { link: of_link(), address: **address });
    }
    // Longer prefixes come after those that their link is reached by, so that these are a source's first choice.
    let mut added: Vec<_> = wanted.addresses.difference(addresses).collect();
    added.sort_by_key(|address| address.prefix_len());
    for address in added {
        let announce = is_up.then_some(wanted.mac);
        push(RouterOperation::AddAddress { link: of_link(), address: *address, announce });
    }
    // The end that is set up last sends at once, the other when the kernel gets to it: that one the host can hurry.
    let host_end = host_end.filter(|_| end.is_some());
    super::plan_port(operations, link, &wanted.bridge, wanted.mtu, host_end);
    if !end.is_some_and(|end| end.is_up && end.mtu == wanted.mtu) {
        let set_up = RouterOperation::SetUp { link: of_link(), mtu: wanted.mtu };
        operations.push(Operation::Router(name.clone(), set_up));
    }
    end.is_none() || !removed.is_empty()
}
