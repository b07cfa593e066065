//! Who is a member of the groups that rules name: elements, of which those that come and go are told from chains that become
//! others.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};

use super::{Chain, ChainName, Chains, Element, Filter, Held};

impl Filter {
    /// The members that go and those that come where chains become these. Only what differs is made an element of, since a
    /// group may have thousands of members.
    pub(super) fn member_changes(&self, chains: &Chains) -> (Vec<Element>, Vec<Element>) {
        let mut named: BTreeMap<u32, Naming<'_>> = BTreeMap::new();
        for (name, chain) in chains {
            let held = self.chains.get(name);
            let known = held.and_then(|held| held.chain.as_ref());
            if known == Some(chain) {
                continue;
            }
            for (number, members) in chain.members() {
                let naming = named.entry(number).or_default();
                naming.after.push(members);
                naming.is_unknown |= held.is_some() && known.is_none();
            }
            for (number, members) in known.into_iter().flat_map(|chain| chain.members()) {
                named.entry(number).or_default().before.push(members);
            }
        }
        let (mut gone, mut come) = (Vec::new(), Vec::new());
        for (number, Naming { before, after, is_unknown }) in named {
            let element = |net: &IpNet| Element::Member(number, *net);
            let all_before: Vec<IpNet> = match is_unknown {
                true => self.of_group(number).filter_map(Element::member).collect(),
                false => lacking(&before, &after),
            };
            // Another chain that stays as it is may name them, too.
            let kept = || {
                let stays =
                    |name: &ChainName, chain: &Arc<Chain>| chains.get(name).is_none_or(|is| is == chain);
                let known = self.chains.iter().filter_map(|(name, held)| Some((name, held.chain.as_ref()?)));
                known.filter(move |(name, chain)| stays(name, chain)).flat_map(|(_, chain)| chain.members())
            };
            let is_named = |net: &IpNet| {
                after.iter().any(|members| members.contains(net))
                    || kept().any(|(of, members)| of == number && members.contains(net))
            };
            gone.extend(all_before.iter().filter(|net| !is_named(net)).map(element));
            let none = [];
            let new = lacking(&after, if is_unknown { &none } else { &before });
            come.extend(new.iter().map(element).filter(|element| !self.elements.contains(element)));
        }
        (gone, come)
    }

    /// The members of a group.
    fn of_group(&self, number: u32) -> impl Iterator<Item = &Element> {
        let first = Element::Member(number, FIRST_NET);
        self.elements
            .range(first..)
            .take_while(move |element| matches!(element, Element::Member(of, _) if *of == number))
    }
}

/// The members of one group, as chains that change name them.
#[derive(Default)]
struct Naming<'a> {
    before: Vec<&'a BTreeSet<IpNet>>,
    after: Vec<&'a BTreeSet<IpNet>>,
    /// A chain may have named others before, which we do not know.
    is_unknown: bool,
}

/// What is in one of these, and in none of the others.
fn lacking(these: &[&BTreeSet<IpNet>], others: &[&BTreeSet<IpNet>]) -> Vec<IpNet> {
    match (these, others) {
        ([one], [other]) => one.difference(other).copied().collect(),
        _ => {
            let all = these.iter().flat_map(|set| set.iter());
            all.filter(|net| !others.iter().any(|other| other.contains(net))).copied().collect()
        }
    }
}

/// Not after any other.
const FIRST_NET: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0));

/// The members of the groups that a chain names.
pub(super) fn members_of(chain: &Chain) -> impl Iterator<Item = Element> {
    let named = chain.members();
    named.flat_map(|(number, members)| members.iter().map(move |net| Element::Member(number, *net)))
}

/// Whether a group loses members that a chain names of which we do not know what it let through.
pub(super) fn forgets(removed: &BTreeSet<Element>, held: &Held, chain: &Chain) -> bool {
    held.chain.is_none()
        && chain.members().any(|(number, _)| {
            let first = Element::Member(number, FIRST_NET);
            matches!(removed.range(first..).next(), Some(Element::Member(of, _)) if *of == number)
        })
}
