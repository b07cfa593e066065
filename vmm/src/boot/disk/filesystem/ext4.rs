//! ext2, ext3 and ext4, by `ext4-view`; a journal that was not written back is read as if it were.

use ext4_view::{Ext4 as View, Ext4Error, Ext4Read, File, Path};

use super::super::source::Source;
use super::{Contents, Error, Filesystem, Found, NAMES_MAX};

/// The most block groups, each of which is read once: a filesystem of 128 TiB.
const GROUPS_MAX: u64 = 1 << 20;

pub(super) struct Ext4(View);

impl Ext4Read for Source {
    fn read(
        &mut self,
        start: u64,
        buffer: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(Source::read(self, buffer, start)?)
    }
}

impl From<Ext4Error> for Error {
    fn from(error: Ext4Error) -> Self {
        match error {
            Ext4Error::NotFound => Self::NotFound,
            Ext4Error::NotADirectory => Self::NotADirectory,
            Ext4Error::IsADirectory | Ext4Error::IsASpecialFile => Self::NotAFile,
            Ext4Error::PathTooLong => Self::Path,
            Ext4Error::TooManySymlinks => Self::Links,
            // This one's own text hides the cause, and is the cause.
            Ext4Error::Io(error) => Self::Reader(error),
            other => Self::reader(other),
        }
    }
}

impl Ext4 {
    pub(super) fn open(source: Source) -> Result<Self, Error> {
        check_groups(&source)?;
        Ok(Self(View::load(Box::new(source))?))
    }
}

/// Refuses what claims more block groups than any filesystem has, since each one costs memory.
fn check_groups(source: &Source) -> Result<(), Error> {
    const SUPERBLOCK: u64 = 1024;
    let low = u32::from_le_bytes(source.array(SUPERBLOCK + 0x4)?);
    let high = u32::from_le_bytes(source.array(SUPERBLOCK + 0x150)?);
    let per_group = u64::from(u32::from_le_bytes(source.array(SUPERBLOCK + 0x20)?));
    let blocks = u64::from(low) | u64::from(high) << 32;
    if per_group == 0 || blocks / per_group > GROUPS_MAX {
        return Err(Error::reader("its superblock claims more block groups than any filesystem has"));
    }
    Ok(())
}

fn path(path: &str) -> Result<Path<'_>, Error> {
    Path::try_from(path).map_err(Error::reader)
}

impl Filesystem for Ext4 {
    fn uuid(&self) -> String {
        self.0.uuid().to_string()
    }

    fn label(&self) -> String {
        self.0.label().display().to_string()
    }

    fn find(&mut self, name: &str) -> Result<Found, Error> {
        let metadata = self.0.symlink_metadata(path(name)?)?;
        let kind = metadata.file_type();
        Ok(if kind.is_regular_file() {
            Found::File { size_bytes: metadata.len() }
        } else if kind.is_dir() {
            Found::Directory
        } else if kind.is_symlink() {
            Found::Link
        } else {
            Found::Other
        })
    }

    fn read_link(&mut self, name: &str) -> Result<String, Error> {
        let target = self.0.read_link(path(name)?)?;
        Ok(String::from_utf8_lossy(target.as_ref()).into_owned())
    }

    fn list(&mut self, name: &str) -> Result<Vec<String>, Error> {
        let mut names = Vec::new();
        for entry in self.0.read_dir(path(name)?)?.take(NAMES_MAX) {
            names.push(String::from_utf8_lossy(entry?.file_name().as_ref()).into_owned());
        }
        Ok(names)
    }

    fn open(&mut self, name: &str) -> Result<Box<dyn Contents>, Error> {
        let file = self.0.open(path(name)?)?;
        Ok(Box::new(Reader { view: self.0.clone(), path: name.to_owned(), file }))
    }
}

/// A file with a position. The library's own seeking counts blocks from the front and passes over errors; so bytes on
/// the way are read, and what lies behind is found by opening the file again.
struct Reader {
    view: View,
    path: String,
    file: File,
}

impl Contents for Reader {
    fn read(&mut self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        if offset < self.file.position() {
            self.file = self.view.open(path(&self.path)?)?;
        }
        let mut skipped = [0; 4096];
        while self.file.position() < offset {
            let rest = usize::try_from(offset - self.file.position()).unwrap_or(skipped.len());
            let part = rest.min(skipped.len());
            self.fill(&mut skipped[..part])?;
        }
        self.fill(buffer)
    }
}

impl Reader {
    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Error> {
        let mut done = 0;
        while done < buffer.len() {
            let read = self.file.read_bytes(&mut buffer[done..]);
            match read {
                Ok(0) => return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
                Ok(count) => done += count,
                Err(error) => {
                    // After an error the library's file is of no use: the next read begins with another one.
                    self.file = self.view.open(path(&self.path)?)?;
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }
}
