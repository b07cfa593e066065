//! What control and a host's agent say of the disks of the host's volume backend: volumes, snapshots, backups, and files
//! made of them.
//!
//! Only what is not yet as it shall be is spoken of. A generation names one wish; the agent's answer names it too, and
//! repeating a wish that came true changes nothing.

use serde::{Deserialize, Serialize};
use storage::format::DiskKey;
use vmm::config::DiskLimits;

use super::protocol::InstanceWanted;

/// One disk as it shall be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskWanted {
    /// Its id: the volume's, the snapshot's, the backup's or the image's.
    pub id: String,
    /// Grows with each wish.
    pub generation: u64,
    /// Which of the host's backends has it or gets it; if none is said, the first for what is made, and all for what is
    /// deleted.
    #[serde(default)]
    pub backend: Option<String>,
    /// How the disk's bytes lie, where the host has to read or write them itself: what becomes an image, and what begins as
    /// one. Copies are of the bytes as they lie.
    #[serde(default)]
    pub cipher: DiskCipher,
    /// How those of the disk lie that it is made of.
    #[serde(default)]
    pub source_cipher: DiskCipher,
    /// What it shall be.
    pub shape: DiskShape,
}

/// How the bytes of a volume lie in its backend.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskCipher {
    /// In the clear.
    #[default]
    Clear,
    /// Encrypted with this key, which no host writes down.
    Key(DiskKey),
    /// Encrypted with a key that is not here.
    Lost,
}

impl DiskCipher {
    /// The key, if the bytes are encrypted.
    ///
    /// # Errors
    /// One sentence, where it is not here.
    pub fn key(&self) -> Result<Option<&DiskKey>, String> {
        match self {
            Self::Clear => Ok(None),
            Self::Key(key) => Ok(Some(key)),
            Self::Lost => {
                Err("the volume is encrypted and its key is not to be had: it was sealed under another \
                               master key, or the volume is gone"
                    .to_owned())
            }
        }
    }

    /// The same without its key, for what is written down.
    fn withhold(&mut self) {
        if matches!(self, Self::Key(_)) {
            *self = Self::Lost;
        }
    }
}

/// What a disk shall be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskShape {
    /// A volume.
    Volume {
        /// Its size in bytes.
        size_bytes: u64,
        /// What it begins as.
        source: DiskSource,
    },
    /// A volume that is there, at least so large.
    Extended {
        /// Its size in bytes.
        size_bytes: u64,
    },
    /// A volume that another backend of the host had, and that it has no more.
    Moved {
        /// That backend.
        from: String,
    },
    /// A disk with the content of another one, where that lies otherwise.
    Recoded {
        /// The other one.
        of: String,
        /// The backend that has that.
        from: String,
    },
    /// What another disk is now, for ever.
    Snapshot {
        /// That disk.
        of: String,
    },
    /// A volume that is again what a snapshot of it is.
    Reverted {
        /// The snapshot.
        snapshot: String,
    },
    /// A file of raw bytes in the outgoing directory, for control to take.
    Outgoing {
        /// The disk whose bytes they are.
        of: String,
    },
    /// The same of an instance's root disk that is no volume.
    OutgoingRoot {
        /// The instance.
        instance: String,
    },
    /// The file for control is no longer there.
    OutgoingDeleted,
    /// A backup.
    Backup {
        /// The disk whose content it keeps.
        of: String,
        /// The backup that it keeps the differences to.
        parent: Option<String>,
    },
    /// A volume with the content of a backup.
    Restored {
        /// The backup.
        backup: String,
        /// The volume's size in bytes.
        size_bytes: u64,
    },
    /// Not there.
    Deleted,
    /// A backup that is not there.
    BackupDeleted,
}

/// What a new volume begins as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskSource {
    /// Zeros.
    Nothing,
    /// An image's bytes.
    Image {
        /// The image.
        image_id: String,
    },
    /// A backup's content.
    Backup {
        /// The backup.
        id: String,
    },
    /// Another volume, or a snapshot.
    Disk {
        /// Its id.
        id: String,
    },
}

/// What became of a wish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskObserved {
    /// The disk.
    pub id: String,
    /// Which wish.
    pub generation: u64,
    /// How many bytes a backup takes.
    #[serde(default)]
    pub bytes: Option<u64>,
    /// Why it did not come true: one sentence for the owner.
    pub fault: Option<String>,
}

/// A disk that a backend has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFound {
    /// Its name there.
    pub id: String,
    /// Its size in bytes.
    pub size_bytes: u64,
}

/// A volume as a disk of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeWanted {
    /// The volume's id.
    pub id: String,
    /// The backend that has it; the host's first if absent.
    #[serde(default)]
    pub backend: Option<String>,
    /// Its size in bytes: a guest that runs and knows of less is told.
    #[serde(default)]
    pub size_bytes: u64,
    /// Refuse the guest's writes.
    pub read_only: bool,
    /// How fast the guest may use it.
    #[serde(default)]
    pub limits: DiskLimits,
    /// How its bytes lie.
    #[serde(default)]
    pub cipher: DiskCipher,
}

/// One of a host's places for volumes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolReport {
    /// Its name on the host.
    pub backend: String,
    /// What kind of backend it is: `file`, `lvm`.
    pub protocol: String,
    /// Its size in GiB.
    pub total_gib: u64,
    /// Free space in GiB.
    pub free_gib: u64,
    /// A disk in use can be copied.
    pub copies_in_use: bool,
}

impl InstanceWanted {
    /// The same without the keys of its volumes, for what is written down: whoever starts the instance again is told
    /// them anew.
    #[must_use]
    pub fn without_keys(&self) -> Self {
        let mut wanted = self.clone();
        let volumes = wanted.root_disk.volume.iter_mut().chain(&mut wanted.volumes);
        volumes.for_each(|volume| volume.cipher.withhold());
        wanted
    }
}
