//! Resources that are listed, shown and deleted in the same way: what differs is their type, their names, and how one is
//! shown.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use control::Control;
use control::caller::Caller;
use control::error::Error;
use control::service::network_resource::NetworkResource;
use serde_json::Value;

use super::listing::{listing, shown};
use crate::context::{AppState, Authenticated, Filters, RequestUrl, Segments};
use crate::error::Fault;

/// A kind of resources.
pub(super) trait Resource: NetworkResource {
    /// The members of bodies that hold one, and several.
    const NAMES: [&'static str; 2];

    /// One as it is shown.
    fn view(&self, state: &AppState, caller: &Caller) -> Value;

    /// Deletes one.
    fn delete(control: &Control, caller: &Caller, id: &str)
    -> impl Future<Output = Result<(), Error>> + Send;
}

/// `GET /v2.0/{collection}`.
pub(super) async fn list<T: Resource>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    filters: Filters,
    url: RequestUrl,
) -> Result<Json<Value>, Fault> {
    let rows = state.control.network_resources::<T>(&caller).await?;
    let rows = rows.iter().map(|stored| stored.row.view(&state, &caller)).collect();
    listing(T::NAMES[1], rows, &filters, &url)
}

/// `GET /v2.0/{collection}/{id}`.
pub(super) async fn show<T: Resource>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    filters: Filters,
) -> Result<Json<Value>, Fault> {
    let stored = state.control.network_resource::<T>(&caller, &id).await?;
    Ok(shown(T::NAMES[0], stored.row.view(&state, &caller), &filters))
}

/// `DELETE /v2.0/{collection}/{id}`.
pub(super) async fn delete<T: Resource>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<StatusCode, Fault> {
    T::delete(&state.control, &caller, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}
