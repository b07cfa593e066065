//! Routers: looking into their namespaces and carrying out what is planned there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use super::{Error, Host, is_link_local, setting::set_ipv6};
use crate::conntrack::Tuple;
use crate::names::{LinkKind, link_mac};
use crate::namespace::{self, Namespace};
use crate::netlink::{self, Request};
use crate::nftables::nat::{self, Beside};
use crate::plan::{Observed, ObservedEnd, ObservedPort, ObservedRouter, RouterOperation, plan_one_router};
use crate::spec::{HostNetwork, NamespaceName, Nat};
use crate::tap;

/// A router's namespace, open.
#[derive(Debug)]
pub(super) struct Inside {
    handle: OwnedFd,
    pub(super) links: netlink::Client,
    pub(super) nat: nat::Client,
}

impl Inside {
    fn of(Namespace { handle, links, filters }: Namespace) -> Self {
        Self { handle, links: netlink::Client::of(links), nat: nat::Client::of(filters) }
    }
}

impl Host {
    /// Makes one router what is wanted of it, or removes it if it is not wanted. Its networks' bridges are made if they
    /// are missing; no other port or router is touched.
    ///
    /// # Errors
    /// As [`Host::apply`]; calling again, or [`Host::converge`], carries on where it stopped.
    pub fn converge_router(&mut self, wanted: &HostNetwork, name: &str) -> Result<(), Error> {
        self.check_namespace(name)?;
        let router = wanted.routers.get(name);
        for link in router.iter().flat_map(|router| router.links.values()) {
            let bridge =
                wanted.bridges.get(&link.bridge).ok_or_else(|| Error::NotWanted(link.bridge.clone()))?;
            self.check_name(LinkKind::Bridge, &link.bridge)?;
            self.ensure_bridge(&link.bridge, bridge, wanted)?;
        }
        let mut observed = Observed::default();
        if let Some(present) = self.observe_router(name)? {
            observed.routers.insert(name.to_owned(), present);
        }
        let planned = router.iter().flat_map(|router| router.links.keys());
        let there = observed.routers.values().flat_map(|router| router.links.keys());
        let links: BTreeSet<String> = planned.chain(there).cloned().collect();
        for link in links {
            self.check_name(LinkKind::Router, &link)?;
            let Some(end) = self.owned(&link)? else { continue };
            let bridge = match end.master {
                Some(index) => wanted.bridges.keys().find_map(|bridge| {
                    let found = self.links.link(bridge).ok().flatten()?;
                    (found.index == index).then(|| bridge.clone())
                }),
                None => None,
            };
            let port = ObservedPort { bridge, mtu: end.mtu, is_up: end.is_up };
            observed.router_links.insert(link, port);
        }
        let routers = router.map(|router| (name.to_owned(), router.clone())).into_iter().collect();
        let part = HostNetwork { routers, ..HostNetwork::default() };
        self.apply(&plan_one_router(&part, &observed))
    }

    /// Looks at all routers that are ours.
    pub(super) fn observe_routers(&mut self) -> Result<BTreeMap<NamespaceName, ObservedRouter>, Error> {
        let names = self.router_names()?;
        self.routers.retain(|name, _| names.contains(name));
        let mut routers = BTreeMap::new();
        for name in names {
            if let Some(router) = self.observe_router(&name)? {
                routers.insert(name, router);
            }
        }
        Ok(routers)
    }

    fn router_names(&self) -> Result<BTreeSet<NamespaceName>, Error> {
        let names = namespace::names().map_err(|error| Error::Namespace(error.into()))?;
        Ok(names.into_iter().filter(|name| self.tag.owns_namespace(name)).collect())
    }

    /// Removes all routers that are ours; their links' other ends are the caller's affair.
    pub(super) fn remove_routers(&mut self) -> Result<(), Error> {
        self.routers.clear();
        for name in self.router_names()? {
            self.namespaces.remove(&name).map_err(Error::Namespace)?;
        }
        Ok(())
    }

    fn observe_router(&mut self, name: &str) -> Result<Option<ObservedRouter>, Error> {
        if !namespace::is_there(name) {
            self.routers.remove(name);
            return Ok(None);
        }
        let tag = self.tag;
        let Some(inside) = self.inside(name)? else { return Ok(None) };
        let links = inside.links.links().map_err(Error::Link)?;
        let ours = links.into_values().filter(|link| tag.kind_of(&link.name) == Some(LinkKind::Router));
        let mut by_index: BTreeMap<u32, (String, ObservedEnd)> = ours
            .map(|link| {
                let mac = link.mac.unwrap_or_default();
                let end = ObservedEnd { mac, mtu: link.mtu, is_up: link.is_up, addresses: BTreeSet::new() };
                (link.index, (link.name, end))
            })
            .collect();
        for (index, address) in inside.links.addresses().map_err(Error::Link)? {
            if let Some((_, end)) = by_index.get_mut(&index).filter(|_| !is_link_local(address)) {
                end.addresses.insert(address);
            }
        }
        let routes = inside.links.set_routes().map_err(Error::Link)?.into_iter().collect();
        let nat = inside.nat.observe().map_err(Error::Filter)?;
        let Beside { limits, meters, marks } = inside.nat.observe_beside().map_err(Error::Filter)?;
        let links = by_index.into_values().collect();
        Ok(Some(ObservedRouter { links, routes, nat, meters, limits, marks }))
    }

    /// The open namespace, if it is there.
    pub(super) fn inside(&mut self, name: &str) -> Result<Option<&mut Inside>, Error> {
        if !self.routers.contains_key(name) {
            let Some(found) = self.namespaces.open(name).map_err(Error::Namespace)? else { return Ok(None) };
            self.routers.insert(name.to_owned(), Inside::of(found));
        }
        Ok(self.routers.get_mut(name))
    }

    pub(super) fn carry_out_in_router(
        &mut self,
        name: &str,
        operation: &RouterOperation,
    ) -> Result<(), Error> {
        self.check_namespace(name)?;
        match operation {
            RouterOperation::Create => {
                let made = self.namespaces.create(name).map_err(Error::Namespace)?;
                self.routers.insert(name.to_owned(), Inside::of(made));
                return Ok(());
            }
            RouterOperation::Delete => {
                // What is open keeps a namespace alive.
                self.routers.remove(name);
                return self.namespaces.remove(name).map_err(Error::Namespace);
            }
            RouterOperation::CreateLink { link, mac } => return self.create_router_link(name, link, *mac),
            _ => {}
        }
        let inside = self.inside(name)?.ok_or_else(|| Error::Missing(name.to_owned()))?;
        inside.carry_out(operation)?;
        match operation {
            RouterOperation::SetUp { link, .. } => tap::settle(link).map_err(Error::Tap),
            _ => Ok(()),
        }
    }

    fn create_router_link(&mut self, name: &str, link: &str, mac: [u8; 6]) -> Result<(), Error> {
        self.check_name(LinkKind::Router, link)?;
        let inside = self.inside(name)?.ok_or_else(|| Error::Missing(name.to_owned()))?;
        let pair = Request::create_pair(link, link_mac(link), mac, inside.handle.as_fd());
        self.execute([pair])?;
        self.execute([self.alias(link)])?;
        set_ipv6(link, false)
    }

    pub(super) fn check_namespace(&self, name: &str) -> Result<(), Error> {
        if self.tag.owns_namespace(name) {
            return Ok(());
        }
        Err(Error::NamespaceName { name: name.chars().take(64).collect(), tag: self.tag })
    }
}

impl Inside {
    fn carry_out(&mut self, operation: &RouterOperation) -> Result<(), Error> {
        match operation {
            RouterOperation::RebuildNat(nat) => {
                self.nat.rebuild(nat).map_err(Error::Filter)?;
                // What was translated by other rules cannot go on by these; without a link nothing was. The kernel looks
                // through the connections of the whole host, so nobody is asked in vain.
                let is_new = self.links.links().map_err(Error::Link)?.len() <= 1;
                if is_new { Ok(()) } else { self.nat.end_connections(is_translated).map_err(Error::Filter) }
            }
            RouterOperation::SetMeters(meters) => self.nat.set_meters(meters.as_ref()).map_err(Error::Filter),
            RouterOperation::SetMarks(marks) => self.nat.set_marks(marks.as_ref()).map_err(Error::Filter),
            RouterOperation::SetLimits { from, to } => {
                self.nat.set_limits(from.as_ref(), to.as_ref()).map_err(Error::Filter)
            }
            RouterOperation::ChangeNat { from, to } => {
                self.nat.change(from, to).map_err(Error::Filter)?;
                if !loses(from, to) {
                    return Ok(());
                }
                self.nat
                    .end_connections(|begun, answered| lost(from, to, begun, answered))
                    .map_err(Error::Filter)
            }
            RouterOperation::AddAddress { link, address, announce } => {
                let index = self.existing(link)?;
                let mut requests = vec![Request::add_address(link, index, *address)];
                requests.extend(announce.map(|mac| Request::announce(link, mac)));
                self.links.execute(requests).map_err(Error::Link)
            }
            RouterOperation::RemoveAddress { link, address } => {
                let index = self.existing(link)?;
                self.execute(Request::remove_address(link, index, *address))
            }
            RouterOperation::SetUp { link, mtu } => {
                self.existing(link)?;
                self.execute(Request::configure(link, *mtu, None))
            }
            RouterOperation::SetRoute(destination, via) => {
                self.execute(Request::set_route(*destination, *via))
            }
            RouterOperation::RemoveRoute(destination, via) => {
                match self.execute(Request::remove_route(*destination, *via)) {
                    // It went with the address that its next hop was reached by.
                    Err(Error::Link(error)) if error.refusal() == Some(libc::ESRCH) => Ok(()),
                    result => result,
                }
            }
            RouterOperation::Create | RouterOperation::Delete | RouterOperation::CreateLink { .. } => {
                unreachable!("invariant: the host carries these out")
            }
        }
    }

    fn existing(&mut self, link: &str) -> Result<u32, Error> {
        let found = self.links.link(link).map_err(Error::Link)?;
        found.map(|link| link.index).ok_or_else(|| Error::Missing(link.to_owned()))
    }

    fn execute(&mut self, request: Request) -> Result<(), Error> {
        self.links.execute(vec![request]).map_err(Error::Link)
    }
}

fn is_translated(begun: &Tuple, answered: &Tuple) -> bool {
    begun.source != answered.target || begun.target != answered.source
}

/// Whether `from` translates anything that `to` does not.
fn loses(from: &Nat, to: &Nat) -> bool {
    from.floating.iter().any(|(outside, inside)| to.floating.get(outside) != Some(inside))
        || from.forwardings.iter().any(|(port, target)| to.forwardings.get(port) != Some(target))
}

/// Whether a connection was translated by what `from` has and `to` has not.
fn lost(from: &Nat, to: &Nat, begun: &Tuple, answered: &Tuple) -> bool {
    let (IpAddr::V4(begun_target), IpAddr::V4(begun_source)) = (begun.target, begun.source) else {
        return false;
    };
    let (IpAddr::V4(answered_target), IpAddr::V4(answered_source)) = (answered.target, answered.source)
    else {
        return false;
    };
    let is_lost = |outside, inside| {
        from.floating.get(outside) == Some(inside) && to.floating.get(outside) != Some(inside)
    };
    let forwarding =
        crate::spec::Forwarding { address: begun_target, protocol: begun.protocol, port: begun.target_port };
    let forwarded = from.forwardings.get(&forwarding);
    is_lost(&begun_target, &answered_source)
        || is_lost(&answered_target, &begun_source)
        || (forwarded.is_some() && forwarded != to.forwardings.get(&forwarding))
}
