//! Quota sets and limits of the block storage service.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use control::service::quota::{Quota, Resource};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::context::{Answer, AppState, Authenticated, Body, Filters, Segments};
use crate::error::Fault;

/// The quotas that this service counts.
const RESOURCES: [Resource; 5] =
    [Resource::Volumes, Resource::Snapshots, Resource::VolumeGib, Resource::Backups, Resource::BackupGib];

/// Quotas of Cinder's that nothing here is counted against; they are shown as without limit and taken in silence.
const UNCOUNTED: [&str; 2] = ["groups", "per_volume_gigabytes"];

#[derive(Deserialize)]
pub(super) struct UpdateBody {
    quota_set: Map<String, Value>,
}

type Quotas = BTreeMap<Resource, Quota>;

fn set(project: &str, quotas: &Quotas, usage: bool) -> Value {
    let show = |limit: i64, used: u64| {
        if usage { json!({"limit": limit, "in_use": used, "reserved": 0}) } else { json!(limit) }
    };
    let counted = RESOURCES.iter().filter_map(|resource| Some((resource.name(), quotas.get(resource)?)));
    let mut body: Map<String, Value> = counted
        .map(|(name, quota)| (name.to_owned(), show(quota.limit_or_minus_one(), quota.used)))
        .collect();
    body.extend(UNCOUNTED.map(|name| (name.to_owned(), show(-1, 0))));
    body.insert("id".to_owned(), json!(project));
    json!({ "quota_set": body })
}

/// Block Storage API v3: show quotas for a project.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(project): Segments<String>,
    filters: Filters,
) -> Answer<Value> {
    let quotas = state.control.quotas(&caller, &project).await?;
    Ok(Json(set(&project, &quotas, filters.flag("usage")?.unwrap_or(false))))
}

/// Block Storage API v3: get default quotas for a project.
pub(super) async fn defaults(_: Authenticated, Segments(project): Segments<String>) -> Answer<Value> {
    let default = |resource: Resource| (resource, Quota { limit: Some(resource.default_limit()), used: 0 });
    Ok(Json(set(&project, &RESOURCES.into_iter().map(default).collect(), false)))
}

/// Block Storage API v3: update quotas for a project.
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(project): Segments<String>,
    Body(body): Body<UpdateBody>,
) -> Answer<Value> {
    let mut limits = Vec::new();
    for (name, value) in &body.quota_set {
        let resource = RESOURCES.into_iter().find(|resource| resource.name() == name);
        match (resource, value.as_i64()) {
            (Some(resource), Some(limit)) => limits.push((resource, limit)),
            (None, _) if UNCOUNTED.contains(&name.as_str()) || name == "tenant_id" => {}
            (None, _) => return Err(Fault::malformed(format!("Bad key(s) in quota set: {name}"))),
            (Some(_), None) => {
                return Err(Fault::malformed(format!("the limit of {name} is not an integer")));
            }
        }
    }
    state.control.quota_set(&caller, &project, &limits).await?;
    let quotas = state.control.quotas(&caller, &project).await?;
    Ok(Json(set(&project, &quotas, false)))
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
) -> Answer<Value> {
    let Some(project) = caller.project_id() else {
        return Err(Fault::malformed("the token is scoped to no project"));
    };
    let quotas = state.control.quotas(&caller, project).await?;
    let limit = |resource| quotas.get(&resource).map_or(-1, Quota::limit_or_minus_one);
    let used = |resource| quotas.get(&resource).map_or(0, |quota| quota.used);
    Ok(Json(json!({"limits": {"rate": [], "absolute": {
        "maxTotalVolumes": limit(Resource::Volumes),
        "maxTotalSnapshots": limit(Resource::Snapshots),
        "maxTotalVolumeGigabytes": limit(Resource::VolumeGib),
        "maxTotalBackups": limit(Resource::Backups),
        "maxTotalBackupGigabytes": limit(Resource::BackupGib),
        "totalVolumesUsed": used(Resource::Volumes),
        "totalSnapshotsUsed": used(Resource::Snapshots),
        "totalGigabytesUsed": used(Resource::VolumeGib),
        "totalBackupsUsed": used(Resource::Backups),
        "totalBackupGigabytesUsed": used(Resource::BackupGib),
    }}})))
}
