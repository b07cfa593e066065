//! A DHCP server with one lease (RFC 2131): the guest's own address, for the guest's own MAC.
//!
//! There is nothing to remember: the lease is what the configuration says, whatever the client declines or
//! releases. Messages of other hardware addresses, of relays and BOOTP are ignored.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use dhcproto::v4::{DhcpOption, Message, MessageType, Opcode, OptionCode, UnknownOption, borrowed};
use dhcproto::{Encodable, Encoder};
use etherparse::PacketBuilder;
use ipnet::Ipv4Net;

use super::option::{self, NEXT_SERVER};
use super::packet::mac_of;
use crate::config::{Addressing, Ipv4Config};

pub(super) use dhcproto::v4::{CLIENT_PORT, SERVER_PORT};

/// Name servers offered; resolvers use three.
const DNS_MAX: usize = 8;
/// Routes offered: with nine bytes each at most, they fit one option of 255 bytes.
const ROUTES_MAX: usize = 28;
/// Characters in a name: the longest that DNS allows.
const NAME_CHARS_MAX: usize = 253;
/// The smallest BOOTP message that old clients accept, in bytes (RFC 1542 §2.1).
const MESSAGE_BYTES_MIN: usize = 300;

/// The server for one guest.
pub(super) struct DhcpServer {
    guest_mac: [u8; 6],
    address: Ipv4Addr,
    server: Ipv4Addr,
    /// Where a boot goes on: the server itself unless the configuration says otherwise.
    next_server: Ipv4Addr,
    lease_s: u32,
    /// What every client is told, informed ones included.
    options: Vec<DhcpOption>,
}

/// What a client wants, with only what the answer depends on.
struct Request {
    kind: MessageType,
    wanted: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
}

impl DhcpServer {
    /// None if the guest gets no address by DHCP.
    pub(super) fn new(addressing: &Addressing, guest_mac: [u8; 6], mtu: u16) -> Option<Self> {
        let config = addressing.ipv4.as_ref()?;
        let next_server = config.options.iter().find(|option| option.name == NEXT_SERVER);
        Some(Self {
            guest_mac,
            address: config.address,
            server: config.dhcp_server,
            next_server: next_server
                .and_then(|option| option.value.parse().ok())
                .unwrap_or(config.dhcp_server),
            lease_s: addressing.lease_s,
            options: options(addressing, config, mtu),
        })
    }

    /// The frame that answers one UDP payload to port 67.
    pub(super) fn answer(&self, payload: &[u8]) -> Option<Vec<u8>> {
        let message = borrowed::Message::new(payload).ok()?;
        // The length first: `chaddr` trusts it.
        let own = message.opcode() == Opcode::BootRequest
            && message.hlen() == 6
            && message.chaddr() == self.guest_mac
            && message.giaddr().is_unspecified();
        if !own {
            return None;
        }
        let request = parse(&message)?;
        let kind = match request.kind {
            MessageType::Discover => MessageType::Offer,
            MessageType::Request if request.server.is_some_and(|server| server != self.server) => {
                return None;
            }
            MessageType::Request if request.wanted == Some(self.address) => MessageType::Ack,
            MessageType::Request => MessageType::Nak,
            MessageType::Inform => MessageType::Ack,
            MessageType::Decline => {
                tracing::warn!(address = %self.address, "the guest says that its address is in use already");
                return None;
            }
            _ => return None,
        };
        let informed = request.kind == MessageType::Inform;
        self.frame(&message, &self.reply(&message, kind, informed))
    }

    fn reply(&self, request: &borrowed::Message<'_>, kind: MessageType, informed: bool) -> Message {
        let mut reply = Message::default();
        reply
            .set_opcode(Opcode::BootReply)
            .set_xid(request.xid())
            .set_flags(request.flags())
            .set_chaddr(&self.guest_mac);
        let options = reply.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::ServerIdentifier(self.server));
        if kind == MessageType::Nak {
            return reply;
        }
        for option in &self.options {
            options.insert(option.clone());
        }
        if informed {
            reply.set_ciaddr(request.ciaddr());
            return reply;
        }
        // RFC 2131 §4.4.5: renew at half, rebind at seven eighths of the lease.
        let rebind_s = u32::try_from(u64::from(self.lease_s) * 7 / 8).unwrap_or(u32::MAX);
        options.insert(DhcpOption::AddressLeaseTime(self.lease_s));
        options.insert(DhcpOption::Renewal(self.lease_s / 2));
        options.insert(DhcpOption::Rebinding(rebind_s));
        reply.set_yiaddr(self.address).set_siaddr(self.next_server);
        if kind == MessageType::Ack {
            reply.set_ciaddr(request.ciaddr());
        }
        reply
    }

    /// The reply as a frame, addressed as RFC 2131 §4.1 says.
    fn frame(&self, request: &borrowed::Message<'_>, reply: &Message) -> Option<Vec<u8>> {
        let mut payload = Vec::with_capacity(MESSAGE_BYTES_MIN);
        reply.encode(&mut Encoder::new(&mut payload)).ok()?;
        if payload.len() < MESSAGE_BYTES_MIN {
            payload.resize(MESSAGE_BYTES_MIN, 0);
        }
        let nak = reply.opts().has_msg_type(MessageType::Nak);
        let (mac, address) = if !request.ciaddr().is_unspecified() && !nak {
            (self.guest_mac, request.ciaddr())
        } else if nak || request.flags().broadcast() {
            ([0xff; 6], Ipv4Addr::BROADCAST)
        } else {
            (self.guest_mac, self.address)
        };
        let builder = PacketBuilder::ethernet2(mac_of(self.server), mac)
            .ipv4(self.server.octets(), address.octets(), 64)
            .udp(SERVER_PORT, CLIENT_PORT);
        let mut frame = Vec::with_capacity(builder.size(payload.len()));
        builder.write(&mut frame, &payload).ok()?;
        Some(frame)
    }
}

/// Reads the options that matter; none if this is BOOTP.
fn parse(message: &borrowed::Message<'_>) -> Option<Request> {
    let mut kind = None;
    let mut requested = None;
    let mut server = None;
    for option in message.opts() {
        let address = || <[u8; 4]>::try_from(option.data()).ok().map(Ipv4Addr::from);
        match option.code() {
            OptionCode::MessageType => kind = option.data().first().map(|&kind| MessageType::from(kind)),
            OptionCode::RequestedIpAddress => requested = address(),
            OptionCode::ServerIdentifier => server = address(),
            _ => {}
        }
    }
    let current = Some(message.ciaddr()).filter(|address| !address.is_unspecified());
    Some(Request { kind: kind?, wanted: requested.or(current), server })
}

fn options(addressing: &Addressing, config: &Ipv4Config, mtu: u16) -> Vec<DhcpOption> {
    let mask = Ipv4Net::new(config.address, config.prefix_len.min(32)).map(|net| net.netmask());
    let mut options = vec![
        DhcpOption::SubnetMask(mask.unwrap_or(Ipv4Addr::BROADCAST)),
        DhcpOption::InterfaceMtu(mtu),
        DhcpOption::ClasslessStaticRoute(routes(config)),
    ];
    if let Some(gateway) = config.gateway {
        options.push(DhcpOption::Router(vec![gateway]));
    }
    if !config.dns.is_empty() {
        options.push(DhcpOption::DomainNameServer(config.dns.iter().copied().take(DNS_MAX).collect()));
    }
    let text = |text: &str| text.chars().take(NAME_CHARS_MAX).collect::<String>();
    if !addressing.hostname.is_empty() {
        options.push(DhcpOption::Hostname(text(&addressing.hostname)));
    }
    if !addressing.domain.is_empty() {
        options.push(DhcpOption::DomainName(text(&addressing.domain)));
    }
    for (code, data) in config.options.iter().filter_map(option::ipv4) {
        let code = OptionCode::from(code);
        options.retain(|present| OptionCode::from(present) != code);
        if !data.is_empty() {
            options.push(DhcpOption::Unknown(UnknownOption::new(code, data)));
        }
    }
    options
}

/// All routes in one option, since clients that read it ignore the router option (RFC 3442): metadata by way of
/// the DHCP server's address, which answers ARP here, or, where that is the metadata service's own, of the gateway, whose frames
/// for it are taken here too, or on the link; the default route; what the configuration adds. Each destination
/// once: a client that adds them one by one fails at the second (cloud-init does, and then finds no data source).
fn routes(config: &Ipv4Config) -> Vec<(Ipv4Net, Ipv4Addr)> {
    let own = Some(config.dhcp_server).filter(|server| *server != super::METADATA_ADDRESS);
    let next_hop = own.or(config.gateway).unwrap_or(Ipv4Addr::UNSPECIFIED);
    let metadata = (Ipv4Net::from(super::METADATA_ADDRESS), next_hop);
    let default = config.gateway.map(|gateway| (Ipv4Net::default(), gateway));
    let further = config.routes.iter().filter_map(|&(destination, prefix_len, next_hop)| {
        Some((Ipv4Net::new(destination, prefix_len).ok()?.trunc(), next_hop))
    });
    let mut seen = BTreeSet::new();
    let routes = std::iter::once(metadata).chain(default).chain(further);
    routes.filter(|(destination, _)| seen.insert(*destination)).take(ROUTES_MAX).collect()
}
