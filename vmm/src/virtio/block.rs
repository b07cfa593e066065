//! The block device (VIRTIO 1.3 §5.2) over any [`Disk`].
//!
//! Requests are executed one after the other on the event loop, through one bounded buffer: the guest may change
//! its memory while a request runs, so a disk never sees that memory itself. A device with limits stops before the
//! request that exceeds them and goes on when a timer fires; whatever is behind it in the queue waits as well, as all
//! does while the guest is paused. Must never know how a disk's bytes lie in files.

mod request;
mod throttle;

use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use serde::{Deserialize, Serialize};
use storage::format::Disk;
use vmm_sys_util::eventfd::EventFd;

use super::limiter::BucketState;
use super::queue::{Chain, Handled, QueueError};
use super::spec::{block as spec, device_type};
use super::state::{DeviceState, StateError, decode};
use super::{Activation, Error, Shared, VirtioDevice};
use crate::config::{DiskConfig, DiskLimits};
use crate::memory::GuestMemory;

use request::{Range, Request, Rules};
use throttle::Throttle;

pub use super::limiter::Clock;

/// Descriptors in the request queue: enough for 40 requests of three descriptors in flight.
pub const QUEUE_SIZE_MAX: u16 = 128;
/// Data segments per request that drivers are told to keep to: the queue less header and status.
pub const SEGMENTS_MAX: u32 = QUEUE_SIZE_MAX as u32 - 2;
/// Bytes per data segment that drivers are told to keep to; with [`SEGMENTS_MAX`] a request stays under 8 MiB.
pub const SEGMENT_BYTES_MAX: u32 = 64 << 10;
/// The largest copy between guest and disk at a time; also the most memory that a disk's requests hold.
pub const BUFFER_BYTES_MAX: usize = 64 << 10;
/// Requests executed before the event loop serves its other devices.
pub const BATCH_REQUESTS_MAX: u16 = 32;
/// Sectors that one discard may name: 512 MiB, a bounded walk over any disk format's tables.
pub const DISCARD_SECTORS_MAX: u32 = 1 << 20;
/// Sectors that one request may zero: 4 MiB, written as zeros in a few milliseconds.
pub const WRITE_ZEROES_SECTORS_MAX: u32 = 8192;
/// Ranges in one discard.
pub const DISCARD_RANGES_MAX: usize = 16;

/// Makes the block device that `config` describes over `disk`, which the caller has opened.
pub fn build_block(config: &DiskConfig, disk: Box<dyn Disk>) -> Result<Shared, Error> {
    let block = Block::new(disk, config.read_only, &config.serial)?;
    Ok(Arc::new(Mutex::new(block.limited(&config.limits, Box::new(Instant::now))?)))
}

/// Why a request failed; each has its status byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failure {
    /// `VIRTIO_BLK_S_IOERR`.
    Io,
    /// `VIRTIO_BLK_S_UNSUPP`.
    Unsupported,
}

/// One block device.
pub struct Block {
    disk: Box<dyn Disk>,
    read_only: bool,
    serial: [u8; spec::ID_BYTES],
    config: [u8; CONFIG_BYTES],
    queue_events: Vec<EventFd>,
    active: Option<Activation>,
    chain: Chain,
    buffer: Vec<u8>,
    throttle: Option<Throttle>,
    /// What is in the queue waits: the guest is paused.
    held: bool,
    /// The disk is larger than that of the snapshot which the guest goes on from, and the guest does not know yet.
    grown: bool,
}

/// What a snapshot holds of a disk.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct OwnState {
    /// The size that the guest knows.
    bytes: u64,
    /// What its limits have counted.
    buckets: Vec<BucketState>,
}

/// Bytes of the configuration space up to `write_zeroes_may_unmap` and its padding.
const CONFIG_BYTES: usize = 60;

/// The configuration space (§5.2.4): capacity u64 @0, size_max u32 @8, seg_max u32 @12, blk_size u32 @20,
/// num_queues u16 @34, max_discard_sectors u32 @36, max_discard_seg u32 @40, discard_sector_alignment u32 @44,
/// max_write_zeroes_sectors u32 @48, max_write_zeroes_seg u32 @52; the rest is zero.
fn config_space(sectors: u64) -> [u8; CONFIG_BYTES] {
    let mut space = [0; CONFIG_BYTES];
    let mut put = |offset: usize, bytes: &[u8]| space[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0, &sectors.to_le_bytes());
    put(8, &SEGMENT_BYTES_MAX.to_le_bytes());
    put(12, &SEGMENTS_MAX.to_le_bytes());
    put(20, &(spec::SECTOR_BYTES as u32).to_le_bytes());
    put(34, &1_u16.to_le_bytes());
    put(36, &DISCARD_SECTORS_MAX.to_le_bytes());
    put(40, &(DISCARD_RANGES_MAX as u32).to_le_bytes());
    put(44, &1_u32.to_le_bytes());
    put(48, &WRITE_ZEROES_SECTORS_MAX.to_le_bytes());
    put(52, &1_u32.to_le_bytes());
    space
}

impl Block {
    /// A device over `disk`; `serial` has at most 20 bytes. A tail shorter than a sector stays out of reach.
    pub fn new(disk: Box<dyn Disk>, read_only: bool, serial: &str) -> Result<Self, Error> {
        let mut padded = [0; spec::ID_BYTES];
        let Some(place) = padded.get_mut(..serial.len()) else {
            return Err(Error::Config {
                what: "disk serial",
                value: serial.to_owned(),
                allowed: "up to 20 bytes",
            });
        };
        place.copy_from_slice(serial.as_bytes());
        Ok(Self {
            config: config_space(disk.size_bytes() / spec::SECTOR_BYTES),
            disk,
            read_only,
            serial: padded,
            queue_events: super::queue_event_fds(1)?,
            active: None,
            chain: Chain::new(),
            buffer: Vec::new(),
            throttle: None,
            held: false,
            grown: false,
        })
    }

    /// The same device, held to `limits` by `clock`.
    ///
    /// # Errors
    /// A limit out of range, or the kernel gives no timer.
    pub fn limited(mut self, limits: &DiskLimits, clock: Clock) -> Result<Self, Error> {
        self.throttle = Throttle::new(limits, clock)?;
        Ok(self)
    }

    /// The size in bytes, as the guest reads it.
    fn bytes(&self) -> u64 {
        self.disk.size_bytes() / spec::SECTOR_BYTES * spec::SECTOR_BYTES
    }

    fn work(&mut self) {
        let Some(mut active) = self.active.take() else { return };
        let mut chain = std::mem::take(&mut self.chain);
        let features = active.features;
        let progress = active.queues[0]
            .work_off(&mut chain, BATCH_REQUESTS_MAX, |memory, chain| self.execute(memory, chain, features))
            .and_then(|progress| active.settle(0, progress, &self.queue_events));
        self.chain = chain;
        match progress {
            Ok(_) => self.active = Some(active),
            Err(error) => super::broken(&active, device_type::BLOCK, error),
        }
    }

    fn execute(&mut self, memory: &GuestMemory, chain: &Chain, features: u64) -> Result<Handled, QueueError> {
        let Some(data_in) = chain.writable_bytes().checked_sub(1) else { return Err(QueueError::Outcome) };
        let rules = Rules { disk_bytes: self.disk.size_bytes(), read_only: self.read_only, features };
        let request = rules.parse(memory, chain, data_in);
        if let (Ok(request), Some(throttle)) = (&request, &mut self.throttle)
            && request.cost().is_some_and(|cost| !throttle.admit(cost))
        {
            return Ok(Handled::Later);
        }
        let outcome = request.and_then(|request| self.run(memory, chain, features, &request));
        let (status, written) = match outcome {
            Ok(()) => (spec::S_OK, data_in + 1),
            // Nothing can be said of the data before the status byte.
            Err(Failure::Io) => (spec::S_IOERR, u64::from(data_in == 0)),
            Err(Failure::Unsupported) => (spec::S_UNSUPP, u64::from(data_in == 0)),
        };
        chain.write_at(memory, data_in, &[status]);
        // Chains describe at most CHAIN_BYTES_MAX bytes, far below 4 GiB.
        Ok(Handled::Used(u32::try_from(written).unwrap_or(u32::MAX)))
    }

    fn run(
        &mut self,
        memory: &GuestMemory,
        chain: &Chain,
        features: u64,
        request: &Request,
    ) -> Result<(), Failure> {
        match request {
            Request::Read(range) => self.read(memory, chain, *range),
            Request::Write(range) => {
                self.write(memory, chain, *range)?;
                // Without a cache flush of its own, the driver may take a finished write for durable (§5.2.6.2).
                if features & spec::F_FLUSH == 0 { self.flush() } else { Ok(()) }
            }
            Request::Flush => self.flush(),
            Request::Identify { bytes } => {
                chain.write_at(memory, 0, &self.serial[..*bytes]);
                Ok(())
            }
            Request::Discard(ranges) => self.discard(ranges),
            Request::WriteZeroes(range) => self.write_zeroes(*range),
        }
    }

    /// The buffer, grown to hold a piece of `length` bytes; never beyond [`BUFFER_BYTES_MAX`].
    fn grow(&mut self, length: u64) {
        let wanted = usize::try_from(length).unwrap_or(usize::MAX).min(BUFFER_BYTES_MAX);
        if self.buffer.len() < wanted {
            self.buffer.resize(wanted, 0);
        }
    }

    fn read(&mut self, memory: &GuestMemory, chain: &Chain, range: Range) -> Result<(), Failure> {
        self.grow(range.length);
        for (done, piece) in pieces(range.length) {
            let buffer = &mut self.buffer[..piece];
            self.disk.read_at(buffer, range.offset + done).map_err(|error| failed("read", &error))?;
            chain.write_at(memory, done, buffer);
        }
        Ok(())
    }

    fn write(&mut self, memory: &GuestMemory, chain: &Chain, range: Range) -> Result<(), Failure> {
        self.grow(range.length);
        for (done, piece) in pieces(range.length) {
            let buffer = &mut self.buffer[..piece];
            if chain.read_at(memory, spec::REQUEST_HEADER_BYTES as u64 + done, buffer) != piece {
                return Err(Failure::Io);
            }
            self.disk.write_at(buffer, range.offset + done).map_err(|error| failed("write", &error))?;
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), Failure> {
        self.disk.flush().map_err(|error| failed("flush", &error))
    }

    fn discard(&self, ranges: &[Range]) -> Result<(), Failure> {
        for range in ranges {
            self.disk.discard(range.offset, range.length).map_err(|error| failed("discard", &error))?;
        }
        Ok(())
    }

    fn write_zeroes(&mut self, range: Range) -> Result<(), Failure> {
        self.grow(range.length);
        self.buffer.fill(0);
        for (done, piece) in pieces(range.length) {
            self.disk
                .write_at(&self.buffer[..piece], range.offset + done)
                .map_err(|error| failed("write zeroes", &error))?;
        }
        Ok(())
    }
}

/// Offsets and lengths of the pieces in which `length` bytes pass through the buffer.
fn pieces(length: u64) -> impl Iterator<Item = (u64, usize)> {
    (0..length).step_by(BUFFER_BYTES_MAX).map(move |done| {
        let piece = usize::try_from(length - done).unwrap_or(usize::MAX).min(BUFFER_BYTES_MAX);
        (done, piece)
    })
}

fn failed(what: &'static str, error: &std::io::Error) -> Failure {
    tracing::debug!(%error, what, "a guest's disk request failed");
    Failure::Io
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        device_type::BLOCK
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE_MAX]
    }

    fn queue_events(&self) -> &[EventFd] {
        &self.queue_events
    }

    fn features(&self) -> u64 {
        let always = spec::F_SIZE_MAX | spec::F_SEG_MAX | spec::F_BLK_SIZE | spec::F_FLUSH;
        if self.read_only { always | spec::F_RO } else { always | spec::F_DISCARD | spec::F_WRITE_ZEROES }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::read_config_bytes(&self.config, offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) {
        if std::mem::take(&mut self.grown) {
            activation.interrupt.config_changed();
        }
        self.active = Some(activation);
    }

    fn reset(&mut self) {
        self.active = None;
        if let Some(throttle) = &mut self.throttle {
            throttle.wake();
        }
    }

    fn save(&self) -> DeviceState {
        let buckets = self.throttle.as_ref().map(Throttle::save).unwrap_or_default();
        DeviceState::of(self.active.as_ref()).with(&OwnState { bytes: self.bytes(), buckets })
    }

    /// The disk may have grown: the guest is told once it goes on, as of any other.
    fn restore(&mut self, own: &[u8]) -> Result<(), StateError> {
        let saved: OwnState = decode(own)?;
        let now = self.bytes();
        if now < saved.bytes {
            return Err(StateError::SmallerDisk { now, before: saved.bytes });
        }
        self.grown = now > saved.bytes;
        if let Some(throttle) = &mut self.throttle {
            throttle.restore(&saved.buckets);
        }
        Ok(())
    }

    fn hold(&mut self, held: bool) {
        self.held = held;
        if !held {
            super::kick(&self.queue_events[0]);
        }
    }

    fn replace_disk(&mut self, disk: Box<dyn Disk>) {
        self.config = config_space(disk.size_bytes() / spec::SECTOR_BYTES);
        self.disk = disk;
        if let Some(active) = &self.active {
            active.interrupt.config_changed();
        }
    }

    fn write_out(&mut self) -> std::io::Result<()> {
        self.disk.flush()
    }
}

impl MutEventSubscriber for Block {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        super::watch(ops, &self.queue_events[0], EventSet::IN);
        if let Some(throttle) = &self.throttle {
            super::watch(ops, throttle, EventSet::IN);
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        match &mut self.throttle {
            Some(throttle) if events.fd() == throttle.as_raw_fd() => throttle.wake(),
            _ => super::drain(&self.queue_events[0]),
        }
        if !self.held && !self.throttle.as_ref().is_some_and(Throttle::is_stalled) {
            self.work();
        }
    }
}
