//! Locks of disks that are opened by name, so that no two guests write to one.
//!
//! A lock is its open file's, whoever has descriptors of that: it goes with them to a confined process or to a successor, and is
//! let go when the last of them is closed. It is one of the whole file, which QEMU's locks of single bytes of it exclude and are
//! excluded by (qemu(1), `file.locking`). A file system without locks has none.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use super::Error;

/// How long a lock is waited for: whoever was killed a moment ago has it until the kernel has taken its rings apart.
const PATIENCE: Duration = if cfg!(test) { Duration::from_millis(30) } else { Duration::from_secs(1) };
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// For whom a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// For whoever asks, alone; it is open for writing.
    Alone,
    /// For all who ask so; it is open for reading.
    Together,
}

/// Where a lock is parted to go from one open file to another. QEMU locks bytes from 100 on for what it does and looks at those
/// from 200 on for what others let it do, so either part keeps it away.
const PARTED_AT: libc::off_t = 150;

/// A part of a file.
#[derive(Debug, Clone, Copy)]
enum Part {
    /// To whatever the end is.
    Whole,
    /// Up to [`PARTED_AT`].
    First,
}

/// Locks an open disk, or what one is made of. Asked again of the same open file, the lock becomes the one that is asked for.
///
/// # Errors
/// [`Error::InUse`]: others hold it, and one of them for itself alone, or this one asks for that.
pub fn lock_disk(file: &File, path: &Path, hold: Hold) -> Result<(), Error> {
    lock_part(file, path, hold, Part::Whole)
}

/// Locks an open disk in the place of what its guest had as one, which `before` are the last descriptors of. Of two open files one
/// alone can have a lock on a byte for itself, so the lock goes over in two parts, and at every moment one of both has one of them:
/// who asks for the disk is refused throughout.
///
/// # Errors
/// As [`lock_disk`].
pub(super) fn take_over_disk(
    file: &File,
    path: &Path,
    hold: Hold,
    before: Vec<OwnedFd>,
) -> Result<(), Error> {
    take_over(file, path, hold, before, || ())
}

/// [`take_over_disk`], with something done between any two steps.
fn take_over(
    file: &File,
    path: &Path,
    hold: Hold,
    before: Vec<OwnedFd>,
    mut between: impl FnMut(),
) -> Result<(), Error> {
    // Locks that do not exclude one another are there together.
    let is_excluded = || matches!(set(file, hold.kind(), Part::Whole), Err(Errno::EAGAIN | Errno::EACCES));
    if !before.is_empty() && is_excluded() {
        for file in &before {
            // One that has no lock has none to let go.
            let _ = set(file, libc::F_UNLCK, Part::First);
            between();
        }
        lock_part(file, path, hold, Part::First)?;
        between();
    }
    drop(before);
    between();
    lock_disk(file, path, hold)
}

impl Hold {
    /// The lock's (fcntl_locking(2)).
    fn kind(self) -> libc::c_int {
        match self {
            Self::Alone => libc::F_WRLCK,
            Self::Together => libc::F_RDLCK,
        }
    }
}

fn set(file: impl AsFd, kind: libc::c_int, part: Part) -> Result<(), Errno> {
    let length = match part {
        Part::Whole => 0,
        Part::First => PARTED_AT,
    };
    let (whence, pid) = (libc::SEEK_SET as libc::c_short, 0);
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: whence,
        l_start: 0,
        l_len: length,
        l_pid: pid,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&lock)).map(drop)
}

fn lock_part(file: &File, path: &Path, hold: Hold, part: Part) -> Result<(), Error> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match set(file, hold.kind(), part) {
            Ok(()) => return Ok(()),
            Err(Errno::EAGAIN | Errno::EACCES) if Instant::now() < deadline => {
                std::thread::sleep(LOOK_INTERVAL);
            }
            Err(Errno::EAGAIN | Errno::EACCES) => return Err(Error::InUse { path: path.to_owned() }),
            Err(errno) => {
                let error = io::Error::from(errno);
                tracing::warn!(
                    "{}: nothing keeps others from it, its file system has no locks: {error}",
                    path.display()
                );
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_goes_over_to_another_open_file_and_nobody_gets_it_between() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        std::fs::write(&path, [0; 512]).unwrap();
        let open = || File::options().read(true).write(true).open(&path).unwrap();
        // QEMU's of a guest that writes: what it does, and what it looks at.
        let byte = |at| {
            let l_type = libc::F_WRLCK as libc::c_short;
            let lock = libc::flock {
                l_type,
                l_whence: libc::SEEK_SET as libc::c_short,
                l_start: at,
                l_len: 1,
                l_pid: 0,
            };
            fcntl(open(), FcntlArg::F_OFD_SETLK(&lock))
        };
        let is_held_alone = || {
            assert_eq!(set(open(), libc::F_WRLCK, Part::Whole), Err(Errno::EAGAIN));
            assert_eq!(set(open(), libc::F_RDLCK, Part::Whole), Err(Errno::EAGAIN));
            assert!(byte(100).is_err() || byte(200).is_err());
        };
        let mut now = open();
        lock_disk(&now, &path, Hold::Alone).unwrap();
        for _ in 0..3 {
            let next = open();
            let (mut steps, before) = (0, vec![OwnedFd::from(now)]);
            let moved = take_over(&next, &path, Hold::Alone, before, || {
                is_held_alone();
                steps += 1;
            });
            moved.unwrap();
            assert_eq!(steps, 3);
            is_held_alone();
            now = next;
        }
        // One that somebody else has a descriptor of is not let go by this.
        let (kept, next) = (now.try_clone().unwrap(), open());
        let refused = take_over_disk(&next, &path, Hold::Alone, vec![now.into()]);
        assert!(matches!(refused, Err(Error::InUse { .. })), "{refused:?}");
        drop(next);
        is_held_alone();
        drop(kept);
        // Those who only read, and those who had no lock.
        let (first, second) = (open(), open());
        lock_disk(&first, &path, Hold::Together).unwrap();
        take_over_disk(&second, &path, Hold::Together, vec![first.into()]).unwrap();
        assert_eq!(set(open(), libc::F_WRLCK, Part::Whole), Err(Errno::EAGAIN));
        set(open(), libc::F_RDLCK, Part::Whole).unwrap();
        drop(second);
        let third = open();
        take_over_disk(&third, &path, Hold::Alone, vec![open().into()]).unwrap();
        is_held_alone();
        drop(third);
        set(open(), libc::F_WRLCK, Part::Whole).unwrap();
    }
}
