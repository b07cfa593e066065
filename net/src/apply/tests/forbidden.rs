//! Forty packets that nobody may send or get, each beside its twin that may pass: what differs is what forbids it.
//!
//! All of them are sent, the twins last: what a tap is sent arrives in order, so a forbidden packet that was on its way
//! would be there before the last twin is.

use std::net::Ipv6Addr;

use super::*;
use crate::spec::{Direction, Remote, Rule};

const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// The sender: port 1. The receiver on the same network: port 2, which lets in UDP at 5000 to 5009, IPv6 too, from anyone, at
/// 6000 from the sender's group, at 7000 from a prefix that the sender is in, and echo requests.
const SENDER: u8 = 1;
const RECEIVER: u8 = 2;
/// One of another group, on the same network, outside that prefix.
const STRANGER: u8 = 9;
/// One of the sender's own addresses and group on another tenant's network.
const TENANT: u8 = 20;
/// One that may begin nothing but UDP to 5000 to 5009.
const BOUND: u8 = 3;

fn v6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into())
}

fn link_local(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0xf816, 0x3eff, 0xfe00, number.into())
}

fn wanted() -> HostNetwork {
    let mut wanted = network(&[(SENDER, 1), (RECEIVER, 1), (BOUND, 1), (STRANGER, 1)]);
    let six = |direction| Rule { ip_version: 6, ..rule(direction, None, None) };
    let ingress = |ports| rule(Direction::Ingress, Some(UDP), Some(ports));
    let sender: IpNet = "10.9.0.1/32".parse().unwrap();
    wanted.groups = [
        (1, group([rule(Direction::Egress, None, None), six(Direction::Egress)])),
        (
            2,
            group([
                ingress((5000, 5009)),
                Rule { ip_version: 6, ..ingress((5000, 5009)) },
                Rule { remote: Remote::Members(1, [sender].into()), ..ingress((6000, 6000)) },
                Rule { remote: Remote::Prefix("10.9.0.0/30".parse().unwrap()), ..ingress((7000, 7000)) },
                rule(Direction::Ingress, Some(ICMP), Some((8, u16::MAX))),
            ]),
        ),
        (3, group([rule(Direction::Egress, Some(UDP), Some((5000, 5009)))])),
    ]
    .into();
    for (port, number) in [(SENDER, 1), (RECEIVER, 2), (BOUND, 3), (STRANGER, 1)] {
        let tap = wanted.taps.get_mut(&TAG.tap(port.into())).unwrap();
        tap.groups = [number].into();
        if [SENDER, RECEIVER].contains(&port) {
            tap.addresses.insert(IpNet::from(IpAddr::from(v6(port))));
        }
    }
    wanted.bridges.insert(TAG.bridge(2), bridge());
    let tenant = Tap { groups: [2].into(), ..tap(TENANT, 2) };
    wanted.taps.insert(TAG.tap(TENANT.into()), tenant);
    wanted
}

/// A packet with its twin; both say their number, so that each is known where it arrives.
struct Case {
    what: &'static str,
    from: u8,
    forbidden: Vec<u8>,
    twin: Vec<u8>,
}

fn case(what: &'static str, forbidden: Vec<u8>, twin: Vec<u8>) -> Case {
    Case { what, from: SENDER, forbidden, twin }
}

fn icmp(ends: Ends, kind: u8) -> Vec<u8> {
    // Long enough for no padding, which would be cut off on the way.
    let mut body = vec![kind, 0, 0, 0, 0, 7, 0, kind];
    body.resize(64, 0);
    let sum = checksum(&body);
    body[2..4].copy_from_slice(&sum);
    ipv4(ends, ICMP, &body)
}

/// A datagram over IPv6, without a checksum that anybody looks at on the way.
fn udp6(source: Ipv6Addr, from: u16, to: u16) -> Vec<u8> {
    let ports = [from.to_be_bytes(), to.to_be_bytes()].concat();
    let body = [&ports[..], &[0, 12, 0, 1, 1, 2, 3, 4]].concat();
    ipv6(ends(SENDER, RECEIVER), source, v6(RECEIVER), UDP, &body)
}

/// Neighbour discovery about a target, with a number that makes it one of its kind.
fn neighbour(source: Ipv6Addr, kind: u8, target: Ipv6Addr, number: u8) -> Vec<u8> {
    let mut body = vec![kind, 0, 0, 0, 0, 0, 0, number];
    body.extend_from_slice(&target.octets());
    ipv6(ends(SENDER, RECEIVER), source, v6(RECEIVER), ICMPV6, &body)
}

/// A frame of an ARP reply.
fn arp_reply(ends: Ends, sender_mac: [u8; 6], sender: Ipv4Addr) -> Vec<u8> {
    let mut frame = arp(ends, sender_mac, sender);
    frame[21] = 2;
    frame
}

fn spoofed(change: impl FnOnce(&mut Ends)) -> Ends {
    let mut spoofed = ends(SENDER, RECEIVER);
    change(&mut spoofed);
    spoofed
}

/// Who a packet says it is from, over IPv4 and ARP.
fn sources() -> Vec<Case> {
    let own = ends(SENDER, RECEIVER);
    let from = |source: Ipv4Addr| spoofed(|ends| ends.source = source);
    let mac_of = |source_mac| spoofed(|ends| ends.source_mac = source_mac);
    let gateway = address(254);
    let datagram = |ends, port| udp(ends, port, 5000);
    vec![
        case("another's MAC", datagram(mac_of(mac(9)), 4001), datagram(own, 4101)),
        case("the receiver's own MAC", datagram(mac_of(mac(RECEIVER)), 4002), datagram(own, 4102)),
        case("a group MAC as the source", datagram(mac_of([1, 0, 0x5e, 0, 0, 1]), 4003), datagram(own, 4103)),
        case("another's address", datagram(from(address(9)), 4004), datagram(own, 4104)),
        case(
            "an address of elsewhere",
            datagram(from(Ipv4Addr::new(192, 168, 7, 7)), 4005),
            datagram(own, 4105),
        ),
        case("the gateway's address", datagram(from(gateway), 4006), datagram(own, 4106)),
        case("no address", datagram(from(Ipv4Addr::UNSPECIFIED), 4007), datagram(own, 4107)),
        case("the loopback address", datagram(from(Ipv4Addr::LOCALHOST), 4008), datagram(own, 4108)),
        case("a group address", datagram(from(Ipv4Addr::new(224, 0, 0, 1)), 4009), datagram(own, 4109)),
        case("everybody's address", datagram(from(Ipv4Addr::BROADCAST), 4010), datagram(own, 4110)),
        case(
            "the metadata service's address",
            datagram(from(Ipv4Addr::new(169, 254, 169, 254)), 4011),
            datagram(own, 4111),
        ),
        case(
            "an ARP question with another's address",
            arp(own, mac(SENDER), address(9)),
            arp(own, mac(SENDER), address(SENDER)),
        ),
        case(
            "an ARP question with another's MAC inside",
            arp(own, mac(9), address(SENDER)),
            arp(own, mac(SENDER), address(SENDER)),
        ),
        case(
            "an ARP answer for the gateway",
            arp_reply(own, mac(SENDER), gateway),
            arp_reply(own, mac(SENDER), address(SENDER)),
        ),
        case(
            "an ARP answer for nobody",
            arp_reply(own, mac(SENDER), Ipv4Addr::UNSPECIFIED),
            arp(own, mac(SENDER), Ipv4Addr::UNSPECIFIED),
        ),
        case(
            "ARP in a frame with another's MAC",
            arp(mac_of(mac(9)), mac(SENDER), address(SENDER)),
            arp(own, mac(SENDER), address(SENDER)),
        ),
    ]
}

/// What only the network itself may say.
fn services() -> Vec<Case> {
    let own = ends(SENDER, RECEIVER);
    let nowhere = spoofed(|ends| {
        ends.source = Ipv4Addr::UNSPECIFIED;
        ends.target = Ipv4Addr::BROADCAST;
        ends.target_mac = mac(RECEIVER);
    });
    let to_client = |from, to| udp(own, from, to);
    vec![
        case("a DHCP server's answer", to_client(67, 68), udp(own, 4201, 5001)),
        case("a DHCP client's question from another port", udp(nowhere, 4068, 67), udp(own, 4202, 5001)),
        case("a DHCPv6 server's answer", udp6(v6(SENDER), 547, 546), udp6(v6(SENDER), 4203, 5001)),
        case(
            "a router's advertisement",
            neighbour(link_local(SENDER), 134, v6(SENDER), 1),
            neighbour(link_local(SENDER), 135, v6(RECEIVER), 1),
        ),
        case(
            "a redirection",
            neighbour(link_local(SENDER), 137, v6(SENDER), 2),
            neighbour(link_local(SENDER), 135, v6(RECEIVER), 2),
        ),
    ]
}

/// Who a packet says it is from, over IPv6.
fn sources6() -> Vec<Case> {
    let datagram = |source, port| udp6(source, port, 5002);
    vec![
        case("another's IPv6 address", datagram(v6(9), 4301), datagram(v6(SENDER), 4401)),
        case(
            "another's link-local address",
            datagram(link_local(9), 4302),
            datagram(link_local(SENDER), 4402),
        ),
        case("no IPv6 address", datagram(Ipv6Addr::UNSPECIFIED, 4303), datagram(v6(SENDER), 4403)),
        case("the IPv6 loopback address", datagram(Ipv6Addr::LOCALHOST, 4304), datagram(v6(SENDER), 4404)),
        case(
            "an advertisement of another's address",
            neighbour(v6(SENDER), 136, v6(9), 3),
            neighbour(v6(SENDER), 136, v6(SENDER), 3),
        ),
        case(
            "an advertisement of the router's address",
            neighbour(v6(SENDER), 136, link_local(0xfe), 4),
            neighbour(v6(SENDER), 136, link_local(SENDER), 4),
        ),
        case(
            "an advertisement from another's address",
            neighbour(v6(9), 136, v6(SENDER), 5),
            neighbour(v6(SENDER), 136, v6(SENDER), 5),
        ),
    ]
}

/// What travels on a link besides IP and ARP.
fn frames() -> Vec<Case> {
    let own = ends(SENDER, RECEIVER);
    let tagged = |tag: u16, port| ethernet(own, tag, &[&[0, 5][..], &udp(own, port, 5003)[12..]].concat());
    let plain = |port| udp(own, port, 5003);
    vec![
        case("a VLAN's frame", tagged(0x8100, 4501), plain(4601)),
        case("a provider's VLAN's frame", tagged(0x88a8, 4502), plain(4602)),
        case("a label-switched packet", ethernet(own, 0x8847, &[1; 60]), plain(4603)),
        case("a PPPoE packet", ethernet(own, 0x8863, &[2; 60]), plain(4604)),
        case("a neighbour's description (LLDP)", ethernet(own, 0x88cc, &[3; 60]), plain(4605)),
        case("a frame of spanning tree", ethernet(own, 38, &[0x42; 60]), plain(4606)),
        case("a frame of no known kind", ethernet(own, 0x88b5, &[4; 60]), plain(4607)),
    ]
}

/// What the groups of either end do not let begin.
fn groups() -> Vec<Case> {
    let own = ends(SENDER, RECEIVER);
    let bound = ends(BOUND, RECEIVER);
    let stranger = ends(STRANGER, RECEIVER);
    let from = |from, what, forbidden, twin| Case { what, from, forbidden, twin };
    vec![
        case("a port that no rule lets in", udp(own, 4701, 4999), udp(own, 4801, 5009)),
        case("an IPv6 port that no rule lets in", udp6(v6(SENDER), 4702, 5010), udp6(v6(SENDER), 4802, 5009)),
        case("a message that no rule lets in", icmp(own, 13), icmp(own, 8)),
        case("a protocol that no rule lets in", ipv4(own, 132, &[5; 64]), udp(own, 4803, 5009)),
        from(
            STRANGER,
            "a port for members of a group, from another",
            udp(stranger, 4704, 6000),
            udp(stranger, 4804, 5000),
        ),
        from(
            STRANGER,
            "a port for a prefix, from elsewhere",
            udp(stranger, 4705, 7000),
            udp(stranger, 4805, 5000),
        ),
        case(
            "a port for members of a group, by another's address",
            udp(spoofed(|ends| ends.source = address(2)), 4706, 6000),
            udp(own, 4806, 6000),
        ),
        from(BOUND, "a port that its sender may not reach", udp(bound, 4707, 6000), udp(bound, 4807, 5000)),
        from(BOUND, "a message that its sender may not send", icmp(bound, 8), udp(bound, 4808, 5001)),
    ]
}

#[test]
fn forty_forbidden_packets_are_dropped_and_their_twins_pass() {
    in_own_network(|| {
        let _host = host(&wanted());
        let guests = [SENDER, RECEIVER, BOUND, STRANGER, TENANT].map(|port| (port, Guest::at(port)));
        let at = |port| &guests.iter().find(|(number, _)| *number == port).unwrap().1;
        let cases: Vec<Case> =
            [sources(), services(), sources6(), frames(), groups()].into_iter().flatten().collect();
        assert!(cases.len() >= 40, "{}", cases.len());
        for Case { what, from, forbidden, twin } in &cases {
            at(*from).send(forbidden);
            at(*from).send(twin);
            let arrived = at(RECEIVER).until(twin);
            let arrived = arrived.unwrap_or_else(|| panic!("the twin of {what} does not pass"));
            assert!(!arrived.contains(forbidden), "{what} passes");
        }
    });
}

#[test]
fn what_leads_to_another_tenant_or_to_the_host_is_dropped() {
    in_own_network(|| {
        let _host = host(&wanted());
        let (sender, receiver, tenant) = (Guest::at(SENDER), Guest::at(RECEIVER), Guest::at(TENANT));
        let own = ends(SENDER, RECEIVER);
        // To the other tenant's MAC and address, to everybody, and to the MAC that the bridge itself has.
        let across = spoofed(|ends| (ends.target_mac, ends.target) = (mac(TENANT), address(TENANT)));
        let everybody = spoofed(|ends| ends.target_mac = [0xff; 6]);
        let bridge = spoofed(|ends| ends.target_mac = link_mac(&TAG.bridge(1)));
        for (number, ends) in [(1, across), (2, everybody), (3, bridge)] {
            sender.send(&udp(ends, 4900 + number, 5000));
        }
        let twin = udp(own, 4950, 5000);
        sender.send(&twin);
        assert!(receiver.until(&twin).is_some());
        assert!(!tenant.receives_udp(4901, 5000));
        // Fragments of which the first never came are no datagram, and reach nobody.
        let mut rest = udp(own, 4960, 5000);
        rest[20..22].copy_from_slice(&[0x20, 0x08]);
        rest[24..26].copy_from_slice(&[0, 0]);
        let sum = checksum(&rest[14..34]);
        rest[24..26].copy_from_slice(&sum);
        sender.send(&rest);
        let twin = udp(own, 4961, 5000);
        sender.send(&twin);
        let arrived = receiver.until(&twin).unwrap();
        assert!(!tracks_connections() || !arrived.contains(&rest), "a lone fragment passes");
    });
}
