//! Resources as bodies answer them: one under its name, several under theirs, with all their fields or with those that were
//! asked for.
//!
//! Must never know: any one resource.

use std::borrow::Cow;
use std::marker::PhantomData;

use control::model::network::Standard;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

/// A resource as it is shown.
pub(super) trait Shown: Serialize + JsonSchema {
    /// The members of bodies that hold one, and several.
    const NAMES: &'static [&'static str; 2];
    /// The field that tells one from the others.
    const ID: &'static str = "id";
}

/// An object without fields.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Nothing {}

/// The fields that most rows of this service are shown with.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct StandardFields {
    #[serde(flatten)]
    owner: OwnerFields,
    description: String,
    revision_number: u64,
    created_at: String,
    updated_at: String,
}

/// The fields of rows that have no other attribute in common.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct OwnerFields {
    id: String,
    project_id: String,
    tenant_id: String,
}

impl From<&Standard> for OwnerFields {
    fn from(standard: &Standard) -> Self {
        Self {
            id: standard.id.clone(),
            project_id: standard.project_id.clone(),
            tenant_id: standard.project_id.clone(),
        }
    }
}

impl From<&Standard> for StandardFields {
    fn from(standard: &Standard) -> Self {
        Self {
            owner: standard.into(),
            description: standard.description.clone(),
            revision_number: standard.revision,
            created_at: time_text(standard.created_at),
            updated_at: time_text(standard.updated_at),
        }
    }
}

/// Times as Neutron writes them: whole seconds.
fn time_text(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// One under its name.
pub(super) struct One<T>(pub(super) T);

impl<T: Shown> Serialize for One<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry(T::NAMES[0], &self.0)?;
        map.end()
    }
}

impl<T: Shown> JsonSchema for One<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        T::NAMES[0].into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let one = generator.subschema_for::<T>();
        json_schema!({"type": "object", "properties": {T::NAMES[0]: one}, "required": [T::NAMES[0]]})
    }
}

/// One, or several where several were asked for (Network API: bulk creation).
pub(super) enum Made<T> {
    /// One.
    One(T),
    /// Several.
    Many(Vec<T>),
}

impl<T: Shown> Serialize for Made<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        match self {
            Self::One(one) => map.serialize_entry(T::NAMES[0], one)?,
            Self::Many(many) => map.serialize_entry(T::NAMES[1], many)?,
        }
        map.end()
    }
}

impl<T: Shown> JsonSchema for Made<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("Made{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let [one, many] = *T::NAMES;
        let of_one = generator.subschema_for::<T>();
        let of_many = generator.subschema_for::<Vec<T>>();
        json_schema!({"oneOf": [
            {"type": "object", "properties": {one: of_one}, "required": [one]},
            {"type": "object", "properties": {many: of_many}, "required": [many]},
        ]})
    }
}

/// What of a resource was asked for: all that it is shown with, or the fields that the query names.
#[derive(Debug)]
pub(super) struct Chosen<T> {
    row: Value,
    of: PhantomData<T>,
}

impl<T> Chosen<T> {
    /// Of a whole row these fields; all of them if none is named.
    pub(super) fn of(row: Value, fields: &[&str]) -> Self {
        let row = match row {
            Value::Object(map) if !fields.is_empty() => Value::Object(
                map.into_iter().filter(|(key, _)| fields.contains(&key.as_str())).collect::<Map<_, _>>(),
            ),
            other => other,
        };
        Self { row, of: PhantomData }
    }
}

impl<T> Serialize for Chosen<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.row.serialize(serializer)
    }
}

impl<T: Shown> Shown for Chosen<T> {
    const NAMES: &'static [&'static str; 2] = T::NAMES;
    const ID: &'static str = T::ID;
}

/// As the resource itself, of which any field may be left out.
impl<T: Shown> JsonSchema for Chosen<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("{}Fields", T::schema_name()).into()
    }

    fn schema_id() -> Cow<'static, str> {
        format!("{}Fields", T::schema_id()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = T::json_schema(generator);
        schema.remove("required");
        schema
    }
}
