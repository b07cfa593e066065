//! A limiter with its clock, and the timer that wakes the device when a request that had to wait may be tried again.

use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::timerfd::TimerFd;

use super::super::limiter::{BucketState, Clock, Cost, Limiter};
use super::super::{Error, arm};
use crate::config::DiskLimits;

/// What holds a device to its limits. While it is stalled, the request at the head of the queue waits, and all behind
/// it: the queue is not looked at before the timer fires.
pub(super) struct Throttle {
    limiter: Limiter,
    clock: Clock,
    timer: TimerFd,
    stalled: bool,
}

impl Throttle {
    /// For a device with `limits`; nothing for one without.
    pub(super) fn new(limits: &DiskLimits, clock: Clock) -> Result<Option<Self>, Error> {
        let limiter = Limiter::new(limits, clock())?;
        if limiter.is_unlimited() {
            return Ok(None);
        }
        let timer = TimerFd::new().map_err(|errno| Error::EventFd(errno.into()))?;
        Ok(Some(Self { limiter, clock, timer, stalled: false }))
    }

    /// Whether a request may go now. If not, nothing may until [`Self::wake`] was called.
    pub(super) fn admit(&mut self, cost: Cost) -> bool {
        match self.limiter.admit(cost, (self.clock)()) {
            Ok(()) => true,
            Err(wait) => {
                arm(&mut self.timer, Some(wait));
                self.stalled = true;
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
