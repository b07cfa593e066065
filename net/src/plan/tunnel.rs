//! What a VXLAN device is told: where frames go that are for ports of the network on other hosts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use super::fabric::{is_mapped, kept, plan_fabric};
use super::{Observed, ObservedPort, Operation, plan_port};
use crate::spec::{HostNetwork, InterfaceName, Vxlan};

/// What every link must carry (RFC 791), in bytes.
pub(super) const LEAST_MTU: u32 = 576;

/// A VXLAN device of ours, or a network's part of the one that networks share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedVxlan {
    /// The network identifier; 0 of a part of the shared one that is not any network's.
    pub vni: u32,
    /// This host's tunnel address.
    pub local: Option<Ipv4Addr>,
    /// The network's VLAN, if the device is shared.
    pub vlan: Option<u16>,
    /// The tunnel addresses it floods to.
    pub peers: BTreeSet<Ipv4Addr>,
    /// The MACs on other hosts, each with its host; only those that its bridge finds here, too.
    pub macs: BTreeMap<[u8; 6], Ipv4Addr>,
    /// The addresses that its bridge answers for, each with its MAC.
    pub neighbours: BTreeMap<IpAddr, [u8; 6]>,
    /// It learns nothing, and its bridge answers in place of what is behind it.
    pub is_told: bool,
    /// It as a port.
    pub port: ObservedPort,
}

/// Whether it is the device that is wanted: what is fixed when it is made.
fn is_same(present: &ObservedVxlan, vxlan: &Vxlan, wanted: &HostNetwork, observed: &Observed) -> bool {
    match &wanted.fabric {
        None => present.vlan.is_none() && present.vni == vxlan.vni && present.local == Some(vxlan.local),
        Some(_) => kept(wanted, observed).is_some_and(|fabric| is_mapped(present, vxlan, fabric)),
    }
}

/// A network's way to other hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// The device that is a port of the network's bridge.
    pub port: InterfaceName,
    /// If networks share their VXLAN device: that, and the network's identifier.
    pub shared: Option<(InterfaceName, u32)>,
}

/// One step about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TunnelOperation {
    /// Make a VXLAN device with our alias; it is down.
    Create {
        /// The network identifier.
        vni: u32,
        /// This host's tunnel address.
        local: Ipv4Addr,
    },
    /// Make a device of the network's VLAN with our alias, on the shared one's bridge; it is down.
    Join {
        /// The bridge.
        bridge: InterfaceName,
        /// The VLAN.
        vlan: u16,
    },
    /// Have its bridge learn nothing from it, and answer in place of what is behind it.
    BeTold {
        /// The device's bridge.
        bridge: InterfaceName,
    },
    /// Let it flood to another host.
    AddFlood(Ipv4Addr),
    /// Stop it from flooding to another host.
    RemoveFlood(Ipv4Addr),
    /// Send what is for a MAC to a host.
    PlaceMac([u8; 6], Ipv4Addr),
    /// Forget the MAC that is on a host.
    ForgetMac([u8; 6], Ipv4Addr),
    /// Answer who asks for an address.
    AnswerFor {
        /// The device's bridge, which answers.
        bridge: InterfaceName,
        /// The address.
        address: IpAddr,
        /// Its MAC.
        mac: [u8; 6],
    },
    /// Answer for an address no more.
    AnswerNoMore {
        /// The device's bridge.
        bridge: InterfaceName,
        /// The address.
        address: IpAddr,
    },
}

/// The devices that no bridge wants, or not as they are; a shared one goes with its bridge and its networks' parts.
pub(super) fn superfluous<'a>(wanted: &HostNetwork, observed: &'a Observed) -> Vec<&'a InterfaceName> {
    let networks: BTreeMap<&str, &Vxlan> = wanted
        .bridges
        .values()
        .filter_map(|bridge| bridge.vxlan.as_ref().map(|vxlan| (vxlan.name.as_str(), vxlan)))
        .collect();
    let stays = |(name, present): &(&InterfaceName, &ObservedVxlan)| {
        networks.get(name.as_str()).is_some_and(|vxlan| is_same(present, vxlan, wanted, observed))
    };
    let ports = observed.vxlans.iter().filter(|found| !stays(found)).map(|(name, _)| name);
    let fabric = observed.fabric_links.iter().filter(|_| kept(wanted, observed).is_none());
    ports.chain(fabric).collect()
}

/// The steps about all networks' ways to other hosts.
pub(super) fn plan_tunnels(operations: &mut Vec<Operation>, wanted: &HostNetwork, observed: &Observed) {
    let fabric = wanted.fabric.as_ref();
    let vlans = fabric.map(|fabric| plan_fabric(operations, fabric, wanted, observed));
    for (bridge, vxlan, mtu) in wanted
        .bridges
        .iter()
        .filter_map(|(name, bridge)| Some((name.as_str(), bridge.vxlan.as_ref()?, bridge.mtu)))
    {
        let present = observed.vxlans.get(&vxlan.name);
        let present = present.filter(|present| is_same(present, vxlan, wanted, observed));
        let shared = fabric.map(|fabric| (fabric.device.clone(), vxlan.vni));
        let tunnel = Tunnel { port: vxlan.name.clone(), shared };
        if present.is_none() {
            let vlan = vlans.as_ref().and_then(|vlans| vlans.get(&vxlan.vni));
            let make = match (fabric, vlan) {
                (Some(fabric), Some(vlan)) => {
                    TunnelOperation::Join { bridge: fabric.bridge.clone(), vlan: *vlan }
                }
                _ => TunnelOperation::Create { vni: vxlan.vni, local: vxlan.local },
            };
            operations.push(Operation::Tunnel(tunnel.clone(), make));
        }
        plan_vxlan(operations, (bridge, mtu), vxlan, &tunnel, present);
    }
}

/// What one is told.
fn plan_vxlan(
    operations: &mut Vec<Operation>,
    (bridge, mtu): (&str, u32),
    vxlan: &Vxlan,
    tunnel: &Tunnel,
    present: Option<&ObservedVxlan>,
) {
    let mut say = |operation| operations.push(Operation::Tunnel(tunnel.clone(), operation));
    let empty = BTreeSet::new();
    let peers = present.map_or(&empty, |present| &present.peers);
    peers.difference(&vxlan.peers).for_each(|peer| say(TunnelOperation::RemoveFlood(*peer)));
    vxlan.peers.difference(peers).for_each(|peer| say(TunnelOperation::AddFlood(*peer)));
    // The bridge can be told of a port that it has, and only then.
    plan_port(operations, &vxlan.name, bridge, mtu, present.map(|present| &present.port));
    let is_port = present.is_some_and(|present| present.port.bridge.as_deref() == Some(bridge));
    plan_remotes(operations, bridge, vxlan, tunnel, present.filter(|_| is_port));
}

fn plan_remotes(
    operations: &mut Vec<Operation>,
    bridge: &str,
    vxlan: &Vxlan,
    tunnel: &Tunnel,
    present: Option<&ObservedVxlan>,
) {
    let mut say = |operation| operations.push(Operation::Tunnel(tunnel.clone(), operation));
    if !present.is_some_and(|present| present.is_told) {
        say(TunnelOperation::BeTold { bridge: bridge.to_owned() });
    }
    let (no_macs, no_neighbours) = Default::default();
    let (macs, neighbours) =
        present.map_or((&no_macs, &no_neighbours), |present| (&present.macs, &present.neighbours));
    for (mac, host) in macs {
        if !vxlan.remotes.contains_key(mac) {
            say(TunnelOperation::ForgetMac(*mac, *host));
        }
    }
    for (mac, remote) in &vxlan.remotes {
        if macs.get(mac) != Some(&remote.host) {
            say(TunnelOperation::PlaceMac(*mac, remote.host));
        }
    }
    let wanted: BTreeMap<IpAddr, [u8; 6]> = vxlan
        .remotes
        .iter()
        .flat_map(|(mac, remote)| remote.addresses.iter().map(|address| (*address, *mac)))
        .collect();
    for address in neighbours.keys().filter(|address| !wanted.contains_key(*address)) {
        say(TunnelOperation::AnswerNoMore { bridge: bridge.to_owned(), address: *address });
    }
    for (address, mac) in &wanted {
        if neighbours.get(address) != Some(mac) {
            let bridge = bridge.to_owned();
            say(TunnelOperation::AnswerFor { bridge, address: *address, mac: *mac });
        }
    }
}
