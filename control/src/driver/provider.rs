//! Physical networks: which interface of a host each is on, as the command line says it.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::check_name;

/// The VLAN identifiers there are (IEEE 802.1Q §9.6).
pub const VLANS: RangeInclusive<u16> = 1..=4094;

/// A physical network and how a host is on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provider {
    /// The physical network's name: `provider:physical_network`.
    pub name: String,
    /// The host's interface on it.
    pub interface: String,
    /// The VLAN identifiers that are given to networks that name none.
    pub vlans: Option<RangeInclusive<u16>>,
}

/// As it is written on a command line: `NAME=INTERFACE`, or `NAME=INTERFACE,FIRST-LAST` with VLAN identifiers to give.
impl FromStr for Provider {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || format!("`{text}` is not NAME=INTERFACE or NAME=INTERFACE,FIRST-LAST");
        let (name, rest) = text.split_once('=').ok_or_else(form)?;
        let (interface, vlans) = match rest.split_once(',') {
            Some((interface, vlans)) => (interface, Some(vlans)),
            None => (rest, None),
        };
        check_name(name, "a physical network")?;
        if !net::names::is_interface_name(interface) {
            return Err(format!("`{interface}` is no name of an interface"));
        }
        let vlans = vlans.map(range).transpose()?;
        Ok(Self { name: name.to_owned(), interface: interface.to_owned(), vlans })
    }
}

fn range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let ends = text.split_once('-').unwrap_or((text, text));
    match (ends.0.parse(), ends.1.parse()) {
        (Ok(first), Ok(last)) if VLANS.contains(&first) && VLANS.contains(&last) && first <= last => {
            Ok(first..=last)
        }
        _ => Err(format!(
            "`{text}` is no range of VLAN identifiers: two numbers from {} to {}, such as 100-199",
            VLANS.start(),
            VLANS.end()
        )),
    }
}

/// Whether a host can have these together; `reserved` is the name that the cloud itself has taken.
///
/// # Errors
/// One sentence.
pub fn check_providers(providers: &[Provider], reserved: &str) -> Result<(), String> {
    for (index, one) in providers.iter().enumerate() {
        if one.name == reserved {
            return Err(format!("the physical network `{reserved}` is the host's own; choose another name"));
        }
        for other in &providers[..index] {
            if one.name == other.name {
                return Err(format!("two physical networks are called `{}`", one.name));
            }
            if one.interface == other.interface {
                let (first, second) = (&other.name, &one.name);
                return Err(format!("`{first}` and `{second}` are both on {}", one.interface));
            }
        }
    }
    Ok(())
}

/// The interface of each physical network.
#[must_use]
pub fn interfaces(providers: &[Provider]) -> BTreeMap<String, String> {
    providers.iter().map(|one| (one.name.clone(), one.interface.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn providers_are_read_as_they_are_written() {
        let read = |text: &str| text.parse::<Provider>();
        let plain = Provider { name: "lan".into(), interface: "eth1".into(), vlans: None };
        assert_eq!(read("lan=eth1"), Ok(plain.clone()));
        assert_eq!(read("lan=eth1,100-199"), Ok(Provider { vlans: Some(100..=199), ..plain.clone() }));
        assert_eq!(read("lan=eth1,7"), Ok(Provider { vlans: Some(7..=7), ..plain }));
        for wrong in [
            "lan",
            "=eth1",
            "lan=",
            "lan=a/b",
            "lan=eth1,",
            "lan=eth1,0-5",
            "lan=eth1,9-8",
            "lan=eth1,1-4095",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn two_on_one_interface_and_names_in_use_are_refused() {
        let check = |texts: &[&str]| {
            let providers: Vec<Provider> = texts.iter().map(|text| text.parse().unwrap()).collect();
            check_providers(&providers, "public")
        };
        assert_eq!(check(&["a=eth1", "b=eth2,1-5"]), Ok(()));
        assert_eq!(check(&["a=eth1", "a=eth2"]).unwrap_err(), "two physical networks are called `a`");
        assert_eq!(check(&["a=eth1", "b=eth1"]).unwrap_err(), "`a` and `b` are both on eth1");
        assert!(check(&["public=eth1"]).unwrap_err().contains("the host's own"));
    }
}
