//! Offers of volumes to other projects (Block Storage API: volume transfers; from 3.55 on without a prefix).

use axum::Json;
use axum::extract::State;
use control::model::volume::Transfer;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::listing::{Detail, Listed, Listing, Page};
use super::{Link, lenient_flag, links, time, with};
use crate::context::{Answer, AppState, Authenticated, Body, Segments};
use crate::error::Fault;
use crate::microversion::Microversion;
use crate::openapi::answer::{Accepted, Status, TAKEN, Taken};
use crate::page::SortValue;

/// What the list is sorted by.
const SORT_KEYS: [&str; 3] = ["id", "name", "created_at"];

impl Listed for Transfer {
    const MANY: &'static str = "transfers";
    const SORT_KEYS: &'static [&'static str] = &SORT_KEYS;
    const FILTERS: &'static [&'static str] = &["name"];
}

#[derive(Serialize, JsonSchema)]
pub(super) struct TransferBrief {
    id: String,
    volume_id: String,
    name: Option<String>,
    links: [Link; 2],
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Transfer")]
pub(super) struct TransferFull {
    #[serde(flatten)]
    brief: TransferBrief,
    created_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    no_snapshots: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_project_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination_project_id: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    accepted: Option<bool>,
    /// When it is made, and never again.
    #[serde(skip_serializing_if = "Option::is_none")]
    auth_key: Option<String>,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct OneTransfer {
    transfer: TransferFull,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct TakenTransfer {
    transfer: TransferBrief,
}

fn brief(state: &AppState, transfer: &Transfer) -> TransferBrief {
    TransferBrief {
        id: transfer.id.clone(),
        volume_id: transfer.volume_id.clone(),
        name: transfer.name.clone(),
        links: links(state, "os-volume-transfer", &transfer.id),
    }
}

fn full(state: &AppState, version: Microversion, transfer: &Transfer) -> TransferFull {
    TransferFull {
        brief: brief(state, transfer),
        created_at: time(transfer.created_at),
        no_snapshots: with(version, 55, transfer.no_snapshots),
        source_project_id: with(version, 57, transfer.source_project_id.clone()),
        destination_project_id: with(version, 57, transfer.destination_project_id.clone()),
        accepted: with(version, 57, transfer.accepted),
        auth_key: None,
    }
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
) -> Result<Accepted<OneTransfer>, Fault> {
    let CreateFields { volume_id, name, no_snapshots } = body.transfer;
    let no_snapshots = lenient_flag("no_snapshots", &no_snapshots)?.unwrap_or(false);
    let (made, key) = state.control.volume_transfer_create(&caller, &volume_id, name, no_snapshots).await?;
    let transfer = TransferFull { auth_key: Some(key), ..full(&state, version, &made) };
    Ok(Status(Json(OneTransfer { transfer })))
}

/// `GET /volume-transfers`, `GET /volume-transfers/detail`.
pub(super) async fn list(
    listing: Listing<Transfer>,
) -> Answer<Page<Transfer, Detail<TransferFull, TransferBrief>>> {
    let state = &listing.state;
    let mut rows = state.control.volume_transfers(&listing.caller, listing.all()?).await?;
    let name = |transfer: &Transfer| transfer.name.clone().unwrap_or_default();
    rows.retain(|stored| listing.filters.allow("name", &name(&stored.row)));
    listing.page(rows, sort_value, |stored| match listing.detail {
        true => Detail::Full(full(state, listing.version, &stored.row)),
        false => Detail::Brief(brief(state, &stored.row)),
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
) -> Answer<OneTransfer> {
    let stored = state.control.volume_transfer(&caller, &id).await?;
    Ok(Json(OneTransfer { transfer: full(&state, version, &stored.row) }))
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
) -> Result<Accepted<TakenTransfer>, Fault> {
    let taken = state.control.volume_transfer_accept(&caller, &id, &body.accept.auth_key).await?;
    Ok(Status(Json(TakenTransfer { transfer: brief(&state, &taken) })))
}

/// `DELETE /volume-transfers/{id}`.
pub(super) async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<Taken, Fault> {
    state.control.volume_transfer_delete(&caller, &id).await?;
    Ok(TAKEN)
}
