//! Where device registers live: port I/O and memory-mapped I/O as two ordered maps of ranges.
//!
//! Must never know: what a device is.

use std::sync::{Arc, Mutex};

use crate::mutex::lock;

/// A device that the guest reads and writes by address.
///
/// Both calls happen on a vCPU's thread. Nothing the guest does here may panic: a register that does not exist
/// reads as zeros and swallows writes.
pub trait BusDevice: Send {
    /// The guest reads `data.len()` bytes (1 to 8) at `offset` from the start of the device's range.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// The guest writes `data` (1 to 8 bytes) at `offset` from the start of the device's range.
    fn write(&mut self, offset: u64, data: &[u8]);
    /// The guest writes several items of `item_bytes` each at the same `offset` with one string instruction
    /// (`rep outs`). A device for which a batch is cheaper than its parts overrides this.
    fn write_string(&mut self, offset: u64, item_bytes: usize, data: &[u8]) {
        for item in data.chunks(item_bytes.max(1)) {
            self.write(offset, item);
        }
    }
}

/// Why a device could not be put on a bus.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Two devices would share addresses.
    #[error(
        "the range of {bytes:#x} bytes at {start:#x} is empty, ends beyond the address space or is taken"
    )]
    Range {
        /// The first address.
        start: u64,
        /// The length.
        bytes: u64,
    },
}

struct Entry {
    start: u64,
    last: u64,
    device: Arc<Mutex<dyn BusDevice>>,
}

/// An ordered map from address ranges to devices.
#[derive(Default)]
pub struct Bus {
    /// Sorted by start; ranges never overlap.
    entries: Vec<Entry>,
}

impl Bus {
    /// Puts `device` at `start` for `bytes` bytes.
    ///
    /// # Errors
    /// An empty range, one beyond the address space, or one that overlaps another device's.
    pub fn insert(&mut self, start: u64, bytes: u64, device: Arc<Mutex<dyn BusDevice>>) -> Result<(), Error> {
        let refused = Error::Range { start, bytes };
        let Some(last) = bytes.checked_sub(1).and_then(|rest| start.checked_add(rest)) else {
            return Err(refused);
        };
        let index = self.entries.partition_point(|entry| entry.start <= last);
        if index > 0 && self.entries[index - 1].last >= start {
            return Err(refused);
        }
        self.entries.insert(index, Entry { start, last, device });
        Ok(())
    }

    /// Calls `act` with the device at `address` and the offset in it; false if nothing is there.
    fn with(&self, address: u64, act: impl FnOnce(&mut dyn BusDevice, u64)) -> bool {
        let index = self.entries.partition_point(|entry| entry.start <= address);
        let Some(entry) = index.checked_sub(1).and_then(|before| self.entries.get(before)) else {
            return false;
        };
        if address > entry.last {
            return false;
        }
        let mut device = lock(&entry.device);
        act(&mut *device, address - entry.start);
        true
    }

    /// Reads; `data` is filled with ones where no device answers, as on a PC.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        if !self.with(address, |device, offset| device.read(offset, data)) {
            data.fill(0xff);
        }
    }

    /// Writes; without a device nothing happens.
    pub fn write(&self, address: u64, data: &[u8]) {
        self.with(address, |device, offset| device.write(offset, data));
    }

    /// Reads `data.len() / item_bytes` items from the same address.
    pub fn read_string(&self, address: u64, item_bytes: usize, data: &mut [u8]) {
        for item in data.chunks_mut(item_bytes.max(1)) {
            self.read(address, item);
        }
    }

    /// Writes `data.len() / item_bytes` items to the same address.
    pub fn write_string(&self, address: u64, item_bytes: usize, data: &[u8]) {
        self.with(address, |device, offset| {
            if data.len() == item_bytes {
                device.write(offset, data);
            } else {
                device.write_string(offset, item_bytes, data);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Recorder(Vec<(u64, Vec<u8>)>);

    impl BusDevice for Recorder {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(offset).unwrap());
        }
        fn write(&mut self, offset: u64, data: &[u8]) {
            self.0.push((offset, data.to_vec()));
        }
    }

    fn bus() -> (Bus, Arc<Mutex<Recorder>>) {
        let device = Arc::new(Mutex::new(Recorder::default()));
        let mut bus = Bus::default();
        bus.insert(0x3f8, 8, device.clone()).unwrap();
        (bus, device)
    }

    #[test]
    fn addresses_reach_the_device_with_their_offset() {
        let (bus, device) = bus();
        let mut data = [0; 2];
        bus.read(0x3fd, &mut data);
        assert_eq!(data, [5, 5]);
        bus.write(0x3f8, b"x");
        assert_eq!(device.lock().unwrap().0, vec![(0, b"x".to_vec())]);
    }

    #[test]
    fn addresses_without_a_device_read_as_ones() {
        let (bus, device) = bus();
        for address in [0, 0x3f7, 0x400, u64::MAX] {
            let mut data = [0; 1];
            bus.read(address, &mut data);
            assert_eq!(data, [0xff]);
            bus.write(address, &data);
        }
        assert!(device.lock().unwrap().0.is_empty());
    }

    #[test]
    fn string_writes_arrive_item_by_item() {
        let (bus, device) = bus();
        bus.write_string(0x3f8, 2, b"abcd");
        assert_eq!(device.lock().unwrap().0, vec![(0, b"ab".to_vec()), (0, b"cd".to_vec())]);
    }

    #[test]
    fn overlapping_and_empty_ranges_are_refused() {
        let (mut bus, device) = bus();
        for (start, bytes) in
            [(0x3f0, 9), (0x3ff, 1), (0x3f8, 8), (0x3fa, 1), (0x300, 0x1000), (0, 0), (u64::MAX, 2)]
        {
            assert_eq!(bus.insert(start, bytes, device.clone()), Err(Error::Range { start, bytes }));
        }
        assert_eq!(bus.insert(0x3f0, 8, device.clone()), Ok(()));
        assert_eq!(bus.insert(0x400, 8, device), Ok(()));
    }
}
