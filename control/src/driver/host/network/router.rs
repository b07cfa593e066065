//! The host's routers: from ports, floating IPs and forwardings to namespaces, links and translations.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::IpNet;
use net::names::{OwnerTag, short_id};
use net::spec::{Forwarding, NamespaceName, Nat, Outside, Router, RouterLink};

use super::{Error, Network, State};
use crate::agent::protocol::{RouterObserved, RouterWanted};
use crate::driver::Surroundings;
use crate::driver::host::sentence;

/// How far a router is.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) wanted: RouterWanted,
    /// Why it is not as it shall be.
    fault: Option<String>,
}

impl Network {
    /// How far each router is.
    pub(in crate::driver::host) fn routers(&self) -> Vec<RouterObserved> {
        let state = self.state();
        let observed = state.routers.values().map(|known| match &known.fault {
            None => RouterObserved::whole(&known.wanted),
            Some(fault) => RouterObserved {
                id: known.wanted.id.clone(),
                fault: Some(fault.clone()),
                ..RouterObserved::default()
            },
        });
        observed.collect()
    }

    /// Looks whether all is as it shall be and mends what is not: somebody else may have changed it.
    pub(in crate::driver::host) fn heal(&self) -> Result<(), Error> {
        let mut state = self.state();
        // Before the first wish nobody knows what shall be there.
        if state.host.is_none() { Ok(()) } else { state.converge() }
    }
}

impl State {
    /// Takes over what is wanted of routers, with the bridges that they need. One that cannot be said in the kernel's
    /// names is known with that fault, and not wanted.
    pub(super) fn want_routers(&mut self, tag: OwnerTag, surroundings: &Surroundings) {
        self.wanted.routers.clear();
        let mut known = BTreeMap::new();
        for (id, wanted) in &surroundings.routers {
            let name = tag.namespace(short_id(id.as_bytes()));
            // What has failed has failed until it is tried again.
            let before = self.routers.get(&name).filter(|known| known.wanted == *wanted);
            let before = before.and_then(|known| known.fault.clone());
            let fault = match self.want_router(tag, &name, surroundings, wanted) {
                Ok(()) => before,
                Err(error) => Some(sentence(&error)),
            };
            known.insert(name, Known { wanted: wanted.clone(), fault });
        }
        self.routers = known;
    }

    fn want_router(
        &mut self,
        tag: OwnerTag,
        name: &NamespaceName,
        surroundings: &Surroundings,
        wanted: &RouterWanted,
    ) -> Result<(), Error> {
        self.own(name, &wanted.id)?;
        let labels = wanted.labels.iter();
        let mut router = Router {
            routes: wanted.routes.clone(),
            nat: nat_of(tag, wanted),
            // Of two labels that begin alike in 32 bits one is counted.
            meters: labels.map(|(id, rules)| (short_id(id.as_bytes()), rules.clone())).collect(),
            limits: wanted.limits.clone(),
            marks: wanted.marks.clone(),
            ipv6_as: wanted.ipv6_as,
            ..Router::default()
        };
        for link in &wanted.links {
            let network = surroundings.networks.get(&link.network_id);
            let network = network.ok_or_else(|| Error::NoNetwork(link.network_id.clone()))?;
            let bridge = self.want_bridge(tag, network)?;
            let name = link_name(tag, &link.port_id);
            self.own(&name, &link.port_id)?;
            let mut addresses = link.addresses.clone();
            if wanted.outside.as_ref().is_some_and(|(port_id, _)| *port_id == link.port_id) {
                addresses.extend(outside_addresses(wanted, &link.addresses));
            }
            router.links.insert(name, RouterLink { bridge, mac: link.mac, mtu: link.mtu, addresses });
        }
        self.wanted.routers.insert(name.clone(), router);
        Ok(())
    }

    /// Makes those routers what is wanted that differ from `before`, and nothing else.
    pub(super) fn converge_routers(&mut self, before: &BTreeMap<NamespaceName, Router>) {
        let after = &self.wanted.routers;
        let names: BTreeSet<NamespaceName> = before.keys().chain(after.keys()).cloned().collect();
        for name in names {
            if before.get(&name) != self.wanted.routers.get(&name) || self.has_failed(&name) {
                self.converge_router(&name);
            }
        }
    }

    /// Makes every router what is wanted, each for itself: so one that fails is told from the others.
    pub(super) fn converge_each_router(&mut self) {
        let names: Vec<NamespaceName> = self.wanted.routers.keys().cloned().collect();
        names.iter().for_each(|name| self.converge_router(name));
    }

    /// All routers are as they shall be.
    pub(super) fn note_whole_routers(&mut self) {
        for (name, known) in &mut self.routers {
            if self.wanted.routers.contains_key(name) {
                known.fault = None;
            }
        }
    }

    fn has_failed(&self, name: &str) -> bool {
        self.routers.get(name).is_some_and(|known| known.fault.is_some())
    }

    fn converge_router(&mut self, name: &str) {
        let host = self.host.as_mut().expect("invariant: opened by every caller");
        let done = host.converge_router(&self.wanted, name);
        let fault = done.err().map(|error| sentence(&error));
        if let Some(fault) = &fault {
            tracing::error!(router.namespace = name, error = fault, "a router is not what it shall be");
        }
        if let Some(known) = self.routers.get_mut(name) {
            known.fault = fault;
        }
    }
}

/// The name of the link of a router's port.
fn link_name(tag: OwnerTag, port_id: &str) -> String {
    tag.router_link(short_id(port_id.as_bytes()))
}

fn nat_of(tag: OwnerTag, wanted: &RouterWanted) -> Nat {
    let outside = wanted
        .outside
        .as_ref()
        .map(|(port_id, hide_behind)| Outside { link: link_name(tag, port_id), hide_behind: *hide_behind });
    let forwardings = wanted.forwardings.iter().map(|wanted| {
        let from = Forwarding { address: wanted.address, protocol: wanted.protocol, port: wanted.port };
        (from, (wanted.to, wanted.to_port))
    });
    Nat { outside, floating: wanted.floating.iter().copied().collect(), forwardings: forwardings.collect() }
}

/// The addresses that a router answers for outside beside its own.
fn outside_addresses(wanted: &RouterWanted, own: &BTreeSet<IpNet>) -> BTreeSet<IpNet> {
    let floating = wanted.floating.iter().map(|(address, _)| *address);
    let forwarded = wanted.forwardings.iter().map(|forwarding| forwarding.address);
    let is_own = |address: &Ipv4Addr| own.iter().any(|net| net.addr() == *address);
    floating
        .chain(forwarded)
        .filter(|address| !is_own(address))
        .map(|a| IpNet::from(std::net::IpAddr::V4(a)))
        .collect()
}
