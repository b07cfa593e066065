//! Limits: several are made by one request.

use std::borrow::Cow;

use axum::Json;
use axum::extract::State;
use control::caller::Caller;
use control::model::catalog::{Limit, RegisteredLimit};
use control::model::random_hex_id;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::Value;

use super::fields::{Fields, Result, invalid};
use super::resource::{Object, Resource, Shown, body, new_row};
use crate::context::{Answer, AppState, Authenticated, Body, Filters};
use crate::error::Fault;
use crate::openapi::answer::{Created, Status};

/// The most limits that one request makes: all of them are one transaction.
const TOGETHER_MAX: usize = 20;

/// Registered limits as clients see them.
pub(super) struct RegisteredLimits;

#[derive(Serialize, JsonSchema)]
pub(super) struct OwnRegisteredLimit {
    id: String,
    service_id: String,
    region_id: Option<String>,
    resource_name: String,
    default_limit: i64,
    description: Option<String>,
}

impl Resource for RegisteredLimits {
    type Row = RegisteredLimit;
    type Own = OwnRegisteredLimit;
    const OPEN: bool = false;
    const ONE: &'static str = "registered_limit";
    const MANY: &'static str = "registered_limits";
    const PATH: &'static str = "registered_limits";

    fn show(_: &AppState, row: &RegisteredLimit) -> OwnRegisteredLimit {
        OwnRegisteredLimit {
            id: row.id.clone(),
            service_id: row.service_id.clone(),
            region_id: row.region_id.clone(),
            resource_name: row.resource_name.clone(),
            default_limit: row.default_limit,
            description: row.description.clone(),
        }
    }

    fn wanted(filters: &Filters, row: &RegisteredLimit) -> Result<bool, Fault> {
        Ok(filters.allow("service_id", &row.service_id)
            && filters.allow("region_id", row.region_id.as_deref().unwrap_or_default())
            && filters.allow("resource_name", &row.resource_name))
    }

    fn blank(_: &AppState, _: &Caller, _: &mut Fields) -> Result<RegisteredLimit> {
        Ok(RegisteredLimit { id: random_hex_id(), ..RegisteredLimit::default() })
    }

    fn apply(row: &mut RegisteredLimit, mut fields: Fields) -> Result<()> {
        fields.name("service_id", &mut row.service_id)?;
        fields.optional("region_id", &mut row.region_id)?;
        fields.name("resource_name", &mut row.resource_name)?;
        fields.integer("default_limit", &mut row.default_limit)?;
        fields.optional("description", &mut row.description)?;
        fields.end()
    }
}

/// Limits as clients see them.
pub(super) struct Limits;

#[derive(Serialize, JsonSchema)]
pub(super) struct OwnLimit {
    id: String,
    project_id: Option<String>,
    domain_id: Option<String>,
    service_id: String,
    region_id: Option<String>,
    resource_name: String,
    resource_limit: i64,
    description: Option<String>,
}

impl Resource for Limits {
    type Row = Limit;
    type Own = OwnLimit;
    const OPEN: bool = false;
    const ONE: &'static str = "limit";
    const MANY: &'static str = "limits";
    const PATH: &'static str = "limits";

    fn show(_: &AppState, row: &Limit) -> OwnLimit {
        OwnLimit {
            id: row.id.clone(),
            project_id: row.project_id.clone(),
            domain_id: row.domain_id.clone(),
            service_id: row.service_id.clone(),
            region_id: row.region_id.clone(),
            resource_name: row.resource_name.clone(),
            resource_limit: row.resource_limit,
            description: row.description.clone(),
        }
    }

    fn wanted(filters: &Filters, row: &Limit) -> Result<bool, Fault> {
        Ok(filters.allow("service_id", &row.service_id)
            && filters.allow("region_id", row.region_id.as_deref().unwrap_or_default())
            && filters.allow("resource_name", &row.resource_name)
            && filters.allow("project_id", row.project_id.as_deref().unwrap_or_default())
            && filters.allow("domain_id", row.domain_id.as_deref().unwrap_or_default()))
    }

    fn blank(_: &AppState, _: &Caller, fields: &mut Fields) -> Result<Limit> {
        let mut row = Limit { id: random_hex_id(), ..Limit::default() };
        fields.optional("project_id", &mut row.project_id)?;
        fields.optional("domain_id", &mut row.domain_id)?;
        fields.name("service_id", &mut row.service_id)?;
        fields.optional("region_id", &mut row.region_id)?;
        fields.name("resource_name", &mut row.resource_name)?;
        Ok(row)
    }

    /// What it is about does not change.
    fn apply(row: &mut Limit, mut fields: Fields) -> Result<()> {
        fields.integer("resource_limit", &mut row.resource_limit)?;
        fields.optional("description", &mut row.description)?;
        fields.end()
    }
}

/// What was made, in its envelope, without the links of a list.
pub(super) struct Made<R: Resource>(Vec<Shown<R>>);

impl<R: Resource> Serialize for Made<R> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry(R::MANY, &self.0)?;
        map.end()
    }
}

impl<R: Resource> JsonSchema for Made<R> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        R::MANY.into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let rows = generator.subschema_for::<Vec<Shown<R>>>();
        json_schema!({"type": "object", "properties": {R::MANY: rows}, "required": [R::MANY]})
    }
}

/// Identity API v3: create limits, and create registered limits. All are read before the first is made.
pub(super) async fn create<R: Resource>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(given): Body<Object>,
) -> Result<Created<Made<R>>, Fault> {
    let mut fields = Fields::inside(Value::Object(given), "body")?;
    let wanted = fields.objects(R::MANY)?.unwrap_or_default();
    fields.end()?;
    if wanted.is_empty() || wanted.len() > TOGETHER_MAX {
        return Err(invalid(format!("'{}' has between 1 and {TOGETHER_MAX} members", R::MANY)).into());
    }
    let rows: Vec<R::Row> =
        wanted.into_iter().map(|fields| new_row::<R>(&state, &caller, fields)).collect::<Result<_>>()?;
    let stored = state.control.entities_create(&caller, &rows).await?;
    Ok(Status(Json(Made(stored.iter().map(|stored| body(&state, &stored.row)).collect()))))
}

/// How limits of projects below each other are taken.
#[derive(Serialize, JsonSchema)]
pub(super) struct EnforcementModel {
    model: Model,
}

#[derive(Serialize, JsonSchema)]
struct Model {
    name: &'static str,
    description: &'static str,
}

/// Identity API v3: get enforcement model.
pub(super) async fn model(_: Authenticated) -> Answer<EnforcementModel> {
    let description = "Limit enforcement and validation does not take project hierarchy into consideration.";
    Ok(Json(EnforcementModel { model: Model { name: "flat", description } }))
}
