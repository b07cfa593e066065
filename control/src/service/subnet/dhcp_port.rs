//! The port that DHCP answers of an IPv4 subnet come from.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use super::super::addressing::{next_free, random_mac};
use super::super::port::{self, NewPort};
use crate::error::{Error, Result};
use crate::model::network::{FixedIp, Port, Subnet};
use crate::store::Cache;

/// Its address.
pub(super) fn dhcp_address(port: &Port) -> Option<Ipv4Addr> {
    match port.fixed_ips.first()?.ip_address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

/// The port that DHCP answers of a subnet will come from which was made without.
pub(super) fn lacking_dhcp_port(cache: &Cache, subnet: &Subnet) -> Result<Option<Port>> {
    if !subnet.enable_dhcp || subnet.cidr.addr().is_ipv6() || subnet.dhcp_server.is_some() {
        return Ok(None);
    }
    let mut ports = cache.found_by::<Port>(&subnet.network_id);
    ports.retain(|port| port.row.network_id == subnet.network_id);
    let taken = ports.iter().flat_map(|port| port.row.fixed_ips.iter().map(|ip| ip.ip_address)).collect();
    let port = dhcp_port(subnet, &taken).ok_or_else(|| {
        Error::conflict(
            "IpAddressGenerationFailure",
            format!("No more IP addresses available on network {}.", subnet.network_id),
        )
    })?;
    Ok(Some(port))
}

/// The port that DHCP answers of an IPv4 subnet come from, at the first free address of its pools.
pub(super) fn dhcp_port(subnet: &Subnet, taken: &BTreeSet<IpAddr>) -> Option<Port> {
    let address: Ipv4Addr = match next_free(subnet.cidr, &subnet.allocation_pools, taken)? {
        IpAddr::V4(address) if subnet.enable_dhcp => address,
        _ => return None,
    };
    Some(port::new_port(NewPort {
        project_id: &subnet.standard.project_id,
        network_id: &subnet.network_id,
        name: "",
        mac: random_mac(),
        fixed_ips: vec![FixedIp { subnet_id: subnet.standard.id.clone(), ip_address: address.into() }],
        device_id: &format!("dhcp-{}", subnet.standard.id),
        device_owner: port::OWNER_DHCP,
        active: true,
    }))
}
