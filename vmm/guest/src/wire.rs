//! A virtio network device for a load, driven as Linux drives it: checksums and cutting into segments are the device's (VIRTIO 1.3
//! §5.1.6.2), what it brings may span several buffers (§5.1.6.4), and either side hears of the other only when it waits. Of a
//! device that has several pairs of queues, two are used: a flow's frames go out by one of them, and come back by the same
//! (§5.1.6.5.6).
//!
//! Must never know: what the frames are.

#![expect(unsafe_code, reason = "buffers are the device's as well")]

use alloc::vec;
use alloc::vec::Vec;

use virtio_drivers::transport::{DeviceStatus, Transport as _};

use crate::clock::Clock;
use crate::parse::segment::HEADERS_MAX;
use crate::ring::{F_EVENT_IDX, F_VERSION_1, NEXT, Ring, WRITE, wait};
use crate::transport::Transport;

/// VIRTIO 1.3 §5.1.3: what is needed, and what is nice.
const F_CSUM: u64 = 1 << 0;
const F_GUEST_CSUM: u64 = 1 << 1;
const F_MAC: u64 = 1 << 5;
const F_GUEST_TSO4: u64 = 1 << 7;
const F_HOST_TSO4: u64 = 1 << 11;
const F_MRG_RXBUF: u64 = 1 << 15;
const F_CTRL_VQ: u64 = 1 << 17;
const F_MQ: u64 = 1 << 22;
/// How many pairs there are.
const F_PAIRS: u64 = F_CTRL_VQ | F_MQ;
const NEEDED: u64 = F_CSUM | F_GUEST_CSUM | F_MAC | F_GUEST_TSO4 | F_HOST_TSO4 | F_MRG_RXBUF | F_VERSION_1;

/// The header before each frame (§5.1.6): flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers.
const HEADER_BYTES: usize = 12;
const NEEDS_CHECKSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;

/// The first pair's queues; the next pair's are as many further as a pair has.
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const QUEUES_OF_PAIR: u16 = 2;
/// Where the configuration space has the number of pairs (§5.1.4), and how many are used.
const PAIRS_AT: usize = 8;
const PAIRS_MAX: u16 = 2;
/// The command to use so many, what says that it was done, how often it is looked whether it is, and the size of its queue.
const SET_PAIRS: [u8; 2] = [4, 0];
const DONE: u8 = 0;
const COMMAND_POLLS_MAX: u32 = 100_000_000;
const CONTROL_SIZE: usize = 2;
/// Where a frame over IPv4 without options has its two ports.
const PORTS_AT: usize = 34;
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
    pairs: Vec<Pair>,
    /// The pair that the frame came by that was received last.
    from: usize,
    heads: Vec<Head>,
    load: Vec<u8>,
    idle: Vec<u16>,
    mac: [u8; 6],
}

struct Pair {
    receive: Ring<SIZE>,
    transmit: Ring<SIZE>,
    buffers: Vec<Page>,
}

impl Pair {
    /// Gives the device buffers to receive into, and shows it the queues.
    fn new(transport: &mut Transport, features: u64, pair: u16) -> Self {
        let mut new = Pair {
            receive: Ring::new(features),
            transmit: Ring::new(features),
            buffers: vec![Page([0; BUFFER_BYTES]); SIZE],
        };
        for (at, buffer) in (0..).zip(&new.buffers) {
            new.receive.describe(at, &raw const buffer.0 as u64, BUFFER_BYTES as u32, WRITE, 0);
            new.receive.give(at);
        }
        new.receive.show(transport, QUEUES_OF_PAIR * pair + RECEIVE);
        new.transmit.show(transport, QUEUES_OF_PAIR * pair + TRANSMIT);
        new.receive.want_interrupt(false);
        new.transmit.want_interrupt(false);
        new
    }
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
        let mut features = transport.begin() & (NEEDED | F_EVENT_IDX | F_PAIRS);
        if features & NEEDED != NEEDED {
            return None;
        }
        if features & F_PAIRS != F_PAIRS {
            features &= !F_PAIRS;
        }
        transport.accept(features);
        let there: u16 = match features & F_PAIRS {
            0 => 1,
            _ => transport.read_config_space(PAIRS_AT).ok()?,
        };
        let mut mac = [0; 6];
        for (at, byte) in mac.iter_mut().enumerate() {
            *byte = transport.read_config_space(at).ok()?;
        }
        let pairs = (0..there.clamp(1, PAIRS_MAX)).map(|pair| Pair::new(&mut transport, features, pair));
        let pairs = pairs.collect();
        let commands = QUEUES_OF_PAIR * there;
        let mut control = (features & F_PAIRS != 0).then(|| Ring::<CONTROL_SIZE>::new(features));
        control.iter().for_each(|ring| ring.show(&mut transport, commands));
        let mut wire = Wire {
            transport,
            pairs,
            from: 0,
            heads: vec![Head([0; HEADER_BYTES + HEADERS_MAX]); usize::from(SLOTS)],
            load: vec![b'w'; LOAD_BYTES],
            idle: (0..SLOTS).collect(),
            mac,
        };
        wire.transport.finish();
        wire.tell();
        if let Some(control) = &mut control
            && !wire.use_pairs(control, commands)
        {
            wire.pairs.truncate(1);
        }
        Some(wire)
    }

    /// Tells the device how many pairs are used; whether it agrees.
    fn use_pairs(&mut self, control: &mut Ring<CONTROL_SIZE>, queue: u16) -> bool {
        let mut command =
            Command { words: SET_PAIRS, pairs: (self.pairs.len() as u16).to_le_bytes(), answer: !DONE };
        control.want_interrupt(false);
        control.describe(0, &raw const command.words as u64, 4, NEXT, 1);
        control.describe(1, &raw mut command.answer as u64, 1, WRITE, 0);
        control.give(0);
        self.transport.notify(queue);
        for _ in 0..COMMAND_POLLS_MAX {
            if control.used() > 0 {
                break;
            }
            core::hint::spin_loop();
        }
        // SAFETY: a byte of ours, which the device has written.
        control.used() > 0 && unsafe { (&raw const command.answer).read_volatile() } == DONE
    }

    /// The device's MAC address.
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// The next frame that came in, once all of it is there; [`Self::release`] gives its buffers back.
    pub fn receive(&mut self) -> Option<Received> {
        let count = self.pairs.len();
        (0..count).find_map(|step| self.receive_by((self.from + step) % count))
    }

    fn receive_by(&mut self, pair: usize) -> Option<Received> {
        let queue = &self.pairs.get(pair)?.receive;
        let used = queue.used();
        if used == 0 {
            return None;
        }
        self.from = pair;
        let (first, written) = queue.peek(0);
        let first = first as u16 % SIZE as u16;
        let header: [u8; HEADER_BYTES] = self.bytes(first, 0)?;
        let buffers = u16::from_le_bytes([header[10], header[11]]).clamp(1, SIZE as u16);
        if buffers > used {
            return None;
        }
        let head = (written as usize).min(BUFFER_BYTES).saturating_sub(HEADER_BYTES);
        let queue = &self.pairs.get(pair)?.receive;
        let more: usize = (1..buffers).map(|ahead| queue.peek(ahead).1 as usize).sum();
        Some(Received { first, buffers, length: head + more, head })
    }

    /// So many bytes of a buffer from there on, as they are now.
    fn bytes<const N: usize>(&self, buffer: u16, at: usize) -> Option<[u8; N]> {
        let place = self.pairs.get(self.from)?.buffers.get(usize::from(buffer))?.0.get(at..at + N)?;
        // SAFETY: N bytes of a buffer of ours, which have no alignment; the device may write them meanwhile.
        Some(unsafe { place.as_ptr().cast::<[u8; N]>().read_volatile() })
    }

    /// The first bytes of a frame, as far as headers and a small payload can go.
    pub fn head(&self, received: &Received) -> ([u8; 128], usize) {
        (self.bytes(received.first, HEADER_BYTES).unwrap_or([0; 128]), received.head.min(128))
    }

    /// Gives the buffers of the frame that [`Self::receive`] gave last back to the device.
    pub fn release(&mut self, received: Received) {
        let Some(Pair { receive, .. }) = self.pairs.get_mut(self.from) else { return };
        for ahead in 0..received.buffers {
            let (buffer, _) = receive.peek(ahead);
            receive.give(buffer as u16 % SIZE as u16);
        }
        receive.take(received.buffers);
    }

    /// Whether a frame can be sent now.
    pub fn can_send(&mut self) -> bool {
        if self.idle.is_empty() {
            for Pair { transmit, .. } in &mut self.pairs {
                for _ in 0..transmit.used() {
                    let (head, _) = transmit.peek(0);
                    transmit.take(1);
                    self.idle.push(head as u16 / 2 % SLOTS);
                }
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
        let Ok(frame): Result<&mut [u8; HEADERS_MAX], _> = frame.try_into() else { return false };
        let length = write(&mut *frame).min(HEADERS_MAX);
        let pair = flow(frame) % self.pairs.len();
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
        let queue = &mut self.pairs[pair].transmit;
        queue.describe(2 * slot, address, (HEADER_BYTES + length) as u32, flags, 2 * slot + 1);
        queue.describe(2 * slot + 1, self.load.as_ptr() as u64, more, 0, 0);
        queue.give(2 * slot);
        true
    }

    /// Notifies the device of what it wants to hear of.
    pub fn tell(&mut self) {
        for (pair, Pair { receive, transmit, .. }) in (0..).zip(&mut self.pairs) {
            if transmit.must_tell() {
                self.transport.notify(QUEUES_OF_PAIR * pair + TRANSMIT);
            }
            if receive.must_tell() {
                self.transport.notify(QUEUES_OF_PAIR * pair + RECEIVE);
            }
        }
    }

    /// Waits for a frame, awake for `awake_ns` and then asleep, at the latest until then.
    pub fn wait(&mut self, clock: &Clock, awake_ns: u64, deadline_ns: u64) {
        let times = (awake_ns, deadline_ns);
        wait(&mut self.pairs, |pair| &mut pair.receive, &mut self.transport, clock, times);
    }
}

/// A command, and what the device answers.
#[repr(C)]
struct Command {
    words: [u8; 2],
    pairs: [u8; 2],
    answer: u8,
}

/// A number that all frames of a flow share, whichever way they go: services here are known by their smaller port, and those that are
/// measured lie a step apart.
fn flow(frame: &[u8; HEADERS_MAX]) -> usize {
    let [a, b, c, d] = core::array::from_fn(|at| frame[PORTS_AT + at]);
    usize::from(u16::from_be_bytes([a, b]).min(u16::from_be_bytes([c, d]))) / 2
}

impl Drop for Wire {
    /// The buffers are about to be somebody else's.
    fn drop(&mut self) {
        self.transport.set_status(DeviceStatus::empty());
    }
}
