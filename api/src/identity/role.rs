//! Roles and their assignments.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use control::caller::Caller;
use control::error::Error;
use control::model::identity::{Assignment, AssignmentTarget, Role};
use control::service::role::ROLE_CHAIN;
use serde::Deserialize;
use serde_json::{Value, json};

use super::done;
use crate::context::{Answer, AppState, Authenticated, Body, Filters, RequestUrl, Segments};
use crate::error::Fault;
use crate::page::{Direction, Page, SortValue};

#[derive(Deserialize)]
pub(super) struct RoleBody {
    role: Wanted,
}

#[derive(Deserialize)]
struct Wanted {
    name: String,
    description: Option<String>,
}

fn show_role(state: &AppState, role: &Role) -> Value {
    json!({
        "id": role.id,
        "name": role.name,
        "domain_id": null,
        "description": role.description,
        "options": {},
        "links": {"self": format!("{}/identity/v3/roles/{}", state.public_url(), role.id)},
    })
}

/// Identity API v3: list roles.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Value> {
    let page = Page::of(&filters, &[("name", Direction::Ascending)])?;
    let mut rows = state.control.role_list(&caller).await?;
    // No role belongs to a domain.
    rows.retain(|stored| filters.allow("name", &stored.row.name) && !filters.has("domain_id"));
    let slice = page.cut(
        rows,
        |stored| &stored.row.id,
        |stored, key| match key {
            "name" => Some(SortValue::from(stored.row.name.as_str())),
            "id" => Some(SortValue::from(stored.row.id.as_str())),
            _ => None,
        },
    )?;
    Ok(Json(slice.keystone("roles", &url, |stored| show_role(&state, &stored.row))))
}

/// Identity API v3: show role details.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<Value> {
    let stored = state.control.role_get(&caller, &id).await?;
    Ok(Json(json!({"role": show_role(&state, &stored.row)})))
}

/// Identity API v3: create role.
pub(super) async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(body): Body<RoleBody>,
) -> Result<Response, Fault> {
    let Wanted { name, description } = body.role;
    let stored = state.control.role_create(&caller, name, description.unwrap_or_default()).await?;
    Ok((StatusCode::CREATED, Json(json!({"role": show_role(&state, &stored.row)}))).into_response())
}

/// Identity API v3: delete role.
pub(super) async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<Response, Fault> {
    state.control.role_delete(&caller, &id).await?;
    Ok(done())
}

/// Identity API v3: list all role inference rules.
pub(super) async fn inferences(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    url: RequestUrl,
) -> Answer<Value> {
    let roles = state.control.role_list(&caller).await?;
    let named = |name: &str| roles.iter().find(|stored| stored.row.name == name);
    let rules: Vec<Value> = ROLE_CHAIN
        .windows(2)
        .filter_map(|pair| Some((named(pair[0])?, named(pair[1])?)))
        .map(|(prior, implied)| {
            let (prior, implied) = (show_role(&state, &prior.row), show_role(&state, &implied.row));
            json!({"prior_role": prior, "implies": [implied]})
        })
        .collect();
    Ok(Json(
        json!({"role_inferences": rules, "links": {"self": url.itself(), "next": null, "previous": null}}),
    ))
}

fn target(kind: &str, id: String) -> Result<AssignmentTarget, Fault> {
    match kind {
        "projects" => Ok(AssignmentTarget::Project(id)),
        "domains" => Ok(AssignmentTarget::Domain(id)),
        _ => Err(Fault::NoRoute),
    }
}

type Grant = (String, String, String, String);

/// Identity API v3: assign role to user on project or domain.
pub(super) async fn grant(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((kind, id, user, role)): Segments<Grant>,
) -> Result<Response, Fault> {
    state.control.role_grant(&caller, &user, &role, target(&kind, id)?).await?;
    Ok(done())
}

/// Identity API v3: check whether user has role assignment on project or domain.
pub(super) async fn check(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((kind, id, user, role)): Segments<Grant>,
) -> Result<Response, Fault> {
    has_role(&state, &caller, &user, &role, &target(&kind, id)?).await
}

/// Identity API v3: unassign role from user on project or domain.
pub(super) async fn revoke(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((kind, id, user, role)): Segments<Grant>,
) -> Result<Response, Fault> {
    state.control.role_revoke(&caller, &user, &role, target(&kind, id)?).await?;
    Ok(done())
}

/// Identity API v3: list role assignments for user on project or domain.
pub(super) async fn granted(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((kind, id, user)): Segments<(String, String, String)>,
    url: RequestUrl,
) -> Answer<Value> {
    roles_of(&state, &caller, &user, &target(&kind, id)?, &url).await
}

/// Identity API v3: assign a system role to a user.
pub(super) async fn grant_system(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((user, role)): Segments<(String, String)>,
) -> Result<Response, Fault> {
    state.control.role_grant(&caller, &user, &role, AssignmentTarget::System).await?;
    Ok(done())
}

/// Identity API v3: check user for a system role assignment.
pub(super) async fn check_system(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((user, role)): Segments<(String, String)>,
) -> Result<Response, Fault> {
    has_role(&state, &caller, &user, &role, &AssignmentTarget::System).await
}

/// Identity API v3: delete a system role assignment from a user.
pub(super) async fn revoke_system(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((user, role)): Segments<(String, String)>,
) -> Result<Response, Fault> {
    state.control.role_revoke(&caller, &user, &role, AssignmentTarget::System).await?;
    Ok(done())
}

/// Identity API v3: list system role assignments for a user.
pub(super) async fn granted_system(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(user): Segments<String>,
    url: RequestUrl,
) -> Answer<Value> {
    roles_of(&state, &caller, &user, &AssignmentTarget::System, &url).await
}

async fn has_role(
    state: &AppState,
    caller: &Caller,
    user: &str,
    role: &str,
    target: &AssignmentTarget,
) -> Result<Response, Fault> {
    let wanted = Assignment::new(user, role, target.clone());
    let held = state.control.assignment_list(caller).await?;
    if held.iter().any(|stored| stored.row.id == wanted.id) {
        Ok(done())
    } else {
        Err(Error::not_found("Role assignment", role).into())
    }
}

async fn roles_of(
    state: &AppState,
    caller: &Caller,
    user: &str,
    target: &AssignmentTarget,
    url: &RequestUrl,
) -> Answer<Value> {
    let held = state.control.assignment_list(caller).await?;
    let mut roles = Vec::new();
    for stored in held.iter().filter(|stored| stored.row.user_id == user && stored.row.target == *target) {
        if let Ok(role) = state.control.role_get(caller, &stored.row.role_id).await {
            roles.push(show_role(state, &role.row));
        }
    }
    Ok(Json(json!({"roles": roles, "links": {"self": url.itself(), "next": null, "previous": null}})))
}

/// Identity API v3: list role assignments.
pub(super) async fn assignments(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Value> {
    let page = Page::of(&filters, &[("id", Direction::Ascending)])?;
    let names = filters.flag("include_names")?.unwrap_or(false);
    let effective = filters.flag("effective")?.unwrap_or(false);
    let mut rows = Vec::new();
    for stored in state.control.assignment_list(&caller).await? {
        let mut roles = vec![stored.row.role_id.clone()];
        if effective {
            let implied = implied(&state, &caller, &stored.row.role_id).await?;
            roles.extend(implied);
        }
        rows.extend(
            roles.iter().map(|role| Assignment::new(&stored.row.user_id, role, stored.row.target.clone())),
        );
    }
    rows.retain(|row| wanted(&filters, row));
    rows.sort_by(|a, b| a.id.cmp(&b.id));
    rows.dedup();
    let slice =
        page.cut(rows, |row| &row.id, |row, key| (key == "id").then(|| SortValue::from(row.id.as_str())))?;
    let mut bodies = std::collections::BTreeMap::new();
    for row in &slice.rows {
        bodies.insert(row.id.clone(), show_assignment(&state, &caller, row, names).await);
    }
    Ok(Json(slice.keystone("role_assignments", &url, |row| bodies.remove(&row.id).unwrap_or_default())))
}

async fn implied(state: &AppState, caller: &Caller, role_id: &str) -> Result<Vec<String>, Fault> {
    let roles = state.control.role_list(caller).await?;
    let Some(role) = roles.iter().find(|stored| stored.row.id == role_id) else { return Ok(Vec::new()) };
    let below = ROLE_CHAIN.iter().skip_while(|name| **name != role.row.name).skip(1);
    let ids = below.filter_map(|name| roles.iter().find(|stored| stored.row.name == *name));
    Ok(ids.map(|stored| stored.row.id.clone()).collect())
}

fn wanted(filters: &Filters, row: &Assignment) -> bool {
    let (project, domain, system) = match &row.target {
        AssignmentTarget::Project(id) => (id.as_str(), "", false),
        AssignmentTarget::Domain(id) => ("", id.as_str(), false),
        AssignmentTarget::System => ("", "", true),
    };
    filters.allow("user.id", &row.user_id)
        && filters.allow("role.id", &row.role_id)
        && filters.allow("scope.project.id", project)
        && filters.allow("scope.domain.id", domain)
        && (!filters.has("scope.system") || system)
        // There are no groups.
        && !filters.has("group.id")
}

async fn show_assignment(state: &AppState, caller: &Caller, row: &Assignment, names: bool) -> Value {
    let control = &state.control;
    let mut user = json!({"id": row.user_id});
    let mut role = json!({"id": row.role_id});
    if names {
        if let Ok(found) = control.user_get(caller, &row.user_id).await {
            user["name"] = json!(found.row.name);
            user["domain"] = domain_name(state, caller, &found.row.domain_id).await;
        }
        if let Ok(found) = control.role_get(caller, &row.role_id).await {
            role["name"] = json!(found.row.name);
        }
    }
    let (scope, path) = match &row.target {
        AssignmentTarget::System => (json!({"system": {"all": true}}), "system".to_owned()),
        AssignmentTarget::Domain(id) => {
            let domain = if names { domain_name(state, caller, id).await } else { json!({"id": id}) };
            (json!({"domain": domain}), format!("domains/{id}"))
        }
        AssignmentTarget::Project(id) => {
            let mut project = json!({"id": id});
            if names && let Ok(found) = control.project_get(caller, id).await {
                project["name"] = json!(found.row.name);
                project["domain"] = domain_name(state, caller, &found.row.domain_id).await;
            }
            (json!({"project": project}), format!("projects/{id}"))
        }
    };
    let link =
        format!("{}/identity/v3/{path}/users/{}/roles/{}", state.public_url(), row.user_id, row.role_id);
    json!({"scope": scope, "user": user, "role": role, "links": {"assignment": link}})
}

async fn domain_name(state: &AppState, caller: &Caller, id: &str) -> Value {
    match state.control.domain_get(caller, id).await {
        Ok(found) => json!({"id": id, "name": found.row.name}),
        Err(_) => json!({"id": id}),
    }
}
