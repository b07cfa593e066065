//! Devices' registers as memory: a guest that is given pages of them as read-only memory reads them without an exit, and what
//! it writes there still is one.
//!
//! Owns what a driver reads; must never know what a register means.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{MMIO_WINDOW_BYTES, PAGE_BYTES};

/// A page is one device's window.
const BYTES: usize = MMIO_WINDOW_BYTES as usize;
const WORD_BYTES: usize = size_of::<u32>();
const WORDS: usize = BYTES / WORD_BYTES;

#[repr(C, align(4096))]
struct Words([AtomicU32; WORDS]);

const _: () = assert!(size_of::<Words>() == BYTES && align_of::<Words>() == PAGE_BYTES as usize);

/// The registers of several devices, each with a page, one behind the other.
pub struct RegisterPages(Box<[Words]>);

impl RegisterPages {
    /// So many pages, all zeros.
    #[must_use]
    pub fn new(pages: usize) -> Arc<Self> {
        Arc::new(Self((0..pages).map(|_| Words([const { AtomicU32::new(0) }; WORDS])).collect()))
    }

    /// Where they lie in this process, a multiple of [`PAGE_BYTES`].
    #[must_use]
    pub fn start(&self) -> u64 {
        self.0.as_ptr() as u64
    }

    /// Their length, a multiple of [`PAGE_BYTES`].
    #[must_use]
    pub fn bytes(&self) -> u64 {
        size_of_val(&*self.0) as u64
    }

    /// Each page.
    pub fn pages(self: &Arc<Self>) -> impl Iterator<Item = RegisterPage> {
        (0..self.0.len()).map(|index| RegisterPage { all: Arc::clone(self), index })
    }
}

/// One device's page of [`RegisterPages`].
pub struct RegisterPage {
    all: Arc<RegisterPages>,
    index: usize,
}

impl RegisterPage {
    /// The register of 32 bits at `offset`, as the guest reads it.
    ///
    /// # Panics
    /// The offset is beyond the page.
    #[must_use]
    pub fn register(&self, offset: u32) -> &AtomicU32 {
        &self.all.0[self.index].0[offset as usize / WORD_BYTES]
    }

    /// Puts `bytes` where registers begin at `offset`, a multiple of four; the last one is filled up with zeros. A guest may
    /// read some of them before and some after.
    ///
    /// # Panics
    /// They end beyond the page.
    pub fn put(&self, offset: u32, bytes: &[u8]) {
        for (offset, bytes) in (offset..).step_by(WORD_BYTES).zip(bytes.chunks(WORD_BYTES)) {
            let mut word = [0; WORD_BYTES];
            word[..bytes.len()].copy_from_slice(bytes);
            self.register(offset).store(u32::from_le_bytes(word), Ordering::Release);
        }
    }

    /// Reads as a guest does, whatever the width and the offset; zeros beyond the page.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (0_u64..).zip(data) {
            let at = offset.checked_add(at).and_then(|at| u32::try_from(at).ok());
            *byte = at.filter(|at| (*at as usize) < BYTES).map_or(0, |at| {
                let word = self.register(at).load(Ordering::Acquire).to_le_bytes();
                word[at as usize % WORD_BYTES]
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_into_a_page_is_read_there_and_in_no_other() {
        let registers = RegisterPages::new(2);
        let pages: Vec<_> = registers.pages().collect();
        pages[1].put(0x100, &[1, 2, 3, 4, 5]);
        pages[1].register(0).store(u32::MAX, Ordering::Release);
        let read = |page: &RegisterPage, offset| {
            let mut bytes = [0xee; 6];
            page.read(offset, &mut bytes);
            bytes
        };
        assert_eq!(read(&pages[1], 0x100), [1, 2, 3, 4, 5, 0]);
        assert_eq!(read(&pages[1], 0x102), [3, 4, 5, 0, 0, 0], "an odd place");
        assert_eq!(read(&pages[0], 0x100), [0; 6]);
        assert_eq!(read(&pages[1], 2), [0xff, 0xff, 0, 0, 0, 0]);
    }

    #[test]
    fn pages_lie_where_a_guest_can_have_them_and_nothing_is_read_beyond() {
        let registers = RegisterPages::new(3);
        assert_eq!((registers.start() % 4096, registers.bytes()), (0, 3 * 4096));
        let page = registers.pages().last().unwrap();
        for offset in [4094, 4096, u64::from(u32::MAX) - 1, u64::MAX - 1] {
            page.register(4092).store(0, Ordering::Release);
            let mut bytes = [0xee; 4];
            page.read(offset, &mut bytes);
            assert_eq!(bytes, [0; 4], "{offset:#x}");
        }
    }
}
