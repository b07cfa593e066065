//! Limits of addresses outside against the kernel: what is over them does not pass, both ways, and nothing else is held.

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use super::router::{
    DATABASE_GUEST, DATABASE_MAC, FLOATING, HOST, ROUTER, Site, WEB_GUEST, WEB_MAC, heard, received, send,
    socket,
};
use super::*;
use crate::spec::{AddressLimit, LimitUnit};

/// So many datagrams are sent at once; each is of 128 bytes with its headers of 28.
const DATAGRAMS: u16 = 10;
pub(super) const TEXT: [u8; 100] = [b'x'; 100];

/// How many of them come to the outside.
fn sent_by(guest: &Guest, from: (Peer, [u8; 6]), outside: &std::net::UdpSocket) -> usize {
    for _ in 0..DATAGRAMS {
        send(guest, from.0, from.1, HOST, (4000, outside.local_addr().unwrap().port()), &TEXT);
    }
    std::iter::from_fn(|| heard(outside)).count()
}

/// How many of them come to the guest from outside.
fn answered(guest: &Guest, peer: Peer, outside: &std::net::UdpSocket) -> usize {
    for _ in 0..DATAGRAMS {
        outside.send_to(&TEXT, (FLOATING, 4000)).unwrap();
    }
    std::iter::from_fn(|| guest.receive_ipv4(peer, |packet| packet.get(28..128) == Some(&TEXT))).count()
}

#[test]
fn addresses_outside_are_held_to_their_limits_both_ways() {
    in_own_network(|| {
        let mut site = Site::new(41);
        let name = site.tag.namespace(1);
        site.translate(|nat| {
            nat.floating.insert(FLOATING, WEB_GUEST.address);
        });
        let (web, database) = (site.guest(1), site.guest(2));
        let outside = socket(5000);
        // Whoever has to find a neighbour first has done so.
        send(&web, WEB_GUEST, WEB_MAC, HOST, (4000, 5000), b"first");
        assert_eq!(heard(&outside), Some((FLOATING, 4000)));
        outside.send_to(b"answer", (FLOATING, 4000)).unwrap();
        assert!(received(&web, WEB_GUEST, b"answer").is_some());
        send(&database, DATABASE_GUEST, DATABASE_MAC, HOST, (4000, 5000), b"first");
        assert!(heard(&outside).is_some());

        let limit = |address: Ipv4Addr, direction, unit, per_second, burst| AddressLimit {
            address: address.into(),
            direction,
            unit,
            per_second,
            burst,
        };
        let hold = |site: &mut Site, limits: &[AddressLimit]| {
            site.wanted.routers.get_mut(&name).unwrap().limits = limits.iter().copied().collect();
            site.host.converge_router(&site.wanted, &name).unwrap();
            assert_eq!(plan(site.tag, &site.wanted, &site.host.observe().unwrap()), []);
        };
        let all = usize::from(DATAGRAMS);
        let from_web = (WEB_GUEST, WEB_MAC);
        let packets = limit(FLOATING, Direction::Egress, LimitUnit::Packets, 1, 3);
        hold(&mut site, &[packets]);
        let passed = sent_by(&web, from_web, &outside);
        assert!((3..all).contains(&passed), "{passed} of {all} packets left");
        // Another address, and the other way, are not held.
        assert_eq!(sent_by(&database, (DATABASE_GUEST, DATABASE_MAC), &outside), all);
        assert_eq!(answered(&web, WEB_GUEST, &outside), all);

        // Two packets are within a second's bytes. The router's own address is one as any other.
        let inward = limit(FLOATING, Direction::Ingress, LimitUnit::Bytes, 300, 0);
        let behind = limit(ROUTER, Direction::Egress, LimitUnit::Bytes, 300, 0);
        hold(&mut site, &[packets, inward, behind]);
        let passed = answered(&web, WEB_GUEST, &outside);
        assert!((2..all).contains(&passed), "{passed} of {all} came in");
        let passed = sent_by(&database, (DATABASE_GUEST, DATABASE_MAC), &outside);
        assert!((2..all).contains(&passed), "{passed} of {all} left as the router");
        // A burst is allowed at once.
        hold(&mut site, &[limit(FLOATING, Direction::Ingress, LimitUnit::Bytes, 300, 2000)]);
        assert_eq!(answered(&web, WEB_GUEST, &outside), all);
        assert_eq!(sent_by(&web, from_web, &outside), all);

        hold(&mut site, &[]);
        assert_eq!(answered(&web, WEB_GUEST, &outside), all);
    });
}

pub(super) const OUTSIDE_V6: &str = "2001:db8:f::1";

/// Gives both sides IPv6, which is the router's own: the guest on the network `web` and the one outside.
pub(super) fn speak_ipv6(site: &mut Site) {
    let name = site.tag.namespace(1);
    let every = |direction| Rule { ip_version: 6, ..rule(direction, None, None) };
    let anything = site.wanted.groups.get_mut(&ANYTHING).unwrap();
    anything.rules.extend([Direction::Ingress, Direction::Egress].map(every));
    let tap = site.wanted.taps.get_mut(&site.tag.tap(1)).unwrap();
    tap.addresses.insert(WEB_V6.parse::<IpAddr>().unwrap().into());
    let router = site.wanted.routers.get_mut(&name).unwrap();
    for (link, address) in [(1, "2001:db8:f::2/64"), (2, "2001:db8:a::1/64")] {
        let link = router.links.get_mut(&site.tag.router_link(link)).unwrap();
        link.addresses.insert(address.parse().unwrap());
    }
    router.ipv6_as = Some(ROUTER.into());
    site.host.converge(&site.wanted).unwrap();
    for step in [
        format!("addr add {OUTSIDE_V6}/64 dev here0 nodad"),
        "route add 2001:db8:a::/64 via 2001:db8:f::2".to_owned(),
    ] {
        let status = Command::new("ip").arg("-6").args(step.split(' ')).status().unwrap();
        assert!(status.success(), "ip -6 {step}");
    }
}

const WEB_V6: &str = "2001:db8:a::5";

/// A datagram by IPv6 from the guest to the outside.
pub(super) fn send_ipv6(guest: &Guest, port: u16) {
    let (source, target): (Ipv6Addr, Ipv6Addr) = (WEB_V6.parse().unwrap(), OUTSIDE_V6.parse().unwrap());
    let ends =
        Ends { source_mac: WEB_GUEST.mac, target_mac: WEB_MAC, source: WEB_GUEST.address, target: HOST };
    let length = (8 + TEXT.len()) as u16;
    let mut body = [4000_u16, port, length, 0].map(u16::to_be_bytes).concat();
    body.extend(TEXT);
    let pseudo =
        [&source.octets()[..], &target.octets(), &[0, 0], &length.to_be_bytes(), &[0, 0, 0, 17], &body];
    let sum = checksum(&pseudo.concat());
    body[6..8].copy_from_slice(&sum);
    guest.send(&ipv6(ends, source, target, 17, &body));
}

/// Answers the router's questions for the guest's MAC by IPv6, until a datagram of [`TEXT`] comes.
fn receives_ipv6(guest: &Guest) -> bool {
    let own: Ipv6Addr = WEB_V6.parse().unwrap();
    guest.receives_where(|frame| {
        let asks = frame.get(12..14) == Some(&[0x86, 0xdd]) && frame.get(54) == Some(&135);
        if asks && frame.get(62..78) == Some(&own.octets()) {
            let asker = Ipv6Addr::from(<[u8; 16]>::try_from(&frame[22..38]).unwrap());
            let ends = Ends {
                source_mac: WEB_GUEST.mac,
                target_mac: frame[6..12].try_into().unwrap(),
                source: WEB_GUEST.address,
                target: HOST,
            };
            let body = [&[136, 0, 0, 0, 0x60, 0, 0, 0][..], &own.octets(), &[2, 1], &WEB_GUEST.mac].concat();
            guest.send(&ipv6(ends, own, asker, 58, &body));
        }
        frame.get(12..14) == Some(&[0x86, 0xdd]) && frame.get(62..162) == Some(&TEXT)
    })
}

/// How many packets a namespace told of groups that it listens to (MLDv2 reports, RFC 3810 §5.2), and how many it could not.
fn listeners_told(namespace: &str) -> [u64; 2] {
    let counts =
        Command::new("ip").args(["netns", "exec", namespace, "cat", "/proc/net/snmp6"]).output().unwrap();
    let counts = String::from_utf8(counts.stdout).unwrap();
    ["Icmp6OutType143", "Ip6OutDiscards"].map(|name| {
        let count = counts.lines().find_map(|line| line.strip_prefix(name));
        count.map_or(0, |count| count.trim().parse().unwrap())
    })
}

#[test]
fn all_of_ipv6_is_held_with_the_routers_own_address_and_neighbours_are_not() {
    in_own_network(|| {
        let mut site = Site::new(42);
        let name = site.tag.namespace(1);
        speak_ipv6(&mut site);
        let (web, database) = (site.guest(1), site.guest(2));
        let (outside, ipv6) = (socket(5000), std::net::UdpSocket::bind((OUTSIDE_V6, 5001)).unwrap());
        ipv6.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let count = |socket: &std::net::UdpSocket| {
            let mut buffer = [0; 200];
            std::iter::from_fn(|| socket.recv_from(&mut buffer).ok()).count()
        };
        let sent = |number: u16| {
            for _ in 0..number {
                send_ipv6(&web, 5001);
            }
            count(&ipv6)
        };
        let answered = || {
            for _ in 0..DATAGRAMS {
                ipv6.send_to(&TEXT, (WEB_V6, 4000)).unwrap();
            }
            std::iter::from_fn(|| receives_ipv6(&web).then_some(())).count()
        };
        let all = usize::from(DATAGRAMS);
        assert_eq!(sent(1), 1);
        ipv6.send_to(&TEXT, (WEB_V6, 4000)).unwrap();
        assert!(receives_ipv6(&web));
        let limit = |direction, unit, burst| AddressLimit {
            address: ROUTER.into(),
            direction,
            unit,
            per_second: 1,
            burst,
        };
        let hold = |site: &mut Site, limits: &[AddressLimit]| {
            site.wanted.routers.get_mut(&name).unwrap().limits = limits.iter().copied().collect();
            site.host.converge_router(&site.wanted, &name).unwrap();
            assert_eq!(plan(site.tag, &site.wanted, &site.host.observe().unwrap()), []);
        };
        let twenty = limit(Direction::Egress, LimitUnit::Packets, 20);
        hold(&mut site, &[twenty]);
        let passed = sent(30);
        assert!((20..30).contains(&passed), "{passed} of 30 left by IPv6");
        // By IPv4 the router's own address has what is left of the same.
        let passed = sent_by(&database, (DATABASE_GUEST, DATABASE_MAC), &outside);
        assert!(passed < all, "{passed} of {all} left by IPv4 beside");
        assert_eq!(answered(), all);

        // Whatever is held, neighbours find each other: the router, and whoever asks for it.
        let ip = |arguments: &str| {
            assert!(Command::new("ip").args(arguments.split(' ')).status().unwrap().success());
        };
        let nothing = |direction| limit(direction, LimitUnit::Bytes, 0);
        hold(&mut site, &[nothing(Direction::Egress)]);
        ip("-6 neigh flush all");
        assert_eq!((sent(DATAGRAMS), answered()), (0, all));
        // Nor is held what groups the router listens to, with each address to one more (RFC 4291 §2.7.1).
        let [told, failed] = listeners_told(&name);
        ip(&format!("-n {name} -6 addr add 2001:db8:f::77/64 dev {} nodad", site.tag.router_link(1)));
        let end = Instant::now() + Duration::from_secs(20);
        while listeners_told(&name)[0] == told && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        let [told_now, failed_now] = listeners_told(&name);
        assert!(told_now > told && failed_now == failed, "{told_now} {told} {failed_now} {failed}");
        hold(&mut site, &[nothing(Direction::Ingress)]);
        ip(&format!("-n {name} -6 neigh flush all"));
        assert_eq!((sent(DATAGRAMS), answered()), (all, 0));
        hold(&mut site, &[]);
        assert_eq!((sent(DATAGRAMS), answered()), (all, all));
    });
}
