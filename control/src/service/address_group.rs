//! Address groups: prefixes that rules of security groups name together.

use std::collections::BTreeSet;
use std::sync::Arc;

use ipnet::IpNet;

use super::network::{check_text, new_standard, owner_project, touch};
use super::network_resource::{made, network_resources, new_ids, only, owned};
use super::rbac;
use super::security_group::template;
use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::network::SecurityGroupRule;
use crate::model::network::address_group::AddressGroup;
use crate::service::quota::{self, Resource};
use crate::store::{Stored, Txn};

/// The most addresses of one group: a host has a rule for each, in each rule that names the group.
pub const ADDRESSES_MAX: usize = 256;

/// What a group is made from.
#[derive(Debug, Clone, Default)]
pub struct AddressGroupCreate {
    /// Name.
    pub name: String,
    /// Free text.
    pub description: String,
    /// The owner, if an administrator makes it for another project.
    pub project_id: Option<String>,
    /// The addresses.
    pub addresses: BTreeSet<IpNet>,
}

network_resources! {
    AddressGroup: "Address group", "get_address_group", |row, cache, caller| {
        caller.may_read(&row.standard.project_id) || rbac::is_known(cache, caller, &row.standard.id)
    };
}

impl Control {
    /// Makes a group.
    ///
    /// # Errors
    /// `Invalid` for too many addresses, `QuotaExceeded`.
    pub async fn address_group_create(
        &self,
        caller: &Caller,
        request: AddressGroupCreate,
    ) -> Result<Arc<Stored<AddressGroup>>> {
        let project_id = owner_project(caller, request.project_id.as_deref(), "create_address_group")?;
        check_text("name", &request.name)?;
        check_text("description", &request.description)?;
        check_count(&request.addresses)?;
        let ids = new_ids(1);
        self.db
            .transact(|_| {
                let mut standard = new_standard(ids[0].clone(), project_id.clone(), request.name.clone());
                standard.description.clone_from(&request.description);
                let txn = Txn::new().create(&AddressGroup { standard, addresses: request.addresses.clone() });
                Ok(quota::charge(txn, &project_id, &[(Resource::AddressGroups, 1)]))
            })
            .await?;
        only(made(self.db.cache(), &ids)?)
    }

    /// Changes a group's name or description.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` for texts that are too long.
    pub async fn address_group_update(
        &self,
        caller: &Caller,
        id: &str,
        name: Option<&str>,
        description: Option<&str>,
    ) -> Result<Arc<Stored<AddressGroup>>> {
        self.address_group_change(caller, id, "update_address_group", |group| {
            if let Some(name) = name {
                check_text("name", name)?;
                name.clone_into(&mut group.standard.name);
            }
            if let Some(description) = description {
                check_text("description", description)?;
                description.clone_into(&mut group.standard.description);
            }
            Ok(())
        })
        .await
    }

    /// Adds addresses to a group.
    ///
    /// # Errors
    /// `Invalid` (`AddressesAlreadyExist`), or for too many.
    pub async fn address_group_add(
        &self,
        caller: &Caller,
        id: &str,
        addresses: &BTreeSet<IpNet>,
    ) -> Result<Arc<Stored<AddressGroup>>> {
        self.address_group_change(caller, id, "add_addresses", |group| {
            let there: Vec<_> = addresses.intersection(&group.addresses).collect();
            if !there.is_empty() {
                return Err(Error::invalid(
                    "AddressesAlreadyExist",
                    format!("Addresses {} already exist in the address group {id}.", listed(&there)),
                ));
            }
            group.addresses.extend(addresses.iter().copied());
            check_count(&group.addresses)
        })
        .await
    }

    /// Takes addresses from a group.
    ///
    /// # Errors
    /// `NotFound` (`AddressesNotFound`).
    pub async fn address_group_remove(
        &self,
        caller: &Caller,
        id: &str,
        addresses: &BTreeSet<IpNet>,
    ) -> Result<Arc<Stored<AddressGroup>>> {
        self.address_group_change(caller, id, "remove_addresses", |group| {
            let strange: Vec<_> = addresses.difference(&group.addresses).collect();
            if !strange.is_empty() {
                return Err(Error::not_found("Addresses", listed(&strange)));
            }
            group.addresses.retain(|address| !addresses.contains(address));
            Ok(())
        })
        .await
    }

    /// Deletes a group.
    ///
    /// # Errors
    /// `Conflict` (`AddressGroupInUse`) while rules name it.
    pub async fn address_group_delete(&self, caller: &Caller, id: &str) -> Result<()> {
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = owned::<AddressGroup>(cache, caller, id, "delete_address_group")?;
                let names = |group: &Option<String>| group.as_deref() == Some(id);
                let of_rule = cache.find::<SecurityGroupRule>(|rule| names(&rule.remote_address_group_id));
                let of_template =
                    template::all(cache).iter().any(|rule| names(&rule.remote_address_group_id));
                if of_rule.is_some() || of_template {
                    return Err(Error::conflict(
                        "AddressGroupInUse",
                        format!("Address group {id} is in use on one or more security group rules."),
                    ));
                }
                let project_id = &stored.row.standard.project_id;
                let txn = rbac::forget(cache, Txn::new().delete(&stored), id)?;
                Ok(quota::charge(txn, project_id, &[(Resource::AddressGroups, -1)]))
            })
            .await
    }

    async fn address_group_change(
        &self,
        caller: &Caller,
        id: &str,
        action: &'static str,
        change: impl Fn(&mut AddressGroup) -> Result<()>,
    ) -> Result<Arc<Stored<AddressGroup>>> {
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = owned::<AddressGroup>(cache, caller, id, action)?;
                let mut group = stored.row.clone();
                change(&mut group)?;
                touch(&mut group.standard);
                Ok(Txn::new().update(&stored, &group))
            })
            .await?;
        self.network_resource(caller, id).await
    }
}

fn listed(addresses: &[&IpNet]) -> String {
    let texts: Vec<String> = addresses.iter().map(|address| format!("'{address}'")).collect();
    format!("[{}]", texts.join(", "))
}

fn check_count(addresses: &BTreeSet<IpNet>) -> Result<()> {
    if addresses.len() > ADDRESSES_MAX {
        let message =
            format!("Invalid input for operation: an address group has at most {ADDRESSES_MAX} addresses.");
        return Err(Error::invalid("InvalidInput", message));
    }
    Ok(())
}
