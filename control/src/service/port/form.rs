//! What a port's row says: of a new one what is wished, checked, and the rest chosen; of one that is there, what a change makes
//! of it.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::address::{Chooser, choose_addresses, choose_again};
use super::{ADDRESS_PAIRS_MAX, FixedIpWish, GROUPS_MAX, OWNER_COMPUTE, PortCreate, PortUpdate, dhcp_option};
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::network::rbac::Access;
use crate::model::network::{FixedIp, Network, Port, Standard, Subnet};
use crate::policy::{require_admin, require_member};
use crate::service::addressing::{mac_text, random_mac};
use crate::service::network::{check_text, new_standard, visible_network};
use crate::service::{names, rbac, security_group};
use crate::store::Cache;

/// Whose a new port is, and what is made beside it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PortOwner<'a> {
    pub(crate) project_id: &'a str,
    /// The group of a port for which none is named.
    pub(crate) default_group: &'a str,
    /// Ports made in the same transaction before it.
    pub(crate) siblings: &'a [Port],
}

/// Builds the row of a new port: checks what is wished, chooses the rest.
pub(crate) fn build_port(
    cache: &Cache,
    caller: &Caller,
    owner_of_port: PortOwner<'_>,
    id: &str,
    request: &PortCreate,
) -> Result<Port> {
    let PortOwner { project_id, default_group, siblings } = owner_of_port;
    let network = visible_network(cache, caller, &request.network_id)?;
    let own = caller.may_write(&network.row.standard.project_id);
    let shared =
        network.row.shared || rbac::is_granted(cache, caller, &request.network_id, Access::AccessAsShared);
    if !own && !shared {
        return Err(Error::Forbidden { action: "create_port on a network that is not shared" });
    }
    names::check_port(&request.dns_name, &network.row)?;
    let owner = &network.row.standard.project_id;
    if request.mac.is_some() {
        require_member(caller, owner, "create_port:mac_address")?;
    }
    if request.port_security_enabled == Some(false) {
        require_member(caller, owner, "create_port:port_security_enabled")?;
    }
    let port_security_enabled = request.port_security_enabled.unwrap_or(network.row.port_security_enabled);
    let security_groups = match &request.security_groups {
        Some(groups) => {
            check_groups(cache, caller, groups)?;
            groups.clone()
        }
        None if port_security_enabled => vec![default_group.to_owned()],
        None => Vec::new(),
    };
    check_security(port_security_enabled, &security_groups, &request.allowed_address_pairs)?;
    if let Some(mac) = request.mac {
        check_mac_free(cache, siblings, &request.network_id, mac)?;
    }
    let mac = request.mac.unwrap_or_else(random_mac);
    let owner = &request.device_owner;
    let chooser = Chooser { network_id: &request.network_id, owner, mac, siblings, port: None };
    let fixed_ips = choose_addresses(cache, chooser, request.fixed_ips.as_deref())?;
    let mut extra_dhcp_opts = Vec::new();
    dhcp_option::change(&mut extra_dhcp_opts, &request.extra_dhcp_opts)?;
    Ok(Port {
        standard: Standard {
            description: request.description.clone(),
            tags: request.tags.clone(),
            ..new_standard(id.to_owned(), project_id.to_owned(), request.name.clone())
        },
        network_id: request.network_id.clone(),
        mac,
        fixed_ips,
        allowed_address_pairs: request.allowed_address_pairs.clone(),
        admin_state_up: request.admin_state_up.unwrap_or(true),
        security_groups,
        port_security_enabled,
        device_id: request.device_id.clone(),
        device_owner: request.device_owner.clone(),
        host: request.host.clone(),
        active: false,
        owned_by_server: request.owned_by_server,
        qos_policy_id: request.qos_policy_id.clone(),
        extra_dhcp_opts,
        dns_name: request.dns_name.clone(),
    })
}

/// Changes a port's addresses, and where it is bound.
fn place(cache: &Cache, caller: &Caller, port: &mut Port, update: &PortUpdate, bound: bool) -> Result<()> {
    if let Some(mac) = update.mac.filter(|mac| *mac != port.mac) {
        require_admin(caller, "update_port:mac_address")?;
        if port.host.is_some() {
            return Err(Error::conflict(
                "PortBound",
                format!("Unable to complete operation on port {}, port is already bound.", port.standard.id),
            ));
        }
        check_mac_free(cache, &[], &port.network_id, mac)?;
        port.mac = mac;
    }
    if let Some(host) = &update.host {
        require_admin(caller, "update_port:binding:host_id")?;
        if bound {
            let message = format!(
                "Port {} is used by server {}; its host is that of the server.",
                port.standard.id, port.device_id
            );
            return Err(Error::conflict("PortInUse", message));
        }
        port.host = Some(host.clone()).filter(|host| !host.is_empty());
    }
    let auto: BTreeSet<String> = cache
        .filter::<Subnet>(|subnet| subnet.network_id == port.network_id && subnet.is_auto())
        .iter()
        .map(|subnet| subnet.row.standard.id.clone())
        .collect();
    let moved = update.mac.is_some() && port.fixed_ips.iter().any(|ip| auto.contains(&ip.subnet_id));
    let wished = match &update.fixed_ips {
        Some(wished) => wished.clone(),
        // What follows from the MAC address follows it.
        None if moved => {
            let kept = port.fixed_ips.iter().filter(|ip| !auto.contains(&ip.subnet_id));
            let of = |ip: &FixedIp| FixedIpWish {
                subnet_id: Some(ip.subnet_id.clone()),
                ip_address: Some(ip.ip_address),
            };
            let first = auto.first().map(|id| FixedIpWish { subnet_id: Some(id.clone()), ip_address: None });
            kept.map(of).chain(first).collect()
        }
        None => return Ok(()),
    };
    port.fixed_ips = choose_again(cache, port, &wished)?;
    Ok(())
}

fn check_mac_free(cache: &Cache, siblings: &[Port], network_id: &str, mac: [u8; 6]) -> Result<()> {
    let stored = cache.found_by::<Port>(network_id);
    let mut ports = stored.iter().map(|stored| &stored.row).chain(siblings);
    if !ports.any(|port| port.network_id == network_id && port.mac == mac) {
        return Ok(());
    }
    let mac = mac_text(mac);
    Err(Error::conflict(
        "MacAddressInUse",
        format!("Unable to complete operation for network {network_id}. The mac address {mac} is in use."),
    ))
}

fn check_groups(cache: &Cache, caller: &Caller, groups: &[String]) -> Result<()> {
    if groups.len() > GROUPS_MAX {
        return Err(Error::invalid(
            "InvalidInput",
            format!("At most {GROUPS_MAX} security groups are possible."),
        ));
    }
    groups.iter().try_for_each(|group| security_group::visible_group(cache, caller, group).map(drop))?;
    security_group::check_kinds(cache, groups)
}

fn check_security(enabled: bool, groups: &[String], pairs: &[(IpNet, [u8; 6])]) -> Result<()> {
    if pairs.len() > ADDRESS_PAIRS_MAX {
        return Err(Error::invalid(
            "AllowedAddressPairExhausted",
            format!("The number of allowed address pair exceeds the maximum {ADDRESS_PAIRS_MAX}."),
        ));
    }
    if !enabled && !groups.is_empty() {
        return Err(Error::conflict(
            "PortSecurityPortHasSecurityGroup",
            "Port has security group associated. Cannot disable port security or ip address until security group is removed.",
        ));
    }
    if !enabled && !pairs.is_empty() {
        return Err(Error::conflict(
            "AddressPairAndPortSecurityRequired",
            "Port Security must be enabled in order to have allowed address pairs on a port.",
        ));
    }
    Ok(())
}

pub(super) fn apply_update(
    cache: &Cache,
    caller: &Caller,
    port: &mut Port,
    update: &PortUpdate,
) -> Result<()> {
    if let Some(name) = &update.name {
        check_text("name", name)?;
        port.standard.name.clone_from(name);
    }
    if let Some(description) = &update.description {
        check_text("description", description)?;
        port.standard.description.clone_from(description);
    }
    if let Some(groups) = &update.security_groups {
        check_groups(cache, caller, groups)?;
        port.security_groups.clone_from(groups);
    }
    if let Some(pairs) = &update.allowed_address_pairs {
        port.allowed_address_pairs.clone_from(pairs);
    }
    if let Some(enabled) = update.port_security_enabled {
        let network = cache.get::<Network>(&port.network_id);
        let owner = network.map(|network| network.row.standard.project_id.clone()).unwrap_or_default();
        require_member(caller, &owner, "update_port:port_security_enabled")?;
        port.port_security_enabled = enabled;
    }
    check_security(port.port_security_enabled, &port.security_groups, &port.allowed_address_pairs)?;
    let bound = port.device_owner.starts_with(OWNER_COMPUTE) && !port.device_id.is_empty();
    if bound && (update.device_id.is_some() || update.device_owner.is_some()) {
        return Err(Error::conflict(
            "PortInUse",
            format!("Port {} is used by server {}; detach it first.", port.standard.id, port.device_id),
        ));
    }
    if let Some(device_id) = &update.device_id {
        check_text("device_id", device_id)?;
        port.device_id.clone_from(device_id);
    }
    if let Some(owner) = &update.device_owner {
        check_text("device_owner", owner)?;
        if owner.starts_with("network:") {
            require_admin(caller, "update_port:device_owner")?;
        }
        port.device_owner.clone_from(owner);
    }
    place(cache, caller, port, update, bound)?;
    if let Some(policy) = &update.qos_policy_id {
        port.qos_policy_id.clone_from(policy);
    }
    dhcp_option::change(&mut port.extra_dhcp_opts, &update.extra_dhcp_opts)?;
    if let Some(name) = &update.dns_name {
        if let Some(network) = cache.get::<Network>(&port.network_id) {
            names::check_port(name, &network.row)?;
        }
        port.dns_name.clone_from(name);
    }
    port.admin_state_up = update.admin_state_up.unwrap_or(port.admin_state_up);
    Ok(())
}
