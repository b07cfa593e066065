//! Bytes that are nearly always text, such as metadata: user data may be compressed.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// Bytes that are nearly always text. In JSON a string, or where they are no UTF-8 `{"base64": "…"}`.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Document(Vec<u8>);

impl Document {
    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// As it is written down.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Text(String),
    Bytes { base64: String },
}

impl TryFrom<Written> for Document {
    type Error = base64::DecodeError;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        match written {
            Written::Text(text) => Ok(text.into()),
            Written::Bytes { base64 } => STANDARD.decode(base64).map(Self),
        }
    }
}

impl From<Document> for Written {
    fn from(Document(bytes): Document) -> Self {
        String::from_utf8(bytes)
            .map_or_else(|error| Self::Bytes { base64: STANDARD.encode(error.as_bytes()) }, Self::Text)
    }
}

impl From<String> for Document {
    fn from(text: String) -> Self {
        Self(text.into_bytes())
    }
}

impl From<&str> for Document {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl From<Vec<u8>> for Document {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl AsRef<[u8]> for Document {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Documents may hold secrets and be long: only their length is shown.
impl fmt::Debug for Document {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Document({} bytes)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_a_string_and_anything_else_is_base64() {
        let json = |bytes: &[u8]| serde_json::to_string(&Document::from(bytes.to_vec())).unwrap();
        assert_eq!(json(b"#cloud-config\n"), r##""#cloud-config\n""##);
        assert_eq!(json(&[0x1f, 0x8b, 8]), r#"{"base64":"H4sI"}"#);
        for bytes in [&b""[..], b"text", &[0x1f, 0x8b, 8], &[0xff; 300]] {
            let read: Document = serde_json::from_str(&json(bytes)).unwrap();
            assert_eq!(read.as_bytes(), bytes);
        }
        assert!(serde_json::from_str::<Document>(r#"{"base64":"!"}"#).is_err());
    }

    #[test]
    fn debug_output_does_not_show_the_content() {
        assert_eq!(format!("{:?}", Document::from("password")), "Document(8 bytes)");
    }
}
