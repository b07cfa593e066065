//! One cloud's hands on one host's network: look, carry out a plan, and the short ways for one port.
//!
//! Only links whose name and alias both carry the cloud's tag are ever changed or removed. Touches no host-wide
//! setting; of the settings per interface, those of its own links.

mod error;
mod fabric;
mod observe;
mod router;
mod setting;
mod subport;
mod traffic;
mod underlay;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use ipnet::{IpNet, Ipv4Net};

use crate::filter::{Changed, Ending, Filter, FilterChange, WantedFilter};
use crate::keeper::Namespaces;
use crate::names::{LinkKind, OwnerTag, link_mac};
use crate::netlink::{Link, Request};
use crate::plan::{Observed, ObservedBridge, Operation, plan, plan_tunnels};
use crate::spec::{Bridge, HostNetwork, InterfaceName, NamespaceName, Uplink};
use crate::{netlink, nftables, tap};
pub use error::Error;
use error::partial;
use router::Inside;
pub(crate) use setting::has_bridge_netfilter;
use setting::{set_bridge_reach, set_ipv6};

/// The first of the group numbers that links to be removed together may get: any that no link has.
const FIRST_GROUP: u32 = 0x7769_7370;

/// The network of one host as one cloud may change it.
#[derive(Debug)]
pub struct Host {
    tag: OwnerTag,
    links: netlink::Client,
    filters: nftables::Client,
    /// What the packet filter holds, as far as we know; absent until looked at, and after a failure.
    filter: Option<Filter>,
    /// What it last was known to hold.
    remembered: Filter,
    /// The bridge of each tap, as it was last looked at or made.
    bridges: BTreeMap<InterfaceName, InterfaceName>,
    namespaces: Namespaces,
    /// Our routers' namespaces, as far as we have them open.
    routers: BTreeMap<NamespaceName, Inside>,
}

impl Host {
    /// Opens the host's network, in the network namespace of the calling thread. Changes nothing. Routers' namespaces
    /// are made by `namespaces`.
    ///
    /// # Errors
    /// If there is no netlink.
    pub fn open(tag: OwnerTag, namespaces: Namespaces) -> Result<Self, Error> {
        Ok(Self {
            tag,
            links: netlink::Client::open().map_err(Error::Link)?,
            filters: nftables::Client::open(tag).map_err(Error::Filter)?,
            filter: None,
            remembered: Filter::default(),
            bridges: BTreeMap::new(),
            namespaces,
            routers: BTreeMap::new(),
        })
    }

    /// The cloud's tag.
    #[must_use]
    pub fn tag(&self) -> OwnerTag {
        self.tag
    }

    /// Makes the host's network what is wanted: looks, plans, applies.
    ///
    /// # Errors
    /// As [`Host::apply`]; calling again carries on where it stopped.
    pub fn converge(&mut self, wanted: &HostNetwork) -> Result<(), Error> {
        self.check_names(wanted)?;
        let observed = self.observe()?;
        self.apply(&plan(self.tag, wanted, &observed))?;
        if let Some(filter) = self.filter.as_mut().filter(|filter| !filter.is_known()) {
            // What was made by an agent before us is what is wanted: from now on we know what that is.
            filter.recall(&WantedFilter::of(wanted, None, self.tag).names());
        }
        Ok(())
    }

    /// Lets the packet filter hold what is wanted, all else being as it is: for changes of groups and of what ports may
    /// send. What is known of the filter is enough; nothing is looked at, and what has not changed costs nothing.
    ///
    /// # Errors
    /// As [`Host::converge`], which does it where too little is known.
    pub fn converge_filter(&mut self, wanted: &HostNetwork, changed: &Changed) -> Result<(), Error> {
        let Some(known) = self.filter.as_ref().filter(|filter| filter.is_known()) else {
            return self.converge(wanted);
        };
        let change = known.change_for(wanted, changed, self.tag);
        match self.change_filter(&change) {
            // Somebody else has changed it.
            Err(Error::Filter(error)) if error.refusal().is_some() => self.converge(wanted),
            result => result,
        }
    }

    /// Carries a plan out. A link's failing step skips that link's later ones, the others go on; a failing filter ends
    /// it, since no tap may come up without its rules.
    ///
    /// # Errors
    /// [`Error::Partial`] with the first failure; a new plan from a new look carries on.
    pub fn apply(&mut self, operations: &[Operation]) -> Result<(), Error> {
        let mut failed: BTreeSet<&str> = BTreeSet::new();
        let mut failures = Vec::new();
        let is_deletion = |operation: &Operation| matches!(operation, Operation::DeleteLink(_));
        for run in operations.chunk_by(|a, b| is_deletion(a) && is_deletion(b)) {
            let subject = run.first().and_then(Operation::subject);
            let result = match run {
                [operation] if subject.is_none_or(|name| !failed.contains(name)) => self.carry_out(operation),
                [_] => continue,
                deletions => {
                    self.delete_links(&deletions.iter().filter_map(Operation::subject).collect::<Vec<_>>())
                }
            };
            if let Err(error) = result {
                failures.push(error);
                if subject.is_none() {
                    break;
                }
                failed.extend(run.iter().filter_map(Operation::subject));
            }
        }
        partial(operations.len(), failures)
    }

    /// Makes one port ready and opens its tap: its bridge if it is missing, its rules, its tap. Touches no other port.
    ///
    /// Doing it again is harmless and opens the tap again. The descriptor does not block, is closed on exec and carries
    /// frames behind a virtio-net header (see [`tap`]); the tap outlives it.
    ///
    /// # Errors
    /// As [`Error`] says; [`tap::Error::is_busy`] while somebody else has the tap open.
    pub fn add_port(&mut self, wanted: &HostNetwork, name: &str) -> Result<OwnedFd, Error> {
        let mut queues = self.add_port_of(wanted, name, 1)?;
        Ok(queues.pop().expect("invariant: every tap has a queue"))
    }

    /// The same with so many queues of the tap, one at the least. A tap from before that was made to have one and that nobody has open
    /// is made anew for several; one that was made to have several serves for one.
    ///
    /// # Errors
    /// As of [`Self::add_port`].
    pub fn add_port_of(
        &mut self,
        wanted: &HostNetwork,
        name: &str,
        queues: u16,
    ) -> Result<Vec<OwnedFd>, Error> {
        let port = wanted.taps.get(name).ok_or_else(|| Error::NotWanted(name.to_owned()))?;
        let bridge = wanted.bridges.get(&port.bridge).ok_or_else(|| Error::NotWanted(port.bridge.clone()))?;
        self.check_name(LinkKind::Tap, name)?;
        self.check_name(LinkKind::Bridge, &port.bridge)?;
        self.set_port_filter(name, Some(wanted))?;
        self.bridges.insert(name.to_owned(), port.bridge.clone());
        let master = self.ensure_bridge(&port.bridge, bridge, wanted)?;
        let mut present = self.owned(name)?;
        let opened = match present {
            Some(_) => match tap::open_queues(name, queues) {
                Err(tap::Error::SingleQueue { .. }) => {
                    self.delete_link(name)?;
                    present = None;
                    None
                }
                opened => Some(opened.map_err(Error::Tap)?),
            },
            None => None,
        };
        let files = match opened {
            Some(files) => files,
            None => self.create_tap(name, queues)?,
        };
        let is_configured =
            present.is_some_and(|tap| tap.is_up && tap.mtu == port.mtu && tap.master == Some(master));
        if !is_configured {
            self.execute([Request::configure(name, port.mtu, Some(master))])?;
        }
        tap::settle(name).map_err(Error::Tap)?;
        Ok(files)
    }

    /// Removes one port's tap and rules, if they are there. Touches no other port.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub fn remove_port(&mut self, name: &str) -> Result<(), Error> {
        self.check_name(LinkKind::Tap, name)?;
        self.delete_link(name)?;
        self.set_port_filter(name, None)?;
        self.bridges.remove(name);
        Ok(())
    }

    /// Removes every link, namespace and table of this cloud, whatever state they are in, and nothing else.
    ///
    /// # Errors
    /// As [`Host::apply`].
    pub fn remove_all(&mut self) -> Result<(), Error> {
        let links = self.links.links().map_err(Error::Link)?;
        let owned: Vec<&str> = links
            .values()
            .filter(|link| self.owned_kind(link).is_some())
            .map(|link| link.name.as_str())
            .collect();
        self.delete_links(&owned)?;
        self.remove_routers()?;
        self.filter = None;
        self.filters.remove().map_err(Error::Filter)
    }

    /// The first prefix that overlaps no address and no route of the host; a default route overlaps nothing.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn free_ipv4_subnet(
        &mut self,
        candidates: impl IntoIterator<Item = Ipv4Net>,
    ) -> Result<Option<Ipv4Net>, Error> {
        let addresses = self.links.addresses().map_err(Error::Link)?.into_iter().map(|(_, address)| address);
        let routes = self.links.routes().map_err(Error::Link)?;
        let taken: Vec<Ipv4Net> = addresses
            .chain(routes)
            .filter_map(|net| match net {
                IpNet::V4(net) if net.prefix_len() > 0 => Some(net),
                _ => None,
            })
            .collect();
        let is_free = |candidate: &Ipv4Net| {
            taken.iter().all(|net| !net.contains(&candidate.network()) && !candidate.contains(&net.network()))
        };
        Ok(candidates.into_iter().find(is_free))
    }

    fn carry_out(&mut self, operation: &Operation) -> Result<(), Error> {
        match operation {
            Operation::DeleteLink(name) => self.delete_link(name),
            Operation::CreateBridge { name } => self.create_bridge(name),
            Operation::ConfigureBridge { name, mtu, has_host, ipv6 } => {
                self.existing(name)?;
                set_bridge_reach(name, *has_host, *ipv6)?;
                if has_bridge_netfilter() {
                    let tracking = self.filters.tracking().map_err(Error::Filter)?;
                    let calls = tracking == nftables::Tracking::Inet;
                    self.execute([Request::set_bridge_calls_ip_filters(name, calls)])?;
                }
                self.execute([Request::configure(name, *mtu, None)])
            }
            Operation::AddAddress { bridge, address } => {
                let index = self.existing(bridge)?;
                self.execute([Request::add_address(bridge, index, *address)])
            }
            Operation::RemoveAddress { bridge, address } => {
                let index = self.existing(bridge)?;
                self.execute([Request::remove_address(bridge, index, *address)])
            }
            Operation::RebuildFilter(filter) => self.rebuild_filter(filter),
            Operation::ChangeFilter(change) => self.change_filter(change),
            Operation::Fabric(fabric, operation) => self.carry_out_in_fabric(fabric, operation),
            Operation::Tunnel(tunnel, operation) => self.carry_out_in_tunnel(tunnel, operation),
            Operation::Uplink(name, operation) => self.carry_out_at_uplink(name, operation),
            Operation::Router(name, operation) => self.carry_out_in_router(name, operation),
            Operation::CreateTap { name } => self.create_tap(name, 1).map(drop),
            Operation::CreateSubport { name, on } => self.create_subport(name, on),
            Operation::ConfigurePort { name, bridge, mtu } => {
                self.existing(name)?;
                let master = self.existing(bridge)?;
                self.execute([Request::configure(name, *mtu, Some(master))])?;
                self.bridges.insert(name.clone(), bridge.clone());
                Ok(())
            }
        }
    }

    /// Makes one bridge ready: its index.
    fn ensure_bridge(&mut self, name: &str, bridge: &Bridge, wanted: &HostNetwork) -> Result<u32, Error> {
        let mut observed = Observed { filter: Some(Filter::default()), ..Observed::default() };
        if let Some(link) = self.owned(name)? {
            if link.is_up {
                return Ok(link.index);
            }
            let addresses = self.links.addresses().map_err(Error::Link)?.into_iter();
            let addresses = addresses.filter(|(index, net)| *index == link.index && !is_link_local(*net));
            let addresses = addresses.map(|(_, address)| address).collect();
            let present = ObservedBridge { mtu: link.mtu, is_up: false, addresses };
            observed.bridges.insert(name.to_owned(), present);
        }
        // What networks share of VXLAN is looked at as a whole.
        let vxlan = bridge.vxlan.clone().filter(|_| wanted.fabric.is_none());
        let bridges = BTreeMap::from([(name.to_owned(), Bridge { vxlan, ..bridge.clone() })]);
        let part = HostNetwork { bridges, ..HostNetwork::default() };
        let mut operations = plan(self.tag, &part, &observed);
        operations.retain(|operation| operation.subject().is_some());
        self.apply(&operations)?;
        if bridge.vxlan.is_some() && wanted.fabric.is_some() {
            let observed = self.observe()?;
            let there = |name: &String| observed.bridges.contains_key(name);
            let bridges = wanted.bridges.iter().filter(|(name, _)| there(name));
            let bridges = bridges.map(|(name, bridge)| (name.clone(), bridge.clone())).collect();
            let part = HostNetwork { bridges, fabric: wanted.fabric.clone(), ..HostNetwork::default() };
            self.apply(&plan_tunnels(&part, &observed))?;
        }
        self.existing(name)
    }

    fn create_bridge(&mut self, name: &str) -> Result<(), Error> {
        self.check_name(LinkKind::Bridge, name)?;
        self.execute([Request::create_bridge(name, link_mac(name))])?;
        self.execute([self.alias(name)])
    }

    /// Makes a tap, marks it as ours, then lets it stay: if we die in between, it vanishes.
    fn create_tap(&mut self, name: &str, queues: u16) -> Result<Vec<OwnedFd>, Error> {
        self.check_name(LinkKind::Tap, name)?;
        let files = tap::create_queues(name, queues).map_err(Error::Tap)?;
        self.execute([self.alias(name)])?;
        set_ipv6(name, false)?;
        files.first().map_or(Ok(()), |first| tap::persist(first, name)).map_err(Error::Tap)?;
        Ok(files)
    }

    fn delete_link(&mut self, name: &str) -> Result<(), Error> {
        if self.owned(name)?.is_none() {
            return Ok(());
        }
        match self.execute([Request::delete_link(name)]) {
            Err(Error::Link(error)) if error.refusal() == Some(libc::ENODEV) => Ok(()),
            result => result,
        }
    }

    /// Removes those of these links that there are, at once.
    fn delete_links(&mut self, names: &[&str]) -> Result<(), Error> {
        let links = self.links.links().map_err(Error::Link)?;
        let present: Vec<&Link> = names.iter().filter_map(|name| links.get(*name)).collect();
        if let Some(foreign) = present.iter().find(|link| self.owned_kind(link).is_none()) {
            return Err(Error::Foreign(foreign.name.clone()));
        }
        let taken: BTreeSet<u32> = links.values().map(|link| link.group).collect();
        let group = (FIRST_GROUP..).find(|group| !taken.contains(group));
        let group = group.expect("invariant: there are fewer links than numbers");
        let gone = |error: &netlink::Error| error.refusal() == Some(libc::ENODEV);
        let mut requests: Vec<Request> =
            present.iter().map(|link| Request::set_group(&link.name, group)).collect();
        requests.extend((!present.is_empty()).then(|| Request::delete_group(group)));
        let steps = requests.len();
        let refused = self.links.send(requests).map_err(Error::Link)?;
        partial(steps, refused.into_iter().filter(|error| !gone(error)).map(Error::Link).collect())
    }

    /// Learns what the packet filter holds: whether there is one.
    fn learn_filter(&mut self) -> Result<bool, Error> {
        let mut filter = self.filters.observe().map_err(Error::Filter)?;
        if let Some(filter) = &mut filter {
            filter.recall(self.filter.as_ref().unwrap_or(&self.remembered));
        }
        self.filter = filter;
        Ok(self.filter.is_some())
    }

    fn rebuild_filter(&mut self, filter: &WantedFilter) -> Result<(), Error> {
        self.filter = None;
        self.filters.rebuild(filter).map_err(Error::Filter)?;
        self.filter = Some(filter.names());
        Ok(())
    }

    fn change_filter(&mut self, change: &FilterChange) -> Result<(), Error> {
        let known = self.filter.take();
        if let Err(error) = self.filters.change(change) {
            self.remembered = known.unwrap_or_default();
            return Err(Error::Filter(error));
        }
        let ended = self.end_connections(&change.ending, known.as_ref());
        self.filter = known.map(|mut filter| {
            filter.apply(change);
            filter
        });
        ended
    }

    /// Ends the connections that the new rules would not let begin. The rules hold already, so nothing new slips by.
    fn end_connections(&mut self, ending: &Ending, known: Option<&Filter>) -> Result<(), Error> {
        if ending.is_empty() {
            return Ok(());
        }
        let zones: BTreeMap<&str, u16> = known.iter().flat_map(|filter| filter.zones()).collect();
        let bridges = &self.bridges;
        let judge = ending.judge(|link| zones.get(bridges.get(link)?.as_str()).copied());
        if judge.is_empty() { Ok(()) } else { self.filters.end_connections(&judge).map_err(Error::Filter) }
    }

    /// Lets the packet filter say about a tap and its bridge what is wanted, or nothing at all. Where there is no filter,
    /// it is made for all that is wanted. What we remember of it may be out of date: then it is looked at, once.
    fn set_port_filter(&mut self, name: &str, network: Option<&HostNetwork>) -> Result<(), Error> {
        for is_last in [false, true] {
            if self.filter.is_none() && !self.learn_filter()? {
                let tag = self.tag;
                return network
                    .map_or(Ok(()), |network| self.rebuild_filter(&WantedFilter::of(network, None, tag)));
            }
            let known = self.filter.as_ref().expect("invariant: learnt above");
            let change = match network {
                Some(network) => known.change_for_port(network, name, self.tag),
                None => known.removal_of_link(name),
            };
            match self.change_filter(&change) {
                Err(Error::Filter(error)) if !is_last && error.refusal().is_some() => {}
                result => return result,
            }
        }
        Ok(())
    }

    /// The link of this name, if there is one and it is ours.
    fn owned(&mut self, name: &str) -> Result<Option<Link>, Error> {
        let Some(link) = self.links.link(name).map_err(Error::Link)? else { return Ok(None) };
        match self.owned_kind(&link) {
            Some(_) => Ok(Some(link)),
            None => Err(Error::Foreign(name.to_owned())),
        }
    }

    /// The index of a link that is ours.
    fn existing(&mut self, name: &str) -> Result<u32, Error> {
        self.owned(name)?.map(|link| link.index).ok_or_else(|| Error::Missing(name.to_owned()))
    }

    fn owned_kind(&self, link: &Link) -> Option<LinkKind> {
        let is_half_made = || link.alias.is_empty() && link.mac == Some(link_mac(&link.name));
        self.tag.kind_of(&link.name).filter(|_| self.tag.owns_alias(&link.alias) || is_half_made())
    }

    fn check_names(&self, wanted: &HostNetwork) -> Result<(), Error> {
        for (name, bridge) in &wanted.bridges {
            self.check_name(LinkKind::Bridge, name)?;
            let kind = if wanted.fabric.is_some() { LinkKind::Shared } else { LinkKind::Vxlan };
            bridge.vxlan.as_ref().map_or(Ok(()), |vxlan| self.check_name(kind, &vxlan.name))?;
            if let Some(Uplink::Vlan { device, .. }) = &bridge.uplink {
                self.check_name(LinkKind::Vlan, device)?;
            }
        }
        if let Some(fabric) = &wanted.fabric {
            let own = self.tag.fabric();
            let names = [&fabric.bridge, &fabric.device];
            if let Some((name, _)) = names.into_iter().zip(&own).find(|(name, own)| name != own) {
                return Err(Error::Name {
                    name: name.chars().take(64).collect(),
                    kind: LinkKind::Fabric,
                    tag: self.tag,
                });
            }
        }
        for router in wanted.routers.values() {
            router.links.keys().try_for_each(|name| self.check_name(LinkKind::Router, name))?;
        }
        wanted.taps.keys().try_for_each(|name| self.check_name(LinkKind::Tap, name))
    }

    fn check_name(&self, kind: LinkKind, name: &str) -> Result<(), Error> {
        if self.tag.kind_of(name) == Some(kind) {
            return Ok(());
        }
        Err(Error::Name { name: name.chars().take(64).collect(), kind, tag: self.tag })
    }

    fn alias(&self, name: &str) -> Request {
        Request::set_alias(name, &self.tag.alias(""))
    }

    fn execute<const N: usize>(&mut self, requests: [Request; N]) -> Result<(), Error> {
        self.links.execute(requests.into()).map_err(Error::Link)
    }
}

fn is_link_local(address: IpNet) -> bool {
    match address.addr() {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests;
