//! Application credentials: secrets of a user with some of its roles in one project, and the rules that bound what they
//! are used for.

use std::sync::Arc;

use jiff::Timestamp;
use zeroize::Zeroizing;

use super::assignment::effective_roles;
use super::credential::random_secret;
use super::{Entity, NAME_CHARACTERS_MAX, Removal, Rules, check_name, check_text, invalid, require, rules};
use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::delegation::{AccessRule, ApplicationCredential};
use crate::model::identity::{AssignmentTarget, Project, Role, User};
use crate::model::random_hex_id;
use crate::store::{Cache, Stored, Txn};

/// The most rules of one credential: every one is compared at every request.
const RULES_MAX: usize = 64;
/// The longest path of a rule in bytes, and its most segments, since `**` is tried at each.
const PATH_BYTES_MAX: usize = 128;
/// The most `**` in one path, for the same reason.
const DOUBLE_STARS_MAX: usize = 2;
/// The most credentials of one user.
const OF_ONE_USER_MAX: usize = 1000;

impl Entity for ApplicationCredential {
    const NOUN: &'static str = "Application Credential";
    const RULES: Rules = rules!("application_credential", "application_credentials");

    fn listable(_: &Caller) -> bool {
        true
    }

    fn readable(&self, caller: &Caller) -> bool {
        caller.reads_system() || caller.user_id == self.user_id
    }

    fn writable(&self, caller: &Caller) -> bool {
        caller.may_delegate() && (caller.is_admin() || caller.user_id == self.user_id)
    }

    fn keys(&self) -> Vec<(&'static str, &str)> {
        vec![("user_id", &self.user_id), ("project_id", &self.project_id)]
    }

    fn unique(&self) -> Vec<String> {
        vec![format!("application_credential_name/{}/{}", self.user_id, self.name)]
    }

    fn label(&self) -> &str {
        &self.name
    }

    fn admit(&self, cache: &Cache, _: Option<&Self>) -> Result<()> {
        check_name("application credential", &self.name, NAME_CHARACTERS_MAX)?;
        check_text("description", self.description.as_deref().unwrap_or_default())?;
        if self.expires_at.is_some_and(|at| at <= Timestamp::now()) {
            return Err(invalid("expires_at must be in the future"));
        }
        let target = AssignmentTarget::Project(self.project_id.clone());
        let held = effective_roles(cache, &self.user_id, &target);
        for id in &self.roles {
            if !held.iter().any(|role| role.row.id == *id) {
                return Err(Error::invalid(
                    "ApplicationCredentialValidationError",
                    format!("Could not find role assignment with role {id}, user and project of the token."),
                ));
            }
        }
        if cache.filter::<Self>(|row| row.user_id == self.user_id).len() >= OF_ONE_USER_MAX {
            return Err(Error::Forbidden {
                action: "more application credentials of one user than the limit",
            });
        }
        Ok(())
    }

    fn bind(&self, cache: &Cache, _: Option<&Self>, txn: Txn) -> Result<Txn> {
        let txn = require::<User>(cache, txn, &self.user_id)?;
        require::<Project>(cache, txn, &self.project_id)
    }
}

impl Entity for AccessRule {
    const NOUN: &'static str = "Access Rule";
    const RULES: Rules = rules!("access_rule", "access_rules");

    fn listable(_: &Caller) -> bool {
        true
    }

    fn readable(&self, caller: &Caller) -> bool {
        caller.reads_system() || caller.user_id == self.user_id
    }

    fn writable(&self, caller: &Caller) -> bool {
        caller.is_admin() || caller.user_id == self.user_id
    }

    fn unique(&self) -> Vec<String> {
        vec![format!("access_rule_of/{}/{}/{}/{}", self.user_id, self.service, self.method, self.path)]
    }

    fn admit(&self, _: &Cache, _: Option<&Self>) -> Result<()> {
        let known = ["POST", "GET", "HEAD", "PATCH", "PUT", "DELETE"].contains(&self.method.as_str());
        if !known {
            return Err(invalid(format!("{} is no method of a request", self.method)));
        }
        if self.service.is_empty() || self.service.chars().count() > NAME_CHARACTERS_MAX {
            return Err(invalid(format!("a service's type has 1 to {NAME_CHARACTERS_MAX} characters")));
        }
        let stars = self.path.split('/').filter(|part| *part == "**").count();
        if self.path.is_empty() || self.path.len() > PATH_BYTES_MAX || stars > DOUBLE_STARS_MAX {
            return Err(invalid(format!(
                "a path has 1 to {PATH_BYTES_MAX} bytes and at most {DOUBLE_STARS_MAX} times **"
            )));
        }
        Ok(())
    }

    fn bind(&self, cache: &Cache, _: Option<&Self>, txn: Txn) -> Result<Txn> {
        require::<User>(cache, txn, &self.user_id)
    }

    fn dismiss(&self, cache: &Cache) -> Result<()> {
        let uses = |row: &ApplicationCredential| {
            row.access_rules.iter().flatten().any(|rule| *rule == self.id) && row.user_id == self.user_id
        };
        if cache.find::<ApplicationCredential>(uses).is_some() {
            return Err(Error::Forbidden { action: "the deletion of an access rule in use" });
        }
        Ok(())
    }

    fn dependents(&self, _: &mut Removal<'_>) {}
}

/// A role or a rule as a request names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoleRef {
    /// By id.
    Id(String),
    /// By name, of the whole cloud's.
    Name(String),
}

/// A new application credential.
#[derive(Clone)]
pub struct ApplicationCredentialWanted {
    /// Its name.
    pub name: String,
    /// Free text.
    pub description: Option<String>,
    /// The secret; a random one if absent.
    pub secret: Option<Zeroizing<String>>,
    /// Its roles; those of the token if absent.
    pub roles: Option<Vec<RoleRef>>,
    /// Until when it holds.
    pub expires_at: Option<Timestamp>,
    /// May make further ones.
    pub unrestricted: bool,
    /// What alone it may be used for; a rule with an id is one that is there.
    pub access_rules: Option<Vec<AccessRule>>,
}

impl Control {
    /// Makes an application credential of the caller's, in the project of the token; it comes with its secret, which is
    /// never seen again.
    ///
    /// # Errors
    /// `Forbidden` for another's, or by a credential that is restricted itself; `Invalid` for roles that the caller does
    /// not have; `Conflict` for a name that is taken.
    pub async fn application_credential_create(
        &self,
        caller: &Caller,
        user_id: &str,
        wanted: ApplicationCredentialWanted,
    ) -> Result<(Arc<Stored<ApplicationCredential>>, Zeroizing<String>)> {
        let forbidden = Error::Forbidden { action: ApplicationCredential::RULES.create };
        if caller.user_id != user_id || !caller.may_delegate() {
            return Err(forbidden);
        }
        let Some(project_id) = caller.project_id() else {
            return Err(invalid(
                "an application credential is made with a token that is scoped to a project",
            ));
        };
        self.db.caught_up().await?;
        let roles = match &wanted.roles {
            Some(roles) => roles.iter().map(|role| self.role_id(role)).collect::<Result<Vec<_>>>()?,
            None => {
                let target = AssignmentTarget::Project(project_id.to_owned());
                let held = effective_roles(self.db.cache(), user_id, &target);
                let of_token = held.iter().filter(|role| caller.has_role(&role.row.name));
                of_token.map(|role| role.row.id.clone()).collect()
            }
        };
        let secret = wanted.secret.unwrap_or_else(random_secret);
        let mut row = ApplicationCredential {
            id: random_hex_id(),
            name: wanted.name,
            user_id: user_id.to_owned(),
            project_id: project_id.to_owned(),
            description: wanted.description,
            secret_hash: String::new(),
            roles,
            expires_at: wanted.expires_at,
            unrestricted: wanted.unrestricted,
            access_rules: None,
        };
        row.admit(self.db.cache(), None)?;
        row.secret_hash = self.passwords.hash(secret.clone()).await?;
        if let Some(rules) = wanted.access_rules {
            row.access_rules = Some(self.access_rules(caller, rules).await?);
        }
        let stored = self.entity_create(caller, row).await?;
        Ok((stored, secret))
    }

    /// The ids of rules, which are made as far as they are not there: a user has each rule once, as in Keystone, and one
    /// that no credential uses stays until it is deleted.
    async fn access_rules(&self, caller: &Caller, rules: Vec<AccessRule>) -> Result<Vec<String>> {
        if rules.len() > RULES_MAX {
            return Err(invalid(format!("a credential has at most {RULES_MAX} access rules")));
        }
        let mut ids = Vec::new();
        for rule in rules {
            if !rule.id.is_empty() {
                let known = self.entity_get::<AccessRule>(caller, &rule.id).await?;
                ids.push(known.row.id.clone());
                continue;
            }
            let row = AccessRule { id: random_hex_id(), user_id: caller.user_id.clone(), ..rule };
            let unique = row.unique();
            match self.db.cache().find::<AccessRule>(|other| other.unique() == unique) {
                Some(known) => ids.push(known.row.id.clone()),
                None => ids.push(self.entity_create(caller, row).await?.row.id.clone()),
            }
        }
        Ok(ids)
    }

    /// The id of a role that a request names.
    pub(crate) fn role_id(&self, role: &RoleRef) -> Result<String> {
        match role {
            RoleRef::Id(id) => Ok(self.stored::<Role>(id, Role::NOUN)?.row.id.clone()),
            RoleRef::Name(name) => {
                let named = |row: &Role| row.domain_id.is_none() && row.name == *name;
                let found = self.db.cache().find::<Role>(named);
                found.map(|role| role.row.id.clone()).ok_or_else(|| Error::not_found(Role::NOUN, name))
            }
        }
    }

    /// The roles of these ids that are still there.
    pub fn roles_by_id(&self, ids: &[String]) -> Vec<Arc<Stored<Role>>> {
        ids.iter().filter_map(|id| self.db.get::<Role>(id)).collect()
    }

    /// The access rules of these ids that are still there.
    pub fn access_rules_by_id(&self, ids: &[String]) -> Vec<Arc<Stored<AccessRule>>> {
        ids.iter().filter_map(|id| self.db.get::<AccessRule>(id)).collect()
    }
}
