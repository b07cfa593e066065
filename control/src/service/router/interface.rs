//! Routers' ports on networks inside (Network API: add and remove router interface).

use std::sync::Arc;

use super::floating_ip::{behind_subnets, forwards_to_subnets};
use super::gateway::bad_request;
use super::{OWNER_INTERFACE, interfaces, touch_parts};
use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::network::rbac::Access;
use crate::model::network::{FixedIp, Network, Port, Subnet};
use crate::model::router::Router;
use crate::service::network::touch;
use crate::service::network_resource::{owned, visible};
use crate::service::port::{self, NewPort, add_port, owned_port, remove_port};
use crate::service::prefix::overlap;
use crate::service::rbac::is_granted;
use crate::store::{Cache, Stored, Txn};

/// What a router gets an interface by, or loses one by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InterfaceRequest {
    /// The subnet whose gateway it becomes.
    pub subnet_id: Option<String>,
    /// The port that becomes its.
    pub port_id: Option<String>,
}

/// An interface that came or went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceChange {
    /// The router.
    pub router_id: String,
    /// The router's project.
    pub project_id: String,
    /// The interface's port.
    pub port_id: String,
    /// Its network.
    pub network_id: String,
    /// The subnets it has addresses of.
    pub subnet_ids: Vec<String>,
}

impl InterfaceChange {
    fn of(router: &Router, port: &Port) -> Self {
        Self {
            router_id: router.standard.id.clone(),
            project_id: router.standard.project_id.clone(),
            port_id: port.standard.id.clone(),
            network_id: port.network_id.clone(),
            subnet_ids: port.fixed_ips.iter().map(|ip| ip.subnet_id.clone()).collect(),
        }
    }
}

impl Control {
    /// Gives a router a port on a network: a new one with the gateway's address of a subnet, or one that is there.
    ///
    /// # Errors
    /// `Invalid` (`BadRequest`) for subnets without a gateway or that overlap, `Conflict` (`PortInUse`,
    /// `IpAddressInUse`).
    pub async fn router_add_interface(
        &self,
        caller: &Caller,
        id: &str,
        request: &InterfaceRequest,
    ) -> Result<InterfaceChange> {
        self.db.caught_up().await?;
        self.db
            .transact_with(|cache| {
                let router = owned::<Router>(cache, caller, id, "add_router_interface")?;
                let (txn, port) = match (&request.subnet_id, &request.port_id) {
                    (Some(subnet_id), None) => {
                        let port = port_for_subnet(cache, caller, &router.row, subnet_id)?;
                        (add_port(Txn::new(), &port), port)
                    }
                    (None, Some(port_id)) => take_port(cache, caller, &router.row, port_id)?,
                    (Some(_), Some(_)) => {
                        return Err(bad_request("Cannot specify both subnet-id and port-id".to_owned()));
                    }
                    (None, None) => {
                        return Err(bad_request("Either subnet_id or port_id must be specified".to_owned()));
                    }
                };
                Ok((touch_parts(txn, &router), InterfaceChange::of(&router.row, &port)))
            })
            .await
    }

    /// Takes an interface from a router; its port is deleted, whoever made it.
    ///
    /// # Errors
    /// `NotFound` (`RouterInterface`), `Conflict` while a floating IP, a forwarding or a route needs it.
    pub async fn router_remove_interface(
        &self,
        caller: &Caller,
        id: &str,
        request: &InterfaceRequest,
    ) -> Result<InterfaceChange> {
        self.db.caught_up().await?;
        self.db
            .transact_with(|cache| {
                let router = owned::<Router>(cache, caller, id, "remove_router_interface")?;
                let port = found(cache, caller, id, request)?;
                check_unneeded(cache, &router.row, &port.row)?;
                let txn = remove_port(touch_parts(Txn::new(), &router), &port);
                Ok((txn, InterfaceChange::of(&router.row, &port.row)))
            })
            .await
    }
}

/// A new port with a subnet's gateway's address.
fn port_for_subnet(cache: &Cache, caller: &Caller, router: &Router, subnet_id: &str) -> Result<Port> {
    let subnet = visible::<Subnet>(cache, caller, subnet_id)?;
    let network = cache.get::<Network>(&subnet.row.network_id);
    let usable = network.is_some_and(|network| {
        network.row.shared
            || caller.may_write(&network.row.standard.project_id)
            || is_granted(cache, caller, &network.row.standard.id, Access::AccessAsShared)
    });
    if !usable {
        return Err(Error::not_found("Subnet", subnet_id));
    }
    let Some(gateway) = subnet.row.gateway_ip else {
        return Err(bad_request("Subnet for router interface must have a gateway IP".to_owned()));
    };
    check_fits(cache, router, &[Arc::clone(&subnet)])?;
    let taken = cache.find::<Port>(|port| {
        port.fixed_ips.iter().any(|ip| ip.subnet_id == subnet_id && ip.ip_address == gateway)
    });
    if taken.is_some() {
        return Err(Error::conflict(
            "IpAddressInUse",
            format!(
                "Unable to complete operation for network {}. The IP address {gateway} is in use.",
                subnet.row.network_id
            ),
        ));
    }
    Ok(port::new_port(NewPort {
        project_id: &router.standard.project_id,
        network_id: &subnet.row.network_id,
        name: "",
        mac: crate::service::addressing::random_mac(),
        fixed_ips: vec![FixedIp { subnet_id: subnet_id.to_owned(), ip_address: gateway }],
        device_id: &router.standard.id,
        device_owner: OWNER_INTERFACE,
        active: false,
    }))
}

/// A port that is there becomes the router's.
fn take_port(cache: &Cache, caller: &Caller, router: &Router, port_id: &str) -> Result<(Txn, Port)> {
    let stored = owned_port(cache, caller, port_id, "add_router_interface")?;
    let mut port = stored.row.clone();
    if !port.device_id.is_empty() || !port.device_owner.is_empty() {
        return Err(Error::conflict(
            "PortInUse",
            format!(
                "Unable to complete operation on port {port_id} for network {}. Port already has an attached \
                 device {}.",
                port.network_id, port.device_id
            ),
        ));
    }
    let subnets: Vec<_> = port.fixed_ips.iter().filter_map(|ip| cache.get::<Subnet>(&ip.subnet_id)).collect();
    if subnets.is_empty() {
        return Err(bad_request(format!("Port {port_id} must have at least one fixed IP")));
    }
    if subnets.iter().filter(|subnet| subnet.row.cidr.addr().is_ipv4()).count() > 1 {
        return Err(bad_request("Cannot have multiple IPv4 subnets on router port".to_owned()));
    }
    check_fits(cache, router, &subnets)?;
    port.device_id = router.standard.id.clone();
    port.device_owner = OWNER_INTERFACE.to_owned();
    // A router's own port passes on what others send.
    port.security_groups.clear();
    port.port_security_enabled = false;
    port.allowed_address_pairs.clear();
    touch(&mut port.standard);
    Ok((Txn::new().update(&stored, &port), port))
}

/// A router has each subnet once, and no two that overlap.
fn check_fits(cache: &Cache, router: &Router, new: &[Arc<Stored<Subnet>>]) -> Result<()> {
    let id = &router.standard.id;
    let gateway = router
        .gateway
        .iter()
        .flat_map(|gateway| cache.filter::<Subnet>(|subnet| subnet.network_id == gateway.network_id));
    let ports = interfaces(cache, id);
    let inside = ports.iter().flat_map(|port| &port.row.fixed_ips);
    let present: Vec<_> = inside.filter_map(|ip| cache.get::<Subnet>(&ip.subnet_id)).chain(gateway).collect();
    for subnet in new {
        for other in &present {
            if other.row.standard.id == subnet.row.standard.id {
                return Err(bad_request(format!(
                    "Router already has a port on subnet {}",
                    subnet.row.standard.id
                )));
            }
            if overlap(&other.row.cidr, &subnet.row.cidr) {
                return Err(bad_request(format!(
                    "Cidr {} of subnet {} overlaps with cidr {} of subnet {}",
                    subnet.row.cidr, subnet.row.standard.id, other.row.cidr, other.row.standard.id
                )));
            }
        }
    }
    Ok(())
}

/// The interface that a removal means.
fn found(
    cache: &Cache,
    caller: &Caller,
    router_id: &str,
    request: &InterfaceRequest,
) -> Result<Arc<Stored<Port>>> {
    let InterfaceRequest { subnet_id, port_id } = request;
    let on_subnet = |port: &Port, id: &str| port.fixed_ips.iter().any(|ip| ip.subnet_id == id);
    match (port_id, subnet_id) {
        (None, None) => Err(bad_request("Either subnet_id or port_id must be specified".to_owned())),
        (Some(port_id), _) => {
            let mut ports = interfaces(cache, router_id).into_iter();
            let port = ports.find(|port| port.row.standard.id == *port_id).ok_or_else(|| {
                Error::not_found("RouterInterface", format!("{port_id} of router {router_id}"))
            })?;
            if let Some(subnet_id) = subnet_id.as_ref().filter(|id| !on_subnet(&port.row, id)) {
                return Err(Error::conflict(
                    "SubnetMismatchForPort",
                    format!("Subnet on port {port_id} does not match the requested subnet {subnet_id}."),
                ));
            }
            Ok(port)
        }
        (None, Some(subnet_id)) => {
            visible::<Subnet>(cache, caller, subnet_id)?;
            let mut ports = interfaces(cache, router_id).into_iter();
            ports.find(|port| on_subnet(&port.row, subnet_id)).ok_or_else(|| {
                Error::not_found(
                    "RouterInterfaceForSubnet",
                    format!("on subnet {subnet_id} of router {router_id}"),
                )
            })
        }
    }
}

/// Nothing that the router does depends on the interface.
pub(crate) fn check_unneeded(cache: &Cache, router: &Router, port: &Port) -> Result<()> {
    let id = &router.standard.id;
    let subnet_ids: Vec<&str> = port.fixed_ips.iter().map(|ip| ip.subnet_id.as_str()).collect();
    let needed = |reason, by: &str| {
        Error::conflict(
            reason,
            format!(
                "Router interface for subnet {} on router {id} cannot be deleted, as it is required by {by}.",
                subnet_ids.join(", ")
            ),
        )
    };
    if behind_subnets(cache, id, &subnet_ids) || forwards_to_subnets(cache, id, &subnet_ids) {
        return Err(needed("RouterInterfaceInUseByFloatingIP", "one or more floating IPs"));
    }
    let subnets: Vec<_> = subnet_ids.iter().filter_map(|id| cache.get::<Subnet>(id)).collect();
    if router.routes.iter().any(|(_, via)| subnets.iter().any(|subnet| subnet.row.cidr.contains(via))) {
        return Err(needed("RouterInterfaceInUseByRoute", "one or more routes"));
    }
    Ok(())
}
