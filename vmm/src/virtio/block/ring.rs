//! An io_uring: requests of a disk that the kernel works on, several at a time and without a thread of ours.
//!
//! A ring is made before the process is confined, since its system-call filter has neither `io_uring_setup` nor
//! `io_uring_register`, and is restricted then for good: it reads, writes, syncs and frees parts of files that the process has
//! open, and nothing else, so that by it no path is opened and nothing is connected to behind the filter's back. Where the
//! kernel has none, or its administrator allows none, a disk is read and written by one system call after the other.
//!
//! Files are registered as they are first used: the kernel then need not look each up and hold it for each piece of work. Guest
//! memory is only where somebody asks for that. A registered page is the kernel's as well as ours: it is there from the start of a guest
//! on, would be copied in each fork of a snapshot, and kept when the balloon gives it back.
//!
//! Must never know: guests, disks.
#![expect(unsafe_code, reason = "the kernel is given addresses")]

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::{IoUring, cqueue, opcode, register::Restriction, squeue, types};
use rustix::fs::FallocateFlags;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion as _};

use crate::memory::GuestMemory;

/// Pieces of work that are handed over at once; more go in several goes.
const SUBMITTED_MAX: u32 = 64;
/// Pieces of work under way; there is room for the outcome of each.
pub(super) const UNDER_WAY_MAX: usize = 256;
/// The kernel's threads for what cannot be done otherwise, such as a sync: per processor node, so a few.
const WORKERS_MAX: u32 = 4;
/// What may be asked of a ring.
const ALLOWED: [u8; 9] = [
    opcode::Read::CODE,
    opcode::Readv::CODE,
    opcode::Write::CODE,
    opcode::Writev::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
    // Memory that was registered when the ring was made.
    opcode::ReadFixed::CODE,
    opcode::WriteFixed::CODE,
    // Files that the process has open anyhow.
    opcode::FilesUpdate::CODE,
];
/// Files of one disk that are registered: all layers that it may have. Further ones go by their descriptors.
const FILES_MAX: u32 = 16;
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
    /// Registered files, by their numbers in the ring.
    files: Vec<RawFd>,
    /// Registered memory, by its numbers in the ring: addresses and bytes.
    memory: Vec<(usize, usize)>,
}

impl Ring {
    /// A ring that can do what [`Piece`] says, and nothing else.
    ///
    /// # Errors
    /// The kernel has none (before 5.19), or gives none.
    pub fn new() -> io::Result<Self> {
        Self::with_memory(&Pinned::default())
    }

    /// The same with memory registered: what is read or written there takes less of a processor.
    ///
    /// # Errors
    /// Likewise, or the kernel does not pin so much memory.
    fn with_memory(pinned: &Pinned) -> io::Result<Self> {
        let mut builder = IoUring::<squeue::Entry, cqueue::Entry>::builder();
        // A process that is interrupted for a completion gains nothing: it sleeps, or comes by anyhow. Completions are also
        // waited for where a guest's processor resets its device, so there is no single thread that issues.
        builder.setup_coop_taskrun().setup_r_disabled().setup_cqsize(2 * UNDER_WAY_MAX as u32);
        let uring = builder.build(SUBMITTED_MAX)?;
        let submitter = uring.submitter();
        submitter.register_iowq_max_workers(&mut [WORKERS_MAX, 1])?;
        submitter.register_files_sparse(FILES_MAX)?;
        let pieces = pinned.pieces();
        if !pieces.is_empty() {
            let vector = |(address, bytes): &(usize, usize)| libc::iovec {
                iov_base: std::ptr::with_exposed_provenance_mut(*address),
                iov_len: *bytes,
            };
            let vectors: Vec<_> = pieces.iter().map(vector).collect();
            // SAFETY: the kernel holds on to the pages themselves, whatever becomes of their mapping.
            unsafe { submitter.register_buffers(&vectors) }?;
        }
        let mut restrictions: Vec<_> = ALLOWED.into_iter().map(Restriction::sqe_op).collect();
        restrictions.push(Restriction::sqe_flags_allowed(squeue::Flags::FIXED_FILE.bits()));
        submitter.register_restrictions(&mut restrictions)?;
        submitter.register_enable_rings()?;
        Ok(Self { uring, under_way: 0, files: Vec::new(), memory: pieces })
    }

    /// How many further pieces there is room for.
    pub(super) fn room(&self) -> usize {
        UNDER_WAY_MAX - self.under_way
    }

    /// Pieces under way.
    pub(super) fn under_way(&self) -> usize {
        self.under_way
    }

    /// Registers a file, which stays open until [`Self::forget_files`]. Nothing changes while anything is under way, or if the kernel
    /// does not take it: then it goes by its descriptor.
    pub(super) fn learn_file(&mut self, fd: RawFd) {
        let is_known = self.files.contains(&fd) || self.files.len() >= FILES_MAX as usize;
        if !is_known && self.under_way == 0 && self.update_files(self.files.len(), &[fd]) {
            self.files.push(fd);
        }
    }

    /// Lets all registered files go: they may be closed, and their descriptors be another's. Nothing is under way.
    pub(super) fn forget_files(&mut self) {
        assert_eq!(self.under_way, 0, "invariant: nothing is done with files that go");
        let files = std::mem::take(&mut self.files);
        if !files.is_empty() && !self.update_files(0, &vec![-1; files.len()]) {
            tracing::error!("a ring holds on to the files of a disk");
        }
    }

    /// Puts files into their places from `first` on; -1 empties one.
    fn update_files(&mut self, first: usize, fds: &[RawFd]) -> bool {
        let first = i32::try_from(first).expect("invariant: there are few files");
        let count = u32::try_from(fds.len()).expect("invariant: there are few files");
        let update = opcode::FilesUpdate::new(fds.as_ptr(), count).offset(first).build();
        // SAFETY: the descriptors lie there until the outcome came back below.
        if unsafe { self.uring.submission().push(&update) }.is_err() {
            return false;
        }
        self.under_way += 1;
        loop {
            self.wait();
            if let Some((_, result)) = self.outcome() {
                return u32::try_from(result) == Ok(count);
            }
        }
    }

    /// How an entry names a file.
    fn name(&self, fd: RawFd) -> (types::Fd, squeue::Flags) {
        match self.files.iter().position(|known| *known == fd) {
            // There are few files.
            Some(number) => (types::Fd(number as RawFd), squeue::Flags::FIXED_FILE),
            None => (types::Fd(fd), squeue::Flags::empty()),
        }
    }

    /// The number of registered memory in which all of `one` lies.
    fn registered(&self, one: &libc::iovec) -> Option<u16> {
        let start = one.iov_base.addr();
        let holds = |(address, bytes): &(usize, usize)| {
            start >= *address && start - address <= *bytes && one.iov_len <= bytes - (start - address)
        };
        // There are few.
        self.memory.iter().position(holds).map(|number| number as u16)
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
        let (Piece::Read(fd, ..) | Piece::Write(fd, ..) | Piece::Sync(fd) | Piece::Free(fd, ..)) = piece;
        let (file, flags) = self.name(fd);
        let entry = match piece {
            Piece::Read(_, [one], offset) => match self.registered(one) {
                Some(number) => opcode::ReadFixed::new(file, one.iov_base.cast(), length(one), number)
                    .offset(offset)
                    .build(),
                None => opcode::Read::new(file, one.iov_base.cast(), length(one)).offset(offset).build(),
            },
            Piece::Read(_, many, offset) => {
                opcode::Readv::new(file, many.as_ptr(), count(many)).offset(offset).build()
            }
            Piece::Write(_, [one], offset) => match self.registered(one) {
                Some(number) => opcode::WriteFixed::new(file, one.iov_base.cast(), length(one), number)
                    .offset(offset)
                    .build(),
                None => opcode::Write::new(file, one.iov_base.cast(), length(one)).offset(offset).build(),
            },
            Piece::Write(_, many, offset) => {
                opcode::Writev::new(file, many.as_ptr(), count(many)).offset(offset).build()
            }
            Piece::Sync(_) => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
            Piece::Free(_, offset, bytes) => {
                let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                opcode::Fallocate::new(file, bytes).offset(offset).mode(hole.bits().cast_signed()).build()
            }
        };
        let entry = entry.flags(flags).user_data(token);
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

/// The most of one piece of registered memory (io_uring_register(2)).
const REGISTERED_BYTES_MAX: usize = 1 << 30;

/// Memory of a guest's that its disks' rings have registered. Its pages are there, and are the kernel's as well, as long as a ring is.
#[derive(Default)]
pub struct Pinned(Vec<(usize, usize)>);

impl Pinned {
    /// All of `memory`.
    #[must_use]
    pub fn all_of(memory: &GuestMemory) -> Self {
        let region = |region: &<GuestMemory as GuestMemoryBackend>::R| {
            let bytes = usize::try_from(region.len()).expect("invariant: usize has 64 bits");
            (region.as_ptr().expose_provenance(), bytes)
        };
        Self(memory.iter().map(region).collect())
    }

    fn pieces(&self) -> Vec<(usize, usize)> {
        let cut = |(address, bytes): &(usize, usize)| {
            let (address, bytes) = (*address, *bytes);
            (0..bytes)
                .step_by(REGISTERED_BYTES_MAX)
                .map(move |at| (address + at, (bytes - at).min(REGISTERED_BYTES_MAX)))
        };
        self.0.iter().flat_map(cut).collect()
    }
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

    /// The same, with memory registered by the rings of the disks that there are; those that come later do without that.
    ///
    /// # Errors
    /// The kernel has no io_uring, or does not pin so much memory.
    pub fn pinning(count: usize, more_may_come: bool, pinned: &Pinned) -> io::Result<Self> {
        let mut rings = Self::prepare(if more_may_come { SPARE } else { 0 });
        // The last ones are taken first.
        for _ in 0..count {
            rings.free.push(Ring::with_memory(pinned)?);
        }
        Ok(rings)
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
mod measure;

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;
    use std::os::unix::fs::FileExt as _;

    use super::*;
    use crate::testing::skipped;

    #[test]
    fn ring_reads_writes_syncs_and_frees_and_refuses_all_else() {
        let Ok(mut ring) = Ring::new() else {
            skipped("no io_uring");
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
    fn registered_file_is_read_by_its_number_and_let_go_before_its_descriptor_is_anothers() {
        let Ok(mut ring) = Ring::new() else {
            skipped("no io_uring");
            return;
        };
        let file = |text: &[u8]| {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(text, 0).unwrap();
            file
        };
        let (first, second) = (file(b"first..."), file(b"second.."));
        let mut bytes = [0_u8; 8];
        let vectors = [libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: 8 }];
        let read = |ring: &mut Ring, fd| {
            // SAFETY: vectors and bytes live until the outcome was taken below.
            unsafe { ring.push(Piece::Read(fd, &vectors, 0), 1) };
            // Not while anything is under way.
            ring.learn_file(-1);
            ring.wait();
            (ring.outcome().unwrap().1, bytes)
        };
        let fd = first.as_raw_fd();
        ring.learn_file(fd);
        ring.learn_file(fd);
        ring.learn_file(1 << 20);
        assert_eq!(ring.files, [fd], "a file that is none is not known");
        assert_eq!(read(&mut ring, fd), (8, *b"first..."));
        // The descriptor is another's; the ring has the file that it had.
        rustix::io::dup2(&second, &mut std::mem::ManuallyDrop::new(owned(fd))).unwrap();
        assert_eq!(read(&mut ring, fd), (8, *b"first..."));
        ring.forget_files();
        assert_eq!(read(&mut ring, fd), (8, *b"second.."));
        ring.learn_file(fd);
        assert_eq!(read(&mut ring, fd), (8, *b"second.."));
    }

    #[test]
    fn registered_memory_is_read_and_written_and_all_other_as_before() {
        let guest = crate::memory::allocate(2).unwrap();
        let pinned = Pinned::all_of(&guest);
        let Ok(mut rings) = Rings::pinning(1, false, &pinned) else {
            skipped("no io_uring, or no memory to pin");
            return;
        };
        let mut ring = rings.take().unwrap();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"what is read", 0).unwrap();
        let (start, _) = ring.memory[0];
        let mut outside = [0_u8; 12];
        let vector = |address: usize| libc::iovec {
            iov_base: std::ptr::with_exposed_provenance_mut(address),
            iov_len: 12,
        };
        let last = start + (2 << 20) - 12;
        assert_eq!(
            [start, last, last + 1, start - 1].map(|at| ring.registered(&vector(at))),
            [Some(0), Some(0), None, None]
        );
        let at_last = [vector(last)];
        let own = [libc::iovec { iov_base: outside.as_mut_ptr().cast(), iov_len: 12 }];
        let mut one = |piece| {
            // SAFETY: vectors and what they point at live until the outcome was taken below.
            unsafe { ring.push(piece, 1) };
            ring.wait();
            ring.outcome().unwrap().1
        };
        assert_eq!(one(Piece::Read(file.as_raw_fd(), &at_last, 0)), 12);
        assert_eq!(one(Piece::Write(file.as_raw_fd(), &at_last, 12)), 12);
        assert_eq!(one(Piece::Read(file.as_raw_fd(), &own, 12)), 12);
        assert_eq!(&outside, b"what is read");
    }

    #[test]
    fn memory_is_registered_in_pieces_that_the_kernel_takes() {
        let pinned = Pinned(vec![(4096, 5 << 29), (1 << 40, 4096)]);
        let gib = 1 << 30;
        let wanted = [(4096, gib), (4096 + gib, gib), (4096 + 2 * gib, gib / 2), (1 << 40, 4096)];
        assert_eq!(pinned.pieces(), wanted);
    }

    /// A descriptor of the caller's, which it does not give away.
    fn owned(fd: RawFd) -> std::os::fd::OwnedFd {
        // SAFETY: the caller has it open, and does not drop what it gets.
        unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) }
    }

    #[test]
    fn outcome_comes_to_whoever_waits_while_the_thread_that_asked_sleeps() {
        let Ok(ring) = Ring::new() else {
            skipped("no io_uring");
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
