//! Rows of the block storage service: volumes, snapshots, attachments, what hosts still have to do about them, types,
//! and what is made of volumes.

mod attachment;
mod backup;
mod group;
mod kind;
mod transfer;
mod work;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use self::attachment::VolumeAttachment;
pub use self::backup::Backup;
pub use self::group::{Group, GroupSnapshot, GroupType};
pub use self::kind::{DiskEncryption, Encryption, QosSpec, VolumeDefault, VolumeType};
pub use self::transfer::Transfer;
pub use self::work::{DiskTask, DiskWork};
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
    /// The backend of the host that has it; the host's first if absent.
    #[serde(default)]
    pub backend: Option<String>,
    /// Its disk's id, where that is not its own: a volume that was taken over.
    #[serde(default)]
    pub disk_id: Option<String>,
    /// How its disk is encrypted.
    #[serde(default)]
    pub encryption: Option<DiskEncryption>,
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
    /// How its disk is encrypted: as the volume's was then.
    #[serde(default)]
    pub encryption: Option<DiskEncryption>,
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
