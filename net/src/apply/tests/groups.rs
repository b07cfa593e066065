//! Security groups against the kernel.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::time::Duration;

use super::*;
use crate::spec::{Direction, Remote, Rule};

const UDP: Option<u8> = Some(17);
const ICMP: Option<u8> = Some(1);

/// Ports 1 and 2 on one bridge, with these rules.
fn pair(first: &[Rule], second: &[Rule]) -> HostNetwork {
    let mut wanted = network(&[(1, 1), (2, 1)]);
    wanted.groups = [(11, group(first.to_vec())), (12, group(second.to_vec()))].into();
    wanted.taps.get_mut(&TAG.tap(1)).unwrap().groups = [11].into();
    wanted.taps.get_mut(&TAG.tap(2)).unwrap().groups = [12].into();
    wanted
}

fn passes(from: &Guest, to: &Guest, frame: &[u8]) -> bool {
    from.send(frame);
    to.receives(frame)
}

fn skips_without_tracking() -> bool {
    let skips = !tracks_connections();
    if skips {
        crate::testing::skipped("neither nf_conntrack_bridge nor br_netfilter");
    }
    skips
}

fn icmp(ends: Ends, kind: u8, code: u8) -> Vec<u8> {
    // Long enough for no padding, which would be cut off on the way.
    let mut body = vec![kind, code, 0, 0, 0, 1, 0, 1];
    body.resize(64, 0);
    let sum = checksum(&body);
    body[2..4].copy_from_slice(&sum);
    ipv4(ends, 1, &body)
}

#[test]
fn port_without_groups_is_sent_and_sends_nothing_but_arp() {
    in_own_network(|| {
        let mut wanted =
            pair(&[rule(Direction::Egress, None, None), rule(Direction::Ingress, None, None)], &[]);
        wanted.taps.get_mut(&TAG.tap(2)).unwrap().groups.clear();
        let _host = host(&wanted);
        let (one, two) = (Guest::at(1), Guest::at(2));
        assert!(!passes(&one, &two, &udp(ends(1, 2), 4000, 5000)));
        assert!(!passes(&two, &one, &udp(ends(2, 1), 4001, 5001)));
        assert!(passes(&one, &two, &arp(ends(1, 2), mac(1), address(1))));
    });
}

#[test]
fn replies_pass_and_new_connections_back_do_not() {
    in_own_network(|| {
        if skips_without_tracking() {
            return;
        }
        let _host = host(&pair(
            &[rule(Direction::Egress, None, None)],
            &[rule(Direction::Ingress, UDP, Some((5000, 5009)))],
        ));
        let (one, two) = (Guest::at(1), Guest::at(2));
        assert!(!passes(&two, &one, &udp(ends(2, 1), 5003, 4000)), "a reply to nothing");
        assert!(passes(&one, &two, &udp(ends(1, 2), 4000, 5003)), "what both ends' rules allow");
        assert!(passes(&two, &one, &udp(ends(2, 1), 5003, 4000)), "its reply");
        assert!(passes(&one, &two, &udp(ends(1, 2), 4000, 5003)), "and more of it");
        assert!(!passes(&two, &one, &udp(ends(2, 1), 5003, 4001)), "no reply");
        assert!(!passes(&one, &two, &udp(ends(1, 2), 4000, 4999)), "a port below");
        assert!(!passes(&one, &two, &udp(ends(1, 2), 4000, 5010)), "a port above");
        assert!(!passes(&one, &two, &icmp(ends(1, 2), 8, 0)), "another protocol");
    });
}

#[test]
fn icmp_rules_match_type_and_code() {
    in_own_network(|| {
        let any_code = rule(Direction::Ingress, ICMP, Some((8, u16::MAX)));
        let one_code = rule(Direction::Ingress, ICMP, Some((13, 0)));
        let impossible = rule(Direction::Ingress, ICMP, Some((300, 0)));
        let _host = host(&pair(&[rule(Direction::Egress, None, None)], &[any_code, one_code, impossible]));
        let (one, two) = (Guest::at(1), Guest::at(2));
        assert!(passes(&one, &two, &icmp(ends(1, 2), 8, 3)));
        assert!(passes(&one, &two, &icmp(ends(1, 2), 13, 0)));
        assert!(!passes(&one, &two, &icmp(ends(1, 2), 13, 1)));
        assert!(!passes(&one, &two, &icmp(ends(1, 2), 17, 0)));
    });
}

#[test]
fn remote_prefix_and_members_limit_who() {
    in_own_network(|| {
        let egress = rule(Direction::Egress, None, None);
        let members = ["10.9.0.1/32", "10.9.0.8/29"].map(|net| net.parse().unwrap()).into();
        let rules = [
            Rule {
                remote: Remote::Members(11, members),
                ..rule(Direction::Ingress, UDP, Some((1000, 1000)))
            },
            Rule {
                remote: Remote::Prefix("10.9.0.0/30".parse().unwrap()),
                ..rule(Direction::Ingress, UDP, Some((2000, 2000)))
            },
        ];
        let mut wanted = pair(&[egress], &rules);
        wanted.taps.insert(TAG.tap(5), Tap { groups: [11].into(), ..tap(5, 1) });
        wanted.taps.insert(TAG.tap(9), Tap { groups: [11].into(), ..tap(9, 1) });
        let mut host = host(&wanted);
        let two = Guest::at(2);
        for (port, member, in_prefix) in [(1, true, true), (5, false, false), (9, true, false)] {
            let guest = Guest::at(port);
            assert_eq!(passes(&guest, &two, &udp(ends(port, 2), 1, 1000)), member, "member {port}");
            assert_eq!(passes(&guest, &two, &udp(ends(port, 2), 1, 2000)), in_prefix, "in prefix {port}");
        }
        assert_eq!(plan(TAG, &wanted, &host.observe().unwrap()), []);
    });
}

#[test]
fn changed_group_holds_at_once_and_leaves_no_chain_behind() {
    in_own_network(|| {
        let egress = rule(Direction::Egress, None, None);
        let mut wanted = pair(std::slice::from_ref(&egress), &[]);
        let mut host = host(&wanted);
        let (one, two) = (Guest::at(1), Guest::at(2));
        let frame = udp(ends(1, 2), 4000, 5000);
        assert!(!passes(&one, &two, &frame));
        wanted.groups.insert(12, group([rule(Direction::Ingress, UDP, None)]));
        host.converge(&wanted).unwrap();
        assert!(passes(&one, &two, &frame));
        wanted.groups.insert(12, group([]));
        host.converge(&wanted).unwrap();
        assert!(!passes(&one, &two, &udp(ends(1, 2), 4001, 5000)));
        let observed = host.observe().unwrap();
        assert_eq!(plan(TAG, &wanted, &observed), []);
        assert_eq!(observed.filter.unwrap(), WantedFilter::of(&wanted, None, TAG).names());
    });
}

#[test]
fn same_addresses_on_another_bridge_are_another_connection() {
    in_own_network(|| {
        if skips_without_tracking() {
            return;
        }
        let mut wanted =
            pair(&[rule(Direction::Egress, None, None)], &[rule(Direction::Ingress, None, None)]);
        // Ports 3 and 4 are 1 and 2 of another network, with no rules at all.
        wanted.bridges.insert(TAG.bridge(2), bridge());
        for (number, twin) in [(3, 1), (4, 2)] {
            wanted.taps.insert(TAG.tap(number), Tap { groups: [].into(), ..tap(twin, 2) });
        }
        let _host = host(&wanted);
        let guests = [1, 2, 3, 4].map(Guest::at);
        let (there, back) = (udp(ends(1, 2), 4000, 5000), udp(ends(2, 1), 5000, 4000));
        assert!(passes(&guests[0], &guests[1], &there));
        assert!(passes(&guests[1], &guests[0], &back));
        assert!(!passes(&guests[2], &guests[3], &there));
        assert!(!passes(&guests[3], &guests[2], &back));
        assert!(passes(&guests[0], &guests[1], &there));
    });
}

/// Port 1 on a bridge where the host is 10.9.0.254.
fn with_host(rules: &[Rule]) -> (Host, UdpSocket, Guest, Ends) {
    let mut wanted = pair(rules, &[]);
    wanted.bridges.get_mut(&TAG.bridge(1)).unwrap().host_addresses = vec!["10.9.0.254/24".parse().unwrap()];
    let host = host(&wanted);
    let mut links = netlink::Client::open().unwrap();
    let link = links.link(&TAG.bridge(1)).unwrap().unwrap();
    links.execute(vec![Request::set_neighbour(&link.name, link.index, address(1).into(), mac(1))]).unwrap();
    let socket = UdpSocket::bind("10.9.0.254:5000").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let ends = Ends { target_mac: link.mac.unwrap(), target: Ipv4Addr::new(10, 9, 0, 254), ..ends(1, 1) };
    (host, socket, Guest::at(1), ends)
}

fn arrives(socket: &UdpSocket) -> bool {
    match socket.recv(&mut [0; 100]) {
        Ok(_) => true,
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => false,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn host_as_gateway_answers_pings_serves_nothing_and_begins_nothing() {
    in_own_network(|| {
        let (_host, socket, guest, to_host) = with_host(&[rule(Direction::Egress, None, None)]);
        socket.send_to(b"unasked", (address(1), 4000)).unwrap();
        assert!(!guest.receives_udp(5000, 4000), "the host begins");
        guest.send(&udp(to_host, 4001, 5000));
        assert!(!arrives(&socket), "a service of the host's");
        let answers = |ends| {
            guest.send(&icmp(ends, 8, 0));
            guest.receives_where(|frame| frame.get(23) == Some(&1) && frame.get(34) == Some(&0))
        };
        assert!(answers(to_host), "the host answers a ping");
        assert!(!answers(Ends { source: address(9), ..to_host }), "a spoofed address");
    });
}

#[test]
fn host_as_gateway_may_begin_what_the_groups_let_in() {
    in_own_network(|| {
        let (_host, socket, guest, to_host) = with_host(&[rule(Direction::Ingress, UDP, Some((4000, 4000)))]);
        guest.send(&udp(to_host, 4002, 5000));
        assert!(!arrives(&socket), "the guest begins");
        socket.send_to(b"hello", (address(1), 4000)).unwrap();
        assert!(guest.receives_udp(5000, 4000), "the host begins");
        guest.send(&udp(to_host, 4000, 5000));
        assert!(arrives(&socket), "the guest replies");
    });
}

#[test]
fn host_is_out_of_reach_of_a_bridge_it_has_no_address_on() {
    in_own_network(|| {
        let mut wanted = network(&[(1, 1), (2, 2)]);
        wanted.bridges.get_mut(&TAG.bridge(2)).unwrap().host_addresses =
            vec!["10.7.0.254/24".parse().unwrap()];
        let _host = host(&wanted);
        let socket = UdpSocket::bind("0.0.0.0:5000").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let guest = Guest::at(1);
        let mac_of = |bridge| {
            netlink::Client::open().unwrap().link(&TAG.bridge(bridge)).unwrap().unwrap().mac.unwrap()
        };
        let to_host = Ends { target_mac: mac_of(1), target: Ipv4Addr::new(10, 7, 0, 254), ..ends(1, 1) };
        guest.send(&udp(to_host, 4000, 5000));
        assert!(!arrives(&socket));
        let question = arp(Ends { target_mac: [0xff; 6], ..to_host }, mac(1), address(1));
        guest.send(&question);
        assert!(!guest.receives_any_arp());
    });
}

/// What a rule once let through goes with it, and nothing else does.
#[test]
fn connections_end_that_new_rules_forbid() {
    in_own_network(|| {
        if skips_without_tracking() {
            return;
        }
        let out = rule(Direction::Egress, None, None);
        let [web, other] = [80, 90].map(|port| rule(Direction::Ingress, Some(17), Some((port, port))));
        let mut wanted = pair(std::slice::from_ref(&out), &[web.clone(), other.clone()]);
        let mut host = host(&wanted);
        let guests = [1, 2].map(Guest::at);
        let exchange = |port: u16| {
            let there = passes(&guests[0], &guests[1], &udp(ends(1, 2), 4000, port));
            (there, passes(&guests[1], &guests[0], &udp(ends(2, 1), port, 4000)))
        };
        assert_eq!((exchange(80), exchange(90)), ((true, true), (true, true)));
        wanted.groups.insert(12, group([other]));
        host.converge(&wanted).unwrap();
        assert_eq!((exchange(80), exchange(90)), ((false, false), (true, true)));
        // The rule is back, and the sender may not send any more.
        wanted.groups.insert(12, group([web.clone()]));
        host.converge(&wanted).unwrap();
        assert_eq!(exchange(80), (true, true));
        wanted.groups.insert(11, group([]));
        host.converge(&wanted).unwrap();
        assert_eq!(exchange(80), (false, false));
        // Whoever comes after with the same address begins anew.
        wanted.groups.insert(11, group([out]));
        host.converge(&wanted).unwrap();
        assert_eq!(exchange(80), (true, true));
        host.remove_port(&TAG.tap(2)).unwrap();
        wanted.groups.insert(12, group([]));
        drop(host.add_port(&wanted, &TAG.tap(2)).unwrap());
        let second = Guest::at(2);
        assert!(!passes(&guests[0], &second, &udp(ends(1, 2), 4000, 80)));
        assert!(!passes(&second, &guests[0], &udp(ends(2, 1), 80, 4000)));
    });
}

/// How many connections between these ports the kernel tracks, in either direction.
fn tracked(one: u8, two: u8) -> usize {
    let mut connection = crate::netlink::Connection::open(netlink_sys::protocols::NETLINK_NETFILTER).unwrap();
    let found = std::cell::Cell::new(0);
    crate::conntrack::end(&mut connection, crate::conntrack::Family::Ipv4, |_, begun, _| {
        let ends = [begun.source, begun.target];
        if ends.contains(&address(one).into()) && ends.contains(&address(two).into()) {
            found.set(found.get() + 1);
        }
        false
    })
    .unwrap();
    found.get()
}

/// Neutron's stateless groups: an answer needs a rule of its own, and what is not asked for is not tracked.
#[test]
fn stateless_ports_are_judged_packet_by_packet_and_stateful_ones_beside_them_as_ever() {
    in_own_network(|| {
        if skips_without_tracking() {
            return;
        }
        let [out, web] =
            [rule(Direction::Egress, UDP, None), rule(Direction::Ingress, UDP, Some((5000, 5000)))];
        let mut wanted = network(&[(1, 1), (2, 1), (3, 1), (4, 1)]);
        wanted.groups = [(11, group([out.clone()])), (12, group([out.clone(), web]))].into();
        for (port, number, stateless) in [(1, 11, true), (2, 12, true), (3, 11, false), (4, 12, false)] {
            let tap = wanted.taps.get_mut(&TAG.tap(port)).unwrap();
            (tap.groups, tap.stateless) = ([number].into(), stateless);
        }
        let mut host = host(&wanted);
        assert_eq!(plan(TAG, &wanted, &host.observe().unwrap()), []);
        let guests = [1, 2, 3, 4].map(Guest::at);
        let exchange = |from: u8, to: u8, port: u16| {
            let (one, two) = (&guests[usize::from(from) - 1], &guests[usize::from(to) - 1]);
            let there = passes(one, two, &udp(ends(from, to), 4000, port));
            (there, passes(two, one, &udp(ends(to, from), port, 4000)))
        };
        assert_eq!(exchange(1, 2, 5000), (true, false), "from stateless to stateless");
        assert_eq!(exchange(1, 4, 5000), (true, false), "from stateless to stateful");
        assert_eq!(exchange(3, 2, 5000), (true, true), "from stateful to stateless");
        assert_eq!(exchange(3, 4, 5000), (true, true), "between stateful ones");
        assert_eq!(exchange(3, 2, 5001), (false, false), "what no rule lets in");
        assert!(tracked(3, 2) > 0 && tracked(3, 4) > 0);
        if nftables::Client::open(TAG).unwrap().tracking().unwrap() == nftables::Tracking::Bridge {
            assert_eq!(tracked(1, 2), 0, "nobody asks for it");
        }
    });
}
