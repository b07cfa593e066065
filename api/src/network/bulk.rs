//! Bodies that make one resource (`{"network": {…}}`) or several (`{"networks": […]}`; Network API: bulk creation).

use std::fmt;
use std::marker::PhantomData;

use axum::Json;
use axum::http::StatusCode;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use super::Created;
use crate::error::Fault;

/// What several of can be made at once.
pub(super) trait Several {
    /// The names of one and of several.
    const NAMES: &'static [&'static str; 2];
}

/// One or several.
#[derive(Debug)]
pub(super) struct OneOrMany<T> {
    /// What they are made from.
    pub(super) items: Vec<T>,
    /// The body was of several, and so is the answer.
    many: bool,
}

impl<T: Several> OneOrMany<T> {
    /// What is made or changed one at a time.
    pub(super) fn one(mut self) -> Result<T, Fault> {
        match (self.items.pop(), self.many) {
            (Some(item), false) => Ok(item),
            _ => Err(Fault::malformed("Bulk operation not supported")),
        }
    }

    /// The same of something else, or the first refusal.
    pub(super) fn try_map<U, E>(self, read: impl FnMut(T) -> Result<U, E>) -> Result<(Vec<U>, Answered), E> {
        let answered = Answered { names: T::NAMES, many: self.many };
        Ok((self.items.into_iter().map(read).collect::<Result<_, _>>()?, answered))
    }
}

/// How what was made is answered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answered {
    names: &'static [&'static str; 2],
    many: bool,
}

impl Answered {
    /// The answer.
    pub(super) fn with(self, rows: Vec<Value>) -> Created {
        let [one, many] = *self.names;
        let body = match self.many {
            true => json!({ many: rows }),
            false => json!({ one: rows.into_iter().next() }),
        };
        Ok((StatusCode::CREATED, Json(body)))
    }
}

impl<'de, T: Several + Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_struct("Body", T::NAMES, Body(PhantomData))
    }
}

struct Body<T>(PhantomData<T>);

impl<'de, T: Several + Deserialize<'de>> Visitor<'de> for Body<T> {
    type Value = OneOrMany<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("struct Body")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let [one, many] = *T::NAMES;
        let mut read = None;
        while let Some(key) = map.next_key::<String>()? {
            if read.is_some() {
                return Err(A::Error::custom("the body has one resource or one list of them"));
            }
            read = Some(if key == one {
                OneOrMany { items: vec![map.next_value()?], many: false }
            } else if key == many {
                OneOrMany { items: map.next_value()?, many: true }
            } else {
                return Err(A::Error::unknown_field(&key, T::NAMES));
            });
        }
        let read = read.ok_or_else(|| A::Error::missing_field(one))?;
        if read.items.is_empty() {
            return Err(A::Error::custom("Resource body required"));
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Thing {
        name: String,
    }

    impl Several for Thing {
        const NAMES: &'static [&'static str; 2] = &["thing", "things"];
    }

    fn read(text: &str) -> Result<OneOrMany<Thing>, String> {
        crate::wording::read(text.as_bytes()).map_err(|fault| fault.to_string())
    }

    #[test]
    fn one_and_several_are_read_and_answered_alike() {
        let body = read(r#"{"thing": {"name": "a"}}"#).unwrap();
        let (names, answered) = body.try_map(|thing| Ok::<_, ()>(thing.name)).unwrap();
        assert_eq!(names, ["a"]);
        assert_eq!(answered.with(vec![json!(1)]).unwrap().1.0, json!({"thing": 1}));
        let body = read(r#"{"things": [{"name": "a"}, {"name": "b"}]}"#).unwrap();
        let (names, answered) = body.try_map(|thing| Ok::<_, ()>(thing.name)).unwrap();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(answered.with(vec![json!(1), json!(2)]).unwrap().1.0, json!({"things": [1, 2]}));
    }

    #[test]
    fn other_bodies_are_refused_by_field() {
        for (text, said) in [
            ("{}", "'thing' is a required property"),
            (r#"{"thing": {"name": 7}}"#, "thing.name"),
            (r#"{"things": [{"name": "a"}, {}]}"#, "things[1]"),
            (r#"{"things": []}"#, "Resource body required"),
            (r#"{"other": {}}"#, "Additional properties are not allowed ('other' was unexpected)"),
            (r#"{"thing": {"name": "a"}, "things": []}"#, "one resource or one list"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
