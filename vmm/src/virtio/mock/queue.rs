//! A queue as the fake guest has it: descriptors and rings, whatever they say.

use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress};

use super::super::spec::ring;
use crate::memory::GuestMemory;

/// One queue as the driver lays it out.
#[derive(Debug, Clone, Copy)]
pub struct MockQueue {
    /// Its index in the device.
    pub index: u16,
    /// Its size.
    pub size: u16,
    /// Guest address of the descriptor table.
    pub descriptors: u64,
    /// Guest address of the available ring.
    pub available: u64,
    /// Guest address of the used ring.
    pub used: u64,
    next_descriptor: u16,
    available_index: u16,
    used_index: u16,
}

/// One descriptor (VIRTIO 1.3 §2.7.5).
#[derive(Debug, Clone, Copy, Default)]
pub struct MockDescriptor {
    /// Guest address of the buffer.
    pub address: u64,
    /// Its bytes.
    pub length: u32,
    /// `DESC_F_…`.
    pub flags: u16,
    /// Index of the next descriptor.
    pub next: u16,
}

impl MockDescriptor {
    /// A buffer that the device reads.
    pub fn readable(address: u64, length: u32) -> Self {
        Self { address, length, ..Self::default() }
    }

    /// A buffer that the device writes.
    pub fn writable(address: u64, length: u32) -> Self {
        Self { address, length, flags: ring::DESC_F_WRITE, next: 0 }
    }
}

impl MockQueue {
    /// Queue `index` with `size` descriptors, its parts one behind the other.
    pub(super) fn at(start: u64, index: u16, size: u16) -> Self {
        let descriptors_bytes = u64::from(size) * ring::DESC_BYTES;
        let available = start + descriptors_bytes;
        // Six bytes and two per entry, then room until the used ring's alignment.
        let used = (available + 6 + 2 * u64::from(size) + 3) & !3;
        Self {
            index,
            size,
            descriptors: start,
            available,
            used,
            next_descriptor: 0,
            available_index: 0,
            used_index: 0,
        }
    }

    /// Writes descriptor `index`, whatever it says.
    pub fn write_descriptor(&self, memory: &GuestMemory, index: u16, descriptor: MockDescriptor) {
        write_descriptor(memory, self.descriptors + u64::from(index) * ring::DESC_BYTES, descriptor);
    }

    /// Chains `descriptors` and makes them available; the head's index.
    pub fn submit(&mut self, memory: &GuestMemory, descriptors: &[MockDescriptor]) -> u16 {
        let head = self.next_descriptor;
        for (position, descriptor) in descriptors.iter().enumerate() {
            let index = self.next_descriptor;
            self.next_descriptor = (index + 1) % self.size;
            let mut descriptor = *descriptor;
            if position + 1 < descriptors.len() {
                descriptor.flags |= ring::DESC_F_NEXT;
                descriptor.next = self.next_descriptor;
            }
            self.write_descriptor(memory, index, descriptor);
        }
        self.make_available(memory, head);
        head
    }

    /// Puts `head` into the available ring, whatever it is.
    pub fn make_available(&mut self, memory: &GuestMemory, head: u16) {
        let slot = self.available + 4 + 2 * u64::from(self.available_index % self.size);
        memory.write_obj(head.to_le(), GuestAddress(slot)).expect("invariant: the ring lies in memory");
        self.available_index = self.available_index.wrapping_add(1);
        self.set_available_index(memory, self.available_index);
    }

    /// Writes the available ring's index, whatever it is.
    pub fn set_available_index(&self, memory: &GuestMemory, index: u16) {
        memory
            .store(index.to_le(), GuestAddress(self.available + 2), Ordering::Release)
            .expect("invariant: the ring lies in memory");
    }

    /// Writes the available ring's flags.
    pub fn set_available_flags(&self, memory: &GuestMemory, flags: u16) {
        memory
            .write_obj(flags.to_le(), GuestAddress(self.available))
            .expect("invariant: the ring lies in memory");
    }

    /// Writes `used_event`: the driver wants an interrupt once the used index passes it.
    pub fn set_used_event(&self, memory: &GuestMemory, index: u16) {
        let address = self.available + 4 + 2 * u64::from(self.size);
        memory.write_obj(index.to_le(), GuestAddress(address)).expect("invariant: the ring lies in memory");
    }

    /// The used ring's flags.
    pub fn used_flags(&self, memory: &GuestMemory) -> u16 {
        u16::from_le(memory.read_obj(GuestAddress(self.used)).expect("invariant: the ring lies in memory"))
    }

    /// `avail_event`: the device wants a notification once the available index passes it.
    pub fn available_event(&self, memory: &GuestMemory) -> u16 {
        let address = self.used + 4 + 8 * u64::from(self.size);
        u16::from_le(memory.read_obj(GuestAddress(address)).expect("invariant: the ring lies in memory"))
    }

    /// The next chain that the device returned: its head and the bytes written.
    pub fn take_used(&mut self, memory: &GuestMemory) -> Option<(u32, u32)> {
        let index: u16 = memory
            .load(GuestAddress(self.used + 2), Ordering::Acquire)
            .expect("invariant: the ring lies in memory");
        if u16::from_le(index) == self.used_index {
            return None;
        }
        let entry = GuestAddress(self.used + 4 + 8 * u64::from(self.used_index % self.size));
        let [head, length]: [u32; 2] = memory.read_obj(entry).expect("invariant: the ring lies in memory");
        self.used_index = self.used_index.wrapping_add(1);
        Some((u32::from_le(head), u32::from_le(length)))
    }
}

/// Writes one descriptor at a guest address: into a table of a queue, or an indirect one.
pub fn write_descriptor(memory: &GuestMemory, address: u64, descriptor: MockDescriptor) {
    let mut bytes = [0; ring::DESC_BYTES as usize];
    bytes[..8].copy_from_slice(&descriptor.address.to_le_bytes());
    bytes[8..12].copy_from_slice(&descriptor.length.to_le_bytes());
    bytes[12..14].copy_from_slice(&descriptor.flags.to_le_bytes());
    bytes[14..].copy_from_slice(&descriptor.next.to_le_bytes());
    memory.write_slice(&bytes, GuestAddress(address)).expect("invariant: tables lie in the mock's memory");
}
