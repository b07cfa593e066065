//! The network device (VIRTIO 1.3 §5.1): pairs of a receive and a transmit queue between a guest and a [`Link`], and with more than
//! one pair a control queue, by which the driver says how many it uses; until then that is one.
//!
//! All queues are worked off by the one event loop: a guest's processors need not wait for one another to send. What belongs to the
//! device and not to a queue is there once: limits and marks, the endpoint, the guest's identity. An answer of the endpoint goes to the
//! pair that asked, one that nobody asked for to the first.
//!
//! Every frame of the guest passes the [`Endpoints`] first, which may answer it into the receive queue; what the
//! endpoint does not take goes to the link. Packets are copied once, or of large ones whatever is looked at, so that the guest
//! cannot change a frame after it was looked at.
//!
//! When the guest has no receive buffers left, the link is not listened to any more: packets wait, and are
//! dropped, in the host's own queue. The same happens while a limit of what goes to the guest is used up; what comes from
//! the guest waits in its queue then, so no memory of ours holds it but a packet of each pair. Must never know: addresses, tenants, who is at the other end.

mod control;
mod delivery;
mod direct;
mod ends;
mod frame;
mod identity;
mod receiving;
mod sending;
mod traffic;
mod working;

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use super::limiter::{BucketState, Clock, Direction};
use super::link::{Link, Tap};
use super::queue::Chain;
use super::spec::{device_type, net as spec};
use super::state::{DeviceState, StateError, decode};
use super::{Activation, Error, Shared, VirtioDevice};
use crate::config::{Addressing, NicConfig, Traffic};
use crate::endpoint::Endpoints;
use crate::questions::{Question, Questions};
use crate::rpc::{NicStatus, PairStatus, QueueCounts};

use ends::Ends;
use identity::{Flap, Identity};
use receiving::Receiver;
use sending::Sender;
use traffic::Shaper;

/// Descriptors per queue: enough for a full window of segments between two runs of the event loop.
pub const QUEUE_SIZE_MAX: u16 = 256;
/// Pairs of queues: as with disks' queues, what a guest's processors share them for is worth less the more there are, and each takes
/// descriptors of the host.
pub const PAIRS_MAX: u16 = 8;
/// The largest packet with its header: the most an IP length field can say, and an Ethernet header with one tag.
pub const PACKET_BYTES_MAX: usize = spec::HEADER_BYTES + 18 + u16::MAX as usize;
/// The shortest packet worth forwarding: a header and an Ethernet header.
const PACKET_BYTES_MIN: usize = spec::HEADER_BYTES + 14;
/// Packets passed in one direction before the other one has its turn.
const BATCH_PACKETS_MAX: u16 = 64;
/// Bytes after which it has its turn as well: one large packet. Who waits for what comes with the next turn, acknowledgements above
/// all, would fall asleep over more.
const BATCH_BYTES_MAX: usize = 32 << 10;
/// The smallest MTU that IPv4 allows (RFC 791); also VIRTIO's.
pub const MTU_MIN: u16 = 68;

/// Makes the network device that `config` describes on the attached queues of a tap, with so many pairs, or as many as there are of
/// these; what its guest asks about names goes to `questions`.
pub fn build_net(
    config: &NicConfig,
    taps: Vec<OwnedFd>,
    pairs: Option<u16>,
    questions: &Questions,
) -> Result<Shared, Error> {
    let links = taps.into_iter().map(Tap::new).collect::<Result<Vec<_>, _>>()?;
    let pairs = pairs.unwrap_or(u16::try_from(links.len()).unwrap_or(u16::MAX));
    let net = Net::with(config, (links, pairs), Box::new(Instant::now))?;
    Ok(Arc::new(Mutex::new(Net { questions: Some(questions.clone()), ..net })))
}

/// The number of pairs of a device that has so many queues; of one that has a number of queues that there is not, something near it.
#[must_use]
pub fn pairs_of_queues(queues: usize) -> u16 {
    u16::try_from(queues / spec::QUEUES_OF_PAIR).unwrap_or(u16::MAX).clamp(1, PAIRS_MAX)
}

/// The number of pairs of each network device of a guest with so many vCPUs that shall have several.
#[must_use]
pub fn pairs_for(vcpus: u8) -> u16 {
    u16::from(vcpus).clamp(1, PAIRS_MAX)
}

/// One network device.
pub struct Net<L> {
    ends: Ends<L>,
    pairs: Vec<Pair>,
    /// How many of the pairs the driver uses: one at least.
    used: usize,
    /// The pair that was looked at first, when all were the last time.
    first: usize,
    sender: Sender,
    command: Chain,
    passing: Passing,
    timer: TimerFd,
    timer_armed: bool,
    config: [u8; CONFIG_BYTES],
    queue_sizes: Vec<u16>,
    queue_events: Vec<EventFd>,
    active: Option<Activation>,
    /// The link's offloads are set by the event loop, the first time it runs after activation.
    offloads_due: bool,
    /// Where the guest's questions about names go; nobody hears them if absent.
    questions: Option<Questions>,
    /// Nothing is done: the guest stands still.
    held: bool,
    /// No packet goes either way: the guest does not know yet that it is another.
    closed: bool,
    /// Whether a guest that goes on shall see its link go down and up, so that it asks for its address.
    flap: Flap,
    /// The event loop looks at the queues all the time.
    is_awake: bool,
    /// When it began to pass what it passed since it was asked last.
    busy: Option<Instant>,
}

/// A pair of queues.
struct Pair {
    receiver: Receiver,
    sent: QueueCounts,
}

/// What every packet passes, whichever queue it is in.
struct Passing {
    endpoint: Option<Endpoints>,
    shaper: Shaper,
    /// The MAC address that the network has for the guest, and the one that the guest has for itself.
    identity: Identity,
}

/// Counts a packet of so many bytes with its header.
fn count(counts: &mut QueueCounts, packet_bytes: usize) {
    counts.packets += 1;
    counts.bytes += packet_bytes.saturating_sub(spec::HEADER_BYTES) as u64;
}

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Receive(usize),
    Transmit(usize),
    Control,
}

/// What a snapshot holds of a device with one pair: the guest's MAC address, and what its limits have counted.
type OwnState = ([u8; 6], Vec<BucketState>);
/// Of one with several: the same, then how many of them the driver uses. As bytes (postcard): six of the address; how many buckets, and
/// each (unit, direction, level), as numbers of seven bits a byte; the pairs in use likewise, 1 to 8 in one byte.
type OwnStateOfPairs = ([u8; 6], Vec<BucketState>, u16);

/// Bytes of the configuration space: mac @0, status u16 @6, max_virtqueue_pairs u16 @8, mtu u16 @10 (§5.1.4).
const CONFIG_BYTES: usize = 12;

fn config_space(mac: [u8; 6], pairs: u16, mtu: u16) -> [u8; CONFIG_BYTES] {
    let mut space = [0; CONFIG_BYTES];
    space[..6].copy_from_slice(&mac);
    space[6..8].copy_from_slice(&spec::S_LINK_UP.to_le_bytes());
    space[8..10].copy_from_slice(&pairs.to_le_bytes());
    space[10..].copy_from_slice(&mtu.to_le_bytes());
    space
}

impl<L: Link> Net<L> {
    /// A device with one pair on `link`; the configuration's tap number is not looked at.
    ///
    /// # Errors
    /// An MTU or a limit out of range, or the kernel gives no event descriptor.
    pub fn new(config: &NicConfig, link: L) -> Result<Self, Error> {
        Self::with(config, (vec![link], 1), Box::new(Instant::now))
    }

    /// The same with so many pairs, on a link with any number of ends, whose limits hold by `clock`.
    ///
    /// # Errors
    /// As [`Self::new`], or there is no end, or there are more pairs or ends than [`PAIRS_MAX`].
    pub fn with(config: &NicConfig, (links, pairs): (Vec<L>, u16), clock: Clock) -> Result<Self, Error> {
        let is_number = |count: usize| (1..=usize::from(PAIRS_MAX)).contains(&count);
        if let Some(value) = [links.len(), pairs.into()].into_iter().find(|count| !is_number(*count)) {
            return Err(Error::Config {
                what: "number of pairs of queues",
                value: value.to_string(),
                allowed: "1 to 8",
            });
        }
        if config.mtu < MTU_MIN {
            return Err(Error::Config {
                what: "MTU",
                value: config.mtu.to_string(),
                allowed: "68 to 65535 bytes",
            });
        }
        let endpoint =
            config.endpoint.clone().map(|endpoint| Endpoints::new(endpoint, config.mac, config.mtu));
        let count = spec::QUEUES_OF_PAIR * usize::from(pairs) + usize::from(pairs > 1);
        let pair = || Pair { receiver: Receiver::new(), sent: QueueCounts::default() };
        Ok(Self {
            ends: Ends::new(links),
            pairs: std::iter::repeat_with(pair).take(pairs.into()).collect(),
            used: 1,
            first: 0,
            sender: Sender::default(),
            command: Chain::new(),
            passing: Passing {
                endpoint,
                shaper: Shaper::new(&config.traffic, clock)?,
                identity: Identity::of(config.mac),
            },
            timer: TimerFd::new().map_err(|errno| Error::EventFd(errno.into()))?,
            timer_armed: false,
            config: config_space(config.mac, pairs, config.mtu),
            queue_sizes: vec![QUEUE_SIZE_MAX; count],
            queue_events: super::queue_event_fds(count)?,
            active: None,
            offloads_due: false,
            questions: None,
            held: false,
            closed: false,
            flap: Flap::None,
            is_awake: false,
            busy: None,
        })
    }

    /// How many pairs there are to a driver with these features.
    fn pairs_of(&self, features: u64) -> usize {
        if features & spec::F_MQ == 0 { 1 } else { self.pairs.len() }
    }

    /// How many there are to the driver, if it has started the device.
    fn active_pairs(&self) -> usize {
        self.active.as_ref().map_or(0, |active| self.pairs_of(active.features))
    }

    /// What queue `index` is for to a driver with these features; nothing if to that one there is no such queue.
    fn role(&self, index: usize, features: u64) -> Option<Role> {
        let pairs = self.pairs_of(features);
        let (pair, place) = (index / spec::QUEUES_OF_PAIR, index % spec::QUEUES_OF_PAIR);
        match (pair < pairs, place) {
            (true, spec::QUEUE_RX) => Some(Role::Receive(pair)),
            (true, _) => Some(Role::Transmit(pair)),
            (false, 0) if pair == pairs && features & spec::F_CTRL_VQ != 0 => Some(Role::Control),
            (false, _) => None,
        }
    }

    fn used_pairs(&self) -> u16 {
        u16::try_from(self.used).expect("invariant: at most PAIRS_MAX")
    }

    /// Takes up what waited, unless the guest stands still; what it may not have yet waits on.
    fn go_on(&mut self) {
        if self.held {
            return;
        }
        // Before a driver has started the device, there is nobody who could ask again.
        if !self.closed && self.active.is_some() && self.flap.begin() {
            self.set_link(false);
        }
        self.queue_events.iter().for_each(super::kick);
    }

    /// Tells the guest that its link went down or came up (§5.1.4.1, `status`).
    fn set_link(&mut self, up: bool) {
        let status = if up { spec::S_LINK_UP } else { 0 };
        self.config[6..8].copy_from_slice(&status.to_le_bytes());
        if let Some(active) = &self.active {
            active.interrupt.config_changed(&self.config);
        }
    }

    fn pass_questions(&mut self) {
        let Some(endpoint) = &mut self.passing.endpoint else { return };
        while let Some(question) = endpoint.next_question() {
            if let Some(questions) = &self.questions {
                questions.push(Question { mac: self.passing.identity.mac, ..question }, Instant::now());
            }
        }
    }
}

impl<L: Link> VirtioDevice for Net<L> {
    fn device_type(&self) -> u32 {
        device_type::NET
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    /// A driver sets up the pairs that it means to use.
    fn needs_queue(&self, index: usize, features: u64) -> bool {
        matches!(self.role(index, features), Some(Role::Receive(0) | Role::Transmit(0) | Role::Control))
    }

    fn queue_events(&self) -> &[EventFd] {
        &self.queue_events
    }

    fn features(&self) -> u64 {
        let checksums = spec::F_CSUM | spec::F_GUEST_CSUM;
        let segments = spec::F_GUEST_TSO4 | spec::F_GUEST_TSO6 | spec::F_HOST_TSO4 | spec::F_HOST_TSO6;
        let pairs = if self.pairs.len() > 1 { spec::F_MQ | spec::F_CTRL_VQ } else { 0 };
        checksums | segments | spec::F_MAC | spec::F_MTU | spec::F_STATUS | spec::F_MRG_RXBUF | pairs
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::read_config_bytes(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) {
        self.offloads_due = true;
        // More only of a state that no device has saved.
        self.used = self.used.min(self.pairs_of(activation.features));
        self.active = Some(activation);
    }

    fn reset(&mut self) {
        self.active = None;
        self.used = 1;
        self.pairs.iter_mut().for_each(|pair| pair.receiver.reset());
        self.passing.shaper.wake();
    }

    fn hold(&mut self, held: bool) {
        self.held = held;
        if held && let Some(active) = &mut self.active {
            // Where the device stands in a queue is where its driver would see it.
            let queues = active.queues.iter_mut().step_by(spec::QUEUES_OF_PAIR);
            self.pairs.iter_mut().zip(queues).for_each(|(pair, queue)| pair.receiver.let_go(queue));
        }
        self.go_on();
    }

    fn close(&mut self, closed: bool) {
        self.closed = closed;
        self.go_on();
    }

    fn take_busy(&mut self) -> Option<Instant> {
        self.busy.take()
    }

    /// The queues that the driver sends by: what comes to the others is for the link to bring.
    fn stay_awake(&mut self, awake: bool) {
        self.is_awake = awake;
        let pairs = self.active_pairs();
        if let Some(active) = &mut self.active {
            let queues = (0..pairs).map(|pair| spec::QUEUES_OF_PAIR * pair + spec::QUEUE_TX);
            active.watch(queues, (awake, self.held), &self.queue_events);
        }
    }

    fn look(&mut self, ops: &mut EventOps<'_>) {
        if !self.held && !self.closed {
            (0..self.active_pairs()).for_each(|pair| self.work(ops, Some(Role::Transmit(pair)), true));
        }
    }

    /// Packets that waited are dropped, as any network drops them. So is what the endpoint knows of the guest: leases are
    /// answered from the configuration, connections to the metadata are made anew, and questions are asked again.
    fn save(&self) -> DeviceState {
        let state = DeviceState::of(self.active.as_ref());
        let (mac, buckets) = (self.passing.identity.guest_mac, self.passing.shaper.save());
        if self.pairs.len() == 1 {
            let own: OwnState = (mac, buckets);
            return state.with(&own);
        }
        let own: OwnStateOfPairs = (mac, buckets, self.used_pairs());
        state.with(&own)
    }

    /// The guest has its MAC address in its memory and keeps it; the network sees the one that is given now.
    fn restore(&mut self, own: &[u8]) -> Result<(), StateError> {
        let (guest_mac, buckets, used) = if self.pairs.len() == 1 {
            let (mac, buckets): OwnState = decode(own)?;
            (mac, buckets, 1)
        } else {
            decode::<OwnStateOfPairs>(own)?
        };
        self.used = usize::from(used);
        if !(1..=self.pairs.len()).contains(&self.used) {
            return Err(StateError::Invalid("it uses none of its pairs of queues, or more than it has"));
        }
        self.passing.shaper.restore(&buckets);
        self.passing.identity.guest_mac = guest_mac;
        self.config[..6].copy_from_slice(&guest_mac);
        if let Some(endpoint) = &mut self.passing.endpoint {
            endpoint.know_guest(guest_mac, Instant::now());
        }
        self.flap = Flap::Due;
        Ok(())
    }

    /// It has its addresses, and its network knows where it is.
    fn continue_as_before(&mut self) {
        self.flap = Flap::None;
    }

    fn is_introducing(&self) -> bool {
        self.active.is_some() && (self.closed || !matches!(self.flap, Flap::None))
    }

    fn readdress(&mut self, mac: [u8; 6], addressing: &Addressing) -> bool {
        let Some(endpoint) = self.passing.endpoint.as_mut().filter(|_| self.passing.identity.mac == mac)
        else {
            return false;
        };
        endpoint.readdress(addressing.clone(), Instant::now());
        // What there is to say of it is fetched by the event loop.
        super::kick(&self.queue_events[spec::QUEUE_RX]);
        true
    }

    fn answer(&mut self, (mac, vlan): ([u8; 6], Option<u16>), number: u32, message: &[u8]) -> bool {
        let Some(endpoint) = self.passing.endpoint.as_mut().filter(|_| self.passing.identity.mac == mac)
        else {
            return false;
        };
        endpoint.answered(vlan, number, message, Instant::now());
        super::kick(&self.queue_events[spec::QUEUE_RX]);
        true
    }

    fn reshape(&mut self, mac: [u8; 6], traffic: &Traffic) -> Result<bool, Error> {
        if self.passing.identity.mac != mac {
            return Ok(false);
        }
        self.passing.shaper.change(traffic)?;
        // What waited may go now.
        self.queue_events.iter().for_each(super::kick);
        Ok(true)
    }

    fn pairs(&self) -> Option<NicStatus> {
        let status = |pair: &Pair| PairStatus { receive: pair.receiver.counts, transmit: pair.sent };
        Some(NicStatus {
            used: self.used_pairs(),
            pairs: self.pairs.iter().map(status).collect(),
            traffic: Some(self.passing.shaper.traffic()),
        })
    }
}

impl<L: Link> MutEventSubscriber for Net<L> {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        for event in &self.queue_events {
            super::watch(ops, event, EventSet::IN);
        }
        super::watch(ops, &self.timer, EventSet::IN);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let source = events.fd();
        if let Some(index) = self.queue_events.iter().position(|event| event.as_raw_fd() == source) {
            super::drain(&self.queue_events[index]);
            let features = self.active.as_ref().map_or(0, |active| active.features);
            let Some(role) = self.role(index, features) else { return };
            if let Role::Receive(pair) | Role::Transmit(pair) = role {
                // A link that failed is listened to again when the guest shows interest, never in a loop.
                let reader = pair % self.used;
                self.pairs[reader].receiver.link_failed = false;
            }
            self.work(ops, Some(role), false);
        } else if source == self.timer.as_raw_fd() {
            super::arm(&mut self.timer, None);
            if let Some(endpoint) = &mut self.passing.endpoint {
                endpoint.poll(Instant::now());
            }
            if self.flap.end() {
                self.set_link(true);
            }
            let transmit = self.passing.shaper.is_waiting(Direction::Write);
            self.passing.shaper.wake();
            self.work(ops, None, transmit);
        } else if let Some(end) = self.ends.find(source) {
            let (set, pair) = (events.event_set(), end % self.used);
            self.pairs[pair].receiver.link_failed |=
                set.intersects(EventSet::ERROR | EventSet::HANG_UP) && !set.contains(EventSet::IN);
            self.work(ops, Some(Role::Receive(pair)), false);
        }
    }
}
