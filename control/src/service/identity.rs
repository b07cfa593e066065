//! Domains, projects, users, roles and who has which: listing, making, changing, deleting. Reading needs an
//! administrator, or is about oneself; changing needs an administrator.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use zeroize::Zeroizing;

use crate::Control;
use crate::caller::{Caller, RoleLevel};
use crate::error::{Error, Result};
use crate::model::identity::{Assignment, AssignmentTarget, Domain, Project, Role, User};
use crate::model::random_hex_id;
use crate::policy::require_admin;
use crate::store::{Cache, Row, Stored, Txn};

/// The roles that imply each other, each the next.
pub const ROLE_CHAIN: [&str; 4] = ["admin", "manager", "member", "reader"];
/// The id of the domain that is there from the start.
pub const DEFAULT_DOMAIN_ID: &str = "default";
/// The longest name in characters, as Keystone's columns.
pub const NAME_CHARACTERS_MAX: usize = 255;
/// The longest name of a project or domain in characters.
pub const PROJECT_NAME_CHARACTERS_MAX: usize = 64;
/// The longest description or further value in characters: what tempest and people use, many times over.
pub const TEXT_CHARACTERS_MAX: usize = 4096;
/// The most further values of a user.
pub const EXTRA_MAX: usize = 32;

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

/// A new project.
#[derive(Debug, Clone, Default)]
pub struct ProjectCreate {
    /// Its name.
    pub name: String,
    /// Its domain; the default one if absent.
    pub domain_id: Option<String>,
    /// Free text.
    pub description: String,
    /// Tokens can be scoped to it; yes if absent.
    pub enabled: Option<bool>,
}

/// What of a project or domain shall change; absent stays.
#[derive(Debug, Clone, Default)]
pub struct ProjectUpdate {
    /// Its name.
    pub name: Option<String>,
    /// Free text.
    pub description: Option<String>,
    /// In use.
    pub enabled: Option<bool>,
}

/// A new user, or what of a user shall change; absent stays.
#[derive(Debug, Clone, Default)]
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

impl Control {
    /// All domains.
    pub async fn domain_list(&self, caller: &Caller) -> Result<Vec<Arc<Stored<Domain>>>> {
        self.read_all(caller, "identity:list_domains").await
    }

    /// One domain. Everyone may see the domain of their own user.
    pub async fn domain_get(&self, caller: &Caller, id: &str) -> Result<Arc<Stored<Domain>>> {
        let own = self.db.get::<User>(&caller.user_id).is_some_and(|user| user.row.domain_id == id);
        self.read_one(caller, id, own, "Domain", "identity:get_domain").await
    }

    /// Makes a domain.
    pub async fn domain_create(
        &self,
        caller: &Caller,
        request: ProjectCreate,
    ) -> Result<Arc<Stored<Domain>>> {
        require_admin(caller, "identity:create_domain")?;
        check_name("domain", &request.name, PROJECT_NAME_CHARACTERS_MAX)?;
        check_text("description", &request.description)?;
        let domain = Domain {
            id: random_hex_id(),
            name: request.name,
            description: request.description,
            enabled: request.enabled.unwrap_or(true),
        };
        self.db
            .transact(|cache| {
                if cache.find::<Domain>(|row| row.name == domain.name).is_some() {
                    return Err(taken("domain", &domain.name));
                }
                Ok(Txn::new().create(&domain).unique(domain_name_key(&domain.name)))
            })
            .await?;
        self.stored(&domain.id, "Domain")
    }

    /// Changes a domain.
    pub async fn domain_update(
        &self,
        caller: &Caller,
        id: &str,
        update: ProjectUpdate,
    ) -> Result<Arc<Stored<Domain>>> {
        require_admin(caller, "identity:update_domain")?;
        if let Some(name) = &update.name {
            check_name("domain", name, PROJECT_NAME_CHARACTERS_MAX)?;
        }
        check_text("description", update.description.as_deref().unwrap_or_default())?;
        self.db
            .transact(|cache| {
                let stored = cache.get::<Domain>(id).ok_or_else(|| Error::not_found("Domain", id))?;
                let mut row = stored.row.clone();
                row.description = update.description.clone().unwrap_or(row.description);
                row.enabled = update.enabled.unwrap_or(row.enabled);
                let mut txn = Txn::new();
                if let Some(name) = update.name.clone().filter(|name| *name != row.name) {
                    if cache.find::<Domain>(|other| other.name == name).is_some() {
                        return Err(taken("domain", &name));
                    }
                    txn = txn.release(domain_name_key(&row.name)).unique(domain_name_key(&name));
                    row.name = name;
                }
                Ok(txn.update(&stored, &row))
            })
            .await?;
        self.stored(id, "Domain")
    }

    /// Deletes a domain that is disabled and empty.
    pub async fn domain_delete(&self, caller: &Caller, id: &str) -> Result<()> {
        require_admin(caller, "identity:delete_domain")?;
        self.db
            .transact(|cache| {
                let stored = cache.get::<Domain>(id).ok_or_else(|| Error::not_found("Domain", id))?;
                if stored.row.enabled {
                    return Err(Error::Forbidden { action: "deletion of a domain that is not disabled" });
                }
                if cache.find::<Project>(|row| row.domain_id == id).is_some()
                    || cache.find::<User>(|row| row.domain_id == id).is_some()
                {
                    return Err(Error::conflict("DomainInUse", "the domain still has projects or users"));
                }
                Ok(Txn::new().delete(&stored).release(domain_name_key(&stored.row.name)))
            })
            .await
    }

    /// All projects.
    pub async fn project_list(&self, caller: &Caller) -> Result<Vec<Arc<Stored<Project>>>> {
        self.read_all(caller, "identity:list_projects").await
    }

    /// One project. Everyone may see the project of their token.
    pub async fn project_get(&self, caller: &Caller, id: &str) -> Result<Arc<Stored<Project>>> {
        let own = caller.project_id() == Some(id);
        self.read_one(caller, id, own, "Project", "identity:get_project").await
    }

    /// Makes a project.
    pub async fn project_create(
        &self,
        caller: &Caller,
        request: ProjectCreate,
    ) -> Result<Arc<Stored<Project>>> {
        require_admin(caller, "identity:create_project")?;
        check_name("project", &request.name, PROJECT_NAME_CHARACTERS_MAX)?;
        check_text("description", &request.description)?;
        let project = Project {
            id: random_hex_id(),
            domain_id: request.domain_id.unwrap_or_else(|| DEFAULT_DOMAIN_ID.to_owned()),
            name: request.name,
            description: request.description,
            enabled: request.enabled.unwrap_or(true),
        };
        self.db
            .transact(|cache| {
                let (domain_id, name) = (&project.domain_id, &project.name);
                if cache.get::<Domain>(domain_id).is_none() {
                    return Err(Error::not_found("Domain", domain_id));
                }
                if cache.find::<Project>(|row| row.domain_id == *domain_id && row.name == *name).is_some() {
                    return Err(taken("project", name));
                }
                let txn = Txn::new().create(&project).unique(project_name_key(domain_id, name));
                Ok(txn.require_present::<Domain>(domain_id))
            })
            .await?;
        self.stored(&project.id, "Project")
    }

    /// Changes a project.
    pub async fn project_update(
        &self,
        caller: &Caller,
        id: &str,
        update: ProjectUpdate,
    ) -> Result<Arc<Stored<Project>>> {
        require_admin(caller, "identity:update_project")?;
        if let Some(name) = &update.name {
            check_name("project", name, PROJECT_NAME_CHARACTERS_MAX)?;
        }
        check_text("description", update.description.as_deref().unwrap_or_default())?;
        self.db
            .transact(|cache| {
                let stored = cache.get::<Project>(id).ok_or_else(|| Error::not_found("Project", id))?;
                let mut row = stored.row.clone();
                row.description = update.description.clone().unwrap_or(row.description);
                row.enabled = update.enabled.unwrap_or(row.enabled);
                let mut txn = Txn::new();
                if let Some(name) = update.name.clone().filter(|name| *name != row.name) {
                    let domain = &row.domain_id;
                    if cache
                        .find::<Project>(|other| other.domain_id == *domain && other.name == name)
                        .is_some()
                    {
                        return Err(taken("project", &name));
                    }
                    txn = txn
                        .release(project_name_key(domain, &row.name))
                        .unique(project_name_key(domain, &name));
                    row.name = name;
                }
                Ok(txn.update(&stored, &row))
            })
            .await?;
        self.stored(id, "Project")
    }

    /// Deletes a project with the roles that were assigned in it. As in Keystone, what belongs to it in other services
    /// stays, for an administrator to remove.
    pub async fn project_delete(&self, caller: &Caller, id: &str) -> Result<()> {
        require_admin(caller, "identity:delete_project")?;
        let target = AssignmentTarget::Project(id.to_owned());
        self.remove_assignments(|row| row.target == target).await?;
        self.db
            .transact(|cache| {
                let stored = cache.get::<Project>(id).ok_or_else(|| Error::not_found("Project", id))?;
                let name = project_name_key(&stored.row.domain_id, &stored.row.name);
                Ok(Txn::new().delete(&stored).release(name))
            })
            .await
    }

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
    async fn remove_assignments(&self, unwanted: impl Fn(&Assignment) -> bool) -> Result<()> {
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

    async fn read_all<T: Row>(&self, caller: &Caller, action: &'static str) -> Result<Vec<Arc<Stored<T>>>> {
        require_admin(caller, action)?;
        self.db.caught_up().await?;
        Ok(self.db.list())
    }

    async fn read_one<T: Row>(
        &self,
        caller: &Caller,
        id: &str,
        own: bool,
        kind: &'static str,
        action: &'static str,
    ) -> Result<Arc<Stored<T>>> {
        if !own {
            require_admin(caller, action)?;
        }
        self.db.caught_up().await?;
        self.stored(id, kind)
    }

    fn stored<T: Row>(&self, id: &str, kind: &'static str) -> Result<Arc<Stored<T>>> {
        self.db.get(id).ok_or_else(|| Error::not_found(kind, id))
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

fn check_name(kind: &str, name: &str, characters_max: usize) -> Result<()> {
    if name.trim().is_empty() || name.chars().count() > characters_max {
        let message = format!("the name of a {kind} has between 1 and {characters_max} characters");
        return Err(Error::invalid("ValidationError", message));
    }
    Ok(())
}

fn check_text(field: &str, text: &str) -> Result<()> {
    if text.chars().count() > TEXT_CHARACTERS_MAX || field.len() > NAME_CHARACTERS_MAX {
        let message = format!("{field} has at most {TEXT_CHARACTERS_MAX} characters");
        return Err(Error::invalid("ValidationError", message));
    }
    Ok(())
}

fn taken(kind: &'static str, name: &str) -> Error {
    Error::conflict(
        "Conflict",
        format!("Conflict occurred attempting to store {kind} - Duplicate entry found with name {name}."),
    )
}

pub(crate) fn domain_name_key(name: &str) -> String {
    format!("domain_name/{name}")
}

pub(crate) fn project_name_key(domain_id: &str, name: &str) -> String {
    format!("project_name/{domain_id}/{name}")
}

pub(crate) fn user_name_key(domain_id: &str, name: &str) -> String {
    format!("user_name/{domain_id}/{name}")
}

pub(crate) fn role_name_key(name: &str) -> String {
    format!("role_name/{name}")
}
