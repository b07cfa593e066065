//! What an owner may change of a server's description: names, properties, tags.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::form::{check_hostname, check_name, check_properties, check_tag};
use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::compute::Server;
use crate::service::quota::{self, Resource};

/// The most tags of one server (Compute API: tags, microversion 2.26).
pub const TAGS_MAX: usize = 50;

/// A change of a server's description; what is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerUpdate {
    /// The name.
    pub name: Option<String>,
    /// The description; `Some(None)` takes it away.
    pub description: Option<Option<String>>,
    /// The guest's host name (microversion 2.90).
    pub hostname: Option<String>,
    /// Whether `OS-DCF:diskConfig` is `AUTO`.
    pub auto_disk_config: Option<bool>,
    /// What the owner calls its IPv4 address.
    pub access_ip_v4: Option<String>,
    /// What the owner calls its IPv6 address.
    pub access_ip_v6: Option<String>,
}

/// How given properties go together with those that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Merge {
    /// The others stay.
    Add,
    /// The others go.
    Replace,
}

impl Control {
    /// Changes what describes a server.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`, `Invalid`.
    pub async fn server_update(&self, caller: &Caller, id: &str, update: &ServerUpdate) -> Result<Server> {
        if let Some(name) = &update.name {
            check_name(name)?;
        }
        if let Some(hostname) = &update.hostname {
            check_hostname(hostname)?;
        }
        self.server_change(caller, id, "os_compute_api:servers:update", |server| {
            let before = server.clone();
            if let Some(name) = &update.name {
                server.name = name.trim().to_owned();
            }
            if let Some(description) = &update.description {
                server.description.clone_from(description);
            }
            if let Some(hostname) = &update.hostname {
                server.hostname.clone_from(hostname);
            }
            server.auto_disk_config = update.auto_disk_config.unwrap_or(server.auto_disk_config);
            if let Some(address) = &update.access_ip_v4 {
                server.access_ip_v4.clone_from(address);
            }
            if let Some(address) = &update.access_ip_v6 {
                server.access_ip_v6.clone_from(address);
            }
            touch(server, &before);
            Ok(())
        })
        .await
    }

    /// Changes a server's properties.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`, `Invalid`, `QuotaExceeded` beyond the limit of properties.
    pub async fn server_set_metadata(
        &self,
        caller: &Caller,
        id: &str,
        properties: &BTreeMap<String, String>,
        merge: Merge,
    ) -> Result<Server> {
        check_properties(properties)?;
        self.server_change(caller, id, "os_compute_api:server-metadata:update", |server| {
            let before = server.clone();
            if merge == Merge::Replace {
                server.metadata.clear();
            }
            server.metadata.extend(properties.iter().map(|(key, value)| (key.clone(), value.clone())));
            self.check_property_count(&server.project_id, server.metadata.len())?;
            touch(server, &before);
            Ok(())
        })
        .await
    }

    /// Takes one property away.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`.
    pub async fn server_unset_metadata(&self, caller: &Caller, id: &str, key: &str) -> Result<()> {
        self.server_change(caller, id, "os_compute_api:server-metadata:delete", |server| {
            let before = server.clone();
            if server.metadata.remove(key).is_none() {
                return Err(Error::not_found("Metadata item", key));
            }
            touch(server, &before);
            Ok(())
        })
        .await
        .map(drop)
    }

    /// Changes a server's tags by `change`.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`, `Invalid`, or what `change` says.
    pub async fn server_change_tags(
        &self,
        caller: &Caller,
        id: &str,
        change: impl Fn(&mut Vec<String>) -> Result<()>,
    ) -> Result<Server> {
        self.server_change(caller, id, "os_compute_api:os-server-tags:update", |server| {
            change(&mut server.tags)?;
            server.tags.iter().try_for_each(|tag| check_tag(tag))?;
            server.tags.sort();
            server.tags.dedup();
            if server.tags.len() > TAGS_MAX {
                return Err(Error::invalid(
                    "InvalidInput",
                    format!("The number of tags exceeded the per-server limit {TAGS_MAX}."),
                ));
            }
            Ok(())
        })
        .await
    }

    /// Refuses more properties than a server of the project may have.
    pub(crate) fn check_property_count(&self, project_id: &str, count: usize) -> Result<()> {
        let requested = count as u64;
        match quota::limit(self.db.cache(), project_id, Resource::MetadataItems) {
            Some(limit) if requested > limit => Err(Error::QuotaExceeded {
                resource: Resource::MetadataItems.name(),
                requested,
                used: 0,
                limit,
            }),
            _ => Ok(()),
        }
    }
}

/// What the guest is told of has changed: its host must hear of it.
fn touch(server: &mut Server, before: &Server) {
    if server != before {
        server.updated_at = Timestamp::now();
        server.generation += 1;
    }
}
