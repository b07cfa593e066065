//! Tags of resources on the wire (Network API v2.0: tag operations), the same for every taggable collection.

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::State;
use control::service::tag::{TagChange, Taggable};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Created;
use crate::context::{Answer, AppState, Authenticated, Body, Segments};
use crate::error::Fault;
use crate::openapi::answer::{DONE, Done, Status};
use crate::openapi::{Routes, get};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TagsBody {
    tags: BTreeSet<String>,
}

/// The tags of a resource.
#[derive(Serialize, JsonSchema)]
struct Tags {
    tags: BTreeSet<String>,
}

/// The routes of the tags of a collection.
pub(super) fn routes<T: Taggable>(collection: &str) -> Routes {
    let tags = format!("/v2.0/{collection}/{{id}}/tags");
    Routes::new()
        .route(&tags, get(list::<T>).put(replace::<T>).post(add::<T>).delete(clear::<T>))
        .route(&format!("{tags}/{{tag}}"), get(show::<T>).put(put::<T>).delete(remove::<T>))
}

async fn list<T: Taggable>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<Tags> {
    Ok(Json(Tags { tags: state.control.tags::<T>(&caller, &id).await? }))
}

async fn replace<T: Taggable>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<TagsBody>,
) -> Answer<Tags> {
    let tags = state.control.tags_change::<T>(&caller, &id, TagChange::Replace(body.tags)).await?;
    Ok(Json(Tags { tags }))
}

/// What was asked to be added is answered, as Neutron does.
async fn add<T: Taggable>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<TagsBody>,
) -> Created<Tags> {
    state.control.tags_change::<T>(&caller, &id, TagChange::Add(body.tags.clone())).await?;
    Ok(Status(Json(Tags { tags: body.tags })))
}

async fn clear<T: Taggable>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<Done, Fault> {
    state.control.tags_change::<T>(&caller, &id, TagChange::Clear).await?;
    Ok(DONE)
}

async fn show<T: Taggable>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, tag)): Segments<(String, String)>,
) -> Result<Done, Fault> {
    match state.control.tags::<T>(&caller, &id).await?.contains(&tag) {
        true => Ok(DONE),
        false => Err(control::error::Error::not_found("Tag", tag).into()),
    }
}

async fn put<T: Taggable>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, tag)): Segments<(String, String)>,
) -> Result<Status<201, ()>, Fault> {
    state.control.tags_change::<T>(&caller, &id, TagChange::AddOne(tag)).await?;
    Ok(Status(()))
}

async fn remove<T: Taggable>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, tag)): Segments<(String, String)>,
) -> Result<Done, Fault> {
    state.control.tags_change::<T>(&caller, &id, TagChange::Remove(tag)).await?;
    Ok(DONE)
}
