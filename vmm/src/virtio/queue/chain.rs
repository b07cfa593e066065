//! Chains of descriptors: one request each, followed to its end and checked before anybody sees it.
//!
//! Must never know: what a request asks for.

use vm_memory::{GuestAddress, GuestMemory as _, Permissions};

use super::super::spec::ring;
use super::rings::{Descriptor, Rings};
use super::{CHAIN_DESCRIPTORS_MAX, QueueError};
use crate::memory::{GuestMemory, Slice, read, whole_slice, write};

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
            let copied = read(memory, address, &mut data[range.clone()]);
            done += if copied { range.len() } else { 0 };
            copied
        });
        done
    }

    /// Copies what was written into the writable part from its beginning on, until `data` is full or the part ends.
    pub fn read_written_at(&self, memory: &GuestMemory, data: &mut [u8]) {
        for_each_piece(&self.writable, 0, data.len(), |address, range| {
            read(memory, address, &mut data[range])
        });
    }

    /// Copies `data` into the writable part at `offset` until `data` or the part ends; returns the bytes copied.
    pub fn write_at(&self, memory: &GuestMemory, offset: u64, data: &[u8]) -> usize {
        let mut done = 0;
        for_each_piece(&self.writable, offset, data.len(), |address, range| {
            let copied = write(memory, address, &data[range.clone()]);
            done += if copied { range.len() } else { 0 };
            copied
        });
        done
    }

    /// The index of its first descriptor.
    pub(super) fn head(&self) -> u16 {
        self.head
    }

    /// Follows the chain that begins at `head`.
    pub(super) fn fill(
        &mut self,
        rings: &Rings,
        memory: &GuestMemory,
        head: u16,
        bytes_max: u64,
    ) -> Result<(), QueueError> {
        self.head = head;
        self.readable.clear();
        self.writable.clear();
        let (mut table, mut descriptors) = (rings.table(), rings.size());
        let (mut index, mut left, mut is_table) = (head, descriptors, false);
        let mut bytes = 0_u64;
        loop {
            // A chain has each descriptor once, or it has no end.
            if index >= descriptors || left == 0 {
                return Err(QueueError::Chain);
            }
            let descriptor = Descriptor::read(&table, index).ok_or(QueueError::Chain)?;
            if descriptor.is_table() {
                if is_table {
                    return Err(QueueError::Chain);
                }
                (table, descriptors) = indirect(memory, descriptor)?;
                (index, left, is_table) = (0, descriptors, true);
                continue;
            }
            if self.readable.len() + self.writable.len() == CHAIN_DESCRIPTORS_MAX {
                return Err(QueueError::ChainLength);
            }
            bytes += u64::from(descriptor.length);
            if bytes > bytes_max {
                return Err(QueueError::ChainBytes);
            }
            self.add(memory, descriptor)?;
            if !descriptor.has_next() {
                return Ok(());
            }
            index = descriptor.next;
            left -= 1;
        }
    }

    fn add(&mut self, memory: &GuestMemory, descriptor: Descriptor) -> Result<(), QueueError> {
        let segment = Segment { address: descriptor.address, length: descriptor.length };
        let access = if descriptor.is_writable() { Permissions::Write } else { Permissions::Read };
        let length = segment.length as usize;
        // As nearly all do.
        let is_whole = whole_slice(memory, segment.address, length).is_some();
        if !is_whole && !memory.check_range(segment.address, length, access) {
            return Err(QueueError::Address);
        }
        match (descriptor.is_writable(), self.writable.is_empty()) {
            (true, _) => self.writable.push(segment),
            (false, true) => self.readable.push(segment),
            (false, false) => return Err(QueueError::Direction),
        }
        Ok(())
    }
}

/// The table that a descriptor points to (§2.7.5.3), and how many descriptors it has.
fn indirect(memory: &GuestMemory, descriptor: Descriptor) -> Result<(Slice<'_>, u16), QueueError> {
    let bytes = u64::from(descriptor.length);
    let descriptors = u16::try_from(bytes / ring::DESC_BYTES).map_err(|_| QueueError::Chain)?;
    let table = whole_slice(memory, descriptor.address, descriptor.length as usize);
    let table = table.filter(|_| bytes.is_multiple_of(ring::DESC_BYTES)).ok_or(QueueError::Chain)?;
    Ok((table, descriptors))
}

/// Calls `visit` with the guest address and the range of the caller's buffer for each piece of `segments` that
/// `length` bytes from `offset` touch, until it returns false.
pub(in super::super) fn for_each_piece(
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
