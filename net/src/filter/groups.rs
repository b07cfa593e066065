//! The chains that security groups become, and their names.

use std::collections::BTreeSet;
use std::fmt::Write;

use ipnet::IpNet;

use crate::spec::{Direction, Group, Remote, Rule};

/// `<group|port>_<in|out>_<content>_<rules>`: 32 hexadecimal digits of SHA-256 and the number of rules.
pub type ChainName = String;

/// The protocols with ports: TCP, UDP, DCCP, SCTP, UDP-Lite.
const WITH_PORTS: [u8; 5] = [6, 17, 33, 132, 136];

/// ICMP and ICMPv6: type and code in place of ports.
const WITH_TYPES: [u8; 2] = [1, 58];

/// What a chain holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chain {
    /// A group's rules of one direction: each lets through what it matches.
    Group {
        /// The direction.
        direction: Direction,
        /// The rules, each of which can match something: families agree, members are disjoint prefixes.
        rules: BTreeSet<Rule>,
    },
    /// A jump to each of the groups that some ports have.
    Port {
        /// The direction.
        direction: Direction,
        /// The groups' chains.
        groups: BTreeSet<ChainName>,
    },
}

impl Chain {
    pub(super) fn of_group(direction: Direction, group: &Group) -> Self {
        let rules = group.rules.iter().filter(|rule| rule.direction == direction).filter_map(effective);
        Self::Group { direction, rules: rules.collect() }
    }

    /// The name, which tells the content apart from any other.
    #[must_use]
    pub fn name(&self) -> ChainName {
        let (kind, direction, rules) = match self {
            Self::Group { direction, rules } => ("group", direction, rules.len()),
            Self::Port { direction, groups } => ("port", direction, groups.len()),
        };
        let direction = match direction {
            Direction::Ingress => "in",
            Direction::Egress => "out",
        };
        let digest = ring::digest::digest(&ring::digest::SHA256, format!("{self:?}").as_bytes());
        let mut name = format!("{kind}_{direction}_");
        for byte in digest.as_ref().iter().take(16) {
            write!(name, "{byte:02x}").expect("invariant: a string takes all text");
        }
        write!(name, "_{rules}").expect("invariant: a string takes all text");
        name
    }
}

/// Whether a chain of ours is one of a group or a port, rather than one that every host has.
#[must_use]
pub fn is_chain_name(name: &str) -> bool {
    ["group_in_", "group_out_", "port_in_", "port_out_"].iter().any(|prefix| name.starts_with(prefix))
}

/// How many rules the chain of this name has.
#[must_use]
pub fn rule_count(name: &str) -> Option<usize> {
    name.rsplit_once('_')?.1.parse().ok()
}

/// A rule as far as it can match: nothing where families disagree or nobody is a member.
fn effective(rule: &Rule) -> Option<Rule> {
    let is_of_family = |net: &IpNet| match net {
        IpNet::V4(_) => rule.ip_version == 4,
        IpNet::V6(_) => rule.ip_version == 6,
    };
    let has_ports = rule.protocol.is_some_and(|p| WITH_PORTS.contains(&p) || WITH_TYPES.contains(&p));
    if !matches!(rule.ip_version, 4 | 6) || (rule.ports.is_some() && !has_ports) {
        return None;
    }
    let remote = match &rule.remote {
        Remote::Any => Remote::Any,
        Remote::Prefix(net) if !is_of_family(net) => return None,
        Remote::Prefix(net) if net.prefix_len() == 0 => Remote::Any,
        Remote::Prefix(net) => Remote::Prefix(net.trunc()),
        Remote::Members(members) => {
            let members: Vec<IpNet> = members.iter().copied().filter(is_of_family).collect();
            let members: BTreeSet<IpNet> =
                IpNet::aggregate(&members).into_iter().map(|net| net.trunc()).collect();
            if members.is_empty() {
                return None;
            }
            Remote::Members(members)
        }
    };
    Some(Rule { remote, ..rule.clone() })
}

/// Whether a protocol has types and codes rather than ports.
#[must_use]
pub(crate) fn has_types(protocol: Option<u8>) -> bool {
    protocol.is_some_and(|protocol| WITH_TYPES.contains(&protocol))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(ip_version: u8, remote: Remote) -> Rule {
        Rule { direction: Direction::Ingress, ip_version, protocol: None, ports: None, remote }
    }

    fn members(nets: &[&str]) -> Remote {
        Remote::Members(nets.iter().map(|net| net.parse().unwrap()).collect())
    }

    #[test]
    fn rules_that_match_nothing_are_left_out() {
        let ports = Some((1, 2));
        let group = Group {
            rules: [
                rule(4, members(&["2001:db8::1/128"])),
                rule(4, members(&[])),
                rule(6, Remote::Prefix("10.0.0.0/8".parse().unwrap())),
                rule(5, Remote::Any),
                Rule { ports, ..rule(4, Remote::Any) },
                Rule { ports, protocol: Some(47), ..rule(4, Remote::Any) },
                Rule { direction: Direction::Egress, ..rule(4, Remote::Any) },
            ]
            .into(),
        };
        let chain = Chain::of_group(Direction::Ingress, &group);
        assert_eq!(chain, Chain::Group { direction: Direction::Ingress, rules: BTreeSet::new() });
        assert_eq!(rule_count(&chain.name()), Some(0));
    }

    #[test]
    fn members_become_disjoint_prefixes() {
        let all = members(&["10.0.0.0/24", "10.0.0.7/32", "10.0.1.0/25", "10.0.1.128/25"]);
        let effective = effective(&rule(4, all)).unwrap();
        assert_eq!(effective.remote, members(&["10.0.0.0/23"]));
    }

    #[test]
    fn name_differs_with_content() {
        let any = Group { rules: [rule(4, Remote::Any)].into() };
        let six = Group { rules: [rule(6, Remote::Any)].into() };
        let names: BTreeSet<ChainName> = [&any, &six]
            .into_iter()
            .flat_map(|group| {
                [Direction::Ingress, Direction::Egress].map(|d| Chain::of_group(d, group).name())
            })
            .collect();
        // Neither group has egress rules: their egress chains are one.
        assert_eq!(names.len(), 3);
        assert!(names.iter().all(|name| is_chain_name(name) && name.len() < 128));
    }
}
