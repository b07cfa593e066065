//! What a host's network costs: a port that comes, a rule that changes, and frames on their way, beside a bridge that
//! nothing watches. Guests are tap devices that this program holds itself, so no VMM is in the figures.

mod measure;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;
use net::apply::Host;
use net::filter::Changed;
use net::keeper::Namespaces;
use net::names::OwnerTag;
use net::netlink::{Client, Request};
use net::spec::{Bridge, Direction, Group, HostNetwork, Nat, Outside, Remote, Router, RouterLink, Rule, Tap};
use net::tap::VNET_HEADER_SIZE;
use nix::sched::{CloneFlags, unshare};

use crate::measure::{Samples, line, milliseconds};

/// The aims.
const PORT_AIM_MS: f64 = 5.0;
const RULE_AIM_MS: f64 = 20.0;
/// Ports of one host.
const CROWD: u32 = 4000;
/// Ports of one group.
const MEMBERS: u32 = 1000;
/// So many ports are on one bridge.
const PORTS_PER_BRIDGE: u32 = 500;
/// Single ports and rules that are timed.
const ROUNDS: u32 = 50;
/// Frames that are timed one by one, and in bursts.
const SINGLES: usize = 5000;
const BURSTS: usize = 400;
/// Frames in a burst: fewer than a tap's queue has room for (500).
const BURST: usize = 64;
/// What follows Ethernet's header, in bytes: IPv4, UDP and text.
const PACKET_BYTES: usize = 1400;
/// How long a frame may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// The group that lets everything through.
const ANYTHING: u32 = 1;

fn main() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace: run as root")?;
    let tag = OwnerTag::derive(b"benchmark of the data path");
    let mut host = Host::open(tag, Namespaces::Own)?;
    host.remove_all()?;
    let measured =
        ports(&mut host, tag).and_then(|()| rules(&mut host, tag)).and_then(|()| paths(&mut host, tag));
    host.remove_all()?;
    measured
}

/// A guest's MAC and address.
#[derive(Debug, Clone, Copy)]
struct Peer {
    mac: [u8; 6],
    address: Ipv4Addr,
}

impl Peer {
    fn new(number: u32) -> Self {
        let [_, second, third, fourth] = number.to_be_bytes();
        Self { mac: [2, 1, 0, second, third, fourth], address: Ipv4Addr::new(10, 64 + second, third, fourth) }
    }

    fn net(self) -> IpNet {
        IpNet::from(IpAddr::from(self.address))
    }
}

fn rule(direction: Direction, protocol: Option<u8>, ports: Option<(u16, u16)>) -> Rule {
    Rule { direction, ip_version: 4, protocol, ports, remote: Remote::Any }
}

fn anything() -> Group {
    Group { rules: [Direction::Ingress, Direction::Egress].map(|way| rule(way, None, None)).into() }
}

/// A host with so many ports, and its network.
fn crowd(tag: OwnerTag, ports: u32) -> HostNetwork {
    let mut wanted = HostNetwork::default();
    wanted.groups.insert(ANYTHING, anything());
    for number in 0..ports {
        add_port(&mut wanted, tag, number);
    }
    wanted
}

fn add_port(wanted: &mut HostNetwork, tag: OwnerTag, number: u32) {
    let bridge = tag.bridge(number / PORTS_PER_BRIDGE);
    wanted.bridges.entry(bridge.clone()).or_insert_with(|| Bridge { mtu: 1450, ..Bridge::default() });
    wanted.taps.insert(tag.tap(number), tap(bridge, Peer::new(number)));
}

fn tap(bridge: String, peer: Peer) -> Tap {
    Tap {
        bridge,
        mtu: 1450,
        mac: peer.mac,
        addresses: [peer.net()].into(),
        port_security: true,
        groups: [ANYTHING].into(),
        stateless: false,
        vlan: None,
    }
}

/// One more port on a host with few and with many: until its rules hold and its tap is in its bridge.
fn ports(host: &mut Host, tag: OwnerTag) -> Result<()> {
    let few = one_more(host, tag, 1)?;
    let many = one_more(host, tag, CROWD)?;
    host.remove_all()?;
    line("a port, until filter and bridge are true, p50", "ms", few, PORT_AIM_MS, "the aim");
    line("the same on a host with 4000 ports", "ms", many, few, "with one; the aim is 1.5");
    Ok(())
}

fn one_more(host: &mut Host, tag: OwnerTag, present: u32) -> Result<f64> {
    let mut wanted = crowd(tag, present);
    host.converge(&wanted)?;
    let mut samples = Samples::default();
    for number in (CROWD..).take(ROUNDS as usize) {
        add_port(&mut wanted, tag, number);
        let name = tag.tap(number);
        let started = Instant::now();
        let held = host.add_port(&wanted, &name)?;
        // The first makes the bridge.
        if number > CROWD {
            samples.push(milliseconds(started));
        }
        drop(held);
    }
    for number in (CROWD..).take(ROUNDS as usize) {
        host.remove_port(&tag.tap(number))?;
    }
    Ok(samples.quantile(0.5))
}

/// A rule that comes and goes in a group of one port and of many.
fn rules(host: &mut Host, tag: OwnerTag) -> Result<()> {
    let one = one_rule(host, tag, 1)?;
    let many = one_rule(host, tag, MEMBERS)?;
    host.remove_all()?;
    line("a rule of a group with 1000 ports, until it holds, p50", "ms", many, RULE_AIM_MS, "the aim");
    line("the same", "ms", many, one, "of a group with one port");
    Ok(())
}

fn one_rule(host: &mut Host, tag: OwnerTag, members: u32) -> Result<f64> {
    let mut wanted = crowd(tag, members);
    host.converge(&wanted)?;
    let mut samples = Samples::default();
    for port in 1..=ROUNDS as u16 {
        let more = rule(Direction::Ingress, Some(6), Some((port, port)));
        let group = wanted.groups.get_mut(&ANYTHING).context("the group")?;
        group.rules.insert(more);
        let started = Instant::now();
        host.converge_filter(&wanted, &Changed { groups: [ANYTHING].into(), ..Changed::default() })?;
        samples.push(milliseconds(started));
    }
    Ok(samples.quantile(0.5))
}

/// A guest: its tap, held open.
struct Guest {
    tap: OwnedFd,
    own: Peer,
}

impl Guest {
    fn send(&self, frame: &[u8]) -> Result<()> {
        let mut bytes = vec![0; VNET_HEADER_SIZE as usize];
        bytes.extend_from_slice(frame);
        ensure!(nix::unistd::write(self.tap.as_fd(), &bytes)? == bytes.len(), "a frame was cut");
        Ok(())
    }

    /// The next datagram; questions for the own MAC are answered.
    fn receive(&self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        let mut buffer = [0_u8; 4096];
        while Instant::now() < end {
            match nix::unistd::read(self.tap.as_fd(), &mut buffer) {
                Ok(length) => {
                    let frame = buffer.get(VNET_HEADER_SIZE as usize..length).unwrap_or_default();
                    match frame.get(12..14) {
                        Some([8, 0]) if frame.get(23) == Some(&17) => return Ok(()),
                        Some([8, 6]) if frame.get(38..42) == Some(&self.own.address.octets()) => {
                            self.answer(&frame[22..28], &frame[28..32])?;
                        }
                        _ => {}
                    }
                }
                Err(nix::errno::Errno::EAGAIN) => std::hint::spin_loop(),
                Err(error) => return Err(error).context("read from the tap"),
            }
        }
        bail!("a frame was lost")
    }

    fn answer(&self, asker: &[u8], address: &[u8]) -> Result<()> {
        let head = [asker, &self.own.mac, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2]].concat();
        let body = [&self.own.mac[..], &self.own.address.octets(), asker, address].concat();
        self.send(&[head, body].concat())
    }
}

/// A datagram in a frame.
fn datagram(from: Peer, to_mac: [u8; 6], to: Ipv4Addr) -> Vec<u8> {
    let length = (PACKET_BYTES as u16).to_be_bytes();
    let mut packet = vec![0x45, 0, length[0], length[1], 0, 1, 0, 0, 64, 17, 0, 0];
    packet.extend([from.address.octets(), to.octets()].concat());
    let mut sum: u32 = packet.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    packet[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    let udp_length = (PACKET_BYTES as u16 - 20).to_be_bytes();
    packet.extend([[0x0f, 0xa0], [0x13, 0x88], udp_length, [0, 0]].concat());
    packet.resize(PACKET_BYTES, b'w');
    [&to_mac[..], &from.mac, &[8, 0], &packet].concat()
}

/// One way by which frames travel: microseconds for one, p50, and frames in a second.
fn travel(from: &Guest, to: &Guest, frame: &[u8]) -> Result<(f64, f64)> {
    // The first finds its way: MACs are asked for, the connection is begun.
    from.send(frame)?;
    to.receive()?;
    let mut singles = Samples::default();
    for _ in 0..SINGLES {
        let started = Instant::now();
        from.send(frame)?;
        to.receive()?;
        singles.push(started.elapsed().as_secs_f64() * 1e6);
    }
    let started = Instant::now();
    for _ in 0..BURSTS {
        for _ in 0..BURST {
            from.send(frame)?;
        }
        for _ in 0..BURST {
            to.receive()?;
        }
    }
    Ok((singles.quantile(0.5), (BURSTS * BURST) as f64 / started.elapsed().as_secs_f64()))
}

/// Two guests of one network, of two networks with a router between, and one outside with one's floating address.
fn paths(host: &mut Host, tag: OwnerTag) -> Result<()> {
    let bare = bare_bridge()?;
    let site = Site::new(tag);
    let names = [1, 2, 3, 4].map(|number| tag.tap(number));
    host.converge(&site.wanted)?;
    let peers = [site.first, site.second, site.third, site.outside];
    let mut guests = Vec::new();
    for (name, own) in names.iter().zip(peers) {
        guests.push(Guest { tap: host.add_port(&site.wanted, name)?, own });
    }
    let [first, second, third, outside] = guests.as_slice() else { bail!("four guests") };
    let ways = [
        (
            "between guests of a network",
            travel(first, second, &datagram(site.first, site.second.mac, site.second.address))?,
        ),
        (
            "between guests by a router",
            travel(first, third, &datagram(site.first, ROUTER_INSIDE, site.third.address))?,
        ),
        (
            "from outside by a floating IP",
            travel(outside, first, &datagram(site.outside, ROUTER_OUTSIDE, FLOATING))?,
        ),
    ];
    for (way, (time, rate)) in ways {
        line(&format!("a frame {way}, p50"), "µs", time, bare.0, "a bare bridge");
        line(&format!("frames of 1414 bytes {way}"), "/s", rate, bare.1, "a bare bridge");
    }
    Ok(())
}

/// Two taps in a bridge that nobody filters.
fn bare_bridge() -> Result<(f64, f64)> {
    let mut links = Client::open()?;
    links.execute(vec![Request::create_bridge("bare0", [2, 9, 0, 0, 0, 1])])?;
    let bridge = links.link("bare0")?.context("the bridge")?.index;
    let mut guests = Vec::new();
    for (name, number) in [("bare1", 1), ("bare2", 2)] {
        let tap = net::tap::create(name)?;
        links.execute(vec![Request::configure(name, 1450, Some(bridge)), Request::set_up("bare0", true)])?;
        net::tap::settle(name)?;
        guests.push(Guest { tap, own: Peer::new(number) });
    }
    let [from, to] = guests.as_slice() else { bail!("two guests") };
    let measured = travel(from, to, &datagram(from.own, to.own.mac, to.own.address));
    links.execute(vec![Request::delete_link("bare0")])?;
    measured
}

const ROUTER_INSIDE: [u8; 6] = [2, 7, 0, 0, 0, 1];
const ROUTER_BEHIND: [u8; 6] = [2, 7, 0, 0, 0, 2];
const ROUTER_OUTSIDE: [u8; 6] = [2, 7, 0, 0, 0, 3];
const FLOATING: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);

struct Site {
    wanted: HostNetwork,
    first: Peer,
    second: Peer,
    third: Peer,
    outside: Peer,
}

impl Site {
    fn new(tag: OwnerTag) -> Self {
        let peer = |last, address| Peer { mac: [2, 8, 0, 0, 0, last], address };
        let first = peer(1, Ipv4Addr::new(10, 1, 0, 5));
        let second = peer(2, Ipv4Addr::new(10, 1, 0, 6));
        let third = peer(3, Ipv4Addr::new(10, 2, 0, 5));
        let outside = peer(4, Ipv4Addr::new(203, 0, 113, 5));
        let bridges = [1, 2, 3].map(|number| (tag.bridge(number), Bridge { mtu: 1450, ..Bridge::default() }));
        let taps = [(1, 1, first), (2, 1, second), (3, 2, third), (4, 3, outside)]
            .map(|(number, bridge, peer)| (tag.tap(number), tap(tag.bridge(bridge), peer)));
        let link = |bridge, mac, addresses: &[&str]| RouterLink {
            bridge: tag.bridge(bridge),
            mac,
            mtu: 1450,
            addresses: addresses.iter().filter_map(|address| address.parse().ok()).collect(),
        };
        let own = Ipv4Addr::new(203, 0, 113, 2);
        let router = Router {
            links: BTreeMap::from([
                (tag.router_link(1), link(1, ROUTER_INSIDE, &["10.1.0.1/24"])),
                (tag.router_link(2), link(2, ROUTER_BEHIND, &["10.2.0.1/24"])),
                (tag.router_link(3), link(3, ROUTER_OUTSIDE, &["203.0.113.2/24", "203.0.113.10/32"])),
            ]),
            routes: BTreeSet::new(),
            nat: Nat {
                outside: Some(Outside { link: tag.router_link(3), hide_behind: Some(own) }),
                floating: BTreeMap::from([(FLOATING, first.address)]),
                ..Nat::default()
            },
            ..Router::default()
        };
        let wanted = HostNetwork {
            bridges: bridges.into(),
            taps: taps.into(),
            groups: [(ANYTHING, anything())].into(),
            routers: [(tag.namespace(1), router)].into(),
            fabric: None,
        };
        Self { wanted, first, second, third, outside }
    }
}
