//! Subnets: prefixes of networks, with their gateway, pools and what DHCP says.

mod choice;
mod dhcp_port;
mod form;
pub(crate) mod service_type;
mod v6;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use self::choice::choose;
use self::dhcp_port::{dhcp_address, lacking_dhcp_port};
pub use self::form::{DNS_NAMESERVERS_MAX, HOST_ROUTES_MAX, POOLS_MAX};
use self::form::{apply_update, build_subnet};
use super::network::{owned_network, touch};
use super::network_resource::{at_once, made, network_resources, new_ids, only, owned, sees, visible};
use super::port;
use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::network::pool::SubnetPool;
use crate::model::network::{Ipv6Mode, Network, Port, Subnet};
use crate::policy::require_admin;
use crate::service::network::parts;
use crate::service::quota::{self, Resource};
use crate::store::{Cache, Stored, Txn};

/// A gateway as a client may say it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Gateway {
    /// The subnet's first address.
    #[default]
    First,
    /// None.
    None,
    /// This one.
    Address(IpAddr),
}

/// What a subnet is made from.
#[derive(Debug, Clone)]
pub struct SubnetCreate {
    /// The network.
    pub network_id: String,
    /// The prefix; one of a pool if absent.
    pub cidr: Option<IpNet>,
    /// 4 or 6, where no prefix says it.
    pub ip_version: Option<u8>,
    /// The pool that the prefix is of.
    pub subnetpool_id: Option<String>,
    /// The default pool of its family.
    pub use_default_subnetpool: bool,
    /// The length of a prefix of a pool; the pool's default if absent.
    pub prefixlen: Option<u8>,
    /// Name.
    pub name: String,
    /// Free text.
    pub description: String,
    /// The gateway.
    pub gateway: Gateway,
    /// Whether DHCP is answered.
    pub enable_dhcp: bool,
    /// Pools; everything but the gateway if absent.
    pub allocation_pools: Option<Vec<(IpAddr, IpAddr)>>,
    /// Name servers.
    pub dns_nameservers: Vec<IpAddr>,
    /// Destination and next hop.
    pub host_routes: Vec<(IpNet, IpAddr)>,
    /// What routers announce, of IPv6.
    pub ipv6_ra_mode: Option<Ipv6Mode>,
    /// How hosts come to their addresses, of IPv6.
    pub ipv6_address_mode: Option<Ipv6Mode>,
    /// The owners of ports that it is for; all if there are none.
    pub service_types: Vec<String>,
    /// Tags.
    pub tags: BTreeSet<String>,
}

impl SubnetCreate {
    /// A subnet with everything as it is unless said otherwise.
    pub fn new(network_id: String, cidr: IpNet, name: &str) -> Self {
        Self { cidr: Some(cidr), ..Self::of_pool(network_id, name.to_owned()) }
    }

    /// The same without a prefix, which comes from a pool.
    pub(crate) fn of_pool(network_id: String, name: String) -> Self {
        Self {
            network_id,
            cidr: None,
            ip_version: None,
            subnetpool_id: None,
            use_default_subnetpool: false,
            prefixlen: None,
            name,
            description: String::new(),
            gateway: Gateway::First,
            enable_dhcp: true,
            allocation_pools: None,
            dns_nameservers: Vec::new(),
            host_routes: Vec::new(),
            ipv6_ra_mode: None,
            ipv6_address_mode: None,
            service_types: Vec::new(),
            tags: BTreeSet::new(),
        }
    }
}

/// What of a subnet shall change; absent fields stay.
#[derive(Debug, Clone, Default)]
pub struct SubnetUpdate {
    /// Name.
    pub name: Option<String>,
    /// Free text.
    pub description: Option<String>,
    /// The gateway.
    pub gateway: Option<Gateway>,
    /// Whether DHCP is answered.
    pub enable_dhcp: Option<bool>,
    /// Pools.
    pub allocation_pools: Option<Vec<(IpAddr, IpAddr)>>,
    /// Name servers.
    pub dns_nameservers: Option<Vec<IpAddr>>,
    /// Destination and next hop.
    pub host_routes: Option<Vec<(IpNet, IpAddr)>>,
    /// The owners of ports that it is for.
    pub service_types: Option<Vec<String>>,
}

impl Control {
    /// Makes a subnet; see [`Control::subnet_create_many`].
    ///
    /// # Errors
    /// As there.
    pub async fn subnet_create(&self, caller: &Caller, request: SubnetCreate) -> Result<Arc<Stored<Subnet>>> {
        only(self.subnet_create_many(caller, vec![request]).await?)
    }

    /// Makes subnets on networks of the caller's, each with the DHCP port that its answers come from; all or none.
    ///
    /// # Errors
    /// `Invalid` for pools, gateways or routes that do not fit; `Invalid` (`InvalidInput`) for a prefix that overlaps
    /// another of the network; what pools refuse; `QuotaExceeded`.
    pub async fn subnet_create_many(
        &self,
        caller: &Caller,
        requests: Vec<SubnetCreate>,
    ) -> Result<Vec<Arc<Stored<Subnet>>>> {
        self.db.caught_up().await?;
        let ids = new_ids(requests.len());
        self.db
            .transact(|cache| {
                let mut txn = Txn::new();
                let mut siblings = Vec::with_capacity(ids.len());
                let (mut networks, mut pools) = (BTreeMap::new(), BTreeMap::new());
                for (request, id) in requests.iter().zip(&ids) {
                    let network = owned_network(cache, caller, &request.network_id, "create_subnet")?;
                    if !request.service_types.is_empty() {
                        require_admin(caller, "create_subnet:service_types")?;
                    }
                    let new = NewSubnet { id, network: &network.row, siblings: &siblings };
                    let Added { txn: changed, subnet, pool } = add(cache, txn, caller, new, request)?;
                    txn = changed;
                    pools.extend(pool.map(|pool| (pool.row.standard.id.clone(), pool)));
                    networks.insert(network.row.standard.id.clone(), network);
                    siblings.push(subnet);
                }
                // The networks' and pools' rows are written too, so that two overlapping subnets at once cannot both pass.
                for pool in pools.values() {
                    txn = txn.update(pool, &pool.row);
                }
                for network in networks.values() {
                    let mut changed = network.row.clone();
                    touch(&mut changed.standard);
                    txn = txn.update(network, &changed);
                }
                at_once(txn)
            })
            .await?;
        let subnets = made::<Subnet>(self.db.cache(), &ids)?;
        for subnet in &subnets {
            self.auto_addresses_add(&subnet.row).await?;
        }
        Ok(subnets)
    }

    /// All subnets of networks the caller may see.
    pub async fn subnet_list(&self, caller: &Caller) -> Result<Vec<Arc<Stored<Subnet>>>> {
        self.network_resources(caller).await
    }

    /// One subnet the caller may see.
    pub async fn subnet_get(&self, caller: &Caller, id: &str) -> Result<Arc<Stored<Subnet>>> {
        self.network_resource(caller, id).await
    }

    /// Changes a subnet of the caller's.
    pub async fn subnet_update(
        &self,
        caller: &Caller,
        id: &str,
        update: SubnetUpdate,
    ) -> Result<Arc<Stored<Subnet>>> {
        if update.service_types.is_some() {
            require_admin(caller, "update_subnet:service_types")?;
        }
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = owned::<Subnet>(cache, caller, id, "update_subnet")?;
                let mut subnet = stored.row.clone();
                apply_update(&mut subnet, &update)?;
                touch(&mut subnet.standard);
                let mut txn = Txn::new();
                if !stored.row.enable_dhcp
                    && let Some(dhcp) = lacking_dhcp_port(cache, &subnet)?
                {
                    subnet.dhcp_server = dhcp_address(&dhcp);
                    txn = port::add_port(txn, &dhcp);
                }
                Ok(txn.update(&stored, &subnet))
            })
            .await?;
        visible(self.db.cache(), caller, id)
    }

    /// Deletes a subnet of the caller's.
    ///
    /// # Errors
    /// `Conflict` (`SubnetInUse`) while ports other than DHCP's have addresses of it.
    pub async fn subnet_delete(&self, caller: &Caller, id: &str) -> Result<()> {
        self.db.caught_up().await?;
        let stored = owned::<Subnet>(self.db.cache(), caller, id, "delete_subnet")?;
        let stays = |port: &Port| stored.row.is_auto() && !port.device_owner.starts_with("network:");
        check_unused(id, &users_of(self.db.cache(), id), stays)?;
        self.auto_addresses_remove(&stored.row).await?;
        self.db
            .transact(|cache| {
                let stored = owned::<Subnet>(cache, caller, id, "delete_subnet")?;
                let users = users_of(cache, id);
                check_unused(id, &users, |_| false)?;
                let mut txn = parts::note(remove_subnet(Txn::new(), &stored), &stored.row.network_id);
                for port in &users {
                    txn = port::remove_port(txn, port);
                }
                Ok(txn)
            })
            .await
    }
}

/// A subnet that is to be made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewSubnet<'a> {
    pub(crate) id: &'a str,
    /// The network it is of, which may be made in the same transaction.
    pub(crate) network: &'a Network,
    /// Subnets made in the same transaction before it.
    pub(crate) siblings: &'a [Subnet],
}

/// A subnet that a transaction makes.
pub(crate) struct Added {
    pub(crate) txn: Txn,
    pub(crate) subnet: Subnet,
    /// The pool that it is cut from, whose row whoever commits has to write.
    pub(crate) pool: Option<Arc<Stored<SubnetPool>>>,
}

/// Adds a subnet to a transaction, with its DHCP port and its quota.
pub(crate) fn add(
    cache: &Cache,
    txn: Txn,
    caller: &Caller,
    new: NewSubnet<'_>,
    request: &SubnetCreate,
) -> Result<Added> {
    let NewSubnet { id, network, siblings } = new;
    let choice = choose(cache, caller, siblings, network, request)?;
    let (subnet, dhcp) = build_subnet(cache, siblings, network, request, (id, &choice))?;
    let mut txn = txn.create(&subnet);
    if let Some(dhcp) = dhcp {
        txn = port::add_port(txn, &dhcp);
    }
    let txn = quota::charge(txn, &subnet.standard.project_id, &[(Resource::Subnets, 1)]);
    Ok(Added { txn, subnet, pool: choice.pool })
}

/// The ports that have addresses of a subnet.
fn users_of(cache: &Cache, id: &str) -> Vec<Arc<Stored<Port>>> {
    cache.filter::<Port>(|port| port.fixed_ips.iter().any(|ip| ip.subnet_id == id))
}

/// Refuses to delete a subnet that ports have addresses of, besides DHCP's, and those of which `stays` holds.
fn check_unused(id: &str, users: &[Arc<Stored<Port>>], stays: impl Fn(&Port) -> bool) -> Result<()> {
    if users.iter().any(|port| port.row.device_owner != port::OWNER_DHCP && !stays(&port.row)) {
        return Err(Error::conflict(
            "SubnetInUse",
            format!(
                "Unable to complete operation on subnet {id}: One or more ports have an IP allocation from this \
                 subnet."
            ),
        ));
    }
    Ok(())
}

/// Adds the deletion of a subnet's row, with its quota, to a transaction; its ports are the caller's affair.
pub(crate) fn remove_subnet(txn: Txn, subnet: &Stored<Subnet>) -> Txn {
    quota::charge(txn.delete(subnet), &subnet.row.standard.project_id, &[(Resource::Subnets, -1)])
}

network_resources! {
    Subnet: "Subnet", "get_subnet", |row, cache, caller| {
        caller.may_read(&row.standard.project_id)
            || cache.get::<Network>(&row.network_id).is_some_and(|network| sees(cache, caller, &network.row))
    };
}
