//! A new ext4 file system, written into an empty file without mounting anything: what a container image's layers come to
//! is such a root disk (Linux, `Documentation/filesystems/ext4`).
//!
//! It is made in one go and never changed here: first a [`Plan`] says where everything lies, then the metadata is
//! written, then each file's content is streamed to its blocks. The same tree gives the same bytes. Blocks have 4096
//! bytes, groups are whole, directories are linear, the journal is empty; what is zero is not written, so the file is
//! sparse. Checksums of metadata are left out, as mke2fs did for years: the kernel asks for none.
//!
//! Must never know: where a tree comes from, what boots from it.

mod directory;
mod inode;
mod layout;
mod superblock;

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;

pub use self::layout::Plan;

/// Bytes of a block.
pub const BLOCK_BYTES: u64 = 4096;
/// The longest name in a directory in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// The longest target of a symbolic link in bytes: a block, and the kernel wants room for an end.
pub const TARGET_BYTES_MAX: usize = 4095;
/// How many names one file can have.
pub const LINKS_MAX: u32 = 65_000;
/// The longest file capability in bytes that fits an inode beside the rest (`struct vfs_ns_cap_data` has 24).
pub const CAPABILITY_BYTES_MAX: usize = 24;
/// The largest file system in bytes: block numbers have 32 bits here.
pub const FILE_SYSTEM_BYTES_MAX: u64 = 1 << 43;

/// Bytes that a file's content is copied in.
const COPY_BYTES: usize = 256 << 10;
const BLOCK: usize = 4096;

/// Whose something is and what may be done with it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Permissions, with set-user-ID, set-group-ID and sticky: 12 bits.
    pub mode: u16,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// When it last changed, in seconds since 1970.
    pub modified_s: i64,
}

/// A name in a directory, and the index of what has it.
pub type Name = (Box<[u8]>, usize);

/// What an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Names, each with the index of its inode. No order is asked for; no name is twice.
    Directory(Vec<Name>),
    /// A file of so many bytes.
    File(u64),
    /// A symbolic link.
    Symlink(Box<[u8]>),
    /// A character device: major, minor.
    Character(u32, u32),
    /// A block device: major, minor.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
}

/// An inode of the tree that is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// What it is.
    pub kind: Kind,
    /// Its owner and permissions.
    pub metadata: Metadata,
    /// The value of `security.capability`; empty if there is none.
    pub capability: Box<[u8]>,
}

/// Why there is no file system.
#[derive(Debug, thiserror::Error)]
pub enum Ext4Error {
    /// It would be larger than it may be.
    #[error("a file system of {size_bytes} bytes is needed, at most {bytes_max} are possible")]
    TooLarge {
        /// How large it would be.
        size_bytes: u64,
        /// How large it may be.
        bytes_max: u64,
    },
    /// A file has more names than ext4 can count.
    #[error("a file has more than {LINKS_MAX} names")]
    TooManyLinks,
    /// A name, a target or a capability is longer than ext4 can hold.
    #[error("a {what} is longer than ext4 can hold")]
    TooLong {
        /// What.
        what: &'static str,
    },
    /// The file cannot be written.
    #[error("write the file system")]
    Write(#[source] io::Error),
    /// A file's content cannot be read, or ends early.
    #[error("read a file's content")]
    Content(#[source] io::Error),
}

/// A file system whose metadata is written; what is left is the files' content.
#[derive(Debug)]
pub struct FileSystem<'f> {
    raw: &'f File,
    plan: Plan,
}

impl<'f> FileSystem<'f> {
    /// Writes all metadata into `raw`, an empty file.
    ///
    /// # Errors
    /// [`Ext4Error::Write`]; `raw` is then to be thrown away.
    pub fn create(raw: &'f File, tree: &[Inode], plan: Plan) -> Result<Self, Ext4Error> {
        let made = Self { raw, plan };
        raw.set_len(made.plan.size_bytes()).map_err(Ext4Error::Write)?;
        superblock::write(raw, &made.plan).map_err(Ext4Error::Write)?;
        inode::write_all(raw, tree, &made.plan).map_err(Ext4Error::Write)?;
        directory::write_all(raw, tree, &made.plan).map_err(Ext4Error::Write)?;
        Ok(made)
    }

    /// Writes the content of the file with this index: exactly as many bytes as the tree said that it has.
    ///
    /// # Errors
    /// [`Ext4Error::Content`], also if `content` ends early; [`Ext4Error::Write`].
    pub fn write_content(&self, index: usize, content: &mut dyn Read) -> Result<(), Ext4Error> {
        let mut left = self.plan.content_bytes(index);
        let mut buffer = vec![0; COPY_BYTES];
        for extent in self.plan.extents(index) {
            let mut at = extent.start * BLOCK_BYTES;
            let end = (extent.start + extent.blocks) * BLOCK_BYTES;
            while at < end && left > 0 {
                let piece = left.min(end - at).min(COPY_BYTES as u64);
                let piece = usize::try_from(piece).expect("invariant: at most COPY_BYTES");
                content.read_exact(&mut buffer[..piece]).map_err(Ext4Error::Content)?;
                write_sparse(self.raw, &buffer[..piece], at).map_err(Ext4Error::Write)?;
                at += piece as u64;
                left -= piece as u64;
            }
        }
        Ok(())
    }
}

/// Writes what of `bytes` is not zero, in blocks, where the file reads as zeros already.
fn write_sparse(raw: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    // Runs of blocks with data in them are written at once.
    let mut start = 0;
    for (index, block) in bytes.chunks(BLOCK).enumerate() {
        if block.iter().all(|&byte| byte == 0) {
            if start < index * BLOCK {
                raw.write_all_at(&bytes[start..index * BLOCK], at + start as u64)?;
            }
            start = index * BLOCK + block.len();
        }
    }
    if start < bytes.len() { raw.write_all_at(&bytes[start..], at + start as u64) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
