//! Split virtqueues as a device sees them (VIRTIO 1.3 §2.7), with every bound that keeps a driver honest.
//!
//! A [`Chain`] is handed out only when all of its descriptors were followed to the end, readable ones come before
//! writable ones, and every buffer lies in guest memory. Everything else is a [`QueueError`], after which the
//! device asks for a reset: there is no way to answer a chain that cannot be followed.

mod chain;
mod passed;
mod rings;
#[cfg(test)]
mod tests;

pub(super) use chain::for_each_piece;
pub use chain::{Chain, Segment};
pub use passed::Passed;
use rings::Rings;

use std::sync::Arc;

use super::state::QueuePosition;
use crate::memory::GuestMemory;

/// The most descriptors in one chain: what an indirect table of the largest queue here could need, and few
/// enough that a hostile chain costs microseconds.
pub const CHAIN_DESCRIPTORS_MAX: usize = 1024;

/// The most bytes that one chain may describe: two of the largest requests any device here takes.
pub const CHAIN_BYTES_MAX: u64 = 32 << 20;

/// Why a queue cannot be used any longer; the driver broke its side of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// The rings are misplaced, misaligned or of a wrong size.
    #[error("queue is not laid out in guest memory")]
    Layout,
    /// The driver made more chains available than the queue holds.
    #[error("available index runs ahead of the queue")]
    AvailableIndex,
    /// A chain loops, leaves its table, or starts outside of it.
    #[error("descriptor chain cannot be followed")]
    Chain,
    /// A chain has more than [`CHAIN_DESCRIPTORS_MAX`] descriptors.
    #[error("descriptor chain is too long")]
    ChainLength,
    /// A chain describes more than [`CHAIN_BYTES_MAX`] bytes, or what else a queue allows.
    #[error("descriptor chain describes too many bytes")]
    ChainBytes,
    /// A readable buffer follows a writable one.
    #[error("readable buffer after a writable one")]
    Direction,
    /// A buffer is not in guest memory.
    #[error("buffer outside guest memory")]
    Address,
    /// A request lacks the part into which its outcome would be written.
    #[error("request has no room for its outcome")]
    Outcome,
}

/// What to do after one chain of [`VirtQueue::work_off`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handled {
    /// Return the chain with so many bytes written.
    Used(u32),
    /// The same, and stop as if the bound was reached.
    Last(u32),
    /// Put the chain back and stop: there is nothing to answer it with yet.
    Later,
    /// The handler has taken the chain, and returns it with [`VirtQueue::push_used`] some time.
    Kept,
}

/// How [`VirtQueue::work_off`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Nothing is left; the driver notifies when there is, or somebody looks ([`VirtQueue::watch`]).
    Empty,
    /// The bound was reached: come back without being notified.
    More,
    /// The handler said [`Handled::Later`].
    Waiting,
}

/// Where a driver says that a queue lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QueueLayout {
    /// Descriptors, a power of two.
    pub size: u16,
    /// Guest address of the descriptor table, 16-byte aligned.
    pub descriptors: u64,
    /// Guest address of the available ring, 2-byte aligned.
    pub available: u64,
    /// Guest address of the used ring, 4-byte aligned.
    pub used: u64,
}

/// A queue whose rings were checked to lie in guest memory.
#[derive(Debug)]
pub struct VirtQueue {
    /// None where the driver has not set the queue up.
    rings: Option<Rings>,
    size: u16,
    memory: GuestMemory,
    /// The number, modulo 2^16, of the chain that is taken next.
    next_available: u16,
    /// How many chains the driver had made available when it was last looked.
    seen_available: u16,
    /// The number of the chain that is returned next.
    next_used: u16,
    /// Where the used ring stood when the driver was last asked whether it wants to hear.
    signalled: u16,
    chain_bytes_max: u64,
    /// Somebody looks whether chains are available: the driver need not notify.
    is_watched: bool,
    /// The driver was asked not to notify.
    is_suppressed: bool,
    passed: Arc<Passed>,
}

impl VirtQueue {
    /// Checks `layout` against `size_max` and guest memory.
    pub fn new(
        memory: GuestMemory,
        layout: QueueLayout,
        size_max: u16,
        event_idx: bool,
    ) -> Result<Self, QueueError> {
        let rings = Rings::find(&memory, layout, size_max, event_idx)?;
        Ok(Self { rings: Some(rings), ..Self::unused(memory, layout.size) })
    }

    /// A queue that the driver has not set up: nothing is ever in it.
    pub fn unused(memory: GuestMemory, size: u16) -> Self {
        Self {
            rings: None,
            size,
            memory,
            next_available: 0,
            seen_available: 0,
            next_used: 0,
            signalled: 0,
            chain_bytes_max: CHAIN_BYTES_MAX,
            is_watched: false,
            is_suppressed: false,
            passed: Arc::default(),
        }
    }

    /// Whether the driver has set it up.
    pub fn is_used(&self) -> bool {
        self.rings.is_some()
    }

    /// The same queue, whose traffic is counted there.
    #[must_use]
    pub fn counted_by(self, passed: Arc<Passed>) -> Self {
        Self { passed, ..self }
    }

    /// Lets chains describe so many bytes: for a device that reads and writes none of them.
    pub fn allow_chains_of(&mut self, bytes_max: u64) {
        self.chain_bytes_max = bytes_max;
    }

    /// The same queue, with a device that had come as far as `position` in it. As with what a driver writes, a position
    /// that cannot be is found out when the queue is worked off.
    #[must_use]
    pub fn resumed_at(mut self, position: QueuePosition) -> Self {
        self.next_available = position.next_available;
        self.seen_available = position.next_available;
        self.next_used = position.next_used;
        self.signalled = position.next_used;
        self
    }

    /// How far the device has come.
    pub fn position(&self) -> QueuePosition {
        QueuePosition { next_available: self.next_available, next_used: self.next_used }
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Descriptors in the queue.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Takes the next chain into `chain`; false if the driver has made none available.
    ///
    /// After an error the queue is unusable until a reset.
    pub fn pop(&mut self, chain: &mut Chain) -> Result<bool, QueueError> {
        let Some(rings) = &self.rings else { return Ok(false) };
        // Not looked at for each: the driver writes there meanwhile.
        if self.seen_available == self.next_available {
            self.seen_available = rings.available_index();
        }
        let waiting = self.seen_available.wrapping_sub(self.next_available);
        if waiting > self.size {
            return Err(QueueError::AvailableIndex);
        }
        if waiting == 0 {
            return Ok(false);
        }
        let head = rings.head(self.next_available);
        self.next_available = self.next_available.wrapping_add(1);
        chain.fill(rings, &self.memory, head, self.chain_bytes_max).map(|()| true)
    }

    /// Whether the driver has made a chain available.
    pub fn has_available(&self) -> bool {
        self.rings.as_ref().is_some_and(|rings| rings.available_index() != self.next_available)
    }

    /// Puts back the last `count` chains popped; none of them may have been given to [`Self::push_used`].
    pub fn undo_pop(&mut self, count: u16) {
        self.next_available = self.next_available.wrapping_sub(count);
    }

    /// Returns `chain` to the driver with `written` bytes in its writable part.
    pub fn push_used(&mut self, chain: &Chain, written: u32) -> Result<(), QueueError> {
        self.push_used_together([(chain, written)])
    }

    /// Returns chains that belong together: the driver sees none of them before it sees all. Linux drops a
    /// packet that spans several buffers where it does not find each.
    pub fn push_used_together<'a>(
        &mut self,
        chains: impl IntoIterator<Item = (&'a Chain, u32)>,
    ) -> Result<(), QueueError> {
        let Some(rings) = &self.rings else { return Err(QueueError::Chain) };
        for (chain, written) in chains {
            if chain.head() >= self.size {
                return Err(QueueError::Chain);
            }
            rings.write_used(self.next_used, chain.head(), written);
            self.passed.count(chain, written);
            self.next_used = self.next_used.wrapping_add(1);
        }
        rings.set_used_index(self.next_used);
        Ok(())
    }

    /// Whether the driver wants to hear of what was used since the last call.
    pub fn take_signal(&mut self) -> bool {
        let before = std::mem::replace(&mut self.signalled, self.next_used);
        let rings = self.rings.as_ref().filter(|_| self.next_used != before);
        rings.is_some_and(|rings| rings.wants_signal(before, self.next_used))
    }

    /// Asks the driver not to notify while the queue is being worked off.
    pub fn suppress_notifications(&mut self) {
        // Not written twice: the driver's processor has it in its cache, beside what it looks at.
        if !std::mem::replace(&mut self.is_suppressed, true)
            && let Some(rings) = &self.rings
        {
            rings.suppress_notifications();
        }
    }

    /// Asks the driver to notify again; true if chains became available meanwhile.
    pub fn allow_notifications(&mut self) -> bool {
        self.is_suppressed = false;
        let Some(rings) = &self.rings else { return false };
        self.seen_available = rings.allow_notifications(self.next_available);
        self.seen_available != self.next_available
    }

    /// Says whether from now on somebody looks with [`Self::has_available`] until this is called again, so that
    /// [`Self::work_off`] leaves the driver's notifications suppressed. Whoever stops looking allows them.
    pub fn watch(&mut self, watched: bool) {
        self.is_watched = watched;
    }

    /// Hands at most `chains_max` chains to `handle`, with the driver's notifications suppressed meanwhile.
    ///
    /// The bound keeps one busy queue from starving the event loop's other devices.
    pub fn work_off(
        &mut self,
        chain: &mut Chain,
        chains_max: u16,
        mut handle: impl FnMut(&GuestMemory, &mut Chain) -> Result<Handled, QueueError>,
    ) -> Result<Progress, QueueError> {
        let mut left = chains_max;
        loop {
            self.suppress_notifications();
            while left > 0 && self.pop(chain)? {
                match handle(&self.memory, chain)? {
                    Handled::Used(written) => self.push_used(chain, written)?,
                    Handled::Last(written) => {
                        self.push_used(chain, written)?;
                        return Ok(Progress::More);
                    }
                    Handled::Kept => {}
                    Handled::Later => {
                        self.undo_pop(1);
                        return Ok(Progress::Waiting);
                    }
                }
                left -= 1;
            }
            if left == 0 {
                return Ok(Progress::More);
            }
            if self.is_watched || !self.allow_notifications() {
                return Ok(Progress::Empty);
            }
        }
    }
}
