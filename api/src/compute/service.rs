//! Compute services on the wire (Compute API: compute services); administrators only.

use axum::Json;
use axum::extract::State;
use control::caller::Caller;
use control::error::Error;
use control::service::host::HostView;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CountedId, flag, microseconds, with};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, Segments};
use crate::error::Fault;
use crate::microversion::Microversion;

/// The one kind of service that hosts have here.
const BINARY: &str = "nova-compute";

/// A service of a host's.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Service")]
struct ShownService {
    id: CountedId,
    binary: &'static str,
    host: String,
    zone: String,
    status: &'static str,
    state: &'static str,
    updated_at: String,
    disabled_reason: Option<String>,
    /// Always false.
    #[serde(skip_serializing_if = "Option::is_none")]
    forced_down: Option<bool>,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct Services {
    services: Vec<ShownService>,
}

/// A service that was changed: what changed, before microversion 2.53.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
enum Changed {
    Service(ShownService),
    Change {
        host: String,
        binary: &'static str,
        status: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        disabled_reason: Option<String>,
    },
}

#[derive(Serialize, JsonSchema)]
pub(super) struct OneService {
    service: Changed,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UpdateBody {
    status: Option<String>,
    disabled_reason: Option<String>,
    #[serde(default, deserialize_with = "flag")]
    forced_down: Option<bool>,
    host: Option<String>,
    binary: Option<String>,
}

/// `GET /os-services`.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    filters: Filters,
) -> Answer<Services> {
    let hosts = state.control.hosts_seen(&caller, "os_compute_api:os-services:list").await?;
    let wanted = hosts
        .iter()
        .filter(|host| filters.allow("host", &host.host.row.name) && filters.allow("binary", BINARY));
    Ok(Json(Services { services: wanted.map(|host| full(version, host)).collect() }))
}

/// `PUT /os-services/{id}` since 2.53; before, `PUT /os-services/enable`, `disable` and `disable-log-reason` with the
/// host in the body.
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
    Body(body): Body<UpdateBody>,
) -> Answer<OneService> {
    if version.at_least(2, 53) {
        return update_by_id(&state, &caller, version, &id, body).await;
    }
    let name = body.host.ok_or_else(|| Fault::malformed("'host' is a required property"))?;
    let binary = body.binary.ok_or_else(|| Fault::malformed("'binary' is a required property"))?;
    let disabled = match id.as_str() {
        "enable" => None,
        "disable" => Some(String::new()),
        "disable-log-reason" => Some(
            body.disabled_reason
                .ok_or_else(|| Fault::malformed("'disabled_reason' is a required property"))?,
        ),
        "force-down" if version.at_least(2, 11) => {
            return Err(Fault::not_implemented("forcing a service down"));
        }
        _ => return Err(Fault::NoRoute),
    };
    let hosts = state.control.hosts_seen(&caller, "os_compute_api:os-services:update").await?;
    let host = hosts.iter().find(|host| host.host.row.name == name && binary == BINARY);
    let host = host.ok_or_else(|| Error::not_found("Compute service of host", &name))?;
    state.control.host_set_disabled(&caller, &host.host.row.service_id, disabled.as_deref()).await?;
    let service = Changed::Change {
        host: name,
        binary: BINARY,
        status: if disabled.is_some() { "disabled" } else { "enabled" },
        disabled_reason: disabled.filter(|_| id == "disable-log-reason"),
    };
    Ok(Json(OneService { service }))
}

async fn update_by_id(
    state: &AppState,
    caller: &Caller,
    version: Microversion,
    id: &str,
    body: UpdateBody,
) -> Answer<OneService> {
    if body.forced_down == Some(true) {
        return Err(Fault::not_implemented("forcing a service down"));
    }
    let disabled = match (body.status.as_deref(), body.disabled_reason) {
        (Some("disabled"), reason) => Some(reason.unwrap_or_default()),
        (Some("enabled"), None) => None,
        (None, None) if body.forced_down == Some(false) => {
            let hosts = state.control.hosts_seen(caller, "os_compute_api:os-services:update").await?;
            let host = hosts.iter().find(|host| host.host.row.service_id == id);
            let host = host.ok_or_else(|| Error::not_found("Service", id))?;
            return Ok(Json(OneService { service: Changed::Service(full(version, host)) }));
        }
        (Some("enabled") | None, Some(_)) => {
            return Err(Fault::malformed("Specifying disabled_reason requires that status is 'disabled'."));
        }
        _ => {
            return Err(Fault::malformed(
                "No updates were requested. Fields 'status' or 'forced_down' should be specified.",
            ));
        }
    };
    let host = state.control.host_set_disabled(caller, id, disabled.as_deref()).await?;
    Ok(Json(OneService { service: Changed::Service(full(version, &host)) }))
}

fn full(version: Microversion, host: &HostView) -> ShownService {
    let row = &host.host.row;
    ShownService {
        id: CountedId::shown(version, &row.service_id),
        binary: BINARY,
        host: row.name.clone(),
        zone: row.zone.clone(),
        status: if row.disabled.is_none() { "enabled" } else { "disabled" },
        state: if host.alive { "up" } else { "down" },
        updated_at: microseconds(row.updated_at),
        disabled_reason: row.disabled.clone().filter(|reason| !reason.is_empty()),
        forced_down: with(version, 11, false),
    }
}
