//! What a machine is made of, opened: what stands in its configuration, and the files, taps and memory behind that.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use storage::format::Disk;

use super::source::BootSource;
use crate::config::{CpuProfile, DiskConfig, HugePages, NicConfig, SystemIdentity, Transport};
use crate::handover::{self as handing, Estate, Keeping, Kept};
use crate::inherited::Descriptors;
use crate::memory;
use crate::peripherals::PeripheralSpecs;
use crate::serial::Console;
use crate::virtio::block::ring::Rings;

/// A disk, ready to be served.
pub struct DiskSpec {
    /// How the guest sees it; the descriptors in it are taken already.
    pub config: DiskConfig,
    /// The bytes.
    pub disk: Arc<dyn Disk>,
    /// What it is made of, if the guest may be handed over.
    pub(crate) kept: Option<Kept>,
}

/// A network device, ready to be served.
pub struct NicSpec {
    /// How the guest sees it; the descriptor in it is taken already.
    pub config: NicConfig,
    /// The open tap's queues.
    pub taps: Vec<OwnedFd>,
    /// What it is made of, if the guest may be handed over.
    pub(crate) kept: Option<Kept>,
}

impl NicSpec {
    /// A device on the queues of a tap that `config` names, of which copies are kept for a handover if that may come.
    ///
    /// # Errors
    /// There is no descriptor left for them.
    pub(crate) fn new(
        config: NicConfig,
        fds: &mut dyn Descriptors,
        keep: bool,
    ) -> Result<Self, handing::Error> {
        let mut keeping = Keeping::new(fds, keep);
        let taps = config.queues().map(|fd| keeping.take(fd)).collect();
        let kept = keeping.kept()?.map(|copies| Kept::Nic(Box::new(config.clone()), copies));
        Ok(Self { config, taps, kept })
    }
}

/// All that a machine is made of, opened. Of one that goes on from a snapshot, the snapshot says what the processor is,
/// where the devices are, and what the command line was.
pub struct MachineSpec {
    /// Guest memory in MiB; for one that goes on, zero stands for what it has.
    pub memory_mib: u32,
    /// What pages it is made of; that of one that goes on is its snapshot's file.
    pub huge_pages: HugePages,
    /// Guest memory that is there already, and of which the rings know; of a guest that starts, and that nothing comes to or goes from.
    pub pinned: Option<memory::GuestMemory>,
    /// Virtual CPUs, likewise.
    pub vcpus: u8,
    /// How much of the host's processor the guest is shown.
    pub cpu: CpuProfile,
    /// Note from the beginning on what a guest that goes on writes, so that snapshots can have the differences.
    pub track: bool,
    /// The kernel.
    pub boot: BootSource,
    /// How the guest reaches its devices.
    pub transport: Transport,
    /// What the machine says of itself.
    pub system: Option<SystemIdentity>,
    /// Build even what is known not to run here: Linux on a software KVM.
    pub anyway: bool,
    /// Words added to the command line.
    pub cmdline: String,
    /// Disks in order.
    pub disks: Vec<DiskSpec>,
    /// Rings for these, and for some that come later; see [`Rings::for_disks`].
    pub rings: Rings,
    /// Network devices in order.
    pub nics: Vec<NicSpec>,
    /// Where the console goes.
    pub console: Console,
    /// What there is beside all of these.
    pub peripherals: PeripheralSpecs,
    /// Which of its consoles the guest has at the terminal, or kept as its console.
    pub main_console: MainConsole,
    /// What is kept for a handover, if that may come: its memory above all.
    pub estate: Option<Estate>,
}

/// Which of its consoles a guest talks on, unless its command line says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MainConsole {
    /// The serial port.
    #[default]
    Serial,
    /// The virtio console.
    Virtio,
}

impl MainConsole {
    /// The name that Linux has for it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Serial => "ttyS0",
            Self::Virtio => "hvc0",
        }
    }
}
