//! An overlay's map in memory: a bounded number of its pages, and the order in which changed ones reach the file.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard};

use crate::format::Disk;

/// The most pages of the map in memory. Each stands for 128 MiB of disk, so 8 GiB in use at a time need no reading
/// again, and they take 256 KiB.
pub const MAP_PAGES_MAX: usize = 64;

pub(super) const PAGE_BYTES: usize = 4096;
pub(super) const CLUSTERS_PER_PAGE: u64 = PAGE_BYTES as u64 * 8;

struct Page {
    bits: Box<[u8; PAGE_BYTES]>,
    /// Changed since it was last written.
    dirty: bool,
    /// Being written, so it must stay.
    writing: bool,
    /// When it was last used, by [`State::clock`].
    used: u64,
}

#[derive(Default)]
struct State {
    pages: BTreeMap<u64, Page>,
    clock: u64,
    /// Somebody writes dirty pages just now.
    persisting: bool,
    /// A sync has failed: what is durable is not known any more, and must not be built upon.
    failed: bool,
}

/// The map.
pub(super) struct Map {
    offset: u64,
    state: Mutex<State>,
    persisted: Condvar,
}

/// One page, with the map locked.
pub(super) struct PageGuard<'m> {
    state: MutexGuard<'m, State>,
    index: u64,
}

impl Map {
    /// A map that lies at `offset` in its file.
    pub(super) fn new(offset: u64) -> Self {
        Self { offset, state: Mutex::default(), persisted: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("invariant: nobody panics with the map locked")
    }

    /// The page `index`, read from `file` if it is not in memory.
    pub(super) fn page(&self, file: &dyn Disk, index: u64) -> io::Result<PageGuard<'_>> {
        let mut state = self.lock();
        loop {
            state.clock += 1;
            let now = state.clock;
            if let Some(page) = state.pages.get_mut(&index) {
                page.used = now;
                return Ok(PageGuard { state, index });
            }
            if state.pages.len() < MAP_PAGES_MAX || state.evict() {
                let mut bits = Box::new([0; PAGE_BYTES]);
                file.read_at(&mut *bits, self.place(index))?;
                state.pages.insert(index, Page { bits, dirty: false, writing: false, used: now });
                return Ok(PageGuard { state, index });
            }
            // All of them have changed: make some clean, and look again, since others may have come meanwhile.
            state = self.persist_locked(file, state)?;
        }
    }

    /// Writes every changed page, after making the data that it tells of durable. The pages themselves are durable after
    /// the next [`Map::sync`].
    pub(super) fn persist(&self, file: &dyn Disk) -> io::Result<()> {
        self.persist_locked(file, self.lock()).map(drop)
    }

    /// Makes everything written so far durable.
    pub(super) fn sync(&self, file: &dyn Disk) -> io::Result<()> {
        if self.lock().failed {
            return Err(already_failed());
        }
        file.flush().inspect_err(|_| self.lock().failed = true)
    }

    /// Whether all that is known is written, so that a sync of the file is a whole flush.
    pub(super) fn is_written(&self) -> bool {
        let state = self.lock();
        !state.failed && !state.persisting && state.pages.values().all(|page| !page.dirty && !page.writing)
    }

    /// Somebody else has done what [`Map::sync`] does.
    pub(super) fn synced(&self, result: io::Result<()>) -> io::Result<()> {
        let mut state = self.lock();
        state.failed |= result.is_err();
        if state.failed { result.and(Err(already_failed())) } else { result }
    }

    fn persist_locked<'m>(
        &'m self,
        file: &dyn Disk,
        state: MutexGuard<'m, State>,
    ) -> io::Result<MutexGuard<'m, State>> {
        let waiting = self.persisted.wait_while(state, |state| state.persisting);
        let mut state = waiting.expect("invariant: nobody panics with the map locked");
        if state.failed {
            return Err(already_failed());
        }
        let mut changed = Vec::new();
        for (index, page) in state.pages.iter_mut().filter(|(_, page)| page.dirty) {
            page.dirty = false;
            page.writing = true;
            // As of now: a bit set from here on tells of data that this sync may miss.
            changed.push((*index, page.bits.clone()));
        }
        if changed.is_empty() {
            return Ok(state);
        }
        state.persisting = true;
        drop(state);
        let written = file.flush().and_then(|()| {
            changed.iter().try_for_each(|(index, bits)| file.write_at(&bits[..], self.place(*index)))
        });
        let mut state = self.lock();
        state.persisting = false;
        state.failed |= written.is_err();
        for page in state.pages.values_mut().filter(|page| page.writing) {
            page.writing = false;
            // Never forgotten, so that this process at least goes on reading what was written.
            page.dirty |= written.is_err();
        }
        self.persisted.notify_all();
        written.map(|()| state)
    }

    fn place(&self, index: u64) -> u64 {
        self.offset + index * PAGE_BYTES as u64
    }
}

impl State {
    /// Forgets the page that was not used for longest, among those that are as in the file.
    fn evict(&mut self) -> bool {
        let idle = self.pages.iter().filter(|(_, page)| !page.dirty && !page.writing);
        let Some(index) = idle.min_by_key(|(_, page)| page.used).map(|(index, _)| *index) else {
            return false;
        };
        self.pages.remove(&index);
        true
    }
}

impl PageGuard<'_> {
    fn bits(&self) -> &[u8; PAGE_BYTES] {
        &self.state.pages[&self.index].bits
    }

    /// The cluster is in the overlay's file. Numbers are within the page, as below.
    pub(super) fn is_here(&self, cluster: u64) -> bool {
        is_set(self.bits(), cluster)
    }

    /// All clusters from `first` to `last` are.
    pub(super) fn all_here(&self, first: u64, last: u64) -> bool {
        self.run(first, last) == (true, last - first + 1)
    }

    /// Whether `first` is here, and how many clusters from it on, up to `last`, are where it is.
    pub(super) fn run(&self, first: u64, last: u64) -> (bool, u64) {
        let bits = self.bits();
        let here = is_set(bits, first);
        let whole_byte = if here { 0xff } else { 0 };
        let mut cluster = first + 1;
        while cluster <= last {
            if cluster.is_multiple_of(8) && cluster + 8 <= last && bits[byte_of(cluster)] == whole_byte {
                cluster += 8;
            } else if is_set(bits, cluster) == here {
                cluster += 1;
            } else {
                break;
            }
        }
        (here, cluster - first)
    }

    /// The clusters from `first` to `last` are here now.
    pub(super) fn set_here(&mut self, first: u64, last: u64) {
        let page = self.state.pages.get_mut(&self.index).expect("invariant: a guarded page is in memory");
        for cluster in first..=last {
            page.bits[byte_of(cluster)] |= 1 << (cluster % 8);
        }
        page.dirty = true;
    }
}

fn byte_of(cluster: u64) -> usize {
    usize::try_from(cluster / 8).expect("invariant: clusters are counted within a page")
}

fn is_set(bits: &[u8; PAGE_BYTES], cluster: u64) -> bool {
    bits[byte_of(cluster)] & 1 << (cluster % 8) != 0
}

fn already_failed() -> io::Error {
    io::Error::other("an earlier sync of the overlay failed")
}
