//! Large packets that go between tap and guest memory without a copy of ours: all but their first bytes, which hold whatever is
//! looked at, so that the guest cannot change a frame after it was looked at.
//!
//! Must never know: who looks at what.
#![expect(unsafe_code, reason = "the kernel is given addresses in guest memory")]

use std::collections::VecDeque;
use std::io::{self, ErrorKind};

use super::super::block::guest_io::{VECTORS_MAX, gather, mark_written};
use super::super::link::Link;
use super::super::queue::{Chain, QueueError, VirtQueue};
use super::super::spec::net as spec;
use super::PACKET_BYTES_MAX;
use super::delivery::parts;
use crate::memory::GuestMemory;

/// From so many bytes on a packet is worth the calls that save its copy.
pub(super) const LARGE_BYTES_MIN: usize = 4096;
/// The first bytes: the header of virtio, and all headers of what is let by unseen.
pub(super) const HEAD_BYTES: usize = 256;

/// Addresses in guest memory, for the kernel.
#[derive(Default)]
pub(super) struct Vectors(Vec<libc::iovec>);

// SAFETY: addresses are plain numbers to whoever does not read or write there, and nobody does but the kernel.
unsafe impl Send for Vectors {}

impl Vectors {
    /// Sends a packet of `length` bytes that begins with `head` and goes on in the guest's buffers.
    pub(super) fn send(
        &mut self,
        link: &mut impl Link,
        memory: &GuestMemory,
        chain: &Chain,
        head: &[u8],
        length: usize,
    ) -> io::Result<()> {
        self.0.clear();
        let rest = (head.len() as u64, length.saturating_sub(head.len()) as u64);
        if !gather(memory, chain.readable(), rest, &mut self.0) || self.0.len() >= VECTORS_MAX {
            return Err(ErrorKind::InvalidInput.into());
        }
        // SAFETY: the vectors point at guest memory, to which there are no references.
        unsafe { link.send_apart(head, &self.0) }
    }
}

/// What came of an attempt to receive.
pub(super) enum Received {
    /// So many bytes, whose first are in `Pool::head` and the rest in the guest's buffers.
    Packet(usize),
    /// Nothing waits at the link.
    Nothing,
    /// The link failed.
    Failed,
    /// The guest's buffers do not do for it.
    Unfit,
}

/// Buffers of the guest that are taken from its queue and not used yet. They are kept for the next packet as long as packets are
/// large, until the device is held.
pub(super) struct Pool {
    chains: Vec<Chain>,
    taken: usize,
    /// Bytes in those that are taken.
    room: u64,
    /// Where they are, and how many of these addresses each chain has.
    vectors: Vectors,
    counts: VecDeque<usize>,
    /// The first bytes of the packet that was received last.
    pub(super) head: [u8; HEAD_BYTES],
}

impl Pool {
    pub(super) fn new() -> Self {
        Self {
            chains: Vec::new(),
            taken: 0,
            room: 0,
            vectors: Vectors::default(),
            counts: VecDeque::new(),
            head: [0; HEAD_BYTES],
        }
    }

    /// Takes buffers for the largest packet; false if the guest has too few.
    fn fill(&mut self, queue: &mut VirtQueue) -> Result<bool, QueueError> {
        while self.room < PACKET_BYTES_MAX as u64 {
            if self.taken == usize::from(queue.size()) {
                return Ok(false);
            }
            if self.chains.len() == self.taken {
                self.chains.push(Chain::new());
            }
            if !queue.pop(&mut self.chains[self.taken])? {
                return Ok(false);
            }
            let chain = &self.chains[self.taken];
            let (bytes, before) = (chain.writable_bytes(), self.vectors.0.len());
            self.taken += 1;
            if bytes == 0 || !gather(queue.memory(), chain.writable(), (0, bytes), &mut self.vectors.0) {
                return Ok(false);
            }
            self.counts.push_back(self.vectors.0.len() - before);
            self.room += bytes;
        }
        Ok(true)
    }

    /// Receives one packet.
    pub(super) fn receive(
        &mut self,
        link: &mut impl Link,
        queue: &mut VirtQueue,
    ) -> Result<Received, QueueError> {
        let is_full = self.fill(queue)?;
        // The first bytes come to `head`, and their place is passed over.
        let first = self.vectors.0.first_mut().filter(|first| first.iov_len > HEAD_BYTES);
        let Some(first) = first.filter(|_| is_full) else { return Ok(Received::Unfit) };
        first.iov_base = first.iov_base.wrapping_byte_add(HEAD_BYTES);
        first.iov_len -= HEAD_BYTES;
        if self.vectors.0.len() >= VECTORS_MAX {
            return Ok(Received::Unfit);
        }
        let received = self.receive_vectors(link, queue.memory());
        if let Some(first) = self.vectors.0.first_mut() {
            first.iov_base = first.iov_base.wrapping_byte_sub(HEAD_BYTES);
            first.iov_len += HEAD_BYTES;
        }
        Ok(received)
    }

    fn receive_vectors(&mut self, link: &mut impl Link, memory: &GuestMemory) -> Received {
        loop {
            // SAFETY: the vectors point at guest memory, to which there are no references.
            match unsafe { link.receive_apart(&mut self.head, &self.vectors.0) } {
                Ok(0) => return Received::Failed,
                Ok(length) => {
                    self.mark(memory, length);
                    return Received::Packet(length);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Received::Nothing,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Received::Failed,
            }
        }
    }

    /// The chains that a packet of so many bytes is in, with how many each has.
    fn parts(&self, length: usize) -> impl Iterator<Item = (&Chain, u32)> {
        parts(&self.chains[..self.taken], length)
    }

    fn mark(&self, memory: &GuestMemory, length: usize) {
        self.parts(length).for_each(|(chain, part)| mark_written(memory, chain.writable(), part.into()));
    }

    /// Gives the guest the packet that was received last.
    pub(super) fn deliver(&mut self, queue: &mut VirtQueue, length: usize) -> Result<(), QueueError> {
        let count = self.parts(length).count();
        self.head[spec::HEADER_NUM_BUFFERS..spec::HEADER_BYTES]
            .copy_from_slice(&(count as u16).to_le_bytes());
        self.chains[0].write_at(queue.memory(), 0, &self.head[..length.min(HEAD_BYTES)]);
        queue.push_used_together(self.parts(length))?;
        self.room -= self.chains[..count].iter().map(Chain::writable_bytes).sum::<u64>();
        let vectors: usize = self.counts.drain(..count).sum();
        self.vectors.0.drain(..vectors);
        self.chains[..self.taken].rotate_left(count);
        self.taken -= count;
        Ok(())
    }

    /// Copies the packet that was received last out of the guest's buffers.
    pub(super) fn copy(&self, memory: &GuestMemory, packet: &mut [u8]) {
        let mut at = 0;
        for (chain, part) in self.parts(packet.len()) {
            chain.read_written_at(memory, &mut packet[at..at + part as usize]);
            at += part as usize;
        }
        let head = packet.len().min(HEAD_BYTES);
        packet[..head].copy_from_slice(&self.head[..head]);
    }

    /// Knows of no buffers any more: their queue is none.
    pub(super) fn forget(&mut self) {
        self.taken = 0;
        self.room = 0;
        self.vectors.0.clear();
        self.counts.clear();
    }

    /// Puts back what was not used.
    pub(super) fn put_back(&mut self, queue: &mut VirtQueue) {
        // At most as many as the queue has.
        queue.undo_pop(self.taken as u16);
        self.forget();
    }
}
