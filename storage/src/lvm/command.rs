//! LVM's commands: what is asked of them and how their reports are read.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde::Deserialize;

use crate::backend::{BackendError, Capacity};

/// LVM's one program, which its commands are names of.
const PROGRAM: &str = "lvm";
/// Where it is.
const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
/// The most of a command's complaint that is passed on, in characters.
const COMPLAINT_CHARS_MAX: usize = 500;

/// The commands about one volume group.
#[derive(Debug)]
pub(super) struct Lvm {
    group: String,
}

/// A logical volume.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) name: String,
    pub(super) size_bytes: u64,
    pub(super) tags: Vec<String>,
}

impl Found {
    pub(super) fn has(&self, tag: &str) -> bool {
        self.tags.iter().any(|found| found == tag)
    }
}

/// `lvs --reportformat json`: every value is text.
#[derive(Debug, Deserialize)]
struct Report {
    report: Vec<Part>,
}

#[derive(Debug, Deserialize)]
struct Part {
    lv: Vec<Row>,
}

#[derive(Debug, Deserialize)]
struct Row {
    lv_name: String,
    lv_size: String,
    lv_tags: String,
    data_percent: String,
    segtype: String,
}

impl Lvm {
    pub(super) fn new(group: &str) -> Self {
        Self { group: group.to_owned() }
    }

    pub(super) fn group(&self) -> &str {
        &self.group
    }

    pub(super) fn of_group(&self, name: &str) -> String {
        format!("{}/{name}", self.group)
    }

    /// Where the kernel has it (device-mapper doubles hyphens inside names).
    pub(super) fn device(&self, name: &str) -> PathBuf {
        let doubled = |text: &str| text.replace('-', "--");
        Path::new("/dev/mapper").join(format!("{}-{}", doubled(&self.group), doubled(name)))
    }

    /// All thin volumes of a pool.
    pub(super) fn list(&self, pool: &str) -> Result<Vec<Found>, BackendError> {
        self.selected(&format!("pool_lv={pool}"))
    }

    /// The thin volumes of a pool by these names.
    pub(super) fn either(&self, pool: &str, one: &str, other: &str) -> Result<Vec<Found>, BackendError> {
        self.selected(&format!("pool_lv={pool} && (lv_name={one} || lv_name={other})"))
    }

    fn selected(&self, selection: &str) -> Result<Vec<Found>, BackendError> {
        let rows = self.report(&["--select", selection, &self.group])?;
        let read = |row: Row| {
            let size_bytes = row.lv_size.parse().map_err(|_| self.strange())?;
            let tags = row.lv_tags.split(',').map(str::to_owned).collect();
            Ok(Found { name: row.lv_name, size_bytes, tags })
        };
        rows.into_iter().map(read).collect()
    }

    /// What a thin pool holds and has left.
    pub(super) fn capacity(&self, pool: &str) -> Result<Capacity, BackendError> {
        let row = self.report(&[&self.of_group(pool)])?.pop().ok_or_else(|| self.strange())?;
        if row.segtype != "thin-pool" {
            return Err(self.failed("lvs", &format!("{} is no thin pool", self.of_group(pool))));
        }
        let total_bytes: u64 = row.lv_size.parse().map_err(|_| self.strange())?;
        let used: f64 = row.data_percent.parse().map_err(|_| self.strange())?;
        #[expect(clippy::cast_sign_loss, clippy::cast_possible_truncation, reason = "a share of what fits")]
        let used_bytes = (total_bytes as f64 * used.clamp(0.0, 100.0) / 100.0) as u64;
        Ok(Capacity { total_bytes, free_bytes: total_bytes.saturating_sub(used_bytes) })
    }

    fn report(&self, of: &[&str]) -> Result<Vec<Row>, BackendError> {
        let columns = "lv_name,lv_size,lv_tags,data_percent,segtype";
        let head = ["--reportformat", "json", "--units", "b", "--nosuffix", "--options", columns];
        let output = self.output("lvs", &[&head[..], of].concat())?;
        let report: Report = serde_json::from_slice(&output.stdout).map_err(|_| self.strange())?;
        Ok(report.report.into_iter().flat_map(|part| part.lv).collect())
    }

    pub(super) fn rename(&self, from: &str, to: &str) -> Result<(), BackendError> {
        self.run("lvrename", &[&self.group, from, to])
    }

    pub(super) fn remove(&self, name: &str) -> Result<(), BackendError> {
        self.run("lvremove", &["--force", &self.of_group(name)])
    }

    /// Runs one of LVM's commands that changes something.
    pub(super) fn run(&self, command: &'static str, arguments: &[&str]) -> Result<(), BackendError> {
        self.output(command, &[&["--quiet", "--yes"], arguments].concat()).map(drop)
    }

    fn output(&self, command: &'static str, arguments: &[&str]) -> Result<Output, BackendError> {
        let mut found = DIRECTORIES.iter().map(|directory| Path::new(directory).join(PROGRAM));
        let program = found.find(|path| path.exists());
        let program = program.ok_or_else(|| self.failed(command, "LVM is not there (package lvm2)"))?;
        let output = Command::new(program)
            .arg(command)
            .args(arguments)
            .env_clear()
            .env("LC_ALL", "C")
            .env("PATH", DIRECTORIES.join(":"))
            // Descriptors of ours that LVM finds open are none of its business.
            .env("LVM_SUPPRESS_FD_WARNINGS", "1")
            .stdin(Stdio::null())
            .output()
            .map_err(|source| BackendError::Io { step: "run", path: PROGRAM.into(), source })?;
        if output.status.success() {
            return Ok(output);
        }
        Err(self.failed(command, &String::from_utf8_lossy(&output.stderr)))
    }

    fn failed(&self, command: &'static str, said: &str) -> BackendError {
        let lines: Vec<_> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let said = lines.join("; ").chars().take(COMPLAINT_CHARS_MAX).collect();
        BackendError::Command { program: command, subject: self.group.clone(), said }
    }

    fn strange(&self) -> BackendError {
        self.failed("lvs", "its report is none")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_the_names_that_device_mapper_gives() {
        let lvm = Lvm::new("vg-one");
        assert_eq!(lvm.device("wisp-a-b.new"), Path::new("/dev/mapper/vg--one-wisp--a--b.new"));
        assert_eq!(lvm.of_group("pool"), "vg-one/pool");
    }

    #[test]
    fn complaints_are_one_line_with_their_subject() {
        let error =
            Lvm::new("vg").failed("lvcreate", "  Insufficient free space\n\n  Try again.\n").to_string();
        assert_eq!(error, "lvcreate for vg: Insufficient free space; Try again.");
    }
}
