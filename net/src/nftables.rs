//! The packet filter through nf_tables, as hand-made netlink transactions: the only home of nftables.
//!
//! A cloud has one table per family, `wisp-<tag>`, with the rules of [`rules`]; [`Filter`] says what their sets hold.
//! Every change is one transaction: the kernel takes all of it or nothing. Tables of others are never touched.

mod message;
mod rules;

use std::collections::{BTreeMap, BTreeSet};

use netlink_packet_core::{NLM_F_CREATE, NlasIterator};
use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::filter::{Element, Filter, FilterChange};
use crate::names::OwnerTag;
pub use crate::netlink::Error;
use crate::netlink::{Connection, Message};
use message::{
    Attributes, Family, NFT_MSG_DELSETELEM, NFT_MSG_DELTABLE, NFT_MSG_GETRULE, NFT_MSG_GETSETELEM,
    NFT_MSG_GETTABLE, NFT_MSG_NEWCHAIN, NFT_MSG_NEWRULE, NFT_MSG_NEWSET, NFT_MSG_NEWSETELEM,
    NFT_MSG_NEWTABLE, Transaction, body, encode_rule, kind,
};
use rules::{SETS, Set, chains};

/// Elements in one message: each is at most 120 bytes, and an attribute ends at 64 KiB.
const ELEMENTS_PER_MESSAGE_MAX: usize = 256;

/// `struct nfgenmsg`, before the attributes.
const HEADER_SIZE: usize = 4;

const FAMILIES: [Family; 2] = [Family::Bridge, Family::Inet];

/// The names of all tables of these families in this thread's network namespace, whoever made them: for comparing a
/// host before and after.
///
/// # Errors
/// If there is no nfnetlink, or the kernel refuses to list.
pub fn table_names() -> Result<BTreeSet<String>, Error> {
    let mut connection = Connection::open(NETLINK_NETFILTER)?;
    let mut names = BTreeSet::new();
    for family in FAMILIES {
        let request = body(family, &Attributes::new());
        for message in connection.dump("packet filter tables", kind(NFT_MSG_GETTABLE), &request)? {
            names.extend(attributes_of(&message.body).get(&1).map(text));
        }
    }
    Ok(names)
}

/// An nf_tables socket in the network namespace of the thread that opened it, for the tables of one cloud.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
    tag: OwnerTag,
    table: String,
}

impl Client {
    /// Opens the socket.
    ///
    /// # Errors
    /// If there is no nfnetlink.
    pub fn open(tag: OwnerTag) -> Result<Self, Error> {
        let connection = Connection::open(NETLINK_NETFILTER)?;
        Ok(Self { connection, tag, table: tag.table() })
    }

    /// What the sets hold; nothing if a table, chain or rule of ours is missing or is not as this version makes it.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub fn observe(&mut self) -> Result<Option<Filter>, Error> {
        for family in FAMILIES {
            if !self.tables(family)?.contains(&Some(self.comment())) || !self.has_rules(family)? {
                return Ok(None);
            }
        }
        let mut filter = Filter::default();
        for set in SETS {
            let Some(elements) = self.elements(set)? else { return Ok(None) };
            filter.elements.extend(elements);
        }
        Ok(Some(filter))
    }

    /// Makes the tables anew with what their sets shall hold. Nothing passes unfiltered meanwhile.
    ///
    /// # Errors
    /// The kernel's first refusal; then nothing has changed.
    pub fn rebuild(&mut self, filter: &Filter) -> Result<(), Error> {
        let mut transaction = Transaction::default();
        self.push_removal(&mut transaction);
        self.push_tables(&mut transaction);
        self.push_elements(&mut transaction, NFT_MSG_NEWSETELEM, filter.elements.iter());
        self.connection.transaction(&transaction.into_messages())
    }

    /// Changes what the sets hold.
    ///
    /// # Errors
    /// The kernel's first refusal, such as "not found" for an element that somebody else removed; then nothing has
    /// changed.
    pub fn change(&mut self, change: &FilterChange) -> Result<(), Error> {
        let mut transaction = Transaction::default();
        self.push_elements(&mut transaction, NFT_MSG_DELSETELEM, change.remove.iter());
        self.push_elements(&mut transaction, NFT_MSG_NEWSETELEM, change.add.iter());
        if transaction.is_empty() {
            return Ok(());
        }
        self.connection.transaction(&transaction.into_messages())
    }

    /// Removes the cloud's tables, if there are any.
    ///
    /// # Errors
    /// The kernel's refusal; then nothing has changed.
    pub fn remove(&mut self) -> Result<(), Error> {
        let mut transaction = Transaction::default();
        self.push_removal(&mut transaction);
        self.connection.transaction(&transaction.into_messages())
    }

    /// A line that changes with the rules, kept as the tables' comment: whether the tables are of this version.
    fn comment(&self) -> String {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let mut feed = |bytes: &[u8]| {
            for byte in bytes {
                hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
            }
        };
        feed(format!("{SETS:?}").as_bytes());
        for chain in chains(self.tag) {
            feed(format!("{chain:?}").as_bytes());
        }
        format!("wisp filter {hash:016x}")
    }

    /// The comments of the cloud's tables of a family: none or one.
    fn tables(&mut self, family: Family) -> Result<Vec<Option<String>>, Error> {
        let attributes = Attributes::new();
        let received = self.connection.dump(
            "packet filter tables",
            kind(NFT_MSG_GETTABLE),
            &body(family, &attributes),
        )?;
        let tables = received.iter().map(|message| attributes_of(&message.body));
        Ok(tables
            .filter(|table| table.get(&1).is_some_and(|name| text(name) == self.table))
            .map(|table| table.get(&6).and_then(|data| data.get(2..)).map(text))
            .collect())
    }

    /// Whether every chain has as many rules as it shall.
    fn has_rules(&mut self, family: Family) -> Result<bool, Error> {
        let attributes = Attributes::new().text(1, &self.table);
        let received =
            self.connection.dump("packet filter rules", kind(NFT_MSG_GETRULE), &body(family, &attributes))?;
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for message in &received {
            let rule = attributes_of(&message.body);
            if rule.get(&1).is_some_and(|name| text(name) == self.table) {
                *counts.entry(rule.get(&2).map(text).unwrap_or_default()).or_default() += 1;
            }
        }
        let wanted: BTreeMap<String, usize> = chains(self.tag)
            .into_iter()
            .filter(|chain| chain.family == family)
            .map(|chain| (chain.name.to_owned(), chain.rules.len()))
            .collect();
        Ok(counts == wanted)
    }

    /// What a set holds, if it exists.
    fn elements(&mut self, set: Set) -> Result<Option<Vec<Element>>, Error> {
        let attributes = Attributes::new().text(1, &self.table).text(2, set.name);
        let body = body(set.family, &attributes);
        let received = match self.connection.dump("packet filter elements", kind(NFT_MSG_GETSETELEM), &body) {
            Ok(received) => received,
            Err(error) if error.refusal() == Some(libc::ENOENT) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut elements = Vec::new();
        for message in &received {
            let list = attributes_of(&message.body);
            let Some(list) = list.get(&3) else { continue };
            for nla in NlasIterator::new(list.as_slice()).flatten() {
                let parts = nested(nla.value());
                let key = |kind| parts.get(&kind).and_then(|key| nested(key).remove(&1));
                let Some(start) = key(1) else { continue };
                elements.extend(decode(set, &start, key(10).as_deref()));
            }
        }
        Ok(Some(elements))
    }

    /// Deletes the tables whether or not they exist: what is created first can always be deleted.
    fn push_removal(&self, transaction: &mut Transaction) {
        let table = Attributes::new().text(1, &self.table);
        for family in FAMILIES {
            let subject = format!("remove packet filter table {}", self.table);
            transaction.push(subject.clone(), NFT_MSG_NEWTABLE, NLM_F_CREATE, family, &table);
            transaction.push(subject, NFT_MSG_DELTABLE, 0, family, &table);
        }
    }

    fn push_tables(&self, transaction: &mut Transaction) {
        let mut comment = self.comment().into_bytes();
        comment.push(0);
        // Comments are kept as type (0), length, text.
        let mut user_data = vec![0, comment.len() as u8];
        user_data.extend_from_slice(&comment);
        for family in FAMILIES {
            let table = Attributes::new().text(1, &self.table).put(6, &user_data);
            let subject = format!("create packet filter table {}", self.table);
            transaction.push(subject, NFT_MSG_NEWTABLE, NLM_F_CREATE, family, &table);
        }
        for (index, set) in SETS.iter().enumerate() {
            let subject = format!("create packet filter set {}", set.name);
            let attributes = set_attributes(&self.table, *set, index as u32 + 1);
            transaction.push(subject, NFT_MSG_NEWSET, NLM_F_CREATE, set.family, &attributes);
        }
        for chain in chains(self.tag) {
            let mut attributes = Attributes::new().text(1, &self.table).text(3, chain.name);
            if let Some((hook, priority)) = chain.hook {
                let hook = Attributes::new().number(1, hook).number(2, priority.cast_unsigned());
                attributes = attributes.nested(4, &hook).number(5, 1).text(7, "filter");
            }
            let subject = format!("create packet filter chain {}", chain.name);
            transaction.push(subject, NFT_MSG_NEWCHAIN, NLM_F_CREATE, chain.family, &attributes);
            for (index, rule) in chain.rules.iter().enumerate() {
                let attributes =
                    Attributes::new().text(1, &self.table).text(2, chain.name).nested(4, &encode_rule(rule));
                let subject = format!("create rule {index} of packet filter chain {}", chain.name);
                let flags = NLM_F_CREATE | netlink_packet_core::NLM_F_APPEND;
                transaction.push(subject, NFT_MSG_NEWRULE, flags, chain.family, &attributes);
            }
        }
    }

    fn push_elements<'a>(
        &self,
        transaction: &mut Transaction,
        message: u16,
        elements: impl Iterator<Item = &'a Element>,
    ) {
        let mut by_set: BTreeMap<Set, Vec<Attributes>> = BTreeMap::new();
        for element in elements {
            let (set, key, key_end) = encode(element);
            let mut attributes = Attributes::new().nested(1, &Attributes::new().put(1, &key));
            if let Some(key_end) = key_end {
                attributes = attributes.nested(10, &Attributes::new().put(1, &key_end));
            }
            by_set.entry(set).or_default().push(attributes);
        }
        for (set, elements) in by_set {
            for part in elements.chunks(ELEMENTS_PER_MESSAGE_MAX) {
                let list = part.iter().fold(Attributes::new(), |list, element| list.nested(1, element));
                let attributes = Attributes::new().text(1, &self.table).text(2, set.name).nested(3, &list);
                let flags = if message == NFT_MSG_NEWSETELEM { NLM_F_CREATE } else { 0 };
                let verb = if message == NFT_MSG_NEWSETELEM { "add to" } else { "remove from" };
                let subject = format!("{verb} packet filter set {}", set.name);
                transaction.push(subject, message, flags, set.family, &attributes);
            }
        }
    }
}

fn set_attributes(table: &str, set: Set, id: u32) -> Attributes {
    const INTERVAL: u32 = 4;
    const CONCATENATED: u32 = 0x80;
    let key_type = set.fields.iter().fold(0, |key, (kind, _)| key << 6 | kind);
    let key_length: u32 = set.fields.iter().map(|(_, length)| length.next_multiple_of(4)).sum();
    let flags = if set.ranges { INTERVAL | CONCATENATED } else { 0 };
    let mut attributes = Attributes::new()
        .text(1, table)
        .text(2, set.name)
        .number(3, flags)
        .number(4, key_type)
        .number(5, key_length)
        .number(10, id);
    if set.ranges {
        let fields = set.fields.iter().fold(Attributes::new(), |fields, (_, length)| {
            fields.nested(1, &Attributes::new().number(1, *length))
        });
        attributes = attributes.nested(9, &Attributes::new().nested(2, &fields));
    }
    attributes
}

/// An element's set, key, and the last key of its range. Parts of a key are padded to 4 bytes.
fn encode(element: &Element) -> (Set, Vec<u8>, Option<Vec<u8>>) {
    let with = |value: &[u8]| {
        let mut key = interface_key(element.link());
        key.extend_from_slice(value);
        key.resize(key.len().next_multiple_of(4), 0);
        key
    };
    match element {
        Element::Open(_) => (rules::OPEN, with(&[]), None),
        Element::Mac(_, mac) => (rules::MACS, with(mac), None),
        Element::Ipv4(_, address) => (rules::IPV4, with(&address.octets()), None),
        Element::Ipv4Prefix(_, net) => {
            let end = with(&net.broadcast().octets());
            (rules::IPV4_PREFIXES, with(&net.network().octets()), Some(end))
        }
        Element::Ipv6Port(_) => (rules::IPV6_PORTS, with(&[]), None),
        Element::Ipv6(_, address) => (rules::IPV6, with(&address.octets()), None),
        Element::Ipv6Prefix(_, net) => {
            let end = with(&net.broadcast().octets());
            (rules::IPV6_PREFIXES, with(&net.network().octets()), Some(end))
        }
        Element::Bridged(link) => (rules::BRIDGED, with(&interface_key(link)), None),
        Element::Gateway(_) => (rules::GATEWAYS, with(&[]), None),
    }
}

fn interface_key(name: &str) -> Vec<u8> {
    let mut key = name.as_bytes().to_vec();
    key.resize(16, 0);
    key
}

/// The reverse of [`encode`]; nothing for what it never makes.
fn decode(set: Set, key: &[u8], key_end: Option<&[u8]>) -> Option<Element> {
    let (name, value) = key.split_at_checked(16)?;
    let name = text(name);
    let end = key_end.and_then(|key| key.get(16..));
    let element = match set {
        rules::OPEN => Element::Open(name),
        rules::MACS => Element::Mac(name, value.get(..6)?.try_into().ok()?),
        rules::IPV4 => Element::Ipv4(name, <[u8; 4]>::try_from(value).ok()?.into()),
        rules::IPV4_PREFIXES => {
            let start = u32::from_be_bytes(value.try_into().ok()?);
            let length = (start ^ u32::from_be_bytes(end?.try_into().ok()?)).leading_zeros();
            Element::Ipv4Prefix(name, ipnet::Ipv4Net::new(start.into(), length as u8).ok()?)
        }
        rules::IPV6_PORTS => Element::Ipv6Port(name),
        rules::IPV6 => Element::Ipv6(name, <[u8; 16]>::try_from(value).ok()?.into()),
        rules::IPV6_PREFIXES => {
            let start = u128::from_be_bytes(value.try_into().ok()?);
            let length = (start ^ u128::from_be_bytes(end?.try_into().ok()?)).leading_zeros();
            Element::Ipv6Prefix(name, ipnet::Ipv6Net::new(start.into(), length as u8).ok()?)
        }
        rules::BRIDGED => Element::Bridged(name),
        rules::GATEWAYS => Element::Gateway(name),
        _ => return None,
    };
    Some(element)
}

fn attributes_of(body: &[u8]) -> BTreeMap<u16, Vec<u8>> {
    nested(body.get(HEADER_SIZE..).unwrap_or_default())
}

fn nested(bytes: &[u8]) -> BTreeMap<u16, Vec<u8>> {
    NlasIterator::new(bytes).flatten().map(|nla| (nla.kind(), nla.value().to_vec())).collect()
}

fn text(bytes: impl AsRef<[u8]>) -> String {
    String::from_utf8_lossy(bytes.as_ref()).trim_end_matches('\0').to_owned()
}
