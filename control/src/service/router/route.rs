//! Routes of routers beside those that their interfaces give (Network API: extra routes).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::interfaces;
use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::network::{Port, Subnet};
use crate::model::router::Router;
use crate::service::network::touch;
use crate::service::network_resource::owned;
use crate::store::{Cache, Stored, Txn};

/// The most routes of one router (Neutron's `max_routes`).
const ROUTES_MAX: usize = 30;

impl Control {
    /// Adds routes to a router's at once; those that it has stay (Network API: add extra routes).
    ///
    /// # Errors
    /// `Invalid` (`InvalidRoutes`) for a next hop that it does not reach; `Invalid` (`RoutesExhausted`).
    pub async fn router_add_routes(
        &self,
        caller: &Caller,
        id: &str,
        routes: &[(IpNet, IpAddr)],
    ) -> Result<Arc<Stored<Router>>> {
        self.change_routes(caller, id, |present| present.extend(routes.iter().copied())).await
    }

    /// Removes routes from a router's at once; those that it has not are passed over (Network API: remove extra
    /// routes).
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn router_remove_routes(
        &self,
        caller: &Caller,
        id: &str,
        routes: &[(IpNet, IpAddr)],
    ) -> Result<Arc<Stored<Router>>> {
        self.change_routes(caller, id, |present| present.retain(|route| !routes.contains(route))).await
    }

    async fn change_routes(
        &self,
        caller: &Caller,
        id: &str,
        change: impl Fn(&mut BTreeSet<(IpNet, IpAddr)>),
    ) -> Result<Arc<Stored<Router>>> {
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = owned::<Router>(cache, caller, id, "update_router")?;
                let mut router = stored.row.clone();
                change(&mut router.routes);
                check(cache, &stored.row, &router.routes.iter().copied().collect::<Vec<_>>())?;
                touch(&mut router.standard);
                Ok(Txn::new().update(&stored, &router))
            })
            .await?;
        self.router_stored(id)
    }
}

/// Checks all routes of a router against its networks.
pub(super) fn check(cache: &Cache, router: &Router, routes: &[(IpNet, IpAddr)]) -> Result<()> {
    if routes.len() > ROUTES_MAX {
        return Err(Error::invalid(
            "RoutesExhausted",
            format!(
                "Unable to complete operation for {}. The number of routes exceeds the maximum {ROUTES_MAX}.",
                router.standard.id
            ),
        ));
    }
    let gateway = router.gateway.iter().filter_map(|gateway| cache.get::<Port>(&gateway.port_id));
    let ports: Vec<_> = interfaces(cache, &router.standard.id).into_iter().chain(gateway).collect();
    let addresses = || ports.iter().flat_map(|port| &port.row.fixed_ips);
    let mut destinations = BTreeSet::new();
    for (destination, via) in routes {
        let invalid = |why: &str| {
            Error::invalid(
                "InvalidRoutes",
                format!("Invalid format for routes: {destination} by {via}, {why}."),
            )
        };
        if destination.addr().is_ipv4() != via.is_ipv4() {
            return Err(invalid("the next hop is of another IP version"));
        }
        if addresses().any(|ip| ip.ip_address == *via) {
            return Err(invalid("the nexthop is used by router"));
        }
        let reached = addresses()
            .filter_map(|ip| cache.get::<Subnet>(&ip.subnet_id))
            .any(|subnet| subnet.row.cidr.contains(via));
        if !reached {
            return Err(invalid("the nexthop is not connected with router"));
        }
        if !destinations.insert(destination.trunc()) {
            return Err(invalid("there is another route to the same destination"));
        }
    }
    Ok(())
}
