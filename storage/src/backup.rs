//! Backups of disks in a directory: whole ones, and ones that keep only what differs from another.
//!
//! ```text
//! ROOT/ID/data    the chunks that this backup keeps, one after the other
//! ROOT/ID/index   32 bytes: magic `WISPBAK\x01`, the disk's size, the chunks' number, the bytes of `data`, each of 8 bytes;
//!                 then 48 bytes for each chunk: kind (0 zeros, 1 here, 2 the parent's), place in `data`, each of 8 bytes, and
//!                 the SHA-256 of the chunk
//! ROOT/ID/parent  the id of the backup that this one keeps the differences to, if there is one
//! ROOT/.ID.new    a backup being made
//! ```
//!
//! All integers are little-endian. What is read back is compared with its digest, so a damaged backup is an error and no
//! silent loss.
//!
//! Must never know: volumes, who asks.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use ring::digest::{SHA256, digest};

use crate::format::Disk;

/// The unit of comparing and of keeping.
pub const CHUNK_BYTES: usize = 1 << 20;
/// The most backups that lie over each other: reading one opens them all.
pub const DEPTH_MAX: usize = 64;

const MAGIC: [u8; 8] = *b"WISPBAK\x01";
const ENTRY_BYTES: usize = 48;

/// Why a backup cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// An operation of the filesystem failed.
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
    /// The disk could not be read or written.
    #[error("{0} the disk")]
    Disk(&'static str, #[source] io::Error),
    /// The files are not ones of a backup, or were damaged.
    #[error("the backup {} is damaged: {reason}", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
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

fn failed<E: Into<io::Error>>(step: &'static str, path: &Path) -> impl FnOnce(E) -> BackupError {
    move |error| BackupError::Io { step, path: path.to_owned(), source: error.into() }
}

type Result<T> = std::result::Result<T, BackupError>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    kind: u64,
    place: u64,
    digest: [u8; 32],
}

/// One backup's files.
struct Backup {
    path: PathBuf,
    size_bytes: u64,
    data_bytes: u64,
    entries: Vec<Entry>,
    data: File,
    parent: Option<String>,
}

/// The largest disk's number of chunks, as a bound on what an index makes us keep.
const CHUNKS_MAX: u64 = crate::format::overlay::SIZE_BYTES_MAX / CHUNK_BYTES as u64;

impl Backup {
    fn open(root: &Path, id: &str) -> Result<Self> {
        let path = root.join(id);
        let index = path.join("index");
        let file = File::open(&index).map_err(failed("open", &index))?;
        let mut reader = BufReader::new(file);
        let mut header = [0; 32];
        reader.read_exact(&mut header).map_err(failed("read", &index))?;
        let damaged = |reason| BackupError::Damaged { path: path.clone(), reason };
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
            reader.read_exact(&mut entry).map_err(failed("read", &index))?;
            let mut digest = [0; 32];
            digest.copy_from_slice(&entry[16..]);
            entries.push(Entry { kind: u64_at(&entry, 0), place: u64_at(&entry, 8), digest });
        }
        let (data, parent) = (path.join("data"), path.join("parent"));
        let data = File::open(&data).map_err(failed("open", &data))?;
        let parent = match fs::read_to_string(&parent) {
            Ok(id) => Some(id),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(failed("read", &parent)(error)),
        };
        Ok(Self { path, size_bytes, data_bytes, entries, data, parent })
    }
}

/// Backs a disk up; with `parent` only what differs from that backup. One that is there already stays as it is. Returns how
/// many bytes it takes.
///
/// # Errors
/// See [`BackupError`]; nothing is left then, but for what the next call clears.
pub fn create(root: &Path, id: &str, from: &dyn Disk, parent: Option<&str>) -> Result<u64> {
    let path = root.join(id);
    if path.join("index").try_exists().map_err(failed("look for", &path))? {
        return Ok(Backup::open(root, id)?.data_bytes);
    }
    let partial = root.join(format!(".{id}.new"));
    remove_tree(&partial)?;
    fs::create_dir_all(&partial).map_err(failed("make", &partial))?;
    let written = write(&partial, from, parent.map(|parent| Backup::open(root, parent)).transpose()?, parent);
    let bytes = match written {
        Ok(bytes) => bytes,
        Err(error) => {
            // The first failure is the one to tell of.
            let _ = remove_tree(&partial);
            return Err(error);
        }
    };
    fs::rename(&partial, &path).map_err(failed("name", &path))?;
    sync(root)?;
    Ok(bytes)
}

fn write(partial: &Path, from: &dyn Disk, parent: Option<Backup>, parent_id: Option<&str>) -> Result<u64> {
    let (data, index) = (partial.join("data"), partial.join("index"));
    let mut data_file = File::create(&data).map_err(failed("create", &data))?;
    let chunks = from.size_bytes().div_ceil(CHUNK_BYTES as u64);
    let mut entries = Vec::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    let zeros = vec![0; CHUNK_BYTES];
    let mut place = 0;
    for number in 0..chunks {
        let at = number * CHUNK_BYTES as u64;
        let length = length_at(from.size_bytes(), at);
        from.read_at(&mut chunk[..length], at).map_err(|error| BackupError::Disk("read", error))?;
        if chunk[..length] == zeros[..length] {
            entries.push(Entry { kind: 0, place: 0, digest: [0; 32] });
            continue;
        }
        let hash = sha256(&chunk[..length]);
        let before = parent.as_ref().and_then(|parent| parent.entries.get(usize::try_from(number).ok()?));
        if before.is_some_and(|before| before.kind != 0 && before.digest == hash) {
            entries.push(Entry { kind: 2, place: 0, digest: hash });
            continue;
        }
        data_file.write_all(&chunk[..length]).map_err(failed("write", &data))?;
        entries.push(Entry { kind: 1, place, digest: hash });
        place += length as u64;
    }
    data_file.sync_all().map_err(failed("sync", &data))?;
    if let Some(id) = parent_id {
        let path = partial.join("parent");
        fs::write(&path, id).map_err(failed("write", &path))?;
    }
    let file = File::create(&index).map_err(failed("create", &index))?;
    let mut writer = BufWriter::new(file);
    let mut put = |bytes: &[u8]| writer.write_all(bytes).map_err(failed("write", &index));
    put(&MAGIC)?;
    for number in [from.size_bytes(), chunks, place] {
        put(&number.to_le_bytes())?;
    }
    for entry in entries {
        put(&entry.kind.to_le_bytes())?;
        put(&entry.place.to_le_bytes())?;
        put(&entry.digest)?;
    }
    let file = writer.into_inner().map_err(|error| failed("write", &index)(error.into_error()))?;
    file.sync_all().map_err(failed("sync", &index))?;
    sync(partial)?;
    Ok(place)
}

/// Writes what a backup keeps to a disk that is at least as large.
///
/// # Errors
/// See [`BackupError`]; the disk is neither what it was nor what it should be then.
pub fn restore(root: &Path, id: &str, to: &dyn Disk) -> Result<()> {
    let mut chain = vec![Backup::open(root, id)?];
    while let Some(parent) = chain[chain.len() - 1].parent.clone() {
        if chain.len() >= DEPTH_MAX {
            return Err(BackupError::Damaged { path: root.join(id), reason: "too many lie over each other" });
        }
        chain.push(Backup::open(root, &parent)?);
    }
    let (size_bytes, backup_bytes) = (to.size_bytes(), chain[0].size_bytes);
    if size_bytes < backup_bytes {
        return Err(BackupError::TooSmall { size_bytes, backup_bytes });
    }
    let zeros = vec![0; CHUNK_BYTES];
    let (mut chunk, mut before) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    for number in 0..chain[0].entries.len() {
        let at = number as u64 * CHUNK_BYTES as u64;
        let length = length_at(backup_bytes, at);
        read(&chain, number, &mut chunk[..length], &zeros)?;
        to.read_at(&mut before[..length], at).map_err(|error| BackupError::Disk("read", error))?;
        // What is so already is left alone: a hole stays one.
        if before[..length] != chunk[..length] {
            to.write_at(&chunk[..length], at).map_err(|error| BackupError::Disk("write", error))?;
        }
    }
    to.flush().map_err(|error| BackupError::Disk("flush", error))
}

/// One chunk, from whichever backup of the chain keeps it.
fn read(chain: &[Backup], number: usize, chunk: &mut [u8], zeros: &[u8]) -> Result<()> {
    for backup in chain {
        let damaged = |reason| BackupError::Damaged { path: backup.path.clone(), reason };
        let entry =
            backup.entries.get(number).ok_or_else(|| damaged("it is shorter than what lies over it"))?;
        match entry.kind {
            0 => {
                chunk.copy_from_slice(&zeros[..chunk.len()]);
                return Ok(());
            }
            1 => {
                let data = backup.path.join("data");
                backup.data.read_exact_at(chunk, entry.place).map_err(failed("read", &data))?;
                if sha256(chunk) != entry.digest {
                    return Err(damaged("a chunk is not what was written"));
                }
                return Ok(());
            }
            2 => {}
            _ => return Err(damaged("a chunk is of an unknown kind")),
        }
    }
    Err(BackupError::Damaged { path: chain[0].path.clone(), reason: "a chunk is nowhere" })
}

/// Deletes a backup; no error if there is none.
///
/// # Errors
/// [`BackupError::Io`].
pub fn delete(root: &Path, id: &str) -> Result<()> {
    let (path, gone) = (root.join(id), root.join(format!(".{id}.gone")));
    remove_tree(&gone)?;
    match fs::rename(&path, &gone) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        renamed => renamed.map_err(failed("remove", &path))?,
    }
    sync(root)?;
    remove_tree(&gone)
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

fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

fn sync(directory: &Path) -> Result<()> {
    let opened = File::open(directory).and_then(|directory| directory.sync_all());
    opened.map_err(failed("sync", directory))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::RawFile;

    const SIZE_BYTES: u64 = 3 * CHUNK_BYTES as u64 + 512;

    fn disk() -> RawFile {
        RawFile::new(tempfile::tempfile().unwrap(), SIZE_BYTES)
    }

    fn content(disk: &dyn Disk) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(SIZE_BYTES).unwrap()];
        disk.read_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn whole_and_differing_backups_give_back_what_was_there() {
        let root = tempfile::tempdir().unwrap();
        let from = disk();
        from.write_at(&[1; 512], 0).unwrap();
        from.write_at(&[2; 512], SIZE_BYTES - 512).unwrap();
        let first = content(&from);
        assert_eq!(create(root.path(), "one", &from, None).unwrap(), CHUNK_BYTES as u64 + 512);
        from.write_at(&[3; 512], CHUNK_BYTES as u64).unwrap();
        from.write_at(&[0; 512], SIZE_BYTES - 512).unwrap();
        let second = content(&from);
        assert_eq!(create(root.path(), "two", &from, Some("one")).unwrap(), CHUNK_BYTES as u64);
        assert_eq!(create(root.path(), "two", &from, Some("one")).unwrap(), CHUNK_BYTES as u64, "again");
        let to = disk();
        restore(root.path(), "two", &to).unwrap();
        assert_eq!(content(&to), second);
        restore(root.path(), "one", &to).unwrap();
        assert_eq!(content(&to), first);
        delete(root.path(), "two").unwrap();
        delete(root.path(), "two").unwrap();
        restore(root.path(), "one", &to).unwrap();
        delete(root.path(), "one").unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn damage_is_told_and_smaller_disks_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let from = disk();
        from.write_at(&[1; 512], 0).unwrap();
        create(root.path(), "one", &from, None).unwrap();
        let small = RawFile::new(tempfile::tempfile().unwrap(), 512);
        assert!(matches!(restore(root.path(), "one", &small), Err(BackupError::TooSmall { .. })));
        let data = File::options().write(true).open(root.path().join("one/data")).unwrap();
        data.write_all_at(&[9], 100).unwrap();
        let damaged = restore(root.path(), "one", &disk());
        assert!(matches!(damaged, Err(BackupError::Damaged { .. })), "{damaged:?}");
        fs::write(root.path().join("one/index"), "nonsense").unwrap();
        assert!(restore(root.path(), "one", &disk()).is_err());
        assert!(restore(root.path(), "nobody", &disk()).is_err());
    }
}
