//! Rows: who has a volume.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::AttachStatus;

/// That a server has a volume, or shall have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeAttachment {
    /// Its id.
    pub id: String,
    /// The volume.
    pub volume_id: String,
    /// The volume's project.
    pub project_id: String,
    /// The server.
    pub server_id: Option<String>,
    /// The host of whoever connects.
    pub host: Option<String>,
    /// The device's name in the guest.
    pub mountpoint: Option<String>,
    /// `rw` or `ro`.
    pub mode: String,
    /// Where it stands.
    pub status: AttachStatus,
    /// What whoever connects said of itself.
    pub connector: BTreeMap<String, serde_json::Value>,
    /// Since when.
    pub attached_at: Option<Timestamp>,
    /// When it was asked for.
    pub created_at: Timestamp,
}
