//! Devices that a machine has when somebody asks for them.

use serde::{Deserialize, Serialize};

use super::InheritedFd;

/// Devices beside disks, network devices and the entropy source; what is absent is not made.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peripherals {
    /// A virtio console beside the serial port.
    #[serde(default)]
    pub console: Option<ConsoleConfig>,
    /// A socket device.
    #[serde(default)]
    pub vsock: Option<VsockConfig>,
    /// A memory balloon.
    #[serde(default)]
    pub balloon: Option<BalloonConfig>,
    /// Memory that comes and goes.
    #[serde(default)]
    pub mem: Option<MemConfig>,
    /// Files that are memory of the guest's, in the order in which it sees them.
    #[serde(default)]
    pub pmem: Vec<PmemConfig>,
    /// A watchdog, which ACPI names, and what happens when it runs out.
    #[serde(default)]
    pub watchdog: Option<WatchdogAction>,
}

/// Where a virtio console leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ConsoleConfig {
    /// Its output is kept, bounded by [`super::CONSOLE_LOG_BYTES_MAX`], in a regular file opened for reading and writing.
    Log(InheritedFd),
    /// Whoever connects to this listening Unix stream socket has it, one at a time.
    Socket(InheritedFd),
}

/// Sockets between guest and host (`crate::virtio::vsock`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's address, 3 to 4294967294.
    pub cid: u32,
    /// The listening Unix stream socket where the host's side connects; it cannot if absent.
    #[serde(default)]
    pub listener: Option<InheritedFd>,
    /// A socket at whose other end somebody connects for the guest (`crate::connector`); it cannot if absent.
    #[serde(default)]
    pub connector: Option<InheritedFd>,
}

/// A memory balloon (`crate::virtio::balloon`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonConfig {
    /// What the guest is asked to give, in MiB, up to [`super::MEMORY_MIB_MAX`]; it may change while the guest runs
    /// (`crate::rpc::Action::SetBalloon`).
    #[serde(default)]
    pub target_mib: u32,
    /// Not even a guest without memory takes any back by itself.
    #[serde(default)]
    pub firm: bool,
}

/// Memory that comes and goes (`crate::virtio::mem`). A guest that goes on has what it had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemConfig {
    /// How much there can be, in MiB: a multiple of [`crate::memory::HOTPLUG_ALIGNMENT_MIB`].
    pub region_mib: u32,
    /// How much the guest is asked to have, in MiB, an even number; it may change while the guest runs
    /// (`crate::rpc::Action::SetMemory`).
    #[serde(default)]
    pub requested_mib: u32,
}

/// A file as persistent memory (`crate::virtio::pmem`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PmemConfig {
    /// A regular file, from 1 byte to 1 TiB, which does not become shorter.
    pub file: InheritedFd,
    /// What the guest writes goes nowhere.
    #[serde(default)]
    pub read_only: bool,
}

/// What happens when a guest's watchdog runs out (`crate::watchdog`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WatchdogAction {
    /// The guest ends, as by a reset of its own.
    Reset,
    /// The guest ends, as powered off.
    PowerOff,
    /// The guest is paused.
    Pause,
    /// It is counted, for whoever asks.
    Report,
}

impl Peripherals {
    /// Every descriptor that they name.
    #[must_use]
    pub(crate) fn descriptors(&self) -> Vec<InheritedFd> {
        let console = self.console.iter().map(|console| match console {
            ConsoleConfig::Log(fd) | ConsoleConfig::Socket(fd) => *fd,
        });
        let vsock = self.vsock.iter().flat_map(|vsock| vsock.listener.into_iter().chain(vsock.connector));
        console.chain(vsock).chain(self.pmem.iter().map(|pmem| pmem.file)).collect()
    }

    /// The same in the same order, to be given other numbers.
    pub(crate) fn descriptors_mut(&mut self) -> Vec<&mut InheritedFd> {
        let console = self.console.iter_mut().map(|console| match console {
            ConsoleConfig::Log(fd) | ConsoleConfig::Socket(fd) => fd,
        });
        let vsock =
            self.vsock.iter_mut().flat_map(|vsock| vsock.listener.iter_mut().chain(&mut vsock.connector));
        console.chain(vsock).chain(self.pmem.iter_mut().map(|pmem| &mut pmem.file)).collect()
    }
}
