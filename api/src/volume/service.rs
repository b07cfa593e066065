//! The service's own parts (Block Storage API: services, back-end storage pools, capabilities, hosts, zones, filters).

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use control::service::volume::place::{OVER_SUBSCRIPTION, Pool};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{filter, since, time, with};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, Segments};
use crate::error::Fault;
use crate::microversion::Microversion;

#[derive(Serialize, JsonSchema)]
struct VolumeService {
    binary: &'static str,
    host: String,
    zone: String,
    status: &'static str,
    state: &'static str,
    updated_at: String,
    disabled_reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replication_status: Option<&'static str>,
    /// Always null.
    #[serde(skip_serializing_if = "Option::is_none")]
    active_backend_id: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    frozen: Option<bool>,
    /// Always null.
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backend_state: Option<&'static str>,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct Services {
    services: Vec<VolumeService>,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct ChangedService {
    host: String,
    service: String,
    binary: String,
    disabled: bool,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    disabled_reason: Option<Option<String>>,
}

#[derive(Serialize, JsonSchema)]
struct ShownPool {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    capabilities: Option<PoolCapabilities>,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct Pools {
    pools: Vec<ShownPool>,
}

#[derive(Serialize, JsonSchema)]
struct PoolCapabilities {
    volume_backend_name: String,
    storage_protocol: String,
    vendor_name: &'static str,
    driver_version: &'static str,
    total_capacity_gb: u64,
    free_capacity_gb: u64,
    allocated_capacity_gb: u64,
    reserved_percentage: u32,
    thin_provisioning_support: bool,
    thick_provisioning_support: bool,
    max_over_subscription_ratio: String,
    multiattach: bool,
    #[serde(rename = "QoS_support")]
    qos_support: bool,
    location_info: String,
    backend_state: &'static str,
    timestamp: String,
}

/// What a backend can do.
#[derive(Serialize, JsonSchema)]
pub(super) struct BackendCapabilities {
    namespace: String,
    vendor_name: &'static str,
    volume_backend_name: String,
    pool_name: String,
    driver_version: &'static str,
    storage_protocol: String,
    display_name: String,
    description: &'static str,
    /// Always null.
    visibility: Option<String>,
    replication_targets: [String; 0],
    properties: BTreeMap<&'static str, CapabilityProperty>,
}

#[derive(Serialize, JsonSchema)]
struct CapabilityProperty {
    title: &'static str,
    description: &'static str,
    #[serde(rename = "type")]
    kind: &'static str,
}

#[derive(Serialize, JsonSchema)]
struct VolumeHost {
    host_name: String,
    service: &'static str,
    zone: String,
    #[serde(rename = "service-status")]
    status: &'static str,
    #[serde(rename = "service-state")]
    state: &'static str,
    #[serde(rename = "last-update")]
    last_update: String,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct Hosts {
    hosts: Vec<VolumeHost>,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct HostDetails {
    host: Vec<HostResource>,
}

#[derive(Serialize, JsonSchema)]
struct HostResource {
    resource: ResourceSums,
}

#[derive(Serialize, JsonSchema)]
struct ResourceSums {
    host: String,
    project: String,
    volume_count: String,
    total_volume_gb: String,
    snapshot_count: String,
    total_snapshot_gb: String,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct Zones {
    #[serde(rename = "availabilityZoneInfo")]
    zones: Vec<VolumeZone>,
}

#[derive(Serialize, JsonSchema)]
struct VolumeZone {
    #[serde(rename = "zoneName")]
    name: String,
    #[serde(rename = "zoneState")]
    state: ZoneState,
}

#[derive(Serialize, JsonSchema)]
struct ZoneState {
    available: bool,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct ResourceFilters {
    resource_filters: Vec<FiltersOfResource>,
}

#[derive(Serialize, JsonSchema)]
struct FiltersOfResource {
    resource: &'static str,
    filters: Vec<&'static str>,
}

/// `GET /os-services`.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    filters: Filters,
) -> Answer<Services> {
    let services = state.control.volume_services(&caller, "volume_extension:services:index").await?;
    let shown = services
        .iter()
        .filter(|service| filters.allow("binary", service.binary))
        .filter(|service| {
            // A host's name stands for its backends too.
            filters
                .get("host")
                .is_none_or(|host| service.host == host || service.host.split('@').next() == Some(host))
        })
        .map(|service| {
            let of_volumes = service.binary == "cinder-volume";
            let state = if service.alive { "up" } else { "down" };
            VolumeService {
                binary: service.binary,
                host: service.host.clone(),
                zone: service.zone.clone(),
                status: if service.disabled.is_some() { "disabled" } else { "enabled" },
                state,
                updated_at: time(service.updated_at),
                disabled_reason: service.disabled.clone().filter(|reason| !reason.is_empty()),
                replication_status: of_volumes.then_some("disabled"),
                active_backend_id: of_volumes.then_some(None),
                frozen: of_volumes.then_some(false),
                cluster: with(version, 7, None),
                backend_state: with(version, 49, state).filter(|_| of_volumes),
            }
        });
    Ok(Json(Services { services: shown.collect() }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ServiceBody {
    host: Option<String>,
    binary: Option<String>,
    service: Option<String>,
    disabled_reason: Option<String>,
}

/// `PUT /os-services/{action}`.
pub(super) async fn act(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(action): Segments<String>,
    Body(body): Body<ServiceBody>,
) -> Answer<ChangedService> {
    let required = |text: Option<String>, key: &str| {
        text.filter(|text| !text.is_empty())
            .ok_or_else(|| Fault::malformed(format!("Invalid input: '{key}' is a required property")))
    };
    let reason = match action.as_str() {
        "enable" => None,
        "disable" => Some(String::new()),
        "disable-log-reason" => Some(required(body.disabled_reason, "disabled_reason")?),
        "freeze" | "thaw" | "failover_host" | "failover" | "set-log" | "get-log" => {
            let services = state.control.volume_services(&caller, "volume_extension:services:update").await?;
            let host = required(body.host, "host")?;
            if !services.iter().any(|service| service.host == host) {
                return Err(Fault::malformed(format!("Host {host} could not be found.")));
            }
            return Err(Fault::not_implemented("freezing, failing over and the logs of a backend"));
        }
        _ => return Err(Fault::NoRoute),
    };
    let host = required(body.host, "host")?;
    let binary = required(body.binary.or(body.service), "binary")?;
    state.control.volume_service_set(&caller, &binary, &host, reason.as_deref()).await?;
    Ok(Json(ChangedService {
        host,
        service: binary.clone(),
        binary,
        disabled: reason.is_some(),
        status: if reason.is_some() { "disabled" } else { "enabled" },
        disabled_reason: (action != "disable").then_some(reason),
    }))
}

fn capabilities(pool: &Pool) -> PoolCapabilities {
    PoolCapabilities {
        volume_backend_name: pool.backend.to_string(),
        storage_protocol: pool.protocol.to_string(),
        vendor_name: "Wisp",
        driver_version: env!("CARGO_PKG_VERSION"),
        total_capacity_gb: pool.total_gib,
        free_capacity_gb: pool.free_gib,
        allocated_capacity_gb: pool.total_gib.saturating_sub(pool.free_gib),
        reserved_percentage: 0,
        thin_provisioning_support: true,
        thick_provisioning_support: false,
        max_over_subscription_ratio: OVER_SUBSCRIPTION.to_string(),
        multiattach: true,
        qos_support: false,
        location_info: pool.name(),
        backend_state: if pool.alive { "up" } else { "down" },
        timestamp: time(Timestamp::now()),
    }
}

/// `GET /scheduler-stats/get_pools`.
pub(super) async fn pools(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    filters: Filters,
) -> Answer<Pools> {
    let detail = filters.flag("detail")?.unwrap_or(false);
    let pools =
        state.control.volume_pools_shown(&caller, "scheduler_extension:scheduler_stats:get_pools").await?;
    let shown = pools
        .iter()
        .filter(|pool| filters.allow("name", &pool.name()))
        .map(|pool| ShownPool { name: pool.name(), capabilities: detail.then(|| capabilities(pool)) });
    Ok(Json(Pools { pools: shown.collect() }))
}

/// `GET /capabilities/{host}`.
pub(super) async fn backend(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(host): Segments<String>,
) -> Answer<BackendCapabilities> {
    let pools = state.control.volume_pools_shown(&caller, "volume_extension:capabilities").await?;
    let of_host = |pool: &&Pool| pool.host == host || format!("{}@{}", pool.host, pool.backend) == host;
    let pool = pools.iter().find(of_host);
    let pool = pool.ok_or_else(|| control::error::Error::not_found("Host", host.clone()))?;
    let property = |title, description| CapabilityProperty { title, description, kind: "boolean" };
    Ok(Json(BackendCapabilities {
        namespace: format!("OS::Storage::Capabilities::{host}"),
        vendor_name: "Wisp",
        volume_backend_name: pool.backend.to_string(),
        pool_name: pool.backend.to_string(),
        driver_version: env!("CARGO_PKG_VERSION"),
        storage_protocol: pool.protocol.to_string(),
        display_name: format!("{} on {}", pool.backend, pool.host),
        description: "Thin disks; snapshots and clones in constant time.",
        visibility: None,
        replication_targets: [],
        properties: BTreeMap::from([
            ("thin_provisioning", property("Thin Provisioning", "Sets thin provisioning.")),
            ("compression", property("Compression", "Enables compression.")),
            ("qos", property("QoS", "Enables QoS.")),
            ("replication_enabled", property("Replication", "Enables replication.")),
        ]),
    }))
}

/// `GET /os-hosts`.
pub(super) async fn hosts(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
) -> Answer<Hosts> {
    let services = state.control.volume_services(&caller, "volume_extension:hosts").await?;
    let shown = services.iter().map(|service| VolumeHost {
        host_name: service.host.clone(),
        service: service.binary,
        zone: service.zone.clone(),
        status: if service.alive { "available" } else { "unavailable" },
        state: if service.disabled.is_some() { "disabled" } else { "enabled" },
        last_update: time(service.updated_at),
    });
    Ok(Json(Hosts { hosts: shown.collect() }))
}

/// `GET /os-hosts/{host}`: what is on it.
pub(super) async fn host(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(name): Segments<String>,
) -> Answer<HostDetails> {
    let services = state.control.volume_services(&caller, "volume_extension:hosts").await?;
    if !services.iter().any(|service| service.host == name) {
        return Err(control::error::Error::not_found("Host", name).into());
    }
    let of_host = name.split('@').next().unwrap_or_default();
    let (volumes, snapshots) = state.control.volume_host_disks(&caller, of_host).await?;
    let mut projects: BTreeMap<&str, [u64; 4]> = BTreeMap::new();
    for volume in &volumes {
        let sums = projects.entry(&volume.row.project_id).or_default();
        sums[0] += 1;
        sums[1] += volume.row.size_gib;
    }
    for snapshot in &snapshots {
        let sums = projects.entry(&snapshot.row.project_id).or_default();
        sums[2] += 1;
        sums[3] += snapshot.row.size_gib;
    }
    let resource = |project: &str, sums: &[u64; 4]| {
        let resource = ResourceSums {
            host: name.clone(),
            project: project.to_owned(),
            volume_count: sums[0].to_string(),
            total_volume_gb: sums[1].to_string(),
            snapshot_count: sums[2].to_string(),
            total_snapshot_gb: sums[3].to_string(),
        };
        HostResource { resource }
    };
    let total =
        projects.values().fold([0; 4], |sum, one| std::array::from_fn(|index| sum[index] + one[index]));
    let mut shown = vec![resource("(total)", &total)];
    shown.extend(projects.iter().map(|(project, sums)| resource(project, sums)));
    Ok(Json(HostDetails { host: shown }))
}

/// `GET /os-availability-zone`.
pub(super) async fn zones(State(state): State<AppState>, _: Authenticated) -> Answer<Zones> {
    let mut zones = state.control.zones().await?;
    if zones.is_empty() {
        zones.insert("nova".to_owned(), Vec::new());
    }
    let shown = zones.into_keys().map(|name| VolumeZone { name, state: ZoneState { available: true } });
    Ok(Json(Zones { zones: shown.collect() }))
}

/// `GET /resource_filters` (microversion 3.33).
pub(super) async fn filters(
    _: Authenticated,
    version: Microversion,
    filters: Filters,
) -> Answer<ResourceFilters> {
    since(version, 33)?;
    let shown = filter::ALL
        .iter()
        .filter(|(resource, _)| filters.allow("resource", resource))
        .map(|(resource, words)| FiltersOfResource { resource, filters: words.to_vec() });
    Ok(Json(ResourceFilters { resource_filters: shown.collect() }))
}
