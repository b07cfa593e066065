//! One IP stack on one network device: its address by DHCP (RFC 2131, RFC 3442), what it has by IPv6, its routes, its
//! sockets.
//!
//! Must never know: what is said over the sockets.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use core::cell::{Cell, RefCell};
use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smoltcp::iface::{Config, Context, Interface, PollResult, Route, SocketHandle, SocketSet};
use smoltcp::phy::{Device as _, TxToken as _};
use smoltcp::socket::{AnySocket, dhcpv4};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr,
    IpAddress, IpCidr, Ipv4Cidr,
};

use crate::clock::{Clock, counter};
use crate::ipv6::Ipv6;
use crate::nic::{MTU_MAX, Nic};
use crate::parse::dhcp::{LeaseRoute, classless_routes};
use crate::println;
use crate::wire::Wire;

/// Where the metadata service answers.
const METADATA_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// The same by IPv6, on the link.
const METADATA_ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe);
/// The least MTU believed, in bytes: what IPv4 asks of every link (RFC 791).
const MTU_MIN: usize = 576;
/// The largest DHCP answer kept, in bytes: one frame.
const DHCP_BYTES_MAX: usize = 1500;
/// Routes the stack has room for; its feature `iface-max-route-count-8`.
const ROUTES_MAX: usize = 8;

const OPTION_MTU: u8 = 26;
const OPTION_CLASSLESS_ROUTES: u8 = 121;
/// Asked for: mask, router, name servers, host name, MTU, classless routes.
const OPTIONS: &[u8] = &[1, 3, 6, 12, OPTION_MTU, OPTION_CLASSLESS_ROUTES];
/// How long an answer is waited for before asking again: a network may come up later than its guest.
const DHCP_RETRY: Duration = Duration::from_secs(1);

/// What DHCP gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Our address and the length of its prefix.
    pub address: Ipv4Cidr,
    /// The default route's next hop.
    pub gateway: Option<Ipv4Addr>,
    /// The server, which answers for the metadata address where there is no gateway.
    server: Ipv4Addr,
    routes: [Option<LeaseRoute>; ROUTES_MAX],
    /// Who knows names.
    name_server: Option<Ipv4Addr>,
    /// The MTU in bytes.
    pub mtu: usize,
}

impl Lease {
    /// Who is asked for by ARP when something is sent to `target`.
    pub fn next_hop(&self, target: Ipv4Addr) -> Ipv4Addr {
        if self.address.contains_addr(&target) {
            return target;
        }
        let leading = routes_of(self).filter(|route| route.cidr.contains_addr(&target.into()));
        match leading.max_by_key(|route| route.cidr.prefix_len()).map(|route| route.via_router) {
            Some(IpAddress::Ipv4(hop)) => hop,
            Some(IpAddress::Ipv6(_)) | None => target,
        }
    }
}

impl fmt::Display for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "address {} gateway ", self.address)?;
        match self.gateway {
            Some(gateway) => write!(f, "{gateway}")?,
            None => f.write_str("none")?,
        }
        write!(f, " mtu {}", self.mtu)
    }
}

/// One stack.
pub struct Stack {
    name: String,
    slot: Option<u8>,
    nic: Nic,
    inner: RefCell<Inner>,
    lease: RefCell<Option<Lease>>,
    next_port: Cell<u16>,
}

struct Inner {
    nic: Nic,
    interface: Interface,
    sockets: SocketSet<'static>,
    dhcp: SocketHandle,
    ipv6: Ipv6,
}

impl Stack {
    /// A stack on `nic`, the `index`-th of the machine, in this slot if it is on PCI; it asks for an address at once.
    pub fn new(nic: Nic, slot: Option<u8>, index: usize, clock: &Clock) -> Self {
        let mut dhcp = dhcpv4::Socket::new();
        dhcp.set_parameter_request_list(OPTIONS);
        dhcp.set_receive_packet_buffer(Box::leak(Box::new([0; DHCP_BYTES_MAX])));
        let mut retries = dhcp.get_retry_config();
        retries.discover_timeout = DHCP_RETRY;
        retries.initial_request_timeout = DHCP_RETRY;
        dhcp.set_retry_config(retries);
        let mut sockets = SocketSet::new(vec![]);
        let dhcp = sockets.add(dhcp);
        let name = if index == 0 { String::from("net") } else { format!("net{index}") };
        let ipv6 = Ipv6::new(nic.mac(), &mut sockets, now(clock));
        let interface = interface(&mut nic.clone(), clock);
        let mut inner = Inner { nic: nic.clone(), interface, sockets, dhcp, ipv6 };
        inner.apply(None, clock);
        Stack {
            name,
            slot,
            nic,
            inner: RefCell::new(inner),
            lease: RefCell::new(None),
            // Ephemeral ports (RFC 6335 §6), from a place that differs between boots.
            next_port: Cell::new(49152 | counter() as u16 & 0x3fff),
        }
    }

    /// The device's slot, if it is on PCI.
    pub fn slot(&self) -> Option<u8> {
        self.slot
    }

    /// The MAC address.
    pub fn mac(&self) -> [u8; 6] {
        self.nic.mac()
    }

    /// Says on the console what it is on.
    pub fn introduce(&self) {
        let [a, b, c, d, e, f] = self.mac();
        println!("{}: mac {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}", self.name);
    }

    /// What DHCP gave, if it has.
    pub fn lease(&self) -> Option<Lease> {
        self.lease.borrow().clone()
    }

    /// An address of ours, one of IPv4 rather than another.
    pub fn address(&self) -> Option<IpAddr> {
        let lease = self.lease.borrow().as_ref().map(|lease| IpAddr::V4(lease.address.address()));
        lease.or_else(|| self.inner.borrow().ipv6.address().map(IpAddr::V6))
    }

    /// Where the metadata service is to be asked.
    pub fn metadata_address(&self) -> IpAddr {
        match &*self.lease.borrow() {
            Some(_) => METADATA_ADDRESS.into(),
            None => METADATA_ADDRESS_V6.into(),
        }
    }

    /// Who is to be asked about names, if somebody is.
    pub fn name_server(&self) -> Option<IpAddr> {
        match &*self.lease.borrow() {
            Some(lease) => lease.name_server.map(IpAddr::V4),
            // Whoever answers for metadata on the link does for names.
            None => Some(METADATA_ADDRESS_V6.into()),
        }
    }

    /// A port for a connection of ours.
    pub fn ephemeral_port(&self) -> u16 {
        let port = self.next_port.get();
        self.next_port.set(if port == u16::MAX { 49152 } else { port + 1 });
        port
    }

    /// Adds a socket.
    pub fn add<T: AnySocket<'static>>(&self, socket: T) -> SocketHandle {
        self.inner.borrow_mut().sockets.add(socket)
    }

    /// Removes a socket.
    pub fn remove(&self, handle: SocketHandle) {
        self.inner.borrow_mut().sockets.remove(handle);
    }

    /// Does something with a socket.
    pub fn with<T: AnySocket<'static>, R>(
        &self,
        handle: SocketHandle,
        act: impl FnOnce(&mut T, &mut Context) -> R,
    ) -> R {
        let inner = &mut *self.inner.borrow_mut();
        act(inner.sockets.get_mut::<T>(handle), inner.interface.context())
    }

    /// Asks the link for the next hop to `target`, ahead of the first packet: the stack itself asks for one address
    /// a second, whichever it is, and would let the second one wait.
    pub fn seek(&self, target: Ipv4Addr, clock: &Clock) {
        if let Some(lease) = &*self.lease.borrow() {
            let hop = lease.next_hop(target);
            self.inner.borrow_mut().ask(lease.address.address(), hop, clock);
        }
    }

    /// Asks for an address as one that has none, with ports from another place: the machine is another.
    pub fn renew(&self, random: u64, clock: &Clock) {
        self.next_port.set(49152 | random as u16 & 0x3fff);
        let inner = &mut *self.inner.borrow_mut();
        inner.interface = interface(&mut inner.nic.clone(), clock);
        inner.apply(None, clock);
        *self.lease.borrow_mut() = None;
        inner.sockets.get_mut::<dhcpv4::Socket<'_>>(inner.dhcp).reset();
    }

    /// Lends the device to a load; none if it is not fit for one. Meanwhile nothing comes in and nothing goes out here.
    pub fn lend<R>(&self, load: impl FnOnce(Option<Wire>) -> R) -> R {
        self.nic.lend(load)
    }

    /// Tells the device that its interrupt was noticed.
    pub fn acknowledge(&self) {
        self.nic.acknowledge();
    }

    /// Whether a frame came in that nobody has looked at.
    pub fn has_frames(&self) -> bool {
        self.nic.has_frames()
    }

    /// Takes what came in, sends what waits; true if a socket may have changed.
    pub fn poll(&self, clock: &Clock) -> bool {
        let inner = &mut *self.inner.borrow_mut();
        let mut moved = inner.interface.poll(now(clock), &mut inner.nic, &mut inner.sockets)
            == PollResult::SocketStateChanged;
        if inner.ipv6.poll(&self.name, &mut inner.sockets, now(clock)) {
            moved = true;
            inner.apply(self.lease.borrow().as_ref(), clock);
        }
        let lease = match inner.sockets.get_mut::<dhcpv4::Socket<'_>>(inner.dhcp).poll() {
            None => {
                inner.nic.kick();
                return moved;
            }
            Some(dhcpv4::Event::Deconfigured) => None,
            Some(dhcpv4::Event::Configured(config)) => Some(lease(&config)),
        };
        if lease != *self.lease.borrow() {
            moved = true;
            match &lease {
                Some(lease) => println!("{}: {lease}", self.name),
                None => println!("{}: address lost", self.name),
            }
            inner.apply(lease.as_ref(), clock);
            if let Some(lease) = &lease {
                // Who already waits for this address goes on at once, and who remembers a former owner forgets it
                // (RFC 5227 §3).
                let address = lease.address.address();
                inner.ask(address, address, clock);
                lease.gateway.into_iter().for_each(|gateway| inner.ask(address, gateway, clock));
            }
            *self.lease.borrow_mut() = lease;
        }
        inner.nic.kick();
        moved
    }

    /// When the stack wants to be polled next, in nanoseconds since the start.
    pub fn poll_at_ns(&self, clock: &Clock) -> Option<u64> {
        let inner = &mut *self.inner.borrow_mut();
        let at = inner.interface.poll_at(now(clock), &inner.sockets);
        let at = at.into_iter().chain(inner.ipv6.poll_at()).min()?;
        Some(at.total_micros().max(0) as u64 * 1000)
    }
}

impl Inner {
    fn apply(&mut self, lease: Option<&Lease>, clock: &Clock) {
        let mtu = lease.map_or(MTU_MAX, |lease| lease.mtu);
        if mtu != self.nic.mtu() {
            // The interface reads its device's MTU only when it is made; the sockets live on.
            self.nic.set_mtu(mtu);
            self.interface = interface(&mut self.nic, clock);
        }
        self.interface.update_ip_addrs(|addresses| {
            addresses.clear();
            // Room for four (`iface-max-addr-count-4`), and the list is empty.
            for address in
                lease.map(|lease| IpCidr::Ipv4(lease.address)).into_iter().chain(self.ipv6.addresses())
            {
                let _ = addresses.push(address);
            }
        });
        let routes = self.interface.routes_mut();
        routes.remove_default_ipv4_route();
        routes.update(|routes| {
            routes.clear();
            for route in self.ipv6.route().into_iter().chain(lease.into_iter().flat_map(routes_of)) {
                // More than fit are left out.
                let _ = routes.push(route);
            }
        });
    }
}

impl Inner {
    /// Asks the link for `target`'s MAC address.
    fn ask(&mut self, address: Ipv4Addr, target: Ipv4Addr, clock: &Clock) {
        let mac = EthernetAddress(self.nic.mac());
        let arp = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr: mac,
            source_protocol_addr: address,
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: target,
        };
        let ethernet = EthernetRepr {
            src_addr: mac,
            dst_addr: EthernetAddress::BROADCAST,
            ethertype: EthernetProtocol::Arp,
        };
        // With all buffers out, nobody hears it; the stack asks by itself, only later.
        let Some(token) = self.nic.transmit(now(clock)) else { return };
        token.consume(ethernet.buffer_len() + arp.buffer_len(), |bytes| {
            let mut frame = EthernetFrame::new_unchecked(bytes);
            ethernet.emit(&mut frame);
            arp.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
        });
    }
}

/// The stack's routes for a lease. Where none leads to the metadata service, the DHCP server answers for it.
fn routes_of(lease: &Lease) -> impl Iterator<Item = Route> + '_ {
    let leads_to_metadata = |route: &LeaseRoute| {
        Ipv4Cidr::new(route.destination, route.prefix_len).contains_addr(&METADATA_ADDRESS)
    };
    let known = lease.gateway.is_some() || lease.routes.iter().flatten().any(leads_to_metadata);
    let metadata = LeaseRoute { destination: METADATA_ADDRESS, prefix_len: 32, next_hop: lease.server };
    let gateway = lease.gateway.map(|next_hop| LeaseRoute {
        destination: Ipv4Addr::UNSPECIFIED,
        prefix_len: 0,
        next_hop,
    });
    let rest = lease.routes.iter().flatten().filter(|route| route.prefix_len != 0).copied();
    gateway.into_iter().chain((!known).then_some(metadata)).chain(rest).take(ROUTES_MAX).map(|route| Route {
        cidr: IpCidr::Ipv4(Ipv4Cidr::new(route.destination, route.prefix_len)),
        // On the link: the destination is asked for by ARP when it is its own next hop.
        via_router: if route.next_hop.is_unspecified() { route.destination } else { route.next_hop }.into(),
        preferred_until: None,
        expires_at: None,
    })
}

/// Reads a lease. With classless routes the router option is ignored (RFC 3442).
fn lease(config: &dhcpv4::Config<'_>) -> Lease {
    let mut lease = Lease {
        address: config.address,
        gateway: config.router,
        server: config.server.identifier,
        routes: [None; ROUTES_MAX],
        name_server: config.dns_servers.first().copied(),
        mtu: MTU_MAX,
    };
    for option in config.packet.iter().flat_map(|packet| packet.options()) {
        match (option.kind, option.data) {
            (OPTION_MTU, &[high, low]) => {
                lease.mtu = usize::from(u16::from_be_bytes([high, low])).clamp(MTU_MIN, MTU_MAX);
            }
            (OPTION_CLASSLESS_ROUTES, data) => {
                for (slot, route) in lease.routes.iter_mut().zip(classless_routes(data)) {
                    *slot = Some(route);
                }
                let default = lease.routes.iter().flatten().find(|route| route.prefix_len == 0);
                lease.gateway = default.map(|route| route.next_hop);
            }
            _ => {}
        }
    }
    lease
}

fn interface(nic: &mut Nic, clock: &Clock) -> Interface {
    let mac = nic.mac();
    let mut config = Config::new(EthernetAddress(mac).into());
    // Unlike between guests by the MAC, between boots by the counter.
    config.random_seed =
        counter() ^ u64::from_le_bytes([mac[0], mac[1], mac[2], mac[3], mac[4], mac[5], 0, 0]) << 16;
    Interface::new(config, nic, now(clock))
}

fn now(clock: &Clock) -> Instant {
    Instant::from_micros((clock.now_ns() / 1000) as i64)
}
