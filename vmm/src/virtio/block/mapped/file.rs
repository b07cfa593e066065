//! A disk's file as memory.
#![expect(unsafe_code, reason = "files are mapped, and copied from and to where a guest has its buffers")]

use std::io::IoSliceMut;
use std::os::fd::{BorrowedFd, RawFd};
use std::ptr::NonNull;

use rustix::fs::{OFlags, SeekFrom};
use rustix::io::{Errno, ReadWriteFlags};

use super::super::super::limiter::Direction;
use super::pages::REGION_BYTES;
use crate::memory::fragile::Fragile;

/// The largest file in bytes: of the 128 TiB that a process can map there are to be enough for many.
const FILE_BYTES_MAX: u64 = 1 << 44;
/// A file that grows is mapped with room for it.
const ROOM_BYTES_MIN: u64 = 64 << 20;

/// See the module.
pub(super) struct MappedFile {
    start: NonNull<u8>,
    bytes: u64,
    is_writable: bool,
    fragile: Fragile,
}

// SAFETY: it is an address and a length; whoever has it has it alone.
unsafe impl Send for MappedFile {}

impl MappedFile {
    /// Maps a file, with room to grow. None that cannot be mapped, or that does not say of a read whether it would have to wait.
    ///
    /// # Safety
    /// The descriptor is open.
    pub(super) unsafe fn new(fd: RawFd) -> Option<Self> {
        // SAFETY: as the caller says.
        let file = unsafe { BorrowedFd::borrow_raw(fd) };
        let mut byte = [0];
        let probe = rustix::io::preadv2(file, &mut [IoSliceMut::new(&mut byte)], 0, ReadWriteFlags::NOWAIT);
        match probe {
            Ok(_) | Err(Errno::AGAIN) => {}
            Err(_) => return None,
        }
        let flags = rustix::fs::fcntl_getfl(file).ok()?;
        let bytes = rustix::fs::seek(file, SeekFrom::End(0)).ok()?;
        if bytes > FILE_BYTES_MAX {
            return None;
        }
        let bytes = (2 * bytes).max(ROOM_BYTES_MIN).next_multiple_of(REGION_BYTES);
        // Whoever opened it to be durable at each write wants the calls.
        let is_writable = flags.contains(OFlags::RDWR) && !flags.intersects(OFlags::DSYNC | OFlags::SYNC);
        let access = if is_writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        let length = usize::try_from(bytes).ok()?;
        let fragile = Fragile::new().ok()?;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), length, access, libc::MAP_SHARED, fd, 0) };
        if start == libc::MAP_FAILED {
            return None;
        }
        let start = NonNull::new(start.cast())?;
        Some(Self { start, bytes, is_writable, fragile })
    }

    pub(super) fn has(&self, offset: u64, length: u64) -> bool {
        offset.checked_add(length).is_some_and(|end| end <= self.bytes)
    }

    pub(super) fn is_writable(&self) -> bool {
        self.is_writable
    }

    /// Copies `length` bytes at `offset` from or to `vectors`; false if some are not there, or cannot be had.
    ///
    /// # Safety
    /// The vectors hold `length` bytes, and point at memory of this process that nobody holds a reference to; the file
    /// [has](Self::has) them.
    #[must_use]
    pub(super) unsafe fn copy(&self, direction: Direction, vectors: &[libc::iovec], offset: u64) -> bool {
        // Within the mapping, so within memory.
        let mut ours = self.start.as_ptr().wrapping_add(offset as usize);
        vectors.iter().all(|vector| {
            let theirs = vector.iov_base.cast::<u8>();
            let (from, to) = match direction {
                Direction::Read => (ours, theirs),
                Direction::Write => (theirs, ours),
            };
            ours = ours.wrapping_add(vector.iov_len);
            // SAFETY: as the caller says of theirs; nothing refers to what is mapped here.
            unsafe { self.fragile.copy(from, to, vector.iov_len) }
        })
    }
}

impl Drop for MappedFile {
    fn drop(&mut self) {
        // Its length was one.
        let bytes = self.bytes as usize;
        // SAFETY: the mapping was made with this address and length, and nothing refers to it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), bytes) };
    }
}
