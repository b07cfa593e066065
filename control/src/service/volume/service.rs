//! The parts of the service as administrators see them: one that schedules, and on each host one for its volumes and one
//! for backups.

use std::sync::Arc;

use jiff::Timestamp;

use super::place::{BINARY_VOLUME, Pool, disabled};
use super::{check_text, invalid_input};
use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::compute::Host;
use crate::model::volume::{Snapshot, Volume, VolumeService};
use crate::policy::require_admin;
use crate::store::{Stored, Txn};

/// One part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceView {
    /// `cinder-volume` and so on.
    pub binary: &'static str,
    /// Its host; with its backend for volumes.
    pub host: String,
    /// Zone.
    pub zone: String,
    /// It is there.
    pub alive: bool,
    /// Why an administrator closed it.
    pub disabled: Option<String>,
    /// When it last changed.
    pub updated_at: Timestamp,
}

impl Control {
    /// All parts, by the rule that what is asked for has.
    ///
    /// # Errors
    /// `Forbidden` unless the caller is an administrator.
    pub async fn volume_services(&self, caller: &Caller, rule: &'static str) -> Result<Vec<ServiceView>> {
        require_admin(caller, rule)?;
        self.db.caught_up().await?;
        let cache = self.db.cache();
        let mut services = Vec::new();
        for stored in cache.list::<Host>() {
            let host = &stored.row;
            if host.report.pools.is_empty() {
                continue;
            }
            let mut add = |binary: &'static str, name: String, alive: bool| {
                services.push(ServiceView {
                    binary,
                    disabled: disabled(cache, binary, &name),
                    host: name,
                    zone: host.zone.clone(),
                    alive,
                    updated_at: host.updated_at,
                });
            };
            let alive = self.host_is_alive(&host.name);
            add("cinder-scheduler", host.name.clone(), true);
            for pool in &host.report.pools {
                add(BINARY_VOLUME, format!("{}@{}", host.name, pool.backend), alive);
            }
            add("cinder-backup", host.name.clone(), alive);
        }
        Ok(services)
    }

    /// Closes a part for new volumes, or opens it.
    ///
    /// # Errors
    /// `Forbidden` unless the caller is an administrator; `NotFound`; `Invalid` for an overlong reason.
    pub async fn volume_service_set(
        &self,
        caller: &Caller,
        binary: &str,
        host: &str,
        reason: Option<&str>,
    ) -> Result<()> {
        require_admin(caller, "volume_extension:services:update")?;
        check_text("disabled_reason", reason.map(str::to_owned).as_ref())?;
        if reason.is_some_and(|reason| reason.trim().is_empty() && !reason.is_empty()) {
            return Err(invalid_input(
                "Invalid input received: Disabled reason contains invalid characters or is too long",
            ));
        }
        let services = self.volume_services(caller, "volume_extension:services:update").await?;
        if !services.iter().any(|service| service.binary == binary && service.host == host) {
            return Err(Error::not_found("Service", format!("{binary} on host {host}")));
        }
        // Its pool is known by the host alone.
        let id = format!("{binary}/{host}");
        self.db
            .transact(|cache| {
                let row = VolumeService {
                    id: id.clone(),
                    disabled: reason.map(str::to_owned),
                    updated_at: Timestamp::now(),
                };
                Ok(match cache.get::<VolumeService>(&id) {
                    Some(stored) => Txn::new().update(&stored, &row),
                    None => Txn::new().create(&row),
                })
            })
            .await
    }

    /// The pools, for administrators, by the rule that what is asked for has.
    ///
    /// # Errors
    /// `Forbidden` unless the caller is an administrator.
    pub async fn volume_pools_shown(&self, caller: &Caller, rule: &'static str) -> Result<Vec<Pool>> {
        require_admin(caller, rule)?;
        self.db.caught_up().await?;
        Ok(self.volume_pools(self.db.cache()))
    }

    /// The volumes and the snapshots of all projects that lie on a host.
    ///
    /// # Errors
    /// `Forbidden` unless the caller is an administrator.
    pub async fn volume_host_disks(
        &self,
        caller: &Caller,
        host: &str,
    ) -> Result<(Vec<Arc<Stored<Volume>>>, Vec<Arc<Stored<Snapshot>>>)> {
        require_admin(caller, "volume_extension:hosts")?;
        self.db.caught_up().await?;
        let cache = self.db.cache();
        Ok((
            cache.filter::<Volume>(|volume| volume.host.as_deref() == Some(host)),
            cache.filter::<Snapshot>(|snapshot| snapshot.host.as_deref() == Some(host)),
        ))
    }
}
