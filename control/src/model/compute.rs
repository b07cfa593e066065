//! Rows of the compute service: flavors, key pairs, servers, hosts.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use vmm::document::Document;

use crate::agent::protocol::{HostReport, InstanceState, Power};
use crate::model::image::LocalFile;
use crate::scheduler::Resources;

/// The sizes a server can have.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Flavor {
    /// Chosen by its creator or random.
    pub id: String,
    /// Unique.
    pub name: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub ram_mib: u32,
    /// Root disk in GiB; 0 means as large as the image.
    pub disk_gib: u32,
    /// Ephemeral disk in GiB.
    pub ephemeral_gib: u32,
    /// Swap in MiB.
    pub swap_mib: u32,
    /// Network bandwidth factor, of historical interest.
    pub rxtx_factor: f64,
    /// Everyone may use it.
    pub is_public: bool,
    /// Shown from microversion 2.55 on.
    pub description: Option<String>,
    /// Properties that ask something of the host.
    pub extra_specs: BTreeMap<String, String>,
    /// The projects that may use it although it is not public.
    pub access: BTreeSet<String>,
}

impl Flavor {
    /// What a server of this size takes from a host. Swap is counted in whole GiB, as Nova does.
    pub fn resources(&self) -> Resources {
        Resources {
            vcpus: u64::from(self.vcpus),
            memory_mib: u64::from(self.ram_mib),
            disk_gib: u64::from(self.disk_gib)
                + u64::from(self.ephemeral_gib)
                + u64::from(self.swap_mib.div_ceil(1024)),
        }
    }
}

/// An SSH public key of one user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keypair {
    /// `{user_id}:{name}`.
    pub id: String,
    /// Whose it is.
    pub user_id: String,
    /// Unique per user.
    pub name: String,
    /// `ssh` or `x509`.
    pub key_type: String,
    /// The public key in OpenSSH's format.
    pub public_key: String,
    /// MD5 of the key's bytes as colon-separated pairs, as Nova shows it.
    pub fingerprint: String,
    /// When it was made.
    pub created_at: Timestamp,
}

/// Where a server last came to rest, as Nova names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// It has never run yet.
    Building,
    /// It runs.
    Active,
    /// It stands still with its memory kept.
    Paused,
    /// It is off with its disks kept.
    Stopped,
    /// Something failed; see the fault.
    Error,
}

impl VmState {
    /// The name in `OS-EXT-STS:vm_state` and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Building => "building",
            Self::Active => "active",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Error => "error",
        }
    }
}

/// Something that was asked of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionRecord {
    /// As Nova names it: `create`, `stop`, `reboot`, ….
    pub action: String,
    /// The request that asked.
    pub request_id: String,
    /// Who asked.
    pub user_id: String,
    /// With which project.
    pub project_id: String,
    /// When.
    pub started_at: Timestamp,
    /// What Nova says of it where it failed: `Error`.
    #[serde(default)]
    pub message: Option<String>,
    /// When its host was done with it, where that is kept: of images, volumes and network devices, and of what starts and
    /// stops it.
    #[serde(default)]
    pub finished_at: Option<Timestamp>,
}

/// The most actions kept per server: the newest ones, so that a row stays small.
pub const ACTIONS_MAX: usize = 50;

/// A server: what its owner wants, what the scheduler decided, what the host sees.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Server {
    /// Its id.
    pub id: String,
    /// The owner's project.
    pub project_id: String,
    /// The owner.
    pub user_id: String,
    /// Need not be unique.
    pub name: String,
    /// Free text.
    pub description: Option<String>,
    /// The guest's host name.
    pub hostname: String,
    /// The flavor as it was at creation (microversion 2.47 shows it embedded).
    pub flavor: Flavor,
    /// The image it begins as.
    pub image_id: String,
    /// That image's properties as they were at creation (microversion 2.98 shows them).
    pub image_properties: BTreeMap<String, String>,
    /// A kernel beside the disk, from the image's properties.
    pub kernel: Option<ServerKernel>,
    /// The files that it is made of: the root disk's, then the kernel's and the ramdisk's. Empty in servers of the first
    /// version, whose files have their images' ids.
    #[serde(default)]
    pub files: Vec<LocalFile>,
    /// The root disk's size in bytes; 0 means the image's.
    pub root_disk_bytes: u64,
    /// Properties, as the owner gave them.
    pub metadata: BTreeMap<String, String>,
    /// Tags.
    pub tags: Vec<String>,
    /// User data, decoded.
    pub user_data: Option<Document>,
    /// Whether the metadata is on a configuration drive as well.
    #[serde(default)]
    pub config_drive: bool,
    /// The key pair's name and its public key as it was at creation.
    pub key: Option<(String, String)>,
    /// The ports in the order the guest sees them.
    pub port_ids: Vec<String>,
    /// What the guest finds its devices by: the ports that have a tag, with it.
    #[serde(default)]
    pub nic_tags: BTreeMap<String, String>,
    /// The volumes, in the order the guest sees them.
    #[serde(default)]
    pub volumes: Vec<ServerVolume>,
    /// Observed: the volumes, as its host knows them, and ports that the guest has until it is off.
    #[serde(default)]
    pub fixed_devices: BTreeSet<String>,
    /// Names of the security groups asked for at creation.
    pub security_groups: Vec<String>,
    /// Which of a batch (`min_count`, `max_count`) it is.
    pub launch_index: u32,
    /// Groups the servers of one request.
    pub reservation_id: String,
    /// Wished zone.
    pub availability_zone: Option<String>,
    /// Wished host, an administrator's privilege.
    pub wished_host: Option<String>,
    /// Hints to the scheduler, as the owner gave them (microversion 2.100 shows them).
    pub scheduler_hints: BTreeMap<String, serde_json::Value>,
    /// Whether `OS-DCF:diskConfig` is `AUTO`, as was asked or its image said; kept for whoever asks.
    pub auto_disk_config: bool,
    /// What the owner calls its IPv4 address; empty if nothing.
    pub access_ip_v4: String,
    /// What the owner calls its IPv6 address; empty if nothing.
    pub access_ip_v6: String,
    /// Only an administrator may change it.
    pub locked: bool,
    /// Why it is locked.
    pub locked_reason: Option<String>,
    /// Wanted: what it shall be doing.
    pub power: Power,
    /// Wanted: counts the starts asked for.
    pub boot: u64,
    /// Wanted: how long a guest has to shut itself down, in milliseconds; 0 asks nobody.
    pub shutdown_timeout_ms: u32,
    /// Wanted: be gone from its host although the row stays, because it failed before it ever ran.
    pub discard: bool,
    /// Wanted: grows with each change.
    pub generation: u64,
    /// Decided: the host it runs on.
    pub host: Option<String>,
    /// Observed: the newest generation that the host has reached.
    pub observed_generation: u64,
    /// Observed: the boot it was observed in.
    pub observed_boot: u64,
    /// Observed: what it is doing; absent before a host has it.
    pub observed: Option<InstanceState>,
    /// Where it last came to rest.
    pub vm_state: VmState,
    /// What is being done, as Nova names it (`scheduling`, `spawning`, `powering-off`, `deleting`, …).
    pub task: Option<String>,
    /// Why it failed.
    pub fault: Option<Fault>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// When its first instruction ran.
    pub launched_at: Option<Timestamp>,
    /// The request that made it.
    pub request_id: String,
    /// What was asked of it, oldest first; at most [`ACTIONS_MAX`].
    pub actions: Vec<ActionRecord>,
}

/// A volume that a server has, or shall have once it is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerVolume {
    /// The volume.
    pub volume_id: String,
    /// The attachment's id.
    pub attachment_id: String,
    /// The device's name as its owner expects it, `/dev/vdb`.
    pub device: String,
    /// The server boots from it.
    pub boot: bool,
    /// The guest cannot write to it.
    pub read_only: bool,
    /// It is deleted with the server.
    pub delete_on_termination: bool,
    /// The device's tag.
    pub tag: Option<String>,
    /// The guest was asked to let it go.
    #[serde(default)]
    pub detaching: bool,
}

/// A kernel beside the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerKernel {
    /// The kernel's image.
    pub kernel_id: String,
    /// The initial ramdisk's image.
    pub ramdisk_id: Option<String>,
    /// The command line's end (`os_command_line`).
    pub cmdline: String,
}

/// Why a server is in ERROR.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// 500, or 400 where the owner can mend it.
    pub code: u16,
    /// One clear sentence.
    pub message: String,
    /// More for an administrator.
    pub details: String,
    /// When.
    pub created_at: Timestamp,
}

/// A host: what its agent last said, and what an administrator wants of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// The host's name; its row's id.
    pub name: String,
    /// The compute service's id (from microversion 2.53 on).
    pub service_id: String,
    /// The hypervisor's id (from microversion 2.53 on).
    pub hypervisor_id: String,
    /// What the agent said.
    pub report: HostReport,
    /// No new servers, by an administrator's wish.
    pub disabled: Option<String>,
    /// No new servers and no routers, as long as other hosts have them, by an administrator's wish.
    #[serde(default)]
    pub network_disabled: bool,
    /// Availability zone.
    pub zone: String,
    /// When the agent last said anything that changed this row; liveness is known to the link, not to the store.
    pub updated_at: Timestamp,
}

/// What one host has promised to whom. A decision to place servers there compares this row, so that no two deciders
/// promise the same memory twice.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostClaims {
    /// The host's name.
    pub host: String,
    /// The servers by id, with what each takes.
    pub servers: BTreeMap<String, Resources>,
}

impl HostClaims {
    /// The sum of all claims.
    pub fn total(&self) -> Resources {
        self.servers.values().fold(Resources::default(), |sum, claim| sum.plus(*claim))
    }
}

/// What the cloud as a whole is known by; one row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cloud {
    /// Always [`Cloud::ID`].
    pub id: String,
    /// The tag in the names of links on its hosts: four hexadecimal digits, made at the first start.
    pub tag: String,
}

impl Cloud {
    /// The id of the one row.
    pub const ID: &'static str = "cloud";
}
