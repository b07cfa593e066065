//! What is done with a device's requests, over any disk.
//!
//! Where the disk says in which files the bytes lie, they go between there and the guest's buffers: by the ring where the
//! medium has to be waited for, and at once where what is wanted is in the page cache, for which a call is cheaper than a
//! ring's turn. What is written to the page cache is written at once as well: a ring would leave it to a thread of the kernel's,
//! one write after the other and at twice the cost. What lies encrypted goes by a copy of each request's own, which is encrypted
//! before it is written and decrypted when it was read. All else passes through one bounded buffer, one request after the other, and nothing is under way then that
//! writes: what a disk does with a part of a cluster or of a block needs the rest of it to stand still.

mod plan;

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};

use storage::format::{Disk, Extent, Stored, Work};

use self::plan::Tried;
use super::super::queue::Chain;
use super::super::spec::block as spec;
use super::flight::{Flight, Flown, PIECES_MAX, Planned, SEALED_BYTES_MAX, Vectors, Verdict};
use super::guest_io::mark_written;
use super::mapped::Mapped;
use super::request::{Range, Request};
use super::ring::Ring;
use super::{BUFFER_BYTES_MAX, Failure};
use crate::memory::GuestMemory;

/// What became of a request right away.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Begun {
    /// It is done.
    Done(Result<(), Failure>),
    /// It is under way, and its chain is kept with it.
    UnderWay,
}

/// See the module.
pub(super) struct Backend {
    /// Before the disk, whose files are open until nothing is under way.
    flight: Option<Flight>,
    /// As above: a file that is mapped is not closed, and keeps its locks.
    mapped: Mapped,
    disk: Box<dyn Disk>,
    serial: [u8; spec::ID_BYTES],
    buffer: Vec<u8>,
    extents: Vec<Extent>,
    planned: Vec<Planned>,
    /// The files tell whether a read would wait. Those of memory do not, and never let anybody wait; some of a network do
    /// not, and are waited for.
    tells_waits: bool,
}

impl Backend {
    pub(super) fn new(disk: Box<dyn Disk>, serial: [u8; spec::ID_BYTES], ring: Option<Ring>) -> Self {
        Self {
            flight: ring.map(Flight::new),
            mapped: Mapped::new(),
            disk,
            serial,
            buffer: Vec::new(),
            extents: Vec::new(),
            planned: Vec::new(),
            tells_waits: true,
        }
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }

    pub(super) fn is_encrypted(&self) -> bool {
        self.disk.stored().is_some()
    }

    /// Serves another disk; what is under way is finished with the one before, whose file is returned.
    pub(super) fn replace(&mut self, disk: Box<dyn Disk>) -> Option<OwnedFd> {
        debug_assert_eq!(self.under_way(), 0, "what is under way belongs to the disk before");
        if let Some(flight) = &mut self.flight {
            flight.forget_files();
        }
        self.mapped.forget();
        let before = std::mem::replace(&mut self.disk, disk);
        self.tells_waits = true;
        before.file().and_then(|file| file.try_clone_to_owned().ok())
    }

    /// The ring's descriptor.
    pub(super) fn ring(&self) -> Option<RawFd> {
        self.flight.as_ref().map(Flight::as_raw_fd)
    }

    /// Requests under way, or done and not delivered.
    pub(super) fn under_way(&self) -> usize {
        self.flight.as_ref().map_or(0, Flight::count)
    }

    /// Whether further requests have to wait for those under way.
    pub(super) fn is_full(&self) -> bool {
        self.flight.as_ref().is_some_and(Flight::is_full)
    }

    /// Begins a request that came by `queue`. A driver that has not taken the flush may take what is written for durable.
    pub(super) fn begin(
        &mut self,
        memory: &GuestMemory,
        (queue, chain): (u16, &mut Chain),
        request: Request,
        can_flush: bool,
    ) -> Begun {
        self.extents.clear();
        let disk = located_by(&*self.disk);
        let located = match &request {
            Request::Read(range) | Request::Write(range) if !self.can_seal(*range) => Ok(false),
            Request::Read(Range { offset, length }) => {
                disk.locate(Work::Read { offset: *offset, length: *length }, &mut self.extents)
            }
            Request::Write(Range { offset, length }) if can_flush => {
                disk.locate(Work::Write { offset: *offset, length: *length }, &mut self.extents)
            }
            Request::Flush => {
                self.mapped.flush();
                disk.locate(Work::Flush, &mut self.extents)
            }
            Request::Discard(ranges) if can_flush => ranges.iter().try_fold(true, |all, range| {
                let work = Work::Discard { offset: range.offset, length: range.length };
                let is_whole = self.disk.stored().is_none() || Stored::is_whole(range.offset, range.length);
                Ok(all && is_whole && disk.locate(work, &mut self.extents)?)
            }),
            _ => Ok(false),
        };
        match located {
            Ok(true) if self.extents.len() <= PIECES_MAX => {
                self.begin_located(memory, (queue, chain), request, can_flush)
            }
            Ok(_) => Begun::Done(self.run(memory, chain, &request, can_flush)),
            Err(error) => Begun::Done(Err(failed(name(&request), &error))),
        }
    }

    /// Whether a part of the disk is read or written by a ring if that is possible at all: it lies in the clear, or what it takes
    /// to encrypt it is bounded.
    fn can_seal(&self, Range { offset, length }: Range) -> bool {
        let fits = length <= SEALED_BYTES_MAX && Stored::is_whole(offset, length);
        self.disk.stored().is_none() || self.flight.is_some() && fits
    }

    fn begin_located(
        &mut self,
        memory: &GuestMemory,
        (queue, chain): (u16, &mut Chain),
        request: Request,
        can_flush: bool,
    ) -> Begun {
        let (spare, mut vectors) = self.flight.as_mut().map(Flight::vectors).unwrap_or_default();
        let planned = self.plan(memory, chain, &request, &mut vectors);
        let flight = self.flight.as_mut();
        match (planned, flight) {
            (Ok(Tried::Done), _) => {
                let outcome = self.conclude(memory, (chain, &mut vectors), &request, Verdict::Done);
                if let Some(flight) = &mut self.flight {
                    flight.recycle(spare, vectors);
                }
                Begun::Done(outcome)
            }
            (Ok(Tried::Waits), Some(flight)) => {
                let chain = std::mem::replace(chain, spare);
                flight.begin(memory, (queue, chain, request), vectors, &self.planned);
                Begun::UnderWay
            }
            (Ok(_), flight) => {
                if let Some(flight) = flight {
                    flight.recycle(spare, vectors);
                }
                Begun::Done(self.run(memory, chain, &request, can_flush))
            }
            (Err(error), _) => {
                let verdict = Verdict::Failed(error.raw_os_error().unwrap_or(libc::EIO));
                Begun::Done(self.conclude(memory, (chain, &mut vectors), &request, verdict))
            }
        }
    }

    /// Has the kernel begin with what waits for it.
    pub(super) fn submit(&mut self) {
        if let Some(flight) = &mut self.flight {
            flight.submit();
        }
    }

    /// Looks for what is done.
    pub(super) fn collect(&mut self) {
        if let Some(flight) = &mut self.flight {
            flight.collect();
        }
    }

    /// Waits for all that is under way; it is still to be delivered.
    pub(super) fn wait(&mut self) {
        if let Some(flight) = &mut self.flight {
            flight.wait();
        }
    }

    /// Hands over what is done: the queue it came by, its chain, its outcome. False once nothing is.
    pub(super) fn deliver<R>(
        &mut self,
        memory: &GuestMemory,
        give: impl FnOnce(u16, &Chain, Result<(), Failure>) -> R,
    ) -> Option<R> {
        let (flown, mut vectors) = self.flight.as_mut()?.take()?;
        let Flown { queue, chain, request, verdict, .. } = flown;
        let outcome = self.conclude(memory, (&chain, &mut vectors), &request, verdict);
        let given = give(queue, &chain, outcome);
        self.flight.as_mut()?.recycle(chain, vectors);
        Some(given)
    }

    /// Waits for what is under way and forgets it: nobody waits for it any more.
    pub(super) fn abandon(&mut self) {
        self.wait();
        while let Some((flown, vectors)) = self.flight.as_mut().and_then(Flight::take) {
            let Flown { chain, request, verdict, .. } = flown;
            if verdict == Verdict::Done
                && let Err(failure) = self.settle(&request, Ok(()))
            {
                tracing::debug!(?failure, "a request that nobody waits for failed");
            }
            if let Some(flight) = &mut self.flight {
                flight.recycle(chain, vectors);
            }
        }
    }

    /// What follows when the pieces of a request are done; never of one whose driver has not taken the flush.
    fn conclude(
        &mut self,
        memory: &GuestMemory,
        (chain, vectors): (&Chain, &mut Vectors),
        request: &Request,
        verdict: Verdict,
    ) -> Result<(), Failure> {
        if let Request::Read(range) = request {
            if let Some(stored) = self.disk.stored().filter(|_| verdict == Verdict::Done) {
                let bytes = vectors.1.get();
                stored.decrypt(bytes, range.offset);
                chain.write_at(memory, 0, bytes);
            }
            // Also of one that failed: who knows how far it came.
            mark_written(memory, chain.writable(), range.length);
        }
        match verdict {
            Verdict::Again => self.run(memory, chain, request, true),
            Verdict::Failed(error) => self.settle(request, Err(io::Error::from_raw_os_error(error))),
            Verdict::Done => self.settle(request, Ok(())),
        }
    }

    /// Tells the disk what became of located work.
    fn settle(&self, request: &Request, result: io::Result<()>) -> Result<(), Failure> {
        let disk = located_by(&*self.disk);
        let result = match request {
            Request::Write(Range { offset, length }) => {
                disk.finish(Work::Write { offset: *offset, length: *length }, result)
            }
            Request::Flush => disk.finish(Work::Flush, result),
            _ => result,
        };
        result.map_err(|error| failed(name(request), &error))
    }

    /// A request from its beginning to its end.
    fn run(
        &mut self,
        memory: &GuestMemory,
        chain: &Chain,
        request: &Request,
        can_flush: bool,
    ) -> Result<(), Failure> {
        if !matches!(request, Request::Read(_) | Request::Flush | Request::Identify { .. }) {
            self.wait();
            self.settle_done();
        }
        match request {
            Request::Read(range) => return self.read(memory, chain, *range),
            Request::Flush => return self.disk.flush().map_err(|error| failed("flush", &error)),
            Request::Identify { bytes } => {
                chain.write_at(memory, 0, &self.serial[..*bytes]);
                return Ok(());
            }
            Request::Write(range) => self.write(memory, chain, *range)?,
            Request::Discard(ranges) => {
                for range in ranges {
                    let freed = self.disk.discard(range.offset, range.length);
                    freed.map_err(|error| failed("discard", &error))?;
                }
            }
            Request::WriteZeroes { range, free } => {
                let zeroed = self.disk.write_zeroes(range.offset, range.length, *free);
                zeroed.map_err(|error| failed("write zeroes", &error))?;
            }
        }
        // Without a cache flush of its own, the driver may take a finished write for durable (§5.2.6.2).
        if can_flush { Ok(()) } else { self.disk.flush().map_err(|error| failed("flush", &error)) }
    }

    /// Has the disk know of the writes that are done and not delivered yet.
    fn settle_done(&self) {
        for request in self.flight.iter().flat_map(Flight::done) {
            // Its failure is told when it is delivered, where the disk is told once more.
            let _ = self.settle(request, Ok(()));
        }
    }

    /// The buffer, grown to hold a piece of `length` bytes; never beyond [`BUFFER_BYTES_MAX`].
    fn grow(&mut self, length: u64) {
        let wanted = usize::try_from(length).unwrap_or(usize::MAX).min(BUFFER_BYTES_MAX);
        if self.buffer.len() < wanted {
            self.buffer.resize(wanted, 0);
        }
    }

    fn read(&mut self, memory: &GuestMemory, chain: &Chain, range: Range) -> Result<(), Failure> {
        self.grow(range.length);
        for (done, piece) in pieces(range.length) {
            let buffer = &mut self.buffer[..piece];
            self.disk.read_at(buffer, range.offset + done).map_err(|error| failed("read", &error))?;
            chain.write_at(memory, done, buffer);
        }
        Ok(())
    }

    fn write(&mut self, memory: &GuestMemory, chain: &Chain, range: Range) -> Result<(), Failure> {
        self.grow(range.length);
        for (done, piece) in pieces(range.length) {
            let buffer = &mut self.buffer[..piece];
            if chain.read_at(memory, spec::REQUEST_HEADER_BYTES as u64 + done, buffer) != piece {
                return Err(Failure::Io);
            }
            self.disk.write_at(buffer, range.offset + done).map_err(|error| failed("write", &error))?;
        }
        Ok(())
    }

    /// Has the files show all that was written.
    pub(super) fn write_out(&mut self) -> io::Result<()> {
        self.disk.flush()
    }

    /// The ring, for another disk: nothing is under way or undelivered.
    pub(super) fn take_ring(&mut self) -> Option<Ring> {
        self.flight.take().map(Flight::into_ring)
    }
}

/// What says where the disk's bytes lie: itself, or what is below its cipher.
pub(super) fn located_by(disk: &dyn Disk) -> &dyn Disk {
    disk.stored().map_or(disk, |stored| stored.disk)
}

/// Offsets and lengths of the pieces in which `length` bytes pass through the buffer.
fn pieces(length: u64) -> impl Iterator<Item = (u64, usize)> {
    (0..length).step_by(BUFFER_BYTES_MAX).map(move |done| {
        let piece = usize::try_from(length - done).unwrap_or(usize::MAX).min(BUFFER_BYTES_MAX);
        (done, piece)
    })
}

fn name(request: &Request) -> &'static str {
    match request {
        Request::Read(_) => "read",
        Request::Write(_) => "write",
        Request::Flush => "flush",
        Request::Identify { .. } => "identify",
        Request::Discard(_) => "discard",
        Request::WriteZeroes { .. } => "write zeroes",
    }
}

fn failed(what: &'static str, error: &io::Error) -> Failure {
    tracing::debug!(%error, what, "a guest's disk request failed");
    Failure::Io
}
