//! Offers of volumes to other projects (Block Storage API: volume transfers; from 3.55 on without a prefix).

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use control::model::volume::Transfer;
use serde::Deserialize;
use serde_json::{Value, json};

use super::listing::{Listed, Listing};
use super::{lenient_flag, links, time};
use crate::context::{Answer, AppState, Authenticated, Body, Segments};
use crate::error::Fault;
use crate::microversion::Microversion;
use crate::page::SortValue;

/// What the list is sorted by.
const SORT_KEYS: [&str; 3] = ["id", "name", "created_at"];

impl Listed for Transfer {
    const MANY: &'static str = "transfers";
    const SORT_KEYS: &'static [&'static str] = &SORT_KEYS;
    const FILTERS: &'static [&'static str] = &["name"];
}

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

/// `GET /volume-transfers`, `GET /volume-transfers/detail`.
pub(super) async fn list(listing: Listing<Transfer>) -> Answer<Value> {
    let state = &listing.state;
    let mut rows = state.control.volume_transfers(&listing.caller, listing.all()?).await?;
    let name = |transfer: &Transfer| transfer.name.clone().unwrap_or_default();
    rows.retain(|stored| listing.filters.allow("name", &name(&stored.row)));
    listing.page(rows, sort_value, |stored| match listing.detail {
        true => full(state, listing.version, &stored.row),
        false => brief(state, &stored.row),
    })
}

fn sort_value(transfer: &Transfer, key: &str) -> Option<SortValue> {
    Some(match key {
        "id" => transfer.id.as_str().into(),
        "name" => transfer.name.as_deref().into(),
        "created_at" => transfer.created_at.into(),
        _ => return None,
    })
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
