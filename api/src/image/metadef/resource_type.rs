//! The resources that metadata definitions are about.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use control::model::metadef::ResourceTypeAssociation;
use control::policy::require_list;
use control::service::metadef::{AssociationWish, RESOURCE_TYPES};
use control::service::metadef_access::{may_read, require_read};
use serde_json::{Value, json};

use super::super::{done, time};
use super::Fields;
use crate::context::{Answer, AppState, Authenticated, Body, Segments};
use crate::error::Fault;

pub(super) fn show_association(association: &ResourceTypeAssociation) -> Value {
    let mut body = json!({
        "name": association.name,
        "created_at": time(association.created_at),
        "updated_at": time(association.created_at),
    });
    for (name, text) in
        [("prefix", &association.prefix), ("properties_target", &association.properties_target)]
    {
        if let Some(text) = text {
            body[name] = json!(text);
        }
    }
    body
}

pub(super) fn wish_of(body: Value) -> Result<AssociationWish, Fault> {
    // Shown back by clients that copy a namespace.
    let body = match body {
        Value::Object(mut fields) => {
            fields.retain(|name, _| !["created_at", "updated_at"].contains(&name.as_str()));
            Value::Object(fields)
        }
        other => other,
    };
    let mut fields = Fields::of("resource_type_association", body)?;
    let wish = AssociationWish {
        name: fields.required("name")?,
        prefix: fields.text("prefix")?,
        properties_target: fields.text("properties_target")?,
    };
    fields.end()?;
    Ok(wish)
}

/// Metadata definitions: list resource types. Those that a new cloud knows have its beginning as their time.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
) -> Answer<Value> {
    require_list(&caller, "list_metadef_resource_types")?;
    let mut types: BTreeMap<String, Option<jiff::Timestamp>> =
        RESOURCE_TYPES.iter().map(|name| ((*name).to_owned(), None)).collect();
    for stored in state.control.metadef_namespaces(&caller).await? {
        for association in &stored.row.resource_types {
            types.entry(association.name.clone()).or_insert(Some(association.created_at));
        }
    }
    let shown: Vec<Value> = types
        .into_iter()
        .map(|(name, at)| {
            let at = time(at.unwrap_or(jiff::Timestamp::UNIX_EPOCH));
            json!({"name": name, "created_at": at, "updated_at": at})
        })
        .collect();
    Ok(Json(json!({"resource_types": shown})))
}

/// Metadata definitions: list resource type associations.
pub(super) async fn list_of(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(namespace): Segments<String>,
) -> Answer<Value> {
    let stored = state.control.metadef_namespace(&caller, &namespace).await?;
    require_read(&caller, &stored.row, "list_metadef_resource_types")?;
    let sees_each = may_read(&caller, &stored.row, "get_metadef_resource_type");
    let shown: Vec<Value> =
        stored.row.resource_types.iter().filter(|_| sees_each).map(show_association).collect();
    Ok(Json(json!({"resource_type_associations": shown})))
}

/// Metadata definitions: create resource type association.
pub(super) async fn associate(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(namespace): Segments<String>,
    Body(body): Body<Value>,
) -> Result<Response, Fault> {
    let wish = wish_of(body)?;
    let association = state.control.metadef_associate(&caller, &namespace, wish).await?;
    Ok((StatusCode::CREATED, Json(show_association(&association))).into_response())
}

/// Metadata definitions: remove resource type association.
pub(super) async fn dissociate(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((namespace, name)): Segments<(String, String)>,
) -> Result<Response, Fault> {
    state.control.metadef_dissociate(&caller, &namespace, &name).await?;
    Ok(done())
}
