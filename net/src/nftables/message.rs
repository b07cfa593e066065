//! nf_tables messages as bytes: attributes, expressions, transactions (`linux/netfilter/nf_tables.h`). Knows no rule
//! of ours.

use super::Message;
use crate::netlink::{parts_of, text};
use crate::spec::Count;

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;

pub(super) const NFT_MSG_NEWTABLE: u16 = 0;
pub(super) const NFT_MSG_GETTABLE: u16 = 1;
pub(super) const NFT_MSG_DELTABLE: u16 = 2;
pub(super) const NFT_MSG_NEWCHAIN: u16 = 3;
pub(super) const NFT_MSG_GETCHAIN: u16 = 4;
pub(super) const NFT_MSG_DELCHAIN: u16 = 5;
pub(super) const NFT_MSG_NEWRULE: u16 = 6;
pub(super) const NFT_MSG_GETRULE: u16 = 7;
pub(super) const NFT_MSG_DELRULE: u16 = 8;
pub(super) const NFT_MSG_NEWSET: u16 = 9;
pub(super) const NFT_MSG_NEWSETELEM: u16 = 12;
pub(super) const NFT_MSG_GETSETELEM: u16 = 13;
pub(super) const NFT_MSG_DELSETELEM: u16 = 14;

/// `NFT_CT_STATE`, `NFT_CT_STATUS` and `NFT_CT_ZONE`.
const CT_STATE: u32 = 0;
const CT_STATUS: u32 = 2;
const CT_ZONE: u32 = 17;

/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;

/// A protocol family with tables of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    /// IPv4 and IPv6.
    Inet = 1,
    /// IPv4 alone.
    Ipv4 = 2,
    /// Frames on bridges.
    Bridge = 7,
}

/// Attributes in the making.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Attributes(pub(super) Vec<u8>);

impl Attributes {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Appends an attribute: length (2 bytes, of header and value), type (2 bytes), value, padding to 4 bytes.
    pub(super) fn put(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len() + 4).expect("invariant: callers keep attributes under 64 KiB");
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.put(kind, &bytes)
    }

    pub(super) fn number(self, kind: u16, value: u32) -> Self {
        self.put(kind, &value.to_be_bytes())
    }

    pub(super) fn nested(self, kind: u16, inner: &Self) -> Self {
        self.put(kind | NESTED, &inner.0)
    }
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Accept,
    Drop,
    /// On with that chain, then back here.
    Jump(String),
    /// On with that chain, then back to whoever jumped here.
    Goto(&'static str),
    Return,
}

/// Where a payload's offset counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Base {
    Link = 0,
    Network = 1,
    Transport = 2,
}

/// What is known of a packet beside its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meta {
    Mark = 3,
    InputName = 6,
    OutputName = 7,
    /// 2 for IPv4, 10 for IPv6.
    Family = 15,
    Protocol = 16,
    /// In the bridge family: the bridge that the packet came into.
    InputBridge = 17,
}

/// Registers of 16 bytes; a concatenated key starts in the first and runs on.
pub(super) const FIRST: u32 = 1;
pub(super) const SECOND: u32 = 2;
/// Registers of 4 bytes, the second, third and fourth of those that [`FIRST`] is made of.
pub(super) const SECOND_WORD: u32 = 9;
pub(super) const THIRD_WORD: u32 = 10;
pub(super) const FOURTH_WORD: u32 = 11;

/// Which of a packet's addresses is translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Translation {
    Source = 0,
    Destination = 1,
}

/// One step of a rule: the rule ends unnoticed where a step does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Expression {
    Meta {
        key: Meta,
        to: u32,
    },
    SetMark {
        from: u32,
    },
    /// These bytes.
    Immediate {
        to: u32,
        value: Vec<u8>,
    },
    /// The packet's connection is translated to the IPv4 address in a register, and to the port in another.
    Translate {
        kind: Translation,
        address: u32,
        port: Option<u32>,
    },
    /// What has happened to the packet's connection, a bit each.
    ConnectionStatus {
        to: u32,
    },
    Payload {
        base: Base,
        offset: u32,
        length: u32,
        to: u32,
    },
    /// Part of the packet becomes what a register has; with the checksum at some place there (RFC 1071) made right.
    Rewrite {
        base: Base,
        offset: u32,
        length: u32,
        from: u32,
        checksum: Option<u32>,
    },
    /// The state of the packet's connection, a bit each.
    ConnectionState {
        to: u32,
    },
    /// The packet's connection is tracked under this zone.
    SetZone {
        from: u32,
    },
    Mask {
        register: u32,
        and: Vec<u8>,
        xor: Vec<u8>,
    },
    Compare {
        register: u32,
        equal: bool,
        value: Vec<u8>,
    },
    Range {
        register: u32,
        first: Vec<u8>,
        last: Vec<u8>,
    },
    /// The key that starts in [`FIRST`] is in the set, or is not.
    Lookup {
        set: &'static str,
        contained: bool,
    },
    /// What the map gives for the key that starts in [`FIRST`]: a verdict where `to` is 0.
    Map {
        map: &'static str,
        to: u32,
    },
    Verdict(Verdict),
    /// The packet is part of no connection.
    Untrack,
    /// The packet and its bytes are counted.
    Count,
    /// The packet is over what a bucket holds, which gets so many packets or bytes each second.
    Over {
        per_second: u64,
        burst: u32,
        of_bytes: bool,
    },
}

impl Expression {
    pub(super) fn encode(&self) -> Attributes {
        let new = Attributes::new;
        let value = |bytes: &[u8]| new().put(1, bytes);
        let (name, data) = match self {
            Self::Meta { key, to } => ("meta", new().number(1, *to).number(2, *key as u32)),
            Self::SetMark { from } => ("meta", new().number(2, Meta::Mark as u32).number(3, *from)),
            Self::Immediate { to, value: bytes } => {
                ("immediate", new().number(1, *to).nested(2, &value(bytes)))
            }
            Self::Translate { kind, address, port } => {
                let family = u32::from(Family::Ipv4 as u8);
                let data = new().number(1, *kind as u32).number(2, family).number(3, *address);
                ("nat", port.iter().fold(data, |data, port| data.number(5, *port)))
            }
            Self::ConnectionStatus { to } => ("ct", new().number(1, *to).number(2, CT_STATUS)),
            Self::Payload { base, offset, length, to } => (
                "payload",
                new().number(1, *to).number(2, *base as u32).number(3, *offset).number(4, *length),
            ),
            Self::Rewrite { base, offset, length, from, checksum } => {
                const INTERNET: u32 = 1;
                let data =
                    new().number(2, *base as u32).number(3, *offset).number(4, *length).number(5, *from);
                let sum = checksum.iter();
                ("payload", sum.fold(data, |data, at| data.number(6, INTERNET).number(7, *at)))
            }
            Self::ConnectionState { to } => ("ct", new().number(1, *to).number(2, CT_STATE)),
            Self::SetZone { from } => ("ct", new().number(2, CT_ZONE).number(4, *from)),
            Self::Mask { register, and, xor } => (
                "bitwise",
                new()
                    .number(1, *register)
                    .number(2, *register)
                    .number(3, and.len() as u32)
                    .nested(4, &value(and))
                    .nested(5, &value(xor)),
            ),
            Self::Compare { register, equal, value: bytes } => {
                ("cmp", new().number(1, *register).number(2, u32::from(!equal)).nested(3, &value(bytes)))
            }
            Self::Range { register, first, last } => (
                "range",
                new().number(1, *register).number(2, 0).nested(3, &value(first)).nested(4, &value(last)),
            ),
            Self::Lookup { set, contained } => {
                ("lookup", new().text(1, set).number(2, FIRST).number(5, u32::from(!contained)))
            }
            Self::Map { map, to } => ("lookup", new().text(1, map).number(2, FIRST).number(3, *to)),
            Self::Verdict(verdict) => {
                ("immediate", new().number(1, 0).nested(2, &Self::verdict_data(verdict)))
            }
            Self::Untrack => ("notrack", new()),
            Self::Count => ("counter", new()),
            Self::Over { per_second, burst, of_bytes } => {
                const SECONDS: u64 = 1;
                const OVER: u32 = 1;
                let rate = new().put(1, &per_second.to_be_bytes()).put(2, &SECONDS.to_be_bytes());
                ("limit", rate.number(3, *burst).number(4, u32::from(*of_bytes)).number(5, OVER))
            }
        };
        new().text(1, name).nested(2, &data)
    }

    /// A verdict as data: of a rule's end, or of a map's element.
    pub(super) fn verdict_data(verdict: &Verdict) -> Attributes {
        let code = |code: i32| Attributes::new().number(1, code.cast_unsigned());
        let verdict = match verdict {
            Verdict::Drop => code(0),
            Verdict::Accept => code(1),
            Verdict::Jump(chain) => code(-3).text(2, chain),
            Verdict::Goto(chain) => code(-4).text(2, chain),
            Verdict::Return => code(-5),
        };
        Attributes::new().nested(2, &verdict)
    }
}

/// What an expression has counted, as the kernel tells it; nothing if it is none that counts.
pub(super) fn read_count(expression: &[u8]) -> Option<Count> {
    let parts = parts_of(expression);
    parts.get(&1).filter(|name| text(name) == "counter")?;
    let data = parts_of(parts.get(&2)?);
    let number = |kind| Some(u64::from_be_bytes(data.get(&kind)?.as_slice().try_into().ok()?));
    Some(Count { bytes: number(1)?, packets: number(2)? })
}

/// What a bucket gets each second and its burst, as the kernel tells it; nothing if it is no bucket.
pub(super) fn read_limit(expression: &[u8]) -> Option<(u64, u32)> {
    let parts = parts_of(expression);
    parts.get(&1).filter(|name| text(name) == "limit")?;
    let data = parts_of(parts.get(&2)?);
    let per_second = u64::from_be_bytes(data.get(&1)?.as_slice().try_into().ok()?);
    Some((per_second, u32::from_be_bytes(data.get(&3)?.as_slice().try_into().ok()?)))
}

/// The expressions of a rule as one attribute's value.
pub(super) fn encode_rule(expressions: &[Expression]) -> Attributes {
    expressions.iter().fold(Attributes::new(), |list, expression| list.nested(1, &expression.encode()))
}

/// A message body: `struct nfgenmsg` (family, version, resource) and attributes.
pub(super) fn body(family: Family, attributes: &Attributes) -> Vec<u8> {
    let mut body = vec![family as u8, 0, 0, 0];
    body.extend_from_slice(&attributes.0);
    body
}

/// The netlink type of an nf_tables message.
pub(super) fn kind(message: u16) -> u16 {
    NFNL_SUBSYS_NFTABLES << 8 | message
}

/// Messages that the kernel takes all or none of.
#[derive(Debug, Default)]
pub(super) struct Transaction {
    messages: Vec<Message>,
}

impl Transaction {
    pub(super) fn push(
        &mut self,
        subject: String,
        message: u16,
        flags: u16,
        family: Family,
        attributes: &Attributes,
    ) {
        let body = body(family, attributes);
        self.messages.push(Message { subject, kind: kind(message), flags, body });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// The messages between a begin and an end.
    pub(super) fn into_messages(mut self) -> Vec<Message> {
        self.messages.insert(0, edge(NFNL_MSG_BATCH_BEGIN));
        self.messages.push(edge(NFNL_MSG_BATCH_END));
        self.messages
    }
}

fn edge(kind: u16) -> Message {
    let [high, low] = NFNL_SUBSYS_NFTABLES.to_be_bytes();
    Message { subject: "commit the packet filter".to_owned(), kind, flags: 0, body: vec![0, 0, high, low] }
}
