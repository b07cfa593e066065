//! The entropy device (VIRTIO 1.3 §5.4): the host kernel's random bytes, at a bounded rate.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::rand::{GetRandomFlags, getrandom};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use super::queue::{Chain, Handled, Progress, QueueError};
use super::spec::device_type;
use super::state::{DeviceState, StateError, nothing_of_its_own};
use super::{Activation, Error, Shared, VirtioDevice};
use crate::memory::GuestMemory;

/// Descriptors in the queue; drivers keep one request in flight.
pub const QUEUE_SIZE_MAX: u16 = 16;
/// The most bytes one request gets; a device may give less than was asked for (§5.4.6).
pub const REQUEST_BYTES_MAX: usize = 4096;
/// The most bytes a guest gets per [`PERIOD`]: 640 KiB/s, far more than any guest's own generator asks for, far
/// less than would show on the host.
pub const PERIOD_BYTES_MAX: usize = 64 << 10;
/// How often the allowance is renewed.
pub const PERIOD: Duration = Duration::from_millis(100);

/// Makes an entropy device.
pub fn build_rng() -> Result<Shared, Error> {
    Ok(Arc::new(Mutex::new(Rng::new()?)))
}

/// One entropy device.
pub struct Rng {
    queue_events: Vec<EventFd>,
    timer: TimerFd,
    active: Option<Activation>,
    chain: Chain,
    allowance: Allowance,
}

/// What is left of the current period.
struct Allowance {
    since: Instant,
    bytes: usize,
}

impl Allowance {
    /// Up to `wanted` bytes, none when the period's are used up.
    fn take(&mut self, wanted: usize) -> usize {
        if self.since.elapsed() >= PERIOD {
            *self = Self { since: Instant::now(), bytes: PERIOD_BYTES_MAX };
        }
        let taken = wanted.min(self.bytes);
        self.bytes -= taken;
        taken
    }
}

impl Rng {
    /// A device with a full allowance.
    pub fn new() -> Result<Self, Error> {
        Ok(Self {
            queue_events: super::queue_event_fds(1)?,
            timer: TimerFd::new().map_err(|errno| Error::EventFd(errno.into()))?,
            active: None,
            chain: Chain::new(),
            allowance: Allowance { since: Instant::now(), bytes: PERIOD_BYTES_MAX },
        })
    }

    fn work(&mut self) {
        let Some(active) = self.active.as_mut() else { return };
        let allowance = &mut self.allowance;
        let progress = active.queues[0]
            .work_off(&mut self.chain, QUEUE_SIZE_MAX, |memory, chain| fill(memory, chain, allowance))
            .and_then(|progress| active.settle(0, progress, &self.queue_events));
        match progress {
            Ok(Progress::Empty | Progress::More) => {}
            Ok(Progress::Waiting) => super::arm(&mut self.timer, Some(PERIOD)),
            Err(error) => {
                super::broken(active, device_type::RNG, error);
                self.active = None;
            }
        }
    }
}

fn fill(memory: &GuestMemory, chain: &Chain, allowance: &mut Allowance) -> Result<Handled, QueueError> {
    let wanted = usize::try_from(chain.writable_bytes()).unwrap_or(usize::MAX).min(REQUEST_BYTES_MAX);
    let given = allowance.take(wanted);
    if given == 0 && wanted > 0 {
        return Ok(Handled::Later);
    }
    let mut bytes = [0; REQUEST_BYTES_MAX];
    match getrandom(&mut bytes[..given], GetRandomFlags::empty()) {
        Ok(read) => {
            let written = chain.write_at(memory, 0, &bytes[..read.min(given)]);
            // At most REQUEST_BYTES_MAX.
            Ok(Handled::Used(written as u32))
        }
        Err(error) => {
            tracing::debug!(%error, "no random bytes for a guest");
            Ok(Handled::Used(0))
        }
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        device_type::RNG
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE_MAX]
    }

    fn queue_events(&self) -> &[EventFd] {
        &self.queue_events
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, activation: Activation) {
        self.active = Some(activation);
    }

    fn reset(&mut self) {
        self.active = None;
    }

    /// The allowance is there anew: it is a tenth of a second's.
    fn save(&self) -> DeviceState {
        DeviceState::of(self.active.as_ref())
    }

    fn restore(&mut self, own: &[u8]) -> Result<(), StateError> {
        nothing_of_its_own(own)
    }
}

impl MutEventSubscriber for Rng {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        super::watch(ops, &self.queue_events[0], EventSet::IN);
        super::watch(ops, &self.timer, EventSet::IN);
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        use std::os::fd::AsRawFd;
        if events.fd() == self.timer.as_raw_fd() {
            super::arm(&mut self.timer, None);
        } else {
            super::drain(&self.queue_events[0]);
        }
        self.work();
    }
}
