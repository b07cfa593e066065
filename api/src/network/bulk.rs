//! Bodies that make one resource (`{"network": {…}}`) or several (`{"networks": […]}`; Network API: bulk creation).

use std::fmt;
use std::marker::PhantomData;

use axum::Json;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::shown::{Made, Shown};
use crate::error::Fault;
use crate::openapi::answer::{Created, Status};

/// What several of can be made at once.
pub(super) trait Several {
    /// What is made of it, as it is shown.
    type View: Shown;
}

/// The names of one and of several.
fn names<T: Several>() -> &'static [&'static str; 2] {
    T::View::NAMES
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
    pub(super) fn try_map<U, E>(
        self,
        read: impl FnMut(T) -> Result<U, E>,
    ) -> Result<(Vec<U>, Answered<T::View>), E> {
        let answered = Answered { many: self.many, of: PhantomData };
        Ok((self.items.into_iter().map(read).collect::<Result<_, _>>()?, answered))
    }
}

/// How what was made is answered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answered<V> {
    many: bool,
    of: PhantomData<V>,
}

impl<V> Answered<V> {
    /// The answer: of one what it is, of several all.
    pub(super) fn with(self, views: impl IntoIterator<Item = V>) -> Result<Created<Made<V>>, Fault> {
        let mut views: Vec<V> = views.into_iter().collect();
        let made = match (self.many, views.len()) {
            (false, 1) => Made::One(views.remove(0)),
            _ => Made::Many(views),
        };
        Ok(Status(Json(made)))
    }
}

impl<'de, T: Several + Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_struct("Body", names::<T>(), Body(PhantomData))
    }
}

struct Body<T>(PhantomData<T>);

impl<'de, T: Several + Deserialize<'de>> Visitor<'de> for Body<T> {
    type Value = OneOrMany<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("struct Body")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let [one, many] = *names::<T>();
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
                return Err(A::Error::unknown_field(&key, names::<T>()));
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
    use schemars::JsonSchema;
    use serde::Serialize;
    use serde_json::{Value, json};

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Thing {
        name: String,
    }

    #[derive(Debug, Serialize, JsonSchema)]
    struct ShownThing(u8);

    impl Shown for ShownThing {
        const NAMES: &'static [&'static str; 2] = &["thing", "things"];
    }

    impl Several for Thing {
        type View = ShownThing;
    }

    fn body(answered: Answered<ShownThing>, views: impl IntoIterator<Item = u8>) -> Value {
        let Status(Json(made)) = answered.with(views.into_iter().map(ShownThing)).unwrap();
        json!(made)
    }

    fn read(text: &str) -> Result<OneOrMany<Thing>, String> {
        crate::wording::read(text.as_bytes()).map_err(|fault| fault.to_string())
    }

    #[test]
    fn one_and_several_are_read_and_answered_alike() {
        let said = read(r#"{"thing": {"name": "a"}}"#).unwrap();
        let (names, answered) = said.try_map(|thing| Ok::<_, ()>(thing.name)).unwrap();
        assert_eq!(names, ["a"]);
        assert_eq!(body(answered, [1]), json!({"thing": 1}));
        let said = read(r#"{"things": [{"name": "a"}, {"name": "b"}]}"#).unwrap();
        let (names, answered) = said.try_map(|thing| Ok::<_, ()>(thing.name)).unwrap();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(body(answered, [1, 2]), json!({"things": [1, 2]}));
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
