//! Trunks: a port of a guest that carries other ports, each in a VLAN of its own. Hosts are told of them with their ports'
//! devices.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::network::{check_text, new_standard, owner_project, touch};
use super::network_resource::{at_once, made, network_resources, new_ids, only, owned, visible};
use super::tag::check_tags;
use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::compute::Host;
use crate::model::network::trunk::{SubPort, Trunk};
use crate::model::network::{Network, Port};
use crate::policy::require_member;
use crate::service::quota::{self, Resource};
use crate::store::{Cache, Stored, Txn};

/// The greatest VLAN id that a frame can have (IEEE 802.1Q).
const VLAN_MAX: u16 = 4094;
/// The most ports that one trunk carries: each is a row's part and a key, and a trunk is made in one transaction.
pub const SUB_PORTS_MAX: usize = 100;

/// What a trunk is made from.
#[derive(Debug, Clone)]
pub struct TrunkCreate {
    /// Name.
    pub name: String,
    /// Free text.
    pub description: String,
    /// The owner, if an administrator makes it for another project.
    pub project_id: Option<String>,
    /// The port that carries.
    pub port_id: String,
    /// Carries traffic.
    pub admin_state_up: bool,
    /// The ports that are carried.
    pub sub_ports: Vec<SubPort>,
    /// Tags.
    pub tags: BTreeSet<String>,
}

/// What a trunk's port says of what it carries.
#[derive(Debug, Clone)]
pub struct TrunkDetails {
    /// The trunk.
    pub trunk: Arc<Stored<Trunk>>,
    /// The MAC addresses of the ports that it carries, in their order.
    pub macs: Vec<[u8; 6]>,
}

network_resources! {
    Trunk: "Trunk", "get_trunk";
}

super::tag::taggable! {
    Trunk: "trunk";
}

impl Control {
    /// Makes a trunk.
    ///
    /// # Errors
    /// `Conflict` for ports in use, VLANs that are taken, networks whose frames do not fit; `QuotaExceeded`.
    pub async fn trunk_create(&self, caller: &Caller, request: TrunkCreate) -> Result<Arc<Stored<Trunk>>> {
        let project_id = owner_project(caller, request.project_id.as_deref(), "create_trunk")?;
        check_text("name", &request.name)?;
        check_text("description", &request.description)?;
        check_tags(&request.tags)?;
        let ids = new_ids(1);
        self.db
            .transact(|cache| {
                let parent = free_port(cache, caller, &request.port_id, "create_trunk")?;
                if parent.row.host.is_some() {
                    return Err(parent_in_use(&request.port_id));
                }
                let mut standard = new_standard(ids[0].clone(), project_id.clone(), request.name.clone());
                standard.description.clone_from(&request.description);
                standard.tags.clone_from(&request.tags);
                let mut trunk = Trunk {
                    standard,
                    port_id: request.port_id.clone(),
                    admin_state_up: request.admin_state_up,
                    sub_ports: Vec::new(),
                };
                let txn = Txn::new().require(&parent).unique(key(&request.port_id));
                let txn = carry(cache, caller, txn, &mut trunk, &request.sub_ports, "create_trunk")?;
                at_once(quota::charge(txn.create(&trunk), &project_id, &[(Resource::Trunks, 1)]))
            })
            .await?;
        only(made(self.db.cache(), &ids)?)
    }

    /// Changes a trunk's name, description or state.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` for texts that are too long.
    pub async fn trunk_update(
        &self,
        caller: &Caller,
        id: &str,
        (name, description): (Option<&str>, Option<&str>),
        admin_state_up: Option<bool>,
    ) -> Result<Arc<Stored<Trunk>>> {
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = owned::<Trunk>(cache, caller, id, "update_trunk")?;
                let mut trunk = stored.row.clone();
                if let Some(name) = name {
                    check_text("name", name)?;
                    name.clone_into(&mut trunk.standard.name);
                }
                if let Some(description) = description {
                    check_text("description", description)?;
                    description.clone_into(&mut trunk.standard.description);
                }
                trunk.admin_state_up = admin_state_up.unwrap_or(trunk.admin_state_up);
                touch(&mut trunk.standard);
                Ok(Txn::new().update(&stored, &trunk))
            })
            .await?;
        self.network_resource(caller, id).await
    }

    /// Deletes a trunk; its ports stay.
    ///
    /// # Errors
    /// `Conflict` (`TrunkDisabled`, and `TrunkInUse` while its port is a running server's).
    pub async fn trunk_delete(&self, caller: &Caller, id: &str) -> Result<()> {
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = manageable(cache, caller, id, "delete_trunk")?;
                if cache.get::<Port>(&stored.row.port_id).is_some_and(|port| port.row.host.is_some()) {
                    let message = format!("Trunk {id} is currently in use.");
                    return Err(Error::conflict("TrunkInUse", message));
                }
                let mut txn = Txn::new().delete(&stored).release(key(&stored.row.port_id));
                for sub_port in &stored.row.sub_ports {
                    txn = txn.release(key(&sub_port.port_id));
                }
                Ok(quota::charge(txn, &stored.row.standard.project_id, &[(Resource::Trunks, -1)]))
            })
            .await
    }

    /// Has a trunk carry more ports.
    ///
    /// # Errors
    /// As [`Control::trunk_create`].
    pub async fn trunk_add(
        &self,
        caller: &Caller,
        id: &str,
        sub_ports: &[SubPort],
    ) -> Result<Arc<Stored<Trunk>>> {
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = manageable(cache, caller, id, "add_subports")?;
                let mut trunk = stored.row.clone();
                let txn = carry(cache, caller, Txn::new(), &mut trunk, sub_ports, "add_subports")?;
                touch(&mut trunk.standard);
                at_once(txn.update(&stored, &trunk))
            })
            .await?;
        self.network_resource(caller, id).await
    }

    /// Has a trunk no longer carry these ports.
    ///
    /// # Errors
    /// `NotFound` (`SubPortNotFound`), `Conflict` (`TrunkDisabled`).
    pub async fn trunk_remove(
        &self,
        caller: &Caller,
        id: &str,
        ports: &[String],
    ) -> Result<Arc<Stored<Trunk>>> {
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = manageable(cache, caller, id, "remove_subports")?;
                let mut trunk = stored.row.clone();
                let mut txn = Txn::new();
                for port in ports {
                    let at = trunk.sub_ports.iter().position(|sub_port| sub_port.port_id == *port);
                    let at = at.ok_or_else(|| Error::not_found("Sub port", port))?;
                    trunk.sub_ports.remove(at);
                    txn = txn.release(key(port));
                }
                touch(&mut trunk.standard);
                at_once(txn.update(&stored, &trunk))
            })
            .await?;
        self.network_resource(caller, id).await
    }

    /// Whether a trunk carries its ports: it shall, its port is a running server's, and the host can.
    pub fn trunk_is_active(&self, trunk: &Trunk) -> bool {
        self.carrying_host(trunk).is_some()
    }

    /// The host on which a port is carried in a VLAN of another's, while it is.
    pub fn port_is_carried(&self, port: &Port) -> Option<String> {
        let id = &port.standard.id;
        let trunk = of_port(self.db.cache(), id).filter(|trunk| trunk.row.port_id != *id)?;
        self.carrying_host(&trunk.row).filter(|_| port.admin_state_up)
    }

    fn carrying_host(&self, trunk: &Trunk) -> Option<String> {
        let cache = self.db.cache();
        let port =
            cache.get::<Port>(&trunk.port_id).filter(|port| port.row.active && trunk.admin_state_up)?;
        let host = cache.get::<Host>(port.row.host.as_deref()?)?;
        host.row.report.carries_vlans.then(|| host.row.name.clone())
    }

    /// The trunk whose port this is, and the MAC addresses of what it carries, for showing the port.
    pub fn trunk_of_port(&self, port_id: &str) -> Option<TrunkDetails> {
        let cache = self.db.cache();
        let trunk = of_port(cache, port_id).filter(|trunk| trunk.row.port_id == port_id)?;
        let mac =
            |sub_port: &SubPort| cache.get::<Port>(&sub_port.port_id).map_or([0; 6], |port| port.row.mac);
        let macs = trunk.row.sub_ports.iter().map(mac).collect();
        Some(TrunkDetails { trunk, macs })
    }
}

/// A VLAN id, and the port in it with its network.
pub(crate) type Carried = (u16, Arc<Stored<Port>>, Arc<Stored<Network>>);

/// What a device of this port carries. What is switched off carries nothing, and is carried by nobody.
pub(crate) fn carried_by(cache: &Cache, port_id: &str) -> Vec<Carried> {
    let trunk = of_port(cache, port_id);
    let trunk = trunk.filter(|trunk| trunk.row.port_id == port_id && trunk.row.admin_state_up);
    let sub_ports = trunk.iter().flat_map(|trunk| &trunk.row.sub_ports);
    let carried = sub_ports.filter_map(|SubPort { port_id, vlan }| {
        let port = cache.get::<Port>(port_id).filter(|port| port.row.admin_state_up)?;
        let network = cache.get::<Network>(&port.row.network_id)?;
        Some((*vlan, port, network))
    });
    carried.collect()
}

/// The key of a port that is a trunk's: of one, as its port or as one it carries.
fn key(port_id: &str) -> String {
    format!("unique/trunk-port/{port_id}")
}

fn parent_in_use(id: &str) -> Error {
    let message = format!("Port {id} is currently in use and is not eligible for use as a parent port.");
    Error::conflict("ParentPortInUse", message)
}

/// A trunk that the caller may change, and that is not switched off.
fn manageable(cache: &Cache, caller: &Caller, id: &str, action: &'static str) -> Result<Arc<Stored<Trunk>>> {
    let stored = owned::<Trunk>(cache, caller, id, action)?;
    if !stored.row.admin_state_up {
        return Err(Error::conflict("TrunkDisabled", format!("Trunk {id} is currently disabled.")));
    }
    Ok(stored)
}

/// A port of the caller's that no trunk has.
fn free_port(cache: &Cache, caller: &Caller, id: &str, action: &'static str) -> Result<Arc<Stored<Port>>> {
    let port = visible::<Port>(cache, caller, id)?;
    require_member(caller, &port.row.standard.project_id, action)?;
    match of_port(cache, id) {
        None => Ok(port),
        Some(trunk) if trunk.row.port_id == id => Err(parent_in_use(id)),
        Some(_) => Err(Error::conflict("TrunkPortInUse", format!("Port {id} is in use by another trunk."))),
    }
}

fn carry(
    cache: &Cache,
    caller: &Caller,
    mut txn: Txn,
    trunk: &mut Trunk,
    sub_ports: &[SubPort],
    action: &'static str,
) -> Result<Txn> {
    if trunk.sub_ports.len() + sub_ports.len() > SUB_PORTS_MAX {
        let message = format!("Invalid input for operation: a trunk carries at most {SUB_PORTS_MAX} ports.");
        return Err(Error::invalid("InvalidInput", message));
    }
    let mtu_of = |network: &str| cache.get::<Network>(network).map_or(0, |network| network.row.mtu);
    let trunk_mtu = cache.get::<Port>(&trunk.port_id).map_or(0, |port| mtu_of(&port.row.network_id));
    for sub_port in sub_ports {
        let SubPort { port_id, vlan } = sub_port;
        if !(1..=VLAN_MAX).contains(vlan) {
            let message = format!(
                "Invalid input for operation: Invalid segmentation ID {vlan}: it is 1 to {VLAN_MAX}."
            );
            return Err(Error::invalid("InvalidInput", message));
        }
        if *port_id == trunk.port_id {
            return Err(parent_in_use(port_id));
        }
        if trunk.sub_ports.iter().any(|other| other.port_id == *port_id) {
            return Err(Error::conflict(
                "TrunkPortInUse",
                format!("Port {port_id} is in use by another trunk."),
            ));
        }
        let port = free_port(cache, caller, port_id, action)?;
        if !port.row.device_id.is_empty() {
            return Err(Error::conflict(
                "PortInUse",
                format!(
                    "Unable to complete operation on port {port_id} for network {}. Port already has an attached \
                     device {}.",
                    port.row.network_id, port.row.device_id
                ),
            ));
        }
        if trunk.sub_ports.iter().any(|other| other.vlan == *vlan) {
            return Err(Error::conflict(
                "DuplicateSubPort",
                format!(
                    "segmentation_type vlan and segmentation_id {vlan} already in use on trunk {}.",
                    trunk.standard.id
                ),
            ));
        }
        let mtu = mtu_of(&port.row.network_id);
        if mtu > trunk_mtu {
            return Err(Error::conflict(
                "SubPortMtuGreaterThanTrunkPortMtu",
                format!(
                    "MTU {mtu} of subport {port_id} cannot be greater than MTU {trunk_mtu} of trunk {}.",
                    trunk.standard.id
                ),
            ));
        }
        txn = txn.require(&port).unique(key(port_id));
        trunk.sub_ports.push(sub_port.clone());
    }
    Ok(txn)
}

/// The trunk that has this port, as its own or as one that it carries: no other has it then.
fn of_port(cache: &Cache, port_id: &str) -> Option<Arc<Stored<Trunk>>> {
    cache.found_by::<Trunk>(port_id).into_iter().next()
}

/// Whether a trunk has this port, as its own or as one that it carries.
pub(crate) fn has_port(cache: &Cache, port_id: &str) -> bool {
    of_port(cache, port_id).is_some()
}

/// Adds to a transaction that no trunk has a port.
pub(crate) fn require_free(txn: Txn, port_id: &str) -> Txn {
    txn.require_free(key(port_id))
}

/// Adds to the transaction in which a port goes that no trunk has it.
pub(crate) fn check_port_free(cache: &Cache, txn: Txn, port_id: &str) -> Result<Txn> {
    let Some(trunk) = of_port(cache, port_id) else { return Ok(require_free(txn, port_id)) };
    let id = &trunk.row.standard.id;
    Err(if trunk.row.port_id == port_id {
        let message = format!("Port {port_id} is currently a parent port for trunk {id}.");
        Error::conflict("PortInUseAsTrunkParent", message)
    } else {
        let message = format!("Port {port_id} is currently a subport for trunk {id}.");
        Error::conflict("PortInUseAsSubPort", message)
    })
}
