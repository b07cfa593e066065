//! Port forwardings: single ports of a floating IP, each with where it leads (Network API: floating IP port forwarding).

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::floating_ip::{bad_request, forwardings_of, router_to};
use super::touch_parts;
use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::network::{Port, Standard};
use crate::model::random_uuid;
use crate::model::router::{FloatingIp, PortForwarding, Transport};
use crate::service::network::{check_text, new_standard, touch};
use crate::service::network_resource::{owned, visible};
use crate::service::port::owned_port;
use crate::store::{Cache, Stored, Txn};

/// The most forwardings of one floating IP.
const FORWARDINGS_MAX: usize = 256;
/// The most ports of one forwarding: each is an element in the router.
const PORTS_MAX: u16 = 1024;

/// What a forwarding is made from; for a change, what is absent stays.
#[derive(Debug, Clone, Default)]
pub struct ForwardingRequest {
    /// TCP or UDP.
    pub transport: Option<Transport>,
    /// First and last port outside.
    pub external: Option<(u16, u16)>,
    /// First and last port inside.
    pub internal: Option<(u16, u16)>,
    /// The port (of a network) inside.
    pub internal_port_id: Option<String>,
    /// Which of its addresses; its only one if absent.
    pub internal_address: Option<Ipv4Addr>,
    /// Free text.
    pub description: Option<String>,
}

impl Control {
    /// Forwards ports of a floating IP.
    ///
    /// # Errors
    /// `Conflict` (`FloatingIPPortAlreadyAssociated`) if the floating IP leads to a port as a whole; `Invalid`
    /// (`BadRequest`) for ports that are forwarded already or ranges that do not fit; `NotFound` if no router leads
    /// there.
    pub async fn forwarding_create(
        &self,
        caller: &Caller,
        floating_ip_id: &str,
        request: ForwardingRequest,
    ) -> Result<Arc<Stored<PortForwarding>>> {
        self.db.caught_up().await?;
        let id = random_uuid();
        self.db
            .transact(|cache| {
                let stored =
                    owned::<FloatingIp>(cache, caller, floating_ip_id, "create_floatingip_port_forwarding")?;
                if stored.row.target.is_some() {
                    return Err(associated(&stored.row));
                }
                let present = forwardings_of(cache, floating_ip_id);
                if present.len() >= FORWARDINGS_MAX {
                    return Err(bad_request(format!(
                        "A floating IP has at most {FORWARDINGS_MAX} port forwardings"
                    )));
                }
                let standard =
                    new_standard(id.clone(), stored.row.standard.project_id.clone(), String::new());
                let forwarding = build(cache, caller, standard, floating_ip_id, &request)?;
                check(&present, &forwarding)?;
                let txn = attach(cache, Txn::new(), &stored, &forwarding)?;
                Ok(txn.create(&forwarding))
            })
            .await?;
        self.forwarding_stored(&id)
    }

    /// The forwardings of a floating IP the caller may see.
    pub async fn forwarding_list(
        &self,
        caller: &Caller,
        floating_ip_id: &str,
    ) -> Result<Vec<Arc<Stored<PortForwarding>>>> {
        self.db.caught_up().await?;
        visible::<FloatingIp>(self.db.cache(), caller, floating_ip_id)?;
        Ok(forwardings_of(self.db.cache(), floating_ip_id))
    }

    /// One forwarding of a floating IP the caller may see.
    pub async fn forwarding_get(
        &self,
        caller: &Caller,
        floating_ip_id: &str,
        id: &str,
    ) -> Result<Arc<Stored<PortForwarding>>> {
        self.db.caught_up().await?;
        visible::<FloatingIp>(self.db.cache(), caller, floating_ip_id)?;
        of(self.db.cache(), floating_ip_id, id)
    }

    /// Changes a forwarding.
    ///
    /// # Errors
    /// As [`Control::forwarding_create`].
    pub async fn forwarding_update(
        &self,
        caller: &Caller,
        floating_ip_id: &str,
        id: &str,
        request: ForwardingRequest,
    ) -> Result<Arc<Stored<PortForwarding>>> {
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let floating =
                    owned::<FloatingIp>(cache, caller, floating_ip_id, "update_floatingip_port_forwarding")?;
                let stored = of(cache, floating_ip_id, id)?;
                let row = &stored.row;
                let moves = request.internal_port_id.as_ref().is_some_and(|id| *id != row.internal_port_id);
                let whole = ForwardingRequest {
                    transport: Some(request.transport.unwrap_or(row.transport)),
                    external: Some(request.external.unwrap_or(row.external)),
                    internal: Some(request.internal.unwrap_or(row.internal)),
                    internal_port_id: Some(
                        request.internal_port_id.clone().unwrap_or_else(|| row.internal_port_id.clone()),
                    ),
                    internal_address: request
                        .internal_address
                        .or_else(|| (!moves).then_some(row.internal_address)),
                    description: Some(
                        request.description.clone().unwrap_or_else(|| row.standard.description.clone()),
                    ),
                };
                let mut standard = row.standard.clone();
                touch(&mut standard);
                let forwarding = build(cache, caller, standard, floating_ip_id, &whole)?;
                let mut others = forwardings_of(cache, floating_ip_id);
                others.retain(|other| other.row.standard.id != id);
                check(&others, &forwarding)?;
                let txn = attach(cache, Txn::new(), &floating, &forwarding)?;
                Ok(txn.update(&stored, &forwarding))
            })
            .await?;
        self.forwarding_stored(id)
    }

    /// Ends a forwarding.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn forwarding_delete(&self, caller: &Caller, floating_ip_id: &str, id: &str) -> Result<()> {
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let floating =
                    owned::<FloatingIp>(cache, caller, floating_ip_id, "delete_floatingip_port_forwarding")?;
                let stored = of(cache, floating_ip_id, id)?;
                let mut txn = remove(Txn::new(), &stored);
                if forwardings_of(cache, floating_ip_id).len() == 1 {
                    let mut row = floating.row.clone();
                    row.router_id = None;
                    touch(&mut row.standard);
                    txn = txn.update(&floating, &row);
                }
                Ok(txn)
            })
            .await
    }

    fn forwarding_stored(&self, id: &str) -> Result<Arc<Stored<PortForwarding>>> {
        self.db.cache().get::<PortForwarding>(id).ok_or_else(|| not_found(id))
    }
}

/// Adds a forwarding's deletion to a transaction.
pub(super) fn remove(txn: Txn, stored: &Stored<PortForwarding>) -> Txn {
    txn.delete(stored)
}

fn of(cache: &Cache, floating_ip_id: &str, id: &str) -> Result<Arc<Stored<PortForwarding>>> {
    cache
        .get::<PortForwarding>(id)
        .filter(|forwarding| forwarding.row.floating_ip_id == floating_ip_id)
        .ok_or_else(|| not_found(id))
}

fn not_found(id: &str) -> Error {
    Error::not_found("Port Forwarding", id)
}

fn associated(floating: &FloatingIp) -> Error {
    Error::conflict(
        "FloatingIPPortAlreadyAssociated",
        format!("Floating IP {} leads to a port as a whole; its single ports cannot.", floating.address),
    )
}

fn build(
    cache: &Cache,
    caller: &Caller,
    standard: Standard,
    floating_ip_id: &str,
    request: &ForwardingRequest,
) -> Result<PortForwarding> {
    let missing = |name: &str| {
        Error::invalid(
            "HTTPBadRequest",
            format!("Failed to parse request. Required attribute '{name}' not specified"),
        )
    };
    let description = request.description.clone().unwrap_or_default();
    check_text("description", &description)?;
    let port_id = request.internal_port_id.as_ref().ok_or_else(|| missing("internal_port_id"))?;
    let external = request.external.ok_or_else(|| missing("external_port"))?;
    let internal = request.internal.ok_or_else(|| missing("internal_port"))?;
    let port = owned_port(cache, caller, port_id, "create_floatingip_port_forwarding")?;
    for (first, last) in [external, internal] {
        if first == 0 || last < first || last - first >= PORTS_MAX {
            return Err(bad_request(format!(
                "{first}:{last} is no range of 1 to {PORTS_MAX} ports from 1 up"
            )));
        }
    }
    if external.1 - external.0 != internal.1 - internal.0 && internal.0 != internal.1 {
        return Err(bad_request(
            "The internal range has to be one port, or as many as the external range".to_owned(),
        ));
    }
    Ok(PortForwarding {
        standard: Standard { description, ..standard },
        floating_ip_id: floating_ip_id.to_owned(),
        transport: request.transport.ok_or_else(|| missing("protocol"))?,
        external,
        internal,
        internal_port_id: port_id.clone(),
        internal_address: inside(&port.row, request.internal_address)?,
    })
}

fn inside(port: &Port, wished: Option<Ipv4Addr>) -> Result<Ipv4Addr> {
    let mut addresses = port.fixed_ips.iter().filter_map(|ip| match ip.ip_address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    });
    let found = match wished {
        Some(wished) => addresses.find(|address| *address == wished),
        None => addresses.next(),
    };
    found.ok_or_else(|| {
        bad_request(format!("Port {} has no such IPv4 address to forward to", port.standard.id))
    })
}

/// A port outside leads to one place, and a place inside is led to from one port.
fn check(others: &[Arc<Stored<PortForwarding>>], new: &PortForwarding) -> Result<()> {
    let meets = |a: (u16, u16), b: (u16, u16)| a.0 <= b.1 && b.0 <= a.1;
    for other in others.iter().map(|other| &other.row).filter(|other| other.transport == new.transport) {
        if meets(other.external, new.external) {
            return Err(bad_request(format!(
                "A duplicate port forwarding entry with same attributes already exists: external ports {}:{}",
                other.external.0, other.external.1
            )));
        }
        if other.internal_port_id == new.internal_port_id
            && other.internal_address == new.internal_address
            && meets(other.internal, new.internal)
        {
            return Err(bad_request(format!(
                "A duplicate port forwarding entry with same attributes already exists: internal ports {}:{}",
                other.internal.0, other.internal.1
            )));
        }
    }
    Ok(())
}

/// Ties a floating IP to the router that forwards its ports, in a transaction that fails if either changes meanwhile.
fn attach(
    cache: &Cache,
    txn: Txn,
    floating: &Stored<FloatingIp>,
    forwarding: &PortForwarding,
) -> Result<Txn> {
    let port = cache
        .get::<Port>(&forwarding.internal_port_id)
        .ok_or_else(|| Error::not_found("Port", &forwarding.internal_port_id))?;
    let router = router_to(cache, &floating.row.network_id, &port.row, forwarding.internal_address)?;
    let mut others = forwardings_of(cache, &floating.row.standard.id);
    others.retain(|other| other.row.standard.id != forwarding.standard.id);
    if let Some(id) = &floating.row.router_id
        && *id != router.row.standard.id
        && !others.is_empty()
    {
        return Err(bad_request(format!(
            "Floating IP {} forwards ports by router {id}, which does not lead to port {}",
            floating.row.address, forwarding.internal_port_id
        )));
    }
    let mut row = floating.row.clone();
    row.router_id = Some(router.row.standard.id.clone());
    touch(&mut row.standard);
    Ok(touch_parts(txn.require(&port), &router).update(floating, &row))
}
