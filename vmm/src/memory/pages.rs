//! Sets of pages of a guest's memory.

use std::ops::Range;

use vm_memory::{Address as _, Bytes as _, GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion as _};

use super::GuestMemory;
use super::PAGE_BYTES;

/// Some of a guest's pages: for each region words with a bit for each page, the first page's lowest.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PageSet(pub Vec<Vec<u64>>);

impl PageSet {
    /// None of the pages of `memory`.
    #[must_use]
    pub fn none_of(memory: &GuestMemory) -> Self {
        let words = |bytes: u64| usize::try_from(bytes.div_ceil(PAGE_BYTES * 64)).unwrap_or(usize::MAX);
        Self(memory.iter().map(|region| vec![0; words(region.len())]).collect())
    }

    /// Adds the whole pages within `bytes` bytes from `start` on, as far as they are in `memory`.
    pub fn add(&mut self, memory: &GuestMemory, start: GuestAddress, bytes: u64) {
        let (Some(first), Some(end)) = (
            start.raw_value().checked_next_multiple_of(PAGE_BYTES),
            start.raw_value().checked_add(bytes).map(|end| end / PAGE_BYTES * PAGE_BYTES),
        ) else {
            return;
        };
        for (region, words) in memory.iter().zip(&mut self.0) {
            let at = region.start_addr().raw_value();
            let (from, to) = (first.max(at), end.min(at + region.len()));
            if from < to {
                set(words, (from - at) / PAGE_BYTES, (to - at) / PAGE_BYTES);
            }
        }
    }

    /// Takes all pages of `other` out, a set of the same memory.
    pub fn remove(&mut self, other: &[Vec<u64>]) {
        for (words, others) in self.0.iter_mut().zip(other) {
            words.iter_mut().zip(others).for_each(|(word, other)| *word &= !other);
        }
    }

    /// Takes the pages of `suspects` out that are not all zeros.
    pub fn remove_unless_zero(&mut self, memory: &GuestMemory, suspects: &[Vec<u64>]) {
        let mut page = [0; PAGE_BYTES as usize];
        for ((region, words), suspects) in memory.iter().zip(&mut self.0).zip(suspects) {
            for (index, (word, suspects)) in words.iter_mut().zip(suspects).enumerate() {
                let mut left = *word & suspects;
                while left != 0 {
                    let bit = u64::from(left.trailing_zeros());
                    left &= left - 1;
                    let at = region.start_addr().unchecked_add((index as u64 * 64 + bit) * PAGE_BYTES);
                    // What lies outside of memory is in no set.
                    let is_zero =
                        memory.read_slice(&mut page, at).is_ok() && page == [0; PAGE_BYTES as usize];
                    *word &= if is_zero { u64::MAX } else { !(1 << bit) };
                }
            }
        }
    }

    /// How many they are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.iter().flatten().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Where they lie, neighbours together: addresses and bytes.
    pub fn runs(&self, memory: &GuestMemory) -> Vec<(GuestAddress, u64)> {
        let mut runs = Vec::new();
        for (region, words) in memory.iter().zip(&self.0) {
            runs.extend(neighbours(words).map(|pages| {
                let (first, end) = (pages.start as u64, pages.end as u64);
                (region.start_addr().unchecked_add(first * PAGE_BYTES), (end - first) * PAGE_BYTES)
            }));
        }
        runs
    }
}

/// Which bits are set, the first word's lowest first, neighbours together.
pub(crate) fn neighbours(words: impl AsRef<[u64]>) -> impl Iterator<Item = Range<usize>> {
    let mut next = 0;
    std::iter::from_fn(move || {
        let words = words.as_ref();
        let end = words.len() * 64;
        // The first bit from there on that is set once `turned` is turned.
        let first = |from: usize, turned: u64| {
            let mut at = from;
            while at < end {
                let left = (words[at / 64] ^ turned) >> (at % 64);
                if left != 0 {
                    return at + left.trailing_zeros() as usize;
                }
                at = (at / 64 + 1) * 64;
            }
            end
        };
        let start = first(next, 0);
        next = first(start, u64::MAX);
        (start < end).then_some(start..next)
    })
}

/// Sets the bits from `first` on, up to `end`.
fn set(words: &mut [u64], first: u64, end: u64) {
    let mut next = first;
    while next < end {
        let bit = next % 64;
        let count = (64 - bit).min(end - next);
        let ones = if count == 64 { u64::MAX } else { (1 << count) - 1 };
        if let Some(word) = usize::try_from(next / 64).ok().and_then(|word| words.get_mut(word)) {
            *word |= ones << bit;
        }
        next += count;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const REGIONS: [(GuestAddress, usize); 2] =
        [(GuestAddress(0), 0x10_0000), (GuestAddress(0x40_0000), 0x10_0000)];

    fn memory() -> GuestMemory {
        GuestMemory::from_ranges(&REGIONS).unwrap()
    }

    #[test]
    fn whole_pages_within_memory_are_added_and_neighbours_are_told_together() {
        let memory = memory();
        let mut set = PageSet::none_of(&memory);
        for (start, bytes) in [(0x1001, 0x2000), (0x3000, 0x1000), (0xf_f000, 0x40_0000), (u64::MAX, 2)] {
            set.add(&memory, GuestAddress(start), bytes);
        }
        let found: Vec<_> = set.runs(&memory).into_iter().map(|(start, bytes)| (start.0, bytes)).collect();
        assert_eq!(found, [(0x2000, 0x2000), (0xf_f000, 0x1000), (0x40_0000, 0xf_f000)]);
        assert_eq!(set.count(), 2 + 1 + 255);
    }

    #[test]
    fn suspects_stay_where_they_are_zeros() {
        let memory = memory();
        let mut set = PageSet::none_of(&memory);
        set.add(&memory, GuestAddress(0x40_0000), 0x4000);
        memory.write_slice(&[1], GuestAddress(0x40_1fff)).unwrap();
        memory.write_slice(&[1], GuestAddress(0x40_3000)).unwrap();
        // Page 3 is no suspect.
        set.remove_unless_zero(&memory, &[vec![u64::MAX; 4], vec![0b0111, 0, 0, 0]]);
        assert_eq!(set.0[1][0], 0b1101);
        set.remove(&[vec![0; 4], vec![0b0001, 0, 0, 0]]);
        assert_eq!(set.0[1][0], 0b1100);
    }

    proptest! {
        #[test]
        fn runs_are_what_was_added(pages in proptest::collection::btree_set(0_u64..256, 0..40)) {
            let memory = memory();
            let mut set = PageSet::none_of(&memory);
            for page in &pages {
                set.add(&memory, GuestAddress(page * 4096), 4096);
            }
            let told: std::collections::BTreeSet<u64> = set
                .runs(&memory)
                .into_iter()
                .flat_map(|(start, bytes)| (start.0 / 4096)..((start.0 + bytes) / 4096))
                .collect();
            prop_assert_eq!(told, pages);
        }
    }
}
