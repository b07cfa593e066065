//! XFS, by `lamxfs`; a log that was not written back is read as if it were.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use lamxfs::{BlockRead, Error as XfsError, Inode, Path};

use super::super::source::Source;
use super::{Contents, Error, Filesystem, Found};

pub(super) struct Xfs(Rc<RefCell<lamxfs::Xfs<Source>>>);

impl BlockRead for Source {
    type Error = io::Error;
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read(buffer, offset)
    }
}

impl From<XfsError> for Error {
    fn from(error: XfsError) -> Self {
        match error {
            XfsError::NotFound { component: "not_a_directory" } => Self::NotADirectory,
            XfsError::NotFound { .. } => Self::NotFound,
            XfsError::NotARegularFile => Self::NotAFile,
            other => Self::reader(other),
        }
    }
}

impl Xfs {
    pub(super) fn open(source: Source) -> Result<Self, Error> {
        let size_bytes = source.size_bytes();
        Ok(Self(Rc::new(RefCell::new(lamxfs::Xfs::open(source, size_bytes)?))))
    }
}

impl Filesystem for Xfs {
    fn uuid(&self) -> String {
        uuid_text(&self.0.borrow().uuid())
    }

    fn label(&self) -> String {
        self.0.borrow().label().unwrap_or_default().to_owned()
    }

    fn find(&mut self, path: &str) -> Result<Found, Error> {
        let mut xfs = self.0.borrow_mut();
        let inode = xfs.resolve(Path::new(path.as_bytes()))?;
        let metadata = xfs.metadata(&inode)?;
        Ok(if metadata.is_file() {
            Found::File { size_bytes: metadata.size() }
        } else if metadata.is_dir() {
            Found::Directory
        } else if metadata.is_symlink() {
            Found::Link
        } else {
            Found::Other
        })
    }

    fn read_link(&mut self, path: &str) -> Result<String, Error> {
        let target = self.0.borrow_mut().read_link(Path::new(path.as_bytes()))?;
        Ok(String::from_utf8_lossy(&target).into_owned())
    }

    fn list(&mut self, path: &str) -> Result<Vec<String>, Error> {
        let entries = self.0.borrow_mut().read_dir(Path::new(path.as_bytes()))?;
        Ok(entries.iter().map(|entry| String::from_utf8_lossy(&entry.name).into_owned()).collect())
    }

    fn open(&mut self, path: &str) -> Result<Box<dyn Contents>, Error> {
        let inode = self.0.borrow_mut().resolve(Path::new(path.as_bytes()))?;
        Ok(Box::new(Reader { xfs: self.0.clone(), inode }))
    }
}

struct Reader {
    xfs: Rc<RefCell<lamxfs::Xfs<Source>>>,
    inode: Inode,
}

impl Contents for Reader {
    fn read(&mut self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        let count = self.xfs.borrow_mut().read_file_at(&self.inode, offset, buffer)?;
        if count < buffer.len() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(())
    }
}

/// A UUID as text, lower case.
pub(super) fn uuid_text(bytes: &[u8; 16]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        write!(text, "{byte:02x}").expect("invariant: writing to a string never fails");
    }
    text
}
