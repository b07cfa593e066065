//! What was asked of a server, on the wire (Compute API: servers actions, instance actions).

use axum::Json;
use axum::extract::State;
use control::error::Error;
use control::model::compute::{ActionRecord, Server};
use control::policy::{Default, Target, allowed};
use serde_json::{Value, json};

use super::microseconds;
use super::server_view::host_id;
use crate::context::{Answer, AppState, Authenticated, Segments};
use crate::microversion::Microversion;

/// `GET /servers/{id}/os-instance-actions`: the newest first.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
) -> Answer<Value> {
    let server = state.control.server_seen(&caller, &id, "os_compute_api:os-instance-actions:list").await?;
    let server = &server.row;
    let shown: Vec<Value> = server.actions.iter().rev().map(|record| full(version, server, record)).collect();
    Ok(Json(json!({"instanceActions": shown})))
}

/// `GET /servers/{id}/os-instance-actions/{request}`. An action has one event, that of its host, where its end is kept.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments((id, request)): Segments<(String, String)>,
) -> Answer<Value> {
    let server = state.control.server_seen(&caller, &id, "os_compute_api:os-instance-actions:show").await?;
    let server = &server.row;
    let record = server.actions.iter().find(|record| record.request_id == request);
    let record = record.ok_or_else(|| Error::not_found("Action", format!("{request} of instance {id}")))?;
    let mut shown = full(version, server, record);
    // Before 2.51 events are shown to whoever the rule names; from then on to all, and their details to those.
    let keys = [("project_id", server.project_id.as_str())];
    let shows = |rule| allowed(rule, Default::Admin, &caller, &Target::of(&keys));
    if shows("os_compute_api:os-instance-actions:events") || version.at_least(2, 51) {
        let events: Vec<Value> = event(version, caller.is_admin(), server, record).into_iter().collect();
        shown["events"] = json!(events);
    }
    Ok(Json(json!({"instanceAction": shown})))
}

/// What the host did for an action (Nova's `compute_…` events).
fn event(version: Microversion, is_admin: bool, server: &Server, record: &ActionRecord) -> Option<Value> {
    let name = match record.action.as_str() {
        "createImage" => "compute_snapshot_instance",
        "createBackup" => "compute_backup_instance",
        "extend_volume" => "compute_extend_volume",
        "attach_volume" => "compute_attach_volume",
        "detach_volume" => "compute_detach_volume",
        "attach_interface" => "compute_attach_interface",
        "detach_interface" => "compute_detach_interface",
        "create" => "compute__do_build_and_run_instance",
        "start" => "compute_start_instance",
        "stop" => "compute_stop_instance",
        "reboot" => "compute_reboot_instance",
        "pause" => "compute_pause_instance",
        "unpause" => "compute_unpause_instance",
        _ => return None,
    };
    let finished_at = record.finished_at?;
    let mut shown = json!({
        "event": name,
        "finish_time": microseconds(finished_at),
        "result": if record.message.is_some() { "Error" } else { "Success" },
        "start_time": microseconds(record.started_at),
    });
    if is_admin {
        shown["traceback"] = Value::Null;
    }
    if version.at_least(2, 62) {
        shown["hostId"] = json!(host_id(server));
        if is_admin {
            shown["host"] = json!(server.host);
        }
    }
    if version.at_least(2, 84) {
        shown["details"] = Value::Null;
    }
    Some(shown)
}

fn full(version: Microversion, server: &Server, record: &ActionRecord) -> Value {
    let mut shown = json!({
        "action": record.action,
        "instance_uuid": server.id,
        "message": record.message,
        "project_id": record.project_id,
        "request_id": record.request_id,
        "start_time": microseconds(record.started_at),
        "user_id": record.user_id,
    });
    if version.at_least(2, 58) {
        shown["updated_at"] = json!(microseconds(record.finished_at.unwrap_or(record.started_at)));
    }
    shown
}
