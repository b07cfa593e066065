//! Disk formats as bytes: no paths, no clouds. The VMM imports this module and nothing else of the crate, since
//! it serves what storage creates.

pub mod crypt;
pub mod ext4;
pub mod inspect;
pub mod layers;
pub mod overlay;
pub mod qcow2;
pub mod raw;

use std::io;
use std::sync::Arc;

pub use self::crypt::{DiskKey, EncryptedDisk};
pub use self::layers::open_layers;
pub use self::overlay::Overlay;
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
