//! Neighbour Discovery (RFC 4861): who is asked for by address, and what routers announce.
//!
//! Announcements come in the name of the network's routers, whose link-local address the guest learns as its default
//! route's next hop; the routers themselves answer there. Neighbours are answered for the endpoint's own addresses only.

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use etherparse::{Ipv6HeaderSlice, PacketBuilder};
use ipnet::Ipv6Net;

use super::packet::{domain_name, link_local, mac_of_group};
use super::{METADATA_ADDRESS_V6, OWN_MAC};
use crate::config::{Addressing, AnnouncedPrefix, Announcement};

/// All nodes on the link (RFC 4291 §2.7.1).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// What neighbour discovery is sent with and must be received with: it did not pass a router (RFC 4861 §6.1).
const HOP_LIMIT: u8 = 255;
/// The hop limit that hosts are told to send with, as Linux' and radvd's default.
const HOP_LIMIT_OF_HOSTS: u8 = 64;

const ROUTER_SOLICITATION: u8 = 133;
/// The ICMPv6 type of routers' announcements.
pub(super) const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

/// Between announcements that nobody asked for, at most half an hour (RFC 4861 §6.2.1): often enough that a guest which
/// loses one or two keeps its routes, seldom enough to cost nothing.
pub(super) const INTERVAL: Duration = Duration::from_secs(600);
/// How long what is announced of routers, routes and name servers holds, in seconds: three intervals.
const LIFETIME_S: u16 = 1800;
/// How long an address made of an announced prefix may be used, and for new connections, in seconds: radvd's defaults.
const PREFIX_VALID_S: u32 = 86_400;
const PREFIX_PREFERRED_S: u32 = 14_400;
/// Routers that are announced at a time: a host keeps at least two (RFC 4861 §6.3.4); all of them fit in the queue of
/// answers together with as many withdrawals.
const ANNOUNCEMENTS_MAX: usize = 6;
/// Prefixes, routes and name servers in one announcement: together with the rest they fit the smallest MTU, 1280 bytes.
const PREFIXES_MAX: usize = 8;
const ROUTES_MAX: usize = 16;
const DNS_MAX: usize = 8;
/// The smallest MTU that IPv6 allows, in bytes (RFC 8200 §5).
const MTU_MIN: u16 = 1280;

/// What is announced, and when next.
pub(super) struct Announcer {
    announcements: Vec<Announcement>,
    domain: Option<Vec<u8>>,
    mtu: u16,
    /// The guest has shown that it speaks IPv6: nobody else is told anything.
    speaks: bool,
    /// When all of it is announced again.
    next: Option<Instant>,
}

/// What becomes of a message of neighbour discovery.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// The guest asks routers to announce themselves, from this address.
    Solicitation(Ipv6Addr),
    /// The guest asks for one of our own addresses: the frame that answers.
    Answer(Vec<u8>),
    /// It is not for us.
    Other,
}

/// Reads one ICMPv6 message (RFC 4861 §6.1.1, §7.1.1).
pub(super) fn read(source_mac: [u8; 6], header: &Ipv6HeaderSlice<'_>, message: &[u8]) -> Message {
    let (source, valid) = (header.source_addr(), header.hop_limit() == HOP_LIMIT);
    match message {
        [ROUTER_SOLICITATION, 0, _, _, _, _, _, _, ..] if valid => Message::Solicitation(source),
        [NEIGHBOUR_SOLICITATION, 0, _, _, _, _, _, _, rest @ ..] if valid => {
            let target = rest.first_chunk::<16>().map(|target| Ipv6Addr::from(*target));
            match target
                .filter(|target| is_own(*target))
                .and_then(|target| answer(source_mac, source, target))
            {
                Some(frame) => Message::Answer(frame),
                None => Message::Other,
            }
        }
        _ => Message::Other,
    }
}

/// Whether an address is the endpoint's own.
pub(super) fn is_own(address: Ipv6Addr) -> bool {
    address == METADATA_ADDRESS_V6 || address == link_local(OWN_MAC)
}

/// The advertisement of one of our addresses; a guest that would have it for itself learns that it is taken.
fn answer(source_mac: [u8; 6], source: Ipv6Addr, target: Ipv6Addr) -> Option<Vec<u8>> {
    const SOLICITED: u8 = 0x40;
    const OVERRIDE: u8 = 0x20;
    let (flags, to, to_mac) = if source.is_unspecified() {
        (OVERRIDE, ALL_NODES, mac_of_group(ALL_NODES))
    } else {
        (SOLICITED | OVERRIDE, source, source_mac)
    };
    let mut payload = target.octets().to_vec();
    payload.extend_from_slice(&[2, 1]);
    payload.extend_from_slice(&OWN_MAC);
    let builder = PacketBuilder::ethernet2(OWN_MAC, to_mac)
        .ipv6(target.octets(), to.octets(), HOP_LIMIT)
        .icmpv6_raw(NEIGHBOUR_ADVERTISEMENT, 0, [flags, 0, 0, 0]);
    let mut frame = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut frame, &payload).ok()?;
    Some(frame)
}

impl Announcer {
    pub(super) fn new(addressing: &Addressing, mtu: u16) -> Self {
        let announcements = addressing.ipv6.announcements.iter().take(ANNOUNCEMENTS_MAX).cloned().collect();
        Self { announcements, domain: domain_name(&addressing.domain), mtu, speaks: false, next: None }
    }

    /// Whether anything is announced.
    pub(super) fn is_silent(&self) -> bool {
        self.announcements.is_empty()
    }

    /// The guest speaks IPv6. What it has to know it is told at once, for its own question comes a second or two after
    /// its address is up.
    pub(super) fn notice(&mut self, now: Instant) {
        self.speaks = true;
        if self.next.is_none() && !self.is_silent() {
            self.next = Some(now);
        }
    }

    /// The frames that answer a solicitation.
    pub(super) fn solicited(&mut self, source: Ipv6Addr, source_mac: [u8; 6], now: Instant) -> Vec<Vec<u8>> {
        if !self.is_silent() {
            self.next = Some(now + INTERVAL);
        }
        let asked_by_name = source.is_unicast_link_local();
        self.frames(if asked_by_name { (source, source_mac) } else { (ALL_NODES, mac_of_group(ALL_NODES)) })
    }

    /// The frames that are due.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Vec<u8>> {
        if self.next.is_none_or(|next| next > now) {
            return Vec::new();
        }
        self.next = Some(now + INTERVAL);
        self.frames((ALL_NODES, mac_of_group(ALL_NODES)))
    }

    fn frames(&self, to: (Ipv6Addr, [u8; 6])) -> Vec<Vec<u8>> {
        self.announcements.iter().filter_map(|announcement| self.frame(announcement, false, to)).collect()
    }

    /// When the next frames are due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Announces something else from now on: the frames that withdraw what is not announced any more (RFC 4861 §6.2.5),
    /// if the guest has heard of it.
    pub(super) fn change(&mut self, addressing: &Addressing, now: Instant) -> Vec<Vec<u8>> {
        let mut changed = Self::new(addressing, self.mtu);
        let to = (ALL_NODES, mac_of_group(ALL_NODES));
        let gone = self.announcements.iter().filter_map(|old| withdrawal(old, &changed.announcements));
        let frames = gone.filter(|_| self.speaks).filter_map(|gone| changed.frame(&gone, true, to)).collect();
        if self.speaks {
            changed.notice(now);
        }
        *self = changed;
        frames
    }

    /// One announcement (RFC 4861 §4.2); of one that is `gone`, all that it says holds no longer, except that the router
    /// may be a default router still.
    fn frame(&self, announcement: &Announcement, gone: bool, to: (Ipv6Addr, [u8; 6])) -> Option<Vec<u8>> {
        let mac = announcement.router.unwrap_or(OWN_MAC);
        let flags = u8::from(announcement.managed) << 7 | u8::from(announcement.other) << 6;
        let [high, low] = if announcement.is_default { LIFETIME_S } else { 0 }.to_be_bytes();
        // Reachable and retransmission time: unspecified.
        let mut payload = vec![0; 8];
        payload.extend_from_slice(&[1, 1]);
        payload.extend_from_slice(&mac);
        if self.mtu >= MTU_MIN {
            payload.extend_from_slice(&[5, 1, 0, 0]);
            payload.extend_from_slice(&u32::from(self.mtu).to_be_bytes());
        }
        for prefix in announcement.prefixes.iter().take(PREFIXES_MAX) {
            push_prefix(&mut payload, prefix, gone);
        }
        let lifetime_s = if gone { 0 } else { u32::from(LIFETIME_S) };
        for route in announcement.routes.iter().take(ROUTES_MAX) {
            push_route(&mut payload, *route, lifetime_s);
        }
        let dns = &announcement.dns[..announcement.dns.len().min(DNS_MAX)];
        push_names(&mut payload, dns, self.domain.as_deref().filter(|_| !gone), lifetime_s);
        let builder = PacketBuilder::ethernet2(mac, to.1)
            .ipv6(link_local(mac).octets(), to.0.octets(), HOP_LIMIT)
            .icmpv6_raw(ROUTER_ADVERTISEMENT, 0, [HOP_LIMIT_OF_HOSTS, flags, high, low]);
        let mut frame = Vec::with_capacity(builder.size(payload.len()));
        builder.write(&mut frame, &payload).ok()?;
        Some(frame)
    }
}

/// What of an announcement holds no longer, if anything: prefixes and name servers that nobody announces any more, and
/// of the router, its routes.
fn withdrawal(old: &Announcement, new: &[Announcement]) -> Option<Announcement> {
    let same = new.iter().find(|new| new.router == old.router);
    let mut gone = old.clone();
    gone.prefixes.retain(|prefix| {
        !new.iter().flat_map(|new| &new.prefixes).any(|still| still.prefix == prefix.prefix)
    });
    gone.dns.retain(|server| !new.iter().flat_map(|new| &new.dns).any(|still| still == server));
    gone.routes.retain(|route| !same.is_some_and(|new| new.routes.contains(route)));
    gone.is_default = same.is_some_and(|new| new.is_default);
    let says = !(gone.prefixes.is_empty() && gone.dns.is_empty() && gone.routes.is_empty());
    (says || same.is_none()).then_some(gone)
}

/// Prefix information (RFC 4861 §4.6.2): on the link, and for addresses where it says so.
fn push_prefix(payload: &mut Vec<u8>, prefix: &AnnouncedPrefix, gone: bool) {
    const ON_LINK: u8 = 0x80;
    const AUTONOMOUS: u8 = 0x40;
    let flags = if prefix.autonomous { ON_LINK | AUTONOMOUS } else { ON_LINK };
    let (valid_s, preferred_s) = if gone { (0, 0) } else { (PREFIX_VALID_S, PREFIX_PREFERRED_S) };
    payload.extend_from_slice(&[3, 4, prefix.prefix.prefix_len(), flags]);
    payload.extend_from_slice(&u32::to_be_bytes(valid_s));
    payload.extend_from_slice(&u32::to_be_bytes(preferred_s));
    payload.extend_from_slice(&[0; 4]);
    payload.extend_from_slice(&prefix.prefix.network().octets());
}

/// A more specific route (RFC 4191 §2.3), of medium preference.
fn push_route(payload: &mut Vec<u8>, route: Ipv6Net, lifetime_s: u32) {
    let (length, bytes) = match route.prefix_len() {
        0 => (1, 0),
        1..=64 => (2, 8),
        _ => (3, 16),
    };
    payload.extend_from_slice(&[24, length, route.prefix_len(), 0]);
    payload.extend_from_slice(&lifetime_s.to_be_bytes());
    payload.extend_from_slice(&route.network().octets()[..bytes]);
}

/// Name servers and the domain in which names are looked for (RFC 8106 §5).
fn push_names(payload: &mut Vec<u8>, servers: &[Ipv6Addr], domain: Option<&[u8]>, lifetime_s: u32) {
    let mut push = |kind: u8, value: &[u8]| {
        // In units of eight bytes, the eight before the value included.
        let units = 1 + value.len().div_ceil(8);
        let Ok(length) = u8::try_from(units) else { return };
        payload.extend_from_slice(&[kind, length, 0, 0]);
        payload.extend_from_slice(&lifetime_s.to_be_bytes());
        payload.extend_from_slice(value);
        payload.resize(payload.len() + (units - 1) * 8 - value.len(), 0);
    };
    if !servers.is_empty() {
        let addresses: Vec<u8> = servers.iter().flat_map(|server| server.octets()).collect();
        push(25, &addresses);
    }
    if let Some(domain) = domain {
        push(31, domain);
    }
}
