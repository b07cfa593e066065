//! Projects, their trees and tags. As in Keystone a domain is a project too, which acts as a domain.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use control::caller::Caller;
use control::error::Error;
use control::model::identity::{Domain, Extra, Project};
use control::model::random_hex_id;
use control::service::identity::Entity;
use control::store::Stored;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::domain::Domains;
use super::fields::{Fields, Result};
use super::resource::{
    Links, Many, Object, One, Resource, Shown, body, fits, fits_flag, new_row, one, own_url, page, whole,
};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, RequestUrl, Segments};
use crate::error::Fault;
use crate::openapi::answer::{Created, DONE, Done, Status};

/// Projects as clients see them.
pub(super) struct Projects;

#[derive(Serialize, JsonSchema)]
pub(super) struct OwnProject {
    id: String,
    name: String,
    domain_id: Option<String>,
    description: String,
    enabled: bool,
    parent_id: Option<String>,
    is_domain: bool,
    tags: Vec<String>,
    options: Extra,
    #[serde(skip_serializing_if = "Option::is_none")]
    parents: Option<Family>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subtree: Option<Family>,
}

/// Those above a project, or below it.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
enum Family {
    List(Vec<One<Projects>>),
    Ids(Option<IdTree>),
}

/// Ids as objects inside each other; null where there is none.
#[derive(Serialize, JsonSchema)]
struct IdTree(BTreeMap<String, Option<IdTree>>);

impl Resource for Projects {
    type Row = Project;
    type Own = OwnProject;
    const ONE: &'static str = "project";
    const MANY: &'static str = "projects";
    const PATH: &'static str = "projects";

    fn show(_: &AppState, row: &Project) -> OwnProject {
        OwnProject {
            id: row.id.clone(),
            name: row.name.clone(),
            domain_id: Some(row.domain_id.clone()),
            description: row.description.clone(),
            enabled: row.enabled,
            parent_id: Some(row.parent().to_owned()),
            is_domain: false,
            tags: row.tags.clone(),
            options: row.options.clone(),
            parents: None,
            subtree: None,
        }
    }

    fn extra(row: &Project) -> Option<&Extra> {
        Some(&row.extra)
    }

    fn wanted(filters: &Filters, row: &Project) -> Result<bool, Fault> {
        Ok(fits(filters, "name", &row.name)
            && filters.allow("domain_id", &row.domain_id)
            && filters.allow("parent_id", row.parent())
            && fits_flag(filters, "enabled", row.enabled)
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
fn acting(state: &AppState, domain: &Domain) -> Shown<Projects> {
    let own = OwnProject {
        id: domain.id.clone(),
        name: domain.name.clone(),
        domain_id: None,
        description: domain.description.clone(),
        enabled: domain.enabled,
        parent_id: None,
        is_domain: true,
        tags: domain.tags.clone(),
        options: domain.options.clone(),
        parents: None,
        subtree: None,
    };
    let links = Links { own: own_url(state, "projects", &domain.id) };
    Shown { own, extra: domain.extra.clone(), links }
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
) -> Answer<Many<Projects>> {
    if filters.has("is_domain") && fits_flag(&filters, "is_domain", true) {
        let mut rows = Vec::new();
        for stored in state.control.entity_list::<Domain>(&caller).await? {
            if Domains::wanted(&filters, &stored.row)? {
                rows.push(acting(&state, &stored.row));
            }
        }
        return Ok(whole(rows, &url));
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
) -> Answer<One<Projects>> {
    let stored = match state.control.entity_get::<Project>(&caller, &id).await {
        Ok(stored) => stored,
        Err(error) => {
            let domain = state.control.entity_get::<Domain>(&caller, &id).await.map_err(|_| error)?;
            return Ok(Json(One(acting(&state, &domain.row))));
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
    let listed = |rows: &[Arc<Stored<Project>>]| {
        let seen = rows.iter().filter(|row| row.row.readable(&caller));
        Some(Family::List(seen.map(|row| One(body(&state, &row.row))).collect()))
    };
    if filters.has("parents_as_list") {
        shown.own.parents = listed(&above);
    }
    if filters.has("parents_as_ids") {
        let tree = |id: &str, inner| IdTree(BTreeMap::from([(id.to_owned(), inner)]));
        let root = tree(&stored.row.domain_id, None);
        let ids = above.iter().rev().fold(root, |inner, row| tree(&row.row.id, Some(inner)));
        shown.own.parents = Some(Family::Ids(Some(ids)));
    }
    if filters.has("subtree_as_list") {
        shown.own.subtree = listed(&below);
    }
    if filters.has("subtree_as_ids") {
        let rows: Vec<&Project> = below.iter().map(|row| &row.row).collect();
        shown.own.subtree = Some(Family::Ids(ids_below(&stored.row.id, &rows)));
    }
    Ok(Json(One(shown)))
}

/// The ids below one.
fn ids_below(id: &str, rows: &[&Project]) -> Option<IdTree> {
    let children = rows.iter().filter(|row| row.parent_id.as_deref() == Some(id));
    let inner: BTreeMap<_, _> = children.map(|row| (row.id.clone(), ids_below(&row.id, rows))).collect();
    (!inner.is_empty()).then_some(IdTree(inner))
}

/// Identity API v3: create project.
pub(super) async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(body): Body<Object>,
) -> Result<Created<One<Projects>>, Fault> {
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
    Ok(Status(Json(One(shown))))
}

/// Identity API v3: update project.
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<Object>,
) -> Answer<One<Projects>> {
    let fields = Fields::of(body, "project", false)?;
    if is_domain(&state, &caller, &id).await {
        let change = |row: &mut Domain| Domains::apply(row, fields.clone());
        let stored = state.control.entity_update(&caller, &id, change).await?;
        return Ok(Json(One(acting(&state, &stored.row))));
    }
    let change = |row: &mut Project| Projects::apply(row, fields.clone());
    let stored = state.control.entity_update(&caller, &id, change).await?;
    Ok(one(&state, &stored))
}

/// Identity API v3: delete project.
pub(super) async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<Done, Fault> {
    if is_domain(&state, &caller, &id).await {
        state.control.entity_delete::<Domain>(&caller, &id).await?;
    } else {
        state.control.entity_delete::<Project>(&caller, &id).await?;
    }
    Ok(DONE)
}

/// A project's tags.
#[derive(Serialize, JsonSchema)]
pub(super) struct Tags {
    tags: Vec<String>,
    links: Links,
}

/// Identity API v3: list tags for a project.
pub(super) async fn tags(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    url: RequestUrl,
) -> Answer<Tags> {
    let stored = state.control.entity_seen::<Project>(&caller, &id, "identity:list_project_tags").await?;
    Ok(Json(Tags { tags: stored.row.tags.clone(), links: Links { own: url.itself() } }))
}

/// Identity API v3: modify tag list for a project.
pub(super) async fn set_tags(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    url: RequestUrl,
    Body(body): Body<Object>,
) -> Answer<Tags> {
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
    Ok(Json(Tags { tags: stored, links: Links { own: url.itself() } }))
}

/// Identity API v3: remove all tags from a project.
pub(super) async fn clear_tags(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<Done, Fault> {
    change_tags(&state, &caller, &id, |tags| {
        tags.clear();
        Ok(())
    })
    .await?;
    Ok(DONE)
}

/// Identity API v3: check if project contains tag.
pub(super) async fn has_tag(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, tag)): Segments<(String, String)>,
) -> Result<Done, Fault> {
    let stored = state.control.entity_seen::<Project>(&caller, &id, "identity:get_project_tag").await?;
    if stored.row.tags.contains(&tag) { Ok(DONE) } else { Err(Error::not_found("Project tag", tag).into()) }
}

/// Identity API v3: add single tag to a project.
pub(super) async fn add_tag(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, tag)): Segments<(String, String)>,
) -> Result<Status<201, ()>, Fault> {
    change_tags(&state, &caller, &id, |tags| {
        if !tags.contains(&tag) {
            tags.push(tag.clone());
        }
        Ok(())
    })
    .await?;
    Ok(Status(()))
}

/// Identity API v3: delete single tag from project.
pub(super) async fn remove_tag(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, tag)): Segments<(String, String)>,
) -> Result<Done, Fault> {
    change_tags(&state, &caller, &id, |tags| {
        let at =
            tags.iter().position(|own| *own == tag).ok_or_else(|| Error::not_found("Project tag", &tag))?;
        tags.remove(at);
        Ok(())
    })
    .await?;
    Ok(DONE)
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
