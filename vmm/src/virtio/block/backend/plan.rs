//! What of a request whose bytes were located is done at once, and what is planned for the ring.

#![expect(unsafe_code, reason = "the kernel is given addresses in guest memory")]

use std::io;

use storage::format::{Extent, OpenFile};

use super::super::super::limiter::Direction;
use super::super::super::queue::Chain;
use super::super::super::spec::block as spec;
use super::super::flight::{Planned, Vectors};
use super::super::guest_io::{self, VECTORS_MAX, gather};
use super::super::request::{Range, Request};
use super::Backend;
use crate::memory::GuestMemory;

/// How a request, or a piece of one, went that was tried at once.
pub(super) enum Tried {
    Done,
    /// It would have to wait.
    Waits,
    /// It takes the way through the buffer.
    Odd,
}

impl Backend {
    /// Does what can be done at once of a request that is located by `extents`; `planned` is the rest, which waits.
    pub(super) fn plan(
        &mut self,
        memory: &GuestMemory,
        chain: &Chain,
        request: &Request,
        vectors: &mut Vectors,
    ) -> io::Result<Tried> {
        self.planned.clear();
        match request {
            Request::Read(range) => self.plan_transfers(memory, chain, Direction::Read, *range, vectors),
            Request::Write(range) => self.plan_transfers(memory, chain, Direction::Write, *range, vectors),
            _ => Ok(self.plan_others(matches!(request, Request::Flush))),
        }
    }

    /// Does what can be done at once of a read or write, and plans the rest.
    fn plan_transfers(
        &mut self,
        memory: &GuestMemory,
        chain: &Chain,
        direction: Direction,
        range: Range,
        vectors: &mut Vectors,
    ) -> io::Result<Tried> {
        let (segments, first) = match direction {
            Direction::Read => (chain.writable(), 0),
            Direction::Write => (chain.readable(), spec::REQUEST_HEADER_BYTES as u64),
        };
        let is_sealed = self.seal(memory, (chain, first), (direction, range), vectors)?;
        let (mut at, end) = (first, first + range.length);
        for index in 0..self.extents.len() {
            let Extent { file, offset, length } = self.extents[index];
            let start = vectors.0.len();
            let gathered = match is_sealed {
                true => gather_sealed(vectors, (at - first, length), file.is_none()),
                false => file.is_none() || gather(memory, segments, (at, length), &mut vectors.0),
            };
            let fits = gathered && vectors.0.len() - start <= VECTORS_MAX && at + length <= end;
            let Some(file) = file.filter(|_| fits) else {
                if !fits {
                    return Ok(Tried::Odd);
                }
                if !is_sealed {
                    write_zeros(memory, chain, (at, length));
                }
                at += length;
                continue;
            };
            let own = start..vectors.0.len();
            let tried = match () {
                // One that waits has all behind it wait: they are begun together.
                () if !self.planned.is_empty() => Tried::Waits,
                () => self.try_at_once(direction, file, &mut vectors.0[own.clone()], (offset, length))?,
            };
            match tried {
                Tried::Done => vectors.0.truncate(start),
                Tried::Odd => return Ok(Tried::Odd),
                Tried::Waits => {
                    // Bounded by a chain's bytes.
                    let bytes = length as u32;
                    self.planned.push(Planned::Transfer { fd: file.fd, offset, vectors: own, bytes });
                }
            }
            at += length;
        }
        Ok(if self.planned.is_empty() { Tried::Done } else { Tried::Waits })
    }

    /// Whether what is read or written lies encrypted: then there is room for it beside `vectors`, in which what is to be written is
    /// encrypted by now. What the guest writes to its buffers from here on is not looked at.
    fn seal(
        &self,
        memory: &GuestMemory,
        (chain, first): (&Chain, u64),
        (direction, range): (Direction, Range),
        vectors: &mut Vectors,
    ) -> io::Result<bool> {
        let Some(stored) = self.disk.stored() else { return Ok(false) };
        let bytes = vectors.1.make_room(range.length);
        if direction == Direction::Write {
            if chain.read_at(memory, first, bytes) != bytes.len() {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            stored.encrypt(bytes, range.offset);
        }
        Ok(true)
    }

    /// What is in the page cache, or goes there, needs no ring.
    fn try_at_once(
        &mut self,
        direction: Direction,
        file: OpenFile,
        vectors: &mut [libc::iovec],
        (offset, length): (u64, u64),
    ) -> io::Result<Tried> {
        let has_ring = self.flight.is_some();
        if length == 0 {
            return Ok(Tried::Done);
        }
        if file.direct && has_ring {
            return Ok(Tried::Waits);
        }
        // SAFETY: the vectors were gathered in guest memory, which nobody has a reference into, for as many bytes.
        if !file.direct && unsafe { self.mapped.copy(direction, file.fd, vectors, (offset, length)) } {
            return Ok(Tried::Done);
        }
        let at_once = direction == Direction::Read && has_ring && self.tells_waits;
        // SAFETY: the vectors were gathered in guest memory, which nobody has a reference into.
        let moved = unsafe {
            match direction {
                Direction::Write if !file.direct => guest_io::write_cached(file.fd, vectors, offset),
                _ => guest_io::transfer(direction, file.fd, vectors, offset, at_once),
            }
        };
        match moved {
            Ok(moved) if moved as u64 == length => {
                if !file.direct {
                    // SAFETY: a disk's file is open as long as the disk, and forgotten with it.
                    unsafe { self.mapped.note(direction, file.fd, (offset, length)) };
                }
                Ok(Tried::Done)
            }
            Ok(_) if at_once => Ok(Tried::Waits),
            Ok(_) => Ok(Tried::Odd),
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN) if at_once => Ok(Tried::Waits),
                Some(libc::EOPNOTSUPP) if at_once => {
                    self.tells_waits = false;
                    self.try_at_once(direction, file, vectors, (offset, length))
                }
                Some(libc::EINVAL) => Ok(Tried::Odd),
                _ => Err(error),
            },
        }
    }

    /// Syncs and frees take long, so they are the ring's, or the disk's own methods'.
    fn plan_others(&mut self, is_flush: bool) -> Tried {
        for extent in &self.extents {
            let Some(OpenFile { fd, .. }) = extent.file else { continue };
            self.planned.push(if is_flush {
                Planned::Sync { fd }
            } else {
                Planned::Free { fd, offset: extent.offset, bytes: extent.length }
            });
        }
        if self.planned.is_empty() { Tried::Done } else { Tried::Waits }
    }
}

/// Adds to `vectors` where `length` bytes lie of what is sealed, or makes these zeros if nobody has them; whether they are there.
fn gather_sealed(vectors: &mut Vectors, (at, length): (u64, u64), is_hole: bool) -> bool {
    let Vectors(vectors, sealed) = vectors;
    let range = usize::try_from(at).ok().zip(usize::try_from(length).ok());
    let bytes = range.and_then(|(at, length)| sealed.get().get_mut(at..at.checked_add(length)?));
    let Some(bytes) = bytes else { return false };
    if is_hole {
        bytes.fill(0);
    } else {
        vectors.push(libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() });
    }
    true
}

/// Writes zeros into the guest's buffers.
fn write_zeros(memory: &GuestMemory, chain: &Chain, (at, length): (u64, u64)) {
    const ZEROS: [u8; 4096] = [0; 4096];
    for done in (0..length).step_by(ZEROS.len()) {
        let piece = (length - done).min(ZEROS.len() as u64);
        // At most a piece.
        chain.write_at(memory, at + done, &ZEROS[..piece as usize]);
    }
}
