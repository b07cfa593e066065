//! The resources that metadata definitions are about.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use control::model::metadef::ResourceTypeAssociation;
use control::policy::require_list;
use control::service::metadef::{AssociationWish, RESOURCE_TYPES};
use control::service::metadef_access::{may_read, require_read};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::super::time;
use super::Fields;
use crate::context::{Answer, AppState, Authenticated, Body, Segments};
use crate::error::Fault;
use crate::openapi::answer::{Created, DONE, Done, Status};

/// That a namespace is about a type.
#[derive(Serialize, JsonSchema)]
pub(super) struct Association {
    name: String,
    created_at: String,
    updated_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prefix: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    properties_target: Option<String>,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct Associations {
    resource_type_associations: Vec<Association>,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct ResourceTypes {
    resource_types: Vec<ResourceType>,
}

#[derive(Serialize, JsonSchema)]
struct ResourceType {
    name: String,
    created_at: String,
    updated_at: String,
}

pub(super) fn show_association(association: &ResourceTypeAssociation) -> Association {
    Association {
        name: association.name.clone(),
        created_at: time(association.created_at),
        updated_at: time(association.created_at),
        prefix: association.prefix.clone(),
        properties_target: association.properties_target.clone(),
    }
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
) -> Answer<ResourceTypes> {
    require_list(&caller, "list_metadef_resource_types")?;
    let mut types: BTreeMap<String, Option<jiff::Timestamp>> =
        RESOURCE_TYPES.iter().map(|name| ((*name).to_owned(), None)).collect();
    for stored in state.control.metadef_namespaces(&caller).await? {
        for association in &stored.row.resource_types {
            types.entry(association.name.clone()).or_insert(Some(association.created_at));
        }
    }
    let shown = types.into_iter().map(|(name, at)| {
        let at = time(at.unwrap_or(jiff::Timestamp::UNIX_EPOCH));
        ResourceType { name, created_at: at.clone(), updated_at: at }
    });
    Ok(Json(ResourceTypes { resource_types: shown.collect() }))
}

/// Metadata definitions: list resource type associations.
pub(super) async fn list_of(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(namespace): Segments<String>,
) -> Answer<Associations> {
    let stored = state.control.metadef_namespace(&caller, &namespace).await?;
    require_read(&caller, &stored.row, "list_metadef_resource_types")?;
    let sees_each = may_read(&caller, &stored.row, "get_metadef_resource_type");
    let shown = stored.row.resource_types.iter().filter(|_| sees_each).map(show_association);
    Ok(Json(Associations { resource_type_associations: shown.collect() }))
}

/// Metadata definitions: create resource type association.
pub(super) async fn associate(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(namespace): Segments<String>,
    Body(body): Body<Value>,
) -> Result<Created<Association>, Fault> {
    let wish = wish_of(body)?;
    let association = state.control.metadef_associate(&caller, &namespace, wish).await?;
    Ok(Status(Json(show_association(&association))))
}

/// Metadata definitions: remove resource type association.
pub(super) async fn dissociate(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((namespace, name)): Segments<(String, String)>,
) -> Result<Done, Fault> {
    state.control.metadef_dissociate(&caller, &namespace, &name).await?;
    Ok(DONE)
}
