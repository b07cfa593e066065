//! Rows of the image service.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Where an image is in its life (Image API v2: image statuses).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageStatus {
    /// Described, no data yet.
    Queued,
    /// Data is streaming in.
    Saving,
    /// Data is there and checked.
    Active,
    /// Data is there, downloads are refused.
    Deactivated,
}

/// An image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// Its id, which also names its file.
    pub id: String,
    /// Need not be unique.
    pub name: Option<String>,
    /// The owner's project.
    pub owner: Option<String>,
    /// Its state.
    pub status: ImageStatus,
    /// `public`, `community`, `shared` or `private`.
    pub visibility: String,
    /// `raw`, `qcow2`, `aki`, …; absent until set.
    pub disk_format: Option<String>,
    /// `bare` and kin; absent until set.
    pub container_format: Option<String>,
    /// Bytes of the data.
    pub size_bytes: Option<u64>,
    /// MD5 of the data in hexadecimal.
    pub checksum: Option<String>,
    /// SHA-512 of the data in hexadecimal.
    pub sha512: Option<String>,
    /// Least disk in GiB.
    pub min_disk_gib: u32,
    /// Least memory in MiB.
    pub min_ram_mib: u32,
    /// Refuses deletion.
    pub protected: bool,
    /// Left out of lists unless asked for.
    pub hidden: bool,
    /// Tags.
    pub tags: Vec<String>,
    /// All other properties (`kernel_id`, `ramdisk_id`, `os_command_line`, `hw_…`, …).
    pub properties: BTreeMap<String, String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

/// A project that an image of visibility `shared` is shared with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageMember {
    /// `{image}/{project}`.
    pub id: String,
    /// The image.
    pub image_id: String,
    /// The project.
    pub project_id: String,
    /// `pending`, `accepted` or `rejected`: whether the image is in the project's lists.
    pub status: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

impl ImageMember {
    /// The id of the row of an image and a project.
    pub fn key(image_id: &str, project_id: &str) -> String {
        format!("{image_id}/{project_id}")
    }
}
