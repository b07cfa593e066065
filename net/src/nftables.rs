//! The packet filter through nf_tables, as hand-made netlink transactions: the only home of nftables.
//!
//! A cloud has one table per family, `wisp-<tag>`, with the rules of [`rules`]; [`Filter`] says what their sets hold.
//! Every change is one transaction: the kernel takes all of it or nothing. Tables of others are never touched.

mod element;
mod groups;
mod limit;
mod mark;
mod message;
pub(crate) mod meter;
pub(crate) mod nat;
mod rules;
mod sets;

use std::collections::{BTreeMap, BTreeSet};

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NlasIterator};
use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::conntrack;
use crate::filter::{
    Chains, Content, Element, Filter, FilterChange, Held, Judge, Policy, WantedFilter, is_chain_name,
};
use crate::names::OwnerTag;
pub use crate::netlink::Error;
use crate::netlink::{Connection, Message, parts_of, text};
use crate::spec::Direction;
use element::{
    Encoded, GROUPS_FAMILY, decode, decode_policy, encode, encode_policy, map_of_policies, set_attributes,
};
pub use limit::Limits;
pub use mark::Marks;
use message::{
    Attributes, Expression, Family, NFT_MSG_DELCHAIN, NFT_MSG_DELRULE, NFT_MSG_DELSETELEM, NFT_MSG_DELTABLE,
    NFT_MSG_GETCHAIN, NFT_MSG_GETRULE, NFT_MSG_GETSETELEM, NFT_MSG_GETTABLE, NFT_MSG_NEWCHAIN,
    NFT_MSG_NEWRULE, NFT_MSG_NEWSET, NFT_MSG_NEWSETELEM, NFT_MSG_NEWTABLE, Transaction, body, encode_rule,
    kind,
};
pub use meter::Meters;
pub use rules::Tracking;
use rules::{chains, tracking_trial};
use sets::{SETS, Set};

/// Elements in one message: each is at most 160 bytes, and an attribute ends at 64 KiB.
const ELEMENTS_PER_MESSAGE_MAX: usize = 256;

/// `NFTA_RULE_USERDATA`.
const RULE_COMMENT: u16 = 7;

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
    /// Absent until it was tried.
    tracking: Option<Tracking>,
}

impl Client {
    /// Opens the socket.
    ///
    /// # Errors
    /// If there is no nfnetlink.
    pub fn open(tag: OwnerTag) -> Result<Self, Error> {
        let connection = Connection::open(NETLINK_NETFILTER)?;
        Ok(Self { connection, tag, table: tag.table(), tracking: None })
    }

    /// Where the connections of bridged packets are seen. Asked for the first time, it is tried, which needs the right to
    /// change the filter.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub fn tracking(&mut self) -> Result<Tracking, Error> {
        if let Some(tracking) = self.tracking {
            return Ok(tracking);
        }
        let tracking = if self.try_bridge_tracking()? { Tracking::Bridge } else { Tracking::Inet };
        Ok(*self.tracking.insert(tracking))
    }

    /// What the sets and chains hold; nothing if a table, chain or rule of ours is missing or is not as this version
    /// makes it.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub fn observe(&mut self) -> Result<Option<Filter>, Error> {
        let mut filter = Filter::default();
        let chains = chains(self.tag, self.tracking()?);
        let comment = comment(&chains);
        for family in FAMILIES {
            if !self.tables(family)?.contains(&Some(comment.clone())) {
                return Ok(None);
            }
            let Some(chains) = self.group_chains(family, &chains)? else { return Ok(None) };
            filter.chains.extend(chains);
        }
        let mut ways = BTreeSet::new();
        for set in SETS {
            let Some(items) = self.elements(set)? else { return Ok(None) };
            let direction =
                [Direction::Egress, Direction::Ingress].into_iter().find(|d| map_of_policies(*d) == set);
            match direction {
                None => filter.elements.extend(items.iter().filter_map(|item| decode(set, item))),
                Some(direction) => {
                    let policies = items.iter().filter_map(|item| decode_policy(item));
                    ways.extend(policies.map(|policy| policy.chain(direction)));
                }
            }
        }
        let chains = filter.chains.keys().filter(|name| Policy::of_chain(name).is_some());
        Ok(chains.eq(&ways).then_some(filter))
    }

    /// Makes the tables anew. Nothing passes unfiltered meanwhile.
    ///
    /// # Errors
    /// The kernel's first refusal; then nothing has changed.
    pub fn rebuild(&mut self, filter: &WantedFilter) -> Result<(), Error> {
        let chains = chains(self.tag, self.tracking()?);
        let mut transaction = Transaction::default();
        self.push_removal(&mut transaction);
        self.push_tables(&mut transaction, &chains);
        self.push_chains(&mut transaction, &filter.chains);
        self.push_elements(&mut transaction, true, filter.elements.iter());
        self.connection.transaction(&transaction.into_messages())
    }

    /// Changes what the sets and chains hold.
    ///
    /// # Errors
    /// The kernel's first refusal, such as "not found" for an element that somebody else removed; then nothing has
    /// changed.
    pub fn change(&mut self, change: &FilterChange) -> Result<(), Error> {
        let mut transaction = Transaction::default();
        self.push_refills(&mut transaction, &change.refill_chains);
        self.push_chains(&mut transaction, &change.add_chains);
        self.push_elements(&mut transaction, false, change.remove.iter());
        self.push_elements(&mut transaction, true, change.add.iter());
        let ways = change.remove_chains.iter().filter_map(|name| Policy::of_chain(name));
        self.push_items(
            &mut transaction,
            false,
            ways.map(|(direction, policy)| encode_policy(direction, policy)),
        );
        // Backwards: a port's chain jumps to groups' chains, and goes first.
        for name in change.remove_chains.iter().rev() {
            let attributes = Attributes::new().text(1, &self.table).text(3, name);
            let subject = format!("remove packet filter chain {name}");
            transaction.push(subject, NFT_MSG_DELCHAIN, 0, GROUPS_FAMILY, &attributes);
        }
        if transaction.is_empty() {
            return Ok(());
        }
        self.connection.transaction(&transaction.into_messages())
    }

    /// Ends the tracked connections of this network namespace that a judge is against.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub(crate) fn end_connections(&mut self, judge: &Judge<'_>) -> Result<(), Error> {
        let families = [Some(conntrack::Family::Ipv4), judge.has_ipv6().then_some(conntrack::Family::Ipv6)];
        for family in families.into_iter().flatten() {
            conntrack::end(&mut self.connection, family, |zone, begun, _| judge.ends(zone, begun))?;
        }
        Ok(())
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

    /// Whether the bridge family tracks connections: tried in a transaction that cannot succeed, so nothing changes.
    fn try_bridge_tracking(&mut self) -> Result<bool, Error> {
        const END: &str = "remove a chain that is not there";
        let mut transaction = Transaction::default();
        let (table, chain) = (format!("{}-trial", self.table), "trial");
        let named = || Attributes::new().text(1, &table);
        let subject = || "make a rule on connections in the bridge family".to_owned();
        let (bridge, flags) = (Family::Bridge, NLM_F_CREATE | NLM_F_APPEND);
        transaction.push(subject(), NFT_MSG_NEWTABLE, NLM_F_CREATE, bridge, &named());
        transaction.push(subject(), NFT_MSG_NEWCHAIN, NLM_F_CREATE, bridge, &named().text(3, chain));
        let rule = named().text(2, chain).nested(4, &encode_rule(&tracking_trial()));
        transaction.push(subject(), NFT_MSG_NEWRULE, flags, bridge, &rule);
        transaction.push(END.to_owned(), NFT_MSG_DELCHAIN, 0, bridge, &named().text(3, "none"));
        match self.connection.transaction(&transaction.into_messages()) {
            Err(Error::Refused { subject, .. }) => Ok(subject == END),
            Err(error) => Err(error),
            Ok(()) => Ok(false),
        }
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

    /// The chains of groups and ports; nothing if a chain is missing or has not as many rules as it shall.
    fn group_chains(
        &mut self,
        family: Family,
        fixed: &[rules::Chain],
    ) -> Result<Option<BTreeMap<String, Held>>, Error> {
        let attributes = Attributes::new().text(1, &self.table);
        let body = body(family, &attributes);
        let listed = self.connection.dump("packet filter chains", kind(NFT_MSG_GETCHAIN), &body)?;
        let rules = self.connection.dump("packet filter rules", kind(NFT_MSG_GETRULE), &body)?;
        // How many rules each chain has, and the comment of its first.
        let mut chains: BTreeMap<String, (usize, Option<String>)> = BTreeMap::new();
        let listed = listed.iter().map(|message| (attributes_of(&message.body), 3, 0));
        let rules = rules.iter().map(|message| (attributes_of(&message.body), 2, 1));
        for (item, chain, count) in listed.chain(rules) {
            if item.get(&1).is_some_and(|table| text(table) == self.table) {
                let chain = chains.entry(item.get(&chain).map(text).unwrap_or_default()).or_default();
                if chain.0 == 0 && count == 1 {
                    chain.1 = item.get(&RULE_COMMENT).and_then(|data| data.get(2..)).map(text);
                }
                chain.0 += count;
            }
        }
        let wanted = fixed.iter().filter(|chain| chain.family == family);
        for chain in wanted {
            if chains.remove(chain.name).map(|(count, _)| count) != Some(chain.rules.len()) {
                return Ok(None);
            }
        }
        let held = chains.into_iter().map(|(name, (count, comment))| {
            let content = match comment {
                None if count == 0 => Content::nothing(),
                comment => Content::read(&comment?),
            };
            let is_whole = is_chain_name(&name) && content.rule_count() == Some(count);
            is_whole.then_some((name, Held { content, chain: None }))
        });
        Ok(held.collect())
    }

    /// What a set holds, if it exists.
    fn elements(&mut self, set: Set) -> Result<Option<Vec<Vec<u8>>>, Error> {
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
            elements.extend(NlasIterator::new(list.as_slice()).flatten().map(|item| item.value().to_vec()));
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

    fn push_tables(&self, transaction: &mut Transaction, chains: &[rules::Chain]) {
        let comment = comment_attribute(&comment(chains));
        for family in FAMILIES {
            let table = Attributes::new().text(1, &self.table).put(6, &comment);
            let subject = format!("create packet filter table {}", self.table);
            transaction.push(subject, NFT_MSG_NEWTABLE, NLM_F_CREATE, family, &table);
        }
        for (index, set) in SETS.iter().enumerate() {
            let subject = format!("create packet filter set {}", set.name);
            let attributes = set_attributes(&self.table, *set, index as u32 + 1);
            transaction.push(subject, NFT_MSG_NEWSET, NLM_F_CREATE, set.family, &attributes);
        }
        for chain in chains {
            let mut attributes = Attributes::new().text(1, &self.table).text(3, chain.name);
            if let Some((hook, priority)) = chain.hook {
                let hook = Attributes::new().number(1, hook).number(2, priority.cast_unsigned());
                attributes = attributes.nested(4, &hook).number(5, 1).text(7, "filter");
            }
            let subject = format!("create packet filter chain {}", chain.name);
            transaction.push(subject, NFT_MSG_NEWCHAIN, NLM_F_CREATE, chain.family, &attributes);
            for rule in &chain.rules {
                self.push_rule(transaction, chain.family, chain.name, rule, None);
            }
        }
    }

    fn push_rule(
        &self,
        transaction: &mut Transaction,
        family: Family,
        chain: &str,
        rule: &[Expression],
        comment: Option<&str>,
    ) {
        let attributes = Attributes::new().text(1, &self.table).text(2, chain).nested(4, &encode_rule(rule));
        let attributes = comment.iter().fold(attributes, |attributes, comment| {
            attributes.put(RULE_COMMENT, &comment_attribute(comment))
        });
        let subject = format!("add a rule to packet filter chain {chain}");
        transaction.push(subject, NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, family, &attributes);
    }

    /// Makes chains of groups and ports; in the order of their names, groups come before the ports that jump to them.
    fn push_chains(&self, transaction: &mut Transaction, chains: &Chains) {
        for name in chains.keys() {
            let attributes = Attributes::new().text(1, &self.table).text(3, name);
            let subject = format!("create packet filter chain {name}");
            // A chain that is there although we do not know of it must not get its rules twice.
            let flags = NLM_F_CREATE | NLM_F_EXCL;
            transaction.push(subject, NFT_MSG_NEWCHAIN, flags, GROUPS_FAMILY, &attributes);
        }
        self.push_rules(transaction, chains);
        let ways = chains.keys().filter_map(|name| Policy::of_chain(name));
        self.push_items(transaction, true, ways.map(|(direction, policy)| encode_policy(direction, policy)));
    }

    /// Lets chains hold something else. Whatever jumps to them stays.
    fn push_refills(&self, transaction: &mut Transaction, chains: &Chains) {
        for name in chains.keys() {
            // Without a handle, all of the chain's rules are meant.
            let attributes = Attributes::new().text(1, &self.table).text(2, name);
            let subject = format!("empty packet filter chain {name}");
            transaction.push(subject, NFT_MSG_DELRULE, 0, GROUPS_FAMILY, &attributes);
        }
        self.push_rules(transaction, chains);
    }

    fn push_rules(&self, transaction: &mut Transaction, chains: &Chains) {
        for (name, chain) in chains {
            let content = Content::of(chain);
            for (index, rule) in groups::chain_rules(chain).iter().enumerate() {
                let comment = (index == 0).then(|| content.comment());
                self.push_rule(transaction, GROUPS_FAMILY, name, rule, comment);
            }
        }
    }

    fn push_elements<'a>(
        &self,
        transaction: &mut Transaction,
        add: bool,
        elements: impl Iterator<Item = &'a Element>,
    ) {
        self.push_items(transaction, add, elements.map(encode));
    }

    fn push_items(&self, transaction: &mut Transaction, add: bool, items: impl Iterator<Item = Encoded>) {
        let mut by_set: BTreeMap<Set, Vec<Encoded>> = BTreeMap::new();
        for encoded in items {
            by_set.entry(encoded.set).or_default().push(encoded);
        }
        let (message, flags, verb) = match add {
            true => (NFT_MSG_NEWSETELEM, NLM_F_CREATE, "add to"),
            false => (NFT_MSG_DELSETELEM, 0, "remove from"),
        };
        for (set, elements) in by_set {
            for part in elements.chunks(ELEMENTS_PER_MESSAGE_MAX) {
                let items = part.iter().map(|element| element.attributes(add));
                let list = items.fold(Attributes::new(), |list, item| list.nested(1, &item));
                let attributes = Attributes::new().text(1, &self.table).text(2, set.name).nested(3, &list);
                let subject = format!("{verb} packet filter set {}", set.name);
                transaction.push(subject, message, flags, set.family, &attributes);
            }
        }
    }
}

/// A line that changes with the rules, kept as the tables' comment: whether the tables are of this version.
fn comment(chains: &[rules::Chain]) -> String {
    let chains = chains.iter().map(|chain| format!("{chain:?}"));
    let parts: Vec<String> = [format!("{SETS:?}")].into_iter().chain(chains).collect();
    format!("wisp filter {:016x}", text_hash(&parts))
}

/// A number that tells texts apart (FNV-1a, 64 bits).
fn text_hash(parts: &[String]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// A table's comment as its user data: type (0), length, text with a zero at its end.
fn comment_attribute(comment: &str) -> Vec<u8> {
    let length = u8::try_from(comment.len() + 1).expect("invariant: comments are shorter than 255 bytes");
    [&[0, length], comment.as_bytes(), &[0]].concat()
}

fn attributes_of(body: &[u8]) -> BTreeMap<u16, Vec<u8>> {
    parts_of(body.get(HEADER_SIZE..).unwrap_or_default())
}
