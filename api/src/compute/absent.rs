//! What the compute API has and Wisp does not: lists of it are empty, changes of it are not implemented.

use std::convert::Infallible;

use axum::Json;
use axum::extract::State;
use control::policy::{require_admin, require_list};
use schemars::JsonSchema;
use serde::Serialize;

use super::{Nothing, require_anyone, since};
use crate::context::{Answer, AppState, Authenticated, Segments};
use crate::error::Fault;
use crate::microversion::Microversion;
use crate::openapi::answer::{DONE, Done};

/// What is not there at all.
type Absent = Result<Infallible, Fault>;

#[derive(Serialize, JsonSchema)]
pub(super) struct Password {
    /// Always empty.
    password: &'static str,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct Migrations {
    migrations: Nothing,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct Topology {
    nodes: Nothing,
    /// Always null.
    pagesize_kb: Option<u64>,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct Aggregates {
    aggregates: Nothing,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct ServerGroups {
    server_groups: Nothing,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct Extensions {
    extensions: Nothing,
}

/// `GET /servers/{id}/os-server-password`: none was ever set.
pub(super) async fn server_password(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<Password> {
    state.control.server_seen(&caller, &id, "os_compute_api:os-server-password:show").await?;
    Ok(Json(Password { password: "" }))
}

/// `DELETE /servers/{id}/os-server-password`.
pub(super) async fn server_password_clear(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<Done, Fault> {
    state.control.server(&caller, &id).await?;
    Ok(DONE)
}

/// `GET /servers/{id}/migrations`.
pub(super) async fn server_migrations(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
) -> Answer<Migrations> {
    since(version, 23)?;
    state.control.server_seen(&caller, &id, "os_compute_api:servers:migrations:index").await?;
    Ok(Json(Migrations { migrations: [] }))
}

/// `POST /servers/{id}/remote-consoles`.
pub(super) async fn remote_consoles(
    state: State<AppState>,
    caller: Authenticated,
    version: Microversion,
    id: Segments<String>,
) -> Absent {
    since(version, 6)?;
    of_server(state, caller, id, "a remote console").await
}

/// `GET /servers/{id}/topology`: no guest is given NUMA nodes.
pub(super) async fn topology(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
) -> Answer<Topology> {
    since(version, 78)?;
    state.control.server_seen(&caller, &id, "compute:server:topology:index").await?;
    Ok(Json(Topology { nodes: [], pagesize_kb: None }))
}

/// `GET /os-aggregates`.
pub(super) async fn aggregates(Authenticated(caller): Authenticated) -> Answer<Aggregates> {
    require_admin(&caller, "os_compute_api:os-aggregates:index")?;
    Ok(Json(Aggregates { aggregates: [] }))
}

/// `POST /os-aggregates`.
pub(super) async fn aggregate_create(Authenticated(caller): Authenticated) -> Absent {
    require_admin(&caller, "os_compute_api:os-aggregates:create")?;
    Err(Fault::not_implemented("host aggregates"))
}

/// `GET /os-migrations`.
pub(super) async fn migrations(Authenticated(caller): Authenticated) -> Answer<Migrations> {
    require_admin(&caller, "os_compute_api:os-migrations:index")?;
    Ok(Json(Migrations { migrations: [] }))
}

/// `GET /os-agents`: guest agents of a hypervisor that Nova no longer has either.
pub(super) async fn agents(_: Authenticated) -> Absent {
    Err(Fault::NoRoute)
}

/// `GET /os-server-groups`.
pub(super) async fn server_groups(Authenticated(caller): Authenticated) -> Answer<ServerGroups> {
    require_list(&caller, "os_compute_api:os-server-groups:index")?;
    Ok(Json(ServerGroups { server_groups: [] }))
}

/// `POST /os-server-groups`.
pub(super) async fn server_group_create(_: Authenticated) -> Absent {
    Err(Fault::not_implemented("server groups"))
}

/// `GET /os-simple-tenant-usage` and of one project.
pub(super) async fn usages(_: Authenticated) -> Absent {
    Err(Fault::not_implemented("usage over time"))
}

/// `GET /extensions`: everything is in the core since Nova has microversions.
pub(super) async fn extensions(Authenticated(caller): Authenticated) -> Answer<Extensions> {
    require_anyone(&caller, "os_compute_api:extensions")?;
    Ok(Json(Extensions { extensions: [] }))
}

async fn of_server(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    what: &'static str,
) -> Absent {
    state.control.server(&caller, &id).await?;
    Err(Fault::not_implemented(what))
}
