//! Compute services on the wire (Compute API: compute services); administrators only.

use axum::Json;
use axum::extract::State;
use control::caller::Caller;
use control::error::Error;
use control::service::host::HostView;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{flag, microseconds, number_of};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, Segments};
use crate::error::Fault;
use crate::microversion::Microversion;

/// The one kind of service that hosts have here.
const BINARY: &str = "nova-compute";

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
) -> Answer<Value> {
    let hosts = state.control.hosts_seen(&caller, "os_compute_api:os-services:list").await?;
    let wanted = hosts
        .iter()
        .filter(|host| filters.allow("host", &host.host.row.name) && filters.allow("binary", BINARY));
    Ok(Json(json!({"services": wanted.map(|host| full(version, host)).collect::<Vec<_>>()})))
}

/// `PUT /os-services/{id}` since 2.53; before, `PUT /os-services/enable`, `disable` and `disable-log-reason` with the
/// host in the body.
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
    Body(body): Body<UpdateBody>,
) -> Answer<Value> {
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
    let mut shown = json!({
        "host": name,
        "binary": BINARY,
        "status": if disabled.is_some() { "disabled" } else { "enabled" },
    });
    if id == "disable-log-reason" {
        shown["disabled_reason"] = json!(disabled);
    }
    Ok(Json(json!({"service": shown})))
}

async fn update_by_id(
    state: &AppState,
    caller: &Caller,
    version: Microversion,
    id: &str,
    body: UpdateBody,
) -> Answer<Value> {
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
            return Ok(Json(json!({"service": full(version, host)})));
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
    Ok(Json(json!({"service": full(version, &host)})))
}

fn full(version: Microversion, host: &HostView) -> Value {
    let row = &host.host.row;
    let reason = row.disabled.as_deref().filter(|reason| !reason.is_empty());
    let mut shown = json!({
        "id": if version.at_least(2, 53) { json!(row.service_id) } else { json!(number_of(&row.service_id)) },
        "binary": BINARY,
        "host": row.name,
        "zone": row.zone,
        "status": if row.disabled.is_none() { "enabled" } else { "disabled" },
        "state": if host.alive { "up" } else { "down" },
        "updated_at": microseconds(row.updated_at),
        "disabled_reason": reason,
    });
    if version.at_least(2, 11) {
        shown["forced_down"] = json!(false);
    }
    shown
}
