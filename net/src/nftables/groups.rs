//! A security group's rules as expressions: each clears the direction's "deny" mark of what it matches.

use ipnet::IpNet;

use super::message::{Base, Expression, FIRST, Family, Meta, SECOND, Verdict};
use super::rules::{
    DENY_EGRESS, DENY_INGRESS, IPV4_ADDRESS, IPV6_ADDRESS, Set, bytes, clear_mark, ethertype, protocol,
    verdict,
};
use crate::filter::{Chain, has_types};
use crate::spec::{Direction, Remote, Rule};

/// A rule and the set that only it looks up, if it needs one.
#[derive(Debug)]
pub(super) struct GroupRule {
    pub(super) expressions: Vec<Expression>,
    pub(super) members: Option<Members>,
}

/// An anonymous set of address ranges: each key is an ethertype and an address, first and last.
#[derive(Debug)]
pub(super) struct Members {
    pub(super) set: Set,
    pub(super) ranges: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The name by which the kernel is asked to name an anonymous set itself.
pub(super) const ANONYMOUS: &str = "__set%d";

const ETHERTYPE: (u32, u32) = (10, 2);
const MEMBERS_IPV4: Set = Set {
    family: Family::Bridge,
    name: ANONYMOUS,
    fields: &[ETHERTYPE, IPV4_ADDRESS],
    ranges: true,
    data: None,
};
const MEMBERS_IPV6: Set = Set {
    family: Family::Bridge,
    name: ANONYMOUS,
    fields: &[ETHERTYPE, IPV6_ADDRESS],
    ranges: true,
    data: None,
};

/// A chain's rules; `next_set` numbers the sets of one transaction.
pub(super) fn chain_rules(chain: &Chain, next_set: &mut u32) -> Vec<GroupRule> {
    match chain {
        Chain::Group { rules, .. } => rules.iter().map(|rule| group_rule(rule, next_set)).collect(),
        Chain::Port { .. } => chain
            .jumps()
            .map(|group| GroupRule { expressions: verdict(Verdict::Jump(group)), members: None })
            .collect(),
    }
}

fn group_rule(rule: &Rule, next_set: &mut u32) -> GroupRule {
    let is_ipv6 = rule.ip_version == 6;
    let mut expressions = ethertype(if is_ipv6 { 0x86dd } else { 0x0800 });
    if let Some(number) = rule.protocol {
        expressions.extend(protocol(number));
    }
    if let Some(ports) = rule.ports {
        expressions.extend(if has_types(rule.protocol) { icmp(ports) } else { destination_ports(ports) });
    }
    let (offset, length) = match (is_ipv6, rule.direction) {
        (false, Direction::Ingress) => (12, 4),
        (false, Direction::Egress) => (16, 4),
        (true, Direction::Ingress) => (8, 16),
        (true, Direction::Egress) => (24, 16),
    };
    let mut members = None;
    match &rule.remote {
        Remote::Any => {}
        Remote::Prefix(net) => expressions.extend(within_prefix(*net, offset, length)),
        Remote::Members(nets) => {
            // The key: the ethertype takes 4 bytes of the first register, the address follows at once.
            let id = *next_set;
            *next_set += 1;
            let address = if is_ipv6 { FIRST_AFTER_ETHERTYPE } else { SECOND_WORD };
            expressions.push(Expression::Payload { base: Base::Link, offset: 12, length: 2, to: FIRST_WORD });
            expressions.push(Expression::Payload { base: Base::Network, offset, length, to: address });
            expressions.push(Expression::LookupAnonymous { id, from: FIRST_WORD });
            let set = if is_ipv6 { MEMBERS_IPV6 } else { MEMBERS_IPV4 };
            members = Some(Members { set, ranges: nets.iter().map(|net| range(*net)).collect() });
        }
    }
    expressions.extend(clear_mark(match rule.direction {
        Direction::Egress => DENY_EGRESS,
        Direction::Ingress => DENY_INGRESS,
    }));
    expressions.extend(verdict(Verdict::Return));
    GroupRule { expressions, members }
}

/// `NFT_REG32_00` and the next: registers of 4 bytes, in which a key of odd parts lies without gaps.
const FIRST_WORD: u32 = 8;
const SECOND_WORD: u32 = 9;
const FIRST_AFTER_ETHERTYPE: u32 = SECOND_WORD;

fn range(net: IpNet) -> (Vec<u8>, Vec<u8>) {
    let key = |ethertype: u16, address: &[u8]| {
        let mut key = ethertype.to_be_bytes().to_vec();
        key.resize(4, 0);
        key.extend_from_slice(address);
        key
    };
    match net {
        IpNet::V4(net) => (key(0x0800, &net.network().octets()), key(0x0800, &net.broadcast().octets())),
        IpNet::V6(net) => (key(0x86dd, &net.network().octets()), key(0x86dd, &net.broadcast().octets())),
    }
}

fn within_prefix(net: IpNet, offset: u32, length: u32) -> Vec<Expression> {
    let octets = |address: std::net::IpAddr| match address {
        std::net::IpAddr::V4(address) => address.octets().to_vec(),
        std::net::IpAddr::V6(address) => address.octets().to_vec(),
    };
    vec![
        Expression::Payload { base: Base::Network, offset, length, to: FIRST },
        Expression::Mask { register: FIRST, and: octets(net.netmask()), xor: vec![0; length as usize] },
        Expression::Compare { register: FIRST, equal: true, value: octets(net.network()) },
    ]
}

/// TCP, UDP, DCCP, SCTP and UDP-Lite begin alike: source port, destination port (at 2).
fn destination_ports((first, last): (u16, u16)) -> Vec<Expression> {
    if first == last {
        return bytes(Base::Transport, 2, &first.to_be_bytes(), true);
    }
    vec![
        Expression::Payload { base: Base::Transport, offset: 2, length: 2, to: FIRST },
        Expression::Range {
            register: FIRST,
            first: first.to_be_bytes().into(),
            last: last.to_be_bytes().into(),
        },
    ]
}

/// Type and code are the first two bytes (RFC 792, RFC 4443 §2.1).
fn icmp((kind, code): (u16, u16)) -> Vec<Expression> {
    match (u8::try_from(kind), u8::try_from(code)) {
        (Ok(kind), Ok(code)) => bytes(Base::Transport, 0, &[kind, code], true),
        (Ok(kind), Err(_)) if code == u16::MAX => bytes(Base::Transport, 0, &[kind], true),
        // No packet has such a type or code: a name that no interface has.
        _ => vec![
            Expression::Meta { key: Meta::Mark, to: SECOND },
            Expression::Mask { register: SECOND, and: vec![0; 4], xor: vec![0; 4] },
            Expression::Compare { register: SECOND, equal: false, value: vec![0; 4] },
        ],
    }
}
