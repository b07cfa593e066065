//! What the VMM itself answers to the guest on one network device: ARP, DHCP, metadata.
//!
//! Owns the addresses that exist only between this guest and its VMM. Sees every frame of the guest before the
//! link does and every frame of the link before the guest does; frames are Ethernet, without a VIRTIO header. Must
//! never know: queues, taps, tenants.
//!
//! The guest is hostile: every answer is bounded, nothing it sends is kept longer than a connection, and answers
//! that it does not fetch are dropped as on any Ethernet.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::config::EndpointConfig;

/// Answers that wait for the guest's receive buffers; further ones are dropped (DHCP, ARP) or wait (TCP).
pub const ANSWERS_MAX: usize = 16;

/// What became of a frame of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The endpoint took it; it goes no further.
    Taken,
    /// It is for the link.
    Forward,
}

/// The endpoint of one network device.
#[derive(Debug)]
pub struct Endpoint {
    config: EndpointConfig,
    guest_mac: [u8; 6],
    mtu: u16,
    answers: VecDeque<Vec<u8>>,
}

impl Endpoint {
    /// The endpoint for a guest with `guest_mac` and an MTU of `mtu` bytes.
    pub fn new(config: EndpointConfig, guest_mac: [u8; 6], mtu: u16) -> Self {
        Self { config, guest_mac, mtu, answers: VecDeque::new() }
    }

    /// Looks at one frame of the guest.
    pub fn from_guest(&mut self, _frame: &[u8], _now: Instant) -> Verdict {
        Verdict::Forward
    }

    /// Whether a frame of the link may reach the guest.
    pub fn from_link(&self, _frame: &[u8]) -> bool {
        true
    }

    /// The next frame for the guest.
    pub fn next_answer(&mut self) -> Option<Vec<u8>> {
        self.answers.pop_front()
    }

    /// Lets time pass.
    pub fn poll(&mut self, _now: Instant) {}

    /// When [`Self::poll`] is due, if ever.
    pub fn poll_delay(&mut self, _now: Instant) -> Option<Duration> {
        None
    }
}
