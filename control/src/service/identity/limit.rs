//! Limits: how much of a service's resources a project or domain may have. They are kept for services to read, which
//! hold nobody to them here: Wisp's own services have quotas.

use super::{Entity, NAME_CHARACTERS_MAX, Rules, check_text, invalid, require, require_valid, rules};
use crate::caller::{Caller, Scope};
use crate::error::{Error, Result};
use crate::model::catalog::{Limit, Region, RegisteredLimit, Service};
use crate::model::identity::{Domain, Project};
use crate::store::{Cache, Txn};

/// The largest number of a limit: what clients' and databases' integers hold.
const NUMBER_MAX: i64 = i32::MAX as i64;

impl Entity for RegisteredLimit {
    const NOUN: &'static str = "RegisteredLimit";
    const RULES: Rules = rules!("registered_limit", "registered_limits");

    fn listable(_: &Caller) -> bool {
        true
    }

    fn readable(&self, _: &Caller) -> bool {
        true
    }

    fn unique(&self) -> Vec<String> {
        let of = of_resource(&self.service_id, self.region_id.as_deref(), &self.resource_name);
        vec![format!("registered_limit_of/{of}")]
    }

    fn label(&self) -> &str {
        &self.resource_name
    }

    fn admit(&self, cache: &Cache, before: Option<&Self>) -> Result<()> {
        check_limit(&self.resource_name, self.default_limit, self.description.as_deref())?;
        if before.is_some_and(|before| before.unique() != self.unique() && is_used(cache, before)) {
            return Err(Error::Forbidden { action: "a change of a registered limit that limits refer to" });
        }
        Ok(())
    }

    fn bind(&self, cache: &Cache, _: Option<&Self>, txn: Txn) -> Result<Txn> {
        require_place(cache, txn, &self.service_id, self.region_id.as_deref())
    }

    fn dismiss(&self, cache: &Cache) -> Result<()> {
        if is_used(cache, self) {
            return Err(Error::Forbidden {
                action: "the deletion of a registered limit that limits refer to",
            });
        }
        Ok(())
    }
}

impl Entity for Limit {
    const NOUN: &'static str = "Limit";
    const RULES: Rules = rules!("limit", "limits");

    fn listable(_: &Caller) -> bool {
        true
    }

    fn readable(&self, caller: &Caller) -> bool {
        match &caller.scope {
            _ if caller.reads_system() => true,
            Scope::Project(id) => self.project_id.as_ref() == Some(id),
            Scope::Domain(id) => self.domain_id.as_ref() == Some(id),
            _ => false,
        }
    }

    fn unique(&self) -> Vec<String> {
        let of = of_resource(&self.service_id, self.region_id.as_deref(), &self.resource_name);
        let whose = self.project_id.as_deref().or(self.domain_id.as_deref()).unwrap_or_default();
        vec![format!("limit_of/{whose}/{of}")]
    }

    fn label(&self) -> &str {
        &self.resource_name
    }

    fn admit(&self, cache: &Cache, before: Option<&Self>) -> Result<()> {
        check_limit(&self.resource_name, self.resource_limit, self.description.as_deref())?;
        if self.project_id.is_some() == self.domain_id.is_some() {
            return Err(invalid("a limit is for either a project or a domain"));
        }
        let registered = |row: &RegisteredLimit| {
            row.service_id == self.service_id
                && row.region_id == self.region_id
                && row.resource_name == self.resource_name
        };
        if before.is_none() && cache.find::<RegisteredLimit>(registered).is_none() {
            return Err(Error::invalid(
                "NoLimitReference",
                format!(
                    "Unable to create a limit that has no corresponding registered limit for {}.",
                    self.resource_name
                ),
            ));
        }
        Ok(())
    }

    fn bind(&self, cache: &Cache, _: Option<&Self>, txn: Txn) -> Result<Txn> {
        let txn = match (&self.project_id, &self.domain_id) {
            (Some(id), _) => require::<Project>(cache, txn, id)?,
            (None, Some(id)) => require::<Domain>(cache, txn, id)?,
            (None, None) => txn,
        };
        require_place(cache, txn, &self.service_id, self.region_id.as_deref())
    }
}

fn of_resource(service_id: &str, region_id: Option<&str>, resource_name: &str) -> String {
    format!("{service_id}/{}/{resource_name}", region_id.unwrap_or_default())
}

fn check_limit(resource_name: &str, limit: i64, description: Option<&str>) -> Result<()> {
    if resource_name.is_empty() || resource_name.chars().count() > NAME_CHARACTERS_MAX {
        return Err(invalid(format!("a resource's name has 1 to {NAME_CHARACTERS_MAX} characters")));
    }
    if !(-1..=NUMBER_MAX).contains(&limit) {
        return Err(invalid(format!("a limit is between -1 and {NUMBER_MAX}")));
    }
    check_text("description", description.unwrap_or_default())
}

fn is_used(cache: &Cache, of: &RegisteredLimit) -> bool {
    let refers = |row: &Limit| {
        row.service_id == of.service_id
            && row.region_id == of.region_id
            && row.resource_name == of.resource_name
    };
    cache.find::<Limit>(refers).is_some()
}

fn require_place(cache: &Cache, txn: Txn, service_id: &str, region_id: Option<&str>) -> Result<Txn> {
    let txn = require_valid::<Service>(cache, txn, service_id)?;
    match region_id {
        Some(region) => require_valid::<Region>(cache, txn, region),
        None => Ok(txn),
    }
}
