//! What all lists of this service are asked with, and how they answer: filtered, sorted, in pages, with links and a count.
//!
//! Must never know: any one resource.

use std::sync::Arc;

use axum::Json;
use axum::extract::{FromRef, FromRequestParts};
use axum::http::request::Parts;
use control::caller::Caller;
use control::store::{Row, Stored};
use serde_json::{Value, json};

use super::paged;
use crate::context::{Answer, AppState, Authenticated, Filters, RequestUrl};
use crate::error::Fault;
use crate::microversion::Microversion;
use crate::page::SortValue;

/// A request for a list.
pub(super) struct Listing {
    /// The cloud.
    pub(super) state: AppState,
    /// Who asks.
    pub(super) caller: Caller,
    /// In which microversion.
    pub(super) version: Microversion,
    /// The query.
    pub(super) filters: Filters,
    /// All that there is to say of each row was asked for (`…/detail`).
    pub(super) detail: bool,
    url: RequestUrl,
}

impl FromRequestParts<AppState> for Listing {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Fault> {
        let Authenticated(caller) = Authenticated::from_request_parts(parts, state).await?;
        Ok(Self {
            caller,
            version: Microversion::from_request_parts(parts, state).await?,
            filters: Filters::from_request_parts(parts, state).await?,
            url: RequestUrl::from_request_parts(parts, state).await?,
            detail: parts.uri.path().ends_with("/detail"),
            state: AppState::from_ref(state),
        })
    }
}

/// The rows of a list.
pub(super) type Rows<R> = Vec<Arc<Stored<R>>>;

impl Listing {
    /// Rows of all projects were asked for; only administrators get them.
    pub(super) fn all(&self) -> Result<bool, Fault> {
        Ok(self.filters.flag("all_tenants")?.unwrap_or(false))
    }

    /// The path that was asked for, without its query.
    pub(super) fn path(&self) -> String {
        let target = self.url.target_with_marker(None);
        target.split('?').next().unwrap_or_default().to_owned()
    }

    /// One page of `rows`, sorted by columns that are among `keys`.
    pub(super) fn page<R: Row>(
        &self,
        collection: &str,
        rows: Rows<R>,
        keys: &[&str],
        sort: impl Fn(&R, &str) -> Option<SortValue>,
        show: impl Fn(Arc<Stored<R>>) -> Value,
    ) -> Answer<Value> {
        let slice =
            paged(&self.filters, rows, |stored| stored.row.id(), keys, |stored, key| sort(&stored.row, key))?;
        Ok(Json(slice.nova(collection, &self.url, show)))
    }

    /// As [`Listing::page`], with how many there are in all where that was asked for (microversion 3.45).
    pub(super) fn counted_page<R: Row>(
        &self,
        collection: &str,
        rows: Rows<R>,
        keys: &[&str],
        sort: impl Fn(&R, &str) -> Option<SortValue>,
        show: impl Fn(Arc<Stored<R>>) -> Value,
    ) -> Answer<Value> {
        let count = rows.len();
        let Json(mut body) = self.page(collection, rows, keys, sort, show)?;
        if self.version.at_least(3, 45) && self.filters.flag("with_count")?.unwrap_or(false) {
            body["count"] = json!(count);
        }
        Ok(Json(body))
    }
}
