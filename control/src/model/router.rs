//! Rows of routers, floating IPs and port forwardings.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::network::Standard;

/// A router. Its interfaces are ports whose device it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Router {
    /// Name, owner and the like.
    #[serde(flatten)]
    pub standard: Standard,
    /// Carries traffic.
    pub admin_state_up: bool,
    /// The way out.
    pub gateway: Option<RouterGateway>,
    /// Routes beside those of its interfaces: destination and next hop.
    pub routes: BTreeSet<(IpNet, IpAddr)>,
    /// Zones that it was wished in.
    pub zone_hints: Vec<String>,
    /// Grows with each interface, floating IP and forwarding that comes or goes, so that two changes at once that
    /// must not both happen cannot.
    pub parts: u64,
}

/// A router's way out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterGateway {
    /// The external network.
    pub network_id: String,
    /// The router's port there.
    pub port_id: String,
    /// What has no floating IP goes out under the router's own address.
    pub enable_snat: bool,
    /// Its QoS policy.
    #[serde(default)]
    pub qos_policy_id: Option<String>,
}

/// A floating IP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FloatingIp {
    /// Description, owner and the like; it has no name.
    #[serde(flatten)]
    pub standard: Standard,
    /// The external network.
    pub network_id: String,
    /// Its address there.
    pub address: Ipv4Addr,
    /// The port that holds the address.
    pub holder_port_id: String,
    /// What it leads to.
    pub target: Option<FloatingTarget>,
    /// The router that its single ports are forwarded by; that of the target, where there is one.
    pub router_id: Option<String>,
    /// Its name in the domain.
    #[serde(default)]
    pub dns_name: String,
    /// The domain, with its dot at the end.
    #[serde(default)]
    pub dns_domain: String,
    /// Its QoS policy.
    #[serde(default)]
    pub qos_policy_id: Option<String>,
}

/// What a floating IP leads to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FloatingTarget {
    /// The port.
    pub port_id: String,
    /// Which of the port's addresses.
    pub address: Ipv4Addr,
}

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// As the network service writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// The IP protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// Some of a floating IP's ports, each with the one that it leads to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortForwarding {
    /// Description, owner (that of the floating IP) and the like.
    #[serde(flatten)]
    pub standard: Standard,
    /// The floating IP.
    pub floating_ip_id: String,
    /// TCP or UDP.
    pub transport: Transport,
    /// First and last port outside.
    pub external: (u16, u16),
    /// First and last port inside: as many, or one.
    pub internal: (u16, u16),
    /// The port (of a network) inside.
    pub internal_port_id: String,
    /// Which of its addresses.
    pub internal_address: Ipv4Addr,
}

/// How far a router's host has come with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterState {
    /// The router's id.
    pub id: String,
    /// The host.
    pub host: String,
    /// The ports that it has up.
    pub ports: BTreeSet<String>,
    /// The floating addresses that it translates, each with the one inside.
    pub floating: BTreeSet<(Ipv4Addr, Ipv4Addr)>,
    /// Why it is not as it shall be: one sentence.
    pub fault: Option<String>,
}
