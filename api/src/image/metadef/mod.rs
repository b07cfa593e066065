//! Metadata definitions: namespaces, and the objects, properties, tags and resource types in them (Image API v2:
//! metadata definitions).

mod entry;
mod namespace;
mod resource_type;
pub(super) mod schema;

use serde_json::{Map, Value};

use crate::error::Fault;
use crate::openapi::{Routes, delete, get};

/// The routes below `/image/v2/metadefs`.
pub(super) fn routes() -> Routes {
    Routes::new()
        .route("/namespaces", get(namespace::list).post(namespace::create))
        .route(
            "/namespaces/{namespace}",
            get(namespace::show).put(namespace::update).delete(namespace::delete),
        )
        .route(
            "/namespaces/{namespace}/objects",
            get(entry::list_objects).post(entry::add_object).delete(entry::clear_objects),
        )
        .route(
            "/namespaces/{namespace}/objects/{name}",
            get(entry::show_object).put(entry::change_object).delete(entry::remove_object),
        )
        .route(
            "/namespaces/{namespace}/properties",
            get(entry::list_properties).post(entry::add_property).delete(entry::clear_properties),
        )
        .route(
            "/namespaces/{namespace}/properties/{name}",
            get(entry::show_property).put(entry::change_property).delete(entry::remove_property),
        )
        .route(
            "/namespaces/{namespace}/tags",
            get(entry::list_tags).post(entry::set_tags).delete(entry::clear_tags),
        )
        .route(
            "/namespaces/{namespace}/tags/{name}",
            get(entry::show_tag).post(entry::add_tag).put(entry::change_tag).delete(entry::remove_tag),
        )
        .route(
            "/namespaces/{namespace}/resource_types",
            get(resource_type::list_of).post(resource_type::associate),
        )
        .route("/namespaces/{namespace}/resource_types/{name}", delete(resource_type::dissociate))
        .route("/resource_types", get(resource_type::list))
}

/// Fields that the service sets.
const READ_ONLY: [&str; 4] = ["self", "schema", "created_at", "updated_at"];

/// A body's fields, taken out one by one; what is left in the end is unknown to the schema.
struct Fields {
    schema: &'static str,
    left: Map<String, Value>,
}

impl Fields {
    fn of(schema: &'static str, body: Value) -> Result<Self, Fault> {
        let Value::Object(left) = body else { return Err(mismatch(schema, "it is no object")) };
        if let Some(name) = READ_ONLY.iter().find(|name| left.contains_key(**name)) {
            return Err(super::description::read_only(name));
        }
        Ok(Self { schema, left })
    }

    fn text(&mut self, name: &str) -> Result<Option<String>, Fault> {
        match self.left.remove(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(mismatch(self.schema, &format!("{name} is not of type 'string'"))),
        }
    }

    fn required(&mut self, name: &str) -> Result<String, Fault> {
        let schema = self.schema;
        self.text(name)?.ok_or_else(|| mismatch(schema, &format!("'{name}' is a required property")))
    }

    fn flag(&mut self, name: &str) -> Result<Option<bool>, Fault> {
        match self.left.remove(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(_) => Err(mismatch(self.schema, &format!("{name} is not of type 'boolean'"))),
        }
    }

    fn list(&mut self, name: &str) -> Result<Vec<Value>, Fault> {
        match self.left.remove(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => Ok(list),
            Some(_) => Err(mismatch(self.schema, &format!("{name} is not of type 'array'"))),
        }
    }

    fn map(&mut self, name: &str) -> Result<Map<String, Value>, Fault> {
        match self.left.remove(name) {
            None => Ok(Map::new()),
            Some(Value::Object(map)) => Ok(map),
            Some(_) => Err(mismatch(self.schema, &format!("{name} is not of type 'object'"))),
        }
    }

    fn end(self) -> Result<(), Fault> {
        match self.left.keys().next() {
            None => Ok(()),
            Some(name) => Err(mismatch(
                self.schema,
                &format!("Additional properties are not allowed ('{name}' was unexpected)"),
            )),
        }
    }
}

fn mismatch(schema: &str, why: &str) -> Fault {
    Fault::malformed(format!("Provided object does not match schema '{schema}': {why}"))
}
