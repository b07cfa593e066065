//! One cloud's hands on one host's network: look, carry out a plan, and the short ways for one port.
//!
//! Only links whose name and alias both carry the cloud's tag are ever changed or removed. Touches no host-wide
//! setting; of the settings per interface, those of its own links.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use ipnet::{IpNet, Ipv4Net};

use crate::filter::{Filter, FilterChange, WantedFilter};
use crate::names::{LinkKind, OwnerTag, short_id};
use crate::netlink::{Link, Request};
use crate::plan::{Observed, ObservedBridge, ObservedPort, ObservedVxlan, Operation, plan};
use crate::spec::{Bridge, HostNetwork, InterfaceName};
use crate::{netlink, nftables, tap};

/// What went wrong with a host's network.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Links, addresses or routes.
    #[error("change the host's links")]
    Link(#[source] netlink::Error),
    /// The packet filter.
    #[error("change the packet filter")]
    Filter(#[source] nftables::Error),
    /// A tap.
    #[error("make or open a tap")]
    Tap(#[source] tap::Error),
    /// A setting of one of our links.
    #[error("write {path}")]
    Setting {
        /// The file.
        path: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A name that does not carry the cloud's tag in the form of its kind: see [`crate::names`].
    #[error("{name:?} is no name for a {kind:?} of the cloud {tag}")]
    Name {
        /// The name.
        name: String,
        /// What it was to be the name of.
        kind: LinkKind,
        /// The cloud.
        tag: OwnerTag,
    },
    /// What was asked about is not part of the wanted network.
    #[error("{0} is not in the wanted network")]
    NotWanted(InterfaceName),
    /// The link to change is gone.
    #[error("link {0} does not exist")]
    Missing(InterfaceName),
    /// A link of somebody else has the name.
    #[error("link {0} exists and is not ours")]
    Foreign(InterfaceName),
    /// A plan was carried out in part.
    #[error("{} of {steps} steps failed, the first: {first}", .others + 1)]
    Partial {
        /// How many steps there were.
        steps: usize,
        /// The first failure.
        #[source]
        first: Box<Error>,
        /// How many more.
        others: usize,
    },
}

/// The network of one host as one cloud may change it.
#[derive(Debug)]
pub struct Host {
    tag: OwnerTag,
    links: netlink::Client,
    filters: nftables::Client,
    /// What the packet filter holds, as far as we know; absent until looked at, and after a failure.
    filter: Option<Filter>,
}

impl Host {
    /// Opens the host's network, in the network namespace of the calling thread. Changes nothing.
    ///
    /// # Errors
    /// If there is no netlink.
    pub fn open(tag: OwnerTag) -> Result<Self, Error> {
        Ok(Self {
            tag,
            links: netlink::Client::open().map_err(Error::Link)?,
            filters: nftables::Client::open(tag).map_err(Error::Filter)?,
            filter: None,
        })
    }

    /// The cloud's tag.
    #[must_use]
    pub fn tag(&self) -> OwnerTag {
        self.tag
    }

    /// Looks at all that is ours.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn observe(&mut self) -> Result<Observed, Error> {
        let links = self.links.links().map_err(Error::Link)?;
        let names: BTreeMap<u32, &str> =
            links.values().map(|link| (link.index, link.name.as_str())).collect();
        let mut observed = Observed::default();
        for (name, link) in &links {
            let port = || ObservedPort {
                bridge: link.master.and_then(|index| names.get(&index)).map(|name| (*name).to_owned()),
                mtu: link.mtu,
                is_up: link.is_up,
            };
            let Some(kind) = self.owned_kind(link) else {
                observed.foreign.insert(name.clone());
                continue;
            };
            match (kind, link.kind.as_str(), link.vxlan) {
                (LinkKind::Bridge, "bridge", _) => {
                    let bridge = ObservedBridge { mtu: link.mtu, is_up: link.is_up, ..Default::default() };
                    observed.bridges.insert(name.clone(), bridge);
                }
                (LinkKind::Tap, "tun", _) => {
                    observed.taps.insert(name.clone(), port());
                }
                (LinkKind::Vxlan, "vxlan", Some((vni, local))) => {
                    let vxlan = ObservedVxlan { vni, local, peers: BTreeSet::new(), port: port() };
                    observed.vxlans.insert(name.clone(), vxlan);
                }
                _ => {
                    observed.misshapen.insert(name.clone());
                }
            }
        }
        for (index, address) in self.links.addresses().map_err(Error::Link)? {
            let bridge = names.get(&index).and_then(|name| observed.bridges.get_mut(*name));
            if let Some(bridge) = bridge.filter(|_| !is_link_local(address)) {
                bridge.addresses.insert(address);
            }
        }
        if !observed.vxlans.is_empty() {
            for (index, peer) in self.links.floods().map_err(Error::Link)? {
                let vxlan = names.get(&index).and_then(|name| observed.vxlans.get_mut(*name));
                vxlan.map(|vxlan| vxlan.peers.insert(peer));
            }
        }
        observed.filter = self.filters.observe().map_err(Error::Filter)?;
        self.filter.clone_from(&observed.filter);
        Ok(observed)
    }

    /// Makes the host's network what is wanted: looks, plans, applies.
    ///
    /// # Errors
    /// As [`Host::apply`]; calling again carries on where it stopped.
    pub fn converge(&mut self, wanted: &HostNetwork) -> Result<(), Error> {
        self.check_names(wanted)?;
        let observed = self.observe()?;
        self.apply(&plan(self.tag, wanted, &observed))
    }

    /// Carries a plan out. A link's failing step skips that link's later ones, the others go on; a failing filter ends
    /// it, since no tap may come up without its rules.
    ///
    /// # Errors
    /// [`Error::Partial`] with the first failure; a new plan from a new look carries on.
    pub fn apply(&mut self, operations: &[Operation]) -> Result<(), Error> {
        let mut failed: BTreeSet<&str> = BTreeSet::new();
        let mut first = None;
        let mut failures = 0;
        for operation in operations {
            let subject = operation.subject();
            if subject.is_some_and(|subject| failed.contains(subject)) {
                continue;
            }
            if let Err(error) = self.carry_out(operation) {
                failures += 1;
                first.get_or_insert(error);
                match subject {
                    Some(subject) => failed.insert(subject),
                    None => break,
                };
            }
        }
        match first {
            None => Ok(()),
            Some(first) => {
                let others = failures - 1;
                Err(Error::Partial { steps: operations.len(), first: Box::new(first), others })
            }
        }
    }

    /// Makes one port ready and opens its tap: its bridge if it is missing, its rules, its tap. Touches no other port.
    ///
    /// Doing it again is harmless and opens the tap again. The descriptor does not block, is closed on exec and carries
    /// frames behind a virtio-net header (see [`tap`]); the tap outlives it.
    ///
    /// # Errors
    /// As [`Error`] says; [`tap::Error::is_busy`] while somebody else has the tap open.
    pub fn add_port(&mut self, wanted: &HostNetwork, name: &str) -> Result<OwnedFd, Error> {
        let port = wanted.taps.get(name).ok_or_else(|| Error::NotWanted(name.to_owned()))?;
        let bridge = wanted.bridges.get(&port.bridge).ok_or_else(|| Error::NotWanted(port.bridge.clone()))?;
        self.check_name(LinkKind::Tap, name)?;
        self.check_name(LinkKind::Bridge, &port.bridge)?;
        self.set_links_filter(&[&port.bridge, name], Some(wanted))?;
        let master = self.ensure_bridge(&port.bridge, bridge)?;
        let present = self.owned(name)?;
        let file = match present {
            Some(_) => tap::open(name).map_err(Error::Tap)?,
            None => self.create_tap(name)?,
        };
        let is_configured =
            present.is_some_and(|tap| tap.is_up && tap.mtu == port.mtu && tap.master == Some(master));
        if !is_configured {
            self.execute([Request::configure(name, port.mtu, Some(master))])?;
        }
        tap::settle(name).map_err(Error::Tap)?;
        Ok(file)
    }

    /// Removes one port's tap and rules, if they are there. Touches no other port.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub fn remove_port(&mut self, name: &str) -> Result<(), Error> {
        self.check_name(LinkKind::Tap, name)?;
        self.delete_link(name)?;
        self.set_links_filter(&[name], None)
    }

    /// Removes every link and table of this cloud, whatever state they are in, and nothing else.
    ///
    /// # Errors
    /// As [`Host::apply`].
    pub fn remove_all(&mut self) -> Result<(), Error> {
        let links = self.links.links().map_err(Error::Link)?;
        let mut owned: Vec<(LinkKind, &str)> = links
            .values()
            .filter_map(|link| self.owned_kind(link).map(|kind| (kind, link.name.as_str())))
            .collect();
        // Bridges last: their ports lose nothing they need on their way out.
        owned.sort_by_key(|(kind, _)| *kind == LinkKind::Bridge);
        let requests = owned.iter().map(|(_, name)| Request::delete_link(name)).collect();
        let refused = self.links.send(requests).map_err(Error::Link)?;
        let mut real = refused.into_iter().filter(|error| error.refusal() != Some(libc::ENODEV));
        if let Some(first) = real.next() {
            let others = real.count();
            return Err(Error::Partial { steps: owned.len(), first: Box::new(Error::Link(first)), others });
        }
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
            Operation::ConfigureBridge { name, mtu, has_host, has_ipv6 } => {
                self.existing(name)?;
                set_bridge_reach(name, *has_host, *has_ipv6)?;
                if has_bridge_netfilter() {
                    self.execute([Request::set_bridge_calls_ip_filters(name, true)])?;
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
            Operation::RebuildFilter(filter) => self.rebuild_filter(filter.clone()),
            Operation::ChangeFilter(change) => self.change_filter(change),
            Operation::CreateVxlan { name, vni, local } => {
                self.check_name(LinkKind::Vxlan, name)?;
                self.execute([Request::create_vxlan(name, maker_mark(name), *vni, *local)])?;
                self.execute([self.alias(name)])?;
                set_ipv6(name, false)
            }
            Operation::AddFlood { vxlan, peer } => {
                let index = self.existing(vxlan)?;
                self.execute([Request::add_flood(vxlan, index, *peer)])
            }
            Operation::RemoveFlood { vxlan, peer } => {
                let index = self.existing(vxlan)?;
                self.execute([Request::remove_flood(vxlan, index, *peer)])
            }
            Operation::CreateTap { name } => self.create_tap(name).map(drop),
            Operation::ConfigurePort { name, bridge, mtu } => {
                self.existing(name)?;
                let master = self.existing(bridge)?;
                self.execute([Request::configure(name, *mtu, Some(master))])
            }
        }
    }

    /// Makes one bridge ready: its index.
    fn ensure_bridge(&mut self, name: &str, bridge: &Bridge) -> Result<u32, Error> {
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
        let bridges = BTreeMap::from([(name.to_owned(), bridge.clone())]);
        let part = HostNetwork { bridges, ..HostNetwork::default() };
        let mut operations = plan(self.tag, &part, &observed);
        operations.retain(|operation| operation.subject().is_some());
        self.apply(&operations)?;
        self.existing(name)
    }

    fn create_bridge(&mut self, name: &str) -> Result<(), Error> {
        self.check_name(LinkKind::Bridge, name)?;
        self.execute([Request::create_bridge(name, maker_mark(name))])?;
        self.execute([self.alias(name)])
    }

    /// Makes a tap, marks it as ours, then lets it stay: if we die in between, it vanishes.
    fn create_tap(&mut self, name: &str) -> Result<OwnedFd, Error> {
        self.check_name(LinkKind::Tap, name)?;
        let file = tap::create(name).map_err(Error::Tap)?;
        self.execute([self.alias(name)])?;
        set_ipv6(name, false)?;
        tap::persist(&file, name).map_err(Error::Tap)?;
        Ok(file)
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

    /// Learns what the packet filter holds: whether there is one.
    fn learn_filter(&mut self) -> Result<bool, Error> {
        self.filter = self.filters.observe().map_err(Error::Filter)?;
        Ok(self.filter.is_some())
    }

    fn rebuild_filter(&mut self, filter: WantedFilter) -> Result<(), Error> {
        self.filter = None;
        self.filters.rebuild(&filter).map_err(Error::Filter)?;
        self.filter = Some(filter.names());
        Ok(())
    }

    fn change_filter(&mut self, change: &FilterChange) -> Result<(), Error> {
        let known = self.filter.take();
        self.filters.change(change).map_err(Error::Filter)?;
        self.filter = known.map(|mut filter| {
            filter.apply(change);
            filter
        });
        Ok(())
    }

    /// Lets the packet filter say about a tap and its bridge what is wanted, or nothing at all. Where there is no filter,
    /// it is made for all that is wanted. What we remember of it may be out of date: then it is looked at, once.
    fn set_links_filter(&mut self, links: &[&str], network: Option<&HostNetwork>) -> Result<(), Error> {
        for is_last in [false, true] {
            if self.filter.is_none() && !self.learn_filter()? {
                let tag = self.tag;
                return network
                    .map_or(Ok(()), |network| self.rebuild_filter(WantedFilter::of(network, None, tag)));
            }
            let known = self.filter.as_ref().expect("invariant: learnt above");
            let wanted = match (network, links) {
                (Some(network), [.., tap]) => {
                    WantedFilter::of_port(network, tap, self.filter.as_ref(), self.tag)
                }
                _ => WantedFilter::default(),
            };
            let change = known.change_of_links(links, &wanted);
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
        let is_half_made = || link.alias.is_empty() && link.mac == Some(maker_mark(&link.name));
        self.tag.kind_of(&link.name).filter(|_| self.tag.owns_alias(&link.alias) || is_half_made())
    }

    fn check_names(&self, wanted: &HostNetwork) -> Result<(), Error> {
        for (name, bridge) in &wanted.bridges {
            self.check_name(LinkKind::Bridge, name)?;
            bridge.vxlan.as_ref().map_or(Ok(()), |vxlan| self.check_name(LinkKind::Vxlan, &vxlan.name))?;
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

/// The MAC we give a bridge or VXLAN device of this name: locally administered, unicast (IEEE 802 §8.4).
///
/// Unlike the alias it is there from the link's first moment, so one that was left half-made is still known as ours.
fn maker_mark(name: &str) -> [u8; 6] {
    let [a, b, c, d] = short_id(name.as_bytes()).to_be_bytes();
    [0x02, 0x77, a, b, c, d]
}

/// Whether bridged packets can be shown to the host's IP filters, as security groups need.
fn has_bridge_netfilter() -> bool {
    std::path::Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists()
}

/// Opens a bridge to the host or closes it.
///
/// Without an address of its own on the bridge the host would answer ARP there for all its other addresses.
fn set_bridge_reach(name: &str, has_host: bool, has_ipv6: bool) -> Result<(), Error> {
    set_ipv6(name, has_ipv6)?;
    write_setting(&format!("/proc/sys/net/ipv4/conf/{name}/arp_ignore"), if has_host { "1" } else { "8" })
}

/// Allows the host's own IPv6 on a link of ours, without autoconfiguration, or forbids it.
fn set_ipv6(name: &str, is_on: bool) -> Result<(), Error> {
    let directory = format!("/proc/sys/net/ipv6/conf/{name}");
    if !std::path::Path::new(&directory).exists() {
        return Ok(());
    }
    write_setting(&format!("{directory}/accept_ra"), "0")?;
    write_setting(&format!("{directory}/disable_ipv6"), if is_on { "0" } else { "1" })
}

fn write_setting(path: &str, value: &str) -> Result<(), Error> {
    std::fs::write(path, value).map_err(|source| Error::Setting { path: path.to_owned(), source })
}

fn is_link_local(address: IpNet) -> bool {
    match address.addr() {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests;
