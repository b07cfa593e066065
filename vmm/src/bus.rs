//! Where device registers live: port I/O and memory-mapped I/O as two ordered maps of ranges.

/// A device that the guest reads and writes by address.
///
/// Both calls happen on a vCPU's thread. Nothing the guest does here may panic: a register that does not exist
/// reads as zeros and swallows writes.
pub trait BusDevice: Send {
    /// The guest reads `data.len()` bytes (1 to 8) at `offset` from the start of the device's range.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// The guest writes `data` (1 to 8 bytes) at `offset` from the start of the device's range.
    fn write(&mut self, offset: u64, data: &[u8]);
}
