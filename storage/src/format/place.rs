//! Where a disk's bytes lie in open files: for whoever reads and writes them there himself, several requests at a time and
//! without a copy on the way.
//!
//! Who does so asks [`Disk::locate`](super::Disk::locate), has the kernel do the work at the places named, and says so to
//! [`Disk::finish`](super::Disk::finish). A disk that has something to do with the bytes themselves (a cipher), or to do
//! before a part of them can be written (a copy of a cluster), locates nothing: such work is done by the disk's other
//! methods, while none that was located is under way. Below a cipher is a disk that locates
//! ([`Disk::stored`](super::Disk::stored)).
//!
//! Must never know: how the work is done.

use std::os::fd::RawFd;

/// Work on a part of a disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Read from it.
    Read {
        /// Where it begins.
        offset: u64,
        /// How long it is.
        length: u64,
    },
    /// Write to it.
    Write {
        /// Where it begins.
        offset: u64,
        /// How long it is.
        length: u64,
    },
    /// Make all completed writes durable.
    Flush,
    /// Free it.
    Discard {
        /// Where it begins.
        offset: u64,
        /// How long it is.
        length: u64,
    },
}

/// An open file, which lives as long as its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenFile {
    /// Its descriptor.
    pub fd: RawFd,
    /// It is open for direct access (`O_DIRECT`), past the page cache.
    pub direct: bool,
}

/// A part of a file; the parts of one piece of work follow one another on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The file; none for bytes that nobody has and that read as zeros.
    pub file: Option<OpenFile>,
    /// Where in it. What is read behind its end is zeros.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
}
