//! QoS specifications (Block Storage API: quality of service specifications).

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use control::model::volume::QosSpec;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{links, properties};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, Segments};
use crate::error::Fault;

fn full(spec: &QosSpec) -> Value {
    json!({"id": spec.id, "name": spec.name, "consumer": spec.consumer, "specs": spec.specs})
}

fn with_links(state: &AppState, spec: &QosSpec) -> Answer<Value> {
    Ok(Json(json!({"qos_specs": full(spec), "links": links(state, "qos-specs", &spec.id)})))
}

/// `GET /qos-specs`.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
) -> Answer<Value> {
    let rows = state.control.volume_qos_list(&caller).await?;
    let shown: Vec<Value> = rows.iter().map(|stored| full(&stored.row)).collect();
    Ok(Json(json!({"qos_specs": shown})))
}

/// `GET /qos-specs/{id}`.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<Value> {
    with_links(&state, &state.control.volume_qos(&caller, &id).await?.row)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SpecsBody {
    qos_specs: Map<String, Value>,
}

impl SpecsBody {
    /// The texts, of which `taken` are not limits.
    fn texts(&self) -> Result<BTreeMap<String, String>, Fault> {
        properties(&Value::Object(self.qos_specs.clone()))
    }
}

/// `POST /qos-specs`.
pub(super) async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(body): Body<SpecsBody>,
) -> Answer<Value> {
    let mut specs = body.texts()?;
    let name = specs.remove("name").unwrap_or_default();
    let consumer = specs.remove("consumer").unwrap_or_else(|| "back-end".to_owned());
    let made = state.control.volume_qos_create(&caller, name.trim(), &consumer, specs).await?;
    with_links(&state, &made.row)
}

/// `PUT /qos-specs/{id}`.
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<SpecsBody>,
) -> Answer<Value> {
    let mut specs = body.texts()?;
    let answer = specs.clone();
    let consumer = specs.remove("consumer");
    state.control.volume_qos_change(&caller, &id, consumer.as_deref(), specs, &[]).await?;
    Ok(Json(json!({"qos_specs": answer})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KeysBody {
    keys: Vec<String>,
}

/// `PUT /qos-specs/{id}/delete_keys`.
pub(super) async fn delete_keys(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<KeysBody>,
) -> Result<StatusCode, Fault> {
    state.control.volume_qos_change(&caller, &id, None, BTreeMap::new(), &body.keys).await?;
    Ok(StatusCode::ACCEPTED)
}

/// `DELETE /qos-specs/{id}`.
pub(super) async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    filters: Filters,
) -> Result<StatusCode, Fault> {
    let force = filters.flag("force")?.unwrap_or(false);
    state.control.volume_qos_delete(&caller, &id, force).await?;
    Ok(StatusCode::ACCEPTED)
}

/// `GET /qos-specs/{id}/associations`.
pub(super) async fn associations(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<Value> {
    let types = state.control.volume_qos_types(&caller, &id).await?;
    let shown: Vec<Value> = types
        .iter()
        .map(|kind| json!({"association_type": "volume_type", "name": kind.row.name, "id": kind.row.id}))
        .collect();
    Ok(Json(json!({"qos_associations": shown})))
}

async fn give(
    state: &AppState,
    caller: &control::caller::Caller,
    id: &str,
    filters: &Filters,
    give: bool,
) -> Result<StatusCode, Fault> {
    let missing = || Fault::malformed("Volume Type id must not be None.");
    let kind = filters.get("vol_type_id").filter(|kind| !kind.is_empty()).ok_or_else(missing)?;
    state.control.volume_type_qos(caller, id, kind, give).await?;
    Ok(StatusCode::ACCEPTED)
}

/// `GET /qos-specs/{id}/associate`.
pub(super) async fn associate(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    filters: Filters,
) -> Result<StatusCode, Fault> {
    give(&state, &caller, &id, &filters, true).await
}

/// `GET /qos-specs/{id}/disassociate`.
pub(super) async fn disassociate(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    filters: Filters,
) -> Result<StatusCode, Fault> {
    give(&state, &caller, &id, &filters, false).await
}

/// `GET /qos-specs/{id}/disassociate_all`.
pub(super) async fn disassociate_all(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<StatusCode, Fault> {
    state.control.volume_qos_release(&caller, &id).await?;
    Ok(StatusCode::ACCEPTED)
}
