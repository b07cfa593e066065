//! Servers as their owners read them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::{find, find_for_change};
use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::compute::{Host, Server};
use crate::model::network::{Network, Port, SecurityGroup};
use crate::policy::{Default, Target, require, require_admin};
use crate::service::router::floating_ip::FloatingByPort;
use crate::service::security_group::check_kinds;
use crate::store::{Cache, Stored, Txn};

/// One address of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The network's name.
    pub network: String,
    /// The address.
    pub address: IpAddr,
    /// The port's MAC address.
    pub mac: [u8; 6],
    /// It is a floating IP's.
    pub floating: bool,
}

/// A server with what is known of it besides its row.
#[derive(Debug, Clone)]
pub struct ServerView {
    /// Its row.
    pub server: Arc<Stored<Server>>,
    /// Its addresses in the order of its devices.
    pub addresses: Vec<Address>,
    /// The names of its ports' security groups.
    pub security_groups: BTreeSet<String>,
    /// The zone it is in, or is wished in.
    pub zone: Option<String>,
    /// Its host's agent is connected; absent without a host.
    pub host_alive: Option<bool>,
    /// Its host takes no new servers.
    pub host_disabled: bool,
}

/// Which servers to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerScope<'a> {
    /// Those of the caller's project.
    Own,
    /// Those of one project; for administrators.
    Project(&'a str),
    /// All; for administrators.
    All,
}

impl Control {
    /// One server.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn server(&self, caller: &Caller, id: &str) -> Result<Arc<Stored<Server>>> {
        self.db.caught_up().await?;
        find(self.db.cache(), caller, id)
    }

    /// One server, for what a rule is about that is read of it.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`.
    pub async fn server_seen(
        &self,
        caller: &Caller,
        id: &str,
        rule: &'static str,
    ) -> Result<Arc<Stored<Server>>> {
        let server = self.server(caller, id).await?;
        let keys = [("project_id", server.row.project_id.as_str()), ("user_id", server.row.user_id.as_str())];
        require(rule, Default::Reader, caller, &Target::of(&keys))?;
        Ok(server)
    }

    /// The servers of `scope`, in the order of their ids.
    ///
    /// # Errors
    /// `Forbidden` if the scope is beyond the caller.
    pub async fn servers(&self, caller: &Caller, scope: ServerScope<'_>) -> Result<Vec<Arc<Stored<Server>>>> {
        let project = match scope {
            ServerScope::Own => caller.project_id(),
            ServerScope::Project(project) => Some(project),
            ServerScope::All => {
                require_admin(caller, "os_compute_api:servers:detail:get_all_tenants")?;
                None
            }
        };
        if project.is_none() && scope == ServerScope::Own {
            return Ok(Vec::new());
        }
        if project.is_some_and(|project| !caller.may_read(project)) {
            require_admin(caller, "os_compute_api:servers:index:get_all_tenants")?;
        }
        self.db.caught_up().await?;
        Ok(self
            .db
            .cache()
            .filter::<Server>(|server| project.is_none_or(|project| server.project_id == project)))
    }

    /// What is known of a server besides its row.
    pub fn server_view(&self, server: Arc<Stored<Server>>) -> ServerView {
        self.server_view_with(server, &FloatingByPort::of(self.db.cache()))
    }

    /// The same of many servers.
    pub fn server_views(&self, servers: Vec<Arc<Stored<Server>>>) -> impl Iterator<Item = ServerView> {
        let floating = FloatingByPort::of(self.db.cache());
        servers.into_iter().map(move |server| self.server_view_with(server, &floating))
    }

    fn server_view_with(&self, server: Arc<Stored<Server>>, floating: &FloatingByPort) -> ServerView {
        let cache = self.db.cache();
        let mut addresses = Vec::new();
        let mut security_groups = BTreeSet::new();
        for port in ports(cache, &server.row) {
            let network = cache.get::<Network>(&port.row.network_id);
            let name = network
                .map_or_else(|| port.row.network_id.clone(), |network| network.row.standard.name.clone());
            let address =
                |address, floating| Address { network: name.clone(), address, mac: port.row.mac, floating };
            addresses.extend(port.row.fixed_ips.iter().map(|ip| address(ip.ip_address, false)));
            let floating = floating.to(&port.row.standard.id);
            addresses.extend(floating.iter().map(|outside| address((*outside).into(), true)));
            let groups = port.row.security_groups.iter().filter_map(|id| cache.get::<SecurityGroup>(id));
            security_groups.extend(groups.map(|group| group.row.standard.name.clone()));
        }
        let host = server.row.host.as_ref().and_then(|name| cache.get::<Host>(name));
        let zone =
            host.as_ref().map(|host| host.row.zone.clone()).or_else(|| server.row.availability_zone.clone());
        ServerView {
            host_alive: host.as_ref().map(|host| self.host_is_alive(&host.row.name)),
            host_disabled: host.is_some_and(|host| host.row.disabled.is_some()),
            addresses,
            security_groups,
            zone,
            server,
        }
    }

    /// The ports of a server the caller may see, in the order of its devices.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn server_ports(&self, caller: &Caller, id: &str) -> Result<Vec<Arc<Stored<Port>>>> {
        let server = self.server(caller, id).await?;
        Ok(ports(self.db.cache(), &server.row))
    }

    /// The security groups of a server's ports.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn server_security_groups(
        &self,
        caller: &Caller,
        id: &str,
    ) -> Result<Vec<Arc<Stored<SecurityGroup>>>> {
        let ports = self.server_ports(caller, id).await?;
        let ids: BTreeSet<&String> = ports.iter().flat_map(|port| &port.row.security_groups).collect();
        Ok(ids.into_iter().filter_map(|id| self.db.get::<SecurityGroup>(id)).collect())
    }

    /// Puts all of a server's ports into a security group, or takes them out of it.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`; `Conflict` for a server without ports.
    pub async fn server_change_group(&self, caller: &Caller, id: &str, group: &str, add: bool) -> Result<()> {
        self.db.caught_up().await?;
        let action = "os_compute_api:os-security-groups:add";
        let project_id = find_for_change(self.db.cache(), caller, id, action)?.row.project_id.clone();
        let groups = self.resolve_groups(&project_id, &[group.to_owned()]).await?;
        let group_id = groups.first().ok_or_else(|| Error::not_found("Security group", group))?;
        self.db
            .transact(|cache| {
                let server = find_for_change(cache, caller, id, action)?;
                let ports = ports(cache, &server.row);
                if ports.is_empty() {
                    return Err(Error::conflict(
                        "InstanceInvalidState",
                        format!("Instance {id} has no ports."),
                    ));
                }
                let member = |port: &Port| port.security_groups.contains(group_id);
                if !add && !ports.iter().any(|port| member(&port.row)) {
                    let message = format!("Security group {group} not associated with the instance {id}");
                    return Err(Error::not_found("Association", message));
                }
                ports.iter().filter(|port| member(&port.row) != add).try_fold(Txn::new(), |txn, stored| {
                    let mut port = stored.row.clone();
                    if add {
                        port.security_groups.push(group_id.clone());
                        check_kinds(cache, &port.security_groups)?;
                    } else {
                        port.security_groups.retain(|own| own != group_id);
                    }
                    port.standard.revision += 1;
                    Ok(txn.update(stored, &port))
                })
            })
            .await
    }
}

fn ports(cache: &Cache, server: &Server) -> Vec<Arc<Stored<Port>>> {
    server.port_ids.iter().filter_map(|id| cache.get::<Port>(id)).collect()
}
