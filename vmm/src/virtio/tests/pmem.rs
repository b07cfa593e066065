//! Persistent memory.

use vm_memory::GuestAddress;

use super::super::mock::{BUFFERS_START, MockDescriptor, MockGuest, MockQueue};
use super::super::pmem::build_pmem;
use super::super::spec::pmem as spec;
use super::*;
use crate::memory::mapping::Mapping;

const START: GuestAddress = GuestAddress(1 << 32);

fn device(bytes: u64, read_only: bool) -> Shared {
    let file = tempfile::tempfile().unwrap();
    file.set_len(bytes).unwrap();
    build_pmem(Arc::new(Mapping::new(file, read_only).unwrap()), START).unwrap()
}

fn driver(device: Shared) -> (MockGuest, MockQueue) {
    let mut guest = MockGuest::new(device).unwrap();
    let queue = guest.bring_up(0, &[16])[0];
    (guest, queue)
}

/// A request of that type; the answer.
fn ask(guest: &mut MockGuest, queue: &mut MockQueue, kind: u32) -> u32 {
    guest.put(BUFFERS_START, &kind.to_le_bytes());
    guest.put(BUFFERS_START + 8, &[0xee; 4]);
    let parts = [MockDescriptor::readable(BUFFERS_START, 4), MockDescriptor::writable(BUFFERS_START + 8, 4)];
    queue.submit(&guest.memory, &parts);
    guest.kick(0);
    assert_eq!(queue.take_used(&guest.memory).unwrap().1, 4);
    u32::from_le_bytes(guest.get(BUFFERS_START + 8, 4).try_into().unwrap())
}

#[test]
fn guest_is_told_where_it_lies_and_that_flushes_are_done() {
    for read_only in [false, true] {
        let (mut guest, mut queue) = driver(device(5 << 20, read_only));
        assert_eq!(guest.read_config::<8>(0), START.0.to_le_bytes());
        assert_eq!(guest.read_config::<8>(8), (6_u64 << 20).to_le_bytes());
        assert_eq!(ask(&mut guest, &mut queue, spec::REQUEST_FLUSH), spec::RESPONSE_OK);
        assert_eq!(guest.take_interrupts(), 1);
        assert_eq!(ask(&mut guest, &mut queue, 7), spec::RESPONSE_FAILED);
        queue.submit(&guest.memory, &[MockDescriptor::writable(BUFFERS_START, 3)]);
        guest.kick(0);
        assert!(guest.needs_reset(), "there is no room for an answer");
    }
}

#[test]
fn guest_that_stands_still_waits_for_its_flush() {
    let device = device(4096, false);
    let (mut guest, mut queue) = driver(device.clone());
    device.lock().unwrap().hold(true);
    guest.put(BUFFERS_START, &[0; 4]);
    let parts = [MockDescriptor::readable(BUFFERS_START, 4), MockDescriptor::writable(BUFFERS_START + 8, 4)];
    queue.submit(&guest.memory, &parts);
    guest.kick(0);
    assert_eq!(queue.take_used(&guest.memory), None);
    device.lock().unwrap().hold(false);
    guest.run();
    assert!(queue.take_used(&guest.memory).is_some());
}

#[test]
fn memory_goes_on_as_what_it_was_and_nothing_else() {
    let state = device(4096, false).lock().unwrap().save();
    assert!(device(8192, false).lock().unwrap().restore(&state.own).is_ok(), "as large with its padding");
    assert!(device(4096, true).lock().unwrap().restore(&state.own).is_err());
    assert!(device(3 << 20, false).lock().unwrap().restore(&state.own).is_err());
    assert!(device(4096, false).lock().unwrap().restore(b"").is_err());
}
