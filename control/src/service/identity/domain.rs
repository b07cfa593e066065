//! Domains. Everyone may see the domain of their own user.

use super::{
    Entity, PROJECT_NAME_CHARACTERS_MAX, Removal, Rules, check_extra, check_name, check_options, check_text,
    is_immutable, project::check_tags, rules,
};
use crate::caller::{Caller, Scope};
use crate::error::{Error, Result};
use crate::model::catalog::Limit;
use crate::model::identity::{
    Assignment, AssignmentTarget, Domain, DomainConfig, Group, Project, Role, User,
};
use crate::store::{Cache, Txn};

impl Entity for Domain {
    const NOUN: &'static str = "Domain";
    const RULES: Rules = rules!("domain", "domains");

    fn listable(caller: &Caller) -> bool {
        caller.reads_system() || matches!(caller.scope, Scope::Domain(_))
    }

    fn readable(&self, caller: &Caller) -> bool {
        caller.reads_domain(&self.id) || caller.user_domain_id == self.id
    }

    fn keys(&self) -> Vec<(&'static str, &str)> {
        vec![("domain_id", &self.id)]
    }

    fn unique(&self) -> Vec<String> {
        vec![domain_name_key(&self.name)]
    }

    fn label(&self) -> &str {
        &self.name
    }

    fn immutable(&self) -> bool {
        is_immutable(&self.options)
    }

    fn admit(&self, _: &Cache, _: Option<&Self>) -> Result<()> {
        check_name("domain", &self.name, PROJECT_NAME_CHARACTERS_MAX)?;
        check_text("description", &self.description)?;
        check_tags(&self.tags)?;
        check_options(&self.options)?;
        check_extra(&self.extra)
    }

    fn bind(&self, _: &Cache, before: Option<&Self>, txn: Txn) -> Result<Txn> {
        let stopped = before.is_some_and(|before| before.enabled) && !self.enabled;
        Ok(if stopped { txn.put(&super::super::auth::revocation("domain", &self.id)) } else { txn })
    }

    fn dismiss(&self, _: &Cache) -> Result<()> {
        if self.enabled {
            return Err(Error::Forbidden { action: "the deletion of a domain that is not disabled" });
        }
        Ok(())
    }

    fn dependents(&self, removal: &mut Removal<'_>) {
        let id = self.id.as_str();
        removal.entities::<User>(|row| row.domain_id == id);
        removal.entities::<Group>(|row| row.domain_id == id);
        removal.entities::<Project>(|row| row.domain_id == id);
        removal.entities::<Role>(|row| row.domain_id.as_deref() == Some(id));
        let target = AssignmentTarget::Domain(id.to_owned());
        removal.rows::<Assignment>(|row| row.target == target);
        removal.rows::<DomainConfig>(|row| row.id == id);
        removal.entities::<Limit>(|row| row.domain_id.as_deref() == Some(id));
    }
}

pub(crate) fn domain_name_key(name: &str) -> String {
    format!("domain_name/{name}")
}
