//! `wisp vmm boot`: one guest with its console on the terminal, from paths and names, without a cloud.

mod disk;
mod lock;
mod output;
mod prompt;

use std::collections::BTreeSet;
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use storage::format::overlay::OverlayError;

use crate::boot::image::Image;
use crate::config::{
    BalloonConfig, CONSOLE_LOG_BYTES_MAX, ConsoleConfig, CpuProfile, HugePages, InheritedFd, MemConfig,
    NicConfig, Peripherals, PmemConfig, SystemIdentity, Traffic, Transport, VsockConfig, WatchdogAction,
};
use crate::ending::{Ending, EndingSignal};
use crate::events;
use crate::handover::{self, Estate, Keeping};
use crate::inherited::{PassedFds, of_disk};
use crate::kvm::Kvm;
use crate::lifecycle::Event;
use crate::memory::{self, shared::Shared};
use crate::peripherals::PeripheralSpecs;
use crate::run::{Error as RunError, open_disk};
use crate::sandbox::{Namespaces, Sandbox};
use crate::serial::Console;
use crate::supervisor::{self, Supervisor};
use crate::terminal::RawTerminal;
use crate::virtio::block::ring::{Pinned, Rings};
use crate::virtio::{self, console};
use crate::vm::{self, BootSource, DiskSpec, Machine, MachineSpec, MainConsole, NicSpec, SnapshotSource};

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
pub(crate) use output::Patient;
use prompt::Prompt;

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
    /// Everything after that.
    #[error(transparent)]
    Run(#[from] RunError),
}

/// The MTU of a guest's network device that nobody configured: Ethernet's.
pub const MTU: u16 = 1500;

/// Boots a guest with standard input and output as its console, and returns how it ended. Ctrl-A x ends it at once.
///
/// Confines the process: nothing can be opened afterwards.
///
/// # Errors
/// Anything that keeps the guest from running.
pub fn boot_interactive(options: BootOptions) -> Result<Ending, Error> {
    supervisor::block_signals().map_err(RunError::from)?;
    let kvm = Kvm::open().map_err(RunError::from)?;
    let control = options.control.clone();
    // A new guest's balloon has it from its beginning.
    let target = options.balloon.filter(|_| !options.restore.is_empty()).map(|balloon| balloon.target_mib);
    let mut spec = open(options)?;
    let ending = EndingSignal::new().map_err(RunError::Event)?;
    let control = control.map(|path| listen(&path)).transpose()?;
    // Unbuffered: what a buffer holds back, no event announces.
    let input = File::from(io::stdin().as_fd().try_clone_to_owned().map_err(Error::Terminal)?);
    let terminal = RawTerminal::new(&input).map_err(Error::Terminal)?;
    if let Some(estate) = &mut spec.estate {
        let kept = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map_err(Error::Terminal);
        let output = output::standard().map_err(Error::Terminal)?.into_descriptor();
        estate.streams = Some([kept(input.as_fd())?, output]);
        estate.terminal = terminal.is_some();
    }
    let sandbox = Sandbox { namespaces: Namespaces::Own, ..Sandbox::default() };
    let held = sandbox.enter_beside(|| kvm.prepare()).map_err(RunError::from)?;
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

/// A socket for its owner alone, in the place of one at which nobody listens any more.
fn listen(path: &Path) -> Result<UnixListener, Error> {
    let abandoned = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
        && UnixStream::connect(path).is_err();
    let cleared = if abandoned { std::fs::remove_file(path) } else { Ok(()) };
    let listener = cleared.and_then(|()| UnixListener::bind(path)).and_then(|listener| {
        std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
        Ok(listener)
    });
    listener.map_err(|source| Error::Listen { path: path.to_owned(), source })
}

fn open(options: BootOptions) -> Result<MachineSpec, Error> {
    let open = |path: &PathBuf, write: bool| {
        File::options()
            .read(true)
            .write(write)
            .open(path)
            .map_err(|source| Error::Open { path: path.clone(), source })
    };
    let restore: Result<Vec<File>, Error> = options.restore.iter().map(|path| open(path, false)).collect();
    let restore = restore?;
    let working_set = options.working_set.as_ref().map(|path| {
        let opened = File::options().read(true).write(true).create(true).truncate(false).open(path);
        opened.map_err(|source| Error::Open { path: path.clone(), source })
    });
    let working_set = working_set.transpose()?;
    let memory = options.upgradable.then(|| Shared::new(options.huge_pages)).transpose();
    let memory = memory.map_err(RunError::SharedMemory)?;
    let keep = memory.is_some();
    let boot = match options.kernel.as_ref().filter(|_| options.firmware.is_none()) {
        Some(kernel) => {
            let initrd = options.initrd.as_ref().map(|initrd| open(initrd, false)).transpose()?;
            BootSource::Kernel {
                kernel: Box::new(open(kernel, false)?),
                initrd: initrd.map(|initrd| Box::new(initrd) as Box<dyn Image>),
            }
        }
        None => match &options.firmware {
            Some(firmware) => BootSource::Firmware(Box::new(open(firmware, false)?)),
            None if !restore.is_empty() => {
                BootSource::Snapshot(SnapshotSource::new(restore, working_set, memory.as_ref()))
            }
            None => BootSource::Disk,
        },
    };
    let mut disks = Vec::with_capacity(options.disks.len());
    for (index, disk) in options.disks.iter().enumerate() {
        let (config, files) = disk.open(format!("disk{index}"))?;
        let named = of_disk(&config);
        let mut files = PassedFds::new(files, &named).expect("invariant: a disk names what it opens");
        disks.push(open_disk(index, config, &mut files, keep)?);
    }
    let main_console = match options.console {
        Some(ConsoleOption::Terminal) => MainConsole::Virtio,
        _ => MainConsole::Serial,
    };
    let stream = output::standard().map_err(Error::Terminal)?;
    let (console, output) = match main_console {
        MainConsole::Serial => (Console::Stream(Box::new(Prompt::new(stream))), None),
        MainConsole::Virtio => {
            (Console::None, Some(console::Output::Stream(Console::Stream(Box::new(stream)))))
        }
    };
    let (mut config, files) = open_peripherals(options.console, options.vsock, options.pmem)?;
    (config.balloon, config.mem, config.watchdog) = (options.balloon, options.mem, options.watchdog);
    let mut passed =
        PassedFds::new(files, &config.descriptors()).expect("invariant: devices name what is opened");
    let mut keeping = Keeping::new(&mut passed, keep);
    let mut peripherals = PeripheralSpecs::open(config.clone(), &mut keeping).map_err(RunError::from)?;
    peripherals.console = peripherals.console.or(output);
    let mut estate = memory.map(Estate::of);
    if let (Some(estate), Some(kept)) = (&mut estate, keeping.kept().map_err(RunError::from)?) {
        estate.peripherals = (config, kept);
    }
    let nics = (0_u8..).zip(options.taps).map(|(index, tap)| nic(index, tap, keep));
    let nics: Vec<NicSpec> = nics.collect::<Result<_, _>>().map_err(RunError::from)?;
    check_names(&disks, &nics)?;
    let more_may_come = options.control.is_some();
    let (rings, pinned) = if options.pin_memory {
        let memory = memory::allocate_of(options.memory_mib, options.huge_pages);
        let memory = memory.map_err(|error| RunError::from(vm::Error::from(error)))?;
        let rings = Rings::pinning(disks.len(), more_may_come, &Pinned::all_of(&memory));
        (rings.map_err(Error::Pin)?, Some(memory))
    } else {
        (Rings::for_disks(disks.len(), more_may_come), None)
    };
    Ok(MachineSpec {
        memory_mib: options.memory_mib,
        huge_pages: options.huge_pages,
        vcpus: options.vcpus,
        cpu: options.cpu,
        track: options.track,
        boot,
        transport: options.transport,
        system: Some(identity()),
        anyway: options.anyway,
        cmdline: options.cmdline,
        rings,
        pinned,
        disks,
        nics,
        console,
        peripherals,
        main_console,
        estate,
    })
}

/// Whether no two devices have one name; disks need none.
fn check_names(disks: &[DiskSpec], nics: &[NicSpec]) -> Result<(), Error> {
    let (mut serials, mut macs) = (BTreeSet::new(), BTreeSet::new());
    let mut serial = disks.iter().map(|disk| &disk.config.serial).filter(|serial| !serial.is_empty());
    if !serial.all(|serial| serials.insert(serial)) {
        return Err(Error::Twice("disks", "serial number"));
    }
    if !nics.iter().all(|nic| macs.insert(nic.config.mac)) {
        return Err(Error::Twice("network devices", "MAC address"));
    }
    Ok(())
}

/// Opens what devices lead to: their configuration, which numbers the descriptors from zero. A console on the terminal is
/// none of these.
fn open_peripherals(
    console: Option<ConsoleOption>,
    vsock: Option<VsockOption>,
    pmem: Vec<(PathBuf, bool)>,
) -> Result<(Peripherals, Vec<OwnedFd>), Error> {
    let mut files: Vec<OwnedFd> = Vec::new();
    let mut number = |file: OwnedFd| {
        files.push(file);
        InheritedFd(i32::try_from(files.len() - 1).expect("invariant: a process has fewer descriptors"))
    };
    let console = match console {
        None | Some(ConsoleOption::Terminal) => None,
        Some(ConsoleOption::File(path)) => {
            let opened = File::options().read(true).write(true).create(true).truncate(false).open(&path);
            let measured = opened.and_then(|file| Ok((file.metadata()?.len(), file)));
            match measured.map_err(|source| Error::Open { path: path.clone(), source })? {
                (length, _) if length > CONSOLE_LOG_BYTES_MAX => return Err(Error::NoLog { path, length }),
                (_, file) => Some(ConsoleConfig::Log(number(file.into()))),
            }
        }
        Some(ConsoleOption::Socket(path)) => Some(ConsoleConfig::Socket(number(listen(&path)?.into()))),
    };
    let vsock = match vsock {
        None => None,
        Some(VsockOption { cid, path, connector }) => {
            let listener = Some(number(listen(&path)?.into()));
            Some(VsockConfig { cid, listener, connector: Some(number(connector)) })
        }
    };
    let mut maps = Vec::with_capacity(pmem.len());
    for (path, read_only) in pmem {
        let opened = File::options().read(true).write(!read_only).open(&path);
        let file = opened.map_err(|source| Error::Open { path, source })?;
        maps.push(PmemConfig { file: number(file.into()), read_only });
    }
    Ok((Peripherals { console, vsock, pmem: maps, ..Peripherals::default() }, files))
}

/// A machine that is nobody's instance: its UUID says that there is none.
fn identity() -> SystemIdentity {
    SystemIdentity {
        manufacturer: "Wisp".to_owned(),
        product: "Wisp microVM".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        serial: String::new(),
        uuid: [0; 16],
    }
}

/// The locally administered address of the network device number `index`.
#[must_use]
pub fn mac(index: u8) -> [u8; 6] {
    [0x02, 0x57, 0x49, 0x53, 0x50, index]
}

/// A network device on the queues of one tap, with nothing answered in the network's place.
fn nic(index: u8, tap: TapOption, keep: bool) -> Result<NicSpec, handover::Error> {
    let TapOption { queues, mac: own, mtu, traffic } = tap;
    let config = nic_config(own.unwrap_or_else(|| mac(index)), queues.len());
    let config = NicConfig { mtu: mtu.unwrap_or(config.mtu), traffic, ..config };
    let named: Vec<_> = config.queues().collect();
    let mut queues = PassedFds::new(queues, &named).expect("invariant: a tap that is open has a queue");
    NicSpec::new(config, &mut queues, keep)
}

/// What a VMM is told of a network device on so many queues of a tap, one at the least, which come in their order.
#[must_use]
pub fn nic_config(mac: [u8; 6], queues: usize) -> NicConfig {
    let more_queues = (1_i32..).take(queues.saturating_sub(1)).map(InheritedFd).collect();
    let traffic = Traffic::default();
    NicConfig { tap: InheritedFd(0), more_queues, mac, mtu: MTU, endpoint: None, traffic }
}
