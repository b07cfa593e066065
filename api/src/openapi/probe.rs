//! The JSON schema of a body, learnt from the very type that reads it: a deserializer that follows a path into the type,
//! notes what is asked for there, and gives up. Nothing is written twice, so nothing can differ.
//!
//! What a type decides only when it sees a value (an untagged choice, a flattened map, a pattern of text) is described as
//! what it takes first. Which fields are required is not told: a body without one is answered with 400.

use std::cell::RefCell;
use std::fmt;

use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, Error, IntoDeserializer, MapAccess, SeqAccess, Visitor,
};
use serde_json::{Map, Value, json};

/// How deep a schema goes: bodies nest four deep, and a type that holds itself has no end.
const DEPTH_MAX: usize = 8;
/// A field that no type has.
const STRANGER: &str = "no such field";

/// What a type that takes a whole number, or its text, calls itself when it is read: it is described as the number.
pub(crate) const WHOLE_NUMBER: &str = "WholeNumber";

/// The schema of what `T` is read from.
pub(super) fn schema<T: DeserializeOwned>() -> Value {
    schema_at::<T>(&mut Vec::new())
}

fn schema_at<T: DeserializeOwned>(path: &mut Vec<Step>) -> Value {
    let (shape, nullable) = look::<T>(path);
    let mut schema = match shape {
        _ if path.len() >= DEPTH_MAX => json!({}),
        Shape::Any => return json!({}),
        Shape::Null => json!({"type": "null"}),
        Shape::Boolean => json!({"type": "boolean"}),
        Shape::Integer => json!({"type": "integer"}),
        Shape::Number => json!({"type": "number"}),
        Shape::Text => json!({"type": "string"}),
        Shape::Choice(names) => json!({"type": "string", "enum": names}),
        Shape::List => {
            path.push(Step::Item);
            let items = schema_at::<T>(path);
            path.pop();
            json!({"type": "array", "items": items})
        }
        Shape::Map => {
            path.push(Step::Item);
            let values = schema_at::<T>(path);
            path.pop();
            json!({"type": "object", "additionalProperties": values})
        }
        Shape::Struct(fields) => {
            let mut properties = Map::new();
            for field in fields {
                path.push(Step::Field(field));
                properties.insert((*field).to_owned(), schema_at::<T>(path));
                path.pop();
            }
            path.push(Step::Field(STRANGER));
            let open = !matches!(look::<T>(path), (Shape::Stranger, _));
            path.pop();
            json!({"type": "object", "properties": properties, "additionalProperties": open})
        }
        Shape::Stranger => json!({}),
    };
    if nullable && let Some(kind) = schema.get("type").cloned() {
        schema["type"] = json!([kind, "null"]);
    }
    schema
}

/// A step into a type.
#[derive(Debug, Clone, Copy)]
enum Step {
    Field(&'static str),
    /// An element of a list, or a value of a map.
    Item,
}

/// What a type asks for at a place.
#[derive(Debug, Clone, Copy)]
enum Shape {
    Any,
    Null,
    Boolean,
    Integer,
    Number,
    Text,
    Choice(&'static [&'static str]),
    List,
    Map,
    Struct(&'static [&'static str]),
    /// A field that the type refuses.
    Stranger,
}

fn look<T: DeserializeOwned>(path: &[Step]) -> (Shape, bool) {
    let found = RefCell::new((Shape::Any, false));
    match T::deserialize(Probe { path, found: &found }) {
        Err(Ended { stranger: true }) => (Shape::Stranger, false),
        _ => found.into_inner(),
    }
}

/// Follows a path and notes what is asked for at its end.
struct Probe<'a> {
    path: &'a [Step],
    found: &'a RefCell<(Shape, bool)>,
}

/// The end of a look; not a failure.
#[derive(Debug)]
struct Ended {
    stranger: bool,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("seen")
    }
}

impl std::error::Error for Ended {}

impl Error for Ended {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self { stranger: false }
    }
    fn unknown_field(field: &str, _: &'static [&'static str]) -> Self {
        Self { stranger: field == STRANGER }
    }
}

impl Probe<'_> {
    fn note(&self, shape: Shape) -> Ended {
        if self.path.is_empty() {
            self.found.borrow_mut().0 = shape;
        }
        Ended { stranger: false }
    }
}

/// The kinds that end a look.
macro_rules! leaves {
    ($($name:ident => $shape:ident),* $(,)?) => {$(
        fn $name<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Ended> {
            Err(self.note(Shape::$shape))
        }
    )*};
}

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = Ended;

    leaves! {
        deserialize_any => Any, deserialize_ignored_any => Any,
        deserialize_bool => Boolean, deserialize_unit => Null,
        deserialize_i8 => Integer, deserialize_i16 => Integer, deserialize_i32 => Integer,
        deserialize_i64 => Integer, deserialize_i128 => Integer, deserialize_u8 => Integer,
        deserialize_u16 => Integer, deserialize_u32 => Integer, deserialize_u64 => Integer,
        deserialize_u128 => Integer, deserialize_f32 => Number, deserialize_f64 => Number,
        deserialize_char => Text, deserialize_str => Text, deserialize_string => Text,
        deserialize_bytes => Text, deserialize_byte_buf => Text, deserialize_identifier => Text,
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Ended> {
        if self.path.is_empty() {
            self.found.borrow_mut().1 = true;
        }
        visitor.visit_some(self)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, _: V) -> Result<V::Value, Ended> {
        Err(self.note(Shape::Null))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Ended> {
        match name {
            WHOLE_NUMBER => Err(self.note(Shape::Integer)),
            _ => visitor.visit_newtype_struct(self),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Ended> {
        match self.path.split_first() {
            Some((Step::Item, path)) => {
                visitor.visit_seq(One { probe: Some(Probe { path, ..self }), key: "" })
            }
            _ => Err(self.note(Shape::List)),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Ended> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Ended> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Ended> {
        match self.path.split_first() {
            Some((Step::Item, path)) => {
                visitor.visit_map(One { probe: Some(Probe { path, ..self }), key: "key" })
            }
            _ => Err(self.note(Shape::Map)),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Ended> {
        match self.path.split_first() {
            Some((Step::Field(key), path)) => {
                visitor.visit_map(One { probe: Some(Probe { path, ..self }), key })
            }
            _ => Err(self.note(Shape::Struct(fields))),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Ended> {
        Err(self.note(Shape::Choice(variants)))
    }
}

/// A list of one, or a map of one under `key`.
struct One<'a> {
    probe: Option<Probe<'a>>,
    key: &'static str,
}

impl<'de> SeqAccess<'de> for One<'_> {
    type Error = Ended;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Ended> {
        self.probe.take().map(|probe| seed.deserialize(probe)).transpose()
    }
}

impl<'de> MapAccess<'de> for One<'_> {
    type Error = Ended;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Ended> {
        if self.probe.is_none() {
            return Ok(None);
        }
        seed.deserialize(self.key.into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Ended> {
        match self.probe.take() {
            Some(probe) => seed.deserialize(probe),
            None => Err(Ended { stranger: false }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only its form is looked at")]
    struct Closed {
        server: Inner,
        #[serde(default, rename = "os:hints")]
        hints: BTreeMap<String, Vec<u32>>,
    }

    #[derive(Deserialize)]
    #[allow(dead_code, reason = "only its form is looked at")]
    struct Inner {
        name: Option<String>,
        id: uuid::Uuid,
        size: f64,
        on: bool,
        kind: Kind,
        anything: Value,
        next: Option<Box<Inner>>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "snake_case")]
    #[allow(dead_code, reason = "only its form is looked at")]
    enum Kind {
        Soft,
        VeryHard,
    }

    #[test]
    fn schema_is_what_the_type_reads() {
        let schema = schema::<Closed>();
        assert_eq!(schema["additionalProperties"], false);
        let hints = json!({
            "type": "object", "additionalProperties": {"type": "array", "items": {"type": "integer"}}
        });
        assert_eq!(schema["properties"]["os:hints"], hints);
        let inner = &schema["properties"]["server"];
        assert_eq!(inner["additionalProperties"], true);
        let properties = &inner["properties"];
        assert_eq!(properties["name"], json!({"type": ["string", "null"]}));
        assert_eq!(properties["id"], json!({"type": "string"}));
        assert_eq!(properties["size"], json!({"type": "number"}));
        assert_eq!(properties["on"], json!({"type": "boolean"}));
        assert_eq!(properties["kind"], json!({"type": "string", "enum": ["soft", "very_hard"]}));
        assert_eq!(properties["anything"], json!({}));
        assert_eq!(properties["next"]["properties"]["next"]["properties"]["on"], json!({"type": "boolean"}));
    }
}
