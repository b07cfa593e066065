//! Physical memory that others filled before the start: boot structures, command line, ACPI tables. The page
//! tables map the first 4 GiB onto themselves, so an address is a pointer.
//!
//! Must never know: what the bytes mean.

#![expect(unsafe_code, reason = "reads memory that the loader filled, by its physical address")]

use crate::parse::acpi::Memory;

/// Where memory ends at the latest: above it are device registers, reading which has effects.
pub const MEMORY_END: u64 = 3 << 30;
/// Nothing is handed over in the first page, and a null reference must not exist.
const MEMORY_START: u64 = 0x1000;

/// The machine's memory, read-only.
pub struct Physical;

impl Physical {
    /// `len` bytes at `address`, if they lie where memory can be. What no memory backs reads as ones.
    pub fn slice(self, address: u64, len: usize) -> Option<&'static [u8]> {
        let end = address.checked_add(len as u64)?;
        if address < MEMORY_START || end > MEMORY_END {
            return None;
        }
        // SAFETY: mapped by the static page tables, not null; written by the loader before the start and by nobody
        // since: the heap begins above the image and outside of what was handed over (`boot.rs`).
        Some(unsafe { core::slice::from_raw_parts(address as *const u8, len) })
    }

    /// The bytes at `address` up to a NUL, at most `len_max`.
    pub fn text(self, address: u64, len_max: usize) -> Option<&'static [u8]> {
        let longest = len_max.min(MEMORY_END.saturating_sub(address) as usize);
        let bytes = self.slice(address, longest)?;
        Some(bytes.split(|&byte| byte == 0).next().unwrap_or(bytes))
    }
}

impl Memory for Physical {
    fn bytes(&self, address: u64, len: usize) -> Option<&[u8]> {
        Physical.slice(address, len)
    }
}
