//! A virtio network device as the IP stack wants it: frames out, frames in. No offloads are asked for, so every
//! checksum is the stack's and every frame is whole.
//!
//! Must never know: IP.

#![expect(unsafe_code, reason = "buffers are lent to the device between two calls")]

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;

use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::time::Instant;
use virtio_drivers::Error;
use virtio_drivers::device::net::VirtIONetRaw;
use virtio_drivers::transport::{DeviceStatus, Transport as _};

use crate::memory::Identity;
use crate::println;
use crate::transport::{Kicks, Transport};
use crate::wire::Wire;

/// The most network devices used.
pub const NICS_MAX: usize = 4;
/// Bytes of an Ethernet header.
const ETHERNET_HEADER: usize = 14;
/// The largest MTU in bytes: Ethernet's.
pub const MTU_MAX: usize = 1500;
/// Frames in each direction that the device may hold at once.
const QUEUE_SIZE: usize = 32;
/// A frame with the longest header that virtio puts before it (VIRTIO 1.3 §5.1.6), rounded up.
const BUFFER_BYTES: usize = 1536;

type Buffer = Box<[u8; BUFFER_BYTES]>;

/// One network device. Clones are the same device.
#[derive(Clone)]
pub struct Nic(Rc<RefCell<Queues>>);

struct Queues {
    /// None while the device is lent.
    raw: Option<VirtIONetRaw<Identity, Transport, QUEUE_SIZE>>,
    mac: [u8; 6],
    /// What the device holds, by the token of its descriptor.
    receiving: [Option<Buffer>; QUEUE_SIZE],
    transmitting: [Option<Buffer>; QUEUE_SIZE],
    /// What it does not hold; together with `transmitting` always `QUEUE_SIZE` buffers.
    idle: Vec<Buffer>,
    mtu: usize,
    /// Buffers to receive into are announced together, not one by one.
    kicks: Kicks,
    /// For another driver.
    spare: Transport,
}

/// The queue of buffers to receive into (VIRTIO 1.3 §5.1.2).
const RECEIVE_QUEUE: u16 = 0;

impl Nic {
    /// Sets the device up and gives it buffers to receive into.
    pub fn new(transport: Transport) -> Result<Self, Error> {
        Ok(Nic(Rc::new(RefCell::new(Queues::new(transport, MTU_MAX)?))))
    }

    /// Has a load use the device, or told that it is not fit for one, and sets it up anew afterwards. What came in meanwhile
    /// was the load's.
    pub fn lend<R>(&self, load: impl FnOnce(Option<Wire>) -> R) -> R {
        let queues = &mut *self.0.borrow_mut();
        // Once it is reset the device has none of the buffers any more.
        queues.spare.set_status(DeviceStatus::empty());
        queues.raw = None;
        let result = load(Wire::new(queues.spare.again()));
        match Queues::new(queues.spare.again(), queues.mtu) {
            Ok(again) => *queues = again,
            Err(error) => println!("net: lost with its load: {error}"),
        }
        result
    }

    /// Announces the buffers that were given back since the last call.
    pub fn kick(&self) {
        self.0.borrow().kicks.give();
    }

    /// The device's MAC address.
    pub fn mac(&self) -> [u8; 6] {
        self.0.borrow().mac
    }

    /// The MTU in bytes.
    pub fn mtu(&self) -> usize {
        self.0.borrow().mtu
    }

    /// Sets the MTU in bytes; the IP stack reads it when it is made.
    pub fn set_mtu(&self, mtu: usize) {
        self.0.borrow_mut().mtu = mtu.min(MTU_MAX);
    }

    /// Tells the device that its interrupt was noticed, so that it may interrupt again.
    pub fn acknowledge(&self) {
        if let Some(raw) = &mut self.0.borrow_mut().raw {
            raw.ack_interrupt();
        }
    }

    /// Whether a frame waits. Ask after the last one was taken and before sleeping: an interrupt for a frame that
    /// came in between may have been suppressed.
    pub fn has_frames(&self) -> bool {
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        self.0.borrow().raw.as_ref().is_some_and(|raw| raw.poll_receive().is_some())
    }
}

fn buffer() -> Buffer {
    Box::new([0; BUFFER_BYTES])
}

impl Queues {
    fn new(transport: Transport, mtu: usize) -> Result<Self, Error> {
        let (kicks, spare) = (transport.kicks(), transport.again());
        let raw = VirtIONetRaw::new(transport)?;
        let mut queues = Queues {
            mac: raw.mac_address(),
            raw: Some(raw),
            receiving: [const { None }; QUEUE_SIZE],
            transmitting: [const { None }; QUEUE_SIZE],
            idle: (0..QUEUE_SIZE).map(|_| buffer()).collect(),
            mtu,
            kicks,
            spare,
        };
        queues.kicks.hold(RECEIVE_QUEUE);
        for _ in 0..QUEUE_SIZE {
            queues.receive_into(buffer())?;
        }
        queues.kicks.give();
        Ok(queues)
    }

    fn receive_into(&mut self, mut buffer: Buffer) -> Result<(), Error> {
        let raw = self.raw.as_mut().ok_or(Error::NotReady)?;
        // SAFETY: the buffer goes into `receiving` and is not touched before its token comes back.
        let token = unsafe { raw.receive_begin(&mut buffer[..]) }?;
        *self.receiving.get_mut(usize::from(token)).ok_or(Error::WrongToken)? = Some(buffer);
        Ok(())
    }

    /// The next received frame: its buffer, where it starts and how long it is.
    fn received(&mut self) -> Option<Received> {
        let raw = self.raw.as_mut()?;
        let token = raw.poll_receive()?;
        let mut buffer = self.receiving.get_mut(usize::from(token))?.take()?;
        // SAFETY: this is the buffer that was lent under this token.
        match unsafe { raw.receive_complete(token, &mut buffer[..]) } {
            Ok((start, len)) => Some(Received { buffer, start, len: len.min(BUFFER_BYTES - start) }),
            Err(_) => {
                // Nothing usable in it; an empty frame is ignored by the stack and gives the buffer back.
                Some(Received { buffer, start: 0, len: 0 })
            }
        }
    }

    /// Takes back what the device has sent, only when buffers have run out: as long as nobody takes it back, the
    /// device does not interrupt for it.
    fn can_send(&mut self) -> bool {
        if self.idle.is_empty() {
            let Some(raw) = &mut self.raw else { return false };
            while let Some(token) = raw.poll_transmit() {
                let Some(buffer) = self.transmitting.get_mut(usize::from(token)).and_then(Option::take)
                else {
                    break;
                };
                // SAFETY: this is the buffer that was lent under this token.
                let sent = unsafe { raw.transmit_complete(token, &buffer[..]) };
                self.idle.push(buffer);
                if sent.is_err() {
                    break;
                }
            }
        }
        !self.idle.is_empty()
    }
}

struct Received {
    buffer: Buffer,
    start: usize,
    len: usize,
}

impl phy::Device for Nic {
    type RxToken<'a> = RxToken;
    type TxToken<'a> = TxToken;

    fn receive(&mut self, _now: Instant) -> Option<(RxToken, TxToken)> {
        let mut queues = self.0.borrow_mut();
        if !queues.can_send() {
            return None;
        }
        let received = queues.received()?;
        Some((RxToken { nic: self.clone(), received }, TxToken(self.clone())))
    }

    fn transmit(&mut self, _now: Instant) -> Option<TxToken> {
        self.0.borrow_mut().can_send().then(|| TxToken(self.clone()))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu() + ETHERNET_HEADER;
        capabilities
    }
}

/// A received frame.
pub struct RxToken {
    nic: Nic,
    received: Received,
}

impl phy::RxToken for RxToken {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        let Received { buffer, start, len } = self.received;
        let result = read(&buffer[start..start + len]);
        // It can only be refused when the queue is full, and this buffer came out of it.
        let _ = self.nic.0.borrow_mut().receive_into(buffer);
        result
    }
}

/// Leave to send one frame.
pub struct TxToken(Nic);

impl phy::TxToken for TxToken {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let queues = &mut *self.0.0.borrow_mut();
        let mut buffer = queues.idle.pop().expect("invariant: a token is given only while a buffer is idle");
        let raw = queues.raw.as_mut().expect("invariant: nobody sends while the device is lent");
        let start = raw.fill_buffer_header(&mut buffer[..]).expect("invariant: a buffer holds a header");
        let result = write(&mut buffer[start..start + len]);
        // SAFETY: the buffer goes into `transmitting` and is not touched before its token comes back.
        match unsafe { raw.transmit_begin(&buffer[..start + len]) } {
            Ok(token) if usize::from(token) < QUEUE_SIZE => {
                queues.transmitting[usize::from(token)] = Some(buffer)
            }
            // A frame that cannot be sent is lost, as on any network.
            _ => queues.idle.push(buffer),
        }
        result
    }
}
