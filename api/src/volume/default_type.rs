//! The types that projects' volumes have if none is said (Block Storage API: default types, microversion 3.62).

use axum::Json;
use axum::extract::State;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::since;
use crate::context::{Answer, AppState, Authenticated, Body, Segments};
use crate::error::Fault;
use crate::microversion::Microversion;
use crate::openapi::answer::{DONE, Done};

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

/// The type of a project's volumes.
#[derive(Serialize, JsonSchema)]
struct DefaultType {
    project_id: String,
    volume_type_id: Option<String>,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct OneDefault {
    default_type: DefaultType,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct Defaults {
    default_types: Vec<DefaultType>,
}

/// `GET /default-types` (microversion 3.62).
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
) -> Answer<Defaults> {
    since(version, 62)?;
    let rows = state.control.volume_type_defaults(&caller, None).await?;
    let shown =
        rows.into_iter().map(|row| DefaultType { project_id: row.id, volume_type_id: Some(row.type_id) });
    Ok(Json(Defaults { default_types: shown.collect() }))
}

/// `GET /default-types/{project}`.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(project): Segments<String>,
) -> Answer<OneDefault> {
    since(version, 62)?;
    let rows = state.control.volume_type_defaults(&caller, Some(&project)).await?;
    let row = rows.into_iter().next().ok_or(Fault::NoRoute)?;
    let default_type = DefaultType { project_id: row.id, volume_type_id: Some(row.type_id) };
    Ok(Json(OneDefault { default_type }))
}

/// `PUT /default-types/{project}`.
pub(super) async fn set(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(project): Segments<String>,
    Body(body): Body<DefaultBody>,
) -> Answer<OneDefault> {
    since(version, 62)?;
    let wished = body.default_type.volume_type;
    let row = state.control.volume_type_default_set(&caller, &project, Some(&wished)).await?;
    let default_type = DefaultType { project_id: project, volume_type_id: row.map(|row| row.type_id) };
    Ok(Json(OneDefault { default_type }))
}

/// `DELETE /default-types/{project}`.
pub(super) async fn unset(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(project): Segments<String>,
) -> Result<Done, Fault> {
    since(version, 62)?;
    state.control.volume_type_default_set(&caller, &project, None).await?;
    Ok(DONE)
}
