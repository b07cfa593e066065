//! Btrfs on a single device, by `lambutter`.
//!
//! A path is taken from the top level first, as GRUB does it, and then from the default subvolume, as SUSE's GRUB does
//! it, where the two differ.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use lambutter::{BlockRead, Error as BtrfsError, Inode, Path};

use super::super::source::Source;
use super::xfs::uuid_text;
use super::{Contents, Error, Filesystem, Found};

/// The id of the top level.
const TOP_LEVEL: u64 = 5;

type Shared = Rc<RefCell<lambutter::Btrfs<Reading>>>;

pub(super) struct Btrfs {
    uuid: String,
    label: String,
    /// The top level, and the default subvolume if it is another one.
    roots: Vec<Shared>,
}

/// A source as this library takes it.
pub(super) struct Reading(Source);

impl BlockRead for Reading {
    type Error = io::Error;
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read(buffer, offset)
    }
}

impl From<BtrfsError> for Error {
    fn from(error: BtrfsError) -> Self {
        match error {
            BtrfsError::NotFound => Self::NotFound,
            BtrfsError::NotARegularFile => Self::NotAFile,
            other => Self::reader(other),
        }
    }
}

impl Btrfs {
    pub(super) fn open(source: &Source) -> Result<Self, Error> {
        const SUPERBLOCK: u64 = 0x1_0000;
        let uuid = uuid_text(&source.array(SUPERBLOCK + 0x20)?);
        let label: [u8; 256] = source.array(SUPERBLOCK + 0x12b)?;
        let label = label.split(|&byte| byte == 0).next().unwrap_or_default();
        let size = source.size_bytes();
        let top = lambutter::Btrfs::open_subvol_id(Reading(source.clone()), size, TOP_LEVEL)?;
        let mut roots = vec![Rc::new(RefCell::new(top))];
        let default = lambutter::Btrfs::open(Reading(source.clone()), size)?;
        if default.subvolume() != TOP_LEVEL {
            roots.push(Rc::new(RefCell::new(default)));
        }
        Ok(Self { uuid, label: String::from_utf8_lossy(label).into_owned(), roots })
    }

    /// Does `step` in the first root where it finds something.
    fn first<T>(
        &self,
        mut step: impl FnMut(&Shared, &mut lambutter::Btrfs<Reading>) -> Result<T, BtrfsError>,
    ) -> Result<T, Error> {
        let mut last = BtrfsError::NotFound;
        for root in &self.roots {
            match step(root, &mut root.borrow_mut()) {
                Err(error @ (BtrfsError::NotFound | BtrfsError::NotARegularFile)) => last = error,
                done => return Ok(done?),
            }
        }
        Err(last.into())
    }
}

/// A path as this library takes it.
fn btrfs_path(path: &str) -> Result<Path<'_>, BtrfsError> {
    Path::new(path.as_bytes()).ok_or(BtrfsError::NotFound)
}

impl Filesystem for Btrfs {
    fn uuid(&self) -> String {
        self.uuid.clone()
    }

    fn label(&self) -> String {
        self.label.clone()
    }

    fn find(&mut self, path: &str) -> Result<Found, Error> {
        let metadata = self.first(|_, root| {
            let inode = root.resolve(btrfs_path(path)?)?;
            root.metadata(&inode)
        })?;
        Ok(if metadata.is_file() {
            Found::File { size_bytes: metadata.size }
        } else if metadata.is_dir() {
            Found::Directory
        } else if metadata.is_symlink() {
            Found::Link
        } else {
            Found::Other
        })
    }

    fn read_link(&mut self, path: &str) -> Result<String, Error> {
        let target = self.first(|_, root| root.read_link(btrfs_path(path)?))?;
        Ok(String::from_utf8_lossy(&target).into_owned())
    }

    fn list(&mut self, path: &str) -> Result<Vec<String>, Error> {
        let entries = self.first(|_, root| root.read_dir(btrfs_path(path)?))?;
        Ok(entries.iter().map(|entry| String::from_utf8_lossy(&entry.name).into_owned()).collect())
    }

    fn open(&mut self, path: &str) -> Result<Box<dyn Contents>, Error> {
        let (btrfs, inode) =
            self.first(|shared, root| Ok((shared.clone(), root.resolve(btrfs_path(path)?)?)))?;
        Ok(Box::new(Reader { btrfs, inode }))
    }
}

struct Reader {
    btrfs: Shared,
    inode: Inode,
}

impl Contents for Reader {
    fn read(&mut self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        let mut done = 0;
        while done < buffer.len() {
            let part = &mut buffer[done..];
            match self.btrfs.borrow_mut().read_file_at(&self.inode, offset + done as u64, part)? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                count => done += count,
            }
        }
        Ok(())
    }
}
