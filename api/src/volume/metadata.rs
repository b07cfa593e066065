//! The owner's properties of volumes and snapshots (Block Storage API: volume metadata, snapshot metadata).

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use control::caller::Caller;
use control::error::Error;
use control::service::volume::change::Properties;
use serde::Deserialize;
use serde_json::{Value, json};

use super::properties;
use crate::context::{Answer, AppState, Authenticated, Body, Segments};
use crate::error::Fault;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MetadataBody {
    metadata: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MetaBody {
    meta: Value,
}

impl MetaBody {
    /// The one property, which has to be the one in the path.
    fn one(&self, key: &str) -> Result<BTreeMap<String, String>, Fault> {
        let one = properties(&self.meta)?;
        match one.contains_key(key) {
            true if one.len() == 1 => Ok(one),
            true => Err(Fault::malformed("Request body contains too many items")),
            false => Err(Fault::malformed("Request body and URI mismatch")),
        }
    }
}

fn shown(all: &BTreeMap<String, String>) -> Answer<Value> {
    Ok(Json(json!({ "metadata": all })))
}

fn item(all: &BTreeMap<String, String>, key: &str) -> Answer<Value> {
    match all.get(key) {
        Some(value) => Ok(Json(json!({"meta": {key: value}}))),
        None => Err(Error::NotFound { kind: "Metadata item", id: key.to_owned() }.into()),
    }
}

/// `GET /volumes/{id}/metadata`.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<Value> {
    shown(&state.control.volume(&caller, &id).await?.volume.row.metadata)
}

async fn set_volume(
    state: &AppState,
    caller: &Caller,
    id: &str,
    set: BTreeMap<String, String>,
    replace: bool,
) -> Result<BTreeMap<String, String>, Fault> {
    let view = state.control.volume_properties_set(caller, id, Properties::Own, set, replace).await?;
    Ok(view.volume.row.metadata.clone())
}

/// `POST /volumes/{id}/metadata`.
pub(super) async fn add(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<MetadataBody>,
) -> Answer<Value> {
    shown(&set_volume(&state, &caller, &id, properties(&body.metadata)?, false).await?)
}

/// `PUT /volumes/{id}/metadata`.
pub(super) async fn replace(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<MetadataBody>,
) -> Answer<Value> {
    shown(&set_volume(&state, &caller, &id, properties(&body.metadata)?, true).await?)
}

/// `GET /volumes/{id}/metadata/{key}`.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, key)): Segments<(String, String)>,
) -> Answer<Value> {
    item(&state.control.volume(&caller, &id).await?.volume.row.metadata, &key)
}

/// `PUT /volumes/{id}/metadata/{key}`.
pub(super) async fn set(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, key)): Segments<(String, String)>,
    Body(body): Body<MetaBody>,
) -> Answer<Value> {
    item(&set_volume(&state, &caller, &id, body.one(&key)?, false).await?, &key)
}

/// `DELETE /volumes/{id}/metadata/{key}`.
pub(super) async fn unset(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, key)): Segments<(String, String)>,
) -> Result<StatusCode, Fault> {
    state.control.volume_property_unset(&caller, &id, Properties::Own, &key).await?;
    Ok(StatusCode::OK)
}

async fn set_snapshot(
    state: &AppState,
    caller: &Caller,
    id: &str,
    set: BTreeMap<String, String>,
    replace: bool,
) -> Result<BTreeMap<String, String>, Fault> {
    let change = |snapshot: &mut control::model::volume::Snapshot| {
        if replace {
            snapshot.metadata.clear();
        }
        snapshot.metadata.extend(set.clone());
        Ok(())
    };
    let stored = state.control.volume_snapshot_update(caller, id, change).await?;
    Ok(stored.row.metadata.clone())
}

/// `GET /snapshots/{id}/metadata`.
pub(super) async fn snapshot_list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<Value> {
    shown(&state.control.volume_snapshot(&caller, &id).await?.row.metadata)
}

/// `POST /snapshots/{id}/metadata`.
pub(super) async fn snapshot_add(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<MetadataBody>,
) -> Answer<Value> {
    shown(&set_snapshot(&state, &caller, &id, properties(&body.metadata)?, false).await?)
}

/// `PUT /snapshots/{id}/metadata`.
pub(super) async fn snapshot_replace(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<MetadataBody>,
) -> Answer<Value> {
    shown(&set_snapshot(&state, &caller, &id, properties(&body.metadata)?, true).await?)
}

/// `GET /snapshots/{id}/metadata/{key}`.
pub(super) async fn snapshot_show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, key)): Segments<(String, String)>,
) -> Answer<Value> {
    item(&state.control.volume_snapshot(&caller, &id).await?.row.metadata, &key)
}

/// `PUT /snapshots/{id}/metadata/{key}`.
pub(super) async fn snapshot_set(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, key)): Segments<(String, String)>,
    Body(body): Body<MetaBody>,
) -> Answer<Value> {
    item(&set_snapshot(&state, &caller, &id, body.one(&key)?, false).await?, &key)
}

/// `DELETE /snapshots/{id}/metadata/{key}`.
pub(super) async fn snapshot_unset(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, key)): Segments<(String, String)>,
) -> Result<StatusCode, Fault> {
    let remove = |snapshot: &mut control::model::volume::Snapshot| match snapshot.metadata.remove(&key) {
        Some(_) => Ok(()),
        None => Err(Error::NotFound { kind: "Metadata item", id: key.clone() }),
    };
    state.control.volume_snapshot_update(&caller, &id, remove).await?;
    Ok(StatusCode::OK)
}
