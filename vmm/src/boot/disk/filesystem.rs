//! What all filesystems have in common here: names, links, files as images; and telling which one it is.
//!
//! Must never know: boot loaders.

mod btrfs;
mod ext4;
mod fat;
mod signature;
mod xfs;

use std::cell::RefCell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use super::source::{Budget, Source};
use crate::boot::image::Image;

pub(super) use self::signature::Signature;

/// The longest path in bytes: Linux's `PATH_MAX`.
const PATH_BYTES_MAX: usize = 4096;
/// The most symbolic links on one path: as Linux follows.
const LINKS_MAX: u32 = 40;
/// What one listing of a directory may read: a /boot with thousands of files.
const LISTING_BYTES_MAX: u64 = 8 << 20;
/// The most names of one directory.
const NAMES_MAX: usize = 10_000;
/// How much of a file is kept: what is copied into guest memory is read in pieces of this size.
const WINDOW_BYTES: usize = 1 << 20;

/// Why a name leads to nothing, or a filesystem cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such name.
    #[error("there is no such file")]
    NotFound,
    /// A component of a path is no directory.
    #[error("a part of the path is no directory")]
    NotADirectory,
    /// A regular file is needed.
    #[error("it is no regular file")]
    NotAFile,
    /// More than Linux follows.
    #[error("its path has too many symbolic links")]
    Links,
    /// Longer than Linux allows.
    #[error("its path is too long")]
    Path,
    /// Larger than a file of its kind.
    #[error("it has {size_bytes} bytes, at most {max_bytes} are read")]
    TooLarge {
        /// Its size.
        size_bytes: u64,
        /// The bound.
        max_bytes: u64,
    },
    /// A feature that the reader lacks, a structure that is wrong, a disk that cannot be read.
    #[error("the filesystem cannot be read")]
    Reader(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// Whether there is no such thing, as opposed to none that can be read.
    pub(super) fn is_absence(&self) -> bool {
        matches!(self, Self::NotFound | Self::NotADirectory | Self::NotAFile)
    }

    fn reader(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Reader(source.into())
    }
}

/// What a name is, itself, without following it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    File { size_bytes: u64 },
    Directory,
    Link,
    Other,
}

/// A filesystem. Paths are absolute, without links, `.` and `..`; bytes of names that are not UTF-8 are replaced.
trait Filesystem {
    /// As GRUB's `search --fs-uuid` and `/dev/disk/by-uuid` name it.
    fn uuid(&self) -> String;
    fn label(&self) -> String;
    fn find(&mut self, path: &str) -> Result<Found, Error>;
    fn read_link(&mut self, path: &str) -> Result<String, Error>;
    fn list(&mut self, path: &str) -> Result<Vec<String>, Error>;
    fn open(&mut self, path: &str) -> Result<Box<dyn Contents>, Error>;
}

/// An open file's bytes.
trait Contents {
    /// Fills `buffer` from `offset`, which both lie within the file.
    fn read(&mut self, buffer: &mut [u8], offset: u64) -> Result<(), Error>;
}

/// A filesystem that was recognised and opened.
pub(super) struct Volume {
    /// The kind, as people call it.
    pub(super) kind: &'static str,
    filesystem: RefCell<Box<dyn Filesystem>>,
    budget: Rc<Budget>,
}

impl Volume {
    /// Opens what `source` holds.
    ///
    /// # Errors
    /// What else it holds; or the filesystem's error.
    pub(super) fn open(source: &Source) -> Result<Self, OpenError> {
        let signature =
            signature::recognise(source).map_err(|error| OpenError::Broken("a disk", error.into()))?;
        let Signature::Filesystem(kind) = signature else { return Err(OpenError::Holds(signature)) };
        // Where others have their magic number, a FAT has whatever lies there.
        Self::open_as(kind, source).or_else(|error| {
            Self::open_as(signature::FAT, source).map_err(|_| OpenError::Broken(kind, error))
        })
    }

    fn open_as(kind: &'static str, source: &Source) -> Result<Self, Error> {
        let opened = guarded(|| -> Result<Box<dyn Filesystem>, Error> {
            Ok(match kind {
                signature::EXT => Box::new(ext4::Ext4::open(source.clone())?),
                signature::XFS => Box::new(xfs::Xfs::open(source.clone())?),
                signature::BTRFS => Box::new(btrfs::Btrfs::open(source)?),
                _ => Box::new(fat::Fat::open(source.clone())?),
            })
        });
        Ok(Self { kind, filesystem: RefCell::new(opened?), budget: source.budget().clone() })
    }

    pub(super) fn uuid(&self) -> String {
        self.filesystem.borrow().uuid()
    }

    pub(super) fn label(&self) -> String {
        self.filesystem.borrow().label()
    }

    /// Follows `path` to what is there: the path without links, and what it is.
    ///
    /// # Errors
    /// It leads to nothing.
    pub(super) fn resolve(&self, path: &str) -> Result<(String, Found), Error> {
        let mut filesystem = self.filesystem.borrow_mut();
        let mut rest = components(path)?;
        let (mut done, mut links) = (Vec::<String>::new(), 0);
        let mut found = Found::Directory;
        while let Some(name) = rest.pop() {
            if found != Found::Directory {
                return Err(Error::NotADirectory);
            }
            if name == ".." {
                done.pop();
                continue;
            }
            let path = format!("/{}{}{name}", done.join("/"), if done.is_empty() { "" } else { "/" });
            if path.len() > PATH_BYTES_MAX {
                return Err(Error::Path);
            }
            found = guarded(|| filesystem.find(&path))?;
            if found == Found::Link {
                links += 1;
                if links > LINKS_MAX {
                    return Err(Error::Links);
                }
                let target = guarded(|| filesystem.read_link(&path))?;
                if target.starts_with('/') {
                    done.clear();
                }
                rest.extend(components(&target)?);
                found = Found::Directory;
            } else {
                done.push(name);
            }
        }
        Ok((format!("/{}", done.join("/")), found))
    }

    /// The names in a directory, in no order.
    ///
    /// # Errors
    /// It is no directory, or cannot be read.
    pub(super) fn list(&self, path: &str) -> Result<Vec<String>, Error> {
        let (path, found) = self.resolve(path)?;
        if found != Found::Directory {
            return Err(Error::NotADirectory);
        }
        let mut filesystem = self.filesystem.borrow_mut();
        let mut names = self.budget.within(LISTING_BYTES_MAX, || guarded(|| filesystem.list(&path)))?;
        names.truncate(NAMES_MAX);
        names.retain(|name| name != "." && name != "..");
        Ok(names)
    }

    /// Opens a regular file of at most `max_bytes`.
    ///
    /// # Errors
    /// There is none, or a larger one.
    pub(super) fn file(&self, path: &str, max_bytes: u64) -> Result<FileImage, Error> {
        let (path, found) = self.resolve(path)?;
        let Found::File { size_bytes } = found else { return Err(Error::NotAFile) };
        if size_bytes > max_bytes {
            return Err(Error::TooLarge { size_bytes, max_bytes });
        }
        let contents = guarded(|| self.filesystem.borrow_mut().open(&path))?;
        self.budget.allow_file(size_bytes);
        Ok(FileImage { size_bytes, contents: RefCell::new(contents), window: RefCell::default() })
    }

    /// Reads a text of at most `max_bytes`; what is not UTF-8 in it is replaced.
    ///
    /// # Errors
    /// There is none, or a longer one.
    pub(super) fn text(&self, path: &str, max_bytes: u64) -> Result<String, Error> {
        let file = self.file(path, max_bytes)?;
        let mut bytes = vec![0; usize::try_from(file.size_bytes).map_err(|_| Error::Path)?];
        file.read_exact_at(&mut bytes, 0).map_err(Error::reader)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// The components of a path, last first.
fn components(path: &str) -> Result<Vec<String>, Error> {
    if path.len() > PATH_BYTES_MAX {
        return Err(Error::Path);
    }
    let is_name = |name: &&str| !name.is_empty() && *name != ".";
    Ok(path.split('/').filter(is_name).rev().map(ToOwned::to_owned).collect())
}

/// Runs a step of a reader. None of them is known to panic; should one, its guest does not boot, and hears why.
fn guarded<T>(step: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(step))
        .unwrap_or_else(|_| Err(Error::reader("its reader came upon something that it did not expect")))
}

/// Why there is no volume.
#[derive(Debug)]
pub(super) enum OpenError {
    /// Something that is not read.
    Holds(Signature),
    /// A filesystem of this kind, which cannot be read.
    Broken(&'static str, Error),
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::reader(error)
    }
}

/// A file of a volume. A window of it is kept, since readers of filesystems are at their best from front to back.
pub(super) struct FileImage {
    size_bytes: u64,
    contents: RefCell<Box<dyn Contents>>,
    window: RefCell<Window>,
}

#[derive(Default)]
struct Window {
    start: u64,
    bytes: Vec<u8>,
}

impl FileImage {
    /// Makes the window hold the byte at `offset` and what follows it.
    fn load(&self, window: &mut Window, offset: u64) -> io::Result<()> {
        let rest = self.size_bytes - offset;
        let length = usize::try_from(rest).map_or(WINDOW_BYTES, |rest| rest.min(WINDOW_BYTES));
        window.bytes.clear();
        window.bytes.resize(length, 0);
        window.start = offset;
        let read = guarded(|| self.contents.borrow_mut().read(&mut window.bytes, offset));
        if read.is_err() {
            window.bytes.clear();
        }
        read.map_err(|error| io::Error::other(chain(&error)))
    }
}

impl Image for FileImage {
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.size_bytes)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > self.size_bytes) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut window = self.window.borrow_mut();
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            if at < window.start || at >= window.start + window.bytes.len() as u64 {
                self.load(&mut window, at)?;
            }
            let from = usize::try_from(at - window.start).expect("invariant: within the window");
            let kept = &window.bytes[from..];
            let count = kept.len().min(buffer.len() - done);
            buffer[done..done + count].copy_from_slice(&kept[..count]);
            done += count;
        }
        Ok(())
    }
}

/// An error with its causes as one sentence.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    crate::run::chain(error)
}
