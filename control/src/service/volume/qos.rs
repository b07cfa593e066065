//! QoS specifications: limits that volumes of some types have. What the hypervisor has to hold, a guest is held to
//! at once (`service::disk_limits`); what is for the storage alone is kept and shown.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{check_properties, check_text, invalid_input};
use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::random_uuid;
use crate::model::volume::{QosSpec, VolumeType};
use crate::policy::require_admin;
use crate::service::disk_limits;
use crate::store::{Cache, Stored, Txn};

/// Who may enforce the limits.
const CONSUMERS: [&str; 3] = ["front-end", "back-end", "both"];

fn name_key(name: &str) -> String {
    format!("qos_spec_name/{name}")
}

fn find(cache: &Cache, id: &str) -> Result<Arc<Stored<QosSpec>>> {
    cache.get::<QosSpec>(id).ok_or_else(|| Error::not_found("QoS specs", id))
}

impl Control {
    /// All specifications.
    ///
    /// # Errors
    /// `Forbidden` unless the caller is an administrator.
    pub async fn volume_qos_list(&self, caller: &Caller) -> Result<Vec<Arc<Stored<QosSpec>>>> {
        require_admin(caller, "volume_extension:qos_specs_manage:get_all")?;
        self.db.caught_up().await?;
        Ok(self.db.list::<QosSpec>())
    }

    /// One specification.
    ///
    /// # Errors
    /// `Forbidden` unless the caller is an administrator; `NotFound`.
    pub async fn volume_qos(&self, caller: &Caller, id: &str) -> Result<Arc<Stored<QosSpec>>> {
        require_admin(caller, "volume_extension:qos_specs_manage:get")?;
        self.db.caught_up().await?;
        find(self.db.cache(), id)
    }

    /// Makes a specification.
    ///
    /// # Errors
    /// `Forbidden` unless the caller is an administrator; `Invalid`; `Conflict` for a name that is taken.
    pub async fn volume_qos_create(
        &self,
        caller: &Caller,
        name: &str,
        consumer: &str,
        specs: BTreeMap<String, String>,
    ) -> Result<Arc<Stored<QosSpec>>> {
        require_admin(caller, "volume_extension:qos_specs_manage:create")?;
        if name.trim().is_empty() {
            return Err(invalid_input("Invalid input for field/attribute name: it is empty."));
        }
        check_text("name", Some(&name.to_owned()))?;
        check_consumer(consumer)?;
        let row = QosSpec { id: random_uuid(), name: name.to_owned(), consumer: consumer.to_owned(), specs };
        check_specs(&row)?;
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                if cache.find(|spec: &QosSpec| spec.name == name).is_some() {
                    return Err(Error::conflict(
                        "QoSSpecsExist",
                        format!("QoS Specs {name} already exists."),
                    ));
                }
                Ok(Txn::new().create(&row).unique(name_key(name)))
            })
            .await?;
        self.volume_qos(caller, &row.id).await
    }

    /// Adds to a specification, and takes keys from it.
    ///
    /// # Errors
    /// `Forbidden` unless the caller is an administrator; `NotFound`, also for a key to take; `Invalid`.
    pub async fn volume_qos_change(
        &self,
        caller: &Caller,
        id: &str,
        consumer: Option<&str>,
        set: BTreeMap<String, String>,
        unset: &[String],
    ) -> Result<Arc<Stored<QosSpec>>> {
        require_admin(caller, "volume_extension:qos_specs_manage:update")?;
        consumer.map(check_consumer).transpose()?;
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = find(cache, id)?;
                let mut row = stored.row.clone();
                row.specs.extend(set.clone());
                for key in unset {
                    if row.specs.remove(key).is_none() {
                        return Err(Error::NotFound { kind: "QoS spec", id: format!("{id} with key {key}") });
                    }
                }
                if let Some(consumer) = consumer {
                    consumer.clone_into(&mut row.consumer);
                }
                check_specs(&row)?;
                Ok(if row == stored.row { Txn::new() } else { Txn::new().update(&stored, &row) })
            })
            .await?;
        self.volume_qos(caller, id).await
    }

    /// Deletes a specification; with `force` also one that types have, which lose it.
    ///
    /// # Errors
    /// `Forbidden` unless the caller is an administrator; `NotFound`; `Invalid` while types have it.
    pub async fn volume_qos_delete(&self, caller: &Caller, id: &str, force: bool) -> Result<()> {
        require_admin(caller, "volume_extension:qos_specs_manage:delete")?;
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = find(cache, id)?;
                let types = users(cache, id);
                if !types.is_empty() && !force {
                    let message = format!("QoS Specs {id} is still associated with entities.");
                    return Err(Error::invalid("QoSSpecsInUse", message));
                }
                let txn = Txn::new().delete(&stored).release(name_key(&stored.row.name));
                Ok(types.iter().fold(txn, without))
            })
            .await
    }

    /// The types that have a specification.
    ///
    /// # Errors
    /// `Forbidden` unless the caller is an administrator; `NotFound`.
    pub async fn volume_qos_types(&self, caller: &Caller, id: &str) -> Result<Vec<Arc<Stored<VolumeType>>>> {
        self.volume_qos(caller, id).await?;
        Ok(users(self.db.cache(), id))
    }

    /// Takes a specification from all types that have it.
    ///
    /// # Errors
    /// `Forbidden` unless the caller is an administrator; `NotFound`.
    pub async fn volume_qos_release(&self, caller: &Caller, id: &str) -> Result<()> {
        self.volume_qos(caller, id).await?;
        self.db.transact(|cache| Ok(users(cache, id).iter().fold(Txn::new(), without))).await
    }
}

/// At most as many as one transaction can change; the rest follows with the next call.
fn users(cache: &Cache, id: &str) -> Vec<Arc<Stored<VolumeType>>> {
    let mut types = cache.filter(|kind: &VolumeType| kind.qos_id.as_deref() == Some(id));
    types.truncate(crate::store::TXN_OPERATIONS_MAX - 8);
    types
}

fn without(txn: Txn, kind: &Arc<Stored<VolumeType>>) -> Txn {
    txn.update(kind, &VolumeType { qos_id: None, ..kind.row.clone() })
}

fn check_specs(row: &QosSpec) -> Result<()> {
    check_properties(&row.specs)?;
    if row.consumer == "back-end" {
        return Ok(());
    }
    disk_limits::check_specs(&row.specs).map_err(invalid_input)
}

fn check_consumer(consumer: &str) -> Result<()> {
    if CONSUMERS.contains(&consumer) {
        return Ok(());
    }
    Err(invalid_input(format!("Valid consumer of QoS specs are: {}.", CONSUMERS.join(", "))))
}
