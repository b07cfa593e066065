//! An instance's root disk: made of its image in constant time, in the instance's directory.
//!
//! Where the filesystem shares blocks between files (FICLONE: XFS, Btrfs, bcachefs), it is a clone of the image,
//! `root.raw`; else a copy-on-write overlay over it, `root.overlay`. Which of the two it is says its name alone, never
//! its content, which is the guest's to choose.
//!
//! Must never know: images' ids, instances' ids.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::format::overlay::{Overlay, OverlayError};
use crate::format::raw::{file_size_bytes, write_cached};
use crate::format::{Disk, RawFile};

const RAW_NAME: &str = "root.raw";
const OVERLAY_NAME: &str = "root.overlay";
/// Under this name a disk is being made.
const PARTIAL_NAME: &str = "root.partial";
/// Under this name a copy of a disk begins; it loses it at once.
const FROZEN_NAME: &str = "root.frozen";
/// How much is copied at once.
const PIECE_BYTES: usize = 1 << 20;

/// Why there is no root disk.
#[derive(Debug, thiserror::Error)]
pub enum RootDiskError {
    /// The disk would be smaller than its image.
    #[error("a disk of {size_bytes} bytes cannot hold an image of {base_size_bytes} bytes")]
    TooSmall {
        /// The wanted size.
        size_bytes: u64,
        /// The image's size.
        base_size_bytes: u64,
    },
    /// The overlay cannot be made.
    #[error("make the overlay of the root disk")]
    Overlay(#[source] OverlayError),
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
}

impl RootDiskError {
    fn io<E: Into<io::Error>>(step: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        move |error| Self::Io { step, path: path.to_owned(), source: error.into() }
    }
}

/// A root disk on its filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootDisk {
    /// A raw file that shares its blocks with the image: needs no base any more.
    Reflink(PathBuf),
    /// An overlay: opened together with the image, which has to stay.
    Overlay(PathBuf),
}

impl RootDisk {
    /// The disk's own file.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Reflink(path) | Self::Overlay(path) => path,
        }
    }

    /// Opens the disk's own file for reading and writing.
    ///
    /// # Errors
    /// [`RootDiskError::Io`].
    pub fn open(&self) -> Result<File, RootDiskError> {
        let opened = File::options().read(true).write(true).open(self.path());
        opened.map_err(RootDiskError::io("open the root disk", self.path()))
    }

    /// The disk's own file as it is now, in one without a name: sharing its blocks where the filesystem can, which takes
    /// no time, else a copy of what was written. Nobody may write to it meanwhile.
    ///
    /// # Errors
    /// [`RootDiskError::Io`]; nothing of the copy is left.
    pub fn freeze(&self) -> Result<Frozen, RootDiskError> {
        let path = self.path();
        let from = File::open(path).map_err(RootDiskError::io("open the root disk", path))?;
        let unnamed = path.with_file_name(FROZEN_NAME);
        // Of a process that ended between the two lines below.
        remove(&unnamed)?;
        let to = create(&unnamed)?;
        remove(&unnamed)?;
        match rustix::fs::ioctl_ficlone(&to, &from) {
            Ok(()) => {}
            Err(error) if is_not_shared(error) => {
                copy_data(&from, &to).map_err(RootDiskError::io("copy the root disk", path))?;
            }
            Err(error) => return Err(RootDiskError::io("clone the root disk", path)(error)),
        }
        Ok(match self {
            Self::Reflink(_) => Frozen::Whole(to),
            Self::Overlay(_) => Frozen::Overlay(to),
        })
    }
}

/// A root disk as it was at one moment.
#[derive(Debug)]
pub enum Frozen {
    /// All of it.
    Whole(File),
    /// What was written over its image.
    Overlay(File),
}

impl Frozen {
    /// Whether it takes the image to read it.
    #[must_use]
    pub fn needs_base(&self) -> bool {
        matches!(self, Self::Overlay(_))
    }

    /// The disk, over `base` if it needs one.
    ///
    /// # Errors
    /// [`RootDiskError::Overlay`], also without the base that it needs.
    pub fn open(self, base: Option<File>) -> Result<Box<dyn Disk>, RootDiskError> {
        let failed = |step| move |source| RootDiskError::Overlay(OverlayError::Io { step, source });
        match self {
            Self::Whole(file) => Ok(Box::new(RawFile::whole(file, true).map_err(failed("size the copy"))?)),
            Self::Overlay(file) => {
                let base =
                    base.ok_or_else(|| failed("find the image below it")(ErrorKind::NotFound.into()))?;
                let file = RawFile::whole(file, true).map_err(failed("size the copy"))?;
                let base = RawFile::whole(base, true).map_err(failed("size the image"))?;
                let disk = Overlay::over(Box::new(file), Box::new(base)).map_err(RootDiskError::Overlay)?;
                Ok(Box::new(disk))
            }
        }
    }
}

/// Copies what of `from` is no hole.
fn copy_data(from: &File, to: &File) -> io::Result<()> {
    use rustix::fs::SeekFrom;
    let size_bytes = file_size_bytes(from)?;
    to.set_len(size_bytes)?;
    let mut piece = vec![0; PIECE_BYTES];
    let mut at = 0;
    while at < size_bytes {
        let (start, end) = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(start) => (start, rustix::fs::seek(from, SeekFrom::Hole(start))?),
            // Holes are all that is left.
            Err(Errno::NXIO) => break,
            // A filesystem that does not know where its holes are.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => (at, size_bytes),
            Err(error) => return Err(error.into()),
        };
        at = start;
        while at < end {
            let length = usize::try_from(end - at).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
            from.read_exact_at(&mut piece[..length], at)?;
            write_cached(to, &piece[..length], at)?;
            at += length as u64;
        }
    }
    Ok(())
}

/// Makes the root disk of `size_bytes` (a multiple of 512) in `directory` out of `base`, a regular file of raw bytes that
/// never changes. If the directory holds a root disk already it is that one, as it is: so a creation that a crash cut off
/// is simply done again.
///
/// # Errors
/// See [`RootDiskError`]; then there is no root disk.
pub fn create_root_disk(directory: &Path, base: &File, size_bytes: u64) -> Result<RootDisk, RootDiskError> {
    if let Some(disk) = find_root_disk(directory)? {
        return Ok(disk);
    }
    let base_size_bytes =
        file_size_bytes(base).map_err(RootDiskError::io("size the image for", directory))?;
    if size_bytes < base_size_bytes {
        return Err(RootDiskError::TooSmall { size_bytes, base_size_bytes });
    }
    let partial = directory.join(PARTIAL_NAME);
    remove(&partial)?;
    let made = make(&partial, base, base_size_bytes, size_bytes).and_then(|name| {
        let path = directory.join(name);
        std::fs::rename(&partial, &path).map_err(RootDiskError::io("name the root disk", &path))?;
        sync_directory(directory)?;
        Ok(path)
    });
    match made {
        Ok(path) if path.ends_with(RAW_NAME) => Ok(RootDisk::Reflink(path)),
        Ok(path) => Ok(RootDisk::Overlay(path)),
        Err(error) => {
            // The first failure is the one to tell of; what stays is removed by the next attempt.
            let _ = delete_root_disk(directory);
            Err(error)
        }
    }
}

/// The root disk in `directory`, if there is one.
///
/// # Errors
/// [`RootDiskError::Io`].
pub fn find_root_disk(directory: &Path) -> Result<Option<RootDisk>, RootDiskError> {
    for (name, kind) in
        [(RAW_NAME, RootDisk::Reflink as fn(PathBuf) -> RootDisk), (OVERLAY_NAME, RootDisk::Overlay)]
    {
        let path = directory.join(name);
        if path.try_exists().map_err(RootDiskError::io("look for", &path))? {
            return Ok(Some(kind(path)));
        }
    }
    Ok(None)
}

/// Deletes the root disk in `directory`, and half a one; no error if there is none, nor if there is no directory.
///
/// # Errors
/// [`RootDiskError::Io`].
pub fn delete_root_disk(directory: &Path) -> Result<(), RootDiskError> {
    for name in [RAW_NAME, OVERLAY_NAME, PARTIAL_NAME, FROZEN_NAME] {
        remove(&directory.join(name))?;
    }
    Ok(())
}

/// Makes the file `partial` and says what its name should be.
fn make(
    partial: &Path,
    base: &File,
    base_size_bytes: u64,
    size_bytes: u64,
) -> Result<&'static str, RootDiskError> {
    let file = create(partial)?;
    match rustix::fs::ioctl_ficlone(&file, base) {
        Ok(()) => {
            file.set_len(size_bytes).map_err(RootDiskError::io("size", partial))?;
            file.sync_all().map_err(RootDiskError::io("sync", partial))?;
            Ok(RAW_NAME)
        }
        Err(error) if is_not_shared(error) => {
            Overlay::create(&file, base_size_bytes, size_bytes).map_err(RootDiskError::Overlay)?;
            Ok(OVERLAY_NAME)
        }
        Err(error) => Err(RootDiskError::io("clone the image into", partial)(error)),
    }
}

fn create(path: &Path) -> Result<File, RootDiskError> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let created = File::options().read(true).write(true).create_new(true).mode(0o600).open(path);
    created.map_err(RootDiskError::io("create", path))
}

/// Whether a clone is not to be had: not this filesystem, not between these two, or not these files.
fn is_not_shared(error: Errno) -> bool {
    matches!(error, Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS | Errno::XDEV | Errno::INVAL | Errno::PERM)
}

fn remove(path: &Path) -> Result<(), RootDiskError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(RootDiskError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

fn sync_directory(directory: &Path) -> Result<(), RootDiskError> {
    let opened = File::open(directory).and_then(|directory| directory.sync_all());
    opened.map_err(RootDiskError::io("sync", directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(directory: &Path, size_bytes: usize) -> File {
        let path = directory.join("base");
        std::fs::write(&path, vec![7; size_bytes]).unwrap();
        File::open(path).unwrap()
    }

    fn disk(root: &RootDisk, base: &File) -> Box<dyn Disk> {
        match root {
            RootDisk::Reflink(_) => Box::new(RawFile::whole(root.open().unwrap(), false).unwrap()),
            RootDisk::Overlay(_) => {
                Box::new(Overlay::open(root.open().unwrap(), base.try_clone().unwrap()).unwrap())
            }
        }
    }

    #[test]
    fn root_disk_begins_as_its_image_and_keeps_its_own_changes() {
        let directory = tempfile::tempdir().unwrap();
        let base = base(directory.path(), 10_000);
        let root = create_root_disk(directory.path(), &base, 1 << 20).unwrap();
        let opened = disk(&root, &base);
        assert_eq!(opened.size_bytes(), 1 << 20);
        opened.write_at(&[9; 512], 4096).unwrap();
        opened.flush().unwrap();
        drop(opened);

        let again = create_root_disk(directory.path(), &base, 1 << 20).unwrap();
        assert_eq!(again, root);
        let mut content = vec![0; 1 << 20];
        disk(&again, &base).read_at(&mut content, 0).unwrap();
        assert!(content[..4096].iter().all(|byte| *byte == 7));
        assert!(content[4096..4608].iter().all(|byte| *byte == 9));
        assert!(content[4608..10_000].iter().all(|byte| *byte == 7));
        assert!(content[10_000..].iter().all(|byte| *byte == 0));
        let mut unchanged = [0; 512];
        base.read_exact_at(&mut unchanged, 4096).unwrap();
        assert_eq!(unchanged, [7; 512]);
    }

    #[test]
    fn frozen_disk_stays_what_it_was_and_takes_no_name() {
        let directory = tempfile::tempdir().unwrap();
        let base = base(directory.path(), 10_000);
        let root = create_root_disk(directory.path(), &base, 8 << 20).unwrap();
        let opened = disk(&root, &base);
        for (byte, offset) in [(9, 4096), (8, (8 << 20) - 512)] {
            opened.write_at(&[byte; 512], offset).unwrap();
        }
        opened.flush().unwrap();
        std::fs::write(directory.path().join(FROZEN_NAME), b"what a crash left").unwrap();
        let names = || std::fs::read_dir(directory.path()).unwrap().count();
        let frozen = root.freeze().unwrap();
        assert_eq!(names(), 2, "the base and the disk");
        opened.write_at(&[1; 8192], 0).unwrap();
        opened.flush().unwrap();
        let needs_base = matches!(root, RootDisk::Overlay(_));
        assert_eq!(frozen.needs_base(), needs_base);
        let frozen = frozen.open(needs_base.then(|| base.try_clone().unwrap())).unwrap();
        let mut content = vec![0; 8 << 20];
        frozen.read_at(&mut content, 0).unwrap();
        assert!(content[..4096].iter().all(|byte| *byte == 7));
        assert!(content[4096..4608].iter().all(|byte| *byte == 9));
        assert!(content[10_000..(8 << 20) - 512].iter().all(|byte| *byte == 0));
        assert!(content[(8 << 20) - 512..].iter().all(|byte| *byte == 8));
        assert!(frozen.write_at(&[0; 512], 0).is_err());
    }

    #[test]
    fn half_made_disk_of_a_crash_is_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        let base = base(directory.path(), 4096);
        std::fs::write(directory.path().join(PARTIAL_NAME), b"half").unwrap();
        assert_eq!(find_root_disk(directory.path()).unwrap(), None);
        let root = create_root_disk(directory.path(), &base, 8192).unwrap();
        assert_eq!(disk(&root, &base).size_bytes(), 8192);
        assert!(!directory.path().join(PARTIAL_NAME).exists());
    }

    #[test]
    fn disk_smaller_than_its_image_is_refused_and_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let base = base(directory.path(), 8192);
        let refused = create_root_disk(directory.path(), &base, 4096);
        assert!(matches!(refused, Err(RootDiskError::TooSmall { size_bytes: 4096, base_size_bytes: 8192 })));
        assert!(create_root_disk(&directory.path().join("absent"), &base, 8192).is_err());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "the base alone");
    }

    #[test]
    fn delete_is_idempotent() {
        let directory = tempfile::tempdir().unwrap();
        let base = base(directory.path(), 4096);
        create_root_disk(directory.path(), &base, 8192).unwrap();
        delete_root_disk(directory.path()).unwrap();
        delete_root_disk(directory.path()).unwrap();
        delete_root_disk(&directory.path().join("absent")).unwrap();
        assert_eq!(find_root_disk(directory.path()).unwrap(), None);
    }

    #[test]
    fn raw_disk_whose_guest_writes_an_overlay_header_stays_raw() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(RAW_NAME);
        Overlay::create(&File::create_new(&path).unwrap(), 0, 8192).unwrap();
        let found = find_root_disk(directory.path()).unwrap();
        assert_eq!(found, Some(RootDisk::Reflink(path)));
    }
}
