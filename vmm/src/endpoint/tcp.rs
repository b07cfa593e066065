//! TCP on addresses of the endpoint: a handful of connections to one port, in a stack that exists only while there are
//! any.
//!
//! Memory per connection is fixed ([`RECEIVE_BYTES_MAX`], [`SEND_BYTES_MAX`]), the number of connections is
//! [`CONNECTIONS_MAX`], and a connection without progress ends after [`IDLE_MAX`]. A guest beyond these waits for
//! its own retransmission; it costs no more than that.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rustix::rand::{GetRandomFlags, getrandom};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpEndpoint};

use super::http::Response;

/// Connections at a time: boot scripts open one after the other, a few in parallel at most.
pub(super) const CONNECTIONS_MAX: usize = 8;
/// Receive window in bytes: requests are read as they come.
const RECEIVE_BYTES_MAX: usize = 2048;
/// Send buffer in bytes: bodies are refilled from the tree.
const SEND_BYTES_MAX: usize = 8192;
/// A connection that neither sends nor takes anything for this long is cut.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(15);
/// Requests on one connection before the server closes it.
const REQUESTS_MAX: u32 = 256;
/// Rounds between sockets and stack per frame; each round moves at least one segment, so this bounds the work
/// that one frame causes.
const ROUNDS_MAX: usize = 32;
/// The IP MTU that the stack sends with at most: what fits any network without thought.
const MTU_MAX: u16 = 1500;

/// What is served to connections.
pub(super) trait Application {
    /// Answers the first request in what a connection has received, and how many bytes of it that took; none while
    /// more is needed, or thought about.
    fn answer(&mut self, connection: u32, received: &[u8]) -> Option<(Response, usize)>;

    /// What follows an answer that names it.
    fn body(&self, _path: &str) -> &[u8] {
        &[]
    }

    /// Whether a connection will have an answer without a word more of it.
    fn is_thinking(&self, _connection: u32) -> bool {
        false
    }

    /// A connection is over.
    fn closed(&mut self, _connection: u32) {}
}

/// Where something is served.
#[derive(Debug, Clone)]
pub(super) struct Site {
    /// Two at most.
    pub(super) addresses: Vec<std::net::IpAddr>,
    pub(super) port: u16,
    /// What answers for the addresses, by IPv4 and by IPv6.
    pub(super) macs: [[u8; 6]; 2],
    /// The longest request in bytes.
    pub(super) request_bytes_max: usize,
}

/// The TCP stack of one guest.
pub(super) struct TcpService {
    site: Site,
    guest_mac: [u8; 6],
    next_connection: u32,
    started: Instant,
    interface: Interface,
    wire: Wire,
    sockets: SocketSet<'static>,
    connections: Vec<Connection>,
}

struct Connection {
    number: u32,
    handle: SocketHandle,
    /// Bytes of requests not answered yet.
    received: Vec<u8>,
    sending: Option<Sending>,
    requests: u32,
    last_progress: Instant,
}

struct Sending {
    response: Response,
    /// Bytes of head and body given to the socket so far.
    sent: usize,
}

impl TcpService {
    pub(super) fn new(site: Site, guest_mac: [u8; 6], mtu: u16, now: Instant) -> Self {
        let mut wire = Wire { mtu: usize::from(mtu.min(MTU_MAX)), ..Wire::default() };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = random_seed();
        let mut interface = Interface::new(config, &mut wire, StackInstant::ZERO);
        // Prefix length 0: whoever asks is reached directly.
        interface.update_ip_addrs(|addresses| {
            for own in &site.addresses {
                addresses
                    .push(IpCidr::new(IpAddress::from(*own), 0))
                    .expect("invariant: an interface has room for two addresses");
            }
        });
        Self {
            site,
            guest_mac,
            next_connection: 0,
            started: now,
            interface,
            wire,
            sockets: SocketSet::new(Vec::new()),
            connections: Vec::new(),
        }
    }

    /// Takes in one packet; [`Self::poll`] works it off.
    pub(super) fn accept(&mut self, packet: &[u8], header_bytes: usize, now: Instant) {
        if let Some(source) = opening(packet, header_bytes, self.site.port)
            && !self.connections.iter().any(|connection| self.remote(connection) == Some(source))
            && !self.listen(now)
        {
            // Not even a reset: the guest's stack tries again by itself.
            return;
        }
        self.wire.inbound = Some(packet.to_vec());
    }

    /// Lets stack and server work, with room for `room` frames; they are added to `frames`.
    pub(super) fn poll(
        &mut self,
        application: &mut dyn Application,
        now: Instant,
        room: usize,
        frames: &mut VecDeque<Vec<u8>>,
    ) {
        self.wire.room = room;
        for _ in 0..ROUNDS_MAX {
            let time = self.stack_time(now);
            let stack = self.interface.poll(time, &mut self.wire, &mut self.sockets);
            let served = self.serve(application, now);
            if stack == smoltcp::iface::PollResult::None && !served {
                break;
            }
        }
        self.remove_closed(application);
        let (guest_mac, [mac, mac_v6]) = (self.guest_mac, self.site.macs);
        frames.extend(self.wire.outbound.drain(..).map(|packet| {
            let is_ipv6 = packet.first().is_some_and(|byte| byte >> 4 == 6);
            let mac = if is_ipv6 { mac_v6 } else { mac };
            [&ethernet_header(mac, guest_mac, is_ipv6)[..], &packet].concat()
        }));
    }

    /// When [`Self::poll`] is due.
    pub(super) fn poll_delay(&mut self, now: Instant) -> Option<Duration> {
        let time = self.stack_time(now);
        let stack = self.interface.poll_delay(time, &self.sockets).map(Duration::from);
        let idle = self.connections.iter().map(|connection| connection.last_progress + IDLE_MAX).min();
        let idle = idle.map(|deadline| deadline.saturating_duration_since(now));
        stack.into_iter().chain(idle).min()
    }

    /// Nothing is open: the stack can go.
    pub(super) fn is_idle(&self) -> bool {
        self.connections.is_empty()
    }

    fn stack_time(&self, now: Instant) -> StackInstant {
        let elapsed = now.saturating_duration_since(self.started);
        StackInstant::from_micros(i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX))
    }

    fn remote(&self, connection: &Connection) -> Option<IpEndpoint> {
        self.sockets.get::<Socket<'_>>(connection.handle).remote_endpoint()
    }

    /// Adds a socket that waits for a connection; false if there are enough.
    fn listen(&mut self, now: Instant) -> bool {
        if self.connections.len() >= CONNECTIONS_MAX {
            return false;
        }
        let buffer = |bytes| SocketBuffer::new(vec![0; bytes]);
        let mut socket = Socket::new(buffer(RECEIVE_BYTES_MAX), buffer(SEND_BYTES_MAX));
        socket.set_ack_delay(None);
        if socket.listen(self.site.port).is_err() {
            return false;
        }
        let number = self.next_connection;
        self.next_connection = number.wrapping_add(1);
        self.connections.push(Connection {
            number,
            handle: self.sockets.add(socket),
            received: Vec::new(),
            sending: None,
            requests: 0,
            last_progress: now,
        });
        true
    }

    /// Moves bytes between sockets and requests; true if anything moved.
    fn serve(&mut self, application: &mut dyn Application, now: Instant) -> bool {
        let mut moved = false;
        for connection in &mut self.connections {
            let socket = self.sockets.get_mut::<Socket<'_>>(connection.handle);
            moved |= connection.serve(socket, application, self.site.request_bytes_max, now);
        }
        moved
    }

    /// Forgets sockets that are closed, that wait for nothing but old segments, or that no connection came to.
    fn remove_closed(&mut self, application: &mut dyn Application) {
        let sockets = &mut self.sockets;
        self.connections.retain(|connection| {
            let state = sockets.get::<Socket<'_>>(connection.handle).state();
            let over = matches!(state, State::Closed | State::TimeWait | State::Listen);
            if over {
                sockets.remove(connection.handle);
                application.closed(connection.number);
            }
            !over
        });
    }
}

impl Connection {
    fn serve(
        &mut self,
        socket: &mut Socket<'_>,
        application: &mut dyn Application,
        request_bytes_max: usize,
        now: Instant,
    ) -> bool {
        let mut moved = self.receive(socket, request_bytes_max);
        moved |= self.send(socket, application);
        if moved {
            self.last_progress = now;
        } else if socket.is_active() && now.saturating_duration_since(self.last_progress) >= IDLE_MAX {
            socket.abort();
            moved = true;
        }
        let waits = self.sending.is_some() || socket.can_recv() || application.is_thinking(self.number);
        if socket.state() == State::CloseWait && !waits {
            socket.close();
            moved = true;
        }
        moved
    }

    /// Reads what came; never more than one request's worth is kept.
    fn receive(&mut self, socket: &mut Socket<'_>, bytes_max: usize) -> bool {
        let room = bytes_max - self.received.len().min(bytes_max);
        if room == 0 || !socket.can_recv() {
            return false;
        }
        let read = socket.recv(|bytes| {
            let length = bytes.len().min(room);
            self.received.extend_from_slice(&bytes[..length]);
            (length, length)
        });
        read.is_ok_and(|length| length > 0)
    }

    /// Answers complete requests, one after the other.
    fn send(&mut self, socket: &mut Socket<'_>, application: &mut dyn Application) -> bool {
        if self.sending.is_none()
            && !self.received.is_empty()
            && socket.may_send()
            && let Some((mut response, taken)) = application.answer(self.number, &self.received)
        {
            self.received.drain(..taken.min(self.received.len()));
            self.requests += 1;
            response.close |= self.requests >= REQUESTS_MAX;
            self.sending = Some(Sending { response, sent: 0 });
        }
        let Some(sending) = &mut self.sending else { return false };
        let body = sending.response.body_of.as_deref().map(|path| application.body(path)).unwrap_or_default();
        let mut moved = false;
        for (start, part) in [(0, &sending.response.bytes[..]), (sending.response.bytes.len(), body)] {
            let done = sending.sent.saturating_sub(start);
            if let Some(rest) = part.get(done..).filter(|rest| !rest.is_empty())
                && sending.sent >= start
                && let Ok(sent) = socket.send_slice(rest)
            {
                sending.sent += sent;
                moved |= sent > 0;
            }
        }
        if sending.sent >= sending.response.bytes.len() + body.len() {
            if sending.response.close {
                self.received.clear();
                socket.close();
            }
            self.sending = None;
            moved = true;
        }
        moved
    }
}

/// Where a connection attempt comes from, if `packet` is one to this port.
fn opening(packet: &[u8], header_bytes: usize, port: u16) -> Option<IpEndpoint> {
    let header = etherparse::TcpHeaderSlice::from_slice(packet.get(header_bytes..)?).ok()?;
    let source = match packet.first()? >> 4 {
        6 => IpAddress::from(std::net::Ipv6Addr::from(*packet.get(8..24)?.first_chunk::<16>()?)),
        _ => IpAddress::from(std::net::Ipv4Addr::from(*packet.get(12..16)?.first_chunk::<4>()?)),
    };
    let opens = header.syn() && !header.ack() && header.destination_port() == port;
    opens.then(|| IpEndpoint::new(source, header.source_port()))
}

/// Sequence numbers that a guest cannot guess; a poor seed harms nobody but the guest itself.
fn random_seed() -> u64 {
    let mut seed = [0; 8];
    match getrandom(&mut seed, GetRandomFlags::empty()) {
        Ok(_) => u64::from_ne_bytes(seed),
        Err(_) => 0,
    }
}

fn ethernet_header(source: [u8; 6], destination: [u8; 6], is_ipv6: bool) -> [u8; 14] {
    let ether_type = if is_ipv6 { etherparse::EtherType::IPV6 } else { etherparse::EtherType::IPV4 };
    etherparse::Ethernet2Header { source, destination, ether_type }.to_bytes()
}

/// The stack's device: at most one packet in, and as many out as there is room for.
#[derive(Default)]
struct Wire {
    mtu: usize,
    room: usize,
    inbound: Option<Vec<u8>>,
    outbound: VecDeque<Vec<u8>>,
}

impl Wire {
    fn has_room(&self) -> bool {
        self.outbound.len() < self.room
    }
}

impl Device for Wire {
    type RxToken<'a> = Packet;
    type TxToken<'a> = Outlet<'a>;

    fn receive(&mut self, _timestamp: StackInstant) -> Option<(Packet, Outlet<'_>)> {
        // Without room for the reply the packet is lost, as on any full wire.
        let packet = self.inbound.take().filter(|_| self.has_room())?;
        Some((Packet(packet), Outlet(&mut self.outbound)))
    }

    fn transmit(&mut self, _timestamp: StackInstant) -> Option<Outlet<'_>> {
        if self.has_room() { Some(Outlet(&mut self.outbound)) } else { None }
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut checksum = ChecksumCapabilities::default();
        checksum.ipv4 = Checksum::Tx;
        checksum.tcp = Checksum::Tx;
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities.checksum = checksum;
        capabilities
    }
}

struct Packet(Vec<u8>);

impl RxToken for Packet {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Outlet<'a>(&'a mut VecDeque<Vec<u8>>);

impl TxToken for Outlet<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push_back(packet);
        result
    }
}
