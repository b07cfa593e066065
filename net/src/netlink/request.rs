//! The changes that can be asked of rtnetlink, each with the words its refusal is told in.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    BridgeStpState, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth,
    InfoVlan, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

/// The MAC that stands for "all unknown" in a VXLAN device's forwarding table.
pub(super) const FLOOD_MAC: [u8; 6] = [0; 6];

/// The port of VXLAN that IANA assigned (RFC 7348 §8); the kernel's own default is an older one.
const VXLAN_PORT: u16 = 4789;

/// A change to ask of the kernel.
#[derive(Debug, Clone)]
pub struct Request {
    /// What it asks for, as the refusal says it.
    pub(super) subject: String,
    pub(super) message: RouteNetlinkMessage,
    pub(super) flags: u16,
}

/// How a bridge treats one of its ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortFlags {
    /// Reaches only ports that are not isolated.
    pub isolated: bool,
    /// Source MACs seen on the port enter the forwarding table.
    pub learning: bool,
    /// The bridge answers ARP and neighbour discovery from its own table instead of flooding to this port.
    pub neigh_suppress: bool,
    /// Frames of a VLAN are given to this port as a VXLAN network's, and the other way round.
    pub vlan_tunnel: bool,
}

impl Request {
    /// Makes a bridge, down, that must not exist yet: no spanning tree, no multicast snooping.
    ///
    /// The bridge keeps `mac`: left alone it would take a port's, and change it as ports come and go.
    #[must_use]
    pub fn create_bridge(name: &str, mac: [u8; 6]) -> Self {
        Self::create_bridge_with(name, mac, Vec::new())
    }

    pub(super) fn create_bridge_with(name: &str, mac: [u8; 6], more: Vec<InfoBridge>) -> Self {
        let mut data = vec![
            InfoBridge::ForwardDelay(0),
            InfoBridge::StpState(BridgeStpState::Disabled),
            InfoBridge::MulticastSnooping(false),
        ];
        data.extend(more);
        let message = create(name, mac, InfoKind::Bridge, InfoData::Bridge(data));
        Self {
            subject: format!("create bridge {name}"),
            message: RouteNetlinkMessage::NewLink(message),
            flags: NLM_F_CREATE | NLM_F_EXCL,
        }
    }

    /// Makes a VXLAN device, down, that must not exist yet, for one network or, without one, for as many as its bridge tells it
    /// of: it learns nothing from what it receives.
    #[must_use]
    pub fn create_vxlan(name: &str, mac: [u8; 6], vni: Option<u32>, local: Ipv4Addr) -> Self {
        let data = vec![
            vni.map_or(InfoVxlan::CollectMetadata(true), InfoVxlan::Id),
            InfoVxlan::Local(local),
            InfoVxlan::Port(VXLAN_PORT),
            InfoVxlan::Learning(false),
        ];
        Self {
            subject: format!("create VXLAN device {name}"),
            message: RouteNetlinkMessage::NewLink(create(name, mac, InfoKind::Vxlan, InfoData::Vxlan(data))),
            flags: NLM_F_CREATE | NLM_F_EXCL,
        }
    }

    /// Makes a VLAN device (802.1Q) on a link by its index, down, that must not exist yet.
    #[must_use]
    pub fn create_vlan(name: &str, mac: [u8; 6], parent: u32, vlan: u16) -> Self {
        let data = InfoData::Vlan(vec![InfoVlan::Id(vlan)]);
        let mut message = create(name, mac, InfoKind::Vlan, data);
        message.attributes.push(LinkAttribute::Link(parent));
        Self {
            subject: format!("create VLAN device {name}"),
            message: RouteNetlinkMessage::NewLink(message),
            flags: NLM_F_CREATE | NLM_F_EXCL,
        }
    }

    /// Makes a pair of links of one name, down: one here, one with `mac` in another network namespace.
    #[must_use]
    pub fn create_pair(name: &str, here: [u8; 6], there: [u8; 6], namespace: BorrowedFd<'_>) -> Self {
        let mut peer = named(name);
        peer.attributes.push(LinkAttribute::Address(there.to_vec()));
        peer.attributes.push(LinkAttribute::NetNsFd(namespace.as_raw_fd()));
        let message = create(name, here, InfoKind::Veth, InfoData::Veth(InfoVeth::Peer(peer)));
        Self {
            subject: format!("create the pair of links {name}"),
            message: RouteNetlinkMessage::NewLink(message),
            flags: NLM_F_CREATE | NLM_F_EXCL,
        }
    }

    /// Gives a link the MAC that it has, which has it say who it is (`arp_notify`).
    #[must_use]
    pub fn announce(name: &str, mac: [u8; 6]) -> Self {
        let mut message = named(name);
        message.attributes.push(LinkAttribute::Address(mac.to_vec()));
        Self::change(format!("announce the addresses of {name}"), message)
    }

    /// Adds a route by a next hop, or changes the next hop of one to the same destination.
    #[must_use]
    pub fn set_route(destination: IpNet, via: IpAddr) -> Self {
        Self {
            subject: format!("set the route to {destination} by {via}"),
            message: RouteNetlinkMessage::NewRoute(route(destination, via)),
            flags: NLM_F_CREATE | NLM_F_REPLACE,
        }
    }

    /// Removes a route.
    #[must_use]
    pub fn remove_route(destination: IpNet, via: IpAddr) -> Self {
        Self {
            subject: format!("remove the route to {destination} by {via}"),
            message: RouteNetlinkMessage::DelRoute(route(destination, via)),
            flags: 0,
        }
    }

    /// Removes a link.
    #[must_use]
    pub fn delete_link(name: &str) -> Self {
        Self {
            subject: format!("delete link {name}"),
            message: RouteNetlinkMessage::DelLink(named(name)),
            flags: 0,
        }
    }

    /// Puts a link into a group.
    #[must_use]
    pub fn set_group(name: &str, group: u32) -> Self {
        let mut message = named(name);
        message.attributes.push(LinkAttribute::Group(group));
        Self::change(format!("put {name} into link group {group}"), message)
    }

    /// Removes every link of a group at once: removing links one by one, the kernel waits some 20 ms for each.
    #[must_use]
    pub fn delete_group(group: u32) -> Self {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::Group(group));
        Self {
            subject: format!("delete the links of group {group}"),
            message: RouteNetlinkMessage::DelLink(message),
            flags: 0,
        }
    }

    /// Sets a link's alias.
    #[must_use]
    pub fn set_alias(name: &str, alias: &str) -> Self {
        let mut message = named(name);
        message.attributes.push(LinkAttribute::IfAlias(alias.to_owned()));
        Self::change(format!("set the alias of {name}"), message)
    }

    /// Sets a link's MTU in bytes, its bridge by index (0 takes it out of its bridge), and sets it up.
    #[must_use]
    pub fn configure(name: &str, mtu: u32, master: Option<u32>) -> Self {
        let mut message = named(name);
        message.attributes.push(LinkAttribute::Mtu(mtu));
        message.attributes.extend(master.map(LinkAttribute::Controller));
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        Self::change(format!("set MTU {mtu}, bridge and state of {name}"), message)
    }

    /// Sets a link up or down.
    #[must_use]
    pub fn set_up(name: &str, is_up: bool) -> Self {
        let mut message = named(name);
        message.header.flags = if is_up { LinkFlags::Up } else { LinkFlags::empty() };
        message.header.change_mask = LinkFlags::Up;
        Self::change(format!("set {name} {}", if is_up { "up" } else { "down" }), message)
    }

    /// Sets how a bridge treats a port of it.
    #[must_use]
    pub fn set_port_flags(name: &str, flags: PortFlags) -> Self {
        let mut data = vec![
            InfoBridgePort::Isolated(flags.isolated),
            InfoBridgePort::Learning(flags.learning),
            InfoBridgePort::NeighSupress(flags.neigh_suppress),
        ];
        data.extend(flags.vlan_tunnel.then_some(InfoBridgePort::VlanTunnel(true)));
        let mut message = named(name);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(data)),
        ]));
        Self::change(format!("set the bridge port flags of {name}"), message)
    }

    /// Sets whether a bridge hands IPv4 and IPv6 frames to the host's IP filters (`br_netfilter`).
    #[must_use]
    pub fn set_bridge_calls_ip_filters(name: &str, calls: bool) -> Self {
        let mut message = named(name);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(vec![
                InfoBridge::NfCallIpTables(calls),
                InfoBridge::NfCallIp6Tables(calls),
            ])),
        ]));
        Self::change(format!("set whether {name} calls the IP filters"), message)
    }

    /// Gives a link an address; it must not have it yet.
    #[must_use]
    pub fn add_address(link: &str, index: u32, address: IpNet) -> Self {
        Self {
            subject: format!("add address {address} to {link}"),
            message: RouteNetlinkMessage::NewAddress(address_message(index, address)),
            flags: NLM_F_CREATE | NLM_F_EXCL,
        }
    }

    /// Takes an address from a link.
    #[must_use]
    pub fn remove_address(link: &str, index: u32, address: IpNet) -> Self {
        Self {
            subject: format!("remove address {address} from {link}"),
            message: RouteNetlinkMessage::DelAddress(address_message(index, address)),
            flags: 0,
        }
    }

    /// Lets a VXLAN device flood to another host; it must not do so yet. `vni` says of which network, of a device that is
    /// many networks'; here and below.
    #[must_use]
    pub fn add_flood(link: &str, index: u32, peer: Ipv4Addr, vni: Option<u32>) -> Self {
        Self {
            subject: format!("let {link} flood to {peer}"),
            message: RouteNetlinkMessage::NewNeighbour(remote_mac(index, FLOOD_MAC, peer, vni)),
            flags: NLM_F_CREATE | NLM_F_APPEND,
        }
    }

    /// Stops a VXLAN device from flooding to another host.
    #[must_use]
    pub fn remove_flood(link: &str, index: u32, peer: Ipv4Addr, vni: Option<u32>) -> Self {
        Self {
            subject: format!("stop {link} from flooding to {peer}"),
            message: RouteNetlinkMessage::DelNeighbour(remote_mac(index, FLOOD_MAC, peer, vni)),
            flags: 0,
        }
    }

    /// Tells a VXLAN device which host a MAC is on, replacing what it knew.
    #[must_use]
    pub fn set_remote_mac(link: &str, index: u32, mac: [u8; 6], host: Ipv4Addr, vni: Option<u32>) -> Self {
        Self {
            subject: format!("place a MAC on {host} in {link}"),
            message: RouteNetlinkMessage::NewNeighbour(remote_mac(index, mac, host, vni)),
            flags: NLM_F_CREATE | NLM_F_REPLACE,
        }
    }

    /// Lets a VXLAN device forget which host a MAC is on.
    #[must_use]
    pub fn forget_remote_mac(link: &str, index: u32, mac: [u8; 6], host: Ipv4Addr, vni: Option<u32>) -> Self {
        Self {
            subject: format!("forget a MAC on {host} in {link}"),
            message: RouteNetlinkMessage::DelNeighbour(remote_mac(index, mac, host, vni)),
            flags: 0,
        }
    }

    /// Tells a bridge which port a MAC is behind, replacing what it knew.
    #[must_use]
    pub fn set_port_mac(port: &str, index: u32, mac: [u8; 6]) -> Self {
        Self {
            subject: format!("place a MAC behind {port}"),
            message: RouteNetlinkMessage::NewNeighbour(port_mac(index, mac)),
            flags: NLM_F_CREATE | NLM_F_REPLACE,
        }
    }

    /// Lets a bridge forget that a MAC is behind a port.
    #[must_use]
    pub fn forget_port_mac(port: &str, index: u32, mac: [u8; 6]) -> Self {
        Self {
            subject: format!("forget a MAC behind {port}"),
            message: RouteNetlinkMessage::DelNeighbour(port_mac(index, mac)),
            flags: 0,
        }
    }

    /// Tells a link an address's MAC, replacing what it knew; ports with `neigh_suppress` are answered from it.
    #[must_use]
    pub fn set_neighbour(link: &str, index: u32, address: IpAddr, mac: [u8; 6]) -> Self {
        let mut message = neighbour(index, address);
        message.header.state = NeighbourState::Permanent;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        Self {
            subject: format!("tell {link} the MAC of {address}"),
            message: RouteNetlinkMessage::NewNeighbour(message),
            flags: NLM_F_CREATE | NLM_F_REPLACE,
        }
    }

    /// Lets a link forget an address's MAC.
    #[must_use]
    pub fn forget_neighbour(link: &str, index: u32, address: IpAddr) -> Self {
        Self {
            subject: format!("let {link} forget the MAC of {address}"),
            message: RouteNetlinkMessage::DelNeighbour(neighbour(index, address)),
            flags: 0,
        }
    }

    /// Makes a link a port of a bridge by its index (0 takes it out of the one it is in), its MTU left alone.
    #[must_use]
    pub fn set_bridge(name: &str, bridge: u32) -> Self {
        let mut message = named(name);
        message.attributes.push(LinkAttribute::Controller(bridge));
        Self::change(format!("set the bridge of {name}"), message)
    }

    /// Asks for a link.
    pub(super) fn look_up(name: &str) -> Self {
        Self {
            subject: format!("look up link {name}"),
            message: RouteNetlinkMessage::GetLink(named(name)),
            flags: 0,
        }
    }

    fn change(subject: String, message: LinkMessage) -> Self {
        Self { subject, message: RouteNetlinkMessage::NewLink(message), flags: 0 }
    }
}

fn named(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
}

fn create(name: &str, mac: [u8; 6], kind: InfoKind, data: InfoData) -> LinkMessage {
    let mut message = named(name);
    message.attributes.push(LinkAttribute::Address(mac.to_vec()));
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind), LinkInfo::Data(data)]));
    message
}

fn family_of(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn address_message(index: u32, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family_of(address.addr());
    message.header.prefix_len = address.prefix_len();
    message.header.index = index;
    message.attributes =
        vec![AddressAttribute::Local(address.addr()), AddressAttribute::Address(address.addr())];
    if let IpNet::V4(net) = address {
        message.attributes.push(AddressAttribute::Broadcast(net.broadcast()));
    }
    message
}

fn route(destination: IpNet, via: IpAddr) -> RouteMessage {
    let address = |address| match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    };
    let mut message = RouteMessage::default();
    message.header.address_family = family_of(via);
    message.header.destination_prefix_length = destination.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![RouteAttribute::Gateway(address(via))];
    if destination.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(address(destination.network())));
    }
    message
}

fn forwarding(index: u32, mac: [u8; 6]) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.to_vec())];
    message
}

fn remote_mac(index: u32, mac: [u8; 6], host: Ipv4Addr, vni: Option<u32>) -> NeighbourMessage {
    let mut message = forwarding(index, mac);
    message.header.flags = NeighbourFlags::Own;
    message.header.state = NeighbourState::Permanent;
    message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(host)));
    message.attributes.extend(vni.map(NeighbourAttribute::SourceVni));
    message
}

fn port_mac(index: u32, mac: [u8; 6]) -> NeighbourMessage {
    let mut message = forwarding(index, mac);
    message.header.flags = NeighbourFlags::Controller;
    message.header.state = NeighbourState::Noarp;
    message
}

fn neighbour(index: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family_of(address);
    message.header.ifindex = index;
    message.attributes = vec![NeighbourAttribute::Destination(neighbour_address(address))];
    message
}

fn neighbour_address(address: IpAddr) -> NeighbourAddress {
    match address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    }
}
