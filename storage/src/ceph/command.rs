//! Ceph's programs: what is asked of them and how their reports are read.

use std::ffi::OsString;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde::Deserialize;

use crate::backend::{BackendError, Capacity};

type Result<T> = std::result::Result<T, BackendError>;

/// Where the programs are.
const DIRECTORIES: [&str; 4] = ["/usr/bin", "/bin", "/usr/sbin", "/sbin"];
/// The variable that names another configuration than /etc/ceph/ceph.conf; Ceph's own.
const CONFIGURATION: &str = "CEPH_CONF";
/// The key of an image's metadata that is ours.
const MARKS: &str = "wisp";
/// Seconds for a monitor and for an OSD to answer. Without, a program waits for as long as its cluster is away.
const MONITOR_SECONDS_MAX: &str = "30";
const OSD_SECONDS_MAX: &str = "60";
/// The most of a program's complaint that is passed on, in characters.
const COMPLAINT_CHARS_MAX: usize = 500;
/// The exit codes of `rbd` are error numbers (asm-generic/errno-base.h, errno.h).
const NOT_FOUND: i32 = 2;
pub(super) const BUSY: i32 = 16;
const EXISTS: i32 = 17;
const NOT_EMPTY: i32 = 39;

/// The programs about one pool.
#[derive(Debug, Clone)]
pub(super) struct Ceph {
    pool: String,
    user: Option<String>,
    configuration: Option<OsString>,
}

/// An image.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) name: String,
    pub(super) size_bytes: u64,
}

/// What an image's metadata says of it: words, as in `depth=2 frozen reverted=7`. A clone has those of what it was made of
/// until it gets its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Marks {
    /// How many images its content stands upon.
    pub(super) depth: u32,
    /// It is never written.
    pub(super) frozen: bool,
    /// A partial image that is complete and takes the disk's place.
    pub(super) whole: bool,
    /// The mark of its last reverting.
    pub(super) reverted: Option<u64>,
}

impl Marks {
    pub(super) fn read(text: &str) -> Self {
        let mut marks = Self::default();
        for word in text.split_whitespace() {
            match word.split_once('=') {
                None if word == "frozen" => marks.frozen = true,
                None if word == "whole" => marks.whole = true,
                Some(("depth", value)) => marks.depth = value.parse().unwrap_or_default(),
                Some(("reverted", value)) => marks.reverted = value.parse().ok(),
                // Of a later version.
                _ => {}
            }
        }
        marks
    }

    pub(super) fn write(&self) -> String {
        let mut text = format!("depth={}", self.depth);
        if self.frozen {
            text += " frozen";
        }
        if self.whole {
            text += " whole";
        }
        if let Some(mark) = self.reverted {
            text += &format!(" reverted={mark}");
        }
        text
    }
}

/// `rbd info --format json`.
#[derive(Debug, Deserialize)]
struct Info {
    size: u64,
}

/// `ceph df --format json`.
#[derive(Debug, Deserialize)]
struct Usage {
    pools: Vec<PoolUsage>,
}

#[derive(Debug, Deserialize)]
struct PoolUsage {
    name: String,
    stats: PoolStats,
}

#[derive(Debug, Deserialize)]
struct PoolStats {
    stored: u64,
    max_avail: u64,
}

impl Ceph {
    pub(super) fn new(pool: &str, user: Option<&str>) -> Result<Self> {
        for name in [Some(pool), user].into_iter().flatten() {
            let safe = !name.is_empty()
                && !name.starts_with('-')
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
            if !safe {
                return Err(BackendError::Id { id: name.chars().take(64).collect() });
            }
        }
        let configuration = std::env::var_os(CONFIGURATION);
        Ok(Self { pool: pool.to_owned(), user: user.map(str::to_owned), configuration })
    }

    #[cfg(test)]
    pub(super) fn configured(self, configuration: std::path::PathBuf) -> Self {
        Self { configuration: Some(configuration.into()), ..self }
    }

    pub(super) fn pool(&self) -> &str {
        &self.pool
    }

    #[cfg(test)]
    pub(super) fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// An image, or a snapshot of one, as the programs are told of it.
    pub(super) fn of_pool(&self, name: &str) -> String {
        format!("{}/{name}", self.pool)
    }

    /// The names of all images of the pool.
    pub(super) fn list(&self) -> Result<Vec<String>> {
        self.report(&["ls", "--format", "json", &self.pool], &self.pool)
    }

    pub(super) fn find(&self, name: &str) -> Result<Option<Found>> {
        let of_pool = self.of_pool(name);
        let output = self.output("rbd", &["info", "--format", "json", &of_pool], None)?;
        if output.status.code() == Some(NOT_FOUND) {
            return Ok(None);
        }
        let info: Info = self.read(output, &of_pool)?;
        Ok(Some(Found { name: name.to_owned(), size_bytes: info.size }))
    }

    pub(super) fn marks(&self, name: &str) -> Result<Marks> {
        let of_pool = self.of_pool(name);
        let output = self.output("rbd", &["image-meta", "get", &of_pool, MARKS], None)?;
        if output.status.code() == Some(NOT_FOUND) {
            return Ok(Marks::default());
        }
        let output = self.checked("rbd", output, &of_pool)?;
        Ok(Marks::read(&String::from_utf8_lossy(&output.stdout)))
    }

    pub(super) fn mark(&self, name: &str, marks: &Marks) -> Result<()> {
        let of_pool = self.of_pool(name);
        self.run(&["image-meta", "set", &of_pool, MARKS, &marks.write()], &of_pool)
    }

    pub(super) fn create(&self, name: &str, size_bytes: u64) -> Result<()> {
        let of_pool = self.of_pool(name);
        self.run(&["create", "--size", &bytes(size_bytes), &of_pool], &of_pool)
    }

    /// Makes an image of a file of raw bytes, without its zeros.
    pub(super) fn import(&self, file: File, name: &str) -> Result<()> {
        let of_pool = self.of_pool(name);
        // The very file that was opened, whatever has its name by now; opened anew, so it is read from its beginning.
        let arguments = ["import", "--no-progress", "/proc/self/fd/0", &of_pool];
        let output = self.output("rbd", &arguments, Some(file))?;
        self.checked("rbd", output, &of_pool).map(drop)
    }

    /// Makes `name` what `of` is now. `by` is the snapshot that it takes, which goes at once: its clone keeps what it needs.
    pub(super) fn clone_image(&self, of: &str, by: &str, name: &str) -> Result<()> {
        let (snapshot, clone) = (self.of_pool(&format!("{of}@{by}")), self.of_pool(name));
        let create = ["snap", "create", "--no-progress", &snapshot];
        if !self.run_unless(EXISTS, &create, &snapshot)? {
            // Of an attempt before this one, whose moment has passed.
            self.run(&["snap", "rm", "--no-progress", &snapshot], &snapshot)?;
            self.run(&create, &snapshot)?;
        }
        let cloned = self.run(&["clone", "--rbd-default-clone-format", "2", &snapshot, &clone], &clone);
        let removed = self.run(&["snap", "rm", "--no-progress", &snapshot], &snapshot);
        cloned.and(removed)
    }

    pub(super) fn resize(&self, name: &str, size_bytes: u64) -> Result<()> {
        let of_pool = self.of_pool(name);
        self.run(&["resize", "--no-progress", "--size", &bytes(size_bytes), &of_pool], &of_pool)
    }

    /// Makes an image independent of others, by copying.
    pub(super) fn flatten(&self, name: &str) -> Result<()> {
        let of_pool = self.of_pool(name);
        self.run(&["flatten", "--no-progress", &of_pool], &of_pool)
    }

    pub(super) fn rename(&self, from: &str, to: &str) -> Result<()> {
        let (from, to) = (self.of_pool(from), self.of_pool(to));
        self.run(&["rename", &from, &to], &from)
    }

    /// Removes an image, if it is there. One that clones stand upon goes to the trash, and from there with the last of them.
    pub(super) fn remove(&self, name: &str) -> Result<()> {
        let of_pool = self.of_pool(name);
        let remove = ["rm", "--no-progress", "--rbd-move-parent-to-trash-on-remove=true", &of_pool];
        let output = self.output("rbd", &remove, None)?;
        match output.status.code() {
            Some(NOT_FOUND) => Ok(()),
            Some(NOT_EMPTY) => {
                // A crash left a snapshot of it.
                self.run(&["snap", "purge", "--no-progress", &of_pool], &of_pool)?;
                self.run(&remove, &of_pool)
            }
            _ => self.checked("rbd", output, &of_pool).map(drop),
        }
    }

    /// What the pool has stored, and what it could still store.
    pub(super) fn capacity(&self) -> Result<Capacity> {
        let arguments = ["df", "--format", "json", "--connect-timeout", MONITOR_SECONDS_MAX];
        let output = self.output("ceph", &arguments, None)?;
        let output = self.checked("ceph", output, &self.pool)?;
        let usage: Option<Usage> = serde_json::from_slice(&output.stdout).ok();
        let usage = usage.ok_or_else(|| self.failed("ceph", &self.pool, "its report is none"))?;
        let pool = usage.pools.into_iter().find(|pool| pool.name == self.pool);
        let stats = pool.ok_or_else(|| self.failed("ceph", &self.pool, "there is no such pool"))?.stats;
        let total_bytes = stats.stored.saturating_add(stats.max_avail);
        Ok(Capacity { total_bytes, free_bytes: stats.max_avail })
    }

    pub(super) fn report<T: for<'a> Deserialize<'a>>(&self, arguments: &[&str], subject: &str) -> Result<T> {
        let output = self.output("rbd", arguments, None)?;
        self.read(output, subject)
    }

    fn read<T: for<'a> Deserialize<'a>>(&self, output: Output, subject: &str) -> Result<T> {
        let output = self.checked("rbd", output, subject)?;
        serde_json::from_slice(&output.stdout).map_err(|_| self.failed("rbd", subject, "its report is none"))
    }

    pub(super) fn run(&self, arguments: &[&str], subject: &str) -> Result<()> {
        let output = self.output("rbd", arguments, None)?;
        self.checked("rbd", output, subject).map(drop)
    }

    /// As `run`; false if the program ends with `code`.
    pub(super) fn run_unless(&self, code: i32, arguments: &[&str], subject: &str) -> Result<bool> {
        let output = self.output("rbd", arguments, None)?;
        if output.status.code() == Some(code) {
            return Ok(false);
        }
        self.checked("rbd", output, subject).map(|_| true)
    }

    fn output(&self, name: &'static str, arguments: &[&str], input: Option<File>) -> Result<Output> {
        let mut found = DIRECTORIES.iter().map(|directory| Path::new(directory).join(name));
        let program = found.find(|path| path.exists());
        let missing = || self.failed(name, &self.pool, "it is not there (package ceph-common)");
        let mut command = Command::new(program.ok_or_else(missing)?);
        command.args(arguments);
        if let Some(user) = &self.user {
            command.args(["--id", user]);
        }
        if name == "rbd" {
            command.args(["--client-mount-timeout", MONITOR_SECONDS_MAX]);
            command.args(["--rados-mon-op-timeout", MONITOR_SECONDS_MAX]);
            command.args(["--rados-osd-op-timeout", OSD_SECONDS_MAX]);
        }
        command.env_clear().env("LC_ALL", "C").env("PATH", DIRECTORIES.join(":"));
        if let Some(path) = &self.configuration {
            command.env(CONFIGURATION, path);
        }
        command.stdin(input.map_or_else(Stdio::null, Stdio::from));
        command.output().map_err(|source| BackendError::Io { step: "run", path: name.into(), source })
    }

    fn checked(&self, program: &'static str, output: Output, subject: &str) -> Result<Output> {
        if output.status.success() {
            return Ok(output);
        }
        Err(self.failed(program, subject, &String::from_utf8_lossy(&output.stderr)))
    }

    pub(super) fn failed(&self, program: &'static str, subject: &str, said: &str) -> BackendError {
        let lines: Vec<_> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        // The library below speaks too, with the time and the thread before what it says.
        let own: Vec<_> = lines.iter().filter_map(|line| line.strip_prefix("rbd: ")).collect();
        let said = if own.is_empty() { lines.join("; ") } else { own.join("; ") };
        let said = said.chars().take(COMPLAINT_CHARS_MAX).collect();
        BackendError::Command { program, subject: subject.to_owned(), said }
    }
}

fn bytes(count: u64) -> String {
    format!("{count}B")
}
