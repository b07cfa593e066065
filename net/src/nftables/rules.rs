//! The rules themselves: chains and sets that are the same whatever the host carries. Bytes of packets are matched
//! here; what is allowed is looked up in sets.
//!
//! **Anti-spoofing** (bridge family, before anything else looks at a frame that enters through a tap of ours): unknown
//! taps, wrong source MACs, sources that are not the port's (IPv4, IPv6, ARP sender, advertised neighbour), DHCP
//! servers, router advertisements and every other ethertype, VLAN tags and spanning tree included, are dropped.
//!
//! **Security groups** mark what may not begin and drop it unless it belongs to a connection:
//!
//! 1. bridge, forward and input, −200: a packet that a tap's groups do not let begin gets a "deny" bit per direction;
//! 2. the packet of an established connection loses its "deny" bits;
//! 3. bridge, forward, 100: what still has one is dropped. (To the host: inet, input.)
//!
//! Step 2 is in one of two places ([`Tracking`]). Where the bridge family tracks connections (module
//! `nf_conntrack_bridge`) it is just before step 3. Elsewhere only the inet family sees connections, which `br_netfilter`
//! shows bridged packets as the bridge's, never the tap's; so it is there, and the mark carries what the bridge family
//! found. Without either, step 2 never happens: then replies pass only where a rule lets them begin, never more. What the
//! host itself sends to a guest is tracked on its way out in inet, which marks replies, and judged in bridge output.
//!
//! A stateless port's groups are asked of every packet: what they do not let through is dropped at step 1. Where the bridge
//! family tracks connections, what is from or for such a port is kept out of that, unless a stateful port is the other end.
//!
//! A tag inside a frame between hosts would be taken for a network's VLAN where networks share a VXLAN device; so no frame with
//! a tag is given to such a device, whichever port it is from.
//!
//! **Host** (inet family): nothing is forwarded by the host's IP stack from or to a bridge of ours, and only bridges on
//! which the host has addresses reach the host: it answers pings there and what it asked for itself, and serves nothing.

use super::message::{Base, Expression, FIRST, Family, Meta, SECOND, Verdict};
use super::sets::{
    BRIDGE_ZONES, BRIDGED, EGRESS, GATEWAYS, INGRESS, IPV4, IPV4_PREFIXES, IPV6, IPV6_PORTS, IPV6_PREFIXES,
    MACS, OPEN, POLICIES, STATELESS, Set, TRACKED, UNTRACKED, ZONES,
};
use crate::filter::MARK_BITS;
use crate::names::{LinkKind, OwnerTag};

/// Before `br_netfilter` (0) and connection tracking (−200): what is spoofed leaves no trace.
const PRIORITY_ANTI_SPOOF: i32 = -300;

/// Before fragments are put together (−400), which is done per zone, too.
const PRIORITY_ZONE: i32 = -450;

/// Before `br_netfilter` (−1 in forward) hands the packet to the inet family.
const PRIORITY_JUDGE: i32 = -200;

/// After it.
const PRIORITY_SENTENCE: i32 = 100;

/// Before the usual filters (0): a host's own "accept" ends only its own chain, our "drop" is final.
const PRIORITY_HOST: i32 = -10;

const HOOK_PREROUTING: u32 = 0;
const HOOK_INPUT: u32 = 1;
const HOOK_FORWARD: u32 = 2;
const HOOK_OUTPUT: u32 = 3;

/// No group of the sender's port lets the packet begin a connection.
pub(super) const DENY_EGRESS: u32 = 0x1000_0000;
/// No group of the receiver's port lets the packet begin a connection.
pub(super) const DENY_INGRESS: u32 = 0x2000_0000;
/// The host sends it within an established connection.
const REPLY: u32 = 0x4000_0000;
const _: () = assert!(DENY_EGRESS | DENY_INGRESS | REPLY == MARK_BITS);

/// `ct state established,related`.
const STATE_ESTABLISHED_OR_RELATED: u32 = 2 | 4;

/// Where the connections of bridged packets are seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tracking {
    /// In the bridge family itself.
    Bridge,
    /// In the inet family, if `br_netfilter` is there.
    Inet,
}

/// A chain and its rules.
#[derive(Debug)]
pub(super) struct Chain {
    pub(super) family: Family,
    pub(super) name: &'static str,
    /// Hook and priority; none for a chain that others go to.
    pub(super) hook: Option<(u32, i32)>,
    pub(super) rules: Vec<Vec<Expression>>,
}

const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_UDP: u8 = 17;
pub(super) const PROTOCOL_ICMPV6: u8 = 58;

/// Every chain; one that others go to stands before them.
pub(super) fn chains(tag: OwnerTag, tracking: Tracking) -> Vec<Chain> {
    let taps = tag.prefix(LinkKind::Tap);
    let bridges = tag.prefix(LinkKind::Bridge);
    let shared = tag.prefix(LinkKind::Shared);
    let plain = |name, rules| Chain { family: Family::Bridge, name, hook: None, rules };
    let base =
        |family, name, hook, priority, rules| Chain { family, name, hook: Some((hook, priority)), rules };
    let bridge = Family::Bridge;
    let inet = Family::Inet;
    let mut chains = vec![
        plain("from_guest_ipv4", ipv4_rules()),
        plain("from_guest_arp", arp_rules()),
        plain("from_guest_ipv6_source", ipv6_source_rules()),
        plain("from_guest_ipv6_advertisement", ipv6_advertisement_rules()),
        plain("from_guest_ipv6", ipv6_rules()),
        plain("from_guest", guest_rules()),
        base(bridge, "prerouting", HOOK_PREROUTING, PRIORITY_ANTI_SPOOF, prerouting_rules(&taps)),
        plain("judge_egress", judge_rules(Meta::InputName, &EGRESS, DENY_EGRESS)),
        plain("judge_ingress", judge_rules(Meta::OutputName, &INGRESS, DENY_INGRESS)),
        base(bridge, "judge_to_host", HOOK_INPUT, PRIORITY_JUDGE, judge_to_host_rules(&taps)),
        base(bridge, "judge_forward", HOOK_FORWARD, PRIORITY_JUDGE, judge_forward_rules(&taps, &shared)),
        base(bridge, "judge_from_host", HOOK_OUTPUT, PRIORITY_JUDGE, judge_from_host_rules(&taps)),
        base(bridge, "sentence_forward", HOOK_FORWARD, PRIORITY_SENTENCE, sentence_rules(&taps, tracking)),
        base(inet, "zone_in", HOOK_PREROUTING, PRIORITY_ZONE, vec![zone_rule(Meta::InputName, &ZONES)]),
        base(inet, "zone_out", HOOK_OUTPUT, PRIORITY_ZONE, vec![zone_rule(Meta::OutputName, &ZONES)]),
        base(inet, "forward", HOOK_FORWARD, PRIORITY_HOST, forward_rules(&bridges)),
        base(inet, "input", HOOK_INPUT, PRIORITY_HOST, input_rules(&bridges)),
        base(inet, "output", HOOK_OUTPUT, PRIORITY_HOST, output_rules(&bridges)),
    ];
    if tracking == Tracking::Bridge {
        let mut rules = untrack_rules(&taps);
        rules.push(zone_rule(Meta::InputBridge, &BRIDGE_ZONES));
        chains.push(base(bridge, "zone_bridged", HOOK_PREROUTING, PRIORITY_ZONE, rules));
    }
    chains
}

/// Whether the bridge family can do what [`Tracking::Bridge`] needs: a rule that asks for it.
pub(super) fn tracking_trial() -> Vec<Expression> {
    rule([name(Meta::InputBridge), established()])
}

fn prerouting_rules(taps: &str) -> Vec<Vec<Expression>> {
    vec![
        rule([name_prefix(Meta::InputName, taps, false), verdict(Verdict::Accept)]),
        rule([name(Meta::InputName), within(&OPEN), verdict(Verdict::Accept)]),
        rule([verdict(Verdict::Goto("from_guest"))]),
    ]
}

/// Marks what may not begin. ARP is judged by anti-spoofing alone; multicast listeners and neighbours find each other
/// whatever the groups say (ICMPv6 types 130 to 136 and 143).
fn judge_rules(name_of: Meta, groups: &Set, deny: u32) -> Vec<Vec<Expression>> {
    let icmp = |types: Vec<Expression>| {
        let checks = [ethertype(0x86dd), protocol(PROTOCOL_ICMPV6), types];
        let checks = checks.into_iter().flatten().collect();
        rule([checks, clear_mark(deny), verdict(Verdict::Return)])
    };
    let neighbours = vec![
        Expression::Payload { base: Base::Transport, offset: 0, length: 1, to: FIRST },
        Expression::Range { register: FIRST, first: vec![130], last: vec![136] },
    ];
    vec![
        rule([name(name_of), within(&OPEN), verdict(Verdict::Return)]),
        rule([ethertype(0x0806), verdict(Verdict::Return)]),
        rule([change_mark(!0, deny)]),
        icmp(neighbours),
        icmp(icmp_type(143)),
        rule([
            name(name_of),
            vec![
                Expression::Map { map: POLICIES.name, to: FIRST },
                Expression::Map { map: groups.name, to: 0 },
            ],
        ]),
        rule([has_mark(deny, true), name(name_of), within(&STATELESS), verdict(Verdict::Drop)]),
    ]
}

/// What is from or for a stateless port is part of no connection, unless the other end's rules ask for connections. It
/// is given no zone: what has one is tracked, whatever was said before.
fn untrack_rules(taps: &str) -> Vec<Vec<Expression>> {
    let untrack = || vec![Expression::Untrack, Expression::Verdict(Verdict::Accept)];
    let target = || [name(Meta::InputBridge), second(Base::Link, 0, 6)].concat();
    vec![
        rule([name(Meta::InputName), within(&STATELESS), target(), without(&TRACKED), untrack()]),
        rule([name_prefix(Meta::InputName, taps, false), target(), within(&UNTRACKED), untrack()]),
    ]
}

fn judge_to_host_rules(taps: &str) -> Vec<Vec<Expression>> {
    let from_tap = || name_prefix(Meta::InputName, taps, true);
    vec![
        rule([from_tap(), clear_mark(MARK_BITS)]),
        rule([from_tap(), verdict(Verdict::Jump("judge_egress".to_owned()))]),
    ]
}

fn judge_forward_rules(taps: &str, shared: &str) -> Vec<Vec<Expression>> {
    let from_tap = || name_prefix(Meta::InputName, taps, true);
    let to_tap = || name_prefix(Meta::OutputName, taps, true);
    vec![
        rule([name_prefix(Meta::OutputName, shared, true), ethertype(0x8100), verdict(Verdict::Drop)]),
        rule([from_tap(), clear_mark(MARK_BITS)]),
        rule([to_tap(), clear_mark(MARK_BITS)]),
        rule([from_tap(), verdict(Verdict::Jump("judge_egress".to_owned()))]),
        rule([to_tap(), verdict(Verdict::Jump("judge_ingress".to_owned()))]),
    ]
}

fn judge_from_host_rules(taps: &str) -> Vec<Vec<Expression>> {
    vec![
        rule([name_prefix(Meta::OutputName, taps, false), verdict(Verdict::Accept)]),
        rule([has_mark(REPLY, true), name(Meta::OutputName), without(&STATELESS), verdict(Verdict::Accept)]),
        rule([verdict(Verdict::Jump("judge_ingress".to_owned()))]),
        rule([has_mark(DENY_INGRESS, true), verdict(Verdict::Drop)]),
    ]
}

fn sentence_rules(taps: &str, tracking: Tracking) -> Vec<Vec<Expression>> {
    let denied = || has_mark(DENY_EGRESS | DENY_INGRESS, true);
    let pardon = rule([established(), clear_mark(DENY_EGRESS | DENY_INGRESS)]);
    let mut rules = if tracking == Tracking::Bridge { vec![pardon] } else { Vec::new() };
    rules.extend([
        rule([name_prefix(Meta::InputName, taps, true), denied(), verdict(Verdict::Drop)]),
        rule([name_prefix(Meta::OutputName, taps, true), denied(), verdict(Verdict::Drop)]),
    ]);
    rules
}

fn zone_rule(name_of: Meta, zones: &Set) -> Vec<Expression> {
    rule([
        name(name_of),
        vec![Expression::Map { map: zones.name, to: FIRST }, Expression::SetZone { from: FIRST }],
    ])
}

fn forward_rules(bridges: &str) -> Vec<Vec<Expression>> {
    // With `br_netfilter`, frames between ports of one bridge pass here as from the bridge to itself.
    let bridged = || rule([name(Meta::InputName), output_name_second(), within(&BRIDGED)]);
    vec![
        rule([bridged(), has_mark(MARK_BITS, true), established(), clear_mark(MARK_BITS)]),
        rule([bridged(), verdict(Verdict::Accept)]),
        rule([name_prefix(Meta::InputName, bridges, true), verdict(Verdict::Drop)]),
        rule([name_prefix(Meta::OutputName, bridges, true), verdict(Verdict::Drop)]),
    ]
}

fn input_rules(bridges: &str) -> Vec<Vec<Expression>> {
    vec![
        rule([name_prefix(Meta::InputName, bridges, false), verdict(Verdict::Accept)]),
        rule([name(Meta::InputName), without(&GATEWAYS), verdict(Verdict::Drop)]),
        rule([established(), clear_mark(MARK_BITS), verdict(Verdict::Accept)]),
        rule([has_mark(DENY_EGRESS, true), verdict(Verdict::Drop)]),
        rule([protocol(PROTOCOL_ICMP), verdict(Verdict::Accept)]),
        rule([protocol(PROTOCOL_ICMPV6), verdict(Verdict::Accept)]),
        rule([verdict(Verdict::Drop)]),
    ]
}

fn output_rules(bridges: &str) -> Vec<Vec<Expression>> {
    let to_bridge = || name_prefix(Meta::OutputName, bridges, true);
    vec![
        rule([to_bridge(), clear_mark(MARK_BITS)]),
        rule([to_bridge(), established(), change_mark(!0, REPLY)]),
    ]
}

/// Ethernet (IEEE 802.3): destination, source (at 6), type (at 12).
fn guest_rules() -> Vec<Vec<Expression>> {
    vec![
        rule([name(Meta::InputName), second(Base::Link, 6, 6), without(&MACS), verdict(Verdict::Drop)]),
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
        rule([name(Meta::InputName), source(), within(&IPV4), verdict(Verdict::Accept)]),
        rule([name(Meta::InputName), source(), within(&IPV4_PREFIXES), verdict(Verdict::Accept)]),
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
        rule([name(Meta::InputName), second(Base::Network, 8, 6), without(&MACS), verdict(Verdict::Drop)]),
        rule([name(Meta::InputName), sender(), within(&IPV4), verdict(Verdict::Accept)]),
        rule([name(Meta::InputName), sender(), within(&IPV4_PREFIXES), verdict(Verdict::Accept)]),
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
        rule([name(Meta::InputName), without(&IPV6_PORTS), verdict(Verdict::Drop)]),
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
        rule([name(Meta::InputName), target(), within(&IPV6), source()]),
        rule([name(Meta::InputName), target(), within(&IPV6_PREFIXES), source()]),
        rule([verdict(Verdict::Drop)]),
    ]
}

/// IPv6 (RFC 8200): source (at 8).
fn ipv6_source_rules() -> Vec<Vec<Expression>> {
    let source = || second(Base::Network, 8, 16);
    let unspecified = || bytes(Base::Network, 8, &[0; 16], true);
    vec![
        rule([name(Meta::InputName), source(), within(&IPV6), verdict(Verdict::Accept)]),
        rule([name(Meta::InputName), source(), within(&IPV6_PREFIXES), verdict(Verdict::Accept)]),
        // Whoever has no address yet asks whether one is free, and joins the group to hear the answer.
        rule([unspecified(), protocol(PROTOCOL_ICMPV6), icmp_type(135), verdict(Verdict::Accept)]),
        rule([unspecified(), protocol(PROTOCOL_ICMPV6), icmp_type(143), verdict(Verdict::Accept)]),
        rule([verdict(Verdict::Drop)]),
    ]
}

fn rule<const N: usize>(steps: [Vec<Expression>; N]) -> Vec<Expression> {
    steps.into_iter().flatten().collect()
}

pub(super) fn verdict(verdict: Verdict) -> Vec<Expression> {
    vec![Expression::Verdict(verdict)]
}

/// The interface's name as the first part of a key.
fn name(key: Meta) -> Vec<Expression> {
    vec![Expression::Meta { key, to: FIRST }]
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
pub(super) fn bytes(base: Base, offset: u32, value: &[u8], equal: bool) -> Vec<Expression> {
    vec![
        Expression::Payload { base, offset, length: value.len() as u32, to: FIRST },
        Expression::Compare { register: FIRST, equal, value: value.to_vec() },
    ]
}

/// The frame's own type: of a frame with a VLAN tag, the tag's.
pub(super) fn ethertype(value: u16) -> Vec<Expression> {
    bytes(Base::Link, 12, &value.to_be_bytes(), true)
}

/// The protocol above IP, behind any IPv6 extension headers.
pub(super) fn protocol(number: u8) -> Vec<Expression> {
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

/// Keeps the mark's bits of `keep` and sets those of `set`.
fn change_mark(keep: u32, set: u32) -> Vec<Expression> {
    let and = (keep & !set).to_ne_bytes().to_vec();
    vec![
        Expression::Meta { key: Meta::Mark, to: FIRST },
        Expression::Mask { register: FIRST, and, xor: set.to_ne_bytes().to_vec() },
        Expression::SetMark { from: FIRST },
    ]
}

/// Clears bits of the mark.
pub(super) fn clear_mark(bits: u32) -> Vec<Expression> {
    change_mark(!bits, 0)
}

/// The mark has one of these bits, or none.
fn has_mark(bits: u32, one: bool) -> Vec<Expression> {
    let mut steps = vec![Expression::Meta { key: Meta::Mark, to: FIRST }];
    steps.extend(has_bits(bits, one));
    steps
}

fn established() -> Vec<Expression> {
    let mut steps = vec![Expression::ConnectionState { to: FIRST }];
    steps.extend(has_bits(STATE_ESTABLISHED_OR_RELATED, true));
    steps
}

fn has_bits(bits: u32, one: bool) -> [Expression; 2] {
    [
        Expression::Mask { register: FIRST, and: bits.to_ne_bytes().to_vec(), xor: vec![0; 4] },
        Expression::Compare { register: FIRST, equal: !one, value: vec![0; 4] },
    ]
}
