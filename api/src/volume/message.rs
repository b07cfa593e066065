//! Messages (Block Storage API: messages, microversion 3.3).

use axum::Json;
use axum::extract::State;
use control::model::volume::VolumeMessage;
use control::service::volume::message::DAYS_KEPT;
use jiff::SignedDuration;
use schemars::JsonSchema;
use serde::Serialize;

use super::filter;
use super::listing::{Listed, Listing, Page};
use super::{Link, links, since, time};
use crate::context::{Answer, AppState, Authenticated, Segments};
use crate::error::Fault;
use crate::microversion::Microversion;
use crate::openapi::answer::{DONE, Done};
use crate::page::SortValue;

/// What the list is sorted by.
const SORT_KEYS: [&str; 7] =
    ["id", "resource_uuid", "resource_type", "event_id", "request_id", "message_level", "created_at"];

impl Listed for VolumeMessage {
    const MANY: &'static str = "messages";
    const SORT_KEYS: &'static [&'static str] = &SORT_KEYS;
    const FILTERS: &'static [&'static str] = &filter::MESSAGES;
}

#[derive(Serialize, JsonSchema)]
pub(super) struct Message {
    id: String,
    request_id: String,
    resource_type: String,
    resource_uuid: String,
    event_id: String,
    message_level: &'static str,
    user_message: String,
    created_at: String,
    guaranteed_until: String,
    links: [Link; 2],
}

#[derive(Serialize, JsonSchema)]
pub(super) struct OneMessage {
    message: Message,
}

fn full(state: &AppState, message: &VolumeMessage) -> Message {
    let until = message.created_at.checked_add(SignedDuration::from_hours(24 * DAYS_KEPT));
    Message {
        id: message.id.clone(),
        request_id: message.request_id.clone(),
        resource_type: message.resource_type.clone(),
        resource_uuid: message.resource_id.clone(),
        event_id: message.event_id.clone(),
        message_level: "ERROR",
        user_message: message.text.clone(),
        created_at: time(message.created_at),
        guaranteed_until: time(until.unwrap_or(message.created_at)),
        links: links(state, "messages", &message.id),
    }
}

/// `GET /messages`.
pub(super) async fn list(listing: Listing<VolumeMessage>) -> Answer<Page<VolumeMessage, Message>> {
    let (state, version) = (&listing.state, listing.version);
    since(version, 3)?;
    let tests = listing.tests()?;
    let mut rows = state.control.volume_messages(&listing.caller).await?;
    rows.retain(|stored| tests.hold(|key| column(&stored.row, key), &[]));
    listing.page(rows, sort_value, |stored| full(state, &stored.row))
}

fn sort_value(message: &VolumeMessage, key: &str) -> Option<SortValue> {
    match key {
        "created_at" => Some(SortValue::from(message.created_at)),
        other => column(message, other).map(|text| text.as_str().into()),
    }
}

fn column(message: &VolumeMessage, key: &str) -> Option<String> {
    Some(match key {
        "id" => message.id.clone(),
        "resource_uuid" => message.resource_id.clone(),
        "resource_type" => message.resource_type.clone(),
        "event_id" => message.event_id.clone(),
        "request_id" => message.request_id.clone(),
        "message_level" => "ERROR".to_owned(),
        _ => return None,
    })
}

/// `GET /messages/{id}`.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
) -> Answer<OneMessage> {
    since(version, 3)?;
    let stored = state.control.volume_message(&caller, &id).await?;
    Ok(Json(OneMessage { message: full(&state, &stored.row) }))
}

/// `DELETE /messages/{id}`.
pub(super) async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
) -> Result<Done, Fault> {
    since(version, 3)?;
    state.control.volume_message_delete(&caller, &id).await?;
    Ok(DONE)
}
