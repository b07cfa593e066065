//! Routers: making, finding, changing, deleting, and their way out. [`interface`] has their ports on networks inside,
//! [`wanted`] what their host is told, [`floating_ip`] and [`forwarding`] what leads in from outside.

pub mod floating_ip;
pub mod forwarding;
pub(crate) mod gateway;
pub mod interface;
mod route;
pub(crate) mod wanted;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

pub use self::gateway::GatewayWish;
use super::network::{check_text, new_standard, owner_project, touch};
use super::network_resource::{network_resources, owned};
use super::port;
use super::tag::{check_tags, taggable};
use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::network::{Port, Standard};
use crate::model::random_uuid;
use crate::model::router::{FloatingIp, Router, RouterState};
use crate::service::host::check_zone_hints;
use crate::service::quota::{self, Resource};
use crate::store::{Cache, Stored, Txn};

network_resources! {
    Router: "Router", "get_router";
    FloatingIp: "Floating IP", "get_floatingip";
}

taggable! {
    Router: "router";
    FloatingIp: "floatingip";
}

/// The owner of routers' ports on networks inside.
pub const OWNER_INTERFACE: &str = "network:router_interface";
/// The owner of routers' ports on external networks.
pub const OWNER_GATEWAY: &str = "network:router_gateway";

/// What a router is made from.
#[derive(Debug, Clone, Default)]
pub struct RouterCreate {
    /// The owner, if an administrator makes it for another project.
    pub project_id: Option<String>,
    /// Name.
    pub name: String,
    /// Free text.
    pub description: String,
    /// Carries traffic; true unless said otherwise.
    pub admin_state_up: Option<bool>,
    /// The way out.
    pub gateway: Option<GatewayWish>,
    /// Zones that it is wished in.
    pub zone_hints: Vec<String>,
    /// Tags.
    pub tags: BTreeSet<String>,
}

/// What of a router shall change; absent fields stay.
#[derive(Debug, Clone, Default)]
pub struct RouterUpdate {
    /// Name.
    pub name: Option<String>,
    /// Free text.
    pub description: Option<String>,
    /// Carries traffic.
    pub admin_state_up: Option<bool>,
    /// The way out; `Some(None)` takes it away.
    pub gateway: Option<Option<GatewayWish>>,
    /// All routes.
    pub routes: Option<Vec<(IpNet, IpAddr)>>,
}

impl Control {
    /// Makes a router (Network API: create router).
    ///
    /// # Errors
    /// As for its gateway and `QuotaExceeded`.
    pub async fn router_create(&self, caller: &Caller, request: RouterCreate) -> Result<Arc<Stored<Router>>> {
        let project_id = owner_project(caller, request.project_id.as_deref(), "create_router")?;
        check_text("name", &request.name)?;
        check_text("description", &request.description)?;
        check_tags(&request.tags)?;
        self.db.caught_up().await?;
        let id = random_uuid();
        self.db
            .transact(|cache| {
                check_zone_hints(cache, &request.zone_hints)?;
                let mut router = Router {
                    standard: Standard {
                        description: request.description.clone(),
                        tags: request.tags.clone(),
                        ..new_standard(id.clone(), project_id.clone(), request.name.clone())
                    },
                    admin_state_up: request.admin_state_up.unwrap_or(true),
                    gateway: None,
                    routes: BTreeSet::new(),
                    zone_hints: request.zone_hints.clone(),
                    parts: 0,
                };
                let mut txn = Txn::new();
                if let Some(wish) = &request.gateway {
                    txn = gateway::set(cache, txn, caller, &mut router, wish)?;
                }
                Ok(quota::charge(txn.create(&router), &project_id, &[(Resource::Routers, 1)]))
            })
            .await?;
        self.router_stored(&id)
    }

    /// Changes a router of the caller's.
    ///
    /// # Errors
    /// As for its gateway and its routes.
    pub async fn router_update(
        &self,
        caller: &Caller,
        id: &str,
        update: RouterUpdate,
    ) -> Result<Arc<Stored<Router>>> {
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = owned::<Router>(cache, caller, id, "update_router")?;
                let mut router = stored.row.clone();
                if let Some(name) = &update.name {
                    check_text("name", name)?;
                    router.standard.name.clone_from(name);
                }
                if let Some(description) = &update.description {
                    check_text("description", description)?;
                    router.standard.description.clone_from(description);
                }
                router.admin_state_up = update.admin_state_up.unwrap_or(router.admin_state_up);
                let mut txn = Txn::new();
                match &update.gateway {
                    None => {}
                    Some(None) => txn = gateway::clear(cache, txn, &mut router)?,
                    Some(Some(wish)) => txn = gateway::set(cache, txn, caller, &mut router, wish)?,
                }
                if let Some(routes) = &update.routes {
                    let changed = update.gateway.is_some().then_some(&router);
                    route::check(cache, changed.unwrap_or(&stored.row), routes)?;
                    router.routes = routes.iter().copied().collect();
                }
                touch(&mut router.standard);
                Ok(txn.update(&stored, &router))
            })
            .await?;
        self.router_stored(id)
    }

    /// Deletes a router of the caller's.
    ///
    /// # Errors
    /// `Conflict` (`RouterInUse`) while it has interfaces, or a floating IP leads through it.
    pub async fn router_delete(&self, caller: &Caller, id: &str) -> Result<()> {
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = owned::<Router>(cache, caller, id, "delete_router")?;
                remove(cache, Txn::new(), &stored, &BTreeSet::new())
            })
            .await
    }

    /// Why a router is not as it shall be, as its host says; nothing if it is. The caller has been let see the router.
    pub fn router_fault(&self, id: &str) -> Option<String> {
        self.db.cache().get::<RouterState>(id)?.row.fault.clone()
    }

    /// The addresses of a router's way out, for showing it; the caller has been let see the router.
    pub fn router_gateway_port(&self, router: &Router) -> Option<Arc<Stored<Port>>> {
        self.db.cache().get::<Port>(&router.gateway.as_ref()?.port_id)
    }

    fn router_stored(&self, id: &str) -> Result<Arc<Stored<Router>>> {
        self.db.cache().get::<Router>(id).ok_or_else(|| Error::not_found("Router", id))
    }
}

/// Adds to a transaction that a router goes; that the ports of `leaving` go is in it already.
///
/// # Errors
/// `Conflict` (`RouterInUse`) while it has other interfaces, or a floating IP leads through it.
pub(crate) fn remove(
    cache: &Cache,
    txn: Txn,
    stored: &Stored<Router>,
    leaving: &BTreeSet<String>,
) -> Result<Txn> {
    let id = &stored.row.standard.id;
    if interfaces(cache, id).iter().any(|port| !leaving.contains(&port.row.standard.id)) {
        return Err(in_use(id, "still has ports"));
    }
    let mut router = stored.row.clone();
    let mut txn = gateway::clear(cache, txn, &mut router)?;
    if let Some(state) = cache.get::<RouterState>(id) {
        txn = txn.delete(&state);
    }
    let project_id = &stored.row.standard.project_id;
    Ok(quota::charge(txn.delete(stored), project_id, &[(Resource::Routers, -1)]))
}

fn in_use(id: &str, reason: &str) -> Error {
    Error::conflict("RouterInUse", format!("Router {id} {reason}."))
}

/// The ports of a router on networks inside.
pub(crate) fn interfaces(cache: &Cache, router_id: &str) -> Vec<Arc<Stored<Port>>> {
    let mut ports = cache.found_by::<Port>(router_id);
    ports.retain(|port| port.row.device_id == router_id && port.row.device_owner == OWNER_INTERFACE);
    ports
}

/// Notes in a router's row that a part of it has come or gone, so that whoever decided from it decides again.
pub(crate) fn touch_parts(txn: Txn, stored: &Stored<Router>) -> Txn {
    let mut router = stored.row.clone();
    router.parts += 1;
    touch(&mut router.standard);
    txn.update(stored, &router)
}

/// Adds a port that belongs to the network service itself: it has its unique addresses, but no owner and no quota.
fn new_service_port(
    network_id: &str,
    mac: [u8; 6],
    fixed_ips: Vec<crate::model::network::FixedIp>,
    device_id: &str,
    device_owner: &str,
) -> Port {
    port::new_port(port::NewPort {
        project_id: "",
        network_id,
        name: "",
        mac,
        fixed_ips,
        device_id,
        device_owner,
        active: false,
    })
}

#[cfg(test)]
mod tests;
