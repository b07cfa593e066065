//! What one host's network shall be, in names the kernel knows: no tenant, no cloud id.
//!
//! Everything Wisp makes is recognisable by the owner tag in its name and alias, so that what it did not make it
//! never touches.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// A name that fits the kernel's `IFNAMSIZ` (15 bytes): letters, digits, `-`, `_`, `.`.
pub type InterfaceName = String;

/// The name of a network namespace of ours: see [`crate::names`].
pub type NamespaceName = String;

/// The whole wanted network of one host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostNetwork {
    /// Bridges by name: one per network.
    pub bridges: BTreeMap<InterfaceName, Bridge>,
    /// Taps by name: one per port.
    pub taps: BTreeMap<InterfaceName, Tap>,
    /// Security groups by the number that taps name them with.
    pub groups: BTreeMap<u32, Group>,
    /// Routers by the name of their namespace.
    pub routers: BTreeMap<NamespaceName, Router>,
    /// One VXLAN device for all networks, rather than one for each.
    pub fabric: Option<Fabric>,
}

/// A VXLAN device that all networks share, and the VLAN-aware bridge (IEEE 802.1Q) that it is the only port of: each
/// network is a VLAN there, and a device of that VLAN joins it to the network's own bridge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fabric {
    /// The bridge.
    pub bridge: InterfaceName,
    /// The VXLAN device.
    pub device: InterfaceName,
    /// This host's tunnel address.
    pub local: Ipv4Addr,
}

/// One network's bridge.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bridge {
    /// MTU in bytes.
    pub mtu: u32,
    /// Addresses the host itself has on the bridge: only where the host is the network's gateway.
    pub host_addresses: Vec<IpNet>,
    /// What carries the network between hosts.
    pub vxlan: Option<Vxlan>,
    /// What joins it to a network that is not the cloud's.
    pub uplink: Option<Uplink>,
}

/// How a bridge is joined to a physical network, on an interface that is not ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Uplink {
    /// The interface is a port of the bridge: frames travel as they are, and the interface is this bridge's alone.
    Flat {
        /// The interface.
        interface: InterfaceName,
    },
    /// A device of ours on the interface is: frames travel with a VLAN tag (IEEE 802.1Q).
    Vlan {
        /// The interface.
        interface: InterfaceName,
        /// The tag's VLAN identifier, 1 to 4094.
        vlan: u16,
        /// The device's name.
        device: InterfaceName,
    },
}

/// A VXLAN device (RFC 7348), or a network's part of the one that all share: what is behind it is told, never learnt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vxlan {
    /// The name of the device that is a port of the network's bridge.
    pub name: InterfaceName,
    /// The network identifier, 24 bits.
    pub vni: u32,
    /// This host's tunnel address; the shared device has its own.
    pub local: Ipv4Addr,
    /// The other hosts' tunnel addresses, for flooding.
    pub peers: BTreeSet<Ipv4Addr>,
    /// The ports of the network on other hosts, by MAC: what is sent to them goes to their host alone, and who asks for
    /// their addresses is answered here.
    pub remotes: BTreeMap<[u8; 6], RemotePort>,
}

/// A port on another host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemotePort {
    /// The host's tunnel address.
    pub host: Ipv4Addr,
    /// The port's addresses.
    pub addresses: BTreeSet<IpAddr>,
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
    /// Its groups' rules are asked of every packet, both ways, and no connection is tracked for it.
    pub stateless: bool,
    /// What it is on, if its frames are a VLAN of another tap's rather than a tap's of its own.
    pub vlan: Option<Subport>,
}

/// A VLAN of a tap's frames: the tap's guest sends and is sent them with a tag (IEEE 802.1Q).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subport {
    /// The tap.
    pub parent: InterfaceName,
    /// The tag's VLAN identifier, 1 to 4094.
    pub id: u16,
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
    /// The addresses of a group's members on every host, and a number that tells the group: whoever names it names the same
    /// members.
    Members(u32, BTreeSet<IpNet>),
}

/// A router: a network namespace with a link into each of its networks' bridges.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Router {
    /// Its links by name; both ends of a link have the same.
    pub links: BTreeMap<InterfaceName, RouterLink>,
    /// Routes beside those that its addresses give: destination, next hop.
    pub routes: BTreeSet<(IpNet, IpAddr)>,
    /// How addresses are translated.
    pub nat: Nat,
    /// What is counted of what it passes on from and to the outside, by numbers of the caller's.
    pub meters: BTreeMap<u32, BTreeSet<MeterRule>>,
    /// What is held of what it passes on from and to the outside: one for each address, direction and unit.
    pub limits: BTreeSet<AddressLimit>,
    /// The code points (RFC 2474) of what leaves to the outside, by addresses there.
    pub marks: BTreeMap<IpAddr, u8>,
    /// The address whose limits and code point are those of all that passes by IPv6 too: it is not translated, so what comes
    /// and leaves has no address outside.
    pub ipv6_as: Option<IpAddr>,
}

/// How much may come for an address outside, or leave from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AddressLimit {
    /// The address.
    pub address: IpAddr,
    /// From the outside or to it.
    pub direction: Direction,
    /// What is limited.
    pub unit: LimitUnit,
    /// So many each second.
    pub per_second: u64,
    /// So many at once. Of bytes, a second's worth is allowed whatever this says.
    pub burst: u64,
}

/// What a limit is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitUnit {
    /// Packets.
    Packets,
    /// Bytes, from the IP header on.
    Bytes,
}

/// What a meter counts or leaves out: packets whose source and destination are both of these, where they are said.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MeterRule {
    /// Counted; else left out, whatever other rules of the meter say.
    pub is_counted: bool,
    /// From the outside or to it.
    pub direction: Direction,
    /// As the inside knows it.
    pub source: Option<IpNet>,
    /// As the inside knows it.
    pub destination: Option<IpNet>,
}

/// A router's link into a bridge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterLink {
    /// The bridge.
    pub bridge: InterfaceName,
    /// The MAC of the router's end.
    pub mac: [u8; 6],
    /// MTU in bytes.
    pub mtu: u32,
    /// The router's addresses there.
    pub addresses: BTreeSet<IpNet>,
}

/// How a router translates IPv4 addresses (RFC 3022).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nat {
    /// The link to the outside.
    pub outside: Option<Outside>,
    /// Addresses outside, each with the one inside that it stands for, both ways.
    pub floating: BTreeMap<Ipv4Addr, Ipv4Addr>,
    /// Single ports outside, each with the address and port inside that it leads to.
    pub forwardings: BTreeMap<Forwarding, (Ipv4Addr, u16)>,
}

/// The link to the outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outside {
    /// Its name.
    pub link: InterfaceName,
    /// The address that what has none of its own outside is hidden behind; without it, the inside is routed as it is
    /// and may be reached.
    pub hide_behind: Option<Ipv4Addr>,
}

/// Packets and bytes that were counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes, of a link's frames with their Ethernet headers, of packets from their IP header on.
    pub bytes: u64,
}

/// What a link has passed, as its host sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkCounts {
    /// Taken from it.
    pub received: Count,
    /// Given to it.
    pub sent: Count,
    /// Frames that were damaged.
    pub receive_errors: u64,
    /// Frames that could not be given to it.
    pub send_errors: u64,
    /// Frames taken from it and dropped.
    pub receive_drops: u64,
    /// Frames for it that were dropped.
    pub send_drops: u64,
}

/// What has passed a router. Counters begin anew with what they are of, and with the rules that count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RouterTraffic {
    /// Of its ends of its links.
    pub links: BTreeMap<InterfaceName, LinkCounts>,
    /// By address outside: from the outside to it, and from it to the outside.
    pub floating: BTreeMap<Ipv4Addr, (Count, Count)>,
    /// By meter.
    pub meters: BTreeMap<u32, Count>,
}

/// A port outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Forwarding {
    /// The address.
    pub address: Ipv4Addr,
    /// The IP protocol number: TCP (6), UDP (17) and others with ports.
    pub protocol: u8,
    /// The port.
    pub port: u16,
}
