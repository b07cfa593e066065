//! The chains that security groups become, their names, and what tells what they hold.

use std::collections::BTreeSet;
use std::fmt::Write;

use ipnet::IpNet;

use crate::spec::{Direction, Group, Remote, Rule};

/// `group_<in|out>_<number>` for a group's rules of a direction, in 8 hexadecimal digits; `port_<in|out>_<policy>` for
/// the groups that ports have, in 32.
pub type ChainName = String;

/// The protocols with ports: TCP, UDP, DCCP, SCTP, UDP-Lite.
const WITH_PORTS: [u8; 5] = [6, 17, 33, 132, 136];

/// ICMP and ICMPv6: type and code in place of ports.
const WITH_TYPES: [u8; 2] = [1, 58];

/// A set of groups that ports have, told apart from any other: 16 bytes of SHA-256 of their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Policy([u8; 16]);

impl Policy {
    /// Not after any other.
    pub(super) const FIRST: Self = Self([0; 16]);

    /// The set of these groups.
    #[must_use]
    pub fn of(groups: &BTreeSet<u32>) -> Self {
        let numbers: Vec<u8> = groups.iter().flat_map(|number| number.to_be_bytes()).collect();
        Self(digest(&numbers))
    }

    /// As bytes that [`Policy::octets`] gave.
    #[must_use]
    pub fn from_octets(octets: [u8; 16]) -> Self {
        Self(octets)
    }

    /// As bytes.
    #[must_use]
    pub fn octets(self) -> [u8; 16] {
        self.0
    }

    /// The name of the chain that jumps to its groups.
    #[must_use]
    pub fn chain(self, direction: Direction) -> ChainName {
        format!("port_{}_{}", word(direction), hexadecimal(self.0))
    }

    /// Whose chain this is, if it is one that jumps to groups.
    #[must_use]
    pub fn of_chain(name: &str) -> Option<(Direction, Self)> {
        let (direction, digits) = name.strip_prefix("port_")?.split_once('_')?;
        let direction =
            [Direction::Ingress, Direction::Egress].into_iter().find(|d| word(*d) == direction)?;
        let number = u128::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 32)?;
        Some((direction, Self(number.to_be_bytes())))
    }
}

/// What a chain holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chain {
    /// A group's rules of one direction: each lets through what it matches.
    Group {
        /// The direction.
        direction: Direction,
        /// The rules: families agree, members are addresses and disjoint prefixes. Who is a member is no part of what the
        /// kernel's chain holds, but of sets that it looks up.
        rules: BTreeSet<Rule>,
    },
    /// A jump to each of the groups that some ports have.
    Port {
        /// The direction.
        direction: Direction,
        /// The groups' numbers.
        groups: BTreeSet<u32>,
    },
}

impl Chain {
    pub(super) fn of_group(direction: Direction, group: &Group) -> Self {
        let rules = group.rules.iter().filter(|rule| rule.direction == direction).filter_map(effective);
        Self::Group { direction, rules: rules.collect() }
    }

    /// The groups that its rules name, each with its members.
    pub(super) fn members(&self) -> impl Iterator<Item = (u32, &BTreeSet<IpNet>)> {
        let rules = match self {
            Self::Group { rules, .. } => Some(rules),
            Self::Port { .. } => None,
        };
        rules.into_iter().flatten().filter_map(|rule| match &rule.remote {
            Remote::Members(number, members) => Some((*number, members)),
            Remote::Any | Remote::Prefix(_) => None,
        })
    }

    /// The names of the chains that it jumps to.
    pub(crate) fn jumps(&self) -> impl Iterator<Item = ChainName> {
        let (direction, groups) = match self {
            Self::Group { direction, .. } => (*direction, None),
            Self::Port { direction, groups } => (*direction, Some(groups)),
        };
        groups.into_iter().flatten().map(move |number| Self::name_of_group(direction, *number))
    }

    /// The name of a group's chain, whatever it holds.
    #[must_use]
    pub fn name_of_group(direction: Direction, number: u32) -> ChainName {
        format!("group_{}_{number:08x}", word(direction))
    }
}

/// Tells what a chain holds apart from anything else: `<digest>_<rules>`, 32 hexadecimal digits of SHA-256 and the
/// number of rules. Kept as the comment of the chain's first rule; a chain without rules needs none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content(String);

impl Content {
    /// What this chain holds.
    #[must_use]
    pub fn of(chain: &Chain) -> Self {
        match chain {
            Chain::Group { rules, .. } => {
                let rules: BTreeSet<Rule> = rules.iter().map(without_members).collect();
                Self::new(&rules, rules.iter().map(kernel_rules).sum())
            }
            Chain::Port { groups, .. } => Self::new(groups, groups.len()),
        }
    }

    /// What a chain without rules holds.
    #[must_use]
    pub fn nothing() -> Self {
        Self::new(&BTreeSet::<u32>::new(), 0)
    }

    /// From a rule's comment.
    #[must_use]
    pub fn read(comment: &str) -> Self {
        Self(comment.to_owned())
    }

    fn new(held: &impl std::fmt::Debug, rules: usize) -> Self {
        Self(format!("{}_{rules}", hexadecimal(digest(format!("{held:?}").as_bytes()))))
    }

    /// As a rule's comment.
    #[must_use]
    pub fn comment(&self) -> &str {
        &self.0
    }

    /// How many rules the chain has.
    #[must_use]
    pub fn rule_count(&self) -> Option<usize> {
        self.0.rsplit_once('_')?.1.parse().ok()
    }
}

/// Whether a chain of ours is one of a group or a port, rather than one that every host has.
#[must_use]
pub fn is_chain_name(name: &str) -> bool {
    ["group_in_", "group_out_", "port_in_", "port_out_"].iter().any(|prefix| name.starts_with(prefix))
}

fn word(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "in",
        Direction::Egress => "out",
    }
}

fn digest(bytes: &[u8]) -> [u8; 16] {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    let (first, _) = digest.as_ref().split_first_chunk().expect("invariant: SHA-256 has 32 bytes");
    *first
}

fn hexadecimal(bytes: [u8; 16]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("invariant: a string takes all text");
        text
    })
}

/// A rule as the kernel's chain holds it.
fn without_members(rule: &Rule) -> Rule {
    let Rule { direction, ip_version, protocol, ports, remote } = rule;
    let remote = match remote {
        Remote::Members(number, _) => Remote::Members(*number, BTreeSet::new()),
        remote => remote.clone(),
    };
    Rule { direction: *direction, ip_version: *ip_version, protocol: *protocol, ports: *ports, remote }
}

/// How many rules of the kernel's one rule is: members are looked up as addresses, and as prefixes.
fn kernel_rules(rule: &Rule) -> usize {
    if matches!(rule.remote, Remote::Members(..)) { 2 } else { 1 }
}

/// A rule as far as it can match: nothing where families disagree. Of a group nobody may be a member yet.
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
        Remote::Members(number, members) => {
            // An address stays one whatever its neighbours are, so that one that comes is one that comes.
            let own = members.iter().copied().filter(is_of_family);
            let (single, prefixes): (Vec<IpNet>, Vec<IpNet>) =
                own.partition(|net| net.prefix_len() == net.max_prefix_len());
            let mut members: BTreeSet<IpNet> = single.into_iter().collect();
            members.extend(IpNet::aggregate(&prefixes).into_iter().map(|net| net.trunc()));
            Remote::Members(*number, members)
        }
    };
    let Rule { direction, ip_version, protocol, ports, .. } = rule;
    Some(Rule { direction: *direction, ip_version: *ip_version, protocol: *protocol, ports: *ports, remote })
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
        Remote::Members(9, nets.iter().map(|net| net.parse().unwrap()).collect())
    }

    #[test]
    fn rules_that_match_nothing_are_left_out() {
        let ports = Some((1, 2));
        let group = Group {
            rules: [
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
        assert_eq!(Content::of(&chain), Content::nothing());
    }

    #[test]
    fn members_become_addresses_and_disjoint_prefixes() {
        let all = members(&[
            "10.0.0.0/24",
            "10.0.0.6/32",
            "10.0.0.7/32",
            "10.0.1.0/25",
            "10.0.1.128/25",
            "::1/128",
        ]);
        let effective = effective(&rule(4, all)).unwrap();
        assert_eq!(effective.remote, members(&["10.0.0.0/23", "10.0.0.6/32", "10.0.0.7/32"]));
    }

    #[test]
    fn content_is_the_same_whoever_is_a_member() {
        let content = |nets: &[&str]| {
            let group = Group { rules: [rule(4, members(nets)), rule(6, Remote::Any)].into() };
            Content::of(&Chain::of_group(Direction::Ingress, &group))
        };
        assert_eq!(content(&[]), content(&["10.0.0.1/32", "10.1.0.0/16"]));
        assert_eq!(content(&[]).rule_count(), Some(3));
    }

    #[test]
    fn content_differs_with_rules_and_the_name_does_not() {
        let any = Group { rules: [rule(4, Remote::Any)].into() };
        let six = Group { rules: [rule(6, Remote::Any)].into() };
        let contents = [&any, &six].map(|group| Content::of(&Chain::of_group(Direction::Ingress, group)));
        assert_ne!(contents[0], contents[1]);
        assert!(contents.iter().all(|content| content.rule_count() == Some(1)));
        let name = Chain::name_of_group(Direction::Ingress, 7);
        assert_eq!(name, "group_in_00000007");
        assert!(is_chain_name(&name));
    }

    #[test]
    fn chain_of_a_set_of_groups_tells_which() {
        let policies = [&[][..], &[1], &[1, 2]].map(|groups| Policy::of(&groups.iter().copied().collect()));
        assert!(policies[0] != policies[1] && policies[1] != policies[2]);
        for direction in [Direction::Ingress, Direction::Egress] {
            let name = policies[2].chain(direction);
            assert!(is_chain_name(&name) && name.len() < 128);
            assert_eq!(Policy::of_chain(&name), Some((direction, policies[2])));
        }
        assert_eq!(Policy::of_chain("port_in_12"), None);
        assert_eq!(Policy::of_chain("group_in_00000007"), None);
    }
}
