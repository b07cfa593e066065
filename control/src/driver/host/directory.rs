//! The run directory: one directory per instance with all that is kept of it, written so that a crash between any
//! two writes leaves something that can be read.
//!
//! ```text
//! ID/spec.json     the last wanted state that was applied, and what boot it is in
//! ID/pid           the VMM process, as number and start time
//! ID/control.sock  where it listens
//! ID/console.log   what the guest wrote to its console
//! ID/exit.json     why it ended
//! ID/vmm.log       what the VMM process itself had to say
//! ID/disk/         the disks
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use vmm::rpc::ExitReport;

use super::plug::Beside;
use crate::agent::protocol::InstanceWanted;
use crate::driver::instance_id_is_safe;
use crate::driver::process_id::ProcessId;

/// The longest of our own small files that is read back, in bytes; what is longer was not written by us.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// What is written down of an instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The wanted state that was applied last, without the keys of disks.
    pub(super) wanted: InstanceWanted,
    /// What its VMM may have beside.
    #[serde(default)]
    pub(super) beside: Beside,
    /// The boot that was begun last.
    pub(super) boot: u64,
    /// The host's boot in which that was; another one means that the host went down under it. Empty where the
    /// instance was taken down with its host's cloud, to run again with it.
    pub(super) host_boot: String,
    /// Whether that boot came so far that its guest ran.
    pub(super) started: bool,
    /// Why that boot could not be begun, or ended.
    pub(super) fault: Option<String>,
    /// When its first instruction ran, in microseconds since the Unix epoch.
    pub(super) first_run_us: Option<u64>,
}

/// One instance's directory.
#[derive(Debug, Clone)]
pub(super) struct Directory {
    path: PathBuf,
}

impl Directory {
    /// The directory of an instance; its id becomes part of a path only if it is safe to.
    pub(super) fn of(run: &Path, id: &str) -> io::Result<Self> {
        if !instance_id_is_safe(id) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the instance's id is not one"));
        }
        Ok(Self { path: run.join(id) })
    }

    /// The ids of all that have a directory.
    pub(super) fn ids(run: &Path) -> io::Result<Vec<String>> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(run)? {
            let entry = entry?;
            if let Ok(name) = entry.file_name().into_string()
                && instance_id_is_safe(&name)
                && entry.file_type()?.is_dir()
                && name != "fake"
            {
                ids.push(name);
            }
        }
        ids.sort();
        Ok(ids)
    }

    /// The directory's path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The control socket's path. Relative where the run directory is, since a socket's path is at most 107 bytes.
    pub(super) fn control_socket(&self) -> PathBuf {
        self.path.join("control.sock")
    }

    /// The disks' directory.
    pub(super) fn disks(&self) -> PathBuf {
        self.path.join("disk")
    }

    /// Makes the directory; returns whether it was missing.
    pub(super) fn create(&self) -> io::Result<bool> {
        let made = match DirBuilder::new().mode(0o700).create(&self.path) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(error),
        };
        match DirBuilder::new().mode(0o700).create(self.disks()) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(made),
        }
    }

    /// Removes the directory with all that is in it.
    pub(super) fn remove(&self) -> io::Result<()> {
        absent_is_fine(fs::remove_dir_all(&self.path))
    }

    /// Removes what belongs to one run of the process, and keeps disks and console.
    pub(super) fn remove_run(&self) -> io::Result<()> {
        for name in ["pid", "control.sock"] {
            absent_is_fine(fs::remove_file(self.path.join(name)))?;
        }
        Ok(())
    }

    /// Removes the report of an earlier run's end.
    pub(super) fn remove_exit(&self) -> io::Result<()> {
        absent_is_fine(fs::remove_file(self.path.join("exit.json")))
    }

    /// What is written down, if it is there and whole.
    pub(super) fn record(&self) -> Option<Record> {
        self.read("spec.json")
    }

    /// Writes it down.
    pub(super) fn write_record(&self, record: &Record) -> io::Result<()> {
        self.write("spec.json", record)
    }

    /// The process, as it was written down.
    pub(super) fn process(&self) -> Option<ProcessId> {
        self.read("pid")
    }

    /// Writes the process down.
    pub(super) fn write_process(&self, process: ProcessId) -> io::Result<()> {
        self.write("pid", &process)
    }

    /// Why the last process ended, if it could say.
    pub(super) fn exit(&self) -> Option<ExitReport> {
        self.read("exit.json")
    }

    /// The file for the report of the process's end, empty.
    pub(super) fn open_exit(&self) -> io::Result<File> {
        self.open("exit.json", true)
    }

    /// The file for the guest's console, empty.
    pub(super) fn open_console(&self) -> io::Result<File> {
        self.open("console.log", true)
    }

    /// The file for what the process itself has to say, empty.
    pub(super) fn open_log(&self) -> io::Result<File> {
        self.open("vmm.log", true)
    }

    /// The last line of what the process itself had to say.
    pub(super) fn last_words(&self) -> Option<String> {
        let text = read_bounded(&self.path.join("vmm.log")).ok()?;
        let text = String::from_utf8_lossy(&text).into_owned();
        text.lines().rev().map(str::trim).find(|line| !line.is_empty()).map(ToOwned::to_owned)
    }

    /// The console log's text as it is on disk.
    pub(super) fn console(&self) -> io::Result<Vec<u8>> {
        read_bounded(&self.path.join("console.log"))
    }

    fn open(&self, name: &str, empty: bool) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(empty)
            .mode(0o600)
            .open(self.path.join(name))
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_slice(&read_bounded(&self.path.join(name)).ok()?).ok()
    }

    /// Replaces a file as a whole. Not synced: what a power loss takes, the host's reboot would have made wrong.
    fn write<T: Serialize>(&self, name: &str, value: &T) -> io::Result<()> {
        let unfinished = self.path.join(format!("{name}.new"));
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
        file.write_all(&serde_json::to_vec(value)?)?;
        fs::rename(&unfinished, self.path.join(name))
    }
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(File::open(path)?, FILE_BYTES_MAX), &mut bytes)?;
    Ok(bytes)
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The host's present boot (random(4), `/proc/sys/kernel/random/boot_id`).
pub(super) fn host_boot() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_string()
}
