//! Hosts as administrators see them: hypervisors and compute services; and the zones they make up.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use crate::Control;
use crate::agent::protocol::HostReport;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::compute::{Host, HostClaims};
use crate::model::random_uuid;
use crate::policy::require_admin;
use crate::scheduler::{Allocation, HostState, Resources};
use crate::store::{Cache, Stored, Txn};

/// The zone of hosts that were given none, as Nova calls it.
pub const DEFAULT_ZONE: &str = "nova";
/// The longest reason for disabling a service in characters (Compute API: update compute service).
const REASON_CHARS_MAX: usize = 255;
/// The most zones that a network or a router can be wished in.
const ZONE_HINTS_MAX: usize = 16;
/// The architecture that every host here has: the VMM's first one.
const ARCHITECTURE: &str = "x86_64";

/// A host with what control knows of it besides its row.
#[derive(Debug, Clone)]
pub struct HostView {
    /// Its row.
    pub host: Arc<Stored<Host>>,
    /// Its agent is connected.
    pub alive: bool,
    /// What its servers take.
    pub claimed: Resources,
    /// How many servers it has.
    pub servers: usize,
}

impl Control {
    /// All hosts in the order of their names.
    ///
    /// # Errors
    /// `Forbidden` unless the caller is an administrator.
    pub async fn hosts(&self, caller: &Caller) -> Result<Vec<HostView>> {
        self.hosts_seen(caller, "os_compute_api:os-hypervisors:list").await
    }

    /// As [`Control::hosts`], by the rule of what is read of them.
    ///
    /// # Errors
    /// `Forbidden`.
    pub async fn hosts_seen(&self, caller: &Caller, rule: &'static str) -> Result<Vec<HostView>> {
        require_admin(caller, rule)?;
        self.db.caught_up().await?;
        Ok(self.db.list::<Host>().into_iter().map(|host| self.host_view(host)).collect())
    }

    fn host_view(&self, host: Arc<Stored<Host>>) -> HostView {
        let claims = self.db.get::<HostClaims>(&host.row.name);
        HostView {
            alive: self.host_is_alive(&host.row.name),
            claimed: claims.as_ref().map(|claims| claims.row.total()).unwrap_or_default(),
            servers: claims.map_or(0, |claims| claims.row.servers.len()),
            host,
        }
    }

    /// Whether the host's agent is connected.
    pub fn host_is_alive(&self, name: &str) -> bool {
        self.agents().is_connected(name)
    }

    /// Opens a host for new servers, or closes it with a reason.
    ///
    /// # Errors
    /// `Forbidden`, `NotFound`, `Invalid`.
    pub async fn host_set_disabled(
        &self,
        caller: &Caller,
        service_id: &str,
        disabled: Option<&str>,
    ) -> Result<HostView> {
        require_admin(caller, "os_compute_api:os-services:update")?;
        if disabled.is_some_and(|reason| reason.chars().count() > REASON_CHARS_MAX) {
            let message = format!("Disabled reason has more than {REASON_CHARS_MAX} characters.");
            return Err(Error::invalid("InvalidInput", message));
        }
        self.db.caught_up().await?;
        let name = self
            .db
            .transact_with(|cache| {
                let found = cache.find::<Host>(|host| host.service_id == service_id);
                let stored = found.ok_or_else(|| Error::not_found("Service", service_id))?;
                let host = Host { disabled: disabled.map(str::to_owned), ..stored.row.clone() };
                Ok((Txn::new().update(&stored, &host), host.name))
            })
            .await?;
        let stored = self.db.get::<Host>(&name).ok_or_else(|| Error::not_found("Service", service_id))?;
        Ok(self.host_view(stored))
    }

    /// The zones, each with whether a host of it takes servers, and its hosts.
    ///
    /// # Errors
    /// What the store says.
    pub async fn zones(&self) -> Result<BTreeMap<String, Vec<HostView>>> {
        self.db.caught_up().await?;
        let mut zones: BTreeMap<String, Vec<HostView>> = BTreeMap::new();
        for host in self.db.list::<Host>() {
            zones.entry(host.row.zone.clone()).or_default().push(self.host_view(host));
        }
        Ok(zones)
    }

    /// Takes over what an agent says of its host: makes the row at the first time, changes it when a figure that is
    /// kept has changed.
    ///
    /// # Errors
    /// What the store says.
    pub(crate) async fn host_reported(&self, report: &HostReport) -> Result<()> {
        let kept = self.db.get::<Host>(&report.name);
        if kept.is_some_and(|kept| !worth_writing(&kept.row.report, report)) {
            return Ok(());
        }
        let moved = self.db.get::<Host>(&report.name).map(|kept| kept.row.report.tunnel_address)
            != Some(report.tunnel_address);
        self.db
            .transact(|cache| {
                let now = Timestamp::now();
                Ok(match cache.get::<Host>(&report.name) {
                    Some(stored) => {
                        let host = Host { report: report.clone(), updated_at: now, ..stored.row.clone() };
                        Txn::new().update(&stored, &host)
                    }
                    None => Txn::new().create(&Host {
                        name: report.name.clone(),
                        service_id: random_uuid(),
                        hypervisor_id: random_uuid(),
                        report: report.clone(),
                        disabled: None,
                        network_disabled: false,
                        zone: DEFAULT_ZONE.to_owned(),
                        updated_at: now,
                    }),
                })
            })
            .await?;
        if moved {
            // Others find its ports elsewhere.
            self.agents().changed_all();
        }
        Ok(())
    }
}

/// Refuses zones to be in that no host is in.
pub(crate) fn check_zone_hints(cache: &Cache, hints: &[String]) -> Result<()> {
    if hints.len() > ZONE_HINTS_MAX {
        let message = format!("At most {ZONE_HINTS_MAX} availability_zone_hints are possible.");
        return Err(Error::invalid("InvalidInput", message));
    }
    let there = |zone: &str| zone == DEFAULT_ZONE || cache.find::<Host>(|host| host.zone == zone).is_some();
    match hints.iter().find(|hint| !there(hint)) {
        None => Ok(()),
        Some(hint) => Err(Error::not_found("AvailabilityZone", hint)),
    }
}

/// Whether a report says more than that time has passed: the uptime alone is not worth a commit.
fn worth_writing(kept: &HostReport, report: &HostReport) -> bool {
    HostReport { uptime_s: 0, ..kept.clone() } != HostReport { uptime_s: 0, ..report.clone() }
}

/// The hosts as the scheduler sees them, and the claims that a decision compares, in the same order.
pub(crate) struct Hosts {
    pub(crate) states: Vec<HostState>,
    pub(crate) claims: Vec<Option<Arc<Stored<HostClaims>>>>,
}

/// All hosts, of which `alive` says which are connected.
pub(crate) fn host_states(cache: &Cache, allocation: &Allocation, alive: impl Fn(&str) -> bool) -> Hosts {
    let hosts = cache.list::<Host>();
    let mut states = Vec::with_capacity(hosts.len());
    let mut claims = Vec::with_capacity(hosts.len());
    for stored in hosts {
        let host = &stored.row;
        let claim = cache.get::<HostClaims>(&host.name);
        let physical = Resources {
            vcpus: u64::from(host.report.vcpus),
            memory_mib: host.report.memory_mib,
            disk_gib: host.report.disk_gib,
        };
        states.push(HostState {
            name: host.name.clone(),
            zone: host.zone.clone(),
            alive: alive(&host.name),
            enabled: host.disabled.is_none() && !host.network_disabled,
            architecture: ARCHITECTURE.to_owned(),
            cpus: u64::from(host.report.vcpus),
            capacity: allocation.capacity(physical),
            claimed: claim.as_ref().map(|claim| claim.row.total()).unwrap_or_default(),
        });
        claims.push(claim);
    }
    Hosts { states, claims }
}
