//! Quotas of the network service on the wire (Network API v2.0: quotas).

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use control::service::quota::{Quota, Resource};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::invalid;
use crate::context::{Answer, AppState, Authenticated, Body, Segments};
use crate::error::Fault;
use crate::openapi::answer::{DONE, Done};

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

/// By resource; -1 is no limit.
type Limits = BTreeMap<&'static str, i64>;

/// What a project may have.
#[derive(Serialize, JsonSchema)]
pub(super) struct OneQuota {
    quota: Limits,
}

/// What projects may have whose limits are not the defaults.
#[derive(Serialize, JsonSchema)]
pub(super) struct Quotas {
    quotas: Vec<ProjectQuota>,
}

#[derive(Serialize, JsonSchema)]
struct ProjectQuota {
    project_id: String,
    tenant_id: String,
    #[serde(flatten)]
    limits: Limits,
}

/// What a project may have, and has.
#[derive(Serialize, JsonSchema)]
pub(super) struct QuotaDetails {
    quota: BTreeMap<&'static str, Detail>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "QuotaDetail")]
struct Detail {
    limit: i64,
    used: u64,
    /// Always 0.
    reserved: u64,
}

/// The quotas of this service among all.
fn of_service<T>(
    quotas: &BTreeMap<Resource, Quota>,
    show: impl Fn(&Quota) -> T,
) -> BTreeMap<&'static str, T> {
    let quotas = RESOURCES.iter().filter_map(|resource| Some((resource, quotas.get(resource)?)));
    quotas.map(|(resource, quota)| (resource.name(), show(quota))).collect()
}

fn limits(quotas: &BTreeMap<Resource, Quota>) -> Limits {
    of_service(quotas, Quota::limit_or_minus_one)
}

fn one(quotas: &BTreeMap<Resource, Quota>) -> Json<OneQuota> {
    Json(OneQuota { quota: limits(quotas) })
}

/// `GET /v2.0/quotas`: of the projects whose limits are not the defaults.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
) -> Answer<Quotas> {
    let mut quotas = Vec::new();
    for project_id in state.control.quota_projects(&caller).await? {
        let limits = limits(&state.control.quotas_of(&project_id).await?);
        quotas.push(ProjectQuota { tenant_id: project_id.clone(), project_id, limits });
    }
    Ok(Json(Quotas { quotas }))
}

/// `GET /v2.0/quotas/{project_id}`.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(project_id): Segments<String>,
) -> Answer<OneQuota> {
    Ok(one(&state.control.quotas(&caller, &project_id, "get_quota").await?))
}

/// `GET /v2.0/quotas/{project_id}/default`.
pub(super) async fn defaults(
    State(state): State<AppState>,
    _: Authenticated,
    Segments(_): Segments<String>,
) -> Answer<OneQuota> {
    Ok(one(&state.control.quota_defaults().await?))
}

/// `GET /v2.0/quotas/{project_id}/details`.
pub(super) async fn details(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(project_id): Segments<String>,
) -> Answer<QuotaDetails> {
    let quotas = state.control.quotas(&caller, &project_id, "get_quota").await?;
    let detail = |quota: &Quota| Detail { limit: quota.limit_or_minus_one(), used: quota.used, reserved: 0 };
    Ok(Json(QuotaDetails { quota: of_service(&quotas, detail) }))
}

/// `PUT /v2.0/quotas/{project_id}`.
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(project_id): Segments<String>,
    Body(body): Body<UpdateBody>,
) -> Answer<OneQuota> {
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
    Ok(one(&state.control.quotas_of(&project_id).await?))
}

/// `DELETE /v2.0/quotas/{project_id}`: back to the defaults.
pub(super) async fn reset(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(project_id): Segments<String>,
) -> Result<Done, Fault> {
    state.control.quota_reset(&caller, &project_id, &RESOURCES).await?;
    Ok(DONE)
}
