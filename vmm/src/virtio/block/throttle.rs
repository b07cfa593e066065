//! A limiter with its clock, and the timer that wakes the device when a request that had to wait may be tried again.

use std::os::fd::{AsRawFd, RawFd};
use std::time::Instant;

use vmm_sys_util::timerfd::TimerFd;

use super::super::limiter::{BucketState, Clock, Cost, Limiter};
use super::super::{Error, arm};
use crate::config::DiskLimits;

/// What holds a device to its limits. While it is stalled, the request at the head of the queue waits, and all behind
/// it: the queue is not looked at before the timer fires.
pub(super) struct Throttle {
    limiter: Limiter,
    /// What the limiter was made of.
    limits: DiskLimits,
    clock: Clock,
    timer: TimerFd,
    stalled: bool,
    /// How often something had to wait.
    waits: u64,
}

impl Throttle {
    /// For a device without limits, which may get some.
    pub(super) fn new() -> Result<Self, Error> {
        let clock: Clock = Box::new(Instant::now);
        let limits = DiskLimits::default();
        let limiter = Limiter::new(&limits, clock())?;
        let timer = TimerFd::new().map_err(|errno| Error::EventFd(errno.into()))?;
        Ok(Self { limiter, limits, clock, timer, stalled: false, waits: 0 })
    }

    /// The same by another clock.
    pub(super) fn by(self, clock: Clock) -> Self {
        Self { clock, ..self }
    }

    /// Holds the device to something else from now on, and has what waits tried anew. Bursts are there anew: no guest can
    /// bring this about.
    ///
    /// # Errors
    /// A limit out of range: what held still does.
    pub(super) fn change(&mut self, limits: &DiskLimits) -> Result<(), Error> {
        self.limiter = Limiter::new(limits, (self.clock)())?;
        self.limits = *limits;
        self.wake();
        Ok(())
    }

    /// What the device is held to.
    pub(super) fn limits(&self) -> &DiskLimits {
        &self.limits
    }

    /// Whether a request may go now. If not, nothing may until [`Self::wake`] was called.
    pub(super) fn admit(&mut self, cost: Cost) -> bool {
        if self.limiter.is_unlimited() {
            return true;
        }
        match self.limiter.admit(cost, (self.clock)()) {
            Ok(()) => true,
            Err(wait) => {
                arm(&mut self.timer, Some(wait));
                self.stalled = true;
                self.waits += 1;
                false
            }
        }
    }

    /// What was counted, for a snapshot.
    pub(super) fn save(&self) -> Vec<BucketState> {
        self.limiter.save()
    }

    /// Goes on from what was counted.
    pub(super) fn restore(&mut self, buckets: &[BucketState]) {
        self.limiter.restore(buckets);
    }

    /// How often something had to wait for a limit.
    pub(super) fn waits(&self) -> u64 {
        self.waits
    }

    pub(super) fn is_stalled(&self) -> bool {
        self.stalled
    }

    /// The timer fired, or its reason is gone. The limiter keeps what it has counted: a driver that resets its device
    /// gains nothing by it.
    pub(super) fn wake(&mut self) {
        arm(&mut self.timer, None);
        self.stalled = false;
    }
}

impl AsRawFd for Throttle {
    fn as_raw_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }
}
