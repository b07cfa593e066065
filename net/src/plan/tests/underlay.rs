//! What joins bridges to other hosts and to physical networks, in the tests' fake host.

use super::*;
use crate::spec::{RemotePort, Uplink, Vxlan};
use std::net::{IpAddr, Ipv4Addr};

impl FakeHost {
    pub(super) fn forget_what_is_behind(&mut self, vxlan: &str) {
        if let Some(vxlan) = self.0.vxlans.get_mut(vxlan) {
            vxlan.macs.clear();
            vxlan.neighbours.clear();
            vxlan.is_told = false;
        }
    }

    pub(super) fn carry_out_in_tunnel(
        &mut self,
        tunnel: &Tunnel,
        operation: &TunnelOperation,
    ) -> Result<(), &'static str> {
        let name = tunnel.port.as_str();
        let is_taken = self.has_link(name);
        let made = match operation {
            TunnelOperation::Create { vni, local } => Some((*vni, Some(*local), None)),
            TunnelOperation::Join { bridge, vlan } => {
                let fabric = self.0.fabric.as_ref().ok_or("no fabric")?;
                let [own, _] = TAG.fabric();
                (*bridge == own).then_some(()).ok_or("another bridge")?;
                Some((*fabric.vlans.get(vlan).ok_or("no such VLAN")?, fabric.local, Some(*vlan)))
            }
            _ => None,
        };
        if let Some((vni, local, vlan)) = made {
            if is_taken {
                return Err("exists");
            }
            let (peers, macs, neighbours, is_told, port) = Default::default();
            let vxlan = ObservedVxlan { vni, local, vlan, peers, macs, neighbours, is_told, port };
            self.0.vxlans.insert(name.to_owned(), vxlan);
            return Ok(());
        }
        let vxlan = self.0.vxlans.get_mut(name).ok_or("no device")?;
        let shared = vxlan.vlan.map(|_| (TAG.fabric()[1].clone(), vxlan.vni));
        (shared == tunnel.shared).then_some(()).ok_or("another device")?;
        match operation {
            TunnelOperation::Create { .. } | TunnelOperation::Join { .. } => unreachable!("returned above"),
            TunnelOperation::AddFlood(peer) => vxlan.peers.insert(*peer).then_some(()).ok_or("has it"),
            TunnelOperation::RemoveFlood(peer) => vxlan.peers.remove(peer).then_some(()).ok_or("has it not"),
            _ if vxlan.port.bridge.is_none() => Err("no port of a bridge"),
            TunnelOperation::BeTold { .. } => {
                vxlan.is_told = true;
                Ok(())
            }
            TunnelOperation::PlaceMac(mac, host) => {
                vxlan.macs.insert(*mac, *host);
                Ok(())
            }
            TunnelOperation::ForgetMac(mac, host) => {
                (vxlan.macs.remove(mac) == Some(*host)).then_some(()).ok_or("has it not")
            }
            TunnelOperation::AnswerFor { bridge, address, mac } => {
                (vxlan.port.bridge.as_ref() == Some(bridge)).then_some(()).ok_or("another bridge")?;
                vxlan.neighbours.insert(*address, *mac);
                Ok(())
            }
            TunnelOperation::AnswerNoMore { bridge, address } => {
                (vxlan.port.bridge.as_ref() == Some(bridge)).then_some(()).ok_or("another bridge")?;
                vxlan.neighbours.remove(address).map(drop).ok_or("has it not")
            }
        }
    }

    pub(super) fn carry_out_in_fabric(
        &mut self,
        fabric: &Fabric,
        operation: &FabricOperation,
    ) -> Result<(), &'static str> {
        if matches!(operation, FabricOperation::Create) {
            if !self.0.fabric_links.is_empty() {
                return Err("exists");
            }
            self.0.fabric_links = [fabric.bridge.clone(), fabric.device.clone()].into();
            self.0.fabric = Some(ObservedFabric { local: Some(fabric.local), ..ObservedFabric::default() });
            return Ok(());
        }
        let present = self.0.fabric.as_mut().ok_or("no fabric")?;
        match operation {
            FabricOperation::Create => unreachable!("returned above"),
            FabricOperation::Configure { mtu } => (present.mtu, present.is_ready) = (*mtu, true),
            FabricOperation::Map { vlan, vni } => {
                let is_free =
                    !present.vlans.contains_key(vlan) && !present.vlans.values().any(|of| of == vni);
                (is_free && present.is_ready).then_some(()).ok_or("has it")?;
                present.vlans.insert(*vlan, *vni);
            }
            FabricOperation::Unmap { vlan, vni } => {
                (present.vlans.remove(vlan) == Some(*vni)).then_some(()).ok_or("has it not")?;
            }
        }
        Ok(())
    }

    /// The bridge takes networks' parts along.
    pub(super) fn delete_fabric_link(&mut self, name: &str) {
        if self.0.fabric_links.remove(name) {
            self.0.fabric = None;
            if name == TAG.fabric()[0] {
                self.0.vxlans.retain(|_, port| port.vlan.is_none());
            }
        }
    }

    pub(super) fn carry_out_at_uplink(
        &mut self,
        name: &str,
        operation: &UplinkOperation,
    ) -> Result<(), &'static str> {
        match operation {
            UplinkOperation::Attach { bridge } => {
                self.0.bridges.get(bridge).ok_or("no bridge")?;
                let port = self.0.foreign.get_mut(name).ok_or("no interface")?;
                (port.bridge, port.is_up) = (Some(bridge.clone()), true);
            }
            UplinkOperation::Release => {
                self.0.foreign.get_mut(name).ok_or("no interface")?.bridge = None;
            }
            UplinkOperation::SetUp => self.0.foreign.get_mut(name).ok_or("no interface")?.is_up = true,
            UplinkOperation::CreateVlan { interface, vlan } => {
                if self.has_link(name) {
                    return Err("exists");
                }
                self.0.foreign.get(interface).ok_or("no interface")?;
                let port = ObservedPort::default();
                let device = ObservedVlan { interface: Some(interface.clone()), vlan: *vlan, port };
                self.0.vlans.insert(name.to_owned(), device);
            }
        }
        Ok(())
    }
}

fn vlan_name(bridge: &str) -> String {
    bridge.replacen("wb", "wv", 1)
}

fn peers() -> impl Strategy<Value = BTreeSet<Ipv4Addr>> {
    btree_set((1..4_u8).prop_map(|last| Ipv4Addr::new(192, 0, 2, last)), 0..3)
}

fn mac() -> impl Strategy<Value = [u8; 6]> {
    (0..4_u8).prop_map(|last| [2, 0, 0, 0, 0, last])
}

fn host() -> impl Strategy<Value = Ipv4Addr> {
    (1..4_u8).prop_map(|last| Ipv4Addr::new(192, 0, 2, last))
}

fn address() -> impl Strategy<Value = IpAddr> {
    select(["10.0.0.7", "10.0.0.8", "2001:db8::7"].map(|address| address.parse().unwrap()).to_vec())
}

/// No two ports of one network have the same address.
fn remotes() -> impl Strategy<Value = BTreeMap<[u8; 6], RemotePort>> {
    let port =
        (host(), btree_set(address(), 0..3)).prop_map(|(host, addresses)| RemotePort { host, addresses });
    btree_map(mac(), port, 0..3).prop_map(|mut remotes| {
        let mut taken = BTreeSet::new();
        for port in remotes.values_mut() {
            port.addresses.retain(|address| taken.insert(*address));
        }
        remotes
    })
}

pub(super) fn wanted_vxlan(bridge: &str) -> impl Strategy<Value = Vxlan> + use<> {
    let name = vxlan_name(bridge);
    (1..3_u32, peers(), remotes()).prop_map(move |(vni, peers, remotes)| Vxlan {
        name: name.clone(),
        vni,
        local: Ipv4Addr::new(192, 0, 2, 9),
        peers,
        remotes,
    })
}

/// Each bridge's interface is its own where frames travel untagged.
pub(super) fn wanted_uplink(bridge: &str) -> impl Strategy<Value = Uplink> + use<> {
    let flat = Uplink::Flat { interface: format!("flat{}", &bridge[bridge.len() - 1..]) };
    let device = vlan_name(bridge);
    let vlan = (select(vec!["eth0", "eth1"]), 1..4_u16).prop_map(move |(interface, vlan)| Uplink::Vlan {
        interface: interface.to_owned(),
        vlan,
        device: device.clone(),
    });
    prop_oneof![Just(flat), vlan]
}

prop_compose! {
    pub(super) fn observed_vxlan()(
        vni in 1..3_u32,
        local in option::of(Just(Ipv4Addr::new(192, 0, 2, 9))),
        peers in peers(),
        macs in btree_map(mac(), host(), 0..3),
        neighbours in btree_map(address(), mac(), 0..3),
        is_told in any::<bool>(),
        port in observed_port(),
    ) -> ObservedVxlan {
        let is_port = port.bridge.is_some();
        let (macs, neighbours) = if is_port { (macs, neighbours) } else { Default::default() };
        ObservedVxlan { vni, local, vlan: None, peers, macs, neighbours, is_told: is_told && is_port, port }
    }
}

fn tunnel_address() -> impl Strategy<Value = Ipv4Addr> {
    (9..11_u8).prop_map(|last| Ipv4Addr::new(192, 0, 2, last))
}

pub(super) fn wanted_fabric() -> impl Strategy<Value = Fabric> {
    let [bridge, device] = TAG.fabric();
    tunnel_address().prop_map(move |local| Fabric { bridge: bridge.clone(), device: device.clone(), local })
}

/// Where networks share a device, each has a name and an identifier of its own there.
pub(super) fn share(wanted: &mut HostNetwork) {
    if wanted.fabric.is_none() {
        return;
    }
    let mut taken = BTreeSet::new();
    for (name, bridge) in &mut wanted.bridges {
        if let Some(vxlan) = &mut bridge.vxlan {
            vxlan.name = name.replacen("wb", "ws", 1);
            vxlan.vni = (vxlan.vni..).find(|vni| taken.insert(*vni)).unwrap();
        }
    }
}

type ObservedShared = (Option<ObservedFabric>, BTreeSet<String>, BTreeMap<String, ObservedVxlan>);

/// A shared device and its networks' parts in any state, or what is left of them.
pub(super) fn observed_fabric() -> impl Strategy<Value = ObservedShared> {
    let names: Vec<String> = bridge_names().iter().map(|name| name.replacen("wb", "ws", 1)).collect();
    let parts = btree_map(select(names), (observed_vxlan(), 1..5_u16), 0..3);
    let vlans = btree_map(1..5_u16, 0..5_u32, 0..4);
    let fabric = (option::of(tunnel_address()), mtu(), any::<bool>(), vlans);
    let links = subsequence(TAG.fabric().to_vec(), 0..=2);
    (fabric, links, parts).prop_map(|((local, mtu, is_ready, mut vlans), links, mut parts)| {
        let links: BTreeSet<String> = links.into_iter().collect();
        // A network has one VLAN; what is no network's is many's.
        let mut taken = BTreeSet::new();
        vlans.retain(|_, vni| *vni == 0 || taken.insert(*vni));
        let is_whole = links.len() == 2;
        if !is_whole {
            vlans.clear();
        }
        let mut used = BTreeSet::new();
        parts.retain(|_, (_, vlan)| links.contains(&TAG.fabric()[0]) && used.insert(*vlan));
        let parts = parts.into_iter().map(|(name, (mut port, vlan))| {
            let local = local.filter(|_| is_whole);
            (port.vlan, port.local, port.vni) = (Some(vlan), local, *vlans.get(&vlan).unwrap_or(&0));
            (name, port)
        });
        let parts = parts.collect();
        let fabric = is_whole.then_some(ObservedFabric { local, mtu, is_ready, vlans });
        (fabric, links, parts)
    })
}

pub(super) fn observed_vlans() -> impl Strategy<Value = BTreeMap<String, ObservedVlan>> {
    let names: Vec<String> = bridge_names().iter().map(|name| vlan_name(name)).collect();
    let interface = option::of(select(vec!["eth0".to_owned(), "eth1".to_owned()]));
    let vlan = (interface, 1..4_u16, observed_port()).prop_map(|(interface, vlan, port)| ObservedVlan {
        interface,
        vlan,
        port,
    });
    btree_map(select(names), vlan, 0..3)
}

/// All interfaces that are ever wanted, and some that never are, in bridges of ours or not.
pub(super) fn foreign() -> impl Strategy<Value = BTreeMap<String, ObservedPort>> {
    let names = ["lo", "br0", "eth0", "eth1", "flat0", "flat1", "flat2"];
    prop::collection::vec(observed_port(), names.len())
        .prop_map(move |ports| names.iter().map(|name| (*name).to_owned()).zip(ports).collect())
}

/// Whether an interface is one that the bridge shall be joined by.
pub(super) fn names(bridge: &Bridge, name: &str) -> bool {
    matches!(
        &bridge.uplink,
        Some(Uplink::Flat { interface } | Uplink::Vlan { interface, .. }) if interface == name
    )
}

/// Whether nothing was done to an interface that nobody named, but that it left a bridge of ours.
pub(super) fn is_as_it_was(before: &ObservedPort, after: &ObservedPort, wanted: &HostNetwork) -> bool {
    let left = before.bridge.is_some() && after.bridge.is_none();
    let may_leave = before.bridge.as_ref().is_some_and(|name| {
        wanted.bridges.get(name).is_none_or(|bridge| matches!(bridge.uplink, Some(Uplink::Flat { .. })))
    });
    let same = ObservedPort { bridge: after.bridge.clone(), ..before.clone() } == *after;
    same && (before.bridge == after.bridge || (left && may_leave))
}
