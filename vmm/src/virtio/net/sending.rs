//! What the guest sends: to the endpoint, which may answer it, or to the link.
//!
//! Must never know: what goes to the guest.

use std::time::Instant;

use super::super::limiter::Direction;
use super::super::link::Link;
use super::super::queue::{Chain, Handled, Progress, QueueError, VirtQueue};
use super::super::spec::net as spec;
use super::direct::{self, HEAD_BYTES, Vectors};
use super::identity::Identity;
use super::traffic::Shaper;
use super::{BATCH_BYTES_MAX, BATCH_PACKETS_MAX, PACKET_BYTES_MAX, PACKET_BYTES_MIN, Passing, count};
use crate::endpoint::{Endpoints, Verdict, packet};
use crate::memory::GuestMemory;
use crate::rpc::QueueCounts;

/// What a device sends with, whichever of its pairs does.
#[derive(Default)]
pub(super) struct Sender {
    chain: Chain,
    packet: Vec<u8>,
    vectors: Vectors,
}

impl Sender {
    /// Guest to host.
    pub(super) fn transmit(
        &mut self,
        link: &mut impl Link,
        passing: &mut Passing,
        queue: &mut VirtQueue,
        (features, counts): (u64, &mut QueueCounts),
    ) -> Result<Progress, QueueError> {
        let Self { chain, packet: tx_packet, vectors: tx_vectors } = self;
        let Passing { endpoint, shaper, identity } = passing;
        let now = Instant::now();
        let mut bytes = 0;
        queue.work_off(chain, BATCH_PACKETS_MAX, |memory, chain| {
            let length = usize::try_from(chain.readable_bytes()).unwrap_or(usize::MAX);
            if !(PACKET_BYTES_MIN..=PACKET_BYTES_MAX).contains(&length) {
                counts.drops += 1;
                return Ok(Handled::Used(0));
            }
            let passed = if let Some(mut head) = head_of_large(memory, chain, length, endpoint.as_ref()) {
                if !shaper.admit_of(Direction::Write, &head, length) {
                    return Ok(Handled::Later);
                }
                is_acceptable(&head, features) && {
                    shaper.mark(&mut head[spec::HEADER_BYTES..]);
                    identity.to_link(&mut head[spec::HEADER_BYTES..]);
                    has_gone(tx_vectors.send(link, memory, chain, &head, length))
                }
            } else {
                if tx_packet.len() < length {
                    tx_packet.resize(length, 0);
                }
                let packet = &mut tx_packet[..length];
                chain.read_at(memory, 0, packet);
                if !shaper.admit(Direction::Write, packet) {
                    return Ok(Handled::Later);
                }
                forward((link, shaper, identity), endpoint.as_mut(), features, packet, now)
            };
            if passed {
                count(counts, length);
            } else {
                counts.drops += 1;
            }
            bytes += length;
            Ok(if bytes < BATCH_BYTES_MAX { Handled::Used(0) } else { Handled::Last(0) })
        })
    }
}

/// The first bytes of a packet that goes without a copy of the rest: a large one, of which nobody here has to see more.
fn head_of_large(
    memory: &GuestMemory,
    chain: &Chain,
    length: usize,
    endpoint: Option<&Endpoints>,
) -> Option<[u8; HEAD_BYTES]> {
    if length < direct::LARGE_BYTES_MIN {
        return None;
    }
    let mut head = [0; HEAD_BYTES];
    if chain.read_at(memory, 0, &mut head) != HEAD_BYTES {
        return None;
    }
    let frame = &head[spec::HEADER_BYTES..];
    let goes_by = match endpoint {
        Some(endpoint) => endpoint.lets_by(frame),
        None => packet::tcp_destination(frame).is_some(),
    };
    goes_by.then_some(head)
}

/// Whether a packet asks for nothing that the driver did not say it would.
fn is_acceptable(packet: &[u8], features: u64) -> bool {
    let accepted = match packet[spec::HEADER_GSO_TYPE] {
        spec::GSO_NONE => true,
        spec::GSO_TCPV4 => features & spec::F_HOST_TSO4 != 0,
        spec::GSO_TCPV6 => features & spec::F_HOST_TSO6 != 0,
        _ => false,
    };
    accepted && (packet[0] & spec::HDR_F_NEEDS_CSUM == 0 || features & spec::F_CSUM != 0)
}

/// Gives one packet of the guest to the endpoint, or to the link; whether it went.
fn forward(
    (link, shaper, identity): (&mut impl Link, &Shaper, &Identity),
    endpoint: Option<&mut Endpoints>,
    features: u64,
    packet: &mut [u8],
    now: Instant,
) -> bool {
    if !is_acceptable(packet, features) {
        return false;
    }
    let frame = &mut packet[spec::HEADER_BYTES..];
    if endpoint.is_some_and(|endpoint| endpoint.from_guest(frame, now) == Verdict::Taken) {
        return true;
    }
    shaper.mark(&mut packet[spec::HEADER_BYTES..]);
    identity.to_link(&mut packet[spec::HEADER_BYTES..]);
    has_gone(link.send(packet))
}

/// As on any Ethernet: what cannot be sent now, or was malformed, is lost.
fn has_gone(sent: std::io::Result<()>) -> bool {
    sent.inspect_err(|error| tracing::trace!(%error, "a guest's packet was dropped")).is_ok()
}
