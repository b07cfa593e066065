//! The sets and maps that rules look up: what is in them says what is allowed, and changes with what the host carries.

use super::message::Family;

/// A set that rules look up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Set {
    pub(super) family: Family,
    pub(super) name: &'static str,
    /// Type (nft's number, for `nft list`) and length in bytes of each part of the key.
    pub(super) fields: &'static [(u32, u32)],
    /// Whether elements are ranges.
    pub(super) ranges: bool,
    /// What it gives for a key, where it is a map.
    pub(super) data: Option<Data>,
}

/// What a map gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Data {
    Verdict,
    Policy,
    Zone,
}

pub(super) const IPV4_ADDRESS: (u32, u32) = (7, 4);
pub(super) const IPV6_ADDRESS: (u32, u32) = (8, 16);
const ETHERNET_ADDRESS: (u32, u32) = (9, 6);
const INTERFACE: (u32, u32) = (41, 16);
/// As nft's "integer".
const POLICY: (u32, u32) = (4, 16);
/// Likewise.
const GROUP: (u32, u32) = (4, 4);

const fn set(family: Family, name: &'static str, fields: &'static [(u32, u32)]) -> Set {
    Set { family, name, fields, ranges: false, data: None }
}

const fn ranges(family: Family, name: &'static str, fields: &'static [(u32, u32)]) -> Set {
    Set { family, name, fields, ranges: true, data: None }
}

const fn map(family: Family, name: &'static str, data: Data) -> Set {
    Set { family, name, fields: &[INTERFACE], ranges: false, data: Some(data) }
}

pub(super) const OPEN: Set = set(Family::Bridge, "open", &[INTERFACE]);
pub(super) const MACS: Set = set(Family::Bridge, "macs", &[INTERFACE, ETHERNET_ADDRESS]);
pub(super) const IPV4: Set = set(Family::Bridge, "ipv4", &[INTERFACE, IPV4_ADDRESS]);
pub(super) const IPV4_PREFIXES: Set = ranges(Family::Bridge, "ipv4_prefixes", &[INTERFACE, IPV4_ADDRESS]);
pub(super) const IPV6_PORTS: Set = set(Family::Bridge, "ipv6_ports", &[INTERFACE]);
pub(super) const IPV6: Set = set(Family::Bridge, "ipv6", &[INTERFACE, IPV6_ADDRESS]);
pub(super) const IPV6_PREFIXES: Set = ranges(Family::Bridge, "ipv6_prefixes", &[INTERFACE, IPV6_ADDRESS]);
pub(super) const BRIDGED: Set = set(Family::Inet, "bridged", &[INTERFACE, INTERFACE]);
pub(super) const GATEWAYS: Set = set(Family::Inet, "gateways", &[INTERFACE]);

/// The groups of each tap, as what is looked up next. An element that leads to a chain costs the kernel a walk through all
/// that do, in each chain that asks; so there are as many of those as sets of groups, and not as many as ports.
pub(super) const POLICIES: Set = map(Family::Bridge, "policies", Data::Policy);
pub(super) const EGRESS: Set = Set { fields: &[POLICY], ..map(Family::Bridge, "egress", Data::Verdict) };
pub(super) const INGRESS: Set = Set { fields: &[POLICY], ..map(Family::Bridge, "ingress", Data::Verdict) };
pub(super) const STATELESS: Set = set(Family::Bridge, "stateless", &[INTERFACE]);
pub(super) const TRACKED: Set = set(Family::Bridge, "tracked", &[INTERFACE, ETHERNET_ADDRESS]);
pub(super) const UNTRACKED: Set = set(Family::Bridge, "untracked", &[INTERFACE, ETHERNET_ADDRESS]);
pub(super) const ZONES: Set = map(Family::Inet, "zones", Data::Zone);
pub(super) const BRIDGE_ZONES: Set = map(Family::Bridge, "bridge_zones", Data::Zone);

/// The members of groups, by their numbers: single addresses apart from prefixes, whose sets are made anew with each change.
pub(super) const MEMBERS_IPV4: Set = set(Family::Bridge, "members_ipv4", &[GROUP, IPV4_ADDRESS]);
pub(super) const MEMBERS_IPV4_PREFIXES: Set =
    ranges(Family::Bridge, "members_ipv4_prefixes", &[GROUP, IPV4_ADDRESS]);
pub(super) const MEMBERS_IPV6: Set = set(Family::Bridge, "members_ipv6", &[GROUP, IPV6_ADDRESS]);
pub(super) const MEMBERS_IPV6_PREFIXES: Set =
    ranges(Family::Bridge, "members_ipv6_prefixes", &[GROUP, IPV6_ADDRESS]);

/// Every set.
pub(super) const SETS: [Set; 21] = [
    OPEN,
    MACS,
    IPV4,
    IPV4_PREFIXES,
    IPV6_PORTS,
    IPV6,
    IPV6_PREFIXES,
    POLICIES,
    EGRESS,
    INGRESS,
    STATELESS,
    TRACKED,
    UNTRACKED,
    BRIDGED,
    GATEWAYS,
    ZONES,
    BRIDGE_ZONES,
    MEMBERS_IPV4,
    MEMBERS_IPV4_PREFIXES,
    MEMBERS_IPV6,
    MEMBERS_IPV6_PREFIXES,
];
