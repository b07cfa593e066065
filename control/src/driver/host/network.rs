//! The instances' part of the host's network: from networks, groups and devices to bridges, taps and rules.
//!
//! Routers are in [`router`]. What the host shall have is kept here as one [`HostNetwork`]; single ports take `net`'s short way, everything
//! else is looked at and planned.

mod router;
mod traffic;
pub(super) mod trunk;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use net::apply::Host;
use net::filter::Changed;
use net::keeper::Namespaces;
use net::names::{InvalidOwnerTag, OwnerTag, short_id};
use net::spec::{
    Bridge, Fabric, Group, HostNetwork, InterfaceName, NamespaceName, RemotePort, Subport, Tap, Uplink, Vxlan,
};

use crate::agent::protocol::{NetworkWanted, NicWanted, PhysicalWanted};
use crate::driver::Surroundings;
use crate::driver::tunnel::Tunnel;

/// The file in the run directory that holds the cloud's tag, so that the host can be cleaned without the cloud.
const TAG_FILE: &str = "cloud-tag";

/// Why the network is not as it shall be.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// A network that a device is on.
    #[error("network {0} is gone")]
    NoNetwork(String),
    /// Two ids share the 32 bits that links are named by.
    #[error("the link {0} is another one's already")]
    NameTaken(InterfaceName),
    /// A network is on a physical network that this host is not on.
    #[error("this host is on no physical network {0}: start it with --provider {0}=INTERFACE")]
    NoPhysicalNetwork(String),
    /// The cloud's tag is none.
    #[error(transparent)]
    Tag(#[from] InvalidOwnerTag),
    /// The directory is another cloud's.
    #[error("the run directory belongs to cloud {kept}, not to cloud {wanted}")]
    OtherCloud {
        /// Whose it is.
        kept: String,
        /// Who came.
        wanted: String,
    },
    /// The tag could not be kept.
    #[error("keep the cloud's tag")]
    KeepTag(#[source] io::Error),
    /// The kernel refused.
    #[error(transparent)]
    Host(#[from] net::apply::Error),
}

/// The host's network.
pub(super) struct Network {
    run: PathBuf,
    namespaces: Namespaces,
    carries_vlans: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    host: Option<Host>,
    wanted: HostNetwork,
    /// The interface of each physical network.
    interfaces: BTreeMap<String, InterfaceName>,
    /// Whose each link or namespace is: the id of the network, port or router.
    owners: BTreeMap<InterfaceName, String>,
    /// The routers that are asked for, by their namespaces.
    routers: BTreeMap<NamespaceName, router::Known>,
    /// The kernel can carry VLANs of taps.
    carries_vlans: bool,
    /// How networks get to other hosts.
    tunnel: Option<Tunnel>,
}

impl Network {
    /// Nothing is known or changed yet.
    pub(super) fn new(
        run: &Path,
        namespaces: Namespaces,
        interfaces: BTreeMap<String, InterfaceName>,
        tunnel: Option<Tunnel>,
    ) -> Self {
        let carries_vlans = net::probe::carries_vlans();
        let state = State { interfaces, carries_vlans, tunnel, ..State::default() };
        Self { run: run.to_path_buf(), namespaces, carries_vlans, state: Mutex::new(state) }
    }

    /// Whether devices carry the ports of trunks here.
    pub(super) fn carries_vlans(&self) -> bool {
        self.carries_vlans
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic in between can only leave links that are wanted and missing, which the next look heals.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the networks that are in use, the rules of all groups and the routers what is wanted, and keeps the taps of
    /// what runs: `running` are the devices of all instances with a process.
    pub(super) fn surround(&self, surroundings: &Surroundings, running: &[NicWanted]) -> Result<(), Error> {
        let mut state = self.state();
        let is_first = state.host.is_none();
        let tag = state.open(self, &surroundings.cloud_tag)?;
        let mut before = state.wanted.clone();
        for network in surroundings.networks.values() {
            let name = tag.bridge(short_id(network.id.as_bytes()));
            if state.wanted.bridges.contains_key(&name) {
                state.want_bridge(tag, network)?;
            }
        }
        for nic in running {
            // Even without its network, what runs keeps its tap until it is told otherwise.
            state.want_nic(tag, surroundings, &network_or_bare(surroundings, nic), nic)?;
        }
        for (id, group) in &surroundings.groups {
            let number = short_id(id.as_bytes());
            if let Some(kept) = state.wanted.groups.get_mut(&number) {
                *kept = Group { rules: group.rules.clone() };
            }
        }
        state.want_routers(tag, surroundings);
        state.sweep();
        let routers_before = std::mem::replace(&mut before.routers, state.wanted.routers.clone());
        if is_first || !is_same_but_filter(&state.wanted, &before) {
            return state.converge();
        }
        if state.wanted != before {
            let State { host, wanted, .. } = &mut *state;
            let changed = Changed::between(&before, wanted);
            host.as_mut().expect("invariant: opened above").converge_filter(wanted, &changed)?;
        }
        state.converge_routers(&routers_before);
        Ok(())
    }

    /// Makes the devices' taps, all or none, and opens them in order, each with so many queues.
    pub(super) fn attach(
        &self,
        surroundings: &Surroundings,
        (nics, queues): (&[NicWanted], u16),
    ) -> Result<Vec<Vec<OwnedFd>>, Error> {
        let mut state = self.state();
        let tag = state.open(self, &surroundings.cloud_tag)?;
        let mut taps = Vec::with_capacity(nics.len());
        for nic in nics {
            let wanted = network_of(surroundings, nic)
                .and_then(|network| state.want_nic(tag, surroundings, network, nic));
            let opened = wanted.and_then(|()| {
                let State { host, wanted, .. } = &mut *state;
                let host = host.as_mut().expect("invariant: opened above");
                let tap = host.add_port_of(wanted, &tag.tap(short_id(nic.port_id.as_bytes())), queues)?;
                state.carry(tag, nic)?;
                Ok(tap)
            });
            match opened {
                Ok(tap) => taps.push(tap),
                Err(error) => {
                    drop(taps);
                    // The first failure is the one to tell of; what stays is swept with the next look.
                    let _ = state.remove(tag, nics);
                    return Err(error);
                }
            }
        }
        Ok(taps)
    }

    /// Brings the taps of an instance that runs to what is wanted of them now.
    pub(super) fn update(&self, surroundings: &Surroundings, nics: &[NicWanted]) -> Result<(), Error> {
        let mut state = self.state();
        let tag = state.open(self, &surroundings.cloud_tag)?;
        let before = state.wanted.clone();
        for nic in nics {
            state.want_nic(tag, surroundings, network_of(surroundings, nic)?, nic)?;
        }
        if state.wanted == before { Ok(()) } else { state.converge() }
    }

    /// Removes the devices' taps and rules, and the bridges that nothing is on any more.
    pub(super) fn detach(&self, surroundings: &Surroundings, nics: &[NicWanted]) -> Result<(), Error> {
        if nics.is_empty() {
            return Ok(());
        }
        let mut state = self.state();
        let tag = state.open(self, &surroundings.cloud_tag)?;
        state.remove(tag, nics)
    }
}

impl State {
    fn open(&mut self, network: &Network, tag: &str) -> Result<OwnerTag, Error> {
        let run = &network.run;
        let tag: OwnerTag = tag.parse()?;
        match self.host.as_ref().map(Host::tag).or_else(|| kept_tag(run)) {
            Some(kept) if kept != tag => {
                return Err(Error::OtherCloud { kept: kept.to_string(), wanted: tag.to_string() });
            }
            Some(_) => {}
            None => fs::write(run.join(TAG_FILE), tag.to_string()).map_err(Error::KeepTag)?,
        }
        if self.host.is_none() {
            self.host = Some(Host::open(tag, network.namespaces.clone())?);
        }
        self.wanted.fabric = self.tunnel.filter(|tunnel| tunnel.is_shared).map(|tunnel| {
            let [bridge, device] = tag.fabric();
            Fabric { bridge, device, local: tunnel.address }
        });
        Ok(tag)
    }

    fn own(&mut self, name: &InterfaceName, id: &str) -> Result<(), Error> {
        match self.owners.get(name) {
            Some(owner) if owner != id => Err(Error::NameTaken(name.clone())),
            Some(_) => Ok(()),
            None => {
                self.owners.insert(name.clone(), id.to_string());
                Ok(())
            }
        }
    }

    fn want_bridge(&mut self, tag: OwnerTag, network: &NetworkWanted) -> Result<InterfaceName, Error> {
        let name = tag.bridge(short_id(network.id.as_bytes()));
        self.own(&name, &network.id)?;
        let uplink = network.physical.as_ref().map(|physical| self.uplink(tag, &network.id, physical));
        let bridge = Bridge {
            mtu: network.mtu,
            host_addresses: network.host_addresses.clone(),
            vxlan: self.vxlan(tag, network),
            uplink: uplink.transpose()?,
        };
        self.wanted.bridges.insert(name.clone(), bridge);
        Ok(name)
    }

    /// What joins a network to its ports on other hosts, while there are any.
    fn vxlan(&self, tag: OwnerTag, network: &NetworkWanted) -> Option<Vxlan> {
        let tunnel = self.tunnel.filter(|_| !network.remotes.is_empty())?;
        let id = short_id(network.id.as_bytes());
        let remotes = network.remotes.iter();
        Some(Vxlan {
            name: if tunnel.is_shared { tag.shared(id) } else { tag.vxlan(id) },
            vni: network.vni?,
            local: tunnel.address,
            peers: remotes.clone().map(|port| port.host).collect(),
            remotes: remotes
                .map(|port| (port.mac, RemotePort { host: port.host, addresses: port.addresses.clone() }))
                .collect(),
        })
    }

    fn uplink(&mut self, tag: OwnerTag, id: &str, physical: &PhysicalWanted) -> Result<Uplink, Error> {
        let interface = self.interfaces.get(&physical.name).cloned();
        let interface = interface.ok_or_else(|| Error::NoPhysicalNetwork(physical.name.clone()))?;
        Ok(match physical.vlan {
            None => Uplink::Flat { interface },
            Some(vlan) => Uplink::Vlan { interface, vlan, device: tag.vlan(short_id(id.as_bytes())) },
        })
    }

    fn want_nic(
        &mut self,
        tag: OwnerTag,
        surroundings: &Surroundings,
        network: &NetworkWanted,
        nic: &NicWanted,
    ) -> Result<(), Error> {
        self.want_port(tag, surroundings, network, nic, None)?;
        self.want_carried(tag, surroundings, nic)
    }

    fn want_port(
        &mut self,
        tag: OwnerTag,
        surroundings: &Surroundings,
        network: &NetworkWanted,
        nic: &NicWanted,
        vlan: Option<Subport>,
    ) -> Result<(), Error> {
        let bridge = self.want_bridge(tag, network)?;
        let name = tag.tap(short_id(nic.port_id.as_bytes()));
        self.own(&name, &nic.port_id)?;
        let mut groups = BTreeSet::new();
        for id in &nic.groups {
            let number = short_id(id.as_bytes());
            // A group that is not there allows nothing.
            let rules = surroundings.groups.get(id).map(|group| group.rules.clone()).unwrap_or_default();
            self.wanted.groups.insert(number, Group { rules });
            groups.insert(number);
        }
        let kinds =
            nic.groups.iter().map(|id| surroundings.groups.get(id).is_some_and(|group| group.stateless));
        let tap = Tap {
            stateless: !nic.groups.is_empty() && kinds.into_iter().all(|stateless| stateless),
            bridge,
            mtu: u32::from(nic.mtu),
            mac: nic.mac,
            addresses: nic.allowed_addresses.clone(),
            port_security: nic.port_security,
            groups,
            vlan,
        };
        self.wanted.taps.insert(name, tap);
        Ok(())
    }

    fn remove(&mut self, tag: OwnerTag, nics: &[NicWanted]) -> Result<(), Error> {
        let mut outcome = Ok(());
        let carried = |nic| Iterator::chain(trunk::carried(nic), [nic]);
        for nic in nics.iter().flat_map(carried) {
            let name = tag.tap(short_id(nic.port_id.as_bytes()));
            if self.owners.get(&name).is_some_and(|owner| *owner != nic.port_id) {
                continue;
            }
            self.wanted.taps.remove(&name);
            self.owners.remove(&name);
            let host = self.host.as_mut().expect("invariant: opened by every caller");
            outcome = outcome.and(host.remove_port(&name).map_err(Error::from));
        }
        if self.sweep() {
            outcome = outcome.and(self.converge());
        }
        outcome
    }

    /// Stops wanting bridges that no tap and no router needs, those with the host's own address too, and groups that no
    /// tap needs; returns whether a bridge was among them.
    fn sweep(&mut self) -> bool {
        let HostNetwork { bridges, taps, groups, routers, .. } = &mut self.wanted;
        let before = bridges.len();
        let links = || routers.values().flat_map(|router| &router.links);
        bridges.retain(|name, _| {
            taps.values().any(|tap| tap.bridge == *name) || links().any(|(_, link)| link.bridge == *name)
        });
        groups.retain(|number, _| taps.values().any(|tap| tap.groups.contains(number)));
        self.owners.retain(|name, _| {
            bridges.contains_key(name)
                || taps.contains_key(name)
                || routers.contains_key(name)
                || links().any(|(link, _)| link == name)
        });
        bridges.len() < before
    }

    fn converge(&mut self) -> Result<(), Error> {
        let host = self.host.as_mut().expect("invariant: opened by every caller");
        let done = host.converge(&self.wanted).map_err(Error::from);
        if done.is_ok() {
            self.note_whole_routers()
        } else {
            self.converge_each_router()
        }
        done
    }
}

/// Whether links and bridges are the same, whatever may pass them.
fn is_same_but_filter(a: &HostNetwork, b: &HostNetwork) -> bool {
    a.bridges == b.bridges && places(a).eq(places(b))
}

/// Where each tap is.
fn places(
    network: &HostNetwork,
) -> impl Iterator<Item = (&InterfaceName, &InterfaceName, u32, &Option<Subport>)> {
    network.taps.iter().map(|(name, tap)| (name, &tap.bridge, tap.mtu, &tap.vlan))
}

/// A device's network, or what is left of it.
fn network_or_bare(surroundings: &Surroundings, nic: &NicWanted) -> NetworkWanted {
    let bare = || NetworkWanted {
        id: nic.network_id.clone(),
        mtu: nic.mtu.into(),
        host_addresses: Vec::new(),
        vni: None,
        remotes: Vec::new(),
        physical: None,
    };
    surroundings.networks.get(&nic.network_id).cloned().unwrap_or_else(bare)
}

fn network_of<'a>(surroundings: &'a Surroundings, nic: &NicWanted) -> Result<&'a NetworkWanted, Error> {
    surroundings.networks.get(&nic.network_id).ok_or_else(|| Error::NoNetwork(nic.network_id.clone()))
}

/// The tag of the cloud whose run directory this is.
pub(super) fn kept_tag(run: &Path) -> Option<OwnerTag> {
    fs::read_to_string(run.join(TAG_FILE)).ok()?.trim().parse().ok()
}

/// Forgets it.
pub(super) fn forget_tag(run: &Path) -> io::Result<()> {
    fs::remove_file(run.join(TAG_FILE))
}
