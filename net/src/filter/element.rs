//! The facts that rules look up.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Policy;
use crate::spec::InterfaceName;

/// One fact that the rules look up.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Element {
    /// The tap has no port security: whatever its guest sends passes, and it is sent everything.
    Open(InterfaceName),
    /// The guest may send from this MAC.
    Mac(InterfaceName, [u8; 6]),
    /// The guest may send from this address.
    Ipv4(InterfaceName, Ipv4Addr),
    /// The guest may send from every address of this prefix.
    Ipv4Prefix(InterfaceName, Ipv4Net),
    /// The guest may send IPv6 at all.
    Ipv6Port(InterfaceName),
    /// The guest may send from this address.
    Ipv6(InterfaceName, Ipv6Addr),
    /// The guest may send from every address of this prefix.
    Ipv6Prefix(InterfaceName, Ipv6Net),
    /// What these groups let through may begin, in both directions.
    Policy(InterfaceName, Policy),
    /// What the tap's groups do not let through is dropped, whatever came before.
    Stateless(InterfaceName),
    /// The tap's bridge and MAC: what is sent there is tracked, or is not.
    Target(InterfaceName, InterfaceName, [u8; 6], Target),
    /// Frames between ports of the bridge are no business of the host's IP forwarding.
    Bridged(InterfaceName),
    /// The host has addresses on the bridge and answers there.
    Gateway(InterfaceName),
    /// Connections on the bridge are tracked apart from all others, under this number.
    Zone(InterfaceName, u16),
    /// The same, for the bridge family's own tracking.
    BridgeZone(InterfaceName, u16),
    /// The group with this number has this member.
    Member(u32, IpNet),
}

/// Whether somebody asks for the connections that a frame's target is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// Nobody does.
    Untracked,
    /// The target's rules do; only told where another port of the host is stateless.
    Tracked,
}

impl Element {
    /// What is not after any element about this link, of each kind.
    pub(super) fn first_of_each_kind(link: &str) -> [Self; 14] {
        let link = || link.to_owned();
        [
            Self::Open(link()),
            Self::Mac(link(), [0; 6]),
            Self::Ipv4(link(), Ipv4Addr::UNSPECIFIED),
            Self::Ipv4Prefix(link(), Ipv4Net::default()),
            Self::Ipv6Port(link()),
            Self::Ipv6(link(), Ipv6Addr::UNSPECIFIED),
            Self::Ipv6Prefix(link(), Ipv6Net::default()),
            Self::Policy(link(), Policy::FIRST),
            Self::Stateless(link()),
            Self::Target(link(), InterfaceName::new(), [0; 6], Target::Untracked),
            Self::Bridged(link()),
            Self::Gateway(link()),
            Self::Zone(link(), 0),
            Self::BridgeZone(link(), 0),
        ]
    }

    /// The address, of a group's member.
    pub(super) fn member(&self) -> Option<IpNet> {
        match self {
            Self::Member(_, net) => Some(*net),
            _ => None,
        }
    }

    /// The link it is about; none if it is about a group.
    #[must_use]
    pub fn link(&self) -> &str {
        match self {
            Self::Open(link)
            | Self::Mac(link, _)
            | Self::Ipv4(link, _)
            | Self::Ipv4Prefix(link, _)
            | Self::Ipv6Port(link)
            | Self::Ipv6(link, _)
            | Self::Ipv6Prefix(link, _)
            | Self::Policy(link, _)
            | Self::Stateless(link)
            | Self::Target(link, ..)
            | Self::Bridged(link)
            | Self::Gateway(link)
            | Self::Zone(link, _)
            | Self::BridgeZone(link, _) => link,
            Self::Member(..) => "",
        }
    }
}
