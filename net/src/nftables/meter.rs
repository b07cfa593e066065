//! What a router's meters count, in a table of its own: so a change of what is counted touches no translation.
//!
//! The table counts in the forward hook, where packets have the addresses that the inside knows: a chain per meter with
//! a rule for each of its own. Those that leave something out stand first. A packet is counted once by a meter. The table's
//! comment tells what it was made for; made anew, it begins anew.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NlasIterator};

use super::message::{
    Attributes, Base, Expression, FIRST, Family, Meta, NFT_MSG_DELTABLE, NFT_MSG_GETRULE, NFT_MSG_NEWCHAIN,
    NFT_MSG_NEWRULE, NFT_MSG_NEWTABLE, Transaction, Verdict, body, encode_rule, kind, read_count,
};
use super::{attributes_of, nat};
use crate::netlink::{Error, text};
use crate::spec::{Count, Direction, InterfaceName, MeterRule, Router};

pub(super) const TABLE: &str = "wisp-meters";
const FAMILY: Family = Family::Inet;
const HOOK_FORWARD: u32 = 2;
/// After what may not pass was dropped.
const PRIORITY: i32 = 10;

/// What shall be counted where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meters {
    /// The link to the outside.
    pub outside: InterfaceName,
    /// The rules of each meter.
    pub rules: BTreeMap<u32, BTreeSet<MeterRule>>,
}

impl Meters {
    /// A router's; none without a way out or anything to count.
    #[must_use]
    pub fn of(router: &Router) -> Option<Self> {
        let outside = router.nat.outside.as_ref().filter(|_| !router.meters.is_empty())?;
        Some(Self { outside: outside.link.clone(), rules: router.meters.clone() })
    }

    /// A line that tells it apart from any other, and from other versions' rules.
    #[must_use]
    pub fn told(&self) -> String {
        format!(
            "wisp meters {:016x}",
            super::text_hash(&[format!("{self:?}"), format!("{:?}", self.chains())])
        )
    }

    fn chains(&self) -> Vec<(String, Vec<Vec<Expression>>)> {
        let chain = |(number, rules): (&u32, &BTreeSet<MeterRule>)| {
            // What is not counted comes first in the order of rules.
            (chain_name(*number), rules.iter().map(|rule| self.rule(rule)).collect())
        };
        self.rules.iter().map(chain).collect()
    }

    fn rule(&self, rule: &MeterRule) -> Vec<Expression> {
        let key = match rule.direction {
            Direction::Ingress => Meta::InputName,
            Direction::Egress => Meta::OutputName,
        };
        let mut expressions = nat::link(key, &self.outside, true);
        for (net, is_source) in [(rule.source, true), (rule.destination, false)] {
            expressions.extend(net.into_iter().flat_map(|net| within(net, is_source)));
        }
        expressions.extend(rule.is_counted.then_some(Expression::Count));
        expressions.push(Expression::Verdict(Verdict::Return));
        expressions
    }
}

fn chain_name(number: u32) -> String {
    format!("meter_{number:08x}")
}

/// The address at one end is of a prefix. IPv4 (RFC 791): source (at 12), destination (at 16); IPv6 (RFC 8200): 8, 24.
fn within(net: IpNet, is_source: bool) -> Vec<Expression> {
    const NFPROTO_IPV4: u8 = 2;
    const NFPROTO_IPV6: u8 = 10;
    let octets = |address: std::net::IpAddr| match address {
        std::net::IpAddr::V4(address) => address.octets().to_vec(),
        std::net::IpAddr::V6(address) => address.octets().to_vec(),
    };
    let (family, offset) = match (net, is_source) {
        (IpNet::V4(_), true) => (NFPROTO_IPV4, 12),
        (IpNet::V4(_), false) => (NFPROTO_IPV4, 16),
        (IpNet::V6(_), true) => (NFPROTO_IPV6, 8),
        (IpNet::V6(_), false) => (NFPROTO_IPV6, 24),
    };
    let network = octets(net.network());
    let length = network.len() as u32;
    vec![
        Expression::Meta { key: Meta::Family, to: FIRST },
        Expression::Compare { register: FIRST, equal: true, value: vec![family] },
        Expression::Payload { base: Base::Network, offset, length, to: FIRST },
        Expression::Mask { register: FIRST, and: octets(net.netmask()), xor: vec![0; network.len()] },
        Expression::Compare { register: FIRST, equal: true, value: network },
    ]
}

impl nat::Client {
    /// Makes the table anew, or removes it.
    ///
    /// # Errors
    /// The kernel's first refusal; then nothing has changed.
    pub(crate) fn set_meters(&mut self, meters: Option<&Meters>) -> Result<(), Error> {
        let mut transaction = Transaction::default();
        let subject = || format!("create table {TABLE}");
        let table = Attributes::new().text(1, TABLE);
        transaction.push(subject(), NFT_MSG_NEWTABLE, NLM_F_CREATE, FAMILY, &table);
        transaction.push(subject(), NFT_MSG_DELTABLE, 0, FAMILY, &table);
        if let Some(meters) = meters {
            let told = super::comment_attribute(&meters.told());
            transaction.push(subject(), NFT_MSG_NEWTABLE, NLM_F_CREATE, FAMILY, &table.put(6, &told));
            let chains = meters.chains();
            let ways: Vec<Vec<Expression>> = chains
                .iter()
                .map(|(name, _)| vec![Expression::Verdict(Verdict::Jump(name.clone()))])
                .collect();
            let hook = Attributes::new().number(1, HOOK_FORWARD).number(2, PRIORITY.cast_unsigned());
            for (name, rules) in
                chains.iter().map(|(name, rules)| (name.as_str(), rules)).chain([("count", &ways)])
            {
                let mut chain = Attributes::new().text(1, TABLE).text(3, name);
                if name == "count" {
                    chain = chain.nested(4, &hook).number(5, 1).text(7, "filter");
                }
                transaction.push(subject(), NFT_MSG_NEWCHAIN, NLM_F_CREATE, FAMILY, &chain);
                for rule in rules {
                    let rule = Attributes::new().text(1, TABLE).text(2, name).nested(4, &encode_rule(rule));
                    transaction.push(subject(), NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, FAMILY, &rule);
                }
            }
        }
        self.connection.transaction(&transaction.into_messages())
    }

    /// What each meter has counted.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub(crate) fn meter_counts(&mut self) -> Result<BTreeMap<u32, Count>, Error> {
        let request = body(FAMILY, &Attributes::new().text(1, TABLE));
        let mut counts: BTreeMap<u32, Count> = BTreeMap::new();
        for message in self.connection.dump("rules of meters", kind(NFT_MSG_GETRULE), &request)? {
            let rule = attributes_of(&message.body);
            if rule.get(&1).is_none_or(|table| text(table) != TABLE) {
                continue;
            }
            let chain = rule.get(&2).map(text).unwrap_or_default();
            let number = chain.strip_prefix("meter_").and_then(|digits| u32::from_str_radix(digits, 16).ok());
            let Some(number) = number else { continue };
            let total = counts.entry(number).or_default();
            let expressions = rule.get(&4).map(Vec::as_slice).unwrap_or_default();
            for count in NlasIterator::new(expressions).flatten().filter_map(|item| read_count(item.value()))
            {
                total.packets += count.packets;
                total.bytes += count.bytes;
            }
        }
        Ok(counts)
    }
}
