//! Subnets: prefixes of networks, with their gateway, pools and what DHCP says.

mod choice;
pub(crate) mod service_type;
mod v6;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::IpNet;

use self::choice::{Choice, choose};
use super::addressing::{check_pools, default_gateway, default_pools, is_usable};
use super::network::{check_text, new_standard, owned_network, touch};
use super::network_resource::{at_once, made, network_resources, new_ids, only, owned, sees, visible};
use super::port::{self, NewPort};
use super::prefix::overlap;
use super::tag::check_tags;
use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::network::pool::SubnetPool;
use crate::model::network::{FixedIp, Ipv6Mode, Network, Port, Standard, Subnet};
use crate::policy::require_admin;
use crate::service::network::parts;
use crate::service::quota::{self, Resource};
use crate::store::{Cache, Stored, Txn};

/// The most name servers of one subnet (Neutron's `max_dns_nameservers`).
pub const DNS_NAMESERVERS_MAX: usize = 5;
/// The most host routes of one subnet (Neutron's `max_subnet_host_routes`).
pub const HOST_ROUTES_MAX: usize = 20;
/// The most allocation pools of one subnet: far more than anyone writes by hand.
pub const POOLS_MAX: usize = 64;

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

/// Builds the rows of a subnet and of its DHCP port.
fn build_subnet(
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

fn dhcp_address(port: &Port) -> Option<Ipv4Addr> {
    match port.fixed_ips.first()?.ip_address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

/// The port that DHCP answers of a subnet will come from which was made without.
fn lacking_dhcp_port(cache: &Cache, subnet: &Subnet) -> Result<Option<Port>> {
    if !subnet.enable_dhcp || subnet.cidr.addr().is_ipv6() || subnet.dhcp_server.is_some() {
        return Ok(None);
    }
    let mut ports = cache.found_by::<Port>(&subnet.network_id);
    ports.retain(|port| port.row.network_id == subnet.network_id);
    let taken = ports.iter().flat_map(|port| port.row.fixed_ips.iter().map(|ip| ip.ip_address)).collect();
    let port = dhcp_port(subnet, &taken).ok_or_else(|| {
        Error::conflict(
            "IpAddressGenerationFailure",
            format!("No more IP addresses available on network {}.", subnet.network_id),
        )
    })?;
    Ok(Some(port))
}

/// The port that DHCP answers of an IPv4 subnet come from, at the first free address of its pools.
fn dhcp_port(subnet: &Subnet, taken: &BTreeSet<IpAddr>) -> Option<Port> {
    let address: Ipv4Addr = match super::addressing::next_free(subnet.cidr, &subnet.allocation_pools, taken)?
    {
        IpAddr::V4(address) if subnet.enable_dhcp => address,
        _ => return None,
    };
    Some(port::new_port(NewPort {
        project_id: &subnet.standard.project_id,
        network_id: &subnet.network_id,
        name: "",
        mac: super::addressing::random_mac(),
        fixed_ips: vec![FixedIp { subnet_id: subnet.standard.id.clone(), ip_address: address.into() }],
        device_id: &format!("dhcp-{}", subnet.standard.id),
        device_owner: port::OWNER_DHCP,
        active: true,
    }))
}

fn apply_update(subnet: &mut Subnet, update: &SubnetUpdate) -> Result<()> {
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
