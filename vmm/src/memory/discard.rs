//! Giving pages of guest memory back to the host.
#![expect(unsafe_code, reason = "pages of a mapping are given back by their address")]

use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::GuestMemory;

/// Bytes of a page.
pub const PAGE_BYTES: u64 = 4096;

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
    for region in memory.iter() {
        let region_start = region.start_addr().raw_value();
        let (from, to) = (first.max(region_start), end.min(region_start + region.len()));
        let Some(length) = to.checked_sub(from).filter(|length| *length > 0) else { continue };
        let [offset, size] = [from - region_start, length]
            .map(|number| usize::try_from(number).expect("invariant: usize has 64 bits"));
        // SAFETY: the range lies in the region, which is mapped as long as `memory` lives; guest memory is only ever
        // reached as bytes that may change at any time, so nobody's reference is to what goes.
        let result = unsafe { libc::madvise(region.as_ptr().add(offset).cast(), size, libc::MADV_DONTNEED) };
        if result == 0 {
            given_back += length;
        } else {
            let error = std::io::Error::last_os_error();
            tracing::debug!(%error, "the host does not take pages of a guest back");
        }
    }
    given_back
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
}
