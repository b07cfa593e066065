//! A DHCPv6 server with the leases of one guest (RFC 8415): the port's own addresses, whoever the client says it is.
//!
//! There is nothing to remember: what is leased is what the configuration says. All addresses go into the first
//! association that a message names; what else is asked for is not to be had. Relays are not answered.
//!
//! Messages are read by [`Options`], which goes through them without a copy: dhcproto's own reader follows options
//! within options as deep as a guest nests them.

use std::net::Ipv6Addr;

use dhcproto::v6::{DhcpOption, IAAddr, IANA, IAPD, IATA, Message, MessageType, OptionCode};
use dhcproto::v6::{DhcpOptions, Status, StatusCode, UnknownOption};
use dhcproto::{Encodable, Encoder};
use etherparse::PacketBuilder;

use super::OWN_MAC;
use super::option;
use super::packet::{domain_name, link_local};
use crate::config::{Addressing, Dhcpv6Config};

pub(super) use dhcproto::v6::{CLIENT_PORT, SERVER_PORT};

/// All servers and relays (RFC 8415 §7.1).
const ALL_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
/// Bytes of a client's identifier: two of its type and 128 (RFC 8415 §11.1).
const DUID_BYTES_MAX: usize = 130;
/// Associations answered in one message; clients have one, or one of a kind.
const ASSOCIATIONS_MAX: usize = 8;
/// Addresses of a port that are given.
const ADDRESSES_MAX: usize = 16;
/// Name servers offered; resolvers use three.
const DNS_MAX: usize = 8;
/// Addresses that a client asks about in one message.
const ASKED_MAX: usize = 32;

const INFORMATION_REFRESH_TIME: u16 = 32;
const DOMAIN_LIST: u16 = 24;

/// The server for one guest.
pub(super) struct Dhcpv6Server {
    guest_mac: [u8; 6],
    config: Dhcpv6Config,
    lease_s: u32,
    /// What the guest is told beside its addresses.
    options: Vec<DhcpOption>,
}

/// One message of a client, with only what the answer depends on.
struct Request<'a> {
    kind: MessageType,
    xid: [u8; 3],
    client: Option<&'a [u8]>,
    server: Option<&'a [u8]>,
    rapid_commit: bool,
    /// The option codes asked for; all that there is if absent.
    asked: Option<&'a [u8]>,
    associations: Vec<(OptionCode, &'a [u8])>,
}

impl Dhcpv6Server {
    /// None if DHCPv6 is not answered.
    pub(super) fn new(addressing: &Addressing, guest_mac: [u8; 6]) -> Option<Self> {
        let config = addressing.ipv6.dhcp.clone()?;
        let options = options(&config, &addressing.domain);
        Some(Self { guest_mac, config, lease_s: addressing.lease_s, options })
    }

    /// The frame that answers one UDP payload to port 547.
    pub(super) fn answer(&self, source: Ipv6Addr, target: Ipv6Addr, payload: &[u8]) -> Option<Vec<u8>> {
        if target != ALL_SERVERS || !source.is_unicast_link_local() {
            return None;
        }
        let request = read(payload)?;
        let reply = self.reply(&request)?;
        let mut payload = Vec::new();
        reply.encode(&mut Encoder::new(&mut payload)).ok()?;
        let builder = PacketBuilder::ethernet2(OWN_MAC, self.guest_mac)
            .ipv6(link_local(OWN_MAC).octets(), source.octets(), 64)
            .udp(SERVER_PORT, CLIENT_PORT);
        let mut frame = Vec::with_capacity(builder.size(payload.len()));
        builder.write(&mut frame, &payload).ok()?;
        Some(frame)
    }

    /// RFC 8415 §16 says what is no message, §18.3 what is answered.
    fn reply(&self, request: &Request<'_>) -> Option<Message> {
        let own = server_id();
        let named = match request.server {
            Some(server) if server != own => return None,
            server => server.is_some(),
        };
        let mut options = DhcpOptions::new();
        match request.kind {
            MessageType::Solicit | MessageType::Rebind if !named => self.give(&mut options, request),
            MessageType::Request | MessageType::Renew if named => self.give(&mut options, request),
            MessageType::Confirm if !named => options.insert(status(self.confirmed(request)?, "")),
            MessageType::Release | MessageType::Decline if named => {
                if request.kind == MessageType::Decline {
                    tracing::warn!("the guest says that its IPv6 address is in use already");
                }
                options.insert(status(Status::Success, ""));
            }
            MessageType::InformationRequest if request.associations.is_empty() => {
                let refresh = self.lease_s.to_be_bytes().to_vec();
                options.insert(unknown(INFORMATION_REFRESH_TIME, refresh));
            }
            _ => return None,
        }
        let kind = match request.kind {
            MessageType::Solicit if !request.rapid_commit => MessageType::Advertise,
            _ => MessageType::Reply,
        };
        match (request.kind, request.client) {
            (_, Some(client)) => options.insert(DhcpOption::ClientId(client.to_vec())),
            (MessageType::InformationRequest, None) => {}
            (_, None) => return None,
        }
        options.insert(DhcpOption::ServerId(own));
        if request.kind == MessageType::Solicit {
            // The highest: no client need wait for better offers (§18.2.1).
            options.insert(DhcpOption::Preference(u8::MAX));
            if kind == MessageType::Reply {
                options.insert(DhcpOption::RapidCommit);
            }
        }
        for option in self.options.iter().filter(|option| request.asks_for(OptionCode::from(*option))) {
            options.insert(option.clone());
        }
        let mut message = Message::new_with_id(kind, request.xid);
        message.set_opts(options);
        Some(message)
    }

    /// Adds what becomes of the associations of a message.
    fn give(&self, options: &mut DhcpOptions, request: &Request<'_>) {
        let mut left = self.config.addresses.as_slice();
        for (code, data) in &request.associations {
            let Some((id, rest)) = data.split_first_chunk::<4>() else { continue };
            let id = u32::from_be_bytes(*id);
            let none = |status| DhcpOptions::from_iter([status]);
            options.insert(match code {
                OptionCode::IANA => {
                    // Two times come before the options.
                    let before = asked_addresses(rest.get(8..).unwrap_or_default());
                    DhcpOption::IANA(self.association(id, std::mem::take(&mut left), before))
                }
                OptionCode::IATA => {
                    let opts = none(status(Status::NoAddrsAvail, "no temporary addresses are given"));
                    DhcpOption::IATA(IATA { id, opts })
                }
                _ => {
                    let opts = none(status(Status::NoPrefixAvail, "no prefixes are given"));
                    DhcpOption::IAPD(IAPD { id, t1: 0, t2: 0, opts })
                }
            });
        }
    }

    /// An association with `addresses`; those that the client has `before` and that are not among them end at once.
    fn association(&self, id: u32, addresses: &[Ipv6Addr], before: Vec<Ipv6Addr>) -> IANA {
        let given = &addresses[..addresses.len().min(ADDRESSES_MAX)];
        let gone = before.iter().filter(|address| !given.contains(address));
        let lease = |address: &Ipv6Addr, lifetime_s: u32| {
            DhcpOption::IAAddr(IAAddr {
                addr: *address,
                preferred_life: lifetime_s,
                valid_life: lifetime_s,
                opts: DhcpOptions::new(),
            })
        };
        let mut opts: DhcpOptions = given
            .iter()
            .map(|address| lease(address, self.lease_s))
            .chain(gone.map(|address| lease(address, 0)))
            .collect();
        if given.is_empty() {
            opts.insert(status(Status::NoAddrsAvail, "there is no address to give"));
        }
        // RFC 8415 §21.4: renew at half, rebind at four fifths of the shortest lifetime.
        let rebind_s = u32::try_from(u64::from(self.lease_s) * 4 / 5).unwrap_or(u32::MAX);
        IANA { id, t1: self.lease_s / 2, t2: rebind_s, opts }
    }

    /// Whether all addresses that a client asks about fit the link (§18.3.3); none if it asks about none.
    fn confirmed(&self, request: &Request<'_>) -> Option<Status> {
        let associations = request.associations.iter();
        let addresses: Vec<Ipv6Addr> = associations
            .filter(|(code, _)| matches!(code, OptionCode::IANA | OptionCode::IATA))
            .flat_map(|(code, data)| {
                let fixed = if *code == OptionCode::IANA { 12 } else { 4 };
                asked_addresses(data.get(fixed..).unwrap_or_default())
            })
            .collect();
        let on_link = |address: &Ipv6Addr| self.config.on_link.iter().any(|prefix| prefix.contains(address));
        let status = if addresses.iter().all(on_link) { Status::Success } else { Status::NotOnLink };
        (!addresses.is_empty()).then_some(status)
    }
}

impl Request<'_> {
    fn asks_for(&self, code: OptionCode) -> bool {
        let code = u16::from(code).to_be_bytes();
        self.asked.is_none_or(|asked| asked.chunks_exact(2).any(|wanted| wanted == code))
    }
}

/// The options of a message, or of an option: code and value (RFC 8415 §21.1). Ends at what is cut off.
struct Options<'a>(&'a [u8]);

impl<'a> Iterator for Options<'a> {
    type Item = (OptionCode, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (&[a, b, c, d], rest) = self.0.split_first_chunk()?;
        let (value, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes([c, d])))?;
        self.0 = rest;
        Some((OptionCode::from(u16::from_be_bytes([a, b])), value))
    }
}

fn read(payload: &[u8]) -> Option<Request<'_>> {
    let (&[kind, a, b, c], options) = payload.split_first_chunk()?;
    let mut request = Request {
        kind: MessageType::from(kind),
        xid: [a, b, c],
        client: None,
        server: None,
        rapid_commit: false,
        asked: None,
        associations: Vec::new(),
    };
    for (code, value) in Options(options) {
        match code {
            OptionCode::ClientId if (1..=DUID_BYTES_MAX).contains(&value.len()) => {
                request.client = Some(value);
            }
            OptionCode::ServerId => request.server = Some(value),
            OptionCode::RapidCommit => request.rapid_commit = true,
            OptionCode::ORO => request.asked = Some(value),
            OptionCode::IANA | OptionCode::IATA | OptionCode::IAPD
                if request.associations.len() < ASSOCIATIONS_MAX =>
            {
                request.associations.push((code, value));
            }
            _ => {}
        }
    }
    Some(request)
}

/// The addresses in an association's options.
fn asked_addresses(options: &[u8]) -> Vec<Ipv6Addr> {
    let addresses = Options(options).filter(|(code, _)| *code == OptionCode::IAAddr);
    let addresses = addresses.filter_map(|(_, value)| Some(Ipv6Addr::from(*value.first_chunk::<16>()?)));
    addresses.take(ASKED_MAX).collect()
}

/// Our identifier: type 3, made of Ethernet's (1) MAC (§11.4).
fn server_id() -> Vec<u8> {
    [&[0, 3, 0, 1], &OWN_MAC[..]].concat()
}

fn status(status: Status, message: &str) -> DhcpOption {
    DhcpOption::StatusCode(StatusCode { status, msg: message.to_owned() })
}

fn unknown(code: u16, data: Vec<u8>) -> DhcpOption {
    DhcpOption::Unknown(UnknownOption::new(OptionCode::from(code), data))
}

fn options(config: &Dhcpv6Config, domain: &str) -> Vec<DhcpOption> {
    let mut options = Vec::new();
    if !config.dns.is_empty() {
        let servers = config.dns.iter().copied().take(DNS_MAX).collect();
        options.push(DhcpOption::DomainNameServers(servers));
    }
    options.extend(domain_name(domain).map(|name| unknown(DOMAIN_LIST, name)));
    for (code, data) in config.options.iter().filter_map(option::ipv6) {
        options.retain(|present| u16::from(OptionCode::from(present)) != code);
        if !data.is_empty() {
            options.push(unknown(code, data));
        }
    }
    options
}
