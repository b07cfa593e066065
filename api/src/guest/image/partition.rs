//! A disk with a GPT around file systems.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use uuid::Uuid;

use super::super::cache;
use super::super::tools::{self, Need};

/// What partitioning needs.
pub const NEEDS: [Need; 1] = [Need::Program("sfdisk", "fdisk")];
const MIB: u64 = 1 << 20;
const SECTOR_BYTES: u64 = 512;

/// Why there is no disk.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file.
    #[error(transparent)]
    Cache(#[from] cache::Error),
    /// sfdisk failed.
    #[error(transparent)]
    Tool(#[from] tools::Error),
    /// sfdisk cannot be told.
    #[error("write the list of partitions")]
    Script(#[source] std::io::Error),
}

/// What a partition is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A boot loader's own.
    BiosBoot,
    /// A Linux file system.
    Linux,
}

impl Role {
    /// The type's GUID (UEFI 2.10 §5.3.3, and GRUB's own).
    fn guid(self) -> &'static str {
        match self {
            Self::BiosBoot => "21686148-6449-6E6F-744E-656564454649",
            Self::Linux => "0FC63DAF-8483-4772-8E79-3D69D8477DE4",
        }
    }
}

/// One partition.
#[derive(Debug, Clone)]
pub struct Partition {
    /// Its number.
    pub number: u32,
    /// What it is for.
    pub role: Role,
    /// Its size in MiB.
    pub size_mib: u64,
    /// A file with its content; absent: zeros.
    pub content: Option<PathBuf>,
}

/// Writes the disk `image` with `partitions` in the order of their places, each on a whole MiB. `uuid` names the disk,
/// and its partitions with their numbers added.
///
/// # Errors
/// A tool fails.
pub fn write(partitions: &[Partition], uuid: Uuid, image: &Path) -> Result<(), Error> {
    tools::require("partitioning a disk", &NEEDS)?;
    let total_mib = 2 + partitions.iter().map(|partition| partition.size_mib).sum::<u64>();
    let file = File::create(image).map_err(cache::Error::io("make", image))?;
    file.set_len(total_mib * MIB).map_err(cache::Error::io("resize", image))?;
    run(&script(partitions, uuid), image)?;
    let file = fs::OpenOptions::new().write(true).open(image).map_err(cache::Error::io("open", image))?;
    let mut start_mib = 1;
    for partition in partitions {
        if let Some(content) = &partition.content {
            cache::copy_sparse_at(content, &file, image, start_mib * MIB)?;
        }
        start_mib += partition.size_mib;
    }
    Ok(())
}

/// sfdisk's input.
fn script(partitions: &[Partition], uuid: Uuid) -> String {
    let mut script = format!("label: gpt\nlabel-id: {uuid}\n");
    let mut start_mib = 1;
    for partition in partitions {
        let own = Uuid::from_u128(uuid.as_u128() ^ u128::from(partition.number));
        let line = format!(
            "{}: start={}, size={}, type={}, uuid={own}\n",
            partition.number,
            start_mib * MIB / SECTOR_BYTES,
            partition.size_mib * MIB / SECTOR_BYTES,
            partition.role.guid(),
        );
        script.push_str(&line);
        start_mib += partition.size_mib;
    }
    script
}

fn run(script: &str, image: &Path) -> Result<(), Error> {
    let start = |source| tools::Error::Start { program: "sfdisk".to_owned(), source };
    let mut sfdisk = tools::command("sfdisk");
    sfdisk.args(["-q", "--no-reread", "--no-tell-kernel"]).arg(image);
    let mut child =
        sfdisk.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(start)?;
    let mut input = child.stdin.take().expect("invariant: it was asked for");
    input.write_all(script.as_bytes()).map_err(Error::Script)?;
    drop(input);
    let output = child.wait_with_output().map_err(start)?;
    if output.status.success() {
        return Ok(());
    }
    let tail = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(tools::Error::Failed { program: "sfdisk".to_owned(), status: output.status, tail }.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_follow_each_other_from_the_first_mib() {
        let partition = |number, role, size_mib| Partition { number, role, size_mib, content: None };
        let list = [partition(14, Role::BiosBoot, 3), partition(1, Role::Linux, 10)];
        let text = script(&list, Uuid::from_u128(16));
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[1], "label-id: 00000000-0000-0000-0000-000000000010");
        assert!(lines[2].starts_with("14: start=2048, size=6144, type=2168"));
        assert!(lines[3].starts_with("1: start=8192, size=20480, type=0FC6"));
        assert!(lines[3].ends_with("uuid=00000000-0000-0000-0000-000000000011"));
    }
}
