//! A range of a disk as the filesystem readers take it: bounded, counted, and with the last piece kept.
//!
//! Whatever a hostile filesystem makes a reader do, it does it by reading; so the bytes read are what bounds it.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use storage::format::Disk;

/// How many bytes looking for something to boot may read: all boot loader configuration and all metadata on the way
/// to it is a few MiB; a journal that is replayed may be a few hundred.
pub(super) const SEARCH_BYTES_MAX: u64 = 1 << 30;
/// How many reads looking for something to boot may make: as many as a disk's worth of block group descriptors.
pub(super) const SEARCH_READS_MAX: u64 = 1 << 21;
/// How much is read where little is asked for: readers ask for neighbouring structures one by one.
const PIECE_BYTES: u64 = 16 << 10;

/// What may still be read, shared by all sources of one disk.
#[derive(Debug)]
pub(super) struct Budget {
    bytes: Cell<u64>,
    reads: Cell<u64>,
}

impl Budget {
    pub(super) fn new() -> Self {
        Self { bytes: Cell::new(SEARCH_BYTES_MAX), reads: Cell::new(SEARCH_READS_MAX) }
    }

    /// Allows for a file of `bytes` to be read as well, several times over, for a kernel's headers are looked at before
    /// its segments, and compressed extents are read whole.
    pub(super) fn allow_file(&self, bytes: u64) {
        self.bytes.set(self.bytes.get().saturating_add(bytes.saturating_mul(4)));
        self.reads.set(self.reads.get().saturating_add(bytes / 1024));
    }

    /// Runs `step` with at most `bytes` of it: a single step that needs little cannot use up all, nor gather much.
    pub(super) fn within<T>(&self, bytes: u64, step: impl FnOnce() -> T) -> T {
        let before = self.bytes.get();
        let lent = before.min(bytes);
        self.bytes.set(lent);
        let result = step();
        self.bytes.set(before - (lent - self.bytes.get().min(lent)));
        result
    }

    fn take(&self, bytes: u64) -> io::Result<()> {
        match (self.bytes.get().checked_sub(bytes), self.reads.get().checked_sub(1)) {
            (Some(bytes), Some(reads)) => {
                self.bytes.set(bytes);
                self.reads.set(reads);
                Ok(())
            }
            _ => Err(io::Error::other("more would have to be read than any sound filesystem needs")),
        }
    }
}

/// A piece of the disk that was read, by its place in the source.
#[derive(Default)]
struct Piece {
    start: u64,
    bytes: Vec<u8>,
}

/// A range of a disk. Clones share nothing but the disk and the budget.
pub(super) struct Source {
    disk: Arc<dyn Disk>,
    start: u64,
    size_bytes: u64,
    budget: Rc<Budget>,
    last: RefCell<Piece>,
}

impl Clone for Source {
    fn clone(&self) -> Self {
        Self::of(self.disk.clone(), self.start, self.size_bytes, self.budget.clone())
    }
}

impl Source {
    /// The whole disk.
    pub(super) fn whole(disk: Arc<dyn Disk>, budget: Rc<Budget>) -> Self {
        let size_bytes = disk.size_bytes();
        Self::of(disk, 0, size_bytes, budget)
    }

    fn of(disk: Arc<dyn Disk>, start: u64, size_bytes: u64, budget: Rc<Budget>) -> Self {
        Self { disk, start, size_bytes, budget, last: RefCell::default() }
    }

    /// The `size_bytes` from `start`; `None` if they do not lie within this one.
    pub(super) fn part(&self, start: u64, size_bytes: u64) -> Option<Self> {
        let end = start.checked_add(size_bytes)?;
        if end > self.size_bytes {
            return None;
        }
        Some(Self::of(self.disk.clone(), self.start + start, size_bytes, self.budget.clone()))
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    pub(super) fn budget(&self) -> &Rc<Budget> {
        &self.budget
    }

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` beyond the end; the disk's; the budget is used up.
    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let length = buffer.len() as u64;
        let end = offset.checked_add(length).filter(|&end| end <= self.size_bytes);
        let Some(end) = end else { return Err(io::ErrorKind::UnexpectedEof.into()) };
        if length >= PIECE_BYTES {
            self.budget.take(length)?;
            return self.disk.read_at(buffer, self.start + offset);
        }
        let mut last = self.last.borrow_mut();
        let kept_end = last.start + last.bytes.len() as u64;
        if offset < last.start || end > kept_end {
            let piece_end = (offset + PIECE_BYTES).min(self.size_bytes);
            self.budget.take(piece_end - offset)?;
            let size = usize::try_from(piece_end - offset).expect("invariant: a piece is small");
            last.bytes.clear();
            last.bytes.resize(size, 0);
            last.start = offset;
            if let Err(error) = self.disk.read_at(&mut last.bytes, self.start + offset) {
                last.bytes.clear();
                return Err(error);
            }
        }
        let from = usize::try_from(offset - last.start).expect("invariant: within a piece");
        buffer.copy_from_slice(&last.bytes[from..from + buffer.len()]);
        Ok(())
    }

    /// The `N` bytes at `offset`.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(super) fn array<const N: usize>(&self, offset: u64) -> io::Result<[u8; N]> {
        let mut array = [0; N];
        self.read(&mut array, offset)?;
        Ok(array)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::disk::tests::MemoryDisk;

    fn source(bytes: Vec<u8>) -> Source {
        Source::whole(Arc::new(MemoryDisk(bytes)), Rc::new(Budget::new()))
    }

    #[test]
    fn reads_are_exact_whatever_was_read_before() {
        let bytes: Vec<u8> = (0..100_000_u32).map(|index| u8::try_from(index % 251).unwrap()).collect();
        let source = source(bytes.clone());
        for (offset, length) in
            [(0, 4), (2, 100), (20_000, 4), (19_999, 4), (99_990, 10), (10, 50_000), (0, 0)]
        {
            let mut buffer = vec![0; length];
            source.read(&mut buffer, offset).unwrap();
            let offset = usize::try_from(offset).unwrap();
            assert_eq!(buffer, bytes[offset..offset + length]);
        }
    }

    #[test]
    fn nothing_is_read_beyond_a_part() {
        let part = source(vec![7; 1000]).part(100, 100).unwrap();
        assert!(part.read(&mut [0; 100], 0).is_ok());
        for (offset, length) in [(0, 101), (100, 1), (u64::MAX, 2)] {
            let error = part.read(&mut vec![0; length], offset).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
        assert!(part.part(50, 51).is_none() && part.part(u64::MAX, 2).is_none());
    }

    #[test]
    fn reading_without_end_ends() {
        let source = source(vec![0; 40 << 10]);
        let mut reads = 0_u64;
        while source.read(&mut [0; 8], (reads % 2) * (30 << 10)).is_ok() {
            reads += 1;
        }
        assert!(reads > 1000 && reads <= SEARCH_READS_MAX, "{reads}");
    }

    #[test]
    fn a_step_uses_no_more_than_it_is_lent_and_returns_the_rest() {
        let source = source(vec![0; 1 << 20]);
        let step = || source.read(&mut [0; 512 << 10], 0).is_ok();
        assert!(!source.budget().within(100 << 10, step));
        assert!(source.budget().within(1 << 20, step));
        assert_eq!(source.budget().bytes.get(), SEARCH_BYTES_MAX - (512 << 10));
    }
}
