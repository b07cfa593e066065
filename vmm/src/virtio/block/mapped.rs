//! Files whose pages are in the page cache, read and written there as memory, without a call: a call for 4 KiB takes twice as
//! long as the copy in it, and one that writes seven times as long.
//!
//! Memory cannot be asked whether it would have to wait for a medium, so only **known** pages are copied: ones that a call has
//! read without waiting, or written, since the file was mapped. Should the kernel have dropped some since, which its count of
//! this thread's faults shows, all is forgotten, and nothing is copied for a while: at first for [`REST_MIN`] requests, for
//! twice as many at each further time. What a copy cannot do, a call does, and tells why: the file was cut short, its medium
//! fails or is full.
//!
//! The first write to a page since it was last brought to its medium is a fault, which costs as much as two or three calls. So
//! what is written is copied to pages that two calls have written in this **epoch**, which ends with a flush or after
//! [`EPOCH`]. Where the kernel brings pages to the medium faster than that, since it is short of memory, such pages fault
//! more than once: then nothing is written by copies for a while.
//!
//! The page tables of what was copied belong to the process, and are bounded for all its disks together.
//!
//! Must never know: requests, formats.
#![expect(unsafe_code, reason = "guests' buffers are copied from and to")]

mod file;
mod pages;

use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use self::file::MappedFile;
use self::pages::{Budget, Pages};
use super::super::limiter::Direction;

/// Requests for which nothing is copied after a copy had to wait.
const REST_MIN: u32 = 1 << 10;
const REST_MAX: u32 = 1 << 20;
/// The most copies between two looks at the kernel's count of waits.
const INTERVAL_MAX: u32 = 64;
/// One of so many copies that write is looked at, and so many looks say something.
const SAMPLE: u64 = 64;
const SAMPLES_MIN: u64 = 8;
/// Calls whose pages there was no budget for, after which all is forgotten in favour of what is wanted now.
const DECLINED_MAX: u32 = 1 << 18;
/// Linux writes to the medium what has been changed for 30 s.
const EPOCH: Duration = Duration::from_secs(10);

/// That of this process: 8 GiB, for which there are page tables of 16 MiB.
static BUDGET: Budget = Budget::of(4096);

/// See the module.
pub(super) struct Mapped {
    files: Vec<File>,
    budget: &'static Budget,
    declined: u32,
    epoch: u64,
    epoch_ends_at: Option<Instant>,
    writes: Writes,
    rest: Rest,
    write_rest: Rest,
    /// Copies until the next look at the kernel's counts, from the one before, and the waits then.
    until_look: u32,
    interval: u32,
    waits: Option<i64>,
}

/// What this epoch is like.
#[derive(Debug, Default)]
struct Writes {
    /// Pages that two calls have written.
    rewritten: u64,
    /// Copies to any; of each [`SAMPLE`] of them, one that was looked at, and those of these that were faults.
    copied: u64,
    samples: u64,
    faults: u64,
}

impl Writes {
    /// Whether pages fault again and again: one fault for each, and few for all copies, is what is to be expected.
    fn are_in_vain(&self) -> bool {
        self.faults * SAMPLE > 2 * self.rewritten + SAMPLES_MIN * SAMPLE && 2 * self.faults > self.samples
    }

    fn are_worth_it(&self) -> bool {
        self.samples >= SAMPLES_MIN && 4 * self.faults < self.samples
    }
}

/// Requests for which nothing is copied yet, and how many there will be the next time.
struct Rest {
    left: u32,
    next: u32,
}

impl Rest {
    const NONE: Self = Self { left: 0, next: REST_MIN };

    /// Whether one more request has to do without.
    fn holds(&mut self) -> bool {
        let left = self.left;
        self.left = left.saturating_sub(1);
        left > 0
    }

    fn begin(&mut self) {
        *self = Self { left: self.next, next: REST_MAX.min(self.next * 2) };
    }

    /// All has gone well for a while.
    fn shorten(&mut self) {
        self.next = REST_MIN.max(self.next / 2);
    }
}

struct File {
    fd: RawFd,
    /// None of one that cannot be mapped.
    mapped: Option<MappedFile>,
    pages: Pages,
}

impl Mapped {
    pub(super) fn new() -> Self {
        Self::within(&BUDGET)
    }

    fn within(budget: &'static Budget) -> Self {
        Self {
            files: Vec::new(),
            budget,
            declined: 0,
            epoch: 0,
            epoch_ends_at: None,
            writes: Writes::default(),
            rest: Rest::NONE,
            write_rest: Rest::NONE,
            until_look: 1,
            interval: 1,
            waits: None,
        }
    }

    /// Lets go of all files.
    pub(super) fn forget(&mut self) {
        self.files.clear();
        self.declined = 0;
    }

    /// What was written goes to its medium.
    pub(super) fn flush(&mut self) {
        self.epoch += 1;
        self.writes = Writes::default();
    }

    /// Copies a part of a file (where, how many bytes) from or to `vectors`; false where a call has to do it, also of what was
    /// copied in part.
    ///
    /// # Safety
    /// The vectors hold as many bytes, and point at memory of this process that nobody holds a reference to, such as a guest's.
    #[must_use]
    pub(super) unsafe fn copy(
        &mut self,
        direction: Direction,
        fd: RawFd,
        vectors: &[libc::iovec],
        (offset, length): (u64, u64),
    ) -> bool {
        if self.rest.holds() || direction == Direction::Write && self.write_rest.holds() {
            return false;
        }
        let Some(file) = self.files.iter().find(|file| file.fd == fd) else { return false };
        let Some(mapped) = file.mapped.as_ref().filter(|mapped| mapped.has(offset, length)) else {
            return false;
        };
        let may = match direction {
            Direction::Read => file.pages.are_cached(offset, length),
            Direction::Write => mapped.is_writable() && file.pages.are_rewritten(offset, length, self.epoch),
        };
        if !may {
            return false;
        }
        if self.waits.is_none() {
            self.waits = Some(Faults::of_this_thread().waits);
        }
        let before = (direction == Direction::Write && self.writes.copied.is_multiple_of(SAMPLE))
            .then(Faults::of_this_thread);
        // SAFETY: as the caller says; the file was asked whether it has them.
        if !unsafe { mapped.copy(direction, vectors, offset) } {
            self.pause();
            return false;
        }
        if direction == Direction::Write {
            self.writes.copied += 1;
        }
        if let Some(before) = before {
            self.sample(Faults::of_this_thread().all != before.all);
        }
        self.until_look -= 1;
        if self.until_look == 0 {
            self.look();
        }
        true
    }

    /// Notes that a call has done this with a part of a file, all of it and without having waited for its medium.
    ///
    /// # Safety
    /// The descriptor is open until the file is forgotten.
    pub(super) unsafe fn note(&mut self, direction: Direction, fd: RawFd, (offset, length): (u64, u64)) {
        if self.rest.left > 0 {
            return;
        }
        let index = self.files.iter().position(|file| file.fd == fd).unwrap_or_else(|| {
            // SAFETY: as the caller says.
            let mapped = unsafe { MappedFile::new(fd) };
            self.files.push(File { fd, mapped, pages: Pages::new(self.budget) });
            self.files.len() - 1
        });
        let written_in = (direction == Direction::Write).then(|| self.epoch_now());
        let file = &mut self.files[index];
        let Some(mapped) = &file.mapped else { return };
        if !mapped.has(offset, length) {
            // It has grown beyond its room, and is mapped anew.
            self.files.swap_remove(index);
            return;
        }
        let noted = file.pages.note(offset, length, written_in);
        self.writes.rewritten += noted.rewritten;
        self.declined += u32::from(noted.is_declined);
        if self.declined >= DECLINED_MAX {
            self.forget();
        }
    }

    fn epoch_now(&mut self) -> u64 {
        let now = Instant::now();
        if self.epoch_ends_at.is_none_or(|end| end <= now) {
            self.flush();
            self.epoch_ends_at = Some(now + EPOCH);
        }
        self.epoch
    }

    /// Whether copies had to wait since the last look.
    fn look(&mut self) {
        let faults = Faults::of_this_thread();
        if self.waits.replace(faults.waits).is_some_and(|before| before != faults.waits) {
            return self.pause();
        }
        if self.interval == INTERVAL_MAX {
            self.rest.shorten();
        } else {
            self.interval *= 2;
        }
        self.until_look = self.interval;
    }

    /// Looks at one of many copies to pages.
    fn sample(&mut self, is_fault: bool) {
        self.writes.samples += 1;
        self.writes.faults += u64::from(is_fault);
        if self.writes.are_in_vain() {
            self.flush();
            self.write_rest.begin();
        } else if self.writes.are_worth_it() {
            self.write_rest.shorten();
        }
    }

    fn pause(&mut self) {
        self.forget();
        self.rest.begin();
        (self.until_look, self.interval, self.waits) = (1, 1, None);
    }
}

/// How often this thread touched memory that was not there.
struct Faults {
    /// It had to wait for a page that lay on a medium.
    waits: i64,
    /// With those that were dealt with at once.
    all: i64,
}

impl Faults {
    fn of_this_thread() -> Self {
        // SAFETY: plain data, for which zeros are a value.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: the place is one for what is asked.
        unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) };
        Self { waits: usage.ru_majflt, all: usage.ru_majflt + usage.ru_minflt }
    }
}

#[cfg(test)]
mod tests;
