//! An io_uring: requests of a disk that the kernel works on, several at a time and without a thread of ours.
//!
//! A ring is made before the process is confined, since its system-call filter has neither `io_uring_setup` nor
//! `io_uring_register`, and is restricted then for good: it reads, writes, syncs and frees parts of files that the process has
//! open, and nothing else, so that by it no path is opened and nothing is connected to behind the filter's back. Where the
//! kernel has none, or its administrator allows none, a disk is read and written by one system call after the other.
//!
//! Neither files nor guest memory are registered. A registered page is the kernel's as well as ours: it would be there from the
//! start of a guest on, copied in each fork of a snapshot, and kept when the balloon gives it back.
//!
//! Must never know: guests, disks.
#![expect(unsafe_code, reason = "the kernel is given addresses")]

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::{IoUring, cqueue, opcode, register::Restriction, squeue, types};
use rustix::fs::FallocateFlags;

/// Pieces of work that are handed over at once; more go in several goes.
const SUBMITTED_MAX: u32 = 64;
/// Pieces of work under way; there is room for the outcome of each.
pub(super) const UNDER_WAY_MAX: usize = 256;
/// The kernel's threads for what cannot be done otherwise, such as a sync: per processor node, so a few.
const WORKERS_MAX: u32 = 4;
/// What may be asked of a ring.
const ALLOWED: [u8; 6] = [
    opcode::Read::CODE,
    opcode::Readv::CODE,
    opcode::Write::CODE,
    opcode::Writev::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
];
/// Disks that come while a guest runs and have a ring at the same time; further ones do without. A ring takes 15 µs of a
/// VMM's start.
pub const SPARE: usize = 4;

/// One piece of work.
#[derive(Debug, Clone, Copy)]
pub(super) enum Piece<'m> {
    /// Read a file from an offset on.
    Read(RawFd, &'m [libc::iovec], u64),
    /// Write to it.
    Write(RawFd, &'m [libc::iovec], u64),
    /// Make durable what was written to it.
    Sync(RawFd),
    /// Free so many bytes from an offset on.
    Free(RawFd, u64, u64),
}

/// A ring.
pub struct Ring {
    uring: IoUring,
    /// Handed over or about to be, and not heard of yet.
    under_way: usize,
}

impl Ring {
    /// A ring that can do what [`Piece`] says, and nothing else.
    ///
    /// # Errors
    /// The kernel has none (before 5.19), or gives none.
    pub fn new() -> io::Result<Self> {
        let mut builder = IoUring::<squeue::Entry, cqueue::Entry>::builder();
        // A process that is interrupted for a completion gains nothing: it sleeps, or comes by anyhow. Completions are also
        // waited for where a guest's processor resets its device, so there is no single thread that issues.
        builder.setup_coop_taskrun().setup_r_disabled().setup_cqsize(2 * UNDER_WAY_MAX as u32);
        let uring = builder.build(SUBMITTED_MAX)?;
        let submitter = uring.submitter();
        submitter.register_iowq_max_workers(&mut [WORKERS_MAX, 1])?;
        submitter.register_restrictions(&mut ALLOWED.map(Restriction::sqe_op))?;
        submitter.register_enable_rings()?;
        Ok(Self { uring, under_way: 0 })
    }

    /// How many further pieces there is room for.
    pub(super) fn room(&self) -> usize {
        UNDER_WAY_MAX - self.under_way
    }

    /// Pieces under way.
    pub(super) fn under_way(&self) -> usize {
        self.under_way
    }

    /// Takes a piece of work; `token` comes back with its outcome. It is begun by [`Self::submit`] at the latest.
    ///
    /// # Safety
    /// What the vectors of a read or write point at, and the vectors, stay where they are until the outcome came back.
    ///
    /// # Panics
    /// There is no [`Self::room`].
    pub(super) unsafe fn push(&mut self, piece: Piece<'_>, token: u64) {
        assert!(self.under_way < UNDER_WAY_MAX, "invariant: there is room");
        let entry = match piece {
            Piece::Read(fd, [one], offset) => {
                opcode::Read::new(types::Fd(fd), one.iov_base.cast(), length(one)).offset(offset).build()
            }
            Piece::Read(fd, many, offset) => {
                opcode::Readv::new(types::Fd(fd), many.as_ptr(), count(many)).offset(offset).build()
            }
            Piece::Write(fd, [one], offset) => {
                opcode::Write::new(types::Fd(fd), one.iov_base.cast(), length(one)).offset(offset).build()
            }
            Piece::Write(fd, many, offset) => {
                opcode::Writev::new(types::Fd(fd), many.as_ptr(), count(many)).offset(offset).build()
            }
            Piece::Sync(fd) => opcode::Fsync::new(types::Fd(fd)).flags(types::FsyncFlags::DATASYNC).build(),
            Piece::Free(fd, offset, bytes) => {
                let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                opcode::Fallocate::new(types::Fd(fd), bytes)
                    .offset(offset)
                    .mode(hole.bits().cast_signed())
                    .build()
            }
        };
        let entry = entry.user_data(token);
        loop {
            // SAFETY: the caller keeps what the entry points at, and keeps its file open as long.
            if unsafe { self.uring.submission().push(&entry) }.is_ok() {
                self.under_way += 1;
                return;
            }
            // Full: the kernel takes what there is; where it will not, it is asked again.
            self.submit();
        }
    }

    /// Has the kernel begin with what was pushed. What it will not take now it takes with the next call.
    pub(super) fn submit(&self) {
        self.enter(0);
    }

    /// Waits until an outcome is there, if anything is under way.
    pub(super) fn wait(&self) {
        self.enter(self.under_way.min(1));
    }

    fn enter(&self, wanted: usize) {
        // An interrupted wait, too little memory or a full queue of outcomes: whoever wants more comes again.
        if let Err(error) = self.uring.submit_and_wait(wanted)
            && error.kind() != io::ErrorKind::Interrupted
        {
            tracing::debug!(%error, "the kernel takes no further disk requests now");
        }
    }

    /// The next outcome: the token of its piece, and what the kernel answered, as a system call does.
    pub(super) fn outcome(&mut self) -> Option<(u64, i32)> {
        let entry = self.uring.completion().next()?;
        self.under_way -= 1;
        Some((entry.user_data(), entry.result()))
    }
}

impl AsRawFd for Ring {
    /// Readable while there are outcomes.
    fn as_raw_fd(&self) -> RawFd {
        self.uring.as_raw_fd()
    }
}

/// Segments are below 32 MiB, and as many as a chain may have.
fn length(one: &libc::iovec) -> u32 {
    u32::try_from(one.iov_len).expect("invariant: within a chain's bytes")
}

fn count(many: &[libc::iovec]) -> u32 {
    u32::try_from(many.len()).expect("invariant: within a chain's descriptors")
}

/// The rings of one machine: made together before its process is confined, given to disks as they come.
#[derive(Default)]
pub struct Rings {
    free: Vec<Ring>,
}

impl Rings {
    /// One for each of so many disks, and, if some may come later, [`SPARE`] for these.
    #[must_use]
    pub fn for_disks(count: usize, more_may_come: bool) -> Self {
        Self::prepare(count + if more_may_come { SPARE } else { 0 })
    }

    /// `count` rings, or fewer where the kernel gives no more; why, is logged.
    fn prepare(count: usize) -> Self {
        let mut free = Vec::with_capacity(count);
        while free.len() < count {
            match Ring::new() {
                Ok(ring) => free.push(ring),
                Err(error) => {
                    tracing::info!(%error, "no io_uring for disks: they are read and written one request after the other");
                    break;
                }
            }
        }
        Self { free }
    }

    /// One that nobody has.
    pub fn take(&mut self) -> Option<Ring> {
        self.free.pop()
    }

    /// Takes one back.
    pub fn give_back(&mut self, ring: Ring) {
        self.free.push(ring);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn ring_reads_writes_syncs_and_frees_and_refuses_all_else() {
        let Ok(mut ring) = Ring::new() else {
            println!("skipped: no io_uring");
            return;
        };
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"before..", 0).unwrap();
        let mut bytes = *b"after...";
        let vectors = [libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: 5 }];
        let fd = file.as_raw_fd();
        let mut one = |piece, token| {
            // SAFETY: vectors and bytes live until the outcome was taken below.
            unsafe { ring.push(piece, token) };
            ring.wait();
            ring.outcome().unwrap()
        };
        assert_eq!(one(Piece::Write(fd, &vectors, 2), 1), (1, 5));
        assert_eq!(one(Piece::Sync(fd), 2), (2, 0));
        assert_eq!(one(Piece::Read(fd, &vectors, 0), 3), (3, 5));
        assert_eq!(one(Piece::Free(fd, 0, 4096), 4).0, 4);
        assert_eq!(one(Piece::Sync(-1), 5), (5, -libc::EBADF));
        assert_eq!(&bytes, b"beaft...");
        let path = c"/dev/null";
        let open = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr()).build().user_data(6);
        // SAFETY: the path is a constant.
        unsafe { ring.uring.submission().push(&open) }.unwrap();
        ring.under_way += 1;
        ring.wait();
        assert_eq!(ring.outcome(), Some((6, -libc::EACCES)));
        assert!(ring.uring.submitter().register_files(&[fd]).is_err(), "nothing can be registered");
        assert_eq!((ring.under_way(), ring.room()), (0, UNDER_WAY_MAX));
    }
    #[test]
    fn outcome_comes_to_whoever_waits_while_the_thread_that_asked_sleeps() {
        let Ok(ring) = Ring::new() else {
            println!("skipped: no io_uring");
            return;
        };
        let (reader, mut writer) = io::pipe().unwrap();
        let ring = std::sync::Mutex::new(ring);
        let (asleep, wake) = std::sync::mpsc::channel::<()>();
        let (asked, was_asked) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let (ring, fd) = (&ring, reader.as_raw_fd());
            scope.spawn(move || {
                let mut byte = [0_u8];
                let vectors = [libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 }];
                {
                    let mut ring = ring.lock().unwrap();
                    // SAFETY: this thread lives, and with it what it has, until the outcome was taken below.
                    unsafe { ring.push(Piece::Read(fd, &vectors, 0), 7) };
                    ring.submit();
                }
                asked.send(()).unwrap();
                // As one waits that holds its processors, or its event loop.
                let _ = wake.recv();
            });
            was_asked.recv().unwrap();
            let mut ring = ring.lock().unwrap();
            scope.spawn(move || {
                std::thread::sleep(std::time::Duration::from_millis(20));
                io::Write::write_all(&mut writer, b"x").unwrap();
            });
            while ring.under_way() > 0 {
                ring.wait();
                assert!(ring.outcome().is_none_or(|outcome| outcome == (7, 1)));
            }
            drop(asleep);
        });
    }
}
