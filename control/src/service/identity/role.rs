//! Roles, and which comes with which. Everybody may know the roles; an administrator makes them.

use std::sync::Arc;

use super::{
    Entity, NAME_CHARACTERS_MAX, Removal, Rules, check_extra, check_name, check_options, check_text, invalid,
    is_immutable, require, rules,
};
use crate::Control;
use crate::caller::{Caller, RoleLevel};
use crate::error::{Error, Result};
use crate::model::delegation::ApplicationCredential;
use crate::model::identity::{Assignment, Domain, ImpliedRole, Role};
use crate::model::oauth::OauthAccessToken;
use crate::policy::{self, Target, require_admin};
use crate::store::{Cache, Stored, Txn};

/// The roles that imply each other, each the next, in a new cloud.
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

/// A role and one that it brings with it.
pub type RolePair = (Arc<Stored<Role>>, Arc<Stored<Role>>);

impl Entity for Role {
    const NOUN: &'static str = "Role";
    const RULES: Rules = rules!("role", "roles");

    fn listable(_: &Caller) -> bool {
        true
    }

    fn readable(&self, _: &Caller) -> bool {
        true
    }

    fn unique(&self) -> Vec<String> {
        vec![match &self.domain_id {
            None => role_name_key(&self.name),
            Some(domain) => format!("role_name_in/{domain}/{}", self.name),
        }]
    }

    fn label(&self) -> &str {
        &self.name
    }

    fn immutable(&self) -> bool {
        is_immutable(&self.options)
    }

    fn admit(&self, _: &Cache, before: Option<&Self>) -> Result<()> {
        check_name("role", &self.name, NAME_CHARACTERS_MAX)?;
        check_text("description", &self.description)?;
        check_options(&self.options)?;
        check_extra(&self.extra)?;
        if before.is_some_and(|before| before.domain_id != self.domain_id) {
            return Err(invalid("Cannot change Domain ID"));
        }
        Ok(())
    }

    fn bind(&self, cache: &Cache, before: Option<&Self>, txn: Txn) -> Result<Txn> {
        match &self.domain_id {
            Some(domain) if before.is_none() => require::<Domain>(cache, txn, domain),
            _ => Ok(txn),
        }
    }

    fn dependents(&self, removal: &mut Removal<'_>) {
        let id = self.id.as_str();
        removal.rows::<Assignment>(|row| row.role_id == id);
        removal.rows::<ImpliedRole>(|row| row.prior_id == id || row.implied_id == id);
        removal.entities::<ApplicationCredential>(|row| row.roles.iter().any(|role| role == id));
        removal.rows::<OauthAccessToken>(|row| row.roles.iter().any(|role| role == id));
    }
}

impl Control {
    /// All rules of which role comes with which, by the policy's rule that what is asked for has.
    ///
    /// # Errors
    /// `Forbidden`.
    pub async fn implied_list(
        &self,
        caller: &Caller,
        rule: &'static str,
    ) -> Result<Vec<Arc<Stored<ImpliedRole>>>> {
        require_read(caller, rule)?;
        self.db.caught_up().await?;
        Ok(self.db.list())
    }

    /// Makes `implied` come with `prior`; doing so again changes nothing. Both are returned.
    ///
    /// # Errors
    /// `NotFound`; `Forbidden` for the role `admin`, which nothing may bring with it, for a role itself, and for a
    /// domain's role under one of the whole cloud.
    pub async fn implied_create(
        &self,
        caller: &Caller,
        prior_id: &str,
        implied_id: &str,
    ) -> Result<RolePair> {
        require_admin(caller, "identity:create_implied_role")?;
        self.db
            .transact(|cache| {
                let find = |id: &str| cache.get::<Role>(id).ok_or_else(|| Error::not_found("Role", id));
                let (prior, implied) = (find(prior_id)?, find(implied_id)?);
                if implied.row.name == "admin" && implied.row.domain_id.is_none() {
                    return Err(Error::Forbidden { action: "the role admin as an implied role" });
                }
                if prior_id == implied_id {
                    return Err(Error::Forbidden { action: "a role that implies itself" });
                }
                if prior.row.domain_id.is_none() && implied.row.domain_id.is_some() {
                    return Err(Error::Forbidden { action: "a domain's role under one of the whole cloud" });
                }
                let txn = require::<Role>(cache, Txn::new(), prior_id)?;
                let txn = require::<Role>(cache, txn, implied_id)?;
                Ok(txn.put(&ImpliedRole::new(prior_id, implied_id)))
            })
            .await?;
        self.implied_pair(prior_id, implied_id)
    }

    /// Both roles of a rule, by the policy's rule that what is asked for has.
    ///
    /// # Errors
    /// `Forbidden`; `NotFound` if there is no such rule.
    pub async fn implied_get(
        &self,
        caller: &Caller,
        (prior_id, implied_id): (&str, &str),
        rule: &'static str,
    ) -> Result<RolePair> {
        require_read(caller, rule)?;
        self.db.caught_up().await?;
        self.implied_pair(prior_id, implied_id)
    }

    /// Ends a rule.
    pub async fn implied_delete(&self, caller: &Caller, prior_id: &str, implied_id: &str) -> Result<()> {
        require_admin(caller, "identity:delete_implied_role")?;
        let id = ImpliedRole::new(prior_id, implied_id).id;
        self.db
            .transact(|cache| {
                let stored =
                    cache.get::<ImpliedRole>(&id).ok_or_else(|| Error::not_found("Implied role", &id))?;
                Ok(Txn::new().delete(&stored))
            })
            .await
    }

    fn implied_pair(&self, prior_id: &str, implied_id: &str) -> Result<RolePair> {
        let rule = ImpliedRole::new(prior_id, implied_id);
        self.stored::<ImpliedRole>(&rule.id, "Implied role")?;
        Ok((self.stored(prior_id, "Role")?, self.stored(implied_id, "Role")?))
    }
}

fn require_read(caller: &Caller, rule: &'static str) -> Result<()> {
    policy::require(rule, policy::Default::SystemReader, caller, &Target::NONE)
}

/// The ids of these roles and of all that come with them, each once.
pub(crate) fn with_implied(cache: &Cache, roles: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut ids: Vec<String> = Vec::new();
    let mut pending: Vec<String> = roles.into_iter().collect();
    pending.reverse();
    while let Some(id) = pending.pop() {
        if ids.contains(&id) {
            continue;
        }
        let rules = cache.list_under::<ImpliedRole>(&format!("{id}/"));
        pending.extend(rules.iter().map(|rule| rule.row.implied_id.clone()));
        ids.push(id);
    }
    ids
}

pub(crate) fn role_name_key(name: &str) -> String {
    format!("role_name/{name}")
}
