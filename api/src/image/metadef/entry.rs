//! What is in a namespace of metadata definitions: objects, properties and tags, by the same few handlers.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use control::model::metadef::{MetadefEntry, MetadefKind};
use control::service::metadef::EntryWish;
use control::service::metadef_access::require_read;
use serde_json::{Map, Value, json};

use super::super::{done, list, time};
use super::namespace::path;
use super::{Fields, mismatch};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, RequestUrl, Segments};
use crate::error::Fault;

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

/// Gives an object's properties the names that they have on a resource.
pub(super) fn prefix_properties(object: &mut Value, prefix: &str) {
    if let Some(Value::Object(properties)) = object.get_mut("properties") {
        let old = std::mem::take(properties);
        properties.extend(old.into_iter().map(|(name, schema)| (format!("{prefix}{name}"), schema)));
    }
    for name in object.get_mut("required").and_then(Value::as_array_mut).into_iter().flatten() {
        *name = json!(format!("{prefix}{}", name.as_str().unwrap_or_default()));
    }
}

pub(super) fn show_object_of(namespace: &str, entry: &MetadefEntry) -> Value {
    let mut body = entry.body.clone();
    body.insert("name".into(), json!(entry.name));
    body.insert("created_at".into(), json!(time(entry.created_at)));
    body.insert("updated_at".into(), json!(time(entry.updated_at)));
    body.insert("self".into(), json!(format!("{}/objects/{}", path(namespace), entry.name)));
    body.insert("schema".into(), json!("/v2/schemas/metadefs/object"));
    Value::Object(body)
}

fn show_entry(namespace: &str, entry: &MetadefEntry) -> Value {
    match entry.kind {
        MetadefKind::Object => show_object_of(namespace, entry),
        MetadefKind::Property => {
            let mut body = entry.body.clone();
            body.insert("name".into(), json!(entry.name));
            Value::Object(body)
        }
        MetadefKind::Tag => json!({
            "name": entry.name,
            "created_at": time(entry.created_at),
            "updated_at": time(entry.updated_at),
        }),
    }
}

fn wish_of(kind: MetadefKind, body: Value) -> Result<EntryWish, Fault> {
    match kind {
        MetadefKind::Object => object_wish(body),
        MetadefKind::Property => property_wish(None, body),
        MetadefKind::Tag => tag_wish(body),
    }
}

/// A page of a namespace's entries of a kind.
async fn list_entries(
    kind: MetadefKind,
    collection: &'static str,
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(namespace): Segments<String>,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Value> {
    let page = list::page_of(&filters, &["created_at", "updated_at", "name"])?;
    let stored = state.control.metadef_namespace(&caller, &namespace).await?;
    require_read(&caller, &stored.row, rules(kind).1)?;
    let rows = state.control.metadef_entries(&stored.row, kind);
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
    let shown = slice.rows.iter().map(|stored| show_entry(&namespace, &stored.row)).collect();
    let schema = format!("/v2/schemas/metadefs/{collection}");
    Ok(Json(list::body(collection, &schema, &url, slice.next, shown)))
}

/// The rules for showing one of a kind, and all of it.
fn rules(kind: MetadefKind) -> (&'static str, &'static str) {
    match kind {
        MetadefKind::Object => ("get_metadef_object", "get_metadef_objects"),
        MetadefKind::Property => ("get_metadef_property", "get_metadef_properties"),
        MetadefKind::Tag => ("get_metadef_tag", "get_metadef_tags"),
    }
}

async fn show_one(
    kind: MetadefKind,
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((namespace, name)): Segments<(String, String)>,
) -> Answer<Value> {
    let stored = state.control.metadef_namespace(&caller, &namespace).await?;
    require_read(&caller, &stored.row, rules(kind).0)?;
    let stored = state.control.metadef_entry(&stored.row, kind, &name)?;
    Ok(Json(show_entry(&namespace, &stored.row)))
}

async fn add(
    wish: EntryWish,
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    namespace: &str,
) -> Result<Response, Fault> {
    let made = state.control.metadef_add(&caller, namespace, vec![wish]).await?;
    let shown = made.first().map(|row| show_entry(namespace, row));
    Ok((StatusCode::CREATED, Json(shown)).into_response())
}

async fn change(
    kind: MetadefKind,
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((namespace, name)): Segments<(String, String)>,
    body: Value,
) -> Answer<Value> {
    let stored = state.control.metadef_change(&caller, &namespace, &name, wish_of(kind, body)?).await?;
    Ok(Json(show_entry(&namespace, &stored.row)))
}

/// The handlers that are the same for every kind.
macro_rules! handlers {
    ($kind:ident, $show:ident, $change:ident, $remove:ident, $clear:ident) => {
        pub(super) async fn $show(
            state: State<AppState>,
            caller: Authenticated,
            path: Segments<(String, String)>,
        ) -> Answer<Value> {
            show_one(MetadefKind::$kind, state, caller, path).await
        }

        pub(super) async fn $change(
            state: State<AppState>,
            caller: Authenticated,
            path: Segments<(String, String)>,
            Body(body): Body<Value>,
        ) -> Answer<Value> {
            change(MetadefKind::$kind, state, caller, path, body).await
        }

        pub(super) async fn $remove(
            State(state): State<AppState>,
            Authenticated(caller): Authenticated,
            Segments((namespace, name)): Segments<(String, String)>,
        ) -> Result<Response, Fault> {
            state.control.metadef_remove(&caller, &namespace, MetadefKind::$kind, &name).await?;
            Ok(done())
        }

        pub(super) async fn $clear(
            State(state): State<AppState>,
            Authenticated(caller): Authenticated,
            Segments(namespace): Segments<String>,
        ) -> Result<Response, Fault> {
            state.control.metadef_clear(&caller, &namespace, MetadefKind::$kind).await?;
            Ok(done())
        }
    };
}

handlers!(Object, show_object, change_object, remove_object, clear_objects);
handlers!(Property, show_property, change_property, remove_property, clear_properties);
handlers!(Tag, show_tag, change_tag, remove_tag, clear_tags);

/// Metadata definitions: list objects.
pub(super) async fn list_objects(
    state: State<AppState>,
    caller: Authenticated,
    path: Segments<String>,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Value> {
    list_entries(MetadefKind::Object, "objects", state, caller, path, filters, url).await
}

/// Metadata definitions: list tags.
pub(super) async fn list_tags(
    state: State<AppState>,
    caller: Authenticated,
    path: Segments<String>,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Value> {
    list_entries(MetadefKind::Tag, "tags", state, caller, path, filters, url).await
}

/// Metadata definitions: list properties, by name and in one answer.
pub(super) async fn list_properties(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(namespace): Segments<String>,
) -> Answer<Value> {
    let stored = state.control.metadef_namespace(&caller, &namespace).await?;
    require_read(&caller, &stored.row, rules(MetadefKind::Property).1)?;
    let rows = state.control.metadef_entries(&stored.row, MetadefKind::Property);
    let shown: Map<String, Value> =
        rows.iter().map(|stored| (stored.row.name.clone(), show_entry(&namespace, &stored.row))).collect();
    Ok(Json(json!({"properties": shown})))
}

/// Metadata definitions: create object.
pub(super) async fn add_object(
    state: State<AppState>,
    caller: Authenticated,
    Segments(namespace): Segments<String>,
    Body(body): Body<Value>,
) -> Result<Response, Fault> {
    add(object_wish(body)?, state, caller, &namespace).await
}

/// Metadata definitions: create property.
pub(super) async fn add_property(
    state: State<AppState>,
    caller: Authenticated,
    Segments(namespace): Segments<String>,
    Body(body): Body<Value>,
) -> Result<Response, Fault> {
    add(property_wish(None, body)?, state, caller, &namespace).await
}

/// Metadata definitions: add tag definition.
pub(super) async fn add_tag(
    state: State<AppState>,
    caller: Authenticated,
    Segments((namespace, name)): Segments<(String, String)>,
) -> Result<Response, Fault> {
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
) -> Result<Response, Fault> {
    let mut fields = Fields::of("tags", body)?;
    if !fields.left.contains_key("tags") {
        return Err(mismatch("tags", "'tags' is a required property"));
    }
    let tags = fields.list("tags")?.into_iter().map(tag_wish).collect::<Result<Vec<_>, _>>()?;
    for ignored in ["first", "next"] {
        fields.text(ignored)?;
    }
    fields.end()?;
    let append = headers.get("x-openstack-append").and_then(|value| value.to_str().ok());
    if !append.is_some_and(|append| append.eq_ignore_ascii_case("true")) {
        state.control.metadef_clear(&caller, &namespace, MetadefKind::Tag).await?;
    }
    let names: Vec<Value> = tags.iter().map(|tag| json!({"name": tag.name})).collect();
    state.control.metadef_add(&caller, &namespace, tags).await?;
    Ok((StatusCode::CREATED, Json(json!({"tags": names}))).into_response())
}
