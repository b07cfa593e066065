//! Roles and who has which where. Everybody may know the roles; an administrator gives and takes them.

use std::sync::Arc;

use crate::Control;
use crate::caller::{Caller, RoleLevel};
use crate::error::{Error, Result};
use crate::model::identity::{Assignment, AssignmentTarget, Domain, Project, Role, User};
use crate::model::random_hex_id;
use crate::policy::require_admin;
use crate::service::identity::{NAME_CHARACTERS_MAX, check_name, check_text, taken};
use crate::store::{Cache, Row, Stored, Txn};

/// The roles that imply each other, each the next.
pub const ROLE_CHAIN: [&str; 4] = ["admin", "manager", "member", "reader"];

/// What a role of this name allows, if it is one of the chain's.
pub fn role_level(name: &str) -> Option<RoleLevel> {
    match name {
        "admin" => Some(RoleLevel::Admin),
        "manager" => Some(RoleLevel::Manager),
        "member" => Some(RoleLevel::Member),
        "reader" => Some(RoleLevel::Reader),
        _ => None,
    }
}

impl Control {
    /// All roles; everyone may know them.
    pub async fn role_list(&self, _: &Caller) -> Result<Vec<Arc<Stored<Role>>>> {
        self.db.caught_up().await?;
        Ok(self.db.list())
    }

    /// One role.
    pub async fn role_get(&self, _: &Caller, id: &str) -> Result<Arc<Stored<Role>>> {
        self.db.caught_up().await?;
        self.stored(id, "Role")
    }

    /// Makes a role. Only those of [`ROLE_CHAIN`] mean anything to the other services.
    pub async fn role_create(
        &self,
        caller: &Caller,
        name: String,
        description: String,
    ) -> Result<Arc<Stored<Role>>> {
        require_admin(caller, "identity:create_role")?;
        check_name("role", &name, NAME_CHARACTERS_MAX)?;
        check_text("description", &description)?;
        let role = Role { id: random_hex_id(), name, description };
        self.db
            .transact(|cache| {
                if cache.find::<Role>(|row| row.name == role.name).is_some() {
                    return Err(taken("role", &role.name));
                }
                Ok(Txn::new().create(&role).unique(role_name_key(&role.name)))
            })
            .await?;
        self.stored(&role.id, "Role")
    }

    /// Deletes a role with its assignments.
    pub async fn role_delete(&self, caller: &Caller, id: &str) -> Result<()> {
        require_admin(caller, "identity:delete_role")?;
        self.remove_assignments(|row| row.role_id == id).await?;
        self.db
            .transact(|cache| {
                let stored = cache.get::<Role>(id).ok_or_else(|| Error::not_found("Role", id))?;
                Ok(Txn::new().delete(&stored).release(role_name_key(&stored.row.name)))
            })
            .await
    }

    /// Who has which role where. Others than administrators see their own.
    pub async fn assignment_list(&self, caller: &Caller) -> Result<Vec<Arc<Stored<Assignment>>>> {
        self.db.caught_up().await?;
        let all = caller.is_admin();
        Ok(self.db.cache().filter::<Assignment>(|row| all || row.user_id == caller.user_id))
    }

    /// Gives a user a role somewhere; giving it again changes nothing.
    pub async fn role_grant(
        &self,
        caller: &Caller,
        user_id: &str,
        role_id: &str,
        target: AssignmentTarget,
    ) -> Result<()> {
        require_admin(caller, "identity:create_grant")?;
        let row = Assignment::new(user_id, role_id, target);
        self.db
            .transact(|cache| {
                let txn = require_parts(cache, Txn::new(), &row)?;
                Ok(txn.put(&row))
            })
            .await
    }

    /// Takes a user's role somewhere.
    ///
    /// # Errors
    /// `NotFound` if it was not given.
    pub async fn role_revoke(
        &self,
        caller: &Caller,
        user_id: &str,
        role_id: &str,
        target: AssignmentTarget,
    ) -> Result<()> {
        require_admin(caller, "identity:revoke_grant")?;
        let row = Assignment::new(user_id, role_id, target);
        self.db
            .transact(|cache| {
                let stored = cache
                    .get::<Assignment>(&row.id)
                    .ok_or_else(|| Error::not_found("Role assignment", role_id))?;
                Ok(Txn::new().delete(&stored))
            })
            .await
    }

    /// Takes all assignments for which `unwanted` holds, in transactions of a size that the store takes.
    pub(super) async fn remove_assignments(&self, unwanted: impl Fn(&Assignment) -> bool) -> Result<()> {
        const BATCH: usize = crate::store::TXN_OPERATIONS_MAX / 2;
        self.db.caught_up().await?;
        loop {
            let left = self
                .db
                .transact_with(|cache| {
                    let rows = cache.filter::<Assignment>(&unwanted);
                    let txn = rows.iter().take(BATCH).fold(Txn::new(), |txn, stored| txn.delete(stored));
                    Ok((txn, rows.len() > BATCH))
                })
                .await?;
            if !left {
                return Ok(());
            }
        }
    }
}

/// Whether all that an assignment names is there, now and when the transaction is committed.
fn require_parts(cache: &Cache, txn: Txn, row: &Assignment) -> Result<Txn> {
    fn require<T: Row>(cache: &Cache, txn: Txn, id: &str, kind: &'static str) -> Result<Txn> {
        cache.get::<T>(id).ok_or_else(|| Error::not_found(kind, id))?;
        Ok(txn.require_present::<T>(id))
    }
    let txn = require::<User>(cache, txn, &row.user_id, "User")?;
    let txn = require::<Role>(cache, txn, &row.role_id, "Role")?;
    match &row.target {
        AssignmentTarget::Project(id) => require::<Project>(cache, txn, id, "Project"),
        AssignmentTarget::Domain(id) => require::<Domain>(cache, txn, id, "Domain"),
        AssignmentTarget::System => Ok(txn),
    }
}

pub(crate) fn role_name_key(name: &str) -> String {
    format!("role_name/{name}")
}
