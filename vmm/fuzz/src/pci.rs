//! A guest at a PCI bus: configuration space by both ways, functions' registers wherever they were moved, and queues
//! over them.

use std::sync::{Arc, Mutex};

use vm_memory::GuestAddress;
use vmm::bus::BusDevice;
use vmm::memory;
use vmm::pci::host::PciHost;
use vmm::virtio::block::Block;
use vmm::virtio::mock::{BUFFERS_START, MEMORY, MockDescriptor, MockGuest, MockQueue, Wires};
use vmm::virtio::pci::{BAR_BYTES, PciTransport};
use vmm::virtio::{Shared, build_rng};

use crate::input::Reader;
use crate::queue::NullDisk;

/// Operations in one input: enough to bring a device up, move it and break it.
const OPERATIONS_MAX: usize = 400;
const SLOTS: u8 = 3;

fn device(kind: u8) -> Shared {
    if kind.is_multiple_of(2) {
        Arc::new(Mutex::new(
            Block::new(Box::new(NullDisk), false, "fuzz").expect("invariant: a short serial"),
        ))
    } else {
        build_rng().expect("the fuzzer needs eventfds")
    }
}

pub(crate) fn run(input: &[u8]) {
    let mut reader = Reader::new(input);
    if reader.u8().is_multiple_of(2) { bus(&mut reader) } else { one_function(&mut reader) }
}

/// Accesses of any place and width to a bus of several functions.
fn bus(reader: &mut Reader<'_>) {
    let guest = memory::GuestMemory::from_ranges(&MEMORY).expect("the fuzzer needs some memory");
    let host = PciHost::default();
    for slot in 1..=SLOTS {
        let start = GuestAddress(memory::PCI_WINDOW_START.0 + u64::from(slot) * u64::from(BAR_BYTES));
        let wires = Arc::new(Wires::default());
        let function = PciTransport::new(guest.clone(), device(slot), wires, start);
        let function = function.expect("invariant: devices here fit into a function");
        host.insert(slot, Box::new(function)).expect("invariant: the slot is free");
    }
    let (mut ecam, mut ports, mut window) = (host.ecam(), host.ports(), host.window());
    for _ in 0..OPERATIONS_MAX {
        if reader.is_empty() {
            return;
        }
        let slot = u64::from(reader.u8() % (SLOTS + 2));
        let (device, offset): (&mut dyn BusDevice, u64) = match reader.u8() % 5 {
            0 => (&mut ecam, slot << 15 | u64::from(reader.u8())),
            1 => (&mut ecam, u64::from(reader.u32()) % (memory::PCI_ECAM_BYTES + 16)),
            2 => (&mut ports, u64::from(reader.u8() % 8)),
            3 => (&mut window, slot * u64::from(BAR_BYTES) + u64::from(reader.u16() % 0x6010)),
            _ => (&mut window, reader.u64()),
        };
        let width = 1 << (reader.u8() % 4);
        let value = if reader.u8().is_multiple_of(2) { reader.u64() } else { u64::from(reader.u8()) };
        device.write(offset, &value.to_le_bytes()[..width]);
        device.read(offset, &mut [0; 8][..width]);
    }
}

/// One function that is brought up and used between accesses that break it.
fn one_function(reader: &mut Reader<'_>) {
    let mut guest = MockGuest::over_pci(device(reader.u8())).expect("the fuzzer needs eventfds");
    let mut queue: Option<MockQueue> = None;
    for _ in 0..OPERATIONS_MAX {
        if reader.is_empty() {
            break;
        }
        let width = 1 << (reader.u8() % 4);
        match reader.u8() % 8 {
            0 => {
                let features = guest.offered() & reader.u64();
                queue = guest.bring_up(features, &[16]).first().copied();
            }
            1 | 2 => {
                let place = usize::from(reader.u8());
                guest.function().write_config(place, &reader.u64().to_le_bytes()[..width]);
                guest.function().read_config(place, &mut [0; 8][..width]);
            }
            3 | 4 => {
                let place = u64::from(reader.u16() % 0x6010);
                guest.bus().write(place, &reader.u64().to_le_bytes()[..width]);
                guest.bus().read(place, &mut [0; 8][..width]);
            }
            5 => {
                let place = u64::from(reader.u8() % 64);
                guest.bus().write(place, &reader.u64().to_le_bytes()[..width]);
            }
            _ => {
                if let Some(queue) = &mut queue {
                    let address = BUFFERS_START + u64::from(reader.u16());
                    let parts = [
                        MockDescriptor::readable(BUFFERS_START, 16),
                        MockDescriptor::writable(address, u32::from(reader.u16())),
                        MockDescriptor::writable(BUFFERS_START, 1),
                    ];
                    queue.submit(&guest.memory, &parts);
                    guest.kick(0);
                }
            }
        }
    }
    assert!(guest.run(), "the device does not come to rest");
}
