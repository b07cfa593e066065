//! Which addresses a port gets: what is wished, or one of each family that its network has subnets of; and on IPv6 subnets
//! whose hosts choose addresses by themselves, the one that its MAC address gives (RFC 4291 appendix A).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::{FIXED_IPS_MAX, FixedIpWish};
use crate::error::{Error, Result};
use crate::model::network::{FixedIp, Network, Port, Subnet};
use crate::service::addressing::{eui64, is_usable, next_free};
use crate::service::nic;
use crate::service::subnet::service_type::serves;
use crate::store::{Cache, Stored};

/// The port that addresses are chosen for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chooser<'a> {
    pub(crate) network_id: &'a str,
    /// What owns it, which subnets may be for.
    pub(crate) owner: &'a str,
    pub(crate) mac: [u8; 6],
    /// Ports made in the same transaction before it.
    pub(crate) siblings: &'a [Port],
    /// Itself, where it is there already: its addresses are its own to keep.
    pub(crate) port: Option<&'a Port>,
}

impl<'a> Chooser<'a> {
    /// A port of the network service's own, new and alone.
    pub(crate) fn alone(network_id: &'a str, owner: &'a str, mac: [u8; 6]) -> Self {
        Self { network_id, owner, mac, siblings: &[], port: None }
    }
}

/// The addresses of a port.
pub(crate) fn choose_addresses(
    cache: &Cache,
    chooser: Chooser<'_>,
    wished: Option<&[FixedIpWish]>,
) -> Result<Vec<FixedIp>> {
    let network_id = chooser.network_id;
    let subnets = cache.filter::<Subnet>(|subnet| subnet.network_id == network_id);
    let mut taken = taken(cache, chooser);
    if host_is_gateway(cache, network_id) {
        taken.extend(subnets.iter().filter_map(|subnet| subnet.row.gateway_ip));
    }
    let mut fitting = subnets.clone();
    fitting.retain(|subnet| serves(&subnet.row, chooser.owner));
    // Those for such ports alone before those for all.
    fitting.sort_by_key(|subnet| subnet.row.service_types.is_empty());
    let mut chosen = match wished {
        None if fitting.is_empty() && !subnets.is_empty() => return Err(no_fitting(chooser)),
        None => one_of_each_family(network_id, &fitting, &mut taken)?,
        Some(wished) => wished_ones(chooser, [&subnets, &fitting], &mut taken, wished)?,
    };
    // What hosts choose by themselves they have whether it is wished or not, unless none is wished at all.
    if wished.is_none_or(|wished| !wished.is_empty()) {
        for subnet in fitting.iter().filter(|subnet| subnet.row.is_auto()) {
            let own = auto_address(&subnet.row, chooser.mac);
            if !chosen.contains(&own) {
                if !taken.insert(own.ip_address) {
                    return Err(allocated(&own));
                }
                chosen.push(own);
            }
        }
    }
    Ok(chosen)
}

/// The addresses that a port which is there has when these are wished: those that it has are its own to keep.
pub(crate) fn choose_again(cache: &Cache, port: &Port, wished: &[FixedIpWish]) -> Result<Vec<FixedIp>> {
    let mut before = port.clone();
    before
        .fixed_ips
        .retain(|ip| cache.get::<Subnet>(&ip.subnet_id).is_none_or(|subnet| !subnet.row.is_auto()));
    let owner = &port.device_owner;
    let chooser =
        Chooser { network_id: &before.network_id, owner, mac: port.mac, siblings: &[], port: Some(&before) };
    choose_addresses(cache, chooser, Some(wished))
}

/// The address that a MAC address gives on a subnet whose hosts choose their own.
pub(crate) fn auto_address(subnet: &Subnet, mac: [u8; 6]) -> FixedIp {
    FixedIp { subnet_id: subnet.standard.id.clone(), ip_address: eui64(subnet.cidr, mac) }
}

/// Whether the gateways of a network's subnets are the host's own addresses. Elsewhere a router has them, or anybody.
fn host_is_gateway(cache: &Cache, network_id: &str) -> bool {
    let network = cache.get::<Network>(network_id);
    network.is_some_and(|network| nic::host_is_gateway(&network.row))
}

fn taken(cache: &Cache, chooser: Chooser<'_>) -> BTreeSet<IpAddr> {
    let stored = cache.found_by::<Port>(chooser.network_id);
    let others = stored.iter().map(|stored| &stored.row).chain(chooser.siblings).filter(|port| {
        port.network_id == chooser.network_id
            && chooser.port.is_none_or(|own| own.standard.id != port.standard.id)
    });
    others.flat_map(|port| port.fixed_ips.iter().map(|ip| ip.ip_address)).collect()
}

fn one_of_each_family(
    network_id: &str,
    subnets: &[Arc<Stored<Subnet>>],
    taken: &mut BTreeSet<IpAddr>,
) -> Result<Vec<FixedIp>> {
    let mut chosen = Vec::new();
    for ipv4 in [true, false] {
        let family: Vec<_> = subnets
            .iter()
            .filter(|subnet| subnet.row.cidr.addr().is_ipv4() == ipv4 && !subnet.row.is_auto())
            .collect();
        if family.is_empty() {
            continue;
        }
        let found = family.iter().find_map(|subnet| take_from(&subnet.row, taken));
        chosen.push(found.ok_or_else(|| exhausted(network_id))?);
    }
    Ok(chosen)
}

/// What is wished: of a subnet that is named whatever it is for, else of those that are for such ports.
fn wished_ones(
    chooser: Chooser<'_>,
    [subnets, fitting]: [&[Arc<Stored<Subnet>>]; 2],
    taken: &mut BTreeSet<IpAddr>,
    wished: &[FixedIpWish],
) -> Result<Vec<FixedIp>> {
    let network_id = chooser.network_id;
    if wished.len() > FIXED_IPS_MAX {
        return Err(Error::invalid(
            "InvalidInput",
            format!("At most {FIXED_IPS_MAX} fixed_ips are possible."),
        ));
    }
    let mut chosen: Vec<FixedIp> = Vec::with_capacity(wished.len());
    for wish in wished {
        let candidates: Vec<_> = match &wish.subnet_id {
            Some(id) => subnets.iter().filter(|subnet| *id == subnet.row.standard.id).collect(),
            None => fitting.iter().collect(),
        };
        if candidates.is_empty() {
            if wish.subnet_id.is_none() && !subnets.is_empty() {
                return Err(no_fitting(chooser));
            }
            let subnet = wish.subnet_id.clone().unwrap_or_default();
            return Err(Error::invalid(
                "InvalidInput",
                format!(
                    "Failed to create port on network {network_id}, because fixed_ips included invalid subnet {subnet}."
                ),
            ));
        }
        chosen.push(match wish.ip_address {
            None => any_of(chooser, &candidates, taken, &chosen).ok_or_else(|| exhausted(network_id))?,
            Some(address) => {
                let subnet = candidates.iter().find(|subnet| is_usable(subnet.row.cidr, address));
                let subnet = subnet.ok_or_else(|| {
                    Error::invalid(
                        "InvalidIpForNetwork",
                        format!("IP address {address} is not a valid IP for any of the subnets on the specified network."),
                    )
                })?;
                this_one(chooser, &subnet.row, taken, address)?
            }
        });
    }
    Ok(chosen)
}

/// An address of any of these subnets: one that the port has already, if it has, then the next free one.
fn any_of(
    chooser: Chooser<'_>,
    candidates: &[&Arc<Stored<Subnet>>],
    taken: &mut BTreeSet<IpAddr>,
    chosen: &[FixedIp],
) -> Option<FixedIp> {
    let is_of = |ip: &&FixedIp| candidates.iter().any(|subnet| subnet.row.standard.id == ip.subnet_id);
    let mut own = chooser.port.into_iter().flat_map(|port| &port.fixed_ips).filter(is_of);
    if let Some(kept) = own.find(|ip| !chosen.contains(ip) && !taken.contains(&ip.ip_address)) {
        taken.insert(kept.ip_address);
        return Some(kept.clone());
    }
    candidates.iter().find_map(|subnet| match subnet.row.is_auto() {
        true => Some(auto_address(&subnet.row, chooser.mac)).filter(|ip| taken.insert(ip.ip_address)),
        false => take_from(&subnet.row, taken),
    })
}

fn this_one(
    chooser: Chooser<'_>,
    subnet: &Subnet,
    taken: &mut BTreeSet<IpAddr>,
    address: IpAddr,
) -> Result<FixedIp> {
    let wished = FixedIp { subnet_id: subnet.standard.id.clone(), ip_address: address };
    if subnet.is_auto() && wished != auto_address(subnet, chooser.mac) {
        return Err(Error::invalid(
            "InvalidInput",
            format!(
                "Invalid input for operation: IPv6 address {address} can not be directly assigned to a port on \
                 subnet {} since the subnet is configured for automatic addresses.",
                subnet.standard.id
            ),
        ));
    }
    if !taken.insert(address) {
        return Err(allocated(&wished));
    }
    Ok(wished)
}

fn take_from(subnet: &Subnet, taken: &mut BTreeSet<IpAddr>) -> Option<FixedIp> {
    let ip_address = next_free(subnet.cidr, &subnet.allocation_pools, taken)?;
    taken.insert(ip_address);
    Some(FixedIp { subnet_id: subnet.standard.id.clone(), ip_address })
}

fn allocated(ip: &FixedIp) -> Error {
    Error::conflict(
        "IpAddressAlreadyAllocated",
        format!("IP address {} already allocated in subnet {}.", ip.ip_address, ip.subnet_id),
    )
}

fn no_fitting(chooser: Chooser<'_>) -> Error {
    let Chooser { network_id, owner, .. } = chooser;
    Error::conflict(
        "IpAddressGenerationFailureNoMatchingSubnet",
        format!(
            "No valid service subnet for the given device owner, network {network_id}, service type {owner}."
        ),
    )
}

fn exhausted(network_id: &str) -> Error {
    Error::conflict(
        "IpAddressGenerationFailure",
        format!("No more IP addresses available on network {network_id}."),
    )
}
