//! Requests that the kernel works on: each with its chain, until all pieces of it came back.
//!
//! Must never know: what a disk or a driver makes of an outcome.
#![expect(unsafe_code, reason = "a ring is given addresses in guest memory")]

use std::os::fd::{AsRawFd, RawFd};

use super::super::queue::Chain;
use super::guest_io::mark_written;
use super::request::Request;
use super::ring::{Piece, Ring, UNDER_WAY_MAX};
use crate::memory::GuestMemory;

/// Pieces of one request: where the parts of an overlay's disk alternate more often, it is done one after the other.
pub(super) const PIECES_MAX: usize = 16;

/// The most of a request that lies encrypted where the kernel reads and writes; what is longer is done one step after the other.
pub(super) const SEALED_BYTES_MAX: u64 = 2 << 20;
/// The most of all such requests of one device.
const ALL_SEALED_BYTES_MAX: u64 = 8 << 20;
/// The most that requests of before leave for further ones.
const SPARE_SEALED_BYTES_MAX: usize = 8 << 20;

/// Addresses in guest memory, for the kernel, or in what is sealed.
#[derive(Default)]
pub(super) struct Vectors(pub(super) Vec<libc::iovec>, pub(super) Sealed);

// SAFETY: addresses are plain numbers to whoever does not read or write there, and nobody does but the kernel.
unsafe impl Send for Vectors {}

/// What a request reads or writes, as it is stored: encrypted.
#[derive(Default)]
pub(super) struct Sealed {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl Sealed {
    /// What direct access asks of an address.
    const ALIGNMENT: usize = 4096;

    /// Room for `length` bytes, at most [`SEALED_BYTES_MAX`], with whatever is in it.
    pub(super) fn make_room(&mut self, length: u64) -> &mut [u8] {
        self.length = usize::try_from(length).expect("invariant: bounded");
        let wanted = self.length + Self::ALIGNMENT;
        if self.bytes.len() < wanted {
            self.bytes = vec![0; wanted];
        }
        let beyond = self.bytes.as_ptr().addr() % Self::ALIGNMENT;
        self.start = (Self::ALIGNMENT - beyond) % Self::ALIGNMENT;
        self.get()
    }

    /// The bytes.
    pub(super) fn get(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.length]
    }
}

/// What became of a request's pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// All of them are done.
    Done,
    /// Something was not as usual: a short read, an alignment that the file does not take, an interruption. Done once
    /// more, one step after the other, it has its right outcome.
    Again,
    /// The kernel's error.
    Failed(i32),
}

/// A request under way.
pub(super) struct Flown {
    /// The queue that it came by.
    pub(super) queue: u16,
    /// Its buffers.
    pub(super) chain: Chain,
    /// What it is.
    pub(super) request: Request,
    /// What became of it.
    pub(super) verdict: Verdict,
    vectors: Vectors,
    pieces: usize,
}

/// One piece of a request that is about to begin: what is done, and for reads and writes which of the request's vectors and
/// how many bytes they have.
#[derive(Debug, Clone)]
pub(super) enum Planned {
    /// Read or write at an offset of a file.
    Transfer { fd: RawFd, offset: u64, vectors: std::ops::Range<usize>, bytes: u32 },
    /// Sync it.
    Sync { fd: RawFd },
    /// Free a part of it.
    Free { fd: RawFd, offset: u64, bytes: u64 },
}

/// All requests of one device that are under way.
pub(super) struct Flight {
    /// Given away at the end only.
    ring: Option<Ring>,
    /// By their numbers.
    flown: Vec<Option<Flown>>,
    free: Vec<u16>,
    /// Numbers of those whose pieces all came back.
    done: Vec<u16>,
    /// Bytes of what is sealed, of all that are under way.
    sealed_bytes: u64,
    /// Memory that the kernel may still write to.
    memory: Option<GuestMemory>,
    /// What requests of before leave for further ones, and how much of it is room for what is sealed.
    spare: Vec<(Chain, Vectors)>,
    spare_bytes: usize,
}

impl Flight {
    pub(super) fn new(ring: Ring) -> Self {
        let flown = std::iter::repeat_with(|| None).take(UNDER_WAY_MAX).collect();
        // Below the maximum, which fits.
        let free = (0..UNDER_WAY_MAX as u16).rev().collect();
        let (done, spare) = (Vec::new(), Vec::new());
        let (sealed_bytes, spare_bytes) = (0, 0);
        Self { ring: Some(ring), flown, free, done, sealed_bytes, memory: None, spare, spare_bytes }
    }

    fn ring(&self) -> &Ring {
        self.ring.as_ref().expect("invariant: a flight has its ring until its end")
    }

    fn ring_mut(&mut self) -> &mut Ring {
        self.ring.as_mut().expect("invariant: a flight has its ring until its end")
    }

    /// Requests all of whose pieces are done, and that were not taken.
    pub(super) fn done(&self) -> impl Iterator<Item = &Request> {
        let flown = self.done.iter().filter_map(|number| self.flown[usize::from(*number)].as_ref());
        flown.filter(|flown| flown.verdict == Verdict::Done).map(|flown| &flown.request)
    }

    /// Another disk's files come, once nothing is under way.
    pub(super) fn forget_files(&mut self) {
        self.wait();
        self.ring_mut().forget_files();
    }

    /// Gives the ring away, once nothing is under way.
    pub(super) fn into_ring(mut self) -> Ring {
        self.forget_files();
        self.ring.take().expect("invariant: a flight has its ring until its end")
    }

    /// Whether the next request may not find room.
    pub(super) fn is_full(&self) -> bool {
        let all_sealed = self.sealed_bytes + SEALED_BYTES_MAX > ALL_SEALED_BYTES_MAX;
        self.ring().room() < PIECES_MAX || self.free.is_empty() || all_sealed
    }

    /// Requests that were begun and not taken back.
    pub(super) fn count(&self) -> usize {
        UNDER_WAY_MAX - self.free.len()
    }

    /// Vectors to fill for a request.
    pub(super) fn vectors(&mut self) -> (Chain, Vectors) {
        let (chain, vectors) = self.spare.pop().unwrap_or_default();
        self.spare_bytes -= vectors.1.bytes.len();
        (chain, vectors)
    }

    /// Leaves for other requests what one had.
    pub(super) fn recycle(&mut self, chain: Chain, mut vectors: Vectors) {
        vectors.0.clear();
        vectors.1.length = 0;
        if self.spare_bytes + vectors.1.bytes.len() > SPARE_SEALED_BYTES_MAX {
            vectors.1 = Sealed::default();
        }
        self.spare_bytes += vectors.1.bytes.len();
        self.spare.push((chain, vectors));
    }

    /// Begins a request, which has at least one piece and at most [`PIECES_MAX`], and for which there is room. `vectors` were
    /// gathered in `memory`, or in what is sealed of the request.
    pub(super) fn begin(
        &mut self,
        memory: &GuestMemory,
        (queue, chain, request): (u16, Chain, Request),
        vectors: Vectors,
        planned: &[Planned],
    ) {
        self.memory.get_or_insert_with(|| memory.clone());
        let number = self.free.pop().expect("invariant: there is room");
        let writes = matches!(request, Request::Write(_));
        for piece in planned {
            let (Planned::Transfer { fd, .. } | Planned::Sync { fd } | Planned::Free { fd, .. }) = piece;
            self.ring_mut().learn_file(*fd);
            let (piece, expected) = match piece.clone() {
                Planned::Transfer { fd, offset, vectors: range, bytes } if writes => {
                    (Piece::Write(fd, &vectors.0[range], offset), bytes)
                }
                Planned::Transfer { fd, offset, vectors: range, bytes } => {
                    (Piece::Read(fd, &vectors.0[range], offset), bytes)
                }
                Planned::Sync { fd } => (Piece::Sync(fd), 0),
                Planned::Free { fd, offset, bytes } => (Piece::Free(fd, offset, bytes), 0),
            };
            // SAFETY: the vectors' own memory is on the heap and stays with the request below, as does what is sealed; all else that
            // they point at is guest memory, which is kept above until nothing is under way any more.
            unsafe { self.ring_mut().push(piece, u64::from(expected) << 32 | u64::from(number)) };
        }
        self.sealed_bytes += vectors.1.length as u64;
        let (pieces, verdict) = (planned.len(), Verdict::Done);
        self.flown[usize::from(number)] = Some(Flown { queue, chain, request, verdict, vectors, pieces });
    }

    /// Has the kernel begin, and looks for what it has done by then.
    pub(super) fn submit(&mut self) {
        if self.ring().under_way() > 0 {
            self.ring().submit();
            self.collect();
        }
    }

    /// Waits until everything that was begun is done; it is taken afterwards.
    pub(super) fn wait(&mut self) {
        while self.ring().under_way() > 0 {
            self.ring().wait();
            self.collect();
        }
    }

    /// Looks for what the kernel has done.
    pub(super) fn collect(&mut self) {
        while let Some((token, result)) = self.ring_mut().outcome() {
            let (expected, number) = ((token >> 32) as u32, (token & 0xffff) as u16);
            let flown = self.flown.get_mut(usize::from(number)).and_then(Option::as_mut);
            let flown = flown.expect("invariant: the kernel gives back tokens that it was given");
            flown.verdict = flown.verdict.and(verdict(result, expected, &flown.request));
            flown.pieces -= 1;
            if flown.pieces == 0 {
                self.done.push(number);
            }
        }
    }

    /// One request that is done.
    pub(super) fn take(&mut self) -> Option<(Flown, Vectors)> {
        let number = self.done.pop()?;
        self.free.push(number);
        let mut flown = self.flown[usize::from(number)].take().expect("invariant: it is done once");
        if let (Request::Read(range), Some(memory)) = (&flown.request, &self.memory) {
            mark_written(memory, flown.chain.writable(), range.length);
        }
        if self.count() == 0 {
            self.memory = None;
        }
        let vectors = std::mem::take(&mut flown.vectors);
        self.sealed_bytes -= vectors.1.length as u64;
        Some((flown, vectors))
    }
}

impl Verdict {
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Failed(error), _) | (_, Self::Failed(error)) => Self::Failed(error),
            (Self::Again, _) | (_, Self::Again) => Self::Again,
            (Self::Done, Self::Done) => Self::Done,
        }
    }
}

fn verdict(result: i32, expected: u32, request: &Request) -> Verdict {
    match result {
        _ if u32::try_from(result) == Ok(expected) => Verdict::Done,
        0.. => Verdict::Again,
        _ => match -result {
            // What has no holes keeps its bytes, which may be.
            libc::EOPNOTSUPP | libc::ENODEV if matches!(request, Request::Discard(_)) => Verdict::Done,
            libc::EAGAIN | libc::EINTR | libc::ECANCELED | libc::EINVAL | libc::EOPNOTSUPP => Verdict::Again,
            error => Verdict::Failed(error),
        },
    }
}

impl AsRawFd for Flight {
    fn as_raw_fd(&self) -> RawFd {
        self.ring().as_raw_fd()
    }
}

impl Drop for Flight {
    /// Guest memory must not go before the kernel is done with it.
    fn drop(&mut self) {
        if self.ring.is_some() {
            self.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::request::Range;
    use super::*;

    #[test]
    fn outcomes_are_done_again_or_errors() {
        let read = Request::Read(Range { offset: 0, length: 512 });
        assert_eq!(verdict(512, 512, &read), Verdict::Done);
        assert_eq!(verdict(511, 512, &read), Verdict::Again);
        assert_eq!(verdict(0, 512, &read), Verdict::Again);
        assert_eq!(verdict(-libc::EINVAL, 512, &read), Verdict::Again);
        assert_eq!(verdict(-libc::EIO, 512, &read), Verdict::Failed(libc::EIO));
        assert_eq!(verdict(-libc::ENOSPC, 512, &read), Verdict::Failed(libc::ENOSPC));
        assert_eq!(verdict(-libc::EOPNOTSUPP, 0, &Request::Discard(Vec::new())), Verdict::Done);
        assert_eq!(Verdict::Again.and(Verdict::Failed(5)), Verdict::Failed(5));
        assert_eq!(Verdict::Done.and(Verdict::Again), Verdict::Again);
    }
}
