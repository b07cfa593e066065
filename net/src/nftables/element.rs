//! Facts as set elements, and back.

use std::net::IpAddr;

use ipnet::IpNet;

use super::comment_attribute;
use super::message::{Attributes, Expression, Family, Verdict};
use super::sets::{self, Data, Set};
use crate::filter::{Element, Policy, Target};
use crate::netlink::{parts_of, text};
use crate::spec::Direction;

/// An interface's name in a key, in bytes.
const INTERFACE_SIZE: usize = 16;

/// An element's place and content. Parts of a key are padded to 4 bytes.
#[derive(Debug)]
pub(super) struct Encoded {
    pub(super) set: Set,
    key: Vec<u8>,
    /// The last key of a range.
    key_end: Option<Vec<u8>>,
    /// What a map gives for the key.
    data: Option<Attributes>,
    /// What is kept with it for whoever lists it.
    comment: Option<String>,
}

impl Encoded {
    /// As an item of a set's list of elements; to find an element its key is enough.
    pub(super) fn attributes(&self, with_data: bool) -> Attributes {
        let value = |bytes: &[u8]| Attributes::new().put(1, bytes);
        let mut attributes = Attributes::new().nested(1, &value(&self.key));
        if let Some(data) = self.data.as_ref().filter(|_| with_data) {
            attributes = attributes.nested(2, data);
        }
        if let Some(comment) = self.comment.as_ref().filter(|_| with_data) {
            attributes = attributes.put(6, &comment_attribute(comment));
        }
        match &self.key_end {
            Some(end) => attributes.nested(10, &value(end)),
            None => attributes,
        }
    }
}

pub(super) fn encode(element: &Element) -> Encoded {
    let key = |value: &[u8]| {
        let mut key = interface_key(element.link());
        key.extend_from_slice(value);
        key.resize(key.len().next_multiple_of(4), 0);
        key
    };
    let bare = |set, key| Encoded { set, key, key_end: None, data: None, comment: None };
    let plain = |set, value: &[u8]| bare(set, key(value));
    let range = |set, first: &[u8], last: &[u8]| Encoded { key_end: Some(key(last)), ..plain(set, first) };
    match element {
        Element::Open(_) => plain(sets::OPEN, &[]),
        Element::Mac(_, mac) => plain(sets::MACS, mac),
        Element::Ipv4(_, address) => plain(sets::IPV4, &address.octets()),
        Element::Ipv4Prefix(_, net) => {
            range(sets::IPV4_PREFIXES, &net.network().octets(), &net.broadcast().octets())
        }
        Element::Ipv6Port(_) => plain(sets::IPV6_PORTS, &[]),
        Element::Ipv6(_, address) => plain(sets::IPV6, &address.octets()),
        Element::Ipv6Prefix(_, net) => {
            range(sets::IPV6_PREFIXES, &net.network().octets(), &net.broadcast().octets())
        }
        Element::Policy(_, policy) => {
            let data = Attributes::new().put(1, &policy.octets());
            Encoded { data: Some(data), ..plain(sets::POLICIES, &[]) }
        }
        Element::Stateless(_) => plain(sets::STATELESS, &[]),
        Element::Target(tap, bridge, mac, target) => {
            let set = if *target == Target::Tracked { sets::TRACKED } else { sets::UNTRACKED };
            let mut key = interface_key(bridge);
            key.extend_from_slice(mac);
            key.resize(key.len().next_multiple_of(4), 0);
            Encoded { comment: Some(tap.clone()), ..bare(set, key) }
        }
        Element::Bridged(link) => plain(sets::BRIDGED, &interface_key(link)),
        Element::Gateway(_) => plain(sets::GATEWAYS, &[]),
        Element::Zone(_, zone) | Element::BridgeZone(_, zone) => {
            let set = if matches!(element, Element::Zone(..)) { sets::ZONES } else { sets::BRIDGE_ZONES };
            let data = Attributes::new().put(1, &zone.to_ne_bytes());
            Encoded { data: Some(data), ..plain(set, &[]) }
        }
        Element::Member(number, net) => member(*number, *net),
    }
}

/// A group's member: a prefix from its first address to its last, an address alone.
fn member(number: u32, net: IpNet) -> Encoded {
    let key = |address: IpAddr| {
        let octets = match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        [&number.to_be_bytes()[..], &octets].concat()
    };
    let is_single = net.prefix_len() == net.max_prefix_len();
    let set = match (net, is_single) {
        (IpNet::V4(_), true) => sets::MEMBERS_IPV4,
        (IpNet::V4(_), false) => sets::MEMBERS_IPV4_PREFIXES,
        (IpNet::V6(_), true) => sets::MEMBERS_IPV6,
        (IpNet::V6(_), false) => sets::MEMBERS_IPV6_PREFIXES,
    };
    let key_end = (!is_single).then(|| key(net.broadcast()));
    Encoded { set, key: key(net.network()), key_end, data: None, comment: None }
}

/// The member in a key, and in a range's last one.
fn read_member(key: &[u8], end: Option<&[u8]>) -> Option<Element> {
    let (number, address) = key.split_first_chunk::<4>()?;
    let last = end.map_or(Some(address), |end| end.get(4..))?;
    let net = match (<[u8; 4]>::try_from(address), <[u8; 16]>::try_from(address)) {
        (Ok(first), _) => {
            let bits = u32::from_be_bytes(first) ^ u32::from_be_bytes(last.try_into().ok()?);
            IpNet::new(IpAddr::from(first), bits.leading_zeros() as u8)
        }
        (_, Ok(first)) => {
            let bits = u128::from_be_bytes(first) ^ u128::from_be_bytes(last.try_into().ok()?);
            IpNet::new(IpAddr::from(first), bits.leading_zeros() as u8)
        }
        _ => return None,
    };
    Some(Element::Member(u32::from_be_bytes(*number), net.ok()?))
}

/// The map in which a direction's policies lead to their chains.
pub(super) fn map_of_policies(direction: Direction) -> Set {
    match direction {
        Direction::Egress => sets::EGRESS,
        Direction::Ingress => sets::INGRESS,
    }
}

/// A policy's way to its chain, as an item of [`map_of_policies`].
pub(super) fn encode_policy(direction: Direction, policy: Policy) -> Encoded {
    let data = Expression::verdict_data(&Verdict::Jump(policy.chain(direction)));
    Encoded {
        set: map_of_policies(direction),
        key: policy.octets().to_vec(),
        key_end: None,
        data: Some(data),
        comment: None,
    }
}

/// The policy in an item of [`map_of_policies`].
pub(super) fn decode_policy(item: &[u8]) -> Option<Policy> {
    let key = parts_of(item).remove(&1).and_then(|key| parts_of(&key).remove(&1))?;
    Some(Policy::from_octets(key.try_into().ok()?))
}

fn interface_key(name: &str) -> Vec<u8> {
    let mut key = name.as_bytes().to_vec();
    key.resize(INTERFACE_SIZE, 0);
    key
}

/// The fact in an item of a set's list of elements; nothing for what [`encode`] never makes.
pub(super) fn decode(set: Set, item: &[u8]) -> Option<Element> {
    let parts = parts_of(item);
    let value_of = |kind| parts.get(&kind).and_then(|part| parts_of(part).remove(&1));
    let key = value_of(1)?;
    if [sets::MEMBERS_IPV4, sets::MEMBERS_IPV4_PREFIXES, sets::MEMBERS_IPV6, sets::MEMBERS_IPV6_PREFIXES]
        .contains(&set)
    {
        return read_member(&key, value_of(10).as_deref());
    }
    let (name, value) = key.split_at_checked(INTERFACE_SIZE)?;
    let name = text(name);
    let end = || value_of(10).and_then(|end| end.get(INTERFACE_SIZE..).map(<[u8]>::to_vec));
    let comment = || parts.get(&6).and_then(|data| data.get(2..)).map(text);
    match set {
        sets::OPEN => Some(Element::Open(name)),
        sets::MACS => Some(Element::Mac(name, value.get(..6)?.try_into().ok()?)),
        sets::IPV4 => Some(Element::Ipv4(name, <[u8; 4]>::try_from(value).ok()?.into())),
        sets::IPV4_PREFIXES => {
            let first = u32::from_be_bytes(value.try_into().ok()?);
            let length = (first ^ u32::from_be_bytes(end()?.try_into().ok()?)).leading_zeros();
            Some(Element::Ipv4Prefix(name, ipnet::Ipv4Net::new(first.into(), length as u8).ok()?))
        }
        sets::IPV6_PORTS => Some(Element::Ipv6Port(name)),
        sets::IPV6 => Some(Element::Ipv6(name, <[u8; 16]>::try_from(value).ok()?.into())),
        sets::IPV6_PREFIXES => {
            let first = u128::from_be_bytes(value.try_into().ok()?);
            let length = (first ^ u128::from_be_bytes(end()?.try_into().ok()?)).leading_zeros();
            Some(Element::Ipv6Prefix(name, ipnet::Ipv6Net::new(first.into(), length as u8).ok()?))
        }
        sets::POLICIES => {
            Some(Element::Policy(name, Policy::from_octets(value_of(2)?.as_slice().try_into().ok()?)))
        }
        sets::STATELESS => Some(Element::Stateless(name)),
        sets::TRACKED | sets::UNTRACKED => {
            let target = if set == sets::TRACKED { Target::Tracked } else { Target::Untracked };
            Some(Element::Target(comment()?, name, value.get(..6)?.try_into().ok()?, target))
        }
        sets::BRIDGED => Some(Element::Bridged(name)),
        sets::GATEWAYS => Some(Element::Gateway(name)),
        sets::ZONES | sets::BRIDGE_ZONES => {
            let zone = u16::from_ne_bytes(value_of(2)?.get(..2)?.try_into().ok()?);
            let make = if set == sets::ZONES { Element::Zone } else { Element::BridgeZone };
            Some(make(name, zone))
        }
        _ => None,
    }
}

/// A set's own attributes.
pub(super) fn set_attributes(table: &str, set: Set, id: u32) -> Attributes {
    const INTERVAL: u32 = 4;
    const MAP: u32 = 8;
    const CONCATENATED: u32 = 0x80;
    const VERDICTS: u32 = 0xffff_ff00;
    let key_type = set.fields.iter().fold(0, |key, (kind, _)| key << 6 | kind);
    let key_length: u32 = set.fields.iter().map(|(_, length)| length.next_multiple_of(4)).sum();
    let mut flags = if set.ranges { INTERVAL | CONCATENATED } else { 0 };
    flags |= if set.data.is_some() { MAP } else { 0 };
    let mut attributes = Attributes::new()
        .text(1, table)
        .text(2, set.name)
        .number(3, flags)
        .number(4, key_type)
        .number(5, key_length)
        .number(10, id);
    attributes = match set.data {
        None => attributes,
        // Type (nft's "integer") and length in bytes.
        Some(Data::Zone) => attributes.number(6, 4).number(7, 2),
        Some(Data::Policy) => attributes.number(6, 4).number(7, 16),
        Some(Data::Verdict) => attributes.number(6, VERDICTS).number(7, 0),
    };
    if set.ranges {
        let fields = set.fields.iter().fold(Attributes::new(), |fields, (_, length)| {
            fields.nested(1, &Attributes::new().number(1, *length))
        });
        attributes = attributes.nested(9, &Attributes::new().nested(2, &fields));
    }
    attributes
}

/// The family a group's chains are in.
pub(super) const GROUPS_FAMILY: Family = Family::Bridge;
