//! Limits of addresses outside against the kernel: what is over them does not pass, both ways, and nothing else is held.

use super::router::{
    DATABASE_GUEST, DATABASE_MAC, FLOATING, HOST, ROUTER, Site, WEB_GUEST, WEB_MAC, heard, received, send,
    socket,
};
use super::*;
use crate::spec::{AddressLimit, LimitUnit};

/// So many datagrams are sent at once; each is of 128 bytes with its headers of 28.
const DATAGRAMS: u16 = 10;
const TEXT: [u8; 100] = [b'x'; 100];

/// How many of them come to the outside.
fn sent(guest: &Guest, from: (Peer, [u8; 6]), outside: &std::net::UdpSocket) -> usize {
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

        let limit = |address, direction, unit, per_second, burst| AddressLimit {
            address,
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
        let passed = sent(&web, from_web, &outside);
        assert!((3..all).contains(&passed), "{passed} of {all} packets left");
        // Another address, and the other way, are not held.
        assert_eq!(sent(&database, (DATABASE_GUEST, DATABASE_MAC), &outside), all);
        assert_eq!(answered(&web, WEB_GUEST, &outside), all);

        // Two packets are within a second's bytes. The router's own address is one as any other.
        let inward = limit(FLOATING, Direction::Ingress, LimitUnit::Bytes, 300, 0);
        let behind = limit(ROUTER, Direction::Egress, LimitUnit::Bytes, 300, 0);
        hold(&mut site, &[packets, inward, behind]);
        let passed = answered(&web, WEB_GUEST, &outside);
        assert!((2..all).contains(&passed), "{passed} of {all} came in");
        let passed = sent(&database, (DATABASE_GUEST, DATABASE_MAC), &outside);
        assert!((2..all).contains(&passed), "{passed} of {all} left as the router");
        // A burst is allowed at once.
        hold(&mut site, &[limit(FLOATING, Direction::Ingress, LimitUnit::Bytes, 300, 2000)]);
        assert_eq!(answered(&web, WEB_GUEST, &outside), all);
        assert_eq!(sent(&web, from_web, &outside), all);

        hold(&mut site, &[]);
        assert_eq!(answered(&web, WEB_GUEST, &outside), all);
    });
}
