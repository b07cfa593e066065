//! The PCI transport: what differs from virtio-mmio; all else is the same driver over it.

use proptest::prelude::*;
use vm_memory::GuestAddress;

use super::super::mock::{BUFFERS_START, MockDescriptor, PCI_START};
use super::super::pci::BAR_BYTES;
use super::super::spec::{feature, pci, status};
use super::*;

const ALL: u32 = READY | status::DRIVER_OK;
const ISR: u64 = 0x1000;

fn guest() -> MockGuest {
    MockGuest::over_pci(block_device(&MemoryDisk::new(1 << 20), false)).unwrap()
}

fn config(guest: &mut MockGuest, at: usize) -> u32 {
    let mut bytes = [0; 4];
    guest.function().read_config(at, &mut bytes);
    u32::from_le_bytes(bytes)
}

fn read_sector(guest: &mut MockGuest, queue: &mut super::super::mock::MockQueue) {
    guest.put(BUFFERS_START, &[0; 16]);
    let parts = [
        MockDescriptor::readable(BUFFERS_START, 16),
        MockDescriptor::writable(BUFFERS_START + 512, 512),
        MockDescriptor::writable(BUFFERS_START + 1024, 1),
    ];
    queue.submit(&guest.memory, &parts);
    guest.kick(0);
}

#[test]
fn function_identifies_a_modern_block_device_with_every_capability() {
    let mut guest = guest();
    assert_eq!(config(&mut guest, 0), 0x1042_1af4);
    assert_eq!(config(&mut guest, 8), 0x0180_0001);
    let kinds = [pci::CAP_COMMON, pci::CAP_NOTIFY, pci::CAP_ISR, pci::CAP_DEVICE, pci::CAP_PCI];
    let offsets = kinds.map(|kind| {
        let at = guest.capability(pci::CAP_VENDOR, Some(kind)).unwrap();
        config(&mut guest, at + pci::CAP_OFFSET_AT)
    });
    assert_eq!(offsets, [0, 0x3000, 0x1000, 0x2000, 0]);
    assert_eq!(guest.read_short(pci::NUM_QUEUES), 1);
    assert_eq!(guest.read_short(pci::QUEUE_SIZE), 128);
    guest.write_short(pci::QUEUE_SELECT, 1);
    assert_eq!(guest.read_short(pci::QUEUE_SIZE), 0);
    assert!(guest.offered() & feature::VERSION_1 != 0);
}

#[test]
fn requests_are_answered_and_interrupt_by_the_queues_vector() {
    let mut guest = guest();
    let mut queue = guest.bring_up(0, &[16])[0];
    assert_eq!(guest.status(), ALL);
    read_sector(&mut guest, &mut queue);
    assert_eq!(queue.take_used(&guest.memory), Some((0, 513)));
    assert_eq!(guest.take_interrupts(), 1);
    let mut isr = [0];
    guest.bus().read(ISR, &mut isr);
    assert_eq!(isr, [pci::ISR_QUEUE]);
    guest.bus().read(ISR, &mut isr);
    assert_eq!(isr, [0], "reading clears");
}

#[test]
fn queue_without_a_vector_does_not_interrupt() {
    let mut guest = guest();
    guest.negotiate(0);
    let mut queue = guest.set_up_queue(0, 16);
    guest.write_short(pci::QUEUE_MSIX_VECTOR, 2);
    assert_eq!(guest.read_short(pci::QUEUE_MSIX_VECTOR), pci::NO_VECTOR, "there are two vectors");
    guest.start();
    read_sector(&mut guest, &mut queue);
    assert!(queue.take_used(&guest.memory).is_some());
    assert_eq!(guest.take_interrupts(), 0);
}

#[test]
fn reset_forgets_vectors_queues_and_status() {
    let mut guest = guest();
    guest.bring_up(0, &[16]);
    assert_eq!(guest.read_short(pci::QUEUE_MSIX_VECTOR), 1);
    assert_eq!(guest.read_short(pci::QUEUE_ENABLE), 1);
    guest.set_status(0);
    assert_eq!(guest.status(), 0);
    assert_eq!(guest.read_short(pci::QUEUE_MSIX_VECTOR), pci::NO_VECTOR);
    assert_eq!(guest.read_short(pci::CONFIG_MSIX_VECTOR), pci::NO_VECTOR);
    assert_eq!((guest.read_short(pci::QUEUE_ENABLE), guest.read_short(pci::QUEUE_SIZE)), (0, 128));
}

#[test]
fn broken_queue_asks_for_a_reset_by_the_configurations_vector() {
    let mut guest = guest();
    let queue = guest.bring_up(0, &[16])[0];
    guest.take_interrupts();
    queue.set_available_index(&guest.memory, 999);
    guest.kick(0);
    assert!(guest.needs_reset());
    assert_eq!(guest.take_interrupts(), 1);
    let mut queue = guest.bring_up(0, &[16])[0];
    read_sector(&mut guest, &mut queue);
    assert_eq!(queue.take_used(&guest.memory), Some((0, 513)));
}

#[test]
fn doorbells_exist_while_the_device_runs_and_follow_its_bar() {
    let mut guest = guest();
    let wires = guest.wires();
    assert_eq!(wires.doorbells(), []);
    guest.bring_up(0, &[16]);
    let at = |start: u64| vec![GuestAddress(start + 0x3000)];
    assert_eq!(wires.doorbells(), at(PCI_START.0));
    let moved = PCI_START.0 + 4 * u64::from(BAR_BYTES);
    guest.function().write_config(0x10, &(moved as u32).to_le_bytes());
    assert_eq!(wires.doorbells(), at(moved));
    // As while its size is asked for: there is no such place.
    guest.function().write_config(0x10, &[0xff; 4]);
    assert_eq!(wires.doorbells(), []);
    guest.function().write_config(0x10, &(moved as u32).to_le_bytes());
    guest.function().write_config(4, &[0, 0]);
    assert_eq!(wires.doorbells(), [], "not decoded");
    guest.function().write_config(4, &[6, 0]);
    assert_eq!(wires.doorbells(), at(moved));
    guest.set_status(0);
    assert_eq!(wires.doorbells(), []);
}

#[test]
fn registers_are_reached_through_configuration_space_as_firmware_does() {
    let mut guest = guest();
    let at = guest.capability(pci::CAP_VENDOR, Some(pci::CAP_PCI)).unwrap();
    let select = |guest: &mut MockGuest, offset: u32, length: u32| {
        guest.function().write_config(at + pci::CAP_OFFSET_AT, &offset.to_le_bytes());
        guest.function().write_config(at + pci::CAP_LENGTH_AT, &length.to_le_bytes());
    };
    select(&mut guest, pci::NUM_QUEUES as u32, 2);
    assert_eq!(config(&mut guest, at + pci::CAP_DATA_AT) & 0xffff, 1);
    select(&mut guest, pci::DEVICE_STATUS as u32, 1);
    guest.function().write_config(at + pci::CAP_DATA_AT, &[1, 0, 0, 0]);
    assert_eq!(guest.status(), status::ACKNOWLEDGE);
    for (offset, length) in [(0, 0), (0, 3), (2, 4), (BAR_BYTES, 4), (u32::MAX, 1), (0, u32::MAX)] {
        select(&mut guest, offset, length);
        config(&mut guest, at + pci::CAP_DATA_AT);
        guest.function().write_config(at + pci::CAP_DATA_AT, &[0xff; 4]);
    }
    assert_eq!(guest.status(), status::ACKNOWLEDGE);
}

#[test]
fn accesses_of_odd_width_read_zeros_and_change_nothing() {
    let mut guest = guest();
    for (offset, length) in
        [(0, 1), (pci::DEVICE_STATUS, 4), (pci::QUEUE_SELECT, 1), (38, 4), (56, 8), (0x6000, 4)]
    {
        let mut data = vec![0xff; length];
        guest.bus().write(offset, &data);
        guest.bus().read(offset, &mut data);
        assert!(data.iter().all(|byte| *byte == 0), "{offset:#x}");
    }
    guest.bus().read(u64::MAX, &mut [0; 8]);
    guest.bus().write(u64::MAX, &[0; 8]);
    assert_eq!(guest.status(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn random_registers_and_configuration_never_panic_or_spin(
        accesses in proptest::collection::vec(
            (any::<bool>(), 0..0x6010_u64, any::<u64>(), 0..9_usize, any::<bool>()), 1..200),
    ) {
        let mut guest = guest();
        for (config, place, value, length, small) in accesses {
            let bytes = (if small { value & 0xff } else { value }).to_le_bytes();
            // Half of the registers' accesses go where the most of them are.
            let place = if value % 2 == 0 { place % 0x40 } else { place };
            if config {
                guest.function().write_config(place as usize % 0x110, &bytes[..length]);
                guest.function().read_config(place as usize % 0x110, &mut vec![0; length]);
            } else {
                guest.bus().write(place, &bytes[..length]);
                guest.bus().read(place, &mut vec![0; length]);
            }
        }
        prop_assert!(guest.run());
    }
}
