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
    /// Data is streaming into the staging area, or is there.
    Uploading,
    /// A task brings the data.
    Importing,
    /// Data is there and checked.
    Active,
    /// Data is there, downloads are refused.
    Deactivated,
}

impl ImageStatus {
    /// Whether there is data to read.
    pub fn has_data(self) -> bool {
        matches!(self, Self::Active | Self::Deactivated)
    }

    /// Whether it waits for data that nobody brings yet.
    pub fn is_queued(self) -> bool {
        self == Self::Queued
    }
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
    /// Bytes of the disk that a guest sees, where the format says.
    #[serde(default)]
    pub virtual_size_bytes: Option<u64>,
    /// The stores that have the data, the first choice first.
    #[serde(default)]
    pub stores: Vec<String>,
    /// The name of the data in those stores; absent in images of the first version, whose data has the image's id.
    #[serde(default)]
    pub data: Option<String>,
    /// The task that brings data now; no second one may.
    #[serde(default)]
    pub import_task: Option<String>,
    /// Whether an import was ever asked for: its outcome is shown from then on.
    #[serde(default)]
    pub imported: bool,
    /// Stores that a task still brings the data to (`os_glance_importing_to_stores`).
    #[serde(default)]
    pub importing_to: Vec<String>,
    /// Stores that the last task failed to bring it to (`os_glance_failed_import`).
    #[serde(default)]
    pub failed_import: Vec<String>,
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

impl Image {
    /// A new image of `owner`'s, without data, shared with nobody yet.
    pub fn new(id: String, owner: String) -> Self {
        let now = Timestamp::now();
        Self {
            id,
            name: None,
            owner: Some(owner),
            status: ImageStatus::Queued,
            visibility: "shared".to_owned(),
            disk_format: None,
            container_format: None,
            size_bytes: None,
            virtual_size_bytes: None,
            stores: Vec::new(),
            data: None,
            import_task: None,
            imported: false,
            importing_to: Vec::new(),
            failed_import: Vec::new(),
            checksum: None,
            sha512: None,
            min_disk_gib: 0,
            min_ram_mib: 0,
            protected: false,
            hidden: false,
            tags: Vec::new(),
            properties: BTreeMap::new(),
            created_at: now,
            updated_at: now,
        }
    }
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

/// Data in a store, and how many images have it there. It goes when the last of them does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageBlob {
    /// `{store}/{name}`.
    pub id: String,
    /// Bytes of the data.
    pub size_bytes: u64,
    /// How many images have it.
    pub references: u64,
}

impl ImageBlob {
    /// The id of the row of a store and the name of data in it.
    pub fn key(store: &str, name: &str) -> String {
        format!("{store}/{name}")
    }
}

/// A file that a host needs of an image: its data, or the raw disk that is made of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalFile {
    /// The file's name in the directory of images.
    pub name: String,
    /// The name of the data it is made of.
    pub data: String,
    /// The stores that have that.
    pub stores: Vec<String>,
    /// Bytes of that.
    pub data_bytes: u64,
    /// Whether the data is a qcow2 image, of which a raw disk is to be made.
    pub qcow2: bool,
    /// Whether the data is an archive of a container image, of which a root disk is to be made.
    #[serde(default)]
    pub container: bool,
}

impl LocalFile {
    /// The names in the directory of images of what is needed until the disk is made.
    pub fn names(&self) -> [String; 2] {
        [self.name.clone(), self.data.clone()]
    }
}

/// What a task is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageTaskKind {
    /// Data for an image that is there (`POST /v2/images/{id}/import`).
    ApiImageImport,
    /// A new image with its data (`POST /v2/tasks`).
    Import,
}

/// How far a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageTaskStatus {
    /// Nobody has begun it.
    Pending,
    /// It runs; after a crash it is begun anew.
    Processing,
    /// It is done.
    Success,
    /// It failed; nothing of it is left.
    Failure,
}

/// From where a task brings data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageSource {
    /// What was staged.
    Staged,
    /// The web.
    Web {
        /// Where.
        url: String,
    },
    /// A store that has it already.
    Copy,
}

/// Work on an image that outlives the request that asked for it, and the process that does it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageTask {
    /// Its id.
    pub id: String,
    /// What it is about.
    pub kind: ImageTaskKind,
    /// How far it is.
    pub status: ImageTaskStatus,
    /// The project that it belongs to.
    pub owner: String,
    /// Who asked for it.
    pub user_id: String,
    /// The request that asked for it.
    pub request_id: String,
    /// The image.
    pub image_id: String,
    /// From where the data comes.
    pub source: ImageSource,
    /// The stores that are to have it.
    pub stores: Vec<String>,
    /// Whether it fails if one of them does.
    pub all_must_succeed: bool,
    /// What the client asked for, shown back as it was.
    pub input: serde_json::Value,
    /// What went wrong.
    pub message: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// When its record goes; absent while it runs.
    pub expires_at: Option<Timestamp>,
}
