//! The entropy device.

use super::super::mock::{BUFFERS_START, MockDescriptor};
use super::super::rng::{PERIOD_BYTES_MAX, REQUEST_BYTES_MAX, build_rng};
use super::*;

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
