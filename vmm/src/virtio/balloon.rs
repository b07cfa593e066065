//! The memory balloon (VIRTIO 1.3 §5.5): a guest is asked to give memory back, tells of what it has free, and how much of
//! what it has.
//!
//! What it gives, and what it reports as free (§5.5.6.7), goes back to the host at once; what it wants again is there again
//! when it touches it, as zeros. So a guest that fills what is free with something else (page poisoning), and looks whether that
//! is still there when it uses it, keeps what it reports, and is asked for no hints; whether a page that it gave and takes back
//! is filled is its own business. What it hints at ([`hints`]) is only told to whoever asked for it: a guest keeps its hands off a page until
//! a report comes back, but may use one again before its hint is heard.
//!
//! Must never know: who sets the target.

mod hints;
mod statistics;

use std::sync::{Arc, Mutex};
use std::time::Instant;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use serde::{Deserialize, Serialize};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use super::queue::{Chain, Handled, Progress, QueueError};
use super::spec::{balloon as spec, device_type};
use super::state::decode;
use super::{Activation, DeviceState, Error, StateError, VirtioDevice};
use crate::memory::PAGE_BYTES;
use crate::memory::discard::discard;
use crate::memory::pages::PageSet;
use hints::Hints;

pub use statistics::{STATISTICS_MAX, Statistics};

/// Descriptors per queue; Linux reports with 32 at a time.
pub const QUEUE_SIZE_MAX: u16 = 128;
/// The most pages that one buffer gives: 128 MiB, more than any driver gives at once. Further ones stay where they are.
pub const PAGES_MAX: u64 = 32 << 10;
/// The most memory that one report or hint is about: eight times what Linux reports at once.
pub const REPORT_BYTES_MAX: u64 = 1 << 30;
/// Buffers worked off before the event loop serves its other devices: each may be many pages.
const BATCH_BUFFERS_MAX: u16 = 8;
/// Pages of a MiB.
const PAGES_PER_MIB: u32 = 256;
/// Queues; a driver that takes no hints uses one of the last two for its reports.
const QUEUES: usize = 5;

/// How a balloon is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonStatus {
    /// What the guest is asked to give.
    pub target_mib: u32,
    /// What it says to have given.
    pub given_mib: u32,
    /// What has gone back to the host so far, some of it again and again.
    pub returned_bytes: u64,
    /// What the guest said last of its memory.
    pub statistics: Option<Statistics>,
    /// How long ago it did, in milliseconds.
    pub statistics_age_ms: Option<u64>,
}

/// One balloon.
pub struct Balloon {
    target_pages: u32,
    given_pages: u32,
    /// What the guest fills free pages with, four bytes after four, if it says so.
    poison: u32,
    returned_bytes: u64,
    /// Not even a guest without memory takes pages out by itself.
    firm: bool,
    statistics: Option<(Instant, Statistics)>,
    /// The buffer of the statistics, which is given back when new ones are wanted.
    kept: Option<Chain>,
    hints: Hints,
    /// The guest has not been told yet that what it hinted at is its own again.
    tell: bool,
    queue_events: Vec<EventFd>,
    active: Option<Activation>,
    chain: Chain,
    held: bool,
}

/// What a balloon saves.
#[derive(Serialize, Deserialize)]
struct OwnState {
    target_pages: u32,
    given_pages: u32,
    firm: bool,
}

/// What a balloon saves whose driver says what it fills free pages with; a program that does not know of that needs no such
/// guest's state, and finds that of others as it knows it.
#[derive(Serialize, Deserialize)]
struct PoisonedState {
    own: OwnState,
    poison: u32,
}

/// What was saved.
fn saved(own: &[u8]) -> Result<PoisonedState, StateError> {
    decode(own).or_else(|_| Ok(PoisonedState { own: decode(own)?, poison: 0 }))
}

/// Makes a balloon.
///
/// # Errors
/// More is wanted than can be said, or the kernel gives no event descriptor.
pub fn build_balloon(target_mib: u32, firm: bool) -> Result<Arc<Mutex<Balloon>>, Error> {
    let mut number = [0; 4];
    rustix::rand::getrandom(&mut number, rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| Error::EventFd(errno.into()))?;
    Ok(Arc::new(Mutex::new(Balloon {
        target_pages: pages(target_mib)?,
        given_pages: 0,
        poison: 0,
        returned_bytes: 0,
        firm,
        statistics: None,
        kept: None,
        // Any will do that the device of the process before did not use.
        hints: Hints::new(u32::from_le_bytes(number)),
        tell: false,
        queue_events: super::queue_event_fds(QUEUES)?,
        active: None,
        chain: Chain::new(),
        held: false,
    })))
}

fn pages(mib: u32) -> Result<u32, Error> {
    let allowed = "up to 1 TiB, in MiB";
    let pages = mib.checked_mul(PAGES_PER_MIB).filter(|_| mib <= crate::config::MEMORY_MIB_MAX);
    pages.ok_or(Error::Config { what: "balloon's target", value: mib.to_string(), allowed })
}

/// Whether a saved balloon was firm.
///
/// # Errors
/// It is none.
pub fn saved_firmness(own: &[u8]) -> Result<bool, StateError> {
    Ok(saved(own)?.own.firm)
}

impl Balloon {
    /// Asks the guest to give `mib` MiB, or to take back what is more.
    ///
    /// # Errors
    /// That is more than can be said.
    pub fn set_target(&mut self, mib: u32) -> Result<(), Error> {
        let target = pages(mib)?;
        if target != self.target_pages {
            self.target_pages = target;
            self.say_that_it_changed();
        }
        Ok(())
    }

    /// How it is now; the guest is asked for new statistics, which are there a moment later. To be called on the event
    /// loop's thread.
    pub fn status(&mut self) -> BalloonStatus {
        if !self.held {
            self.ask();
        }
        let age = |since: Instant| u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        BalloonStatus {
            target_mib: self.target_pages / PAGES_PER_MIB,
            given_mib: self.given_pages / PAGES_PER_MIB,
            returned_bytes: self.returned_bytes,
            statistics: self.statistics.map(|(_, statistics)| statistics),
            statistics_age_ms: self.statistics.map(|(since, _)| age(since)),
        }
    }

    /// Gives the buffer of the statistics back, for new ones.
    fn ask(&mut self) {
        let (Some(active), Some(kept)) = (&mut self.active, self.kept.take()) else { return };
        let given = active.queues[spec::QUEUE_STATISTICS].push_used(&kept, 0);
        match given {
            Ok(()) => active.signal(spec::QUEUE_STATISTICS),
            Err(error) => self.fail(error),
        }
    }

    /// Asks the guest which of its pages are free; false if it gives no hints. To be called on the event loop's thread.
    pub fn ask_for_hints(&mut self) -> bool {
        let able = self.active.as_ref().filter(|active| {
            // What is left out of a snapshot is zeros, too.
            !is_poisoned(active, self.poison)
                && active.features & spec::F_FREE_PAGE_HINT != 0
                && active.queues[spec::QUEUE_HINTS].is_used()
        });
        let Some(active) = able.filter(|_| !self.held) else { return false };
        self.hints.ask(&active.memory);
        active.interrupt.config_changed(&self.config());
        true
    }

    /// Takes the hints that wait; whether there will be no more of them. The event tells of further ones.
    pub fn take_hints(&mut self) -> bool {
        super::drain(self.hint_event());
        self.work(spec::QUEUE_HINTS);
        self.hints.has_ended() || self.active.is_none()
    }

    /// What [`Self::take_hints`] waits for.
    #[must_use]
    pub fn hint_event(&self) -> &EventFd {
        &self.queue_events[spec::QUEUE_HINTS]
    }

    /// Has the guest hint at no more; what it has hinted at, which it keeps its hands off still, as far as it can.
    pub fn stop_hints(&mut self) -> PageSet {
        let pages = self.hints.stop();
        self.say_that_it_changed();
        pages
    }

    /// Tells the guest that it may use again what it hinted at.
    pub fn end_hints(&mut self) {
        self.hints.done();
        self.say_that_it_changed();
    }

    fn config(&self) -> [u8; spec::CONFIG_BYTES] {
        let mut space = [0; spec::CONFIG_BYTES];
        space[..4].copy_from_slice(&self.target_pages.to_le_bytes());
        space[4..8].copy_from_slice(&self.given_pages.to_le_bytes());
        space[8..12].copy_from_slice(&self.hints.command().to_le_bytes());
        space[12..].copy_from_slice(&self.poison.to_le_bytes());
        space
    }

    fn say_that_it_changed(&self) {
        if let Some(active) = &self.active {
            active.interrupt.config_changed(&self.config());
        }
    }

    /// Counts what somebody else has given back to the host of what the guest hinted at.
    pub fn count_returned(&mut self, bytes: u64) {
        self.returned_bytes += bytes;
    }

    fn fail(&mut self, error: QueueError) {
        if let Some(active) = self.active.take() {
            super::broken(&active, device_type::BALLOON, error);
        }
        self.kept = None;
    }

    fn work(&mut self, queue: usize) {
        if self.held {
            return;
        }
        let Some(mut active) = self.active.take() else { return };
        let has = |feature: u64| active.features & feature != 0;
        let worked = match queue {
            spec::QUEUE_STATISTICS if has(spec::F_STATS_VQ) => self.take_statistics(&mut active),
            spec::QUEUE_STATISTICS => Ok(()),
            queue if !active.queues[queue].is_used() => Ok(()),
            spec::QUEUE_HINTS if has(spec::F_FREE_PAGE_HINT) => self.hear(&mut active),
            spec::QUEUE_HINTS | spec::QUEUE_REPORTS if !has(spec::F_PAGE_REPORTING) => Ok(()),
            queue => self.take_pages(queue, &mut active),
        };
        self.active = Some(active);
        if let Err(error) = worked {
            self.fail(error);
        }
    }

    /// Pages that the guest gives, takes back or reports.
    fn take_pages(&mut self, index: usize, active: &mut Activation) -> Result<(), QueueError> {
        let Self { chain, returned_bytes, .. } = self;
        let keeps_reports = is_poisoned(active, self.poison);
        let queue = &mut active.queues[index];
        let progress = queue.work_off(chain, BATCH_BUFFERS_MAX, |memory, chain| {
            *returned_bytes += match index {
                spec::QUEUE_INFLATE => given(memory, chain),
                // They are there again when they are touched.
                spec::QUEUE_DEFLATE => 0,
                _ if keeps_reports => 0,
                _ => chain
                    .writable()
                    .iter()
                    .map(|segment| discard(memory, segment.address, segment.length.into()))
                    .sum(),
            };
            Ok(Handled::Used(0))
        })?;
        active.settle(index, progress, &self.queue_events)?;
        Ok(())
    }

    /// Hints.
    fn hear(&mut self, active: &mut Activation) -> Result<(), QueueError> {
        let Self { chain, hints, .. } = self;
        let progress =
            active.queues[spec::QUEUE_HINTS].work_off(chain, QUEUE_SIZE_MAX, |memory, chain| {
                hints.take(memory, chain);
                Ok(Handled::Used(0))
            })?;
        active.settle(spec::QUEUE_HINTS, progress, &self.queue_events)?;
        Ok(())
    }

    fn take_statistics(&mut self, active: &mut Activation) -> Result<(), QueueError> {
        let queue = &mut active.queues[spec::QUEUE_STATISTICS];
        let mut progress = Progress::More;
        // One buffer is kept; a driver that gives more of them has the one before back.
        for _ in 0..BATCH_BUFFERS_MAX {
            queue.suppress_notifications();
            if !queue.pop(&mut self.chain)? {
                if queue.allow_notifications() {
                    continue;
                }
                progress = Progress::Empty;
                break;
            }
            self.statistics = Some((Instant::now(), Statistics::read(queue.memory(), &self.chain)));
            if let Some(before) = self.kept.replace(std::mem::take(&mut self.chain)) {
                queue.push_used(&before, 0)?;
            }
        }
        active.settle(spec::QUEUE_STATISTICS, progress, &self.queue_events)?;
        Ok(())
    }
}

/// Whether the guest expects something else than zeros where pages were free.
fn is_poisoned(active: &Activation, poison: u32) -> bool {
    active.features & spec::F_PAGE_POISON != 0 && poison != 0
}

/// Gives back the pages whose numbers, of 32 bits, are in `chain`; how many bytes they are. Pages side by side go together.
fn given(memory: &crate::memory::GuestMemory, chain: &Chain) -> u64 {
    let count = (chain.readable_bytes() / 4).min(PAGES_MAX);
    let (mut bytes, mut returned) = ([0; 4096], 0);
    // The first page of a run, and how many there are.
    let mut run: Option<(u64, u64)> = None;
    let mut end = |run: Option<(u64, u64)>| {
        if let Some((first, pages)) = run {
            returned += discard(memory, GuestAddress(first * PAGE_BYTES), pages * PAGE_BYTES);
        }
    };
    for start in (0..count * 4).step_by(bytes.len()) {
        let wanted = usize::try_from(count * 4 - start).unwrap_or(usize::MAX).min(bytes.len());
        let read = chain.read_at(memory, start, &mut bytes[..wanted]);
        for number in bytes[..read].chunks_exact(4) {
            let page = u64::from(u32::from_le_bytes([number[0], number[1], number[2], number[3]]));
            run = match run {
                Some((first, pages)) if first + pages == page => Some((first, pages + 1)),
                before => {
                    end(before);
                    Some((page, 1))
                }
            };
        }
    }
    end(run);
    returned
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u32 {
        device_type::BALLOON
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE_MAX; QUEUES]
    }

    /// The queues of features that the driver has not accepted are not there for it. It may number those that are with the
    /// others or without (Linux does the latter), so without hints either of the last two may be that of reports.
    fn needs_queue(&self, index: usize, _features: u64) -> bool {
        matches!(index, spec::QUEUE_INFLATE | spec::QUEUE_DEFLATE)
    }

    fn queue_events(&self) -> &[EventFd] {
        &self.queue_events
    }

    fn features(&self) -> u64 {
        let always = spec::F_STATS_VQ | spec::F_FREE_PAGE_HINT | spec::F_PAGE_POISON | spec::F_PAGE_REPORTING;
        if self.firm { always } else { always | spec::F_DEFLATE_ON_OOM }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::read_config_bytes(&self.config(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let Ok(value) = data.try_into().map(u32::from_le_bytes) else { return };
        match offset {
            spec::CONFIG_ACTUAL => self.given_pages = value,
            spec::CONFIG_POISON => self.poison = value,
            _ => {}
        }
    }

    fn activate(&mut self, mut activation: Activation) {
        for queue in [spec::QUEUE_HINTS, spec::QUEUE_REPORTS] {
            activation.queues[queue].allow_chains_of(REPORT_BYTES_MAX);
        }
        if activation.features & spec::F_STATS_VQ != 0 && !activation.queues[spec::QUEUE_STATISTICS].is_used()
        {
            activation.features &= !spec::F_STATS_VQ;
        }
        self.active = Some(activation);
    }

    fn reset(&mut self) {
        self.active = None;
        self.kept = None;
        self.statistics = None;
        self.given_pages = 0;
        self.poison = 0;
        self.hints.forget();
        self.tell = false;
    }

    /// A buffer that is kept is looked at again by whoever goes on.
    fn save(&self) -> DeviceState {
        let Self { target_pages, given_pages, firm, poison, .. } = *self;
        let own = OwnState { target_pages, given_pages, firm };
        let mut state = DeviceState::of(self.active.as_ref());
        if let Some(queue) = state.queues.get_mut(spec::QUEUE_STATISTICS).filter(|_| self.kept.is_some()) {
            queue.next_available = queue.next_available.wrapping_sub(1);
        }
        match &self.active {
            Some(active) if active.features & spec::F_PAGE_POISON != 0 => {
                state.with(&PoisonedState { own, poison })
            }
            _ => state.with(&own),
        }
    }

    /// The target is the snapshot's: what is given to a new guest is for one that starts.
    fn restore(&mut self, own: &[u8]) -> Result<(), StateError> {
        let PoisonedState { own, poison } = saved(own)?;
        (self.target_pages, self.given_pages, self.poison) = (own.target_pages, own.given_pages, poison);
        // Whoever was told of free pages was asked for a snapshot, and is elsewhere.
        self.hints.done();
        self.tell = true;
        Ok(())
    }

    fn hold(&mut self, held: bool) {
        self.held = held;
        if !held {
            self.queue_events.iter().for_each(super::kick);
            if std::mem::take(&mut self.tell) {
                self.say_that_it_changed();
            }
        }
    }
}

impl MutEventSubscriber for Balloon {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        for event in &self.queue_events {
            super::watch(ops, event, EventSet::IN);
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        use std::os::fd::AsRawFd;
        let queue = self.queue_events.iter().position(|event| event.as_raw_fd() == events.fd());
        if let Some(queue) = queue {
            super::drain(&self.queue_events[queue]);
            self.work(queue);
        }
    }
}
