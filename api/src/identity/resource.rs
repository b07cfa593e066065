//! Listing, showing, making, changing and deleting, the same for all resources; what differs is a [`Resource`] each.

use super::fields::Result;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use control::caller::Caller;
use control::service::identity::Entity;
use control::store::{Row, Stored};
use serde_json::{Map, Value, json};

use super::done;
use super::fields::Fields;
use crate::context::{Answer, AppState, Authenticated, Body, Filters, RequestUrl, Segments};
use crate::error::Fault;
use crate::openapi::{At, get};
use crate::page::{Direction, Page, SortValue};

/// A body as it comes.
pub(super) type Object = Map<String, Value>;

/// A resource as clients see it.
pub(super) trait Resource: 'static {
    /// Its row.
    type Row: Entity;
    /// What one is called in a body.
    const ONE: &'static str;
    /// What several are called in a body.
    const MANY: &'static str;
    /// Where they are, below `/identity/v3`.
    const PATH: &'static str;

    /// Its fields but for `links`.
    fn show(state: &AppState, row: &Self::Row) -> Map<String, Value>;

    /// Whether a list with these filters has it.
    fn wanted(filters: &Filters, row: &Self::Row) -> Result<bool, Fault>;

    /// A new one, before its fields are applied.
    fn blank(state: &AppState, caller: &Caller, fields: &mut Fields) -> Result<Self::Row>;

    /// Takes the fields of a body.
    fn apply(row: &mut Self::Row, fields: Fields) -> Result<()>;

    /// Its links but for `self`.
    fn links(_state: &AppState, _row: &Self::Row) -> Map<String, Value> {
        Map::new()
    }
}

/// The routes of a whole collection.
pub(super) fn collection<R: Resource>() -> At {
    get(list::<R>).post(create::<R>)
}

/// The routes of one.
pub(super) fn single<R: Resource>() -> At {
    get(show::<R>).patch(update::<R>).delete(delete::<R>)
}

/// One with its links.
pub(super) fn body<R: Resource>(state: &AppState, row: &R::Row) -> Value {
    let mut body = R::show(state, row);
    let mut links = R::links(state, row);
    links.insert("self".into(), own_url(state, R::PATH, row.id()).into());
    body.insert("links".into(), Value::Object(links));
    Value::Object(body)
}

/// The URL of one.
pub(super) fn own_url(state: &AppState, path: &str, id: &str) -> String {
    format!("{}/identity/v3/{path}/{id}", state.public_url())
}

/// One in its envelope.
pub(super) fn one<R: Resource>(state: &AppState, stored: &Stored<R::Row>) -> Json<Value> {
    Json(json!({ R::ONE: body::<R>(state, &stored.row) }))
}

/// A page of rows in their envelope.
pub(super) fn page<R: Resource>(
    state: &AppState,
    filters: &Filters,
    url: &RequestUrl,
    rows: Vec<std::sync::Arc<Stored<R::Row>>>,
) -> Answer<Value> {
    let page = Page::of(filters, &[("name", Direction::Ascending)])?;
    let slice = page.cut(
        rows,
        |stored| stored.row.id(),
        |stored, key| match key {
            "name" => Some(SortValue::from(stored.row.label())),
            "id" => Some(SortValue::from(stored.row.id())),
            _ => None,
        },
    )?;
    Ok(Json(slice.keystone(R::MANY, url, |stored| body::<R>(state, &stored.row))))
}

/// A list in its envelope that is short by nature.
pub(super) fn whole(name: &str, rows: Vec<Value>, url: &RequestUrl) -> Json<Value> {
    Json(json!({ name: rows, "links": {"self": url.itself(), "next": null, "previous": null} }))
}

/// Lists.
pub(super) async fn list<R: Resource>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Value> {
    let mut rows = Vec::new();
    for stored in state.control.entity_list::<R::Row>(&caller).await? {
        if R::wanted(&filters, &stored.row)? {
            rows.push(stored);
        }
    }
    page::<R>(&state, &filters, &url, rows)
}

/// Shows.
pub(super) async fn show<R: Resource>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<Value> {
    let stored = state.control.entity_get::<R::Row>(&caller, &id).await?;
    Ok(one::<R>(&state, &stored))
}

/// Makes.
pub(super) async fn create<R: Resource>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(body): Body<Object>,
) -> Result<Response, Fault> {
    let row = new_row::<R>(&state, &caller, Fields::of(body, R::ONE, true)?)?;
    let stored = state.control.entity_create(&caller, row).await?;
    Ok((StatusCode::CREATED, one::<R>(&state, &stored)).into_response())
}

/// A new row of these fields.
pub(super) fn new_row<R: Resource>(state: &AppState, caller: &Caller, mut fields: Fields) -> Result<R::Row> {
    let mut row = R::blank(state, caller, &mut fields)?;
    R::apply(&mut row, fields)?;
    Ok(row)
}

/// Changes.
pub(super) async fn update<R: Resource>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<Object>,
) -> Answer<Value> {
    let fields = Fields::of(body, R::ONE, false)?;
    let change = |row: &mut R::Row| R::apply(row, fields.clone());
    let stored = state.control.entity_update(&caller, &id, change).await?;
    Ok(one::<R>(&state, &stored))
}

/// Deletes.
pub(super) async fn delete<R: Resource>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<Response, Fault> {
    state.control.entity_delete::<R::Row>(&caller, &id).await?;
    Ok(done())
}

/// Whether a text fits Keystone's filters of a key: itself, and `key__contains` and the like.
pub(super) fn fits(filters: &Filters, key: &str, value: &str) -> bool {
    filters.pairs().iter().all(|(name, wanted)| {
        let Some(rest) = name.strip_prefix(key) else { return true };
        let (low, wanted_low) = (value.to_lowercase(), wanted.to_lowercase());
        match rest {
            "" => value == wanted,
            "__contains" => value.contains(wanted.as_str()),
            "__icontains" => low.contains(&wanted_low),
            "__startswith" => value.starts_with(wanted.as_str()),
            "__istartswith" => low.starts_with(&wanted_low),
            "__endswith" => value.ends_with(wanted.as_str()),
            "__iendswith" => low.ends_with(&wanted_low),
            _ => true,
        }
    })
}

/// The extra values of a resource as the beginning of its body.
pub(super) fn extra(extra: &control::model::identity::Extra) -> Map<String, Value> {
    extra.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Adds the members of an object to a body.
pub(super) fn with(mut body: Map<String, Value>, more: Value) -> Map<String, Value> {
    if let Value::Object(more) = more {
        body.extend(more);
    }
    body
}
