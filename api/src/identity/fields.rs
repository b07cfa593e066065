//! The fields of a resource in a request's body, taken one by one and checked, in the words of Keystone.

use control::error::Error;
use control::model::identity::Extra;
use jiff::Timestamp;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

/// The result of what is asked of the cloud, or of a handler.
pub(super) type Result<T, E = Error> = std::result::Result<T, E>;

/// The longest text in characters where nothing says otherwise; what is too long for its field is said below.
const TEXT_CHARACTERS_MAX: usize = 64 << 10;
/// The most members of a list.
const MEMBERS_MAX: usize = 1000;

/// What of a body's object is not taken yet.
#[derive(Clone)]
pub(super) struct Fields {
    map: Map<String, Value>,
    /// For a new resource, whose required fields must be there.
    creating: bool,
}

pub(super) fn invalid(message: impl Into<String>) -> Error {
    Error::invalid("ValidationError", message)
}

fn wrong(key: &str, value: &Value, kind: &str) -> Error {
    // A value may be secret or long: only short plain ones are said.
    let said = match value {
        Value::Object(_) | Value::Array(_) => "the value".to_owned(),
        Value::String(_) => "the text".to_owned(),
        other => other.to_string(),
    };
    invalid(format!("Invalid input for field '{key}': {said} is not of type '{kind}'"))
}

impl Fields {
    /// The object `one` of a body.
    pub(super) fn of(body: Map<String, Value>, one: &str, creating: bool) -> Result<Self> {
        let mut body = body;
        match body.remove(one) {
            Some(Value::Object(map)) => Ok(Self { map, creating }),
            Some(other) => Err(wrong(one, &other, "object")),
            None => Err(invalid(format!("'{one}' is a required property"))),
        }
    }

    /// The fields of an object inside of another.
    pub(super) fn inside(value: Value, key: &str) -> Result<Self> {
        match value {
            Value::Object(map) => Ok(Self { map, creating: true }),
            other => Err(wrong(key, &other, "object")),
        }
    }

    /// Whether a field is there.
    pub(super) fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// Sets a field as if the body had it.
    pub(super) fn put(&mut self, key: &str, value: Value) {
        self.map.insert(key.to_owned(), value);
    }

    /// A field of any type.
    pub(super) fn take(&mut self, key: &str) -> Option<Value> {
        self.map.remove(key)
    }

    fn required(&self, key: &str) -> Error {
        invalid(format!("'{key}' is a required property"))
    }

    /// A text if it is there; null is one that is there: `Some(None)`.
    pub(super) fn nullable(&mut self, key: &str) -> Result<Option<Option<String>>> {
        match self.map.remove(key) {
            None => Ok(None),
            Some(Value::Null) => Ok(Some(None)),
            Some(Value::String(text)) => {
                if text.chars().count() > TEXT_CHARACTERS_MAX {
                    return Err(invalid(format!("Invalid input for field '{key}': the text is too long")));
                }
                Ok(Some(Some(text)))
            }
            Some(other) => Err(wrong(key, &other, "string")),
        }
    }

    /// A text that a new resource must have; it is never null.
    pub(super) fn name(&mut self, key: &str, into: &mut String) -> Result<()> {
        match self.nullable(key)? {
            Some(Some(text)) => *into = text,
            Some(None) => return Err(wrong(key, &Value::Null, "string")),
            None if self.creating => return Err(self.required(key)),
            None => {}
        }
        Ok(())
    }

    /// A text that is never null, whether the resource is new or not.
    pub(super) fn name_if_given(&mut self, key: &str, into: &mut String) -> Result<()> {
        if self.has(key) { self.name(key, into) } else { Ok(()) }
    }

    /// A text; null empties it.
    pub(super) fn text(&mut self, key: &str, into: &mut String) -> Result<()> {
        if let Some(text) = self.nullable(key)? {
            *into = text.unwrap_or_default();
        }
        Ok(())
    }

    /// A text or null.
    pub(super) fn optional(&mut self, key: &str, into: &mut Option<String>) -> Result<()> {
        if let Some(text) = self.nullable(key)? {
            *into = text;
        }
        Ok(())
    }

    /// A text that must be there.
    pub(super) fn must(&mut self, key: &str) -> Result<String> {
        match self.nullable(key)? {
            Some(Some(text)) => Ok(text),
            Some(None) => Err(wrong(key, &Value::Null, "string")),
            None => Err(self.required(key)),
        }
    }

    /// A secret text: no copy of ours stays in memory.
    pub(super) fn secret(&mut self, key: &str) -> Result<Option<Zeroizing<String>>> {
        Ok(self.nullable(key)?.flatten().map(Zeroizing::new))
    }

    /// A yes or no.
    pub(super) fn flag(&mut self, key: &str, into: &mut bool) -> Result<()> {
        match self.map.remove(key) {
            None => {}
            Some(Value::Bool(value)) => *into = value,
            Some(other) => return Err(wrong(key, &other, "boolean")),
        }
        Ok(())
    }

    /// A whole number that a new resource must have.
    pub(super) fn integer(&mut self, key: &str, into: &mut i64) -> Result<()> {
        match self.map.remove(key) {
            None if self.creating => return Err(self.required(key)),
            None => {}
            Some(value) => *into = value.as_i64().ok_or_else(|| wrong(key, &value, "integer"))?,
        }
        Ok(())
    }

    /// A whole number from 0 on, or null.
    pub(super) fn count(&mut self, key: &str) -> Result<Option<u32>> {
        match self.map.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                let count = value.as_u64().and_then(|count| u32::try_from(count).ok());
                count.map(Some).ok_or_else(|| wrong(key, &value, "integer"))
            }
        }
    }

    /// A time or null, with or without its zone, which is UTC.
    pub(super) fn time(&mut self, key: &str) -> Result<Option<Timestamp>> {
        let Some(text) = self.nullable(key)?.flatten() else { return Ok(None) };
        let utc = || text.parse::<jiff::civil::DateTime>().ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok();
        let at = text.parse::<Timestamp>().ok().or_else(|| utc().map(|at| at.timestamp()));
        at.map(Some)
            .ok_or_else(|| invalid(format!("Invalid input for field '{key}': it is no time of ISO 8601")))
    }

    /// A list of texts.
    pub(super) fn texts(&mut self, key: &str, into: &mut Vec<String>) -> Result<()> {
        if let Some(value) = self.map.remove(key) {
            let Value::Array(members) = &value else { return Err(wrong(key, &value, "array")) };
            let texts = members.iter().map(|member| member.as_str().map(str::to_owned));
            *into = texts.collect::<Option<_>>().ok_or_else(|| wrong(key, &value, "array of strings"))?;
        }
        Ok(())
    }

    /// A list of objects.
    pub(super) fn objects(&mut self, key: &str) -> Result<Option<Vec<Self>>> {
        match self.map.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Array(members)) if members.len() <= MEMBERS_MAX => {
                members.into_iter().map(|member| Self::inside(member, key)).collect::<Result<_>>().map(Some)
            }
            Some(Value::Array(_)) => Err(invalid(format!("'{key}' has more than {MEMBERS_MAX} members"))),
            Some(other) => Err(wrong(key, &other, "array")),
        }
    }

    /// Keystone's switches: what is given is set, null takes one away.
    pub(super) fn options(&mut self, into: &mut Extra) -> Result<()> {
        match self.map.remove("options") {
            None => Ok(()),
            Some(Value::Object(options)) => {
                merge(options, into);
                Ok(())
            }
            Some(other) => Err(wrong("options", &other, "object")),
        }
    }

    /// All that is left: what is given is set, null takes one away.
    pub(super) fn rest(&mut self, into: &mut Extra) {
        let mut rest = std::mem::take(&mut self.map);
        // What only the cloud says is passed over, as clients send back what they were shown.
        for own in ["id", "links"] {
            rest.remove(own);
        }
        merge(rest, into);
    }

    /// Nothing may be left.
    pub(super) fn end(self) -> Result<()> {
        match self.map.keys().find(|key| *key != "links") {
            None => Ok(()),
            Some(key) => {
                Err(invalid(format!("Additional properties are not allowed ('{key}' was unexpected)")))
            }
        }
    }
}

fn merge(values: Map<String, Value>, into: &mut Extra) {
    for (key, value) in values {
        if value.is_null() {
            into.remove(&key);
        } else {
            into.insert(key, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(value: Value) -> Fields {
        Fields::inside(value, "x").unwrap()
    }

    #[test]
    fn wrong_types_and_missing_fields_are_said_without_their_value() {
        let error = fields(json!({"name": 5})).name("name", &mut String::new()).unwrap_err();
        assert_eq!(error.to_string(), "Invalid input for field 'name': 5 is not of type 'string'");
        let error = fields(json!({})).name("name", &mut String::new()).unwrap_err();
        assert_eq!(error.to_string(), "'name' is a required property");
        let error = fields(json!({"enabled": "secret"})).flag("enabled", &mut true).unwrap_err();
        assert!(!error.to_string().contains("secret"));
        assert!(fields(json!({"a": 1})).end().is_err());
    }

    #[test]
    fn null_takes_an_extra_value_away() {
        let mut extra = Extra::from([("a".to_owned(), json!(1))]);
        fields(json!({"a": null, "b": [1], "links": {}})).rest(&mut extra);
        assert_eq!(extra, Extra::from([("b".to_owned(), json!([1]))]));
    }

    #[test]
    fn times_are_taken_with_and_without_a_zone() {
        for text in ["2030-01-02T03:04:05Z", "2030-01-02T03:04:05.000000Z", "2030-01-02T03:04:05"] {
            assert!(fields(json!({"at": text})).time("at").unwrap().is_some(), "{text}");
        }
        assert!(fields(json!({"at": "bad.123Z"})).time("at").is_err());
    }
}
