//! `wisp vmm boot`: one guest with its console on the terminal, from paths and names, without a cloud.

mod disk;
mod lock;
mod open;
mod output;
mod prompt;
mod waiting;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use storage::format::overlay::OverlayError;

use crate::config::{
    BalloonConfig, CONSOLE_LOG_BYTES_MAX, CpuProfile, EndpointConfig, HugePages, InheritedFd, MemConfig,
    NicConfig, Traffic, Transport, VmmConfig, WatchdogAction,
};
use crate::ending::{Ending, EndingSignal};
use crate::events;
use crate::inherited::{Descriptors as _, PassedFds, all};
use crate::kvm::Opening;
use crate::lifecycle::Event;
use crate::memory::{self, GuestMemory, shared::Shared};
use crate::rpc::{ClientError, REQUEST_FDS_MAX};
use crate::run::{self, Error as RunError, Prepared};
use crate::sandbox::{Namespaces, Sandbox};
use crate::serial::Console;
use crate::supervisor::{self, Supervisor};
use crate::terminal::RawTerminal;
use crate::virtio::block::ring::{Pinned, Rings};
use crate::virtio::{self, console};
use crate::vm::{self, Machine, MachineSpec, MainConsole};

/// What to boot.
#[derive(Debug, Default)]
pub struct BootOptions {
    /// The kernel; absent: from the first disk.
    pub kernel: Option<PathBuf>,
    /// A full snapshot that the guest goes on from, then those with differences, each to the one before. Memory and vCPUs
    /// may be zero then.
    pub restore: Vec<PathBuf>,
    /// Keeps what such a guest asks for first of packed memory; made where it is not.
    pub working_set: Option<PathBuf>,
    /// Note what such a guest writes, so that further snapshots can have the differences.
    pub track: bool,
    /// A firmware in the kernel's place.
    pub firmware: Option<PathBuf>,
    /// The initial ramdisk.
    pub initrd: Option<PathBuf>,
    /// Boot even what is known not to run on this host: Linux on a software KVM.
    pub anyway: bool,
    /// How the guest reaches its devices.
    pub transport: Transport,
    /// Words added to the kernel's command line.
    pub cmdline: String,
    /// Disks in order.
    pub disks: Vec<DiskFile>,
    /// Network devices in order.
    pub taps: Vec<TapOption>,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// What pages it is made of.
    pub huge_pages: HugePages,
    /// Its memory is registered with its disks' rings, and so pinned.
    pub pin_memory: bool,
    /// The guest may be handed over to another VMM process, which takes memory that both can have.
    pub upgradable: bool,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// How much of the host's processor the guest is shown.
    pub cpu: CpuProfile,
    /// Where a control socket is made.
    pub control: Option<PathBuf>,
    /// A virtio console beside the serial port, and where it leads.
    pub console: Option<ConsoleOption>,
    /// A socket device.
    pub vsock: Option<VsockOption>,
    /// A memory balloon.
    pub balloon: Option<BalloonConfig>,
    /// Memory that comes and goes.
    pub mem: Option<MemConfig>,
    /// Files that are memory of the guest's, each with whether it is read-only.
    pub pmem: Vec<(PathBuf, bool)>,
    /// A watchdog, and what happens when it runs out.
    pub watchdog: Option<WatchdogAction>,
}

/// A guest's network device.
#[derive(Debug)]
pub struct TapOption {
    /// The queues of an open tap, attached with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`, and with `IFF_MULTI_QUEUE` where there are
    /// several.
    pub queues: Vec<OwnedFd>,
    /// Its MAC address; one that its place gives unless said.
    pub mac: Option<[u8; 6]>,
    /// The MTU that the guest is told of; [`MTU`] unless said.
    pub mtu: Option<u16>,
    /// How much goes through it.
    pub traffic: Traffic,
    /// What the VMM itself answers to the guest there; nothing unless said.
    pub endpoint: Option<EndpointConfig>,
}

/// A guest's socket device.
#[derive(Debug)]
pub struct VsockOption {
    /// The guest's address.
    pub cid: u32,
    /// Where the socket is made to which the host's side connects.
    pub path: PathBuf,
    /// At whose other end somebody connects for the guest (`crate::connector`).
    pub connector: OwnedFd,
}

/// Where a guest's virtio console leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConsoleOption {
    /// To the terminal, which the serial port does not have then.
    Terminal,
    /// To a file that keeps the newest of it.
    File(PathBuf),
    /// To whoever connects to a socket that is made here.
    Socket(PathBuf),
}

pub use disk::DiskFile;
pub use lock::{Hold, lock_disk};
pub use open::listen;
pub(crate) use output::Patient;
use prompt::Prompt;
pub use waiting::boot_in;

/// Why a guest could not be booted from a command line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be opened.
    #[error("open {path}")]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody else has a disk.
    #[error(
        "{path} is in use: by another guest (`wisp vmm boot`, `attach-disk`), by another program as QEMU, or as another disk of this \
         guest. End or detach that first. To read it, give it with `,ro` there and here; for a disk of its own for each guest, give \
         each an overlay (`OVERLAY,base=FILE`); where the guests' file system is made for several that write to it, say `,shared` \
         there and here"
    )]
    InUse {
        /// Which.
        path: PathBuf,
    },
    /// An overlay cannot be made.
    #[error("make the overlay {path}")]
    Overlay {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: OverlayError,
    },
    /// A file with a disk's key cannot be read.
    #[error(
        "read a disk's key from {path}, which shall have 32 or 64 bytes (a new disk's: head -c 64 /dev/urandom)"
    )]
    ReadKey {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What it has is none.
    #[error(
        "{path} has no disk's key: that is 32 or 64 bytes as they are (a new disk's: head -c 64 /dev/urandom), and no line \
         end follows them"
    )]
    KeySize {
        /// Which.
        path: PathBuf,
    },
    /// Of a guest that goes on.
    #[error("give its memory balloon another target")]
    Balloon(#[source] virtio::Error),
    /// Devices are found by their names.
    #[error("two {0} have the same {1}: no one could tell which of them is meant")]
    Twice(&'static str, &'static str),
    /// Of a log the oldest goes, and this is none that was written here.
    #[error(
        "{path} has {length} bytes, and a console's log no more than {CONSOLE_LOG_BYTES_MAX}: it is something else, and stays as it is"
    )]
    NoLog {
        /// Which.
        path: PathBuf,
        /// Its length.
        length: u64,
    },
    /// A socket.
    #[error("listen at {path}")]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Memory is not registered.
    #[error("pin the guest's memory for its disks (io_uring)")]
    Pin(#[source] io::Error),
    /// The terminal.
    #[error("prepare the terminal")]
    Terminal(#[source] io::Error),
    /// More than one request brings.
    #[error(
        "the guest has {0} files, sockets and queues of taps, and a VMM that waits for its guest is given {REQUEST_FDS_MAX} at the most: \
         boot it in a process of its own (without --in)"
    )]
    Files(usize),
    /// There is no VMM.
    #[error("no VMM waits for a guest at {path} (`wisp vmm wait {path}` is one)")]
    NobodyWaits {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: ClientError,
    },
    /// There is one, and it does not do it.
    #[error("have the VMM that waits run the guest")]
    Waiting(#[from] ClientError),
    /// Everything after that.
    #[error(transparent)]
    Run(#[from] RunError),
}

/// The MTU of a guest's network device that nobody configured: Ethernet's.
pub const MTU: u16 = 1500;

/// Boots a guest with standard input and output as its console, and returns how it ended. Ctrl-A x ends it at once.
///
/// Confines the process, which may have no other threads: nothing can be opened afterwards.
///
/// # Errors
/// Anything that keeps the guest from running.
pub fn boot_interactive(kvm: Opening, options: BootOptions) -> Result<Ending, Error> {
    supervisor::block_signals().map_err(RunError::from)?;
    let (target, main_console) = (balloon_target(&options), main_console(&options));
    let (anyway, pin_memory) = (options.anyway, options.pin_memory);
    let (mut config, files) = open::open(options)?;
    let mut files = PassedFds::new(files.0, &all(&config)).expect("invariant: it names what it opens");
    let control = config.control_socket.take().map(|fd| UnixListener::from(files.take(fd)));
    let memory = config.upgradable.then(|| Shared::new(config.huge_pages)).transpose();
    let memory = memory.map_err(RunError::SharedMemory)?;
    let (rings, pinned) = rings(&config, control.is_some(), pin_memory)?;
    let mut spec = run::open(config, &mut files, Prepared { rings, memory })?;
    (spec.anyway, spec.pinned) = (anyway, pinned);
    // All threads but this one are over before signals matter: they come to whichever does not block them.
    let kvm = kvm.finish().map_err(RunError::from)?;
    let output = output::standard().map_err(Error::Terminal)?.into_descriptor();
    let ending = EndingSignal::new().map_err(RunError::Event)?;
    // Unbuffered: what a buffer holds back, no event announces.
    let input = File::from(io::stdin().as_fd().try_clone_to_owned().map_err(Error::Terminal)?);
    let terminal = RawTerminal::new(&input).map_err(Error::Terminal)?;
    if let Some(estate) = &mut spec.estate {
        let kept = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map_err(Error::Terminal);
        estate.streams = Some([kept(input.as_fd())?, kept(output.as_fd())?]);
        estate.terminal = terminal.is_some();
    }
    console_on(&mut spec, main_console, output.into());
    let sandbox = Sandbox { namespaces: Namespaces::Own, ..Sandbox::default() };
    let held = sandbox.enter().map_err(RunError::from)?;
    let machine = Machine::build(&kvm, spec, &ending).map_err(RunError::from)?;
    if let Some((target, mut balloon)) = target.zip(machine.peripherals().balloon()) {
        balloon.set_target(target).map_err(Error::Balloon)?;
    }
    let mut supervisor = Supervisor::new(machine, ending.clone(), control, true).map_err(RunError::from)?;
    supervisor.set_input(Box::new(input));
    supervisor.set_protections(held);
    let (said, machine) = events::serve(supervisor, &ending, |supervisor| {
        supervisor.machine_mut().apply(Event::Start).expect("invariant: the guest was never started");
    })
    .map_err(RunError::from)?;
    drop(terminal);
    let said = machine.explained(said);
    // The process is about to end: the kernel takes the machine apart.
    std::mem::forget(machine);
    Ok(said)
}

/// What the balloon of a guest that goes on is asked for; a new guest's has it from its beginning.
fn balloon_target(options: &BootOptions) -> Option<u32> {
    options.balloon.filter(|_| !options.restore.is_empty()).map(|balloon| balloon.target_mib)
}

fn main_console(options: &BootOptions) -> MainConsole {
    match options.console {
        Some(ConsoleOption::Terminal) => MainConsole::Virtio,
        _ => MainConsole::Serial,
    }
}

/// Has the guest talk to `output`, which [`output::standard`] opened.
pub(crate) fn console_on(spec: &mut MachineSpec, main_console: MainConsole, output: File) {
    let stream = Patient::of(output);
    spec.main_console = main_console;
    match main_console {
        MainConsole::Serial => spec.console = Console::Stream(Box::new(Prompt::new(stream))),
        MainConsole::Virtio => {
            spec.peripherals.console = Some(console::Output::Stream(Console::Stream(Box::new(stream))));
        }
    }
}

/// Rings for the disks, and the guest's memory, where that is to be registered with them.
fn rings(config: &VmmConfig, more_may_come: bool, pin: bool) -> Result<(Rings, Option<GuestMemory>), Error> {
    let count = config.disks.len();
    if !pin {
        return Ok((Rings::for_disks(count, more_may_come), None));
    }
    let memory = memory::allocate_of(config.memory_mib, config.huge_pages);
    let memory = memory.map_err(|error| RunError::from(vm::Error::from(error)))?;
    let rings = Rings::pinning(count, more_may_come, &Pinned::all_of(&memory)).map_err(Error::Pin)?;
    Ok((rings, Some(memory)))
}

/// The locally administered address of the network device number `index`.
#[must_use]
pub fn mac(index: u8) -> [u8; 6] {
    [0x02, 0x57, 0x49, 0x53, 0x50, index]
}

/// What a VMM is told of a network device on so many queues of a tap, one at the least, which come in their order.
#[must_use]
pub fn nic_config(mac: [u8; 6], queues: usize) -> NicConfig {
    let more_queues = (1_i32..).take(queues.saturating_sub(1)).map(InheritedFd).collect();
    let traffic = Traffic::default();
    NicConfig { tap: InheritedFd(0), more_queues, mac, mtu: MTU, endpoint: None, traffic }
}
