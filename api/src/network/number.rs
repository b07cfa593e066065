//! A whole number in a body, or its text: Neutron converts both, and its command sends texts.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::openapi::probe::WHOLE_NUMBER;

/// A whole number, or its text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Number<T>(pub(super) T);

impl<'de, T: FromStr> Deserialize<'de> for Number<T> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_newtype_struct(WHOLE_NUMBER, Either(PhantomData))
    }
}

struct Either<T>(PhantomData<T>);

impl<'de, T: FromStr> Visitor<'de> for Either<T> {
    type Value = Number<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number")
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, input: D) -> Result<Self::Value, D::Error> {
        let value = Value::deserialize(input)?;
        let number = match &value {
            Value::Number(number) => number.to_string().parse().ok(),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        number
            .map(Number)
            .ok_or_else(|| D::Error::custom(format!("'{value}' is not an integer in its range")))
    }
}
