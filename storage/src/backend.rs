//! What keeps volumes and snapshots: one trait, which every backend implements and whose conformance tests every backend
//! passes.
//!
//! A disk is named by an id that is safe in a path. Every call may be repeated: what is done already is done, so a crash
//! is healed by doing the same again. Nothing half made has a disk's name.
//!
//! Must never know: tenants, who uses a disk, which of the disks are volumes and which snapshots.

#[cfg(test)]
pub(crate) mod conformance;

pub(crate) mod name;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

#[cfg(test)]
use crate::format::layers::LAYERS_MAX;
use crate::format::overlay::OverlayError;
use crate::format::{Disk, open_layers};

/// The unit of disks' sizes (VIRTIO 1.3 §5.2.4).
pub const SECTOR_BYTES: u64 = 512;

/// Why a backend did not do as asked; nothing has changed then, but for what the next call clears.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// No disk by that id.
    #[error("there is no disk {id}")]
    Missing {
        /// Which.
        id: String,
    },
    /// No backend by that name.
    #[error("this host has no backend {name} for volumes")]
    NoBackend {
        /// Which.
        name: String,
    },
    /// An id that cannot be one.
    #[error("{id} is no disk's id")]
    Id {
        /// What was given, cut.
        id: String,
    },
    /// The disk would be smaller than what it begins as.
    #[error("a disk of {size_bytes} bytes cannot hold {source_bytes} bytes")]
    TooSmall {
        /// The wanted size.
        size_bytes: u64,
        /// What it begins as has so many.
        source_bytes: u64,
    },
    /// A guest writes to the disk, and this backend needs it to stand still.
    #[error(
        "disk {id} is in use by a running server, and the file system below it does not share blocks between files"
    )]
    InUse {
        /// Which.
        id: String,
    },
    /// The layers of a disk do not fit together.
    #[error("open the layers of disk {id}")]
    Layers {
        /// Which.
        id: String,
        /// Why.
        #[source]
        source: OverlayError,
    },
    /// A program that does the work failed.
    #[error("{program} for {subject}: {said}")]
    Command {
        /// Which.
        program: &'static str,
        /// What it was about.
        subject: String,
        /// What it complained of.
        said: String,
    },
    /// The file system refused.
    #[error("{step} {}", path.display())]
    Io {
        /// What.
        step: &'static str,
        /// Of which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl BackendError {
    pub(crate) fn unsafe_id(id: &str) -> Self {
        Self::Id { id: id.chars().take(ID_BYTES_MAX).collect() }
    }

    pub(crate) fn missing(id: &str) -> Self {
        Self::Missing { id: id.to_owned() }
    }
}

/// An operation's failure with its subject.
pub(crate) fn io_error<E: Into<io::Error>>(
    step: &'static str,
    path: &Path,
) -> impl FnOnce(E) -> BackendError {
    move |error| BackendError::Io { step, path: path.to_owned(), source: error.into() }
}

/// Refuses a disk that would be smaller than what it begins as.
pub(crate) fn check_holds(size_bytes: u64, source_bytes: u64) -> Result<(), BackendError> {
    if size_bytes < source_bytes { Err(BackendError::TooSmall { size_bytes, source_bytes }) } else { Ok(()) }
}

/// The longest id: a UUID with room for other forms.
const ID_BYTES_MAX: usize = 64;

/// Whether an id can be a part of a path and an argument of a program.
pub(crate) fn id_is_safe(id: &str) -> bool {
    !id.is_empty()
        && id.len() <= ID_BYTES_MAX
        && !id.starts_with('-')
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// What a new disk begins as.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    /// Zeros.
    Nothing,
    /// What this writes to a disk of zeros; until all of that is there, there is no disk.
    Content(Fill<'a>),
    /// A file of raw bytes that never changes.
    Image(&'a File),
    /// Another disk as it is now.
    Disk {
        /// Its id.
        id: &'a str,
        /// A guest may be writing to it.
        in_use: bool,
    },
}

/// What a backend can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Its name in `volume_backend_name` and in `storage_protocol`.
    pub name: &'static str,
    /// A disk in use can be copied, as after a power loss.
    pub copies_in_use: bool,
    /// Disks take no more space than what was written.
    pub thin: bool,
}

/// How much space there is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// In all.
    pub total_bytes: u64,
    /// Free.
    pub free_bytes: u64,
}

/// A disk as open descriptors, for whoever serves it to a guest or reads it: layers, the lowest first.
pub struct Export {
    /// See [`crate::format::layers`].
    pub layers: Vec<File>,
    release: Release,
}

/// What a backend does once a reader of a disk is done.
struct Release(Option<Box<dyn FnOnce() + Send + Sync>>);

impl Drop for Release {
    fn drop(&mut self) {
        if let Some(release) = self.0.take() {
            release();
        }
    }
}

/// A disk with what is done after it. Fields are dropped in their order.
struct Held {
    disk: Box<dyn Disk>,
    _release: Release,
}

impl Export {
    /// One that leaves nothing to do.
    #[must_use]
    pub fn new(layers: Vec<File>) -> Self {
        Self { layers, release: Release(None) }
    }

    /// One after whose use `release` is called, unless it is somebody else's by then ([`Export::into_layers`]).
    #[must_use]
    pub fn with_release(layers: Vec<File>, release: Box<dyn FnOnce() + Send + Sync>) -> Self {
        Self { layers, release: Release(Some(release)) }
    }

    /// The descriptors, for another process.
    #[must_use]
    pub fn into_layers(mut self) -> Vec<File> {
        self.release.0 = None;
        self.layers
    }

    /// The disk.
    ///
    /// # Errors
    /// See [`open_layers`].
    pub fn open(self, read_only: bool) -> Result<Box<dyn Disk>, OverlayError> {
        let disk = open_layers(self.layers, read_only)?;
        if self.release.0.is_none() {
            return Ok(disk);
        }
        Ok(Box::new(Held { disk, _release: self.release }))
    }
}

impl Disk for Held {
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.disk.read_at(buffer, offset)
    }
    fn write_at(&self, buffer: &[u8], offset: u64) -> io::Result<()> {
        self.disk.write_at(buffer, offset)
    }
    fn flush(&self) -> io::Result<()> {
        self.disk.flush()
    }
    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.disk.discard(offset, length)
    }
    fn next_data(&self, offset: u64) -> io::Result<u64> {
        self.disk.next_data(offset)
    }
}

/// Writes all of a disk.
pub type Fill<'a> = &'a dyn Fn(&dyn Disk) -> io::Result<()>;

/// A place for disks.
pub trait Backend: Send + Sync {
    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// How much space there is.
    fn capacity(&self) -> Result<Capacity, BackendError>;

    /// Makes a disk that can be written. One by that id that is there already stays as it is.
    fn create(&self, id: &str, size_bytes: u64, source: Source<'_>) -> Result<(), BackendError>;

    /// Makes a disk that is `of` as it is now and never changes.
    fn snapshot(&self, id: &str, of: &str, in_use: bool) -> Result<(), BackendError>;

    /// Makes a disk, which nobody has open, what a snapshot is, at the disk's own size. `mark` names this reverting, so
    /// that repeating it does not undo what was written after it.
    fn revert(&self, id: &str, snapshot: &str, mark: u64) -> Result<(), BackendError>;

    /// Makes a disk, which nobody has open, so large and what `fill` writes to one of zeros, once all of that is there;
    /// until then, and if `fill` fails, it is what it was.
    fn rewrite(&self, id: &str, size_bytes: u64, fill: Fill<'_>) -> Result<(), BackendError>;

    /// Makes a disk larger; one in use shows it from its next export on.
    fn extend(&self, id: &str, size_bytes: u64) -> Result<(), BackendError>;

    /// Deletes a disk; no error if there is none. What was made of it stays.
    fn delete(&self, id: &str) -> Result<(), BackendError>;

    /// The size of a disk; none if there is no such disk.
    fn size_bytes(&self, id: &str) -> Result<Option<u64>, BackendError>;

    /// Opens a disk for a VMM or a reader.
    fn export(&self, id: &str, read_only: bool) -> Result<Export, BackendError>;

    /// The ids of all disks, in order.
    fn list(&self) -> Result<Vec<String>, BackendError>;
}

/// Copies `from`, whose zeros stay holes and whose holes are not read, to the beginning of `to`.
///
/// # Errors
/// What either says.
pub fn copy_sparse(from: &dyn Disk, to: &dyn Disk) -> io::Result<()> {
    /// Large enough to keep a disk busy, small enough to leave a hole where there was one.
    const PIECE_BYTES: usize = 256 << 10;
    let mut piece = vec![0; PIECE_BYTES];
    let zeros = vec![0; PIECE_BYTES];
    let size_bytes = from.size_bytes();
    let mut at = from.next_data(0)?;
    while at < size_bytes {
        // Whole pieces, wherever in one the data begins.
        at -= at % PIECE_BYTES as u64;
        let length = usize::try_from(size_bytes - at).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
        from.read_at(&mut piece[..length], at)?;
        if piece[..length] != zeros[..length] {
            to.write_at(&piece[..length], at)?;
        }
        at = from.next_data(at + length as u64)?;
    }
    to.flush()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::format::RawFile;

    /// A disk that counts what is read of it.
    struct Counting(RawFile, AtomicU64);

    impl Disk for Counting {
        fn size_bytes(&self) -> u64 {
            self.0.size_bytes()
        }
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
            self.1.fetch_add(buffer.len() as u64, Ordering::Relaxed);
            self.0.read_at(buffer, offset)
        }
        fn write_at(&self, buffer: &[u8], offset: u64) -> io::Result<()> {
            self.0.write_at(buffer, offset)
        }
        fn flush(&self) -> io::Result<()> {
            self.0.flush()
        }
        fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
            self.0.discard(offset, length)
        }
        fn next_data(&self, offset: u64) -> io::Result<u64> {
            self.0.next_data(offset)
        }
    }

    #[test]
    fn copy_reads_no_holes_and_brings_all_data() {
        const SIZE_BYTES: u64 = (1 << 34) + 512;
        let disk = || RawFile::new(tempfile::tempfile().unwrap(), SIZE_BYTES);
        let places = [0, 100_000, (1 << 33) - 100, SIZE_BYTES - 512];
        let (from, to) = (Counting(disk(), AtomicU64::new(0)), disk());
        for (at, byte) in places.into_iter().zip(1..) {
            from.write_at(&[byte; 512], at).unwrap();
        }
        copy_sparse(&from, &to).unwrap();
        for (at, byte) in places.into_iter().zip(1..) {
            let mut part = [0; 512];
            to.read_at(&mut part, at).unwrap();
            assert_eq!(part, [byte; 512]);
        }
        let read = from.1.load(Ordering::Relaxed);
        assert!(read <= 5 * (256 << 10), "{read} of {SIZE_BYTES} bytes were read");
    }
}
