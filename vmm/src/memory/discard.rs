//! Giving pages of guest memory back to the host.
#![expect(unsafe_code, reason = "pages of a mapping are given back by their address")]

use std::io;

use vm_memory::bitmap::Bitmap as _;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::shared::is_shared;
use super::{GuestMemory, PAGE_BYTES, Region, written};

/// Gives the whole pages within `bytes` bytes from `start` on back to the host, as far as they are memory of the guest's;
/// how many bytes that were. What the guest finds there afterwards are zeros, or what was there when it went on from a
/// snapshot.
#[must_use]
pub fn discard(memory: &GuestMemory, start: GuestAddress, bytes: u64) -> u64 {
    let (Some(first), Some(end)) =
        (start.raw_value().checked_next_multiple_of(PAGE_BYTES), start.raw_value().checked_add(bytes))
    else {
        return 0;
    };
    let end = end / PAGE_BYTES * PAGE_BYTES;
    let mut given_back = 0;
    for (region, offset, size) in parts(memory, first, end) {
        // What is a file's goes from the file, where it would stay without its mapping.
        let advice = if is_shared(region) { libc::MADV_REMOVE } else { libc::MADV_DONTNEED };
        // SAFETY: the range lies in the region, which is mapped as long as `memory` lives; guest memory is only ever
        // reached as bytes that may change at any time, so nobody's reference is to what goes.
        let result = unsafe { libc::madvise(region.as_ptr().add(offset).cast(), size, advice) };
        if result == 0 {
            given_back += size as u64;
        } else {
            let error = io::Error::last_os_error();
            tracing::debug!(%error, "the host does not take pages of a guest back");
        }
    }
    given_back
}

/// What of each region lies between two addresses: offset and length, which is not zero.
fn parts(memory: &GuestMemory, first: u64, end: u64) -> impl Iterator<Item = (&Region, usize, usize)> {
    memory.iter().filter_map(move |region| {
        let start = region.start_addr().raw_value();
        let (from, to) = (first.max(start), end.min(start + region.len()));
        let length = to.checked_sub(from).filter(|length| *length > 0)?;
        let [offset, size] = [from - start, length]
            .map(|number| usize::try_from(number).expect("invariant: usize has 64 bits"));
        Some((region, offset, size))
    })
}

/// How memory is made empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Emptied {
    /// Its pages are given back, and are zeros where nothing comes from elsewhere.
    Discarded,
    /// Other memory takes its place: what it was when the guest went on from a snapshot does not come back.
    Replaced,
}

/// Makes `bytes` bytes from `start` on zeros, and gives them back to the host, as far as they are memory of the guest's. Both
/// are multiples of [`PAGE_BYTES`]. A snapshot with differences has them.
///
/// # Errors
/// The host's; some of it may be empty.
pub fn empty(memory: &GuestMemory, start: GuestAddress, bytes: u64, how: Emptied) -> io::Result<()> {
    let first = start.raw_value();
    debug_assert!(first.is_multiple_of(PAGE_BYTES) && bytes.is_multiple_of(PAGE_BYTES), "whole pages");
    for (region, offset, size) in parts(memory, first, first.saturating_add(bytes)) {
        // SAFETY: the range lies in the region.
        let place = unsafe { region.as_ptr().add(offset) }.cast();
        let is_done = match how {
            // SAFETY: as in `discard`.
            Emptied::Discarded => unsafe { libc::madvise(place, size, libc::MADV_DONTNEED) == 0 },
            Emptied::Replaced => {
                let both = libc::PROT_READ | libc::PROT_WRITE;
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
                // SAFETY: it takes the place of whole pages of the region's own mapping, with the same access, and goes when
                // that is unmapped; nobody's reference is to what was there.
                unsafe { libc::mmap(place, size, both, flags, -1, 0) != libc::MAP_FAILED }
            }
        };
        if !is_done {
            return Err(io::Error::last_os_error());
        }
        written(region).mark_dirty(offset, size);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes as _;

    use super::*;

    fn memory() -> GuestMemory {
        let ranges = [(GuestAddress(0), 0x1_0000), (GuestAddress(0x4_0000), 0x1_0000)];
        let memory = GuestMemory::from_ranges(&ranges).unwrap();
        for (start, bytes) in ranges {
            memory.write_slice(&vec![0xaa; bytes], start).unwrap();
        }
        memory
    }

    fn is_zero(memory: &GuestMemory, page: u64) -> bool {
        let mut bytes = [0; PAGE_BYTES as usize];
        memory.read_slice(&mut bytes, GuestAddress(page)).unwrap();
        bytes.iter().all(|byte| *byte == 0)
    }

    #[test]
    fn whole_pages_that_are_memory_go_and_no_others() {
        let memory = memory();
        assert_eq!(discard(&memory, GuestAddress(0x1001), 0x3000), 0x2000);
        let gone: Vec<u64> = (0..0x1_0000).step_by(4096).filter(|page| is_zero(&memory, *page)).collect();
        assert_eq!(gone, [0x2000, 0x3000]);
        assert_eq!(discard(&memory, GuestAddress(0xf000), 0x3_2000), 0x2000, "across the hole");
        assert!(is_zero(&memory, 0xf000) && is_zero(&memory, 0x4_0000) && !is_zero(&memory, 0x4_1000));
        for (start, bytes) in [(0x2_0000, 0x1000), (u64::MAX - 5, 100), (0x1000, u64::MAX), (0x1800, 0x900)] {
            assert_eq!(discard(&memory, GuestAddress(start), bytes), 0, "{start:#x} {bytes:#x}");
        }
        assert!(!is_zero(&memory, 0x1000));
    }

    #[test]
    fn what_is_emptied_is_zeros_and_noted_even_where_it_came_from_a_file() {
        use std::os::unix::fs::FileExt as _;
        use std::sync::Arc;
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[0xaa; 1 << 20], 0).unwrap();
        let from_file = super::super::map_private((1, 0), (&Arc::new(file), 0), None).unwrap();
        for (memory, how) in [(memory(), Emptied::Discarded), (from_file, Emptied::Replaced)] {
            let region = memory.iter().next().unwrap();
            written(region).reset();
            empty(&memory, GuestAddress(0x2000), 0x3000, how).unwrap();
            let gone: Vec<u64> = (0..0x1_0000).step_by(4096).filter(|page| is_zero(&memory, *page)).collect();
            assert_eq!(gone, [0x2000, 0x3000, 0x4000], "{how:?}");
            let noted = |page: usize| written(region).dirty_at(page);
            assert_eq!([0x1000, 0x2000, 0x4000, 0x5000].map(noted), [false, true, true, false]);
            memory.write_slice(&[7], GuestAddress(0x2000)).unwrap();
            assert!(!is_zero(&memory, 0x2000));
        }
    }
}
