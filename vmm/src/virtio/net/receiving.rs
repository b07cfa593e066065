//! What goes to the guest: the endpoint's answers, and what the link brings, of which large packets come into the guest's own buffers.
//!
//! Must never know: what the guest sends.

use std::io::ErrorKind;
use std::time::Instant;

use super::super::limiter::Direction;
use super::super::link::Link;
use super::super::queue::{Chain, QueueError, VirtQueue};
use super::super::spec::net as spec;
use super::delivery::{Delivery, deliver};
use super::direct::{self, HEAD_BYTES, Pool, Received};
use super::{BATCH_BYTES_MAX, BATCH_PACKETS_MAX, PACKET_BYTES_MAX, PACKET_BYTES_MIN, Passing, count};
use crate::endpoint::packet;
use crate::rpc::QueueCounts;

/// A stream has small packets among its large ones, such as the end of what somebody wrote. After so many in a row none is expected.
const SINCE_LARGE_MAX: u8 = 16;

/// What a pair receives with.
pub(super) struct Receiver {
    chains: Vec<Chain>,
    packet: Vec<u8>,
    /// Bytes of `packet` that wait for buffers of the guest; 0 if none do.
    waiting: usize,
    /// How many packets came since a large one.
    since_large: u8,
    pool: Pool,
    /// A packet of the link that limits keep waiting, and its bytes; 0 if none does.
    held: (Vec<u8>, usize),
    /// The last attempt to receive failed.
    pub(super) link_failed: bool,
    pub(super) counts: QueueCounts,
}

/// How far a pair came with receiving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reached {
    /// Nothing is left.
    Empty,
    /// The bound was reached: come back without being notified.
    More,
    /// The guest lacks buffers.
    Starved,
}

/// What came of receiving a packet into the guest's buffers.
enum Large {
    /// One was received.
    Passed,
    /// None waits.
    Nothing,
    /// It cannot go on like this; one that has to be looked at as a whole is in `Receiver::packet`.
    Over,
}

impl Receiver {
    pub(super) fn new() -> Self {
        Self {
            chains: Vec::new(),
            packet: Vec::new(),
            waiting: 0,
            since_large: SINCE_LARGE_MAX,
            pool: Pool::new(),
            held: (Vec::new(), 0),
            link_failed: false,
            counts: QueueCounts::default(),
        }
    }

    /// Forgets what it had for a queue that is none any more.
    pub(super) fn reset(&mut self) {
        self.pool.forget();
        self.since_large = SINCE_LARGE_MAX;
        self.waiting = 0;
        self.held.1 = 0;
    }

    /// Loses what waits: the driver does not use the queue any more.
    pub(super) fn lose_waiting(&mut self) {
        let waited = [&mut self.waiting, &mut self.held.1].map(std::mem::take);
        self.counts.drops += waited.iter().filter(|bytes| **bytes > 0).count() as u64;
    }

    /// Host (and endpoint) to guest.
    pub(super) fn receive(
        &mut self,
        link: &mut impl Link,
        passing: &mut Passing,
        queue: &mut VirtQueue,
        features: u64,
    ) -> Result<Reached, QueueError> {
        let mergeable = features & spec::F_MRG_RXBUF != 0;
        queue.suppress_notifications();
        let mut starved = false;
        let (mut left, bytes) = (BATCH_PACKETS_MAX, self.counts.bytes + BATCH_BYTES_MAX as u64);
        loop {
            while left > 0 && mergeable && self.wants_large(passing) {
                match self.receive_large(link, passing, queue)? {
                    Large::Passed => left -= 1,
                    Large::Nothing => return Ok(Reached::Empty),
                    Large::Over => break,
                }
                if self.counts.bytes >= bytes {
                    return Ok(Reached::More);
                }
            }
            self.pool.put_back(queue);
            if left == 0 || starved || (self.waiting == 0 && !self.next_packet(link, passing)) {
                break;
            }
            left -= 1;
            self.came(self.waiting);
            let packet = &mut self.packet[..self.waiting];
            match deliver(queue, &mut self.chains, packet, mergeable)? {
                Delivery::Done => {
                    count(&mut self.counts, self.waiting);
                    self.waiting = 0;
                }
                Delivery::Dropped => {
                    self.counts.drops += 1;
                    self.waiting = 0;
                }
                Delivery::Starved => starved = true,
            }
        }
        Ok(match (starved, left) {
            (true, _) => Reached::Starved,
            (false, 0) => Reached::More,
            (false, _) => Reached::Empty,
        })
    }

    /// A packet of so many bytes came.
    fn came(&mut self, length: usize) {
        let is_large = length >= direct::LARGE_BYTES_MIN;
        self.since_large = if is_large { 0 } else { self.since_large.saturating_add(1) };
    }

    /// Whether the next packet is one of the link's that may go without a copy.
    fn wants_large(&self, passing: &Passing) -> bool {
        self.since_large < SINCE_LARGE_MAX
            && self.waiting == 0
            && self.held.1 == 0
            && !self.link_failed
            && passing.shaper.is_unlimited()
            && passing.endpoint.as_ref().is_none_or(|endpoint| !endpoint.may_answer())
    }

    /// Receives one packet into the guest's buffers.
    fn receive_large(
        &mut self,
        link: &mut impl Link,
        passing: &mut Passing,
        queue: &mut VirtQueue,
    ) -> Result<Large, QueueError> {
        let length = match self.pool.receive(link, queue)? {
            Received::Packet(length) => length,
            Received::Nothing => return Ok(Large::Nothing),
            Received::Unfit => {
                self.since_large = SINCE_LARGE_MAX;
                return Ok(Large::Over);
            }
            Received::Failed => {
                self.link_failed = true;
                return Ok(Large::Over);
            }
        };
        self.came(length);
        if length < PACKET_BYTES_MIN {
            return Ok(Large::Passed);
        }
        let head = &mut self.pool.head[spec::HEADER_BYTES..length.min(HEAD_BYTES)];
        // An endpoint has nothing against TCP.
        if packet::tcp_destination(head).is_some() {
            passing.identity.to_guest(head);
            self.pool.deliver(queue, length)?;
            count(&mut self.counts, length);
            return Ok(Large::Passed);
        }
        self.packet.resize(PACKET_BYTES_MAX, 0);
        self.pool.copy(queue.memory(), &mut self.packet[..length]);
        let frame = &mut self.packet[spec::HEADER_BYTES..length];
        passing.identity.to_guest(frame);
        if passing.endpoint.as_mut().is_none_or(|endpoint| endpoint.from_link(frame)) {
            self.waiting = length;
            return Ok(Large::Over);
        }
        Ok(Large::Passed)
    }

    /// Gives back the buffers that it keeps for the next packet: somebody else may go on with the queue.
    pub(super) fn let_go(&mut self, queue: &mut VirtQueue) {
        self.pool.put_back(queue);
    }

    /// Puts the next packet for the guest into `packet`; false if there is none.
    fn next_packet(&mut self, link: &mut impl Link, passing: &mut Passing) -> bool {
        if self.packet.is_empty() {
            // Not `resize`: fresh zero pages cost no memory before a large packet comes.
            self.packet = vec![0; PACKET_BYTES_MAX];
        }
        if let Some(frame) =
            passing.endpoint.as_mut().and_then(|endpoint| endpoint.next_answer(Instant::now()))
        {
            let end = (spec::HEADER_BYTES + frame.len()).min(PACKET_BYTES_MAX);
            self.packet[..spec::HEADER_BYTES].fill(0);
            self.packet[spec::HEADER_BYTES..end].copy_from_slice(&frame[..end - spec::HEADER_BYTES]);
            self.waiting = end;
            return true;
        }
        if passing.shaper.is_waiting(Direction::Read) {
            return false;
        }
        if self.held.1 > 0 {
            if !passing.shaper.admit(Direction::Read, &self.held.0[..self.held.1]) {
                return false;
            }
            self.waiting = std::mem::take(&mut self.held.1);
            std::mem::swap(&mut self.packet, &mut self.held.0);
            return true;
        }
        // Bounded, since packets that are not for the guest cost as much as others.
        for _ in 0..BATCH_PACKETS_MAX {
            if self.link_failed {
                break;
            }
            match link.receive(&mut self.packet) {
                Ok(0) => self.link_failed = true,
                Ok(length) if length < PACKET_BYTES_MIN => {}
                Ok(length) => {
                    let frame = &mut self.packet[spec::HEADER_BYTES..length];
                    passing.identity.to_guest(frame);
                    if passing.endpoint.as_mut().is_some_and(|endpoint| !endpoint.from_link(frame)) {
                        continue;
                    }
                    if !passing.shaper.admit(Direction::Read, &self.packet[..length]) {
                        // What the endpoint answers meanwhile needs the other buffer.
                        self.held.1 = length;
                        std::mem::swap(&mut self.packet, &mut self.held.0);
                        break;
                    }
                    self.waiting = length;
                    return true;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.link_failed = true,
            }
        }
        false
    }
}
