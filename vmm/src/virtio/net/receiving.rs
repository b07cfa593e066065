//! What goes to the guest: the endpoint's answers, and what the link brings, of which large packets come into the guest's own buffers.
//!
//! Must never know: what the guest sends.

use std::io::ErrorKind;
use std::time::Instant;

use super::super::Activation;
use super::super::limiter::Direction;
use super::super::link::Link;
use super::super::queue::{QueueError, VirtQueue};
use super::super::spec::net as spec;
use super::delivery::{Delivery, deliver};
use super::direct::{self, HEAD_BYTES, Received};
use super::{BATCH_PACKETS_MAX, Net, PACKET_BYTES_MAX, PACKET_BYTES_MIN};
use crate::endpoint::packet;

impl<L: Link> Net<L> {
    /// Host (and endpoint) to guest; true if the guest lacks buffers.
    pub(super) fn receive(&mut self, active: &mut Activation) -> Result<bool, QueueError> {
        let Activation { queues, features, .. } = &mut *active;
        let Some(queue) = queues.get_mut(spec::QUEUE_RX) else { return Ok(false) };
        let mergeable = *features & spec::F_MRG_RXBUF != 0;
        queue.suppress_notifications()?;
        let mut starved = false;
        let mut left = BATCH_PACKETS_MAX;
        loop {
            while left > 0 && mergeable && self.wants_large() && self.receive_large(queue)? {
                left -= 1;
            }
            self.rx_pool.put_back(queue);
            if left == 0 || starved || (self.rx_waiting == 0 && !self.next_packet()) {
                break;
            }
            left -= 1;
            self.rx_is_large = self.rx_waiting >= direct::LARGE_BYTES_MIN;
            let packet = &mut self.rx_packet[..self.rx_waiting];
            match deliver(queue, &mut self.rx_chains, packet, mergeable)? {
                Delivery::Done | Delivery::Dropped => self.rx_waiting = 0,
                Delivery::Starved => starved = true,
            }
        }
        active.signal(spec::QUEUE_RX)?;
        if left == 0 {
            super::super::kick(&self.queue_events[spec::QUEUE_RX]);
        }
        Ok(starved)
    }

    /// Whether the next packet is one of the link's that may go without a copy.
    fn wants_large(&self) -> bool {
        self.rx_is_large
            && self.rx_waiting == 0
            && self.rx_held.1 == 0
            && !self.link_failed
            && self.shaper.is_unlimited()
            && self.endpoint.as_ref().is_none_or(|endpoint| !endpoint.may_answer())
    }

    /// Receives one packet into the guest's buffers; false if that is over. One that has to be looked at as a whole is in
    /// `rx_packet` then.
    fn receive_large(&mut self, queue: &mut VirtQueue) -> Result<bool, QueueError> {
        let length = match self.rx_pool.receive(&mut self.link, queue)? {
            Received::Packet(length) => length,
            Received::Nothing => return Ok(false),
            Received::Unfit => {
                self.rx_is_large = false;
                return Ok(false);
            }
            Received::Failed => {
                self.link_failed = true;
                return Ok(false);
            }
        };
        self.rx_is_large = length >= direct::LARGE_BYTES_MIN;
        if length < PACKET_BYTES_MIN {
            return Ok(true);
        }
        let head = &mut self.rx_pool.head[spec::HEADER_BYTES..length.min(HEAD_BYTES)];
        // An endpoint has nothing against TCP.
        if packet::tcp_destination(head).is_some() {
            self.identity.to_guest(head);
            self.rx_pool.deliver(queue, length)?;
            return Ok(true);
        }
        self.rx_packet.resize(PACKET_BYTES_MAX, 0);
        self.rx_pool.copy(queue.memory(), &mut self.rx_packet[..length]);
        let frame = &mut self.rx_packet[spec::HEADER_BYTES..length];
        self.identity.to_guest(frame);
        if self.endpoint.as_mut().is_none_or(|endpoint| endpoint.from_link(frame)) {
            self.rx_waiting = length;
            return Ok(false);
        }
        Ok(true)
    }

    /// Puts the next packet for the guest into `rx_packet`; false if there is none.
    fn next_packet(&mut self) -> bool {
        if self.rx_packet.is_empty() {
            // Not `resize`: fresh zero pages cost no memory before a large packet comes.
            self.rx_packet = vec![0; PACKET_BYTES_MAX];
        }
        if let Some(frame) = self.endpoint.as_mut().and_then(|endpoint| endpoint.next_answer(Instant::now()))
        {
            let end = (spec::HEADER_BYTES + frame.len()).min(PACKET_BYTES_MAX);
            self.rx_packet[..spec::HEADER_BYTES].fill(0);
            self.rx_packet[spec::HEADER_BYTES..end].copy_from_slice(&frame[..end - spec::HEADER_BYTES]);
            self.rx_waiting = end;
            return true;
        }
        if self.shaper.is_waiting(Direction::Read) {
            return false;
        }
        if self.rx_held.1 > 0 {
            if !self.shaper.admit(Direction::Read, &self.rx_held.0[..self.rx_held.1]) {
                return false;
            }
            self.rx_waiting = std::mem::take(&mut self.rx_held.1);
            std::mem::swap(&mut self.rx_packet, &mut self.rx_held.0);
            return true;
        }
        // Bounded, since packets that are not for the guest cost as much as others.
        for _ in 0..BATCH_PACKETS_MAX {
            if self.link_failed {
                break;
            }
            match self.link.receive(&mut self.rx_packet) {
                Ok(0) => self.link_failed = true,
                Ok(length) if length < PACKET_BYTES_MIN => {}
                Ok(length) => {
                    let frame = &mut self.rx_packet[spec::HEADER_BYTES..length];
                    self.identity.to_guest(frame);
                    if self.endpoint.as_mut().is_some_and(|endpoint| !endpoint.from_link(frame)) {
                        continue;
                    }
                    if !self.shaper.admit(Direction::Read, &self.rx_packet[..length]) {
                        // What the endpoint answers meanwhile needs the other buffer.
                        self.rx_held.1 = length;
                        std::mem::swap(&mut self.rx_packet, &mut self.rx_held.0);
                        break;
                    }
                    self.rx_waiting = length;
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
