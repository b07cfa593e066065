//! Projects, their trees and tags. As in Keystone a domain is a project too, which acts as a domain.

use super::fields::Result;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use control::caller::Caller;
use control::error::Error;
use control::model::identity::{Domain, Project};
use control::model::random_hex_id;
use control::service::identity::Entity;
use serde_json::{Map, Value, json};

use super::domain::Domains;
use super::done;
use super::fields::Fields;
use super::resource::{Object, Resource, body, extra, fits, new_row, own_url, page, whole, with};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, RequestUrl, Segments};
use crate::error::Fault;

/// Projects as clients see them.
pub(super) struct Projects;

impl Resource for Projects {
    type Row = Project;
    const ONE: &'static str = "project";
    const MANY: &'static str = "projects";
    const PATH: &'static str = "projects";

    fn show(_: &AppState, row: &Project) -> Map<String, Value> {
        let own = json!({
            "id": row.id,
            "name": row.name,
            "domain_id": row.domain_id,
            "description": row.description,
            "enabled": row.enabled,
            "parent_id": row.parent(),
            "is_domain": false,
            "tags": row.tags,
            "options": row.options,
        });
        with(extra(&row.extra), own)
    }

    fn wanted(filters: &Filters, row: &Project) -> Result<bool, Fault> {
        Ok(fits(filters, "name", &row.name)
            && filters.allow("domain_id", &row.domain_id)
            && filters.allow("parent_id", row.parent())
            && filters.allow_flag("enabled", row.enabled)?
            && tags_fit(filters, &row.tags))
    }

    fn blank(_: &AppState, _: &Caller, _: &mut Fields) -> Result<Project> {
        Ok(Project { id: random_hex_id(), enabled: true, ..Project::default() })
    }

    fn apply(row: &mut Project, mut fields: Fields) -> Result<()> {
        if fields.has("domain_id") {
            fields.name("domain_id", &mut row.domain_id)?;
        }
        if let Some(parent) = fields.nullable("parent_id")?
            && parent.as_deref() != Some(row.parent())
        {
            row.parent_id = parent;
        }
        let mut is_domain = false;
        fields.flag("is_domain", &mut is_domain)?;
        if is_domain {
            return Err(super::fields::invalid("a project does not begin to act as a domain"));
        }
        fields.name("name", &mut row.name)?;
        fields.text("description", &mut row.description)?;
        fields.flag("enabled", &mut row.enabled)?;
        fields.texts("tags", &mut row.tags)?;
        fields.options(&mut row.options)?;
        fields.rest(&mut row.extra);
        Ok(())
    }
}

/// Keystone's four filters of tags: all of these, any, and neither.
pub(super) fn tags_fit(filters: &Filters, tags: &[String]) -> bool {
    let has = |wanted: &str| tags.iter().any(|tag| tag == wanted);
    let all = |key: &str| filters.get(key).map(|list| list.split(',').all(has));
    let any = |key: &str| filters.get(key).map(|list| list.split(',').any(has));
    all("tags").unwrap_or(true)
        && any("tags-any").unwrap_or(true)
        && !all("not-tags").unwrap_or(false)
        && !any("not-tags-any").unwrap_or(false)
}

/// A domain as the project that acts as it.
fn acting(state: &AppState, domain: &Domain) -> Value {
    let mut body = Domains::show(state, domain);
    for (key, value) in [("is_domain", json!(true)), ("domain_id", Value::Null), ("parent_id", Value::Null)] {
        body.insert(key.into(), value);
    }
    body.insert("links".into(), json!({"self": own_url(state, "projects", &domain.id)}));
    Value::Object(body)
}

async fn is_domain(state: &AppState, caller: &Caller, id: &str) -> bool {
    state.control.entity_get::<Domain>(caller, id).await.is_ok()
}

/// Identity API v3: list projects.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Value> {
    if filters.flag("is_domain")? == Some(true) {
        let mut rows = Vec::new();
        for stored in state.control.entity_list::<Domain>(&caller).await? {
            if Domains::wanted(&filters, &stored.row)? {
                rows.push(acting(&state, &stored.row));
            }
        }
        return Ok(whole("projects", rows, &url));
    }
    let mut rows = Vec::new();
    for stored in state.control.entity_list::<Project>(&caller).await? {
        if Projects::wanted(&filters, &stored.row)? {
            rows.push(stored);
        }
    }
    page::<Projects>(&state, &filters, &url, rows)
}

/// Identity API v3: show project details, with those above and below it where that is asked for.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    filters: Filters,
) -> Answer<Value> {
    let stored = match state.control.entity_get::<Project>(&caller, &id).await {
        Ok(stored) => stored,
        Err(error) => {
            let domain = state.control.entity_get::<Domain>(&caller, &id).await.map_err(|_| error)?;
            return Ok(Json(json!({"project": acting(&state, &domain.row)})));
        }
    };
    for kind in ["parents", "subtree"] {
        if filters.has(&format!("{kind}_as_list")) && filters.has(&format!("{kind}_as_ids")) {
            let message =
                format!("Cannot use {kind}_as_list and {kind}_as_ids query params at the same time.");
            return Err(Fault::malformed(message));
        }
    }
    let mut shown = body::<Projects>(&state, &stored.row);
    let (above, below) = state.control.project_family(&stored.row);
    let listed = |rows: &[std::sync::Arc<control::store::Stored<Project>>]| -> Value {
        let seen = rows.iter().filter(|row| row.row.readable(&caller));
        seen.map(|row| json!({"project": body::<Projects>(&state, &row.row)})).collect()
    };
    if filters.has("parents_as_list") {
        shown["parents"] = listed(&above);
    }
    if filters.has("parents_as_ids") {
        let root = json!({ stored.row.domain_id.as_str(): null });
        let nest = |inner: Value, row: &std::sync::Arc<control::store::Stored<Project>>| json!({ row.row.id.as_str(): inner });
        shown["parents"] = above.iter().rev().fold(root, nest);
    }
    if filters.has("subtree_as_list") {
        shown["subtree"] = listed(&below);
    }
    if filters.has("subtree_as_ids") {
        let rows: Vec<&Project> = below.iter().map(|row| &row.row).collect();
        shown["subtree"] = ids_below(&stored.row.id, &rows);
    }
    Ok(Json(json!({ "project": shown })))
}

/// The ids below one, as objects inside each other; null where there is none.
fn ids_below(id: &str, rows: &[&Project]) -> Value {
    let children = rows.iter().filter(|row| row.parent_id.as_deref() == Some(id));
    let inner: Map<String, Value> = children.map(|row| (row.id.clone(), ids_below(&row.id, rows))).collect();
    if inner.is_empty() { Value::Null } else { Value::Object(inner) }
}

/// Identity API v3: create project.
pub(super) async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(body): Body<Object>,
) -> Result<Response, Fault> {
    let mut fields = Fields::of(body, "project", true)?;
    let mut is_domain = false;
    fields.flag("is_domain", &mut is_domain)?;
    let domain_id = fields.nullable("domain_id")?.flatten();
    let parent_id = fields.nullable("parent_id")?.flatten();
    let shown = if is_domain {
        if domain_id.is_some() || parent_id.is_some() {
            return Err(Fault::malformed("a project that acts as a domain is in no other and below none"));
        }
        let row = new_row::<Domains>(&state, &caller, fields)?;
        acting(&state, &state.control.entity_create(&caller, row).await?.row)
    } else {
        let (domain_id, parent_id) = state.control.project_place(&caller, domain_id, parent_id).await?;
        let mut row = new_row::<Projects>(&state, &caller, fields)?;
        (row.domain_id, row.parent_id) = (domain_id, parent_id);
        super::resource::body::<Projects>(&state, &state.control.entity_create(&caller, row).await?.row)
    };
    Ok((StatusCode::CREATED, Json(json!({ "project": shown }))).into_response())
}

/// Identity API v3: update project.
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<Object>,
) -> Answer<Value> {
    let fields = Fields::of(body, "project", false)?;
    if is_domain(&state, &caller, &id).await {
        let change = |row: &mut Domain| Domains::apply(row, fields.clone());
        let stored = state.control.entity_update(&caller, &id, change).await?;
        return Ok(Json(json!({"project": acting(&state, &stored.row)})));
    }
    let change = |row: &mut Project| Projects::apply(row, fields.clone());
    let stored = state.control.entity_update(&caller, &id, change).await?;
    Ok(super::resource::one::<Projects>(&state, &stored))
}

/// Identity API v3: delete project.
pub(super) async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<Response, Fault> {
    if is_domain(&state, &caller, &id).await {
        state.control.entity_delete::<Domain>(&caller, &id).await?;
    } else {
        state.control.entity_delete::<Project>(&caller, &id).await?;
    }
    Ok(done())
}

/// Identity API v3: list tags for a project.
pub(super) async fn tags(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    url: RequestUrl,
) -> Answer<Value> {
    let stored = state.control.entity_seen::<Project>(&caller, &id, "identity:list_project_tags").await?;
    Ok(Json(json!({"tags": stored.row.tags, "links": {"self": url.itself()}})))
}

/// Identity API v3: modify tag list for a project.
pub(super) async fn set_tags(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    url: RequestUrl,
    Body(body): Body<Object>,
) -> Answer<Value> {
    let mut fields = Fields::inside(Value::Object(body), "tags")?;
    if !fields.has("tags") {
        return Err(Fault::malformed("'tags' is a required property"));
    }
    let mut tags = Vec::new();
    fields.texts("tags", &mut tags)?;
    let stored = change_tags(&state, &caller, &id, |row| {
        row.clone_from(&tags);
        Ok(())
    })
    .await?;
    Ok(Json(json!({"tags": stored, "links": {"self": url.itself()}})))
}

/// Identity API v3: remove all tags from a project.
pub(super) async fn clear_tags(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<Response, Fault> {
    change_tags(&state, &caller, &id, |tags| {
        tags.clear();
        Ok(())
    })
    .await?;
    Ok(done())
}

/// Identity API v3: check if project contains tag.
pub(super) async fn has_tag(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, tag)): Segments<(String, String)>,
) -> Result<Response, Fault> {
    let stored = state.control.entity_seen::<Project>(&caller, &id, "identity:get_project_tag").await?;
    if stored.row.tags.contains(&tag) { Ok(done()) } else { Err(Error::not_found("Project tag", tag).into()) }
}

/// Identity API v3: add single tag to a project.
pub(super) async fn add_tag(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, tag)): Segments<(String, String)>,
) -> Result<Response, Fault> {
    change_tags(&state, &caller, &id, |tags| {
        if !tags.contains(&tag) {
            tags.push(tag.clone());
        }
        Ok(())
    })
    .await?;
    Ok(StatusCode::CREATED.into_response())
}

/// Identity API v3: delete single tag from project.
pub(super) async fn remove_tag(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, tag)): Segments<(String, String)>,
) -> Result<Response, Fault> {
    change_tags(&state, &caller, &id, |tags| {
        let at =
            tags.iter().position(|own| *own == tag).ok_or_else(|| Error::not_found("Project tag", &tag))?;
        tags.remove(at);
        Ok(())
    })
    .await?;
    Ok(done())
}

async fn change_tags(
    state: &AppState,
    caller: &Caller,
    id: &str,
    change: impl Fn(&mut Vec<String>) -> Result<()>,
) -> Result<Vec<String>> {
    let stored = state.control.entity_update(caller, id, |row: &mut Project| change(&mut row.tags)).await?;
    Ok(stored.row.tags.clone())
}
