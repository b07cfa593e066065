//! How much may come for a router's addresses outside and leave from them, in a table of its own: so a change of what is
//! held touches no translation.
//!
//! | hook | rules |
//! |---|---|
//! | prerouting, −155 | what comes in by the link to the outside for an address, over what that may get, is dropped |
//! | postrouting, 140 | what leaves by it from an address, over what that may send, is dropped |
//!
//! IPv6 is not translated, so its packets have addresses of the inside: all of them are one address's, whose bucket for
//! IPv4 they share. What neighbours ask each other, and which groups they listen to, is not held, or nobody would find the
//! way any more.
//!
//! A set for each direction and unit has the addresses as its elements, each with a bucket of its own (`limit rate over`):
//! the cost for a packet does not grow with their number, and what is not changed keeps its bucket. The kernel's bucket of
//! bytes holds a second's worth and the burst (`nft_limit.c`), so that a burst of less than a second's worth is one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NlasIterator};

use super::message::{
    Attributes, Base, Expression, FIRST, FOURTH_WORD, Family, Meta, NFT_MSG_DELSETELEM, NFT_MSG_DELTABLE,
    NFT_MSG_GETSETELEM, NFT_MSG_NEWCHAIN, NFT_MSG_NEWRULE, NFT_MSG_NEWSET, NFT_MSG_NEWSETELEM,
    NFT_MSG_NEWTABLE, Transaction, Verdict, body, encode_rule, kind, read_limit,
};
use super::rules::{PROTOCOL_ICMPV6, bytes, protocol};
use super::{ELEMENTS_PER_MESSAGE_MAX, attributes_of, nat};
use crate::netlink::{Error, parts_of};
use crate::spec::{AddressLimit, Direction, InterfaceName, LimitUnit, Router};

pub(super) const TABLE: &str = "wisp-limits";
const FAMILY: Family = Family::Inet;
const HOOK_PREROUTING: u32 = 0;
pub(super) const HOOK_POSTROUTING: u32 = 4;
pub(super) const NFPROTO_IPV4: u8 = 2;
pub(super) const NFPROTO_IPV6: u8 = 10;
/// `NFTA_SET_ELEM_EXPR`.
const ELEMENT_EXPRESSION: u16 = 7;
/// nft's number of the type of keys, for `nft list`, and their length: IPv4 addresses are mapped (RFC 4291 §2.5.5.2).
const IPV6_ADDRESS: (u32, u32) = (8, 16);

/// A set of addresses.
type Set = (Direction, LimitUnit);

/// All of them; packets before bytes, as what is dropped takes no bytes.
const SETS: [Set; 4] = [
    (Direction::Ingress, LimitUnit::Packets),
    (Direction::Ingress, LimitUnit::Bytes),
    (Direction::Egress, LimitUnit::Packets),
    (Direction::Egress, LimitUnit::Bytes),
];

fn set_name((direction, unit): Set) -> &'static str {
    match (direction, unit) {
        (Direction::Ingress, LimitUnit::Packets) => "packets_in",
        (Direction::Ingress, LimitUnit::Bytes) => "bytes_in",
        (Direction::Egress, LimitUnit::Packets) => "packets_out",
        (Direction::Egress, LimitUnit::Bytes) => "bytes_out",
    }
}

/// What an element's bucket is told: what it gets each second, and what it holds beside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Bucket {
    per_second: u64,
    burst: u32,
}

impl Bucket {
    fn of(limit: &AddressLimit) -> Self {
        let per_second = limit.per_second.max(1);
        let burst = match limit.unit {
            // The kernel adds a second's worth itself.
            LimitUnit::Bytes => limit.burst.saturating_sub(per_second),
            LimitUnit::Packets => limit.burst.max(1),
        };
        Self { per_second, burst: u32::try_from(burst).unwrap_or(u32::MAX) }
    }
}

/// What is held where.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// The link to the outside; empty of a table that is not as this version makes it.
    outside: InterfaceName,
    /// Whose IPv6 is.
    ipv6_as: Option<Ipv6Addr>,
    sets: BTreeMap<Set, BTreeMap<Ipv6Addr, Bucket>>,
}

impl Limits {
    /// A router's; none without a way out or anything to hold.
    #[must_use]
    pub fn of(router: &Router) -> Option<Self> {
        let outside = router.nat.outside.as_ref().filter(|_| !router.limits.is_empty())?;
        let ipv6_as = router.ipv6_as.map(key);
        let mut limits = Self { outside: outside.link.clone(), ipv6_as, sets: BTreeMap::new() };
        for limit in &router.limits {
            limits.set(limit.direction, limit.unit).insert(key(limit.address), Bucket::of(limit));
        }
        Some(limits)
    }

    fn set(&mut self, direction: Direction, unit: LimitUnit) -> &mut BTreeMap<Ipv6Addr, Bucket> {
        self.sets.entry((direction, unit)).or_default()
    }

    fn elements(&self, set: Set) -> BTreeSet<(Ipv6Addr, Bucket)> {
        let elements = self.sets.get(&set).into_iter().flatten();
        elements.map(|(address, bucket)| (*address, *bucket)).collect()
    }
}

fn key(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

/// A base chain: its name, hook, priority, and rules.
type Chain = (&'static str, u32, i32, Vec<Vec<Expression>>);

fn chains(outside: &str, ipv6_as: Option<Ipv6Addr>) -> [Chain; 2] {
    let rules = |wanted: Direction| {
        let sets = || SETS.into_iter().filter(move |(direction, _)| *direction == wanted);
        let mut rules: Vec<_> = sets().map(|set| ipv4_rule(outside, set)).collect();
        if let Some(own) = ipv6_as {
            rules.extend([neighbours_rule(outside, wanted), listeners_rule(outside, wanted)]);
            rules.extend(sets().map(|set| ipv6_rule(outside, own, set)));
        }
        rules
    };
    [
        ("inward", HOOK_PREROUTING, -155, rules(Direction::Ingress)),
        ("outward", HOOK_POSTROUTING, 140, rules(Direction::Egress)),
    ]
}

/// The packet comes from the outside, or leaves to it, by that version of IP.
pub(super) fn passes(outside: &str, direction: Direction, nfproto: u8) -> Vec<Expression> {
    let by = match direction {
        Direction::Ingress => Meta::InputName,
        Direction::Egress => Meta::OutputName,
    };
    let version = vec![
        Expression::Meta { key: Meta::Family, to: FIRST },
        Expression::Compare { register: FIRST, equal: true, value: vec![nfproto] },
    ];
    [nat::link(by, outside, true), version].concat()
}

/// An address that is found and whose bucket has enough ends the rule.
fn over(set: Set) -> Vec<Expression> {
    vec![Expression::Lookup { set: set_name(set), contained: true }, Expression::Verdict(Verdict::Drop)]
}

/// IPv4 (RFC 791): source (at 12), destination (at 16).
fn ipv4_rule(outside: &str, set: Set) -> Vec<Expression> {
    let offset = if set.0 == Direction::Ingress { 16 } else { 12 };
    let mapped = Ipv4Addr::UNSPECIFIED.to_ipv6_mapped().octets();
    let address = vec![
        Expression::Immediate { to: FIRST, value: mapped[..12].to_vec() },
        Expression::Payload { base: Base::Network, offset, length: 4, to: FOURTH_WORD },
    ];
    [passes(outside, set.0, NFPROTO_IPV4), address, over(set)].concat()
}

fn ipv6_rule(outside: &str, own: Ipv6Addr, set: Set) -> Vec<Expression> {
    let address = vec![Expression::Immediate { to: FIRST, value: own.octets().to_vec() }];
    [passes(outside, set.0, NFPROTO_IPV6), address, over(set)].concat()
}

/// Routers' and neighbours' messages (RFC 4861 §4: ICMPv6 types 133 to 137) are not held. They have a hop limit of 255 (at 7 of
/// IPv6), which nothing has that a router has passed on: so nothing of the inside is taken for one.
fn neighbours_rule(outside: &str, direction: Direction) -> Vec<Expression> {
    let from_neighbour = bytes(Base::Network, 7, &[255], true);
    let accepted = icmpv6_accepted(133, 137);
    [passes(outside, direction, NFPROTO_IPV6), from_neighbour, accepted].concat()
}

/// Nor are messages of who listens to which group (RFC 3810 §5 and RFC 2710 §3: types 130 to 132, and 143), or a switch that
/// goes by them would not bring the router what its neighbours ask. They are for the groups of the link (ff02::/16, at 24 of
/// IPv6), for which no router passes anything on (RFC 4291 §2.7).
fn listeners_rule(outside: &str, direction: Direction) -> Vec<Expression> {
    let of_link = bytes(Base::Network, 24, &[0xff, 0x02], true);
    [passes(outside, direction, NFPROTO_IPV6), of_link, icmpv6_accepted(130, 143)].concat()
}

/// What is of these types ends the rules.
fn icmpv6_accepted(first: u8, last: u8) -> Vec<Expression> {
    let of_type = vec![
        Expression::Payload { base: Base::Transport, offset: 0, length: 1, to: FIRST },
        Expression::Range { register: FIRST, first: vec![first], last: vec![last] },
        Expression::Verdict(Verdict::Accept),
    ];
    [protocol(PROTOCOL_ICMPV6), of_type].concat()
}

/// A line that changes with the rules, and tells the link that they were made for and whose IPv6 is; kept as the table's
/// comment.
fn comment(outside: &str, ipv6_as: Option<Ipv6Addr>) -> String {
    let hash = super::text_hash(&[format!("{:?}", chains(outside, ipv6_as))]);
    let ipv6_as = ipv6_as.map_or_else(|| "-".to_owned(), |address| address.to_string());
    format!("wisp limits {hash:016x} {ipv6_as} {outside}")
}

/// What a comment tells, where it is one of this version's.
fn told_of(told: &str) -> Option<(InterfaceName, Option<Ipv6Addr>)> {
    let mut words = told.rsplit(' ');
    let (outside, ipv6_as) = (words.next()?, words.next()?.parse().ok());
    (comment(outside, ipv6_as) == told).then(|| (outside.to_owned(), ipv6_as))
}

fn push_elements(
    transaction: &mut Transaction,
    add: bool,
    set: Set,
    elements: &BTreeSet<(Ipv6Addr, Bucket)>,
) {
    let (message, flags, verb) = match add {
        true => (NFT_MSG_NEWSETELEM, NLM_F_CREATE, "add to"),
        false => (NFT_MSG_DELSETELEM, 0, "remove from"),
    };
    let all: Vec<_> = elements.iter().collect();
    for part in all.chunks(ELEMENTS_PER_MESSAGE_MAX) {
        let items = part.iter().map(|(address, Bucket { per_second, burst })| {
            let item = Attributes::new().nested(1, &Attributes::new().put(1, &address.octets()));
            let (per_second, burst, of_bytes) = (*per_second, *burst, set.1 == LimitUnit::Bytes);
            let over = Expression::Over { per_second, burst, of_bytes };
            if add { item.nested(ELEMENT_EXPRESSION, &over.encode()) } else { item }
        });
        let list = items.fold(Attributes::new(), |list, item| list.nested(1, &item));
        let attributes = Attributes::new().text(1, TABLE).text(2, set_name(set)).nested(3, &list);
        let subject = format!("{verb} the set of limits {}", set_name(set));
        transaction.push(subject, message, flags, FAMILY, &attributes);
    }
}

impl nat::Client {
    /// What is held, by a table that says that of itself.
    pub(super) fn observe_limits(&mut self, told: &str) -> Result<Limits, Error> {
        let Some((outside, ipv6_as)) = told_of(told) else { return Ok(Limits::default()) };
        let mut limits = Limits { outside, ipv6_as, sets: BTreeMap::new() };
        for set in SETS {
            let request = body(FAMILY, &Attributes::new().text(1, TABLE).text(2, set_name(set)));
            let received = match self.connection.dump("limits", kind(NFT_MSG_GETSETELEM), &request) {
                Err(error) if error.refusal() == Some(libc::ENOENT) => return Ok(Limits::default()),
                received => received?,
            };
            for list in received.iter().filter_map(|message| attributes_of(&message.body).remove(&3)) {
                for item in NlasIterator::new(list.as_slice()).flatten() {
                    let parts = parts_of(item.value());
                    let key = parts.get(&1).and_then(|key| parts_of(key).remove(&1));
                    let key = key.and_then(|key| <[u8; 16]>::try_from(key).ok());
                    let read = parts.get(&ELEMENT_EXPRESSION).and_then(|expression| read_limit(expression));
                    let (Some(key), Some((per_second, burst))) = (key, read) else {
                        return Ok(Limits::default());
                    };
                    limits.set(set.0, set.1).insert(key.into(), Bucket { per_second, burst });
                }
            }
        }
        Ok(limits)
    }

    /// Holds to something else than before: by a change of what differs, or a table made anew where its rules do.
    ///
    /// # Errors
    /// The kernel's first refusal; then nothing has changed.
    pub(crate) fn set_limits(&mut self, from: Option<&Limits>, to: Option<&Limits>) -> Result<(), Error> {
        let mut transaction = Transaction::default();
        let is_for = |limits: &Limits| (limits.outside.clone(), limits.ipv6_as);
        let kept = from.filter(|from| to.is_some_and(|to| is_for(from) == is_for(to)));
        if kept.is_none() {
            push_table(&mut transaction, to);
        }
        let nothing = Limits::default();
        let (from, to) = (kept.unwrap_or(&nothing), to.unwrap_or(&nothing));
        for set in SETS {
            let (before, after) = (from.elements(set), to.elements(set));
            push_elements(&mut transaction, false, set, &before.difference(&after).copied().collect());
            push_elements(&mut transaction, true, set, &after.difference(&before).copied().collect());
        }
        if transaction.is_empty() {
            return Ok(());
        }
        self.connection.transaction(&transaction.into_messages())
    }
}

/// Removes the table, and makes it anew with empty sets where something is to be held.
fn push_table(transaction: &mut Transaction, limits: Option<&Limits>) {
    let subject = || format!("create table {TABLE}");
    let table = Attributes::new().text(1, TABLE);
    transaction.push(subject(), NFT_MSG_NEWTABLE, NLM_F_CREATE, FAMILY, &table);
    transaction.push(subject(), NFT_MSG_DELTABLE, 0, FAMILY, &table);
    let Some(limits) = limits else { return };
    let told = super::comment_attribute(&comment(&limits.outside, limits.ipv6_as));
    transaction.push(subject(), NFT_MSG_NEWTABLE, NLM_F_CREATE, FAMILY, &table.put(6, &told));
    for (index, set) in SETS.into_iter().enumerate() {
        let named = Attributes::new().text(1, TABLE).text(2, set_name(set));
        let (kind, length) = IPV6_ADDRESS;
        let set = named.number(3, 0).number(4, kind).number(5, length).number(10, index as u32 + 1);
        transaction.push(subject(), NFT_MSG_NEWSET, NLM_F_CREATE, FAMILY, &set);
    }
    for (name, hook, priority, rules) in chains(&limits.outside, limits.ipv6_as) {
        let hook = Attributes::new().number(1, hook).number(2, priority.cast_unsigned());
        let chain = Attributes::new().text(1, TABLE).text(3, name);
        let chain = chain.nested(4, &hook).number(5, 1).text(7, "filter");
        transaction.push(subject(), NFT_MSG_NEWCHAIN, NLM_F_CREATE, FAMILY, &chain);
        for rule in &rules {
            let rule = Attributes::new().text(1, TABLE).text(2, name).nested(4, &encode_rule(rule));
            transaction.push(subject(), NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, FAMILY, &rule);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comment_tells_what_the_rules_are_for_of_this_version_only() {
        for ipv6_as in [None, Some(key(Ipv4Addr::new(203, 0, 113, 2).into())), Some(Ipv6Addr::LOCALHOST)] {
            let told = comment("wr7e57-00000001", ipv6_as);
            assert_eq!(told_of(&told), Some(("wr7e57-00000001".to_owned(), ipv6_as)));
            assert_eq!(told_of(&told.replace("wisp limits ", "wisp limits 0")), None);
        }
        assert_eq!(told_of(""), None);
    }

    #[test]
    fn burst_of_bytes_is_what_the_kernel_does_not_add_itself() {
        let limit = |unit, per_second, burst| AddressLimit {
            address: Ipv4Addr::new(203, 0, 113, 5).into(),
            direction: Direction::Egress,
            unit,
            per_second,
            burst,
        };
        let bucket = |unit, per_second, burst| {
            let bucket = Bucket::of(&limit(unit, per_second, burst));
            (bucket.per_second, bucket.burst)
        };
        assert_eq!(bucket(LimitUnit::Bytes, 1000, 800), (1000, 0));
        assert_eq!(bucket(LimitUnit::Bytes, 1000, 2500), (1000, 1500));
        assert_eq!(bucket(LimitUnit::Bytes, 1, u64::MAX), (1, u32::MAX));
        assert_eq!(bucket(LimitUnit::Packets, 1000, 800), (1000, 800));
        assert_eq!(bucket(LimitUnit::Packets, 0, 0), (1, 1));
    }
}
