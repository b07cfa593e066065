//! A project's own topology, made when somebody asks for it (Network API: auto-allocated-topology): a network with a subnet
//! of each default pool, and a router that leads from them to the default external network. Made and deleted in one
//! transaction each, so none is ever half there.

use std::collections::BTreeSet;

use super::addressing::random_mac;
use super::network::{NetworkCreate, build_network, new_standard};
use super::network_resource::{at_once, owned};
use super::port::{NewPort, add_port, new_port, remove_port};
use super::prefix::overlap;
use super::quota::{self, Resource};
use super::router::interface::check_unneeded;
use super::router::{self, GatewayWish, OWNER_INTERFACE, gateway, interfaces};
use super::subnet::{self, NewSubnet, SubnetCreate};
use super::subnet_pool::version_of;
use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::network::pool::SubnetPool;
use crate::model::network::{AutoTopology, FixedIp, Network, Subnet};
use crate::model::random_uuid;
use crate::model::router::Router;
use crate::policy::require_member;
use crate::store::{Cache, Stored, Txn};

/// The names that Neutron gives the parts.
const NETWORK_NAME: &str = "auto_allocated_network";
/// See [`NETWORK_NAME`].
const ROUTER_NAME: &str = "auto_allocated_router";

impl Control {
    /// Whether what a project's own topology is made of is there: a default external network, default subnet pools.
    ///
    /// # Errors
    /// `Forbidden` for another project's; `Conflict` (`AutoAllocationFailure`), saying what is missing.
    pub async fn topology_check(&self, caller: &Caller, project_id: &str) -> Result<()> {
        check_reader(caller, project_id)?;
        self.db.caught_up().await?;
        requirements(self.db.cache()).map(drop)
    }

    /// The network of a project's own topology, which is made if it is not there.
    ///
    /// # Errors
    /// `Forbidden` for another project's; `Conflict` (`AutoAllocationFailure`), saying what is missing; `QuotaExceeded`.
    pub async fn topology(&self, caller: &Caller, project_id: &str) -> Result<String> {
        check_reader(caller, project_id)?;
        self.db.caught_up().await?;
        let ids = Ids { network: random_uuid(), router: random_uuid() };
        self.db
            .transact_with(|cache| {
                if let Some(stored) = cache.get::<AutoTopology>(project_id) {
                    return Ok((Txn::new(), stored.row.network_id.clone()));
                }
                require_member(caller, project_id, "create_auto_allocated_topology")?;
                let txn = build(cache, caller, project_id, &ids)?;
                Ok((at_once(txn)?, ids.network.clone()))
            })
            .await
    }

    /// Deletes a project's own topology, if it has one.
    ///
    /// # Errors
    /// `Forbidden` for another project's; `Conflict` while something uses a part of it.
    pub async fn topology_delete(&self, caller: &Caller, project_id: &str) -> Result<()> {
        require_member(caller, project_id, "delete_auto_allocated_topology")?;
        self.db.caught_up().await?;
        self.db
            .transact(|cache| match cache.get::<AutoTopology>(project_id) {
                Some(stored) => remove(cache, caller, &stored),
                None => Ok(Txn::new()),
            })
            .await
    }
}

/// The ids of what is made, the same at every try.
struct Ids {
    network: String,
    router: String,
}

fn check_reader(caller: &Caller, project_id: &str) -> Result<()> {
    if caller.may_read(project_id) {
        return Ok(());
    }
    Err(Error::Forbidden { action: "get_auto_allocated_topology" })
}

fn fails(what: &str) -> Error {
    Error::conflict("AutoAllocationFailure", format!("Deployment error: {what}."))
}

/// Whether a topology could be made, as far as can be told beforehand.
pub(crate) fn is_possible(cache: &Cache) -> bool {
    requirements(cache).is_ok()
}

/// The default external network, and the versions of IP that have a default pool.
fn requirements(cache: &Cache) -> Result<(String, BTreeSet<u8>)> {
    let outside = cache.find::<Network>(|network| network.external && network.is_default);
    let outside = outside.ok_or_else(|| fails("No default router:external network"))?;
    let pools = cache.filter::<SubnetPool>(|pool| pool.is_default);
    let versions: BTreeSet<u8> =
        pools.iter().flat_map(|pool| pool.row.prefixes.first()).map(version_of).collect();
    if versions.is_empty() {
        return Err(fails("No default subnetpools defined"));
    }
    Ok((outside.row.standard.id.clone(), versions))
}

fn build(cache: &Cache, caller: &Caller, project_id: &str, ids: &Ids) -> Result<Txn> {
    let (outside, versions) = requirements(cache)?;
    let request = NetworkCreate { name: NETWORK_NAME.to_owned(), ..NetworkCreate::default() };
    let network = build_network(cache, &[], &[], &request, (&ids.network, project_id))?;
    let mut txn = super::network::add(cache, Txn::new(), &network)?;
    let mut subnets: Vec<Subnet> = Vec::with_capacity(versions.len());
    for version in versions {
        let request = SubnetCreate {
            use_default_subnetpool: true,
            ip_version: Some(version),
            ..SubnetCreate::of_pool(network.standard.id.clone(), format!("auto_allocated_subnet_v{version}"))
        };
        let new = NewSubnet { id: &random_uuid(), network: &network, siblings: &subnets };
        let subnet::Added { txn: changed, subnet, pool } =
            subnet::add(cache, txn, caller, new, &request).map_err(unmet)?;
        txn = changed;
        if let Some(pool) = pool {
            // So that no other subnet is cut of the same at once.
            txn = txn.update(&pool, &pool.row);
        }
        subnets.push(subnet);
    }
    let txn = connect(cache, txn, caller, (project_id, &ids.router, &outside), &subnets)?;
    Ok(txn.create(&AutoTopology {
        project_id: project_id.to_owned(),
        network_id: ids.network.clone(),
        router_id: ids.router.clone(),
    }))
}

/// What pools refuse is told as Neutron tells it; quotas say themselves what they are.
fn unmet(error: Error) -> Error {
    match error {
        Error::Invalid { .. } | Error::Conflict { .. } | Error::NotFound { .. } => {
            fails("Unable to provide tenant private network")
        }
        other => other,
    }
}

/// Makes the router that leads from the subnets to the outside.
fn connect(
    cache: &Cache,
    mut txn: Txn,
    caller: &Caller,
    (project_id, id, outside): (&str, &str, &str),
    subnets: &[Subnet],
) -> Result<Txn> {
    let unable = || fails("Unable to provide external connectivity");
    let mut router = Router {
        standard: new_standard(id.to_owned(), project_id.to_owned(), ROUTER_NAME.to_owned()),
        admin_state_up: true,
        gateway: None,
        routes: BTreeSet::new(),
        zone_hints: Vec::new(),
        parts: 0,
    };
    let wish = GatewayWish { network_id: outside.to_owned(), ..GatewayWish::default() };
    txn = gateway::set(cache, txn, caller, &mut router, &wish).map_err(|_| unable())?;
    let others = cache.filter::<Subnet>(|subnet| subnet.network_id == outside);
    for subnet in subnets {
        let clash = others.iter().any(|other| overlap(&other.row.cidr, &subnet.cidr));
        let Some(ip_address) = subnet.gateway_ip.filter(|_| !clash) else { return Err(unable()) };
        let port = new_port(NewPort {
            project_id,
            network_id: &subnet.network_id,
            name: "",
            mac: random_mac(),
            fixed_ips: vec![FixedIp { subnet_id: subnet.standard.id.clone(), ip_address }],
            device_id: id,
            device_owner: OWNER_INTERFACE,
            active: false,
        });
        txn = add_port(txn, &port);
    }
    Ok(quota::charge(txn.create(&router), project_id, &[(Resource::Routers, 1)]))
}

fn remove(cache: &Cache, caller: &Caller, stored: &Stored<AutoTopology>) -> Result<Txn> {
    let AutoTopology { network_id, router_id, .. } = &stored.row;
    let mut txn = Txn::new();
    let mut leaving = BTreeSet::new();
    if cache.get::<Router>(router_id).is_some() {
        let found = owned::<Router>(cache, caller, router_id, "delete_router")?;
        for port in interfaces(cache, router_id).iter().filter(|port| port.row.network_id == *network_id) {
            check_unneeded(cache, &found.row, &port.row)?;
            txn = remove_port(txn, port);
            leaving.insert(port.row.standard.id.clone());
        }
        txn = router::remove(cache, txn, &found, &leaving)?;
    }
    let network = owned::<Network>(cache, caller, network_id, "delete_network")?;
    super::network::remove(cache, txn, &network, &leaving)
}

/// Adds to the transaction in which a network goes that the topology that it is of goes with it.
pub(crate) fn forget(cache: &Cache, txn: Txn, network_id: &str) -> Txn {
    let found = cache.find::<AutoTopology>(|topology| topology.network_id == network_id);
    match found {
        Some(stored) => txn.delete(&stored),
        None => txn,
    }
}
