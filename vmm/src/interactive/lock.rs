//! Locks of disks that are opened by name, so that no two guests write to one.
//!
//! A lock is its open file's, whoever has descriptors of that: it goes with them to a confined process or to a successor, and is
//! let go when the last of them is closed. It is one of the whole file, which QEMU's locks of single bytes of it exclude and are
//! excluded by (qemu(1), `file.locking`). A file system without locks has none.

use std::fs::File;
use std::io;
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

/// Locks an open disk, or what one is made of. Asked again of the same open file, the lock becomes the one that is asked for.
///
/// # Errors
/// [`Error::InUse`]: others hold it, and one of them for itself alone, or this one asks for that.
pub fn lock_disk(file: &File, path: &Path, hold: Hold) -> Result<(), Error> {
    let kind = match hold {
        Hold::Alone => libc::F_WRLCK,
        Hold::Together => libc::F_RDLCK,
    };
    // From the start to whatever the end is.
    let (whence, pid) = (libc::SEEK_SET as libc::c_short, 0);
    let lock =
        libc::flock { l_type: kind as libc::c_short, l_whence: whence, l_start: 0, l_len: 0, l_pid: pid };
    let deadline = Instant::now() + PATIENCE;
    loop {
        match fcntl(file, FcntlArg::F_OFD_SETLK(&lock)) {
            Ok(_) => return Ok(()),
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
