//! Networks: making, finding, changing, deleting. A network is what ports are on; one host has a bridge for it, and
//! between hosts a VXLAN network identifier names it.

mod kind;
pub(crate) mod parts;

use std::collections::BTreeSet;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};
use jiff::Timestamp;

use crate::Control;
use crate::caller::Caller;
use crate::driver::provider::Provider;
use crate::error::{Error, Result};
use crate::model::network::rbac::Access;
use crate::model::network::{Network, NetworkKind, Port, Standard, Subnet};
use crate::policy::{require_admin, require_member};
use crate::service::auto_topology;
use crate::service::host::check_zone_hints;
use crate::service::names;
use crate::service::network_resource::{at_once, made, network_resources, new_ids, only, owned, visible};
use crate::service::qos::{self, held::Holder};
use crate::service::quota::{self, Resource};
use crate::service::rbac;
use crate::service::router::floating_ip::remove_idle;
use crate::service::subnet::SubnetCreate;
use crate::service::tag::check_tags;
use crate::store::{Cache, Stored, Txn};
pub use kind::{MTU_FLAT, MTU_VXLAN};
use kind::{choose_kind, default_mtu, kind_key};

/// The smallest MTU IPv4 guests can work with (RFC 791).
pub const MTU_MIN: u32 = 68;
/// The largest MTU a virtual link carries.
pub const MTU_MAX: u32 = 65_535;
/// The name of the external network that every cloud has, and of the physical network it is on.
pub const PUBLIC_NAME: &str = "public";
/// What keeps the default external network the only one.
const DEFAULT_KEY: &str = "unique/default-external-network";
/// The one availability zone.
pub const ZONE: &str = "nova";
/// The longest name or description in characters (Neutron's `NAME_FIELD_SIZE`).
pub const TEXT_CHARACTERS_MAX: usize = 255;

/// What a network is made from.
#[derive(Debug, Clone, Default)]
pub struct NetworkCreate {
    /// Name.
    pub name: String,
    /// Free text.
    pub description: String,
    /// The owner, if an administrator makes it for another project.
    pub project_id: Option<String>,
    /// Carries traffic; true unless said otherwise.
    pub admin_state_up: Option<bool>,
    /// Everyone may use it; administrators only.
    pub shared: bool,
    /// Reaches the outside; administrators only.
    pub external: bool,
    /// The default external network; administrators only.
    pub is_default: bool,
    /// MTU in bytes; what fits the kind if absent.
    pub mtu: Option<u32>,
    /// New ports have port security; true unless said otherwise.
    pub port_security_enabled: Option<bool>,
    /// `flat`, `vlan` or `vxlan`; administrators only.
    pub network_type: Option<String>,
    /// The physical network's name; administrators only.
    pub physical_network: Option<String>,
    /// The VLAN or VXLAN identifier; administrators only.
    pub segmentation_id: Option<u32>,
    /// The QoS policy; the project's default one if absent.
    pub qos_policy_id: Option<String>,
    /// Zones that it is wished in.
    pub zone_hints: Vec<String>,
    /// The domain of its ports' names.
    pub dns_domain: String,
    /// Tags.
    pub tags: BTreeSet<String>,
}

/// What of a network shall change; absent fields stay.
#[derive(Debug, Clone, Default)]
pub struct NetworkUpdate {
    /// Name.
    pub name: Option<String>,
    /// Free text.
    pub description: Option<String>,
    /// Carries traffic.
    pub admin_state_up: Option<bool>,
    /// Everyone may use it.
    pub shared: Option<bool>,
    /// Reaches the outside.
    pub external: Option<bool>,
    /// The default external network.
    pub is_default: Option<bool>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// New ports have port security.
    pub port_security_enabled: Option<bool>,
    /// The QoS policy; `None` inside is none.
    pub qos_policy_id: Option<Option<String>>,
    /// The domain of its ports' names.
    pub dns_domain: Option<String>,
}

impl Control {
    /// Makes a network; see [`Control::network_create_many`].
    ///
    /// # Errors
    /// As there.
    pub async fn network_create(
        &self,
        caller: &Caller,
        request: NetworkCreate,
    ) -> Result<Arc<Stored<Network>>> {
        only(self.network_create_many(caller, vec![request]).await?)
    }

    /// Makes networks, all or none.
    ///
    /// # Errors
    /// `Forbidden` for what only administrators may say, `Invalid` for a kind or MTU that cannot be, `Conflict` for a
    /// VLAN or VXLAN identifier or physical network in use, `QuotaExceeded`.
    pub async fn network_create_many(
        &self,
        caller: &Caller,
        requests: Vec<NetworkCreate>,
    ) -> Result<Vec<Arc<Stored<Network>>>> {
        let owners =
            requests.iter().map(|request| check_create(caller, request)).collect::<Result<Vec<String>>>()?;
        let ids = new_ids(requests.len());
        let providers = &self.settings.providers;
        self.db
            .transact(|cache| {
                let mut txn = Txn::new();
                let mut siblings = Vec::with_capacity(ids.len());
                for ((request, project_id), id) in requests.iter().zip(&owners).zip(&ids) {
                    let network = build_network(cache, providers, &siblings, request, (id, project_id))?;
                    txn = add(cache, txn, &network)?;
                    siblings.push(network);
                }
                let policies = siblings.iter().filter_map(|network| {
                    Some((Holder::Network(&network.standard.id), network.qos_policy_id.as_ref()?))
                });
                at_once(qos::used(cache, caller, txn, policies)?)
            })
            .await?;
        made(self.db.cache(), &ids)
    }

    /// All networks the caller may see: its project's, shared and external ones.
    pub async fn network_list(&self, caller: &Caller) -> Result<Vec<Arc<Stored<Network>>>> {
        self.network_resources(caller).await
    }

    /// One network the caller may see.
    pub async fn network_get(&self, caller: &Caller, id: &str) -> Result<Arc<Stored<Network>>> {
        self.network_resource(caller, id).await
    }

    /// Changes a network of the caller's.
    pub async fn network_update(
        &self,
        caller: &Caller,
        id: &str,
        update: NetworkUpdate,
    ) -> Result<Arc<Stored<Network>>> {
        for (given, action) in [
            (update.shared.is_some(), "update_network:shared"),
            (update.external.is_some(), "update_network:router:external"),
            (update.is_default.is_some(), "update_network:is_default"),
        ] {
            if given {
                require_admin(caller, action)?;
            }
        }
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = owned_network(cache, caller, id, "update_network")?;
                let mut network = stored.row.clone();
                apply_update(&mut network, &update)?;
                touch(&mut network.standard);
                let mut txn = Txn::new().update(&stored, &network);
                txn = say_default(cache, txn, Some(&stored.row), &network)?;
                if network.qos_policy_id != stored.row.qos_policy_id {
                    let policy = network.qos_policy_id.iter().map(|policy| (Holder::Network(id), policy));
                    txn = qos::used(cache, caller, txn, policy)?;
                }
                let txn = say_shared(cache, txn, &network);
                txn.map_err(|error| still_shared(id, error))
            })
            .await?;
        self.network_stored(id)
    }

    /// Deletes a network of the caller's with its subnets, and with the floating IPs of it that lead nowhere.
    ///
    /// # Errors
    /// `Conflict` (`NetworkInUse`) while other ports than these and DHCP's are on it.
    pub async fn network_delete(&self, caller: &Caller, id: &str) -> Result<()> {
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = owned_network(cache, caller, id, "delete_network")?;
                remove(cache, Txn::new(), &stored, &BTreeSet::new())
            })
            .await
    }

    /// Makes the external network `public`, whose gateway is the host, at a cloud's first start; once it is there,
    /// nothing happens. Every project may use it: it is the host's own way to a guest.
    ///
    /// # Errors
    /// As [`Control::network_create`] and [`Control::subnet_create`].
    pub async fn bootstrap_public_network(&self, administrator: &Caller, cidr: Ipv4Net) -> Result<()> {
        self.db.caught_up().await?;
        let is_public = |network: &Network| matches!(&network.kind, NetworkKind::Flat { physical_network } if physical_network == PUBLIC_NAME);
        let network_id = match self.db.cache().find::<Network>(is_public) {
            Some(network) => network.row.standard.id.clone(),
            None => {
                let request = NetworkCreate {
                    name: PUBLIC_NAME.to_owned(),
                    description: "the host is its gateway".to_owned(),
                    shared: true,
                    external: true,
                    is_default: true,
                    network_type: Some("flat".to_owned()),
                    physical_network: Some(PUBLIC_NAME.to_owned()),
                    ..NetworkCreate::default()
                };
                self.network_create(administrator, request).await?.row.standard.id.clone()
            }
        };
        if self.subnet_ids_of(&network_id).is_empty() {
            let subnet = SubnetCreate::new(network_id, IpNet::V4(cidr), "public-subnet");
            self.subnet_create(administrator, subnet).await?;
        }
        Ok(())
    }

    /// The ids of a network's subnets, for showing it; the caller has been let see the network.
    pub fn subnet_ids_of(&self, network_id: &str) -> Vec<String> {
        let subnets = self.db.cache().filter::<Subnet>(|subnet| subnet.network_id == network_id);
        subnets.iter().map(|subnet| subnet.row.standard.id.clone()).collect()
    }

    fn network_stored(&self, id: &str) -> Result<Arc<Stored<Network>>> {
        self.db.cache().get::<Network>(id).ok_or_else(|| Error::not_found("Network", id))
    }
}

/// The row that a new resource shares with all others of this service.
pub(crate) fn new_standard(id: String, project_id: String, name: String) -> Standard {
    let now = Timestamp::now();
    Standard {
        id,
        project_id,
        name,
        description: String::new(),
        tags: BTreeSet::new(),
        revision: 0,
        created_at: now,
        updated_at: now,
    }
}

/// Notes a change.
pub(crate) fn touch(standard: &mut Standard) {
    standard.revision += 1;
    standard.updated_at = Timestamp::now();
}

/// The project a new resource belongs to: the caller's, or the one an administrator names.
pub(crate) fn owner_project(caller: &Caller, wished: Option<&str>, action: &'static str) -> Result<String> {
    let project_id = wished.or(caller.project_id()).ok_or_else(|| {
        Error::invalid("MissingProject", "A token scoped to a project is needed, or project_id in the body.")
    })?;
    require_member(caller, project_id, action)?;
    Ok(project_id.to_owned())
}

/// Refuses texts that are too long.
pub(crate) fn check_text(field: &'static str, text: &str) -> Result<()> {
    if text.chars().count() > TEXT_CHARACTERS_MAX {
        return Err(Error::invalid(
            "InvalidInput",
            format!(
                "Invalid input for {field}. Reason: it exceeds the maximum length of {TEXT_CHARACTERS_MAX}."
            ),
        ));
    }
    Ok(())
}

network_resources! {
    Network: "Network", "get_network", |row, cache, caller| {
        row.shared
            || row.external
            || caller.may_read(&row.standard.project_id)
            || rbac::is_known(cache, caller, &row.standard.id)
    };
}

/// A network the caller may see, or `NotFound`.
pub(crate) fn visible_network(cache: &Cache, caller: &Caller, id: &str) -> Result<Arc<Stored<Network>>> {
    visible(cache, caller, id)
}

/// A network the caller may change.
pub(crate) fn owned_network(
    cache: &Cache,
    caller: &Caller,
    id: &str,
    action: &'static str,
) -> Result<Arc<Stored<Network>>> {
    owned(cache, caller, id, action)
}

/// What of a new network can be checked before the others are looked at; the project it is for.
fn check_create(caller: &Caller, request: &NetworkCreate) -> Result<String> {
    let project_id = owner_project(caller, request.project_id.as_deref(), "create_network")?;
    for (given, action) in [
        (request.shared, "create_network:shared"),
        (request.external, "create_network:router:external"),
        (request.is_default, "create_network:is_default"),
        (request.network_type.is_some(), "create_network:provider:network_type"),
        (request.physical_network.is_some(), "create_network:provider:physical_network"),
        (request.segmentation_id.is_some(), "create_network:provider:segmentation_id"),
    ] {
        if given {
            require_admin(caller, action)?;
        }
    }
    check_text("name", &request.name)?;
    check_text("description", &request.description)?;
    check_tags(&request.tags)?;
    Ok(project_id)
}

/// Adds a network to a transaction, with what keeps it unique and its quota.
pub(crate) fn add(cache: &Cache, txn: Txn, network: &Network) -> Result<Txn> {
    let txn = txn.create(network).unique(kind_key(&network.kind));
    let txn = say_default(cache, say_shared(cache, txn, network)?, None, network)?;
    Ok(quota::charge(txn, &network.standard.project_id, &[(Resource::Networks, 1)]))
}

/// Adds to a transaction that a network goes, with its subnets, DHCP's ports and idle floating IPs; that the ports of
/// `leaving` go is in the transaction already.
///
/// # Errors
/// `Conflict` (`NetworkInUse`) while other ports are on it.
pub(crate) fn remove(
    cache: &Cache,
    txn: Txn,
    stored: &Stored<Network>,
    leaving: &BTreeSet<String>,
) -> Result<Txn> {
    let id = &stored.row.standard.id;
    let (txn, held) = remove_idle(cache, txn, id);
    let goes = |port: &str| held.contains(port) || leaving.contains(port);
    let mut ports = cache.found_by::<Port>(id);
    ports.retain(|port| port.row.network_id == *id && !goes(&port.row.standard.id));
    let (dhcp, others): (Vec<_>, Vec<_>) =
        ports.into_iter().partition(|port| port.row.device_owner == super::port::OWNER_DHCP);
    if let Some(port) = others.first() {
        return Err(Error::conflict(
            "NetworkInUse",
            format!(
                "Unable to complete operation on network {id}. There are one or more ports still in use on the \
                 network, {} among them.",
                port.row.standard.id
            ),
        ));
    }
    let mut txn = txn.delete(stored).release(kind_key(&stored.row.kind));
    if is_default(&stored.row) {
        txn = txn.release(DEFAULT_KEY);
    }
    txn = rbac::forget(cache, parts::forget(cache, txn, id), id)?;
    txn = auto_topology::forget(cache, txn, id);
    for port in &dhcp {
        txn = super::port::remove_port(txn, port);
    }
    for subnet in &cache.filter::<Subnet>(|subnet| subnet.network_id == *id) {
        txn = super::subnet::remove_subnet(txn, subnet);
    }
    at_once(quota::charge(txn, &stored.row.standard.project_id, &[(Resource::Networks, -1)]))
}

/// Whether routers of topologies that are made by themselves lead to this network.
fn is_default(network: &Network) -> bool {
    network.external && network.is_default
}

/// Keeps the default external network the only one.
fn say_default(cache: &Cache, txn: Txn, before: Option<&Network>, network: &Network) -> Result<Txn> {
    match (before.is_some_and(is_default), is_default(network)) {
        (false, true) => {
            let other = |other: &Network| is_default(other) && other.standard.id != network.standard.id;
            match cache.find::<Network>(other) {
                Some(other) => Err(Error::conflict(
                    "DefaultExternalNetworkExists",
                    format!("A default external network already exists: {}.", other.row.standard.id),
                )),
                None => Ok(txn.unique(DEFAULT_KEY)),
            }
        }
        (true, false) => Ok(txn.release(DEFAULT_KEY)),
        _ => Ok(txn),
    }
}

/// Adds the policies that say what the network's own row says of sharing.
fn say_shared(cache: &Cache, txn: Txn, network: &Network) -> Result<Txn> {
    let standard = &network.standard;
    let txn = rbac::imply::<Network>(cache, txn, standard, Access::AccessAsShared, network.shared)?;
    rbac::imply::<Network>(cache, txn, standard, Access::AccessAsExternal, network.external)
}

fn still_shared(id: &str, error: Error) -> Error {
    match error {
        Error::Conflict { reason: "RbacPolicyInUse", .. } => Error::conflict(
            "InvalidSharedSetting",
            format!(
                "Unable to reconfigure sharing settings for network {id}. Multiple projects are using it."
            ),
        ),
        other => other,
    }
}

pub(crate) fn build_network(
    cache: &Cache,
    providers: &[Provider],
    siblings: &[Network],
    request: &NetworkCreate,
    (id, project_id): (&str, &str),
) -> Result<Network> {
    check_zone_hints(cache, &request.zone_hints)?;
    names::check("dns_domain", &request.dns_domain, true)?;
    let kind = choose_kind(cache, providers, siblings, request)?;
    let mtu = request.mtu.unwrap_or(default_mtu(&kind));
    check_mtu(mtu)?;
    Ok(Network {
        standard: Standard {
            description: request.description.clone(),
            tags: request.tags.clone(),
            ..new_standard(id.to_owned(), project_id.to_owned(), request.name.clone())
        },
        kind,
        mtu,
        admin_state_up: request.admin_state_up.unwrap_or(true),
        shared: request.shared,
        external: request.external,
        port_security_enabled: request.port_security_enabled.unwrap_or(true),
        is_default: request.is_default,
        zone_hints: request.zone_hints.clone(),
        qos_policy_id: request.qos_policy_id.clone().or_else(|| qos::default_of(cache, project_id)),
        dns_domain: request.dns_domain.clone(),
    })
}

fn apply_update(network: &mut Network, update: &NetworkUpdate) -> Result<()> {
    if let Some(name) = &update.name {
        check_text("name", name)?;
        network.standard.name.clone_from(name);
    }
    if let Some(description) = &update.description {
        check_text("description", description)?;
        network.standard.description.clone_from(description);
    }
    if let Some(mtu) = update.mtu {
        check_mtu(mtu)?;
        network.mtu = mtu;
    }
    network.admin_state_up = update.admin_state_up.unwrap_or(network.admin_state_up);
    network.shared = update.shared.unwrap_or(network.shared);
    network.external = update.external.unwrap_or(network.external);
    if let Some(policy) = &update.qos_policy_id {
        network.qos_policy_id.clone_from(policy);
    }
    if let Some(domain) = &update.dns_domain {
        names::check("dns_domain", domain, true)?;
        network.dns_domain.clone_from(domain);
    }
    network.is_default = update.is_default.unwrap_or(network.is_default);
    network.port_security_enabled = update.port_security_enabled.unwrap_or(network.port_security_enabled);
    Ok(())
}

fn check_mtu(mtu: u32) -> Result<()> {
    if (MTU_MIN..=MTU_MAX).contains(&mtu) {
        return Ok(());
    }
    Err(Error::invalid(
        "InvalidInput",
        format!("Invalid input for mtu. Reason: '{mtu}' is not between {MTU_MIN} and {MTU_MAX}."),
    ))
}

#[cfg(test)]
mod tests;
