//! A function's configuration space (PCI 3.0 §6): 256 bytes, of which a guest may change some bits.
//!
//! Must never know: what the function does.

use vm_memory::GuestAddress;

use super::Error;

/// Bytes of configuration space.
pub const CONFIG_BYTES: usize = 256;

/// The command register.
pub const COMMAND: usize = 0x04;
/// Command: the function answers in memory.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Command: the function may write memory, messages among it.
const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// Command: no INTx, which nothing here has; drivers set it all the same.
const COMMAND_NO_INTX: u16 = 1 << 10;
/// The status register, and its bit that says that there are capabilities.
const STATUS: usize = 0x06;
const STATUS_CAPABILITIES: u16 = 1 << 4;
/// The first base address register.
const BAR0: usize = 0x10;
/// The pointer to the first capability.
const CAPABILITIES: usize = 0x34;
/// Capabilities begin behind the header.
const CAPABILITIES_START: usize = 0x40;

/// What a function is (§6.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Base class, subclass, interface.
    pub class: [u8; 3],
    /// Subsystem's vendor and device.
    pub subsystem: [u16; 2],
}

/// One function's configuration space.
#[derive(Debug, Clone)]
pub struct ConfigSpace {
    bytes: [u8; CONFIG_BYTES],
    /// The bits that a guest may change.
    writable: [u8; CONFIG_BYTES],
    bar_bytes: u64,
    last_capability: Option<usize>,
    next_capability: usize,
}

impl ConfigSpace {
    /// A function without registers and capabilities.
    #[must_use]
    pub fn new(identity: &Identity) -> Self {
        let mut space = Self {
            bytes: [0; CONFIG_BYTES],
            writable: [0; CONFIG_BYTES],
            bar_bytes: 0,
            last_capability: None,
            next_capability: CAPABILITIES_START,
        };
        space.set(0x00, &identity.vendor.to_le_bytes());
        space.set(0x02, &identity.device.to_le_bytes());
        let [base, sub, interface] = identity.class;
        space.set(0x08, &[identity.revision, interface, sub, base]);
        space.set(0x2c, &identity.subsystem[0].to_le_bytes());
        space.set(0x2e, &identity.subsystem[1].to_le_bytes());
        let command = COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_NO_INTX;
        space.allow(COMMAND, &command.to_le_bytes());
        // The interrupt line is a scratch register for software.
        space.allow(0x3c, &[0xff]);
        space
    }

    /// Gives the function registers: a 32-bit memory BAR of `bytes` bytes at `start`, decoded as firmware leaves it.
    ///
    /// # Errors
    /// `bytes` is no power of two from 16 bytes up, or `start` is not a multiple of it below 4 GiB.
    pub fn add_registers(&mut self, start: GuestAddress, bytes: u32) -> Result<(), Error> {
        let refused = Error::Function("registers of that size at that address");
        let Ok(address) = u32::try_from(start.0) else { return Err(refused) };
        if !bytes.is_power_of_two() || bytes < 16 || !address.is_multiple_of(bytes) {
            return Err(refused);
        }
        self.bar_bytes = u64::from(bytes);
        self.set(BAR0, &address.to_le_bytes());
        self.allow(BAR0, &(!(bytes - 1)).to_le_bytes());
        self.set(COMMAND, &COMMAND_MEMORY.to_le_bytes());
        Ok(())
    }

    /// Adds a capability: `body` follows its two header bytes, and a guest may change the bits set in `writable`, which
    /// is as long. Returns where the capability lies.
    ///
    /// # Errors
    /// It does not fit.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Result<usize, Error> {
        let start = self.next_capability;
        let end = start + 2 + body.len();
        if end > CONFIG_BYTES || writable.len() != body.len() {
            return Err(Error::Function("so many capabilities"));
        }
        let pointer = self.last_capability.map_or(CAPABILITIES, |last| last + 1);
        self.set(pointer, &[u8::try_from(start).expect("invariant: below 256")]);
        self.set(start, &[id, 0]);
        self.set(start + 2, body);
        self.allow(start + 2, writable);
        self.set(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        self.last_capability = Some(start);
        self.next_capability = end.next_multiple_of(4);
        Ok(start)
    }

    /// Where the registers lie: start and length; nothing while the guest has them switched off.
    #[must_use]
    pub fn registers(&self) -> Option<(GuestAddress, u64)> {
        let decodes = self.word(COMMAND) & COMMAND_MEMORY != 0 && self.bar_bytes > 0;
        // The low four bits of a BAR are its type.
        let start = u64::from(self.double_word(BAR0)) & !0xf;
        decodes.then_some((GuestAddress(start), self.bar_bytes))
    }

    /// Two bytes.
    #[must_use]
    pub fn word(&self, at: usize) -> u16 {
        u16::from(self.byte(at)) | u16::from(self.byte(at + 1)) << 8
    }

    /// Four bytes.
    #[must_use]
    pub fn double_word(&self, at: usize) -> u32 {
        u32::from(self.word(at)) | u32::from(self.word(at + 2)) << 16
    }

    /// One byte; zero beyond the end.
    #[must_use]
    pub fn byte(&self, at: usize) -> u8 {
        self.bytes.get(at).copied().unwrap_or(0)
    }

    /// All of it, for a snapshot.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Takes over what a guest may change of `saved`; whether all else is as it was.
    #[must_use]
    pub fn restore(&mut self, saved: &[u8]) -> bool {
        if saved.len() != CONFIG_BYTES {
            return false;
        }
        self.write(0, saved);
        self.bytes == saved
    }

    /// The guest reads; beyond the end there are zeros.
    pub fn read(&self, register: usize, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = self.byte(register.saturating_add(index));
        }
    }

    /// The guest writes; only what it may change does.
    pub fn write(&mut self, register: usize, data: &[u8]) {
        for (index, &value) in data.iter().enumerate() {
            let at = register.saturating_add(index);
            if let (Some(byte), Some(&mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *byte = (*byte & !mask) | (value & mask);
            }
        }
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, at: usize, bits: &[u8]) {
        self.writable[at..at + bits.len()].copy_from_slice(bits);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        let identity =
            Identity { vendor: 0x1af4, device: 0x1042, revision: 1, class: [1, 0x80, 0], subsystem: [1, 2] };
        let mut space = ConfigSpace::new(&identity);
        space.add_registers(GuestAddress(0xc000_8000), 0x8000).unwrap();
        space
    }

    fn read(space: &ConfigSpace, at: usize) -> u32 {
        let mut bytes = [0; 4];
        space.read(at, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    #[test]
    fn header_says_what_the_function_is_and_cannot_be_changed() {
        let mut space = space();
        space.write(0, &[0xff; 4]);
        space.write(8, &[0xff; 4]);
        assert_eq!(
            (read(&space, 0), read(&space, 8), read(&space, 0x2c)),
            (0x1042_1af4, 0x0180_0001, 0x2_0001)
        );
    }

    #[test]
    fn all_ones_in_a_bar_read_back_as_its_size_and_registers_move_with_it() {
        let mut space = space();
        assert_eq!(space.registers(), Some((GuestAddress(0xc000_8000), 0x8000)));
        space.write(0x10, &[0xff; 4]);
        assert_eq!(read(&space, 0x10), 0xffff_8000);
        space.write(0x10, &0xc123_4567_u32.to_le_bytes());
        assert_eq!(space.registers(), Some((GuestAddress(0xc123_0000), 0x8000)));
        space.write(COMMAND, &[0, 0]);
        assert_eq!(space.registers(), None);
        assert_eq!(read(&space, 0x14), 0, "the other BARs do not exist");
        space.write(0x14, &[0xff; 4]);
        assert_eq!(read(&space, 0x14), 0);
    }

    #[test]
    fn capabilities_are_chained_and_only_their_writable_bits_change() {
        let mut space = space();
        assert_eq!(read(&space, 4) >> 16 & 0x10, 0);
        let first = space.add_capability(0x11, &[1, 2, 3], &[0, 0xf0, 0]).unwrap();
        let second = space.add_capability(0x09, &[4, 5], &[0, 0]).unwrap();
        assert_eq!((first, second), (0x40, 0x48));
        assert_eq!(read(&space, 4) >> 16 & 0x10, 0x10);
        assert_eq!((space.byte(0x34), space.byte(0x41), space.byte(0x49)), (0x40, 0x48, 0));
        space.write(0x42, &[0xff; 3]);
        assert_eq!(read(&space, 0x42) & 0xff_ffff, 0x03_f201);
    }

    #[test]
    fn capabilities_that_do_not_fit_are_refused() {
        let mut space = space();
        assert!(space.add_capability(9, &[0; 200], &[0; 200]).is_err());
        assert!(space.add_capability(9, &[0; 190], &[0; 190]).is_ok());
        assert!(space.add_capability(9, &[0; 2], &[0; 2]).is_err());
    }

    #[test]
    fn registers_must_be_aligned_and_below_four_gib() {
        for (start, bytes) in
            [(0xc000_0000, 8), (0xc000_0000, 0x3000), (0xc000_1000, 0x8000), (1 << 32, 0x1000)]
        {
            assert!(space().add_registers(GuestAddress(start), bytes).is_err(), "{start:#x} {bytes:#x}");
        }
    }

    #[test]
    fn accesses_beyond_the_end_are_harmless() {
        let mut space = space();
        for at in [255, 256, 4096, usize::MAX] {
            space.write(at, &[0xff; 8]);
            let mut data = [0xaa; 8];
            space.read(at, &mut data);
            assert_eq!(data[1..], [0; 7]);
        }
    }
}
