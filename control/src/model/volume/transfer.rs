//! Rows: offers of volumes to other projects.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// An offer of a volume to another project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// Its id.
    pub id: String,
    /// Need not be unique.
    pub name: Option<String>,
    /// The volume.
    pub volume_id: String,
    /// Who offers.
    pub source_project_id: String,
    /// Who took it.
    pub destination_project_id: Option<String>,
    /// It was taken.
    pub accepted: bool,
    /// Without the volume's snapshots.
    pub no_snapshots: bool,
    /// Hexadecimal salt of the key's digest.
    pub salt: String,
    /// Hexadecimal digest (SHA-256) of the salt and the key.
    pub digest: String,
    /// When it was made.
    pub created_at: Timestamp,
}
