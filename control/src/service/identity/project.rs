//! Projects and their trees. Everyone may see the project of their token.

use std::sync::Arc;

use super::{
    Entity, PROJECT_NAME_CHARACTERS_MAX, Removal, Rules, check_extra, check_name, check_options, check_text,
    invalid, is_immutable, require, require_valid, rules,
};
use crate::Control;
use crate::caller::{Caller, Scope};
use crate::error::{Error, Result};
use crate::model::catalog::{EndpointFilter, Limit};
use crate::model::delegation::{ApplicationCredential, StoredCredential, Trust};
use crate::model::identity::{Assignment, AssignmentTarget, Domain, Project};
use crate::model::oauth::{OauthAccessToken, OauthRequestToken};
use crate::store::{Cache, Stored, Txn};

/// How many projects may stand below each other, as Keystone's default.
pub const TREE_DEPTH_MAX: usize = 5;
/// The most tags of a project, as in Keystone.
pub const TAGS_MAX: usize = 80;
/// The longest tag in characters, as in Keystone.
const TAG_CHARACTERS_MAX: usize = 255;

/// Rows of projects.
pub type Projects = Vec<Arc<Stored<Project>>>;

impl Entity for Project {
    const NOUN: &'static str = "Project";
    const RULES: Rules = rules!("project", "projects");

    fn listable(caller: &Caller) -> bool {
        caller.reads_system() || matches!(caller.scope, Scope::Domain(_))
    }

    fn readable(&self, caller: &Caller) -> bool {
        caller.reads_domain(&self.domain_id) || caller.project_id() == Some(&self.id)
    }

    fn writable(&self, caller: &Caller) -> bool {
        caller.manages_domain(&self.domain_id)
    }

    fn keys(&self) -> Vec<(&'static str, &str)> {
        vec![("project_id", &self.id), ("domain_id", &self.domain_id)]
    }

    fn unique(&self) -> Vec<String> {
        vec![project_name_key(&self.domain_id, &self.name)]
    }

    fn label(&self) -> &str {
        &self.name
    }

    fn immutable(&self) -> bool {
        is_immutable(&self.options)
    }

    fn admit(&self, cache: &Cache, before: Option<&Self>) -> Result<()> {
        check_name("project", &self.name, PROJECT_NAME_CHARACTERS_MAX)?;
        check_text("description", &self.description)?;
        check_tags(&self.tags)?;
        check_options(&self.options)?;
        check_extra(&self.extra)?;
        if before.is_some_and(|before| before.domain_id != self.domain_id) {
            return Err(invalid("Cannot change Domain ID"));
        }
        if before.is_some_and(|before| before.parent_id != self.parent_id) {
            return Err(Error::Forbidden { action: "an update of `parent_id`" });
        }
        let above = ancestors(cache, self);
        if above.len() >= TREE_DEPTH_MAX {
            return Err(Error::Forbidden { action: "a project deeper in a tree than the limit" });
        }
        if self.enabled && above.iter().any(|project| !project.row.enabled) {
            return Err(Error::Forbidden { action: "an enabled project below a disabled one" });
        }
        let stopped = before.is_some_and(|before| before.enabled) && !self.enabled;
        if stopped && descendants(cache, &self.id).iter().any(|project| project.row.enabled) {
            return Err(Error::Forbidden { action: "disabling a project above enabled ones" });
        }
        Ok(())
    }

    fn bind(&self, cache: &Cache, before: Option<&Self>, mut txn: Txn) -> Result<Txn> {
        if before.is_none() {
            txn = require::<Domain>(cache, txn, &self.domain_id)?;
            if let Some(parent) = &self.parent_id {
                txn = require_valid::<Self>(cache, txn, parent)?;
            }
        }
        let stopped = before.is_some_and(|before| before.enabled) && !self.enabled;
        Ok(if stopped { txn.put(&super::super::auth::revocation("project", &self.id)) } else { txn })
    }

    fn dismiss(&self, cache: &Cache) -> Result<()> {
        if cache.find::<Self>(|row| row.parent_id.as_deref() == Some(&self.id)).is_some() {
            return Err(Error::Forbidden { action: "the deletion of a project with others below it" });
        }
        Ok(())
    }

    fn dependents(&self, removal: &mut Removal<'_>) {
        let id = self.id.as_str();
        // A domain that goes takes all of its tree; below a single project there is nothing left.
        removal.entities::<Self>(|row| row.parent_id.as_deref() == Some(id));
        let target = AssignmentTarget::Project(id.to_owned());
        removal.rows::<Assignment>(|row| row.target == target);
        removal.entities::<ApplicationCredential>(|row| row.project_id == id);
        removal.entities::<Trust>(|row| row.project_id.as_deref() == Some(id));
        removal.rows::<OauthAccessToken>(|row| row.project_id == id);
        removal.rows::<OauthRequestToken>(|row| row.project_id == id);
        removal.entities::<StoredCredential>(|row| row.project_id.as_deref() == Some(id));
        removal.entities::<Limit>(|row| row.project_id.as_deref() == Some(id));
        let filters = format!("{id}/");
        removal.rows::<EndpointFilter>(|row| row.id.starts_with(&filters));
    }
}

impl Control {
    /// The projects above a project, the nearest first, and those below it, as its tree has them.
    pub fn project_family(&self, project: &Project) -> (Projects, Projects) {
        let cache = self.db.cache();
        (ancestors(cache, project), descendants(cache, &project.id))
    }

    /// Where a new project stands that shall be below `parent_id` or in `domain_id`: its domain, and the project above
    /// it if that is not the domain itself.
    ///
    /// # Errors
    /// `Invalid` if both do not fit; `NotFound` if the parent is not there.
    pub async fn project_place(
        &self,
        caller: &Caller,
        domain_id: Option<String>,
        parent_id: Option<String>,
    ) -> Result<(String, Option<String>)> {
        self.db.caught_up().await?;
        let Some(parent_id) = parent_id else {
            return Ok((domain_id.unwrap_or_else(|| self.domain_of(caller)), None));
        };
        let (of, parent) = match self.db.get::<Project>(&parent_id) {
            Some(parent) => (parent.row.domain_id.clone(), Some(parent_id)),
            None if self.db.get::<Domain>(&parent_id).is_some() => (parent_id, None),
            None => return Err(Error::not_found("Project", parent_id)),
        };
        if domain_id.is_some_and(|domain_id| domain_id != of) {
            return Err(invalid("the parent is in another domain than domain_id says"));
        }
        Ok((of, parent))
    }
}

/// The projects above one, the nearest first.
pub(crate) fn ancestors(cache: &Cache, project: &Project) -> Projects {
    let mut above = Vec::new();
    let mut next = project.parent_id.clone();
    // A tree is never deeper; a row that says otherwise ends the walk.
    while let Some(stored) = next.and_then(|id| cache.get::<Project>(&id))
        && above.len() < TREE_DEPTH_MAX
    {
        next = stored.row.parent_id.clone();
        above.push(stored);
    }
    above
}

/// The projects below one, those nearer first.
pub(crate) fn descendants(cache: &Cache, id: &str) -> Projects {
    let all = cache.filter::<Project>(|row| row.parent_id.is_some());
    let mut below: Projects = Vec::new();
    let mut parents = vec![id.to_owned()];
    for _ in 0..TREE_DEPTH_MAX {
        let children =
            all.iter().filter(|row| parents.iter().any(|id| row.row.parent_id.as_ref() == Some(id)));
        let children: Vec<_> = children.cloned().collect();
        if children.is_empty() {
            break;
        }
        parents = children.iter().map(|child| child.row.id.clone()).collect();
        below.extend(children);
    }
    below
}

pub(super) fn check_tags(tags: &[String]) -> Result<()> {
    let bad =
        |tag: &String| tag.is_empty() || tag.chars().count() > TAG_CHARACTERS_MAX || tag.contains([',', '/']);
    if tags.len() > TAGS_MAX || tags.iter().any(bad) {
        return Err(invalid(format!(
            "there are at most {TAGS_MAX} tags of 1 to {TAG_CHARACTERS_MAX} characters without `,` and `/`"
        )));
    }
    if (1..tags.len()).any(|at| tags[..at].contains(&tags[at])) {
        return Err(invalid("the tags are not unique"));
    }
    Ok(())
}

pub(crate) fn project_name_key(domain_id: &str, name: &str) -> String {
    format!("project_name/{domain_id}/{name}")
}
