//! What was asked of a server, on the wire (Compute API: servers actions, instance actions).

use axum::Json;
use axum::extract::State;
use control::error::Error;
use control::model::compute::{ActionRecord, Server};
use control::policy::{Default, Target, allowed};
use schemars::JsonSchema;
use serde::Serialize;

use super::server_view::host_id;
use super::{microseconds, with};
use crate::context::{Answer, AppState, Authenticated, Segments};
use crate::microversion::Microversion;

/// What was asked of a server; with what its host did, where that was asked for.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "InstanceAction")]
struct ShownAction {
    action: String,
    instance_uuid: String,
    message: Option<String>,
    project_id: String,
    request_id: String,
    start_time: String,
    user_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    updated_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    events: Option<Vec<Event>>,
}

/// What the host did for an action.
#[derive(Serialize, JsonSchema)]
struct Event {
    event: &'static str,
    finish_time: String,
    result: &'static str,
    start_time: String,
    /// Always null.
    #[serde(skip_serializing_if = "Option::is_none")]
    traceback: Option<Option<String>>,
    #[serde(rename = "hostId", skip_serializing_if = "Option::is_none")]
    host_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<Option<String>>,
    /// Always null.
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Option<String>>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Actions {
    instance_actions: Vec<ShownAction>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct OneAction {
    instance_action: ShownAction,
}

/// `GET /servers/{id}/os-instance-actions`: the newest first.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
) -> Answer<Actions> {
    let server = state.control.server_seen(&caller, &id, "os_compute_api:os-instance-actions:list").await?;
    let server = &server.row;
    let shown = server.actions.iter().rev().map(|record| full(version, server, record));
    Ok(Json(Actions { instance_actions: shown.collect() }))
}

/// `GET /servers/{id}/os-instance-actions/{request}`. An action has one event, that of its host, where its end is kept.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments((id, request)): Segments<(String, String)>,
) -> Answer<OneAction> {
    let server = state.control.server_seen(&caller, &id, "os_compute_api:os-instance-actions:show").await?;
    let server = &server.row;
    let record = server.actions.iter().find(|record| record.request_id == request);
    let record = record.ok_or_else(|| Error::not_found("Action", format!("{request} of instance {id}")))?;
    let mut shown = full(version, server, record);
    // Before 2.51 events are shown to whoever the rule names; from then on to all, and their details to those.
    let keys = [("project_id", server.project_id.as_str())];
    let shows = |rule| allowed(rule, Default::Admin, &caller, &Target::of(&keys));
    if shows("os_compute_api:os-instance-actions:events") || version.at_least(2, 51) {
        shown.events = Some(event(version, caller.is_admin(), server, record).into_iter().collect());
    }
    Ok(Json(OneAction { instance_action: shown }))
}

/// What was done for an action: by its host (Nova's `compute_…` events), or while one was looked for.
fn event(version: Microversion, is_admin: bool, server: &Server, record: &ActionRecord) -> Option<Event> {
    let name = match record.action.as_str() {
        "createImage" => "compute_snapshot_instance",
        "createBackup" => "compute_backup_instance",
        "extend_volume" => "compute_extend_volume",
        "attach_volume" => "compute_attach_volume",
        "detach_volume" => "compute_detach_volume",
        "attach_interface" => "compute_attach_interface",
        "detach_interface" => "compute_detach_interface",
        // It failed before a host was found.
        "create" if server.host.is_none() => "conductor_schedule_and_build_instances",
        "create" => "compute__do_build_and_run_instance",
        "start" => "compute_start_instance",
        "stop" => "compute_stop_instance",
        "reboot" => "compute_reboot_instance",
        "pause" => "compute_pause_instance",
        "unpause" => "compute_unpause_instance",
        _ => return None,
    };
    let finished_at = record.finished_at?;
    Some(Event {
        event: name,
        finish_time: microseconds(finished_at),
        result: if record.message.is_some() { "Error" } else { "Success" },
        start_time: microseconds(record.started_at),
        traceback: is_admin.then_some(None),
        host_id: with(version, 62, host_id(server)),
        host: with(version, 62, server.host.clone()).filter(|_| is_admin),
        details: with(version, 84, None),
    })
}

fn full(version: Microversion, server: &Server, record: &ActionRecord) -> ShownAction {
    ShownAction {
        action: record.action.clone(),
        instance_uuid: server.id.clone(),
        message: record.message.clone(),
        project_id: record.project_id.clone(),
        request_id: record.request_id.clone(),
        start_time: microseconds(record.started_at),
        user_id: record.user_id.clone(),
        updated_at: with(version, 58, microseconds(record.finished_at.unwrap_or(record.started_at))),
        events: None,
    }
}
