//! The code points (DSCP, RFC 2474) that a router writes into what it lets out, in a table of its own.
//!
//! | hook | rules |
//! |---|---|
//! | postrouting, 145 | what leaves by the link to the outside is given the code point of its address there |
//!
//! Translation has given it that address before. By IPv6 nothing is translated: all of it has one code point, if any. A code
//! point has a chain, and a map leads from addresses to these, so that a packet's cost does not grow with them. The table
//! remembers nothing, so any change makes it anew; its comment tells what it was made for.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE};

use super::limit::{HOOK_POSTROUTING, NFPROTO_IPV4, NFPROTO_IPV6, passes};
use super::message::{
    Attributes, Base, Expression, FIRST, Family, NFT_MSG_DELTABLE, NFT_MSG_NEWCHAIN, NFT_MSG_NEWRULE,
    NFT_MSG_NEWSET, NFT_MSG_NEWSETELEM, NFT_MSG_NEWTABLE, Transaction, Verdict, encode_rule,
};
use super::{ELEMENTS_PER_MESSAGE_MAX, nat};
use crate::netlink::Error;
use crate::spec::{Direction, InterfaceName, Router};

pub(super) const TABLE: &str = "wisp-marks";
const FAMILY: Family = Family::Inet;
const PRIORITY: i32 = 145;
/// The map from addresses to code points' chains.
const CODES: &str = "codes";

/// What is marked with what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marks {
    /// The link to the outside.
    outside: InterfaceName,
    addresses: BTreeMap<Ipv4Addr, u8>,
    /// The code point of IPv6.
    ipv6: Option<u8>,
}

/// A chain that nothing leads to by itself, or the one that all that leaves comes by: its name and rules.
type Chain = (String, Vec<Vec<Expression>>);

impl Marks {
    /// A router's; none without a way out or anything to mark.
    #[must_use]
    pub fn of(router: &Router) -> Option<Self> {
        let outside = router.nat.outside.as_ref().filter(|_| !router.marks.is_empty())?;
        let addresses = router.marks.iter().filter_map(|(address, code)| match address {
            IpAddr::V4(address) => Some((*address, *code)),
            IpAddr::V6(_) => None,
        });
        let ipv6 = router.ipv6_as.and_then(|address| router.marks.get(&address).copied());
        Some(Self { outside: outside.link.clone(), addresses: addresses.collect(), ipv6 })
    }

    /// A line that tells it apart from any other, and from other versions' rules.
    #[must_use]
    pub fn told(&self) -> String {
        let (codes, way) = self.chains();
        format!("wisp marks {:016x}", super::text_hash(&[format!("{self:?}"), format!("{codes:?} {way:?}")]))
    }

    /// The chains of code points, and the one before them.
    fn chains(&self) -> (BTreeMap<u8, Chain>, Chain) {
        let chain = |code: &u8| (*code, (chain_name(*code), vec![ipv4_mark(*code)]));
        let codes = self.addresses.values().map(chain).collect();
        let by_address = vec![
            Expression::Payload { base: Base::Network, offset: 12, length: 4, to: FIRST },
            Expression::Map { map: CODES, to: 0 },
        ];
        let by_ipv6 = self
            .ipv6
            .map(|code| [passes(&self.outside, Direction::Egress, NFPROTO_IPV6), ipv6_mark(code)].concat());
        let by_address = [passes(&self.outside, Direction::Egress, NFPROTO_IPV4), by_address].concat();
        (codes, ("mark".to_owned(), [by_address].into_iter().chain(by_ipv6).collect()))
    }
}

fn chain_name(code: u8) -> String {
    format!("code_{code:02}")
}

/// IPv4 (RFC 791): version and length of the header, then the code point (6 bits) and ECN (2 bits); checksum (at 10).
fn ipv4_mark(code: u8) -> Vec<Expression> {
    rewrite([0xff, 0x03], [0, code << 2], Some(10))
}

/// IPv6 (RFC 8200): version (4 bits), code point (6 bits), ECN (2 bits), flow label.
fn ipv6_mark(code: u8) -> Vec<Expression> {
    rewrite([0xf0, 0x3f], [code >> 2, code << 6], None)
}

/// Keeps some bits of a header's first two bytes, and sets others.
fn rewrite(keep: [u8; 2], set: [u8; 2], checksum: Option<u32>) -> Vec<Expression> {
    let (base, offset, length) = (Base::Network, 0, 2);
    vec![
        Expression::Payload { base, offset, length, to: FIRST },
        Expression::Mask { register: FIRST, and: keep.to_vec(), xor: set.to_vec() },
        Expression::Rewrite { base, offset, length, from: FIRST, checksum },
    ]
}

impl nat::Client {
    /// Makes the table anew, or removes it.
    ///
    /// # Errors
    /// The kernel's first refusal; then nothing has changed.
    pub(crate) fn set_marks(&mut self, marks: Option<&Marks>) -> Result<(), Error> {
        let mut transaction = Transaction::default();
        let subject = || format!("create table {TABLE}");
        let table = Attributes::new().text(1, TABLE);
        transaction.push(subject(), NFT_MSG_NEWTABLE, NLM_F_CREATE, FAMILY, &table);
        transaction.push(subject(), NFT_MSG_DELTABLE, 0, FAMILY, &table);
        if let Some(marks) = marks {
            let told = super::comment_attribute(&marks.told());
            transaction.push(subject(), NFT_MSG_NEWTABLE, NLM_F_CREATE, FAMILY, &table.put(6, &told));
            push_content(&mut transaction, marks);
        }
        self.connection.transaction(&transaction.into_messages())
    }
}

/// Chains before what leads to them.
fn push_content(transaction: &mut Transaction, marks: &Marks) {
    const MAP: u32 = 8;
    const IPV4_ADDRESS: (u32, u32) = (7, 4);
    const VERDICTS: u32 = 0xffff_ff00;
    let subject = || format!("create table {TABLE}");
    let (codes, (way, rules)) = marks.chains();
    let of_table = || Attributes::new().text(1, TABLE);
    let push_rules = |transaction: &mut Transaction, chain: &str, rules: &[Vec<Expression>]| {
        for rule in rules {
            let rule = of_table().text(2, chain).nested(4, &encode_rule(rule));
            transaction.push(subject(), NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, FAMILY, &rule);
        }
    };
    for (chain, rules) in codes.values() {
        transaction.push(subject(), NFT_MSG_NEWCHAIN, NLM_F_CREATE, FAMILY, &of_table().text(3, chain));
        push_rules(transaction, chain, rules);
    }
    let map = of_table().text(2, CODES).number(3, MAP).number(4, IPV4_ADDRESS.0).number(5, IPV4_ADDRESS.1);
    let map = map.number(6, VERDICTS).number(7, 0).number(10, 1);
    transaction.push(subject(), NFT_MSG_NEWSET, NLM_F_CREATE, FAMILY, &map);
    let addresses: Vec<_> = marks.addresses.iter().collect();
    for part in addresses.chunks(ELEMENTS_PER_MESSAGE_MAX) {
        let items = part.iter().map(|(address, code)| {
            let data = Expression::verdict_data(&Verdict::Jump(chain_name(**code)));
            Attributes::new().nested(1, &Attributes::new().put(1, &address.octets())).nested(2, &data)
        });
        let list = items.fold(Attributes::new(), |list, item| list.nested(1, &item));
        let elements = of_table().text(2, CODES).nested(3, &list);
        transaction.push(subject(), NFT_MSG_NEWSETELEM, NLM_F_CREATE, FAMILY, &elements);
    }
    let hook = Attributes::new().number(1, HOOK_POSTROUTING).number(2, PRIORITY.cast_unsigned());
    let base = of_table().text(3, &way).nested(4, &hook).number(5, 1).text(7, "filter");
    transaction.push(subject(), NFT_MSG_NEWCHAIN, NLM_F_CREATE, FAMILY, &base);
    push_rules(transaction, &way, &rules);
}
