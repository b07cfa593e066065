//! Availability zones on the wire (Compute API: availability zones).

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use control::policy::require_admin;
use control::service::host::HostView;
use schemars::JsonSchema;
use serde::Serialize;

use super::{microseconds, require_anyone};
use crate::context::{Answer, AppState, Authenticated};

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Zones {
    availability_zone_info: Vec<Zone>,
}

/// An availability zone; its hosts for administrators who ask for them.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "AvailabilityZone")]
#[serde(rename_all = "camelCase")]
struct Zone {
    zone_name: String,
    zone_state: ZoneState,
    hosts: Option<Hosts>,
}

#[derive(Serialize, JsonSchema)]
struct ZoneState {
    available: bool,
}

/// By host and service.
type Hosts = BTreeMap<String, BTreeMap<&'static str, ServiceState>>;

#[derive(Serialize, JsonSchema)]
struct ServiceState {
    active: bool,
    available: bool,
    updated_at: String,
}

/// `GET /os-availability-zone`.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
) -> Answer<Zones> {
    require_anyone(&caller, "os_compute_api:os-availability-zone:list")?;
    let zones = state.control.zones().await?;
    let shown = zones.iter().map(|(name, hosts)| zone(name, hosts, None));
    Ok(Json(Zones { availability_zone_info: shown.collect() }))
}

/// `GET /os-availability-zone/detail`: with the hosts; administrators only.
pub(super) async fn detail(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
) -> Answer<Zones> {
    require_admin(&caller, "os_compute_api:os-availability-zone:detail")?;
    let zones = state.control.zones().await?;
    let shown =
        zones.iter().map(|(name, hosts)| zone(name, hosts, Some(hosts.iter().map(service).collect())));
    Ok(Json(Zones { availability_zone_info: shown.collect() }))
}

fn zone(name: &str, hosts: &[HostView], shown_hosts: Option<Hosts>) -> Zone {
    let available = hosts.iter().any(|host| host.host.row.disabled.is_none());
    Zone { zone_name: name.to_owned(), zone_state: ZoneState { available }, hosts: shown_hosts }
}

fn service(host: &HostView) -> (String, BTreeMap<&'static str, ServiceState>) {
    let row = &host.host.row;
    let state = ServiceState {
        active: row.disabled.is_none(),
        available: host.alive,
        updated_at: microseconds(row.updated_at),
    };
    (row.name.clone(), BTreeMap::from([("nova-compute", state)]))
}
