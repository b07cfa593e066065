//! Connections that the kernel tracks, through nfnetlink (`linux/netfilter/nfnetlink_conntrack.h`): for ending those
//! that a change of translations or of rules has taken the ground from. Knows neither why nor whose.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::netlink::{Connection, Error, Message};

const SUBSYSTEM: u16 = 1;
const GET: u16 = SUBSYSTEM << 8 | 1;
const DELETE: u16 = SUBSYSTEM << 8 | 2;

/// `struct nfgenmsg`: family (1 byte), version, resource (2 bytes).
const HEADER_SIZE: usize = 4;

/// A family of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    Ipv4 = libc::AF_INET as isize,
    Ipv6 = libc::AF_INET6 as isize,
}

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;

/// One direction of a tracked connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tuple {
    pub(crate) source: IpAddr,
    pub(crate) target: IpAddr,
    /// The IP protocol number.
    pub(crate) protocol: u8,
    /// The target's port; 0 where the protocol has none.
    pub(crate) target_port: u16,
    /// Type and code of ICMP and ICMPv6.
    pub(crate) kind: Option<(u8, u8)>,
}

/// Ends every tracked connection of a family for whose zone and two directions, as it began and as it is answered,
/// `is_to_end` holds.
///
/// # Errors
/// As [`Error`] says.
pub(crate) fn end(
    connection: &mut Connection,
    family: Family,
    is_to_end: impl Fn(u16, &Tuple, &Tuple) -> bool,
) -> Result<(), Error> {
    let header = [family as u8, 0, 0, 0];
    let tracked = connection.dump("tracked connections", GET, &header)?;
    let mut messages = Vec::new();
    for entry in &tracked {
        let attributes = entry.body.get(HEADER_SIZE..).unwrap_or_default();
        let part = |kind| value_of(attributes, kind);
        let (Some(original), Some(reply)) = (part(CTA_TUPLE_ORIG), part(CTA_TUPLE_REPLY)) else { continue };
        let zone = part(CTA_ZONE).and_then(|zone| zone.try_into().ok()).map_or(0, u16::from_be_bytes);
        let ends = tuple(original).zip(tuple(reply)).is_some_and(|(a, b)| is_to_end(zone, &a, &b));
        if ends {
            let mut body = header.to_vec();
            put(&mut body, CTA_TUPLE_ORIG | NESTED, original);
            if let Some(zone) = part(CTA_ZONE) {
                put(&mut body, CTA_ZONE, zone);
            }
            messages.push(Message {
                subject: "end a tracked connection".to_owned(),
                kind: DELETE,
                flags: 0,
                body,
            });
        }
    }
    for batch in messages.chunks(MESSAGES_MAX) {
        // One that has ended meanwhile is what was wanted.
        let refused = connection.acknowledged(batch)?;
        let refused = refused.into_iter().find(|error| error.refusal() != Some(libc::ENOENT));
        refused.map_or(Ok(()), Err)?;
    }
    Ok(())
}

/// Messages sent in one call: their answers must fit the socket's receive buffer.
const MESSAGES_MAX: usize = 128;

fn value_of(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    let mut rest = attributes;
    while let Some((header, _)) = rest.split_first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let value = rest.get(4..length)?;
        if u16::from_ne_bytes([header[2], header[3]]) & !NESTED == kind {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    None
}

fn put(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len() + 4).expect("invariant: the kernel's own attributes fit");
    body.extend_from_slice(&length.to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

fn tuple(attributes: &[u8]) -> Option<Tuple> {
    let ip = value_of(attributes, CTA_TUPLE_IP)?;
    let protocol = value_of(attributes, CTA_TUPLE_PROTO)?;
    // IPv4's source is 1 and its target 2 among addresses, IPv6's 3 and 4; number is 1, source's port 2 and target's 3 among
    // the protocol's, type and code 5 and 6 of ICMP, 8 and 9 of ICMPv6.
    let v4 = |kind| Some(Ipv4Addr::from(<[u8; 4]>::try_from(value_of(ip, kind)?).ok()?).into());
    let v6 = |kind| Some(Ipv6Addr::from(<[u8; 16]>::try_from(value_of(ip, kind)?).ok()?).into());
    let byte = |kind| value_of(protocol, kind).and_then(|value| value.first().copied());
    let port = value_of(protocol, 3).and_then(|port| port.try_into().ok()).map(u16::from_be_bytes);
    Some(Tuple {
        source: v4(1).or_else(|| v6(3))?,
        target: v4(2).or_else(|| v6(4))?,
        protocol: byte(1)?,
        target_port: port.unwrap_or(0),
        kind: byte(5).zip(byte(6)).or_else(|| byte(8).zip(byte(9))),
    })
}
