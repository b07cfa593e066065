//! Types of groups and their specs (Block Storage API: group types, microversion 3.11).

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use control::error::Error;
use control::model::volume::GroupType;
use control::policy::Default;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{lenient_flag, paged, properties, sees, since, text_or_null};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, Segments};
use crate::error::Fault;
use crate::microversion::Microversion;
use crate::openapi::answer::{Accepted, Status, TAKEN, Taken};
use crate::page::SortValue;

/// What the list is sorted by.
const SORT_KEYS: [&str; 3] = ["id", "name", "created_at"];

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "GroupType")]
struct Shown {
    id: String,
    name: String,
    description: Option<String>,
    is_public: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    group_specs: Option<BTreeMap<String, String>>,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct OneGroupType {
    group_type: Shown,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct GroupTypes {
    group_types: Vec<Shown>,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct GroupSpecs {
    group_specs: BTreeMap<String, String>,
}

fn type_full(caller: &control::caller::Caller, kind: &GroupType) -> Shown {
    let shows_specs = sees(caller, "group:access_group_types_specs", Default::Admin);
    Shown {
        id: kind.id.clone(),
        name: kind.name.clone(),
        description: kind.description.clone(),
        is_public: kind.is_public,
        group_specs: shows_specs.then(|| kind.specs.clone()),
    }
}

/// `GET /group_types`.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    filters: Filters,
) -> Answer<GroupTypes> {
    since(version, 11)?;
    let mut rows = state.control.volume_group_types(&caller).await?;
    match filters.get("is_public").map(str::to_ascii_lowercase).as_deref() {
        Some("none") => {}
        None => rows.retain(|stored| stored.row.is_public),
        Some(_) => {
            let wanted = filters.flag("is_public")?.unwrap_or(true);
            rows.retain(|stored| stored.row.is_public == wanted);
        }
    }
    let slice = paged(
        &filters,
        rows,
        |stored| &stored.row.id,
        &SORT_KEYS,
        |stored, key| match key {
            "created_at" => Some(SortValue::from(stored.row.created_at)),
            "name" => Some(stored.row.name.as_str().into()),
            _ => Some(stored.row.id.as_str().into()),
        },
    )?;
    Ok(Json(GroupTypes {
        group_types: slice.rows.iter().map(|stored| type_full(&caller, &stored.row)).collect(),
    }))
}

/// `GET /group_types/{id}`, of which `default` is none.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
) -> Answer<OneGroupType> {
    since(version, 11)?;
    let stored = state.control.volume_group_type(&caller, &id).await?;
    Ok(Json(OneGroupType { group_type: type_full(&caller, &stored.row) }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TypeBody {
    group_type: TypeFields,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TypeFields {
    name: Option<String>,
    #[serde(default)]
    description: Value,
    #[serde(default)]
    is_public: Value,
    group_specs: Option<BTreeMap<String, String>>,
}

/// `POST /group_types`.
pub(super) async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Body(body): Body<TypeBody>,
) -> Result<Accepted<OneGroupType>, Fault> {
    since(version, 11)?;
    let fields = body.group_type;
    let public = lenient_flag("is_public", &fields.is_public)?.unwrap_or(true);
    let described =
        (fields.name.unwrap_or_default(), text_or_null("description", &fields.description)?, public);
    let specs = fields.group_specs.unwrap_or_default();
    let made = state.control.volume_group_type_create(&caller, described, specs).await?;
    Ok(Status(Json(OneGroupType { group_type: type_full(&caller, &made.row) })))
}

/// `PUT /group_types/{id}`.
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
    Body(body): Body<TypeBody>,
) -> Answer<OneGroupType> {
    since(version, 11)?;
    let fields = body.group_type;
    let public = lenient_flag("is_public", &fields.is_public)?;
    let description = text_or_null("description", &fields.description)?;
    if fields.name.is_none() && description.is_none() && public.is_none() {
        return Err(Fault::malformed(
            "Specify group type name, description, is_public or a combination thereof.",
        ));
    }
    let change = |kind: &mut GroupType| {
        kind.name = fields.name.as_deref().map_or_else(|| kind.name.clone(), |name| name.trim().to_owned());
        kind.description = description.clone().or(kind.description.take());
        kind.is_public = public.unwrap_or(kind.is_public);
        Ok(())
    };
    let stored = state.control.volume_group_type_change(&caller, &id, change).await?;
    Ok(Json(OneGroupType { group_type: type_full(&caller, &stored.row) }))
}

/// `DELETE /group_types/{id}`.
pub(super) async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
) -> Result<Taken, Fault> {
    since(version, 11)?;
    state.control.volume_group_type_delete(&caller, &id).await?;
    Ok(TAKEN)
}

/// `GET /group_types/{id}/group_specs`.
pub(super) async fn specs(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<GroupSpecs> {
    control::policy::require_admin(&caller, "group:group_types_specs:get_all")?;
    let stored = state.control.volume_group_type(&caller, &id).await?;
    Ok(Json(GroupSpecs { group_specs: stored.row.specs.clone() }))
}

/// `POST /group_types/{id}/group_specs`.
pub(super) async fn set_specs(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<Map<String, Value>>,
) -> Result<Accepted<GroupSpecs>, Fault> {
    let set = properties(body.get("group_specs").unwrap_or(&Value::Null))?;
    let change = |kind: &mut GroupType| {
        kind.specs.extend(set.clone());
        Ok(())
    };
    state.control.volume_group_type_change(&caller, &id, change).await?;
    Ok(Status(Json(GroupSpecs { group_specs: set })))
}

fn spec_missing(id: &str, key: &str) -> Error {
    Error::NotFound { kind: "Group Type spec", id: format!("{id} with key {key}") }
}

/// `GET /group_types/{id}/group_specs/{key}`.
pub(super) async fn spec(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, key)): Segments<(String, String)>,
) -> Answer<BTreeMap<String, String>> {
    control::policy::require_admin(&caller, "group:group_types_specs:get")?;
    let stored = state.control.volume_group_type(&caller, &id).await?;
    let value = stored.row.specs.get(&key).cloned().ok_or_else(|| spec_missing(&id, &key))?;
    Ok(Json(BTreeMap::from([(key, value)])))
}

/// `PUT /group_types/{id}/group_specs/{key}`.
pub(super) async fn set_spec(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, key)): Segments<(String, String)>,
    Body(body): Body<Value>,
) -> Answer<BTreeMap<String, String>> {
    let set = properties(&body)?;
    if set.len() != 1 || !set.contains_key(&key) {
        return Err(Fault::malformed("Request body and URI mismatch"));
    }
    let change = |kind: &mut GroupType| {
        kind.specs.extend(set.clone());
        Ok(())
    };
    state.control.volume_group_type_change(&caller, &id, change).await?;
    Ok(Json(set))
}

/// `DELETE /group_types/{id}/group_specs/{key}`.
pub(super) async fn unset_spec(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, key)): Segments<(String, String)>,
) -> Result<Taken, Fault> {
    let change =
        |kind: &mut GroupType| kind.specs.remove(&key).map(drop).ok_or_else(|| spec_missing(&id, &key));
    state.control.volume_group_type_change(&caller, &id, change).await?;
    Ok(TAKEN)
}
