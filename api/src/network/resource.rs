//! Resources that are listed, shown and deleted in the same way: what differs is their type, their names, and how one is
//! shown.

use axum::extract::State;
use control::Control;
use control::caller::Caller;
use control::error::Error;
use control::service::network_resource::NetworkResource;

use super::listing::{Listed, listing, shown};
use super::shown::{Chosen, One, Shown};
use crate::context::{Answer, AppState, Authenticated, Filters, RequestUrl, Segments};
use crate::error::Fault;
use crate::openapi::answer::{DONE, Done};

/// A kind of resources.
pub(super) trait Resource: NetworkResource {
    /// What it is shown as.
    type View: Shown;

    /// One as it is shown.
    fn view(&self, state: &AppState, caller: &Caller) -> Self::View;

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
) -> Answer<Listed<T::View>> {
    let rows = state.control.network_resources::<T>(&caller).await?;
    listing(rows.iter().map(|stored| stored.row.view(&state, &caller)), &filters, &url)
}

/// `GET /v2.0/{collection}/{id}`.
pub(super) async fn show<T: Resource>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    filters: Filters,
) -> Answer<One<Chosen<T::View>>> {
    let stored = state.control.network_resource::<T>(&caller, &id).await?;
    Ok(shown(&stored.row.view(&state, &caller), &filters))
}

/// `DELETE /v2.0/{collection}/{id}`.
pub(super) async fn delete<T: Resource>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<Done, Fault> {
    T::delete(&state.control, &caller, &id).await?;
    Ok(DONE)
}
