//! Memory-mapped registers of 32 bits, by physical address.
//!
//! Must never know: which device they belong to.

#![expect(unsafe_code, reason = "device registers are reached through their addresses")]

use crate::physical::MEMORY_END;

/// One register, above all memory.
#[derive(Clone, Copy)]
pub struct Register(u32);

impl Register {
    /// The register at `address`: aligned, and where devices are, so never memory of ours.
    pub fn at(address: u64) -> Option<Self> {
        (address >= MEMORY_END && address.is_multiple_of(4)).then(|| address.try_into().ok().map(Register))?
    }

    /// Reads it.
    pub fn read(self) -> u32 {
        // SAFETY: mapped, aligned and outside of memory, as `at` made sure.
        unsafe { core::ptr::read_volatile(self.0 as usize as *const u32) }
    }

    /// Writes it.
    pub fn write(self, value: u32) {
        // SAFETY: as in `read`.
        unsafe { core::ptr::write_volatile(self.0 as usize as *mut u32, value) }
    }

    /// Writes one byte, for registers that are that narrow.
    pub fn write_byte(self, value: u8) {
        // SAFETY: as in `read`.
        unsafe { core::ptr::write_volatile(self.0 as usize as *mut u8, value) }
    }
}
