//! Which addresses a port gets: what is wished, or one of each family that its network has subnets of.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{FIXED_IPS_MAX, FixedIpWish};
use crate::error::{Error, Result};
use crate::model::network::{FixedIp, Port, Subnet};
use crate::service::addressing::{is_usable, next_free};
use crate::store::Cache;

/// The addresses of a new port: what is wished, or one of each family that the network has subnets of.
pub(super) fn choose_addresses(
    cache: &Cache,
    siblings: &[Port],
    network_id: &str,
    wished: Option<&[FixedIpWish]>,
) -> Result<Vec<FixedIp>> {
    let subnets: Vec<_> =
        cache.list::<Subnet>().into_iter().filter(|subnet| subnet.row.network_id == network_id).collect();
    let stored = cache.list::<Port>();
    let mut taken: BTreeSet<IpAddr> = stored
        .iter()
        .map(|stored| &stored.row)
        .chain(siblings)
        .filter(|port| port.network_id == network_id)
        .flat_map(|port| port.fixed_ips.iter().map(|ip| ip.ip_address))
        .collect();
    let Some(wished) = wished else {
        let mut chosen = Vec::new();
        for ipv4 in [true, false] {
            let family: Vec<_> =
                subnets.iter().filter(|subnet| subnet.row.cidr.addr().is_ipv4() == ipv4).collect();
            if family.is_empty() {
                continue;
            }
            let found = family.iter().find_map(|subnet| take_from(&subnet.row, &mut taken));
            chosen.push(found.ok_or_else(|| exhausted(network_id))?);
        }
        return Ok(chosen);
    };
    if wished.len() > FIXED_IPS_MAX {
        return Err(Error::invalid(
            "InvalidInput",
            format!("At most {FIXED_IPS_MAX} fixed_ips are possible."),
        ));
    }
    let mut chosen = Vec::with_capacity(wished.len());
    for wish in wished {
        let candidates: Vec<_> = subnets
            .iter()
            .filter(|subnet| wish.subnet_id.as_ref().is_none_or(|id| *id == subnet.row.standard.id))
            .collect();
        if candidates.is_empty() {
            let subnet = wish.subnet_id.clone().unwrap_or_default();
            return Err(Error::invalid(
                "InvalidInput",
                format!(
                    "Failed to create port on network {network_id}, because fixed_ips included invalid subnet {subnet}."
                ),
            ));
        }
        chosen.push(match wish.ip_address {
            None => candidates
                .iter()
                .find_map(|subnet| take_from(&subnet.row, &mut taken))
                .ok_or_else(|| exhausted(network_id))?,
            Some(address) => {
                let subnet = candidates.iter().find(|subnet| is_usable(subnet.row.cidr, address)).ok_or_else(|| {
                    Error::invalid(
                        "InvalidIpForNetwork",
                        format!("IP address {address} is not a valid IP for any of the subnets on the specified network."),
                    )
                })?;
                if subnet.row.gateway_ip == Some(address) || !taken.insert(address) {
                    return Err(Error::conflict(
                        "IpAddressAlreadyAllocated",
                        format!("IP address {address} already allocated in subnet {}.", subnet.row.standard.id),
                    ));
                }
                FixedIp { subnet_id: subnet.row.standard.id.clone(), ip_address: address }
            }
        });
    }
    Ok(chosen)
}

fn take_from(subnet: &Subnet, taken: &mut BTreeSet<IpAddr>) -> Option<FixedIp> {
    let ip_address = next_free(subnet.cidr, &subnet.allocation_pools, taken)?;
    taken.insert(ip_address);
    Some(FixedIp { subnet_id: subnet.standard.id.clone(), ip_address })
}

fn exhausted(network_id: &str) -> Error {
    Error::conflict(
        "IpAddressGenerationFailure",
        format!("No more IP addresses available on network {network_id}."),
    )
}
