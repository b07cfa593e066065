//! Which pages of a file may be copied from and to, by regions of which each has a page of its own in a page table.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::memory::PAGE_BYTES;

/// What one page of a page table maps.
pub(super) const REGION_BYTES: u64 = REGION_PAGES * PAGE_BYTES;
const REGION_PAGES: u64 = 512;
const WORD_BITS: usize = u64::BITS as usize;

/// How many regions the disks of one process may know together.
pub(super) struct Budget(AtomicUsize);

impl Budget {
    pub(super) const fn of(regions: usize) -> Self {
        Self(AtomicUsize::new(regions))
    }

    fn take(&self) -> bool {
        self.0.try_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }

    fn give_back(&self, regions: usize) {
        self.0.fetch_add(regions, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(super) fn left(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// A bit for each page of a region.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Bits([u64; REGION_PAGES as usize / WORD_BITS]);

impl Bits {
    fn has(&self, page: usize) -> bool {
        self.0[page / WORD_BITS] & 1 << (page % WORD_BITS) != 0
    }

    fn set(&mut self, page: usize) {
        self.0[page / WORD_BITS] |= 1 << (page % WORD_BITS);
    }
}

#[derive(Debug, Default)]
struct Region {
    /// Pages that are in the page cache.
    known: Bits,
    /// Pages that calls have written in the epoch that was the last one here: once at least, and several times.
    written: Bits,
    rewritten: Bits,
    epoch: u64,
}

/// What became of a note.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Noted {
    /// There is no budget for all of the pages.
    pub(super) is_declined: bool,
    /// Pages that were written for the second time in the epoch.
    pub(super) rewritten: u64,
}

/// The pages of one file.
pub(super) struct Pages {
    regions: HashMap<u64, Region>,
    budget: &'static Budget,
}

impl Pages {
    pub(super) fn new(budget: &'static Budget) -> Self {
        Self { regions: HashMap::new(), budget }
    }

    /// Whether all of a part of the file is in the page cache, as far as is known.
    pub(super) fn are_cached(&self, offset: u64, length: u64) -> bool {
        self.all(offset, length, |region, page| region.known.has(page))
    }

    /// Whether all of a part of the file is in the page cache and was written by several calls in this epoch.
    pub(super) fn are_rewritten(&self, offset: u64, length: u64, epoch: u64) -> bool {
        self.all(offset, length, |region, page| region.epoch == epoch && region.rewritten.has(page))
    }

    fn all(&self, offset: u64, length: u64, holds: impl Fn(&Region, usize) -> bool) -> bool {
        let pages = offset / PAGE_BYTES..offset.saturating_add(length).div_ceil(PAGE_BYTES);
        by_region(pages).all(|(number, mut pages)| {
            self.regions.get(&number).is_some_and(|region| pages.all(|page| holds(region, page)))
        })
    }

    /// Notes a part of the file that a call has read without waiting, or that one has written, in this epoch: its whole pages are
    /// in the page cache.
    pub(super) fn note(&mut self, offset: u64, length: u64, written_in: Option<u64>) -> Noted {
        let mut noted = Noted::default();
        let pages = offset.div_ceil(PAGE_BYTES)..offset.saturating_add(length) / PAGE_BYTES;
        for (number, pages) in by_region(pages) {
            if !self.regions.contains_key(&number) && !self.budget.take() {
                noted.is_declined = true;
                break;
            }
            let region = self.regions.entry(number).or_default();
            if let Some(epoch) = written_in.filter(|&epoch| epoch != region.epoch) {
                *region = Region { known: region.known, epoch, ..Region::default() };
            }
            for page in pages {
                region.known.set(page);
                match written_in {
                    Some(_) if region.rewritten.has(page) => {}
                    Some(_) if region.written.has(page) => {
                        region.rewritten.set(page);
                        noted.rewritten += 1;
                    }
                    Some(_) => region.written.set(page),
                    None => {}
                }
            }
        }
        noted
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.budget.give_back(self.regions.len());
    }
}

/// The regions that pages lie in, each with those pages of it.
fn by_region(pages: Range<u64>) -> impl Iterator<Item = (u64, Range<usize>)> {
    let last = if pages.is_empty() { 0 } else { pages.end.div_ceil(REGION_PAGES) };
    (pages.start / REGION_PAGES..last).map(move |number| {
        let first = number * REGION_PAGES;
        // At most the pages of a region.
        let within = |page: u64| page.saturating_sub(first).min(REGION_PAGES) as usize;
        (number, within(pages.start)..within(pages.end))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    static PLENTY: Budget = Budget::of(1 << 20);

    #[test]
    fn whole_pages_are_noted_and_touched_ones_asked_for() {
        let mut pages = Pages::new(&PLENTY);
        assert_eq!(pages.note(1, 2 * PAGE_BYTES, None), Noted::default());
        assert!(pages.are_cached(PAGE_BYTES, PAGE_BYTES));
        for (offset, length) in [(PAGE_BYTES - 1, 2), (2 * PAGE_BYTES - 1, 2), (0, 1), (2 * PAGE_BYTES, 1)] {
            assert!(!pages.are_cached(offset, length), "{length} bytes at {offset}");
        }
        // A part of a page is not the page.
        pages.note(8 * PAGE_BYTES + 1, PAGE_BYTES - 1, None);
        pages.note(9 * PAGE_BYTES, 512, None);
        assert!(!pages.are_cached(8 * PAGE_BYTES + 1, 1) && !pages.are_cached(9 * PAGE_BYTES, 1));
        assert!(!pages.are_cached(u64::MAX, u64::MAX));
    }

    #[test]
    fn page_is_rewritten_in_the_epoch_of_both_writes() {
        let mut pages = Pages::new(&PLENTY);
        let page = (REGION_BYTES - PAGE_BYTES, 2 * PAGE_BYTES);
        pages.note(page.0, page.1, None);
        assert_eq!(pages.note(page.0, page.1, Some(1)).rewritten, 0);
        assert!(!pages.are_rewritten(page.0, page.1, 1));
        assert_eq!(pages.note(page.0, page.1, Some(1)).rewritten, 2);
        assert_eq!(pages.note(page.0, page.1, Some(1)).rewritten, 0);
        assert!(pages.are_rewritten(page.0, page.1, 1));
        assert!(!pages.are_rewritten(page.0, page.1, 2));
        assert_eq!(pages.note(page.0, PAGE_BYTES, Some(2)).rewritten, 0);
        assert!(!pages.are_rewritten(page.0, PAGE_BYTES, 2));
        // One region is in the new epoch, and what is cached still is.
        assert!(pages.are_rewritten(REGION_BYTES, PAGE_BYTES, 1) && pages.are_cached(page.0, page.1));
    }

    #[test]
    fn budget_bounds_the_regions_and_comes_back() {
        static FEW: Budget = Budget::of(2);
        let mut pages = Pages::new(&FEW);
        for (region, is_declined) in [(0, false), (1, false), (2, true)] {
            let noted = pages.note(region * REGION_BYTES, PAGE_BYTES, None);
            assert_eq!(noted.is_declined, is_declined);
        }
        assert!(!pages.are_cached(2 * REGION_BYTES, PAGE_BYTES));
        assert!(!pages.note(PAGE_BYTES, PAGE_BYTES, None).is_declined);
        assert_eq!(FEW.left(), 0);
        drop(pages);
        assert_eq!(FEW.left(), 2);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]
        /// Against sets of pages.
        #[test]
        fn same_as_sets(steps in prop::collection::vec((0_u64..2000, 0_u64..700, prop::option::of(0_u64..3)), 1..40)) {
            let mut pages = Pages::new(&PLENTY);
            let (mut known, mut writes) = (HashSet::new(), HashMap::new());
            let mut epochs: HashMap<u64, u64> = HashMap::new();
            for (first, count, written_in) in steps {
                let (offset, length) = (first * PAGE_BYTES, count * PAGE_BYTES);
                prop_assert!(!pages.note(offset, length, written_in).is_declined);
                for page in first..first + count {
                    known.insert(page);
                    if let Some(epoch) = written_in {
                        // A region has the writes of its last epoch alone.
                        if epochs.insert(page / REGION_PAGES, epoch).is_some_and(|before| before != epoch) {
                            writes.retain(|&written: &u64, _| written / REGION_PAGES != page / REGION_PAGES);
                        }
                        *writes.entry(page).or_insert(0) += 1;
                    }
                }
                for page in (0..2700).step_by(11) {
                    let at = page * PAGE_BYTES;
                    prop_assert_eq!(pages.are_cached(at, 1), known.contains(&page));
                    let twice = writes.get(&page).is_some_and(|&count| count > 1);
                    for epoch in 0..3 {
                        let is_last = epochs.get(&(page / REGION_PAGES)) == Some(&epoch);
                        prop_assert_eq!(pages.are_rewritten(at, 1, epoch), twice && is_last);
                    }
                }
            }
        }
    }
}
