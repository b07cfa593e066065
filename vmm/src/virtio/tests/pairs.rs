//! A network device with several pairs of queues.

use std::os::fd::OwnedFd;

use rustix::net::{RecvFlags, SendFlags};

use super::super::mock::{BUFFERS_START, MockDescriptor, MockGuest, MockQueue, PacketSocket, packet_pair};
use super::super::net::{Net, PAIRS_MAX, pairs_for, pairs_of_queues};
use super::super::spec::{net, pci, ring};
use super::super::state::TransportState;
use super::super::{Error, VirtioDevice as _};
use super::*;
use crate::config::{EndpointConfig, InheritedFd, NicConfig, RateLimit, Traffic, TransferLimits};
use crate::rpc::{PairStatus, QueueCounts};

const HEADER: usize = net::HEADER_BYTES;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const FEATURES: u64 = net::F_MQ | net::F_CTRL_VQ;
const PAIRS: usize = 3;
const CONTROL: usize = net::QUEUES_OF_PAIR * PAIRS;
const SIZES: [u16; CONTROL + 1] = [16; CONTROL + 1];
/// Where commands are put, behind all other buffers.
const COMMAND: u64 = BUFFERS_START + 0x8_0000;

struct Driver {
    guest: MockGuest,
    device: Arc<Mutex<Net<PacketSocket>>>,
    queues: Vec<MockQueue>,
    far: Vec<OwnedFd>,
    buffers: u64,
}

fn config(endpoint: Option<EndpointConfig>, traffic: Traffic) -> NicConfig {
    NicConfig { tap: InheritedFd(-1), more_queues: Vec::new(), mac: MAC, mtu: 1500, endpoint, traffic }
}

/// A device, and the far sides of its ends.
type WithFar = (Arc<Mutex<Net<PacketSocket>>>, Vec<OwnedFd>);

fn device(config: &NicConfig, pairs: u16, ends: usize) -> Result<WithFar, Error> {
    let (links, far) = (0..ends).map(|_| packet_pair().unwrap()).unzip();
    let now = std::time::Instant::now();
    let net = Net::with(config, (links, pairs), Box::new(move || now))?;
    Ok((Arc::new(Mutex::new(net)), far))
}

fn plain() -> NicConfig {
    config(None, Traffic::default())
}

fn send(far: &OwnedFd, length: usize) {
    rustix::net::send(far, &counting_packet(length), SendFlags::empty()).unwrap();
}

fn receive(far: &OwnedFd) -> Option<usize> {
    let mut packet = vec![0; 2000];
    let (length, _) = rustix::net::recv(far, &mut packet, RecvFlags::DONTWAIT).ok()?;
    Some(length - HEADER)
}

impl Driver {
    fn of(config: &NicConfig, ends: usize, features: u64) -> Self {
        let (device, far) = device(config, PAIRS as u16, ends).unwrap();
        let mut guest = MockGuest::new(device.clone()).unwrap();
        let queues = guest.bring_up(features, &SIZES);
        assert!(!guest.needs_reset());
        Self { guest, device, queues, far, buffers: 0 }
    }

    fn new() -> Self {
        Self::of(&plain(), PAIRS, FEATURES)
    }

    /// The answer to a command, if there is one.
    fn command_in(&mut self, queue: usize, command: &[u8]) -> Option<u8> {
        self.guest.put(COMMAND, command);
        self.guest.put(COMMAND + 0x100, &[0xaa]);
        let chain = [
            MockDescriptor::readable(COMMAND, command.len() as u32),
            MockDescriptor::writable(COMMAND + 0x100, 1),
        ];
        self.queues[queue].submit(&self.guest.memory, &chain);
        self.guest.kick(queue as u16);
        assert!(self.guest.run(), "the device came to rest");
        let (_, written) = self.queues[queue].take_used(&self.guest.memory)?;
        assert_eq!(written, 1);
        Some(self.guest.get(COMMAND + 0x100, 1)[0])
    }

    fn use_pairs(&mut self, pairs: u16) -> Option<u8> {
        let [low, high] = pairs.to_le_bytes();
        self.command_in(CONTROL, &[4, 0, low, high])
    }

    fn next_buffer(&mut self) -> u64 {
        let at = BUFFERS_START + 0x800 * (self.buffers % 0x100);
        self.buffers += 1;
        at
    }

    fn offer(&mut self, pair: usize) {
        let at = self.next_buffer();
        self.queues[2 * pair].submit(&self.guest.memory, &[MockDescriptor::writable(at, 1600)]);
        self.guest.kick(2 * pair as u16);
    }

    fn offer_everywhere(&mut self, each: usize) {
        (0..each * PAIRS).for_each(|index| self.offer(index % PAIRS));
    }

    fn transmit(&mut self, pair: usize, packet: &[u8]) -> bool {
        let at = self.next_buffer();
        self.guest.put(at, packet);
        let queue = &mut self.queues[2 * pair + 1];
        queue.submit(&self.guest.memory, &[MockDescriptor::readable(at, packet.len() as u32)]);
        self.guest.kick(2 * pair as u16 + 1);
        assert!(self.guest.run(), "the device came to rest");
        self.queues[2 * pair + 1].take_used(&self.guest.memory).is_some()
    }

    /// How many packets each pair was given since the last time.
    fn received(&mut self) -> [usize; PAIRS] {
        assert!(self.guest.run(), "the device came to rest");
        let memory = &self.guest.memory;
        let queues = &mut self.queues;
        std::array::from_fn(|pair| std::iter::from_fn(|| queues[2 * pair].take_used(memory)).count())
    }

    fn pairs(&self) -> (u16, Vec<PairStatus>) {
        let status = self.device.lock().unwrap().pairs().unwrap();
        (status.used, status.pairs)
    }
}

#[test]
fn pairs_and_their_number_are_offered_where_there_are_several() {
    let (several, _far) = device(&plain(), 3, 1).unwrap();
    let mut guest = MockGuest::new(several).unwrap();
    assert_eq!(guest.offered() & FEATURES, FEATURES);
    assert_eq!(guest.read_config(8), [3, 0]);
    let (one, _far) = device(&plain(), 1, 1).unwrap();
    assert_eq!(one.lock().unwrap().queue_sizes().len(), 2);
    let mut guest = MockGuest::new(one).unwrap();
    assert_eq!(guest.offered() & FEATURES, 0, "and of the control queue nothing else is there");
    assert_eq!(guest.read_config(8), [1, 0]);
    for (pairs, ends) in [(0, 1), (1, 0), (PAIRS_MAX + 1, 1), (1, usize::from(PAIRS_MAX) + 1)] {
        let error = device(&plain(), pairs, ends).err().unwrap().to_string();
        assert!(error.contains("number of pairs") && error.contains("1 to 8"), "{error}");
    }
    assert_eq!([1, 2, 8, 9, 254].map(pairs_for), [1, 2, 8, 8, 8]);
    assert_eq!([0, 2, 3, 5, 7, 17, 900].map(pairs_of_queues), [1, 1, 1, 2, 3, 8, 8]);
}

#[test]
fn driver_has_one_pair_that_reads_the_whole_link_until_it_wants_more() {
    let mut driver = Driver::new();
    driver.offer_everywhere(6);
    for (end, length) in [(0, 60), (1, 61), (2, 62)] {
        send(&driver.far[end], length);
    }
    assert_eq!(driver.received(), [3, 0, 0]);
    assert_eq!(driver.use_pairs(3), Some(net::CTRL_OK));
    for end in [0, 1, 1, 2, 2, 2] {
        send(&driver.far[end], 60);
    }
    assert_eq!(driver.received(), [1, 2, 3]);
    for pair in 0..PAIRS {
        assert!(driver.transmit(pair, &counting_packet(70 + pair)));
        assert_eq!(
            receive(&driver.far[pair]),
            Some(70 + pair),
            "a flow's answers come back where it was sent"
        );
    }
    assert_eq!(driver.use_pairs(2), Some(net::CTRL_OK));
    for far in &driver.far {
        send(far, 60);
    }
    assert_eq!(driver.received(), [2, 1, 0], "what the third read the first does");
    assert!(driver.transmit(2, &counting_packet(60)), "and what is left in its other queue is sent");
    assert_eq!(driver.use_pairs(1), Some(net::CTRL_OK));
    driver.offer(0);
    driver.offer(0);
    driver.far.iter().for_each(|far| send(far, 60));
    assert_eq!(driver.received(), [2, 0, 0]);
    driver.offer(0);
    assert_eq!(driver.received(), [1, 0, 0], "it waited for a buffer");
}

#[test]
fn counts_are_of_each_queue() {
    let mut driver = Driver::new();
    assert_eq!(driver.pairs(), (1, vec![PairStatus::default(); PAIRS]));
    assert_eq!(driver.use_pairs(3), Some(net::CTRL_OK));
    driver.offer_everywhere(4);
    for (end, length) in [(1, 60), (1, 100), (2, 1000)] {
        send(&driver.far[end], length);
    }
    // Beyond what a buffer has room for.
    send(&driver.far[2], 1700);
    driver.received();
    driver.transmit(0, &counting_packet(60));
    driver.transmit(2, &counting_packet(61));
    driver.transmit(2, &counting_packet(13));
    let mut segments = counting_packet(61);
    segments[net::HEADER_GSO_TYPE] = net::GSO_TCPV4;
    driver.transmit(2, &segments);
    let counts = |packets, bytes, drops| QueueCounts { packets, bytes, drops };
    let pair = |receive, transmit| PairStatus { receive, transmit };
    let expected = vec![
        pair(counts(0, 0, 0), counts(1, 60, 0)),
        pair(counts(2, 160, 0), counts(0, 0, 0)),
        pair(counts(1, 1000, 1), counts(1, 61, 2)),
    ];
    assert_eq!(driver.pairs(), (3, expected));
}

#[test]
fn several_pairs_work_over_pci_each_with_a_doorbell_and_an_interrupt() {
    let (device, far) = device(&plain(), 3, 3).unwrap();
    let mut guest = MockGuest::over_pci(device.clone()).unwrap();
    let queues = guest.bring_up(FEATURES, &SIZES);
    assert_eq!(guest.wires().doorbells().len(), SIZES.len());
    let mut driver = Driver { guest, device, queues, far, buffers: 0 };
    assert_eq!(driver.use_pairs(3), Some(net::CTRL_OK));
    driver.offer_everywhere(1);
    driver.guest.take_interrupts();
    driver.far.iter().for_each(|far| send(far, 60));
    assert_eq!(driver.received(), [1, 1, 1]);
    assert_eq!(driver.guest.take_interrupts(), 3);
}

#[test]
fn most_pairs_that_there_are_fit_a_function_with_a_vector_for_each_queue() {
    let (most, _far) = device(&plain(), PAIRS_MAX, usize::from(PAIRS_MAX)).unwrap();
    let mut guest = MockGuest::over_pci(most).unwrap();
    let queues = 2 * PAIRS_MAX + 1;
    assert_eq!(guest.read_short(pci::NUM_QUEUES), queues);
    guest.write_short(pci::QUEUE_SELECT, queues - 1);
    for (vector, taken) in [(queues, queues), (queues + 1, pci::NO_VECTOR)] {
        guest.write_short(pci::QUEUE_MSIX_VECTOR, vector);
        assert_eq!(guest.read_short(pci::QUEUE_MSIX_VECTOR), taken);
    }
    assert_ne!(guest.read_short(pci::QUEUE_SIZE), 0);
}

#[test]
fn what_is_no_command_or_no_number_of_pairs_is_refused_and_changes_nothing() {
    let mut driver = Driver::new();
    assert_eq!(driver.use_pairs(2), Some(net::CTRL_OK));
    for pairs in [0, 4, 256, u16::MAX] {
        assert_eq!(driver.use_pairs(pairs), Some(net::CTRL_ERR), "{pairs}");
    }
    // What there is of commands beside: receive modes, MAC addresses, VLANs, announcements, RSS, offloads.
    for command in [[0, 0, 1, 0], [1, 1, 1, 0], [2, 0, 1, 0], [3, 0, 1, 0], [4, 1, 1, 0], [5, 0, 1, 0]] {
        assert_eq!(driver.command_in(CONTROL, &command), Some(net::CTRL_ERR), "{command:?}");
    }
    for short in [&[4, 0, 1][..], &[4, 0], &[4], &[]] {
        assert_eq!(driver.command_in(CONTROL, short), Some(net::CTRL_ERR), "{short:?}");
    }
    assert_eq!(driver.pairs().0, 2);
    assert_eq!(
        driver.command_in(CONTROL, &[4, 0, 3, 0, 9, 9]),
        Some(net::CTRL_OK),
        "what is behind it is not read"
    );
    assert!(!driver.guest.needs_reset());
}

#[test]
fn command_that_cannot_be_answered_or_followed_asks_for_a_reset() {
    let mut driver = Driver::new();
    driver.queues[CONTROL].submit(&driver.guest.memory, &[MockDescriptor::readable(COMMAND, 4)]);
    driver.guest.kick(CONTROL as u16);
    assert!(driver.guest.needs_reset());
    let mut driver = Driver::new();
    let looping = MockDescriptor { address: COMMAND, length: 8, flags: ring::DESC_F_NEXT, next: 0 };
    driver.queues[CONTROL].write_descriptor(&driver.guest.memory, 0, looping);
    driver.queues[CONTROL].make_available(&driver.guest.memory, 0);
    driver.guest.kick(CONTROL as u16);
    assert!(driver.guest.needs_reset());
    driver.far.iter().for_each(|far| send(far, 60));
    assert!(driver.guest.run(), "and its links are let alone");
}

#[test]
fn pairs_that_the_driver_has_not_set_up_it_cannot_use() {
    let (device, far) = device(&plain(), 3, 3).unwrap();
    let mut guest = MockGuest::new(device.clone()).unwrap();
    guest.negotiate(FEATURES);
    let mut queues: Vec<_> = (0..4).map(|index| guest.set_up_queue(index, 16)).collect();
    let control = guest.set_up_queue(CONTROL as u16, 16);
    guest.start();
    assert!(guest.run() && !guest.needs_reset());
    queues.extend([queues[0], queues[0], control]);
    let mut driver = Driver { guest, device, queues, far, buffers: 0 };
    assert_eq!(driver.use_pairs(3), Some(net::CTRL_ERR));
    assert_eq!(driver.use_pairs(2), Some(net::CTRL_OK));
    driver.guest.kick(5);
    assert!(driver.guest.run() && !driver.guest.needs_reset());
    for lacking in [1, CONTROL as u16] {
        let (device, _far) = self::device(&plain(), 3, 1).unwrap();
        let mut guest = MockGuest::new(device).unwrap();
        guest.negotiate(FEATURES);
        for index in (0..SIZES.len() as u16).filter(|index| *index != lacking) {
            guest.set_up_queue(index, 16);
        }
        guest.start();
        assert!(guest.needs_reset(), "without queue {lacking}");
    }
}

#[test]
fn driver_that_knows_no_pairs_has_its_control_queue_behind_the_first() {
    let mut driver = Driver::of(&plain(), PAIRS, net::F_CTRL_VQ);
    driver.offer(0);
    assert_eq!(driver.command_in(2, &[4, 0, 1, 0]), Some(net::CTRL_ERR));
    send(&driver.far[2], 60);
    assert_eq!(driver.received()[0], 1);
    let mut driver = Driver::of(&plain(), PAIRS, 0);
    driver.offer(0);
    driver.guest.kick(2);
    driver.guest.kick(CONTROL as u16);
    send(&driver.far[1], 60);
    assert_eq!(driver.received()[0], 1);
    assert!(driver.transmit(0, &counting_packet(60)) && !driver.guest.needs_reset());
}

#[test]
fn pair_without_buffers_holds_up_no_other() {
    let mut driver = Driver::new();
    assert_eq!(driver.use_pairs(3), Some(net::CTRL_OK));
    driver.offer(0);
    driver.offer(2);
    for far in &driver.far {
        send(far, 60);
    }
    assert_eq!(driver.received(), [1, 0, 1]);
    driver.offer(1);
    assert_eq!(driver.received(), [0, 1, 0]);
}

#[test]
fn reset_brings_the_driver_back_to_one_pair() {
    let mut driver = Driver::new();
    assert_eq!(driver.use_pairs(3), Some(net::CTRL_OK));
    driver.guest.set_status(0);
    driver.far.iter().for_each(|far| send(far, 60));
    assert!(driver.guest.run());
    driver.queues = driver.guest.bring_up(FEATURES, &SIZES);
    driver.offer_everywhere(3);
    assert_eq!(driver.received(), [3, 0, 0]);
    assert_eq!(driver.pairs().0, 1);
}

#[test]
fn limit_is_one_for_all_pairs() {
    let limit = Some(RateLimit { per_second: 1, burst: Some(2) });
    let egress = TransferLimits { bytes: None, operations: limit };
    let traffic = Traffic { egress, ingress: egress, dscp: None };
    let mut driver = Driver::of(&config(None, traffic), PAIRS, FEATURES);
    assert_eq!(driver.use_pairs(3), Some(net::CTRL_OK));
    let sent: Vec<_> = (0..PAIRS).map(|pair| driver.transmit(pair, &counting_packet(60))).collect();
    assert_eq!(sent, [true, true, false]);
    driver.offer_everywhere(2);
    driver.far.iter().for_each(|far| send(far, 60));
    assert_eq!(driver.received().iter().sum::<usize>(), 2);
}

#[test]
fn endpoint_answers_the_pair_that_asked() {
    let mut driver = Driver::of(&config(Some(endpoint()), Traffic::default()), PAIRS, FEATURES);
    let mut request = [&[0; HEADER][..], &[0xff; 6], &MAC, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]].concat();
    request.extend(MAC.into_iter().chain([10, 0, 0, 5]).chain([0; 6]).chain([10, 0, 0, 2]));
    driver.offer_everywhere(2);
    assert!(driver.transmit(2, &request));
    assert_eq!(driver.received(), [1, 0, 0], "it uses no other");
    assert_eq!(driver.use_pairs(3), Some(net::CTRL_OK));
    for (pair, answered) in [(1, [0, 1, 0]), (2, [0, 0, 1])] {
        assert!(driver.transmit(pair, &request));
        assert_eq!(driver.received(), answered);
        assert_eq!(receive(&driver.far[pair]), None);
    }
}

fn own(state: &mut TransportState) -> &mut Vec<u8> {
    let TransportState::Mmio(state) = state else { panic!("the guest has windows") };
    &mut state.negotiation.device.own
}

/// A guest that commanded three pairs and was saved before it had its answer, and that has told of a packet to send and of buffers.
fn saved_while_it_waited() -> (Driver, TransportState) {
    let mut driver = Driver::new();
    assert_eq!(driver.use_pairs(2), Some(net::CTRL_OK));
    driver.device.lock().unwrap().hold(true);
    assert_eq!(driver.use_pairs(3), None, "the guest stands still");
    assert!(!driver.transmit(1, &counting_packet(61)));
    driver.offer_everywhere(6);
    let state = driver.guest.save();
    (driver, state)
}

impl Driver {
    /// The answer to a command that waited, and how many pairs are in use.
    fn late_answer(&mut self) -> (Option<u8>, u16) {
        assert!(self.guest.run(), "the device came to rest");
        let used = self.queues[CONTROL].take_used(&self.guest.memory);
        let answer = used.map(|(_, written)| (written, self.guest.get(COMMAND + 0x100, 1)[0]));
        (answer.map(|(_, ack)| ack), self.pairs().0)
    }

    fn passes_nothing(&mut self) -> bool {
        self.far.iter().for_each(|far| send(far, 60));
        let sent =
            self.transmit(0, &counting_packet(62)) || self.far.iter().any(|far| receive(far).is_some());
        !sent && self.received() == [0; PAIRS] && self.queues[3].take_used(&self.guest.memory).is_none()
    }
}

#[test]
fn command_that_waited_is_answered_before_any_packet_goes_either_way() {
    let (first, state) = saved_while_it_waited();
    let (device, far) = device(&plain(), 3, 3).unwrap();
    let hold = |held| device.lock().unwrap().hold(held);
    let close = |closed| device.lock().unwrap().close(closed);
    hold(true);
    close(true);
    let guest = first.guest.go_on(device.clone(), &state).unwrap();
    let mut other =
        Driver { guest, device: device.clone(), queues: first.queues, far, buffers: first.buffers };
    assert_eq!(other.late_answer(), (None, 2), "nothing is done for a guest that stands still");

    hold(false);
    assert_eq!(other.late_answer(), (Some(net::CTRL_OK), 3));
    assert!(other.passes_nothing());
    assert_eq!(other.use_pairs(1), Some(net::CTRL_OK), "and so on");
    assert!(other.passes_nothing() && device.lock().unwrap().is_introducing());
    assert_eq!(other.guest.read_config(6), [1, 0], "its link goes down when there is one to it");

    hold(true);
    assert_eq!(other.use_pairs(2), None);
    close(false);
    assert_eq!(other.late_answer(), (None, 1), "open, but not to a guest that stands still");
    close(true);
    hold(false);
    assert_eq!(other.late_answer(), (Some(net::CTRL_OK), 2));
    assert!(other.passes_nothing());

    close(false);
    assert_eq!(other.received(), [6, 3, 0], "what waited at three ends, three times");
    assert_eq!(other.guest.read_config(6), [0, 0]);
    assert_eq!(receive(&other.far[1]), Some(61), "what it had to send before it was saved");
    assert_eq!(std::iter::from_fn(|| receive(&other.far[0])).collect::<Vec<_>>(), [62; 3]);
    assert_eq!(other.use_pairs(3), Some(net::CTRL_OK));
    assert_eq!(other.pairs().0, 3);
}

#[test]
fn network_stays_closed_to_a_driver_that_begins_anew() {
    let mut driver = Driver::new();
    driver.device.lock().unwrap().close(true);
    driver.guest.set_status(0);
    driver.queues = driver.guest.bring_up(FEATURES, &SIZES);
    assert_eq!(driver.use_pairs(3), Some(net::CTRL_OK));
    driver.offer_everywhere(1);
    assert!(driver.passes_nothing());
    driver.device.lock().unwrap().close(false);
    assert_eq!(driver.received(), [1, 1, 1]);
    assert_eq!(receive(&driver.far[0]), Some(62));
}

#[test]
fn guest_that_goes_on_has_its_pairs_whatever_the_link_has() {
    let mut driver = Driver::new();
    assert_eq!(driver.use_pairs(2), Some(net::CTRL_OK));
    let mut state = driver.guest.save();
    for ends in [1, 3, 5] {
        let (device, far) = device(&plain(), 3, ends).unwrap();
        let guest = driver.guest.go_on(device.clone(), &state).unwrap();
        device.lock().unwrap().hold(false);
        let mut other = Driver { guest, device, queues: driver.queues.clone(), far, buffers: 0 };
        assert!(other.guest.run());
        other.offer_everywhere(5);
        other.far.iter().for_each(|far| send(far, 60));
        let expected = if ends == 1 { [1, 0, 0] } else { [ends / 2 + 1, ends / 2, 0] };
        assert_eq!(other.received(), expected, "{ends} ends");
        assert!(other.transmit(1, &counting_packet(61)));
        assert_eq!(receive(&other.far[1 % ends]), Some(61));
        assert_eq!(other.use_pairs(3), Some(net::CTRL_OK));
        assert_eq!(other.pairs().0, 3);
    }
    let refused = |pairs: u16, state: &TransportState| {
        let (device, _far) = device(&plain(), pairs, 1).unwrap();
        driver.guest.go_on(device, state).err().map(|error| error.to_string())
    };
    let error = refused(2, &state).unwrap();
    assert!(error.contains("its queues are others"), "{error}");
    assert_eq!(own(&mut state).last(), Some(&2));
    for wrong in [0, 4] {
        *own(&mut state).last_mut().unwrap() = wrong;
        let error = refused(3, &state).unwrap();
        assert!(error.contains("or more than it has"), "{error}");
    }
    own(&mut state).pop();
    assert!(refused(3, &state).is_some(), "a device with one pair saves no number");
}
