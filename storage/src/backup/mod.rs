//! Backups of disks: whole ones, and ones that keep only what differs from another. Where they lie is a
//! [`BackupStore`]: a directory, or a bucket of an S3-compatible service.
//!
//! A backup has three parts:
//!
//! ```text
//! data    the chunks that this backup keeps, one after the other
//! index   32 bytes: magic `WISPBAK\x01`, the disk's size, the chunks' number, the bytes of `data`, each of 8 bytes;
//!         then 48 bytes for each chunk: kind (0 zeros, 1 here, 2 the parent's), place in `data`, each of 8 bytes, and
//!         the SHA-256 of the chunk
//! parent  the id of the backup that this one keeps the differences to, if there is one
//! ```
//!
//! All integers are little-endian. What is read back is compared with its digest, so a damaged backup is an error and no
//! silent loss.
//!
//! Must never know: volumes, who asks.

mod bucket;
#[cfg(test)]
mod conformance;
mod directory;
mod objects;

use std::io::{self, Read};
use std::path::PathBuf;

use ring::digest::{SHA256, digest};

pub use self::bucket::BucketBackups;
pub use self::directory::DirectoryBackups;
pub use self::objects::{LineObjects, Objects, serve_objects};
use crate::format::Disk;

/// The unit of comparing and of keeping.
pub const CHUNK_BYTES: usize = 1 << 20;
/// The most backups that lie over each other: reading one opens them all.
pub const DEPTH_MAX: usize = 64;

const MAGIC: [u8; 8] = *b"WISPBAK\x01";
const HEADER_BYTES: usize = 32;
const ENTRY_BYTES: usize = 48;
/// The largest disk's number of chunks, as a bound on what an index makes us keep.
const CHUNKS_MAX: u64 = crate::format::overlay::SIZE_BYTES_MAX / CHUNK_BYTES as u64;
/// The longest index.
const INDEX_BYTES_MAX: u64 = HEADER_BYTES as u64 + CHUNKS_MAX * ENTRY_BYTES as u64;
/// The longest id of a parent.
const ID_BYTES_MAX: u64 = 64;

/// Why a backup cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// An operation of the file system or of the service failed.
    #[error("{step} {}", path.display())]
    Io {
        /// What.
        step: &'static str,
        /// Of which file or object.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The disk could not be read or written.
    #[error("{0} the disk")]
    Disk(&'static str, #[source] io::Error),
    /// There is no such backup.
    #[error("there is no backup {0}")]
    Missing(String),
    /// The parts are not ones of a backup, or were damaged.
    #[error("the backup {id} is damaged: {reason}")]
    Damaged {
        /// Which.
        id: String,
        /// How.
        reason: &'static str,
    },
    /// The disk is smaller than what was backed up.
    #[error("a disk of {size_bytes} bytes cannot hold a backup of {backup_bytes} bytes")]
    TooSmall {
        /// The disk's size.
        size_bytes: u64,
        /// The backup's.
        backup_bytes: u64,
    },
}

fn failed<E: Into<io::Error>>(step: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(E) -> BackupError {
    let path = path.into();
    move |error| BackupError::Io { step, path, source: error.into() }
}

type Result<T> = std::result::Result<T, BackupError>;

/// Where backups lie.
pub trait BackupStore: Send + Sync + std::fmt::Debug {
    /// Begins one. What is not finished is nobody's backup, and gone with the next try under its id.
    fn begin(&self, id: &str) -> Result<Box<dyn NewBackup>>;

    /// The parts of one that was finished; none if there is none.
    fn open(&self, id: &str) -> Result<Option<Parts>>;

    /// Deletes one, or what is left of one; no error if there is none.
    fn delete(&self, id: &str) -> Result<()>;
}

/// Several stores: new backups go to the first, and what is there is found wherever it lies, also below one another.
impl BackupStore for Vec<Box<dyn BackupStore>> {
    fn begin(&self, id: &str) -> Result<Box<dyn NewBackup>> {
        let first = self.first().ok_or_else(|| BackupError::Missing(id.to_owned()))?;
        first.begin(id)
    }

    fn open(&self, id: &str) -> Result<Option<Parts>> {
        for store in self {
            if let Some(parts) = store.open(id)? {
                return Ok(Some(parts));
            }
        }
        Ok(None)
    }

    fn delete(&self, id: &str) -> Result<()> {
        self.iter().try_for_each(|store| store.delete(id))
    }
}

/// A backup on its way to a store.
pub trait NewBackup {
    /// Appends a chunk to the data: all but the last one are of [`CHUNK_BYTES`].
    fn append(&mut self, chunk: &[u8]) -> Result<()>;

    /// Makes it durable, and then a backup.
    fn finish(self: Box<Self>, index: &[u8], parent: Option<&str>) -> Result<()>;
}

/// What a backup consists of.
pub struct Parts {
    /// The index, from its beginning.
    pub index: Box<dyn Read>,
    /// The data.
    pub data: Box<dyn Data>,
    /// The id of the backup below.
    pub parent: Option<String>,
}

/// The data of a backup.
pub trait Data {
    /// Reads a chunk, or less of its beginning, from its place.
    fn read(&mut self, chunk: &mut [u8], place: u64) -> Result<()>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    kind: u64,
    place: u64,
    digest: [u8; 32],
}

/// One backup, opened.
struct Backup {
    id: String,
    size_bytes: u64,
    data_bytes: u64,
    entries: Vec<Entry>,
    data: Box<dyn Data>,
    parent: Option<String>,
}

impl Backup {
    fn open(store: &dyn BackupStore, id: &str) -> Result<Option<Self>> {
        let Some(Parts { mut index, data, parent }) = store.open(id)? else { return Ok(None) };
        let mut header = [0; HEADER_BYTES];
        index.read_exact(&mut header).map_err(failed("read the index of", id))?;
        let damaged = |reason| BackupError::Damaged { id: id.to_owned(), reason };
        let [size_bytes, chunks, data_bytes] = [8, 16, 24].map(|at| u64_at(&header, at));
        if header[..8] != MAGIC {
            return Err(damaged("it does not begin with the magic"));
        }
        if chunks > CHUNKS_MAX || chunks != size_bytes.div_ceil(CHUNK_BYTES as u64) {
            return Err(damaged("its size and its chunks do not agree"));
        }
        let mut entries = Vec::new();
        let mut entry = [0; ENTRY_BYTES];
        for _ in 0..chunks {
            index.read_exact(&mut entry).map_err(failed("read the index of", id))?;
            let mut digest = [0; 32];
            digest.copy_from_slice(&entry[16..]);
            entries.push(Entry { kind: u64_at(&entry, 0), place: u64_at(&entry, 8), digest });
        }
        Ok(Some(Self { id: id.to_owned(), size_bytes, data_bytes, entries, data, parent }))
    }

    fn open_there(store: &dyn BackupStore, id: &str) -> Result<Self> {
        Self::open(store, id)?.ok_or_else(|| BackupError::Missing(id.to_owned()))
    }
}

/// Backs a disk up; with `parent` only what differs from that backup. One that is there already stays as it is. Returns how
/// many bytes it takes.
///
/// # Errors
/// See [`BackupError`]; nothing is a backup then, and the next call clears what is left.
pub fn create(store: &dyn BackupStore, id: &str, from: &dyn Disk, parent: Option<&str>) -> Result<u64> {
    if let Some(there) = Backup::open(store, id)? {
        return Ok(there.data_bytes);
    }
    let below = parent.map(|parent| Backup::open_there(store, parent)).transpose()?;
    let mut new = store.begin(id)?;
    let chunks = from.size_bytes().div_ceil(CHUNK_BYTES as u64);
    let mut index = vec![0; HEADER_BYTES];
    let mut chunk = vec![0; CHUNK_BYTES];
    let zeros = vec![0; CHUNK_BYTES];
    let mut data_bytes = 0;
    let mut reader = Reader::new(from);
    for number in 0..chunks {
        let at = number * CHUNK_BYTES as u64;
        let chunk = &mut chunk[..length_at(from.size_bytes(), at)];
        let (mut kind, mut place, mut hash) = (0_u64, 0, [0; 32]);
        if reader.read(chunk, at)? && *chunk != zeros[..chunk.len()] {
            hash = sha256(chunk);
            let before = below.as_ref().and_then(|below| below.entries.get(usize::try_from(number).ok()?));
            if before.is_some_and(|before| before.kind != 0 && before.digest == hash) {
                kind = 2;
            } else {
                new.append(chunk)?;
                (kind, place) = (1, data_bytes);
                data_bytes += chunk.len() as u64;
            }
        }
        index.extend(kind.to_le_bytes());
        index.extend(place.to_le_bytes());
        index.extend(hash);
    }
    index[..8].copy_from_slice(&MAGIC);
    for (at, number) in [(8, from.size_bytes()), (16, chunks), (24, data_bytes)] {
        index[at..at + 8].copy_from_slice(&number.to_le_bytes());
    }
    new.finish(&index, parent)?;
    Ok(data_bytes)
}

/// Writes what a backup keeps to a disk that is at least as large.
///
/// # Errors
/// See [`BackupError`]; the disk is neither what it was nor what it should be then.
pub fn restore(store: &dyn BackupStore, id: &str, to: &dyn Disk) -> Result<()> {
    let mut chain = vec![Backup::open_there(store, id)?];
    while let Some(parent) = chain[chain.len() - 1].parent.clone() {
        if chain.len() >= DEPTH_MAX {
            return Err(BackupError::Damaged { id: id.to_owned(), reason: "too many lie over each other" });
        }
        chain.push(Backup::open_there(store, &parent)?);
    }
    let (size_bytes, backup_bytes) = (to.size_bytes(), chain[0].size_bytes);
    if size_bytes < backup_bytes {
        return Err(BackupError::TooSmall { size_bytes, backup_bytes });
    }
    let zeros = vec![0; CHUNK_BYTES];
    let (mut chunk, mut before) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    let mut reader = Reader::new(to);
    for number in 0..chain[0].entries.len() {
        let at = number as u64 * CHUNK_BYTES as u64;
        let length = length_at(backup_bytes, at);
        read(&mut chain, number, &mut chunk[..length], &zeros)?;
        let before = &mut before[..length];
        let before = if reader.read(before, at)? { before } else { &zeros[..length] };
        // What is so already is left alone: a hole stays one.
        if *before != chunk[..length] {
            to.write_at(&chunk[..length], at).map_err(|error| BackupError::Disk("write", error))?;
        }
    }
    to.flush().map_err(|error| BackupError::Disk("flush", error))
}

/// Reads a disk from its beginning to its end, and not its holes.
struct Reader<'d> {
    disk: &'d dyn Disk,
    /// From where data was last looked for up to here there is none.
    data: u64,
}

impl<'d> Reader<'d> {
    fn new(disk: &'d dyn Disk) -> Self {
        Self { disk, data: 0 }
    }

    /// Fills `chunk` from `at`; false if all of it is a hole, and then it stays as it was.
    fn read(&mut self, chunk: &mut [u8], at: u64) -> Result<bool> {
        let failed = |error| BackupError::Disk("read", error);
        if self.data <= at {
            self.data = self.disk.next_data(at).map_err(failed)?;
        }
        let is_data = self.data < at + chunk.len() as u64;
        if is_data {
            self.disk.read_at(chunk, at).map_err(failed)?;
        }
        Ok(is_data)
    }
}

/// One chunk, from whichever backup of the chain keeps it.
fn read(chain: &mut [Backup], number: usize, chunk: &mut [u8], zeros: &[u8]) -> Result<()> {
    for backup in &mut *chain {
        let damaged = |reason| BackupError::Damaged { id: backup.id.clone(), reason };
        let entry =
            *backup.entries.get(number).ok_or_else(|| damaged("it is shorter than what lies over it"))?;
        match entry.kind {
            0 => {
                chunk.copy_from_slice(&zeros[..chunk.len()]);
                return Ok(());
            }
            1 => {
                backup.data.read(chunk, entry.place)?;
                if sha256(chunk) != entry.digest {
                    return Err(damaged("a chunk is not what was written"));
                }
                return Ok(());
            }
            2 => {}
            _ => return Err(damaged("a chunk is of an unknown kind")),
        }
    }
    Err(BackupError::Damaged { id: chain[0].id.clone(), reason: "a chunk is nowhere" })
}

fn length_at(size_bytes: u64, at: u64) -> usize {
    usize::try_from(size_bytes - at).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES)
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}
