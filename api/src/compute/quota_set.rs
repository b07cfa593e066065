//! Quotas of the compute service on the wire (Compute API: quota sets).

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use control::service::quota::{Quota, Resource};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::flag;
use crate::context::{Answer, AppState, Authenticated, Body, Segments};
use crate::error::Fault;
use crate::microversion::Microversion;
use crate::openapi::answer::{TAKEN, Taken};

/// The quotas that this service counts.
const RESOURCES: [Resource; 7] = [
    Resource::Instances,
    Resource::Cores,
    Resource::RamMib,
    Resource::MetadataItems,
    Resource::KeyPairs,
    Resource::ServerGroups,
    Resource::ServerGroupMembers,
];
/// Quotas of the network that Nova showed until 2.36, as it did when it no longer counted them: without limit.
const NETWORK: [&str; 4] = ["fixed_ips", "floating_ips", "security_groups", "security_group_rules"];
/// Quotas of injected files that Nova showed until 2.57; here nothing is injected.
const INJECTED: [&str; 3] = ["injected_files", "injected_file_content_bytes", "injected_file_path_bytes"];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UpdateBody {
    quota_set: UpdateFields,
}

#[derive(Debug, Deserialize)]
struct UpdateFields {
    #[serde(default, deserialize_with = "flag")]
    force: Option<bool>,
    #[serde(flatten)]
    limits: BTreeMap<String, Value>,
}

/// Quotas by their names, of which there are fewer with each microversion; `-1` is no limit.
#[derive(Serialize, JsonSchema)]
struct QuotaSet<T> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(flatten)]
    quotas: BTreeMap<&'static str, T>,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct QuotaAnswer<T> {
    quota_set: QuotaSet<T>,
}

impl<T> QuotaAnswer<T> {
    fn of(project: Option<String>, quotas: BTreeMap<&'static str, T>) -> Json<Self> {
        Json(Self { quota_set: QuotaSet { id: project, quotas } })
    }
}

/// What a project may have, and has.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "QuotaDetail")]
pub(super) struct Detail {
    limit: i64,
    in_use: u64,
    /// Always 0.
    reserved: u64,
}

/// `GET /os-quota-sets/{project}`.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(project): Segments<String>,
) -> Answer<QuotaAnswer<i64>> {
    let quotas = state.control.quotas(&caller, &project, "os_compute_api:os-quota-sets:show").await?;
    Ok(QuotaAnswer::of(Some(project), limits(version, &quotas)))
}

/// `GET /os-quota-sets/{project}/defaults`.
pub(super) async fn defaults(
    _: Authenticated,
    version: Microversion,
    Segments(project): Segments<String>,
) -> Json<QuotaAnswer<i64>> {
    let limit = |resource: Resource| i64::try_from(resource.default_limit()).unwrap_or(i64::MAX);
    QuotaAnswer::of(Some(project), set(version, limit, |limit| limit))
}

/// `GET /os-quota-sets/{project}/detail`.
pub(super) async fn detail(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(project): Segments<String>,
) -> Answer<QuotaAnswer<Detail>> {
    let quotas = state.control.quotas(&caller, &project, "os_compute_api:os-quota-sets:detail").await?;
    let detail = |resource: Resource| {
        let quota = quotas.get(&resource);
        // Key pairs are their users', not the project's.
        let used = quota.filter(|_| resource != Resource::KeyPairs).map_or(0, |quota| quota.used);
        Detail { limit: quota.map_or(0, Quota::limit_or_minus_one), in_use: used, reserved: 0 }
    };
    let shown = set(version, detail, |limit| Detail { limit, in_use: 0, reserved: 0 });
    Ok(QuotaAnswer::of(Some(project), shown))
}

/// `PUT /os-quota-sets/{project}`.
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(project): Segments<String>,
    Body(body): Body<UpdateBody>,
) -> Answer<QuotaAnswer<i64>> {
    let mut changes = Vec::new();
    for (name, value) in &body.quota_set.limits {
        let named = |names: &[&str]| names.contains(&name.as_str());
        // What counts nothing any more is taken and not kept.
        let uncounted =
            !version.at_least(2, 36) && named(&NETWORK) || !version.at_least(2, 57) && named(&INJECTED);
        if name == "tenant_id" || uncounted {
            continue;
        }
        let resource = RESOURCES.into_iter().find(|resource| resource.name() == name);
        let resource = resource.ok_or_else(|| {
            Fault::malformed(format!(
                "Invalid input for field/attribute quota_set. '{name}' is not a quota here."
            ))
        })?;
        let limit = value.as_i64().or_else(|| value.as_str()?.parse().ok());
        changes.push((
            resource,
            limit.ok_or_else(|| Fault::malformed(format!("Invalid input for field/attribute {name}.")))?,
        ));
    }
    let quotas = state.control.quotas(&caller, &project, "os_compute_api:os-quota-sets:update").await?;
    let below = |(resource, limit): &&(Resource, i64)| {
        let used = quotas.get(resource).map_or(0, |quota| quota.used);
        u64::try_from(*limit).is_ok_and(|limit| limit < used)
    };
    if body.quota_set.force != Some(true)
        && let Some((resource, limit)) = changes.iter().find(below)
    {
        let name = resource.name();
        return Err(Fault::malformed(format!(
            "Quota limit {limit} for {name} must be greater than or equal to what is used."
        )));
    }
    state.control.quota_set(&caller, &project, &changes).await?;
    let quotas = state.control.quotas_of(&project).await?;
    Ok(QuotaAnswer::of(None, limits(version, &quotas)))
}

/// `DELETE /os-quota-sets/{project}`: back to the defaults.
pub(super) async fn reset(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(project): Segments<String>,
) -> Result<Taken, Fault> {
    state.control.quota_reset(&caller, &project, &RESOURCES).await?;
    Ok(TAKEN)
}

fn limits(version: Microversion, quotas: &BTreeMap<Resource, Quota>) -> BTreeMap<&'static str, i64> {
    let limit = |resource| quotas.get(&resource).map_or(0, Quota::limit_or_minus_one);
    set(version, limit, |limit| limit)
}

fn set<T>(
    version: Microversion,
    show: impl Fn(Resource) -> T,
    show_old: impl Fn(i64) -> T,
) -> BTreeMap<&'static str, T> {
    let mut shown: BTreeMap<_, _> =
        RESOURCES.into_iter().map(|resource| (resource.name(), show(resource))).collect();
    if !version.at_least(2, 36) {
        shown.extend(NETWORK.map(|name| (name, show_old(-1))));
    }
    if !version.at_least(2, 57) {
        shown.extend(INJECTED.map(|name| (name, show_old(0))));
    }
    shown
}
