//! The network device (VIRTIO 1.3 §5.1): one receive and one transmit queue between a guest and a [`Link`].
//!
//! Every frame of the guest passes the [`Endpoints`] first, which may answer it into the receive queue; what the
//! endpoint does not take goes to the link. Packets are copied once, or of large ones whatever is looked at, so that the guest
//! cannot change a frame after it was looked at.
//!
//! When the guest has no receive buffers left, the link is not listened to any more: packets wait, and are
//! dropped, in the host's own queue. The same happens while a limit of what goes to the guest is used up; what comes from
//! the guest waits in its queue then, so no memory of ours holds it but one packet. Must never know: addresses, tenants, who is at the other end.

mod delivery;
mod direct;
mod frame;
mod identity;
mod receiving;
mod sending;
mod traffic;

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use super::limiter::{Clock, Direction};
use super::link::{Link, Tap};
use super::queue::Chain;
use super::spec::{device_type, net as spec};
use super::state::{DeviceState, StateError, decode};
use super::{Activation, Error, Shared, VirtioDevice};
use crate::config::{Addressing, NicConfig, Traffic};
use crate::endpoint::Endpoints;
use crate::questions::{Question, Questions};

use direct::{Pool, Vectors};
use identity::{Flap, Identity};
use traffic::Shaper;

/// Descriptors per queue: enough for a full window of segments between two runs of the event loop.
pub const QUEUE_SIZE_MAX: u16 = 256;
/// The largest packet with its header: the most an IP length field can say, and an Ethernet header with one tag.
pub const PACKET_BYTES_MAX: usize = spec::HEADER_BYTES + 18 + u16::MAX as usize;
/// The shortest packet worth forwarding: a header and an Ethernet header.
const PACKET_BYTES_MIN: usize = spec::HEADER_BYTES + 14;
/// Packets passed in one direction before the event loop serves its other devices.
pub const BATCH_PACKETS_MAX: u16 = 64;
/// The smallest MTU that IPv4 allows (RFC 791); also VIRTIO's.
pub const MTU_MIN: u16 = 68;

/// Makes the network device that `config` describes on an attached `tap`; what its guest asks about names goes to
/// `questions`.
pub fn build_net(config: &NicConfig, tap: OwnedFd, questions: &Questions) -> Result<Shared, Error> {
    let net = Net::new(config, Tap::new(tap)?)?;
    Ok(Arc::new(Mutex::new(Net { questions: Some(questions.clone()), ..net })))
}

/// One network device.
pub struct Net<L> {
    link: L,
    link_state: LinkState,
    /// The last attempt to receive failed.
    link_failed: bool,
    endpoint: Option<Endpoints>,
    timer: TimerFd,
    timer_armed: bool,
    config: [u8; CONFIG_BYTES],
    queue_events: Vec<EventFd>,
    active: Option<Activation>,
    /// The link's offloads are set by the event loop, the first time it runs after activation.
    offloads_due: bool,
    tx_chain: Chain,
    tx_packet: Vec<u8>,
    rx_chains: Vec<Chain>,
    rx_packet: Vec<u8>,
    /// Bytes of `rx_packet` that wait for buffers of the guest; 0 if none do.
    rx_waiting: usize,
    /// The last packet that was received was large: the next one may be as well.
    rx_is_large: bool,
    rx_pool: Pool,
    tx_vectors: Vectors,
    shaper: Shaper,
    /// Where the guest's questions about names go; nobody hears them if absent.
    questions: Option<Questions>,
    /// A packet of the link that limits keep waiting, and its bytes; 0 if none does.
    rx_held: (Vec<u8>, usize),
    /// Nothing goes either way: the guest is paused, or does not know yet that it is another.
    held: bool,
    /// The MAC address that the network has for the guest, and the one that the guest has for itself.
    identity: Identity,
    /// Whether a guest that goes on shall see its link go down and up, so that it asks for its address.
    flap: Flap,
}

/// Whether the event loop listens to the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LinkState {
    Ignored,
    Watched,
    /// The link failed; it is listened to again when the guest next shows interest, never in a loop.
    Failed,
}

/// Bytes of the configuration space: mac @0, status u16 @6, max_virtqueue_pairs u16 @8, mtu u16 @10 (§5.1.4).
const CONFIG_BYTES: usize = 12;

fn config_space(mac: [u8; 6], mtu: u16) -> [u8; CONFIG_BYTES] {
    let mut space = [0; CONFIG_BYTES];
    space[..6].copy_from_slice(&mac);
    space[6..8].copy_from_slice(&spec::S_LINK_UP.to_le_bytes());
    space[8..10].copy_from_slice(&1_u16.to_le_bytes());
    space[10..].copy_from_slice(&mtu.to_le_bytes());
    space
}

impl<L: Link> Net<L> {
    /// A device on `link`; the configuration's tap number is not looked at.
    ///
    /// # Errors
    /// An MTU or a limit out of range, or the kernel gives no event descriptor.
    pub fn new(config: &NicConfig, link: L) -> Result<Self, Error> {
        Self::with_clock(config, link, Box::new(Instant::now))
    }

    /// The same, whose limits hold by `clock`.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_clock(config: &NicConfig, link: L, clock: Clock) -> Result<Self, Error> {
        if config.mtu < MTU_MIN {
            return Err(Error::Config {
                what: "MTU",
                value: config.mtu.to_string(),
                allowed: "68 to 65535 bytes",
            });
        }
        let endpoint =
            config.endpoint.clone().map(|endpoint| Endpoints::new(endpoint, config.mac, config.mtu));
        Ok(Self {
            link,
            link_state: LinkState::Ignored,
            link_failed: false,
            endpoint,
            timer: TimerFd::new().map_err(|errno| Error::EventFd(errno.into()))?,
            timer_armed: false,
            config: config_space(config.mac, config.mtu),
            queue_events: super::queue_event_fds(2)?,
            active: None,
            offloads_due: false,
            tx_chain: Chain::new(),
            tx_packet: Vec::new(),
            rx_chains: Vec::new(),
            rx_packet: Vec::new(),
            rx_waiting: 0,
            rx_is_large: false,
            rx_pool: Pool::new(),
            tx_vectors: Vectors::default(),
            shaper: Shaper::new(&config.traffic, clock)?,
            questions: None,
            rx_held: (Vec::new(), 0),
            held: false,
            identity: Identity::of(config.mac),
            flap: Flap::None,
        })
    }

    /// Works off both directions and settles what to listen to.
    fn work(&mut self, ops: &mut EventOps<'_>, transmit: bool) {
        let Some(mut active) = self.active.take_if(|_| !self.held) else {
            self.watch_link(ops, false);
            return;
        };
        if std::mem::take(&mut self.offloads_due)
            && let Err(error) = self.link.set_offloads(active.features)
        {
            tracing::warn!(%error, "the tap takes no offloads; the guest's connections may stall");
        }
        let transmit = transmit && !self.shaper.is_waiting(Direction::Write);
        let sent = if transmit { self.transmit(&mut active) } else { Ok(()) };
        match sent.and_then(|()| self.receive(&mut active)) {
            Ok(starved) => {
                self.active = Some(active);
                if self.link_failed {
                    self.fail_link(ops)
                } else {
                    self.watch_link(ops, !starved && !self.shaper.is_waiting(Direction::Read))
                }
                self.pass_questions();
                let answers = self.endpoint.as_mut().and_then(|endpoint| endpoint.poll_delay(Instant::now()));
                let delay = answers.into_iter().chain(self.shaper.delay()).chain(self.flap.delay()).min();
                if delay.is_some() || self.timer_armed {
                    super::arm(&mut self.timer, delay);
                    self.timer_armed = delay.is_some();
                }
            }
            Err(error) => {
                super::broken(&active, device_type::NET, error);
                self.watch_link(ops, false);
            }
        }
    }

    /// Tells the guest that its link went down or came up (§5.1.4.1, `status`).
    fn set_link(&mut self, up: bool) {
        let status = if up { spec::S_LINK_UP } else { 0 };
        self.config[6..8].copy_from_slice(&status.to_le_bytes());
        if let Some(active) = &self.active {
            active.interrupt.config_changed();
        }
    }

    fn pass_questions(&mut self) {
        let Some(endpoint) = &mut self.endpoint else { return };
        while let Some(question) = endpoint.next_question() {
            if let Some(questions) = &self.questions {
                questions.push(Question { mac: self.identity.mac, ..question }, Instant::now());
            }
        }
    }

    fn watch_link(&mut self, ops: &mut EventOps<'_>, wanted: bool) {
        let changed = match (self.link_state, wanted) {
            (LinkState::Ignored, true) => {
                self.link_state = LinkState::Watched;
                ops.add(Events::new(&self.link, EventSet::IN))
            }
            (LinkState::Watched, false) => {
                self.link_state = LinkState::Ignored;
                ops.remove(Events::empty(&self.link))
            }
            _ => return,
        };
        if let Err(error) = changed {
            tracing::error!(%error, "a network device cannot change what it listens to");
        }
    }

    fn fail_link(&mut self, ops: &mut EventOps<'_>) {
        self.watch_link(ops, false);
        self.link_state = LinkState::Failed;
        tracing::debug!("a guest's network link failed");
    }
}

impl<L: Link> VirtioDevice for Net<L> {
    fn device_type(&self) -> u32 {
        device_type::NET
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE_MAX; 2]
    }

    fn queue_events(&self) -> &[EventFd] {
        &self.queue_events
    }

    fn features(&self) -> u64 {
        let checksums = spec::F_CSUM | spec::F_GUEST_CSUM;
        let segments = spec::F_GUEST_TSO4 | spec::F_GUEST_TSO6 | spec::F_HOST_TSO4 | spec::F_HOST_TSO6;
        checksums | segments | spec::F_MAC | spec::F_MTU | spec::F_STATUS | spec::F_MRG_RXBUF
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::read_config_bytes(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) {
        self.offloads_due = true;
        self.active = Some(activation);
    }

    fn reset(&mut self) {
        self.active = None;
        self.rx_pool.forget();
        self.rx_is_large = false;
        self.rx_waiting = 0;
        self.rx_held.1 = 0;
        self.shaper.wake();
    }

    fn hold(&mut self, held: bool) {
        self.held = held;
        if !held {
            // Before a driver has started the device, there is nobody who could ask again.
            if self.active.is_some() && self.flap.begin() {
                self.set_link(false);
            }
            self.queue_events.iter().for_each(super::kick);
        }
    }

    /// Packets that waited are dropped, as any network drops them. So is what the endpoint knows of the guest: leases are
    /// answered from the configuration, connections to the metadata are made anew, and questions are asked again.
    fn save(&self) -> DeviceState {
        DeviceState::of(self.active.as_ref()).with(&(self.identity.guest_mac, self.shaper.save()))
    }

    /// The guest has its MAC address in its memory and keeps it; the network sees the one that is given now.
    fn restore(&mut self, own: &[u8]) -> Result<(), StateError> {
        let (guest_mac, buckets): ([u8; 6], Vec<_>) = decode(own)?;
        self.shaper.restore(&buckets);
        self.identity.guest_mac = guest_mac;
        self.config[..6].copy_from_slice(&guest_mac);
        if let Some(endpoint) = &mut self.endpoint {
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
        self.active.is_some() && !matches!(self.flap, Flap::None)
    }

    fn readdress(&mut self, mac: [u8; 6], addressing: &Addressing) -> bool {
        let Some(endpoint) = self.endpoint.as_mut().filter(|_| self.identity.mac == mac) else {
            return false;
        };
        endpoint.readdress(addressing.clone(), Instant::now());
        // What there is to say of it is fetched by the event loop.
        super::kick(&self.queue_events[spec::QUEUE_RX]);
        true
    }

    fn answer(&mut self, (mac, vlan): ([u8; 6], Option<u16>), number: u32, message: &[u8]) -> bool {
        let Some(endpoint) = self.endpoint.as_mut().filter(|_| self.identity.mac == mac) else {
            return false;
        };
        endpoint.answered(vlan, number, message, Instant::now());
        super::kick(&self.queue_events[spec::QUEUE_RX]);
        true
    }

    fn reshape(&mut self, mac: [u8; 6], traffic: &Traffic) -> Result<bool, Error> {
        if self.identity.mac != mac {
            return Ok(false);
        }
        self.shaper.change(traffic)?;
        // What waited may go now.
        self.queue_events.iter().for_each(super::kick);
        Ok(true)
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
        let mut is_transmit = source == self.queue_events[spec::QUEUE_TX].as_raw_fd();
        if is_transmit || source == self.queue_events[spec::QUEUE_RX].as_raw_fd() {
            super::drain(&self.queue_events[if is_transmit { spec::QUEUE_TX } else { spec::QUEUE_RX }]);
            if self.link_state == LinkState::Failed {
                self.link_state = LinkState::Ignored;
                self.link_failed = false;
            }
        } else if source == self.timer.as_raw_fd() {
            super::arm(&mut self.timer, None);
            if let Some(endpoint) = &mut self.endpoint {
                endpoint.poll(Instant::now());
            }
            if self.flap.end() {
                self.set_link(true);
            }
            is_transmit = self.shaper.is_waiting(Direction::Write);
            self.shaper.wake();
        } else {
            let set = events.event_set();
            self.link_failed |=
                set.intersects(EventSet::ERROR | EventSet::HANG_UP) && !set.contains(EventSet::IN);
        }
        self.work(ops, is_transmit);
    }
}
