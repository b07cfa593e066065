//! Who has which role where: giving and taking roles, and what follows from them by groups, trees and implied roles.

use std::sync::Arc;

use super::group::groups_of;
use super::project::{ancestors, descendants};
use super::role::with_implied;
use super::{Removal, invalid, require};
use crate::Control;
use crate::caller::{Caller, Scope};
use crate::error::{Error, Result};
use crate::model::delegation::ApplicationCredential;
use crate::model::identity::{
    ActorKind, Assignment, AssignmentTarget, Domain, Group, GroupMember, Project, Role, User,
};
use crate::policy::{Target, said};
use crate::store::{Cache, Stored, Txn};

/// The roles that a domain's manager may give and take, as Keystone's default policy has it.
const MANAGED_ROLES: [&str; 3] = ["manager", "member", "reader"];

/// An assignment as a list shows it: given, or what follows from one that was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedAssignment {
    /// Who has which role where.
    pub row: Assignment,
    /// The assignment that was given.
    pub origin: Assignment,
    /// The role that brings this one with it.
    pub prior_role_id: Option<String>,
}

/// What of the assignments shall be listed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AssignmentQuery {
    /// A user's.
    pub user_id: Option<String>,
    /// A group's.
    pub group_id: Option<String>,
    /// Of this role.
    pub role_id: Option<String>,
    /// There.
    pub target: Option<AssignmentTarget>,
    /// Only those that hold below their target, or only the others.
    pub inherited: Option<bool>,
    /// What follows from them, instead of what was given.
    pub effective: bool,
    /// Those of the projects below too.
    pub subtree: bool,
}

impl AssignmentQuery {
    /// As Keystone refuses them.
    fn check(&self) -> Result<()> {
        if self.user_id.is_some() && self.group_id.is_some() {
            return Err(invalid("a list is of a user's or of a group's assignments"));
        }
        if self.subtree && !matches!(self.target, Some(AssignmentTarget::Project(_))) {
            return Err(invalid("scope.project.id must be specified if include_subtree is also specified"));
        }
        if self.effective && self.group_id.is_some() {
            return Err(invalid("Combining effective and group filter will always result in an empty list."));
        }
        let domain = matches!(self.target, Some(AssignmentTarget::Domain(_)));
        if self.effective && self.inherited == Some(true) && domain {
            return Err(invalid(
                "Combining effective, domain and inherited filters will always result in an empty list.",
            ));
        }
        Ok(())
    }
}

impl Control {
    /// Gives a role; giving it again changes nothing.
    ///
    /// # Errors
    /// `Forbidden`; `NotFound` for what is not there; `Invalid` for a domain's role in the whole cloud.
    pub async fn role_grant(&self, caller: &Caller, row: &Assignment) -> Result<()> {
        self.db
            .transact(|cache| {
                may_assign(cache, caller, row, rule(row, &CREATE))?;
                let txn = require_parts(cache, Txn::new(), row)?;
                check_domain(cache, row)?;
                Ok(txn.put(row))
            })
            .await
    }

    /// Takes a role that was given, and with it the application credentials that were made of it.
    ///
    /// # Errors
    /// `NotFound` if it was not given.
    pub async fn role_revoke(&self, caller: &Caller, row: &Assignment) -> Result<()> {
        self.db
            .transact(|cache| {
                may_assign(cache, caller, row, rule(row, &REVOKE))?;
                require_parts(cache, Txn::new(), row).map(drop)?;
                let stored = found(cache, row)?;
                let mut removal = Removal::new(cache);
                removal.row(&stored);
                if let (ActorKind::User, AssignmentTarget::Project(project)) = (row.actor, &row.target) {
                    removal.entities::<ApplicationCredential>(|credential| {
                        credential.user_id == row.actor_id
                            && credential.project_id == *project
                            && credential.roles.contains(&row.role_id)
                    });
                }
                // What does not fit is refused at its next use: its role is gone.
                Ok(removal.first().0)
            })
            .await
    }

    /// Whether a role was given.
    ///
    /// # Errors
    /// `NotFound` if not.
    pub async fn role_granted(&self, caller: &Caller, row: &Assignment) -> Result<()> {
        self.db.caught_up().await?;
        let cache = self.db.cache();
        require_seen(cache, caller, row, rule(row, &CHECK))?;
        require_parts(cache, Txn::new(), row).map(drop)?;
        found(cache, row).map(drop)
    }

    /// The roles that were given to somebody somewhere. The role of `row` does not count.
    pub async fn roles_granted(&self, caller: &Caller, row: &Assignment) -> Result<Vec<Arc<Stored<Role>>>> {
        self.db.caught_up().await?;
        let cache = self.db.cache();
        require_seen(cache, caller, row, rule(row, &LIST))?;
        require_place(cache, Txn::new(), row).map(drop)?;
        let under = format!("{}/", Assignment::prefix(&row.actor_id, &row.target));
        let given = cache.list_under::<Assignment>(&under);
        let given = given.iter().filter(|stored| stored.row.inherited == row.inherited);
        Ok(given.filter_map(|stored| cache.get::<Role>(&stored.row.role_id)).collect())
    }

    /// Who has which role where. Others than administrators see what is about their domain or themselves, unless a policy
    /// file says who sees all.
    ///
    /// # Errors
    /// `Forbidden` by a file; `Invalid` for a query that nothing fits.
    pub async fn assignment_list(
        &self,
        caller: &Caller,
        query: &AssignmentQuery,
    ) -> Result<Vec<ListedAssignment>> {
        let action = match query.subtree {
            true => "identity:list_role_assignments_for_tree",
            false => "identity:list_role_assignments",
        };
        let said = said(action, caller, &Target::NONE);
        if said == Some(false) {
            return Err(Error::Forbidden { action });
        }
        query.check()?;
        self.db.caught_up().await?;
        let cache = self.db.cache();
        let rows = cache.filter::<Assignment>(|row| {
            let by_user = query.user_id.as_ref().is_none_or(|user| {
                row.actor == ActorKind::User && row.actor_id == *user
                    || query.effective
                        && row.actor == ActorKind::Group
                        && cache.get::<GroupMember>(&GroupMember::new(user, &row.actor_id).id).is_some()
            });
            by_user && require_parts(cache, Txn::new(), row).is_ok()
        });
        let mut listed = Vec::new();
        for stored in &rows {
            if query.effective {
                expand(cache, &stored.row, &mut listed);
            } else {
                let row = stored.row.clone();
                listed.push(ListedAssignment { origin: row.clone(), row, prior_role_id: None });
            }
        }
        let places = match (&query.target, query.subtree) {
            (Some(AssignmentTarget::Project(id)), true) => {
                let below = descendants(cache, id).into_iter();
                let below = below.map(|project| AssignmentTarget::Project(project.row.id.clone()));
                Some(below.chain([AssignmentTarget::Project(id.clone())]).collect())
            }
            (Some(target), _) => Some(vec![target.clone()]),
            (None, _) => None,
        };
        listed.retain(|one| {
            let row = &one.row;
            let of = |wanted: &Option<String>, kind| {
                wanted.as_ref().is_none_or(|id| row.actor == kind && row.actor_id == *id)
            };
            of(&query.user_id, ActorKind::User)
                && of(&query.group_id, ActorKind::Group)
                && query.role_id.as_ref().is_none_or(|id| row.role_id == *id)
                && places.as_ref().is_none_or(|places| places.contains(&row.target))
                && query.inherited.is_none_or(|inherited| row.inherited == inherited)
                && (said == Some(true) || may_see(cache, caller, row))
        });
        listed.sort_by(|a, b| (&a.row.id, &a.origin.id).cmp(&(&b.row.id, &b.origin.id)));
        listed.dedup();
        Ok(listed)
    }
}

/// What an assignment comes to: its users, its projects, its roles. A domain's role gives nothing itself.
fn expand(cache: &Cache, origin: &Assignment, listed: &mut Vec<ListedAssignment>) {
    let users: Vec<String> = match origin.actor {
        ActorKind::User => vec![origin.actor_id.clone()],
        ActorKind::Group => {
            let members = cache.filter::<GroupMember>(|row| row.group_id == origin.actor_id);
            members.iter().map(|member| member.row.user_id.clone()).collect()
        }
    };
    let project = |stored: &Arc<Stored<Project>>| AssignmentTarget::Project(stored.row.id.clone());
    let targets: Vec<AssignmentTarget> = match &origin.target {
        target if !origin.inherited => vec![target.clone()],
        AssignmentTarget::Project(id) => descendants(cache, id).iter().map(project).collect(),
        AssignmentTarget::Domain(id) => {
            cache.filter::<Project>(|row| row.domain_id == *id).iter().map(project).collect()
        }
        AssignmentTarget::System => Vec::new(),
    };
    for role_id in with_implied(cache, [origin.role_id.clone()]) {
        if cache.get::<Role>(&role_id).is_none_or(|role| role.row.domain_id.is_some()) {
            continue;
        }
        let prior_role_id = (role_id != origin.role_id).then(|| origin.role_id.clone());
        for user in &users {
            for target in &targets {
                let row = Assignment::of(ActorKind::User, user, &role_id, target.clone(), origin.inherited);
                let (origin, prior_role_id) = (origin.clone(), prior_role_id.clone());
                listed.push(ListedAssignment { row, origin, prior_role_id });
            }
        }
    }
}

/// The ids of the roles that were given to a user somewhere, by groups and trees too, without what they imply.
pub(crate) fn given_roles(cache: &Cache, user_id: &str, target: &AssignmentTarget) -> Vec<String> {
    let mut actors = vec![user_id.to_owned()];
    actors.extend(groups_of(cache, user_id).iter().map(|group| group.row.id.clone()));
    let mut above = Vec::new();
    if let AssignmentTarget::Project(id) = target
        && let Some(project) = cache.get::<Project>(id)
    {
        let parents = ancestors(cache, &project.row);
        above.extend(parents.iter().map(|parent| AssignmentTarget::Project(parent.row.id.clone())));
        above.push(AssignmentTarget::Domain(project.row.domain_id.clone()));
    }
    let mut roles = Vec::new();
    for actor in &actors {
        let places = std::iter::once((target, false)).chain(above.iter().map(|place| (place, true)));
        for (place, inherited) in places {
            let given = cache.list_under::<Assignment>(&format!("{}/", Assignment::prefix(actor, place)));
            let given = given.iter().filter(|stored| stored.row.inherited == inherited);
            roles.extend(given.map(|stored| stored.row.role_id.clone()));
        }
    }
    roles
}

/// A user's roles somewhere, implied ones included, each once; domains' roles only as what they imply.
pub(crate) fn effective_roles(
    cache: &Cache,
    user_id: &str,
    target: &AssignmentTarget,
) -> Vec<Arc<Stored<Role>>> {
    let ids = with_implied(cache, given_roles(cache, user_id, target));
    let roles = ids.iter().filter_map(|id| cache.get::<Role>(id));
    roles.filter(|role| role.row.domain_id.is_none()).collect()
}

fn found(cache: &Cache, row: &Assignment) -> Result<Arc<Stored<Assignment>>> {
    cache.get::<Assignment>(&row.id).ok_or_else(|| Error::not_found("Role assignment", &row.role_id))
}

/// The domain that an assignment's target is in.
fn domain_of_target(cache: &Cache, target: &AssignmentTarget) -> Option<String> {
    match target {
        AssignmentTarget::Domain(id) => Some(id.clone()),
        AssignmentTarget::Project(id) => cache.get::<Project>(id).map(|row| row.row.domain_id.clone()),
        AssignmentTarget::System => None,
    }
}

/// The rules of one thing that is done with grants: of a user or a group, in a project or domain, and in the whole cloud.
type GrantRules = [&'static str; 3];
const CREATE: GrantRules = [
    "identity:create_grant",
    "identity:create_system_grant_for_user",
    "identity:create_system_grant_for_group",
];
const REVOKE: GrantRules = [
    "identity:revoke_grant",
    "identity:revoke_system_grant_for_user",
    "identity:revoke_system_grant_for_group",
];
const CHECK: GrantRules =
    ["identity:check_grant", "identity:check_system_grant_for_user", "identity:check_system_grant_for_group"];
const LIST: GrantRules =
    ["identity:list_grants", "identity:list_system_grants_for_user", "identity:list_system_grants_for_group"];

fn rule(row: &Assignment, rules: &GrantRules) -> &'static str {
    match (&row.target, row.actor) {
        (AssignmentTarget::System, ActorKind::User) => rules[1],
        (AssignmentTarget::System, ActorKind::Group) => rules[2],
        _ => rules[0],
    }
}

/// What a policy file says of a rule about an assignment, if it says anything.
fn said_of(cache: &Cache, caller: &Caller, row: &Assignment, rule: &str) -> Option<bool> {
    let domain = domain_of_target(cache, &row.target).unwrap_or_default();
    let actor = if row.actor == ActorKind::User { "user_id" } else { "group_id" };
    let project = match &row.target {
        AssignmentTarget::Project(id) => id.as_str(),
        _ => "",
    };
    let keys = [(actor, row.actor_id.as_str()), ("domain_id", domain.as_str()), ("project_id", project)];
    said(rule, caller, &Target::of(&keys))
}

fn may_assign(cache: &Cache, caller: &Caller, row: &Assignment, action: &'static str) -> Result<()> {
    match said_of(cache, caller, row, action) {
        Some(true) => return Ok(()),
        Some(false) => return Err(Error::Forbidden { action }),
        None if caller.is_admin() => return Ok(()),
        None => {}
    }
    let actor_domain = match row.actor {
        ActorKind::User => cache.get::<User>(&row.actor_id).map(|user| user.row.domain_id.clone()),
        ActorKind::Group => cache.get::<Group>(&row.actor_id).map(|group| group.row.domain_id.clone()),
    };
    let role = cache.get::<Role>(&row.role_id);
    let managed = role
        .is_some_and(|role| role.row.domain_id.is_none() && MANAGED_ROLES.contains(&role.row.name.as_str()));
    match domain_of_target(cache, &row.target) {
        Some(domain)
            if managed && caller.manages_domain(&domain) && actor_domain.as_ref() == Some(&domain) =>
        {
            Ok(())
        }
        _ => Err(Error::Forbidden { action }),
    }
}

fn require_seen(cache: &Cache, caller: &Caller, row: &Assignment, action: &'static str) -> Result<()> {
    let said = said_of(cache, caller, row, action);
    if said.unwrap_or_else(|| may_see(cache, caller, row)) {
        Ok(())
    } else {
        Err(Error::Forbidden { action })
    }
}

fn may_see(cache: &Cache, caller: &Caller, row: &Assignment) -> bool {
    let own = row.actor == ActorKind::User && row.actor_id == caller.user_id;
    let in_domain = matches!(caller.scope, Scope::Domain(_))
        && domain_of_target(cache, &row.target).is_some_and(|domain| caller.reads_domain(&domain));
    caller.reads_system() || own || in_domain
}

/// A domain's role holds in its own domain alone.
fn check_domain(cache: &Cache, row: &Assignment) -> Result<()> {
    let Some(domain) = cache.get::<Role>(&row.role_id).and_then(|role| role.row.domain_id.clone()) else {
        return Ok(());
    };
    match domain_of_target(cache, &row.target) {
        None => Err(invalid("Unable to use a domain-specific role in a system assignment.")),
        Some(target) if target == domain => Ok(()),
        Some(_) => Err(Error::Forbidden { action: "a domain's role in another domain" }),
    }
}

/// Whether all that an assignment names is there, now and when the transaction is committed.
fn require_parts(cache: &Cache, txn: Txn, row: &Assignment) -> Result<Txn> {
    let txn = require::<Role>(cache, txn, &row.role_id)?;
    require_place(cache, txn, row)
}

fn require_place(cache: &Cache, txn: Txn, row: &Assignment) -> Result<Txn> {
    let txn = match row.actor {
        ActorKind::User => require::<User>(cache, txn, &row.actor_id)?,
        ActorKind::Group => require::<Group>(cache, txn, &row.actor_id)?,
    };
    match &row.target {
        AssignmentTarget::Project(id) => require::<Project>(cache, txn, id),
        AssignmentTarget::Domain(id) => require::<Domain>(cache, txn, id),
        AssignmentTarget::System => Ok(txn),
    }
}
