//! Rows of subnet pools and address scopes.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::Standard;

/// Within it no address is twice: pools of one scope do not overlap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressScope {
    /// Name, owner and the like.
    #[serde(flatten)]
    pub standard: Standard,
    /// 4 or 6.
    pub ip_version: u8,
    /// Everyone may use it.
    pub shared: bool,
}

/// Prefixes that subnets are cut from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubnetPool {
    /// Name, owner and the like.
    #[serde(flatten)]
    pub standard: Standard,
    /// The prefixes, joined where they can be, in order.
    pub prefixes: Vec<IpNet>,
    /// 4 or 6.
    pub ip_version: u8,
    /// The shortest prefix that a subnet of it can have.
    pub min_prefixlen: u8,
    /// The longest.
    pub max_prefixlen: u8,
    /// That of a subnet which says none.
    pub default_prefixlen: u8,
    /// How many addresses (of IPv6: prefixes of 64 bits) one project's subnets of it may have; absent is without limit.
    pub default_quota: Option<u64>,
    /// The scope that it is in.
    pub address_scope_id: Option<String>,
    /// The one of its family that subnets are of which ask for the default pool.
    pub is_default: bool,
    /// Everyone may use it.
    pub shared: bool,
}
