//! Split virtqueues as a device sees them (VIRTIO 1.3 §2.7), with every bound that keeps a driver honest.
//!
//! A [`Chain`] is handed out only when all of its descriptors were followed to the end, readable ones come before
//! writable ones, and every buffer lies in guest memory. Everything else is a [`QueueError`], after which the
//! device asks for a reset: there is no way to answer a chain that cannot be followed.

use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory as _, Permissions};

use super::spec::ring;
use super::state::QueuePosition;
use crate::memory::{GuestMemory, whole_slice};

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

/// A piece of guest memory that was checked to be in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where it starts.
    pub address: GuestAddress,
    /// How many bytes; may be zero.
    pub length: u32,
}

/// One request: buffers to read, then buffers to write. Reused between requests to save allocations.
#[derive(Debug, Default)]
pub struct Chain {
    head: u16,
    readable: Vec<Segment>,
    writable: Vec<Segment>,
}

/// Bytes in a list of segments.
fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.length)).sum()
}

impl Chain {
    /// An empty chain to fill.
    pub fn new() -> Self {
        Self::default()
    }

    /// The buffers that the device may write.
    pub fn writable(&self) -> &[Segment] {
        &self.writable
    }

    /// The buffers that the device may read.
    pub fn readable(&self) -> &[Segment] {
        &self.readable
    }

    /// Bytes that the device may read.
    pub fn readable_bytes(&self) -> u64 {
        total(&self.readable)
    }

    /// Bytes that the device may write.
    pub fn writable_bytes(&self) -> u64 {
        total(&self.writable)
    }

    /// Copies from the readable part at `offset` until `data` is full or the part ends; returns the bytes copied.
    pub fn read_at(&self, memory: &GuestMemory, offset: u64, data: &mut [u8]) -> usize {
        let mut done = 0;
        for_each_piece(&self.readable, offset, data.len(), |address, range| {
            let copied = memory.read_slice(&mut data[range.clone()], address).is_ok();
            done += if copied { range.len() } else { 0 };
            copied
        });
        done
    }

    /// Copies what was written into the writable part from its beginning on, until `data` is full or the part ends.
    pub fn read_written_at(&self, memory: &GuestMemory, data: &mut [u8]) {
        for_each_piece(&self.writable, 0, data.len(), |address, range| {
            memory.read_slice(&mut data[range], address).is_ok()
        });
    }

    /// Copies `data` into the writable part at `offset` until `data` or the part ends; returns the bytes copied.
    pub fn write_at(&self, memory: &GuestMemory, offset: u64, data: &[u8]) -> usize {
        let mut done = 0;
        for_each_piece(&self.writable, offset, data.len(), |address, range| {
            let copied = memory.write_slice(&data[range.clone()], address).is_ok();
            done += if copied { range.len() } else { 0 };
            copied
        });
        done
    }

    fn fill(
        &mut self,
        chain: virtio_queue::DescriptorChain<&GuestMemory>,
        bytes_max: u64,
    ) -> Result<(), QueueError> {
        self.head = chain.head_index();
        self.readable.clear();
        self.writable.clear();
        let memory = chain.memory();
        let mut open = true;
        let mut bytes = 0_u64;
        for descriptor in chain.clone() {
            if self.readable.len() + self.writable.len() == CHAIN_DESCRIPTORS_MAX {
                return Err(QueueError::ChainLength);
            }
            bytes += u64::from(descriptor.len());
            if bytes > bytes_max {
                return Err(QueueError::ChainBytes);
            }
            let segment = Segment { address: descriptor.addr(), length: descriptor.len() };
            let access = if descriptor.is_write_only() { Permissions::Write } else { Permissions::Read };
            let length = segment.length as usize;
            // As nearly all do.
            let is_whole = whole_slice(memory, segment.address, length).is_some();
            if !is_whole && !memory.check_range(segment.address, length, access) {
                return Err(QueueError::Address);
            }
            match (descriptor.is_write_only(), self.writable.is_empty()) {
                (true, _) => self.writable.push(segment),
                (false, true) => self.readable.push(segment),
                (false, false) => return Err(QueueError::Direction),
            }
            open = descriptor.has_next();
        }
        // The iterator ends silently where it cannot go on; a chain that ended well ends without `NEXT`.
        if open { Err(QueueError::Chain) } else { Ok(()) }
    }
}

/// Calls `visit` with the guest address and the range of the caller's buffer for each piece of `segments` that
/// `length` bytes from `offset` touch, until it returns false.
pub(super) fn for_each_piece(
    segments: &[Segment],
    offset: u64,
    length: usize,
    mut visit: impl FnMut(GuestAddress, std::ops::Range<usize>) -> bool,
) {
    let mut skip = offset;
    let mut done = 0_usize;
    for segment in segments {
        let segment_length = u64::from(segment.length);
        if skip >= segment_length {
            skip -= segment_length;
            continue;
        }
        let room = usize::try_from(segment_length - skip).unwrap_or(usize::MAX);
        let piece = room.min(length - done);
        if piece == 0 {
            return;
        }
        // The segment was checked to lie in memory, so the sum cannot overflow.
        let address = GuestAddress(segment.address.0.wrapping_add(skip));
        if !visit(address, done..done + piece) {
            return;
        }
        skip = 0;
        done += piece;
    }
}

/// A queue whose rings were checked to lie in guest memory.
#[derive(Debug)]
pub struct VirtQueue {
    queue: Queue,
    memory: GuestMemory,
    /// Where the used ring stood when the driver was last asked whether it wants to hear.
    signalled: u16,
    chain_bytes_max: u64,
    /// Somebody looks whether chains are available: the driver need not notify.
    is_watched: bool,
    /// The driver was asked not to notify.
    is_suppressed: bool,
}

impl VirtQueue {
    /// Checks `layout` against `size_max` and guest memory.
    pub fn new(
        memory: GuestMemory,
        layout: QueueLayout,
        size_max: u16,
        event_idx: bool,
    ) -> Result<Self, QueueError> {
        let mut queue = Queue::new(size_max).map_err(|_| QueueError::Layout)?;
        queue
            .try_set_size(layout.size)
            .and_then(|()| queue.try_set_desc_table_address(GuestAddress(layout.descriptors)))
            .and_then(|()| queue.try_set_avail_ring_address(GuestAddress(layout.available)))
            .and_then(|()| queue.try_set_used_ring_address(GuestAddress(layout.used)))
            .map_err(|_| QueueError::Layout)?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        // `available == 0` means "unset" to virtio-queue; no driver puts a ring over the first page's vectors.
        if layout.available == 0 || !queue.is_valid(&memory) {
            return Err(QueueError::Layout);
        }
        Ok(Self::of(queue, memory))
    }

    /// A queue that the driver has not set up: nothing is ever in it.
    pub fn unused(memory: GuestMemory, size_max: u16) -> Result<Self, QueueError> {
        let queue = Queue::new(size_max).map_err(|_| QueueError::Layout)?;
        Ok(Self::of(queue, memory))
    }

    fn of(queue: Queue, memory: GuestMemory) -> Self {
        Self {
            queue,
            memory,
            signalled: 0,
            chain_bytes_max: CHAIN_BYTES_MAX,
            is_watched: false,
            is_suppressed: false,
        }
    }

    /// Whether the driver has set it up.
    pub fn is_used(&self) -> bool {
        self.queue.ready()
    }

    /// Lets chains describe so many bytes: for a device that reads and writes none of them.
    pub fn allow_chains_of(&mut self, bytes_max: u64) {
        self.chain_bytes_max = bytes_max;
    }

    /// The same queue, with a device that had come as far as `position` in it. As with what a driver writes, a position
    /// that cannot be is found out when the queue is worked off.
    #[must_use]
    pub fn resumed_at(mut self, position: QueuePosition) -> Self {
        self.queue.set_next_avail(position.next_available);
        self.queue.set_next_used(position.next_used);
        self.signalled = position.next_used;
        self
    }

    /// How far the device has come.
    pub fn position(&self) -> QueuePosition {
        QueuePosition { next_available: self.queue.next_avail(), next_used: self.queue.next_used() }
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Descriptors in the queue.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Takes the next chain into `chain`; false if the driver has made none available.
    ///
    /// After an error the queue is unusable until a reset.
    pub fn pop(&mut self, chain: &mut Chain) -> Result<bool, QueueError> {
        use virtio_queue::QueueOwnedT;
        let next = self.queue.iter(&self.memory).map_err(|_| QueueError::AvailableIndex)?.next();
        match next {
            Some(raw) => chain.fill(raw, self.chain_bytes_max).map(|()| true),
            None => Ok(false),
        }
    }

    /// Whether the driver has made a chain available.
    pub fn has_available(&self) -> Result<bool, QueueError> {
        let index = self.queue.avail_idx(&self.memory, Ordering::Acquire).map_err(|_| QueueError::Layout)?;
        Ok(index.0 != self.queue.next_avail())
    }

    /// Puts back the last `count` chains popped; none of them may have been given to [`Self::push_used`].
    pub fn undo_pop(&mut self, count: u16) {
        self.queue.set_next_avail(self.queue.next_avail().wrapping_sub(count));
    }

    /// Returns `chain` to the driver with `written` bytes in its writable part.
    pub fn push_used(&mut self, chain: &Chain, written: u32) -> Result<(), QueueError> {
        self.push_used_together(&[(chain, written)])
    }

    /// Returns chains that belong together: the driver sees none of them before it sees all. Linux drops a
    /// packet that spans several buffers where it does not find each.
    pub fn push_used_together(&mut self, chains: &[(&Chain, u32)]) -> Result<(), QueueError> {
        let (mut next, size) = (self.queue.next_used(), self.queue.size());
        for (chain, written) in chains {
            if chain.head >= size {
                return Err(QueueError::Chain);
            }
            let offset = ring::USED_HEADER_BYTES + u64::from(next % size) * ring::USED_ELEMENT_BYTES;
            let element = u64::from(*written) << 32 | u64::from(chain.head);
            // The rings were checked to lie in guest memory.
            let at = GuestAddress(self.queue.used_ring().wrapping_add(offset));
            self.memory.write_obj(element.to_le(), at).map_err(|_| QueueError::Chain)?;
            next = next.wrapping_add(1);
        }
        self.queue.set_next_used(next);
        let index = GuestAddress(self.queue.used_ring().wrapping_add(2));
        self.memory.store(next.to_le(), index, Ordering::Release).map_err(|_| QueueError::Chain)
    }

    /// Whether the driver wants to hear of what was used since the last call.
    pub fn take_signal(&mut self) -> Result<bool, QueueError> {
        let next = self.queue.next_used();
        let before = std::mem::replace(&mut self.signalled, next);
        if next == before {
            return Ok(false);
        }
        // What was used is there before it is read whether anybody waits for it.
        fence(Ordering::SeqCst);
        let driver_says = |offset: u64| {
            let at = GuestAddress(self.queue.avail_ring().wrapping_add(offset));
            let value: Result<u16, _> = self.memory.load(at, Ordering::Relaxed);
            value.map(u16::from_le).map_err(|_| QueueError::Layout)
        };
        if self.queue.event_idx_enabled() {
            let event = driver_says(ring::AVAIL_HEADER_BYTES + 2 * u64::from(self.queue.size()))?;
            return Ok(next.wrapping_sub(event).wrapping_sub(1) < next.wrapping_sub(before));
        }
        Ok(driver_says(0)? & ring::AVAIL_F_NO_INTERRUPT == 0)
    }

    /// Asks the driver not to notify while the queue is being worked off.
    pub fn suppress_notifications(&mut self) -> Result<(), QueueError> {
        // Not written twice: the driver's processor has it in its cache, beside what it looks at.
        if std::mem::replace(&mut self.is_suppressed, true) {
            return Ok(());
        }
        self.queue.disable_notification(&self.memory).map_err(|_| QueueError::Layout)
    }

    /// Asks the driver to notify again; true if chains became available meanwhile.
    pub fn allow_notifications(&mut self) -> Result<bool, QueueError> {
        self.is_suppressed = false;
        self.queue.enable_notification(&self.memory).map_err(|_| QueueError::Layout)
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
            self.suppress_notifications()?;
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
            if self.is_watched || !self.allow_notifications()? {
                return Ok(Progress::Empty);
            }
        }
    }
}
