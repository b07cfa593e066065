//! Ports: where something is on a network, with its MAC address, its addresses and its security groups.

pub(crate) mod address;
mod dhcp_option;
mod form;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

pub(crate) use self::address::{auto_address, choose_again};
pub use self::dhcp_option::DhcpOptionWish;
use self::form::apply_update;
pub(crate) use self::form::{PortOwner, build_port};
use super::network::{check_text, new_standard, touch};
use super::network_resource::{at_once, made, network_resources, new_ids, only, owned, visible};
use super::tag::check_tags;
use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::network::{FixedIp, Network, Port};
use crate::model::random_uuid;
use crate::policy::require_admin;
use crate::service::network::parts;
use crate::service::qos::{self, held::Holder};
use crate::service::quota::{self, Resource};
use crate::service::router::floating_ip::abandon_port;
use crate::service::server::interface::unplug;
use crate::store::{Cache, Stored, Txn};

/// The owner of ports that DHCP answers come from.
pub const OWNER_DHCP: &str = "network:dhcp";
/// The owner of servers' ports begins so; the availability zone follows.
pub const OWNER_COMPUTE: &str = "compute:";
/// The most addresses one port can have (Neutron's `max_fixed_ips_per_port`).
pub const FIXED_IPS_MAX: usize = 5;
/// The most allowed address pairs of one port (Neutron's `max_allowed_address_pair`).
pub const ADDRESS_PAIRS_MAX: usize = 10;
/// The most security groups of one port: each is evaluated for each new connection.
pub const GROUPS_MAX: usize = 32;

/// An address as a client may wish it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FixedIpWish {
    /// From this subnet.
    pub subnet_id: Option<String>,
    /// This address.
    pub ip_address: Option<IpAddr>,
}

/// What a port is made from.
#[derive(Debug, Clone, Default)]
pub struct PortCreate {
    /// The network.
    pub network_id: String,
    /// The owner, if an administrator makes it for another project.
    pub project_id: Option<String>,
    /// Name.
    pub name: String,
    /// Free text.
    pub description: String,
    /// The MAC address; a random one if absent.
    pub mac: Option<[u8; 6]>,
    /// The addresses; one of the first IPv4 subnet if absent.
    pub fixed_ips: Option<Vec<FixedIpWish>>,
    /// Further source addresses the guest may use.
    pub allowed_address_pairs: Vec<(IpNet, [u8; 6])>,
    /// Carries traffic; true unless said otherwise.
    pub admin_state_up: Option<bool>,
    /// Groups by id; the default one if absent.
    pub security_groups: Option<Vec<String>>,
    /// Port security; what the network says if absent.
    pub port_security_enabled: Option<bool>,
    /// What uses it.
    pub device_id: String,
    /// What kind of thing uses it.
    pub device_owner: String,
    /// The host it is bound to.
    pub host: Option<String>,
    /// Made with its server, and deleted with it.
    pub owned_by_server: bool,
    /// Tags.
    pub tags: BTreeSet<String>,
    /// The QoS policy.
    pub qos_policy_id: Option<String>,
    /// DHCP options of its own.
    pub extra_dhcp_opts: Vec<DhcpOptionWish>,
    /// Its name in its network's domain.
    pub dns_name: String,
}

/// What of a port shall change; absent fields stay.
#[derive(Debug, Clone, Default)]
pub struct PortUpdate {
    /// Name.
    pub name: Option<String>,
    /// Free text.
    pub description: Option<String>,
    /// Carries traffic.
    pub admin_state_up: Option<bool>,
    /// Groups by id.
    pub security_groups: Option<Vec<String>>,
    /// Port security.
    pub port_security_enabled: Option<bool>,
    /// Further source addresses the guest may use.
    pub allowed_address_pairs: Option<Vec<(IpNet, [u8; 6])>>,
    /// What uses it.
    pub device_id: Option<String>,
    /// What kind of thing uses it.
    pub device_owner: Option<String>,
    /// The QoS policy; `None` inside is none.
    pub qos_policy_id: Option<Option<String>>,
    /// The addresses; those that are not named go.
    pub fixed_ips: Option<Vec<FixedIpWish>>,
    /// The MAC address; administrators only, and of ports that are not bound.
    pub mac: Option<[u8; 6]>,
    /// The host it is bound to, or none; administrators only, and not of a server's port.
    pub host: Option<String>,
    /// DHCP options of its own; those that are not named stay.
    pub extra_dhcp_opts: Vec<DhcpOptionWish>,
    /// Its name in its network's domain.
    pub dns_name: Option<String>,
}

impl Control {
    /// Makes a port; see [`Control::port_create_many`].
    ///
    /// # Errors
    /// As there.
    pub async fn port_create(&self, caller: &Caller, request: PortCreate) -> Result<Arc<Stored<Port>>> {
        only(self.port_create_many(caller, vec![request]).await?)
    }

    /// Makes ports on networks that the caller may use, all or none.
    ///
    /// # Errors
    /// `Conflict` (`IpAddressInUse`, `MacAddressInUse`, `IpAddressGenerationFailure`), `Invalid` for addresses that
    /// no subnet holds, `QuotaExceeded`.
    pub async fn port_create_many(
        &self,
        caller: &Caller,
        requests: Vec<PortCreate>,
    ) -> Result<Vec<Arc<Stored<Port>>>> {
        let mut owners = Vec::with_capacity(requests.len());
        for request in &requests {
            let project_id =
                super::network::owner_project(caller, request.project_id.as_deref(), "create_port")?;
            check_text("name", &request.name)?;
            check_text("description", &request.description)?;
            check_tags(&request.tags)?;
            if request.host.is_some() {
                require_admin(caller, "create_port:binding:host_id")?;
            }
            if request.device_owner.starts_with("network:") {
                require_admin(caller, "create_port:device_owner")?;
            }
            let default_group = self.ensure_default_group(&project_id).await?;
            owners.push((project_id, default_group));
        }
        let ids = new_ids(requests.len());
        self.db
            .transact(|cache| {
                let mut txn = Txn::new();
                let mut siblings = Vec::with_capacity(ids.len());
                for ((request, (project_id, default_group)), id) in requests.iter().zip(&owners).zip(&ids) {
                    let owner = PortOwner { project_id, default_group, siblings: &siblings };
                    let port = build_port(cache, caller, owner, id, request)?;
                    txn = add_port(txn, &port);
                    siblings.push(port);
                }
                let policies = siblings
                    .iter()
                    .filter_map(|port| Some((Holder::Port(&port.standard.id), port.qos_policy_id.as_ref()?)));
                at_once(qos::used(cache, caller, txn, policies)?)
            })
            .await?;
        made(self.db.cache(), &ids)
    }

    /// All ports of the projects the caller may see.
    pub async fn port_list(&self, caller: &Caller) -> Result<Vec<Arc<Stored<Port>>>> {
        self.network_resources(caller).await
    }

    /// One port the caller may see.
    pub async fn port_get(&self, caller: &Caller, id: &str) -> Result<Arc<Stored<Port>>> {
        self.network_resource(caller, id).await
    }

    /// Changes a port of the caller's.
    pub async fn port_update(
        &self,
        caller: &Caller,
        id: &str,
        update: PortUpdate,
    ) -> Result<Arc<Stored<Port>>> {
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = owned_port(cache, caller, id, "update_port")?;
                let mut port = stored.row.clone();
                apply_update(cache, caller, &mut port, &update)?;
                touch(&mut port.standard);
                let txn = change_port(Txn::new(), &stored, &port);
                if port.qos_policy_id == stored.row.qos_policy_id {
                    return Ok(txn);
                }
                let policy = port.qos_policy_id.iter().map(|policy| (Holder::Port(id), policy));
                qos::used(cache, caller, txn, policy)
            })
            .await?;
        visible_port(self.db.cache(), caller, id)
    }

    /// Deletes a port of the caller's.
    ///
    /// # Errors
    /// `Conflict` (`ServicePortInUse`) for a port that DHCP or a router uses, and (`PortInUse`) for one of a server that
    /// cannot do without it now: its state, or its host, is in the way.
    pub async fn port_delete(&self, caller: &Caller, id: &str) -> Result<()> {
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = owned_port(cache, caller, id, "delete_port")?;
                let owner = &stored.row.device_owner;
                if owner.starts_with("network:") {
                    return Err(Error::conflict(
                        "ServicePortInUse",
                        format!(
                            "Port {id} cannot be deleted directly via the port API: has device owner {owner}."
                        ),
                    ));
                }
                let txn = unplug(cache, Txn::new(), &stored.row)?;
                let txn = remove_port(abandon_port(cache, txn, id), &stored);
                super::trunk::check_port_free(cache, txn, id)
            })
            .await
    }
}

/// The parts of a port's row that differ between kinds of port.
pub(crate) struct NewPort<'a> {
    pub(crate) project_id: &'a str,
    pub(crate) network_id: &'a str,
    pub(crate) name: &'a str,
    pub(crate) mac: [u8; 6],
    pub(crate) fixed_ips: Vec<FixedIp>,
    pub(crate) device_id: &'a str,
    pub(crate) device_owner: &'a str,
    pub(crate) active: bool,
}

/// A port's row with a new id and without groups.
pub(crate) fn new_port(new: NewPort<'_>) -> Port {
    Port {
        standard: new_standard(random_uuid(), new.project_id.to_owned(), new.name.to_owned()),
        network_id: new.network_id.to_owned(),
        mac: new.mac,
        fixed_ips: new.fixed_ips,
        allowed_address_pairs: Vec::new(),
        admin_state_up: true,
        security_groups: Vec::new(),
        port_security_enabled: false,
        device_id: new.device_id.to_owned(),
        device_owner: new.device_owner.to_owned(),
        host: None,
        active: new.active,
        owned_by_server: false,
        qos_policy_id: None,
        extra_dhcp_opts: Vec::new(),
        dns_name: String::new(),
    }
}

/// Adds a port with its unique addresses and its quota to a transaction.
pub(crate) fn add_port(mut txn: Txn, port: &Port) -> Txn {
    txn = txn.create(port);
    for key in unique_keys(port) {
        txn = txn.unique(&key);
    }
    charge(parts::note(txn, &port.network_id), port, 1)
}

/// Adds a change of a port to a transaction, with its unique addresses.
pub(crate) fn change_port(mut txn: Txn, stored: &Stored<Port>, port: &Port) -> Txn {
    let (before, after) = (unique_keys(&stored.row), unique_keys(port));
    for key in before.iter().filter(|key| !after.contains(key)) {
        txn = txn.release(key);
    }
    let mut gains = false;
    for key in after.iter().filter(|key| !before.contains(key)) {
        gains = true;
        txn = txn.unique(key);
    }
    if gains {
        txn = parts::note(txn, &port.network_id);
    }
    txn.update(stored, port)
}

/// Adds a port's deletion to a transaction.
pub(crate) fn remove_port(mut txn: Txn, port: &Stored<Port>) -> Txn {
    txn = txn.delete(port);
    for key in unique_keys(&port.row) {
        txn = txn.release(&key);
    }
    charge(txn, &port.row, -1)
}

/// The network service's own ports belong to no project.
fn charge(txn: Txn, port: &Port, change: i64) -> Txn {
    let owner = &port.standard.project_id;
    if owner.is_empty() { txn } else { quota::charge(txn, owner, &[(Resource::Ports, change)]) }
}

fn unique_keys(port: &Port) -> Vec<String> {
    let addresses = port.fixed_ips.iter().map(|ip| format!("unique/ip/{}/{}", ip.subnet_id, ip.ip_address));
    let mac = format!("unique/mac/{}/{}", port.network_id, super::addressing::mac_text(port.mac));
    addresses.chain([mac]).collect()
}

network_resources! {
    // Of its project, or on its network.
    Port: "Port", "get_port", |row, cache, caller| {
        caller.may_read(&row.standard.project_id)
            || cache
                .get::<Network>(&row.network_id)
                .is_some_and(|network| caller.may_read(&network.row.standard.project_id))
    };
}

/// A port the caller may see.
pub(crate) fn visible_port(cache: &Cache, caller: &Caller, id: &str) -> Result<Arc<Stored<Port>>> {
    visible(cache, caller, id)
}

/// A port the caller may change.
pub(crate) fn owned_port(
    cache: &Cache,
    caller: &Caller,
    id: &str,
    action: &'static str,
) -> Result<Arc<Stored<Port>>> {
    owned(cache, caller, id, action)
}
