//! Registers, the status machine, and rings that a driver must not offer.

use super::super::mock::{BUFFERS_START, MockDescriptor, MockGuest, MockQueue, write_descriptor};
use super::super::spec::{block, feature, mmio, ring, status};
use super::*;

fn guest() -> MockGuest {
    block_guest(&MemoryDisk::new(1 << 20))
}

#[test]
fn registers_identify_a_modern_block_device() {
    let mut guest = guest();
    assert_eq!(guest.read(mmio::MAGIC_VALUE), 0x7472_6976);
    assert_eq!(guest.read(mmio::VERSION), 2);
    assert_eq!(guest.read(mmio::DEVICE_ID), 2);
    assert_eq!(guest.read(mmio::QUEUE_SIZE_MAX), 128);
    guest.write(mmio::QUEUE_SEL, 1);
    assert_eq!(guest.read(mmio::QUEUE_SIZE_MAX), 0);
    assert_eq!(guest.read(mmio::SHM_LEN_LOW), u32::MAX);
    assert!(guest.offered() & feature::VERSION_1 != 0);
}

#[test]
fn status_reaches_driver_ok_step_by_step_or_in_leaps() {
    let mut guest = guest();
    assert_eq!(guest.negotiate(0), READY);
    guest.set_up_queue(0, 16);
    assert_eq!(guest.start(), READY | status::DRIVER_OK);
    // Some drivers set the first two bits at once.
    guest.write(mmio::STATUS, 0);
    assert_eq!(guest.read(mmio::STATUS), 0);
    guest.write(mmio::STATUS, status::ACKNOWLEDGE | status::DRIVER);
    assert_eq!(guest.read(mmio::STATUS), status::ACKNOWLEDGE | status::DRIVER);
}

#[test]
fn status_out_of_order_or_cleared_needs_a_reset() {
    for illegal in [status::DRIVER, status::FEATURES_OK | status::ACKNOWLEDGE, status::NEEDS_RESET, 0x10] {
        let mut guest = guest();
        guest.write(mmio::STATUS, status::ACKNOWLEDGE);
        guest.write(mmio::STATUS, illegal);
        assert!(guest.needs_reset(), "{illegal:#x}");
        guest.write(mmio::STATUS, 0);
        assert_eq!(guest.read(mmio::STATUS), 0);
    }
}

#[test]
fn features_never_offered_or_without_version_1_are_refused() {
    let mut guest = guest();
    assert_eq!(guest.negotiate(block::F_RO) & status::FEATURES_OK, 0);
    assert_eq!(guest.negotiate(1 << 40) & status::FEATURES_OK, 0);
    guest.write(mmio::STATUS, 0);
    guest.write(mmio::STATUS, 3);
    guest.write(mmio::STATUS, READY);
    assert_eq!(guest.read(mmio::STATUS), 3);
}

#[test]
fn driver_ok_without_a_usable_queue_needs_a_reset() {
    let unusable = |change: fn(&mut MockQueue)| {
        let mut guest = guest();
        guest.negotiate(0);
        let mut queue = guest.set_up_queue(0, 16);
        guest.write(mmio::QUEUE_READY, 0);
        change(&mut queue);
        guest.place_queue(&queue);
        guest.start();
        guest.needs_reset()
    };
    assert!(!unusable(|_| {}));
    assert!(unusable(|queue| queue.descriptors += 8));
    assert!(unusable(|queue| queue.descriptors = 0x3f_fff0));
    assert!(unusable(|queue| queue.available = u64::MAX - 1));
    assert!(unusable(|queue| queue.available += 1));
    assert!(unusable(|queue| queue.used = 0x30_0000));
    assert!(unusable(|queue| queue.size = 12));
    assert!(unusable(|queue| queue.size = 256));
    let mut guest = guest();
    guest.negotiate(0);
    guest.start();
    assert!(guest.needs_reset(), "no queue at all");
}

#[test]
fn changing_a_live_queue_needs_a_reset_and_reads_as_stopped() {
    let mut guest = guest();
    guest.bring_up(0, &[16]);
    guest.write(mmio::QUEUE_READY, 0);
    assert!(guest.needs_reset());
    assert_eq!(guest.read(mmio::QUEUE_READY), 0);
    assert_eq!(guest.read(mmio::INTERRUPT_STATUS), mmio::INTERRUPT_CONFIG);
}

#[test]
fn failed_driver_stops_the_device() {
    let mut guest = guest();
    let mut queue = guest.bring_up(0, &[16])[0];
    guest.write(mmio::STATUS, status::FAILED);
    queue.submit(&guest.memory, &[MockDescriptor::readable(BUFFERS_START, 16)]);
    guest.kick(0);
    assert!(!guest.needs_reset());
    assert_eq!(queue.take_used(&guest.memory), None);
}

#[test]
fn accesses_of_odd_width_read_what_memory_would_and_change_nothing() {
    let mut guest = guest();
    let mut byte = [0xff];
    guest.bus().read(u64::from(mmio::MAGIC_VALUE), &mut byte);
    assert_eq!(byte, *b"v");
    let mut wide = [0xff; 8];
    guest.bus().read(u64::from(mmio::CONFIG) + 60, &mut wide);
    assert_eq!(wide, [0; 8]);
    guest.bus().read(u64::MAX, &mut wide);
    guest.bus().write(u64::from(mmio::STATUS) + 1, &[1, 2, 3]);
    guest.bus().write(u64::from(mmio::STATUS), &[1]);
    assert_eq!(guest.read(mmio::STATUS), 0);
}

/// A queue of a running block device, and what the driver does to it.
fn breaks(hostile: fn(&MockGuest, &mut MockQueue)) -> bool {
    let mut guest = guest();
    let mut queue = guest.bring_up(feature::RING_INDIRECT_DESC, &[16])[0];
    hostile(&guest, &mut queue);
    guest.kick(0);
    assert!(guest.run(), "the device came to rest");
    guest.needs_reset()
}

#[test]
fn chain_that_loops_needs_a_reset() {
    assert!(breaks(|guest, queue| {
        let there = MockDescriptor { address: BUFFERS_START, length: 1, flags: ring::DESC_F_NEXT, next: 1 };
        queue.write_descriptor(&guest.memory, 0, there);
        queue.write_descriptor(&guest.memory, 1, MockDescriptor { next: 0, ..there });
        queue.make_available(&guest.memory, 0);
    }));
}

#[test]
fn chain_that_leaves_its_table_needs_a_reset() {
    assert!(breaks(|guest, queue| {
        let out = MockDescriptor { address: BUFFERS_START, length: 16, flags: ring::DESC_F_NEXT, next: 16 };
        queue.write_descriptor(&guest.memory, 0, out);
        queue.make_available(&guest.memory, 0);
    }));
    assert!(breaks(|guest, queue| queue.make_available(&guest.memory, 16)));
    assert!(breaks(|guest, queue| queue.make_available(&guest.memory, u16::MAX)));
}

#[test]
fn buffer_outside_memory_needs_a_reset() {
    for address in [0x20_0000 - 1, 0x30_0000, 0x50_0000, u64::MAX, u64::MAX - 15] {
        let mut guest = guest();
        let mut queue = guest.bring_up(0, &[16])[0];
        queue.submit(
            &guest.memory,
            &[MockDescriptor::readable(address, 16), MockDescriptor::writable(BUFFERS_START, 1)],
        );
        guest.kick(0);
        assert!(guest.needs_reset(), "{address:#x}");
    }
}

#[test]
fn readable_buffer_after_a_writable_one_needs_a_reset() {
    assert!(breaks(|guest, queue| {
        let parts =
            [MockDescriptor::writable(BUFFERS_START, 16), MockDescriptor::readable(BUFFERS_START, 16)];
        queue.submit(&guest.memory, &parts);
    }));
}

#[test]
fn available_index_beyond_the_queue_needs_a_reset() {
    assert!(breaks(|guest, queue| queue.set_available_index(&guest.memory, 17)));
    assert!(breaks(|guest, queue| queue.set_available_index(&guest.memory, u16::MAX)));
}

#[test]
fn chain_of_too_many_bytes_needs_a_reset() {
    assert!(breaks(|guest, queue| {
        // 17 × 2 MiB in one indirect table.
        let table = BUFFERS_START;
        for index in 0..17 {
            let last = index == 16;
            let part = MockDescriptor {
                address: 0,
                length: 0x20_0000,
                flags: ring::DESC_F_WRITE | if last { 0 } else { ring::DESC_F_NEXT },
                next: index + 1,
            };
            write_descriptor(&guest.memory, table + 16 * u64::from(index), part);
        }
        indirect(guest, queue, table, 17 * 16);
    }));
}

fn indirect(guest: &MockGuest, queue: &mut MockQueue, table: u64, length: u32) {
    let pointer = MockDescriptor { address: table, length, flags: ring::DESC_F_INDIRECT, next: 0 };
    queue.submit(&guest.memory, &[pointer]);
}

#[test]
fn indirect_table_that_is_empty_odd_nested_or_outside_needs_a_reset() {
    assert!(breaks(|guest, queue| indirect(guest, queue, BUFFERS_START, 0)));
    assert!(breaks(|guest, queue| indirect(guest, queue, BUFFERS_START, 24)));
    assert!(breaks(|guest, queue| indirect(guest, queue, 0x30_0000, 16)));
    assert!(breaks(|guest, queue| {
        let inner =
            MockDescriptor { address: BUFFERS_START, length: 16, flags: ring::DESC_F_INDIRECT, next: 0 };
        write_descriptor(&guest.memory, BUFFERS_START, inner);
        indirect(guest, queue, BUFFERS_START, 16);
    }));
}

#[test]
fn chain_longer_than_the_bound_needs_a_reset() {
    assert!(breaks(|guest, queue| {
        for index in 0..2000_u16 {
            let part =
                MockDescriptor { address: 0, length: 0, flags: ring::DESC_F_NEXT, next: (index + 1) % 2000 };
            write_descriptor(&guest.memory, BUFFERS_START + 16 * u64::from(index), part);
        }
        indirect(guest, queue, BUFFERS_START, 2000 * 16);
    }));
}

#[test]
fn reset_makes_a_broken_device_work_again() {
    let disk = MemoryDisk::new(1 << 20);
    let mut guest = block_guest(&disk);
    let queue = guest.bring_up(0, &[16])[0];
    queue.make_available_hostile(&guest);
    guest.kick(0);
    assert!(guest.needs_reset());
    guest.take_interrupts();

    let mut queue = guest.bring_up(0, &[16])[0];
    assert!(!guest.needs_reset());
    let parts = [
        MockDescriptor::readable(BUFFERS_START, 16),
        MockDescriptor::writable(BUFFERS_START + 512, 512),
        MockDescriptor::writable(BUFFERS_START + 1024, 1),
    ];
    guest.put(BUFFERS_START, &[0; 16]);
    queue.submit(&guest.memory, &parts);
    guest.kick(0);
    assert_eq!(queue.take_used(&guest.memory), Some((0, 513)));
}

impl MockQueue {
    fn make_available_hostile(&self, guest: &MockGuest) {
        self.set_available_index(&guest.memory, 999);
    }
}
