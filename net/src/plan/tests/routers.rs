//! Routers of the fake host: namespaces, both ends of links, addresses, routes, translations.

use std::net::IpAddr;

use super::*;
use crate::plan::{ObservedEnd, ObservedRouter, RouterOperation};
use crate::spec::{AddressLimit, Direction, LimitUnit, Nat, Outside, Router, RouterLink};
use std::net::Ipv4Addr;

impl FakeHost {
    /// Both ends of a link go at once.
    pub(super) fn delete_router_link(&mut self, link: &str) -> bool {
        for router in self.0.routers.values_mut() {
            if let Some(end) = router.links.remove(link) {
                forget_routes(router, &end.addresses);
            }
        }
        self.0.router_links.remove(link).is_some()
    }

    pub(super) fn carry_out_in_router(
        &mut self,
        name: &str,
        operation: &RouterOperation,
    ) -> Result<(), &'static str> {
        match operation {
            RouterOperation::Create => {
                let new = self.0.routers.insert(name.to_owned(), ObservedRouter::default()).is_none();
                return new.then_some(()).ok_or("exists");
            }
            RouterOperation::Delete => {
                let router = self.0.routers.remove(name).ok_or("no namespace")?;
                self.0.router_links.retain(|link, _| !router.links.contains_key(link));
                return Ok(());
            }
            RouterOperation::CreateLink { link, .. } if self.0.router_links.contains_key(link) => {
                return Err("exists");
            }
            RouterOperation::CreateLink { link, .. } => {
                self.0.router_links.insert(link.clone(), ObservedPort::default());
            }
            _ => {}
        }
        let router = self.0.routers.get_mut(name).ok_or("no namespace")?;
        match operation {
            RouterOperation::Create | RouterOperation::Delete => {}
            RouterOperation::CreateLink { link, mac } => {
                router.nat.as_ref().ok_or("a link before translations")?;
                router.links.insert(link.clone(), ObservedEnd { mac: *mac, ..ObservedEnd::default() });
            }
            RouterOperation::RebuildNat(nat) => router.nat = Some(nat.clone()),
            RouterOperation::SetMeters(meters) => {
                let told = meters.as_ref().map(crate::nftables::Meters::told);
                (router.meters != told).then_some(()).ok_or("counts so already")?;
                router.meters = told;
            }
            RouterOperation::SetMarks(marks) => {
                let told = marks.as_ref().map(crate::nftables::Marks::told);
                (router.marks != told).then_some(()).ok_or("marks so already")?;
                router.marks = told;
            }
            RouterOperation::SetLimits { from, to } => {
                (router.limits == *from && from != to).then_some(()).ok_or("not what is held")?;
                router.limits.clone_from(to);
            }
            RouterOperation::ChangeNat { from, to } => {
                let fits = router.nat.as_ref() == Some(from) && from.outside == to.outside;
                fits.then_some(()).ok_or("not what there is")?;
                router.nat = Some(to.clone());
            }
            RouterOperation::AddAddress { link, address, .. } => {
                let end = router.links.get_mut(link).ok_or("no link")?;
                end.addresses.insert(*address).then_some(()).ok_or("has it")?;
            }
            RouterOperation::RemoveAddress { link, address } => {
                let end = router.links.get_mut(link).ok_or("no link")?;
                end.addresses.remove(address).then_some(()).ok_or("has it not")?;
                forget_routes(router, &[*address].into());
            }
            RouterOperation::SetUp { link, mtu } => {
                let end = router.links.get_mut(link).ok_or("no link")?;
                (end.mtu, end.is_up) = (*mtu, true);
            }
            RouterOperation::SetRoute(to, via) => {
                let reached = router
                    .links
                    .values()
                    .any(|end| end.is_up && end.addresses.iter().any(|address| address.contains(via)));
                reached.then_some(()).ok_or("the next hop is not reached")?;
                router.routes.retain(|(other, _)| other != to);
                router.routes.insert((*to, *via));
            }
            // The kernel's refusal for one that is not there is taken as done.
            RouterOperation::RemoveRoute(to, via) => {
                router.routes.remove(&(*to, *via));
            }
        }
        Ok(())
    }
}

/// The kernel forgets routes whose next hops were reached by these.
fn forget_routes(router: &mut ObservedRouter, gone: &BTreeSet<IpNet>) {
    router.routes.retain(|(_, via)| !gone.iter().any(|address| address.contains(via)));
}

/// Networks that a router may be on: each with its router's address and a next hop there.
const NETWORKS: [(&str, &str); 3] =
    [("10.1.0.1/24", "10.1.0.9"), ("10.2.0.1/24", "10.2.0.9"), ("203.0.113.2/24", "203.0.113.1")];

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn link_name(router: u32, network: usize) -> String {
    TAG.router_link(router * 10 + network as u32)
}

prop_compose! {
    /// A router on some of the networks, all of which are on one of the bridges.
    pub(super) fn wanted_router(number: u32, bridges: Vec<String>)(
        networks in subsequence(vec![0_usize, 1, 2], 0..=3),
        bridge in select(bridges),
        mac in 0..2_u8,
        mtu in mtu(),
        has_more in any::<bool>(),
        routes in subsequence(vec!["0.0.0.0/0", "10.9.0.0/24"], 0..=2),
        hides in any::<bool>(),
        floating in btree_map(0..3_u8, 0..3_u8, 0..3),
        meters in subsequence(vec![1_u32, 2], 0..=2),
        limits in subsequence(vec![1_u64, 2, 3], 0..=3),
        marks in btree_map(any::<bool>(), select(vec![10_u8, 46]), 0..=2),
        has_ipv6 in any::<bool>(),
    ) -> Router {
        let meters = meters.into_iter().map(|number| (number, BTreeSet::new())).collect();
        let limits = limits.into_iter().map(|per_second| AddressLimit {
            address: Ipv4Addr::new(203, 0, 113, 2).into(),
            direction: if per_second == 1 { Direction::Ingress } else { Direction::Egress },
            unit: LimitUnit::Bytes,
            per_second,
            burst: 0,
        });
        let own = IpAddr::from([203, 0, 113, 2]);
        let of = |(is_own, code)| (if is_own { own } else { IpAddr::from([203, 0, 113, 101]) }, code);
        let mut router = Router {
            meters,
            limits: limits.collect(),
            marks: marks.into_iter().map(of).collect(),
            ipv6_as: has_ipv6.then_some(own),
            ..Router::default()
        };
        for network in &networks {
            let mut addresses = BTreeSet::from([net(NETWORKS[*network].0)]);
            if has_more {
                addresses.insert(net("203.0.113.77/32"));
            }
            let link = RouterLink { bridge: bridge.clone(), mac: [2, 0, 0, 0, 9, mac], mtu, addresses };
            router.links.insert(link_name(number, *network), link);
        }
        if let Some(network) = networks.first() {
            let via: IpAddr = NETWORKS[*network].1.parse().unwrap();
            router.routes = routes.iter().map(|to| (net(to), via)).collect();
        }
        if networks.contains(&2) {
            let hide_behind = hides.then_some(Ipv4Addr::new(203, 0, 113, 2));
            router.nat.outside = Some(Outside { link: link_name(number, 2), hide_behind });
            let pair = |(a, b)| (Ipv4Addr::new(203, 0, 113, 100 + a), Ipv4Addr::new(10, 1, 0, 5 + b));
            router.nat.floating = floating.into_iter().map(pair).collect();
        }
        router
    }
}

pub(super) fn wanted_routers(bridges: Vec<String>) -> impl Strategy<Value = BTreeMap<String, Router>> {
    let some = (option::of(wanted_router(1, bridges.clone())), option::of(wanted_router(2, bridges)));
    some.prop_map(|(one, two)| {
        let named = |(number, router): (u32, Option<Router>)| Some((TAG.namespace(number), router?));
        [(1, one), (2, two)].into_iter().filter_map(named).collect()
    })
}

/// Any state that routers may be in: as an older wish left them, with a link, an address or the translations gone.
pub(super) fn observed_routers()
-> impl Strategy<Value = (BTreeMap<String, ObservedRouter>, BTreeMap<String, ObservedPort>)> {
    let damage = (any::<bool>(), any::<bool>(), any::<bool>(), option::of(observed_port()));
    (wanted_routers(bridge_names()), damage).prop_map(|(routers, (no_nat, no_end, no_address, port))| {
        let mut ends = BTreeMap::new();
        let mut observed = BTreeMap::new();
        for (name, router) in routers {
            let mut present = ObservedRouter {
                meters: crate::nftables::Meters::of(&router).map(|meters| meters.told()),
                marks: crate::nftables::Marks::of(&router).map(|marks| marks.told()),
                limits: crate::nftables::Limits::of(&router),
                nat: (!no_nat).then_some(router.nat),
                routes: router.routes,
                ..ObservedRouter::default()
            };
            for (link, RouterLink { bridge, mac, mtu, addresses }) in router.links {
                if no_end {
                    continue;
                }
                let whole = ObservedPort { bridge: Some(bridge), mtu, is_up: true };
                ends.insert(link.clone(), port.clone().unwrap_or(whole));
                let addresses = if no_address { BTreeSet::new() } else { addresses };
                present.links.insert(link, ObservedEnd { mac, mtu, is_up: !no_address, addresses });
            }
            let reached = |via: &IpAddr| {
                present.links.values().any(|end| end.addresses.iter().any(|address| address.contains(via)))
            };
            let kept = present.routes.iter().filter(|(_, via)| reached(via)).copied().collect();
            present.routes = kept;
            observed.insert(name, present);
        }
        (observed, ends)
    })
}

/// What [`Nat`] begins as.
#[test]
fn router_without_anything_is_a_namespace_that_translates_nothing() {
    let mut wanted = HostNetwork::default();
    wanted.routers.insert(TAG.namespace(1), Router::default());
    let operations = plan(
        TAG,
        &wanted,
        &Observed { filter: Some(WantedFilter::default().names()), ..Observed::default() },
    );
    let router = |operation| Operation::Router(TAG.namespace(1), operation);
    assert_eq!(
        operations,
        [router(RouterOperation::Create), router(RouterOperation::RebuildNat(Nat::default()))]
    );
}
