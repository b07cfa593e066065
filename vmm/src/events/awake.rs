//! How long it is worth staying awake.
//!
//! As KVM does for processors that halt: for longer where the last wait was short, and not at all after a long one, so that a
//! guest with little traffic costs no more than one whose host always sleeps.
//!
//! Must never know: devices.

use std::time::{Duration, Instant};

/// The longest that nothing happens before the loop sleeps. A wait that takes longer than this is not shortened by much.
const AWAKE_MAX: Duration = Duration::from_micros(50);
/// The shortest that is worth its beginning.
const AWAKE_MIN: Duration = Duration::from_micros(10);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Awake {
    /// How long it was last.
    window: Duration,
    /// When there was something last.
    last: Option<Instant>,
}

impl Awake {
    /// There was something from `began` until now: until when to look for more, if at all.
    pub(super) fn after(&mut self, began: Instant, now: Instant) -> Option<Instant> {
        let waited = self.last.replace(now).map(|last| began.saturating_duration_since(last));
        self.window = match waited {
            Some(waited) if waited <= self.window => self.window,
            Some(waited) if waited <= AWAKE_MAX => (2 * waited).clamp(AWAKE_MIN, AWAKE_MAX),
            _ => Duration::ZERO,
        };
        (!self.window.is_zero()).then(|| now + self.window)
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
}
