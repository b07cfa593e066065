//! Limits on the wire (Compute API: limits): what a project may have and has.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use control::error::Error;
use control::service::quota::{Quota, Resource};
use serde_json::{Map, Value, json};

use crate::context::{Answer, AppState, Authenticated, Filters};
use crate::microversion::Microversion;

/// `GET /limits`.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    filters: Filters,
) -> Answer<Value> {
    let project = filters.get("tenant_id").or_else(|| caller.project_id()).map(str::to_owned);
    let project = project.ok_or(Error::Forbidden { action: "os_compute_api:limits" })?;
    let own = caller.project_id() == Some(project.as_str());
    let rule = if own { "os_compute_api:limits" } else { "os_compute_api:limits:other_project" };
    let quotas = state.control.quotas(&caller, &project, rule).await?;
    Ok(Json(json!({"limits": {"rate": [], "absolute": absolute(version, &quotas)}})))
}

fn absolute(version: Microversion, quotas: &BTreeMap<Resource, Quota>) -> Map<String, Value> {
    let limit = |resource| json!(quotas.get(&resource).map_or(0, Quota::limit_or_minus_one));
    let used = |resource| json!(quotas.get(&resource).map_or(0, |quota| quota.used));
    let mut shown = Map::new();
    let mut put = |name: &str, value: Value| {
        shown.insert(name.to_owned(), value);
    };
    put("maxTotalInstances", limit(Resource::Instances));
    put("maxTotalCores", limit(Resource::Cores));
    put("maxTotalRAMSize", limit(Resource::RamMib));
    put("maxServerMeta", limit(Resource::MetadataItems));
    put("maxTotalKeypairs", limit(Resource::KeyPairs));
    put("maxServerGroups", limit(Resource::ServerGroups));
    put("maxServerGroupMembers", limit(Resource::ServerGroupMembers));
    put("totalInstancesUsed", used(Resource::Instances));
    put("totalCoresUsed", used(Resource::Cores));
    put("totalRAMUsed", used(Resource::RamMib));
    put("totalServerGroupsUsed", used(Resource::ServerGroups));
    if !version.at_least(2, 57) {
        // No file is ever injected.
        put("maxPersonality", json!(0));
        put("maxPersonalitySize", json!(0));
    }
    if !version.at_least(2, 39) {
        put("maxImageMeta", limit(Resource::MetadataItems));
    }
    if !version.at_least(2, 36) {
        put("maxSecurityGroups", limit(Resource::SecurityGroups));
        put("maxSecurityGroupRules", limit(Resource::SecurityGroupRules));
        put("maxTotalFloatingIps", limit(Resource::FloatingIps));
        put("totalSecurityGroupsUsed", used(Resource::SecurityGroups));
        put("totalFloatingIpsUsed", used(Resource::FloatingIps));
    }
    shown
}
