//! Rows of the network service.

pub mod address_group;
pub mod metering;
pub mod pool;
pub mod qos;
pub mod rbac;
pub mod trunk;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What all rows of this service share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standard {
    /// Its id.
    pub id: String,
    /// The owner's project.
    pub project_id: String,
    /// Need not be unique.
    pub name: String,
    /// Free text.
    pub description: String,
    /// Tags.
    pub tags: BTreeSet<String>,
    /// Grows with each change, from 0.
    pub revision: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

/// How a network's frames travel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkKind {
    /// Untagged on a physical network; on the one called `public`, which is on no interface, the host is the gateway.
    Flat {
        /// The physical network's name.
        physical_network: String,
    },
    /// With a tag on a physical network (IEEE 802.1Q).
    Vlan {
        /// The physical network's name.
        physical_network: String,
        /// The VLAN identifier.
        vlan: u16,
    },
    /// In VXLAN between hosts.
    Vxlan {
        /// The network identifier.
        vni: u32,
    },
}

/// A network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Name, owner and the like.
    #[serde(flatten)]
    pub standard: Standard,
    /// How its frames travel.
    pub kind: NetworkKind,
    /// MTU in bytes.
    pub mtu: u32,
    /// Carries traffic.
    pub admin_state_up: bool,
    /// Everyone may use it.
    pub shared: bool,
    /// Reaches the outside (`router:external`).
    pub external: bool,
    /// New ports have port security.
    pub port_security_enabled: bool,
    /// The default for `--nic auto` among external networks.
    pub is_default: bool,
    /// Zones that it was wished in.
    #[serde(default)]
    pub zone_hints: Vec<String>,
    /// The QoS policy of its ports that have none of their own.
    #[serde(default)]
    pub qos_policy_id: Option<String>,
    /// The domain of its ports' names, with a dot at its end; the cloud's if empty.
    #[serde(default)]
    pub dns_domain: String,
}

/// The topology that was made for a project when somebody asked for one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AutoTopology {
    /// The project.
    pub project_id: String,
    /// Its network, with which it goes.
    pub network_id: String,
    /// Its router, which may be gone.
    pub router_id: String,
}

/// What is on a network has changed so often; see `service::network::parts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkParts {
    /// The network.
    pub network_id: String,
    /// Ports and addresses that came, subnets that went.
    pub changes: u64,
}

/// A subnet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// Name, owner and the like.
    #[serde(flatten)]
    pub standard: Standard,
    /// The network it is of.
    pub network_id: String,
    /// Its prefix.
    pub cidr: IpNet,
    /// The gateway's address.
    pub gateway_ip: Option<IpAddr>,
    /// Whether DHCP is answered.
    pub enable_dhcp: bool,
    /// Ranges from which addresses are given, both ends included.
    pub allocation_pools: Vec<(IpAddr, IpAddr)>,
    /// Name servers.
    pub dns_nameservers: Vec<IpAddr>,
    /// Destination and next hop.
    pub host_routes: Vec<(IpNet, IpAddr)>,
    /// What routers announce of it, if it is IPv6.
    #[serde(default)]
    pub ipv6_ra_mode: Option<Ipv6Mode>,
    /// How hosts come to their addresses, if it is IPv6.
    #[serde(default)]
    pub ipv6_address_mode: Option<Ipv6Mode>,
    /// The pool that its prefix is of.
    #[serde(default)]
    pub subnetpool_id: Option<String>,
    /// The owners of ports that it is for; all if there are none.
    #[serde(default)]
    pub service_types: Vec<String>,
    /// The address that DHCP answers come from, taken from the pool when the subnet is made.
    pub dhcp_server: Option<Ipv4Addr>,
}

/// How hosts on an IPv6 subnet come to their addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ipv6Mode {
    /// They choose them from announced prefixes (RFC 4862).
    Slaac,
    /// DHCPv6 gives them (RFC 8415).
    Dhcpv6Stateful,
    /// They choose them; DHCPv6 says the rest.
    Dhcpv6Stateless,
}

impl Ipv6Mode {
    /// As the API calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Slaac => "slaac",
            Self::Dhcpv6Stateful => "dhcpv6-stateful",
            Self::Dhcpv6Stateless => "dhcpv6-stateless",
        }
    }

    /// Whether hosts choose their addresses themselves.
    pub fn is_auto(self) -> bool {
        matches!(self, Self::Slaac | Self::Dhcpv6Stateless)
    }
}

impl Subnet {
    /// Whether hosts choose their addresses themselves.
    pub fn is_auto(&self) -> bool {
        [self.ipv6_ra_mode, self.ipv6_address_mode].into_iter().flatten().any(Ipv6Mode::is_auto)
    }
}

/// One address of a port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FixedIp {
    /// The subnet.
    pub subnet_id: String,
    /// The address.
    pub ip_address: IpAddr,
}

/// A port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Name, owner and the like.
    #[serde(flatten)]
    pub standard: Standard,
    /// The network it is on.
    pub network_id: String,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Its addresses.
    pub fixed_ips: Vec<FixedIp>,
    /// Further source addresses the guest may use.
    pub allowed_address_pairs: Vec<(IpNet, [u8; 6])>,
    /// Carries traffic.
    pub admin_state_up: bool,
    /// Security groups' ids.
    pub security_groups: Vec<String>,
    /// Anti-spoofing and groups hold.
    pub port_security_enabled: bool,
    /// What uses it: a server's id.
    pub device_id: String,
    /// What kind of thing uses it (`compute:nova`).
    pub device_owner: String,
    /// The host it is bound to.
    pub host: Option<String>,
    /// The host has it up.
    pub active: bool,
    /// Made with its server, and deleted with it.
    pub owned_by_server: bool,
    /// Its QoS policy.
    #[serde(default)]
    pub qos_policy_id: Option<String>,
    /// DHCP options of its own.
    #[serde(default)]
    pub extra_dhcp_opts: Vec<ExtraDhcpOption>,
    /// Its name in its network's domain; made of its addresses if empty.
    #[serde(default)]
    pub dns_name: String,
}

impl Port {
    /// The ids of its network, of whoever has it, and of its groups.
    pub fn finders(&self) -> Vec<&str> {
        let groups = self.security_groups.iter().map(String::as_str);
        let has = [self.network_id.as_str(), self.device_id.as_str()];
        groups.chain(has.into_iter().filter(|id| !id.is_empty())).collect()
    }
}

/// A DHCP option of a port's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtraDhcpOption {
    /// Its name, as dnsmasq has it, or its number.
    pub name: String,
    /// Its value.
    pub value: String,
    /// For DHCP (4) or DHCPv6 (6).
    pub ip_version: u8,
}

/// A security group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityGroup {
    /// Name, owner and the like.
    #[serde(flatten)]
    pub standard: Standard,
    /// Replies to what was allowed are allowed.
    pub stateful: bool,
}

/// A rule of a security group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityGroupRule {
    /// Description, owner and the like.
    #[serde(flatten)]
    pub standard: Standard,
    /// The group.
    pub security_group_id: String,
    /// Seen from the guest.
    pub direction: net::spec::Direction,
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
    /// The other side by group.
    pub remote_group_id: Option<String>,
    /// The other side by address group.
    #[serde(default)]
    pub remote_address_group_id: Option<String>,
}
