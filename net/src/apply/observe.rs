//! Looking at a host's network: what of it is ours, and how it is.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::{Error, Host, is_link_local};
use crate::names::LinkKind;
use crate::netlink::{Known, Link};
use crate::plan::{Observed, ObservedBridge, ObservedPort, ObservedVlan, ObservedVxlan};

impl Host {
    /// Looks at all that is ours.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn observe(&mut self) -> Result<Observed, Error> {
        let links = self.links.links().map_err(Error::Link)?;
        let names: BTreeMap<u32, &str> =
            links.values().map(|link| (link.index, link.name.as_str())).collect();
        let mut observed = Observed::default();
        for link in links.values() {
            self.note(&mut observed, link, &names);
        }
        for (index, address) in self.links.addresses().map_err(Error::Link)? {
            let bridge = names.get(&index).and_then(|name| observed.bridges.get_mut(*name));
            if let Some(bridge) = bridge.filter(|_| !is_link_local(address)) {
                bridge.addresses.insert(address);
            }
        }
        self.observe_fabric(&mut observed, &links)?;
        if !observed.vxlans.is_empty() {
            let [_, device] = self.tag.fabric();
            let shared = observed.vxlans.iter().filter(|(_, port)| port.vlan.is_some());
            let shared: BTreeMap<u32, String> = shared.map(|(name, port)| (port.vni, name.clone())).collect();
            let known = self.links.known().map_err(Error::Link)?;
            let named = known.iter().filter_map(|(index, known)| {
                let name = *names.get(index)?;
                let network = match known {
                    Known::Flood(_, vni) | Known::OnHost(_, _, vni) => vni.filter(|_| name == device),
                    _ => None,
                };
                Some((network.map_or(Some(name), |vni| shared.get(&vni).map(String::as_str))?, *known))
            });
            note_known(&mut observed, &named.collect::<Vec<_>>());
        }
        observed.routers = self.observe_routers()?;
        self.learn_filter()?;
        observed.filter.clone_from(&self.filter);
        let subports = observed.subports.iter().map(|(name, device)| (name, &device.port));
        let taps = observed.taps.iter().chain(subports);
        let bridges = taps.filter_map(|(name, port)| Some((name.clone(), port.bridge.clone()?)));
        self.bridges.extend(bridges);
        Ok(observed)
    }

    fn note(&self, observed: &mut Observed, link: &Link, names: &BTreeMap<u32, &str>) {
        let name = || link.name.clone();
        let named =
            |index: Option<u32>| index.and_then(|index| names.get(&index)).map(|name| (*name).to_owned());
        let port = ObservedPort { bridge: named(link.master), mtu: link.mtu, is_up: link.is_up };
        let Some(kind) = self.owned_kind(link) else {
            observed.foreign.insert(name(), port);
            return;
        };
        match (kind, link.kind.as_str(), link.vxlan, link.vlan) {
            (LinkKind::Bridge, "bridge", ..) => {
                let bridge = ObservedBridge { mtu: link.mtu, is_up: link.is_up, ..Default::default() };
                observed.bridges.insert(name(), bridge);
            }
            (LinkKind::Tap, "tun", ..) => {
                observed.taps.insert(name(), port);
            }
            (LinkKind::Tap, "vlan", _, Some(vlan)) => {
                let device = ObservedVlan { interface: named(link.parent), vlan, port };
                observed.subports.insert(name(), device);
            }
            (LinkKind::Router, "veth", ..) => {
                observed.router_links.insert(name(), port);
            }
            (LinkKind::Vxlan, "vxlan", Some((vni, local)), _) => {
                observed.vxlans.insert(name(), bare_vxlan(link, vni, local, None, port));
            }
            (LinkKind::Shared, "vlan", _, Some(vlan))
                if named(link.parent) == Some(self.tag.fabric()[0].clone()) =>
            {
                observed.vxlans.insert(name(), bare_vxlan(link, 0, None, Some(vlan), port));
            }
            (LinkKind::Fabric, ..) => {
                observed.fabric_links.insert(name());
            }
            (LinkKind::Vlan, "vlan", _, Some(vlan)) => {
                let device = ObservedVlan { interface: named(link.parent), vlan, port };
                observed.vlans.insert(name(), device);
            }
            _ => {
                observed.misshapen.insert(name());
            }
        }
    }
}

/// A network's way to other hosts, before it is known what it was told.
fn bare_vxlan(
    link: &Link,
    vni: u32,
    local: Option<Ipv4Addr>,
    vlan: Option<u16>,
    port: ObservedPort,
) -> ObservedVxlan {
    let (peers, macs, neighbours) = Default::default();
    let is_told = link.port.is_some_and(|flags| flags == super::underlay::TOLD);
    ObservedVxlan { vni, local, vlan, peers, macs, neighbours, is_told, port }
}

/// What our VXLAN devices are told. A MAC counts that both the device and its bridge know.
fn note_known(observed: &mut Observed, known: &[(&str, Known)]) {
    let mut behind: Vec<(&str, [u8; 6])> = Vec::new();
    let mut neighbours: BTreeMap<&str, BTreeMap<_, _>> = BTreeMap::new();
    for (name, known) in known {
        match known {
            Known::Flood(peer, _) => {
                observed.vxlans.get_mut(*name).map(|vxlan| vxlan.peers.insert(*peer));
            }
            Known::OnHost(mac, host, _) => {
                observed.vxlans.get_mut(*name).map(|vxlan| vxlan.macs.insert(*mac, *host));
            }
            Known::BehindPort(mac) => behind.push((name, *mac)),
            Known::Neighbour(address, mac) => {
                neighbours.entry(name).or_default().insert(*address, *mac);
            }
        }
    }
    behind.sort_unstable();
    for (name, vxlan) in &mut observed.vxlans {
        vxlan.macs.retain(|mac, _| behind.binary_search(&(name, *mac)).is_ok());
        let bridge = vxlan.port.bridge.as_deref();
        vxlan.neighbours = bridge.and_then(|bridge| neighbours.remove(bridge)).unwrap_or_default();
    }
}
