//! Giving and taking roles, and who has which where.

use axum::Json;
use axum::extract::State;
use control::model::identity::{ActorKind, Assignment, AssignmentTarget, Domain, Group, Project, Role, User};
use control::service::identity::assignment::{AssignmentQuery, ListedAssignment};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::resource::{Many, asks};
use super::role::{self, Roles};
use crate::context::{Answer, AppState, Authenticated, Filters, RequestUrl, Segments};
use crate::error::Fault;
use crate::openapi::answer::{DONE, Done};
use crate::openapi::{Routes, get, put};
use crate::page::{Direction, KeystoneLinks, Page, SortValue};

/// The parts of a grant's path that are there.
#[derive(Debug, Deserialize)]
pub(super) struct GrantPath {
    project_id: Option<String>,
    domain_id: Option<String>,
    user_id: Option<String>,
    group_id: Option<String>,
    role_id: Option<String>,
}

impl GrantPath {
    fn assignment(self, inherited: bool) -> Result<Assignment, Fault> {
        let target = match (self.project_id, self.domain_id) {
            (Some(id), _) => AssignmentTarget::Project(id),
            (None, Some(id)) => AssignmentTarget::Domain(id),
            (None, None) => AssignmentTarget::System,
        };
        let (actor, id) = match (self.user_id, self.group_id) {
            (Some(id), _) => (ActorKind::User, id),
            (None, Some(id)) => (ActorKind::Group, id),
            (None, None) => return Err(Fault::NoRoute),
        };
        Ok(Assignment::of(actor, &id, &self.role_id.unwrap_or_default(), target, inherited))
    }
}

/// All routes of grants: in projects, domains and the whole cloud, to users and groups, and inherited.
pub(super) fn routes() -> Routes {
    let mut router = Routes::new();
    for actor in ["users/{user_id}", "groups/{group_id}"] {
        for target in ["projects/{project_id}", "domains/{domain_id}", "system"] {
            let roles = format!("/v3/{target}/{actor}/roles");
            router = router.route(&roles, get(granted::<false>)).route(
                &format!("{roles}/{{role_id}}"),
                put(grant::<false>).get(check::<false>).delete(revoke::<false>),
            );
            if target != "system" {
                let roles = format!("/v3/OS-INHERIT/{target}/{actor}/roles");
                router = router.route(&format!("{roles}/inherited_to_projects"), get(granted::<true>)).route(
                    &format!("{roles}/{{role_id}}/inherited_to_projects"),
                    put(grant::<true>).get(check::<true>).delete(revoke::<true>),
                );
            }
        }
    }
    router.route("/v3/role_assignments", get(list))
}

/// Identity API v3: assign a role.
async fn grant<const INHERITED: bool>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(path): Segments<GrantPath>,
) -> Result<Done, Fault> {
    state.control.role_grant(&caller, &path.assignment(INHERITED)?).await?;
    Ok(DONE)
}

/// Identity API v3: check whether a role is assigned.
async fn check<const INHERITED: bool>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(path): Segments<GrantPath>,
) -> Result<Done, Fault> {
    state.control.role_granted(&caller, &path.assignment(INHERITED)?).await?;
    Ok(DONE)
}

/// Identity API v3: unassign a role.
async fn revoke<const INHERITED: bool>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(path): Segments<GrantPath>,
) -> Result<Done, Fault> {
    state.control.role_revoke(&caller, &path.assignment(INHERITED)?).await?;
    Ok(DONE)
}

/// Identity API v3: list the roles that are assigned.
async fn granted<const INHERITED: bool>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(path): Segments<GrantPath>,
    url: RequestUrl,
) -> Answer<Many<Roles>> {
    let roles = state.control.roles_granted(&caller, &path.assignment(INHERITED)?).await?;
    Ok(role::listed(&state, &roles, &url))
}

fn query(filters: &Filters) -> Result<AssignmentQuery, Fault> {
    let text = |key: &str| filters.get(key).filter(|value| !value.is_empty()).map(str::to_owned);
    let project = text("scope.project.id").map(AssignmentTarget::Project);
    let domain = text("scope.domain.id").map(AssignmentTarget::Domain);
    let system = filters.has("scope.system").then_some(AssignmentTarget::System);
    let mut targets = [project, domain, system].into_iter().flatten();
    let target = targets.next();
    if targets.next().is_some() {
        return Err(Fault::malformed("Specify a domain or project or the system, not several of them"));
    }
    let inherited = match filters.get("scope.OS-INHERIT:inherited_to") {
        None => None,
        Some("projects") => Some(true),
        Some(_) => return Err(Fault::malformed("scope.OS-INHERIT:inherited_to is 'projects'")),
    };
    Ok(AssignmentQuery {
        user_id: text("user.id"),
        group_id: text("group.id"),
        role_id: text("role.id"),
        target,
        inherited,
        effective: asks(filters, "effective"),
        subtree: asks(filters, "include_subtree"),
    })
}

/// Something by its id, and by its name where names are asked for.
#[derive(Serialize, JsonSchema)]
struct Named {
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    domain: Option<NamedDomain>,
}

#[derive(Serialize, JsonSchema)]
struct NamedDomain {
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
}

#[derive(Serialize, JsonSchema)]
struct WholeSystem {
    all: bool,
}

#[derive(Default, Serialize, JsonSchema)]
struct AssignmentScope {
    #[serde(skip_serializing_if = "Option::is_none")]
    project: Option<Named>,
    #[serde(skip_serializing_if = "Option::is_none")]
    domain: Option<NamedDomain>,
    #[serde(skip_serializing_if = "Option::is_none")]
    system: Option<WholeSystem>,
    #[serde(rename = "OS-INHERIT:inherited_to", skip_serializing_if = "Option::is_none")]
    inherited_to: Option<&'static str>,
}

#[derive(Serialize, JsonSchema)]
struct AssignmentLinks {
    assignment: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    membership: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prior_role: Option<String>,
}

#[derive(Serialize, JsonSchema)]
struct RoleAssignment {
    scope: AssignmentScope,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<Named>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<Named>,
    role: Named,
    links: AssignmentLinks,
}

#[derive(Serialize, JsonSchema)]
struct RoleAssignments {
    role_assignments: Vec<RoleAssignment>,
    links: KeystoneLinks,
}

/// Identity API v3: list role assignments.
async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    filters: Filters,
    url: RequestUrl,
) -> Answer<RoleAssignments> {
    let page = Page::of(&filters, &[("id", Direction::Ascending)])?;
    let names = asks(&filters, "include_names");
    let rows = state.control.assignment_list(&caller, &query(&filters)?).await?;
    let slice = page.cut(
        rows,
        |one| &one.row.id,
        |one, key| (key == "id").then(|| SortValue::from(one.row.id.as_str())),
    )?;
    let names = Names { state: &state, shown: names };
    let (role_assignments, links) = slice.keystone(&url, |one| names.body(&one));
    Ok(Json(RoleAssignments { role_assignments, links }))
}

/// What assignments are shown with: ids alone, or names too.
struct Names<'a> {
    state: &'a AppState,
    shown: bool,
}

impl Names<'_> {
    fn domain(&self, id: &str) -> NamedDomain {
        let found = self.state.control.look_up::<Domain>(id).filter(|_| self.shown);
        NamedDomain { id: id.to_owned(), name: found.map(|domain| domain.row.name.clone()) }
    }

    fn named(&self, id: &str, found: Option<(String, Option<String>)>) -> Named {
        let (name, domain_id) = found.filter(|_| self.shown).unzip();
        let domain = domain_id.flatten().map(|id| self.domain(&id));
        Named { id: id.to_owned(), name, domain }
    }

    fn body(&self, one: &ListedAssignment) -> RoleAssignment {
        let control = &self.state.control;
        let (row, origin) = (&one.row, &one.origin);
        let role = control.look_up::<Role>(&row.role_id);
        let role = role.map(|role| (role.row.name.clone(), role.row.domain_id.clone()));
        let mut scope = AssignmentScope {
            inherited_to: row.inherited.then_some("projects"),
            ..AssignmentScope::default()
        };
        match &row.target {
            AssignmentTarget::System => scope.system = Some(WholeSystem { all: true }),
            AssignmentTarget::Domain(id) => scope.domain = Some(self.domain(id)),
            AssignmentTarget::Project(id) => {
                let found = control.look_up::<Project>(id);
                let found = found.map(|row| (row.row.name.clone(), Some(row.row.domain_id.clone())));
                scope.project = Some(self.named(id, found));
            }
        }
        let (user, group) = match row.actor {
            ActorKind::User => {
                let found = control.look_up::<User>(&row.actor_id);
                let found = found.map(|row| (row.row.name.clone(), Some(row.row.domain_id.clone())));
                (Some(self.named(&row.actor_id, found)), None)
            }
            ActorKind::Group => {
                let found = control.look_up::<Group>(&row.actor_id);
                let found = found.map(|row| (row.row.name.clone(), Some(row.row.domain_id.clone())));
                (None, Some(self.named(&row.actor_id, found)))
            }
        };
        let base = format!("{}/identity/v3", self.state.public_url());
        let by_group = origin.actor == ActorKind::Group && row.actor == ActorKind::User;
        let membership = || format!("{base}/groups/{}/users/{}", origin.actor_id, row.actor_id);
        let prior = |prior: &String| format!("{base}/prior_roles/{prior}/implies/{}", row.role_id);
        let links = AssignmentLinks {
            assignment: self.url(origin),
            membership: by_group.then(membership),
            prior_role: one.prior_role_id.as_ref().map(prior),
        };
        RoleAssignment { scope, user, group, role: self.named(&row.role_id, role), links }
    }

    /// Where an assignment that was given is.
    fn url(&self, row: &Assignment) -> String {
        let target = match &row.target {
            AssignmentTarget::System => "system".to_owned(),
            AssignmentTarget::Domain(id) => format!("domains/{id}"),
            AssignmentTarget::Project(id) => format!("projects/{id}"),
        };
        let actor = match row.actor {
            ActorKind::User => "users",
            ActorKind::Group => "groups",
        };
        let (before, after) =
            if row.inherited { ("OS-INHERIT/", "/inherited_to_projects") } else { ("", "") };
        format!(
            "{}/identity/v3/{before}{target}/{actor}/{}/roles/{}{after}",
            self.state.public_url(),
            row.actor_id,
            row.role_id
        )
    }
}
