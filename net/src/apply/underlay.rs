//! What joins bridges to other hosts and to physical networks: VXLAN devices, VLAN devices, interfaces that are not ours.

use super::setting::{know_ipv6_neighbours, set_ipv6};
use super::{Error, Host, is_link_local};
use crate::names::{LinkKind, link_mac};
use crate::netlink::{self, PortFlags, Request};
use crate::plan::{Tunnel, TunnelOperation, UplinkOperation};
use crate::tap;

/// How a bridge treats a VXLAN device of ours.
pub(super) const TOLD: PortFlags =
    PortFlags { isolated: false, learning: false, neigh_suppress: true, vlan_tunnel: false };

impl Host {
    pub(super) fn carry_out_in_tunnel(
        &mut self,
        tunnel: &Tunnel,
        operation: &TunnelOperation,
    ) -> Result<(), Error> {
        let name = tunnel.port.as_str();
        match operation {
            TunnelOperation::Create { vni, local } => {
                self.check_name(LinkKind::Vxlan, name)?;
                self.execute([Request::create_vxlan(name, link_mac(name), Some(*vni), *local)])?;
                self.execute([self.alias(name)])?;
                return set_ipv6(name, false);
            }
            TunnelOperation::Join { bridge, vlan } => {
                self.check_name(LinkKind::Shared, name)?;
                let parent = self.existing(bridge)?;
                self.execute([Request::create_vlan(name, link_mac(name), parent, *vlan)])?;
                self.execute([self.alias(name)])?;
                return set_ipv6(name, false);
            }
            _ => {}
        }
        let index = self.existing(name)?;
        let (device, at, vni) = match &tunnel.shared {
            Some((device, vni)) => (device.as_str(), self.existing(device)?, Some(*vni)),
            None => (name, index, None),
        };
        match operation {
            TunnelOperation::Create { .. } | TunnelOperation::Join { .. } => Ok(()),
            TunnelOperation::BeTold { bridge } => {
                self.existing(bridge)?;
                know_ipv6_neighbours(bridge)?;
                self.execute([Request::set_port_flags(name, TOLD)])
            }
            TunnelOperation::AddFlood(peer) => self.execute([Request::add_flood(device, at, *peer, vni)]),
            TunnelOperation::RemoveFlood(peer) => {
                self.execute([Request::remove_flood(device, at, *peer, vni)])
            }
            TunnelOperation::PlaceMac(mac, host) => self.execute([
                Request::set_remote_mac(device, at, *mac, *host, vni),
                Request::set_port_mac(name, index, *mac),
            ]),
            TunnelOperation::ForgetMac(mac, host) => forgotten(self.execute([
                Request::forget_remote_mac(device, at, *mac, *host, vni),
                Request::forget_port_mac(name, index, *mac),
            ])),
            TunnelOperation::AnswerFor { bridge, address, mac } => {
                let bridge_index = self.existing(bridge)?;
                self.execute([Request::set_neighbour(bridge, bridge_index, *address, *mac)])
            }
            TunnelOperation::AnswerNoMore { bridge, address } => {
                let bridge_index = self.existing(bridge)?;
                forgotten(self.execute([Request::forget_neighbour(bridge, bridge_index, *address)]))
            }
        }
    }

    pub(super) fn carry_out_at_uplink(
        &mut self,
        name: &str,
        operation: &UplinkOperation,
    ) -> Result<(), Error> {
        match operation {
            UplinkOperation::Attach { bridge } => {
                let interface = self.interface(name)?;
                let master = self.existing(bridge)?;
                self.check_bridge(&interface)?;
                self.check_addresses(&interface)?;
                self.execute([Request::set_bridge(name, master), Request::set_up(name, true)])?;
                tap::settle(name).map_err(Error::Tap)
            }
            UplinkOperation::Release => {
                let interface = self.interface(name)?;
                self.check_bridge(&interface)?;
                self.execute([Request::set_bridge(name, 0)])
            }
            UplinkOperation::SetUp => {
                self.interface(name)?;
                self.execute([Request::set_up(name, true)])?;
                tap::settle(name).map_err(Error::Tap)
            }
            UplinkOperation::CreateVlan { interface, vlan } => {
                self.check_name(LinkKind::Vlan, name)?;
                let parent = self.interface(interface)?.index;
                self.execute([Request::create_vlan(name, link_mac(name), parent, *vlan)])?;
                self.execute([self.alias(name)])?;
                set_ipv6(name, false)
            }
        }
    }

    /// An interface that is not ours.
    fn interface(&mut self, name: &str) -> Result<netlink::Link, Error> {
        let link = self.links.link(name).map_err(Error::Link)?;
        let link = link.ok_or_else(|| Error::NoInterface(name.to_owned()))?;
        if self.owned_kind(&link).is_some() {
            return Err(Error::NotPhysical(name.to_owned()));
        }
        Ok(link)
    }

    /// Refuses an interface that is in somebody else's bridge.
    fn check_bridge(&mut self, interface: &netlink::Link) -> Result<(), Error> {
        let Some(master) = interface.master else { return Ok(()) };
        let links = self.links.links().map_err(Error::Link)?;
        let master = links.into_values().find(|link| link.index == master);
        match master.filter(|master| self.owned_kind(master).is_none()) {
            Some(other) => Err(Error::InterfaceInUse { name: interface.name.clone(), by: other.name }),
            None => Ok(()),
        }
    }

    /// Refuses an interface that the host itself uses: as a port of a bridge it would be reached there no more.
    fn check_addresses(&mut self, interface: &netlink::Link) -> Result<(), Error> {
        let addresses = self.links.addresses().map_err(Error::Link)?.into_iter();
        let mut own = addresses.filter(|(index, _)| *index == interface.index).map(|(_, address)| address);
        match own.find(|address| !is_link_local(*address)) {
            Some(by) => Err(Error::InterfaceInUse { name: interface.name.clone(), by: by.to_string() }),
            None => Ok(()),
        }
    }
}

/// What was forgotten already is forgotten.
pub(super) fn forgotten(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(Error::Link(error)) if error.refusal() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}
