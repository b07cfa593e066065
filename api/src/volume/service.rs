//! The service's own parts (Block Storage API: services, back-end storage pools, capabilities, hosts, zones, filters).

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use control::service::volume::place::{OVER_SUBSCRIPTION, Pool};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{filter, since, time};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, Segments};
use crate::error::Fault;
use crate::microversion::Microversion;

/// `GET /os-services`.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    filters: Filters,
) -> Answer<Value> {
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
            let mut body = json!({
                "binary": service.binary,
                "host": service.host,
                "zone": service.zone,
                "status": if service.disabled.is_some() { "disabled" } else { "enabled" },
                "state": if service.alive { "up" } else { "down" },
                "updated_at": time(service.updated_at),
                "disabled_reason": service.disabled.as_ref().filter(|reason| !reason.is_empty()),
            });
            if service.binary == "cinder-volume" {
                body["replication_status"] = json!("disabled");
                body["active_backend_id"] = Value::Null;
                body["frozen"] = json!(false);
            }
            if version.at_least(3, 7) {
                body["cluster"] = Value::Null;
            }
            if version.at_least(3, 49) && service.binary == "cinder-volume" {
                body["backend_state"] = json!(if service.alive { "up" } else { "down" });
            }
            body
        });
    Ok(Json(json!({"services": shown.collect::<Vec<_>>()})))
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
) -> Answer<Value> {
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
    let mut answer = json!({
        "host": host,
        "service": binary,
        "binary": binary,
        "disabled": reason.is_some(),
        "status": if reason.is_some() { "disabled" } else { "enabled" },
    });
    if action != "disable" {
        answer["disabled_reason"] = json!(reason);
    }
    Ok(Json(answer))
}

fn capabilities(pool: &Pool) -> Value {
    json!({
        "volume_backend_name": pool.backend,
        "storage_protocol": pool.protocol,
        "vendor_name": "Wisp",
        "driver_version": env!("CARGO_PKG_VERSION"),
        "total_capacity_gb": pool.total_gib,
        "free_capacity_gb": pool.free_gib,
        "allocated_capacity_gb": pool.total_gib.saturating_sub(pool.free_gib),
        "reserved_percentage": 0,
        "thin_provisioning_support": true,
        "thick_provisioning_support": false,
        "max_over_subscription_ratio": OVER_SUBSCRIPTION.to_string(),
        "multiattach": true,
        "QoS_support": false,
        "location_info": pool.name(),
        "backend_state": if pool.alive { "up" } else { "down" },
        "timestamp": time(Timestamp::now()),
    })
}

/// `GET /scheduler-stats/get_pools`.
pub(super) async fn pools(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    filters: Filters,
) -> Answer<Value> {
    let detail = filters.flag("detail")?.unwrap_or(false);
    let pools =
        state.control.volume_pools_shown(&caller, "scheduler_extension:scheduler_stats:get_pools").await?;
    let shown: Vec<Value> = pools
        .iter()
        .filter(|pool| filters.allow("name", &pool.name()))
        .map(|pool| match detail {
            true => json!({"name": pool.name(), "capabilities": capabilities(pool)}),
            false => json!({"name": pool.name()}),
        })
        .collect();
    Ok(Json(json!({"pools": shown})))
}

/// `GET /capabilities/{host}`.
pub(super) async fn backend(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(host): Segments<String>,
) -> Answer<Value> {
    let pools = state.control.volume_pools_shown(&caller, "volume_extension:capabilities").await?;
    let of_host = |pool: &&Pool| pool.host == host || format!("{}@{}", pool.host, pool.backend) == host;
    let pool = pools.iter().find(of_host);
    let pool = pool.ok_or_else(|| control::error::Error::not_found("Host", host.clone()))?;
    let property = |title: &str, description: &str| json!({"title": title, "description": description, "type": "boolean"});
    Ok(Json(json!({
        "namespace": format!("OS::Storage::Capabilities::{host}"),
        "vendor_name": "Wisp",
        "volume_backend_name": pool.backend,
        "pool_name": pool.backend,
        "driver_version": env!("CARGO_PKG_VERSION"),
        "storage_protocol": pool.protocol,
        "display_name": format!("{} on {}", pool.backend, pool.host),
        "description": "Thin disks; snapshots and clones in constant time.",
        "visibility": null,
        "replication_targets": [],
        "properties": {
            "thin_provisioning": property("Thin Provisioning", "Sets thin provisioning."),
            "compression": property("Compression", "Enables compression."),
            "qos": property("QoS", "Enables QoS."),
            "replication_enabled": property("Replication", "Enables replication."),
        },
    })))
}

/// `GET /os-hosts`.
pub(super) async fn hosts(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
) -> Answer<Value> {
    let services = state.control.volume_services(&caller, "volume_extension:hosts").await?;
    let shown: Vec<Value> = services
        .iter()
        .map(|service| {
            json!({
                "host_name": service.host,
                "service": service.binary,
                "zone": service.zone,
                "service-status": if service.alive { "available" } else { "unavailable" },
                "service-state": if service.disabled.is_some() { "disabled" } else { "enabled" },
                "last-update": time(service.updated_at),
            })
        })
        .collect();
    Ok(Json(json!({"hosts": shown})))
}

/// `GET /os-hosts/{host}`: what is on it.
pub(super) async fn host(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(name): Segments<String>,
) -> Answer<Value> {
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
        json!({"resource": {
            "host": name,
            "project": project,
            "volume_count": sums[0].to_string(),
            "total_volume_gb": sums[1].to_string(),
            "snapshot_count": sums[2].to_string(),
            "total_snapshot_gb": sums[3].to_string(),
        }})
    };
    let total =
        projects.values().fold([0; 4], |sum, one| std::array::from_fn(|index| sum[index] + one[index]));
    let mut shown = vec![resource("(total)", &total)];
    shown.extend(projects.iter().map(|(project, sums)| resource(project, sums)));
    Ok(Json(json!({"host": shown})))
}

/// `GET /os-availability-zone`.
pub(super) async fn zones(State(state): State<AppState>, _: Authenticated) -> Answer<Value> {
    let mut zones = state.control.zones().await?;
    if zones.is_empty() {
        zones.insert("nova".to_owned(), Vec::new());
    }
    let shown: Vec<Value> =
        zones.keys().map(|zone| json!({"zoneName": zone, "zoneState": {"available": true}})).collect();
    Ok(Json(json!({"availabilityZoneInfo": shown})))
}

/// `GET /resource_filters` (microversion 3.33).
pub(super) async fn filters(_: Authenticated, version: Microversion, filters: Filters) -> Answer<Value> {
    since(version, 33)?;
    let shown: Vec<Value> = filter::ALL
        .iter()
        .filter(|(resource, _)| filters.allow("resource", resource))
        .map(|(resource, words)| json!({"resource": resource, "filters": words}))
        .collect();
    Ok(Json(json!({"resource_filters": shown})))
}
