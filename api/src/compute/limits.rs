//! Limits on the wire (Compute API: limits): what a project may have and has.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use control::error::Error;
use control::service::quota::{Quota, Resource};
use schemars::JsonSchema;
use serde::Serialize;

use super::{Nothing, before};
use crate::context::{Answer, AppState, Authenticated, Filters};
use crate::microversion::Microversion;

#[derive(Serialize, JsonSchema)]
pub(super) struct LimitsAnswer {
    limits: Limits,
}

#[derive(Serialize, JsonSchema)]
struct Limits {
    rate: Nothing,
    absolute: Absolute,
}

/// What a project may have, and has; a limit of -1 is none.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct Absolute {
    max_total_instances: i64,
    max_total_cores: i64,
    #[serde(rename = "maxTotalRAMSize")]
    max_total_ram_size: i64,
    max_server_meta: i64,
    max_total_keypairs: i64,
    max_server_groups: i64,
    max_server_group_members: i64,
    total_instances_used: u64,
    total_cores_used: u64,
    #[serde(rename = "totalRAMUsed")]
    total_ram_used: u64,
    total_server_groups_used: u64,
    /// Always 0: no file is ever injected.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_personality: Option<u64>,
    /// Always 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_personality_size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_image_meta: Option<i64>,
    #[serde(flatten)]
    network: Option<NetworkLimits>,
}

/// What went to the network service with microversion 2.36.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct NetworkLimits {
    max_security_groups: i64,
    max_security_group_rules: i64,
    max_total_floating_ips: i64,
    total_security_groups_used: u64,
    total_floating_ips_used: u64,
}

/// `GET /limits`.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    filters: Filters,
) -> Answer<LimitsAnswer> {
    let project = filters.get("tenant_id").or_else(|| caller.project_id()).map(str::to_owned);
    let project = project.ok_or(Error::Forbidden { action: "os_compute_api:limits" })?;
    let own = caller.project_id() == Some(project.as_str());
    let rule = if own { "os_compute_api:limits" } else { "os_compute_api:limits:other_project" };
    let quotas = state.control.quotas(&caller, &project, rule).await?;
    Ok(Json(LimitsAnswer { limits: Limits { rate: [], absolute: absolute(version, &quotas) } }))
}

fn absolute(version: Microversion, quotas: &BTreeMap<Resource, Quota>) -> Absolute {
    let limit = |resource| quotas.get(&resource).map_or(0, Quota::limit_or_minus_one);
    let used = |resource| quotas.get(&resource).map_or(0, |quota| quota.used);
    let network = NetworkLimits {
        max_security_groups: limit(Resource::SecurityGroups),
        max_security_group_rules: limit(Resource::SecurityGroupRules),
        max_total_floating_ips: limit(Resource::FloatingIps),
        total_security_groups_used: used(Resource::SecurityGroups),
        total_floating_ips_used: used(Resource::FloatingIps),
    };
    Absolute {
        max_total_instances: limit(Resource::Instances),
        max_total_cores: limit(Resource::Cores),
        max_total_ram_size: limit(Resource::RamMib),
        max_server_meta: limit(Resource::MetadataItems),
        max_total_keypairs: limit(Resource::KeyPairs),
        max_server_groups: limit(Resource::ServerGroups),
        max_server_group_members: limit(Resource::ServerGroupMembers),
        total_instances_used: used(Resource::Instances),
        total_cores_used: used(Resource::Cores),
        total_ram_used: used(Resource::RamMib),
        total_server_groups_used: used(Resource::ServerGroups),
        max_personality: before(version, 57, 0),
        max_personality_size: before(version, 57, 0),
        max_image_meta: before(version, 39, limit(Resource::MetadataItems)),
        network: before(version, 36, network),
    }
}
