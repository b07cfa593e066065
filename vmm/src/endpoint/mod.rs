//! What the VMM itself answers to the guest on one network device: ARP, DHCP, neighbour and router discovery, DHCPv6,
//! metadata; and questions about names, which it carries to somebody who can.
//!
//! Owns the addresses that exist only between this guest and its VMM. Sees every frame of the guest before the
//! link does and every frame of the link before the guest does; frames are Ethernet, without a VIRTIO header. Must
//! never know: queues, taps, tenants.
//!
//! The guest is hostile: every answer is bounded, nothing it sends is kept longer than a connection, and answers
//! that it does not fetch are dropped as on any Ethernet. Checksums of the guest's frames are not looked at, since
//! a guest that offloads them leaves them unfinished.
//!
//! | frame of the guest | what happens |
//! |---|---|
//! | ARP request for a neighbour, the DHCP server or the metadata address | answered, taken |
//! | IPv4 to the metadata address, whatever its Ethernet destination | TCP port 80 is served; taken |
//! | UDP to port 67 | answered if it is DHCP of the guest's own MAC; taken |
//! | UDP or TCP to port 53 of the DHCP server's address, or by IPv6 of the metadata address | carried on, where there is a resolver; taken |
//! | router solicitation | answered in the name of the routers that are announced; taken, unless others announce too |
//! | neighbour solicitation for an own IPv6 address | answered, taken |
//! | IPv6 to the metadata address | TCP port 80 is served to link-local addresses; taken |
//! | UDP to port 547 | answered if it is DHCPv6 from the guest's own MAC; taken |
//! | anything else | forwarded |
//!
//! What is not configured is not answered, and forwarded. From the link, UDP to port 68 or 546 and routers'
//! announcements are dropped where the endpoint answers the same: no other server and no other router reaches the guest.
//! Routers are announced as soon as the guest has sent anything by IPv6, every ten minutes, and when they change.
//!
//! In the VLANs that a device carries for other ports, each port is answered so with its own addresses ([`Endpoints`]).

mod arp;
mod dhcp;
mod dhcpv6;
mod http;
mod metadata;
mod neighbour;
mod option;
pub(crate) mod packet;
mod resolver;
mod tcp;
#[cfg(test)]
mod tests;
mod vlan;

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use etherparse::{EtherType, Ethernet2HeaderSlice, IpNumber, Ipv4HeaderSlice};

use crate::config::{Addressing, EndpointConfig};
use crate::questions::Question;
use dhcp::DhcpServer;
use dhcpv6::Dhcpv6Server;
use metadata::MetadataTree;
use neighbour::{Announcer, Message};
use packet::mac_of;
use resolver::{Asker, Resolver};
use tcp::{Site, TcpService};
pub use vlan::Endpoints;

/// Answers that wait for the guest's receive buffers; further ones of anything but TCP are dropped, TCP waits.
pub const ANSWERS_MAX: usize = 16;
/// The address of the metadata service, link-local on every cloud.
pub const METADATA_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// The same by IPv6, as Neutron has it.
pub const METADATA_ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe);
/// The MAC of what the endpoint is by IPv6: the one that answers for the metadata address.
const OWN_MAC: [u8; 6] = [0x02, 0x00, 169, 254, 169, 254];

/// What became of a frame of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The endpoint took it; it goes no further.
    Taken,
    /// It is for the link.
    Forward,
}

/// The endpoint of one network device, or of a VLAN of its frames.
pub struct Endpoint {
    addressing: Addressing,
    guest_mac: [u8; 6],
    mtu: u16,
    dhcp: Option<DhcpServer>,
    dhcpv6: Option<Dhcpv6Server>,
    announcer: Announcer,
    metadata: MetadataTree,
    /// Exists only while the guest has metadata connections.
    tcp: Option<Box<TcpService>>,
    resolver: Option<Resolver>,
    answers: VecDeque<Vec<u8>>,
}

/// The port of the metadata service.
const METADATA_PORT: u16 = 80;

impl Endpoint {
    /// The endpoint for a guest with `guest_mac` and an MTU of `mtu` bytes.
    pub fn new(config: EndpointConfig, guest_mac: [u8; 6], mtu: u16) -> Self {
        Self::telling(MetadataTree::new(config.metadata), config.addressing, guest_mac, mtu)
    }

    fn telling(metadata: MetadataTree, addressing: Addressing, guest_mac: [u8; 6], mtu: u16) -> Self {
        let mut endpoint = Self {
            dhcp: DhcpServer::new(&addressing, guest_mac, mtu),
            dhcpv6: Dhcpv6Server::new(&addressing, guest_mac),
            announcer: Announcer::new(&addressing, mtu),
            metadata,
            addressing,
            guest_mac,
            mtu,
            tcp: None,
            resolver: None,
            answers: VecDeque::new(),
        };
        endpoint.resolver = endpoint.new_resolver(Instant::now());
        endpoint
    }

    /// The resolver's end, where there is a resolver.
    fn new_resolver(&self, now: Instant) -> Option<Resolver> {
        let server = self.addressing.ipv4.as_ref().map(|config| config.dhcp_server);
        let server_mac = server.and_then(|server| self.mac_answering_for(server)).unwrap_or(OWN_MAC);
        let resolver = || Resolver::new(server, server_mac, self.guest_mac, self.mtu, now);
        self.addressing.resolver.then(resolver)
    }

    /// The guest has another MAC address than was thought: one that goes on from a snapshot keeps its own.
    pub fn know_guest(&mut self, mac: [u8; 6], now: Instant) {
        self.guest_mac = mac;
        self.dhcp = DhcpServer::new(&self.addressing, mac, self.mtu);
        self.dhcpv6 = Dhcpv6Server::new(&self.addressing, mac);
        self.resolver = self.new_resolver(now);
        self.tcp = None;
    }

    /// Answers otherwise from now on. By IPv6 the guest hears of it at once, by DHCP when it renews what it has.
    pub fn readdress(&mut self, addressing: Addressing, now: Instant) {
        for frame in self.announcer.change(&addressing, now) {
            self.answer(frame);
        }
        self.dhcp = DhcpServer::new(&addressing, self.guest_mac, self.mtu);
        self.dhcpv6 = Dhcpv6Server::new(&addressing, self.guest_mac);
        let place = |addressing: &Addressing| {
            (addressing.resolver, addressing.ipv4.as_ref().map(|config| config.dhcp_server))
        };
        let has_moved = place(&addressing) != place(&self.addressing);
        self.addressing = addressing;
        if has_moved {
            self.resolver = self.new_resolver(now);
        }
        self.poll(now);
    }

    /// The next question that somebody else has to answer.
    pub fn next_question(&mut self) -> Option<Question> {
        self.resolver.as_mut()?.next_question()
    }

    /// Carries the answer to a question to who asked; nothing if nobody waits for it any more.
    pub fn answered(&mut self, number: u32, message: &[u8], now: Instant) {
        if let Some(frame) = self.resolver.as_mut().and_then(|resolver| resolver.answered(number, message)) {
            self.answer(frame);
        }
        self.poll(now);
    }

    /// Whether a frame of the guest that begins so is forwarded, whatever else is in it: of TCP without a tag that is said by
    /// where it goes, of all else by nothing.
    pub fn lets_by(&self, head: &[u8]) -> bool {
        let Some(to) = packet::tcp_destination(head) else { return false };
        let is_metadata = to == IpAddr::from(METADATA_ADDRESS) || to == IpAddr::from(METADATA_ADDRESS_V6);
        !is_metadata && self.resolver.as_ref().is_none_or(|resolver| !resolver.is_at(to))
    }

    /// Looks at one frame of the guest.
    pub fn from_guest(&mut self, frame: &[u8], now: Instant) -> Verdict {
        let Ok(ethernet) = Ethernet2HeaderSlice::from_slice(frame) else { return Verdict::Forward };
        let payload = &frame[ethernet.slice().len()..];
        match ethernet.ether_type() {
            EtherType::ARP => match arp::answer(payload, |address| self.mac_answering_for(address)) {
                Some(answer) => {
                    self.answer(answer);
                    Verdict::Taken
                }
                None => Verdict::Forward,
            },
            EtherType::IPV4 => self.ipv4_from_guest(ethernet.source(), payload, now),
            EtherType::IPV6 if ethernet.source() == self.guest_mac => {
                let verdict = self.ipv6_from_guest(payload, now);
                self.announcer.notice(now);
                self.announce(now);
                verdict
            }
            _ => Verdict::Forward,
        }
    }

    /// Whether a frame of the link may reach the guest.
    pub fn from_link(&self, frame: &[u8]) -> bool {
        let Ok(ethernet) = Ethernet2HeaderSlice::from_slice(frame) else { return true };
        let packet = &frame[ethernet.slice().len()..];
        match ethernet.ether_type() {
            EtherType::IPV4 if self.dhcp.is_some() => {
                let Some((header, payload)) = packet::ipv4(packet) else { return true };
                let udp = packet::udp_in_ipv4(&header, payload);
                udp.is_none_or(|(ports, _)| ports.destination_port() != dhcp::CLIENT_PORT)
            }
            EtherType::IPV6 => {
                let Some((header, payload)) = packet::ipv6(packet) else { return true };
                match header.next_header() {
                    IpNumber::UDP if self.dhcpv6.is_some() => packet::udp(payload)
                        .is_none_or(|(ports, _)| ports.destination_port() != dhcpv6::CLIENT_PORT),
                    IpNumber::IPV6_ICMP => {
                        let announces = payload.first() == Some(&neighbour::ROUTER_ADVERTISEMENT);
                        !announces || self.others_are_heard()
                    }
                    _ => true,
                }
            }
            _ => true,
        }
    }

    /// The next frame for the guest. Taking one makes room, into which waiting connections send more.
    pub fn next_answer(&mut self, now: Instant) -> Option<Vec<u8>> {
        if self.answers.is_empty() && self.may_answer() {
            self.poll(now);
        }
        self.answers.pop_front()
    }

    /// Whether there is a frame for the guest, or somebody here who may have one at any time.
    pub fn may_answer(&self) -> bool {
        let asks = self.resolver.as_ref().is_some_and(Resolver::is_connected);
        !self.answers.is_empty() || self.tcp.is_some() || asks
    }

    /// Lets time pass.
    pub fn poll(&mut self, now: Instant) {
        self.announce(now);
        if let Some(tcp) = &mut self.tcp {
            let room = ANSWERS_MAX.saturating_sub(self.answers.len());
            tcp.poll(&mut self.metadata, now, room, &mut self.answers);
            if tcp.is_idle() {
                self.tcp = None;
            }
        }
        if let Some(resolver) = &mut self.resolver {
            let room = ANSWERS_MAX.saturating_sub(self.answers.len());
            resolver.poll(now, room, &mut self.answers);
        }
    }

    /// When [`Self::poll`] is due, if ever. While answers wait for the guest, its fetching them is what counts.
    pub fn poll_delay(&mut self, now: Instant) -> Option<Duration> {
        if !self.answers.is_empty() {
            return None;
        }
        let announcement = self.announcer.next().map(|next| next.saturating_duration_since(now));
        let tcp = self.tcp.as_mut().and_then(|tcp| tcp.poll_delay(now));
        let resolver = self.resolver.as_mut().and_then(|resolver| resolver.poll_delay(now));
        announcement.into_iter().chain(tcp).chain(resolver).min()
    }

    fn ipv4_from_guest(&mut self, source_mac: [u8; 6], packet: &[u8], now: Instant) -> Verdict {
        let Some((header, payload)) = packet::ipv4(packet) else { return Verdict::Forward };
        let Some(dhcp) = &self.dhcp else { return Verdict::Forward };
        if header.destination_addr() == METADATA_ADDRESS {
            self.metadata_from_guest(source_mac, &header, packet, now);
            return Verdict::Taken;
        }
        let server = header.destination_addr();
        if self.resolver.as_ref().is_some_and(|resolver| resolver.is_at(server.into()))
            && packet::destination_port(header.protocol(), payload) == Some(resolver::PORT)
        {
            if self.is_guests(source_mac, &header) {
                let addresses = (header.source_addr().into(), server.into());
                let end = usize::from(header.total_len()).min(packet.len());
                let header_bytes = header.slice().len();
                self.question_from_guest(addresses, header.protocol(), (&packet[..end], header_bytes), now);
            }
            return Verdict::Taken;
        }
        match packet::udp_in_ipv4(&header, payload) {
            Some((ports, message)) if ports.destination_port() == dhcp::SERVER_PORT => {
                if let Some(answer) = dhcp.answer(message) {
                    self.answer(answer);
                }
                Verdict::Taken
            }
            _ => Verdict::Forward,
        }
    }

    /// Extension headers stand before nothing that is answered here.
    fn ipv6_from_guest(&mut self, packet: &[u8], now: Instant) -> Verdict {
        let Some((header, payload)) = packet::ipv6(packet) else { return Verdict::Forward };
        let (guest, to) = (header.source_addr(), header.destination_addr());
        let own = neighbour::is_own(to);
        if self.resolver.as_ref().is_some_and(|resolver| resolver.is_at(to.into()))
            && packet::destination_port(header.next_header(), payload) == Some(resolver::PORT)
        {
            if guest.is_unicast_link_local() {
                let header_bytes = header.slice().len();
                let packet = &packet[..header_bytes + payload.len()];
                let addresses = (guest.into(), to.into());
                self.question_from_guest(addresses, header.next_header(), (packet, header_bytes), now);
            }
            return Verdict::Taken;
        }
        match header.next_header() {
            IpNumber::IPV6_ICMP => match neighbour::read(self.guest_mac, &header, payload) {
                Message::Solicitation(source) if !self.announcer.is_silent() => {
                    for answer in self.announcer.solicited(source, self.guest_mac, now) {
                        self.answer(answer);
                    }
                    if !self.addressing.ipv6.others_announce {
                        return Verdict::Taken;
                    }
                }
                Message::Answer(answer) => {
                    self.answer(answer);
                    return Verdict::Taken;
                }
                Message::Solicitation(_) | Message::Other => {}
            },
            IpNumber::UDP => {
                if let Some(dhcp) = &self.dhcpv6
                    && let Some((ports, message)) = packet::udp(payload)
                    && ports.destination_port() == dhcpv6::SERVER_PORT
                {
                    if let Some(answer) =
                        dhcp.answer(header.source_addr(), header.destination_addr(), message)
                    {
                        self.answer(answer);
                    }
                    return Verdict::Taken;
                }
            }
            IpNumber::TCP => {
                let to_metadata = header.destination_addr() == METADATA_ADDRESS_V6;
                if to_metadata && header.source_addr().is_unicast_link_local() {
                    let header_bytes = header.slice().len();
                    let end = header_bytes + payload.len();
                    self.serve(&packet[..end], header_bytes, now);
                }
            }
            _ => {}
        }
        if own { Verdict::Taken } else { Verdict::Forward }
    }

    /// Serves a packet to the metadata address; only the guest's own address is served.
    fn metadata_from_guest(
        &mut self,
        source_mac: [u8; 6],
        header: &Ipv4HeaderSlice<'_>,
        packet: &[u8],
        now: Instant,
    ) {
        if self.is_guests(source_mac, header) && header.protocol() == IpNumber::TCP {
            let end = usize::from(header.total_len()).min(packet.len());
            self.serve(&packet[..end], header.slice().len(), now);
        }
    }

    /// Whether a whole packet is from the guest's own address.
    fn is_guests(&self, source_mac: [u8; 6], header: &Ipv4HeaderSlice<'_>) -> bool {
        let own = self.addressing.ipv4.as_ref().map(|config| config.address);
        Some(header.source_addr()) == own && source_mac == self.guest_mac && !header.is_fragmenting_payload()
    }

    /// Takes a packet, which is so many bytes of header and then UDP or TCP, to the resolver.
    fn question_from_guest(
        &mut self,
        addresses: (IpAddr, IpAddr),
        protocol: IpNumber,
        (packet, header_bytes): (&[u8], usize),
        now: Instant,
    ) {
        let Some(resolver) = &mut self.resolver else { return };
        let Some(payload) = packet.get(header_bytes..) else { return };
        if protocol == IpNumber::TCP {
            resolver.accept(packet, header_bytes, now);
            self.poll(now);
        } else if let Some((ports, message)) = packet::udp(payload) {
            resolver.asked_by_udp(Asker { addresses, port: ports.source_port() }, message, now);
        }
    }

    fn serve(&mut self, packet: &[u8], header_bytes: usize, now: Instant) {
        let (mtu, guest_mac) = (self.mtu, self.guest_mac);
        let tcp = self.tcp.get_or_insert_with(|| {
            let site = Site {
                addresses: vec![METADATA_ADDRESS.into(), METADATA_ADDRESS_V6.into()],
                port: METADATA_PORT,
                macs: [OWN_MAC; 2],
                request_bytes_max: http::REQUEST_BYTES_MAX,
            };
            Box::new(TcpService::new(site, guest_mac, mtu, now))
        });
        tcp.accept(packet, header_bytes, now);
        self.poll(now);
    }

    fn mac_answering_for(&self, address: Ipv4Addr) -> Option<[u8; 6]> {
        let server = self.addressing.ipv4.as_ref()?.dhcp_server;
        let own = [server, METADATA_ADDRESS].contains(&address).then(|| mac_of(address));
        self.addressing.neighbours.get(&address).copied().or(own)
    }

    fn others_are_heard(&self) -> bool {
        self.announcer.is_silent() || self.addressing.ipv6.others_announce
    }

    /// Sends the announcements that are due.
    fn announce(&mut self, now: Instant) {
        for frame in self.announcer.due(now) {
            self.answer(frame);
        }
    }

    fn answer(&mut self, frame: Vec<u8>) {
        if self.answers.len() < ANSWERS_MAX {
            self.answers.push_back(frame);
        }
    }
}
