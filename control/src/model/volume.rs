//! Rows of the block storage service: volumes, snapshots, attachments, what hosts still have to do about them, types,
//! and what is made of volumes.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::agent::protocol::DiskShape;
use crate::model::image::LocalFile;

/// Makes an enum whose variants have the names that the protocol gives them.
macro_rules! named {
    ($(#[$meta:meta])* $type:ident { $($(#[$doc:meta])* $variant:ident: $name:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $type {
            $($(#[$doc])* #[serde(rename = $name)] $variant,)*
        }

        impl $type {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name in the protocol.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The one by that name.
            pub fn of_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|one| one.name() == name)
            }
        }
    };
}

named! {
    /// Where a volume, a snapshot, a backup or a group stands (Block Storage API: volume status).
    Status {
        /// Being made.
        Creating: "creating",
        /// There and free.
        Available: "available",
        /// Promised to a server.
        Reserved: "reserved",
        /// On its way to a server.
        Attaching: "attaching",
        /// A server has it.
        InUse: "in-use",
        /// On its way from a server.
        Detaching: "detaching",
        /// Becoming larger.
        Extending: "extending",
        /// Becoming another type.
        Retyping: "retyping",
        /// Becoming what a snapshot is.
        Reverting: "reverting",
        /// Becoming an image.
        Uploading: "uploading",
        /// Beginning as an image.
        Downloading: "downloading",
        /// Being backed up.
        BackingUp: "backing-up",
        /// Becoming what a backup is.
        RestoringBackup: "restoring-backup",
        /// A backup becoming a volume.
        Restoring: "restoring",
        /// Offered to another project.
        AwaitingTransfer: "awaiting-transfer",
        /// Moved between backends.
        Maintenance: "maintenance",
        /// Being taken over.
        Managing: "managing",
        /// A group being changed.
        Updating: "updating",
        /// Going.
        Deleting: "deleting",
        /// Gone from the backend.
        Deleted: "deleted",
        /// A snapshot being given up.
        Unmanaging: "unmanaging",
        /// Could not be made.
        Error: "error",
        /// Could not be deleted.
        ErrorDeleting: "error_deleting",
        /// Could not be made larger.
        ErrorExtending: "error_extending",
        /// Could not become what a backup is.
        ErrorRestoring: "error_restoring",
        /// Could not be taken over.
        ErrorManaging: "error_managing",
        /// Could not be backed up.
        ErrorBackingUp: "error_backing-up",
    }
}

named! {
    /// Where an attachment stands.
    AttachStatus {
        /// Promised.
        Reserved: "reserved",
        /// Connected, not yet in the guest.
        Attaching: "attaching",
        /// The server has it.
        Attached: "attached",
        /// Gone.
        Detached: "detached",
        /// Could not be connected.
        ErrorAttaching: "error_attaching",
        /// Could not be taken away.
        ErrorDetaching: "error_detaching",
    }
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
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
    /// Its size in GiB.
    pub size_gib: u64,
    /// Where it stands.
    pub status: Status,
    /// Where it stood before what is under way.
    pub previous_status: Option<Status>,
    /// Its type.
    pub type_id: String,
    /// A server can boot from it.
    pub bootable: bool,
    /// Guests cannot write to it.
    pub read_only: bool,
    /// Several servers may have it.
    pub multiattach: bool,
    /// The owner's properties.
    pub metadata: BTreeMap<String, String>,
    /// What an administrator's tools keep.
    pub admin_metadata: BTreeMap<String, String>,
    /// The properties of the image that it began as, and further ones.
    pub image_metadata: BTreeMap<String, String>,
    /// The image that it began as.
    pub image_id: Option<String>,
    /// The snapshot that it began as.
    pub snapshot_id: Option<String>,
    /// The volume that it began as.
    pub source_volume_id: Option<String>,
    /// The backup that it began as.
    #[serde(default)]
    pub backup_id: Option<String>,
    /// Its group.
    pub group_id: Option<String>,
    /// Zone.
    pub zone: String,
    /// The host that has it; absent if none was found.
    pub host: Option<String>,
    /// Its disk's id, where that is not its own: a volume that was taken over.
    #[serde(default)]
    pub disk_id: Option<String>,
    /// The file that it begins as, until that has been made of its image: the host's wish follows then.
    #[serde(default)]
    pub waits_for: Option<LocalFile>,
    /// The request that asked for what it waits for.
    #[serde(default)]
    pub request_id: String,
    /// How moving it between backends went.
    pub migration_status: Option<String>,
    /// Its attachments.
    pub attachments: Vec<String>,
    /// How many snapshots of it there are.
    pub snapshots: u32,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Option<Timestamp>,
}

impl Volume {
    /// Its disk's id at its host.
    pub fn disk(&self) -> &str {
        self.disk_id.as_deref().unwrap_or(&self.id)
    }
}

/// A snapshot of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
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
    /// Of which volume.
    pub volume_id: String,
    /// The volume's size in GiB then.
    pub size_gib: u64,
    /// The volume's type then, for quotas.
    pub type_id: String,
    /// Where it stands.
    pub status: Status,
    /// The owner's properties.
    pub metadata: BTreeMap<String, String>,
    /// The group snapshot that it is a part of.
    pub group_snapshot_id: Option<String>,
    /// How far it has come, where somebody else makes it: `80%`.
    #[serde(default)]
    pub progress: Option<String>,
    /// The host that has it.
    pub host: Option<String>,
    /// Its disk's id, where that is not its own.
    #[serde(default)]
    pub disk_id: Option<String>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Option<Timestamp>,
}

impl Snapshot {
    /// Its disk's id at its host.
    pub fn disk(&self) -> &str {
        self.disk_id.as_deref().unwrap_or(&self.id)
    }
}

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
    },
    /// Deleting a backup.
    DeleteBackup {
        /// Which.
        backup: String,
    },
}

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

/// What an administrator wants of a part of the service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeService {
    /// `{binary}/{host}`.
    pub id: String,
    /// No new volumes there; why.
    pub disabled: Option<String>,
    /// When that changed.
    pub updated_at: Timestamp,
}

/// What went wrong, for the owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMessage {
    /// Its id.
    pub id: String,
    /// The owner's project.
    pub project_id: String,
    /// The request that asked.
    pub request_id: String,
    /// `VOLUME`, `VOLUME_SNAPSHOT`, ….
    pub resource_type: String,
    /// Which.
    pub resource_id: String,
    /// `VOLUME_VOLUME_001_002` and the like.
    pub event_id: String,
    /// One sentence.
    pub text: String,
    /// When.
    pub created_at: Timestamp,
}

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
