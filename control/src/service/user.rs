//! Users: listing, making, changing, deleting them, and their passwords. Reading needs an administrator, or is about
//! oneself; changing needs an administrator, except of one's own password.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use zeroize::Zeroizing;

use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::identity::{Domain, User};
use crate::model::random_hex_id;
use crate::policy::require_admin;
use crate::service::identity::{DEFAULT_DOMAIN_ID, NAME_CHARACTERS_MAX, check_name, check_text, taken};
use crate::store::{Stored, Txn};

/// The most further values of a user.
pub const EXTRA_MAX: usize = 32;

/// A new user, or what of a user shall change; absent stays.
#[derive(Clone, Default)]
pub struct UserChange {
    /// Its name.
    pub name: Option<String>,
    /// Its domain; only for a new one.
    pub domain_id: Option<String>,
    /// May log in.
    pub enabled: Option<bool>,
    /// The project a token is scoped to if none is asked for; `Some(None)` is none.
    pub default_project_id: Option<Option<String>>,
    /// The password.
    pub password: Option<Zeroizing<String>>,
    /// Further values; `None` takes one away.
    pub extra: BTreeMap<String, Option<String>>,
}

impl std::fmt::Debug for UserChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UserChange").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Control {
    /// All users.
    pub async fn user_list(&self, caller: &Caller) -> Result<Vec<Arc<Stored<User>>>> {
        self.read_all(caller, "identity:list_users").await
    }

    /// One user. Everyone may see themselves.
    pub async fn user_get(&self, caller: &Caller, id: &str) -> Result<Arc<Stored<User>>> {
        self.read_one(caller, id, caller.user_id == id, "User", "identity:get_user").await
    }

    /// Makes a user.
    pub async fn user_create(&self, caller: &Caller, request: UserChange) -> Result<Arc<Stored<User>>> {
        require_admin(caller, "identity:create_user")?;
        let mut user = User {
            id: random_hex_id(),
            domain_id: request.domain_id.clone().unwrap_or_else(|| DEFAULT_DOMAIN_ID.to_owned()),
            name: request.name.clone().unwrap_or_default(),
            enabled: true,
            default_project_id: None,
            password_hash: None,
            tokens_from: None,
            extra: BTreeMap::new(),
        };
        check_name("user", &user.name, NAME_CHARACTERS_MAX)?;
        let hash = self.hash_of(&request).await?;
        change_user(&mut user, &request, hash)?;
        user.tokens_from = None;
        self.db
            .transact(|cache| {
                if cache.get::<Domain>(&user.domain_id).is_none() {
                    return Err(Error::not_found("Domain", &user.domain_id));
                }
                if cache
                    .find::<User>(|row| row.domain_id == user.domain_id && row.name == user.name)
                    .is_some()
                {
                    return Err(taken("user", &user.name));
                }
                let txn = Txn::new().create(&user).unique(user_name_key(&user.domain_id, &user.name));
                Ok(txn.require_present::<Domain>(&user.domain_id))
            })
            .await?;
        self.stored(&user.id, "User")
    }

    /// Changes a user. A new password, or taking the right to log in, ends all of the user's tokens.
    pub async fn user_update(
        &self,
        caller: &Caller,
        id: &str,
        change: UserChange,
    ) -> Result<Arc<Stored<User>>> {
        require_admin(caller, "identity:update_user")?;
        self.change_user_row(id, change).await?;
        self.stored(id, "User")
    }

    /// Changes one's own password, knowing the old one.
    ///
    /// # Errors
    /// `Unauthorized` if the old one is wrong or the user is another.
    pub async fn user_password(
        &self,
        caller: &Caller,
        id: &str,
        original: Zeroizing<String>,
        password: Zeroizing<String>,
    ) -> Result<()> {
        self.db.caught_up().await?;
        let user = self.db.get::<User>(id).filter(|user| user.row.id == caller.user_id);
        let hash = user.and_then(|user| user.row.password_hash.clone());
        if !self.passwords.verify(original, hash).await? {
            return Err(Error::Unauthorized("The request you have made requires authentication.".to_owned()));
        }
        self.change_user_row(id, UserChange { password: Some(password), ..UserChange::default() }).await
    }

    async fn change_user_row(&self, id: &str, change: UserChange) -> Result<()> {
        let hash = self.hash_of(&change).await?;
        self.db
            .transact(|cache| {
                let stored = cache.get::<User>(id).ok_or_else(|| Error::not_found("User", id))?;
                let mut row = stored.row.clone();
                let mut txn = Txn::new();
                if let Some(name) = change.name.as_ref().filter(|name| **name != row.name) {
                    let domain = &row.domain_id;
                    if cache.find::<User>(|other| other.domain_id == *domain && other.name == *name).is_some()
                    {
                        return Err(taken("user", name));
                    }
                    txn = txn.release(user_name_key(domain, &row.name)).unique(user_name_key(domain, name));
                }
                change_user(&mut row, &change, hash.clone())?;
                Ok(txn.update(&stored, &row))
            })
            .await
    }

    async fn hash_of(&self, change: &UserChange) -> Result<Option<String>> {
        match change.password.clone() {
            Some(password) => Ok(Some(self.passwords.hash(password).await?)),
            None => Ok(None),
        }
    }

    /// Deletes a user with all its roles.
    pub async fn user_delete(&self, caller: &Caller, id: &str) -> Result<()> {
        require_admin(caller, "identity:delete_user")?;
        self.remove_assignments(|row| row.user_id == id).await?;
        self.db
            .transact(|cache| {
                let stored = cache.get::<User>(id).ok_or_else(|| Error::not_found("User", id))?;
                Ok(Txn::new().delete(&stored).release(user_name_key(&stored.row.domain_id, &stored.row.name)))
            })
            .await
    }
}

fn change_user(user: &mut User, change: &UserChange, hash: Option<String>) -> Result<()> {
    if let Some(name) = &change.name {
        check_name("user", name, NAME_CHARACTERS_MAX)?;
        user.name.clone_from(name);
    }
    if let Some(project) = &change.default_project_id {
        user.default_project_id.clone_from(project);
    }
    let stopped = change.enabled == Some(false) && user.enabled;
    user.enabled = change.enabled.unwrap_or(user.enabled);
    if hash.is_some() {
        user.password_hash.clone_from(&hash);
    }
    if hash.is_some() || stopped {
        user.tokens_from = Some(Timestamp::now());
    }
    for (key, value) in &change.extra {
        check_text(key, value.as_deref().unwrap_or_default())?;
        match value {
            Some(value) => user.extra.insert(key.clone(), value.clone()),
            None => user.extra.remove(key),
        };
    }
    if user.extra.len() > EXTRA_MAX {
        return Err(Error::invalid(
            "ValidationError",
            format!("a user has at most {EXTRA_MAX} further values"),
        ));
    }
    Ok(())
}

pub(crate) fn user_name_key(domain_id: &str, name: &str) -> String {
    format!("user_name/{domain_id}/{name}")
}
