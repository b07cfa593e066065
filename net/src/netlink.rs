//! Links, addresses, routes, forwarding and neighbour entries through rtnetlink: the only home of netlink's crates.
//!
//! Changes are [`Request`]s; many go to the kernel in one call and each is answered for itself. Knows neither what is
//! wanted nor whose a link is.

mod connection;
mod request;
mod vlan_aware;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;

use ipnet::IpNet;
use netlink_packet_core::{Emitable, NlasIterator, Parseable};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::spec::{Count, LinkCounts};

pub use connection::Error;
pub(crate) use connection::{Connection, Message};
pub use request::{PortFlags, Request};

/// Messages sent in one call. Each may be answered before any answer is read, so the answers (at most about 300 bytes
/// of buffer each, with the kernel's bookkeeping 1 KiB) must fit the default receive buffer of 208 KiB.
const BATCH_MAX: usize = 128;

/// `struct ifinfomsg`, before a link's attributes.
const LINK_HEADER_SIZE: usize = 16;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_STATS64: u16 = 23;
const IFLA_GROUP: u16 = 27;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_VXLAN_COLLECT_METADATA: u16 = 25;
const IFLA_BR_VLAN_FILTERING: u16 = 7;
const IFLA_VLAN_ID: u16 = 1;
const IFLA_BRPORT_STATE: u16 = 1;
const IFLA_BRPORT_LEARNING: u16 = 8;
const IFLA_BRPORT_VLAN_TUNNEL: u16 = 29;
const IFLA_BRPORT_NEIGH_SUPPRESS: u16 = 32;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const BR_STATE_FORWARDING: u8 = 3;

/// A link as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number for it.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its kind, such as `bridge`, `vxlan` or `tun`; empty for hardware.
    pub kind: String,
    /// Its alias; empty if none.
    pub alias: String,
    /// Its MAC.
    pub mac: Option<[u8; 6]>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether it is set up.
    pub is_up: bool,
    /// The number by which links can be changed together; 0 unless somebody set it.
    pub group: u32,
    /// The index of the bridge it is a port of.
    pub master: Option<u32>,
    /// How its bridge treats it, if it is a port of one.
    pub port: Option<PortFlags>,
    /// It is a port of a bridge that passes frames on.
    pub is_forwarding: bool,
    /// Network identifier and tunnel address, of a VXLAN device.
    pub vxlan: Option<(u32, Option<Ipv4Addr>)>,
    /// It is for many networks: a bridge that is aware of VLANs, or a VXLAN device that has no identifier of its own.
    pub is_shared: bool,
    /// The VLAN identifier, of a VLAN device.
    pub vlan: Option<u16>,
    /// The index of the link it is on, if it is on one.
    pub parent: Option<u32>,
}

/// What a link is told about what is behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// A VXLAN device floods to this host; of which network, if it is many networks'.
    Flood(Ipv4Addr, Option<u32>),
    /// A MAC is on this host, as a VXLAN device is told; of which network, if it is many networks'.
    OnHost([u8; 6], Ipv4Addr, Option<u32>),
    /// A MAC is behind this link, as its bridge is told for good.
    BehindPort([u8; 6]),
    /// An address has this MAC, for good.
    Neighbour(IpAddr, [u8; 6]),
}

/// An rtnetlink socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
}

impl Client {
    /// Opens the socket.
    ///
    /// # Errors
    /// If there is no rtnetlink.
    pub fn open() -> Result<Self, Error> {
        Connection::open(NETLINK_ROUTE).map(|connection| Self { connection })
    }

    /// Works with an open socket of rtnetlink, in whichever namespace it was opened.
    #[must_use]
    pub fn of(socket: OwnedFd) -> Self {
        Self { connection: Connection::of(socket) }
    }

    /// Sends requests, as many in one call as fit, and reads every answer. What is refused stops nothing: the refused
    /// ones are returned, in order.
    ///
    /// # Errors
    /// If the socket itself fails: then it is unknown which requests were carried out.
    pub fn send(&mut self, requests: Vec<Request>) -> Result<Vec<Error>, Error> {
        let messages: Vec<Message> = requests.into_iter().map(encode).collect();
        let mut refused = Vec::new();
        for batch in messages.chunks(BATCH_MAX) {
            refused.extend(self.connection.acknowledged(batch)?);
        }
        Ok(refused)
    }

    /// Sends requests as [`Client::send`] does; the first refused one is the error.
    ///
    /// # Errors
    /// The socket's, or the first refusal.
    pub fn execute(&mut self, requests: Vec<Request>) -> Result<(), Error> {
        self.send(requests)?.into_iter().next().map_or(Ok(()), Err)
    }

    /// The link of this name, if there is one.
    ///
    /// # Errors
    /// The kernel's answer, other than that there is none.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, Error> {
        let request = Request::look_up(name);
        match self.connection.ask(encode(request)) {
            Ok(received) => Ok(read_link(&received.body)),
            Err(error) if error.refusal() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Every link, by name.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub fn links(&mut self) -> Result<BTreeMap<String, Link>, Error> {
        let mut filter = LinkMessage::default();
        filter.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        let received = self.dump("links", RouteNetlinkMessage::GetLink(filter))?;
        let links = received.iter().filter_map(|body| read_link(body));
        Ok(links.map(|link| (link.name.clone(), link)).collect())
    }

    /// What has passed the link of this name, if there is one.
    ///
    /// # Errors
    /// As [`Client::link`].
    pub fn counts(&mut self, name: &str) -> Result<Option<LinkCounts>, Error> {
        match self.connection.ask(encode(Request::look_up(name))) {
            Ok(received) => Ok(read_counts(&received.body).map(|(_, counts)| counts)),
            Err(error) if error.refusal() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What has passed each link, by name.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub fn all_counts(&mut self) -> Result<BTreeMap<String, LinkCounts>, Error> {
        let received = self.dump("links", RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        Ok(received.iter().filter_map(|body| read_counts(body)).collect())
    }

    /// Every address, with the index of its link.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub fn addresses(&mut self) -> Result<Vec<(u32, IpNet)>, Error> {
        let received = self.dump("addresses", RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
        Ok(received.iter().filter_map(|body| read_address(body)).collect())
    }

    /// The destination of every IPv4 and IPv6 route in every table; the default route is `0.0.0.0/0` or `::/0`.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub fn routes(&mut self) -> Result<Vec<IpNet>, Error> {
        let received = self.dump("routes", RouteNetlinkMessage::GetRoute(RouteMessage::default()))?;
        Ok(received.iter().filter_map(|body| read_route(body)).collect())
    }

    /// The routes by a next hop that somebody has set: destination and next hop.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub fn set_routes(&mut self) -> Result<Vec<(IpNet, IpAddr)>, Error> {
        let received = self.dump("routes", RouteNetlinkMessage::GetRoute(RouteMessage::default()))?;
        let messages = received.iter().filter_map(|body| RouteMessage::parse(body).ok());
        let set = messages.filter(|message| message.header.protocol == RouteProtocol::Static);
        Ok(set.filter_map(|message| Some((destination(&message)?, next_hop(&message)?))).collect())
    }

    /// What links are told about MACs and addresses, by their index: what they learnt themselves is left out.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub fn known(&mut self) -> Result<Vec<(u32, Known)>, Error> {
        let mut known = Vec::new();
        for family in [AddressFamily::Bridge, AddressFamily::Inet, AddressFamily::Inet6] {
            let mut filter = NeighbourMessage::default();
            filter.header.family = family;
            let received = self.dump("forwarding entries", RouteNetlinkMessage::GetNeighbour(filter))?;
            known.extend(received.iter().filter_map(|body| read_known(body)));
        }
        Ok(known)
    }

    fn dump(&mut self, what: &'static str, filter: RouteNetlinkMessage) -> Result<Vec<Vec<u8>>, Error> {
        let body = body_of(&filter);
        let received = self.connection.dump(what, filter.message_type(), &body)?;
        Ok(received.into_iter().map(|message| message.body).collect())
    }
}

fn encode(request: Request) -> Message {
    let Request { subject, message, flags } = request;
    Message { subject, kind: message.message_type(), flags, body: body_of(&message) }
}

fn body_of(message: &RouteNetlinkMessage) -> Vec<u8> {
    let mut body = vec![0; Emitable::buffer_len(message)];
    Emitable::emit(message, &mut body);
    body
}

/// Reads only what [`Link`] holds, so that an attribute this version does not know spoils nothing.
fn read_link(body: &[u8]) -> Option<Link> {
    let header = body.get(..LINK_HEADER_SIZE)?;
    let flags = word(header.get(8..12)?)?;
    let mut link = Link {
        index: word(header.get(4..8)?)?,
        name: String::new(),
        kind: String::new(),
        alias: String::new(),
        mac: None,
        mtu: 0,
        is_up: flags & libc::IFF_UP.cast_unsigned() != 0,
        group: 0,
        master: None,
        port: None,
        is_forwarding: false,
        vxlan: None,
        is_shared: false,
        vlan: None,
        parent: None,
    };
    for nla in NlasIterator::new(body.get(LINK_HEADER_SIZE..)?).flatten() {
        let value = nla.value();
        match nla.kind() {
            IFLA_ADDRESS => link.mac = value.try_into().ok(),
            IFLA_IFNAME => link.name = text(value),
            IFLA_MTU => link.mtu = word(value)?,
            IFLA_LINK => link.parent = word(value),
            IFLA_MASTER => link.master = word(value),
            IFLA_GROUP => link.group = word(value)?,
            IFLA_IFALIAS => link.alias = text(value),
            IFLA_LINKINFO => read_kind(&mut link, value),
            _ => {}
        }
    }
    Some(link)
}

/// A link's name, and `struct rtnl_link_stats64`: packets, bytes, errors and drops, each received and then sent.
fn read_counts(body: &[u8]) -> Option<(String, LinkCounts)> {
    let parts = parts_of(body.get(LINK_HEADER_SIZE..)?);
    let numbers = parts.get(&IFLA_STATS64)?;
    let numbers: Vec<u64> = numbers.as_chunks().0.iter().map(|bytes| u64::from_ne_bytes(*bytes)).collect();
    let [packets_in, packets_out, bytes_in, bytes_out, errors_in, errors_out, drops_in, drops_out, ..] =
        *numbers.as_slice()
    else {
        return None;
    };
    let counts = LinkCounts {
        received: Count { packets: packets_in, bytes: bytes_in },
        sent: Count { packets: packets_out, bytes: bytes_out },
        receive_errors: errors_in,
        send_errors: errors_out,
        receive_drops: drops_in,
        send_drops: drops_out,
    };
    Some((text(parts.get(&IFLA_IFNAME)?), counts))
}

/// What is told by links of one kind, and of those that are ports of a bridge.
fn read_kind(link: &mut Link, value: &[u8]) {
    let parts = parts_of(value);
    link.kind = parts.get(&IFLA_INFO_KIND).map(text).unwrap_or_default();
    let data = parts.get(&IFLA_INFO_DATA);
    match link.kind.as_str() {
        "vxlan" => {
            link.vxlan = data.and_then(|data| read_vxlan(data));
            link.is_shared = data.is_some_and(|data| is_on(data, IFLA_VXLAN_COLLECT_METADATA));
        }
        "bridge" => link.is_shared = data.is_some_and(|data| is_on(data, IFLA_BR_VLAN_FILTERING)),
        "vlan" => {
            let id = data.and_then(|data| parts_of(data).remove(&IFLA_VLAN_ID));
            link.vlan = id.and_then(|id| <[u8; 2]>::try_from(id).ok()).map(u16::from_ne_bytes);
        }
        _ => {}
    }
    link.port = parts.get(&IFLA_INFO_SLAVE_DATA).map(|data| {
        let flags = parts_of(data);
        link.is_forwarding =
            flags.get(&IFLA_BRPORT_STATE).is_some_and(|state| state.first() == Some(&BR_STATE_FORWARDING));
        let is_set = |kind| flags.get(&kind).is_some_and(|value| value.first() == Some(&1));
        PortFlags {
            isolated: is_set(IFLA_BRPORT_ISOLATED),
            learning: is_set(IFLA_BRPORT_LEARNING),
            neigh_suppress: is_set(IFLA_BRPORT_NEIGH_SUPPRESS),
            vlan_tunnel: is_set(IFLA_BRPORT_VLAN_TUNNEL),
        }
    });
}

/// Attributes that stand one behind the other, by their kinds; of two of a kind the last.
pub(crate) fn parts_of(value: &[u8]) -> BTreeMap<u16, Vec<u8>> {
    NlasIterator::new(value).flatten().map(|nla| (nla.kind(), nla.value().to_vec())).collect()
}

/// Whether an attribute of one byte is there and not 0.
fn is_on(data: &[u8], kind: u16) -> bool {
    parts_of(data).get(&kind).is_some_and(|value| value.first().is_some_and(|value| *value != 0))
}

fn read_vxlan(data: &[u8]) -> Option<(u32, Option<Ipv4Addr>)> {
    let parts = parts_of(data);
    let local = parts.get(&IFLA_VXLAN_LOCAL).and_then(|local| <[u8; 4]>::try_from(local.as_slice()).ok());
    Some((word(parts.get(&IFLA_VXLAN_ID)?)?, local.map(Ipv4Addr::from)))
}

fn read_address(body: &[u8]) -> Option<(u32, IpNet)> {
    let message = AddressMessage::parse(body).ok()?;
    // On a broadcast link both are the same; on a point-to-point one "address" is the other end's.
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })?;
    Some((message.header.index, IpNet::new(address, message.header.prefix_len).ok()?))
}

fn read_route(body: &[u8]) -> Option<IpNet> {
    destination(&RouteMessage::parse(body).ok()?)
}

fn next_hop(message: &RouteMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        RouteAttribute::Gateway(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    })
}

fn destination(message: &RouteMessage) -> Option<IpNet> {
    let destination = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    });
    let destination = match (destination, message.header.address_family) {
        (Some(address), _) => address,
        (None, AddressFamily::Inet) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        (None, AddressFamily::Inet6) => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
        (None, _) => return None,
    };
    IpNet::new(destination, message.header.destination_prefix_length).ok()
}

fn read_known(body: &[u8]) -> Option<(u32, Known)> {
    let message = NeighbourMessage::parse(body).ok()?;
    let header = &message.header;
    let mut mac = None;
    let mut destination = None;
    let mut network = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(value) => mac = <[u8; 6]>::try_from(value.as_slice()).ok(),
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => {
                destination = Some(IpAddr::V4(*address));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => {
                destination = Some(IpAddr::V6(*address));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                destination = <[u8; 4]>::try_from(bytes.as_slice()).ok().map(IpAddr::from);
            }
            NeighbourAttribute::SourceVni(vni) => network = Some(*vni),
            _ => {}
        }
    }
    let known = match (header.family, mac?, destination) {
        (AddressFamily::Bridge, request::FLOOD_MAC, Some(IpAddr::V4(host))) => Known::Flood(host, network),
        (AddressFamily::Bridge, mac, Some(IpAddr::V4(host))) => Known::OnHost(mac, host, network),
        // A port's own MAC is "permanent" there.
        (AddressFamily::Bridge, mac, None) if header.state == NeighbourState::Noarp => Known::BehindPort(mac),
        (AddressFamily::Inet | AddressFamily::Inet6, mac, Some(address))
            if header.state == NeighbourState::Permanent =>
        {
            Known::Neighbour(address, mac)
        }
        _ => return None,
    };
    Some((header.ifindex, known))
}

fn word(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_ne_bytes)
}

/// A text with a zero at its end.
pub(crate) fn text(value: impl AsRef<[u8]>) -> String {
    String::from_utf8_lossy(value.as_ref()).trim_end_matches('\0').to_owned()
}
