//! What the VMM itself answers to the guest on one network device.
//!
//! All of it but the metadata may change while the guest runs (`crate::rpc::Action::Readdress`).

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::Ipv6Net;
use serde::{Deserialize, Serialize};

use crate::document::Document;

/// What is answered to the guest before its frames reach the link.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointConfig {
    /// Its addresses, routes and names.
    pub addressing: Addressing,
    /// The metadata service at 169.254.169.254 and `fe80::a9fe:a9fe`, port 80: path (with its leading slash, without a
    /// trailing one) to body; a path that is only a prefix of others answers their listing.
    #[serde(default)]
    pub metadata: BTreeMap<String, Document>,
}

/// A guest's addresses, routes and names on one network device.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Addressing {
    /// What DHCP (RFC 2131) gives; without it neither DHCP nor metadata are answered by IPv4.
    #[serde(default)]
    pub ipv4: Option<Ipv4Config>,
    /// What is announced, and what DHCPv6 gives.
    #[serde(default)]
    pub ipv6: Ipv6Config,
    /// The guest's host name.
    #[serde(default)]
    pub hostname: String,
    /// The guest's domain.
    #[serde(default)]
    pub domain: String,
    /// Lease time in seconds.
    #[serde(default)]
    pub lease_s: u32,
    /// Questions about names are taken at the DHCP server's address, and by IPv6 at the metadata service's, and carried to
    /// whoever asks the control socket for them.
    #[serde(default)]
    pub resolver: bool,
    /// Addresses for which ARP is answered here, with the MAC that answers.
    #[serde(default)]
    pub neighbours: BTreeMap<Ipv4Addr, [u8; 6]>,
    /// The VLANs of its frames (IEEE 802.1Q) in which the guest is answered too, each as if it were a device of its own; one
    /// has none in it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", with = "pairs")]
    pub vlans: BTreeMap<u16, VlanAddressing>,
}

/// A map as a list of pairs: JSON has keys of text alone, and serde reads none of them as numbers inside of an enum with a tag,
/// as [`crate::rpc::Action`] is.
mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serializer};

    use super::VlanAddressing;

    pub(super) fn serialize<S: Serializer>(
        map: &BTreeMap<u16, VlanAddressing>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<u16, VlanAddressing>, D::Error> {
        Ok(Vec::<(u16, VlanAddressing)>::deserialize(deserializer)?.into_iter().collect())
    }
}

/// What is answered in a VLAN of a device's frames.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VlanAddressing {
    /// The guest's MAC there.
    pub mac: [u8; 6],
    /// MTU in bytes, without the tag.
    pub mtu: u16,
    /// Its addresses there, routes and names.
    pub addressing: Addressing,
}

/// What DHCP gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ipv4Config {
    /// The guest's address.
    pub address: Ipv4Addr,
    /// Length of the subnet's prefix in bits.
    pub prefix_len: u8,
    /// The default gateway, if the subnet has one.
    pub gateway: Option<Ipv4Addr>,
    /// The address the DHCP server answers from.
    pub dhcp_server: Ipv4Addr,
    /// Name servers.
    #[serde(default)]
    pub dns: Vec<Ipv4Addr>,
    /// Further routes (RFC 3442): destination, prefix length, next hop.
    #[serde(default)]
    pub routes: Vec<(Ipv4Addr, u8, Ipv4Addr)>,
    /// Options in the place of those that follow from the rest, or beside them.
    #[serde(default)]
    pub options: Vec<DhcpOption>,
}

/// An option by name and text, as dnsmasq has them; what is none is not served.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DhcpOption {
    /// Its name, or its number.
    pub name: String,
    /// Its value; an empty one takes the option away.
    pub value: String,
}

/// What is announced by IPv6, and what DHCPv6 gives.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ipv6Config {
    /// What routers announce, each for itself (RFC 4861 §4.2).
    #[serde(default)]
    pub announcements: Vec<Announcement>,
    /// Routers on the link announce something as well: the guest's solicitations go on to them, and their
    /// announcements to the guest.
    #[serde(default)]
    pub others_announce: bool,
    /// DHCPv6 (RFC 8415); not answered if absent.
    #[serde(default)]
    pub dhcp: Option<Dhcpv6Config>,
}

/// What one router announces.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Announcement {
    /// The router's MAC address, of which its link-local address is made (RFC 4291, appendix A); without it there is no
    /// router, and the endpoint announces what hosts on the link have to know.
    pub router: Option<[u8; 6]>,
    /// The router is a default router.
    #[serde(default)]
    pub is_default: bool,
    /// Addresses are to be had by DHCPv6.
    #[serde(default)]
    pub managed: bool,
    /// The rest is to be had by DHCPv6.
    #[serde(default)]
    pub other: bool,
    /// Prefixes that are on the link.
    #[serde(default)]
    pub prefixes: Vec<AnnouncedPrefix>,
    /// Prefixes that the router leads to (RFC 4191).
    #[serde(default)]
    pub routes: Vec<Ipv6Net>,
    /// Name servers (RFC 8106).
    #[serde(default)]
    pub dns: Vec<Ipv6Addr>,
}

/// A prefix that is on the link.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnnouncedPrefix {
    /// The prefix.
    pub prefix: Ipv6Net,
    /// The guest makes itself an address of it (RFC 4862).
    pub autonomous: bool,
}

/// What DHCPv6 gives.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dhcpv6Config {
    /// The guest's addresses; none where guests make their own.
    #[serde(default)]
    pub addresses: Vec<Ipv6Addr>,
    /// Prefixes that are on the link, which a guest may ask about.
    #[serde(default)]
    pub on_link: Vec<Ipv6Net>,
    /// Name servers.
    #[serde(default)]
    pub dns: Vec<Ipv6Addr>,
    /// Options in the place of those that follow from the rest, or beside them.
    #[serde(default)]
    pub options: Vec<DhcpOption>,
}
