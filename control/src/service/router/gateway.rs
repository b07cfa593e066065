//! A router's way out: its port on an external network.

use std::net::IpAddr;

use super::floating_ip::through_router;
use super::{OWNER_GATEWAY, in_use, interfaces, new_service_port};
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::network::rbac::Access;
use crate::model::network::{FixedIp, Network, Port, Subnet};
use crate::model::router::{Router, RouterGateway};
use crate::policy::require_admin;
use crate::service::addressing::random_mac;
use crate::service::network_resource::visible;
use crate::service::port::address::{Chooser, choose_addresses};
use crate::service::port::{FixedIpWish, add_port, remove_port};
use crate::service::prefix::overlap;
use crate::service::qos::{self, held::outside};
use crate::service::rbac::is_granted;
use crate::store::{Cache, Txn};

/// A way out as a client wishes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GatewayWish {
    /// The external network.
    pub network_id: String,
    /// Whether what is inside is hidden; as it is or, at first, true if absent.
    pub enable_snat: Option<bool>,
    /// The router's addresses there.
    pub fixed_ips: Option<Vec<FixedIpWish>>,
    /// The QoS policy; as it is if absent, none if `None` is inside.
    pub qos_policy_id: Option<Option<String>>,
}

/// Gives a router a way out, or changes the one it has.
pub(crate) fn set(
    cache: &Cache,
    mut txn: Txn,
    caller: &Caller,
    router: &mut Router,
    wish: &GatewayWish,
) -> Result<Txn> {
    if wish.enable_snat.is_some() {
        require_admin(caller, "update_router:external_gateway_info:enable_snat")?;
    }
    if wish.fixed_ips.is_some() {
        require_admin(caller, "update_router:external_gateway_info:external_fixed_ips")?;
    }
    let network = visible::<Network>(cache, caller, &wish.network_id)?;
    if !is_external(cache, caller, &network.row) {
        let id = &wish.network_id;
        return Err(bad_request(format!("Network {id} is not an external network")));
    }
    let before = router.gateway.as_ref().and_then(|gateway| gateway.qos_policy_id.clone());
    let qos_policy_id = wish.qos_policy_id.clone().unwrap_or(before.clone());
    if qos_policy_id != before {
        txn = qos::used(cache, caller, txn, outside(&qos_policy_id))?;
    }
    if let Some(present) = &mut router.gateway
        && present.network_id == wish.network_id
        && !moves(cache, present, wish)
    {
        present.enable_snat = wish.enable_snat.unwrap_or(present.enable_snat);
        present.qos_policy_id = qos_policy_id;
        return Ok(txn);
    }
    check_overlap(cache, router, &wish.network_id)?;
    let enable_snat = wish.enable_snat.or(router.gateway.as_ref().map(|gateway| gateway.enable_snat));
    let txn = match &router.gateway {
        None => txn,
        Some(present) if present.network_id == wish.network_id => drop_port(cache, txn, &present.port_id),
        Some(_) => clear(cache, txn, router)?,
    };
    let mac = random_mac();
    let chooser = Chooser::alone(&wish.network_id, OWNER_GATEWAY, mac);
    let fixed_ips = choose_addresses(cache, chooser, wish.fixed_ips.as_deref())?;
    if fixed_ips.is_empty() {
        let id = &wish.network_id;
        return Err(bad_request(format!("No subnet of external network {id} has an address for the router")));
    }
    let is_gateway = |ip: &&FixedIp| {
        cache.get::<Subnet>(&ip.subnet_id).is_some_and(|subnet| subnet.row.gateway_ip == Some(ip.ip_address))
    };
    if let Some(ip) = fixed_ips.iter().find(is_gateway) {
        return Err(bad_request(format!("External IP {} is the same as the gateway IP", ip.ip_address)));
    }
    let port = new_service_port(&wish.network_id, mac, fixed_ips, &router.standard.id, OWNER_GATEWAY);
    router.gateway = Some(RouterGateway {
        network_id: wish.network_id.clone(),
        port_id: port.standard.id.clone(),
        enable_snat: enable_snat.unwrap_or(true),
        qos_policy_id,
    });
    Ok(add_port(txn, &port))
}

/// Takes a router's way out away, if it has one.
///
/// # Errors
/// `Conflict` (`RouterExternalGatewayInUseByFloatingIp`) while a floating IP leads through it.
pub(super) fn clear(cache: &Cache, txn: Txn, router: &mut Router) -> Result<Txn> {
    let Some(present) = &router.gateway else { return Ok(txn) };
    let id = &router.standard.id;
    if !through_router(cache, id).is_empty() {
        return Err(Error::conflict(
            "RouterExternalGatewayInUseByFloatingIp",
            format!(
                "Gateway cannot be updated for router {id}, since a gateway to external network {} is required by \
                 one or more floating IPs.",
                present.network_id
            ),
        ));
    }
    let port = cache.get::<Port>(&present.port_id);
    let addresses: Vec<Subnet> = port
        .iter()
        .flat_map(|port| &port.row.fixed_ips)
        .filter_map(|ip| Some(cache.get::<Subnet>(&ip.subnet_id)?.row.clone()))
        .collect();
    let needs = |via: &IpAddr| addresses.iter().any(|subnet| subnet.cidr.contains(via));
    if router.routes.iter().any(|(_, via)| needs(via)) {
        return Err(in_use(id, "has routes by its external gateway"));
    }
    let txn = drop_port(cache, txn, &present.port_id);
    router.gateway = None;
    Ok(txn)
}

fn drop_port(cache: &Cache, txn: Txn, port_id: &str) -> Txn {
    match cache.get::<Port>(port_id) {
        Some(port) => remove_port(txn, &port),
        None => txn,
    }
}

/// Whether the wished addresses are others than those that the router has there.
fn moves(cache: &Cache, present: &RouterGateway, wish: &GatewayWish) -> bool {
    let Some(wished) = &wish.fixed_ips else { return false };
    let Some(port) = cache.get::<Port>(&present.port_id) else { return true };
    let has = |wish: &FixedIpWish| {
        port.row.fixed_ips.iter().any(|ip| {
            wish.subnet_id.as_ref().is_none_or(|id| *id == ip.subnet_id)
                && wish.ip_address.is_none_or(|address| address == ip.ip_address)
        })
    };
    wished.len() != port.row.fixed_ips.len() || !wished.iter().all(has)
}

/// The router could not tell the outside from an inside with the same addresses.
fn check_overlap(cache: &Cache, router: &Router, network_id: &str) -> Result<()> {
    let outside = cache.filter::<Subnet>(|subnet| subnet.network_id == network_id);
    for interface in interfaces(cache, &router.standard.id) {
        for ip in &interface.row.fixed_ips {
            let Some(inside) = cache.get::<Subnet>(&ip.subnet_id) else { continue };
            let clash = outside.iter().find(|subnet| overlap(&subnet.row.cidr, &inside.row.cidr));
            if let Some(clash) = clash {
                return Err(bad_request(format!(
                    "Cidr {} of subnet {} overlaps with cidr {} of subnet {}",
                    inside.row.cidr, inside.row.standard.id, clash.row.cidr, clash.row.standard.id
                )));
            }
        }
    }
    Ok(())
}

/// Whether a network leads outside for the caller.
pub(super) fn is_external(cache: &Cache, caller: &Caller, network: &Network) -> bool {
    network.external || is_granted(cache, caller, &network.standard.id, Access::AccessAsExternal)
}

/// Neutron's error for requests about routers that cannot be.
pub(super) fn bad_request(message: String) -> Error {
    Error::invalid("BadRequest", format!("Bad router request: {message}."))
}
