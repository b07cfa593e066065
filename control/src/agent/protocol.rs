//! What control and a host's agent say to each other: one JSON document per frame, each frame four bytes of
//! big-endian length and then the document; the same over a socket pair on one machine and over mutual TLS
//! between machines.
//!
//! Control says what is wanted, the agent what it observes; neither orders the other about. Both are
//! level-triggered: repeating a message changes nothing, a lost connection is healed by a new [`ToAgent::Wanted`].
//! An agent is told of its own host only, and never gets credentials of the store.
//!
//! Absence never deletes: what shall go is named as such ([`Power::Deleted`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use vmm::config::{DhcpOption, DiskLimits, Ipv6Config, Traffic};
use vmm::document::Document;

pub use super::disk::{
    DiskCipher, DiskFound, DiskObserved, DiskShape, DiskSource, DiskWanted, PoolReport, VolumeWanted,
};
pub use super::figures::{Diagnostics, HostTraffic};
pub use super::network::{GroupWanted, NetworkWanted, PhysicalWanted, RemotePortWanted, ZoneWanted};
pub use super::router::{ForwardingWanted, RouterLinkWanted, RouterObserved, RouterWanted};

/// The longest frame in bytes: a few thousand instances' wanted state with room to spare.
pub const FRAME_BYTES_MAX: u32 = 64 << 20;
/// The most questions to one agent that wait for their answers; more are refused.
pub const QUERIES_MAX: usize = 64;
/// The protocol's version; two ends that differ part with a clear error. Since 2 disks may have keys: who does not know
/// them would keep in the clear what shall be encrypted. Since 3 root disks can be brought out, and there are routers. Since
/// 5 hosts tell what they count, and groups can be stateless.
pub const PROTOCOL_VERSION: u32 = 5;

/// From control to an agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToAgent {
    /// The whole wanted state of the host, sent once per connection.
    Wanted(Wanted),
    /// What changed since: each part present replaces the one with the same id.
    Change(Wanted),
    /// These networks, groups and routers are no longer wanted of the host.
    Forget {
        /// Network ids.
        networks: Vec<String>,
        /// Security group ids.
        groups: Vec<String>,
        /// Disks of which nothing is wanted any more; they stay as they are.
        #[serde(default)]
        disks: Vec<String>,
        /// Routers, which go.
        #[serde(default)]
        routers: Vec<String>,
        /// Names that nobody asks for any more.
        #[serde(default)]
        zones: Vec<String>,
    },
    /// A question; answered by [`ToControl::Answer`] with the same number.
    Query {
        /// The question's number.
        number: u64,
        /// The question.
        query: Query,
    },
}

/// From an agent to control.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToControl {
    /// The first frame: who is there, what it can do, what it runs.
    Hello {
        /// [`PROTOCOL_VERSION`].
        version: u32,
        /// The host.
        host: HostReport,
        /// Everything found and adopted.
        instances: Vec<InstanceObserved>,
    },
    /// The host's figures changed, or it is time to say that it lives.
    Host(HostReport),
    /// An instance is not what was last said of it.
    Observed(InstanceObserved),
    /// A disk is what it shall be, or cannot be made so.
    Disk(DiskObserved),
    /// A router is what it shall be, or cannot be made so.
    Router(RouterObserved),
    /// The answer to a query.
    Answer {
        /// The question's number.
        number: u64,
        /// The answer, or one sentence on why there is none.
        answer: Result<Answer, String>,
    },
}

/// What a host shall be like.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Wanted {
    /// The cloud's tag in the names of links, four hexadecimal digits.
    pub cloud_tag: String,
    /// The networks that the instances and routers below need.
    pub networks: Vec<NetworkWanted>,
    /// The security groups that the ports below name.
    pub groups: Vec<GroupWanted>,
    /// The instances.
    pub instances: Vec<InstanceWanted>,
    /// The disks of the volume backend that are not yet as they shall be.
    #[serde(default)]
    pub disks: Vec<DiskWanted>,
    /// The names of the networks that the instances are on.
    #[serde(default)]
    pub zones: Vec<ZoneWanted>,
    /// The routers. They hold nothing and are made in milliseconds, so one that the whole wanted state does not name goes.
    #[serde(default)]
    pub routers: Vec<RouterWanted>,
}

/// What an instance shall be doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Power {
    /// Run.
    Running,
    /// Stand still with its memory kept.
    Paused,
    /// Be off with its disks kept.
    Stopped,
    /// Be gone, with everything that was made for it.
    Deleted,
}

/// One instance as it shall be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InstanceWanted {
    /// The server's id.
    pub id: String,
    /// Grows with every change; [`InstanceObserved::generation`] says how far the agent has come.
    pub generation: u64,
    /// What it shall be doing.
    pub power: Power,
    /// Grows with every start that is asked for: an agent that runs an older boot starts the guest anew.
    pub boot: u64,
    /// When it has to go down, ask the guest first and wait this long, in milliseconds; 0 asks nobody.
    pub shutdown_timeout_ms: u32,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// The root disk.
    pub root_disk: RootDiskWanted,
    /// Volumes, in the order the guest sees them after the root disk.
    #[serde(default)]
    pub volumes: Vec<VolumeWanted>,
    /// A kernel given beside the disk; without one the kernel is read from the disk.
    pub kernel: Option<KernelWanted>,
    /// Network devices in order.
    pub nics: Vec<NicWanted>,
    /// Pairs of queues of each, from the next start on, or for one that comes: 1 to [`vmm::virtio::net::PAIRS_MAX`].
    #[serde(default = "one_pair")]
    pub queue_pairs: u16,
    /// The guest's host name.
    pub hostname: String,
    /// The metadata service's documents: path to body.
    pub metadata: BTreeMap<String, Document>,
    /// Whether the same documents are on a configuration drive as well.
    #[serde(default)]
    pub config_drive: bool,
}

/// What an instance has of which nothing is said, as in what was written down before there were several.
fn one_pair() -> u16 {
    1
}

/// The root disk as it shall be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootDiskWanted {
    /// The image it begins as.
    pub image_id: String,
    /// Its size in bytes, at least the image's; 0 means the image's.
    pub size_bytes: u64,
    /// The volume that is the root disk in the place of a copy of an image.
    #[serde(default)]
    pub volume: Option<VolumeWanted>,
    /// How fast the guest may use it, where it is no volume.
    #[serde(default)]
    pub limits: DiskLimits,
}

/// A kernel beside the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelWanted {
    /// The kernel's image.
    pub kernel_image_id: String,
    /// The initial ramdisk's image.
    pub ramdisk_image_id: Option<String>,
    /// The command line's end.
    pub cmdline: String,
}

/// One network device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NicWanted {
    /// The port's id.
    pub port_id: String,
    /// The network's id.
    pub network_id: String,
    /// The guest's MAC address.
    pub mac: [u8; 6],
    /// The first IPv4 address with its subnet's prefix, which DHCP offers.
    pub address: Option<(Ipv4Addr, u8)>,
    /// Every address the guest may use as a source.
    pub allowed_addresses: BTreeSet<IpNet>,
    /// The subnet's gateway.
    pub gateway: Option<Ipv4Addr>,
    /// Whether DHCP is answered.
    pub dhcp: bool,
    /// The address DHCP answers come from.
    pub dhcp_server: Option<Ipv4Addr>,
    /// Name servers.
    pub dns: Vec<Ipv4Addr>,
    /// Further routes: destination, prefix length, next hop.
    pub routes: Vec<(Ipv4Addr, u8, Ipv4Addr)>,
    /// MTU in bytes.
    pub mtu: u16,
    /// Anti-spoofing and groups hold.
    pub port_security: bool,
    /// The groups' ids.
    pub groups: BTreeSet<String>,
    /// The guest's domain.
    pub domain: String,
    /// DHCP options in the place of those that follow from the rest, or beside them.
    #[serde(default)]
    pub dhcp_options: Vec<DhcpOption>,
    /// What is announced to the guest by IPv6, and what DHCPv6 gives it.
    #[serde(default)]
    pub ipv6: Ipv6Config,
    /// Its IPv6 addresses as the guest's own configuration describes them.
    #[serde(default)]
    pub ipv6_networks: Vec<Ipv6NetworkWanted>,
    /// What is held of its traffic.
    #[serde(default)]
    pub traffic: Traffic,
    /// The names that its guest may ask for.
    #[serde(default)]
    pub zone: String,
    /// The ports that it carries besides its own, each in a VLAN; they carry none.
    #[serde(default)]
    pub sub_ports: Vec<SubPortWanted>,
}

/// A port that another one's device carries.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SubPortWanted {
    /// The VLAN id of its frames (IEEE 802.1Q).
    pub vlan: u16,
    /// It as it were with a device of its own.
    pub port: NicWanted,
}

/// An IPv6 address of a device with its subnet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipv6NetworkWanted {
    /// How the guest comes to it: a mode as Neutron calls it, or `dhcp`; it sets it up itself if absent.
    pub mode: Option<String>,
    /// The address.
    pub address: Ipv6Addr,
    /// The length of its subnet's prefix in bits.
    pub prefix_len: u8,
    /// The subnet's gateway.
    pub gateway: Option<IpAddr>,
    /// Further routes: destination, next hop.
    pub routes: Vec<(IpNet, IpAddr)>,
    /// Name servers.
    pub dns: Vec<IpAddr>,
}

/// What a host is and has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostReport {
    /// The host's name.
    pub name: String,
    /// The driver: `kvm` or `fake`.
    pub driver: String,
    /// Logical CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Size of the file system of the instances' disks in GiB.
    pub disk_gib: u64,
    /// Free space there in GiB.
    pub disk_free_gib: u64,
    /// One line on the CPU, for `hypervisor show`.
    pub cpu_model: String,
    /// The host's own address, for `hypervisor show`.
    pub address: String,
    /// Seconds since the host's boot.
    pub uptime_s: u64,
    /// Disks and network devices come to a running instance and go from it without a restart.
    #[serde(default)]
    pub hot_plug: bool,
    /// Devices carry the ports of trunks.
    #[serde(default)]
    pub carries_vlans: bool,
    /// Where volumes can be; the first is where they are if nothing else is said.
    #[serde(default)]
    pub pools: Vec<PoolReport>,
    /// Where other hosts send frames of networks that are on both.
    #[serde(default)]
    pub tunnel_address: Option<Ipv4Addr>,
}

/// What an instance is seen doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstanceState {
    /// Disks, taps and process are being made.
    Preparing,
    /// The guest runs.
    Running,
    /// The guest stands still.
    Paused,
    /// The guest was asked to end.
    Stopping,
    /// Off.
    Stopped,
    /// It could not be made, or it died; see the fault.
    Failed,
    /// Gone, and nothing of it is left.
    Deleted,
}

/// One instance as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InstanceObserved {
    /// The server's id.
    pub id: String,
    /// The wanted generation that this answers.
    pub generation: u64,
    /// The boot that this answers.
    pub boot: u64,
    /// What it is doing.
    pub state: InstanceState,
    /// When its first instruction ran, in microseconds since the Unix epoch.
    pub first_run_us: Option<u64>,
    /// Why it failed: one clear sentence for the server's owner.
    pub fault: Option<String>,
    /// How far its devices are that come and go while it runs.
    #[serde(default)]
    pub devices: DevicesObserved,
}

/// The devices of an instance that runs, as far as they are not what is wanted or could not become so.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevicesObserved {
    /// Volumes that the guest has still although they shall go: nobody else may have them.
    pub leaving: BTreeSet<String>,
    /// Volumes and ports that the guest shall have and cannot get, each with why: one sentence.
    pub missing: BTreeMap<String, String>,
    /// Volumes and ports that the guest has until it ends; with them volumes that are leaving and cannot.
    pub fixed: BTreeSet<String>,
}

/// A question to an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Query {
    /// The end of an instance's console.
    Console {
        /// The server's id.
        instance: String,
        /// At most this many bytes.
        bytes_max: u32,
    },
    /// The disks of a backend for volumes.
    Disks {
        /// Its name.
        backend: String,
    },
    /// How an instance fares.
    Diagnostics {
        /// The server's id.
        instance: String,
    },
    /// What has passed the host's ports and routers.
    Traffic,
}

/// What an agent answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Console text; bytes that are not UTF-8 are replaced.
    Console {
        /// The text.
        text: String,
    },
    /// How an instance fares.
    Diagnostics(Diagnostics),
    /// What has passed the host's ports and routers.
    Traffic(HostTraffic),
    /// Disks, in the order of their names.
    Disks {
        /// At most 65,536.
        disks: Vec<DiskFound>,
    },
}
