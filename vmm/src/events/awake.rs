//! How long it is worth staying awake.
//!
//! As KVM does for processors that halt: for longer where the last wait was short, and not at all after a long one, so that a
//! guest with little traffic costs no more than one whose host always sleeps.
//!
//! It waits in vain where the guest cannot run meanwhile, on a host with more to run than processors: then it sleeps whenever it
//! can, for longer each time.
//!
//! Must never know: devices.

use std::time::{Duration, Instant};

/// The longest that nothing happens before the loop sleeps. A wait that takes longer than this is not shortened by much.
const AWAKE_MAX: Duration = Duration::from_micros(50);
/// The shortest that is worth its beginning.
const AWAKE_MIN: Duration = Duration::from_micros(10);
/// So much is found while awake where that is worth it.
const FOUND_MIN: u32 = 2;
/// How long it does not stay awake after it did in vain: the first time, and the longest, which is eighty times what it cost.
const REST_MIN: Duration = Duration::from_micros(250);
const REST_MAX: Duration = Duration::from_millis(4);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Awake {
    /// How long it was last.
    window: Duration,
    /// When there was something last.
    last: Option<Instant>,
    /// What was found while awake, since it last gave up.
    found: u32,
    /// How long it rested last, and until when.
    rest: Duration,
    rests_until: Option<Instant>,
}

impl Awake {
    /// There was something from `began` until now: until when to look for more, if at all.
    pub(super) fn after(&mut self, began: Instant, now: Instant) -> Option<Instant> {
        let waited = self.last.replace(now).map(|last| began.saturating_duration_since(last));
        self.window = match waited {
            _ if self.rests_until.is_some_and(|until| now < until) => Duration::ZERO,
            Some(waited) if waited <= self.window => self.window,
            Some(waited) if waited <= AWAKE_MAX => (2 * waited).clamp(AWAKE_MIN, AWAKE_MAX),
            _ => Duration::ZERO,
        };
        (!self.window.is_zero()).then(|| now + self.window)
    }

    /// Something was found while awake.
    pub(super) fn found(&mut self) {
        self.found = self.found.saturating_add(1);
    }

    /// There was nothing for as long as it was worth staying awake.
    pub(super) fn gives_up(&mut self, now: Instant) {
        let was_worth_it = std::mem::take(&mut self.found) >= FOUND_MIN;
        self.rest = if was_worth_it { Duration::ZERO } else { (2 * self.rest).clamp(REST_MIN, REST_MAX) };
        self.rests_until = Some(now + self.rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Has something happen at those times, in microseconds, a microsecond each; how long it is worth staying awake after the last.
    fn after(times: &[u64]) -> Option<u64> {
        let (start, mut awake, mut until) = (Instant::now(), Awake::default(), None);
        let mut now = start;
        for time in times {
            let began = start + Duration::from_micros(*time);
            now = began + Duration::from_micros(1);
            until = awake.after(began, now);
        }
        until.map(|until| until.duration_since(now).as_micros() as u64)
    }

    #[test]
    fn it_stays_awake_for_as_long_as_waits_are_short() {
        assert_eq!(after(&[0]), None, "one thing alone says nothing");
        assert_eq!(after(&[0, 11]), Some(20), "twice what was waited");
        assert_eq!(after(&[0, 2]), Some(10), "not shorter than is worth it");
        assert_eq!(after(&[0, 11, 14]), Some(20), "a shorter wait changes nothing");
        assert_eq!(after(&[0, 11, 42]), Some(50), "a longer one does, up to the most");
        assert_eq!(after(&[0, 11, 42, 92]), Some(50));
        assert_eq!(after(&[0, 11, 42, 94]), None, "after a long one it sleeps");
        assert_eq!(after(&[0, 11, 42, 94, 100]), Some(10), "and begins anew");
    }

    #[test]
    fn it_rests_for_longer_each_time_that_it_was_awake_in_vain() {
        let (start, mut awake) = (Instant::now(), Awake::default());
        let mut now = start;
        // Whether it is worth staying awake after the second of two things that are `microseconds` apart.
        let mut is_worth_it = |awake: &mut Awake, microseconds| {
            awake.after(now, now);
            now += Duration::from_micros(microseconds);
            (now, awake.after(now, now).is_some())
        };
        let mut rests = Vec::new();
        for _ in 0..6 {
            let (gave_up, was_awake) = is_worth_it(&mut awake, 5);
            assert!(was_awake);
            awake.gives_up(gave_up);
            while !is_worth_it(&mut awake, 5).1 {}
            rests.push(is_worth_it(&mut awake, 5).0.duration_since(gave_up).as_micros() / 250 * 250);
        }
        assert_eq!(rests, [250, 500, 1000, 2000, 4000, 4000]);

        for found in [FOUND_MIN - 1, FOUND_MIN] {
            let (gave_up, _) = is_worth_it(&mut awake, 5);
            (0..found).for_each(|_| awake.found());
            awake.gives_up(gave_up);
            assert_eq!(is_worth_it(&mut awake, 5).1, found == FOUND_MIN, "after {found} that were found");
        }
        let (gave_up, _) = is_worth_it(&mut awake, 5);
        awake.gives_up(gave_up);
        assert!(!is_worth_it(&mut awake, 5).1);
        is_worth_it(&mut awake, 300);
        assert!(is_worth_it(&mut awake, 5).1, "the first rest is short again");
    }
}
