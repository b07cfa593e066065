//! Rows: types of volumes and what belongs to them.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A kind of volumes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeType {
    /// Its id.
    pub id: String,
    /// Unique.
    pub name: String,
    /// Free text.
    pub description: Option<String>,
    /// Everyone may use it.
    pub is_public: bool,
    /// What a backend has to have, and what volumes get.
    pub extra_specs: BTreeMap<String, String>,
    /// The projects that may use it although it is not public.
    pub access: BTreeSet<String>,
    /// Its QoS specification.
    pub qos_id: Option<String>,
    /// How its volumes are to be encrypted.
    pub encryption: Option<Encryption>,
    /// It is being deleted: no volume gets it any more.
    #[serde(default)]
    pub leaving: bool,
    /// How its volumes are to be encrypted is about to change: no volume gets it meanwhile.
    #[serde(default)]
    pub settling: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Option<Timestamp>,
}

/// How volumes of a type are to be encrypted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Encryption {
    /// Its id.
    pub id: String,
    /// `luks`, ….
    pub provider: String,
    /// `aes-xts-plain64`, ….
    pub cipher: Option<String>,
    /// The key's size in bits.
    pub key_size: Option<u32>,
    /// `front-end` or `back-end`.
    pub control_location: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Option<Timestamp>,
}

impl Encryption {
    /// Whether both say the same of the bytes.
    pub fn is_as(&self, other: &Self) -> bool {
        let of_bytes = (&self.provider, &self.cipher, self.key_size, &self.control_location);
        of_bytes == (&other.provider, &other.cipher, other.key_size, &other.control_location)
    }
}

/// How one disk is encrypted. What is copied of a disk has the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskEncryption {
    /// The key's id, which is all that is shown of it.
    pub key_id: String,
    /// The key, sealed under the cloud's master key.
    pub sealed_key: String,
    /// What the type said when the key was made.
    pub spec: Encryption,
}

/// Limits that volumes of some types have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QosSpec {
    /// Its id.
    pub id: String,
    /// Unique.
    pub name: String,
    /// `front-end`, `back-end` or `both`.
    pub consumer: String,
    /// The limits.
    pub specs: BTreeMap<String, String>,
}

/// The type that a project's volumes have if none is said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeDefault {
    /// The project.
    pub id: String,
    /// The type.
    pub type_id: String,
}
