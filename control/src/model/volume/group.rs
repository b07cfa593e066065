//! Rows: groups of volumes, their types and their snapshots.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Status;

/// Volumes that are snapshot together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Its id.
    pub id: String,
    /// The owner's project.
    pub project_id: String,
    /// Need not be unique.
    pub name: Option<String>,
    /// Free text.
    pub description: Option<String>,
    /// Its type.
    pub group_type_id: String,
    /// The types its volumes may have.
    pub volume_type_ids: Vec<String>,
    /// Its volumes.
    pub volume_ids: BTreeSet<String>,
    /// The group snapshot that it began as.
    pub group_snapshot_id: Option<String>,
    /// The group that it began as.
    pub source_group_id: Option<String>,
    /// Zone.
    pub zone: String,
    /// Where it stands.
    pub status: Status,
    /// When it was made.
    pub created_at: Timestamp,
}

/// A kind of groups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupType {
    /// Its id.
    pub id: String,
    /// Unique.
    pub name: String,
    /// Free text.
    pub description: Option<String>,
    /// Everyone may use it.
    pub is_public: bool,
    /// What it asks of a backend.
    pub specs: BTreeMap<String, String>,
    /// When it was made.
    pub created_at: Timestamp,
}

/// Snapshots of all volumes of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupSnapshot {
    /// Its id.
    pub id: String,
    /// The owner's project.
    pub project_id: String,
    /// Need not be unique.
    pub name: Option<String>,
    /// Free text.
    pub description: Option<String>,
    /// Of which group.
    pub group_id: String,
    /// That group's type.
    pub group_type_id: String,
    /// The snapshots.
    pub snapshot_ids: Vec<String>,
    /// Where it stands.
    pub status: Status,
    /// When it was made.
    pub created_at: Timestamp,
}
