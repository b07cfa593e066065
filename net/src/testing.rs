//! What tests share: a network namespace of their own, hand-made guests, frames.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::panic::resume_unwind;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use tun_tap::{Iface, Mode};

use crate::names::OwnerTag;
use crate::spec::{Bridge, Direction, Group, HostNetwork, Remote, Rule, Tap};

pub(crate) const TAG: OwnerTag = OwnerTag::new(0x7e57);

/// How long a frame may take from one tap to another before it counts as dropped: a nested host among others takes its time.
const ARRIVAL_TIMEOUT: Duration = Duration::from_millis(500);

/// Says why a test cannot run here; with `WISP_REQUIRE_ALL=1` that is a failure.
pub(crate) fn skipped(reason: &str) {
    assert!(std::env::var_os("WISP_REQUIRE_ALL").is_none_or(|value| value != "1"), "skipped: {reason}");
    println!("skipped: {reason}");
}

/// Runs a test on a thread in a network namespace of its own, where the host's links are out of reach.
pub(crate) fn in_own_network(test: impl FnOnce() + Send + 'static) {
    if !std::path::Path::new("/dev/net/tun").exists() {
        skipped("no /dev/net/tun");
        return;
    }
    let thread = std::thread::spawn(move || match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => test(),
        Err(errno) => skipped(&format!("no network namespace of our own: {errno}")),
    });
    if let Err(panic) = thread.join() {
        resume_unwind(panic);
    }
}

pub(crate) fn bridge() -> Bridge {
    Bridge { mtu: 1450, ..Bridge::default() }
}

pub(crate) fn mac(number: u8) -> [u8; 6] {
    [0xfa, 0x16, 0x3e, 0, 0, number]
}

pub(crate) fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 9, 0, number)
}

/// The port with this number, on the bridge with that one.
pub(crate) fn tap(number: u8, bridge: u32) -> Tap {
    Tap {
        bridge: TAG.bridge(bridge),
        mtu: 1450,
        mac: mac(number),
        addresses: [format!("{}/32", address(number)).parse().unwrap()].into(),
        port_security: true,
        groups: [ANYTHING].into(),
        stateless: false,
        vlan: None,
    }
}

/// The number of the group that lets everything through.
pub(crate) const ANYTHING: u32 = 1;

/// An IPv4 rule.
pub(crate) fn rule(direction: Direction, protocol: Option<u8>, ports: Option<(u16, u16)>) -> Rule {
    Rule { direction, ip_version: 4, protocol, ports, remote: Remote::Any }
}

pub(crate) fn group(rules: impl IntoIterator<Item = Rule>) -> Group {
    Group { rules: rules.into_iter().collect() }
}

/// Ports by number and bridge, each in the group [`ANYTHING`].
pub(crate) fn network(ports: &[(u8, u32)]) -> HostNetwork {
    HostNetwork {
        bridges: ports.iter().map(|(_, number)| (TAG.bridge(*number), bridge())).collect(),
        taps: ports.iter().map(|(port, number)| (TAG.tap(u32::from(*port)), tap(*port, *number))).collect(),
        groups: [(ANYTHING, group([Direction::Ingress, Direction::Egress].map(|d| rule(d, None, None))))]
            .into(),
        routers: BTreeMap::new(),
        fabric: None,
    }
}

/// Kernels before 6.8 take notice of a carrier in their own time.
pub(crate) fn wait_until_forwarding(name: &str) {
    let mut links = crate::netlink::Client::open().unwrap();
    let end = Instant::now() + Duration::from_secs(30);
    while Instant::now() < end {
        let link = links.link(name).unwrap().unwrap();
        if link.master.is_none() || link.is_forwarding {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A hand-made guest at a port's tap.
pub(crate) struct Guest(Iface);

impl Guest {
    pub(crate) fn at(port: u8) -> Self {
        Self::named(&TAG.tap(u32::from(port)))
    }

    pub(crate) fn named(name: &str) -> Self {
        let tap = Iface::without_packet_info(name, Mode::Tap).unwrap();
        crate::tap::settle(name).unwrap();
        wait_until_forwarding(name);
        Self::of(tap)
    }

    /// Somebody at a tap that is open.
    pub(crate) fn of(tap: Iface) -> Self {
        tap.set_non_blocking().unwrap();
        Self(tap)
    }

    pub(crate) fn send(&self, frame: &[u8]) {
        self.0.send(frame).unwrap();
    }

    /// Whether exactly this frame arrives in time.
    pub(crate) fn receives(&self, frame: &[u8]) -> bool {
        self.receives_where(|received| received == frame)
    }

    /// All frames that arrive until this one does, with it; nothing if it does not in time.
    pub(crate) fn until(&self, frame: &[u8]) -> Option<Vec<Vec<u8>>> {
        let mut arrived = Vec::new();
        let is_there = self.receives_where(|received| {
            arrived.push(received.to_vec());
            received == frame
        });
        is_there.then_some(arrived)
    }

    /// Whether a datagram between these ports arrives in time.
    pub(crate) fn receives_udp(&self, source: u16, target: u16) -> bool {
        let ports = [source.to_be_bytes(), target.to_be_bytes()].concat();
        self.receives_where(|frame| frame.get(23) == Some(&17) && frame.get(34..38) == Some(ports.as_slice()))
    }

    /// Whether anything of ARP arrives in time.
    pub(crate) fn receives_any_arp(&self) -> bool {
        self.receives_where(|frame| frame.get(12..14) == Some([8, 6].as_slice()))
    }

    /// As [`Guest::receive_ipv4_within`], in the usual time.
    pub(crate) fn receive_ipv4(&self, own: Peer, is_it: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        self.receive_ipv4_within(ARRIVAL_TIMEOUT, own, is_it)
    }

    /// The next IPv4 packet that `is_it` holds for, while requests for the MAC of one's own address are answered: what
    /// follows its Ethernet header.
    pub(crate) fn receive_ipv4_within(
        &self,
        time: Duration,
        own: Peer,
        is_it: impl Fn(&[u8]) -> bool,
    ) -> Option<Vec<u8>> {
        let mut found = None;
        let is_there = self.receives_within(time, |frame| {
            if frame.get(12..22) == Some(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1])
                && frame.get(38..42) == Some(&own.address.octets())
            {
                let [asker, address] = [&frame[22..28], &frame[28..32]];
                let mut answer = [asker, &own.mac, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2], &own.mac].concat();
                answer.extend([&own.address.octets(), asker, address].concat());
                self.send(&answer);
            }
            let packet = frame.get(14..).filter(|_| frame.get(12..14) == Some(&[8, 0]));
            let fits = packet.is_some_and(&is_it);
            if fits {
                found = packet.map(<[u8]>::to_vec);
            }
            fits
        });
        found.filter(|_| is_there)
    }

    pub(crate) fn receives_where(&self, is_it: impl FnMut(&[u8]) -> bool) -> bool {
        self.receives_within(ARRIVAL_TIMEOUT, is_it)
    }

    fn receives_within(&self, time: Duration, mut is_it: impl FnMut(&[u8]) -> bool) -> bool {
        let mut buffer = [0; 2048];
        let end = Instant::now() + time;
        while Instant::now() < end {
            match self.0.recv(&mut buffer) {
                Ok(length) if is_it(&buffer[..length]) => return true,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => panic!("{error}"),
            }
        }
        false
    }
}

/// Who a hand-made guest is.
#[derive(Clone, Copy)]
pub(crate) struct Peer {
    pub(crate) mac: [u8; 6],
    pub(crate) address: Ipv4Addr,
}

/// Source and destination of a frame's layers, each to be spoofed at will.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ends {
    pub(crate) source_mac: [u8; 6],
    pub(crate) target_mac: [u8; 6],
    pub(crate) source: Ipv4Addr,
    pub(crate) target: Ipv4Addr,
}

pub(crate) fn ends(from: u8, to: u8) -> Ends {
    Ends { source_mac: mac(from), target_mac: mac(to), source: address(from), target: address(to) }
}

pub(crate) fn ethernet(ends: Ends, ethertype: u16, body: &[u8]) -> Vec<u8> {
    let mut frame = [ends.target_mac, ends.source_mac].concat();
    frame.extend_from_slice(&ethertype.to_be_bytes());
    frame.extend_from_slice(body);
    frame.resize(frame.len().max(60), 0);
    frame
}

pub(crate) fn ipv4(ends: Ends, protocol: u8, body: &[u8]) -> Vec<u8> {
    let length = (20 + body.len()) as u16;
    let mut packet = vec![0x45, 0, (length >> 8) as u8, length as u8, 0, 1, 0, 0, 64, protocol, 0, 0];
    packet.extend_from_slice(&ends.source.octets());
    packet.extend_from_slice(&ends.target.octets());
    let checksum = checksum(&packet);
    packet[10..12].copy_from_slice(&checksum);
    packet.extend_from_slice(body);
    ethernet(ends, 0x0800, &packet)
}

/// An IPv6 packet; the checksum of ICMPv6 is made right.
pub(crate) fn ipv6(ends: Ends, source: Ipv6Addr, target: Ipv6Addr, protocol: u8, body: &[u8]) -> Vec<u8> {
    let [high, low] = (body.len() as u16).to_be_bytes();
    let addresses = [source.octets(), target.octets()].concat();
    let mut body = body.to_vec();
    if protocol == 58 {
        let pseudo = [&addresses[..], &[0, 0, high, low, 0, 0, 0, protocol], &body].concat();
        let sum = checksum(&pseudo);
        body[2..4].copy_from_slice(&sum);
    }
    let packet = [&[0x60, 0, 0, 0, high, low, protocol, 255][..], &addresses, &body].concat();
    ethernet(ends, 0x86dd, &packet)
}

pub(crate) fn udp(ends: Ends, source: u16, target: u16) -> Vec<u8> {
    udp_saying(ends, source, target, b"hello, wisp: a datagram")
}

pub(crate) fn udp_saying(ends: Ends, source: u16, target: u16, text: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    for word in [source, target, (8 + text.len()) as u16, 0] {
        body.extend_from_slice(&word.to_be_bytes());
    }
    body.extend_from_slice(text);
    ipv4(ends, 17, &body)
}

/// An ARP request with sender MAC and address of its own.
pub(crate) fn arp(ends: Ends, sender_mac: [u8; 6], sender: Ipv4Addr) -> Vec<u8> {
    let mut body = vec![0, 1, 8, 0, 6, 4, 0, 1];
    body.extend_from_slice(&sender_mac);
    body.extend_from_slice(&sender.octets());
    body.extend_from_slice(&[0; 6]);
    body.extend_from_slice(&ends.target.octets());
    ethernet(ends, 0x0806, &body)
}

pub(crate) fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |b| u32::from(*b))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}
