//! Projects and domains.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use control::model::identity::{Domain, Project};
use control::service::identity::{ProjectCreate, ProjectUpdate};
use serde::Deserialize;
use serde_json::{Value, json};

use super::done;
use crate::context::{Answer, AppState, Authenticated, Body, Filters, RequestUrl, Segments};
use crate::error::Fault;
use crate::page::{Direction, Page, SortValue};

#[derive(Deserialize)]
pub(super) struct ProjectBody {
    project: Wanted,
}

#[derive(Deserialize)]
pub(super) struct DomainBody {
    domain: Wanted,
}

#[derive(Deserialize)]
struct Wanted {
    name: Option<String>,
    domain_id: Option<String>,
    parent_id: Option<String>,
    #[serde(default)]
    is_domain: bool,
    description: Option<String>,
    enabled: Option<bool>,
}

impl Wanted {
    fn create(self) -> Result<ProjectCreate, Fault> {
        if self.is_domain {
            return Err(Fault::not_implemented("a project that acts as a domain"));
        }
        // A parent is the domain itself; a tree of projects is not there.
        if self.parent_id.is_some() && self.domain_id.is_some() && self.parent_id != self.domain_id {
            return Err(Fault::not_implemented("a project below another project"));
        }
        Ok(ProjectCreate {
            name: self.name.ok_or_else(|| Fault::malformed("'name' is a required property"))?,
            domain_id: self.domain_id.or(self.parent_id),
            description: self.description.unwrap_or_default(),
            enabled: self.enabled,
        })
    }

    fn update(self) -> ProjectUpdate {
        ProjectUpdate { name: self.name, description: self.description, enabled: self.enabled }
    }
}

pub(super) fn show_project(state: &AppState, project: &Project) -> Value {
    json!({
        "id": project.id,
        "name": project.name,
        "domain_id": project.domain_id,
        "description": project.description,
        "enabled": project.enabled,
        "parent_id": project.domain_id,
        "is_domain": false,
        "tags": [],
        "options": {},
        "links": {"self": format!("{}/identity/v3/projects/{}", state.public_url(), project.id)},
    })
}

fn show_domain_row(state: &AppState, domain: &Domain) -> Value {
    json!({
        "id": domain.id,
        "name": domain.name,
        "description": domain.description,
        "enabled": domain.enabled,
        "tags": [],
        "options": {},
        "links": {"self": format!("{}/identity/v3/domains/{}", state.public_url(), domain.id)},
    })
}

/// Identity API v3: list projects.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Value> {
    let page = Page::of(&filters, &[("name", Direction::Ascending)])?;
    let enabled = filters.flag("enabled")?;
    let mut rows = state.control.project_list(&caller).await?;
    rows.retain(|stored| {
        let row = &stored.row;
        filters.allow("name", &row.name)
            && filters.allow("domain_id", &row.domain_id)
            && filters.allow("parent_id", &row.domain_id)
            && enabled.is_none_or(|enabled| enabled == row.enabled)
            && !filters.get("is_domain").is_some_and(|value| value.eq_ignore_ascii_case("true"))
    });
    let slice = page.cut(
        rows,
        |stored| &stored.row.id,
        |stored, key| match key {
            "name" => Some(SortValue::from(stored.row.name.as_str())),
            "id" => Some(SortValue::from(stored.row.id.as_str())),
            _ => None,
        },
    )?;
    Ok(Json(slice.keystone("projects", &url, |stored| show_project(&state, &stored.row))))
}

/// Identity API v3: show project details.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<Value> {
    let stored = state.control.project_get(&caller, &id).await?;
    Ok(Json(json!({"project": show_project(&state, &stored.row)})))
}

/// Identity API v3: create project.
pub(super) async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(body): Body<ProjectBody>,
) -> Result<Response, Fault> {
    let stored = state.control.project_create(&caller, body.project.create()?).await?;
    Ok((StatusCode::CREATED, Json(json!({"project": show_project(&state, &stored.row)}))).into_response())
}

/// Identity API v3: update project.
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<ProjectBody>,
) -> Answer<Value> {
    let stored = state.control.project_update(&caller, &id, body.project.update()).await?;
    Ok(Json(json!({"project": show_project(&state, &stored.row)})))
}

/// Identity API v3: delete project.
pub(super) async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<Response, Fault> {
    state.control.project_delete(&caller, &id).await?;
    Ok(done())
}

/// Identity API v3: list domains.
pub(super) async fn list_domains(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Value> {
    let page = Page::of(&filters, &[("name", Direction::Ascending)])?;
    let enabled = filters.flag("enabled")?;
    let mut rows = state.control.domain_list(&caller).await?;
    rows.retain(|stored| {
        filters.allow("name", &stored.row.name) && enabled.is_none_or(|enabled| enabled == stored.row.enabled)
    });
    let slice = page.cut(
        rows,
        |stored| &stored.row.id,
        |stored, key| match key {
            "name" => Some(SortValue::from(stored.row.name.as_str())),
            "id" => Some(SortValue::from(stored.row.id.as_str())),
            _ => None,
        },
    )?;
    Ok(Json(slice.keystone("domains", &url, |stored| show_domain_row(&state, &stored.row))))
}

/// Identity API v3: show domain details.
pub(super) async fn show_domain(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<Value> {
    let stored = state.control.domain_get(&caller, &id).await?;
    Ok(Json(json!({"domain": show_domain_row(&state, &stored.row)})))
}

/// Identity API v3: create domain.
pub(super) async fn create_domain(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(body): Body<DomainBody>,
) -> Result<Response, Fault> {
    let stored = state.control.domain_create(&caller, body.domain.create()?).await?;
    Ok((StatusCode::CREATED, Json(json!({"domain": show_domain_row(&state, &stored.row)}))).into_response())
}

/// Identity API v3: update domain.
pub(super) async fn update_domain(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<DomainBody>,
) -> Answer<Value> {
    let stored = state.control.domain_update(&caller, &id, body.domain.update()).await?;
    Ok(Json(json!({"domain": show_domain_row(&state, &stored.row)})))
}

/// Identity API v3: delete domain.
pub(super) async fn delete_domain(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<Response, Fault> {
    state.control.domain_delete(&caller, &id).await?;
    Ok(done())
}
