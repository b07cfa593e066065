//! Rows: copies of volumes.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{DiskEncryption, Status};

/// A copy of a volume elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    /// Its id.
    pub id: String,
    /// The owner's project.
    pub project_id: String,
    /// Who made it.
    pub user_id: String,
    /// Need not be unique.
    pub name: Option<String>,
    /// Free text.
    pub description: Option<String>,
    /// The backup whose files these are, where it was taken in under another id.
    #[serde(default)]
    pub data_id: Option<String>,
    /// The properties of the volume then.
    #[serde(default)]
    pub volume_metadata: BTreeMap<String, String>,
    /// Of which volume.
    pub volume_id: String,
    /// That volume's type then.
    #[serde(default)]
    pub type_id: Option<String>,
    /// How what it keeps is encrypted: as it lay in the volume.
    #[serde(default)]
    pub encryption: Option<DiskEncryption>,
    /// Of which snapshot of it.
    pub snapshot_id: Option<String>,
    /// The backup that it keeps the differences to.
    pub parent_id: Option<String>,
    /// How many backups keep differences to it.
    pub dependents: u32,
    /// The volume's size in GiB then.
    pub size_gib: u64,
    /// Where it stands.
    pub status: Status,
    /// Why it failed.
    pub fail_reason: Option<String>,
    /// The place's name, as the owner called it.
    pub container: Option<String>,
    /// How many bytes it takes.
    pub bytes: u64,
    /// The owner's properties.
    pub metadata: BTreeMap<String, String>,
    /// It lies in a bucket, and not in a directory of its host's.
    #[serde(default)]
    pub in_bucket: bool,
    /// The host that has it.
    pub host: Option<String>,
    /// Zone.
    pub zone: String,
    /// When the content was as it keeps it.
    pub data_at: Timestamp,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Option<Timestamp>,
}

impl Backup {
    /// The id of its files.
    pub fn data(&self) -> &str {
        self.data_id.as_deref().unwrap_or(&self.id)
    }
}
