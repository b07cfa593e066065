//! One instance's process: take the inherited descriptors, confine the process, build the machine, serve it to its
//! end, and leave a report.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use storage::format::overlay::{Overlay, OverlayError};
use storage::format::raw::RawFile;
use storage::format::{Disk, EncryptedDisk, open_layers};
use zeroize::Zeroizing;

use crate::boot::image::Image;
use crate::config::{Boot, DiskConfig, DiskFormat, VmmConfig};
use crate::ending::{Ending, EndingSignal};
use crate::events;
use crate::handover::{self, Estate, Keeping, Kept};
use crate::inherited::{self, Descriptors, InheritedFds};
use crate::kvm::{self, Opening};
use crate::lifecycle::Event;
use crate::memory::shared::Shared;
use crate::peripherals::{self, PeripheralSpecs};
use crate::rpc::{ExitReason, ExitReport};
use crate::sandbox::{self, Held, Sandbox};
use crate::serial::{Console, ConsoleLog};
use crate::supervisor::{self, Supervisor};
use crate::virtio::block::ring::Rings;
use crate::vm::{self, BootSource, DiskSpec, Machine, MachineSpec, MainConsole, NicSpec, SnapshotSource};

/// The largest configuration in bytes: its largest part is the metadata, of which user data alone may be 64 KiB in
/// base64, several times.
pub const CONFIG_BYTES_MAX: u64 = 4 << 20;

/// Why an instance cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration's file cannot be read, or is too long.
    #[error("read the configuration")]
    ReadConfig(#[source] io::Error),
    /// The configuration is not one.
    #[error("understand the configuration")]
    ParseConfig(#[source] serde_json::Error),
    /// Its descriptors.
    #[error(transparent)]
    Inherited(#[from] inherited::Error),
    /// A disk cannot be served.
    #[error("open disk {index}")]
    Disk {
        /// Which, from zero.
        index: usize,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An overlay cannot be served.
    #[error("open disk {index}, an overlay")]
    Overlay {
        /// Which, from zero.
        index: usize,
        /// Why.
        #[source]
        source: OverlayError,
    },
    /// The console log cannot be used.
    #[error("open the console log")]
    Console(#[source] io::Error),
    /// No descriptor is left for an event.
    #[error("make an event descriptor")]
    Event(#[source] io::Error),
    /// The kernel makes no file that is memory.
    #[error("make memory that another process can have too")]
    SharedMemory(#[source] io::Error),
    /// What waits for its guest was made before that was known.
    #[error("a VMM that waits for its guest has no reserved huge pages that another process could have, too")]
    ReservedMemory,
    /// What a handover takes, or the guest that one should have brought.
    #[error(transparent)]
    Handover(#[from] handover::Error),
    /// KVM is not there.
    #[error(transparent)]
    Kvm(#[from] kvm::Error),
    /// The process cannot be confined.
    #[error(transparent)]
    Sandbox(#[from] sandbox::Error),
    /// A device cannot be opened.
    #[error(transparent)]
    Peripheral(#[from] peripherals::Error),
    /// The machine cannot be built.
    #[error(transparent)]
    Machine(#[from] vm::Error),
    /// The supervisor cannot be set up.
    #[error(transparent)]
    Supervisor(#[from] supervisor::Error),
    /// The loop failed.
    #[error(transparent)]
    Events(#[from] events::Error),
}

/// Reads a configuration from an inherited file or pipe.
///
/// # Errors
/// It cannot be read, is longer than [`CONFIG_BYTES_MAX`], or is no configuration.
pub fn read_config(file: File) -> Result<VmmConfig, Error> {
    use std::io::Read as _;
    // It may hold keys of disks.
    let mut text = Zeroizing::new(Vec::new());
    file.take(CONFIG_BYTES_MAX + 1).read_to_end(&mut text).map_err(Error::ReadConfig)?;
    if text.len() as u64 > CONFIG_BYTES_MAX {
        return Err(Error::ReadConfig(io::ErrorKind::FileTooLarge.into()));
    }
    serde_json::from_slice(&text).map_err(Error::ParseConfig)
}

/// Runs one instance in this process until its end, which is also written to the configuration's exit report.
///
/// Must be called once, on the only thread of a process that was made for it: the descriptors in `config` become
/// this call's own, and the process stays confined. `instance_id` only appears in logs.
#[must_use]
pub fn run_instance(instance_id: &str, config: VmmConfig, sandbox: Sandbox) -> ExitReport {
    to_the_end(instance_id, |left| run(config, sandbox, left))
}

/// What a process leaves of the guest that it had.
#[derive(Debug, Default)]
pub(crate) struct Left {
    /// Where its end is written to.
    pub(crate) report_file: Option<File>,
    /// When it first ran, in microseconds since the Unix epoch.
    pub(crate) first_run_us: Option<u64>,
}

impl Left {
    /// Has a handover of the guest, if one may come, give the report's file to the successor.
    pub(crate) fn keep_report(&self, spec: &mut MachineSpec) -> Result<(), handover::Error> {
        if let (Some(estate), Some(report)) = (&mut spec.estate, &self.report_file) {
            estate.exit_report = Some(report.try_clone().map_err(handover::Error::Keep)?.into());
        }
        Ok(())
    }
}

/// Has `serve` serve a guest to its end, which is told then; one that never came to be has failed.
pub(crate) fn to_the_end(
    instance_id: &str,
    serve: impl FnOnce(&mut Left) -> Result<Ending, Error>,
) -> ExitReport {
    let mut left = Left::default();
    let ending = serve(&mut left)
        .unwrap_or_else(|error| Ending { reason: ExitReason::BootFailed, message: chain(&error) });
    conclude(instance_id, ending, left)
}

/// Says how a guest ended, and writes it to where its owner looks.
fn conclude(instance_id: &str, ending: Ending, Left { report_file, first_run_us }: Left) -> ExitReport {
    let report = ExitReport { reason: ending.reason, message: ending.message, first_run_us };
    if exit_code(&report) == 0 {
        tracing::info!(instance.id = instance_id, reason = ?report.reason, "the guest is over: {}", report.message);
    } else {
        tracing::warn!(instance.id = instance_id, reason = ?report.reason, "the guest failed: {}", report.message);
    }
    if let Some(file) = report_file
        && let Err(error) = write_report(&file, &report)
    {
        tracing::error!(instance.id = instance_id, %error, "the exit report cannot be written");
    }
    report
}

/// What a process that ran an instance exits with: zero if the guest's end was wanted by anyone, else one.
#[must_use]
pub fn exit_code(report: &ExitReport) -> u8 {
    match report.reason {
        ExitReason::PoweredOff | ExitReason::Reset | ExitReason::Killed => 0,
        ExitReason::BootFailed | ExitReason::Crashed => 1,
    }
}

/// An error with its causes as one sentence.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}

fn write_report(file: &File, report: &ExitReport) -> io::Result<()> {
    let text = serde_json::to_vec(report).expect("invariant: a report is plain data");
    file.set_len(0)?;
    file.write_all_at(&text, 0)?;
    let mut file = file;
    file.flush()
}

fn run(config: VmmConfig, sandbox: Sandbox, left: &mut Left) -> Result<Ending, Error> {
    supervisor::block_signals()?;
    let mut fds = InheritedFds::of(&config)?;
    let kvm = Opening::begin();
    left.report_file = config.exit_report.map(|fd| File::from(fds.take(fd)));
    let listener = config.control_socket.map(|fd| UnixListener::from(fds.take(fd)));
    let memory = config.upgradable.then(|| Shared::new(config.huge_pages)).transpose();
    let rings = Rings::for_disks(config.disks.len(), config.control_socket.is_some());
    let prepared = Prepared { rings, memory: memory.map_err(Error::SharedMemory)? };
    let mut spec = open(config, &mut fds, prepared)?;
    left.keep_report(&mut spec)?;
    let ending = EndingSignal::new().map_err(Error::Event)?;
    let kvm = kvm.finish()?;
    // From here on, nothing can be opened; kernels, disks and guests are foreign.
    let held = sandbox.enter()?;
    let machine = Machine::build(&kvm, spec, &ending)?;
    let (ending, machine) = supervise(machine, &ending, (listener, held))?;
    Ok(over(ending, machine, left))
}

/// What is left of a machine that is over here, if it is not over altogether but another process's.
pub(crate) fn over(ending: Ending, machine: Machine, left: &mut Left) -> Ending {
    if machine.is_handed_over() {
        // Its successor's to write.
        left.report_file = None;
    }
    left.first_run_us = machine.first_run_us();
    let ending = machine.explained(ending);
    // The process is about to end: the kernel takes the machine apart.
    std::mem::forget(machine);
    ending
}

/// What only a process that is not confined yet can make.
pub(crate) struct Prepared {
    pub(crate) rings: Rings,
    /// Of a guest that may be handed over.
    pub(crate) memory: Option<Shared>,
}

/// Serves; without a control socket the guest starts at once.
fn supervise(
    machine: Machine,
    ending: &EndingSignal,
    (listener, held): (Option<UnixListener>, Held),
) -> Result<(Ending, Machine), Error> {
    let starts_itself = listener.is_none();
    let mut supervisor = Supervisor::new(machine, ending.clone(), listener, starts_itself)?;
    supervisor.set_protections(held);
    Ok(events::serve(supervisor, ending, |supervisor| {
        if starts_itself {
            supervisor.machine_mut().apply(Event::Start).expect("invariant: the guest was never started");
        }
    })?)
}

/// Takes all descriptors but those of the process, and makes of them what the machine is built from.
pub(crate) fn open(
    config: VmmConfig,
    fds: &mut dyn Descriptors,
    prepared: Prepared,
) -> Result<MachineSpec, Error> {
    let Prepared { rings, memory } = prepared;
    let keep = memory.is_some();
    let image = |fd, fds: &mut dyn Descriptors| Box::new(File::from(fds.take(fd))) as Box<dyn Image>;
    let track = matches!(config.boot, Boot::Snapshot { track: true, .. });
    let boot = match config.boot {
        Boot::Kernel { kernel, initrd } => {
            BootSource::Kernel { kernel: image(kernel, fds), initrd: initrd.map(|initrd| image(initrd, fds)) }
        }
        Boot::Firmware { firmware } => BootSource::Firmware(image(firmware, fds)),
        Boot::Disk => BootSource::Disk,
        Boot::Snapshot { files, working_set, .. } => {
            let mut take = |file| File::from(fds.take(file));
            let files = files.into_iter().map(&mut take).collect();
            BootSource::Snapshot(SnapshotSource::new(files, working_set.map(take), memory.as_ref()))
        }
    };
    let mut disks = Vec::with_capacity(config.disks.len());
    for (index, config) in config.disks.into_iter().enumerate() {
        disks.push(open_disk(index, config, fds, keep)?);
    }
    let nics = config.nics.into_iter().map(|config| NicSpec::new(config, fds, keep));
    let nics = nics.collect::<Result<_, _>>()?;
    let mut estate = memory.map(Estate::of);
    let mut log = Keeping::new(fds, keep);
    let console = match config.console_log {
        Some(fd) => Console::Log(ConsoleLog::new(File::from(log.take(fd))).map_err(Error::Console)?),
        None => Console::None,
    };
    let log = log.kept()?.and_then(|mut kept| kept.pop());
    let mut keeping = Keeping::new(fds, keep);
    let peripherals = PeripheralSpecs::open(config.peripherals.clone(), &mut keeping)?;
    if let (Some(estate), Some(kept)) = (&mut estate, keeping.kept()?) {
        (estate.console_log, estate.peripherals) = (log, (config.peripherals, kept));
    }
    Ok(MachineSpec {
        memory_mib: config.memory_mib,
        pinned: None,
        huge_pages: config.huge_pages,
        vcpus: config.vcpus,
        cpu: config.cpu,
        track,
        boot,
        transport: config.transport,
        system: config.system,
        anyway: false,
        cmdline: config.cmdline,
        disks,
        rings,
        nics,
        console,
        peripherals,
        main_console: MainConsole::Serial,
        estate,
    })
}

/// Opens the disk number `index` over its descriptors, of which copies are kept for a handover if that may come.
pub(crate) fn open_disk(
    index: usize,
    mut config: DiskConfig,
    fds: &mut dyn Descriptors,
    keep: bool,
) -> Result<DiskSpec, Error> {
    let own = keep.then(|| Box::new(config.clone()));
    let key = config.key.take();
    let mut fds = Keeping::new(fds, keep);
    let stored = open_stored(index, &config, &mut fds)?;
    let disk = match key {
        Some(key) => Arc::new(EncryptedDisk::new(stored, &key)),
        None => stored,
    };
    let kept = own.zip(fds.kept()?).map(|(config, files)| Kept::Disk(config, files));
    Ok(DiskSpec { disk, config, kept })
}

fn open_stored(index: usize, config: &DiskConfig, fds: &mut dyn Descriptors) -> Result<Arc<dyn Disk>, Error> {
    Ok(match &config.format {
        DiskFormat::Raw { file } => Arc::new(
            RawFile::whole(File::from(fds.take(*file)), config.read_only)
                .map_err(|source| Error::Disk { index, source })?,
        ),
        DiskFormat::Overlay { file, base } => Arc::new(
            Overlay::open(File::from(fds.take(*file)), File::from(fds.take(*base)))
                .map_err(|source| Error::Overlay { index, source })?,
        ),
        DiskFormat::Layers { files } => {
            let files = files.iter().map(|file| File::from(fds.take(*file))).collect();
            Arc::new(open_layers(files, config.read_only).map_err(|source| Error::Overlay { index, source })?)
        }
    })
}

#[cfg(test)]
mod tests;
