//! What one host's network shall be, in names the kernel knows: no tenant, no cloud id.
//!
//! Everything Wisp makes is recognisable by the owner tag in its name and alias, so that what it did not make it
//! never touches.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// A name that fits the kernel's `IFNAMSIZ` (15 bytes): letters, digits, `-`, `_`, `.`.
pub type InterfaceName = String;

/// The whole wanted network of one host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostNetwork {
    /// Bridges by name: one per network.
    pub bridges: BTreeMap<InterfaceName, Bridge>,
    /// Taps by name: one per port.
    pub taps: BTreeMap<InterfaceName, Tap>,
    /// Security groups by the number that taps name them with.
    pub groups: BTreeMap<u32, Group>,
}

/// One network's bridge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bridge {
    /// MTU in bytes.
    pub mtu: u32,
    /// Addresses the host itself has on the bridge: only where the host is the network's gateway.
    pub host_addresses: Vec<IpNet>,
    /// A VXLAN device that carries the network between hosts.
    pub vxlan: Option<Vxlan>,
}

/// A VXLAN device (RFC 7348), made with `nolearning`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vxlan {
    /// The device's name.
    pub name: InterfaceName,
    /// The network identifier, 24 bits.
    pub vni: u32,
    /// This host's tunnel address.
    pub local: Ipv4Addr,
    /// The other hosts' tunnel addresses, for flooding.
    pub peers: BTreeSet<Ipv4Addr>,
}

/// One port's tap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tap {
    /// The bridge it is a port of.
    pub bridge: InterfaceName,
    /// MTU in bytes.
    pub mtu: u32,
    /// The only source MAC the guest may use.
    pub mac: [u8; 6],
    /// The only source addresses the guest may use (IPv4 and ARP sender).
    pub addresses: BTreeSet<IpNet>,
    /// Anti-spoofing and groups hold; off only where the port says so.
    pub port_security: bool,
    /// The groups whose rules hold for this tap.
    pub groups: BTreeSet<u32>,
}

/// A security group: what it lists is allowed, all else is not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// The rules.
    pub rules: BTreeSet<Rule>,
}

/// One allowed kind of traffic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Rule {
    /// Seen from the guest.
    pub direction: Direction,
    /// 4 or 6.
    pub ip_version: u8,
    /// The IP protocol number; every one if absent.
    pub protocol: Option<u8>,
    /// Destination ports, both ends included; of ICMP (1 and 58) the type and the code, where a code of [`u16::MAX`]
    /// is every code. A rule with ports for a protocol that has none matches nothing.
    pub ports: Option<(u16, u16)>,
    /// The other side.
    pub remote: Remote,
}

/// Direction seen from the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// To the guest.
    Ingress,
    /// From the guest.
    Egress,
}

/// The other side of a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Remote {
    /// Anyone.
    Any,
    /// Addresses under a prefix.
    Prefix(IpNet),
    /// The member addresses of a group on every host.
    Members(BTreeSet<IpNet>),
}
