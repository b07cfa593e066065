//! What control and a host's agent say of networks: where their frames travel, what their guests may ask names of, and the
//! security groups of their ports.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// One network on one host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkWanted {
    /// The network's id.
    pub id: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// Addresses of the host itself: only where the host is the network's gateway.
    pub host_addresses: Vec<IpNet>,
    /// The VXLAN network identifier, if the network can span hosts.
    pub vni: Option<u32>,
    /// The ports of the network that are on other hosts, where hosts have tunnel addresses.
    #[serde(default)]
    pub remotes: Vec<RemotePortWanted>,
    /// The physical network that it is on, if it is on one.
    pub physical: Option<PhysicalWanted>,
}

/// A port of a network that is on another host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemotePortWanted {
    /// Its MAC.
    pub mac: [u8; 6],
    /// Its host's tunnel address.
    pub host: Ipv4Addr,
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
}

/// Where a network is on a physical one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhysicalWanted {
    /// The physical network's name: hosts know which interface of theirs it is.
    pub name: String,
    /// The VLAN identifier; frames travel without a tag if absent.
    pub vlan: Option<u16>,
}

/// Names that guests on a network may ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneWanted {
    /// What devices name it by.
    pub id: String,
    /// The domain that they are in, without a dot at its end.
    pub domain: String,
    /// What is in it, each with its addresses.
    pub names: BTreeMap<String, BTreeSet<IpAddr>>,
    /// The network's subnets: an address in them that has no name has none anywhere.
    pub prefixes: BTreeSet<IpNet>,
}

/// One security group with its rules resolved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupWanted {
    /// The group's id.
    pub id: String,
    /// What it allows; members of remote groups stand as addresses.
    pub rules: BTreeSet<net::spec::Rule>,
    /// They are asked of every packet: what answers is not let through for that.
    #[serde(default)]
    pub stateless: bool,
}
