//! Sharing an image with projects.

use axum::Json;
use axum::extract::State;
use control::error::Error;
use control::model::image::ImageMember;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::time;
use crate::context::{Answer, AppState, Authenticated, Body, Segments};
use crate::error::Fault;
use crate::openapi::answer::{DONE, Done};

#[derive(Deserialize)]
pub(super) struct New {
    member: String,
}

#[derive(Deserialize)]
pub(super) struct Said {
    status: String,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Member")]
pub(super) struct ShownMember {
    image_id: String,
    member_id: String,
    status: String,
    created_at: String,
    updated_at: String,
    schema: &'static str,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct Members {
    members: Vec<ShownMember>,
    schema: &'static str,
}

fn show_member(member: &ImageMember) -> ShownMember {
    ShownMember {
        image_id: member.image_id.clone(),
        member_id: member.project_id.clone(),
        status: member.status.clone(),
        created_at: time(member.created_at),
        updated_at: time(member.updated_at),
        schema: "/v2/schemas/member",
    }
}

/// Image API v2: list image members.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<Members> {
    let members = state.control.image_member_list(&caller, &id, "get_members").await?;
    let members = members.iter().map(|stored| show_member(&stored.row)).collect();
    Ok(Json(Members { members, schema: "/v2/schemas/members" }))
}

/// Image API v2: show image member details.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, project)): Segments<(String, String)>,
) -> Answer<ShownMember> {
    let members = state.control.image_member_list(&caller, &id, "get_member").await?;
    let member = members.iter().find(|stored| stored.row.project_id == project);
    Ok(Json(show_member(&member.ok_or_else(|| Error::not_found("Member", project))?.row)))
}

/// Image API v2: create image member.
pub(super) async fn add(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<New>,
) -> Answer<ShownMember> {
    let stored = state.control.image_member_add(&caller, &id, &body.member).await?;
    Ok(Json(show_member(&stored.row)))
}

/// Image API v2: update image member.
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, project)): Segments<(String, String)>,
    Body(body): Body<Said>,
) -> Answer<ShownMember> {
    let stored = state.control.image_member_update(&caller, &id, &project, &body.status).await?;
    Ok(Json(show_member(&stored.row)))
}

/// Image API v2: delete image member.
pub(super) async fn remove(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, project)): Segments<(String, String)>,
) -> Result<Done, Fault> {
    state.control.image_member_remove(&caller, &id, &project).await?;
    Ok(DONE)
}
