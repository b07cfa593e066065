//! The entropy device.

use super::super::mock::{BUFFERS_START, MockDescriptor};
use super::super::rng::{PERIOD_BYTES_MAX, REQUEST_BYTES_MAX, build_rng};
use super::*;
use crate::rpc::QueueTraffic;

#[test]
fn request_is_filled_with_different_bytes() {
    let mut guest = MockGuest::new(build_rng().unwrap()).unwrap();
    let mut queue = guest.bring_up(0, &[8])[0];
    let parts =
        [MockDescriptor::writable(BUFFERS_START, 64), MockDescriptor::writable(BUFFERS_START + 64, 64)];
    queue.submit(&guest.memory, &parts);
    guest.kick(0);
    assert_eq!(queue.take_used(&guest.memory), Some((0, 128)));
    let bytes = guest.get(BUFFERS_START, 128);
    assert_ne!(bytes[..64], bytes[64..]);
}

#[test]
fn requests_are_counted_for_each_queue_over_both_transports_and_resets() {
    let new = [MockGuest::new, MockGuest::over_pci];
    for mut guest in new.map(|new| new(build_rng().unwrap()).unwrap()) {
        let mut passed = QueueTraffic::default();
        assert_eq!(guest.traffic(), [passed]);
        for bytes in [64, 100] {
            let mut queue = guest.bring_up(0, &[8])[0];
            queue.submit(
                &guest.memory,
                &[MockDescriptor::readable(BUFFERS_START, 7), MockDescriptor::writable(BUFFERS_START, bytes)],
            );
            assert_eq!(guest.traffic(), [passed], "it was not told of it");
            guest.kick(0);
            assert_eq!(queue.take_used(&guest.memory), Some((0, bytes)));
            passed.requests += 1;
            passed.from_guest_bytes += 7;
            passed.to_guest_bytes += u64::from(bytes);
            assert_eq!(guest.traffic(), [passed]);
            guest.set_status(0);
        }
    }
}

#[test]
fn greedy_guest_waits_for_the_next_period() {
    let mut guest = MockGuest::new(build_rng().unwrap()).unwrap();
    let mut queue = guest.bring_up(0, &[8])[0];
    let mut given = 0;
    let mut requests = 0;
    while requests < 100 {
        queue.submit(&guest.memory, &[MockDescriptor::writable(BUFFERS_START, 0x1_0000)]);
        guest.kick(0);
        let Some((_, written)) = queue.take_used(&guest.memory) else { break };
        assert!(written as usize <= REQUEST_BYTES_MAX);
        given += written as usize;
        requests += 1;
    }
    assert!(given >= PERIOD_BYTES_MAX, "{given}");
    assert!(requests < 100, "the rate is bounded");
    guest.wait(5000);
    assert!(queue.take_used(&guest.memory).is_some(), "the waiting request is answered later");
}
