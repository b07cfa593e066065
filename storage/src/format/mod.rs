//! Disk formats as bytes: no paths, no clouds. The VMM imports this module and nothing else of the crate, since
//! it serves what storage creates.

pub mod crypt;
pub mod ext4;
pub mod inspect;
pub mod layers;
pub mod overlay;
pub mod place;
pub mod qcow2;
pub mod raw;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

pub use self::crypt::{DiskKey, EncryptedDisk, Stored};
pub use self::layers::open_layers;
pub use self::overlay::Overlay;
pub use self::place::{Extent, OpenFile, Work};
pub use self::raw::RawFile;

/// A disk as the guest sees it: a fixed number of bytes, read and written at any offset.
///
/// Offsets and lengths beyond the end are `InvalidInput`; nothing in a foreign file panics.
pub trait Disk: Send + Sync {
    /// The disk's size in bytes.
    fn size_bytes(&self) -> u64;
    /// Fills `buffer` from `offset`.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes `buffer` at `offset`.
    fn write_at(&self, buffer: &[u8], offset: u64) -> io::Result<()>;
    /// Returns once all completed writes survive a power loss.
    fn flush(&self) -> io::Result<()>;
    /// The guest no longer needs these bytes; they read as zeros or as before.
    fn discard(&self, offset: u64, length: u64) -> io::Result<()>;

    /// Makes these bytes zeros, without writing them where that is possible. With `free` their room may be given back;
    /// without, what has room keeps it where the file system can do so.
    fn write_zeroes(&self, offset: u64, length: u64, _free: bool) -> io::Result<()> {
        write_zeros(self, offset, length)
    }

    /// The first byte from `offset` on that may be another than zero: all before it are zeros. The disk's size if there is
    /// none. Whoever goes through a whole disk need not read its holes.
    fn next_data(&self, offset: u64) -> io::Result<u64> {
        Ok(offset.min(self.size_bytes()))
    }

    /// Adds to `extents` where `work` is to be done, in order; see [`place`]. False if only the methods above can do it, and
    /// then nothing was added.
    fn locate(&self, _work: Work, _extents: &mut Vec<Extent>) -> io::Result<bool> {
        Ok(false)
    }

    /// What a disk lies on that lies encrypted, and how: for whoever encrypts and decrypts himself what he reads and writes where
    /// that one says. Nothing for all others.
    fn stored(&self) -> Option<Stored<'_>> {
        None
    }

    /// The file that all of the disk is in, where one is: who has a descriptor of it has the locks that it was opened with.
    fn file(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Work that was located has been done, or has failed: what then follows from it. To be called for everything but reads,
    /// before anybody hears of it.
    fn finish(&self, _work: Work, result: io::Result<()>) -> io::Result<()> {
        result
    }
}

/// What zeros are written from.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Writes zeros, piece by piece.
fn write_zeros(disk: &(impl Disk + ?Sized), offset: u64, length: u64) -> io::Result<()> {
    check_within(disk.size_bytes(), offset, length)?;
    let end = offset + length;
    let mut at = offset;
    while at < end {
        // At most as long as the zeros are.
        let piece = (end - at).min(ZEROS.len() as u64);
        disk.write_at(&ZEROS[..piece as usize], at)?;
        at += piece;
    }
    Ok(())
}

/// What leads to a disk is one.
macro_rules! is_what_it_leads_to {
    ($($pointer:ty),*) => {$(
        impl<T: Disk + ?Sized> Disk for $pointer {
            fn size_bytes(&self) -> u64 {
                (**self).size_bytes()
            }
            fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
                (**self).read_at(buffer, offset)
            }
            fn write_at(&self, buffer: &[u8], offset: u64) -> io::Result<()> {
                (**self).write_at(buffer, offset)
            }
            fn flush(&self) -> io::Result<()> {
                (**self).flush()
            }
            fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
                (**self).discard(offset, length)
            }
            fn write_zeroes(&self, offset: u64, length: u64, free: bool) -> io::Result<()> {
                (**self).write_zeroes(offset, length, free)
            }
            fn next_data(&self, offset: u64) -> io::Result<u64> {
                (**self).next_data(offset)
            }
            fn locate(&self, work: Work, extents: &mut Vec<Extent>) -> io::Result<bool> {
                (**self).locate(work, extents)
            }
            fn stored(&self) -> Option<Stored<'_>> {
                (**self).stored()
            }
            fn file(&self) -> Option<BorrowedFd<'_>> {
                (**self).file()
            }
            fn finish(&self, work: Work, result: io::Result<()>) -> io::Result<()> {
                (**self).finish(work, result)
            }
        }
    )*};
}

// One that somebody else has, one of whichever format, one that several hold.
is_what_it_leads_to!(&T, Box<T>, Arc<T>);

/// `InvalidInput` unless `length` bytes at `offset` lie within a disk of `size_bytes`.
fn check_within(size_bytes: u64, offset: u64, length: u64) -> io::Result<()> {
    match offset.checked_add(length) {
        Some(end) if end <= size_bytes => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "beyond the end of the disk")),
    }
}

/// A buffer's length as the disk counts.
fn length_of(buffer: &[u8]) -> u64 {
    buffer.len() as u64
}
