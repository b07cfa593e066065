//! The rules of one router, in a table of its namespace's own: what is translated is looked up in maps, so that a
//! change of one address or port is a change of one element.
//!
//! | hook | rules |
//! |---|---|
//! | prerouting, −160; postrouting, 150 | what comes for an address outside by the link there, or leaves from one, is counted |
//! | prerouting, −150 | what comes in by the link to the outside is marked |
//! | prerouting, −100 | to a floating address: to the one that it stands for; to a forwarded port: to where it leads |
//! | forward, 0 | what begins outside and was not translated is dropped, where the inside is hidden |
//! | postrouting, 100 | from one inside to another inside, untranslated: as it is; from an address that has a floating one: as that; to the outside, and from the inside to a translated target: as the router, where the inside is hidden |
//!
//! What is inside reaches floating addresses too; its own is hidden then, so that the answer comes back through here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NlasIterator};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::message::{
    Attributes, Base, Expression, FIRST, Family, Meta, NFT_MSG_DELSETELEM, NFT_MSG_DELTABLE,
    NFT_MSG_GETSETELEM, NFT_MSG_GETTABLE, NFT_MSG_NEWCHAIN, NFT_MSG_NEWRULE, NFT_MSG_NEWSET,
    NFT_MSG_NEWSETELEM, NFT_MSG_NEWTABLE, SECOND_WORD, THIRD_WORD, Transaction, Translation, Verdict, body,
    encode_rule, kind, read_count,
};
use super::{ELEMENTS_PER_MESSAGE_MAX, Limits, attributes_of, limit, mark, meter};
use crate::conntrack::{self, Tuple};
use crate::netlink::{Connection, Error, parts_of, text};
use crate::spec::{Count, Forwarding, Nat, Outside};

/// The table's name: it is alone in its namespace.
const TABLE: &str = "wisp";
const FAMILY: Family = Family::Ipv4;

/// A mark of what came in by the link to the outside; a namespace's marks are its own.
const FROM_OUTSIDE: u32 = 1;

/// `NFTA_SET_EXPR`: what each element does when it is found; `NFTA_SET_ELEM_EXPR`: what it has done.
const SET_EXPRESSION: u16 = 17;
const ELEMENT_EXPRESSION: u16 = 7;

/// `ct state new`.
const STATE_NEW: u32 = 8;
/// `ct status dnat` (`IPS_DST_NAT`).
const STATUS_TRANSLATED: u32 = 32;

const HOOK_PREROUTING: u32 = 0;
const HOOK_FORWARD: u32 = 2;
const HOOK_POSTROUTING: u32 = 4;

/// nft's numbers of the types of keys and data, for `nft list`.
const IPV4_ADDRESS: u32 = 7;
const PROTOCOL: u32 = 12;
const PORT: u32 = 13;

/// A map: its name, type and length in bytes of keys, and of what it gives.
#[derive(Debug, Clone, Copy)]
struct Map {
    name: &'static str,
    key: (u32, u32),
    /// A set gives nothing, and counts the packets that are looked up in it.
    data: Option<(u32, u32)>,
}

const FLOATING: Map = Map { name: "floating", key: (IPV4_ADDRESS, 4), data: Some((IPV4_ADDRESS, 4)) };
const SOURCES: Map = Map { name: "sources", key: (IPV4_ADDRESS, 4), data: Some((IPV4_ADDRESS, 4)) };
const FORWARDINGS: Map = Map {
    name: "forwardings",
    key: ((IPV4_ADDRESS << 6 | PROTOCOL) << 6 | PORT, 12),
    data: Some((IPV4_ADDRESS << 6 | PORT, 8)),
};
const INWARD: Map = Map { name: "counted_in", key: (IPV4_ADDRESS, 4), data: None };
const OUTWARD: Map = Map { name: "counted_out", key: (IPV4_ADDRESS, 4), data: None };
const MAPS: [Map; 5] = [FLOATING, SOURCES, FORWARDINGS, INWARD, OUTWARD];

/// An element of a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Element {
    Floating(Ipv4Addr, Ipv4Addr),
    Source(Ipv4Addr, Ipv4Addr),
    Forwarding(Forwarding, (Ipv4Addr, u16)),
    Inward(Ipv4Addr),
    Outward(Ipv4Addr),
}

impl Element {
    fn all(nat: &Nat) -> BTreeSet<Self> {
        let floating = nat.floating.iter().map(|(outside, inside)| Self::Floating(*outside, *inside));
        // Of two floating addresses of one inside, what it begins comes from the last.
        let sources: BTreeMap<_, _> =
            nat.floating.iter().map(|(outside, inside)| (inside, outside)).collect();
        let sources = sources.into_iter().map(|(inside, outside)| Self::Source(*inside, *outside));
        let forwardings = nat.forwardings.iter().map(|(from, to)| Self::Forwarding(*from, *to));
        let outside = nat.floating.keys().copied().chain(nat.forwardings.keys().map(|from| from.address));
        let counted = outside.flat_map(|address| [Self::Inward(address), Self::Outward(address)]);
        floating.chain(sources).chain(forwardings).chain(counted).collect()
    }

    fn map(self) -> Map {
        match self {
            Self::Floating(..) => FLOATING,
            Self::Source(..) => SOURCES,
            Self::Forwarding(..) => FORWARDINGS,
            Self::Inward(_) => INWARD,
            Self::Outward(_) => OUTWARD,
        }
    }

    /// As an item of a map's list: parts of keys and data are padded to 4 bytes.
    fn attributes(self, with_data: bool) -> Attributes {
        let (key, data) = match self {
            Self::Floating(from, to) | Self::Source(from, to) => {
                (from.octets().to_vec(), to.octets().to_vec())
            }
            Self::Forwarding(from, (address, port)) => {
                let [high, low] = from.port.to_be_bytes();
                let key = [from.address.octets(), [from.protocol, 0, 0, 0], [high, low, 0, 0]].concat();
                let [high, low] = port.to_be_bytes();
                (key, [address.octets(), [high, low, 0, 0]].concat())
            }
            Self::Inward(address) | Self::Outward(address) => (address.octets().to_vec(), Vec::new()),
        };
        let value = |bytes: &[u8]| Attributes::new().put(1, bytes);
        let item = Attributes::new().nested(1, &value(&key));
        if with_data && !data.is_empty() { item.nested(2, &value(&data)) } else { item }
    }
}

/// Reads an item of a map's list into what it is a part of; what [`Element::attributes`] never makes is passed over.
fn decode(nat: &mut Nat, map: &str, item: &[u8]) -> Option<()> {
    let parts = parts_of(item);
    let value_of = |kind| parts.get(&kind).and_then(|part| parts_of(part).remove(&1));
    let (key, data) = (value_of(1)?, value_of(2)?);
    let address = |bytes: &[u8]| Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(..4)?).ok()?));
    let port = |bytes: &[u8]| Some(u16::from_be_bytes(bytes.get(..2)?.try_into().ok()?));
    if map == FLOATING.name {
        nat.floating.insert(address(&key)?, address(&data)?);
    } else if map == FORWARDINGS.name {
        let from = Forwarding { address: address(&key)?, protocol: *key.get(4)?, port: port(key.get(8..)?)? };
        nat.forwardings.insert(from, (address(&data)?, port(data.get(4..)?)?));
    }
    Some(())
}

#[derive(Debug)]
struct Chain {
    name: &'static str,
    kind: &'static str,
    hook: u32,
    priority: i32,
    rules: Vec<Vec<Expression>>,
}

fn chains(outside: Option<&Outside>) -> Vec<Chain> {
    let chain = |name, kind, hook, priority, rules| Chain { name, kind, hook, priority, rules };
    let counted = |key, offset, map| outside.map(|outside| count_rule(outside, key, offset, map));
    let (inward, outward) = (counted(Meta::InputName, 16, INWARD), counted(Meta::OutputName, 12, OUTWARD));
    vec![
        chain("count_in", "filter", HOOK_PREROUTING, -160, inward.into_iter().collect()),
        chain("count_out", "filter", HOOK_POSTROUTING, 150, outward.into_iter().collect()),
        chain("mark", "filter", HOOK_PREROUTING, -150, outside.map(mark_rule).into_iter().collect()),
        chain("inward", "nat", HOOK_PREROUTING, -100, inward_rules()),
        chain("forward", "filter", HOOK_FORWARD, 0, outside.and_then(forward_rule).into_iter().collect()),
        chain("outward", "nat", HOOK_POSTROUTING, 100, outside.map(outward_rules).unwrap_or_default()),
    ]
}

fn mark_rule(outside: &Outside) -> Vec<Expression> {
    let mark = Expression::Immediate { to: FIRST, value: FROM_OUTSIDE.to_ne_bytes().to_vec() };
    [link(Meta::InputName, &outside.link, true), vec![mark, Expression::SetMark { from: FIRST }]].concat()
}

/// What is looked up is counted.
fn count_rule(outside: &Outside, key: Meta, offset: u32, set: Map) -> Vec<Expression> {
    let address = Expression::Payload { base: Base::Network, offset, length: 4, to: FIRST };
    let lookup = Expression::Lookup { set: set.name, contained: true };
    [link(key, &outside.link, true), vec![address, lookup]].concat()
}

/// IPv4 (RFC 791): source (at 12), destination (at 16); the target's port is at 2 of what follows.
fn inward_rules() -> Vec<Vec<Expression>> {
    let to_address = Expression::Translate { kind: Translation::Destination, address: FIRST, port: None };
    let to_port =
        Expression::Translate { kind: Translation::Destination, address: FIRST, port: Some(SECOND_WORD) };
    let destination = || Expression::Payload { base: Base::Network, offset: 16, length: 4, to: FIRST };
    vec![
        vec![destination(), Expression::Map { map: FLOATING.name, to: FIRST }, to_address],
        vec![
            destination(),
            Expression::Meta { key: Meta::Protocol, to: SECOND_WORD },
            Expression::Payload { base: Base::Transport, offset: 2, length: 2, to: THIRD_WORD },
            Expression::Map { map: FORWARDINGS.name, to: FIRST },
            to_port,
        ],
    ]
}

fn forward_rule(outside: &Outside) -> Option<Vec<Expression>> {
    outside.hide_behind?;
    let is_new = [vec![Expression::ConnectionState { to: FIRST }], has_bit(STATE_NEW, true)].concat();
    let verdict = vec![Expression::Verdict(Verdict::Drop)];
    Some([link(Meta::InputName, &outside.link, true), is_new, is_translated(false), verdict].concat())
}

fn outward_rules(outside: &Outside) -> Vec<Vec<Expression>> {
    let source = Expression::Payload { base: Base::Network, offset: 12, length: 4, to: FIRST };
    let as_that = || Expression::Translate { kind: Translation::Source, address: FIRST, port: None };
    let stays = vec![Expression::Verdict(Verdict::Accept)];
    let mut rules = vec![
        [link(Meta::OutputName, &outside.link, false), is_translated(false), stays].concat(),
        vec![source, Expression::Map { map: SOURCES.name, to: FIRST }, as_that()],
    ];
    if let Some(address) = outside.hide_behind {
        let own = || vec![Expression::Immediate { to: FIRST, value: address.octets().to_vec() }, as_that()];
        let from_inside = vec![
            Expression::Meta { key: Meta::Mark, to: FIRST },
            Expression::Compare { register: FIRST, equal: true, value: vec![0; 4] },
        ];
        rules.push([link(Meta::OutputName, &outside.link, true), own()].concat());
        rules.push([from_inside, own()].concat());
    }
    rules
}

/// The packet's link is the one of that name, or is not.
pub(super) fn link(key: Meta, name: &str, equal: bool) -> Vec<Expression> {
    let mut value = name.as_bytes().to_vec();
    value.resize(16, 0);
    vec![Expression::Meta { key, to: FIRST }, Expression::Compare { register: FIRST, equal, value }]
}

fn is_translated(is: bool) -> Vec<Expression> {
    [vec![Expression::ConnectionStatus { to: FIRST }], has_bit(STATUS_TRANSLATED, is)].concat()
}

fn has_bit(bit: u32, has: bool) -> Vec<Expression> {
    vec![
        Expression::Mask { register: FIRST, and: bit.to_ne_bytes().to_vec(), xor: vec![0; 4] },
        Expression::Compare { register: FIRST, equal: !has, value: vec![0; 4] },
    ]
}

/// A line that changes with the rules, and tells the outside they were made for; kept as the table's comment.
fn comment(outside: Option<&Outside>) -> String {
    let hash = super::text_hash(&[format!("{MAPS:?}"), format!("{:?}", chains(outside))]);
    let (link, address) = match outside {
        None => ("-", "-".to_owned()),
        Some(outside) => (
            outside.link.as_str(),
            outside.hide_behind.map_or_else(|| "-".to_owned(), |address| address.to_string()),
        ),
    };
    format!("wisp nat {hash:016x} {link} {address}")
}

/// The outside that a comment tells, where it is one of this version's.
fn outside_of(told: &str) -> Option<Option<Outside>> {
    let mut words = told.rsplit(' ');
    let (address, link) = (words.next()?, words.next()?);
    let outside = (link != "-").then(|| Outside { link: link.to_owned(), hide_behind: address.parse().ok() });
    (comment(outside.as_ref()) == told).then_some(outside)
}

/// What a router's tables beside that of translation do: what is held, and what those that count and mark say of themselves.
#[derive(Debug)]
pub(crate) struct Beside {
    pub(crate) limits: Option<Limits>,
    pub(crate) meters: Option<String>,
    pub(crate) marks: Option<String>,
}

/// An nf_tables socket in a router's namespace.
#[derive(Debug)]
pub(crate) struct Client {
    pub(super) connection: Connection,
}

impl Client {
    /// Opens a socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// If there is no nfnetlink.
    pub(crate) fn open() -> Result<Self, Error> {
        Ok(Self { connection: Connection::open(NETLINK_NETFILTER)? })
    }

    /// Works with an open socket of nfnetlink.
    pub(crate) fn of(socket: OwnedFd) -> Self {
        Self { connection: Connection::of(socket) }
    }

    /// What is translated; nothing if the table is missing or not as this version makes it.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub(crate) fn observe(&mut self) -> Result<Option<Nat>, Error> {
        let Some(outside) = self.told(FAMILY)?.get(TABLE).and_then(|told| outside_of(told)) else {
            return Ok(None);
        };
        let mut nat = Nat { outside, ..Nat::default() };
        for map in [FLOATING, FORWARDINGS] {
            let Some(items) = self.items(map)? else { return Ok(None) };
            for item in items {
                decode(&mut nat, map.name, &item);
            }
        }
        Ok(Some(nat))
    }

    /// What the tables beside that of translation do.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub(crate) fn observe_beside(&mut self) -> Result<Beside, Error> {
        let mut told = self.told(Family::Inet)?;
        let limits = told.get(limit::TABLE).map(|told| self.observe_limits(told)).transpose()?;
        Ok(Beside { limits, meters: told.remove(meter::TABLE), marks: told.remove(mark::TABLE) })
    }

    /// The comments of the tables of the namespace.
    fn told(&mut self, family: Family) -> Result<BTreeMap<String, String>, Error> {
        let request = body(family, &Attributes::new());
        let tables = self.connection.dump("tables of a router", kind(NFT_MSG_GETTABLE), &request)?;
        let told = tables.iter().filter_map(|message| {
            let table = attributes_of(&message.body);
            let comment = table.get(&6).and_then(|data| data.get(2..)).map(text).unwrap_or_default();
            Some((text(table.get(&1)?), comment))
        });
        Ok(told.collect())
    }

    /// What a map or set holds, if it is there.
    fn items(&mut self, map: Map) -> Result<Option<Vec<Vec<u8>>>, Error> {
        let request = body(FAMILY, &Attributes::new().text(1, TABLE).text(2, map.name));
        let received = match self.connection.dump("translations", kind(NFT_MSG_GETSETELEM), &request) {
            Err(error) if error.refusal() == Some(libc::ENOENT) => return Ok(None),
            received => received?,
        };
        let lists = received.iter().filter_map(|message| attributes_of(&message.body).remove(&3));
        let items = lists.flat_map(|list| {
            let items = NlasIterator::new(list.as_slice()).flatten().map(|item| item.value().to_vec());
            items.collect::<Vec<_>>()
        });
        Ok(Some(items.collect()))
    }

    /// What came for each address outside and left from it.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub(crate) fn counts(&mut self) -> Result<BTreeMap<Ipv4Addr, (Count, Count)>, Error> {
        let mut counts: BTreeMap<Ipv4Addr, (Count, Count)> = BTreeMap::new();
        for map in [INWARD, OUTWARD] {
            for item in self.items(map)?.unwrap_or_default() {
                let parts = parts_of(&item);
                let key = parts.get(&1).and_then(|key| parts_of(key).remove(&1));
                let key = key.and_then(|key| <[u8; 4]>::try_from(key).ok());
                let count = parts.get(&ELEMENT_EXPRESSION).and_then(|expression| read_count(expression));
                let (Some(key), Some(count)) = (key, count) else { continue };
                let (inward, outward) = counts.entry(key.into()).or_default();
                *(if map.name == INWARD.name { inward } else { outward }) = count;
            }
        }
        Ok(counts)
    }

    /// Makes the table anew, at once.
    ///
    /// # Errors
    /// The kernel's first refusal; then nothing has changed.
    pub(crate) fn rebuild(&mut self, nat: &Nat) -> Result<(), Error> {
        let mut transaction = Transaction::default();
        let subject = || format!("create translation table {TABLE}");
        let table = Attributes::new().text(1, TABLE);
        transaction.push(subject(), NFT_MSG_NEWTABLE, NLM_F_CREATE, FAMILY, &table);
        transaction.push(subject(), NFT_MSG_DELTABLE, 0, FAMILY, &table);
        let comment = super::comment_attribute(&comment(nat.outside.as_ref()));
        transaction.push(subject(), NFT_MSG_NEWTABLE, NLM_F_CREATE, FAMILY, &table.put(6, &comment));
        for (index, map) in MAPS.iter().enumerate() {
            const MAP: u32 = 8;
            let attributes = Attributes::new()
                .text(1, TABLE)
                .text(2, map.name)
                .number(3, if map.data.is_some() { MAP } else { 0 })
                .number(4, map.key.0)
                .number(5, map.key.1)
                .number(10, index as u32 + 1);
            let attributes = match map.data {
                Some((kind, length)) => attributes.number(6, kind).number(7, length),
                None => attributes.nested(SET_EXPRESSION, &Expression::Count.encode()),
            };
            transaction.push(subject(), NFT_MSG_NEWSET, NLM_F_CREATE, FAMILY, &attributes);
        }
        for chain in chains(nat.outside.as_ref()) {
            let hook = Attributes::new().number(1, chain.hook).number(2, chain.priority.cast_unsigned());
            let named = Attributes::new().text(1, TABLE).text(3, chain.name);
            let attributes = named.nested(4, &hook).number(5, 1).text(7, chain.kind);
            transaction.push(subject(), NFT_MSG_NEWCHAIN, NLM_F_CREATE, FAMILY, &attributes);
            for rule in &chain.rules {
                let rule = Attributes::new().text(1, TABLE).text(2, chain.name).nested(4, &encode_rule(rule));
                transaction.push(subject(), NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, FAMILY, &rule);
            }
        }
        push_elements(&mut transaction, true, &Element::all(nat));
        self.connection.transaction(&transaction.into_messages())
    }

    /// Changes what is translated, for the same outside.
    ///
    /// # Errors
    /// The kernel's first refusal; then nothing has changed.
    pub(crate) fn change(&mut self, from: &Nat, to: &Nat) -> Result<(), Error> {
        let (before, after) = (Element::all(from), Element::all(to));
        let mut transaction = Transaction::default();
        push_elements(&mut transaction, false, &before.difference(&after).copied().collect());
        push_elements(&mut transaction, true, &after.difference(&before).copied().collect());
        if transaction.is_empty() {
            return Ok(());
        }
        self.connection.transaction(&transaction.into_messages())
    }
}

impl Client {
    /// Ends the connections through the router for whose two directions `is_to_end` holds.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub(crate) fn end_connections(
        &mut self,
        is_to_end: impl Fn(&Tuple, &Tuple) -> bool,
    ) -> Result<(), Error> {
        // IPv4 alone is translated.
        conntrack::end(&mut self.connection, conntrack::Family::Ipv4, |_, begun, answered| {
            is_to_end(begun, answered)
        })
    }
}

fn push_elements(transaction: &mut Transaction, add: bool, elements: &BTreeSet<Element>) {
    let (message, flags, verb) = match add {
        true => (NFT_MSG_NEWSETELEM, NLM_F_CREATE, "add to"),
        false => (NFT_MSG_DELSETELEM, 0, "remove from"),
    };
    for map in MAPS {
        let of_map: Vec<_> = elements.iter().filter(|element| element.map().name == map.name).collect();
        for part in of_map.chunks(ELEMENTS_PER_MESSAGE_MAX) {
            let items = part.iter().map(|element| element.attributes(add));
            let list = items.fold(Attributes::new(), |list, item| list.nested(1, &item));
            let attributes = Attributes::new().text(1, TABLE).text(2, map.name).nested(3, &list);
            let subject = format!("{verb} translation map {}", map.name);
            transaction.push(subject, message, flags, FAMILY, &attributes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comment_tells_the_outside_of_this_version_only() {
        let outside = Outside { link: "wr7e57-00000001".into(), hide_behind: Some([203, 0, 113, 2].into()) };
        let routed = Outside { hide_behind: None, ..outside.clone() };
        for outside in [None, Some(outside), Some(routed)] {
            let told = comment(outside.as_ref());
            assert_eq!(outside_of(&told), Some(outside));
            assert_eq!(outside_of(&told.replace("wisp nat ", "wisp nat 0")), None);
        }
        assert_eq!(outside_of(""), None);
        assert_eq!(outside_of("wisp nat"), None);
    }

    #[test]
    fn inside_with_two_floating_addresses_is_one_source() {
        let inside = Ipv4Addr::new(10, 0, 0, 5);
        let floating = [([203, 0, 113, 5].into(), inside), ([203, 0, 113, 6].into(), inside)].into();
        let elements = Element::all(&Nat { floating, ..Nat::default() });
        let sources = elements.iter().filter(|element| matches!(element, Element::Source(..)));
        assert_eq!(sources.count(), 1);
    }
}
