//! Properties of servers on the wire (Compute API: server metadata).

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use control::error::Error;
use control::service::server::update::Merge;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::context::{Answer, AppState, Authenticated, Body, Segments};
use crate::error::Fault;
use crate::openapi::answer::{DONE, Done};

/// Properties.
#[derive(Serialize, JsonSchema)]
pub(super) struct Metadata {
    pub(super) metadata: BTreeMap<String, String>,
}

/// One property.
#[derive(Serialize, JsonSchema)]
pub(super) struct Meta {
    pub(super) meta: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MetadataBody {
    pub(super) metadata: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MetaBody {
    pub(super) meta: BTreeMap<String, String>,
}

/// `GET /servers/{id}/metadata`.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<Metadata> {
    let server = state.control.server_seen(&caller, &id, "os_compute_api:server-metadata:index").await?;
    Ok(Json(Metadata { metadata: server.row.metadata.clone() }))
}

/// `POST /servers/{id}/metadata`: the others stay.
pub(super) async fn add(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<MetadataBody>,
) -> Answer<Metadata> {
    let server = state.control.server_set_metadata(&caller, &id, &body.metadata, Merge::Add).await?;
    Ok(Json(Metadata { metadata: server.metadata }))
}

/// `PUT /servers/{id}/metadata`: the others go.
pub(super) async fn replace(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<MetadataBody>,
) -> Answer<Metadata> {
    let server = state.control.server_set_metadata(&caller, &id, &body.metadata, Merge::Replace).await?;
    Ok(Json(Metadata { metadata: server.metadata }))
}

/// `GET /servers/{id}/metadata/{key}`.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, key)): Segments<(String, String)>,
) -> Answer<Meta> {
    let server = state.control.server_seen(&caller, &id, "os_compute_api:server-metadata:show").await?;
    let value = server.row.metadata.get(&key).cloned();
    let value = value.ok_or_else(|| Error::not_found("Metadata item", &key))?;
    Ok(Json(Meta { meta: BTreeMap::from([(key, value)]) }))
}

/// `PUT /servers/{id}/metadata/{key}`.
pub(super) async fn set(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, key)): Segments<(String, String)>,
    Body(body): Body<MetaBody>,
) -> Answer<Meta> {
    if body.meta.len() != 1 || !body.meta.contains_key(&key) {
        return Err(Fault::malformed("Request body and URI mismatch"));
    }
    state.control.server_set_metadata(&caller, &id, &body.meta, Merge::Add).await?;
    Ok(Json(Meta { meta: body.meta }))
}

/// `DELETE /servers/{id}/metadata/{key}`.
pub(super) async fn unset(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, key)): Segments<(String, String)>,
) -> Result<Done, Fault> {
    state.control.server_unset_metadata(&caller, &id, &key).await?;
    Ok(DONE)
}
