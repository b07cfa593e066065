//! Types of groups of volumes.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use super::{check_properties, check_text, invalid_input};
use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::random_uuid;
use crate::model::volume::{Group, GroupType};
use crate::policy::require_admin;
use crate::store::{Cache, Stored, Txn};

fn type_name_key(name: &str) -> String {
    format!("volume_group_type_name/{name}")
}

/// The type by its id or its name, if the caller may use it.
pub(crate) fn find_type(cache: &Cache, caller: &Caller, wished: &str) -> Result<Arc<Stored<GroupType>>> {
    let found = cache.get::<GroupType>(wished).or_else(|| cache.find(|kind: &GroupType| kind.name == wished));
    let found = found.filter(|found| found.row.is_public || caller.is_admin());
    found.ok_or_else(|| Error::not_found("Group type", wished))
}

fn refuse_taken(cache: &Cache, name: &str) -> Result<()> {
    match cache.find(|kind: &GroupType| kind.name == name) {
        Some(_) => Err(Error::conflict("GroupTypeExists", format!("Group Type {name} already exists."))),
        None => Ok(()),
    }
}

impl Control {
    /// The types of groups that the caller may see.
    ///
    /// # Errors
    /// What the store says.
    pub async fn volume_group_types(&self, caller: &Caller) -> Result<Vec<Arc<Stored<GroupType>>>> {
        self.db.caught_up().await?;
        Ok(self.db.cache().filter::<GroupType>(|kind| kind.is_public || caller.is_admin()))
    }

    /// One type of groups, by id.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn volume_group_type(&self, caller: &Caller, id: &str) -> Result<Arc<Stored<GroupType>>> {
        self.db.caught_up().await?;
        let found = self.db.get::<GroupType>(id).filter(|found| found.row.is_public || caller.is_admin());
        found.ok_or_else(|| Error::not_found("Group type", id))
    }

    /// Makes a type of groups.
    ///
    /// # Errors
    /// `Forbidden` unless the caller is an administrator; `Invalid`; `Conflict` for a name that is taken.
    pub async fn volume_group_type_create(
        &self,
        caller: &Caller,
        (name, description, is_public): (String, Option<String>, bool),
        specs: BTreeMap<String, String>,
    ) -> Result<Arc<Stored<GroupType>>> {
        require_admin(caller, "group:group_types:create")?;
        if name.trim().is_empty() {
            return Err(invalid_input("Group type name can not be empty."));
        }
        check_text("name", Some(&name))?;
        check_text("description", description.as_ref())?;
        check_properties(&specs)?;
        self.db.caught_up().await?;
        let row = GroupType {
            id: random_uuid(),
            name: name.trim().to_owned(),
            description,
            is_public,
            specs,
            created_at: Timestamp::now(),
        };
        self.db
            .transact(|cache| {
                refuse_taken(cache, &row.name)?;
                Ok(Txn::new().create(&row).unique(type_name_key(&row.name)))
            })
            .await?;
        self.volume_group_type(caller, &row.id).await
    }

    /// Changes a type of groups.
    ///
    /// # Errors
    /// `Forbidden` unless the caller is an administrator; `NotFound`; `Invalid`; what `change` says.
    pub async fn volume_group_type_change(
        &self,
        caller: &Caller,
        id: &str,
        change: impl Fn(&mut GroupType) -> Result<()>,
    ) -> Result<Arc<Stored<GroupType>>> {
        require_admin(caller, "group:group_types:update")?;
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = cache.get::<GroupType>(id).ok_or_else(|| Error::not_found("Group type", id))?;
                let mut row = stored.row.clone();
                change(&mut row)?;
                check_text("name", Some(&row.name))?;
                check_text("description", row.description.as_ref())?;
                check_properties(&row.specs)?;
                row.name = row.name.trim().to_owned();
                let mut txn = Txn::new();
                if row.name != stored.row.name {
                    if row.name.is_empty() {
                        return Err(invalid_input("Group type name can not be empty."));
                    }
                    refuse_taken(cache, &row.name)?;
                    txn = txn.release(type_name_key(&stored.row.name)).unique(type_name_key(&row.name));
                }
                Ok(if row == stored.row { txn } else { txn.update(&stored, &row) })
            })
            .await?;
        self.volume_group_type(caller, id).await
    }

    /// Deletes a type of groups that no group has.
    ///
    /// # Errors
    /// `Forbidden` unless the caller is an administrator; `NotFound`; `Invalid` while it is in use.
    pub async fn volume_group_type_delete(&self, caller: &Caller, id: &str) -> Result<()> {
        require_admin(caller, "group:group_types:delete")?;
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = cache.get::<GroupType>(id).ok_or_else(|| Error::not_found("Group type", id))?;
                if cache.find(|group: &Group| group.group_type_id == id).is_some() {
                    let message = format!("Target group type is still in use. Group type {id}.");
                    return Err(Error::invalid("GroupTypeInUse", message));
                }
                Ok(Txn::new().delete(&stored).release(type_name_key(&stored.row.name)))
            })
            .await
    }
}
