//! Memory that comes and goes while a guest runs (VIRTIO 1.3 §5.15): a region behind the guest's RAM, of which the guest has
//! as many blocks as it plugs, and is asked for how much it should.
//!
//! What it gives back is the host's again at once, and reads as zeros. The region is there all the time: a guest that writes
//! to what it has not plugged finds memory, and no more of it than its owner gave the region. What is written there may be
//! gone at any time.
//!
//! Must never know: who wants how much, KVM.

use std::sync::{Arc, Mutex};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use serde::{Deserialize, Serialize};
use vm_memory::{Address as _, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::queue::{Chain, Handled, QueueError};
use super::spec::{device_type, mem as spec};
use super::state::decode;
use super::{Activation, DeviceState, Error, StateError, VirtioDevice};
use crate::memory::discard::{Emptied, discard, empty};
use crate::memory::{GuestMemory, MIB};

/// Descriptors in the queue: requests come one by one.
pub const QUEUE_SIZE_MAX: u16 = 64;
/// Bytes of a block, which comes and goes as a whole: a huge page.
pub const BLOCK_BYTES: u64 = 2 << 20;
/// MiB of a block.
pub const BLOCK_MIB: u32 = 2;
/// Requests answered before the event loop serves its other devices: one may give 128 GiB back, page by page as they are
/// noted for snapshots. Drivers wait for each.
const BATCH_REQUESTS_MAX: u16 = 1;
/// Seven numbers (§5.15.4).
const CONFIG_BYTES: usize = 56;

/// Where memory may be plugged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Its start, a multiple of a block.
    pub start: GuestAddress,
    /// Its length in MiB, as many blocks.
    pub mib: u32,
}

/// How a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemStatus {
    /// What there can be.
    pub region_mib: u32,
    /// What the guest is asked to have.
    pub requested_mib: u32,
    /// What it has.
    pub plugged_mib: u32,
}

/// Which blocks are plugged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocks {
    /// A bit for each, the first one's lowest; none behind the last.
    words: Vec<u64>,
    count: u64,
}

impl Blocks {
    fn none(count: u64) -> Self {
        Self { words: vec![0; usize::try_from(count.div_ceil(64)).expect("invariant: bounded")], count }
    }

    fn is_set(&self, block: u64) -> bool {
        let word = usize::try_from(block / 64).ok().and_then(|index| self.words.get(index));
        word.is_some_and(|word| word >> (block % 64) & 1 != 0)
    }

    fn set(&mut self, blocks: std::ops::Range<u64>, plugged: bool) {
        for block in blocks {
            let index = usize::try_from(block / 64).expect("invariant: bounded");
            let bit = 1 << (block % 64);
            self.words[index] = if plugged { self.words[index] | bit } else { self.words[index] & !bit };
        }
    }

    fn plugged(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Whether the MiB with that number is plugged.
    #[must_use]
    pub fn has_mib(&self, mib: u64) -> bool {
        self.is_set(mib / u64::from(BLOCK_MIB))
    }

    /// As it came from somewhere: whether it is of so many blocks, and of no more.
    fn is_of(&self, count: u64) -> bool {
        let excess = self.words.len() as u64 * 64 - count.min(self.words.len() as u64 * 64);
        let last = self.words.last().copied().unwrap_or(0);
        self.count == count
            && self.words.len() as u64 == count.div_ceil(64)
            && (excess == 0 || last.leading_zeros() >= u32::try_from(excess).unwrap_or(u32::MAX))
    }
}

/// What a device saves.
#[derive(Serialize, Deserialize)]
struct OwnState {
    start: u64,
    requested: u64,
    blocks: Blocks,
}

/// One device.
pub struct Mem {
    region: Region,
    memory: GuestMemory,
    /// How memory is made empty.
    emptied: Emptied,
    blocks: Blocks,
    /// Blocks that the guest is asked to have.
    requested: u64,
    queue_events: Vec<EventFd>,
    active: Option<Activation>,
    chain: Chain,
    held: bool,
}

/// Makes the device of `region`, which is memory of `memory`'s, without anything plugged.
///
/// # Errors
/// More is wanted than there can be, or the kernel gives no event descriptor.
pub fn build_mem(
    region: Region,
    memory: &GuestMemory,
    emptied: Emptied,
    requested_mib: u32,
) -> Result<Arc<Mutex<Mem>>, Error> {
    Ok(Arc::new(Mutex::new(Mem {
        region,
        memory: memory.clone(),
        emptied,
        blocks: Blocks::none(u64::from(region.mib / BLOCK_MIB)),
        requested: requested(region, requested_mib)?,
        queue_events: super::queue_event_fds(1)?,
        active: None,
        chain: Chain::new(),
        held: false,
    })))
}

/// So many MiB in blocks.
fn requested(region: Region, mib: u32) -> Result<u64, Error> {
    if mib > region.mib || !mib.is_multiple_of(BLOCK_MIB) {
        let allowed = "multiples of 2 MiB up to what the guest was given room for";
        return Err(Error::Config { what: "hot-plugged memory", value: format!("{mib} MiB"), allowed });
    }
    Ok(u64::from(mib / BLOCK_MIB))
}

impl Mem {
    /// Asks the guest to have `mib` MiB.
    ///
    /// # Errors
    /// There is no room for so much, or it is not of whole blocks.
    pub fn request(&mut self, mib: u32) -> Result<(), Error> {
        let wanted = requested(self.region, mib)?;
        if wanted != self.requested {
            self.requested = wanted;
            if let Some(active) = &self.active {
                active.interrupt.config_changed(&self.config());
            }
        }
        Ok(())
    }

    /// How it is now.
    #[must_use]
    pub fn status(&self) -> MemStatus {
        let mib = |blocks: u64| u32::try_from(blocks).unwrap_or(u32::MAX) * BLOCK_MIB;
        MemStatus {
            region_mib: self.region.mib,
            requested_mib: mib(self.requested),
            plugged_mib: mib(self.blocks.plugged()),
        }
    }

    /// Which blocks are plugged.
    #[must_use]
    pub fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    fn config(&self) -> [u8; CONFIG_BYTES] {
        let region = u64::from(self.region.mib) * MIB;
        let numbers = [
            BLOCK_BYTES,
            0,
            self.region.start.raw_value(),
            region,
            region,
            self.blocks.plugged() * BLOCK_BYTES,
            self.requested * BLOCK_BYTES,
        ];
        let mut space = [0; CONFIG_BYTES];
        space.copy_from_slice(numbers.map(u64::to_le_bytes).as_flattened());
        space
    }

    fn work(&mut self) {
        let Some(mut active) = self.active.take() else { return };
        let mut chain = std::mem::take(&mut self.chain);
        let interrupt = Arc::clone(&active.interrupt);
        let worked = active.queues[0].work_off(&mut chain, BATCH_REQUESTS_MAX, |memory, chain| {
            if chain.writable_bytes() < spec::RESPONSE_BYTES as u64 {
                return Err(QueueError::Outcome);
            }
            let mut request = [0; spec::REQUEST_BYTES];
            let length = chain.read_at(memory, 0, &mut request);
            let (kind, state) = self.answer(&request[..length]);
            // Before the driver has the answer, and looks how much it is.
            interrupt.show_config(&self.config());
            let mut response = [0; spec::RESPONSE_BYTES];
            response[..2].copy_from_slice(&kind.to_le_bytes());
            response[8..].copy_from_slice(&state.to_le_bytes());
            chain.write_at(memory, 0, &response);
            Ok(Handled::Used(spec::RESPONSE_BYTES as u32))
        });
        self.chain = chain;
        match worked.and_then(|progress| active.settle(0, progress, &self.queue_events)) {
            Ok(_) => self.active = Some(active),
            Err(error) => super::broken(&active, device_type::MEM, error),
        }
    }

    /// What becomes of a request, and the state that it asked for.
    fn answer(&mut self, request: &[u8]) -> (u16, u16) {
        let half = |at: usize| Some(u16::from_le_bytes(request.get(at..at + 2)?.try_into().ok()?));
        let kind = half(0).filter(|_| request.len() >= spec::REQUEST_HEADER_BYTES);
        if kind == Some(spec::REQUEST_UNPLUG_ALL) {
            return (self.unplug_all(), 0);
        }
        let address = request.get(8..16).and_then(|bytes| Some(u64::from_le_bytes(bytes.try_into().ok()?)));
        let blocks = address.zip(half(16)).and_then(|(address, count)| self.range(address, count));
        let Some(blocks) = blocks else { return (spec::RESPONSE_ERROR, 0) };
        let size = blocks.end - blocks.start;
        let plugged = blocks.clone().filter(|block| self.blocks.is_set(*block)).count() as u64;
        match kind {
            Some(spec::REQUEST_PLUG) if plugged > 0 => (spec::RESPONSE_ERROR, 0),
            // The host may have changed its mind meanwhile.
            Some(spec::REQUEST_PLUG) if self.blocks.plugged() + size > self.requested => {
                (spec::RESPONSE_NACK, 0)
            }
            Some(spec::REQUEST_PLUG) => {
                self.blocks.set(blocks, true);
                (spec::RESPONSE_ACK, 0)
            }
            Some(spec::REQUEST_UNPLUG) if plugged < size => (spec::RESPONSE_ERROR, 0),
            Some(spec::REQUEST_UNPLUG) => (self.unplug(blocks), 0),
            Some(spec::REQUEST_STATE) => {
                let state = match plugged {
                    0 => spec::STATE_UNPLUGGED,
                    all if all == size => spec::STATE_PLUGGED,
                    _ => spec::STATE_MIXED,
                };
                (spec::RESPONSE_ACK, state)
            }
            _ => (spec::RESPONSE_ERROR, 0),
        }
    }

    /// Gives all blocks back, and what a guest wrote where it had plugged none.
    fn unplug_all(&mut self) -> u16 {
        let mut next = 0;
        while let Some(first) = (next..self.blocks.count).find(|block| self.blocks.is_set(*block)) {
            next = (first..self.blocks.count)
                .find(|block| !self.blocks.is_set(*block))
                .unwrap_or(self.blocks.count);
            let answer = self.unplug(first..next);
            if answer != spec::RESPONSE_ACK {
                return answer;
            }
        }
        // None of it is promised to be anything, so nobody need note it.
        let _ = discard(&self.memory, self.region.start, u64::from(self.region.mib) * MIB);
        spec::RESPONSE_ACK
    }

    /// Gives blocks back.
    fn unplug(&mut self, blocks: std::ops::Range<u64>) -> u16 {
        let start = self.region.start.unchecked_add(blocks.start * BLOCK_BYTES);
        let bytes = (blocks.end - blocks.start) * BLOCK_BYTES;
        match empty(&self.memory, start, bytes, self.emptied) {
            Ok(()) => {
                self.blocks.set(blocks, false);
                spec::RESPONSE_ACK
            }
            Err(error) => {
                tracing::debug!(%error, "the host does not take a guest's memory back");
                spec::RESPONSE_BUSY
            }
        }
    }

    /// The numbers of `count` blocks from `address` on; nothing unless there is at least one and all are in the region.
    fn range(&self, address: u64, count: u16) -> Option<std::ops::Range<u64>> {
        let offset = address.checked_sub(self.region.start.raw_value())?;
        let (start, count) = (offset / BLOCK_BYTES, u64::from(count));
        let fits = offset.is_multiple_of(BLOCK_BYTES) && count > 0 && start + count <= self.blocks.count;
        fits.then_some(start..start + count)
    }
}

impl VirtioDevice for Mem {
    fn device_type(&self) -> u32 {
        device_type::MEM
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE_MAX]
    }

    fn queue_events(&self) -> &[EventFd] {
        &self.queue_events
    }

    /// No node: the guest has one. What is not plugged can be read, so a driver need not know that it may not.
    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::read_config_bytes(&self.config(), offset, data);
    }

    fn activate(&mut self, activation: Activation) {
        self.active = Some(activation);
    }

    /// What is plugged stays so: a driver that comes anew finds out, and the memory may be in use.
    fn reset(&mut self) {
        self.active = None;
    }

    fn save(&self) -> DeviceState {
        let own = OwnState {
            start: self.region.start.raw_value(),
            requested: self.requested,
            blocks: self.blocks.clone(),
        };
        DeviceState::of(self.active.as_ref()).with(&own)
    }

    fn restore(&mut self, own: &[u8]) -> Result<(), StateError> {
        let saved: OwnState = decode(own)?;
        let count = self.blocks.count;
        if saved.start != self.region.start.raw_value()
            || saved.requested > count
            || !saved.blocks.is_of(count)
        {
            return Err(StateError::Invalid("its hot-plugged memory lies elsewhere or is none"));
        }
        (self.requested, self.blocks) = (saved.requested, saved.blocks);
        Ok(())
    }

    fn hold(&mut self, held: bool) {
        self.held = held;
        if !held {
            super::kick(&self.queue_events[0]);
        }
    }
}

impl MutEventSubscriber for Mem {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        super::watch(ops, &self.queue_events[0], EventSet::IN);
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        super::drain(&self.queue_events[0]);
        if !self.held {
            self.work();
        }
    }
}
