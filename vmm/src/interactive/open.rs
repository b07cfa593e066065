//! From paths and names to what a VMM is told of a guest, and the files that are opened for it.

use std::collections::BTreeSet;
use std::fs::{File, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use super::{BootOptions, ConsoleOption, Error, TapOption, VsockOption, mac, nic_config};
use crate::config::{
    Boot, CONSOLE_LOG_BYTES_MAX, ConsoleConfig, DiskConfig, InheritedFd, NicConfig, Peripherals, PmemConfig,
    SystemIdentity, VmmConfig, VsockConfig,
};
use crate::inherited::of_disk_mut;

/// Files, numbered as they come.
#[derive(Default)]
pub(super) struct Files(pub(super) Vec<OwnedFd>);

impl Files {
    /// Adds one; its number.
    pub(super) fn add(&mut self, file: impl Into<OwnedFd>) -> InheritedFd {
        self.0.push(file.into());
        InheritedFd(i32::try_from(self.0.len() - 1).expect("invariant: a process has fewer descriptors"))
    }
}

fn open_file(path: &Path, write: bool) -> Result<File, Error> {
    let opened = File::options().read(true).write(write).open(path);
    opened.map_err(|source| Error::Open { path: path.to_owned(), source })
}

/// Opens all there is to open. The configuration numbers the files from zero; a console on the terminal is none of them.
pub(super) fn open(options: BootOptions) -> Result<(VmmConfig, Files), Error> {
    let mut files = Files::default();
    let boot = boot(&options, &mut files)?;
    let mut disks = Vec::with_capacity(options.disks.len());
    for (index, disk) in options.disks.iter().enumerate() {
        let (mut config, opened) = disk.open(format!("disk{index}"))?;
        for (number, file) in of_disk_mut(&mut config).into_iter().zip(opened) {
            *number = files.add(file);
        }
        disks.push(config);
    }
    let mut config = VmmConfig {
        memory_mib: options.memory_mib,
        huge_pages: options.huge_pages,
        upgradable: options.upgradable,
        vcpus: options.vcpus,
        cpu: options.cpu,
        boot,
        transport: options.transport,
        system: Some(identity()),
        cmdline: options.cmdline,
        disks,
        nics: Vec::new(),
        peripherals: open_peripherals(options.console, options.vsock, options.pmem, &mut files)?,
        console_log: None,
        control_socket: None,
        exit_report: None,
    };
    let devices = &mut config.peripherals;
    (devices.balloon, devices.mem, devices.watchdog) = (options.balloon, options.mem, options.watchdog);
    let nics = (0_u8..).zip(options.taps).map(|(index, tap)| nic(index, tap, &mut files));
    config.nics = nics.collect();
    check_names(&config.disks, &config.nics)?;
    let control = options.control.as_deref().map(listen).transpose()?;
    config.control_socket = control.map(|listener| files.add(listener));
    Ok((config, files))
}

fn boot(options: &BootOptions, files: &mut Files) -> Result<Boot, Error> {
    let mut open = |path: &PathBuf| open_file(path, false).map(|file| files.add(file));
    if let Some(firmware) = &options.firmware {
        return Ok(Boot::Firmware { firmware: open(firmware)? });
    }
    if let Some(kernel) = &options.kernel {
        return Ok(Boot::Kernel {
            initrd: options.initrd.as_ref().map(&mut open).transpose()?,
            kernel: open(kernel)?,
        });
    }
    if options.restore.is_empty() {
        return Ok(Boot::Disk);
    }
    let snapshots = options.restore.iter().map(open).collect::<Result<_, _>>()?;
    let working_set = options.working_set.as_ref().map(|path| {
        let opened = File::options().read(true).write(true).create(true).truncate(false).open(path);
        opened.map_err(|source| Error::Open { path: path.clone(), source })
    });
    let working_set = working_set.transpose()?.map(|file| files.add(file));
    Ok(Boot::Snapshot { files: snapshots, track: options.track, working_set })
}

fn open_peripherals(
    console: Option<ConsoleOption>,
    vsock: Option<VsockOption>,
    pmem: Vec<(PathBuf, bool)>,
    files: &mut Files,
) -> Result<Peripherals, Error> {
    let console = match console {
        None | Some(ConsoleOption::Terminal) => None,
        Some(ConsoleOption::File(path)) => {
            let opened = File::options().read(true).write(true).create(true).truncate(false).open(&path);
            let measured = opened.and_then(|file| Ok((file.metadata()?.len(), file)));
            match measured.map_err(|source| Error::Open { path: path.clone(), source })? {
                (length, _) if length > CONSOLE_LOG_BYTES_MAX => return Err(Error::NoLog { path, length }),
                (_, file) => Some(ConsoleConfig::Log(files.add(file))),
            }
        }
        Some(ConsoleOption::Socket(path)) => Some(ConsoleConfig::Socket(files.add(listen(&path)?))),
    };
    let vsock = match vsock {
        None => None,
        Some(VsockOption { cid, path, connector }) => {
            let listener = Some(files.add(listen(&path)?));
            Some(VsockConfig { cid, listener, connector: Some(files.add(connector)) })
        }
    };
    let mut maps = Vec::with_capacity(pmem.len());
    for (path, read_only) in pmem {
        let file = open_file(&path, !read_only)?;
        maps.push(PmemConfig { file: files.add(file), read_only });
    }
    Ok(Peripherals { console, vsock, pmem: maps, ..Peripherals::default() })
}

/// Whether no two devices have one name; disks need none.
fn check_names(disks: &[DiskConfig], nics: &[NicConfig]) -> Result<(), Error> {
    let (mut serials, mut macs) = (BTreeSet::new(), BTreeSet::new());
    let mut serial = disks.iter().map(|disk| &disk.serial).filter(|serial| !serial.is_empty());
    if !serial.all(|serial| serials.insert(serial)) {
        return Err(Error::Twice("disks", "serial number"));
    }
    if !nics.iter().all(|nic| macs.insert(nic.mac)) {
        return Err(Error::Twice("network devices", "MAC address"));
    }
    Ok(())
}

/// A network device on the queues of one tap.
fn nic(index: u8, tap: TapOption, files: &mut Files) -> NicConfig {
    let TapOption { queues, mac: own, mtu, traffic, endpoint } = tap;
    let config = nic_config(own.unwrap_or_else(|| mac(index)), queues.len());
    let mut queues = queues.into_iter().map(|queue| files.add(queue));
    let tap = queues.next().expect("invariant: a tap that is open has a queue");
    let more_queues = queues.collect();
    NicConfig { tap, more_queues, mtu: mtu.unwrap_or(config.mtu), endpoint, traffic, ..config }
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

/// A socket for its owner alone, in the place of one at which nobody listens any more.
///
/// # Errors
/// It cannot be made, or somebody listens there.
pub fn listen(path: &Path) -> Result<UnixListener, Error> {
    let abandoned = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
        && UnixStream::connect(path).is_err();
    let cleared = if abandoned { std::fs::remove_file(path) } else { Ok(()) };
    let listener = cleared.and_then(|()| UnixListener::bind(path)).and_then(|listener| {
        std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
        Ok(listener)
    });
    listener.map_err(|source| Error::Listen { path: path.to_owned(), source })
}
