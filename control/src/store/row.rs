//! Rows: typed values under `{KIND}/{id}`, as JSON that carries its schema's version.
//!
//! A value is `{"schema":N,"row":{…}}`. A row of an older schema is upgraded when it is read and written back in the
//! newest schema with its next change; one of a newer schema is refused, never guessed at.
//!
//! Must never know: which kinds there are.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Entry, Revision};

/// A type that the store keeps.
pub trait Row: Serialize + DeserializeOwned + Clone + Send + Sync + 'static {
    /// The kind, which is the key's part before the first `/`; so it holds none itself.
    const KIND: &'static str;
    /// The version of the row's JSON; raise it whenever a row written before would not read as it was meant.
    const SCHEMA: u32;

    /// The id, unique within the kind; it may hold `/`, and lists are in its byte order.
    fn id(&self) -> &str;

    /// What else it is found by ([`super::Cache::found_by`]), such as the id of what it is on.
    fn finders(&self) -> Vec<&str> {
        Vec::new()
    }

    /// Turns a row of the older `schema` into one of [`Row::SCHEMA`].
    ///
    /// # Errors
    /// [`RowError::Schema`] where that is not possible, as by default.
    fn upgrade(schema: u32, row: Value) -> Result<Value, RowError> {
        let _ = row;
        Err(RowError::Schema { kind: Self::KIND, found: schema, known: Self::SCHEMA })
    }
}

/// A row as the store holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored<T> {
    /// The row.
    pub row: T,
    /// The revision at which it came into being.
    pub create_revision: Revision,
    /// The revision that last changed it: what an update compares.
    pub mod_revision: Revision,
}

/// Why a row cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum RowError {
    /// It cannot be JSON.
    #[error("write a row of kind {kind}")]
    Encode {
        /// Its kind.
        kind: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// It is not the JSON that it should be.
    #[error("read a row of kind {kind}")]
    Decode {
        /// Its kind.
        kind: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// It has a version that this program cannot read.
    #[error(
        "a row of kind {kind} has schema {found}; this program knows {known} and what it can upgrade to that"
    )]
    Schema {
        /// Its kind.
        kind: &'static str,
        /// Its version.
        found: u32,
        /// This program's version.
        known: u32,
    },
}

/// The key of the row of kind `T` with this id.
#[must_use]
pub fn key<T: Row>(id: &str) -> String {
    format!("{}/{id}", T::KIND)
}

#[derive(Serialize)]
struct Written<'a, T> {
    schema: u32,
    row: &'a T,
}

#[derive(Deserialize)]
struct Read<T> {
    row: T,
}

#[derive(Deserialize)]
struct Version {
    schema: u32,
}

/// A row's value.
///
/// # Errors
/// [`RowError::Encode`] if its type is not one that JSON can hold, such as a map with structured keys.
pub fn encode<T: Row>(row: &T) -> Result<Bytes, RowError> {
    let written = serde_json::to_vec(&Written { schema: T::SCHEMA, row });
    written.map(Bytes::from).map_err(|source| RowError::Encode { kind: T::KIND, source })
}

/// Reads a row, upgrading it where it is older.
///
/// # Errors
/// [`RowError::Decode`] and [`RowError::Schema`].
pub fn decode<T: Row>(entry: &Entry) -> Result<Stored<T>, RowError> {
    let decode_error = |source| RowError::Decode { kind: T::KIND, source };
    let Version { schema } = serde_json::from_slice(&entry.value).map_err(decode_error)?;
    let row = if schema == T::SCHEMA {
        serde_json::from_slice::<Read<T>>(&entry.value).map_err(decode_error)?.row
    } else if schema < T::SCHEMA {
        let old: Read<Value> = serde_json::from_slice(&entry.value).map_err(decode_error)?;
        serde_json::from_value(T::upgrade(schema, old.row)?).map_err(decode_error)?
    } else {
        return Err(RowError::Schema { kind: T::KIND, found: schema, known: T::SCHEMA });
    };
    Ok(Stored { row, create_revision: entry.create_revision, mod_revision: entry.mod_revision })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Flavor {
        id: String,
        memory_mib: u64,
    }

    impl Row for Flavor {
        const KIND: &'static str = "flavor";
        const SCHEMA: u32 = 2;

        fn id(&self) -> &str {
            &self.id
        }

        /// Schema 1 counted in GiB.
        fn upgrade(schema: u32, mut row: Value) -> Result<Value, RowError> {
            if schema != 1 {
                return Err(RowError::Schema { kind: Self::KIND, found: schema, known: Self::SCHEMA });
            }
            let memory_mib = row["memory_gib"].as_u64().unwrap_or(0) * 1024;
            row["memory_mib"] = memory_mib.into();
            Ok(row)
        }
    }

    fn read(json: &str) -> Result<Stored<Flavor>, RowError> {
        let value = Bytes::copy_from_slice(json.as_bytes());
        decode(&Entry { key: "flavor/a".to_owned(), value, create_revision: 3, mod_revision: 4 })
    }

    #[test]
    fn row_reads_back_as_written() {
        let row = Flavor { id: "a".to_owned(), memory_mib: 512 };
        let value = encode(&row).unwrap();
        assert_eq!(&value[..], br#"{"schema":2,"row":{"id":"a","memory_mib":512}}"#);
        let stored: Stored<Flavor> =
            decode(&Entry { key: key::<Flavor>("a"), value, create_revision: 3, mod_revision: 4 }).unwrap();
        assert_eq!(stored, Stored { row, create_revision: 3, mod_revision: 4 });
    }

    #[test]
    fn older_row_is_upgraded() {
        let stored = read(r#"{"schema":1,"row":{"id":"a","memory_gib":2}}"#).unwrap();
        assert_eq!(stored.row.memory_mib, 2048);
    }

    #[test]
    fn newer_or_foreign_row_is_refused() {
        assert!(matches!(read(r#"{"schema":3,"row":{}}"#), Err(RowError::Schema { found: 3, .. })));
        assert!(matches!(read(r#"{"schema":0,"row":{}}"#), Err(RowError::Schema { found: 0, .. })));
        assert!(matches!(read("[]"), Err(RowError::Decode { .. })));
        assert!(matches!(read(r#"{"schema":2,"row":{}}"#), Err(RowError::Decode { .. })));
    }
}
