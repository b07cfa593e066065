//! A virtio disk, one sector at a time.
//!
//! Must never know: who asks, or what the bytes are.

#![expect(unsafe_code, reason = "buffers are lent to the device between two calls")]

use alloc::string::String;
use core::cell::RefCell;
use core::fmt;

use virtio_drivers::device::blk::{BlkReq, BlkResp, VirtIOBlk};

use crate::clock::Clock;
use crate::console;
use crate::entry::interrupts_taken;
use crate::memory::Identity;
use crate::metadata::shown;
use crate::println;
use crate::transport::Transport;

pub use virtio_drivers::device::blk::SECTOR_SIZE;

/// The most disks used.
pub const DISKS_MAX: usize = 16;
/// How long a request is waited for awake, in nanoseconds: waking up takes longer than most requests.
const AWAKE_NS: u64 = 100_000;
/// How long a sleep lasts before the device is looked at without an interrupt, in nanoseconds.
const LOOK_NS: u64 = 10_000_000;

/// Why a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Error {
    /// There is no such disk.
    NoDisk,
    /// The sector lies after the end.
    PastEnd,
    /// The disk refuses writes.
    ReadOnly,
    /// The device reports a failure.
    Device(virtio_drivers::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NoDisk => f.write_str("no such disk"),
            Error::PastEnd => f.write_str("sector past the end"),
            Error::ReadOnly => f.write_str("disk is read-only"),
            Error::Device(error) => write!(f, "device: {error}"),
        }
    }
}

type Block = VirtIOBlk<Identity, Transport>;

/// One disk.
pub struct Disk {
    slot: Option<u8>,
    block: RefCell<Block>,
    serial: String,
}

impl Disk {
    /// Sets the device up and reads its serial.
    pub fn new(transport: Transport) -> Result<Self, virtio_drivers::Error> {
        let slot = transport.slot();
        let mut block = Block::new(transport)?;
        let mut id = [0; 20];
        // A device without an id is a disk all the same.
        let len = block.device_id(&mut id).unwrap_or(0);
        block.ack_interrupt();
        let serial = String::from_utf8_lossy(&id[..len]).into_owned();
        Ok(Disk { slot, block: RefCell::new(block), serial })
    }

    /// The device's slot, if it is on PCI.
    pub fn slot(&self) -> Option<u8> {
        self.slot
    }

    /// The size in bytes.
    pub fn bytes(&self) -> u64 {
        self.block.borrow().capacity().saturating_mul(SECTOR_SIZE as u64)
    }

    /// Whether writes are refused.
    pub fn read_only(&self) -> bool {
        self.block.borrow().readonly()
    }

    /// The serial, at most 20 characters, empty if there is none.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// Says on the console what it is, under its number.
    pub fn introduce(&self, index: usize) {
        let mode = if self.read_only() { "ro" } else { "rw" };
        println!("disk {index}: {} bytes {mode} serial {}", self.bytes(), shown(&self.serial));
    }

    /// Reads one sector.
    pub fn read(&self, clock: &Clock, sector: u64, data: &mut [u8; SECTOR_SIZE]) -> Result<(), Error> {
        let mut block = self.sector(sector)?;
        let (mut request, mut response) = (BlkReq::default(), BlkResp::default());
        // SAFETY: the three buffers live until the request is completed below, and nothing touches them meanwhile.
        let token = unsafe { block.read_blocks_nb(sector as usize, &mut request, data, &mut response) }
            .map_err(Error::Device)?;
        wait(&mut block, clock);
        // SAFETY: the same three buffers.
        let result = unsafe { block.complete_read_blocks(token, &request, data, &mut response) };
        block.ack_interrupt();
        result.map_err(Error::Device)
    }

    /// Writes one sector and waits until it is on stable storage.
    pub fn write(&self, clock: &Clock, sector: u64, data: &[u8; SECTOR_SIZE]) -> Result<(), Error> {
        let mut block = self.sector(sector)?;
        if block.readonly() {
            return Err(Error::ReadOnly);
        }
        let (mut request, mut response) = (BlkReq::default(), BlkResp::default());
        // SAFETY: as in `read`.
        let token = unsafe { block.write_blocks_nb(sector as usize, &mut request, data, &mut response) }
            .map_err(Error::Device)?;
        wait(&mut block, clock);
        // SAFETY: as in `read`.
        let result = unsafe { block.complete_write_blocks(token, &request, data, &mut response) };
        let result = result.and_then(|()| block.flush());
        block.ack_interrupt();
        result.map_err(Error::Device)
    }

    fn sector(&self, sector: u64) -> Result<core::cell::RefMut<'_, Block>, Error> {
        let block = self.block.borrow_mut();
        if sector < block.capacity() { Ok(block) } else { Err(Error::PastEnd) }
    }
}

/// Waits until the one request under way is done: awake for a moment, then saying what there is to say, then asleep. A
/// disk that is slow must not silence the console.
fn wait(block: &mut Block, clock: &Clock) {
    let awake_until = clock.now_ns() + AWAKE_NS;
    loop {
        let seen = interrupts_taken();
        if block.peek_used().is_some() {
            return;
        }
        if clock.now_ns() < awake_until {
            core::hint::spin_loop();
        } else if !console::send_part() {
            clock.sleep_until(Some(clock.now_ns() + LOOK_NS), seen);
        }
    }
}
