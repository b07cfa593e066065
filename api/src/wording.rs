//! What of a body does not fit, in the services' words: they validate by JSON schemas, whose sentences people know and
//! clients match. Ours come from the types that read the bodies; nothing of Rust shows.

use serde::de::DeserializeOwned;

use crate::context::Service;
use crate::error::Fault;

/// The most characters of a foreign value that are repeated.
const VALUE_CHARS_MAX: usize = 60;

/// Reads a whole JSON text as `T`.
pub(crate) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Fault> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        fault(&path, error.inner())
    })?;
    deserializer.end().map_err(|error| fault("", &error))?;
    Ok(value)
}

/// A structure, and the first field that came with it and that it does not have: some versions of an API pass over those,
/// others refuse them.
#[derive(Debug, Clone)]
pub(crate) struct Kept<T> {
    /// The structure.
    pub(crate) fields: T,
    stranger: Option<String>,
}

impl<T> Kept<T> {
    /// The structure, where it has all that came.
    ///
    /// # Errors
    /// Which field it does not have.
    pub(crate) fn whole(self, field: &str) -> Result<T, Fault> {
        let Some(stranger) = self.stranger else { return Ok(self.fields) };
        let reason = reason(&format!("unknown field `{stranger}`"));
        Err(Fault::Field { field: field.to_owned(), reason })
    }
}

impl<'de, T: serde::Deserialize<'de>> serde::Deserialize<'de> for Kept<T> {
    fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let mut stranger = None;
        let keep = |path: serde_ignored::Path<'_>| {
            stranger.get_or_insert_with(|| path.to_string());
        };
        let fields = serde_ignored::deserialize(input, keep)?;
        Ok(Self { fields, stranger })
    }
}

fn fault(path: &str, error: &serde_json::Error) -> Fault {
    if error.is_data() {
        // `.` is the body itself; a question mark stands where no name is known.
        let field = if matches!(path, "." | "?" | "") { "body" } else { path };
        return Fault::Field { field: field.to_owned(), reason: reason(&error.to_string()) };
    }
    Fault::malformed("Malformed request body: it is not valid JSON in UTF-8, or nests too deep")
}

/// The sentence of one field, as the service begins it.
pub(crate) fn sentence(service: Service, field: &str, reason: &str) -> String {
    match service {
        Service::Identity => format!("Invalid input for field '{field}': {reason}"),
        Service::Compute | Service::Volume => format!("Invalid input for field/attribute {field}. {reason}"),
        Service::Network => format!("Invalid input for {field}. Reason: {reason}."),
        Service::Image => format!("Provided object does not match schema: {field}: {reason}"),
        Service::Placement => format!("JSON does not validate: {field}: {reason}"),
    }
}

/// What serde says, in the words of JSON schema.
fn reason(text: &str) -> String {
    // The place in the text is of no use to who sent it.
    let text = text.rsplit_once(" at line ").map_or(text, |(text, _)| text);
    let quoted = |text: &'_ str| text.split('`').nth(1).map(str::to_owned);
    if text.starts_with("missing field") {
        return format!("'{}' is a required property", quoted(text).unwrap_or_default());
    }
    if text.starts_with("unknown field") {
        let field: String = quoted(text).unwrap_or_default().chars().take(VALUE_CHARS_MAX).collect();
        return format!("Additional properties are not allowed ('{field}' was unexpected)");
    }
    if let Some(rest) = text.strip_prefix("unknown variant `")
        && let Some((found, allowed)) = rest.split_once("`, expected ")
    {
        let found: String = found.chars().take(VALUE_CHARS_MAX).collect();
        let allowed = allowed.trim_start_matches("one of ").replace("` or `", "`, `").replace('`', "'");
        return format!("'{found}' is not one of [{allowed}]");
    }
    for begin in ["invalid type: ", "invalid value: "] {
        if let Some((found, wanted)) =
            text.strip_prefix(begin).and_then(|rest| rest.split_once(", expected "))
        {
            return match kind(wanted) {
                Some(kind) => format!("{} is not of type '{kind}'", shown(found)),
                None => format!("{} is not {wanted}", shown(found)),
            };
        }
    }
    text.to_owned()
}

/// A found value, as Python shows it.
fn shown(found: &str) -> String {
    let value = found.split_once('`').and_then(|(_, rest)| rest.rsplit_once('`')).map(|(value, _)| value);
    let text = found.strip_prefix("string ").map(|text| text.trim_matches('"'));
    let cut = |text: &str| text.chars().take(VALUE_CHARS_MAX).collect::<String>();
    match (found, value, text) {
        ("null", ..) => "None".to_owned(),
        ("map", ..) => "{...}".to_owned(),
        ("sequence", ..) => "[...]".to_owned(),
        (_, Some("true"), _) => "True".to_owned(),
        (_, Some("false"), _) => "False".to_owned(),
        (_, _, Some(text)) => format!("'{}'", cut(text)),
        (_, Some(value), _) => cut(value),
        _ => cut(found),
    }
}

/// The schema's name of what a type expects.
fn kind(wanted: &str) -> Option<&'static str> {
    match wanted {
        "a string" | "a character" | "a borrowed string" => Some("string"),
        "a boolean" => Some("boolean"),
        "i8" | "i16" | "i32" | "i64" | "i128" | "u8" | "u16" | "u32" | "u64" | "u128" | "usize" | "isize" => {
            Some("integer")
        }
        "f32" | "f64" => Some("number"),
        "a sequence" => Some("array"),
        "a map" => Some("object"),
        _ if wanted.starts_with("struct ") || wanted.starts_with("internally tagged") => Some("object"),
        _ if wanted.starts_with("enum ") || wanted.starts_with("string or map") => Some("string"),
        _ if wanted.starts_with("tuple ") || wanted.starts_with("a tuple") => Some("array"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only its form is looked at")]
    struct Wanted {
        server: Server,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only its form is looked at")]
    struct Server {
        name: String,
        #[serde(default)]
        count: u8,
        #[serde(default)]
        tags: Vec<String>,
        policy: Option<Policy>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Policy {
        Soft,
        Hard,
    }

    fn said(text: &str) -> String {
        match read::<Wanted>(text.as_bytes()).unwrap_err() {
            Fault::Field { field, reason } => sentence(Service::Compute, &field, &reason),
            other => other.to_string(),
        }
    }

    #[test]
    fn what_does_not_fit_is_said_in_the_words_of_json_schema() {
        for (body, wanted) in [
            ("{}", "attribute body. 'server' is a required property"),
            (r#"{"server": 1}"#, "attribute server. 1 is not of type 'object'"),
            (r#"{"server": {"name": 7}}"#, "attribute server.name. 7 is not of type 'string'"),
            (r#"{"server": {"name": null}}"#, "attribute server.name. None is not of type 'string'"),
            (r#"{"server": {"name": "a", "count": "x"}}"#, "server.count. 'x' is not of type 'integer'"),
            (r#"{"server": {"name": "a", "count": 256}}"#, "server.count. 256 is not of type 'integer'"),
            (r#"{"server": {"name": "a", "count": true}}"#, "server.count. True is not of type 'integer'"),
            (r#"{"server": {"name": "a", "tags": {}}}"#, "server.tags. {...} is not of type 'array'"),
            (
                r#"{"server": {"name": "a", "tags": ["a", []]}}"#,
                "server.tags[1]. [...] is not of type 'string'",
            ),
            (r#"{"server": {"name": "a", "policy": "no"}}"#, "'no' is not one of ['soft', 'hard']"),
            (r#"{"server": {"name": "a", "strange": 1}}"#, "not allowed ('strange' was unexpected)"),
            ("{", "Malformed request body"),
            (r#"{"server": {"name": "a"}} x"#, "Malformed request body"),
            ("\u{feff}{}", "Malformed request body"),
        ] {
            let said = said(body);
            assert!(said.contains(wanted), "{body}: {said}");
            assert!(!said.contains("struct") && !said.contains("at line"), "{said}");
        }
        let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
        assert!(read::<serde_json::Value>(deep.as_bytes()).is_err());
        assert!(read::<serde_json::Value>(b"\"\xff\"").is_err());
        assert!(read::<serde_json::Value>(b"1e999999").is_err());
    }
}
