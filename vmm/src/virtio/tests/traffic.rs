//! A network device with limits, by a clock that stands still unless it is moved. What a timer of the kernel does is wake
//! the device; how much goes is the clock's matter alone.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::{RecvFlags, SendFlags};

use super::super::VirtioDevice as _;
use super::super::mock::{BUFFERS_START, MockDescriptor, MockGuest, MockQueue, PacketSocket, packet_pair};
use super::super::net::Net;
use super::super::spec::net;
use super::*;
use crate::config::{InheritedFd, NicConfig, RateLimit, Traffic, TransferLimits};

const HEADER: usize = net::HEADER_BYTES;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

struct Driver {
    guest: MockGuest,
    device: Arc<Mutex<Net<PacketSocket>>>,
    rx: MockQueue,
    tx: MockQueue,
    far: OwnedFd,
    clock: MovedClock,
    offered: u64,
}

fn bytes(per_second: u64, burst: u64) -> TransferLimits {
    TransferLimits { bytes: Some(RateLimit { per_second, burst: Some(burst) }), operations: None }
}

fn packets(per_second: u64, burst: u64) -> TransferLimits {
    TransferLimits { bytes: None, operations: Some(RateLimit { per_second, burst: Some(burst) }) }
}

fn to_guest(ingress: TransferLimits) -> Traffic {
    Traffic { ingress, ..Traffic::default() }
}

fn from_guest(egress: TransferLimits) -> Traffic {
    Traffic { egress, ..Traffic::default() }
}

fn config(traffic: Traffic) -> NicConfig {
    NicConfig {
        tap: InheritedFd(-1),
        more_queues: Vec::new(),
        mac: MAC,
        mtu: 1500,
        endpoint: Some(endpoint()),
        traffic,
    }
}

impl Driver {
    fn new(traffic: Traffic) -> Self {
        let (link, far) = packet_pair().unwrap();
        let clock = MovedClock::new();
        let device = Net::with(&config(traffic), (vec![link], 1), clock.of_device()).unwrap();
        let device = Arc::new(Mutex::new(device));
        let mut guest = MockGuest::new(device.clone()).unwrap();
        let queues = guest.bring_up(net::F_HOST_TSO4 | net::F_CSUM, &[64, 64]);
        Self { guest, device, rx: queues[0], tx: queues[1], far, clock, offered: 0 }
    }

    fn reshape(&mut self, traffic: Traffic) {
        assert!(self.device.lock().unwrap().reshape(MAC, &traffic).unwrap());
        assert!(self.guest.run());
    }

    /// Makes one packet available, without a word to the device.
    fn submit(&mut self, packet: &[u8]) {
        let at = BUFFERS_START + 0x1_0000 + 0x1000 * self.offered;
        self.offered += 1;
        self.guest.put(at, packet);
        self.tx.submit(&self.guest.memory, &[MockDescriptor::readable(at, packet.len() as u32)]);
    }

    fn submit_all(&mut self, count: usize) {
        (0..count).for_each(|_| self.submit(&packet(86)));
        self.guest.kick(1);
    }

    fn offer_all(&mut self, count: u64) {
        for index in 0..count {
            self.rx
                .submit(&self.guest.memory, &[MockDescriptor::writable(BUFFERS_START + 0x800 * index, 1600)]);
        }
        self.guest.kick(0);
    }

    fn send_from_far(&mut self, count: usize) {
        for _ in 0..count {
            rustix::net::send(&self.far, &packet(86), SendFlags::empty()).unwrap();
        }
        assert!(self.guest.run(), "the device came to rest");
    }

    fn sent(&mut self) -> usize {
        std::iter::from_fn(|| self.tx.take_used(&self.guest.memory)).count()
    }

    fn received(&mut self) -> usize {
        std::iter::from_fn(|| self.rx.take_used(&self.guest.memory)).count()
    }

    fn seen_at_far(&self) -> usize {
        let mut packet = [0; 2000];
        std::iter::from_fn(|| rustix::net::recv(&self.far, &mut packet, RecvFlags::DONTWAIT).ok()).count()
    }
}

/// A packet of no protocol, `length` bytes with its Ethernet header and 14 more.
fn packet(length: usize) -> Vec<u8> {
    let mut packet = vec![0; HEADER + 14];
    packet[HEADER..HEADER + 6].fill(0xff);
    packet.resize(HEADER + 14 + length, 7);
    packet
}

#[test]
fn packets_of_the_guest_beyond_the_burst_wait_in_its_queue_for_the_timer() {
    let mut driver = Driver::new(from_guest(bytes(10_000, 200)));
    driver.submit_all(5);
    assert_eq!((driver.sent(), driver.seen_at_far()), (2, 2), "100 bytes each");
    for _ in 0..10 {
        driver.guest.kick(1);
    }
    assert_eq!(driver.sent(), 0, "notifications bring nothing");
    driver.guest.wait(PATIENCE_MS);
    assert_eq!(driver.sent(), 0, "nor does the timer by itself");
    for _ in 0..3 {
        driver.clock.advance(Duration::from_millis(10));
        driver.guest.wait(PATIENCE_MS);
        assert_eq!((driver.sent(), driver.seen_at_far()), (1, 1));
    }
    driver.clock.advance(Duration::from_secs(60));
    driver.submit_all(9);
    assert_eq!(driver.sent(), 2, "a rest brings one burst, however long");
    driver.send_from_far(20);
    driver.offer_all(20);
    assert_eq!(driver.received(), 20, "what comes is not limited");
}

#[test]
fn packets_for_the_guest_beyond_the_burst_stay_in_the_link_and_none_is_lost_or_overtaken() {
    let mut driver = Driver::new(to_guest(packets(100, 3)));
    driver.offer_all(20);
    driver.send_from_far(8);
    assert_eq!(driver.received(), 3);
    driver.guest.kick(0);
    assert_eq!(driver.received(), 0, "buffers bring nothing");
    for _ in 0..5 {
        driver.clock.advance(Duration::from_millis(10));
        driver.guest.wait(PATIENCE_MS);
        assert_eq!(driver.received(), 1);
    }
    driver.submit_all(20);
    assert_eq!(driver.sent(), 20, "what goes is not limited");
    driver.clock.advance(Duration::from_secs(1));
    driver.send_from_far(1);
    assert_eq!(driver.received(), 1);
}

#[test]
fn what_the_endpoint_answers_reaches_the_guest_while_the_network_has_to_wait() {
    let mut driver = Driver::new(to_guest(packets(1, 1)));
    driver.offer_all(20);
    driver.send_from_far(3);
    assert_eq!(driver.received(), 1);
    let mut request = packet(0);
    request[HEADER + 6..HEADER + 12].copy_from_slice(&MAC);
    request[HEADER + 12..].copy_from_slice(&[8, 6]);
    request.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    request.extend(MAC.into_iter().chain([10, 0, 0, 5]).chain([0; 6]).chain([10, 0, 0, 2]));
    driver.submit(&request);
    driver.guest.kick(1);
    assert_eq!((driver.received(), driver.seen_at_far()), (1, 0), "who has the DHCP server's address");
    driver.clock.advance(Duration::from_secs(1));
    driver.guest.wait(PATIENCE_MS);
    assert_eq!(driver.received(), 1, "the packet that waited");
}

#[test]
fn limits_of_a_running_guest_change_at_once_both_ways() {
    let slow = Traffic { ingress: packets(1, 1), egress: packets(1, 1), dscp: None };
    let mut driver = Driver::new(Traffic::default());
    driver.offer_all(40);
    driver.submit_all(10);
    driver.send_from_far(10);
    assert_eq!((driver.sent(), driver.received()), (10, 10));
    driver.reshape(slow);
    driver.submit_all(5);
    driver.send_from_far(5);
    assert_eq!((driver.sent(), driver.received()), (1, 1));
    driver.reshape(Traffic::default());
    assert_eq!((driver.sent(), driver.received()), (4, 4), "nobody waits any more");
    let absurd =
        to_guest(TransferLimits { bytes: Some(RateLimit { per_second: 0, burst: None }), operations: None });
    let mut device = driver.device.lock().unwrap();
    assert!(device.reshape(MAC, &absurd).is_err());
    assert!(device.reshape(MAC, &Traffic { dscp: Some(64), ..slow }).is_err());
    assert!(!device.reshape([2; 6], &slow).unwrap(), "another device's");
    drop(device);
    driver.submit_all(5);
    assert_eq!(driver.sent(), 5, "what was refused holds nothing");
}

#[test]
fn reset_gains_nothing_and_forgets_what_waited() {
    let mut driver = Driver::new(Traffic { ingress: packets(1, 1), egress: packets(1, 1), dscp: None });
    driver.offer_all(8);
    driver.submit_all(3);
    driver.send_from_far(2);
    assert_eq!((driver.sent(), driver.received()), (1, 1));
    let queues = driver.guest.bring_up(0, &[64, 64]);
    (driver.rx, driver.tx) = (queues[0], queues[1]);
    driver.offer_all(8);
    driver.submit_all(3);
    driver.send_from_far(2);
    assert_eq!((driver.sent(), driver.received()), (0, 0));
    driver.clock.advance(Duration::from_secs(1));
    driver.guest.wait(PATIENCE_MS);
    assert_eq!((driver.sent(), driver.received()), (1, 1));
}

#[test]
fn what_goes_to_the_link_is_marked() {
    let mut driver = Driver::new(Traffic { dscp: Some(46), ..Traffic::default() });
    let mut ip = packet(20);
    ip[HEADER + 12..HEADER + 16].copy_from_slice(&[8, 0, 0x45, 0]);
    driver.submit(&ip);
    driver.guest.kick(1);
    let mut seen = [0; 100];
    rustix::net::recv(&driver.far, &mut seen, RecvFlags::DONTWAIT).unwrap();
    assert_eq!(seen[HEADER + 15], 46 << 2);
}
