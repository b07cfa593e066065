//! Limits: several are made by one request.

use super::fields::Result;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use control::caller::Caller;
use control::model::catalog::{Limit, RegisteredLimit};
use control::model::random_hex_id;
use serde_json::{Map, Value, json};

use super::fields::{Fields, invalid};
use super::resource::{Object, Resource, body, new_row, with};
use crate::context::{Answer, AppState, Authenticated, Body, Filters};
use crate::error::Fault;

/// The most limits that one request makes: all of them are one transaction.
const TOGETHER_MAX: usize = 20;

/// Registered limits as clients see them.
pub(super) struct RegisteredLimits;

impl Resource for RegisteredLimits {
    type Row = RegisteredLimit;
    const ONE: &'static str = "registered_limit";
    const MANY: &'static str = "registered_limits";
    const PATH: &'static str = "registered_limits";

    fn show(_: &AppState, row: &RegisteredLimit) -> Map<String, Value> {
        let own = json!({
            "id": row.id,
            "service_id": row.service_id,
            "region_id": row.region_id,
            "resource_name": row.resource_name,
            "default_limit": row.default_limit,
            "description": row.description,
        });
        with(Map::new(), own)
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

impl Resource for Limits {
    type Row = Limit;
    const ONE: &'static str = "limit";
    const MANY: &'static str = "limits";
    const PATH: &'static str = "limits";

    fn show(_: &AppState, row: &Limit) -> Map<String, Value> {
        let own = json!({
            "id": row.id,
            "project_id": row.project_id,
            "domain_id": row.domain_id,
            "service_id": row.service_id,
            "region_id": row.region_id,
            "resource_name": row.resource_name,
            "resource_limit": row.resource_limit,
            "description": row.description,
        });
        with(Map::new(), own)
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

/// Identity API v3: create limits, and create registered limits. All are read before the first is made.
pub(super) async fn create<R: Resource>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(given): Body<Object>,
) -> Result<Response, Fault> {
    let mut fields = Fields::inside(Value::Object(given), "body")?;
    let wanted = fields.objects(R::MANY)?.unwrap_or_default();
    if wanted.is_empty() || wanted.len() > TOGETHER_MAX {
        return Err(invalid(format!("'{}' has between 1 and {TOGETHER_MAX} members", R::MANY)).into());
    }
    let rows: Vec<R::Row> =
        wanted.into_iter().map(|fields| new_row::<R>(&state, &caller, fields)).collect::<Result<_>>()?;
    let stored = state.control.entities_create(&caller, &rows).await?;
    let shown: Vec<Value> = stored.iter().map(|stored| body::<R>(&state, &stored.row)).collect();
    Ok((StatusCode::CREATED, Json(json!({ R::MANY: shown }))).into_response())
}

/// Identity API v3: get enforcement model.
pub(super) async fn model(_: Authenticated) -> Answer<Value> {
    let description = "Limit enforcement and validation does not take project hierarchy into consideration.";
    Ok(Json(json!({"model": {"name": "flat", "description": description}})))
}
