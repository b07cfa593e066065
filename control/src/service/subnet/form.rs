//! What a subnet can be: its row as a request has it, and what its owner makes of it later.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::super::addressing::{check_pools, default_gateway, default_pools, is_usable};
use super::super::network::{check_text, new_standard};
use super::super::prefix::overlap;
use super::super::tag::check_tags;
use super::choice::Choice;
use super::dhcp_port::{dhcp_address, dhcp_port};
use super::{Gateway, SubnetCreate, SubnetUpdate, service_type, v6};
use crate::error::{Error, Result};
use crate::model::network::{Network, Port, Standard, Subnet};
use crate::store::Cache;

/// The most name servers of one subnet (Neutron's `max_dns_nameservers`).
pub const DNS_NAMESERVERS_MAX: usize = 5;
/// The most host routes of one subnet (Neutron's `max_subnet_host_routes`).
pub const HOST_ROUTES_MAX: usize = 20;
/// The most allocation pools of one subnet: far more than anyone writes by hand.
pub const POOLS_MAX: usize = 64;

/// Builds the rows of a subnet and of its DHCP port.
pub(super) fn build_subnet(
    cache: &Cache,
    siblings: &[Subnet],
    network: &Network,
    request: &SubnetCreate,
    (id, choice): (&str, &Choice),
) -> Result<(Subnet, Option<Port>)> {
    check_text("name", &request.name)?;
    check_text("description", &request.description)?;
    check_tags(&request.tags)?;
    service_type::check(&request.service_types)?;
    let cidr = choice.cidr;
    if cidr.prefix_len() == 0 || cidr.addr().is_multicast() || cidr.addr().is_loopback() {
        return Err(Error::invalid(
            "InvalidInput",
            format!("Invalid input for cidr. Reason: '{cidr}' cannot be a subnet."),
        ));
    }
    let stored = cache.list::<Subnet>();
    let mut others = stored.iter().map(|stored| &stored.row).chain(siblings);
    let other = others.find(|other| other.network_id == network.standard.id && overlap(&other.cidr, &cidr));
    if let Some(other) = other {
        return Err(Error::invalid(
            "InvalidInput",
            format!(
                "Invalid input for operation: Requested subnet with cidr: {cidr} for network: {} overlaps with another subnet with cidr: {}.",
                network.standard.id, other.cidr
            ),
        ));
    }
    let gateway_ip = match request.gateway {
        Gateway::First => default_gateway(cidr),
        Gateway::None => None,
        Gateway::Address(address) => Some(checked_gateway(cidr, address)?),
    };
    let pools = match &request.allocation_pools {
        Some(pools) => {
            check_pool_count(pools)?;
            check_pools(cidr, gateway_ip, pools)?;
            pools.clone()
        }
        None => default_pools(cidr, gateway_ip),
    };
    check_dns(&request.dns_nameservers)?;
    check_routes(&request.host_routes)?;
    v6::check_modes(&cidr, request.enable_dhcp, (request.ipv6_ra_mode, request.ipv6_address_mode))?;
    let mut subnet = Subnet {
        standard: Standard {
            description: request.description.clone(),
            tags: request.tags.clone(),
            ..new_standard(id.to_owned(), network.standard.project_id.clone(), request.name.clone())
        },
        network_id: network.standard.id.clone(),
        cidr,
        gateway_ip,
        enable_dhcp: request.enable_dhcp,
        allocation_pools: pools,
        dns_nameservers: request.dns_nameservers.clone(),
        host_routes: request.host_routes.clone(),
        ipv6_ra_mode: request.ipv6_ra_mode,
        ipv6_address_mode: request.ipv6_address_mode,
        subnetpool_id: choice.pool.as_ref().map(|pool| pool.row.standard.id.clone()),
        service_types: service_type::distinct(&request.service_types),
        dhcp_server: None,
    };
    let dhcp = dhcp_port(&subnet, &BTreeSet::new());
    subnet.dhcp_server = dhcp.as_ref().and_then(dhcp_address);
    Ok((subnet, dhcp))
}

/// Changes a row.
///
/// # Errors
/// It cannot be so.
pub(super) fn apply_update(subnet: &mut Subnet, update: &SubnetUpdate) -> Result<()> {
    if let Some(name) = &update.name {
        check_text("name", name)?;
        subnet.standard.name.clone_from(name);
    }
    if let Some(description) = &update.description {
        check_text("description", description)?;
        subnet.standard.description.clone_from(description);
    }
    match update.gateway {
        None => {}
        Some(Gateway::First) => subnet.gateway_ip = default_gateway(subnet.cidr),
        Some(Gateway::None) => subnet.gateway_ip = None,
        Some(Gateway::Address(address)) => subnet.gateway_ip = Some(checked_gateway(subnet.cidr, address)?),
    }
    if let Some(pools) = &update.allocation_pools {
        check_pool_count(pools)?;
        subnet.allocation_pools.clone_from(pools);
    }
    check_pools(subnet.cidr, subnet.gateway_ip, &subnet.allocation_pools)?;
    if let Some(servers) = &update.dns_nameservers {
        check_dns(servers)?;
        subnet.dns_nameservers.clone_from(servers);
    }
    if let Some(routes) = &update.host_routes {
        check_routes(routes)?;
        subnet.host_routes.clone_from(routes);
    }
    if let Some(service_types) = &update.service_types {
        service_type::check(service_types)?;
        subnet.service_types = service_type::distinct(service_types);
    }
    if let Some(enable_dhcp) = update.enable_dhcp {
        let modes = (subnet.ipv6_ra_mode, subnet.ipv6_address_mode);
        v6::check_modes(&subnet.cidr, enable_dhcp, modes)?;
        subnet.enable_dhcp = enable_dhcp;
    }
    Ok(())
}

fn checked_gateway(cidr: IpNet, address: IpAddr) -> Result<IpAddr> {
    let is_link_local =
        matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local() && cidr.addr().is_ipv6());
    if is_usable(cidr, address) || is_link_local {
        return Ok(address);
    }
    Err(Error::invalid(
        "InvalidInput",
        format!("Invalid input for operation: Gateway is not valid on subnet: {address} in {cidr}."),
    ))
}

fn check_pool_count(pools: &[(IpAddr, IpAddr)]) -> Result<()> {
    if pools.len() > POOLS_MAX {
        return Err(Error::invalid(
            "InvalidInput",
            format!("At most {POOLS_MAX} allocation pools are possible."),
        ));
    }
    Ok(())
}

fn check_dns(servers: &[IpAddr]) -> Result<()> {
    if servers.len() > DNS_NAMESERVERS_MAX {
        return Err(Error::invalid(
            "DNSNameServersExhausted",
            format!(
                "Unable to complete operation: the number of DNS nameservers exceeds the limit {DNS_NAMESERVERS_MAX}."
            ),
        ));
    }
    Ok(())
}

fn check_routes(routes: &[(IpNet, IpAddr)]) -> Result<()> {
    if routes.len() > HOST_ROUTES_MAX {
        return Err(Error::invalid(
            "HostRoutesExhausted",
            format!(
                "Unable to complete operation: the number of host routes exceeds the limit {HOST_ROUTES_MAX}."
            ),
        ));
    }
    Ok(())
}
