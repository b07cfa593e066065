//! What a VXLAN device is told: where frames go that are for ports of the network on other hosts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use super::{ObservedPort, Operation, plan_port};
use crate::spec::{InterfaceName, Vxlan};

/// A VXLAN device of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedVxlan {
    /// The network identifier.
    pub vni: u32,
    /// This host's tunnel address.
    pub local: Option<Ipv4Addr>,
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

impl ObservedVxlan {
    /// Whether it is this device: identifier and own address are fixed when it is made.
    pub(super) fn is_same(&self, wanted: &Vxlan) -> bool {
        self.vni == wanted.vni && self.local == Some(wanted.local)
    }
}

/// One step about a VXLAN device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TunnelOperation {
    /// Make it with our alias; it is down.
    Create {
        /// The network identifier.
        vni: u32,
        /// This host's tunnel address.
        local: Ipv4Addr,
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

/// The steps about one device; absent, it is made.
pub(super) fn plan_vxlan(
    operations: &mut Vec<Operation>,
    bridge: &str,
    mtu: u32,
    vxlan: &Vxlan,
    present: Option<&ObservedVxlan>,
) {
    let mut say =
        |operation: TunnelOperation| operations.push(Operation::Tunnel(vxlan.name.clone(), operation));
    if present.is_none() {
        say(TunnelOperation::Create { vni: vxlan.vni, local: vxlan.local });
    }
    let empty = BTreeSet::new();
    let peers = present.map_or(&empty, |present| &present.peers);
    peers.difference(&vxlan.peers).for_each(|peer| say(TunnelOperation::RemoveFlood(*peer)));
    vxlan.peers.difference(peers).for_each(|peer| say(TunnelOperation::AddFlood(*peer)));
    // The bridge can be told of a port that it has, and only then.
    plan_port(operations, &vxlan.name, bridge, mtu, present.map(|present| &present.port));
    let is_port = present.is_some_and(|present| present.port.bridge.as_deref() == Some(bridge));
    plan_remotes(operations, bridge, vxlan, present.filter(|_| is_port));
}

fn plan_remotes(
    operations: &mut Vec<Operation>,
    bridge: &str,
    vxlan: &Vxlan,
    present: Option<&ObservedVxlan>,
) {
    let mut say =
        |operation: TunnelOperation| operations.push(Operation::Tunnel(vxlan.name.clone(), operation));
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
