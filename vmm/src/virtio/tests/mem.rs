//! Memory that comes and goes.

use vm_memory::{Bytes as _, GuestAddress};

use super::super::VirtioDevice as _;
use super::super::mem::{BLOCK_BYTES, Mem, MemStatus, Region, build_mem};
use super::super::mock::{BUFFERS_START, MockDescriptor, MockGuest, MockQueue};
use super::super::spec::mem as spec;
use super::*;
use crate::memory::GuestMemory;
use crate::memory::discard::Emptied;

const START: u64 = 1 << 32;
const REGION: Region = Region { start: GuestAddress(START), mib: 128 };
/// Answers, with the state that some have.
const ACK: (u16, u16) = (spec::RESPONSE_ACK, 0);
const NACK: (u16, u16) = (spec::RESPONSE_NACK, 0);
const ERROR: (u16, u16) = (spec::RESPONSE_ERROR, 0);

struct Driver {
    device: Arc<Mutex<Mem>>,
    memory: GuestMemory,
    guest: MockGuest,
    queue: MockQueue,
}

fn memory() -> GuestMemory {
    GuestMemory::from_ranges(&[(REGION.start, 128 << 20)]).unwrap()
}

impl Driver {
    fn new(requested_mib: u32) -> Self {
        let memory = memory();
        let device = build_mem(REGION, &memory, Emptied::Discarded, requested_mib).unwrap();
        let mut guest = MockGuest::new(device.clone()).unwrap();
        let queue = guest.bring_up(0, &[16])[0];
        Self { device, memory, guest, queue }
    }

    /// What becomes of a request of these bytes.
    fn send(&mut self, request: &[u8]) -> (u16, u16) {
        self.guest.put(BUFFERS_START, request);
        self.guest.put(BUFFERS_START + 64, &[0xee; 16]);
        let parts = [
            MockDescriptor::readable(BUFFERS_START, request.len() as u32),
            MockDescriptor::writable(BUFFERS_START + 64, 10),
        ];
        self.queue.submit(&self.guest.memory, &parts);
        self.guest.kick(0);
        assert_eq!(self.queue.take_used(&self.guest.memory).unwrap().1, 10);
        let answer = self.guest.get(BUFFERS_START + 64, 10);
        let half = |at: usize| u16::from_le_bytes([answer[at], answer[at + 1]]);
        (half(0), half(8))
    }

    fn ask(&mut self, kind: u16, address: u64, blocks: u16) -> (u16, u16) {
        let mut request = [0; 24];
        request[..2].copy_from_slice(&kind.to_le_bytes());
        request[8..16].copy_from_slice(&address.to_le_bytes());
        request[16..18].copy_from_slice(&blocks.to_le_bytes());
        self.send(&request)
    }

    fn plug(&mut self, block: u64, count: u16) -> (u16, u16) {
        self.ask(spec::REQUEST_PLUG, START + block * BLOCK_BYTES, count)
    }

    fn unplug(&mut self, block: u64, count: u16) -> (u16, u16) {
        self.ask(spec::REQUEST_UNPLUG, START + block * BLOCK_BYTES, count)
    }

    fn state(&mut self, block: u64, count: u16) -> (u16, u16) {
        self.ask(spec::REQUEST_STATE, START + block * BLOCK_BYTES, count)
    }

    fn plugged_mib(&self) -> u32 {
        self.device.lock().unwrap().status().plugged_mib
    }
}

#[test]
fn guest_is_told_where_memory_may_be_and_how_much_it_should_have() {
    let mut driver = Driver::new(6);
    let mut config = |at: u32| u64::from_le_bytes(driver.guest.read_config::<8>(at));
    let region = 128 << 20;
    assert_eq!([0, 8, 16, 24, 32, 40, 48].map(&mut config), [2 << 20, 0, START, region, region, 0, 6 << 20]);
    driver.guest.take_interrupts();
    for _ in 0..2 {
        driver.device.lock().unwrap().request(128).unwrap();
    }
    assert_eq!(driver.guest.take_interrupts(), 1);
    assert_eq!(u64::from_le_bytes(driver.guest.read_config::<8>(48)), region);
    for wrong in [3, 130, u32::MAX] {
        assert!(driver.device.lock().unwrap().request(wrong).is_err(), "{wrong}");
        assert!(build_mem(REGION, &memory(), Emptied::Discarded, wrong).is_err(), "{wrong}");
    }
}

#[test]
fn blocks_come_and_go_up_to_what_is_wanted() {
    let mut driver = Driver::new(8);
    assert_eq!((driver.plug(0, 2), driver.plug(63, 1)), (ACK, ACK));
    assert_eq!(driver.plug(1, 2), ERROR, "one of them is there");
    assert_eq!(driver.plug(5, 2), NACK, "more than is wanted");
    assert_eq!(driver.plug(5, 1), ACK);
    let states = [(0, 2, spec::STATE_PLUGGED), (2, 3, spec::STATE_UNPLUGGED), (0, 3, spec::STATE_MIXED)];
    for (block, count, state) in states {
        assert_eq!(driver.state(block, count), (spec::RESPONSE_ACK, state));
    }
    assert_eq!(driver.unplug(0, 3), ERROR, "one of them is not there");
    assert_eq!(driver.plugged_mib(), 8);
    assert_eq!(driver.unplug(0, 2), ACK);
    driver.device.lock().unwrap().request(0).unwrap();
    assert_eq!(driver.plug(0, 1), NACK);
    let status = MemStatus { region_mib: 128, requested_mib: 0, plugged_mib: 4 };
    assert_eq!(driver.device.lock().unwrap().status(), status);
    assert_eq!(driver.send(&spec::REQUEST_UNPLUG_ALL.to_le_bytes()), ERROR, "it is cut off");
    assert_eq!(driver.ask(spec::REQUEST_UNPLUG_ALL, u64::MAX, 0), ACK);
    assert_eq!(driver.plugged_mib(), 0);
}

#[test]
fn what_is_given_back_is_the_hosts_and_reads_as_zeros() {
    let mut driver = Driver::new(128);
    driver.plug(0, 3);
    let place = |block: u64| GuestAddress(START + block * BLOCK_BYTES + 4096);
    (0..3).for_each(|block| driver.memory.write_obj(7_u8, place(block)).unwrap());
    assert_eq!(driver.unplug(1, 1), ACK);
    let read = |driver: &Driver| [0, 1, 2].map(|block| driver.memory.read_obj::<u8>(place(block)).unwrap());
    assert_eq!(read(&driver), [7, 0, 7]);
    driver.memory.write_obj(7_u8, place(1)).unwrap();
    assert_eq!(driver.ask(spec::REQUEST_UNPLUG_ALL, 0, 0), ACK);
    assert_eq!(read(&driver), [0, 0, 0], "what it never plugged too");
}

#[test]
fn requests_of_anything_else_are_errors_and_change_nothing() {
    let mut driver = Driver::new(128);
    assert_eq!(driver.plug(0, 1), ACK);
    for kind in [spec::REQUEST_PLUG, spec::REQUEST_UNPLUG, spec::REQUEST_STATE, 4, u16::MAX] {
        for (address, count) in [
            (START, 0),
            (START, 65),
            (START, u16::MAX),
            (START + 4096, 1),
            (START - BLOCK_BYTES, 1),
            (START + (128 << 20), 1),
            (START + (126 << 20), 2),
            (0, 1),
            (u64::MAX, 1),
            (u64::MAX - BLOCK_BYTES + 1, u16::MAX),
        ] {
            assert_eq!(driver.ask(kind, address, count), ERROR, "{kind} {address:#x} {count}");
        }
    }
    for length in [1, 2, 7, 8, 17] {
        assert_eq!(driver.send(&vec![0; length]), ERROR, "{length}");
    }
    assert_eq!(driver.plugged_mib(), 2);
    // Without room for an answer nobody can be told.
    let parts = [MockDescriptor::readable(BUFFERS_START, 24), MockDescriptor::writable(BUFFERS_START, 9)];
    driver.queue.submit(&driver.guest.memory, &parts);
    driver.guest.kick(0);
    assert!(driver.guest.needs_reset());
}

#[test]
fn what_is_plugged_stays_so_by_a_reset_and_goes_on_elsewhere() {
    let mut driver = Driver::new(10);
    driver.plug(62, 2);
    driver.guest.set_status(0);
    driver.queue = driver.guest.bring_up(0, &[16])[0];
    assert_eq!(driver.state(62, 2), (spec::RESPONSE_ACK, spec::STATE_PLUGGED));
    let state = driver.device.lock().unwrap().save();
    let other = build_mem(REGION, &memory(), Emptied::Replaced, 0).unwrap();
    other.lock().unwrap().restore(&state.own).unwrap();
    assert_eq!(other.lock().unwrap().status(), driver.device.lock().unwrap().status());
    let has = |mib: u64| other.lock().unwrap().blocks().has_mib(mib);
    assert_eq!([0, 123, 124, 127, 128, u64::MAX].map(has), [false, false, true, true, false, false]);
    for wrong in [Region { mib: 256, ..REGION }, Region { start: GuestAddress(2 << 32), ..REGION }] {
        let wrong = build_mem(wrong, &memory(), Emptied::Discarded, 0).unwrap();
        assert!(wrong.lock().unwrap().restore(&state.own).is_err());
    }
    assert!(other.lock().unwrap().restore(b"x").is_err());
}

#[test]
fn guest_that_stands_still_changes_nothing_until_it_goes_on() {
    let mut driver = Driver::new(10);
    driver.device.lock().unwrap().hold(true);
    let mut request = [0; 24];
    request[8..16].copy_from_slice(&START.to_le_bytes());
    request[16] = 1;
    driver.guest.put(BUFFERS_START, &request);
    let parts =
        [MockDescriptor::readable(BUFFERS_START, 24), MockDescriptor::writable(BUFFERS_START + 64, 10)];
    driver.queue.submit(&driver.guest.memory, &parts);
    driver.guest.kick(0);
    assert_eq!(driver.plugged_mib(), 0);
    driver.device.lock().unwrap().hold(false);
    driver.guest.run();
    assert_eq!(driver.plugged_mib(), 2);
}
