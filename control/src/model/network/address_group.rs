//! Rows of address groups, and of the rules that new security groups begin with.

use std::collections::BTreeSet;

use ipnet::IpNet;
use net::spec::Direction;
use serde::{Deserialize, Serialize};

use super::Standard;

/// Addresses that rules of security groups name together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressGroup {
    /// Name, owner and the like.
    #[serde(flatten)]
    pub standard: Standard,
    /// The addresses, as prefixes.
    pub addresses: BTreeSet<IpNet>,
}

/// A rule that new groups begin with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DefaultRule {
    /// Its id.
    pub id: String,
    /// Free text.
    pub description: String,
    /// Seen from the guest.
    pub direction: Direction,
    /// 4 or 6.
    pub ip_version: u8,
    /// As the client wrote it: a name or a number.
    pub protocol: Option<String>,
    /// First port, or ICMP type.
    pub port_range_min: Option<u16>,
    /// Last port, or ICMP code.
    pub port_range_max: Option<u16>,
    /// The other side by prefix.
    pub remote_ip_prefix: Option<IpNet>,
    /// The other side by group; `PARENT` is the new group itself.
    pub remote_group_id: Option<String>,
    /// The other side by address group.
    pub remote_address_group_id: Option<String>,
    /// Default groups begin with it.
    pub used_in_default_sg: bool,
    /// Other groups begin with it.
    pub used_in_non_default_sg: bool,
}

/// All of them: one row, which is absent until somebody changes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DefaultRules {
    /// Always the same.
    pub id: String,
    /// The rules in the order they were made.
    pub rules: Vec<DefaultRule>,
}
