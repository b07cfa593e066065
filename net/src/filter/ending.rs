//! Which tracked connections a change of the filter ends: those that no rule would let begin any more. Pure.
//!
//! Rules are asked only when a connection begins, so a rule that goes would go on holding for what it once let through.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::groups::has_types;
use super::{Chain, Chains, Element, Filter, FilterChange, Policy, WantedFilter};
use crate::conntrack::Tuple;
use crate::spec::{Direction, InterfaceName, Remote, Rule};

/// What a change takes from ports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ending {
    ports: BTreeMap<InterfaceName, EndingPort>,
    /// What the chains hold that the ports have from now on.
    chains: Chains,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct EndingPort {
    /// Addresses that the port has no more: all that they were part of ends.
    lost: BTreeSet<IpNet>,
    /// Addresses that it keeps: what its groups would not let begin ends.
    kept: BTreeSet<IpNet>,
    /// Its groups until now, and from now on.
    before: Option<Policy>,
    after: Option<Policy>,
}

impl Ending {
    /// Whether no connection can be meant.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ports.is_empty()
    }

    /// What ends when a filter becomes another one. Where it is not known what a chain held, ports may have lost
    /// something; where it is not known what one holds, it lets nothing begin.
    pub(super) fn of(present: &Filter, change: &FilterChange, wanted: &WantedFilter) -> Self {
        let poorer = poorer_policies(present, change);
        let ports = (!poorer.is_empty()).then(|| present.policies()).into_iter().flatten();
        let of_poorer = ports.filter(|(_, policy)| poorer.contains(policy)).map(|(link, _)| link.as_str());
        let removed = change.remove.iter();
        let removed =
            removed.filter(|element| matches!(element, Element::Policy(..)) || address_of(element).is_some());
        let links: BTreeSet<&str> = removed
            .map(Element::link)
            .chain(of_poorer)
            .filter(|link| !wanted.elements.contains(&Element::Open((*link).to_owned())))
            .collect();
        let mut ending = Self::default();
        let mut judged: BTreeMap<(Option<Policy>, Option<Policy>), bool> = BTreeMap::new();
        for link in links {
            let port = EndingPort::of(link, present, change);
            let policies = (port.before, port.after);
            let loses = *judged.entry(policies).or_insert_with(|| {
                port.before.is_some_and(|policy| poorer.contains(&policy))
                    || loses_rules(present, change, wanted, policies)
            });
            if loses || !port.lost.is_empty() {
                ending.ports.insert(link.to_owned(), port);
            }
        }
        let after: BTreeSet<Policy> = ending.ports.values().filter_map(|port| port.after).collect();
        for policy in after {
            for name in super::DIRECTIONS.map(|direction| policy.chain(direction)) {
                let Some(chain) = from_now_on(present, wanted, &name) else { continue };
                for group in chain.jumps() {
                    if let Some(chain) = from_now_on(present, wanted, &group) {
                        ending.chains.insert(group, chain);
                    }
                }
                ending.chains.insert(name, chain);
            }
        }
        ending
    }

    /// Which connections end: `zone_of` gives the zone of a port's bridge.
    pub(crate) fn judge(&self, zone_of: impl Fn(&str) -> Option<u16>) -> Judge<'_> {
        let mut judge = Judge::default();
        for (link, port) in &self.ports {
            let Some(zone) = zone_of(link) else { continue };
            let rules = |direction| {
                let chain = |name: &str| self.chains.get(name).map(Arc::as_ref);
                port.after.and_then(|policy| rules_of(policy, direction, chain)).unwrap_or_default()
            };
            let kept = judge
                .add(Verdict::Rules { egress: rules(Direction::Egress), ingress: rules(Direction::Ingress) });
            let lost = judge.add(Verdict::Ends);
            for (addresses, verdict) in [(&port.kept, kept), (&port.lost, lost)] {
                addresses.iter().for_each(|net| judge.place(zone, *net, verdict));
            }
        }
        judge
    }
}

impl EndingPort {
    fn of(link: &str, present: &Filter, change: &FilterChange) -> Self {
        let mut port = Self::default();
        for element in present.of_link(link) {
            let is_lost = change.remove.contains(element);
            if let Element::Policy(_, policy) = element {
                port.before = Some(*policy);
                port.after = (!is_lost).then_some(*policy);
            }
            if let Some(address) = address_of(element) {
                let addresses = if is_lost { &mut port.lost } else { &mut port.kept };
                addresses.insert(address);
            }
        }
        let first = Element::Policy(link.to_owned(), Policy::FIRST);
        if let Some(Element::Policy(of, policy)) = change.add.range(first..).next()
            && of == link
        {
            port.after = Some(*policy);
        }
        port
    }
}

/// The policies with a group whose chain has lost a rule, or a member that a rule names.
fn poorer_policies(present: &Filter, change: &FilterChange) -> BTreeSet<Policy> {
    let is_poorer = |(name, chain): &(&String, &Arc<Chain>)| {
        let before = present.chains.get(*name).and_then(|held| held.chain.as_deref());
        match (before, chain.as_ref()) {
            (Some(Chain::Group { rules: before, .. }), Chain::Group { rules, .. }) => {
                !before.iter().all(|rule| rules.contains(rule) || rules.iter().any(|new| covers(new, rule)))
            }
            _ => true,
        }
    };
    let changed = change.refill_chains.iter().chain(&change.relearn_chains);
    let poorer: BTreeSet<&String> = changed.filter(is_poorer).map(|(name, _)| name).collect();
    if poorer.is_empty() {
        return BTreeSet::new();
    }
    let ports = present.chains.iter().filter_map(|(name, held)| Some((Policy::of_chain(name)?.1, held)));
    let has_poorer = |held: &super::Held| {
        held.chain.as_ref().is_none_or(|chain| chain.jumps().any(|group| poorer.contains(&group)))
    };
    ports.filter(|(_, held)| has_poorer(held)).map(|(policy, _)| policy).collect()
}

/// Whether a port with one policy and then another one may begin less.
fn loses_rules(
    present: &Filter,
    change: &FilterChange,
    wanted: &WantedFilter,
    (before, after): (Option<Policy>, Option<Policy>),
) -> bool {
    let Some(before) = before.filter(|before| Some(*before) != after) else { return false };
    let was = |name: &str| present.chains.get(name).and_then(|held| held.chain.as_deref());
    let is = |name: &str| {
        let made = change.add_chains.get(name).or_else(|| wanted.chains.get(name));
        made.map_or_else(|| was(name), |chain| Some(chain.as_ref()))
    };
    super::DIRECTIONS.into_iter().any(|direction| {
        let Some(before) = rules_of(before, direction, was) else { return true };
        let after = after.and_then(|policy| rules_of(policy, direction, is)).unwrap_or_default();
        !before.iter().all(|rule| after.iter().any(|other| covers(other, rule)))
    })
}

fn from_now_on(present: &Filter, wanted: &WantedFilter, name: &str) -> Option<Arc<Chain>> {
    let known = || present.chains.get(name).and_then(|held| held.chain.as_ref());
    wanted.chains.get(name).or_else(known).cloned()
}

fn address_of(element: &Element) -> Option<IpNet> {
    Some(match element {
        Element::Ipv4(_, address) => IpNet::from(IpAddr::V4(*address)),
        Element::Ipv4Prefix(_, net) => IpNet::V4(*net),
        Element::Ipv6(_, address) => IpNet::from(IpAddr::V6(*address)),
        Element::Ipv6Prefix(_, net) => IpNet::V6(*net),
        _ => return None,
    })
}

/// The rules of all groups of a policy; nothing if a chain is not known.
fn rules_of<'a>(
    policy: Policy,
    direction: Direction,
    chain: impl Fn(&str) -> Option<&'a Chain>,
) -> Option<Vec<&'a Rule>> {
    let mut all = Vec::new();
    for group in chain(&policy.chain(direction))?.jumps() {
        let Chain::Group { rules, .. } = chain(&group)? else { return None };
        all.extend(rules);
    }
    Some(all)
}

/// Whether the other side may be any of these addresses.
fn includes(remote: &Remote, net: &IpNet) -> bool {
    match remote {
        Remote::Any => true,
        Remote::Prefix(prefix) => prefix.contains(net),
        Remote::Members(_, members) => members.iter().any(|member| member.contains(net)),
    }
}

/// Whether one rule lets begin all that another does.
fn covers(rule: &Rule, other: &Rule) -> bool {
    let holds = |net: &IpNet| includes(&rule.remote, net);
    let remote = match &other.remote {
        Remote::Any => rule.remote == Remote::Any,
        Remote::Prefix(net) => holds(net),
        Remote::Members(_, members) => {
            matches!(&rule.remote, Remote::Members(_, mine) if members.is_subset(mine))
                || members.iter().all(holds)
        }
    };
    let within = |(first, last): (u16, u16)| {
        rule.ports.is_none_or(|(from, to)| {
            if has_types(rule.protocol) { (first, last) == (from, to) } else { from <= first && last <= to }
        })
    };
    rule.direction == other.direction
        && rule.ip_version == other.ip_version
        && (rule.protocol.is_none() || rule.protocol == other.protocol)
        && other.ports.map_or(rule.ports.is_none(), within)
        && remote
}

#[derive(Debug)]
enum Verdict<'a> {
    Ends,
    Rules { egress: Vec<&'a Rule>, ingress: Vec<&'a Rule> },
}

/// Tells for each tracked connection whether it ends.
#[derive(Debug, Default)]
pub(crate) struct Judge<'a> {
    verdicts: Vec<Verdict<'a>>,
    addresses: BTreeMap<(u16, IpAddr), usize>,
    prefixes: Vec<(u16, IpNet, usize)>,
}

impl<'a> Judge<'a> {
    /// Whether no connection can be meant.
    pub(crate) fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.prefixes.is_empty()
    }

    /// Whether IPv6 connections can be meant.
    pub(crate) fn has_ipv6(&self) -> bool {
        self.addresses.keys().any(|(_, address)| address.is_ipv6())
            || self.prefixes.iter().any(|(_, net, _)| matches!(net, IpNet::V6(_)))
    }

    fn add(&mut self, verdict: Verdict<'a>) -> usize {
        self.verdicts.push(verdict);
        self.verdicts.len() - 1
    }

    fn place(&mut self, zone: u16, net: IpNet, verdict: usize) {
        if net.prefix_len() == net.max_prefix_len() {
            self.addresses.insert((zone, net.addr()), verdict);
        } else {
            self.prefixes.push((zone, net, verdict));
        }
    }

    /// Whether a connection of this zone that began so ends.
    pub(crate) fn ends(&self, zone: u16, begun: &Tuple) -> bool {
        let ends = |own: IpAddr, other: IpAddr, direction| {
            let single = self.addresses.get(&(zone, own)).copied();
            let of_prefix = self.prefixes.iter().find(|(of, net, _)| *of == zone && net.contains(&own));
            let verdict = single.or(of_prefix.map(|(_, _, verdict)| *verdict));
            verdict.is_some_and(|verdict| match &self.verdicts[verdict] {
                Verdict::Ends => true,
                Verdict::Rules { egress, ingress } => {
                    let rules = if direction == Direction::Egress { egress } else { ingress };
                    !rules.iter().any(|rule| lets_begin(rule, other, begun))
                }
            })
        };
        ends(begun.source, begun.target, Direction::Egress)
            || ends(begun.target, begun.source, Direction::Ingress)
    }
}

fn lets_begin(rule: &Rule, other: IpAddr, begun: &Tuple) -> bool {
    let version = if other.is_ipv4() { 4 } else { 6 };
    let ports = match rule.ports {
        None => true,
        Some((kind, code)) if has_types(rule.protocol) => begun
            .kind
            .is_some_and(|(k, c)| u16::from(k) == kind && (code == u16::MAX || u16::from(c) == code)),
        Some((first, last)) => (first..=last).contains(&begun.target_port),
    };
    rule.ip_version == version
        && rule.protocol.is_none_or(|protocol| protocol == begun.protocol)
        && ports
        && includes(&rule.remote, &IpNet::from(other))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::OwnerTag;
    use crate::spec::HostNetwork;
    use crate::testing::{ANYTHING, TAG, address, group, network, rule};

    const TCP: Option<u8> = Some(6);

    fn tcp(from: u8, to: u8, port: u16) -> Tuple {
        Tuple {
            source: address(from).into(),
            target: address(to).into(),
            protocol: 6,
            target_port: port,
            kind: None,
        }
    }

    /// A filter, with or without the knowledge of what its chains hold.
    fn present(wanted: &HostNetwork, is_known: bool) -> Filter {
        let mut filter = WantedFilter::of(wanted, None, OwnerTag::new(1)).names();
        if !is_known {
            filter.chains.values_mut().for_each(|held| held.chain = None);
        }
        filter
    }

    /// What ends for ports 1 and 2 when the rules of their group become others.
    fn ended(before: &[Rule], after: &[Rule], is_known: bool, connections: &[Tuple]) -> Vec<bool> {
        let mut wanted = network(&[(1, 1), (2, 1)]);
        wanted.groups.insert(ANYTHING, group(before.to_vec()));
        let first = present(&wanted, is_known);
        wanted.groups.insert(ANYTHING, group(after.to_vec()));
        let second = WantedFilter::of(&wanted, Some(&first), OwnerTag::new(1));
        let change = first.change_to(&second);
        let judge = change.ending.judge(|_| Some(7));
        connections.iter().map(|connection| judge.ends(7, connection)).collect()
    }

    #[test]
    fn connection_ends_that_no_rule_lets_begin_any_more() {
        let out = rule(Direction::Egress, None, None);
        let web = rule(Direction::Ingress, TCP, Some((80, 80)));
        let ssh = rule(Direction::Ingress, TCP, Some((22, 22)));
        let connections = [tcp(1, 2, 80), tcp(1, 2, 22), tcp(9, 2, 22), tcp(2, 9, 5)];
        for is_known in [true, false] {
            let ended = |after: &[Rule]| {
                super::tests::ended(&[out.clone(), web.clone(), ssh.clone()], after, is_known, &connections)
            };
            assert_eq!(ended(&[out.clone(), web.clone()]), [false, true, true, false]);
            assert_eq!(ended(&[web.clone(), ssh.clone()]), [true, true, false, true]);
            assert_eq!(ended(&[]), [true; 4]);
        }
    }

    #[test]
    fn rules_that_grow_end_nothing_and_need_no_look_at_connections() {
        let web = rule(Direction::Ingress, TCP, Some((80, 80)));
        let wider = rule(Direction::Ingress, TCP, Some((1, 100)));
        let members = |number: u8| {
            let nets = (1..=number).map(|last| IpNet::from(IpAddr::from(address(last)))).collect();
            Rule { remote: Remote::Members(9, nets), ..rule(Direction::Ingress, None, None) }
        };
        let mut wanted = network(&[(1, 1)]);
        let [few, many] = [vec![members(2)], vec![members(5)]];
        let only_web = vec![web.clone()];
        // What is not known is looked at where it may have held more.
        let cases = [
            (only_web, vec![web, wider], (true, false)),
            (few.clone(), many.clone(), (true, true)),
            (many, few, (false, false)),
        ];
        for (before, after, expected) in cases {
            wanted.groups.insert(ANYTHING, group(before));
            let filters = [true, false].map(|is_known| present(&wanted, is_known));
            wanted.groups.insert(ANYTHING, group(after));
            let [known, unknown] = filters.map(|filter| {
                let second = WantedFilter::of(&wanted, Some(&filter), OwnerTag::new(1));
                filter.change_to(&second).ending
            });
            let is_nothing = |ending: Ending| ending.judge(|_| Some(7)).is_empty();
            assert_eq!((is_nothing(known), is_nothing(unknown)), expected);
        }
    }

    #[test]
    fn port_that_goes_and_address_that_goes_end_all_of_theirs_in_their_zone_alone() {
        let wanted = network(&[(1, 1), (2, 1)]);
        let filter = WantedFilter::of(&wanted, None, OwnerTag::new(1));
        let change = filter.names().removal_of_link(&TAG.tap(1));
        let judge = change.ending.judge(|_| Some(7));
        assert!(judge.ends(7, &tcp(1, 2, 80)) && judge.ends(7, &tcp(2, 1, 80)));
        assert!(!judge.ends(8, &tcp(1, 2, 80)) && !judge.ends(7, &tcp(2, 3, 80)));
        let mut fewer = wanted.clone();
        fewer.taps.get_mut(&TAG.tap(2)).unwrap().addresses.clear();
        let second = WantedFilter::of(&fewer, Some(&filter.names()), OwnerTag::new(1));
        let change = filter.names().change_to(&second);
        let judge = change.ending.judge(|_| Some(7));
        assert!(judge.ends(7, &tcp(2, 3, 80)) && !judge.ends(7, &tcp(1, 3, 80)));
    }
}
