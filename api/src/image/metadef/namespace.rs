//! Namespaces of metadata definitions.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use control::error::Error;
use control::model::metadef::{MetadefKind, MetadefNamespace};
use control::policy::require_list;
use control::service::metadef::{EntryWish, NamespaceWish};
use control::service::metadef_access::require_read;
use serde_json::{Map, Value, json};

use super::super::{done, list, time};
use super::{Fields, entry, mismatch, resource_type};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, RequestUrl, Segments};
use crate::error::Fault;

const SCHEMA: &str = "namespace";

pub(super) fn path(name: &str) -> String {
    format!("/v2/metadefs/namespaces/{name}")
}

fn show_namespace(namespace: &MetadefNamespace) -> Map<String, Value> {
    let mut body = json!({
        "namespace": namespace.name,
        "visibility": namespace.visibility,
        "protected": namespace.protected,
        "owner": namespace.owner,
        "created_at": time(namespace.created_at),
        "updated_at": time(namespace.updated_at),
        "self": path(&namespace.name),
        "schema": "/v2/schemas/metadefs/namespace",
    });
    for (name, text) in [("display_name", &namespace.display_name), ("description", &namespace.description)] {
        if let Some(text) = text {
            body[name] = json!(text);
        }
    }
    if !namespace.resource_types.is_empty() {
        body["resource_type_associations"] =
            namespace.resource_types.iter().map(resource_type::show_association).collect();
    }
    match body {
        Value::Object(body) => body,
        _ => Map::new(),
    }
}

/// A namespace with all that is in it, empty kinds left out.
fn show_whole(state: &AppState, namespace: &MetadefNamespace) -> Value {
    let mut body = show_namespace(namespace);
    let entries = |kind| state.control.metadef_entries(namespace, kind);
    let objects = entries(MetadefKind::Object);
    if !objects.is_empty() {
        let shown = objects.iter().map(|stored| entry::show_object_of(&namespace.name, &stored.row));
        body.insert("objects".into(), shown.collect());
    }
    let properties = entries(MetadefKind::Property);
    if !properties.is_empty() {
        let shown = properties.iter().map(|stored| (stored.row.name.clone(), json!(stored.row.body)));
        body.insert("properties".into(), Value::Object(shown.collect()));
    }
    let tags = entries(MetadefKind::Tag);
    if !tags.is_empty() {
        let shown = tags.iter().map(|stored| json!({"name": stored.row.name}));
        body.insert("tags".into(), shown.collect());
    }
    Value::Object(body)
}

/// Metadata definitions: list namespaces.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Value> {
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
    let shown = slice.rows.iter().map(|stored| Value::Object(show_namespace(&stored.row))).collect();
    Ok(Json(list::body("namespaces", "/v2/schemas/metadefs/namespaces", &url, slice.next, shown)))
}

/// Metadata definitions: show namespace.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(name): Segments<String>,
    filters: Filters,
) -> Answer<Value> {
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
        if let Some(Value::Object(properties)) = body.get_mut("properties") {
            let old = std::mem::take(properties);
            properties.extend(old.into_iter().map(|(name, schema)| (format!("{prefix}{name}"), schema)));
        }
        for object in body.get_mut("objects").and_then(Value::as_array_mut).into_iter().flatten() {
            entry::prefix_properties(object, prefix);
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
) -> Result<Response, Fault> {
    let mut fields = Fields::of(SCHEMA, body)?;
    let wish = wish_of(&mut fields)?;
    let associations = fields.list("resource_type_associations")?;
    let associations = associations.into_iter().map(resource_type::wish_of).collect::<Result<Vec<_>, _>>()?;
    let entries = entries_of(&mut fields)?;
    fields.end()?;
    let stored = state.control.metadef_namespace_create(&caller, wish, associations, entries).await?;
    let body = Json(show_whole(&state, &stored.row));
    Ok((StatusCode::CREATED, [(header::LOCATION, path(&stored.row.name))], body).into_response())
}

/// Metadata definitions: update namespace.
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(name): Segments<String>,
    Body(body): Body<Value>,
) -> Answer<Value> {
    let mut fields = Fields::of(SCHEMA, body)?;
    let wish = wish_of(&mut fields)?;
    // Clients send back what they were shown; entries are changed by their own calls.
    fields.list("resource_type_associations")?;
    entries_of(&mut fields)?;
    fields.end()?;
    let stored = state.control.metadef_namespace_update(&caller, &name, wish).await?;
    Ok(Json(Value::Object(show_namespace(&stored.row))))
}

/// Metadata definitions: delete namespace.
pub(super) async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(name): Segments<String>,
) -> Result<Response, Fault> {
    if name.is_empty() {
        return Err(mismatch(SCHEMA, "a namespace has a name"));
    }
    match state.control.metadef_namespace_delete(&caller, &name).await {
        Err(Error::Forbidden { action: "delete_metadef_object" }) => {
            Err(Error::Forbidden { action: "delete_metadef_namespace" }.into())
        }
        other => other.map(|()| done()).map_err(Into::into),
    }
}
