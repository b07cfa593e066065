//! Names that carry their owner: a cloud's tag in every link name, alias and table, so that clouds on one host never
//! touch each other's links and what Wisp did not make is never touched at all.
//!
//! | what | form | bytes |
//! |---|---|---|
//! | bridge | `wb<tag>-<id>` | 15 |
//! | tap | `wt<tag>-<id>` | 15 |
//! | VXLAN device | `wx<tag>-<id>` | 15 |
//! | VLAN device | `wv<tag>-<id>` | 15 |
//! | link of a router, both ends | `wr<tag>-<id>` | 15 |
//! | network namespace of a router | `wn<tag>-<id>` | 15 |
//! | alias of each | `wisp:<tag>:<text>` | at most [`ALIAS_MAX`] |
//! | nftables table | `wisp-<tag>` | 9 |
//!
//! `<tag>` is 4 and `<id>` 8 lower-case hexadecimal digits.

use std::fmt;
use std::str::FromStr;

use crate::spec::{InterfaceName, NamespaceName};

/// The longest interface name in bytes (the kernel's `IFNAMSIZ` less its terminating zero).
pub const INTERFACE_NAME_MAX: usize = 15;

/// The longest alias in bytes (the kernel's `IFALIASZ` less its terminating zero).
pub const ALIAS_MAX: usize = 255;

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LinkKind {
    /// A network's bridge.
    Bridge,
    /// A port's tap.
    Tap,
    /// A network's VXLAN device.
    Vxlan,
    /// A network's VLAN device on a physical interface.
    Vlan,
    /// A router's link to a bridge.
    Router,
    /// The VXLAN device that networks share, or the bridge that it is a port of.
    Fabric,
    /// A network's part of the device that networks share.
    Shared,
}

impl LinkKind {
    const ALL: [Self; 7] =
        [Self::Bridge, Self::Tap, Self::Vxlan, Self::Vlan, Self::Router, Self::Fabric, Self::Shared];

    const fn letters(self) -> &'static str {
        match self {
            Self::Bridge => "wb",
            Self::Tap => "wt",
            Self::Vxlan => "wx",
            Self::Vlan => "wv",
            Self::Router => "wr",
            Self::Fabric => "wf",
            Self::Shared => "ws",
        }
    }
}

/// The mark of one cloud on one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OwnerTag(u16);

/// A text that is no owner tag.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("an owner tag is 4 lower-case hexadecimal digits, not {0:?}")]
pub struct InvalidOwnerTag(String);

impl OwnerTag {
    /// The tag with this number.
    #[must_use]
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u16 {
        self.0
    }

    /// A tag from what identifies a cloud, such as a random number kept in its state: the same in, the same out.
    ///
    /// Two clouds on one host share a tag with a chance of 1 in 65536; whoever picks the identity can look for links
    /// of that tag first.
    #[must_use]
    pub fn derive(identity: &[u8]) -> Self {
        let hash = short_id(identity);
        Self(((hash >> 16) ^ (hash & 0xffff)) as u16)
    }

    /// The name of a bridge.
    #[must_use]
    pub fn bridge(self, id: u32) -> InterfaceName {
        self.link(LinkKind::Bridge, id)
    }

    /// The name of a tap.
    #[must_use]
    pub fn tap(self, id: u32) -> InterfaceName {
        self.link(LinkKind::Tap, id)
    }

    /// The name of a VXLAN device.
    #[must_use]
    pub fn vxlan(self, id: u32) -> InterfaceName {
        self.link(LinkKind::Vxlan, id)
    }

    /// The name of a VLAN device.
    #[must_use]
    pub fn vlan(self, id: u32) -> InterfaceName {
        self.link(LinkKind::Vlan, id)
    }

    /// The name of a router's link.
    #[must_use]
    pub fn router_link(self, id: u32) -> InterfaceName {
        self.link(LinkKind::Router, id)
    }

    /// The names of the bridge and of the VXLAN device that networks share.
    #[must_use]
    pub fn fabric(self) -> [InterfaceName; 2] {
        [0, 1].map(|id| self.link(LinkKind::Fabric, id))
    }

    /// The name of a network's part of the VXLAN device that networks share.
    #[must_use]
    pub fn shared(self, id: u32) -> InterfaceName {
        self.link(LinkKind::Shared, id)
    }

    /// The name of a router's network namespace.
    #[must_use]
    pub fn namespace(self, id: u32) -> NamespaceName {
        format!("wn{self}-{id:08x}")
    }

    /// Whether a network namespace of this name is this cloud's.
    #[must_use]
    pub fn owns_namespace(self, name: &str) -> bool {
        is_namespace_name(name) && name[2..6] == self.to_string()
    }

    fn link(self, kind: LinkKind, id: u32) -> InterfaceName {
        format!("{}{id:08x}", self.prefix(kind))
    }

    /// What the names of this cloud's links of a kind begin with: 7 bytes.
    #[must_use]
    pub fn prefix(self, kind: LinkKind) -> String {
        format!("{}{self}-", kind.letters())
    }

    /// Whether a name has this tag, and which kind of link it then stands for.
    #[must_use]
    pub fn kind_of(self, name: &str) -> Option<LinkKind> {
        let is_of = |kind: &LinkKind| {
            name.strip_prefix(&self.prefix(*kind)).is_some_and(|id| id.len() == 8 && is_hexadecimal(id))
        };
        LinkKind::ALL.into_iter().find(is_of)
    }

    /// The alias that marks a link as this cloud's; `text` is for people and cut to fit [`ALIAS_MAX`].
    #[must_use]
    pub fn alias(self, text: &str) -> String {
        let mut alias = format!("wisp:{self}:{text}");
        let mut end = alias.len().min(ALIAS_MAX);
        while !alias.is_char_boundary(end) {
            end -= 1;
        }
        alias.truncate(end);
        alias
    }

    /// Whether an alias marks a link as this cloud's.
    #[must_use]
    pub fn owns_alias(self, alias: &str) -> bool {
        alias.starts_with(&format!("wisp:{self}:"))
    }

    /// The name of this cloud's nftables tables.
    #[must_use]
    pub fn table(self) -> String {
        format!("wisp-{self}")
    }
}

impl fmt::Display for OwnerTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}", self.0)
    }
}

impl FromStr for OwnerTag {
    type Err = InvalidOwnerTag;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidOwnerTag(text.chars().take(16).collect());
        if text.len() != 4 || !is_hexadecimal(text) {
            return Err(invalid());
        }
        u16::from_str_radix(text, 16).map(Self).map_err(|_| invalid())
    }
}

/// 32 bits of an identity, for the names above (FNV-1a): the same in, the same out.
///
/// Two of 1000 identities share their 32 bits with a chance of about 1 in 8600: whoever names links by it checks.
#[must_use]
pub fn short_id(identity: &[u8]) -> u32 {
    identity.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// The MAC that a bridge or VXLAN device of ours has, by its name: locally administered, unicast (IEEE 802 §8.4).
///
/// Unlike the alias it is there from the link's first moment, so one that was left half-made is still known as ours.
#[must_use]
pub fn link_mac(name: &str) -> [u8; 6] {
    let [a, b, c, d] = short_id(name.as_bytes()).to_be_bytes();
    [0x02, 0x77, a, b, c, d]
}

/// Whether a text has the form of the names of routers' namespaces, of whichever cloud.
#[must_use]
pub fn is_namespace_name(name: &str) -> bool {
    let parts = name.strip_prefix("wn").and_then(|rest| rest.split_once('-'));
    parts
        .is_some_and(|(tag, id)| tag.len() == 4 && id.len() == 8 && is_hexadecimal(tag) && is_hexadecimal(id))
}

fn is_hexadecimal(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether the kernel takes a text as an interface name, and no file path can be made of it.
#[must_use]
pub fn is_interface_name(name: &str) -> bool {
    (1..=INTERFACE_NAME_MAX).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_the_kernel_and_tell_their_kind() {
        let tag = OwnerTag::new(0x1a2b);
        for (name, kind) in [
            (tag.bridge(u32::MAX), LinkKind::Bridge),
            (tag.tap(0), LinkKind::Tap),
            (tag.vxlan(7), LinkKind::Vxlan),
            (tag.vlan(8), LinkKind::Vlan),
            (tag.router_link(9), LinkKind::Router),
            (tag.fabric()[1].clone(), LinkKind::Fabric),
            (tag.shared(10), LinkKind::Shared),
        ] {
            assert_eq!(name.len(), INTERFACE_NAME_MAX);
            assert!(is_interface_name(&name));
            assert_eq!(tag.kind_of(&name), Some(kind));
            assert_eq!(OwnerTag::new(0x1a2c).kind_of(&name), None);
        }
        for foreign in ["wt1a2b-", "wt1a2b-0000000g", "wt1a2b-0000000A", "eth0", ""] {
            assert_eq!(tag.kind_of(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn alias_is_cut_between_characters() {
        let alias = OwnerTag::new(1).alias(&"é".repeat(300));
        assert!(alias.len() <= ALIAS_MAX);
        assert!(OwnerTag::new(1).owns_alias(&alias));
        assert!(!OwnerTag::new(2).owns_alias(&alias));
    }

    #[test]
    fn tag_reads_back_what_it_prints() {
        let tag = OwnerTag::derive(b"some cloud");
        assert_eq!(tag.to_string().parse(), Ok(tag));
        for wrong in ["", "12345", "12G4", "+123", "é12"] {
            assert!(wrong.parse::<OwnerTag>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn namespaces_tell_whose_they_are_and_hold_no_path() {
        let tag = OwnerTag::new(0x1a2b);
        assert!(tag.owns_namespace(&tag.namespace(7)));
        assert!(!OwnerTag::new(0x1a2c).owns_namespace(&tag.namespace(7)));
        for wrong in [
            "",
            "wn1a2b-",
            "wn1a2b-0000000",
            "wn1a2b-../../ab",
            "wn1a2b-0000000G",
            "wr1a2b-00000007",
            "wné2b-00000007",
        ] {
            assert!(!is_namespace_name(wrong) && !tag.owns_namespace(wrong), "{wrong}");
        }
    }

    #[test]
    fn interface_names_hold_no_path() {
        for wrong in ["", ".", "..", "a/b", "a b", "sixteen-letters0", "é"] {
            assert!(!is_interface_name(wrong), "{wrong}");
        }
    }
}
