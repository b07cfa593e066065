//! Questions about names (RFC 1035), over UDP and TCP: carried to somebody else and back to who asked. The guest is
//! told this address where its subnet names no name servers.
//!
//! A guest has at most [`OUTSTANDING_MAX`] questions under way on a device; one that nobody answers is forgotten after
//! [`PATIENCE`]. Must never know: what is asked, who answers.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;

use super::http::Response;
use super::tcp::{Application, Site, TcpService};
use super::{METADATA_ADDRESS_V6, OWN_MAC};
use crate::questions::{ANSWER_BYTES_MAX, Message, QUESTION_BYTES_MAX, Question};

/// The port of name servers.
pub(super) const PORT: u16 = 53;
/// Questions of one device under way: what a busy resolver asks at once; further ones are lost, as on any network.
pub(super) const OUTSTANDING_MAX: usize = 32;
/// How long an answer may take: longer than whoever answers tries.
pub(super) const PATIENCE: Duration = Duration::from_secs(12);
/// The header that every message has (RFC 1035 §4.1.1).
const HEADER_BYTES: usize = 12;
/// Bytes before an answer in its frame, at most: IPv6 and UDP.
const PACKET_HEADER_BYTES: u16 = 40 + 8;
/// The longest answer by UDP, in bytes: what passes everywhere in one piece (DNS flag day 2020).
const UDP_BYTES_MAX: u16 = 1232;

/// Who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asker {
    /// Its address and the one that was asked.
    pub(super) addresses: (IpAddr, IpAddr),
    /// Its port.
    pub(super) port: u16,
}

/// What becomes of an answer.
#[derive(Debug)]
enum Back {
    Udp(Asker),
    /// Once it is there, the connection fetches it.
    Tcp {
        connection: u32,
        question_bytes: usize,
        answer: Option<Vec<u8>>,
    },
}

#[derive(Debug)]
struct Outstanding {
    number: u32,
    since: Instant,
    back: Back,
}

/// The questions of one device.
#[derive(Debug)]
struct Desk {
    guest_mac: [u8; 6],
    udp_bytes_max: u16,
    asked: VecDeque<Question>,
    outstanding: Vec<Outstanding>,
    next_number: u32,
    now: Instant,
}

/// The resolver's end at one guest's device.
pub(super) struct Resolver {
    server: Option<Ipv4Addr>,
    server_mac: [u8; 6],
    mtu: u16,
    desk: Desk,
    /// Exists only while the guest has connections to it.
    tcp: Option<Box<TcpService>>,
}

impl Resolver {
    /// At the address `server`, for which `server_mac` answers, and at [`METADATA_ADDRESS_V6`].
    pub(super) fn new(
        server: Option<Ipv4Addr>,
        server_mac: [u8; 6],
        guest_mac: [u8; 6],
        mtu: u16,
        now: Instant,
    ) -> Self {
        let udp_bytes_max = mtu.saturating_sub(PACKET_HEADER_BYTES).min(UDP_BYTES_MAX);
        let (asked, outstanding) = (VecDeque::new(), Vec::new());
        let desk = Desk { guest_mac, udp_bytes_max, asked, outstanding, next_number: 0, now };
        Self { server, server_mac, mtu, desk, tcp: None }
    }

    /// Whether this is an address of the resolver's.
    pub(super) fn is_at(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.server == Some(address),
            IpAddr::V6(address) => address == METADATA_ADDRESS_V6,
        }
    }

    /// Takes in a question by UDP.
    pub(super) fn asked_by_udp(&mut self, asker: Asker, message: &[u8], now: Instant) {
        self.desk.now = now;
        self.desk.ask(Back::Udp(asker), message);
    }

    /// Takes in a packet of TCP.
    pub(super) fn accept(&mut self, packet: &[u8], header_bytes: usize, now: Instant) {
        let (server, server_mac, mtu) = (self.server, self.server_mac, self.mtu);
        let guest_mac = self.desk.guest_mac;
        let tcp = self.tcp.get_or_insert_with(|| {
            let addresses = [server.map(IpAddr::V4), Some(METADATA_ADDRESS_V6.into())];
            let site = Site {
                addresses: addresses.into_iter().flatten().collect(),
                port: PORT,
                macs: [server_mac, OWN_MAC],
                request_bytes_max: 2 + QUESTION_BYTES_MAX,
            };
            Box::new(TcpService::new(site, guest_mac, mtu, now))
        });
        tcp.accept(packet, header_bytes, now);
    }

    /// Lets time pass; frames for the guest are added where there is room for `room`.
    pub(super) fn poll(&mut self, now: Instant, room: usize, frames: &mut VecDeque<Vec<u8>>) {
        self.desk.now = now;
        let Some(tcp) = &mut self.tcp else { return };
        tcp.poll(&mut self.desk, now, room, frames);
        if tcp.is_idle() {
            self.tcp = None;
        }
    }

    /// When [`Self::poll`] is due, if ever.
    pub(super) fn poll_delay(&mut self, now: Instant) -> Option<Duration> {
        self.tcp.as_mut().and_then(|tcp| tcp.poll_delay(now))
    }

    /// Whether there are connections.
    pub(super) fn is_connected(&self) -> bool {
        self.tcp.is_some()
    }

    /// The next question for whoever answers.
    pub(super) fn next_question(&mut self) -> Option<Question> {
        self.desk.asked.pop_front()
    }

    /// Takes the answer to a question; the frame for the guest if it asked by UDP. One that nobody waits for is lost.
    pub(super) fn answered(&mut self, number: u32, message: &[u8]) -> Option<Vec<u8>> {
        let at = self.desk.outstanding.iter().position(|outstanding| outstanding.number == number)?;
        if let Back::Tcp { answer, .. } = &mut self.desk.outstanding[at].back {
            *answer = Some(message.to_vec()).filter(|message| message.len() <= ANSWER_BYTES_MAX);
            return None;
        }
        let Back::Udp(asker) = self.desk.outstanding.swap_remove(at).back else { return None };
        let fits = message.len() <= usize::from(self.desk.udp_bytes_max);
        fits.then(|| self.frame(asker, message)).flatten()
    }

    fn frame(&self, asker: Asker, message: &[u8]) -> Option<Vec<u8>> {
        let guest_mac = self.desk.guest_mac;
        let builder = match asker.addresses {
            (IpAddr::V4(guest), IpAddr::V4(server)) => {
                PacketBuilder::ethernet2(self.server_mac, guest_mac).ipv4(server.octets(), guest.octets(), 64)
            }
            (IpAddr::V6(guest), IpAddr::V6(server)) => {
                PacketBuilder::ethernet2(OWN_MAC, guest_mac).ipv6(server.octets(), guest.octets(), 64)
            }
            _ => return None,
        };
        let builder = builder.udp(PORT, asker.port);
        let mut frame = Vec::with_capacity(builder.size(message.len()));
        builder.write(&mut frame, message).ok()?;
        Some(frame)
    }
}

impl Desk {
    /// Passes a question on; false if it is none, or too many are under way.
    fn ask(&mut self, back: Back, message: &[u8]) -> bool {
        let now = self.now;
        self.outstanding.retain(|one| now.saturating_duration_since(one.since) < PATIENCE);
        let is_one = (HEADER_BYTES..=QUESTION_BYTES_MAX).contains(&message.len());
        if !is_one || self.outstanding.len() >= OUTSTANDING_MAX {
            return false;
        }
        let number = self.next_number;
        self.next_number = number.wrapping_add(1);
        let tcp = matches!(back, Back::Tcp { .. });
        let answer_bytes_max = if tcp { ANSWER_BYTES_MAX } else { usize::from(self.udp_bytes_max) };
        self.outstanding.push(Outstanding { number, since: now, back });
        self.asked.push_back(Question {
            mac: self.guest_mac,
            vlan: None,
            number,
            tcp,
            answer_bytes_max: answer_bytes_max as u32,
            message: Message::from(message.to_vec()),
        });
        true
    }

    fn of(&self, connection: u32) -> Option<usize> {
        let is_its =
            |one: &Outstanding| matches!(one.back, Back::Tcp { connection: its, .. } if its == connection);
        self.outstanding.iter().position(is_its)
    }
}

/// Each message has its length before it (RFC 1035 §4.2.2). One after the other is answered.
impl Application for Desk {
    fn answer(&mut self, connection: u32, received: &[u8]) -> Option<(Response, usize)> {
        let said = |bytes: Vec<u8>, close| Response { bytes, body_of: None, close };
        if let Some(at) = self.of(connection) {
            let Back::Tcp { question_bytes, answer: Some(answer), .. } = &self.outstanding[at].back else {
                return None;
            };
            let bytes = [&(answer.len() as u16).to_be_bytes()[..], answer].concat();
            let taken = *question_bytes;
            self.outstanding.swap_remove(at);
            return Some((said(bytes, false), taken));
        }
        let (length, rest) = received.split_first_chunk::<2>()?;
        let length = usize::from(u16::from_be_bytes(*length));
        if length > QUESTION_BYTES_MAX {
            return Some((said(Vec::new(), true), received.len()));
        }
        let message = rest.get(..length)?;
        let back = Back::Tcp { connection, question_bytes: 2 + length, answer: None };
        (!self.ask(back, message)).then(|| (said(Vec::new(), true), received.len()))
    }

    fn is_thinking(&self, connection: u32) -> bool {
        self.of(connection).is_some()
    }

    fn closed(&mut self, connection: u32) {
        if let Some(at) = self.of(connection) {
            self.outstanding.swap_remove(at);
        }
    }
}
