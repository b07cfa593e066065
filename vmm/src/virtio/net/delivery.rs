//! Packets for the guest, put into the buffers that its driver offers.

use super::super::queue::{Chain, QueueError, VirtQueue};
use super::super::spec::net as spec;

/// What became of a packet for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delivery {
    Done,
    /// It fits no buffers that this driver could ever offer.
    Dropped,
    /// The driver has too few buffers available now.
    Starved,
}

/// Those of `chains` that a packet of so many bytes takes, with how many each has; one that has room for none may be among them.
pub(super) fn parts(chains: &[Chain], length: usize) -> impl Iterator<Item = (&Chain, u32)> {
    let mut left = length as u64;
    chains.iter().map_while(move |chain| {
        let part = left.min(chain.writable_bytes());
        let is_taken = left > 0;
        left -= part;
        // A packet is shorter than PACKET_BYTES_MAX.
        is_taken.then_some((chain, part as u32))
    })
}

/// Copies `packet` into the driver's buffers: into one, or into as many as it takes where they may be merged
/// (§5.1.6.4).
pub(super) fn deliver(
    queue: &mut VirtQueue,
    chains: &mut Vec<Chain>,
    packet: &mut [u8],
    mergeable: bool,
) -> Result<Delivery, QueueError> {
    let mut count = 0_u16;
    let mut room = 0_u64;
    while room < packet.len() as u64 {
        let full = count == queue.size() || (count == 1 && !mergeable);
        if full {
            queue.undo_pop(count);
            return Ok(Delivery::Dropped);
        }
        if chains.len() == usize::from(count) {
            chains.push(Chain::new());
        }
        let chain = &mut chains[usize::from(count)];
        if !queue.pop(chain)? {
            // Asked for while the index stands behind all that is available: the next buffer notifies.
            if queue.allow_notifications() {
                continue;
            }
            queue.undo_pop(count);
            return Ok(Delivery::Starved);
        }
        room += chain.writable_bytes();
        count += 1;
    }
    packet[spec::HEADER_NUM_BUFFERS..spec::HEADER_BYTES].copy_from_slice(&count.to_le_bytes());
    let chains = &chains[..usize::from(count)];
    let mut rest = &packet[..];
    for chain in chains {
        let written = chain.write_at(queue.memory(), 0, rest);
        rest = &rest[written..];
    }
    queue.push_used_together(parts(chains, packet.len()))?;
    Ok(Delivery::Done)
}
