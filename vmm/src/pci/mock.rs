//! A function that does nothing, for tests and fuzzers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::GuestAddress;

use super::PciFunction;
use crate::bus::BusDevice;
use crate::virtio::{StateError, TransportState};

/// A device that a driver has in use or not.
pub struct Device(pub Arc<AtomicBool>);

impl BusDevice for Device {
    fn read(&mut self, _offset: u64, _data: &mut [u8]) {}
    fn write(&mut self, _offset: u64, _data: &[u8]) {}
}

impl PciFunction for Device {
    fn read_config(&mut self, _register: usize, data: &mut [u8]) {
        data.fill(0);
    }
    fn write_config(&mut self, _register: usize, _data: &[u8]) {}
    fn registers(&self) -> Option<(GuestAddress, u64)> {
        None
    }
    fn save(&self) -> TransportState {
        unreachable!("no snapshot is made here")
    }
    fn restore(&mut self, _state: &TransportState) -> Result<(), StateError> {
        unreachable!("no snapshot is made here")
    }
    fn is_driven(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
