//! Files and taps read and written where a guest has its buffers, without a copy on the way. The guest may change its memory
//! meanwhile: the kernel takes what it finds, and nothing here looks at it.
//!
//! Must never know: requests, formats.
#![expect(unsafe_code, reason = "the kernel is given addresses in guest memory")]

use std::io;
use std::os::fd::RawFd;

use storage::format::raw::cached_write_room;
use vm_memory::bitmap::Bitmap as _;
use vm_memory::{GuestMemory as _, Permissions};

use super::super::limiter::Direction;
use super::super::queue::{Segment, for_each_piece};
use crate::memory::{GuestMemory, whole_slice};

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
        // As nearly all do; it is what every page of a large packet goes through.
        if let Some(slice) = whole_slice(memory, address, range.len()) {
            let mark = || slice.bitmap().mark_dirty(0, slice.len());
            visit(slice.ptr_guard_mut().as_ptr(), slice.len(), &mark);
            return true;
        }
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

/// Writes `vectors` to a file's page cache in pieces that let it be rewritten at random places
/// ([`cached_write_room`]); how many bytes, fewer than all where the file takes no more. The vectors are used up.
///
/// # Safety
/// As of [`transfer`].
///
/// # Errors
/// The kernel's; what was written before it failed is written.
pub(super) unsafe fn write_cached(fd: RawFd, vectors: &mut [libc::iovec], offset: u64) -> io::Result<usize> {
    let (mut rest, mut done) = (vectors, 0);
    while !rest.is_empty() {
        let at = offset.saturating_add(done as u64);
        let mut room = cached_write_room(at);
        let piece = room;
        let mut whole = 0;
        while let Some(vector) = rest.get(whole).filter(|vector| vector.iov_len <= room) {
            room -= vector.iov_len;
            whole += 1;
        }
        // Of the next one goes what has room, and its rest with the next piece.
        let left = rest.get_mut(whole).filter(|_| room > 0).map(|cut| {
            let left = (cut.iov_base.wrapping_byte_add(room), cut.iov_len - room);
            cut.iov_len = std::mem::take(&mut room);
            left
        });
        let count = whole + usize::from(left.is_some());
        // SAFETY: as the caller says; a part of what the vectors point at is within it.
        let moved = unsafe { transfer(Direction::Write, fd, &rest[..count], at, false) }?;
        done += moved;
        if moved < piece - room {
            break;
        }
        if let (Some((base, length)), Some(cut)) = (left, rest.get_mut(whole)) {
            (cut.iov_base, cut.iov_len) = (base, length);
        }
        rest = &mut rest[whole..];
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;
    use std::os::unix::fs::FileExt as _;

    use storage::format::raw::CACHED_WRITE_BYTES_MAX;

    use super::*;

    #[test]
    fn what_is_written_in_pieces_is_all_there_however_it_lies_in_memory() {
        let most = CACHED_WRITE_BYTES_MAX as usize;
        let content: Vec<u8> = (0..4 * most).map(|at| (at % 251) as u8).collect();
        for lengths in [
            vec![4096],
            vec![4 * most],
            vec![most; 4],
            vec![4096; 4 * most / 4096],
            vec![0, 1, most, 0, most - 1, 3, 2 * most - 7],
            vec![],
        ] {
            for offset in [0, 1, 512, most - 1, most, 5 * most - 4096] {
                let file = tempfile::tempfile().unwrap();
                let mut at = 0;
                let mut vectors: Vec<_> = lengths
                    .iter()
                    .map(|length| {
                        let start = content[at..].as_ptr();
                        at += length;
                        libc::iovec { iov_base: start.cast_mut().cast(), iov_len: *length }
                    })
                    .collect();
                // SAFETY: nothing writes to the content.
                let written = unsafe { write_cached(file.as_raw_fd(), &mut vectors, offset as u64) };
                assert_eq!(written.unwrap(), at);
                let mut found = vec![1; at];
                file.read_exact_at(&mut found, offset as u64).unwrap();
                assert!(found == content[..at], "{lengths:?} at {offset}");
            }
        }
    }

    #[test]
    fn file_that_takes_no_writes_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let file = std::fs::File::open(file.path()).unwrap();
        let mut vectors = [libc::iovec { iov_base: c"abc".as_ptr().cast_mut().cast(), iov_len: 3 }];
        // SAFETY: nothing writes there.
        let written = unsafe { write_cached(file.as_raw_fd(), &mut vectors, 0) };
        assert_eq!(written.unwrap_err().raw_os_error(), Some(libc::EBADF));
    }
}
