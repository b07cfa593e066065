//! Network devices of servers: given and taken while a server is off, or at any time where its host can plug. The
//! server's row and its port's binding change in one transaction.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::find_for_change;
use super::form::check_tag;
use super::plug::may_plug;
use super::volume::touch;
use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::compute::{Host, Server};
use crate::model::network::{FixedIp, Port, Subnet};
use crate::model::router::FloatingIp;
use crate::service::host::DEFAULT_ZONE;
use crate::service::network::touch as touch_port;
use crate::service::network_resource::sees;
use crate::service::nic::{NICS_MAX, NicRequest, NicRequests, ServerOfPorts, server_ports};
use crate::service::port::{FixedIpWish, change_port, choose_again, visible_port};
use crate::service::router::floating_ip::FloatingIpUpdate;
use crate::store::{Cache, Stored, Txn};

/// What is plugged, in messages.
const DEVICES: &str = "network devices";

/// A network device that a server shall get.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewInterface {
    /// A new port on this network.
    pub network_id: Option<String>,
    /// This port.
    pub port_id: Option<String>,
    /// The new port's address.
    pub fixed_ip: Option<IpAddr>,
    /// What the guest finds it by (microversion 2.49).
    pub tag: Option<String>,
}

impl Control {
    /// Gives a server a network device, its last one: from its next start on, or at once where its host can. With
    /// neither a network nor a port it is on the one network that there is.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`; `Invalid` where no network or several could be meant, or the port is another project's;
    /// `Conflict` if the server's state or its host, a port or an address in use is in the way; `QuotaExceeded`.
    pub async fn server_interface_attach(
        &self,
        caller: &Caller,
        id: &str,
        new: &NewInterface,
    ) -> Result<Arc<Stored<Port>>> {
        const ACTION: &str = "os_compute_api:os-attach-interfaces:create";
        new.tag.as_deref().map(check_tag).transpose()?;
        self.db.caught_up().await?;
        let cache = self.db.cache();
        let project_id = find_for_change(cache, caller, id, ACTION)?.row.project_id.clone();
        let request = self.interface_request(caller, &project_id, new).await?;
        let groups = [self.ensure_default_group(&project_id).await?];
        let port_id = self
            .db
            .transact_with(|cache| {
                let stored = find_for_change(cache, caller, id, ACTION)?;
                let mut server = stored.row.clone();
                may_plug(cache, &server, "attach_interface", DEVICES, None)?;
                if server.port_ids.len() >= NICS_MAX {
                    let message = format!("A server can have at most {NICS_MAX} networks.");
                    return Err(Error::invalid("TooManyNetworks", message));
                }
                let host = server.host.clone();
                let zone = host.as_ref().and_then(|host| cache.get::<Host>(host));
                let hostname = server.hostname.clone();
                let ports_of = ServerOfPorts {
                    id,
                    hostname: &hostname,
                    project_id: &project_id,
                    zone: zone.as_ref().map_or(DEFAULT_ZONE, |host| host.row.zone.as_str()),
                    host: host.as_deref(),
                    groups: &groups,
                };
                let requests = std::slice::from_ref(&request);
                let (txn, ids) = Self::add_server_ports(cache, Txn::new(), caller, &ports_of, requests)?;
                let port_id = ids.into_iter().next().expect("invariant: one port for one request");
                if let Some(tag) = request.tag() {
                    server.nic_tags.insert(port_id.clone(), tag.to_owned());
                }
                server.port_ids.push(port_id.clone());
                touch(&mut server, caller, "attach_interface");
                Ok((txn.update(&stored, &server), port_id))
            })
            .await?;
        self.db.cache().get::<Port>(&port_id).ok_or_else(|| Error::not_found("Port", port_id))
    }

    async fn interface_request(
        &self,
        caller: &Caller,
        project_id: &str,
        new: &NewInterface,
    ) -> Result<NicRequest> {
        let NewInterface { network_id, port_id, fixed_ip, tag } = new.clone();
        match (port_id, network_id) {
            (Some(id), _) => {
                visible_port(self.db.cache(), caller, &id)?;
                Ok(NicRequest::Port { id, tag })
            }
            (None, Some(id)) => Ok(NicRequest::Network { id, fixed_ip, tag }),
            (None, None) => {
                let found = self.resolve_nics(caller, project_id, &NicRequests::Unsaid).await;
                let found = found.map_err(|error| match error {
                    Error::Conflict { reason, message } => Error::Invalid { reason, message },
                    other => other,
                })?;
                match found.into_iter().next() {
                    Some(NicRequest::Network { id, .. }) => Ok(NicRequest::Network { id, fixed_ip, tag }),
                    _ => {
                        let message = format!(
                            "No specific network was requested and none are available for project '{project_id}'."
                        );
                        Err(Error::invalid("InterfaceAttachFailedNoNetwork", message))
                    }
                }
            }
        }
    }

    /// Takes a network device from a server: a port that was made for it goes, others are free again.
    ///
    /// # Errors
    /// `NotFound`, also for a port that the server has not; `Forbidden`; `Conflict` if the server's state or its host is in
    /// the way.
    pub async fn server_interface_detach(&self, caller: &Caller, id: &str, port_id: &str) -> Result<()> {
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored =
                    find_for_change(cache, caller, id, "os_compute_api:os-attach-interfaces:delete")?;
                let mut server = stored.row.clone();
                let port =
                    cache.get::<Port>(port_id).filter(|_| server.port_ids.iter().any(|own| own == port_id));
                let port = port.ok_or_else(|| Error::not_found("Port", port_id))?;
                may_plug(cache, &server, "detach_interface", DEVICES, Some(port_id))?;
                forget(&mut server, port_id);
                touch(&mut server, caller, "detach_interface");
                Ok(Self::release_server_port(cache, Txn::new().update(&stored, &server), &port))
            })
            .await
    }

    /// Gives the server's first device on a network one address more (microversions before 2.44).
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`; `Invalid` if no subnet of the network has an address left; `NotFound` if the server is not on
    /// that network.
    pub async fn server_fixed_ip_add(&self, caller: &Caller, id: &str, network_id: &str) -> Result<()> {
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = find_for_change(cache, caller, id, "os_compute_api:os-multinic:add")?;
                let port = own_ports(cache, &stored.row).find(|port| port.row.network_id == network_id);
                let port = port
                    .ok_or_else(|| Error::not_found("Network", format!("{network_id} of instance {id}")))?;
                let subnets = cache.filter::<Subnet>(|subnet| subnet.network_id == network_id);
                let kept: Vec<_> = port.row.fixed_ips.iter().map(kept).collect();
                let more = subnets.iter().find_map(|subnet| {
                    let one =
                        FixedIpWish { subnet_id: Some(subnet.row.standard.id.clone()), ip_address: None };
                    let wished: Vec<_> = kept.iter().cloned().chain([one]).collect();
                    choose_again(cache, &port.row, &wished).ok().filter(|ips| ips.len() > kept.len())
                });
                let fixed_ips = more.ok_or_else(|| {
                    Error::invalid(
                        "NoMoreFixedIps",
                        format!("No fixed IP addresses available for network: {network_id}"),
                    )
                })?;
                let mut changed = Port { fixed_ips, ..port.row.clone() };
                touch_port(&mut changed.standard);
                Ok(change_port(Txn::new().require(&stored), &port, &changed))
            })
            .await
    }

    /// Takes an address from the device that has it (microversions before 2.44).
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`; `Invalid` if no device of the server has the address.
    pub async fn server_fixed_ip_remove(&self, caller: &Caller, id: &str, address: IpAddr) -> Result<()> {
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = find_for_change(cache, caller, id, "os_compute_api:os-multinic:remove")?;
                let has = |port: &Port| port.fixed_ips.iter().any(|ip| ip.ip_address == address);
                let port = own_ports(cache, &stored.row).find(|port| has(&port.row)).ok_or_else(|| {
                    let message = format!("Instance {id} does not have fixed IP '{address}'.");
                    Error::invalid("FixedIpNotFoundForSpecificInstance", message)
                })?;
                let mut changed = port.row.clone();
                changed.fixed_ips.retain(|ip| ip.ip_address != address);
                touch_port(&mut changed.standard);
                Ok(change_port(Txn::new().require(&stored), &port, &changed))
            })
            .await
    }

    /// Has a floating IP lead to a server: to one of its addresses, the first unless said (microversions before 2.44).
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`; `Invalid` if the server has no such address; as [`Control::floating_ip_update`].
    pub async fn server_floating_ip_add(
        &self,
        caller: &Caller,
        id: &str,
        address: Ipv4Addr,
        fixed: Option<Ipv4Addr>,
    ) -> Result<()> {
        self.db.caught_up().await?;
        let cache = self.db.cache();
        let server = find_for_change(cache, caller, id, "os_compute_api:os-floating-ips:add")?;
        let fits = |port: &Port| {
            port.fixed_ips.iter().find_map(|ip| match ip.ip_address {
                IpAddr::V4(own) if fixed.is_none_or(|fixed| fixed == own) => Some(own),
                _ => None,
            })
        };
        let found = own_ports(cache, &server.row).find_map(|port| Some((fits(&port.row)?, port)));
        let (own, port) = found.ok_or_else(|| {
            Error::invalid(
                "FixedIpNotFoundForInstance",
                format!("No such fixed IP is associated to instance {id}"),
            )
        })?;
        let floating = floating_of(cache, caller, address)?;
        let update = FloatingIpUpdate {
            port_id: Some(Some(port.row.standard.id.clone())),
            fixed_ip_address: Some(own),
            ..FloatingIpUpdate::default()
        };
        self.floating_ip_update(caller, &floating, update).await.map(drop)
    }

    /// Has a floating IP of a server lead nowhere (microversions before 2.44).
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`; `Conflict` if it does not lead to the server.
    pub async fn server_floating_ip_remove(
        &self,
        caller: &Caller,
        id: &str,
        address: Ipv4Addr,
    ) -> Result<()> {
        self.db.caught_up().await?;
        let cache = self.db.cache();
        let server = find_for_change(cache, caller, id, "os_compute_api:os-floating-ips:remove")?;
        let floating = floating_of(cache, caller, address)?;
        let target = cache.get::<FloatingIp>(&floating).and_then(|floating| floating.row.target.clone());
        let leads = target.is_some_and(|target| {
            own_ports(cache, &server.row).any(|port| port.row.standard.id == target.port_id)
        });
        if !leads {
            let message = format!("Floating IP {address} is not associated with instance {id}.");
            return Err(Error::conflict("FloatingIpNotAssociated", message));
        }
        let update = FloatingIpUpdate { port_id: Some(None), ..FloatingIpUpdate::default() };
        self.floating_ip_update(caller, &floating, update).await.map(drop)
    }
}

/// The id of the floating IP with an address.
fn floating_of(cache: &Cache, caller: &Caller, address: Ipv4Addr) -> Result<String> {
    let found =
        cache.find::<FloatingIp>(|floating| floating.address == address && sees(cache, caller, floating));
    found
        .map(|floating| floating.row.standard.id.clone())
        .ok_or_else(|| Error::not_found("Floating IP", address.to_string()))
}

/// Adds to a transaction that the server that has a port, if one has it, is without it: the port goes (Nova's event
/// `network-vif-deleted`).
///
/// # Errors
/// `Conflict` (`PortInUse`) if the server's state or its host is in the way.
pub(crate) fn unplug(cache: &Cache, txn: Txn, port: &Port) -> Result<Txn> {
    let id = &port.standard.id;
    let server = cache.get::<Server>(&port.device_id).filter(|server| server.row.port_ids.contains(id));
    let Some(stored) = server else { return Ok(txn) };
    let mut server = stored.row.clone();
    may_plug(cache, &server, "detach_interface", DEVICES, Some(id)).map_err(|error| {
        let message = format!(
            "Unable to complete operation on port {id} for network {}. Port already has an attached device {}. {error}",
            port.network_id, port.device_id
        );
        Error::conflict("PortInUse", message)
    })?;
    forget(&mut server, id);
    server.generation += 1;
    Ok(txn.update(&stored, &server))
}

/// Notes that a server has no device for a port any more.
pub(super) fn forget(server: &mut Server, port_id: &str) {
    server.port_ids.retain(|own| own != port_id);
    server.nic_tags.remove(port_id);
}

fn own_ports(cache: &Cache, server: &Server) -> impl Iterator<Item = Arc<Stored<Port>>> {
    server_ports(cache, &server.id).into_iter()
}

/// An address that a port has, as it would be wished.
fn kept(ip: &FixedIp) -> FixedIpWish {
    FixedIpWish { subnet_id: Some(ip.subnet_id.clone()), ip_address: Some(ip.ip_address) }
}
