//! Quota sets and limits of the block storage service.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use control::policy::{Default, Target, require};
use control::service::quota::{DEFAULT_CLASS, Quota, Resource};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::sees;
use crate::context::{Answer, AppState, Authenticated, Body, Filters, Segments};
use crate::error::Fault;

/// The rule for showing them.
const SHOW: &str = "volume_extension:quotas:show";

/// The quotas that this service counts.
const RESOURCES: [Resource; 7] = [
    Resource::Volumes,
    Resource::Snapshots,
    Resource::VolumeGib,
    Resource::Backups,
    Resource::BackupGib,
    Resource::VolumeGroups,
    Resource::PerVolumeGib,
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UpdateBody {
    quota_set: Map<String, Value>,
}

type Quotas = BTreeMap<Resource, Quota>;

/// A limit, or that with what is used of it.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
enum Line {
    Limit(i64),
    Usage(QuotaUsage),
}

#[derive(Serialize, JsonSchema)]
struct QuotaUsage {
    limit: i64,
    in_use: u64,
    reserved: u64,
}

/// A line for each resource, and for those of each type of volumes.
#[derive(Serialize, JsonSchema)]
struct QuotaSet {
    /// The project, or the class.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(flatten)]
    lines: BTreeMap<String, Line>,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct QuotaSetAnswer {
    quota_set: QuotaSet,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct ClassAnswer {
    quota_class_set: QuotaSet,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct LimitsAnswer {
    limits: Limits,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "AbsoluteLimits")]
struct Limits {
    rate: [u64; 0],
    absolute: BTreeMap<&'static str, i128>,
}

fn set(project: &str, quotas: &Quotas, types: &BTreeMap<String, Quota>, usage: bool) -> QuotaSet {
    let line = |quota: &Quota| match usage {
        false => Line::Limit(quota.limit_or_minus_one()),
        true => {
            Line::Usage(QuotaUsage { limit: quota.limit_or_minus_one(), in_use: quota.used, reserved: 0 })
        }
    };
    let counted = RESOURCES.iter().filter_map(|resource| Some((resource.name(), quotas.get(resource)?)));
    let mut lines: BTreeMap<String, Line> =
        counted.map(|(name, quota)| (name.to_owned(), line(quota))).collect();
    // A type may have any name, and what a set is of wins over it.
    lines.extend(
        types.iter().filter(|(name, _)| *name != "id").map(|(name, quota)| (name.clone(), line(quota))),
    );
    QuotaSet { id: Some(project.to_owned()), lines }
}

/// Block Storage API v3: show quotas for a project.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(project): Segments<String>,
    filters: Filters,
) -> Answer<QuotaSetAnswer> {
    let quotas = state.control.quotas(&caller, &project, SHOW).await?;
    let types = state.control.quotas_of_types(&project).await?;
    let usage = filters.flag("usage")?.unwrap_or(false);
    Ok(Json(QuotaSetAnswer { quota_set: set(&project, &quotas, &types, usage) }))
}

/// Block Storage API v3: get default quotas for a project.
pub(super) async fn defaults(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(project): Segments<String>,
) -> Answer<QuotaSetAnswer> {
    require(SHOW, Default::Reader, &caller, &Target::of(&[("project_id", &project)]))?;
    let quotas = state.control.quota_defaults().await?;
    let types = state.control.quota_defaults_of_types().await?;
    Ok(Json(QuotaSetAnswer { quota_set: set(&project, &quotas, &types, false) }))
}

/// Block Storage API v3: show quota classes. There is one class, `default`.
pub(super) async fn class(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(name): Segments<String>,
) -> Answer<ClassAnswer> {
    control::policy::require_admin(&caller, "volume_extension:quota_classes:get")?;
    let quotas = state.control.quota_defaults().await?;
    let types = state.control.quota_defaults_of_types().await?;
    Ok(Json(ClassAnswer { quota_class_set: set(&name, &quotas, &types, false) }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ClassBody {
    quota_class_set: Map<String, Value>,
}

/// Block Storage API v3: update quota classes.
pub(super) async fn class_update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(name): Segments<String>,
    Body(body): Body<ClassBody>,
) -> Answer<ClassAnswer> {
    if name != "default" {
        return Err(Fault::not_implemented("a quota class besides the default one"));
    }
    let (limits, of_types) = limits_of(&body.quota_class_set)?;
    if !of_types.is_empty() {
        state.control.quota_set_of_types(&caller, DEFAULT_CLASS, &of_types).await?;
    }
    state.control.quota_set(&caller, DEFAULT_CLASS, &limits).await?;
    let quotas = state.control.quota_defaults().await?;
    let types = state.control.quota_defaults_of_types().await?;
    let shown = set(&name, &quotas, &types, false);
    Ok(Json(ClassAnswer { quota_class_set: QuotaSet { id: None, ..shown } }))
}

/// Limits by name, and those of types of volumes.
type Wished = (Vec<(Resource, i64)>, Vec<(String, i64)>);

fn limits_of(body: &Map<String, Value>) -> Result<Wished, Fault> {
    let mut limits = Vec::new();
    let mut of_types = Vec::new();
    for (name, value) in body {
        let resource = RESOURCES.into_iter().find(|resource| resource.name() == name);
        match (resource, value.as_i64()) {
            (Some(resource), Some(limit)) => limits.push((resource, limit)),
            (None, _) if name == "tenant_id" => {}
            (None, Some(limit)) => of_types.push((name.clone(), limit)),
            (None, _) => return Err(Fault::malformed(format!("Bad key(s) in quota set: {name}"))),
            (Some(_), None) => {
                return Err(Fault::malformed(format!("the limit of {name} is not an integer")));
            }
        }
    }
    Ok((limits, of_types))
}

/// Block Storage API v3: update quotas for a project.
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(project): Segments<String>,
    Body(body): Body<UpdateBody>,
) -> Answer<QuotaSetAnswer> {
    let (limits, of_types) = limits_of(&body.quota_set)?;
    if !of_types.is_empty() {
        state.control.quota_set_of_types(&caller, &project, &of_types).await?;
    }
    state.control.quota_set(&caller, &project, &limits).await?;
    let quotas = state.control.quotas_of(&project).await?;
    let types = state.control.quotas_of_types(&project).await?;
    Ok(Json(QuotaSetAnswer { quota_set: set(&project, &quotas, &types, false) }))
}

/// Block Storage API v3: delete quotas for a project.
pub(super) async fn reset(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(project): Segments<String>,
) -> Result<(), Fault> {
    Ok(state.control.quota_reset(&caller, &project, &RESOURCES).await?)
}

/// Block Storage API v3: show absolute limits for project.
pub(super) async fn limits(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
) -> Answer<LimitsAnswer> {
    let Some(project) = caller.project_id() else {
        return Err(Fault::malformed("the token is scoped to no project"));
    };
    let quotas = state.control.quotas_of(project).await?;
    let shows_used = sees(&caller, "limits_extension:used_limits", Default::Reader);
    let mut absolute = BTreeMap::new();
    for (resource, limit, used) in [
        (Resource::Volumes, "maxTotalVolumes", "totalVolumesUsed"),
        (Resource::Snapshots, "maxTotalSnapshots", "totalSnapshotsUsed"),
        (Resource::VolumeGib, "maxTotalVolumeGigabytes", "totalGigabytesUsed"),
        (Resource::Backups, "maxTotalBackups", "totalBackupsUsed"),
        (Resource::BackupGib, "maxTotalBackupGigabytes", "totalBackupGigabytesUsed"),
    ] {
        let quota = quotas.get(&resource);
        absolute.insert(limit, i128::from(quota.map_or(-1, Quota::limit_or_minus_one)));
        if shows_used {
            absolute.insert(used, i128::from(quota.map_or(0, |quota| quota.used)));
        }
    }
    Ok(Json(LimitsAnswer { limits: Limits { rate: [], absolute } }))
}
