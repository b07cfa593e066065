//! The types that projects' volumes have if none is said (Block Storage API: default types, microversion 3.62).

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::since;
use crate::context::{Answer, AppState, Authenticated, Body, Segments};
use crate::error::Fault;
use crate::microversion::Microversion;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DefaultBody {
    default_type: DefaultFields,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DefaultFields {
    volume_type: String,
}

/// `GET /default-types` (microversion 3.62).
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
) -> Answer<Value> {
    since(version, 62)?;
    let rows = state.control.volume_type_defaults(&caller, None).await?;
    let shown: Vec<Value> =
        rows.iter().map(|row| json!({"project_id": row.id, "volume_type_id": row.type_id})).collect();
    Ok(Json(json!({"default_types": shown})))
}

/// `GET /default-types/{project}`.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(project): Segments<String>,
) -> Answer<Value> {
    since(version, 62)?;
    let rows = state.control.volume_type_defaults(&caller, Some(&project)).await?;
    let row = rows.first().ok_or(Fault::NoRoute)?;
    Ok(Json(json!({"default_type": {"project_id": row.id, "volume_type_id": row.type_id}})))
}

/// `PUT /default-types/{project}`.
pub(super) async fn set(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(project): Segments<String>,
    Body(body): Body<DefaultBody>,
) -> Answer<Value> {
    since(version, 62)?;
    let wished = body.default_type.volume_type;
    let row = state.control.volume_type_default_set(&caller, &project, Some(&wished)).await?;
    let type_id = row.map(|row| row.type_id);
    Ok(Json(json!({"default_type": {"project_id": project, "volume_type_id": type_id}})))
}

/// `DELETE /default-types/{project}`.
pub(super) async fn unset(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(project): Segments<String>,
) -> Result<StatusCode, Fault> {
    since(version, 62)?;
    state.control.volume_type_default_set(&caller, &project, None).await?;
    Ok(StatusCode::NO_CONTENT)
}
