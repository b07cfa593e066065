//! The block device (VIRTIO 1.3 §5.2) over any [`Disk`].
//!
//! Requests are begun on the event loop, which also hears of what the kernel has done ([`backend`]). There are several queues,
//! all of them worked off by that one loop: a guest's processors need not wait for one another to ask. A device with limits
//! stops before the request that exceeds them and goes on when a timer fires; whatever is behind it in the queues waits as
//! well, as all does while the guest is paused: then nothing is under way. Must never know how a disk's bytes lie in files.

mod backend;
mod flight;
pub(super) mod guest_io;
mod mapped;
mod request;
pub mod ring;
mod throttle;

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use serde::{Deserialize, Serialize};
use storage::format::{Disk, Work};
use vmm_sys_util::eventfd::EventFd;

use super::limiter::BucketState;
use super::queue::{Chain, Handled, Progress, QueueError, VirtQueue};
use super::spec::{block as spec, device_type};
use super::state::{DeviceState, StateError, decode};
use super::{Activation, Error, Shared, VirtioDevice};
use crate::config::{DiskConfig, DiskLimits};
use crate::memory::GuestMemory;
use crate::rpc::{DiskCounts, DiskEngine};

use backend::{Backend, Begun};
use request::{Request, Rules};
use ring::Ring;
use throttle::Throttle;

pub use super::limiter::Clock;

/// Descriptors in each request queue: enough for 40 requests of three descriptors in flight, and as many as there are
/// descriptors where the driver has indirect ones.
pub const QUEUE_SIZE_MAX: u16 = 128;
/// Queues: what a guest's processors share them for is worth less the more there are, and each takes descriptors of the host.
pub const QUEUES_MAX: u16 = 8;
/// Data segments per request that drivers are told to keep to: the queue less header and status.
pub const SEGMENTS_MAX: u32 = QUEUE_SIZE_MAX as u32 - 2;
/// Bytes per data segment that drivers are told to keep to; with [`SEGMENTS_MAX`] a request stays under 8 MiB.
pub const SEGMENT_BYTES_MAX: u32 = 64 << 10;
/// The largest copy between guest and disk at a time; also the most memory that a disk's buffer takes.
pub const BUFFER_BYTES_MAX: usize = 64 << 10;
/// Requests of a queue begun before the event loop serves its other devices.
pub const BATCH_REQUESTS_MAX: u16 = 32;
/// Logical blocks in a physical one, as a power of two: 4096 bytes, an overlay's cluster and a file system's block. Partitions
/// and file systems are laid out so that no write is of a part of one.
const PHYSICAL_BLOCK_EXPONENT: u8 = 3;
/// Sectors that one discard may name: 512 MiB, a bounded walk over any disk format's tables.
pub const DISCARD_SECTORS_MAX: u32 = 1 << 20;
/// Sectors that one request may zero: 4 MiB, written as zeros in a few milliseconds where the file cannot do without.
pub const WRITE_ZEROES_SECTORS_MAX: u32 = 8192;
/// Ranges in one discard.
pub const DISCARD_RANGES_MAX: usize = 16;

/// Makes the block device that `config` describes over `disk`, which the caller has opened, with so many queues (at most
/// [`QUEUES_MAX`]). `rings` gives it a ring, if the disk can use one.
pub fn build_block(
    config: &DiskConfig,
    disk: Box<dyn Disk>,
    (queues, rings): (u16, &mut ring::Rings),
) -> Result<Shared, Error> {
    let nothing = Work::Read { offset: 0, length: 0 };
    let can = backend::located_by(&*disk).locate(nothing, &mut Vec::new()).unwrap_or(false);
    let ring = if can { rings.take() } else { None };
    let block = Block::with(disk, config.read_only, &config.serial, (queues, ring))?;
    Ok(Arc::new(Mutex::new(block.limited(&config.limits, Box::new(Instant::now))?)))
}

/// The number of queues of each disk of a guest with so many vCPUs.
#[must_use]
pub fn queues_for(vcpus: u8) -> u16 {
    u16::from(vcpus).clamp(1, QUEUES_MAX)
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
    backend: Backend,
    read_only: bool,
    config: [u8; CONFIG_BYTES],
    queue_sizes: Vec<u16>,
    queue_events: Vec<EventFd>,
    active: Option<Activation>,
    chain: Chain,
    /// The queue that was looked at first, last time.
    first_queue: usize,
    throttle: Throttle,
    /// What was counted, without what the throttle counts.
    counts: DiskCounts,
    /// What is in the queues waits: the guest is paused.
    held: bool,
    /// The disk is larger than that of the snapshot which the guest goes on from, and the guest does not know yet.
    grown: bool,
    /// When it began with what it did since it was asked last.
    busy: Option<Instant>,
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
/// physical_block_exp u8 @24, num_queues u16 @34, max_discard_sectors u32 @36, max_discard_seg u32 @40,
/// discard_sector_alignment u32 @44, max_write_zeroes_sectors u32 @48, max_write_zeroes_seg u32 @52,
/// write_zeroes_may_unmap u8 @56; the rest is zero.
fn config_space(sectors: u64, queues: u16) -> [u8; CONFIG_BYTES] {
    let mut space = [0; CONFIG_BYTES];
    let mut put = |offset: usize, bytes: &[u8]| space[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0, &sectors.to_le_bytes());
    put(8, &SEGMENT_BYTES_MAX.to_le_bytes());
    put(12, &SEGMENTS_MAX.to_le_bytes());
    put(20, &(spec::SECTOR_BYTES as u32).to_le_bytes());
    put(24, &[PHYSICAL_BLOCK_EXPONENT]);
    put(34, &queues.to_le_bytes());
    put(36, &DISCARD_SECTORS_MAX.to_le_bytes());
    put(40, &(DISCARD_RANGES_MAX as u32).to_le_bytes());
    // In sectors: what is freed in parts of a block is not freed.
    put(44, &(1_u32 << PHYSICAL_BLOCK_EXPONENT).to_le_bytes());
    put(48, &WRITE_ZEROES_SECTORS_MAX.to_le_bytes());
    put(52, &1_u32.to_le_bytes());
    put(56, &[1]);
    space
}

impl Block {
    /// A device over `disk` with one queue and no ring; `serial` has at most 20 bytes. A tail shorter than a sector stays out
    /// of reach.
    pub fn new(disk: Box<dyn Disk>, read_only: bool, serial: &str) -> Result<Self, Error> {
        Self::with(disk, read_only, serial, (1, None))
    }

    /// The same with so many queues (at most [`QUEUES_MAX`]) and a ring.
    pub fn with(
        disk: Box<dyn Disk>,
        read_only: bool,
        serial: &str,
        (queues, ring): (u16, Option<Ring>),
    ) -> Result<Self, Error> {
        let mut padded = [0; spec::ID_BYTES];
        let Some(place) = padded.get_mut(..serial.len()) else {
            return Err(Error::Config {
                what: "disk serial",
                value: serial.to_owned(),
                allowed: "up to 20 bytes (VIRTIO_BLK_ID_BYTES, VIRTIO 1.3 §5.2.6.1)",
            });
        };
        place.copy_from_slice(serial.as_bytes());
        let queues = queues.clamp(1, QUEUES_MAX);
        Ok(Self {
            config: config_space(disk.size_bytes() / spec::SECTOR_BYTES, queues),
            backend: Backend::new(disk, padded, ring),
            read_only,
            queue_sizes: vec![QUEUE_SIZE_MAX; queues.into()],
            queue_events: super::queue_event_fds(queues.into())?,
            active: None,
            chain: Chain::new(),
            first_queue: 0,
            throttle: Throttle::new()?,
            counts: DiskCounts::default(),
            held: false,
            grown: false,
            busy: None,
        })
    }

    /// The same device, held to `limits` by `clock`.
    ///
    /// # Errors
    /// A limit out of range.
    pub fn limited(mut self, limits: &DiskLimits, clock: Clock) -> Result<Self, Error> {
        self.throttle = self.throttle.by(clock);
        self.throttle.change(limits)?;
        Ok(self)
    }

    /// The size in bytes, as the guest reads it.
    fn bytes(&self) -> u64 {
        self.backend.size_bytes() / spec::SECTOR_BYTES * spec::SECTOR_BYTES
    }

    /// Does `act` with the queues, unless the driver has broken them.
    fn with_queues(&mut self, act: impl FnOnce(&mut Self, &mut Activation) -> Result<(), QueueError>) {
        let Some(mut active) = self.active.take() else { return };
        match act(self, &mut active) {
            Ok(()) => self.active = Some(active),
            Err(error) => {
                self.backend.abandon();
                super::broken(&active, device_type::BLOCK, error);
            }
        }
    }

    /// Begins what is in the queues, and gives back what is done.
    fn work(&mut self, active: &mut Activation) -> Result<(), QueueError> {
        let (began, before) = (Instant::now(), active.used());
        self.work_off(active)?;
        if active.used() != before {
            self.busy.get_or_insert(began);
        }
        Ok(())
    }

    fn work_off(&mut self, active: &mut Activation) -> Result<(), QueueError> {
        self.backend.collect();
        self.deliver(active)?;
        let can_flush = active.features & spec::F_FLUSH != 0;
        let features = active.features;
        let count = active.queues.len();
        // Another queue is the first each time: where a limit stops them, none waits for ever.
        let first = (self.first_queue + 1) % count;
        self.first_queue = first;
        let mut full = 0;
        for index in (0..count).map(|step| (first + step) % count) {
            if !active.queues[index].is_used() || self.is_stalled() {
                continue;
            }
            let mut chain = std::mem::take(&mut self.chain);
            let progress = active.queues[index].work_off(&mut chain, BATCH_REQUESTS_MAX, |memory, chain| {
                // There are at most QUEUES_MAX queues.
                self.execute(memory, (index as u16, chain), features, can_flush)
            });
            self.chain = chain;
            match progress? {
                Progress::More => super::kick(&self.queue_events[index]),
                Progress::Waiting => full |= 1 << index,
                Progress::Empty => {}
            }
        }
        self.backend.submit();
        self.deliver(active)?;
        // What waited for room finds it, unless it is a limit that it waits for: then its timer wakes the device.
        if full != 0 && !self.is_stalled() && self.backend.under_way() == 0 {
            let waiting = (0..).zip(&self.queue_events).filter(|(index, _)| full & (1 << index) != 0);
            waiting.for_each(|(_, event)| super::kick(event));
        }
        active.signal_all();
        Ok(())
    }

    /// A request waits for a limit, and all behind it.
    fn is_stalled(&self) -> bool {
        self.throttle.is_stalled()
    }

    /// Gives back what is done.
    fn deliver(&mut self, active: &mut Activation) -> Result<(), QueueError> {
        let Activation { memory, queues, .. } = active;
        let counts = &mut self.counts;
        let mut give = |queue: u16, chain: &Chain, outcome| {
            let written = answer(memory, chain, outcome, counts);
            queues.get_mut(usize::from(queue)).map_or(Ok(()), |queue| queue.push_used(chain, written))
        };
        while let Some(given) = self.backend.deliver(memory, &mut give) {
            given?;
        }
        Ok(())
    }

    /// Gives back what is done, and begins nothing.
    fn finish_some(&mut self) {
        self.with_queues(|this, active| {
            this.backend.collect();
            this.deliver(active)?;
            active.signal_all();
            Ok(())
        });
    }

    /// Waits for all that is under way, and gives it back.
    fn finish(&mut self) {
        self.with_queues(|this, active| {
            this.backend.wait();
            this.deliver(active)?;
            active.signal_all();
            Ok(())
        });
    }

    fn execute(
        &mut self,
        memory: &GuestMemory,
        (queue, chain): (u16, &mut Chain),
        features: u64,
        can_flush: bool,
    ) -> Result<Handled, QueueError> {
        if self.backend.is_full() {
            return Ok(Handled::Later);
        }
        let Some(data_in) = chain.writable_bytes().checked_sub(1) else { return Err(QueueError::Outcome) };
        let rules = Rules { disk_bytes: self.backend.size_bytes(), read_only: self.read_only, features };
        let request = match rules.parse(memory, chain, data_in) {
            Ok(request) => request,
            Err(failure) => return Ok(Handled::Used(answer(memory, chain, Err(failure), &mut self.counts))),
        };
        if request.cost().is_some_and(|cost| !self.throttle.admit(cost)) {
            return Ok(Handled::Later);
        }
        self.counts.flushes += u64::from(matches!(request, Request::Flush));
        Ok(match self.backend.begin(memory, (queue, chain), request, can_flush) {
            Begun::Done(outcome) => Handled::Used(answer(memory, chain, outcome, &mut self.counts)),
            Begun::UnderWay => Handled::Kept,
        })
    }
}

/// Writes a request's status; how many bytes of its buffers were written.
fn answer(memory: &GuestMemory, chain: &Chain, outcome: Result<(), Failure>, counts: &mut DiskCounts) -> u32 {
    counts.failures += u64::from(outcome.is_err());
    // Checked when the request was begun.
    let data_in = chain.writable_bytes().saturating_sub(1);
    let (status, written) = match outcome {
        Ok(()) => (spec::S_OK, data_in + 1),
        // Nothing can be said of the data before the status byte.
        Err(Failure::Io) => (spec::S_IOERR, u64::from(data_in == 0)),
        Err(Failure::Unsupported) => (spec::S_UNSUPP, u64::from(data_in == 0)),
    };
    chain.write_at(memory, data_in, &[status]);
    // Chains describe at most CHAIN_BYTES_MAX bytes, far below 4 GiB.
    u32::try_from(written).unwrap_or(u32::MAX)
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        device_type::BLOCK
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    /// Of several queues a driver uses as many as it likes.
    fn needs_queue(&self, index: usize, _features: u64) -> bool {
        index == 0
    }

    fn queue_events(&self) -> &[EventFd] {
        &self.queue_events
    }

    fn features(&self) -> u64 {
        let mut always =
            spec::F_SIZE_MAX | spec::F_SEG_MAX | spec::F_BLK_SIZE | spec::F_FLUSH | spec::F_TOPOLOGY;
        if self.queue_sizes.len() > 1 {
            always |= spec::F_MQ;
        }
        if self.read_only { always | spec::F_RO } else { always | spec::F_DISCARD | spec::F_WRITE_ZEROES }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::read_config_bytes(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) {
        if std::mem::take(&mut self.grown) {
            activation.interrupt.config_changed(&self.config);
        }
        self.active = Some(activation);
    }

    fn reset(&mut self) {
        self.backend.abandon();
        self.active = None;
        self.throttle.wake();
    }

    fn save(&self) -> DeviceState {
        let own = OwnState { bytes: self.bytes(), buckets: self.throttle.save() };
        DeviceState::of(self.active.as_ref()).with(&own)
    }

    /// The disk may have grown: the guest is told once it goes on, as of any other.
    fn restore(&mut self, own: &[u8]) -> Result<(), StateError> {
        let saved: OwnState = decode(own)?;
        let now = self.bytes();
        if now < saved.bytes {
            return Err(StateError::SmallerDisk { now, before: saved.bytes });
        }
        self.grown = now > saved.bytes;
        self.throttle.restore(&saved.buckets);
        Ok(())
    }

    fn hold(&mut self, held: bool) {
        self.held = held;
        if held {
            self.finish();
        } else {
            self.queue_events.iter().for_each(super::kick);
        }
    }

    fn take_busy(&mut self) -> Option<Instant> {
        self.busy.take()
    }

    fn stay_awake(&mut self, awake: bool) {
        if let Some(active) = &mut self.active {
            active.watch(0..self.queue_events.len(), (awake, self.held), &self.queue_events);
        }
    }

    fn look(&mut self, _ops: &mut EventOps<'_>) {
        let waits = |queue: &VirtQueue| queue.has_available();
        let is_due = self.backend.under_way() > 0
            || self.active.as_ref().is_some_and(|active| active.queues.iter().any(waits));
        if is_due && !self.held && !self.is_stalled() {
            self.with_queues(Self::work);
        }
    }

    fn replace_disk(&mut self, disk: Box<dyn Disk>) -> Option<OwnedFd> {
        self.finish();
        self.config = config_space(disk.size_bytes() / spec::SECTOR_BYTES, self.queue_sizes.len() as u16);
        let before = self.backend.replace(disk);
        if let Some(active) = &self.active {
            active.interrupt.config_changed(&self.config);
        }
        before
    }

    fn limit(&mut self, limits: &DiskLimits) -> Result<bool, Error> {
        self.throttle.change(limits)?;
        // What waited may go now.
        self.queue_events.iter().for_each(super::kick);
        Ok(true)
    }

    fn limits(&self) -> Option<DiskLimits> {
        Some(*self.throttle.limits())
    }

    fn write_out(&mut self) -> std::io::Result<()> {
        self.finish();
        self.backend.write_out()
    }

    fn engine(&self) -> Option<DiskEngine> {
        Some(if self.backend.ring().is_some() { DiskEngine::IoUring } else { DiskEngine::Synchronous })
    }

    fn requests(&self) -> Option<DiskCounts> {
        Some(DiskCounts { throttled: self.throttle.waits(), ..self.counts })
    }

    fn is_encrypted(&self) -> bool {
        self.backend.is_encrypted()
    }

    fn take_ring(&mut self) -> Option<Ring> {
        self.finish();
        self.backend.abandon();
        self.backend.take_ring()
    }
}

impl MutEventSubscriber for Block {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        for event in &self.queue_events {
            super::watch(ops, event, EventSet::IN);
        }
        super::watch(ops, &self.throttle, EventSet::IN);
        if let Some(ring) = self.backend.ring() {
            super::watch(ops, &ring, EventSet::IN);
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        let source = events.fd();
        if source == self.throttle.as_raw_fd() {
            self.throttle.wake();
        } else {
            self.queue_events.iter().filter(|event| event.as_raw_fd() == source).for_each(super::drain);
        }
        if !self.held && !self.is_stalled() {
            self.with_queues(Self::work);
        } else if self.backend.under_way() > 0 {
            self.finish_some();
        }
    }
}
