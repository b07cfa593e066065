//! A bridge that is aware of VLANs (IEEE 802.1Q), and the networks of a VXLAN device that are VLANs there.

use std::collections::BTreeMap;

use netlink_packet_core::NlasIterator;
use netlink_packet_route::link::{
    AfSpecBridge, BridgeFlag, BridgeVlanInfo, BridgeVlanInfoFlags, BridgeVlanTunnelInfo, InfoBridge,
    LinkAttribute, LinkExtentMask, LinkMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Client, Error, LINK_HEADER_SIZE, Request, parts_of, word};

const IFLA_AF_SPEC: u16 = 26;
const IFLA_BRIDGE_VLAN_INFO: u16 = 2;
const IFLA_BRIDGE_VLAN_TUNNEL_INFO: u16 = 3;
const IFLA_BRIDGE_VLAN_TUNNEL_ID: u16 = 1;
const IFLA_BRIDGE_VLAN_TUNNEL_VID: u16 = 2;
const IFLA_BRIDGE_VLAN_TUNNEL_FLAGS: u16 = 3;
const RANGE_BEGIN: u16 = 1 << 3;
const RANGE_END: u16 = 1 << 4;

/// The VLANs of a link by their numbers, each with the VXLAN network that it is.
pub(crate) type Vlans = BTreeMap<u16, Option<u32>>;

impl Request {
    /// Makes a bridge as [`Request::create_bridge`] does that is aware of VLANs: what has no VLAN is nowhere.
    #[must_use]
    pub fn create_aware_bridge(name: &str, mac: [u8; 6]) -> Self {
        let more = vec![InfoBridge::VlanDefaultPvid(0), InfoBridge::VlanFiltering(true)];
        Self::create_bridge_with(name, mac, more)
    }

    /// Lets a bridge take part in a VLAN of its own, so that a VLAN device on it can.
    #[must_use]
    pub fn add_bridge_vlan(bridge: &str, index: u32, vlan: u16) -> Self {
        let subject = format!("add VLAN {vlan} to {bridge}");
        Self { subject, message: RouteNetlinkMessage::SetLink(own_vlan(index, vlan)), flags: 0 }
    }

    /// Lets a bridge have no part in a VLAN of its own any more.
    #[must_use]
    pub fn remove_bridge_vlan(bridge: &str, index: u32, vlan: u16) -> Self {
        let subject = format!("remove VLAN {vlan} from {bridge}");
        Self { subject, message: RouteNetlinkMessage::DelLink(own_vlan(index, vlan)), flags: 0 }
    }

    /// Lets a port that is a VXLAN device have a network as a VLAN of its bridge's.
    #[must_use]
    pub fn add_tunnel_vlan(port: &str, index: u32, vlan: u16, vni: u32) -> Self {
        let tunnel = vec![
            BridgeVlanTunnelInfo::Id(vni),
            BridgeVlanTunnelInfo::Vid(vlan),
            BridgeVlanTunnelInfo::Flags(BridgeVlanInfoFlags::empty()),
        ];
        let parts = vec![vlan_info(vlan), AfSpecBridge::VlanTunnelInfo(tunnel)];
        Self {
            subject: format!("add VLAN {vlan} to {port} for VXLAN {vni}"),
            message: RouteNetlinkMessage::SetLink(of_bridge(index, parts)),
            flags: 0,
        }
    }

    /// Lets a port have a VLAN, and the network that it is, no more.
    #[must_use]
    pub fn remove_tunnel_vlan(port: &str, index: u32, vlan: u16) -> Self {
        Self {
            subject: format!("remove VLAN {vlan} from {port}"),
            message: RouteNetlinkMessage::DelLink(of_bridge(index, vec![vlan_info(vlan)])),
            flags: 0,
        }
    }
}

impl Client {
    /// The VLANs of bridges and of their ports, by the links' indices.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub(crate) fn vlans(&mut self) -> Result<BTreeMap<u32, Vlans>, Error> {
        let mut filter = LinkMessage::default();
        filter.header.interface_family = AddressFamily::Bridge;
        filter.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::Brvlan]));
        let received = self.dump("VLANs of bridges", RouteNetlinkMessage::GetLink(filter))?;
        Ok(received.iter().filter_map(|body| read_vlans(body)).collect())
    }
}

fn vlan_info(vlan: u16) -> AfSpecBridge {
    AfSpecBridge::VlanInfo(BridgeVlanInfo { flags: BridgeVlanInfoFlags::empty(), vid: vlan })
}

fn own_vlan(index: u32, vlan: u16) -> LinkMessage {
    of_bridge(index, vec![AfSpecBridge::Flags(BridgeFlag::LowerDev), vlan_info(vlan)])
}

fn of_bridge(index: u32, parts: Vec<AfSpecBridge>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.interface_family = AddressFamily::Bridge;
    message.header.index = index;
    message.attributes.push(LinkAttribute::AfSpecBridge(parts));
    message
}

/// A link's VLANs. The networks that they are come as ranges where both numbers count on.
fn read_vlans(body: &[u8]) -> Option<(u32, Vlans)> {
    let index = word(body.get(4..8)?)?;
    let parts = parts_of(body.get(LINK_HEADER_SIZE..)?);
    let mut vlans = Vlans::new();
    let mut begun = None;
    for nla in NlasIterator::new(parts.get(&IFLA_AF_SPEC)?.as_slice()).flatten() {
        match nla.kind() {
            IFLA_BRIDGE_VLAN_INFO => {
                vlans.entry(half(nla.value().get(2..4)?)?).or_default();
            }
            IFLA_BRIDGE_VLAN_TUNNEL_INFO => {
                let tunnel = parts_of(nla.value());
                let vni = word(tunnel.get(&IFLA_BRIDGE_VLAN_TUNNEL_ID)?)?;
                let vlan = half(tunnel.get(&IFLA_BRIDGE_VLAN_TUNNEL_VID)?)?;
                let flags = tunnel.get(&IFLA_BRIDGE_VLAN_TUNNEL_FLAGS).and_then(|flags| half(flags));
                let flags = flags.unwrap_or_default();
                let (first_vlan, first_vni) = begun.take().unwrap_or((vlan, vni));
                if flags & RANGE_BEGIN != 0 {
                    begun = Some((vlan, vni));
                } else if flags & RANGE_END != 0 {
                    vlans.extend((first_vlan..=vlan).zip(first_vni..).map(|(vlan, vni)| (vlan, Some(vni))));
                } else {
                    vlans.insert(vlan, Some(vni));
                }
            }
            _ => {}
        }
    }
    Some((index, vlans))
}

fn half(value: &[u8]) -> Option<u16> {
    value.try_into().ok().map(u16::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = (value.len() + 4) as u16;
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn networks_of_vlans_are_read_singly_and_in_ranges() {
        let info =
            |vlan: u16| attribute(IFLA_BRIDGE_VLAN_INFO, &[0_u16.to_ne_bytes(), vlan.to_ne_bytes()].concat());
        let tunnel = |vlan: u16, vni: u32, flags: u16| {
            let parts = [
                attribute(IFLA_BRIDGE_VLAN_TUNNEL_ID, &vni.to_ne_bytes()),
                attribute(IFLA_BRIDGE_VLAN_TUNNEL_VID, &vlan.to_ne_bytes()),
                attribute(IFLA_BRIDGE_VLAN_TUNNEL_FLAGS, &flags.to_ne_bytes()),
            ];
            attribute(IFLA_BRIDGE_VLAN_TUNNEL_INFO, &parts.concat())
        };
        let spec = [
            [1, 2, 3, 9, 20].map(info).concat(),
            tunnel(1, 5, RANGE_BEGIN),
            tunnel(3, 7, RANGE_END),
            tunnel(9, 70, 0),
        ];
        let mut body = vec![0; LINK_HEADER_SIZE];
        body[4..8].copy_from_slice(&4_u32.to_ne_bytes());
        body.extend(attribute(IFLA_AF_SPEC, &spec.concat()));
        let vlans = [(1, Some(5)), (2, Some(6)), (3, Some(7)), (9, Some(70)), (20, None)].into();
        assert_eq!(read_vlans(&body), Some((4, vlans)));
    }
}
