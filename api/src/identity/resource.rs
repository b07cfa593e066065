//! Listing, showing, making, changing and deleting, the same for all resources; what differs is a [`Resource`] each.

use std::borrow::Cow;

use axum::Json;
use axum::extract::State;
use control::boolean;
use control::caller::Caller;
use control::model::identity::Extra;
use control::service::identity::Entity;
use control::store::{Row, Stored};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::ser::{Error as _, SerializeMap};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use super::fields::{Fields, Result};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, RequestUrl, Segments};
use crate::error::Fault;
use crate::openapi::answer::{Created, DONE, Done, Status};
use crate::openapi::{At, get};
use crate::page::{Direction, KeystoneLinks, Page, SortValue};

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

    /// What a client sees of one, but for `links` and what else was given with it.
    type Own: Serialize + JsonSchema + Send;
    /// Whether anything else may be given with one, and is shown beside its own fields.
    const OPEN: bool = true;

    /// What a client sees of one.
    fn show(state: &AppState, row: &Self::Row) -> Self::Own;

    /// What else was given with it.
    fn extra(_: &Self::Row) -> Option<&Extra> {
        None
    }

    /// Whether a list with these filters has it.
    fn wanted(filters: &Filters, row: &Self::Row) -> Result<bool, Fault>;

    /// A new one, before its fields are applied.
    fn blank(state: &AppState, caller: &Caller, fields: &mut Fields) -> Result<Self::Row>;

    /// Takes the fields of a body.
    fn apply(row: &mut Self::Row, fields: Fields) -> Result<()>;
}

/// Where one is.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Links {
    #[serde(rename = "self")]
    pub(super) own: String,
}

/// One with its links. What else was given with it stands beside its fields, which win over anything of the same name.
pub(super) struct Shown<R: Resource> {
    pub(super) own: R::Own,
    pub(super) extra: Extra,
    pub(super) links: Links,
}

/// What else was given beside a resource's own fields, which win.
pub(super) fn beside(extra: &Extra, own: &impl Serialize) -> Result<Object, serde_json::Error> {
    let mut body: Object = extra.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    if let Value::Object(own) = serde_json::to_value(own)? {
        body.extend(own);
    }
    Ok(body)
}

impl<R: Resource> Serialize for Shown<R> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut body = beside(&self.extra, &self.own).map_err(S::Error::custom)?;
        body.insert("links".into(), serde_json::to_value(&self.links).map_err(S::Error::custom)?);
        body.serialize(serializer)
    }
}

impl<R: Resource> JsonSchema for Shown<R> {
    fn schema_name() -> Cow<'static, str> {
        let mut letters = R::ONE.chars();
        letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect()
    }

    fn schema_id() -> Cow<'static, str> {
        std::any::type_name::<R>().into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = R::Own::json_schema(generator);
        let links = generator.subschema_for::<Links>();
        if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
            properties.insert("links".into(), links.to_value());
        }
        if let Some(required) = schema.get_mut("required").and_then(Value::as_array_mut) {
            required.push("links".into());
        }
        schema.insert("additionalProperties".into(), R::OPEN.into());
        schema
    }
}

/// One in its envelope.
pub(super) struct One<R: Resource>(pub(super) Shown<R>);

impl<R: Resource> Serialize for One<R> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry(R::ONE, &self.0)?;
        map.end()
    }
}

impl<R: Resource> JsonSchema for One<R> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        R::ONE.into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let one = generator.subschema_for::<Shown<R>>();
        json_schema!({"type": "object", "properties": {R::ONE: one}, "required": [R::ONE]})
    }
}

/// Several in their envelope, with the links of a list.
pub(super) struct Many<R: Resource> {
    pub(super) rows: Vec<Shown<R>>,
    pub(super) links: KeystoneLinks,
}

impl<R: Resource> Serialize for Many<R> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry(R::MANY, &self.rows)?;
        map.serialize_entry("links", &self.links)?;
        map.end()
    }
}

impl<R: Resource> JsonSchema for Many<R> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        R::MANY.into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let rows = generator.subschema_for::<Vec<Shown<R>>>();
        let links = generator.subschema_for::<KeystoneLinks>();
        json_schema!({
            "type": "object", "properties": {R::MANY: rows, "links": links}, "required": [R::MANY, "links"],
        })
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
pub(super) fn body<R: Resource>(state: &AppState, row: &R::Row) -> Shown<R> {
    let links = Links { own: own_url(state, R::PATH, row.id()) };
    Shown { own: R::show(state, row), extra: R::extra(row).cloned().unwrap_or_default(), links }
}

/// The URL of one.
pub(super) fn own_url(state: &AppState, path: &str, id: &str) -> String {
    format!("{}/identity/v3/{path}/{id}", state.public_url())
}

/// One in its envelope.
pub(super) fn one<R: Resource>(state: &AppState, stored: &Stored<R::Row>) -> Json<One<R>> {
    Json(One(body::<R>(state, &stored.row)))
}

/// A page of rows in their envelope.
pub(super) fn page<R: Resource>(
    state: &AppState,
    filters: &Filters,
    url: &RequestUrl,
    rows: Vec<std::sync::Arc<Stored<R::Row>>>,
) -> Answer<Many<R>> {
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
    let (rows, links) = slice.keystone(url, |stored| body::<R>(state, &stored.row));
    Ok(Json(Many { rows, links }))
}

/// A list in its envelope that is short by nature.
pub(super) fn whole<R: Resource>(rows: Vec<Shown<R>>, url: &RequestUrl) -> Json<Many<R>> {
    Json(Many { rows, links: KeystoneLinks::whole(url) })
}

/// Lists.
pub(super) async fn list<R: Resource>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Many<R>> {
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
) -> Answer<One<R>> {
    let stored = state.control.entity_get::<R::Row>(&caller, &id).await?;
    Ok(one::<R>(&state, &stored))
}

/// Makes.
pub(super) async fn create<R: Resource>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(body): Body<Object>,
) -> Result<Created<One<R>>, Fault> {
    let row = new_row::<R>(&state, &caller, Fields::of(body, R::ONE, true)?)?;
    let stored = state.control.entity_create(&caller, row).await?;
    Ok(Status(one::<R>(&state, &stored)))
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
) -> Answer<One<R>> {
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
) -> Result<Done, Fault> {
    state.control.entity_delete::<R::Row>(&caller, &id).await?;
    Ok(DONE)
}

/// Whether a row whose `key` is this yes or no is wanted. Keystone (`attr_as_boolean`) takes for yes what is none of oslo's words: a
/// key that stands alone says yes.
pub(super) fn fits_flag(filters: &Filters, key: &str, value: bool) -> bool {
    filters.get(key).is_none_or(|wanted| boolean::from_text(wanted).unwrap_or(true) == value)
}

/// Whether something is asked for by a query's word that is no field of a row. Unlike oslo's rule, all but `0` asks for it, `false`
/// too (Keystone, `query_filter_is_true`).
pub(super) fn asks(filters: &Filters, key: &str) -> bool {
    filters.get(key).is_some_and(|text| text != "0")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_queries_are_what_keystone_takes_them_for() {
        let filters = Filters::of(&"/x?a=0&b=false&c&d=No&e=maybe".parse().unwrap()).unwrap();
        for (key, asked, is_yes) in [
            ("a", false, false),
            ("b", true, false),
            ("c", true, true),
            ("d", true, false),
            ("e", true, true),
        ] {
            assert_eq!(asks(&filters, key), asked, "{key}");
            assert_eq!((fits_flag(&filters, key, true), fits_flag(&filters, key, false)), (is_yes, !is_yes));
        }
        assert!(!asks(&filters, "absent"));
        assert!(fits_flag(&filters, "absent", true) && fits_flag(&filters, "absent", false));
    }
}
