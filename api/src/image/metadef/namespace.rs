//! Namespaces of metadata definitions.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderName, header};
use control::error::Error;
use control::model::metadef::{MetadefKind, MetadefNamespace};
use control::policy::require_list;
use control::service::metadef::{EntryWish, NamespaceWish};
use control::service::metadef_access::require_read;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use super::super::list::PageLinks;
use super::super::{list, time};
use super::entry::{Shown, ShownObject, TagName};
use super::resource_type::{Association, show_association};
use super::{Fields, entry, mismatch, resource_type};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, RequestUrl, Segments};
use crate::error::Fault;
use crate::openapi::answer::{DONE, Done, Status};

const SCHEMA: &str = "namespace";

pub(super) fn path(name: &str) -> String {
    format!("/v2/metadefs/namespaces/{name}")
}

/// A namespace; with all that is in it, empty kinds left out, where it is shown by itself.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "MetadefNamespace")]
pub(super) struct ShownNamespace {
    namespace: String,
    visibility: String,
    protected: bool,
    owner: String,
    created_at: String,
    updated_at: String,
    #[serde(rename = "self")]
    own: String,
    schema: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    display_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    resource_type_associations: Vec<Association>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    objects: Vec<ShownObject>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    properties: Map<String, Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tags: Vec<TagName>,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct Namespaces {
    namespaces: Vec<ShownNamespace>,
    #[serde(flatten)]
    page: PageLinks,
}

fn show_namespace(namespace: &MetadefNamespace) -> ShownNamespace {
    ShownNamespace {
        namespace: namespace.name.clone(),
        visibility: namespace.visibility.clone(),
        protected: namespace.protected,
        owner: namespace.owner.clone(),
        created_at: time(namespace.created_at),
        updated_at: time(namespace.updated_at),
        own: path(&namespace.name),
        schema: "/v2/schemas/metadefs/namespace",
        display_name: namespace.display_name.clone(),
        description: namespace.description.clone(),
        resource_type_associations: namespace.resource_types.iter().map(show_association).collect(),
        objects: Vec::new(),
        properties: Map::new(),
        tags: Vec::new(),
    }
}

fn show_whole(state: &AppState, namespace: &MetadefNamespace) -> ShownNamespace {
    let entries = |kind| state.control.metadef_entries(namespace, kind);
    let objects = entries(MetadefKind::Object);
    let properties = entries(MetadefKind::Property);
    let properties =
        properties.iter().map(|stored| (stored.row.name.clone(), stored.row.body.clone().into()));
    let tags = entries(MetadefKind::Tag);
    ShownNamespace {
        objects: objects.iter().map(|stored| ShownObject::of(&namespace.name, &stored.row)).collect(),
        properties: properties.collect(),
        tags: tags.iter().map(|stored| TagName { name: stored.row.name.clone() }).collect(),
        ..show_namespace(namespace)
    }
}

/// Where a new namespace is.
type Made = Status<201, ([(HeaderName, String); 1], Json<ShownNamespace>)>;

/// Metadata definitions: list namespaces.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Namespaces> {
    let page = list::page_of(&filters, &["created_at", "updated_at", "namespace"])?;
    if filters.get("visibility").is_some_and(|wanted| !["public", "private"].contains(&wanted)) {
        return Err(Fault::malformed("Invalid visibility value"));
    }
    let types: Option<Vec<&str>> = filters.get("resource_types").map(|types| types.split(',').collect());
    for rule in ["get_metadef_namespaces", "list_metadef_resource_types"] {
        require_list(&caller, rule)?;
    }
    let mut rows = state.control.metadef_namespaces(&caller).await?;
    rows.retain(|stored| {
        let row = &stored.row;
        let about =
            |types: &Vec<&str>| row.resource_types.iter().any(|have| types.contains(&have.name.as_str()));
        filters.allow("visibility", &row.visibility)
            && filters.allow("owner", &row.owner)
            && types.as_ref().is_none_or(about)
    });
    let slice = page.cut(
        rows,
        |stored| &stored.row.name,
        |stored, key| {
            Some(match key {
                "namespace" => stored.row.name.as_str().into(),
                "created_at" => stored.row.created_at.into(),
                "updated_at" => stored.row.updated_at.into(),
                _ => return None,
            })
        },
    )?;
    let namespaces = slice.rows.iter().map(|stored| show_namespace(&stored.row)).collect();
    let page = list::page_links("/v2/schemas/metadefs/namespaces", &url, slice.next);
    Ok(Json(Namespaces { namespaces, page }))
}

/// Metadata definitions: show namespace.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(name): Segments<String>,
    filters: Filters,
) -> Answer<ShownNamespace> {
    let stored = state.control.metadef_namespace(&caller, &name).await?;
    for rule in
        ["list_metadef_resource_types", "get_metadef_objects", "get_metadef_properties", "get_metadef_tags"]
    {
        require_read(&caller, &stored.row, rule)?;
    }
    let mut body = show_whole(&state, &stored.row);
    // With a resource type, properties have the names that they have there.
    let wanted = filters.get("resource_type");
    let association = stored.row.resource_types.iter().find(|have| wanted == Some(&have.name));
    if let Some(prefix) = association.and_then(|association| association.prefix.as_deref()) {
        let old = std::mem::take(&mut body.properties);
        body.properties = old.into_iter().map(|(name, schema)| (format!("{prefix}{name}"), schema)).collect();
        for object in &mut body.objects {
            object.prefix_properties(prefix);
        }
    }
    Ok(Json(body))
}

fn wish_of(fields: &mut Fields) -> Result<NamespaceWish, Fault> {
    Ok(NamespaceWish {
        name: fields.required("namespace")?,
        display_name: fields.text("display_name")?,
        description: fields.text("description")?,
        visibility: fields.text("visibility")?,
        protected: fields.flag("protected")?,
        owner: fields.text("owner")?,
    })
}

/// What a namespace's body says of its entries.
fn entries_of(fields: &mut Fields) -> Result<Vec<EntryWish>, Fault> {
    let mut entries = Vec::new();
    for object in fields.list("objects")? {
        entries.push(entry::object_wish(object)?);
    }
    for (name, schema) in fields.map("properties")? {
        entries.push(entry::property_wish(Some(name), schema)?);
    }
    for tag in fields.list("tags")? {
        entries.push(entry::tag_wish(tag)?);
    }
    Ok(entries)
}

/// Metadata definitions: create namespace.
pub(super) async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(body): Body<Value>,
) -> Result<Made, Fault> {
    let mut fields = Fields::of(SCHEMA, body)?;
    let wish = wish_of(&mut fields)?;
    let associations = fields.list("resource_type_associations")?;
    let associations = associations.into_iter().map(resource_type::wish_of).collect::<Result<Vec<_>, _>>()?;
    let entries = entries_of(&mut fields)?;
    fields.end()?;
    let stored = state.control.metadef_namespace_create(&caller, wish, associations, entries).await?;
    let body = Json(show_whole(&state, &stored.row));
    Ok(Status(([(header::LOCATION, path(&stored.row.name))], body)))
}

/// Metadata definitions: update namespace.
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(name): Segments<String>,
    Body(body): Body<Value>,
) -> Answer<ShownNamespace> {
    let mut fields = Fields::of(SCHEMA, body)?;
    let wish = wish_of(&mut fields)?;
    // Clients send back what they were shown; entries are changed by their own calls.
    fields.list("resource_type_associations")?;
    entries_of(&mut fields)?;
    fields.end()?;
    let stored = state.control.metadef_namespace_update(&caller, &name, wish).await?;
    Ok(Json(show_namespace(&stored.row)))
}

/// Metadata definitions: delete namespace.
pub(super) async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(name): Segments<String>,
) -> Result<Done, Fault> {
    if name.is_empty() {
        return Err(mismatch(SCHEMA, "a namespace has a name"));
    }
    match state.control.metadef_namespace_delete(&caller, &name).await {
        Err(Error::Forbidden { action: "delete_metadef_object" }) => {
            Err(Error::Forbidden { action: "delete_metadef_namespace" }.into())
        }
        other => other.map(|()| DONE).map_err(Into::into),
    }
}
