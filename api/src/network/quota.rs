//! Quotas of the network service on the wire (Network API v2.0: quotas).

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use control::service::quota::{Quota, Resource};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::invalid;
use crate::context::{AppState, Authenticated, Body, Segments};
use crate::error::Fault;

/// The quotas that this service counts.
const RESOURCES: [Resource; 11] = [
    Resource::Networks,
    Resource::Subnets,
    Resource::SubnetPools,
    Resource::Ports,
    Resource::Routers,
    Resource::FloatingIps,
    Resource::SecurityGroups,
    Resource::SecurityGroupRules,
    Resource::AddressGroups,
    Resource::RbacPolicies,
    Resource::Trunks,
];

#[derive(Debug, Deserialize)]
pub(super) struct UpdateBody {
    quota: BTreeMap<String, Value>,
}

fn limits(quotas: &BTreeMap<Resource, Quota>) -> Value {
    let shown = RESOURCES.iter().filter_map(|resource| Some((resource, quotas.get(resource)?)));
    shown
        .map(|(resource, quota)| (resource.name().to_owned(), json!(quota.limit_or_minus_one())))
        .collect::<Map<_, _>>()
        .into()
}

/// `GET /v2.0/quotas`: of the projects whose limits are not the defaults.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
) -> Result<Json<Value>, Fault> {
    let mut rows = Vec::new();
    for project_id in state.control.quota_projects(&caller).await? {
        let mut row = limits(&state.control.quotas_of(&project_id).await?);
        row["project_id"] = json!(project_id);
        row["tenant_id"] = json!(project_id);
        rows.push(row);
    }
    Ok(Json(json!({"quotas": rows})))
}

/// `GET /v2.0/quotas/{project_id}`.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(project_id): Segments<String>,
) -> Result<Json<Value>, Fault> {
    let quotas = state.control.quotas(&caller, &project_id, "get_quota").await?;
    Ok(Json(json!({"quota": limits(&quotas)})))
}

/// `GET /v2.0/quotas/{project_id}/default`.
pub(super) async fn defaults(
    State(state): State<AppState>,
    _: Authenticated,
    Segments(_): Segments<String>,
) -> Result<Json<Value>, Fault> {
    Ok(Json(json!({"quota": limits(&state.control.quota_defaults().await?)})))
}

/// `GET /v2.0/quotas/{project_id}/details`.
pub(super) async fn details(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(project_id): Segments<String>,
) -> Result<Json<Value>, Fault> {
    let quotas = state.control.quotas(&caller, &project_id, "get_quota").await?;
    let rows = RESOURCES.iter().filter_map(|resource| {
        let quota = quotas.get(resource)?;
        let detail = json!({"limit": quota.limit_or_minus_one(), "used": quota.used, "reserved": 0});
        Some((resource.name().to_owned(), detail))
    });
    Ok(Json(json!({"quota": rows.collect::<Map<_, _>>()})))
}

/// `PUT /v2.0/quotas/{project_id}`.
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(project_id): Segments<String>,
    Body(body): Body<UpdateBody>,
) -> Result<Json<Value>, Fault> {
    let check = body.quota.get("check_limit").and_then(Value::as_bool).unwrap_or(false);
    let mut changes = Vec::new();
    for (name, value) in
        body.quota.iter().filter(|(name, _)| !matches!(name.as_str(), "check_limit" | "force"))
    {
        let resource = RESOURCES.into_iter().find(|resource| resource.name() == name);
        let resource = resource.ok_or_else(|| invalid(format!("Unrecognized attribute(s) '{name}'")))?;
        let limit = value.as_i64().or_else(|| value.as_str()?.parse().ok());
        let limit =
            limit.ok_or_else(|| invalid(format!("Invalid input for {name}. Reason: it is not a number.")))?;
        changes.push((resource, limit));
    }
    if check {
        let quotas = state.control.quotas(&caller, &project_id, "update_quota").await?;
        let below = |(resource, limit): &&(Resource, i64)| {
            let used = quotas.get(resource).map_or(0, |quota| quota.used);
            u64::try_from(*limit).is_ok_and(|limit| limit < used)
        };
        if let Some((resource, limit)) = changes.iter().find(below) {
            return Err(control::error::Error::invalid(
                "InvalidQuotaValue",
                format!("Change would make usage of {} more than its limit {limit}.", resource.name()),
            )
            .into());
        }
    }
    state.control.quota_set(&caller, &project_id, &changes).await?;
    Ok(Json(json!({"quota": limits(&state.control.quotas_of(&project_id).await?)})))
}

/// `DELETE /v2.0/quotas/{project_id}`: back to the defaults.
pub(super) async fn reset(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(project_id): Segments<String>,
) -> Result<StatusCode, Fault> {
    state.control.quota_reset(&caller, &project_id, &RESOURCES).await?;
    Ok(StatusCode::NO_CONTENT)
}
