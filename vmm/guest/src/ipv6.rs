//! IPv6 of one stack: a link-local address of the MAC, an address of each announced prefix (RFC 4862) or one by DHCPv6
//! with rapid commit (RFC 8415 §18.2.1), and the router that announces itself as the default route.
//!
//! Must never know: IPv4, what is said over the sockets.

use alloc::vec;
use alloc::vec::Vec;
use core::net::Ipv6Addr;

use smoltcp::iface::{Route, SocketHandle, SocketSet};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::{raw, udp};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{
    EthernetAddress, Icmpv6Packet, Icmpv6Repr, IpCidr, IpProtocol, IpVersion, Ipv6Cidr, Ipv6Packet, Ipv6Repr,
    NdiscRepr,
};

use crate::parse::ipv6::{Announcement, Prefix, announcement, leased};
use crate::println;

/// Addresses beside the link-local one.
pub const ADDRESSES_MAX: usize = 2;
/// Prefixes remembered that DHCPv6's addresses may lie in.
const PREFIXES_MAX: usize = 4;
/// Solicitations sent, and how long an answer to each is waited for (RFC 4861 §10).
const SOLICITATIONS_MAX: u8 = 3;
const SOLICITATION_INTERVAL: Duration = Duration::from_secs(4);
/// How long an answer of DHCPv6 is waited for (`SOL_TIMEOUT`, RFC 8415 §7.6).
const DHCP_RETRY: Duration = Duration::from_secs(1);
/// Bytes of packets kept until they are looked at: an announcement has at most the smallest MTU's.
const BUFFER_BYTES: usize = 4096;

const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const ALL_DHCP_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
const DHCP_CLIENT_PORT: u16 = 546;
const DHCP_SERVER_PORT: u16 = 547;

/// What a guest has by IPv6.
pub struct Ipv6 {
    mac: [u8; 6],
    discovery: SocketHandle,
    dhcp: SocketHandle,
    addresses: Vec<Ipv6Cidr>,
    gateway: Option<Ipv6Addr>,
    /// Prefixes on the link.
    prefixes: Vec<Prefix>,
    solicitations: u8,
    solicit_at: Option<Instant>,
    ask_at: Option<Instant>,
}

impl Ipv6 {
    /// The sockets that it needs; it asks for routers at once.
    pub fn new(mac: [u8; 6], sockets: &mut SocketSet<'static>, now: Instant) -> Self {
        let raw_buffer =
            || raw::PacketBuffer::new(vec![raw::PacketMetadata::EMPTY; 8], vec![0; BUFFER_BYTES]);
        let discovery =
            raw::Socket::new(Some(IpVersion::Ipv6), Some(IpProtocol::Icmpv6), raw_buffer(), raw_buffer());
        let udp_buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 2], vec![0; 1500]);
        let mut dhcp = udp::Socket::new(udp_buffer(), udp_buffer());
        dhcp.bind(DHCP_CLIENT_PORT).expect("invariant: a new socket can be bound to a port");
        Self {
            mac,
            discovery: sockets.add(discovery),
            dhcp: sockets.add(dhcp),
            addresses: Vec::new(),
            gateway: None,
            prefixes: Vec::new(),
            solicitations: 0,
            solicit_at: Some(now),
            ask_at: None,
        }
    }

    /// The addresses, the link-local one first.
    pub fn addresses(&self) -> impl Iterator<Item = IpCidr> + '_ {
        let link_local = Ipv6Cidr::new(self.address_in(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 64);
        [link_local].into_iter().chain(self.addresses.iter().copied()).map(IpCidr::Ipv6)
    }

    /// An address beside the link-local one.
    pub fn address(&self) -> Option<Ipv6Addr> {
        self.addresses.first().map(Ipv6Cidr::address)
    }

    /// The default route.
    pub fn route(&self) -> Option<Route> {
        self.gateway.map(Route::new_ipv6_gateway)
    }

    /// Looks at what came in and sends what is due; true if addresses or routes have changed.
    pub fn poll(&mut self, name: &str, sockets: &mut SocketSet<'static>, now: Instant) -> bool {
        let before = (self.addresses.clone(), self.gateway);
        while let Ok(packet) = sockets.get_mut::<raw::Socket<'_>>(self.discovery).recv() {
            if let Some((router, announcement)) = announcement(packet) {
                self.hear(router, &announcement, now);
            }
        }
        while let Ok((message, _)) = sockets.get_mut::<udp::Socket<'_>>(self.dhcp).recv() {
            if let Some((address, valid_s)) = leased(message, self.transaction()) {
                self.lease(address);
                // Half of it is left when it is asked for again.
                self.ask_at = Some(now + Duration::from_secs(u64::from(valid_s / 2).max(1)));
            }
        }
        if self.solicit_at.is_some_and(|at| at <= now) {
            self.solicit(sockets.get_mut(self.discovery));
            self.solicitations += 1;
            self.solicit_at = (self.solicitations < SOLICITATIONS_MAX).then_some(now + SOLICITATION_INTERVAL);
        }
        if self.ask_at.is_some_and(|at| at <= now) {
            self.ask(sockets.get_mut(self.dhcp));
            self.ask_at = Some(now + DHCP_RETRY);
        }
        let changed = before != (self.addresses.clone(), self.gateway);
        if changed {
            self.show(name, &before.0);
        }
        changed
    }

    /// When [`Self::poll`] has something to send next.
    pub fn poll_at(&self) -> Option<Instant> {
        self.solicit_at.into_iter().chain(self.ask_at).min()
    }

    fn hear(&mut self, router: Ipv6Addr, announcement: &Announcement<'_>, now: Instant) {
        self.solicit_at = None;
        if announcement.lifetime_s > 0 {
            self.gateway = Some(router);
        } else if self.gateway == Some(router) {
            self.gateway = None;
        }
        for prefix in announcement.prefixes() {
            self.prefixes.retain(|known| (known.network, known.length) != (prefix.network, prefix.length));
            if prefix.valid_s == 0 {
                let gone = Ipv6Cidr::new(prefix.network, prefix.length);
                self.addresses.retain(|address| !gone.contains_addr(&address.address()));
                continue;
            }
            if self.prefixes.len() < PREFIXES_MAX {
                self.prefixes.push(prefix);
            }
            if prefix.autonomous && prefix.length == 64 {
                self.add(Ipv6Cidr::new(self.address_in(prefix.network), 64));
            }
        }
        if announcement.managed && self.ask_at.is_none() {
            self.ask_at = Some(now);
        }
    }

    fn lease(&mut self, address: Ipv6Addr) {
        let on_link = self.prefixes.iter().find(|prefix| {
            let prefix = Ipv6Cidr::new(prefix.network, prefix.length);
            prefix.contains_addr(&address)
        });
        self.add(Ipv6Cidr::new(address, on_link.map_or(128, |prefix| prefix.length)));
    }

    fn add(&mut self, address: Ipv6Cidr) {
        let is_known = self.addresses.iter().any(|known| known.address() == address.address());
        if !is_known && self.addresses.len() < ADDRESSES_MAX {
            self.addresses.push(address);
        }
    }

    /// The address that the MAC gives in a prefix (RFC 4291, appendix A).
    fn address_in(&self, network: Ipv6Addr) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.mac;
        let mut bytes = network.octets();
        bytes[8..].copy_from_slice(&[a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
        bytes.into()
    }

    /// Asks routers to announce themselves (RFC 4861 §4.1).
    fn solicit(&self, socket: &mut raw::Socket<'static>) {
        let source = self.address_in(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0));
        let solicitation =
            Icmpv6Repr::Ndisc(NdiscRepr::RouterSolicit { lladdr: Some(EthernetAddress(self.mac).into()) });
        let header = Ipv6Repr {
            src_addr: source,
            dst_addr: ALL_ROUTERS,
            next_header: IpProtocol::Icmpv6,
            payload_len: solicitation.buffer_len(),
            hop_limit: 255,
        };
        // With the buffer full nobody hears it; it is sent again.
        let Ok(bytes) = socket.send(header.buffer_len() + solicitation.buffer_len()) else { return };
        header.emit(&mut Ipv6Packet::new_unchecked(&mut *bytes));
        let message = &mut Icmpv6Packet::new_unchecked(&mut bytes[header.buffer_len()..]);
        solicitation.emit(&source, &ALL_ROUTERS, message, &ChecksumCapabilities::default());
    }

    /// Solicits an address from DHCPv6, to be given at once.
    fn ask(&self, socket: &mut udp::Socket<'static>) {
        const SOLICIT: u8 = 1;
        let [a, b, c] = self.transaction();
        let mut message = vec![SOLICIT, a, b, c];
        // Client identifier: type 3, of Ethernet (1).
        message.extend_from_slice(&[0, 1, 0, 10, 0, 3, 0, 1]);
        message.extend_from_slice(&self.mac);
        // One association, without an address; options asked for: name servers; elapsed time; rapid commit.
        message.extend_from_slice(&[0, 3, 0, 12, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        message.extend_from_slice(&[0, 6, 0, 2, 0, 23, 0, 8, 0, 2, 0, 0, 0, 14, 0, 0]);
        // With the buffer full nobody hears it; it is sent again.
        let _ = socket.send_slice(&message, (ALL_DHCP_SERVERS, DHCP_SERVER_PORT));
    }

    /// The same for all exchanges: there is one at a time, and each has the same answer.
    fn transaction(&self) -> [u8; 3] {
        let [.., a, b, c] = self.mac;
        [a, b, c]
    }

    fn show(&self, name: &str, before: &[Ipv6Cidr]) {
        for address in &self.addresses {
            match self.gateway {
                Some(gateway) => println!("{name}: address {address} gateway {gateway}"),
                None => println!("{name}: address {address} gateway none"),
            }
        }
        for address in before.iter().filter(|address| !self.addresses.contains(address)) {
            println!("{name}: address {address} lost");
        }
    }
}
