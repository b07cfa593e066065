//! The VXLAN device that networks share, and the VLAN-aware bridge that it is the only port of.
//!
//! The bridge learns nothing and is told nothing: what comes from a network of a VLAN can only go to the device, and what
//! comes from the device can only go to the network. Where frames go between hosts is told to the device, by network.

use std::collections::BTreeMap;

use super::setting::{set_bridge_reach, set_ipv6};
use super::{Error, Host};
use crate::names::link_mac;
use crate::netlink::{Known, Link, PortFlags, Request};
use crate::plan::{FabricOperation, Ipv6Reach, Observed, ObservedFabric};
use crate::spec::Fabric;

/// How the bridge treats the device.
const BY_VLAN: PortFlags =
    PortFlags { isolated: false, learning: false, neigh_suppress: false, vlan_tunnel: true };

impl Host {
    pub(super) fn carry_out_in_fabric(
        &mut self,
        fabric: &Fabric,
        operation: &FabricOperation,
    ) -> Result<(), Error> {
        let Fabric { bridge, device, local } = fabric;
        match operation {
            FabricOperation::Create => {
                self.execute([Request::create_aware_bridge(bridge, link_mac(bridge))])?;
                self.execute([self.alias(bridge)])?;
                set_bridge_reach(bridge, false, Ipv6Reach::Off)?;
                self.execute([Request::create_vxlan(device, link_mac(device), None, *local)])?;
                self.execute([self.alias(device)])?;
                set_ipv6(device, false)
            }
            FabricOperation::Configure { mtu } => {
                let master = self.existing(bridge)?;
                self.existing(device)?;
                self.execute([Request::configure(device, *mtu, Some(master))])?;
                self.execute([
                    Request::set_port_flags(device, BY_VLAN),
                    Request::configure(bridge, *mtu, None),
                ])
            }
            FabricOperation::Map { vlan, vni } => {
                let (bridge_index, index) = (self.existing(bridge)?, self.existing(device)?);
                self.execute([
                    Request::add_bridge_vlan(bridge, bridge_index, *vlan),
                    Request::add_tunnel_vlan(device, index, *vlan, *vni),
                ])
            }
            FabricOperation::Unmap { vlan, vni } => self.unmap(fabric, *vlan, *vni),
        }
    }

    /// What the network was told goes first: while it has its VLAN, there is something to see of it.
    fn unmap(&mut self, fabric: &Fabric, vlan: u16, vni: u32) -> Result<(), Error> {
        let Fabric { bridge, device, .. } = fabric;
        let (bridge_index, index) = (self.existing(bridge)?, self.existing(device)?);
        let known = self.links.known().map_err(Error::Link)?;
        let of_network = known.into_iter().filter(|(link, _)| *link == index);
        let forget = of_network.filter_map(|(_, known)| match known {
            Known::Flood(peer, Some(of)) if of == vni => {
                Some(Request::remove_flood(device, index, peer, Some(vni)))
            }
            Known::OnHost(mac, host, Some(of)) if of == vni => {
                Some(Request::forget_remote_mac(device, index, mac, host, Some(vni)))
            }
            _ => None,
        });
        let mut requests: Vec<Request> = forget.collect();
        requests.push(Request::remove_bridge_vlan(bridge, bridge_index, vlan));
        requests.push(Request::remove_tunnel_vlan(device, index, vlan));
        let refused = self.links.send(requests).map_err(Error::Link)?;
        let gone = |code: Option<i32>| code == Some(libc::ENOENT);
        refused
            .into_iter()
            .find(|error| !gone(error.refusal()))
            .map_or(Ok(()), |error| Err(Error::Link(error)))
    }

    /// Looks at both: nothing, unless both are there and of the kinds that they shall be.
    pub(super) fn observe_fabric(
        &mut self,
        observed: &mut Observed,
        links: &BTreeMap<String, Link>,
    ) -> Result<(), Error> {
        let [bridge, device] = self.tag.fabric();
        let link = |name: &str, kind: &str| {
            let link = links.get(name).filter(|link| link.kind == kind && link.is_shared);
            link.filter(|link| observed.fabric_links.contains(&link.name))
        };
        let (Some(bridge), Some(device)) = (link(&bridge, "bridge"), link(&device, "vxlan")) else {
            return Ok(());
        };
        let vlans = self.links.vlans().map_err(Error::Link)?;
        let none = BTreeMap::new();
        let [own, ports] = [bridge, device].map(|link| vlans.get(&link.index).unwrap_or(&none));
        // Half of one is no network's, and goes.
        let vni = |vlan, vni: Option<u32>| vni.filter(|_| own.contains_key(vlan)).unwrap_or_default();
        let vlans: BTreeMap<u16, u32> = ports.iter().map(|(vlan, of)| (*vlan, vni(vlan, *of))).collect();
        for port in observed.vxlans.values_mut() {
            if let Some(vlan) = port.vlan {
                port.vni = vlans.get(&vlan).copied().unwrap_or_default();
                port.local = device.vxlan.and_then(|(_, local)| local);
            }
        }
        observed.fabric = Some(ObservedFabric {
            local: device.vxlan.and_then(|(_, local)| local),
            mtu: bridge.mtu.min(device.mtu),
            is_ready: bridge.is_up
                && device.is_up
                && device.master == Some(bridge.index)
                && device.port.is_some_and(|flags| flags == BY_VLAN),
            vlans,
        });
        Ok(())
    }
}
