//! Domains and projects: listing, making, changing, deleting. Reading needs an administrator, or is about oneself;
//! changing needs an administrator. Users are in [`super::user`], roles in [`super::role`].

use std::sync::Arc;

use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::identity::{AssignmentTarget, Domain, Project, User};
use crate::model::random_hex_id;
use crate::policy::require_admin;
use crate::store::{Row, Stored, Txn};

/// The id of the domain that is there from the start.
pub const DEFAULT_DOMAIN_ID: &str = "default";
/// The longest name in characters, as Keystone's columns.
pub const NAME_CHARACTERS_MAX: usize = 255;
/// The longest name of a project or domain in characters.
pub const PROJECT_NAME_CHARACTERS_MAX: usize = 64;
/// The longest description or further value in characters: what tempest and people use, many times over.
pub const TEXT_CHARACTERS_MAX: usize = 4096;

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

    pub(super) async fn read_all<T: Row>(
        &self,
        caller: &Caller,
        action: &'static str,
    ) -> Result<Vec<Arc<Stored<T>>>> {
        require_admin(caller, action)?;
        self.db.caught_up().await?;
        Ok(self.db.list())
    }

    pub(super) async fn read_one<T: Row>(
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

    pub(super) fn stored<T: Row>(&self, id: &str, kind: &'static str) -> Result<Arc<Stored<T>>> {
        self.db.get(id).ok_or_else(|| Error::not_found(kind, id))
    }
}

pub(super) fn check_name(kind: &str, name: &str, characters_max: usize) -> Result<()> {
    if name.trim().is_empty() || name.chars().count() > characters_max {
        let message = format!("the name of a {kind} has between 1 and {characters_max} characters");
        return Err(Error::invalid("ValidationError", message));
    }
    Ok(())
}

pub(super) fn check_text(field: &str, text: &str) -> Result<()> {
    if text.chars().count() > TEXT_CHARACTERS_MAX || field.len() > NAME_CHARACTERS_MAX {
        let message = format!("{field} has at most {TEXT_CHARACTERS_MAX} characters");
        return Err(Error::invalid("ValidationError", message));
    }
    Ok(())
}

pub(super) fn taken(kind: &'static str, name: &str) -> Error {
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
