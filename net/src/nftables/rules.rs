//! The rules themselves: chains and sets that are the same whatever the host carries. Bytes of packets are matched
//! here; what is allowed is looked up in sets.
//!
//! Bridge family, on every frame that enters a bridge through a tap of ours, before anything else looks at it:
//! unknown taps, wrong source MACs, sources that are not the port's (IPv4, IPv6, ARP sender, advertised neighbour),
//! DHCP servers, router advertisements and every other ethertype, VLAN tags and spanning tree included, are dropped.
//!
//! Inet family: nothing is forwarded by the host's IP stack from or to a bridge of ours, and only bridges on which the
//! host has addresses reach the host.

use super::message::{Base, Expression, FIRST, Family, Meta, SECOND, Verdict};
use crate::names::{LinkKind, OwnerTag};

/// Before `br_netfilter` (0) and connection tracking (−200): what is spoofed leaves no trace.
const PRIORITY_ANTI_SPOOF: i32 = -300;

/// Before the usual filters (0): a host's own "accept" ends only its own chain, our "drop" is final.
const PRIORITY_HOST: i32 = -10;

const HOOK_PREROUTING: u32 = 0;
const HOOK_INPUT: u32 = 1;
const HOOK_FORWARD: u32 = 2;

/// A chain and its rules.
#[derive(Debug)]
pub(super) struct Chain {
    pub(super) family: Family,
    pub(super) name: &'static str,
    /// Hook and priority; none for a chain that others go to.
    pub(super) hook: Option<(u32, i32)>,
    pub(super) rules: Vec<Vec<Expression>>,
}

/// A set that rules look up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Set {
    pub(super) family: Family,
    pub(super) name: &'static str,
    /// Type (nft's number, for `nft list`) and length in bytes of each part of the key.
    pub(super) fields: &'static [(u32, u32)],
    /// Whether elements are ranges.
    pub(super) ranges: bool,
}

const IPV4_ADDRESS: (u32, u32) = (7, 4);
const IPV6_ADDRESS: (u32, u32) = (8, 16);
const ETHERNET_ADDRESS: (u32, u32) = (9, 6);
const INTERFACE: (u32, u32) = (41, 16);

const fn set(family: Family, name: &'static str, fields: &'static [(u32, u32)]) -> Set {
    Set { family, name, fields, ranges: false }
}

const fn ranges(family: Family, name: &'static str, fields: &'static [(u32, u32)]) -> Set {
    Set { family, name, fields, ranges: true }
}

pub(super) const OPEN: Set = set(Family::Bridge, "open", &[INTERFACE]);
pub(super) const MACS: Set = set(Family::Bridge, "macs", &[INTERFACE, ETHERNET_ADDRESS]);
pub(super) const IPV4: Set = set(Family::Bridge, "ipv4", &[INTERFACE, IPV4_ADDRESS]);
pub(super) const IPV4_PREFIXES: Set = ranges(Family::Bridge, "ipv4_prefixes", &[INTERFACE, IPV4_ADDRESS]);
pub(super) const IPV6_PORTS: Set = set(Family::Bridge, "ipv6_ports", &[INTERFACE]);
pub(super) const IPV6: Set = set(Family::Bridge, "ipv6", &[INTERFACE, IPV6_ADDRESS]);
pub(super) const IPV6_PREFIXES: Set = ranges(Family::Bridge, "ipv6_prefixes", &[INTERFACE, IPV6_ADDRESS]);
pub(super) const BRIDGED: Set = set(Family::Inet, "bridged", &[INTERFACE, INTERFACE]);
pub(super) const GATEWAYS: Set = set(Family::Inet, "gateways", &[INTERFACE]);

/// Every set.
pub(super) const SETS: [Set; 9] =
    [OPEN, MACS, IPV4, IPV4_PREFIXES, IPV6_PORTS, IPV6, IPV6_PREFIXES, BRIDGED, GATEWAYS];

const PROTOCOL_UDP: u8 = 17;
const PROTOCOL_ICMPV6: u8 = 58;

/// Every chain; one that others go to stands before them.
pub(super) fn chains(tag: OwnerTag) -> Vec<Chain> {
    let taps = tag.prefix(LinkKind::Tap);
    let bridges = tag.prefix(LinkKind::Bridge);
    let bridge = |name, rules| Chain { family: Family::Bridge, name, hook: None, rules };
    vec![
        bridge("from_guest_ipv4", ipv4_rules()),
        bridge("from_guest_arp", arp_rules()),
        bridge("from_guest_ipv6_source", ipv6_source_rules()),
        bridge("from_guest_ipv6_advertisement", ipv6_advertisement_rules()),
        bridge("from_guest_ipv6", ipv6_rules()),
        bridge("from_guest", guest_rules()),
        Chain {
            family: Family::Bridge,
            name: "prerouting",
            hook: Some((HOOK_PREROUTING, PRIORITY_ANTI_SPOOF)),
            rules: vec![
                rule([name_prefix(Meta::InputName, &taps, false), verdict(Verdict::Accept)]),
                rule([input_name(), within(&OPEN), verdict(Verdict::Accept)]),
                rule([verdict(Verdict::Goto("from_guest"))]),
            ],
        },
        Chain {
            family: Family::Inet,
            name: "forward",
            hook: Some((HOOK_FORWARD, PRIORITY_HOST)),
            rules: vec![
                // With `br_netfilter`, frames between ports of one bridge pass here as from the bridge to itself.
                rule([input_name(), output_name_second(), within(&BRIDGED), verdict(Verdict::Accept)]),
                rule([name_prefix(Meta::InputName, &bridges, true), verdict(Verdict::Drop)]),
                rule([name_prefix(Meta::OutputName, &bridges, true), verdict(Verdict::Drop)]),
            ],
        },
        Chain {
            family: Family::Inet,
            name: "input",
            hook: Some((HOOK_INPUT, PRIORITY_HOST)),
            rules: vec![
                rule([name_prefix(Meta::InputName, &bridges, false), verdict(Verdict::Accept)]),
                rule([input_name(), without(&GATEWAYS), verdict(Verdict::Drop)]),
            ],
        },
    ]
}

/// Ethernet (IEEE 802.3): destination, source (at 6), type (at 12).
fn guest_rules() -> Vec<Vec<Expression>> {
    let ethertype = |value: u16| bytes(Base::Link, 12, &value.to_be_bytes(), true);
    vec![
        rule([input_name(), second(Base::Link, 6, 6), without(&MACS), verdict(Verdict::Drop)]),
        rule([ethertype(0x0800), verdict(Verdict::Goto("from_guest_ipv4"))]),
        rule([ethertype(0x0806), verdict(Verdict::Goto("from_guest_arp"))]),
        rule([ethertype(0x86dd), verdict(Verdict::Goto("from_guest_ipv6"))]),
        rule([verdict(Verdict::Drop)]),
    ]
}

/// IPv4 (RFC 791): source (at 12), destination (at 16).
fn ipv4_rules() -> Vec<Vec<Expression>> {
    let source = || second(Base::Network, 12, 4);
    vec![
        rule([protocol(PROTOCOL_UDP), udp_ports(67, 68), verdict(Verdict::Drop)]),
        rule([input_name(), source(), within(&IPV4), verdict(Verdict::Accept)]),
        rule([input_name(), source(), within(&IPV4_PREFIXES), verdict(Verdict::Accept)]),
        // A DHCP client that has no address yet (RFC 2131 §4.1).
        rule([
            bytes(Base::Network, 12, &[0, 0, 0, 0, 255, 255, 255, 255], true),
            protocol(PROTOCOL_UDP),
            udp_ports(68, 67),
            verdict(Verdict::Accept),
        ]),
        rule([verdict(Verdict::Drop)]),
    ]
}

/// ARP (RFC 826) for Ethernet and IPv4: kinds and lengths (6 bytes), operation, sender MAC (at 8), sender address (at 14).
fn arp_rules() -> Vec<Vec<Expression>> {
    let sender = || second(Base::Network, 14, 4);
    vec![
        rule([bytes(Base::Network, 0, &[0, 1, 8, 0, 6, 4], false), verdict(Verdict::Drop)]),
        rule([input_name(), second(Base::Network, 8, 6), without(&MACS), verdict(Verdict::Drop)]),
        rule([input_name(), sender(), within(&IPV4), verdict(Verdict::Accept)]),
        rule([input_name(), sender(), within(&IPV4_PREFIXES), verdict(Verdict::Accept)]),
        // A probe whether an address is free: a request from 0.0.0.0 (RFC 5227 §2.1.1).
        rule([
            bytes(Base::Network, 6, &[0, 1], true),
            bytes(Base::Network, 14, &[0; 4], true),
            verdict(Verdict::Accept),
        ]),
        rule([verdict(Verdict::Drop)]),
    ]
}

/// ICMPv6 types: RFC 4861 §4, RFC 3810 §5.
fn ipv6_rules() -> Vec<Vec<Expression>> {
    vec![
        rule([input_name(), without(&IPV6_PORTS), verdict(Verdict::Drop)]),
        rule([protocol(PROTOCOL_UDP), udp_ports(547, 546), verdict(Verdict::Drop)]),
        rule([protocol(PROTOCOL_ICMPV6), icmp_type(134), verdict(Verdict::Drop)]),
        rule([protocol(PROTOCOL_ICMPV6), icmp_type(137), verdict(Verdict::Drop)]),
        rule([
            protocol(PROTOCOL_ICMPV6),
            icmp_type(136),
            verdict(Verdict::Goto("from_guest_ipv6_advertisement")),
        ]),
        rule([verdict(Verdict::Goto("from_guest_ipv6_source"))]),
    ]
}

/// A neighbour advertisement's target (at 8 of ICMPv6, RFC 4861 §4.4).
fn ipv6_advertisement_rules() -> Vec<Vec<Expression>> {
    let target = || second(Base::Transport, 8, 16);
    let source = || verdict(Verdict::Goto("from_guest_ipv6_source"));
    vec![
        rule([input_name(), target(), within(&IPV6), source()]),
        rule([input_name(), target(), within(&IPV6_PREFIXES), source()]),
        rule([verdict(Verdict::Drop)]),
    ]
}

/// IPv6 (RFC 8200): source (at 8).
fn ipv6_source_rules() -> Vec<Vec<Expression>> {
    let source = || second(Base::Network, 8, 16);
    let unspecified = || bytes(Base::Network, 8, &[0; 16], true);
    vec![
        rule([input_name(), source(), within(&IPV6), verdict(Verdict::Accept)]),
        rule([input_name(), source(), within(&IPV6_PREFIXES), verdict(Verdict::Accept)]),
        // Whoever has no address yet asks whether one is free, and joins the group to hear the answer.
        rule([unspecified(), protocol(PROTOCOL_ICMPV6), icmp_type(135), verdict(Verdict::Accept)]),
        rule([unspecified(), protocol(PROTOCOL_ICMPV6), icmp_type(143), verdict(Verdict::Accept)]),
        rule([verdict(Verdict::Drop)]),
    ]
}

fn rule<const N: usize>(steps: [Vec<Expression>; N]) -> Vec<Expression> {
    steps.into_iter().flatten().collect()
}

fn verdict(verdict: Verdict) -> Vec<Expression> {
    vec![Expression::Verdict(verdict)]
}

fn input_name() -> Vec<Expression> {
    vec![Expression::Meta { key: Meta::InputName, to: FIRST }]
}

fn output_name_second() -> Vec<Expression> {
    vec![Expression::Meta { key: Meta::OutputName, to: SECOND }]
}

/// The interface's name begins with a prefix, or does not.
fn name_prefix(key: Meta, prefix: &str, equal: bool) -> Vec<Expression> {
    vec![
        Expression::Meta { key, to: FIRST },
        Expression::Compare { register: FIRST, equal, value: prefix.as_bytes().to_vec() },
    ]
}

fn within(set: &Set) -> Vec<Expression> {
    vec![Expression::Lookup { set: set.name, contained: true }]
}

fn without(set: &Set) -> Vec<Expression> {
    vec![Expression::Lookup { set: set.name, contained: false }]
}

/// Part of the packet as the second part of a key.
fn second(base: Base, offset: u32, length: u32) -> Vec<Expression> {
    vec![Expression::Payload { base, offset, length, to: SECOND }]
}

/// Part of the packet is these bytes, or is not.
fn bytes(base: Base, offset: u32, value: &[u8], equal: bool) -> Vec<Expression> {
    vec![
        Expression::Payload { base, offset, length: value.len() as u32, to: FIRST },
        Expression::Compare { register: FIRST, equal, value: value.to_vec() },
    ]
}

fn protocol(number: u8) -> Vec<Expression> {
    vec![
        Expression::Meta { key: Meta::Protocol, to: FIRST },
        Expression::Compare { register: FIRST, equal: true, value: vec![number] },
    ]
}

fn udp_ports(source: u16, destination: u16) -> Vec<Expression> {
    let [a, b] = source.to_be_bytes();
    let [c, d] = destination.to_be_bytes();
    bytes(Base::Transport, 0, &[a, b, c, d], true)
}

fn icmp_type(number: u8) -> Vec<Expression> {
    bytes(Base::Transport, 0, &[number], true)
}
