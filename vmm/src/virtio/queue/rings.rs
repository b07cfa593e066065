//! The rings of a split virtqueue (VIRTIO 1.3 §2.7), found in guest memory once when the driver starts the queue: each
//! index and descriptor is then read and written where it lies, and looked up no more.
//!
//! Must never know: what a descriptor's buffer is for.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{
    Address as _, Bytes as _, GuestAddress, GuestMemoryBackend as _, MmapRegion, VolatileMemory as _,
};

use super::super::spec::ring;
use super::{QueueError, QueueLayout};
use crate::memory::{GuestMemory, Slice};

/// Bytes of a ring's event index, behind its elements (§2.7.6, §2.7.8).
const EVENT_BYTES: u64 = 2;

/// A descriptor as the driver wrote it (§2.7.5).
#[derive(Debug, Clone, Copy)]
pub(super) struct Descriptor {
    pub(super) address: GuestAddress,
    pub(super) length: u32,
    flags: u16,
    pub(super) next: u16,
}

impl Descriptor {
    /// The one at `index` of a table, if the table has so many.
    pub(super) fn read(table: &Slice<'_>, index: u16) -> Option<Self> {
        let at = usize::from(index) * ring::DESC_BYTES as usize;
        let address = u64::from_le(table.get_ref(at).ok()?.load());
        let rest = u64::from_le(table.get_ref(at + size_of::<u64>()).ok()?.load());
        Some(Self {
            address: GuestAddress(address),
            length: rest as u32,
            flags: (rest >> 32) as u16,
            next: (rest >> 48) as u16,
        })
    }

    /// The chain goes on.
    pub(super) fn has_next(&self) -> bool {
        self.flags & ring::DESC_F_NEXT != 0
    }

    /// The buffer is for the device to write.
    pub(super) fn is_writable(&self) -> bool {
        self.flags & ring::DESC_F_WRITE != 0
    }

    /// The buffer is a table of descriptors.
    pub(super) fn is_table(&self) -> bool {
        self.flags & ring::DESC_F_INDIRECT != 0
    }
}

/// Consecutive bytes of guest memory, which stay mapped as long as this is there.
#[derive(Debug)]
struct Place {
    mapping: Arc<MmapRegion<AtomicBitmap>>,
    at: usize,
    bytes: usize,
}

impl Place {
    fn find(memory: &GuestMemory, (start, alignment): (u64, u64), bytes: u64) -> Option<Self> {
        if !start.is_multiple_of(alignment) {
            return None;
        }
        let (region, at) = memory.to_region_addr(GuestAddress(start))?;
        let (at, bytes) = (usize::try_from(at.raw_value()).ok()?, usize::try_from(bytes).ok()?);
        let mapping = region.get_mmap();
        mapping.get_slice(at, bytes).ok()?;
        Some(Self { mapping, at, bytes })
    }

    fn slice(&self) -> Slice<'_> {
        self.mapping.get_slice(self.at, self.bytes).expect("invariant: it was there when it was found")
    }

    fn load(&self, offset: u64, order: Ordering) -> u16 {
        u16::from_le(
            self.slice().load(offset as usize, order).expect("invariant: within the ring, and aligned"),
        )
    }

    fn store(&self, offset: u64, value: u16, order: Ordering) {
        let stored = self.slice().store(value.to_le(), offset as usize, order);
        stored.expect("invariant: within the ring, and aligned");
    }
}

/// Where `idx` lies in either ring (§2.7.6, §2.7.8); before it are the flags.
const INDEX: u64 = 2;

/// The three of them.
#[derive(Debug)]
pub(super) struct Rings {
    size: u16,
    descriptors: Place,
    available: Place,
    used: Place,
    event_idx: bool,
}

impl Rings {
    /// Checks where a driver put them (§2.7): a power of two of descriptors, at most `size_max`, each ring aligned and in one
    /// region of guest memory. No driver has one that spans two: regions lie on multiples of far more than a ring's bytes.
    pub(super) fn find(
        memory: &GuestMemory,
        layout: QueueLayout,
        size_max: u16,
        event_idx: bool,
    ) -> Result<Self, QueueError> {
        let size = u64::from(layout.size);
        // Addresses that were never given are zero; no driver puts a ring over the first page's vectors.
        if !layout.size.is_power_of_two() || layout.size > size_max || layout.available == 0 {
            return Err(QueueError::Layout);
        }
        let find = |start, alignment, bytes| {
            Place::find(memory, (start, alignment), bytes).ok_or(QueueError::Layout)
        };
        let available_bytes = ring::AVAIL_HEADER_BYTES + size * ring::AVAIL_ELEMENT_BYTES + EVENT_BYTES;
        let used_bytes = ring::USED_HEADER_BYTES + size * ring::USED_ELEMENT_BYTES + EVENT_BYTES;
        Ok(Self {
            size: layout.size,
            descriptors: find(layout.descriptors, ring::DESC_ALIGNMENT, size * ring::DESC_BYTES)?,
            available: find(layout.available, ring::AVAIL_ALIGNMENT, available_bytes)?,
            used: find(layout.used, ring::USED_ALIGNMENT, used_bytes)?,
            event_idx,
        })
    }

    /// Descriptors in the table.
    pub(super) fn size(&self) -> u16 {
        self.size
    }

    /// The table itself.
    pub(super) fn table(&self) -> Slice<'_> {
        self.descriptors.slice()
    }

    /// How many chains the driver has made available, modulo 2^16; what it wrote before is seen.
    pub(super) fn available_index(&self) -> u16 {
        self.available.load(INDEX, Ordering::Acquire)
    }

    /// The first descriptor of the chain that was made available as number `number`; may be none.
    pub(super) fn head(&self, number: u16) -> u16 {
        let element = u64::from(number % self.size) * ring::AVAIL_ELEMENT_BYTES;
        self.available.load(ring::AVAIL_HEADER_BYTES + element, Ordering::Relaxed)
    }

    /// Writes what became of a chain into the used ring, as number `number`; the driver does not look yet.
    pub(super) fn write_used(&self, number: u16, head: u16, written: u32) {
        let element = u64::from(number % self.size) * ring::USED_ELEMENT_BYTES;
        let value = u64::from(written) << 32 | u64::from(head);
        let at = (ring::USED_HEADER_BYTES + element) as usize;
        let used = self.used.slice();
        used.get_ref(at).expect("invariant: within the ring").store(value.to_le());
    }

    /// Says how many chains were used, modulo 2^16; what was written before is seen.
    pub(super) fn set_used_index(&self, next: u16) {
        self.used.store(INDEX, next, Ordering::Release);
    }

    /// Whether the driver wants to hear that what was used rose from `before` to `next` (§2.7.7).
    pub(super) fn wants_signal(&self, before: u16, next: u16) -> bool {
        // What was used is there before it is read whether anybody waits for it.
        fence(Ordering::SeqCst);
        if self.event_idx {
            let at = ring::AVAIL_HEADER_BYTES + u64::from(self.size) * ring::AVAIL_ELEMENT_BYTES;
            let event = self.available.load(at, Ordering::Relaxed);
            return next.wrapping_sub(event).wrapping_sub(1) < next.wrapping_sub(before);
        }
        self.available.load(0, Ordering::Relaxed) & ring::AVAIL_F_NO_INTERRUPT == 0
    }

    /// Asks the driver not to notify (§2.7.10). One that goes by `avail_event` passes it once and is then quiet.
    pub(super) fn suppress_notifications(&self) {
        if !self.event_idx {
            self.used.store(0, ring::USED_F_NO_NOTIFY, Ordering::Relaxed);
        }
    }

    /// Asks it to notify of the chain with number `number`; returns how many are available by now.
    pub(super) fn allow_notifications(&self, number: u16) -> u16 {
        if self.event_idx {
            let at = ring::USED_HEADER_BYTES + u64::from(self.size) * ring::USED_ELEMENT_BYTES;
            self.used.store(at, number, Ordering::Relaxed);
        } else {
            self.used.store(0, 0, Ordering::Relaxed);
        }
        // What was asked is there before it is read what came meanwhile.
        fence(Ordering::SeqCst);
        self.available_index()
    }
}
