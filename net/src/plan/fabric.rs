//! The VXLAN device that networks share: it is the only port of a VLAN-aware bridge, and each network is a VLAN there.
//!
//! Which VLAN a network is matters to this host alone: what is there stays, and the rest get what is free.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::{Observed, ObservedVxlan, Operation};
use crate::spec::{Fabric, HostNetwork, Vxlan};

/// What follows the last VLAN identifier that frames can have: the kernel refuses it, with more networks than that.
const NO_VLAN: u16 = 4095;

/// The device and its bridge, both as they are made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedFabric {
    /// This host's tunnel address.
    pub local: Option<Ipv4Addr>,
    /// MTU in bytes: the smaller one's.
    pub mtu: u32,
    /// Both are up, and the device is a port of the bridge that gives VLANs to networks.
    pub is_ready: bool,
    /// The VLANs, each with the network identifier that frames of it have between hosts.
    pub vlans: BTreeMap<u16, u32>,
}

/// One step about the device and its bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FabricOperation {
    /// Make both with our alias; they are down.
    Create,
    /// Make the device a port of the bridge and set both up.
    Configure {
        /// MTU in bytes.
        mtu: u32,
    },
    /// Let a network have a VLAN.
    Map {
        /// The VLAN.
        vlan: u16,
        /// The network identifier.
        vni: u32,
    },
    /// Let a VLAN be no network's, and forget what the network was told.
    Unmap {
        /// The VLAN.
        vlan: u16,
        /// The network identifier.
        vni: u32,
    },
}

/// What is there of it, if it is as it shall be.
pub(super) fn kept<'a>(wanted: &HostNetwork, observed: &'a Observed) -> Option<&'a ObservedFabric> {
    let fabric = wanted.fabric.as_ref()?;
    let has_links = [&fabric.bridge, &fabric.device].map(|link| observed.fabric_links.contains(link));
    let present = observed.fabric.as_ref().filter(|present| present.local == Some(fabric.local));
    present.filter(|_| has_links == [true; 2])
}

/// Whether a network's part of the device is as it shall be.
pub(super) fn is_mapped(present: &ObservedVxlan, wanted: &Vxlan, fabric: &ObservedFabric) -> bool {
    let vni = present.vlan.and_then(|vlan| fabric.vlans.get(&vlan));
    present.vni == wanted.vni && vni == Some(&wanted.vni)
}

/// The steps about both and about networks' VLANs: the VLAN of each network.
pub(super) fn plan_fabric(
    operations: &mut Vec<Operation>,
    fabric: &Fabric,
    wanted: &HostNetwork,
    observed: &Observed,
) -> BTreeMap<u32, u16> {
    let mut say = |operation| operations.push(Operation::Fabric(fabric.clone(), operation));
    let present = kept(wanted, observed);
    if present.is_none() {
        say(FabricOperation::Create);
    }
    let mtu = wanted.bridges.values().filter(|bridge| bridge.vxlan.is_some()).map(|bridge| bridge.mtu).max();
    // Without a network it carries none.
    let mtu = mtu.or(present.map(|present| present.mtu)).unwrap_or(super::tunnel::LEAST_MTU);
    if !present.is_some_and(|present| present.is_ready && present.mtu == mtu) {
        say(FabricOperation::Configure { mtu });
    }
    let networks = || wanted.bridges.values().filter_map(|bridge| bridge.vxlan.as_ref());
    let none = BTreeMap::new();
    let vlans = present.map_or(&none, |present| &present.vlans);
    let stays = |vxlan: &Vxlan| {
        let port = observed.vxlans.get(&vxlan.name)?;
        port.vlan.filter(|_| present.is_some_and(|present| is_mapped(port, vxlan, present)))
    };
    let mut given: BTreeMap<u32, u16> =
        networks().filter_map(|vxlan| Some((vxlan.vni, stays(vxlan)?))).collect();
    for (vlan, vni) in vlans.iter().filter(|(vlan, vni)| given.get(*vni) != Some(*vlan)) {
        say(FabricOperation::Unmap { vlan: *vlan, vni: *vni });
    }
    let taken: BTreeSet<u16> = given.values().copied().collect();
    let mut free = (1..NO_VLAN).filter(|vlan| !taken.contains(vlan));
    for vxlan in networks() {
        given.entry(vxlan.vni).or_insert_with(|| {
            let vlan = free.next().unwrap_or(NO_VLAN);
            say(FabricOperation::Map { vlan, vni: vxlan.vni });
            vlan
        });
    }
    given
}
