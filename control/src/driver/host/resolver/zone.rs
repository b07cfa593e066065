//! The names of one network: what its ports are called, and which address is whose. Pure.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use domain::base::iana::Rtype;
use domain::base::name::{Label, Name, ToLabelIter};
use ipnet::IpNet;

use crate::agent::protocol::ZoneWanted;

/// A name as it is compared: in small letters, as on the wire (RFC 4034 §6.2).
type Key = Vec<u8>;
/// A name of its own.
pub(super) type OwnName = Name<Vec<u8>>;

/// One network's names.
#[derive(Debug, Default)]
pub(super) struct Zone {
    domain: Option<OwnName>,
    addresses: HashMap<Key, Vec<IpAddr>>,
    names: HashMap<IpAddr, OwnName>,
    prefixes: Vec<IpNet>,
}

/// What is found of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// It is not of this network: somebody else may know it.
    Foreign,
    /// It would be of this network, and is not there.
    Nothing,
    /// It is there, with these addresses of the asked type, which may be none.
    Addresses(Vec<IpAddr>),
    /// The address has this name.
    Name(OwnName),
}

impl Zone {
    /// What cannot be a name is left out.
    pub(super) fn of(wanted: &ZoneWanted) -> Self {
        let domain = Name::<Vec<u8>>::vec_from_str(&wanted.domain).ok().filter(|domain| !domain.is_root());
        let Some(domain) = domain else { return Self::default() };
        let mut zone = Self { prefixes: wanted.prefixes.iter().copied().collect(), ..Self::default() };
        for (host, addresses) in &wanted.names {
            let Ok(name) = Name::<Vec<u8>>::vec_from_str(&format!("{host}.{}", wanted.domain)) else {
                continue;
            };
            for address in addresses {
                zone.names.entry(*address).or_insert_with(|| name.clone());
            }
            zone.addresses.entry(key(&name)).or_default().extend(addresses);
        }
        zone.domain = Some(domain);
        zone
    }

    /// Looks a name up; one of a single label is looked for in the network's domain.
    pub(super) fn look_up(&self, name: &OwnName, kind: Rtype) -> Found {
        let Some(domain) = &self.domain else { return Found::Foreign };
        if kind == Rtype::PTR
            && let Some(address) = address_of(name)
        {
            return match self.names.get(&address) {
                Some(name) => Found::Name(name.clone()),
                None if self.prefixes.iter().any(|prefix| prefix.contains(&address)) => Found::Nothing,
                None => Found::Foreign,
            };
        }
        let is_plain = name.label_count() == 2 && [Rtype::A, Rtype::AAAA].contains(&kind);
        let own = if is_plain { joined(name, domain) } else { Some(name.clone()) };
        let Some(own) = own.filter(|own| own.ends_with(domain)) else { return Found::Foreign };
        match self.addresses.get(&key(&own)) {
            Some(addresses) => {
                Found::Addresses(addresses.iter().copied().filter(|ip| is_of(*ip, kind)).collect())
            }
            None if own.name_eq(domain) => Found::Addresses(Vec::new()),
            None => Found::Nothing,
        }
    }
}

use domain::base::ToName as _;

fn key(name: &OwnName) -> Key {
    name.as_slice().to_ascii_lowercase()
}

fn joined(name: &OwnName, domain: &OwnName) -> Option<OwnName> {
    let first = &name.as_slice()[..name.as_slice().len() - 1];
    Name::from_octets([first, domain.as_slice()].concat()).ok()
}

fn is_of(address: IpAddr, kind: Rtype) -> bool {
    match kind {
        Rtype::A => address.is_ipv4(),
        Rtype::AAAA => address.is_ipv6(),
        _ => kind == Rtype::ANY,
    }
}

/// The address that a reverse name asks for (RFC 1035 §3.5, RFC 3596 §2.5).
fn address_of(name: &OwnName) -> Option<IpAddr> {
    let labels: Vec<&Label> = name.iter_labels().collect();
    let is = |label: &Label, text: &str| label.as_slice().eq_ignore_ascii_case(text.as_bytes());
    let (parts, kind) = match &labels[..] {
        [parts @ .., kind, arpa, _root] if is(arpa, "arpa") => (parts, kind),
        _ => return None,
    };
    let number = |label: &Label, radix| {
        let text = std::str::from_utf8(label.as_slice()).ok()?;
        let plain = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        u8::from_str_radix(text, radix).ok().filter(|_| plain)
    };
    if is(kind, "in-addr") {
        let parts: Option<Vec<u8>> = parts.iter().rev().map(|part| number(part, 10)).collect();
        return <[u8; 4]>::try_from(parts?).ok().map(|octets| Ipv4Addr::from(octets).into());
    }
    if !is(kind, "ip6") {
        return None;
    }
    let parts: Option<Vec<u8>> =
        parts.iter().rev().map(|part| number(part, 16).filter(|_| part.len() == 1)).collect();
    let nibbles = <[u8; 32]>::try_from(parts?).ok()?;
    let mut octets = [0; 16];
    for (octet, pair) in octets.iter_mut().zip(nibbles.chunks(2)) {
        *octet = pair[0] << 4 | pair[1];
    }
    Some(Ipv6Addr::from(octets).into())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn zone() -> Zone {
        let names = [
            ("web", vec!["10.0.0.5", "2001:db8::5"]),
            ("db", vec!["10.0.0.6"]),
            ("not..one", vec!["10.0.0.7"]),
        ];
        let names = names.map(|(name, addresses)| {
            (name.to_owned(), addresses.into_iter().map(|text| text.parse().unwrap()).collect())
        });
        Zone::of(&ZoneWanted {
            id: "n".into(),
            domain: "example.org".into(),
            names: BTreeMap::from(names),
            prefixes: ["10.0.0.0/24".parse().unwrap(), "2001:db8::/64".parse().unwrap()].into(),
        })
    }

    fn name(text: &str) -> OwnName {
        Name::vec_from_str(text).unwrap()
    }

    fn found(text: &str, kind: Rtype) -> Found {
        zone().look_up(&name(text), kind)
    }

    fn addresses(texts: &[&str]) -> Found {
        Found::Addresses(texts.iter().map(|text| text.parse().unwrap()).collect())
    }

    #[test]
    fn names_are_found_whole_or_plain_and_in_letters_of_any_size() {
        for text in ["web.example.org", "WEB.Example.ORG.", "web"] {
            assert_eq!(found(text, Rtype::A), addresses(&["10.0.0.5"]), "{text}");
            assert_eq!(found(text, Rtype::AAAA), addresses(&["2001:db8::5"]), "{text}");
        }
        assert_eq!(found("web.example.org", Rtype::ANY), addresses(&["10.0.0.5", "2001:db8::5"]));
        assert_eq!(found("db.example.org", Rtype::AAAA), addresses(&[]), "it is there, without one");
        assert_eq!(found("web.example.org", Rtype::MX), addresses(&[]));
        assert_eq!(found("example.org", Rtype::SOA), addresses(&[]));
    }

    #[test]
    fn what_is_not_there_is_nothing_in_the_own_domain_and_foreign_elsewhere() {
        for text in ["none.example.org", "a.web.example.org", "none"] {
            assert_eq!(found(text, Rtype::A), Found::Nothing, "{text}");
        }
        for (text, kind) in [
            ("example.com", Rtype::A),
            ("web.example.org.com", Rtype::A),
            ("notexample.org", Rtype::A),
            ("org", Rtype::NS),
            (".", Rtype::NS),
        ] {
            assert_eq!(found(text, kind), Found::Foreign, "{text}");
        }
        assert_eq!(Zone::default().look_up(&name("web"), Rtype::A), Found::Foreign);
    }

    #[test]
    fn addresses_have_names_and_unknown_ones_of_the_network_have_none() {
        let web = Found::Name(name("web.example.org"));
        assert_eq!(found("5.0.0.10.in-addr.arpa", Rtype::PTR), web);
        let of_v6 = Name::<Vec<u8>>::reverse_from_addr("2001:db8::5".parse().unwrap()).unwrap().to_string();
        assert_eq!(found(&of_v6.to_uppercase(), Rtype::PTR), web);
        assert_eq!(found("9.0.0.10.in-addr.arpa", Rtype::PTR), Found::Nothing);
        for text in [
            "9.9.9.9.in-addr.arpa",
            "0.0.10.in-addr.arpa",
            "x.0.0.10.in-addr.arpa",
            "+5.0.0.10.in-addr.arpa",
            "5.ip6.arpa",
            "arpa",
        ] {
            assert_eq!(found(text, Rtype::PTR), Found::Foreign, "{text}");
        }
        assert_eq!(found("5.0.0.10.in-addr.arpa", Rtype::A), Found::Foreign);
    }
}
