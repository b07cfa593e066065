//! Rows: what hosts still have to do about disks.

use serde::{Deserialize, Serialize};

use super::DiskEncryption;
use crate::agent::protocol::DiskShape;

/// What a host has yet to do about a disk. It is there from the wish until the host's report, which changes the rows that
/// it is about in the transaction that takes it away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskWork {
    /// `{host}/{disk}`.
    pub id: String,
    /// Which wish.
    pub generation: u64,
    /// What the disk shall be.
    pub shape: DiskShape,
    /// What is over once it is that.
    pub task: DiskTask,
    /// The request that asked.
    pub request_id: String,
}

/// What a host's work on a disk is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskTask {
    /// Making a volume.
    CreateVolume {
        /// Which.
        volume: String,
    },
    /// Making a volume larger.
    Extend {
        /// Which.
        volume: String,
        /// To so many GiB.
        size_gib: u64,
    },
    /// Deleting a volume.
    DeleteVolume {
        /// Which.
        volume: String,
    },
    /// Making a volume what a snapshot is.
    Revert {
        /// Which.
        volume: String,
        /// Which snapshot.
        snapshot: String,
        /// How the volume's disk is encrypted then.
        #[serde(default)]
        encryption: Option<Box<DiskEncryption>>,
    },
    /// Moving a volume to another backend of its host.
    Move {
        /// Which.
        volume: String,
        /// To which backend.
        backend: String,
        /// The type that it has then, if that changes.
        type_id: Option<String>,
    },
    /// Giving a volume another disk with the same content, which lies as another type says.
    Recode {
        /// Which volume.
        volume: String,
        /// In which backend.
        backend: String,
        /// The type that the volume has then.
        type_id: String,
        /// How the volume's disk is encrypted then.
        encryption: Option<Box<DiskEncryption>>,
    },
    /// Making a snapshot.
    CreateSnapshot {
        /// Which.
        snapshot: String,
    },
    /// Deleting a snapshot.
    DeleteSnapshot {
        /// Which.
        snapshot: String,
    },
    /// Making an image of a volume.
    Upload {
        /// Which volume.
        volume: String,
        /// Which image.
        image: String,
    },
    /// Making an image of a server's root disk.
    UploadRoot {
        /// Which server.
        server: String,
        /// Which image.
        image: String,
        /// How many backups of its kind are kept, if it is one.
        #[serde(default)]
        rotation: Option<u32>,
    },
    /// Clearing after an image was made.
    Clear,
    /// Making a backup.
    CreateBackup {
        /// Which.
        backup: String,
    },
    /// Making a volume what a backup is.
    Restore {
        /// Which backup.
        backup: String,
        /// Which volume.
        volume: String,
        /// How the volume's disk is encrypted then.
        #[serde(default)]
        encryption: Option<Box<DiskEncryption>>,
    },
    /// Deleting a backup.
    DeleteBackup {
        /// Which.
        backup: String,
    },
}

impl DiskTask {
    /// The image that is made of what the host brings out.
    pub fn image(&self) -> Option<&str> {
        match self {
            Self::Upload { image, .. } | Self::UploadRoot { image, .. } => Some(image),
            _ => None,
        }
    }
}
