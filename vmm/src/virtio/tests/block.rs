//! Requests of the block device.

use super::super::mock::{BUFFERS_START, MockDescriptor, MockGuest, MockQueue};
use super::super::spec::{block, feature, mmio, ring};
use super::*;

const HEADER: u64 = BUFFERS_START;
const DATA: u64 = BUFFERS_START + 0x1000;
const STATUS: u64 = BUFFERS_START + 0x800;

struct Driver {
    guest: MockGuest,
    queue: MockQueue,
}

impl Driver {
    fn new(disk: &MemoryDisk, features: u64) -> Self {
        let mut guest = block_guest(disk);
        let queue = guest.bring_up(features, &[16])[0];
        Self { guest, queue }
    }

    /// One request; its status byte and the length in the used ring.
    fn request(&mut self, kind: u32, sector: u64, data: &[MockDescriptor]) -> (u8, u32) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.guest.put(HEADER, &header);
        self.guest.put(STATUS, &[0xee]);
        let parts =
            [&[MockDescriptor::readable(HEADER, 16)][..], data, &[MockDescriptor::writable(STATUS, 1)]]
                .concat();
        self.queue.submit(&self.guest.memory, &parts);
        self.guest.kick(0);
        assert!(!self.guest.needs_reset());
        let (_, written) = self.queue.take_used(&self.guest.memory).expect("the request came back");
        (self.guest.get(STATUS, 1)[0], written)
    }
}

#[test]
fn written_sectors_are_read_back_through_split_buffers() {
    let disk = MemoryDisk::new(1 << 20);
    let mut driver = Driver::new(&disk, BLOCK_FEATURES);
    let pattern: Vec<u8> = (0..200_192_u32).map(|index| (index % 251) as u8).collect();
    driver.guest.put(DATA, &pattern);
    let out = [MockDescriptor::readable(DATA, 7), MockDescriptor::readable(DATA + 7, 200_192 - 7)];
    assert_eq!(driver.request(block::T_OUT, 3, &out), (block::S_OK, 1));
    disk.state(|state| assert_eq!(state.bytes[1536..1536 + pattern.len()], pattern[..]));

    driver.guest.put(DATA, &vec![0; pattern.len()]);
    let parts = [MockDescriptor::writable(DATA, 100_001), MockDescriptor::writable(DATA + 100_001, 100_191)];
    assert_eq!(driver.request(block::T_IN, 3, &parts), (block::S_OK, 200_193));
    assert_eq!(driver.guest.get(DATA, pattern.len()), pattern);
    assert_eq!(driver.guest.take_interrupts(), 2);
}

#[test]
fn disk_that_became_larger_says_so_and_serves_what_it_is_now() {
    let (before, after) = (MemoryDisk::new(1 << 20), MemoryDisk::new(2 << 20));
    let device = block_device(&before, false);
    let mut guest = MockGuest::new(device.clone()).unwrap();
    let queue = guest.bring_up(BLOCK_FEATURES, &[16])[0];
    let mut driver = Driver { guest, queue };
    let capacity = |driver: &mut Driver| u64::from_le_bytes(driver.guest.read_config(0));
    assert_eq!(capacity(&mut driver), (1 << 20) / 512);
    device.lock().unwrap().replace_disk(Box::new(after.clone()));
    assert_eq!(driver.guest.take_interrupts(), 1);
    assert_eq!(capacity(&mut driver), (2 << 20) / 512);
    driver.guest.put(DATA, &[7; 512]);
    let out = [MockDescriptor::readable(DATA, 512)];
    assert_eq!(driver.request(block::T_OUT, 4000, &out), (block::S_OK, 1));
    after.state(|state| assert_eq!(state.bytes[4000 * 512..4001 * 512], [7; 512]));
}

#[test]
fn sectors_beyond_the_end_or_broken_lengths_are_io_errors() {
    let disk = MemoryDisk::new((1 << 20) + 100);
    let mut driver = Driver::new(&disk, BLOCK_FEATURES);
    let sector = [MockDescriptor::writable(DATA, 512)];
    assert_eq!(driver.request(block::T_IN, 2047, &sector).0, block::S_OK);
    assert_eq!(driver.request(block::T_IN, 2048, &sector), (block::S_IOERR, 0));
    assert_eq!(driver.request(block::T_IN, u64::MAX, &sector).0, block::S_IOERR);
    assert_eq!(driver.request(block::T_IN, u64::MAX / 512, &sector).0, block::S_IOERR);
    assert_eq!(driver.request(block::T_IN, 0, &[MockDescriptor::writable(DATA, 511)]).0, block::S_IOERR);
    assert_eq!(driver.request(block::T_OUT, 2047, &[MockDescriptor::readable(DATA, 1024)]).0, block::S_IOERR);
    disk.state(|state| state.fail = true);
    assert_eq!(driver.request(block::T_IN, 0, &sector).0, block::S_IOERR);
}

#[test]
fn flush_reaches_the_disk_and_writes_without_it_are_durable() {
    let disk = MemoryDisk::new(1 << 16);
    let mut driver = Driver::new(&disk, BLOCK_FEATURES);
    let sector = [MockDescriptor::readable(DATA, 512)];
    assert_eq!(driver.request(block::T_OUT, 0, &sector).0, block::S_OK);
    disk.state(|state| assert_eq!(state.flushes, 0));
    assert_eq!(driver.request(block::T_FLUSH, 0, &[]), (block::S_OK, 1));
    disk.state(|state| assert_eq!(state.flushes, 1));
    let mut driver = Driver::new(&disk, 0);
    assert_eq!(driver.request(block::T_OUT, 0, &sector).0, block::S_OK);
    disk.state(|state| assert_eq!(state.flushes, 2));
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

#[test]
fn discard_and_write_zeroes_act_on_their_ranges_only() {
    let disk = MemoryDisk::new(1 << 20);
    let mut driver = Driver::new(&disk, BLOCK_FEATURES);
    driver.guest.put(DATA, &[range(8, 8, 0), range(32, 1, 0)].concat());
    assert_eq!(driver.request(block::T_DISCARD, 0, &[MockDescriptor::readable(DATA, 32)]).0, block::S_OK);
    disk.state(|state| assert_eq!(state.discards, [(4096, 4096), (16384, 512)]));

    driver.guest.put(DATA, &range(10, 500, block::WRITE_ZEROES_FLAG_UNMAP));
    let one = [MockDescriptor::readable(DATA, 16)];
    assert_eq!(driver.request(block::T_WRITE_ZEROES, 0, &one).0, block::S_OK);
    disk.state(|state| {
        assert!(state.bytes[5120..5120 + 256_000].iter().all(|&byte| byte == 0));
        assert_eq!((state.bytes[5119], state.bytes[5120 + 256_000]), (9, (510 % 256) as u8));
    });
    for (bad, status) in [
        (range(2048, 1, 0), block::S_IOERR),
        (range(0, u32::MAX, 0), block::S_IOERR),
        (range(0, 1, 2), block::S_UNSUPP),
    ] {
        driver.guest.put(DATA, &bad);
        assert_eq!(driver.request(block::T_WRITE_ZEROES, 0, &one).0, status);
    }
    assert_eq!(driver.request(block::T_DISCARD, 0, &[]).0, block::S_IOERR);
    assert_eq!(driver.request(block::T_DISCARD, 0, &[MockDescriptor::readable(DATA, 20)]).0, block::S_IOERR);
}

#[test]
fn encrypted_disk_discards_and_zeroes_what_then_reads_as_zeros() {
    use storage::format::{DiskKey, EncryptedDisk};
    let disk = MemoryDisk::new(1 << 20);
    disk.state(|state| state.bytes.fill(0));
    let stored = EncryptedDisk::new(disk.clone(), &DiskKey::random(256).unwrap());
    let block = Block::new(Box::new(stored), false, "").unwrap();
    let mut guest = MockGuest::new(Arc::new(Mutex::new(block))).unwrap();
    let queue = guest.bring_up(BLOCK_FEATURES, &[16])[0];
    let mut driver = Driver { guest, queue };
    driver.guest.put(DATA, &[7; 8192]);
    let out = [MockDescriptor::readable(DATA, 8192)];
    assert_eq!(driver.request(block::T_OUT, 0, &out).0, block::S_OK);
    disk.state(|state| assert!(!state.bytes.windows(8).any(|bytes| bytes == [7; 8]), "no plaintext"));
    let one = [MockDescriptor::readable(DATA, 16)];
    driver.guest.put(DATA, &range(2, 4, 0));
    assert_eq!(driver.request(block::T_DISCARD, 0, &one).0, block::S_OK);
    // As a file's hole does.
    disk.state(|state| {
        assert_eq!(state.discards, [(1024, 2048)]);
        state.bytes[1024..3072].fill(0);
    });
    driver.guest.put(DATA, &range(8, 4, block::WRITE_ZEROES_FLAG_UNMAP));
    assert_eq!(driver.request(block::T_WRITE_ZEROES, 0, &one).0, block::S_OK);
    assert_eq!(driver.request(block::T_IN, 0, &[MockDescriptor::writable(DATA, 8192)]).0, block::S_OK);
    let mut expected = [7; 8192];
    expected[1024..3072].fill(0);
    expected[4096..6144].fill(0);
    assert_eq!(driver.guest.get(DATA, 8192), expected);
}

#[test]
fn read_only_disk_says_so_and_refuses_writes() {
    let disk = MemoryDisk::new(1 << 16);
    let mut guest = MockGuest::new(block_device(&disk, true)).unwrap();
    assert!(guest.offered() & block::F_RO != 0);
    assert_eq!(guest.offered() & (block::F_DISCARD | block::F_WRITE_ZEROES), 0);
    let queue = guest.bring_up(block::F_RO | block::F_FLUSH, &[16])[0];
    let mut driver = Driver { guest, queue };
    assert_eq!(driver.request(block::T_OUT, 0, &[MockDescriptor::readable(DATA, 512)]).0, block::S_IOERR);
    assert_eq!(driver.request(block::T_IN, 1, &[MockDescriptor::writable(DATA, 512)]).0, block::S_OK);
    assert_eq!(driver.guest.get(DATA, 512), [1; 512]);
}

#[test]
fn serial_is_padded_and_unknown_requests_are_unsupported() {
    let mut driver = Driver::new(&MemoryDisk::new(1 << 16), BLOCK_FEATURES);
    assert_eq!(driver.request(block::T_GET_ID, 0, &[MockDescriptor::writable(DATA, 20)]).0, block::S_OK);
    assert_eq!(driver.guest.get(DATA, 20), *b"disk-1\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(driver.request(77, 0, &[]).0, block::S_UNSUPP);
    let too_long = Block::new(Box::new(MemoryDisk::new(512)), false, "123456789012345678901");
    assert!(too_long.is_err());
}

#[test]
fn configuration_names_capacity_and_bounds() {
    let mut driver = Driver::new(&MemoryDisk::new((1 << 20) + 511), BLOCK_FEATURES);
    assert_eq!(u64::from_le_bytes(driver.guest.read_config(0)), 2048);
    assert_eq!(u32::from_le_bytes(driver.guest.read_config(12)), 126);
    assert_eq!(u32::from_le_bytes(driver.guest.read_config(20)), 512);
    // A write is ignored.
    driver.guest.bus().write(u64::from(mmio::CONFIG), &[1, 2, 3, 4]);
    assert_eq!(u64::from_le_bytes(driver.guest.read_config(0)), 2048);
}

#[test]
fn request_without_room_for_a_status_breaks_the_device_and_a_short_header_fails() {
    let mut driver = Driver::new(&MemoryDisk::new(1 << 16), BLOCK_FEATURES);
    driver.guest.put(STATUS, &[0xee]);
    let short = [MockDescriptor::readable(HEADER, 15), MockDescriptor::writable(STATUS, 1)];
    driver.queue.submit(&driver.guest.memory, &short);
    driver.guest.kick(0);
    assert_eq!(driver.guest.get(STATUS, 1), [block::S_IOERR]);
    driver.queue.submit(&driver.guest.memory, &[MockDescriptor::readable(HEADER, 16)]);
    driver.guest.kick(0);
    assert!(driver.guest.needs_reset());
}

#[test]
fn interrupts_keep_to_what_the_driver_wants() {
    let disk = MemoryDisk::new(1 << 16);
    let mut driver = Driver::new(&disk, BLOCK_FEATURES);
    driver.queue.set_available_flags(&driver.guest.memory, ring::AVAIL_F_NO_INTERRUPT);
    driver.request(block::T_FLUSH, 0, &[]);
    assert_eq!(driver.guest.take_interrupts(), 0);

    let mut driver = Driver::new(&disk, BLOCK_FEATURES | feature::RING_EVENT_IDX);
    driver.queue.set_used_event(&driver.guest.memory, 1);
    driver.request(block::T_FLUSH, 0, &[]);
    assert_eq!(driver.guest.take_interrupts(), 0);
    driver.request(block::T_FLUSH, 0, &[]);
    assert_eq!(driver.guest.take_interrupts(), 1);
    assert_eq!(driver.guest.read(mmio::INTERRUPT_STATUS), mmio::INTERRUPT_QUEUE);
    driver.guest.write(mmio::INTERRUPT_ACK, mmio::INTERRUPT_QUEUE);
    assert_eq!(driver.guest.read(mmio::INTERRUPT_STATUS), 0);
    // The device wants to hear of the next request, and of no earlier one.
    assert_eq!(driver.queue.available_event(&driver.guest.memory), 2);
}

#[test]
fn held_device_changes_nothing_and_does_afterwards_what_came_meanwhile() {
    let disk = MemoryDisk::new(1 << 16);
    let device = block_device(&disk, false);
    let mut guest = MockGuest::new(device.clone()).unwrap();
    let queue = guest.bring_up(BLOCK_FEATURES, &[16])[0];
    let mut driver = Driver { guest, queue };
    device.lock().unwrap().hold(true);
    driver.guest.put(HEADER, &[block::T_OUT as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    driver.guest.put(DATA, &[0xaa; 512]);
    let parts = [
        MockDescriptor::readable(HEADER, 16),
        MockDescriptor::readable(DATA, 512),
        MockDescriptor::writable(STATUS, 1),
    ];
    driver.queue.submit(&driver.guest.memory, &parts);
    driver.guest.kick(0);
    assert_eq!(driver.queue.take_used(&driver.guest.memory), None);
    disk.state(|state| assert_eq!((state.bytes[0], state.flushes), (0, 0)));
    device.lock().unwrap().write_out().unwrap();
    disk.state(|state| assert_eq!((state.bytes[0], state.flushes), (0, 1)));
    device.lock().unwrap().hold(false);
    assert!(driver.guest.run());
    assert!(driver.queue.take_used(&driver.guest.memory).is_some());
    disk.state(|state| assert_eq!(state.bytes[0], 0xaa));
}

#[test]
fn full_queue_is_worked_off_in_batches_with_one_notification() {
    let disk = MemoryDisk::new(1 << 16);
    let mut guest = block_guest(&disk);
    let mut queue = guest.bring_up(BLOCK_FEATURES, &[128])[0];
    guest.put(HEADER, &[block::T_FLUSH as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    for _ in 0..64 {
        queue.submit(
            &guest.memory,
            &[MockDescriptor::readable(HEADER, 16), MockDescriptor::writable(STATUS, 1)],
        );
    }
    guest.kick(0);
    disk.state(|state| assert_eq!(state.flushes, 64));
    assert_eq!((0..64).filter(|_| queue.take_used(&guest.memory).is_some()).count(), 64);
    assert_eq!(queue.used_flags(&guest.memory), 0, "notifications are wanted again");
}

#[test]
fn event_loop_that_is_awake_finds_requests_that_nobody_notifies_of() {
    for features in [BLOCK_FEATURES, BLOCK_FEATURES | feature::RING_EVENT_IDX] {
        let disk = MemoryDisk::new(1 << 16);
        let device = block_device(&disk, false);
        let mut guest = MockGuest::new(device.clone()).unwrap();
        let mut queue = guest.bring_up(features, &[16])[0];
        guest.put(HEADER, &[block::T_FLUSH as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let flush = [MockDescriptor::readable(HEADER, 16), MockDescriptor::writable(STATUS, 1)];
        let flushes = || disk.state(|state| state.flushes);
        device.lock().unwrap().take_busy();
        guest.stay_awake(true);
        queue.submit(&guest.memory, &flush);
        assert!(guest.run() && flushes() == 0, "there is no event");
        assert!(device.lock().unwrap().take_busy().is_none());
        guest.look();
        assert_eq!(flushes(), 1);
        assert!(queue.take_used(&guest.memory).is_some());
        assert!(device.lock().unwrap().take_busy().is_some(), "there may be more");
        // A guest that stands still is left alone, awake or not.
        device.lock().unwrap().hold(true);
        queue.submit(&guest.memory, &flush);
        guest.look();
        guest.stay_awake(false);
        assert!(guest.run() && flushes() == 1);
        device.lock().unwrap().hold(false);
        assert!(guest.run() && flushes() == 2, "it goes on with what it asked for");
        // What comes just before the loop sleeps is not lost.
        guest.stay_awake(true);
        queue.submit(&guest.memory, &flush);
        guest.stay_awake(false);
        assert!(guest.run() && flushes() == 3);
        queue.submit(&guest.memory, &flush);
        guest.kick(0);
        assert_eq!(flushes(), 4);
    }
}
