//! A block device with limits, by a clock that stands still unless it is moved. What a timer of the kernel does is wake
//! the device; how much goes is the clock's matter alone.

use std::time::Duration;

use super::super::mock::{BUFFERS_START, MockDescriptor, MockQueue};
use super::super::spec::block;
use super::super::{VirtioDevice as _, build_rng};
use super::*;
use crate::config::{DiskLimits, RateLimit, TransferLimits};
use crate::rpc::DiskCounts;

const HEADERS: u64 = BUFFERS_START;
const STATUSES: u64 = BUFFERS_START + 0x8000;
const DATA: u64 = BUFFERS_START + 0x1_0000;

struct Driver {
    guest: MockGuest,
    device: Arc<Mutex<Block>>,
    queue: MockQueue,
    second: Option<MockQueue>,
    disk: MemoryDisk,
    clock: MovedClock,
    submitted: u64,
}

fn limit(per_second: u64, burst: u64) -> Option<RateLimit> {
    Some(RateLimit { per_second, burst: Some(burst) })
}

fn writes(bytes: Option<RateLimit>, operations: Option<RateLimit>) -> DiskLimits {
    DiskLimits { write: TransferLimits { bytes, operations }, ..DiskLimits::default() }
}

impl Driver {
    fn new(limits: &DiskLimits) -> Self {
        Self::of(limits, 1)
    }

    /// A device with so many queues, at most two.
    fn of(limits: &DiskLimits, queues: u16) -> Self {
        let (disk, clock) = (MemoryDisk::new(1 << 20), MovedClock::new());
        let device = Block::with(Box::new(disk.clone()), false, "", (queues, None)).unwrap();
        let device = device.limited(limits, clock.of_device()).unwrap();
        let device = Arc::new(Mutex::new(device));
        let mut guest = MockGuest::new(device.clone()).unwrap();
        let up = guest.bring_up(BLOCK_FEATURES, &vec![64; queues.into()]);
        Self { guest, device, queue: up[0], second: up.get(1).copied(), disk, clock, submitted: 0 }
    }

    /// The device is held to something else, and does what is due then.
    fn limit(&mut self, limits: &DiskLimits) {
        assert!(self.device.lock().unwrap().limit(limits).unwrap());
        self.guest.run();
    }

    /// The driver resets the device and starts anew.
    fn restart(&mut self) {
        self.queue = self.guest.bring_up(BLOCK_FEATURES, &[64])[0];
    }

    /// Makes one request available, without a word to the device.
    fn submit(&mut self, kind: u32, sector: u64, data: &[MockDescriptor]) {
        let (header_at, status_at) = (HEADERS + 16 * self.submitted, STATUSES + self.submitted);
        self.submitted += 1;
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.guest.put(header_at, &header);
        self.guest.put(status_at, &[0xee]);
        let parts =
            [&[MockDescriptor::readable(header_at, 16)][..], data, &[MockDescriptor::writable(status_at, 1)]];
        self.queue.submit(&self.guest.memory, &parts.concat());
    }

    /// A write of one sector full of `byte`.
    fn write(&mut self, sector: u64, byte: u8) {
        let at = DATA + 512 * sector;
        self.guest.put(at, &[byte; 512]);
        self.submit(block::T_OUT, sector, &[MockDescriptor::readable(at, 512)]);
    }

    fn done(&mut self) -> usize {
        std::iter::from_fn(|| self.queue.take_used(&self.guest.memory)).count()
    }

    fn first_byte(&self, sector: usize) -> u8 {
        self.disk.state(|state| state.bytes[512 * sector])
    }
}

#[test]
fn requests_beyond_the_burst_wait_for_the_timer_and_none_is_lost() {
    let mut driver = Driver::new(&writes(None, limit(1000, 2)));
    for sector in 0..5 {
        driver.write(sector, 0xa0);
    }
    driver.submit(block::T_FLUSH, 0, &[]);
    driver.guest.kick(0);
    assert_eq!(driver.done(), 2);
    assert_eq!(driver.guest.take_interrupts(), 1, "what is done is told while the rest waits");
    driver.guest.wait(PATIENCE_MS);
    assert_eq!(driver.done(), 0, "the timer is no reason by itself");
    for _ in 0..2 {
        driver.clock.advance(Duration::from_millis(1));
        driver.guest.wait(PATIENCE_MS);
        assert_eq!(driver.done(), 1);
    }
    assert_eq!((driver.first_byte(3), driver.first_byte(4)), (0xa0, 4));
    driver.disk.state(|state| assert_eq!(state.flushes, 0));
    driver.clock.advance(Duration::from_millis(1));
    driver.guest.wait(PATIENCE_MS);
    assert_eq!(driver.done(), 2, "the last one, and the flush behind it at once");
    driver.disk.state(|state| assert_eq!(state.flushes, 1));
    assert!(driver.guest.take_interrupts() > 0);
    assert_eq!(driver.queue.used_flags(&driver.guest.memory), 0, "notifications are wanted again");
}

#[test]
fn neither_notifications_nor_a_reset_get_a_driver_more_than_its_rate() {
    let mut driver = Driver::new(&writes(limit(1, 512), None));
    driver.write(0, 0xb0);
    driver.write(1, 0xb1);
    for _ in 0..10 {
        driver.guest.kick(0);
    }
    assert_eq!(driver.done(), 1);
    driver.restart();
    driver.write(2, 0xb2);
    driver.guest.kick(0);
    assert_eq!(driver.done(), 0, "a new bucket would be full");
    driver.clock.advance(Duration::from_secs(512));
    driver.guest.kick(0);
    assert_eq!(driver.done(), 0, "it is the timer that wakes it, some minutes from now");
    driver.restart();
    driver.write(3, 0xb3);
    driver.guest.kick(0);
    assert_eq!(driver.done(), 1);
    let found: Vec<_> = (0..4).map(|sector| driver.first_byte(sector)).collect();
    assert_eq!(found, [0xb0, 1, 2, 0xb3], "what waited at a reset is never done");
    driver.write(0, 0xb4);
    driver.guest.kick(0);
    assert_eq!(driver.done(), 0);
    // It ends while a request waits.
    drop(driver);
}

#[test]
fn timer_of_a_request_that_a_reset_took_back_does_no_harm() {
    let mut driver = Driver::new(&writes(None, limit(100, 1)));
    driver.write(0, 0xc0);
    driver.write(1, 0xc1);
    driver.guest.kick(0);
    assert_eq!(driver.done(), 1);
    driver.guest.negotiate(BLOCK_FEATURES);
    driver.clock.advance(Duration::from_millis(20));
    driver.guest.wait(50);
    assert_eq!(driver.first_byte(1), 1);
    driver.restart();
    driver.write(2, 0xc2);
    driver.guest.kick(0);
    assert_eq!(driver.done(), 1);
}

#[test]
fn reads_flushes_and_the_serial_go_while_only_writes_are_used_up() {
    let mut driver = Driver::new(&writes(limit(1, 512), None));
    driver.write(0, 0xd0);
    driver.submit(block::T_IN, 0, &[MockDescriptor::writable(DATA, 65_536)]);
    driver.submit(block::T_FLUSH, 0, &[]);
    driver.submit(block::T_GET_ID, 0, &[MockDescriptor::writable(DATA, 20)]);
    driver.submit(block::T_OUT, 1 << 40, &[MockDescriptor::readable(DATA, 512)]);
    driver.guest.kick(0);
    assert_eq!(driver.done(), 5, "and what fails takes nothing");
    driver.write(1, 0xd1);
    driver.guest.kick(0);
    assert_eq!(driver.done(), 0);
    let counts = DiskCounts { flushes: 1, failures: 1, throttled: 1 };
    assert_eq!(driver.device.lock().unwrap().requests(), Some(counts));
    driver.restart();
    assert_eq!(driver.device.lock().unwrap().requests(), Some(counts), "a reset begins nothing anew");
}

#[test]
fn zeros_count_as_bytes_written_and_a_discard_as_an_operation() {
    let range = |sectors: u32| [&[0; 8][..], &sectors.to_le_bytes(), &[0; 4]].concat();
    let mut driver = Driver::new(&writes(limit(1, 4096), limit(1, 3)));
    driver.guest.put(DATA, &range(8));
    driver.submit(block::T_WRITE_ZEROES, 0, &[MockDescriptor::readable(DATA, 16)]);
    driver.guest.put(DATA + 16, &range(2048));
    driver.submit(block::T_DISCARD, 0, &[MockDescriptor::readable(DATA + 16, 16)]);
    driver.guest.kick(0);
    assert_eq!(driver.done(), 2);
    driver.write(0, 0xe0);
    driver.guest.kick(0);
    assert_eq!(driver.done(), 0, "its bytes went with the zeros");
    driver.clock.advance(Duration::from_secs(1 << 20));
    driver.restart();
    driver.guest.put(DATA + 16, &range(2048));
    for _ in 0..4 {
        driver.submit(block::T_DISCARD, 0, &[MockDescriptor::readable(DATA + 16, 16)]);
    }
    driver.guest.kick(0);
    assert_eq!(driver.done(), 3);
}

#[test]
fn request_larger_than_the_burst_goes_once_the_bucket_is_full() {
    let limits = DiskLimits {
        total: TransferLimits { bytes: limit(1, 512), operations: None },
        ..DiskLimits::default()
    };
    let mut driver = Driver::new(&limits);
    driver.submit(block::T_IN, 0, &[MockDescriptor::writable(DATA, 65_536)]);
    driver.submit(block::T_IN, 0, &[MockDescriptor::writable(DATA, 512)]);
    driver.guest.kick(0);
    assert_eq!(driver.done(), 1);
}

#[test]
fn limits_that_are_lifted_let_what_waits_go_at_once_in_every_queue() {
    let mut driver = Driver::of(&writes(limit(1, 512), None), 2);
    let mut other = driver.second.expect("two queues");
    for sector in 0..3 {
        driver.write(sector, 0xa0);
    }
    driver.guest.kick(0);
    assert_eq!(driver.done(), 1);
    std::mem::swap(&mut driver.queue, &mut other);
    driver.write(5, 0xa5);
    driver.guest.kick(1);
    assert_eq!(driver.done(), 0, "what stops one queue stops all");
    driver.limit(&DiskLimits::default());
    assert_eq!(driver.done(), 1);
    std::mem::swap(&mut driver.queue, &mut other);
    assert_eq!(driver.done(), 2);
    for sector in 6..50 {
        driver.write(sector, 0xa6);
    }
    driver.guest.kick(0);
    driver.guest.run();
    assert_eq!(driver.done(), 44, "nothing is counted any more");
}

#[test]
fn device_without_limits_gets_some_and_its_timer_wakes_it() {
    let mut driver = Driver::new(&DiskLimits::default());
    for sector in 0..4 {
        driver.write(sector, 0xa0);
    }
    driver.guest.kick(0);
    assert_eq!(driver.done(), 4);
    driver.limit(&writes(None, limit(1000, 1)));
    for sector in 4..6 {
        driver.write(sector, 0xa1);
    }
    driver.guest.kick(0);
    assert_eq!(driver.done(), 1);
    driver.clock.advance(Duration::from_millis(1));
    driver.guest.wait(PATIENCE_MS);
    assert_eq!((driver.done(), driver.first_byte(5)), (1, 0xa1));
}

#[test]
fn timer_under_the_limits_of_before_delays_nothing_under_those_of_now() {
    let mut driver = Driver::new(&writes(limit(1, 512), None));
    for sector in 0..4 {
        driver.write(sector, 0xb0);
    }
    driver.guest.kick(0);
    assert_eq!(driver.done(), 1, "the next one is 512 seconds from now");
    driver.limit(&writes(None, limit(1000, 1)));
    assert_eq!(driver.done(), 1, "the burst of now");
    driver.clock.advance(Duration::from_millis(1));
    driver.guest.wait(PATIENCE_MS);
    assert_eq!(driver.done(), 1, "a millisecond is enough");
    driver.limit(&writes(limit(1, 512), None));
    assert_eq!(driver.done(), 1);
    driver.write(4, 0xb1);
    driver.guest.kick(0);
    driver.clock.advance(Duration::from_secs(511));
    driver.guest.wait(50);
    assert_eq!(driver.done(), 0, "what was armed for the millisecond before woke nothing");
}

#[test]
fn limits_change_while_the_guest_is_paused_and_hold_when_it_goes_on() {
    let mut driver = Driver::new(&writes(limit(1, 512), None));
    for sector in 0..5 {
        driver.write(sector, 0xc0);
    }
    driver.guest.kick(0);
    assert_eq!(driver.done(), 1);
    driver.device.lock().unwrap().hold(true);
    driver.limit(&writes(None, limit(1, 3)));
    assert_eq!(driver.done(), 0, "a guest that stands still moves nothing");
    driver.device.lock().unwrap().hold(false);
    driver.guest.run();
    assert_eq!(driver.done(), 3);
}

#[test]
fn limits_that_are_refused_leave_those_of_before() {
    let mut driver = Driver::new(&writes(None, limit(1, 1)));
    let absurd = writes(limit(0, 1), None);
    let error = driver.device.lock().unwrap().limit(&absurd).unwrap_err().to_string();
    assert!(error.contains("rate of bytes written is 0"), "{error}");
    assert_eq!(driver.device.lock().unwrap().limits(), Some(writes(None, limit(1, 1))));
    driver.write(0, 0xd0);
    driver.write(1, 0xd1);
    driver.guest.kick(0);
    assert_eq!(driver.done(), 1);
    let other = build_rng().unwrap();
    assert!(!other.lock().unwrap().limit(&DiskLimits::default()).unwrap(), "it is no disk");
    assert_eq!(other.lock().unwrap().limits(), None);
}

#[test]
fn snapshot_has_what_the_limits_of_now_have_counted() {
    let limits = writes(None, limit(1, 2));
    let mut driver = Driver::new(&writes(limit(1, 1 << 20), None));
    driver.limit(&limits);
    assert_eq!(driver.device.lock().unwrap().limits(), Some(limits));
    for sector in 0..2 {
        driver.write(sector, 0xe0);
    }
    driver.guest.kick(0);
    assert_eq!(driver.done(), 2);
    let saved = driver.device.lock().unwrap().save();
    let mut next = Driver::new(&limits);
    next.device.lock().unwrap().restore(&saved.own).unwrap();
    next.write(0, 0xe1);
    next.guest.kick(0);
    assert_eq!(next.done(), 0, "the bucket is as empty as it was");
}

#[test]
fn absurd_limits_make_no_device() {
    let limits = writes(limit(0, 1), None);
    let block = Block::new(Box::new(MemoryDisk::new(512)), false, "").unwrap();
    let Err(error) = block.limited(&limits, Box::new(Instant::now)) else { panic!("a rate of zero") };
    assert_eq!(error.to_string(), "the rate of bytes written is 0, allowed are 1 to 1099511627776");
}
