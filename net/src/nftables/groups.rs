//! A security group's rules as expressions: each clears the direction's "deny" mark of what it matches.

use ipnet::IpNet;

use super::message::{Base, Expression, FIRST, Meta, SECOND, SECOND_WORD, Verdict};
use super::rules::{DENY_EGRESS, DENY_INGRESS, bytes, clear_mark, ethertype, protocol, verdict};
use super::sets::{MEMBERS_IPV4, MEMBERS_IPV4_PREFIXES, MEMBERS_IPV6, MEMBERS_IPV6_PREFIXES, Set};
use crate::filter::{Chain, has_types};
use crate::spec::{Direction, Remote, Rule};

/// A chain's rules.
pub(super) fn chain_rules(chain: &Chain) -> Vec<Vec<Expression>> {
    match chain {
        Chain::Group { rules, .. } => rules.iter().flat_map(group_rules).collect(),
        Chain::Port { .. } => chain.jumps().map(|group| verdict(Verdict::Jump(group))).collect(),
    }
}

/// One rule, or two where members are looked up: as addresses, and as prefixes.
fn group_rules(rule: &Rule) -> Vec<Vec<Expression>> {
    let is_ipv6 = rule.ip_version == 6;
    let mut matches = ethertype(if is_ipv6 { 0x86dd } else { 0x0800 });
    if let Some(number) = rule.protocol {
        matches.extend(protocol(number));
    }
    if let Some(ports) = rule.ports {
        matches.extend(if has_types(rule.protocol) { icmp(ports) } else { destination_ports(ports) });
    }
    let (offset, length) = match (is_ipv6, rule.direction) {
        (false, Direction::Ingress) => (12, 4),
        (false, Direction::Egress) => (16, 4),
        (true, Direction::Ingress) => (8, 16),
        (true, Direction::Egress) => (24, 16),
    };
    let remotes = match &rule.remote {
        Remote::Any => vec![Vec::new()],
        Remote::Prefix(net) => vec![within_prefix(*net, offset, length)],
        Remote::Members(number, _) => {
            let sets = match is_ipv6 {
                false => [MEMBERS_IPV4, MEMBERS_IPV4_PREFIXES],
                true => [MEMBERS_IPV6, MEMBERS_IPV6_PREFIXES],
            };
            // The key: the number takes the first 4 bytes of the first register, the address follows at once.
            let lookup = |set: &Set| {
                vec![
                    Expression::Immediate { to: FIRST_WORD, value: number.to_be_bytes().to_vec() },
                    Expression::Payload { base: Base::Network, offset, length, to: SECOND_WORD },
                    Expression::Lookup { set: set.name, contained: true },
                ]
            };
            sets.iter().map(lookup).collect()
        }
    };
    let passes = [
        clear_mark(match rule.direction {
            Direction::Egress => DENY_EGRESS,
            Direction::Ingress => DENY_INGRESS,
        }),
        verdict(Verdict::Return),
    ]
    .concat();
    remotes.into_iter().map(|remote| [matches.clone(), remote, passes.clone()].concat()).collect()
}

/// `NFT_REG32_00`: the first 4 bytes of [`FIRST`].
const FIRST_WORD: u32 = 8;

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
