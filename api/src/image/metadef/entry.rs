//! What is in a namespace of metadata definitions: objects, properties and tags, by the same few handlers.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use control::boolean;
use control::model::metadef::{MetadefEntry, MetadefKind};
use control::service::metadef::EntryWish;
use control::service::metadef_access::require_read;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::super::list::PageLinks;
use super::super::{list, time};
use super::namespace::path;
use super::{Fields, mismatch};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, RequestUrl, Segments};
use crate::error::Fault;
use crate::openapi::answer::{Created, DONE, Done, Status};

/// What a property's schema may say (JSON schema, and Glance's `operators` and `readonly`), and of which type it is.
const PROPERTY_FIELDS: [(&str, Shape); 18] = [
    ("title", Shape::Text),
    ("description", Shape::Text),
    ("type", Shape::Type),
    ("operators", Shape::Texts),
    ("required", Shape::Texts),
    ("minimum", Shape::Number),
    ("maximum", Shape::Number),
    ("minLength", Shape::Count),
    ("maxLength", Shape::Count),
    ("minItems", Shape::Count),
    ("maxItems", Shape::Count),
    ("pattern", Shape::Text),
    ("enum", Shape::Array),
    ("readonly", Shape::Flag),
    ("default", Shape::Anything),
    ("items", Shape::Object),
    ("uniqueItems", Shape::Flag),
    ("additionalItems", Shape::Flag),
];

#[derive(Clone, Copy)]
enum Shape {
    Anything,
    Text,
    Texts,
    Type,
    Number,
    Count,
    Array,
    Flag,
    Object,
}

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];

impl Shape {
    fn fits(self, value: &Value) -> bool {
        match self {
            Self::Anything => true,
            Self::Text => value.is_string(),
            Self::Texts => value.as_array().is_some_and(|list| list.iter().all(Value::is_string)),
            Self::Type => value.as_str().is_some_and(|name| TYPES.contains(&name)),
            Self::Number => value.is_number(),
            Self::Count => value.as_u64().is_some(),
            Self::Array => value.is_array(),
            Self::Flag => value.is_boolean(),
            Self::Object => value.is_object(),
        }
    }
}

fn check_schema(name: &str, schema: &Map<String, Value>) -> Result<(), Fault> {
    let wrong = |why: &str| Err(mismatch("property", &format!("{name}: {why}")));
    for required in ["title", "type"] {
        if !schema.contains_key(required) {
            return wrong(&format!("'{required}' is a required property"));
        }
    }
    for (field, value) in schema {
        match PROPERTY_FIELDS.iter().find(|(known, _)| known == field) {
            None => return wrong(&format!("'{field}' was unexpected")),
            Some((_, shape)) if !shape.fits(value) => {
                return wrong(&format!("'{field}' is not of the right type"));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

pub(super) fn property_wish(name: Option<String>, schema: Value) -> Result<EntryWish, Fault> {
    let mut fields = Fields::of("property", schema)?;
    let own = fields.text("name")?;
    let name = name.or(own).ok_or_else(|| mismatch("property", "'name' is a required property"))?;
    check_schema(&name, &fields.left)?;
    Ok(EntryWish { kind: MetadefKind::Property, name, body: fields.left })
}

pub(super) fn object_wish(body: Value) -> Result<EntryWish, Fault> {
    let mut fields = Fields::of("object", body)?;
    let name = fields.required("name")?;
    let mut body = Map::new();
    if let Some(description) = fields.text("description")? {
        body.insert("description".into(), description.into());
    }
    let required = fields.list("required")?;
    if !required.iter().all(Value::is_string) {
        return Err(mismatch("object", "required is not a list of strings"));
    }
    body.insert("required".into(), required.into());
    let properties = fields.map("properties")?;
    for (name, schema) in &properties {
        let Value::Object(schema) = schema else { return Err(mismatch("object", "a property is no object")) };
        let mut schema = schema.clone();
        schema.remove("name");
        check_schema(name, &schema)?;
    }
    body.insert("properties".into(), properties.into());
    fields.end()?;
    Ok(EntryWish { kind: MetadefKind::Object, name, body })
}

pub(super) fn tag_wish(body: Value) -> Result<EntryWish, Fault> {
    let mut fields = Fields::of("tag", body)?;
    let name = fields.required("name")?;
    fields.end()?;
    Ok(EntryWish { kind: MetadefKind::Tag, name, body: Map::new() })
}

/// An entry of a kind as clients see it.
pub(super) trait Shown: Serialize + JsonSchema {
    /// Its kind.
    const KIND: MetadefKind;

    /// What is seen of it.
    fn of(namespace: &str, entry: &MetadefEntry) -> Self;
}

/// An object: a set of properties, each with its schema.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "MetadefObject")]
pub(super) struct ShownObject {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<Value>,
    required: Vec<String>,
    properties: Map<String, Value>,
    created_at: String,
    updated_at: String,
    #[serde(rename = "self")]
    own: String,
    schema: &'static str,
}

impl Shown for ShownObject {
    const KIND: MetadefKind = MetadefKind::Object;

    fn of(namespace: &str, entry: &MetadefEntry) -> Self {
        let names = entry.body.get("required").and_then(Value::as_array).into_iter().flatten();
        let properties = entry.body.get("properties").and_then(Value::as_object);
        Self {
            name: entry.name.clone(),
            description: entry.body.get("description").cloned(),
            required: names.filter_map(Value::as_str).map(str::to_owned).collect(),
            properties: properties.cloned().unwrap_or_default(),
            created_at: time(entry.created_at),
            updated_at: time(entry.updated_at),
            own: format!("{}/objects/{}", path(namespace), entry.name),
            schema: "/v2/schemas/metadefs/object",
        }
    }
}

impl ShownObject {
    /// Gives its properties the names that they have on a resource.
    pub(super) fn prefix_properties(&mut self, prefix: &str) {
        let old = std::mem::take(&mut self.properties);
        self.properties = old.into_iter().map(|(name, schema)| (format!("{prefix}{name}"), schema)).collect();
        for name in &mut self.required {
            name.insert_str(0, prefix);
        }
    }
}

/// A property: its schema, with its name.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "MetadefProperty")]
pub(super) struct ShownProperty {
    name: String,
    #[serde(flatten)]
    schema: Map<String, Value>,
}

impl Shown for ShownProperty {
    const KIND: MetadefKind = MetadefKind::Property;

    fn of(_: &str, entry: &MetadefEntry) -> Self {
        Self { name: entry.name.clone(), schema: entry.body.clone() }
    }
}

/// A tag.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "MetadefTag")]
pub(super) struct ShownTag {
    name: String,
    created_at: String,
    updated_at: String,
}

impl Shown for ShownTag {
    const KIND: MetadefKind = MetadefKind::Tag;

    fn of(_: &str, entry: &MetadefEntry) -> Self {
        let name = entry.name.clone();
        Self { name, created_at: time(entry.created_at), updated_at: time(entry.updated_at) }
    }
}

#[derive(Serialize, JsonSchema)]
pub(super) struct Objects {
    objects: Vec<ShownObject>,
    #[serde(flatten)]
    page: PageLinks,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct Tags {
    tags: Vec<ShownTag>,
    #[serde(flatten)]
    page: PageLinks,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct Properties {
    properties: BTreeMap<String, ShownProperty>,
}

/// A tag by its name alone.
#[derive(Serialize, JsonSchema)]
pub(super) struct TagName {
    pub(super) name: String,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct TagNames {
    tags: Vec<TagName>,
}

fn wish_of(kind: MetadefKind, body: Value) -> Result<EntryWish, Fault> {
    match kind {
        MetadefKind::Object => object_wish(body),
        MetadefKind::Property => property_wish(None, body),
        MetadefKind::Tag => tag_wish(body),
    }
}

/// A page of a namespace's entries of a kind.
async fn list_entries<T: Shown>(
    schema: &'static str,
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(namespace): Segments<String>,
    filters: Filters,
    url: RequestUrl,
) -> Result<(Vec<T>, PageLinks), Fault> {
    let page = list::page_of(&filters, &["created_at", "updated_at", "name"])?;
    let stored = state.control.metadef_namespace(&caller, &namespace).await?;
    require_read(&caller, &stored.row, rules(T::KIND).1)?;
    let rows = state.control.metadef_entries(&stored.row, T::KIND);
    let slice = page.cut(
        rows,
        |stored| &stored.row.name,
        |stored, key| {
            Some(match key {
                "name" => stored.row.name.as_str().into(),
                "created_at" => stored.row.created_at.into(),
                "updated_at" => stored.row.updated_at.into(),
                _ => return None,
            })
        },
    )?;
    let shown = slice.rows.iter().map(|stored| T::of(&namespace, &stored.row)).collect();
    Ok((shown, list::page_links(schema, &url, slice.next)))
}

/// The rules for showing one of a kind, and all of it.
fn rules(kind: MetadefKind) -> (&'static str, &'static str) {
    match kind {
        MetadefKind::Object => ("get_metadef_object", "get_metadef_objects"),
        MetadefKind::Property => ("get_metadef_property", "get_metadef_properties"),
        MetadefKind::Tag => ("get_metadef_tag", "get_metadef_tags"),
    }
}

async fn show_one<T: Shown>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((namespace, name)): Segments<(String, String)>,
) -> Answer<T> {
    let stored = state.control.metadef_namespace(&caller, &namespace).await?;
    require_read(&caller, &stored.row, rules(T::KIND).0)?;
    let stored = state.control.metadef_entry(&stored.row, T::KIND, &name)?;
    Ok(Json(T::of(&namespace, &stored.row)))
}

async fn add<T: Shown>(
    wish: EntryWish,
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    namespace: &str,
) -> Result<Created<T>, Fault> {
    let made = state.control.metadef_add(&caller, namespace, vec![wish]).await?;
    let row = made.first().ok_or(Fault::NoRoute)?;
    Ok(Status(Json(T::of(namespace, row))))
}

async fn change<T: Shown>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((namespace, name)): Segments<(String, String)>,
    body: Value,
) -> Answer<T> {
    let stored = state.control.metadef_change(&caller, &namespace, &name, wish_of(T::KIND, body)?).await?;
    Ok(Json(T::of(&namespace, &stored.row)))
}

/// The handlers that are the same for every kind.
macro_rules! handlers {
    ($shown:ident, $show:ident, $change:ident, $remove:ident, $clear:ident) => {
        pub(super) async fn $show(
            state: State<AppState>,
            caller: Authenticated,
            path: Segments<(String, String)>,
        ) -> Answer<$shown> {
            show_one(state, caller, path).await
        }

        pub(super) async fn $change(
            state: State<AppState>,
            caller: Authenticated,
            path: Segments<(String, String)>,
            Body(body): Body<Value>,
        ) -> Answer<$shown> {
            change(state, caller, path, body).await
        }

        pub(super) async fn $remove(
            State(state): State<AppState>,
            Authenticated(caller): Authenticated,
            Segments((namespace, name)): Segments<(String, String)>,
        ) -> Result<Done, Fault> {
            state.control.metadef_remove(&caller, &namespace, $shown::KIND, &name).await?;
            Ok(DONE)
        }

        pub(super) async fn $clear(
            State(state): State<AppState>,
            Authenticated(caller): Authenticated,
            Segments(namespace): Segments<String>,
        ) -> Result<Done, Fault> {
            state.control.metadef_clear(&caller, &namespace, $shown::KIND).await?;
            Ok(DONE)
        }
    };
}

handlers!(ShownObject, show_object, change_object, remove_object, clear_objects);
handlers!(ShownProperty, show_property, change_property, remove_property, clear_properties);
handlers!(ShownTag, show_tag, change_tag, remove_tag, clear_tags);

/// Metadata definitions: list objects.
pub(super) async fn list_objects(
    state: State<AppState>,
    caller: Authenticated,
    path: Segments<String>,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Objects> {
    let schema = "/v2/schemas/metadefs/objects";
    let (objects, page) = list_entries(schema, state, caller, path, filters, url).await?;
    Ok(Json(Objects { objects, page }))
}

/// Metadata definitions: list tags.
pub(super) async fn list_tags(
    state: State<AppState>,
    caller: Authenticated,
    path: Segments<String>,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Tags> {
    let schema = "/v2/schemas/metadefs/tags";
    let (tags, page) = list_entries(schema, state, caller, path, filters, url).await?;
    Ok(Json(Tags { tags, page }))
}

/// Metadata definitions: list properties, by name and in one answer.
pub(super) async fn list_properties(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(namespace): Segments<String>,
) -> Answer<Properties> {
    let stored = state.control.metadef_namespace(&caller, &namespace).await?;
    require_read(&caller, &stored.row, rules(MetadefKind::Property).1)?;
    let rows = state.control.metadef_entries(&stored.row, MetadefKind::Property);
    let shown =
        rows.iter().map(|stored| (stored.row.name.clone(), ShownProperty::of(&namespace, &stored.row)));
    Ok(Json(Properties { properties: shown.collect() }))
}

/// Metadata definitions: create object.
pub(super) async fn add_object(
    state: State<AppState>,
    caller: Authenticated,
    Segments(namespace): Segments<String>,
    Body(body): Body<Value>,
) -> Result<Created<ShownObject>, Fault> {
    add(object_wish(body)?, state, caller, &namespace).await
}

/// Metadata definitions: create property.
pub(super) async fn add_property(
    state: State<AppState>,
    caller: Authenticated,
    Segments(namespace): Segments<String>,
    Body(body): Body<Value>,
) -> Result<Created<ShownProperty>, Fault> {
    add(property_wish(None, body)?, state, caller, &namespace).await
}

/// Metadata definitions: add tag definition.
pub(super) async fn add_tag(
    state: State<AppState>,
    caller: Authenticated,
    Segments((namespace, name)): Segments<(String, String)>,
) -> Result<Created<ShownTag>, Fault> {
    add(tag_wish(json!({"name": name}))?, state, caller, &namespace).await
}

/// Metadata definitions: create tags. They take the place of those that are there, unless the client says that they
/// are to be added (`X-Openstack-Append`).
pub(super) async fn set_tags(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(namespace): Segments<String>,
    headers: HeaderMap,
    Body(body): Body<Value>,
) -> Result<Created<TagNames>, Fault> {
    let mut fields = Fields::of("tags", body)?;
    if !fields.left.contains_key("tags") {
        return Err(mismatch("tags", "'tags' is a required property"));
    }
    let tags = fields.list("tags")?.into_iter().map(tag_wish).collect::<Result<Vec<_>, _>>()?;
    for ignored in ["first", "next"] {
        fields.text(ignored)?;
    }
    fields.end()?;
    // By oslo's rule, where what is no boolean means no: glance `api/v2/metadef_tags.py`.
    let append = headers.get("x-openstack-append").and_then(|value| value.to_str().ok());
    if append.and_then(boolean::from_text) != Some(true) {
        state.control.metadef_clear(&caller, &namespace, MetadefKind::Tag).await?;
    }
    let names = tags.iter().map(|tag| TagName { name: tag.name.clone() }).collect();
    state.control.metadef_add(&caller, &namespace, tags).await?;
    Ok(Status(Json(TagNames { tags: names })))
}
