//! What one microVM is made of, as its parent hands it over: one JSON document whose files are numbers of
//! inherited descriptors. A VMM process opens no path after its start.
//!
//! Must never know: tenants, cloud ids, paths.

mod endpoint;
mod peripherals;

use serde::{Deserialize, Serialize};
use storage::format::DiskKey;

pub use endpoint::{
    Addressing, AnnouncedPrefix, Announcement, DhcpOption, Dhcpv6Config, EndpointConfig, Ipv4Config,
    Ipv6Config, VlanAddressing,
};
pub use peripherals::{
    BalloonConfig, ConsoleConfig, MemConfig, Peripherals, PmemConfig, VsockConfig, WatchdogAction,
};

use crate::virtio::spec;

/// A descriptor inherited from the parent, by number; whoever reads the configuration takes ownership once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InheritedFd(pub i32);

/// The whole configuration of one microVM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmmConfig {
    /// Guest memory in MiB, 1 to [`MEMORY_MIB_MAX`].
    pub memory_mib: u32,
    /// What pages the memory is made of.
    #[serde(default)]
    pub huge_pages: HugePages,
    /// The guest may be handed over to another VMM process (`crate::handover`), which takes memory that both can have.
    #[serde(default)]
    pub upgradable: bool,
    /// Virtual CPUs, 1 to [`VCPUS_MAX`].
    pub vcpus: u8,
    /// How much of the host's processor the guest is shown.
    #[serde(default)]
    pub cpu: CpuProfile,
    /// Where the kernel comes from.
    pub boot: Boot,
    /// How the guest reaches its virtio devices.
    #[serde(default)]
    pub transport: Transport,
    /// What the machine says of itself by SMBIOS; nothing if absent.
    #[serde(default)]
    pub system: Option<SystemIdentity>,
    /// Appended to the command line that the VMM makes for its own devices.
    #[serde(default)]
    pub cmdline: String,
    /// Block devices in the order the guest sees them; the first is the root disk.
    #[serde(default)]
    pub disks: Vec<DiskConfig>,
    /// Network devices in the order the guest sees them.
    #[serde(default)]
    pub nics: Vec<NicConfig>,
    /// Devices that are there for whoever asks.
    #[serde(default)]
    pub peripherals: Peripherals,
    /// Where the serial console's output is kept, bounded by [`CONSOLE_LOG_BYTES_MAX`]; a regular file opened
    /// for reading and writing.
    pub console_log: Option<InheritedFd>,
    /// The listening Unix stream socket on which `crate::rpc` is served.
    pub control_socket: Option<InheritedFd>,
    /// A regular file that receives one [`crate::rpc::ExitReport`] as JSON when the process ends.
    pub exit_report: Option<InheritedFd>,
}

/// The most memory one guest may have, in MiB: 1 TiB, far above any host here and far below overflow.
pub const MEMORY_MIB_MAX: u32 = 1 << 20;
/// The most virtual CPUs: what fits the xAPIC's eight-bit ids without remapping.
pub const VCPUS_MAX: u8 = 254;
/// The most console output kept, in bytes: the newest wins.
pub const CONSOLE_LOG_BYTES_MAX: u64 = 1 << 20;

/// What pages guest memory is made of: with larger ones the processor looks less often for where memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HugePages {
    /// The host's usual ones, and whatever it makes of them by itself.
    #[default]
    None,
    /// Huge ones wherever the host has one when memory is first touched (`MADV_HUGEPAGE`): nothing needs to be reserved, and
    /// nothing fails without.
    Transparent,
    /// Of 2 MiB each, which the host's administrator has reserved (`vm.nr_hugepages`) and of which as many as the guest has
    /// memory are taken at its start. None goes back to the host before the guest's end, so there is no balloon, and no memory that comes and goes.
    Reserved,
}

/// How much of the host's processor a guest is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CpuProfile {
    /// All that the host's KVM can run.
    #[default]
    Host,
    /// `x86-64-v2`, which every host has: for guests that may go on elsewhere.
    Baseline,
}

/// Where the kernel comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Boot {
    /// A kernel file (ELF with or without a PVH note, or bzImage) and an optional initial ramdisk.
    Kernel {
        /// The kernel.
        kernel: InheritedFd,
        /// The initial ramdisk, as it is, compressed or not.
        initrd: Option<InheritedFd>,
    },
    /// A firmware that is entered like a kernel, by PVH, and boots from the disks by itself.
    Firmware {
        /// The firmware: an ELF image with a PVH note.
        firmware: InheritedFd,
    },
    /// The kernel is read at every boot from the first disk: one whose first bytes are an ELF image boots it; from any
    /// other, what its boot loader's configuration says (`crate::boot::disk`).
    Disk,
    /// Nothing is booted: the guest goes on from a snapshot (`crate::snapshot`). Memory and vCPUs are as many as it has, or
    /// zero for these; its disks and network devices are given in the same order and may be others, with other names. It is
    /// told that it is another, by its generation id. CPU profile, transport, system and command line are the snapshot's.
    Snapshot {
        /// A full snapshot, then those with differences, each to the one before. They must not change while the guest
        /// is there.
        files: Vec<InheritedFd>,
        /// Note from the beginning on what the guest writes, so that snapshots of it can have the differences to these.
        #[serde(default)]
        track: bool,
        /// Keeps what the guest asks for first of packed memory; opened for reading and writing
        /// (`crate::snapshot::pager`).
        #[serde(default)]
        working_set: Option<InheritedFd>,
    },
}

/// How a guest reaches its virtio devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// By the kernel: an ELF image, which somebody built for microVMs, gets [`Self::Mmio`]; a bzImage, wherever it lies,
    /// and a firmware get [`Self::Pci`].
    #[default]
    Auto,
    /// virtio-mmio windows, announced by ACPI and on the command line: at most 15 disks and network devices.
    Mmio,
    /// PCI functions with MSI-X: at most 30 disks and network devices.
    Pci,
}

/// What a machine says of itself (SMBIOS 3.6 §7.2), each text at most [`SYSTEM_TEXT_BYTES_MAX`] bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SystemIdentity {
    /// The maker, as cloud-init and others look for it.
    pub manufacturer: String,
    /// The product, likewise.
    pub product: String,
    /// Its version.
    #[serde(default)]
    pub version: String,
    /// The serial number.
    pub serial: String,
    /// The UUID, its bytes in the order in which it is written.
    pub uuid: [u8; 16],
}

/// The longest text of a [`SystemIdentity`] in bytes: what older readers of SMBIOS take.
pub const SYSTEM_TEXT_BYTES_MAX: usize = 64;

/// Bytes of the longest serial number of a disk: `VIRTIO_BLK_ID_BYTES`, the answer to `VIRTIO_BLK_T_GET_ID` (VIRTIO 1.3 §5.2.6 and
/// §5.2.6.1).
pub const DISK_SERIAL_BYTES_MAX: usize = spec::block::ID_BYTES;

/// One block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// How the bytes lie in the file.
    pub format: DiskFormat,
    /// Refuse the guest's writes.
    #[serde(default)]
    pub read_only: bool,
    /// The serial number that the guest reads, at most [`DISK_SERIAL_BYTES_MAX`] bytes; a longer one is refused.
    #[serde(default)]
    pub serial: String,
    /// How fast the guest may use it. What the VMM itself reads to boot from it is not counted.
    #[serde(default)]
    pub limits: DiskLimits,
    /// The key with which the bytes lie encrypted (`storage::format::crypt`); in the clear if absent.
    #[serde(default)]
    pub key: Option<DiskKey>,
}

impl DiskConfig {
    /// A disk of this form that may be written, without a serial number, as fast as it is and in the clear.
    #[must_use]
    pub fn of(format: DiskFormat) -> Self {
        Self { format, read_only: false, serial: String::new(), limits: DiskLimits::default(), key: None }
    }
}

/// How fast a guest may use a disk. All limits hold together; what is absent limits nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskLimits {
    /// What is read.
    #[serde(default)]
    pub read: TransferLimits,
    /// What is written, zeroed or discarded.
    #[serde(default)]
    pub write: TransferLimits,
    /// Both together.
    #[serde(default)]
    pub total: TransferLimits,
}

/// Limits of one kind of transfers, or of one direction of a network device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransferLimits {
    /// Bytes.
    #[serde(default)]
    pub bytes: Option<RateLimit>,
    /// Requests, or packets, whatever their size.
    #[serde(default)]
    pub operations: Option<RateLimit>,
}

/// A rate, and how much may go at once after a rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// Per second, 1 to [`LIMIT_MAX`].
    pub per_second: u64,
    /// At once, 1 to [`LIMIT_MAX`]; absent: what the rate allows in a tenth of a second, and at least 1.
    #[serde(default)]
    pub burst: Option<u64>,
}

/// The largest rate or burst: a tebibyte, more than any device moves in a second and far below overflow.
pub const LIMIT_MAX: u64 = 1 << 40;

/// How a disk's bytes lie in its file or files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum DiskFormat {
    /// The file is the disk.
    Raw {
        /// The file.
        file: InheritedFd,
    },
    /// A copy-on-write overlay (`storage::format::overlay`) over a base that is never written.
    Overlay {
        /// The overlay's own file.
        file: InheritedFd,
        /// The base, opened read-only.
        base: InheritedFd,
    },
    /// Layers (`storage::format::layers`): a raw file and overlays over it, of which only the last is written.
    Layers {
        /// The files, the lowest first.
        files: Vec<InheritedFd>,
    },
}

/// One network device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicConfig {
    /// A tap opened with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`: its first queue.
    pub tap: InheritedFd,
    /// The tap's further queues, opened with `IFF_MULTI_QUEUE` as the first. The device has a pair of queues for each, up to
    /// [`crate::virtio::net::PAIRS_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more_queues: Vec<InheritedFd>,
    /// The guest's MAC address.
    pub mac: [u8; 6],
    /// The guest's MTU in bytes.
    pub mtu: u16,
    /// What is answered to the guest before its frames reach the tap; nothing if absent.
    pub endpoint: Option<EndpointConfig>,
    /// What is held of its traffic.
    #[serde(default)]
    pub traffic: Traffic,
}

impl NicConfig {
    /// All of the tap's queues, in order.
    pub fn queues(&self) -> impl Iterator<Item = InheritedFd> {
        std::iter::once(self.tap).chain(self.more_queues.iter().copied())
    }
}

/// How much of a guest's traffic goes through a network device, and how it is marked. It may change while the guest
/// runs (`crate::rpc::Action::Reshape`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Traffic {
    /// To the guest. What the VMM answers itself is not counted.
    #[serde(default)]
    pub ingress: TransferLimits,
    /// From the guest.
    #[serde(default)]
    pub egress: TransferLimits,
    /// The code point (RFC 2474) of all IP packets that the guest sends, 0 to [`DSCP_MAX`]; theirs if absent.
    #[serde(default)]
    pub dscp: Option<u8>,
}

/// The largest code point: six bits.
pub const DSCP_MAX: u8 = 63;
