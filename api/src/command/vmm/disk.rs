//! Disks of guests that do not run: an overlay or a qcow2 image made one raw file, and an overlay's content given to its base.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use storage::backend::copy_sparse;
use storage::format::overlay::SIZE_BYTES_MAX;
use storage::format::{Disk as _, Overlay, RawFile, qcow2};
use vmm::interactive::{Hold, lock_disk};

/// What is done with disks.
#[derive(Debug, clap::Subcommand)]
pub(in crate::command) enum Command {
    /// Make one raw disk of an overlay and its base, or of a qcow2 image: what is zero takes no room.
    ///
    /// No guest may be writing to it meanwhile.
    FlattenDisk {
        /// A qcow2 image or, with `--base`, an overlay.
        from: PathBuf,
        /// The raw disk to make; it must not be there.
        to: PathBuf,
        /// The overlay's base.
        #[arg(long, value_name = "BASE")]
        base: Option<PathBuf>,
    },
    /// Write what an overlay has into its base, and empty it: the base is the disk then.
    ///
    /// No guest may be using either, nor any other overlay be over that base: it would see another disk. Where it was
    /// interrupted, it is begun anew.
    CommitDisk {
        /// The overlay.
        overlay: PathBuf,
        /// Its base.
        base: PathBuf,
    },
}

pub(super) fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::FlattenDisk { from, to, base } => flatten(&from, &to, base.as_deref())?,
        Command::CommitDisk { overlay, base } => commit(&overlay, &base)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn open(path: &Path, write: bool) -> anyhow::Result<File> {
    let opened = File::options().read(true).write(write).open(path);
    let opened = opened.with_context(|| format!("open {}", path.display()))?;
    lock_disk(&opened, path, if write { Hold::Alone } else { Hold::Together })?;
    Ok(opened)
}

fn flatten(from: &Path, to: &Path, base: Option<&Path>) -> anyhow::Result<()> {
    let source = open(from, false)?;
    if base.is_none() && !is_qcow2(&source)? {
        bail!("{} is no qcow2 image, and an overlay needs its --base", from.display());
    }
    let made = File::options().read(true).write(true).create_new(true).open(to);
    let made = made.with_context(|| format!("make {}", to.display()))?;
    let filled = fill(source, base, &made).and_then(|()| Ok(made.sync_all()?));
    filled.inspect_err(|_| {
        // Half of a disk is none.
        let _ = std::fs::remove_file(to);
    })
}

fn fill(source: File, base: Option<&Path>, made: &File) -> anyhow::Result<()> {
    let Some(base) = base else {
        qcow2::copy_to_raw(&source, made, SIZE_BYTES_MAX)?;
        return Ok(());
    };
    let bytes = RawFile::whole(source.try_clone()?, true)?.size_bytes();
    let base = RawFile::whole(open(base, false)?, true)?;
    let overlay = Overlay::over(Box::new(RawFile::new_read_only(source, bytes)), Box::new(base))?;
    made.set_len(overlay.size_bytes())?;
    copy_sparse(&overlay, &RawFile::whole(made.try_clone()?, false)?)?;
    Ok(())
}

/// Whether a file begins as qcow2 images do.
fn is_qcow2(file: &File) -> anyhow::Result<bool> {
    let mut magic = Vec::new();
    file.take(4).read_to_end(&mut magic)?;
    Ok(magic == *b"QFI\xfb")
}

fn commit(overlay: &Path, base: &Path) -> anyhow::Result<()> {
    let (top, below) = (open(overlay, true)?, open(base, true)?);
    Overlay::commit(&top, &below).with_context(|| format!("commit {}", overlay.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn overlay_is_flattened_and_committed_to_the_same_disk() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("base"), vec![1; 10_240]).unwrap();
        let top = File::options().read(true).write(true).create_new(true).open(path("top")).unwrap();
        Overlay::create(&top, 10_240, 20_480).unwrap();
        let disk = Overlay::open(top, open(&path("base"), false).unwrap()).unwrap();
        disk.write_at(&[2; 1000], 4000).unwrap();
        disk.write_at(&[3; 512], 19_968).unwrap();
        disk.flush().unwrap();
        drop(disk);
        flatten(&path("top"), &path("flat"), Some(&path("base"))).unwrap();
        let mut expected = vec![1; 10_240];
        expected.resize(20_480, 0);
        expected[4000..5000].fill(2);
        expected[19_968..].fill(3);
        assert!(std::fs::read(path("flat")).unwrap() == expected);
        assert!(flatten(&path("top"), &path("flat"), Some(&path("base"))).is_err(), "it is there");
        assert!(flatten(&path("top"), &path("other"), None).is_err());
        assert!(!path("other").exists());
        // Once more, as after an interruption that left the base longer.
        open(&path("base"), true).unwrap().write_all_at(&[0], 20_479).unwrap();
        commit(&path("top"), &path("base")).unwrap();
        assert!(std::fs::read(path("base")).unwrap() == expected);
        let disk =
            Overlay::open(open(&path("top"), true).unwrap(), open(&path("base"), false).unwrap()).unwrap();
        let mut content = vec![0; 20_480];
        disk.read_at(&mut content, 0).unwrap();
        assert!(content == expected);
        let refused = commit(&path("top"), &path("base")).unwrap_err().to_string();
        assert!(refused.contains("is in use"), "{refused}");
        drop(disk);
        commit(&path("top"), &path("base")).unwrap();
        assert!(std::fs::read(path("base")).unwrap() == expected);
    }
}
