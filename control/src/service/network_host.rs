//! What the network service says of hosts and of itself: agents, and how many addresses there are.

use std::sync::Arc;

use super::addressing::pool_size;
use super::network::check_text;
use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::compute::{Host, HostClaims};
use crate::model::network::metering::AgentNote;
use crate::model::network::{Network, Port, Subnet};
use crate::model::quota::QuotaLimits;
use crate::model::volume::{Backup, DiskWork, Volume};
use crate::policy::{Target, allowed, own, require_admin};
use crate::service::quota::DEFAULT_CLASS;
use crate::store::{Stored, Txn};

/// A host's agent.
#[derive(Debug, Clone)]
pub struct AgentView {
    /// Its host.
    pub host: Arc<Stored<Host>>,
    /// It is connected.
    pub alive: bool,
    /// What an administrator noted.
    pub description: Option<String>,
}

impl AgentView {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.host.row.service_id
    }
}

/// How many addresses a subnet has.
#[derive(Debug, Clone)]
pub struct SubnetAddresses {
    /// The subnet.
    pub subnet: Arc<Stored<Subnet>>,
    /// In its allocation pools.
    pub total: u128,
    /// That ports have.
    pub used: u128,
}

impl Control {
    /// The agents of all hosts; none to who is no administrator.
    ///
    /// # Errors
    /// What the store says.
    pub async fn network_agents(&self, caller: &Caller) -> Result<Vec<AgentView>> {
        self.db.caught_up().await?;
        if !allowed("get_agent", crate::policy::Default::Admin, caller, &Target::of(&own(caller))) {
            return Ok(Vec::new());
        }
        let view = |host: Arc<Stored<Host>>| AgentView {
            alive: self.host_is_alive(&host.row.name),
            description: self.db.get::<AgentNote>(&host.row.name).map(|note| note.row.description.clone()),
            host,
        };
        Ok(self.db.list::<Host>().into_iter().map(view).collect())
    }

    /// One agent.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn network_agent(&self, caller: &Caller, id: &str) -> Result<AgentView> {
        let agents = self.network_agents(caller).await?;
        agents.into_iter().find(|agent| agent.id() == id).ok_or_else(|| Error::not_found("Agent", id))
    }

    /// Notes something of an agent.
    ///
    /// # Errors
    /// `Forbidden`, `NotFound`.
    pub async fn network_agent_update(
        &self,
        caller: &Caller,
        id: &str,
        description: Option<&str>,
        admin_state_up: Option<bool>,
    ) -> Result<AgentView> {
        let agent = self.network_agent(caller, id).await?;
        require_admin(caller, "update_agent")?;
        if let Some(up) = admin_state_up {
            self.db
                .transact(|cache| {
                    let stored = cache.get::<Host>(&agent.host.row.name);
                    let stored = stored.ok_or_else(|| Error::not_found("Agent", id))?;
                    let host = Host { network_disabled: !up, ..stored.row.clone() };
                    Ok(if host == stored.row { Txn::new() } else { Txn::new().update(&stored, &host) })
                })
                .await?;
            // Routers go elsewhere, or come.
            self.agents().changed_all();
        }
        if let Some(description) = description {
            check_text("description", description)?;
            let host = agent.host.row.name.clone();
            let note = AgentNote { host, description: description.to_owned() };
            self.db.transact(|_| Ok(Txn::new().put(&note))).await?;
        }
        self.network_agent(caller, id).await
    }

    /// Forgets a host that is no more, by its agent: it has no servers and no volumes.
    ///
    /// # Errors
    /// `Forbidden`, `NotFound`; `Conflict` while it is connected, or something is on it.
    pub async fn network_agent_delete(&self, caller: &Caller, id: &str) -> Result<()> {
        let agent = self.network_agent(caller, id).await?;
        require_admin(caller, "delete_agent")?;
        let name = &agent.host.row.name;
        let in_use = |why: &str| Error::conflict("AgentInUse", format!("Agent {id} of host {name} {why}."));
        if agent.alive {
            return Err(in_use("is alive"));
        }
        self.db
            .transact(|cache| {
                let stored = cache.get::<Host>(name).ok_or_else(|| Error::not_found("Agent", id))?;
                let claims = cache.get::<HostClaims>(name);
                if claims.as_ref().is_some_and(|claims| !claims.row.servers.is_empty()) {
                    return Err(in_use("has servers"));
                }
                let disks = cache.find::<Volume>(|volume| volume.host.as_ref() == Some(name)).is_some()
                    || cache.find::<Backup>(|backup| backup.host.as_ref() == Some(name)).is_some()
                    || !cache.list_under::<DiskWork>(&format!("{name}/")).is_empty();
                if disks {
                    return Err(in_use("has volumes or backups"));
                }
                let txn = Txn::new().delete(&stored);
                let txn = match claims {
                    Some(claims) => txn.delete(&claims),
                    None => txn.require_absent::<HostClaims>(name),
                };
                Ok(match cache.get::<AgentNote>(name) {
                    Some(note) => txn.delete(&note),
                    None => txn,
                })
            })
            .await?;
        self.agents().changed_all();
        Ok(())
    }

    /// How many addresses a network has, by subnet; of none to who is no administrator.
    ///
    /// # Errors
    /// What the store says.
    pub async fn addresses_of_networks(
        &self,
        caller: &Caller,
    ) -> Result<Vec<(Arc<Stored<Network>>, Vec<SubnetAddresses>)>> {
        self.db.caught_up().await?;
        let rule = "get_network_ip_availability";
        if !allowed(rule, crate::policy::Default::Admin, caller, &Target::of(&own(caller))) {
            return Ok(Vec::new());
        }
        let cache = self.db.cache();
        let (subnets, ports) = (cache.list::<Subnet>(), cache.list::<Port>());
        let of = |subnet: &Arc<Stored<Subnet>>| {
            let ips = ports.iter().flat_map(|port| &port.row.fixed_ips);
            let used = ips.filter(|ip| ip.subnet_id == subnet.row.standard.id).count();
            let total = subnet.row.allocation_pools.iter().map(pool_size).fold(0, u128::saturating_add);
            SubnetAddresses { subnet: subnet.clone(), total, used: used as u128 }
        };
        let networks = cache.list::<Network>().into_iter();
        Ok(networks
            .map(|network| {
                let own = subnets.iter().filter(|subnet| subnet.row.network_id == network.row.standard.id);
                let addresses = own.map(of).collect();
                (network, addresses)
            })
            .collect())
    }

    /// The projects that have limits of their own.
    ///
    /// # Errors
    /// `Forbidden` unless an administrator asks.
    pub async fn quota_projects(&self, caller: &Caller) -> Result<Vec<String>> {
        require_admin(caller, "get_quota")?;
        self.db.caught_up().await?;
        let limits = self.db.cache().filter::<QuotaLimits>(|limits| limits.id != DEFAULT_CLASS);
        Ok(limits.iter().map(|limits| limits.row.id.clone()).collect())
    }
}
