//! Routers against the kernel: namespaces, translation, what is reached and what is not.

use std::net::UdpSocket;
use std::time::Duration;

use super::*;
use crate::namespace;
use crate::plan::{RouterOperation, plan_one_router};
use crate::spec::{Count, Forwarding, MeterRule, Nat, Outside, Router, RouterLink};

/// A tag for one test: namespaces have names for all of the host, and tests run at once.
pub(super) fn tag(test: u16) -> OwnerTag {
    OwnerTag::new(0x7f00 | test)
}

const OUTSIDE: u32 = 1;
const WEB: u32 = 2;
const DATABASE: u32 = 3;
const OUTSIDE_MAC: [u8; 6] = [0xfa, 0x16, 0x3e, 1, 0, 1];
pub(super) const WEB_MAC: [u8; 6] = [0xfa, 0x16, 0x3e, 1, 0, 2];
pub(super) const DATABASE_MAC: [u8; 6] = [0xfa, 0x16, 0x3e, 1, 0, 3];

pub(super) const HOST: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
pub(super) const ROUTER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
pub(super) const FLOATING: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);

pub(super) const WEB_GUEST: Peer =
    Peer { mac: [0xfa, 0x16, 0x3e, 0, 0, 5], address: Ipv4Addr::new(10, 1, 0, 5) };
pub(super) const DATABASE_GUEST: Peer =
    Peer { mac: [0xfa, 0x16, 0x3e, 0, 0, 6], address: Ipv4Addr::new(10, 2, 0, 5) };

/// A guest on each of two networks, and a router between them and the outside, where somebody is.
pub(super) fn wanted(tag: OwnerTag) -> HostNetwork {
    let open = |peer: Peer, bridge| Tap {
        bridge: tag.bridge(bridge),
        mac: peer.mac,
        addresses: [IpNet::from(IpAddr::from(peer.address))].into(),
        ..tap(0, bridge)
    };
    let link = |bridge, mac, address: &str| RouterLink {
        bridge: tag.bridge(bridge),
        mac,
        mtu: 1450,
        addresses: [address.parse().unwrap()].into(),
    };
    let router = Router {
        links: [
            (tag.router_link(OUTSIDE), link(OUTSIDE, OUTSIDE_MAC, "203.0.113.2/24")),
            (tag.router_link(WEB), link(WEB, WEB_MAC, "10.1.0.1/24")),
            (tag.router_link(DATABASE), link(DATABASE, DATABASE_MAC, "10.2.0.1/24")),
        ]
        .into(),
        routes: [("0.0.0.0/0".parse().unwrap(), HOST.into())].into(),
        nat: Nat {
            outside: Some(Outside { link: tag.router_link(OUTSIDE), hide_behind: Some(ROUTER) }),
            ..Nat::default()
        },
        meters: BTreeMap::new(),
        limits: BTreeSet::new(),
        marks: BTreeMap::new(),
        ipv6_as: None,
    };
    HostNetwork {
        bridges: [
            (tag.bridge(OUTSIDE), bridge()),
            (tag.bridge(WEB), bridge()),
            (tag.bridge(DATABASE), bridge()),
        ]
        .into(),
        taps: [(tag.tap(1), open(WEB_GUEST, WEB)), (tag.tap(2), open(DATABASE_GUEST, DATABASE))].into(),
        groups: network(&[]).groups,
        routers: [(tag.namespace(1), router)].into(),
        fabric: None,
    }
}

/// Changes the one router's floating addresses and forwardings, with what it has to answer for outside.
pub(super) fn translate(wanted: &mut HostNetwork, change: impl FnOnce(&mut Nat)) {
    let router = wanted.routers.values_mut().next().unwrap();
    change(&mut router.nat);
    let own: IpNet = "203.0.113.2/24".parse().unwrap();
    let floating = router.nat.floating.keys().chain(router.nat.forwardings.keys().map(|f| &f.address));
    let addresses = floating.map(|address| IpNet::from(IpAddr::from(*address))).chain([own]).collect();
    let outside = router.nat.outside.as_ref().unwrap().link.clone();
    router.links.get_mut(&outside).unwrap().addresses = addresses;
}

/// The network with its hands, removed at the end of the test whatever its end.
pub(super) struct Site {
    pub(super) tag: OwnerTag,
    pub(super) host: Host,
    pub(super) wanted: HostNetwork,
}

impl Site {
    pub(super) fn new(test: u16) -> Self {
        let tag = tag(test);
        let wanted = wanted(tag);
        let mut host = Host::open(tag, Namespaces::Own).unwrap();
        host.remove_all().unwrap();
        host.converge(&wanted).unwrap();
        be_outside(&tag.bridge(OUTSIDE));
        Self { tag, host, wanted }
    }

    pub(super) fn guest(&self, number: u32) -> Guest {
        Guest::named(&self.tag.tap(number))
    }

    pub(super) fn translate(&mut self, change: impl FnOnce(&mut Nat)) {
        translate(&mut self.wanted, change);
        self.host.converge_router(&self.wanted, &self.tag.namespace(1)).unwrap();
    }
}

/// Puts this network namespace on the network outside, by a link like any other's: as somebody there who is not the host.
fn be_outside(bridge: &str) {
    for step in [
        "link add there0 type veth peer name here0",
        &format!("link set there0 master {bridge} up"),
        "addr add 203.0.113.1/24 dev here0",
        "link set here0 up",
    ] {
        let status = Command::new("ip").args(step.split(' ')).status().unwrap();
        assert!(status.success(), "ip {step}");
    }
    for link in ["there0", "here0"] {
        crate::tap::settle(link).unwrap();
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.host.remove_all().unwrap();
    }
}

/// A datagram by way of the router.
pub(super) fn send(
    guest: &Guest,
    from: Peer,
    router: [u8; 6],
    target: Ipv4Addr,
    ports: (u16, u16),
    text: &[u8],
) {
    let ends = Ends { source_mac: from.mac, target_mac: router, source: from.address, target };
    guest.send(&udp_saying(ends, ports.0, ports.1, text));
}

type SourceAndTarget = ((Ipv4Addr, u16), (Ipv4Addr, u16));

/// How long what shall arrive may take, behind a router's first questions for MACs.
const PATIENCE: Duration = Duration::from_secs(3);

/// A datagram with this text: its source and target.
pub(super) fn received(guest: &Guest, own: Peer, text: &[u8]) -> Option<SourceAndTarget> {
    datagram(guest.receive_ipv4_within(PATIENCE, own, |packet| says(packet, text))?)
}

/// Whether a datagram with this text does not arrive.
pub(super) fn is_lost(guest: &Guest, own: Peer, text: &[u8]) -> bool {
    guest.receive_ipv4(own, |packet| says(packet, text)).is_none()
}

fn says(packet: &[u8], text: &[u8]) -> bool {
    packet.get(28..28 + text.len()) == Some(text)
}

fn datagram(packet: Vec<u8>) -> Option<SourceAndTarget> {
    let address = |at: usize| Ipv4Addr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).unwrap());
    let port = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    Some(((address(12), port(20)), (address(16), port(22))))
}

pub(super) fn socket(port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((HOST, port)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    socket
}

/// Who sent what the host hears.
pub(super) fn heard(socket: &UdpSocket) -> Option<(Ipv4Addr, u16)> {
    let mut buffer = [0; 64];
    let (_, from) = socket.recv_from(&mut buffer).ok()?;
    match from {
        std::net::SocketAddr::V4(from) => Some((*from.ip(), from.port())),
        std::net::SocketAddr::V6(_) => None,
    }
}

#[test]
fn converged_router_needs_nothing_more_and_goes_without_a_trace() {
    in_own_network(|| {
        let mut site = Site::new(1);
        site.translate(|nat| {
            nat.floating.insert(FLOATING, WEB_GUEST.address);
            let from = Forwarding { address: ROUTER, protocol: 17, port: 53 };
            nat.forwardings.insert(from, (DATABASE_GUEST.address, 5353));
        });
        let observed = site.host.observe().unwrap();
        assert_eq!(plan(site.tag, &site.wanted, &observed), []);
        assert_eq!(
            observed.routers[&site.tag.namespace(1)].nat,
            Some(site.wanted.routers[&site.tag.namespace(1)].nat.clone())
        );
        site.wanted.routers.clear();
        site.host.converge_router(&site.wanted, &site.tag.namespace(1)).unwrap();
        let observed = site.host.observe().unwrap();
        assert_eq!(plan(site.tag, &site.wanted, &observed), []);
        assert!(!namespace::is_there(&site.tag.namespace(1)));
        assert_eq!(observed.router_links, BTreeMap::new());
    });
}

#[test]
fn router_that_somebody_removed_or_changed_by_hand_comes_back() {
    in_own_network(|| {
        let mut site = Site::new(2);
        namespace::remove(&site.tag.namespace(1)).unwrap();
        site.host.converge(&site.wanted).unwrap();
        assert_eq!(plan(site.tag, &site.wanted, &site.host.observe().unwrap()), []);
        let link = site.tag.router_link(WEB);
        netlink::Client::open().unwrap().execute(vec![Request::delete_link(&link)]).unwrap();
        let planned = plan(site.tag, &site.wanted, &site.host.observe().unwrap());
        let creates = |operation: &Operation| matches!(operation, Operation::Router(_, RouterOperation::CreateLink { link: made, .. }) if *made == link);
        assert!(planned.iter().any(creates), "{planned:?}");
        site.host.converge(&site.wanted).unwrap();
        assert_eq!(plan(site.tag, &site.wanted, &site.host.observe().unwrap()), []);
    });
}

#[test]
fn networks_reach_each_other_as_they_are_and_the_outside_hidden() {
    in_own_network(|| {
        let site = Site::new(3);
        let (web, database) = (site.guest(1), site.guest(2));
        send(&web, WEB_GUEST, WEB_MAC, DATABASE_GUEST.address, (1000, 2000), b"between");
        let between = received(&database, DATABASE_GUEST, b"between");
        assert_eq!(between, Some(((WEB_GUEST.address, 1000), (DATABASE_GUEST.address, 2000))));
        let outside = socket(3000);
        send(&web, WEB_GUEST, WEB_MAC, HOST, (1001, 3000), b"out");
        let from = heard(&outside).unwrap();
        assert_eq!(from.0, ROUTER);
        outside.send_to(b"answer", from).unwrap();
        let answer = received(&web, WEB_GUEST, b"answer");
        assert_eq!(answer, Some(((HOST, 3000), (WEB_GUEST.address, 1001))));
    });
}

#[test]
fn inside_is_reached_from_outside_by_floating_addresses_and_forwarded_ports_only() {
    in_own_network(|| {
        let mut site = Site::new(4);
        let (web, database) = (site.guest(1), site.guest(2));
        // The host knows the way to the inside, as anybody outside may.
        let mut links = netlink::Client::open().unwrap();
        links.execute(vec![Request::set_route("10.1.0.0/24".parse().unwrap(), ROUTER.into())]).unwrap();
        let outside = socket(3001);
        outside.send_to(b"direct", (WEB_GUEST.address, 7)).unwrap();
        assert!(is_lost(&web, WEB_GUEST, b"direct"));
        site.translate(|nat| {
            nat.floating.insert(FLOATING, WEB_GUEST.address);
            let from = Forwarding { address: ROUTER, protocol: 17, port: 53 };
            nat.forwardings.insert(from, (DATABASE_GUEST.address, 5353));
        });
        outside.send_to(b"floating", (FLOATING, 7)).unwrap();
        let floating = received(&web, WEB_GUEST, b"floating");
        assert_eq!(floating, Some(((HOST, 3001), (WEB_GUEST.address, 7))));
        send(&web, WEB_GUEST, WEB_MAC, HOST, (7, 3001), b"answer");
        assert_eq!(heard(&outside), Some((FLOATING, 7)));
        // What it begins itself comes from its floating address, too.
        send(&web, WEB_GUEST, WEB_MAC, HOST, (1003, 3001), b"begun");
        assert_eq!(heard(&outside), Some((FLOATING, 1003)));
        outside.send_to(b"forwarded", (ROUTER, 53)).unwrap();
        let forwarded = received(&database, DATABASE_GUEST, b"forwarded");
        assert_eq!(forwarded, Some(((HOST, 3001), (DATABASE_GUEST.address, 5353))));
        outside.send_to(b"elsewhere", (ROUTER, 54)).unwrap();
        assert!(is_lost(&database, DATABASE_GUEST, b"elsewhere"));
    });
}

#[test]
fn floating_address_is_reached_from_inside_and_answers_come_back_through_the_router() {
    in_own_network(|| {
        let mut site = Site::new(5);
        site.translate(|nat| {
            nat.floating.insert(FLOATING, WEB_GUEST.address);
        });
        let (web, database) = (site.guest(1), site.guest(2));
        send(&database, DATABASE_GUEST, DATABASE_MAC, FLOATING, (1004, 80), b"hello");
        let hello = received(&web, WEB_GUEST, b"hello").unwrap();
        assert_eq!(hello.0.0, ROUTER);
        send(&web, WEB_GUEST, WEB_MAC, ROUTER, (80, hello.0.1), b"back");
        let back = received(&database, DATABASE_GUEST, b"back");
        assert_eq!(back, Some(((FLOATING, 80), (DATABASE_GUEST.address, 1004))));
    });
}

#[test]
fn floating_address_moves_with_an_end_to_its_connections_and_no_others() {
    in_own_network(|| {
        let mut site = Site::new(6);
        let second = Ipv4Addr::new(203, 0, 113, 11);
        site.translate(|nat| {
            nat.floating.insert(FLOATING, WEB_GUEST.address);
            nat.floating.insert(second, DATABASE_GUEST.address);
        });
        let (web, database) = (site.guest(1), site.guest(2));
        let outside = socket(3002);
        for (address, guest, own, text) in
            [(FLOATING, &web, WEB_GUEST, b"one".as_slice()), (second, &database, DATABASE_GUEST, b"two")]
        {
            outside.send_to(text, (address, 9)).unwrap();
            assert!(received(guest, own, text).is_some());
        }
        let third = Ipv4Addr::new(203, 0, 113, 12);
        site.translate(|nat| {
            nat.floating.remove(&second);
            nat.floating.insert(FLOATING, DATABASE_GUEST.address);
            nat.floating.insert(third, WEB_GUEST.address);
        });
        // The same source and target as before: a tracked connection would still lead to where it did.
        outside.send_to(b"moved", (FLOATING, 9)).unwrap();
        let moved = received(&database, DATABASE_GUEST, b"moved");
        assert_eq!(moved, Some(((HOST, 3002), (DATABASE_GUEST.address, 9))));
        outside.send_to(b"gone", (second, 9)).unwrap();
        assert!(is_lost(&database, DATABASE_GUEST, b"gone"));
        outside.send_to(b"third", (third, 9)).unwrap();
        assert!(received(&web, WEB_GUEST, b"third").is_some());
        // A change that has nothing to do with a connection leaves it: its answer is translated as its question was.
        site.translate(|nat| {
            nat.floating.remove(&FLOATING);
        });
        send(&web, WEB_GUEST, WEB_MAC, HOST, (9, 3002), b"still");
        assert_eq!(heard(&outside), Some((third, 9)));
    });
}

#[test]
fn router_without_hiding_routes_the_inside_as_it_is() {
    in_own_network(|| {
        let mut site = Site::new(7);
        let mut links = netlink::Client::open().unwrap();
        links.execute(vec![Request::set_route("10.1.0.0/24".parse().unwrap(), ROUTER.into())]).unwrap();
        site.translate(|nat| nat.outside.as_mut().unwrap().hide_behind = None);
        let web = site.guest(1);
        let outside = socket(3003);
        send(&web, WEB_GUEST, WEB_MAC, HOST, (1005, 3003), b"plain");
        assert_eq!(heard(&outside), Some((WEB_GUEST.address, 1005)));
        outside.send_to(b"in", (WEB_GUEST.address, 1006)).unwrap();
        assert!(received(&web, WEB_GUEST, b"in").is_some());
    });
}

#[test]
fn routers_of_two_tenants_with_the_same_addresses_do_not_meet() {
    in_own_network(|| {
        let mut site = Site::new(8);
        let tag = site.tag;
        let mut other = site.wanted.routers[&tag.namespace(1)].clone();
        other.links.clear();
        for (number, bridge, mac, address) in
            [(11, OUTSIDE, [0xfa, 0x16, 0x3e, 2, 0, 1], "203.0.113.3/24"), (12, 12, WEB_MAC, "10.1.0.1/24")]
        {
            let addresses = [address.parse().unwrap()].into();
            let link = RouterLink { bridge: tag.bridge(bridge), mac, mtu: 1450, addresses };
            other.links.insert(tag.router_link(number), link);
        }
        let hide_behind = Some(Ipv4Addr::new(203, 0, 113, 3));
        other.nat.outside = Some(Outside { link: tag.router_link(11), hide_behind });
        site.wanted.bridges.insert(tag.bridge(12), bridge());
        let twin = Tap { bridge: tag.bridge(12), ..site.wanted.taps[&tag.tap(1)].clone() };
        site.wanted.taps.insert(tag.tap(12), twin);
        site.wanted.routers.insert(tag.namespace(2), other);
        site.host.converge(&site.wanted).unwrap();
        let (web, twin, database) = (site.guest(1), site.guest(12), site.guest(2));
        let outside = socket(3004);
        for (guest, address) in [(&web, ROUTER), (&twin, Ipv4Addr::new(203, 0, 113, 3))] {
            send(guest, WEB_GUEST, WEB_MAC, HOST, (1007, 3004), b"who");
            let from = heard(&outside).unwrap();
            assert_eq!(from.0, address);
            outside.send_to(b"you", from).unwrap();
            assert!(received(guest, WEB_GUEST, b"you").is_some());
        }
        send(&twin, WEB_GUEST, WEB_MAC, DATABASE_GUEST.address, (1008, 1), b"across");
        assert!(is_lost(&database, DATABASE_GUEST, b"across"));
    });
}

#[test]
fn making_that_stops_after_any_step_goes_on_and_can_be_undone() {
    in_own_network(|| {
        let tag = tag(9);
        let wanted = wanted(tag);
        let name = tag.namespace(1);
        let mut host = Host::open(tag, Namespaces::Own).unwrap();
        host.remove_all().unwrap();
        let without = HostNetwork { routers: BTreeMap::new(), ..wanted.clone() };
        let routers =
            |wanted: &HostNetwork| HostNetwork { routers: wanted.routers.clone(), ..HostNetwork::default() };
        let steps = plan_one_router(&routers(&wanted), &Observed::default()).len();
        assert!(steps > 10);
        for step in 0..=steps {
            host.converge(&without).unwrap();
            let planned = plan_one_router(&routers(&wanted), &Observed::default());
            host.apply(&planned[..step]).unwrap();
            // Whoever carries on knows nothing of it.
            let mut next = Host::open(tag, Namespaces::Own).unwrap();
            if step % 2 == 0 {
                next.converge(&wanted).unwrap();
                assert_eq!(plan(tag, &wanted, &next.observe().unwrap()), []);
            }
            next.converge_router(&without, &name).unwrap();
            assert!(!namespace::is_there(&name));
            next.converge(&without).unwrap();
            let observed = next.observe().unwrap();
            assert_eq!((observed.routers, observed.router_links), (BTreeMap::new(), BTreeMap::new()));
            host = next;
        }
        host.remove_all().unwrap();
    });
}

/// Counted is what the kernel passed on: of ports, of floating addresses, and by meters.
#[test]
fn what_passes_is_counted_by_port_by_floating_address_and_by_meter() {
    const OTHER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 11);
    in_own_network(|| {
        let mut site = Site::new(31);
        let name = site.tag.namespace(1);
        let meter = |is_counted, direction, source: Option<&str>, destination: Option<&str>| {
            let net = |net: Option<&str>| net.map(|net| net.parse().unwrap());
            MeterRule { is_counted, direction, source: net(source), destination: net(destination) }
        };
        let router = site.wanted.routers.get_mut(&name).unwrap();
        router.meters = [
            (1, [meter(true, Direction::Egress, None, Some("0.0.0.0/0"))].into()),
            (2, [meter(true, Direction::Ingress, Some("203.0.113.0/24"), None)].into()),
            (
                3,
                [
                    meter(true, Direction::Egress, Some("10.0.0.0/8"), None),
                    meter(false, Direction::Egress, Some("10.1.0.0/24"), None),
                ]
                .into(),
            ),
            (4, [meter(true, Direction::Egress, Some("2001:db8::/32"), None)].into()),
        ]
        .into();
        site.translate(|nat| {
            nat.floating.insert(FLOATING, WEB_GUEST.address);
        });
        assert_eq!(plan(site.tag, &site.wanted, &site.host.observe().unwrap()), []);
        let guest = site.guest(1);
        let outside = socket(5000);
        for _ in 0..3 {
            send(&guest, WEB_GUEST, WEB_MAC, HOST, (4000, 5000), b"counted");
            assert_eq!(heard(&outside), Some((FLOATING, 4000)));
        }
        outside.send_to(b"answer", (FLOATING, 4000)).unwrap();
        assert!(received(&guest, WEB_GUEST, b"answer").is_some());
        let counted = site.host.router_traffic(&name).unwrap().unwrap();
        let (headers, sent, answered) = (28, 3, 1);
        let out = Count { packets: sent, bytes: sent * (headers + 7) };
        let back = Count { packets: answered, bytes: answered * (headers + 6) };
        assert_eq!(counted.floating, [(FLOATING, (back, out))].into());
        let nothing = Count::default();
        assert_eq!(counted.meters, [(1, out), (2, back), (3, nothing), (4, nothing)].into());
        let tap = site.host.taps_counts().unwrap()[&site.tag.tap(1)];
        assert!(tap.received.packets >= sent && tap.received.bytes > out.bytes, "{tap:?}");
        assert_eq!(site.host.tap_counts(&site.tag.tap(1)).unwrap().unwrap().sent, tap.sent);
        assert_eq!(site.host.tap_counts(&site.tag.tap(77)).unwrap(), None);
        assert!(counted.links[&site.tag.router_link(WEB)].received.packets >= sent);
        // Another floating address begins anew, and what is not changed counts on.
        site.translate(|nat| {
            nat.floating.insert(OTHER, DATABASE_GUEST.address);
        });
        let counted = site.host.router_traffic(&name).unwrap().unwrap();
        assert_eq!(counted.floating[&FLOATING], (back, out));
        assert_eq!(counted.floating[&OTHER], (nothing, nothing));
        assert_eq!(counted.meters[&1], out);
        // Without meters there is no table.
        site.wanted.routers.get_mut(&name).unwrap().meters.clear();
        site.host.converge_router(&site.wanted, &name).unwrap();
        assert_eq!(site.host.router_traffic(&name).unwrap().unwrap().meters, BTreeMap::new());
        assert_eq!(site.host.router_traffic(&site.tag.namespace(77)).unwrap(), None);
    });
}
