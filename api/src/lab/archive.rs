//! An initial ramdisk: cpio in the "newc" form, as `Documentation/driver-api/early-userspace/buffer-format.rst` of the
//! Linux sources describes it.
//!
//! Each entry is the magic `070701`, thirteen fields of eight hexadecimal digits (inode, mode, uid, gid, links,
//! modification time, size, device and special device as major and minor, length of the name with its NUL, checksum),
//! the name, its NUL, and the data; name and data are padded to four bytes.
//!
//! Must never know: what is in the files.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::path::{Component, Path};

/// The file type bits of an entry's mode (inode(7)).
const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
/// The name of the last entry.
const TRAILER: &str = "TRAILER!!!";

/// Writes an archive; parents of what is added are added before it.
pub(super) struct Archive<W> {
    out: W,
    inode: u32,
    written: u64,
    directories: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, inode: 1, written: 0, directories: BTreeSet::new() }
    }

    /// Bytes written so far.
    pub(super) fn len(&self) -> u64 {
        self.written
    }

    /// A directory with its parents; one that is there already is left alone.
    pub(super) fn directory(&mut self, path: &Path) -> io::Result<()> {
        let mut name = String::new();
        for part in parts(path)? {
            if !name.is_empty() {
                name.push('/');
            }
            name.push_str(part);
            if self.directories.insert(name.clone()) {
                self.entry(&name, DIRECTORY | 0o755, (0, 0), 0)?;
            }
        }
        Ok(())
    }

    /// A file of `size` bytes, which `data` must have.
    pub(super) fn file(&mut self, path: &Path, mode: u32, size: u64, data: &mut dyn Read) -> io::Result<()> {
        let length = u32::try_from(size)
            .map_err(|_| io::Error::new(io::ErrorKind::FileTooLarge, "4 GiB or more: use a disk"))?;
        let name = self.prepare(path)?;
        self.entry(&name, FILE | (mode & 0o7777), (0, 0), length)?;
        let copied = io::copy(&mut data.take(size), &mut self.out)?;
        if copied != size {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter"));
        }
        self.written += copied;
        self.pad()
    }

    /// A file of these bytes.
    pub(super) fn bytes(&mut self, path: &Path, mode: u32, data: &[u8]) -> io::Result<()> {
        self.file(path, mode, data.len() as u64, &mut &*data)
    }

    /// A symbolic link.
    pub(super) fn symlink(&mut self, path: &Path, target: &str) -> io::Result<()> {
        let name = self.prepare(path)?;
        self.entry(&name, SYMLINK | 0o777, (0, 0), target.len() as u32)?;
        self.write(target.as_bytes())?;
        self.pad()
    }

    /// A character device.
    pub(super) fn character_device(&mut self, path: &Path, device: (u32, u32)) -> io::Result<()> {
        let name = self.prepare(path)?;
        self.entry(&name, CHARACTER_DEVICE | 0o600, device, 0)
    }

    /// Ends the archive.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.entry(TRAILER, 0, (0, 0), 0)?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn prepare(&mut self, path: &Path) -> io::Result<String> {
        self.directory(path.parent().unwrap_or(Path::new("")))?;
        Ok(parts(path)?.join("/"))
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), size: u32) -> io::Result<()> {
        let (inode, name_length) = (self.inode, name.len() + 1);
        self.inode += 1;
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        let mut head = String::from("070701");
        for field in [inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_length as u32, 0] {
            head.push_str(&format!("{field:08x}"));
        }
        self.write(head.as_bytes())?;
        self.write(name.as_bytes())?;
        self.write(&[0])?;
        self.pad()
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn pad(&mut self) -> io::Result<()> {
        let missing = (4 - self.written % 4) % 4;
        self.write(&[0; 4][..missing as usize])
    }
}

/// The names of a path; one that leaves the root is refused.
fn parts(path: &Path) -> io::Result<Vec<&str>> {
    let refuse =
        || io::Error::new(io::ErrorKind::InvalidInput, format!("{} is no path inside", path.display()));
    path.components()
        .filter(|part| !matches!(part, Component::RootDir | Component::CurDir))
        .map(|part| match part {
            Component::Normal(name) => name.to_str().ok_or_else(refuse),
            _ => Err(refuse()),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_padded_and_parents_come_first() {
        let mut archive = Archive::new(Vec::new());
        archive.bytes(Path::new("/a/b"), 0o755, b"hello").unwrap();
        archive.symlink(Path::new("/a/c"), "b").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        let places: Vec<_> =
            ["a\0", "a/b\0", "hello", "a/c\0", TRAILER].map(|word| text.find(word).unwrap()).into();
        assert!(places.is_sorted(), "{places:?}");
        assert_eq!(text.matches("070701").count(), 4);
        // The file's mode and size, where the format has them.
        let head = &text[text[..places[1]].rfind("070701").unwrap()..];
        assert_eq!(&head[14..22], "000081ed");
        assert_eq!(&head[54..62], "00000005");
    }

    #[test]
    fn a_path_that_leaves_the_root_is_refused() {
        assert!(Archive::new(Vec::new()).bytes(Path::new("/a/../../b"), 0o644, b"").is_err());
    }

    #[test]
    fn a_file_that_became_shorter_is_an_error() {
        assert!(Archive::new(Vec::new()).file(Path::new("a"), 0o644, 9, &mut &b"12345678"[..]).is_err());
    }
}
