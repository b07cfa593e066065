//! The network device between the mock guest and a packet socket.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::net::{RecvFlags, SendFlags};

use super::super::mock::{BUFFERS_START, MockDescriptor, MockGuest, MockQueue, packet_pair};
use super::super::net::Net;
use super::super::spec::{feature, net, ring};
use super::super::state::QueuePosition;
use super::*;
use crate::config::{InheritedFd, NicConfig, Traffic};
use crate::mutex::lock;

const HEADER: usize = net::HEADER_BYTES;

struct Driver {
    device: Shared,
    guest: MockGuest,
    rx: MockQueue,
    tx: MockQueue,
    far: OwnedFd,
}

fn config(mtu: u16) -> NicConfig {
    NicConfig {
        tap: InheritedFd(-1),
        more_queues: Vec::new(),
        mac: [2, 0, 0, 0, 0, 1],
        mtu,
        endpoint: None,
        traffic: Traffic::default(),
    }
}

impl Driver {
    fn new(features: u64) -> Self {
        let (link, far) = packet_pair().unwrap();
        let device: Shared = Arc::new(Mutex::new(Net::new(&config(1500), link).unwrap()));
        let mut guest = MockGuest::new(device.clone()).unwrap();
        let queues = guest.bring_up(features, &[16, 16]);
        assert!(!guest.needs_reset());
        Self { device, guest, rx: queues[0], tx: queues[1], far }
    }

    /// Makes a packet available, and does not notify.
    fn lay_out(&mut self, packet: &[u8]) {
        self.guest.put(BUFFERS_START, packet);
        self.tx.submit(&self.guest.memory, &[MockDescriptor::readable(BUFFERS_START, packet.len() as u32)]);
    }

    fn transmit(&mut self, packet: &[u8]) {
        self.lay_out(packet);
        self.guest.kick(1);
        assert!(self.tx.take_used(&self.guest.memory).is_some());
    }

    fn offer(&mut self, address: u64, length: u32) {
        self.rx.submit(&self.guest.memory, &[MockDescriptor::writable(address, length)]);
        self.guest.kick(0);
    }

    fn send_from_far(&mut self, packet: &[u8]) {
        rustix::net::send(&self.far, packet, SendFlags::empty()).unwrap();
        assert!(self.guest.run(), "the device came to rest");
    }

    fn receive_at_far(&self) -> Option<Vec<u8>> {
        let mut packet = vec![0; 70_000];
        let (length, _) = rustix::net::recv(&self.far, &mut packet, RecvFlags::DONTWAIT).ok()?;
        packet.truncate(length);
        Some(packet)
    }
}

#[test]
fn frame_of_the_guest_reaches_the_link_as_it_is() {
    let mut driver = Driver::new(0);
    driver.transmit(&counting_packet(60));
    assert_eq!(driver.receive_at_far(), Some(counting_packet(60)));
    driver.transmit(&counting_packet(13));
    assert_eq!(driver.receive_at_far(), None, "a runt is dropped");
}

#[test]
fn offloads_that_were_not_negotiated_are_dropped() {
    let mut segments = counting_packet(4000);
    segments[1] = net::GSO_TCPV4;
    let mut partial = counting_packet(60);
    partial[0] = net::HDR_F_NEEDS_CSUM;
    let mut driver = Driver::new(0);
    driver.transmit(&segments);
    driver.transmit(&partial);
    assert_eq!(driver.receive_at_far(), None);
    let mut driver = Driver::new(net::F_CSUM | net::F_HOST_TSO4);
    driver.transmit(&segments);
    driver.transmit(&partial);
    assert_eq!(driver.receive_at_far(), Some(segments));
    assert_eq!(driver.receive_at_far(), Some(partial));
}

#[test]
fn frame_of_the_link_reaches_a_buffer_that_is_large_enough() {
    let mut driver = Driver::new(0);
    driver.offer(BUFFERS_START, 100);
    driver.offer(BUFFERS_START + 0x1000, 1600);
    driver.send_from_far(&counting_packet(1514));
    // Without merging, the small buffer's turn is over when the packet does not fit: the packet is dropped.
    assert_eq!(driver.rx.take_used(&driver.guest.memory), None);
    driver.send_from_far(&counting_packet(60));
    assert_eq!(driver.rx.take_used(&driver.guest.memory), Some((0, 72)));
    let received = driver.guest.get(BUFFERS_START, 72);
    assert_eq!(received[10..12], [1, 0]);
    assert_eq!(received[HEADER..], counting_packet(60)[HEADER..]);
    assert_eq!(driver.guest.take_interrupts(), 1);
}

#[test]
fn large_packet_is_merged_over_several_buffers() {
    let mut driver = Driver::new(net::F_MRG_RXBUF);
    for index in 0..3 {
        driver.offer(BUFFERS_START + index * 0x1000, 1000);
    }
    driver.send_from_far(&counting_packet(2500));
    let used: Vec<_> = std::iter::from_fn(|| driver.rx.take_used(&driver.guest.memory)).collect();
    assert_eq!(used, [(0, 1000), (1, 1000), (2, 512)]);
    let received = [0, 1, 2].map(|index| driver.guest.get(BUFFERS_START + index * 0x1000, 1000)).concat();
    assert_eq!(received[10..12], [3, 0]);
    assert_eq!(received[HEADER..2512], counting_packet(2500)[HEADER..]);
}

#[test]
fn buffers_without_room_come_back_with_the_packet_that_they_lie_within() {
    let mut driver = Driver::new(net::F_MRG_RXBUF);
    for (index, length) in (0..).zip([0, 1000, 0, 1000]) {
        driver.offer(BUFFERS_START + index * 0x1000, length);
    }
    driver.send_from_far(&counting_packet(1500));
    let used: Vec<_> = std::iter::from_fn(|| driver.rx.take_used(&driver.guest.memory)).collect();
    assert_eq!(used, [(0, 0), (1, 1000), (2, 0), (3, 512)]);
}

#[test]
fn packets_wait_for_buffers_without_spinning() {
    for features in [net::F_MRG_RXBUF, net::F_MRG_RXBUF | crate::virtio::spec::feature::RING_EVENT_IDX] {
        let mut driver = Driver::new(features);
        for length in [600, 601, 602] {
            driver.send_from_far(&counting_packet(length));
        }
        driver.offer(BUFFERS_START, 500);
        assert_eq!(driver.rx.take_used(&driver.guest.memory), None, "half of it is not delivered");
        // The next buffer is announced: the device asked for it.
        assert_eq!(driver.rx.available_event(&driver.guest.memory) == 1, features != net::F_MRG_RXBUF);
        assert_eq!(driver.rx.used_flags(&driver.guest.memory), 0);
        for index in 1..6 {
            driver.offer(BUFFERS_START + index * 0x1000, 500);
        }
        let used: Vec<_> = std::iter::from_fn(|| driver.rx.take_used(&driver.guest.memory)).collect();
        assert_eq!(used, [(0, 500), (1, 112), (2, 500), (3, 113), (4, 500), (5, 114)]);
    }
}

#[test]
fn packet_that_no_queue_of_buffers_could_hold_is_dropped() {
    let mut driver = Driver::new(net::F_MRG_RXBUF);
    for index in 0..16 {
        driver.offer(BUFFERS_START + index * 0x100, 8);
    }
    driver.send_from_far(&counting_packet(300));
    driver.send_from_far(&counting_packet(60));
    let used: Vec<_> = std::iter::from_fn(|| driver.rx.take_used(&driver.guest.memory)).collect();
    assert_eq!(used.len(), 9, "the small one was delivered");
}

#[test]
fn link_that_goes_away_is_left_alone() {
    let mut driver = Driver::new(0);
    driver.offer(BUFFERS_START, 1600);
    let (_, other) = packet_pair().unwrap();
    drop(std::mem::replace(&mut driver.far, other));
    assert!(driver.guest.run(), "the event loop came to rest");
    driver.transmit(&counting_packet(60));
    assert!(driver.guest.run());
    assert!(!driver.guest.needs_reset());
}

#[test]
fn reset_forgets_the_old_queues() {
    let mut driver = Driver::new(0);
    driver.offer(BUFFERS_START, 1600);
    driver.guest.write(crate::virtio::spec::mmio::STATUS, 0);
    driver.send_from_far(&counting_packet(60));
    assert_eq!(driver.rx.take_used(&driver.guest.memory), None);
    let queues = driver.guest.bring_up(0, &[16, 16]);
    driver.rx = queues[0];
    driver.offer(BUFFERS_START, 1600);
    assert_eq!(driver.rx.take_used(&driver.guest.memory), Some((0, 72)));
}

#[test]
fn broken_ring_stops_the_device_and_its_link() {
    let mut driver = Driver::new(0);
    let looping = MockDescriptor { address: 0, length: 8, flags: ring::DESC_F_NEXT, next: 0 };
    driver.tx.write_descriptor(&driver.guest.memory, 0, looping);
    driver.tx.make_available(&driver.guest.memory, 0);
    driver.guest.kick(1);
    assert!(driver.guest.needs_reset());
    driver.send_from_far(&counting_packet(60));
}

#[test]
fn configuration_has_mac_link_and_mtu() {
    let (link, _far) = packet_pair().unwrap();
    let device = Arc::new(Mutex::new(Net::new(&config(9000), link).unwrap()));
    let mut guest = MockGuest::new(device).unwrap();
    assert_eq!(guest.read_config(0), [2, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0x28, 0x23]);
    let (link, _far) = packet_pair().unwrap();
    assert!(Net::new(&config(60), link).is_err());
}

/// A packet over IPv4 that carries this protocol.
fn packet_of(protocol: u8, length: usize) -> Vec<u8> {
    let mut packet = counting_packet(length);
    packet[HEADER + 12..HEADER + 15].copy_from_slice(&[0x08, 0x00, 0x45]);
    packet[HEADER + 23] = protocol;
    packet
}

const TCP: u8 = 6;
const UDP: u8 = 17;

#[test]
fn large_packets_are_whole_whichever_way_they_take() {
    const BUFFER_BYTES: u64 = 0x2000;
    let mut driver = Driver::new(net::F_MRG_RXBUF | net::F_CSUM | net::F_HOST_TSO4);
    for packet in [packet_of(TCP, 9000), packet_of(UDP, 9000), packet_of(TCP, 4083), packet_of(TCP, 65_000)] {
        driver.transmit(&packet);
        assert_eq!(driver.receive_at_far(), Some(packet));
    }
    let mut addresses = BTreeMap::new();
    let offer = |driver: &mut Driver, addresses: &mut BTreeMap<u32, u64>, address| {
        let buffer = MockDescriptor::writable(address, BUFFER_BYTES as u32);
        addresses.insert(u32::from(driver.rx.submit(&driver.guest.memory, &[buffer])), address);
    };
    (0..16).for_each(|index| offer(&mut driver, &mut addresses, BUFFERS_START + index * BUFFER_BYTES));
    driver.guest.kick(0);
    // What comes after a large one is received into the guest's buffers, whatever it is.
    let lengths = [
        (TCP, 9000),
        (TCP, 65_000),
        (UDP, 60),
        (TCP, 9001),
        (UDP, 9002),
        (TCP, 60),
        (UDP, 5000),
        (TCP, 9003),
    ];
    for (protocol, length) in lengths {
        let sent = packet_of(protocol, length);
        driver.send_from_far(&sent);
        let used: Vec<_> = std::iter::from_fn(|| driver.rx.take_used(&driver.guest.memory)).collect();
        assert_eq!(used.len() as u64, (sent.len() as u64).div_ceil(BUFFER_BYTES), "{protocol} {length}");
        let parts = used.iter().map(|(id, written)| driver.guest.get(addresses[id], *written as usize));
        let received = parts.collect::<Vec<_>>().concat();
        assert_eq!(received[10..12], (used.len() as u16).to_le_bytes());
        assert!(received[HEADER..] == sent[HEADER..], "{protocol} {length}");
        for (id, _) in used {
            let address = addresses[&id];
            offer(&mut driver, &mut addresses, address);
        }
    }
    // Without buffers it waits, and a reset forgets those that were taken.
    driver.send_from_far(&packet_of(TCP, 65_000));
    driver.send_from_far(&packet_of(TCP, 65_000));
    driver.send_from_far(&packet_of(TCP, 9000));
    assert!(!driver.guest.needs_reset());
    driver.guest.write(crate::virtio::spec::mmio::STATUS, 0);
    driver.rx = driver.guest.bring_up(0, &[16, 16])[0];
    driver.offer(BUFFERS_START, 1600);
    while driver.rx.take_used(&driver.guest.memory).is_none() {
        driver.send_from_far(&counting_packet(60));
    }
}

/// What the device asks the driver to notify it of: the next packet, or none.
fn wants_to_hear(driver: &Driver, features: u64, sent: u16) -> bool {
    if features & feature::RING_EVENT_IDX != 0 {
        return driver.tx.available_event(&driver.guest.memory) == sent;
    }
    driver.tx.used_flags(&driver.guest.memory) == 0
}

#[test]
fn event_loop_that_is_awake_finds_what_nobody_notifies_of_and_loses_nothing_when_it_falls_asleep() {
    for features in [0, feature::RING_EVENT_IDX] {
        let mut driver = Driver::new(features);
        assert!(wants_to_hear(&driver, features, 0));
        driver.guest.stay_awake(true);
        for (sent, length) in (1..).zip([60, 61, 62]) {
            driver.lay_out(&counting_packet(length));
            assert!(driver.guest.run() && driver.receive_at_far().is_none(), "there is no event");
            driver.guest.look();
            assert_eq!(driver.receive_at_far(), Some(counting_packet(length)));
            assert!(driver.tx.take_used(&driver.guest.memory).is_some());
            assert!(!wants_to_hear(&driver, features, sent), "the driver need not notify");
        }
        rustix::net::send(&driver.far, &counting_packet(70), SendFlags::empty()).unwrap();
        driver.offer(BUFFERS_START + 0x4000, 1600);
        driver.guest.look();
        assert!(driver.rx.take_used(&driver.guest.memory).is_some(), "it finds what the link brings as well");
        driver.lay_out(&counting_packet(63));
        driver.guest.stay_awake(false);
        assert!(driver.guest.run());
        assert_eq!(driver.receive_at_far(), Some(counting_packet(63)));
        assert!(driver.tx.take_used(&driver.guest.memory).is_some());
        assert!(wants_to_hear(&driver, features, 4), "from here on it is notified");
        driver.transmit(&counting_packet(64));
        assert_eq!(driver.receive_at_far(), Some(counting_packet(64)));
    }
}

#[test]
fn device_says_once_that_it_was_busy() {
    let mut driver = Driver::new(0);
    lock(&driver.device).take_busy();
    driver.guest.run();
    driver.guest.kick(0);
    assert!(lock(&driver.device).take_busy().is_none(), "there was nothing");
    let before = Instant::now();
    driver.transmit(&counting_packet(60));
    assert!(lock(&driver.device).take_busy().is_some_and(|began| began >= before));
    assert!(lock(&driver.device).take_busy().is_none());
    driver.offer(BUFFERS_START, 1600);
    driver.send_from_far(&counting_packet(60));
    assert!(lock(&driver.device).take_busy().is_some());
}

#[test]
fn guest_that_stands_still_has_its_memory_and_its_packets_left_alone_by_who_is_awake() {
    let mut driver = Driver::new(0);
    lock(&driver.device).hold(true);
    driver.guest.stay_awake(true);
    assert!(wants_to_hear(&driver, 0, 0), "its memory does not change");
    driver.lay_out(&counting_packet(60));
    driver.guest.look();
    assert_eq!(driver.receive_at_far(), None);
    driver.guest.stay_awake(false);
    lock(&driver.device).hold(false);
    assert!(driver.guest.run());
    assert_eq!(driver.receive_at_far(), Some(counting_packet(60)));
}

#[test]
fn buffers_that_are_kept_for_the_next_large_packet_are_given_back_when_the_guest_stands_still() {
    let mut driver = Driver::new(net::F_MRG_RXBUF);
    for index in 0..16 {
        let buffer = MockDescriptor::writable(BUFFERS_START + index * 0x2000, 0x2000);
        driver.rx.submit(&driver.guest.memory, &[buffer]);
    }
    driver.guest.kick(0);
    driver.send_from_far(&packet_of(TCP, 9000));
    driver.send_from_far(&packet_of(TCP, 9000));
    let used = std::iter::from_fn(|| driver.rx.take_used(&driver.guest.memory)).count() as u16;
    let position = |driver: &Driver| lock(&driver.device).save().queues[0];
    assert!(position(&driver).next_available > used, "more is taken than was used");
    lock(&driver.device).hold(true);
    assert_eq!(position(&driver), QueuePosition { next_available: used, next_used: used });
    lock(&driver.device).hold(false);
    driver.send_from_far(&packet_of(TCP, 9000));
    let more = std::iter::from_fn(|| driver.rx.take_used(&driver.guest.memory)).count() as u16;
    assert_eq!(more, used / 2, "it goes on where it was");
}

#[test]
fn small_packets_within_a_stream_leave_its_large_ones_the_buffers_that_they_have() {
    const BUFFER_BYTES: u32 = 0x2000;
    let mut driver = Driver::new(net::F_MRG_RXBUF);
    let lay_out = |driver: &mut Driver, count| {
        for _ in 0..count {
            driver.rx.submit(&driver.guest.memory, &[MockDescriptor::writable(BUFFERS_START, BUFFER_BYTES)]);
        }
    };
    let receive = |driver: &mut Driver, length| {
        driver.send_from_far(&packet_of(TCP, length));
        std::iter::from_fn(|| driver.rx.take_used(&driver.guest.memory)).count()
    };
    let taken = |driver: &Driver| {
        let position = lock(&driver.device).save().queues[0];
        position.next_available - position.next_used
    };
    lay_out(&mut driver, 16);
    driver.guest.kick(0);
    for (large, small) in [(9000, 60), (9001, 700)] {
        assert_eq!((receive(&mut driver, large), receive(&mut driver, small)), (2, 1));
        assert!(taken(&driver) > 0, "after {small} bytes");
        lay_out(&mut driver, 3);
    }
    for _ in 0..40 {
        assert_eq!(receive(&mut driver, 60), 1);
        lay_out(&mut driver, 1);
    }
    assert_eq!(taken(&driver), 0, "the stream has no large ones any more");
}
