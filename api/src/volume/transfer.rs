//! Offers of volumes to other projects (Block Storage API: volume transfers; from 3.55 on without a prefix).

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use control::model::volume::Transfer;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{lenient_flag, links, paged, time};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, RequestUrl, Segments};
use crate::error::Fault;
use crate::microversion::Microversion;
use crate::page::SortValue;

/// What the list is sorted by.
const SORT_KEYS: [&str; 3] = ["id", "name", "created_at"];

fn brief(state: &AppState, transfer: &Transfer) -> Value {
    json!({
        "id": transfer.id,
        "volume_id": transfer.volume_id,
        "name": transfer.name,
        "links": links(state, "os-volume-transfer", &transfer.id),
    })
}

fn full(state: &AppState, version: Microversion, transfer: &Transfer) -> Value {
    let mut body = brief(state, transfer);
    body["created_at"] = json!(time(transfer.created_at));
    if version.at_least(3, 55) {
        body["no_snapshots"] = json!(transfer.no_snapshots);
    }
    if version.at_least(3, 57) {
        body["source_project_id"] = json!(transfer.source_project_id);
        body["destination_project_id"] = json!(transfer.destination_project_id);
        body["accepted"] = json!(transfer.accepted);
    }
    body
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateBody {
    transfer: CreateFields,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateFields {
    volume_id: String,
    name: Option<String>,
    #[serde(default)]
    no_snapshots: Value,
}

/// `POST /volume-transfers`.
pub(super) async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Body(body): Body<CreateBody>,
) -> Result<(StatusCode, Json<Value>), Fault> {
    let CreateFields { volume_id, name, no_snapshots } = body.transfer;
    let no_snapshots = lenient_flag("no_snapshots", &no_snapshots)?.unwrap_or(false);
    let (made, key) = state.control.volume_transfer_create(&caller, &volume_id, name, no_snapshots).await?;
    let mut shown = full(&state, version, &made);
    shown["auth_key"] = json!(key);
    Ok((StatusCode::ACCEPTED, Json(json!({"transfer": shown}))))
}

/// `GET /volume-transfers`.
pub(super) async fn list(
    state: State<AppState>,
    caller: Authenticated,
    version: Microversion,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Value> {
    list_with(state, caller, version, filters, url, |state, _, transfer| brief(state, transfer)).await
}

/// `GET /volume-transfers/detail`.
pub(super) async fn detail(
    state: State<AppState>,
    caller: Authenticated,
    version: Microversion,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Value> {
    list_with(state, caller, version, filters, url, full).await
}

async fn list_with(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    filters: Filters,
    url: RequestUrl,
    show: impl Fn(&AppState, Microversion, &Transfer) -> Value,
) -> Answer<Value> {
    let all = filters.flag("all_tenants")?.unwrap_or(false);
    let mut rows = state.control.volume_transfers(&caller, all).await?;
    rows.retain(|stored| filters.allow("name", stored.row.name.as_deref().unwrap_or_default()));
    let slice = paged(
        &filters,
        rows,
        |stored| &stored.row.id,
        &SORT_KEYS,
        |stored, key| {
            Some(match key {
                "id" => SortValue::from(stored.row.id.as_str()),
                "name" => stored.row.name.as_deref().into(),
                "created_at" => stored.row.created_at.into(),
                _ => return None,
            })
        },
    )?;
    Ok(Json(slice.nova("transfers", &url, |stored| show(&state, version, &stored.row))))
}

/// `GET /volume-transfers/{id}`.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
) -> Answer<Value> {
    let stored = state.control.volume_transfer(&caller, &id).await?;
    Ok(Json(json!({"transfer": full(&state, version, &stored.row)})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AcceptBody {
    accept: AcceptFields,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AcceptFields {
    auth_key: String,
}

/// `POST /volume-transfers/{id}/accept`.
pub(super) async fn accept(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<AcceptBody>,
) -> Result<(StatusCode, Json<Value>), Fault> {
    let taken = state.control.volume_transfer_accept(&caller, &id, &body.accept.auth_key).await?;
    Ok((StatusCode::ACCEPTED, Json(json!({"transfer": brief(&state, &taken)}))))
}

/// `DELETE /volume-transfers/{id}`.
pub(super) async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<StatusCode, Fault> {
    state.control.volume_transfer_delete(&caller, &id).await?;
    Ok(StatusCode::ACCEPTED)
}
