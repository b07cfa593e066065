//! What the VMM itself answers to the guest on one network device: ARP, DHCP, metadata.
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
//! | anything else | forwarded |
//!
//! From the link, UDP to port 68 is dropped: no other DHCP server reaches the guest.

mod arp;
mod dhcp;
mod http;
mod metadata;
mod tcp;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use etherparse::{EtherType, Ethernet2HeaderSlice, IpNumber, Ipv4HeaderSlice, UdpHeaderSlice};

use crate::config::EndpointConfig;
use dhcp::DhcpServer;
use metadata::MetadataTree;
use tcp::TcpService;

/// Answers that wait for the guest's receive buffers; further ones of ARP and DHCP are dropped, TCP waits.
pub const ANSWERS_MAX: usize = 16;
/// The address of the metadata service, link-local on every cloud.
pub const METADATA_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// What became of a frame of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The endpoint took it; it goes no further.
    Taken,
    /// It is for the link.
    Forward,
}

/// The endpoint of one network device.
pub struct Endpoint {
    config: EndpointConfig,
    guest_mac: [u8; 6],
    mtu: u16,
    dhcp: DhcpServer,
    metadata: MetadataTree,
    /// Exists only while the guest has metadata connections.
    tcp: Option<Box<TcpService>>,
    answers: VecDeque<Vec<u8>>,
}

/// The MAC that answers for an address which is nobody else's: locally administered, made of the address.
fn mac_of(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x00, a, b, c, d]
}

impl Endpoint {
    /// The endpoint for a guest with `guest_mac` and an MTU of `mtu` bytes.
    pub fn new(mut config: EndpointConfig, guest_mac: [u8; 6], mtu: u16) -> Self {
        let metadata = MetadataTree::new(std::mem::take(&mut config.metadata));
        let dhcp = DhcpServer::new(&config, guest_mac, mtu);
        Self { config, guest_mac, mtu, dhcp, metadata, tcp: None, answers: VecDeque::new() }
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
            _ => Verdict::Forward,
        }
    }

    /// Whether a frame of the link may reach the guest.
    pub fn from_link(&self, frame: &[u8]) -> bool {
        let Ok(ethernet) = Ethernet2HeaderSlice::from_slice(frame) else { return true };
        if ethernet.ether_type() != EtherType::IPV4 {
            return true;
        }
        let packet = &frame[ethernet.slice().len()..];
        let Some((header, payload)) = ipv4(packet) else { return true };
        udp(&header, payload).is_none_or(|(ports, _)| ports.destination_port() != dhcp::CLIENT_PORT)
    }

    /// The next frame for the guest. Taking one makes room, into which waiting connections send more.
    pub fn next_answer(&mut self, now: Instant) -> Option<Vec<u8>> {
        if self.answers.is_empty() && self.tcp.is_some() {
            self.poll(now);
        }
        self.answers.pop_front()
    }

    /// Lets time pass.
    pub fn poll(&mut self, now: Instant) {
        let room = ANSWERS_MAX.saturating_sub(self.answers.len());
        let Some(tcp) = &mut self.tcp else { return };
        tcp.poll(&self.metadata, now, room, &mut self.answers);
        if tcp.is_idle() {
            self.tcp = None;
        }
    }

    /// When [`Self::poll`] is due, if ever. While answers wait for the guest, its fetching them is what counts.
    pub fn poll_delay(&mut self, now: Instant) -> Option<Duration> {
        if !self.answers.is_empty() {
            return None;
        }
        self.tcp.as_mut().and_then(|tcp| tcp.poll_delay(now))
    }

    fn ipv4_from_guest(&mut self, source_mac: [u8; 6], packet: &[u8], now: Instant) -> Verdict {
        let Some((header, payload)) = ipv4(packet) else { return Verdict::Forward };
        if header.destination_addr() == METADATA_ADDRESS {
            self.metadata_from_guest(source_mac, &header, packet, now);
            return Verdict::Taken;
        }
        match udp(&header, payload) {
            Some((ports, message)) if ports.destination_port() == dhcp::SERVER_PORT => {
                if let Some(answer) = self.dhcp.answer(message) {
                    self.answer(answer);
                }
                Verdict::Taken
            }
            _ => Verdict::Forward,
        }
    }

    /// Serves a packet to the metadata address; only the guest's own address is served.
    fn metadata_from_guest(
        &mut self,
        source_mac: [u8; 6],
        header: &Ipv4HeaderSlice<'_>,
        packet: &[u8],
        now: Instant,
    ) {
        let served = header.source_addr() == self.config.address
            && source_mac == self.guest_mac
            && header.protocol() == IpNumber::TCP
            && !header.is_fragmenting_payload();
        if !served {
            return;
        }
        let (mtu, guest_mac) = (self.mtu, self.guest_mac);
        let tcp = self.tcp.get_or_insert_with(|| Box::new(TcpService::new(guest_mac, mtu, now)));
        let end = usize::from(header.total_len()).min(packet.len());
        tcp.accept(&packet[..end], header.slice().len(), now);
        self.poll(now);
    }

    fn mac_answering_for(&self, address: Ipv4Addr) -> Option<[u8; 6]> {
        let own = [self.config.dhcp_server, METADATA_ADDRESS].contains(&address).then(|| mac_of(address));
        self.config.neighbours.get(&address).copied().or(own)
    }

    fn answer(&mut self, frame: Vec<u8>) {
        if self.answers.len() < ANSWERS_MAX {
            self.answers.push_back(frame);
        }
    }
}

/// The header and what follows it; the rest may be longer than the packet by Ethernet's padding.
fn ipv4(packet: &[u8]) -> Option<(Ipv4HeaderSlice<'_>, &[u8])> {
    let header = Ipv4HeaderSlice::from_slice(packet).ok()?;
    let payload = packet.get(header.slice().len()..)?;
    Some((header, payload))
}

/// UDP's ports and payload, if this is UDP and its first fragment.
fn udp<'a>(header: &Ipv4HeaderSlice<'_>, payload: &'a [u8]) -> Option<(UdpHeaderSlice<'a>, &'a [u8])> {
    if header.protocol() != IpNumber::UDP || header.fragments_offset().value() != 0 {
        return None;
    }
    let ports = UdpHeaderSlice::from_slice(payload).ok()?;
    let end = usize::from(ports.length()).min(payload.len());
    let message = payload.get(ports.slice().len()..end).unwrap_or_default();
    Some((ports, message))
}
