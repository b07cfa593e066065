//! Tags of servers on the wire (Compute API: server tags, microversion 2.26).

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderName, header};
use control::error::Error;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::since;
use crate::context::{Answer, AppState, Authenticated, Body, Segments};
use crate::error::Fault;
use crate::microversion::Microversion;
use crate::openapi::answer::{DONE, Done, Either, Status};

/// The tags of a server.
#[derive(Serialize, JsonSchema)]
pub(super) struct Tags {
    tags: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TagsBody {
    tags: Vec<String>,
}

/// `GET /servers/{id}/tags`.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
) -> Answer<Tags> {
    since(version, 26)?;
    let server = state.control.server_seen(&caller, &id, "os_compute_api:os-server-tags:index").await?;
    Ok(Json(Tags { tags: server.row.tags.clone() }))
}

/// `PUT /servers/{id}/tags`.
pub(super) async fn replace(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
    Body(body): Body<TagsBody>,
) -> Answer<Tags> {
    since(version, 26)?;
    let change = |tags: &mut Vec<String>| {
        tags.clone_from(&body.tags);
        Ok(())
    };
    let server = state.control.server_change_tags(&caller, &id, change).await?;
    Ok(Json(Tags { tags: server.tags }))
}

/// `DELETE /servers/{id}/tags`.
pub(super) async fn clear(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
) -> Result<Done, Fault> {
    since(version, 26)?;
    let change = |tags: &mut Vec<String>| {
        tags.clear();
        Ok(())
    };
    state.control.server_change_tags(&caller, &id, change).await?;
    Ok(DONE)
}

/// `GET /servers/{id}/tags/{tag}`: 204 if it is there.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments((id, tag)): Segments<(String, String)>,
) -> Result<Done, Fault> {
    since(version, 26)?;
    let server = state.control.server_seen(&caller, &id, "os_compute_api:os-server-tags:show").await?;
    let there = server.row.tags.contains(&tag);
    if there { Ok(DONE) } else { Err(Error::not_found("Tag", tag).into()) }
}

/// `PUT /servers/{id}/tags/{tag}`: 201 if it was not there, 204 if it was.
pub(super) async fn set(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments((id, tag)): Segments<(String, String)>,
) -> Result<([(HeaderName, String); 1], Either<Status<201, ()>, Done>), Fault> {
    since(version, 26)?;
    let before = state.control.server(&caller, &id).await?;
    let change = |tags: &mut Vec<String>| {
        tags.push(tag.clone());
        Ok(())
    };
    state.control.server_change_tags(&caller, &id, change).await?;
    let was_there = before.row.tags.contains(&tag);
    let answer = if was_there { Either::Other(DONE) } else { Either::One(Status(())) };
    let location = format!("{}/compute/v2.1/servers/{id}/tags/{tag}", state.public_url());
    Ok(([(header::LOCATION, location)], answer))
}

/// `DELETE /servers/{id}/tags/{tag}`.
pub(super) async fn unset(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments((id, tag)): Segments<(String, String)>,
) -> Result<Done, Fault> {
    since(version, 26)?;
    let change = |tags: &mut Vec<String>| {
        let before = tags.len();
        tags.retain(|own| *own != tag);
        if tags.len() == before { Err(Error::not_found("Tag", &tag)) } else { Ok(()) }
    };
    state.control.server_change_tags(&caller, &id, change).await?;
    Ok(DONE)
}
