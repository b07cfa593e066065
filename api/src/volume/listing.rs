//! What all lists of this service are asked with, and how they answer: filtered, sorted, in pages, with links and a count.
//!
//! Must never know: any one resource.

use std::borrow::Cow;
use std::marker::PhantomData;
use std::sync::Arc;

use axum::Json;
use axum::extract::{FromRef, FromRequestParts};
use axum::http::request::Parts;
use control::caller::Caller;
use control::store::{Row, Stored};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::json;

use super::filter::Tests;
use super::paged;
use crate::context::{Answer, AppState, Authenticated, Filters, RequestUrl};
use crate::error::Fault;
use crate::microversion::Microversion;
use crate::openapi::{Extracted, Operation};
use crate::page::{NextLink, SortValue};

/// What can be listed.
pub(super) trait Listed: Row {
    /// What the rows are called in an answer.
    const MANY: &'static str;
    /// The columns that they are sorted by.
    const SORT_KEYS: &'static [&'static str];
    /// The words of the query that choose among them.
    const FILTERS: &'static [&'static str];
}

/// A request for a list of `R`.
pub(super) struct Listing<R> {
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
    of: PhantomData<R>,
}

impl<R: Listed> FromRequestParts<AppState> for Listing<R> {
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
            of: PhantomData,
        })
    }
}

/// The rows of a list.
pub(super) type Rows<R> = Vec<Arc<Stored<R>>>;

impl<R: Listed> Extracted for Listing<R> {
    fn describe(operation: &mut Operation) {
        Authenticated::describe(operation);
        let text = || json!({"type": "string"});
        let count = || json!({"type": "integer", "minimum": 0});
        let flag = || json!({"type": "boolean"});
        operation.query("limit", count());
        operation.query("offset", count());
        operation.query("marker", text());
        operation.query("sort", text());
        operation.query("sort_key", json!({"type": "string", "enum": R::SORT_KEYS}));
        operation.query("sort_dir", json!({"type": "string", "enum": ["asc", "desc"]}));
        operation.query("all_tenants", flag());
        operation.query("with_count", flag());
        for word in R::FILTERS {
            operation.query(word, text());
        }
    }
}

impl<R: Listed> Listing<R> {
    /// Rows of all projects were asked for; only administrators get them.
    pub(super) fn all(&self) -> Result<bool, Fault> {
        Ok(self.filters.flag("all_tenants")?.unwrap_or(false))
    }

    /// What the query asks of the rows.
    pub(super) fn tests(&self) -> Result<Tests, Fault> {
        Tests::of(&self.filters, self.version, R::FILTERS)
    }

    /// The path that was asked for, without its query.
    pub(super) fn path(&self) -> String {
        let target = self.url.target_with_marker(None);
        target.split('?').next().unwrap_or_default().to_owned()
    }

    /// One page of `rows`.
    pub(super) fn page<T>(
        &self,
        rows: Rows<R>,
        sort: impl Fn(&R, &str) -> Option<SortValue>,
        show: impl Fn(Arc<Stored<R>>) -> T,
    ) -> Answer<Page<R, T>> {
        let value = |stored: &Arc<Stored<R>>, key: &str| sort(&stored.row, key);
        let slice = paged(&self.filters, rows, |stored| stored.row.id(), R::SORT_KEYS, value)?;
        let (rows, links) = slice.with_links(&self.url, show);
        Ok(Json(Page { rows, links, count: None, of: PhantomData }))
    }

    /// As [`Listing::page`], with how many there are in all where that was asked for (microversion 3.45).
    pub(super) fn counted_page<T>(
        &self,
        rows: Rows<R>,
        sort: impl Fn(&R, &str) -> Option<SortValue>,
        show: impl Fn(Arc<Stored<R>>) -> T,
    ) -> Answer<Page<R, T>> {
        let count = rows.len();
        let Json(page) = self.page(rows, sort, show)?;
        let counted = self.version.at_least(3, 45) && self.filters.flag("with_count")?.unwrap_or(false);
        Ok(Json(Page { count: counted.then_some(count), ..page }))
    }
}

/// A page of rows as they are shown, under their name, with a link to the next and how many there are in all.
pub(super) struct Page<R, T> {
    rows: Vec<T>,
    links: Option<NextLink>,
    count: Option<usize>,
    of: PhantomData<R>,
}

impl<R: Listed, T: Serialize> Serialize for Page<R, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry(R::MANY, &self.rows)?;
        if let Some(links) = &self.links {
            map.serialize_entry(&format!("{}_links", R::MANY), links)?;
        }
        if let Some(count) = &self.count {
            map.serialize_entry("count", count)?;
        }
        map.end()
    }
}

impl<R: Listed, T: JsonSchema> JsonSchema for Page<R, T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        R::MANY.into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let rows = generator.subschema_for::<Vec<T>>();
        let links = generator.subschema_for::<NextLink>();
        let count = generator.subschema_for::<usize>();
        json_schema!({
            "type": "object",
            "properties": {R::MANY: rows, format!("{}_links", R::MANY): links, "count": count},
            "required": [R::MANY],
        })
    }
}

/// What is shown of a row, with `…/detail` or without.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum Detail<F, B> {
    Full(F),
    Brief(B),
}
