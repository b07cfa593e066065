//! What control and a host's agent say of routers: how one shall be, and how its host has it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// A router as it shall be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterWanted {
    /// The router's id.
    pub id: String,
    /// Its ports.
    pub links: Vec<RouterLinkWanted>,
    /// Routes beside those that its addresses give: destination and next hop.
    pub routes: BTreeSet<(IpNet, IpAddr)>,
    /// The port that leads outside, with the address that what has none of its own there is hidden behind.
    pub outside: Option<(String, Option<Ipv4Addr>)>,
    /// Addresses outside, each with the one inside that it stands for.
    pub floating: BTreeSet<(Ipv4Addr, Ipv4Addr)>,
    /// Ports outside, each with where it leads.
    pub forwardings: BTreeSet<ForwardingWanted>,
    /// What is counted, by the ids of metering labels.
    #[serde(default)]
    pub labels: BTreeMap<String, BTreeSet<net::spec::MeterRule>>,
    /// What is held of what comes for addresses outside and leaves from them.
    #[serde(default)]
    pub limits: BTreeSet<net::spec::AddressLimit>,
    /// The code points of what leaves from addresses outside.
    #[serde(default)]
    pub marks: BTreeMap<IpAddr, u8>,
    /// The address of which limits and code point are those of IPv6, too.
    #[serde(default)]
    pub ipv6_as: Option<IpAddr>,
}

/// A port of a router.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterLinkWanted {
    /// The port's id.
    pub port_id: String,
    /// The network's id.
    pub network_id: String,
    /// The router's MAC address there.
    pub mac: [u8; 6],
    /// MTU in bytes.
    pub mtu: u32,
    /// The router's own addresses there.
    pub addresses: BTreeSet<IpNet>,
}

/// One forwarded port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ForwardingWanted {
    /// The address outside.
    pub address: Ipv4Addr,
    /// The IP protocol number.
    pub protocol: u8,
    /// The port outside.
    pub port: u16,
    /// The address inside.
    pub to: Ipv4Addr,
    /// The port inside.
    pub to_port: u16,
}

/// A router as its host has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterObserved {
    /// The router's id.
    pub id: String,
    /// The ids of the ports that it has up.
    pub ports: BTreeSet<String>,
    /// The floating addresses that it translates, each with the one inside.
    pub floating: BTreeSet<(Ipv4Addr, Ipv4Addr)>,
    /// Why it is not as it shall be: one sentence.
    pub fault: Option<String>,
}

impl RouterObserved {
    /// All that is wanted.
    pub fn whole(wanted: &RouterWanted) -> Self {
        Self {
            id: wanted.id.clone(),
            ports: wanted.links.iter().map(|link| link.port_id.clone()).collect(),
            floating: wanted.floating.clone(),
            fault: None,
        }
    }
}
