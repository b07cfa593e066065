//! A virtio network device for a load, driven as Linux drives it: checksums and cutting into segments are the device's (VIRTIO 1.3
//! §5.1.6.2), what it brings may span several buffers (§5.1.6.4), and either side hears of the other only when it waits.
//!
//! Must never know: what the frames are.

#![expect(unsafe_code, reason = "buffers are the device's as well")]

use alloc::vec;
use alloc::vec::Vec;

use virtio_drivers::transport::{DeviceStatus, Transport as _};

use crate::clock::Clock;
use crate::parse::segment::HEADERS_MAX;
use crate::ring::{F_EVENT_IDX, F_VERSION_1, NEXT, Ring, WRITE};
use crate::transport::Transport;

/// VIRTIO 1.3 §5.1.3: what is needed, and what is nice.
const F_CSUM: u64 = 1 << 0;
const F_GUEST_CSUM: u64 = 1 << 1;
const F_MAC: u64 = 1 << 5;
const F_GUEST_TSO4: u64 = 1 << 7;
const F_HOST_TSO4: u64 = 1 << 11;
const F_MRG_RXBUF: u64 = 1 << 15;
const NEEDED: u64 = F_CSUM | F_GUEST_CSUM | F_MAC | F_GUEST_TSO4 | F_HOST_TSO4 | F_MRG_RXBUF | F_VERSION_1;

/// The header before each frame (§5.1.6): flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers.
const HEADER_BYTES: usize = 12;
const NEEDS_CHECKSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// Descriptors of each queue: as many as every device here has.
const SIZE: usize = 256;
/// Frames on their way out at a time: a descriptor for the headers, and one for what they carry.
const SLOTS: u16 = 128;
/// Bytes of a buffer to receive into: a page, as Linux has.
const BUFFER_BYTES: usize = 4096;
/// Bytes that frames carry besides their headers. All carry the same: nothing reads it.
const LOAD_BYTES: usize = 64 << 10;

#[repr(C, align(4096))]
#[derive(Clone)]
struct Page([u8; BUFFER_BYTES]);

#[repr(C, align(128))]
#[derive(Clone)]
struct Head([u8; HEADER_BYTES + HEADERS_MAX]);

/// What the device does to a frame that it sends.
#[derive(Debug, Clone, Copy)]
pub struct Offload {
    /// Where the checksum is, after where the part that it is of begins.
    pub checksum: Option<(u16, u16)>,
    /// How many bytes of payload each segment has that it is cut into.
    pub segment_bytes: Option<u16>,
}

/// The device.
pub struct Wire {
    transport: Transport,
    receive: Ring<SIZE>,
    transmit: Ring<SIZE>,
    buffers: Vec<Page>,
    heads: Vec<Head>,
    load: Vec<u8>,
    idle: Vec<u16>,
    mac: [u8; 6],
}

/// A frame that came in.
#[derive(Debug, Clone, Copy)]
pub struct Received {
    /// The buffer that it begins in.
    first: u16,
    /// In how many it is.
    buffers: u16,
    /// Its length in bytes.
    pub length: usize,
    /// How much of it the first buffer has.
    head: usize,
}

impl Wire {
    /// Takes the device over; none that lacks an offload.
    pub fn new(mut transport: Transport) -> Option<Self> {
        let features = transport.begin() & (NEEDED | F_EVENT_IDX);
        if features & NEEDED != NEEDED {
            return None;
        }
        transport.accept(features);
        let mut mac = [0; 6];
        for (at, byte) in mac.iter_mut().enumerate() {
            *byte = transport.read_config_space(at).ok()?;
        }
        let mut wire = Wire {
            transport,
            receive: Ring::new(features),
            transmit: Ring::new(features),
            buffers: vec![Page([0; BUFFER_BYTES]); SIZE],
            heads: vec![Head([0; HEADER_BYTES + HEADERS_MAX]); usize::from(SLOTS)],
            load: vec![b'w'; LOAD_BYTES],
            idle: (0..SLOTS).collect(),
            mac,
        };
        for (at, buffer) in (0..).zip(&wire.buffers) {
            wire.receive.describe(at, &raw const buffer.0 as u64, BUFFER_BYTES as u32, WRITE, 0);
            wire.receive.give(at);
        }
        wire.receive.show(&mut wire.transport, RECEIVE);
        wire.transmit.show(&mut wire.transport, TRANSMIT);
        wire.receive.want_interrupt(false);
        wire.transmit.want_interrupt(false);
        wire.transport.finish();
        wire.tell();
        Some(wire)
    }

    /// The device's MAC address.
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// The next frame that came in, once all of it is there; [`Self::release`] gives its buffers back.
    pub fn receive(&mut self) -> Option<Received> {
        let used = self.receive.used();
        if used == 0 {
            return None;
        }
        let (first, written) = self.receive.peek(0);
        let first = first as u16 % SIZE as u16;
        let header: [u8; HEADER_BYTES] = self.bytes(first, 0)?;
        let buffers = u16::from_le_bytes([header[10], header[11]]).clamp(1, SIZE as u16);
        if buffers > used {
            return None;
        }
        let head = (written as usize).min(BUFFER_BYTES).saturating_sub(HEADER_BYTES);
        let more: usize = (1..buffers).map(|ahead| self.receive.peek(ahead).1 as usize).sum();
        Some(Received { first, buffers, length: head + more, head })
    }

    /// So many bytes of a buffer from there on, as they are now.
    fn bytes<const N: usize>(&self, buffer: u16, at: usize) -> Option<[u8; N]> {
        let place = self.buffers.get(usize::from(buffer))?.0.get(at..at + N)?;
        // SAFETY: N bytes of a buffer of ours, which have no alignment; the device may write them meanwhile.
        Some(unsafe { place.as_ptr().cast::<[u8; N]>().read_volatile() })
    }

    /// The first bytes of a frame, as far as headers and a small payload can go.
    pub fn head(&self, received: &Received) -> ([u8; 128], usize) {
        (self.bytes(received.first, HEADER_BYTES).unwrap_or([0; 128]), received.head.min(128))
    }

    /// Gives the buffers of the frame that [`Self::receive`] gave last back to the device.
    pub fn release(&mut self, received: Received) {
        for ahead in 0..received.buffers {
            let (buffer, _) = self.receive.peek(ahead);
            self.receive.give(buffer as u16 % SIZE as u16);
        }
        self.receive.take(received.buffers);
    }

    /// Whether a frame can be sent now.
    pub fn can_send(&mut self) -> bool {
        if self.idle.is_empty() {
            for _ in 0..self.transmit.used() {
                let (head, _) = self.transmit.peek(0);
                self.transmit.take(1);
                self.idle.push(head as u16 / 2 % SLOTS);
            }
        }
        !self.idle.is_empty()
    }

    /// Sends the headers that `write` makes, which tells their length, with so many bytes after them; false if the device has
    /// too many frames already.
    pub fn send(
        &mut self,
        offload: Offload,
        bytes: usize,
        write: impl FnOnce(&mut [u8; HEADERS_MAX]) -> usize,
    ) -> bool {
        if !self.can_send() {
            return false;
        }
        let Some(slot) = self.idle.pop() else { return false };
        let head = &mut self.heads[usize::from(slot)].0;
        let (header, frame) = head.split_at_mut(HEADER_BYTES);
        let Ok(frame) = frame.try_into() else { return false };
        let length = write(frame).min(HEADERS_MAX);
        header.fill(0);
        if let Some((start, at)) = offload.checksum {
            header[0] = NEEDS_CHECKSUM;
            header[6..8].copy_from_slice(&start.to_le_bytes());
            header[8..10].copy_from_slice(&at.to_le_bytes());
        }
        if let Some(segment_bytes) = offload.segment_bytes.filter(|segment| usize::from(*segment) < bytes) {
            header[1] = GSO_TCPV4;
            header[2..4].copy_from_slice(&(length as u16).to_le_bytes());
            header[4..6].copy_from_slice(&segment_bytes.to_le_bytes());
        }
        let address = head.as_ptr() as u64;
        let more = bytes.min(LOAD_BYTES) as u32;
        let flags = if more == 0 { 0 } else { NEXT };
        self.transmit.describe(2 * slot, address, (HEADER_BYTES + length) as u32, flags, 2 * slot + 1);
        self.transmit.describe(2 * slot + 1, self.load.as_ptr() as u64, more, 0, 0);
        self.transmit.give(2 * slot);
        true
    }

    /// Notifies the device of what it wants to hear of.
    pub fn tell(&mut self) {
        if self.transmit.must_tell() {
            self.transport.notify(TRANSMIT);
        }
        if self.receive.must_tell() {
            self.transport.notify(RECEIVE);
        }
    }

    /// Waits for a frame, awake for `awake_ns` and then asleep, at the latest until then.
    pub fn wait(&mut self, clock: &Clock, awake_ns: u64, deadline_ns: u64) {
        self.receive.wait(&mut self.transport, clock, awake_ns, deadline_ns);
    }
}

impl Drop for Wire {
    /// The buffers are about to be somebody else's.
    fn drop(&mut self) {
        self.transport.set_status(DeviceStatus::empty());
    }
}
