//! Availability zones on the wire (Compute API: availability zones).

use axum::Json;
use axum::extract::State;
use control::policy::require_admin;
use control::service::host::HostView;
use serde_json::{Map, Value, json};

use super::{microseconds, require_anyone};
use crate::context::{Answer, AppState, Authenticated};

/// `GET /os-availability-zone`.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
) -> Answer<Value> {
    require_anyone(&caller, "os_compute_api:os-availability-zone:list")?;
    let zones = state.control.zones().await?;
    let shown = zones.iter().map(|(name, hosts)| zone(name, hosts, Value::Null));
    Ok(Json(json!({"availabilityZoneInfo": shown.collect::<Vec<_>>()})))
}

/// `GET /os-availability-zone/detail`: with the hosts; administrators only.
pub(super) async fn detail(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
) -> Answer<Value> {
    require_admin(&caller, "os_compute_api:os-availability-zone:detail")?;
    let zones = state.control.zones().await?;
    let shown = zones.iter().map(|(name, hosts)| {
        let services: Map<String, Value> = hosts.iter().map(service).collect();
        zone(name, hosts, Value::Object(services))
    });
    Ok(Json(json!({"availabilityZoneInfo": shown.collect::<Vec<_>>()})))
}

fn zone(name: &str, hosts: &[HostView], shown_hosts: Value) -> Value {
    let available = hosts.iter().any(|host| host.host.row.disabled.is_none());
    json!({"zoneName": name, "zoneState": {"available": available}, "hosts": shown_hosts})
}

fn service(host: &HostView) -> (String, Value) {
    let row = &host.host.row;
    let state = json!({
        "active": row.disabled.is_none(),
        "available": host.alive,
        "updated_at": microseconds(row.updated_at),
    });
    (row.name.clone(), json!({"nova-compute": state}))
}
