//! Files and taps read and written where a guest has its buffers, without a copy on the way. The guest may change its memory
//! meanwhile: the kernel takes what it finds, and nothing here looks at it.
//!
//! Must never know: requests, formats.
#![expect(unsafe_code, reason = "the kernel is given addresses in guest memory")]

use std::io;
use std::os::fd::RawFd;

use vm_memory::bitmap::Bitmap as _;
use vm_memory::{GuestMemory as _, Permissions};

use super::super::limiter::Direction;
use super::super::queue::{Segment, for_each_piece};
use crate::memory::GuestMemory;

/// The most vectors that one system call takes (`UIO_MAXIOV`).
pub(in super::super) const VECTORS_MAX: usize = 1024;

/// Adds to `vectors` where `length` bytes of `segments` from `offset` on lie in this process; false if some of them do not
/// lie in guest memory.
pub(in super::super) fn gather(
    memory: &GuestMemory,
    segments: &[Segment],
    (offset, length): (u64, u64),
    vectors: &mut Vec<libc::iovec>,
) -> bool {
    let mut missing = length;
    each_slice(memory, segments, (offset, length), |address, bytes, _| {
        vectors.push(libc::iovec { iov_base: address.cast(), iov_len: bytes });
        missing -= bytes as u64;
    });
    missing == 0
}

/// Notes that the kernel wrote to `length` bytes of `segments`: no snapshot would see it otherwise.
pub(in super::super) fn mark_written(memory: &GuestMemory, segments: &[Segment], length: u64) {
    each_slice(memory, segments, (0, length), |_, _, mark| mark());
}

fn each_slice(
    memory: &GuestMemory,
    segments: &[Segment],
    (offset, length): (u64, u64),
    mut visit: impl FnMut(*mut u8, usize, &dyn Fn()),
) {
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    for_each_piece(segments, offset, length, |address, range| {
        let Ok(slices) = memory.get_slices(address, range.len(), Permissions::ReadWrite) else {
            return false;
        };
        for slice in slices {
            let Ok(slice) = slice else { return false };
            let mark = || slice.bitmap().mark_dirty(0, slice.len());
            visit(slice.ptr_guard_mut().as_ptr(), slice.len(), &mark);
        }
        true
    });
}

/// Reads a file into `vectors`, or writes it from them, with one call; how many bytes. With `at_once` only what can be read
/// without waiting for a medium (`RWF_NOWAIT`).
///
/// # Safety
/// The vectors point at memory of this process that nobody holds a reference to, such as a guest's.
///
/// # Errors
/// The kernel's: `EAGAIN` where there would be a wait, `EOPNOTSUPP` where that is never known.
pub(super) unsafe fn transfer(
    direction: Direction,
    fd: RawFd,
    vectors: &[libc::iovec],
    offset: u64,
    at_once: bool,
) -> io::Result<usize> {
    let flags = if at_once { libc::RWF_NOWAIT } else { 0 };
    let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    let count = libc::c_int::try_from(vectors.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    loop {
        // SAFETY: the vectors and, as the caller says, what they point at are there during the call; a descriptor that is
        // none is an error.
        let done = unsafe {
            match direction {
                Direction::Read => libc::preadv2(fd, vectors.as_ptr(), count, offset, flags),
                Direction::Write => libc::pwritev2(fd, vectors.as_ptr(), count, offset, flags),
            }
        };
        match usize::try_from(done) {
            Ok(done) => return Ok(done),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}
