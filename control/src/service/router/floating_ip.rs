//! Floating IPs: addresses of external networks that lead to ports inside (Network API: floating IPs).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::gateway::is_external;
use super::{interfaces, new_service_port, touch_parts};
use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::network::{Network, Port, Standard, Subnet};
use crate::model::random_uuid;
use crate::model::router::{FloatingIp, FloatingTarget, PortForwarding, Router, RouterState};
use crate::policy::require_admin;
use crate::service::addressing::random_mac;
use crate::service::network::{check_text, new_standard, owner_project, touch};
use crate::service::network_resource::{owned, visible};
use crate::service::port::address::{Chooser, choose_addresses};
use crate::service::port::{FixedIpWish, add_port, owned_port, remove_port};
use crate::service::qos::{self, held::outside};
use crate::service::quota::{self, Resource};
use crate::service::tag::check_tags;
use crate::store::{Cache, Stored, Txn};

/// The owner of ports that hold floating IPs' addresses.
pub const OWNER_FLOATING: &str = "network:floatingip";

/// What a floating IP is made from.
#[derive(Debug, Clone, Default)]
pub struct FloatingIpCreate {
    /// The owner, if an administrator makes it for another project.
    pub project_id: Option<String>,
    /// The external network.
    pub network_id: String,
    /// From this subnet of it.
    pub subnet_id: Option<String>,
    /// This address of it; administrators only.
    pub address: Option<Ipv4Addr>,
    /// The port that it shall lead to.
    pub port_id: Option<String>,
    /// Which of the port's addresses; its only one if absent.
    pub fixed_ip_address: Option<Ipv4Addr>,
    /// Free text.
    pub description: String,
    /// Its name in the domain.
    pub dns_name: String,
    /// The domain.
    pub dns_domain: String,
    /// The QoS policy.
    pub qos_policy_id: Option<String>,
    /// Tags.
    pub tags: BTreeSet<String>,
}

/// What of a floating IP shall change; absent fields stay.
#[derive(Debug, Clone, Default)]
pub struct FloatingIpUpdate {
    /// The port that it shall lead to; `Some(None)` leads nowhere.
    pub port_id: Option<Option<String>>,
    /// Which of the port's addresses.
    pub fixed_ip_address: Option<Ipv4Addr>,
    /// Free text.
    pub description: Option<String>,
    /// The QoS policy; `None` inside is none.
    pub qos_policy_id: Option<Option<String>>,
}

/// How a floating IP is shown to lead somewhere.
#[derive(Debug, Clone)]
pub struct FloatingIpFacts {
    /// The port that it leads to.
    pub port: Option<Arc<Stored<Port>>>,
    /// Its router's host translates it.
    pub is_active: bool,
    /// Its forwarded ports.
    pub forwardings: Vec<Arc<Stored<PortForwarding>>>,
}

impl Control {
    /// Makes a floating IP.
    ///
    /// # Errors
    /// `Invalid` (`BadRequest`) for a network that is not external or a target that cannot be; `NotFound`
    /// (`ExternalGatewayForFloatingIPNotFound`) if no router leads there; `Conflict`
    /// (`FloatingIPPortAlreadyAssociated`, `IpAddressGenerationFailure`); `QuotaExceeded`.
    pub async fn floating_ip_create(
        &self,
        caller: &Caller,
        request: FloatingIpCreate,
    ) -> Result<Arc<Stored<FloatingIp>>> {
        let project_id = owner_project(caller, request.project_id.as_deref(), "create_floatingip")?;
        if request.address.is_some() {
            require_admin(caller, "create_floatingip:floating_ip_address")?;
        }
        check_text("description", &request.description)?;
        check_tags(&request.tags)?;
        self.db.caught_up().await?;
        let id = random_uuid();
        self.db
            .transact(|cache| {
                let (holder, address) = holder_of(cache, caller, &request, &id)?;
                let mut floating = FloatingIp {
                    standard: Standard {
                        description: request.description.clone(),
                        tags: request.tags.clone(),
                        ..new_standard(id.clone(), project_id.clone(), String::new())
                    },
                    network_id: request.network_id.clone(),
                    address,
                    holder_port_id: holder.standard.id.clone(),
                    target: None,
                    router_id: None,
                    dns_name: request.dns_name.clone(),
                    dns_domain: request.dns_domain.clone(),
                    qos_policy_id: request.qos_policy_id.clone(),
                };
                let mut txn =
                    qos::used(cache, caller, add_port(Txn::new(), &holder), outside(&request.qos_policy_id))?;
                match (&request.port_id, request.fixed_ip_address) {
                    (Some(port_id), fixed) => {
                        txn = lead_to(cache, txn, caller, &mut floating, port_id, fixed)?;
                    }
                    (None, Some(_)) => return Err(fixed_without_port()),
                    (None, None) => {}
                }
                Ok(quota::charge(txn.create(&floating), &project_id, &[(Resource::FloatingIps, 1)]))
            })
            .await?;
        self.floating_ip_stored(&id)
    }

    /// Changes a floating IP of the caller's.
    ///
    /// # Errors
    /// As [`Control::floating_ip_create`].
    pub async fn floating_ip_update(
        &self,
        caller: &Caller,
        id: &str,
        update: FloatingIpUpdate,
    ) -> Result<Arc<Stored<FloatingIp>>> {
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = owned::<FloatingIp>(cache, caller, id, "update_floatingip")?;
                let mut floating = stored.row.clone();
                if let Some(description) = &update.description {
                    check_text("description", description)?;
                    floating.standard.description.clone_from(description);
                }
                let port_id = match (&update.port_id, update.fixed_ip_address, &floating.target) {
                    // The same port by another of its addresses.
                    (None, Some(_), Some(target)) => Some(Some(target.port_id.clone())),
                    (None, Some(_), None) | (Some(None), Some(_), _) => return Err(fixed_without_port()),
                    (port_id, _, _) => port_id.clone(),
                };
                let mut txn = Txn::new();
                if let Some(policy) =
                    update.qos_policy_id.as_ref().filter(|policy| **policy != floating.qos_policy_id)
                {
                    txn = qos::used(cache, caller, txn, outside(policy))?;
                    floating.qos_policy_id.clone_from(policy);
                }
                match port_id {
                    None => {}
                    Some(None) => txn = lead_nowhere(txn, &mut floating),
                    Some(Some(port_id)) => {
                        txn = lead_to(cache, txn, caller, &mut floating, &port_id, update.fixed_ip_address)?;
                    }
                }
                touch(&mut floating.standard);
                Ok(txn.update(&stored, &floating))
            })
            .await?;
        self.floating_ip_stored(id)
    }

    /// Deletes a floating IP of the caller's, with its forwardings.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn floating_ip_delete(&self, caller: &Caller, id: &str) -> Result<()> {
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = owned::<FloatingIp>(cache, caller, id, "delete_floatingip")?;
                Ok(remove(cache, Txn::new(), &stored))
            })
            .await
    }

    /// How a floating IP leads somewhere, for showing it; the caller has been let see it.
    pub fn floating_ip_facts(&self, floating: &FloatingIp) -> FloatingIpFacts {
        let cache = self.db.cache();
        let state = floating.router_id.as_ref().and_then(|id| cache.get::<RouterState>(id));
        let translated = |target: &FloatingTarget| {
            state
                .as_ref()
                .is_some_and(|state| state.row.floating.contains(&(floating.address, target.address)))
        };
        FloatingIpFacts {
            port: floating.target.as_ref().and_then(|target| cache.get::<Port>(&target.port_id)),
            is_active: floating.target.as_ref().is_some_and(translated),
            forwardings: forwardings_of(cache, &floating.standard.id),
        }
    }

    fn floating_ip_stored(&self, id: &str) -> Result<Arc<Stored<FloatingIp>>> {
        self.db.cache().get::<FloatingIp>(id).ok_or_else(|| Error::not_found("Floating IP", id))
    }
}

/// The floating addresses that lead to ports, by the port: looked up once for however many ports there are.
#[derive(Debug, Clone, Default)]
pub struct FloatingByPort(BTreeMap<String, Vec<Ipv4Addr>>);

impl FloatingByPort {
    /// Of all floating IPs.
    pub(crate) fn of(cache: &Cache) -> Self {
        let mut by_port: BTreeMap<String, Vec<Ipv4Addr>> = BTreeMap::new();
        for floating in cache.list::<FloatingIp>() {
            if let Some(target) = &floating.row.target {
                by_port.entry(target.port_id.clone()).or_default().push(floating.row.address);
            }
        }
        Self(by_port)
    }

    /// Those of one port.
    pub(crate) fn to(&self, port_id: &str) -> &[Ipv4Addr] {
        self.0.get(port_id).map(Vec::as_slice).unwrap_or_default()
    }
}

/// Adds a floating IP's deletion to a transaction, with its forwardings and the port that holds its address.
fn remove(cache: &Cache, txn: Txn, stored: &Stored<FloatingIp>) -> Txn {
    let mut floating = stored.row.clone();
    let mut txn = lead_nowhere(txn, &mut floating);
    for forwarding in forwardings_of(cache, &floating.standard.id) {
        txn = super::forwarding::remove(txn, &forwarding);
    }
    if let Some(holder) = cache.get::<Port>(&floating.holder_port_id) {
        txn = remove_port(txn, &holder);
    }
    quota::charge(txn.delete(stored), &floating.standard.project_id, &[(Resource::FloatingIps, -1)])
}

/// Adds to a transaction that the floating IPs of a network that lead nowhere go with it; returns the ports that held
/// their addresses, which go with them.
pub(crate) fn remove_idle(cache: &Cache, mut txn: Txn, network_id: &str) -> (Txn, BTreeSet<String>) {
    let idle = cache
        .filter::<FloatingIp>(|floating| floating.network_id == network_id && floating.router_id.is_none());
    for stored in &idle {
        txn = remove(cache, txn, stored);
    }
    (txn, idle.iter().map(|stored| stored.row.holder_port_id.clone()).collect())
}

/// The port that holds a new floating IP's address.
fn holder_of(
    cache: &Cache,
    caller: &Caller,
    request: &FloatingIpCreate,
    id: &str,
) -> Result<(Port, Ipv4Addr)> {
    let network = visible::<Network>(cache, caller, &request.network_id)?;
    if !is_external(cache, caller, &network.row) {
        return Err(bad_request(format!("Network {} is not a valid external network", request.network_id)));
    }
    let wish =
        FixedIpWish { subnet_id: request.subnet_id.clone(), ip_address: request.address.map(IpAddr::V4) };
    let wished = match &wish {
        FixedIpWish { subnet_id: None, ip_address: None } => None,
        _ => Some(std::slice::from_ref(&wish)),
    };
    let mac = random_mac();
    let chosen = choose_addresses(cache, Chooser::alone(&request.network_id, OWNER_FLOATING, mac), wished)?;
    let chosen = chosen.into_iter().find_map(|ip| match ip.ip_address {
        IpAddr::V4(address) => Some((ip, address)),
        IpAddr::V6(_) => None,
    });
    let (fixed_ip, address) = chosen.ok_or_else(|| {
        bad_request(format!("Network {} does not contain any IPv4 subnet", request.network_id))
    })?;
    Ok((new_service_port(&request.network_id, mac, vec![fixed_ip], id, OWNER_FLOATING), address))
}

/// Has a floating IP lead to a port.
fn lead_to(
    cache: &Cache,
    txn: Txn,
    caller: &Caller,
    floating: &mut FloatingIp,
    port_id: &str,
    wished: Option<Ipv4Addr>,
) -> Result<Txn> {
    let port = owned_port(cache, caller, port_id, "update_floatingip")?;
    if !forwardings_of(cache, &floating.standard.id).is_empty() {
        return Err(Error::conflict(
            "FloatingIPPortAlreadyAssociated",
            format!("Floating IP {} has port forwardings and cannot lead to a port.", floating.address),
        ));
    }
    let target = target_of(&port.row, wished)?;
    let taken = cache.find::<FloatingIp>(|other| {
        other.standard.id != floating.standard.id
            && other.network_id == floating.network_id
            && other.target.as_ref() == Some(&target)
    });
    if let Some(other) = taken {
        return Err(Error::conflict(
            "FloatingIPPortAlreadyAssociated",
            format!(
                "Cannot associate floating IP {} ({}) with port {port_id} using fixed IP {}, as that fixed IP \
                 already has a floating IP on external network {}: {}.",
                floating.address,
                floating.standard.id,
                target.address,
                floating.network_id,
                other.row.address
            ),
        ));
    }
    let router = router_to(cache, &floating.network_id, &port.row, target.address)?;
    if floating.target.as_ref() == Some(&target) {
        return Ok(txn);
    }
    let mut txn = lead_nowhere(txn, floating);
    // What is decided from stays as it is: no two floating IPs lead to one address.
    txn = txn.unique(target_key(floating, &target)).require(&port);
    floating.target = Some(target);
    floating.router_id = Some(router.row.standard.id.clone());
    Ok(touch_parts(txn, &router))
}

/// Has a floating IP lead nowhere.
fn lead_nowhere(txn: Txn, floating: &mut FloatingIp) -> Txn {
    let Some(target) = floating.target.take() else { return txn };
    floating.router_id = None;
    txn.release(target_key(floating, &target))
}

/// Adds to a transaction that nothing leads to a port any more, which goes.
pub(crate) fn abandon_port(cache: &Cache, mut txn: Txn, port_id: &str) -> Txn {
    let leads =
        |floating: &FloatingIp| floating.target.as_ref().is_some_and(|target| target.port_id == port_id);
    for stored in cache.filter(leads) {
        let mut floating = stored.row.clone();
        txn = lead_nowhere(txn, &mut floating);
        touch(&mut floating.standard);
        txn = txn.update(&stored, &floating);
    }
    for forwarding in cache.filter::<PortForwarding>(|forwarding| forwarding.internal_port_id == port_id) {
        txn = super::forwarding::remove(txn, &forwarding);
    }
    txn
}

/// Keeps the floating IPs of one address in one network from being several.
fn target_key(floating: &FloatingIp, target: &FloatingTarget) -> String {
    format!("unique/floating-target/{}/{}/{}", floating.network_id, target.port_id, target.address)
}

fn target_of(port: &Port, wished: Option<Ipv4Addr>) -> Result<FloatingTarget> {
    let id = &port.standard.id;
    let addresses: Vec<Ipv4Addr> = port
        .fixed_ips
        .iter()
        .filter_map(|ip| match ip.ip_address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        })
        .collect();
    let address = match (wished, addresses.as_slice()) {
        (_, []) => {
            return Err(bad_request(format!(
                "Cannot add floating IP to port {id} that has no fixed IPv4 addresses"
            )));
        }
        (Some(address), _) if addresses.contains(&address) => address,
        (Some(address), _) => {
            return Err(bad_request(format!("Port {id} does not have fixed ip {address}")));
        }
        (None, [address]) => *address,
        (None, _) => {
            return Err(bad_request(format!(
                "Port {id} has multiple fixed IPv4 addresses.  Must provide a specific IPv4 address when \
                 assigning a floating IP"
            )));
        }
    };
    Ok(FloatingTarget { port_id: id.clone(), address })
}

/// The router by which an external network reaches a port's address.
pub(super) fn router_to(
    cache: &Cache,
    network_id: &str,
    port: &Port,
    address: Ipv4Addr,
) -> Result<Arc<Stored<Router>>> {
    let subnet_id = port.fixed_ips.iter().find(|ip| ip.ip_address == IpAddr::V4(address));
    let subnet_id = subnet_id.map(|ip| ip.subnet_id.as_str()).unwrap_or_default();
    let leads_there = |router: &Router| {
        router.gateway.as_ref().is_some_and(|gateway| gateway.network_id == network_id)
            && interfaces(cache, &router.standard.id)
                .iter()
                .any(|interface| interface.row.fixed_ips.iter().any(|ip| ip.subnet_id == subnet_id))
    };
    let mut routers = cache.filter(leads_there);
    // The one that is the subnet's gateway, before others.
    let gateway_ip = cache.get::<Subnet>(subnet_id).and_then(|subnet| subnet.row.gateway_ip);
    routers.sort_by_key(|router| {
        let ports = interfaces(cache, &router.row.standard.id);
        !ports.iter().any(|port| port.row.fixed_ips.iter().any(|ip| Some(ip.ip_address) == gateway_ip))
    });
    routers.into_iter().next().ok_or_else(|| {
        let way = format!("from external network {network_id} to subnet {subnet_id}");
        Error::not_found("ExternalGatewayForFloatingIP", way)
    })
}

/// The floating IPs that lead through a router, those of forwarded ports included.
pub(super) fn through_router(cache: &Cache, router_id: &str) -> Vec<Arc<Stored<FloatingIp>>> {
    cache.filter::<FloatingIp>(|floating| floating.router_id.as_deref() == Some(router_id))
}

/// The forwarded ports of a floating IP.
pub(super) fn forwardings_of(cache: &Cache, floating_ip_id: &str) -> Vec<Arc<Stored<PortForwarding>>> {
    cache.filter::<PortForwarding>(|forwarding| forwarding.floating_ip_id == floating_ip_id)
}

/// Whether a floating IP leads through a router to an address of one of these subnets.
pub(super) fn behind_subnets(cache: &Cache, router_id: &str, subnet_ids: &[&str]) -> bool {
    through_router(cache, router_id).iter().any(|floating| {
        let target = floating.row.target.as_ref();
        target.is_some_and(|target| is_of(cache, &target.port_id, target.address, subnet_ids))
    })
}

/// Whether ports are forwarded through a router to an address of one of these subnets.
pub(super) fn forwards_to_subnets(cache: &Cache, router_id: &str, subnet_ids: &[&str]) -> bool {
    through_router(cache, router_id).iter().any(|floating| {
        forwardings_of(cache, &floating.row.standard.id).iter().any(|forwarding| {
            let forwarding = &forwarding.row;
            is_of(cache, &forwarding.internal_port_id, forwarding.internal_address, subnet_ids)
        })
    })
}

fn is_of(cache: &Cache, port_id: &str, address: Ipv4Addr, subnet_ids: &[&str]) -> bool {
    let port = cache.get::<Port>(port_id);
    port.is_some_and(|port| {
        port.row
            .fixed_ips
            .iter()
            .any(|ip| ip.ip_address == IpAddr::V4(address) && subnet_ids.contains(&ip.subnet_id.as_str()))
    })
}

fn fixed_without_port() -> Error {
    bad_request("fixed_ip_address cannot be specified without a port_id".to_owned())
}

/// Neutron's error for requests about floating IPs that cannot be.
pub(super) fn bad_request(message: String) -> Error {
    Error::invalid("BadRequest", format!("Bad floatingip request: {message}."))
}
