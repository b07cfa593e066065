//! The watchdog: a countdown that the guest begins again before it runs out, or something is done about the guest. ACPI's
//! table WDAT (`crate::acpi`) says which register does what, so a guest needs no driver of ours.
//!
//! Four registers of 32 bits, at [`WATCHDOG_PORT`]; accesses of another width or between them read as they come and write
//! nothing:
//!
//! ```text
//! +0   running  bit 0: written with one it begins with all of its time, with zero it stops
//! +4   count    how long it counts, in periods of 100 ms, from 1 to 65535; written, it begins again
//! +8   left     periods left, the one that is under way included; written with anything, it begins again
//! +12  status   bit 0: it has run out; written with one, that is cleared
//! ```
//! What happens when it runs out is the host's to say: the guest is reset, powered off or paused, or it is only counted. Where
//! the guest goes on, the countdown begins again. It stands still while the guest does, and goes on from a snapshot with what
//! was left.
//!
//! Must never know: who asked for it, how a guest is ended.

use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vmm_sys_util::timerfd::TimerFd;

use crate::bus::BusDevice;
use crate::config::WatchdogAction;
use crate::rpc::WatchdogStatus;
use crate::virtio::{arm, read_config_bytes};

/// The first port.
pub const WATCHDOG_PORT: u16 = 0x680;
/// The length of all registers in bytes.
pub const WATCHDOG_BYTES: u8 = 16;
/// Where the register is that says whether it runs.
pub const RUNNING_OFFSET: u8 = 0;
/// That of how long it counts.
pub const COUNT_OFFSET: u8 = 4;
/// That of what is left.
pub const LEFT_OFFSET: u8 = 8;
/// That which says whether it has run out.
pub const STATUS_OFFSET: u8 = 12;
/// The length of a period in milliseconds.
pub const PERIOD_MS: u32 = 100;
/// The most periods: nearly two hours, and what any driver can multiply in 32 bits.
pub const COUNT_MAX: u32 = 0xffff;
/// What it counts before anybody says: half a minute, as Linux has it.
const COUNT_DEFAULT: u32 = 300;

/// Tells the time; a test may have one of its own.
type Clock = Box<dyn Fn() -> Instant + Send>;

/// What a snapshot has of a watchdog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchdogState {
    action: WatchdogAction,
    count: u32,
    running: bool,
    expired: bool,
    left_ns: u64,
}

/// One watchdog.
pub struct Watchdog {
    action: WatchdogAction,
    count: u32,
    running: bool,
    /// It has run out since the guest last cleared that.
    expired: bool,
    expiries: u64,
    /// The guest stands still.
    held: bool,
    /// What is left where it does not run.
    left: Duration,
    /// When it runs out; there is one exactly while it counts.
    deadline: Option<Instant>,
    clock: Clock,
    timer: TimerFd,
}

impl Watchdog {
    /// One that is stopped, of a guest that stands still, and does `action` when it runs out.
    ///
    /// # Errors
    /// The kernel gives no timer.
    pub fn new(action: WatchdogAction) -> io::Result<Self> {
        Self::with_clock(action, Box::new(Instant::now))
    }

    fn with_clock(action: WatchdogAction, clock: Clock) -> io::Result<Self> {
        let timer = TimerFd::new()?;
        let left = length(COUNT_DEFAULT);
        let count = COUNT_DEFAULT;
        let (running, expired, held) = (false, false, true);
        Ok(Self { action, count, running, expired, expiries: 0, held, left, deadline: None, clock, timer })
    }

    /// What there is to go on from.
    #[must_use]
    pub fn save(&self) -> WatchdogState {
        WatchdogState {
            action: self.action,
            count: self.count,
            running: self.running,
            expired: self.expired,
            left_ns: u64::try_from(self.left().as_nanos()).unwrap_or(u64::MAX),
        }
    }

    /// One that goes on from what [`Self::save`] gave, with the action of before unless another one is given; nothing where no
    /// watchdog was ever so.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn restored(saved: WatchdogState, action: Option<WatchdogAction>) -> io::Result<Option<Self>> {
        let WatchdogState { count, running, expired, .. } = saved;
        let left = Duration::from_nanos(saved.left_ns);
        if !(1..=COUNT_MAX).contains(&count) || left > length(count) {
            return Ok(None);
        }
        let new = Self::new(action.unwrap_or(saved.action))?;
        Ok(Some(Self { count, running, expired, left, ..new }))
    }

    /// Readable when it may have run out: [`Self::take_expiry`] says whether it has.
    #[must_use]
    pub fn timer(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    /// Holds it with its guest, or lets it go on with what is left.
    pub fn hold(&mut self, held: bool) {
        self.left = self.left();
        self.held = held;
        self.go();
    }

    /// What has to be done if it has run out, once for each time; it has begun again then.
    pub fn take_expiry(&mut self) -> Option<WatchdogAction> {
        if self.deadline.is_none_or(|deadline| (self.clock)() < deadline) {
            // The guest began it again, or was held, after the timer had fired.
            self.left = self.left();
            self.go();
            return None;
        }
        self.expired = true;
        self.expiries += 1;
        // A guest can have it run out ten times a second.
        if self.expiries.is_power_of_two() {
            tracing::warn!(self.expiries, "the guest's watchdog ran out");
        }
        self.begin();
        Some(self.action)
    }

    /// How it is now.
    #[must_use]
    pub fn status(&self) -> WatchdogStatus {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        WatchdogStatus {
            action: self.action,
            armed: self.running,
            timeout_ms: ms(length(self.count)),
            left_ms: self.running.then(|| ms(self.left())),
            expiries: self.expiries,
        }
    }

    fn left(&self) -> Duration {
        self.deadline.map_or(self.left, |deadline| deadline.saturating_duration_since((self.clock)()))
    }

    /// Begins with all of its time.
    fn begin(&mut self) {
        self.left = length(self.count);
        self.go();
    }

    /// Counts what is left, if it is to.
    fn go(&mut self) {
        let counts = self.running && !self.held;
        self.deadline = counts.then(|| (self.clock)() + self.left);
        arm(&mut self.timer, counts.then_some(self.left));
    }

    fn registers(&self) -> [u32; 4] {
        let left = self.left().as_millis().div_ceil(u128::from(PERIOD_MS));
        let left = u32::try_from(left).unwrap_or(u32::MAX);
        [u32::from(self.running), self.count, left, u32::from(self.expired)]
    }
}

/// So many periods.
fn length(count: u32) -> Duration {
    Duration::from_millis(u64::from(count) * u64::from(PERIOD_MS))
}

impl BusDevice for Watchdog {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let registers = self.registers().map(u32::to_le_bytes);
        read_config_bytes(registers.as_flattened(), offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let (Ok(offset), Ok(bytes)) = (u8::try_from(offset), data.try_into()) else { return };
        let value = u32::from_le_bytes(bytes);
        match offset {
            RUNNING_OFFSET => self.running = value & 1 != 0,
            COUNT_OFFSET => self.count = value.clamp(1, COUNT_MAX),
            LEFT_OFFSET => {}
            STATUS_OFFSET => {
                self.expired &= value & 1 == 0;
                return;
            }
            _ => return,
        }
        self.begin();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;

    use super::*;

    /// A watchdog whose time somebody makes pass.
    struct Bench {
        dog: Watchdog,
        passed: Arc<Mutex<Duration>>,
    }

    impl Bench {
        fn new() -> Self {
            let (start, passed) = (Instant::now(), Arc::<Mutex<Duration>>::default());
            let theirs = passed.clone();
            let clock = Box::new(move || start + *theirs.lock().unwrap());
            let mut dog = Watchdog::with_clock(WatchdogAction::Reset, clock).unwrap();
            dog.hold(false);
            Self { dog, passed }
        }

        fn pass(&self, ms: u64) {
            *self.passed.lock().unwrap() += Duration::from_millis(ms);
        }

        fn write(&mut self, offset: u8, value: u32) {
            self.dog.write(offset.into(), &value.to_le_bytes());
        }

        fn read(&mut self, offset: u8) -> u32 {
            let mut bytes = [0; 4];
            self.dog.read(offset.into(), &mut bytes);
            u32::from_le_bytes(bytes)
        }
    }

    #[test]
    fn guest_that_begins_it_again_in_time_is_left_alone_and_another_is_not() {
        let mut bench = Bench::new();
        assert_eq!([0, 4, 8, 12].map(|offset| bench.read(offset)), [0, 300, 300, 0]);
        bench.pass(1_000_000);
        assert_eq!(bench.dog.take_expiry(), None, "nobody has it run");
        bench.write(COUNT_OFFSET, 20);
        bench.write(RUNNING_OFFSET, 1);
        for _ in 0..5 {
            bench.pass(1950);
            assert_eq!((bench.read(RUNNING_OFFSET), bench.read(LEFT_OFFSET)), (1, 1));
            assert_eq!(bench.dog.take_expiry(), None);
            bench.write(LEFT_OFFSET, 1);
            assert_eq!(bench.read(LEFT_OFFSET), 20);
        }
        bench.pass(2000);
        assert_eq!(bench.read(STATUS_OFFSET), 0);
        assert_eq!(bench.dog.take_expiry(), Some(WatchdogAction::Reset));
        assert_eq!((bench.read(STATUS_OFFSET), bench.read(LEFT_OFFSET)), (1, 20), "it has begun again");
        assert_eq!(bench.dog.take_expiry(), None, "once for each time");
        bench.write(STATUS_OFFSET, 1);
        assert_eq!(bench.read(STATUS_OFFSET), 0);
        bench.write(RUNNING_OFFSET, 0);
        bench.pass(1_000_000);
        assert_eq!(bench.dog.take_expiry(), None);
        assert_eq!(bench.dog.status().expiries, 1);
    }

    #[test]
    fn it_stands_still_while_the_guest_does_and_goes_on_from_a_snapshot_with_what_was_left() {
        let mut bench = Bench::new();
        bench.write(COUNT_OFFSET, 100);
        bench.write(RUNNING_OFFSET, 1);
        bench.pass(4000);
        bench.dog.hold(true);
        bench.pass(1_000_000);
        assert_eq!(bench.dog.take_expiry(), None);
        let saved = bench.dog.save();
        let other = WatchdogAction::Report;
        let mut on = Watchdog::restored(saved, Some(other)).unwrap().unwrap();
        assert_eq!(on.status(), WatchdogStatus { action: other, ..bench.dog.status() });
        assert_eq!(on.status().left_ms, Some(6000));
        on.hold(false);
        assert!(matches!(on.status().left_ms, Some(1..=6000)));
        bench.dog.hold(false);
        bench.pass(5999);
        assert_eq!(bench.dog.take_expiry(), None);
        bench.pass(1);
        assert_eq!(bench.dog.take_expiry(), Some(WatchdogAction::Reset));
    }

    #[test]
    fn timer_wakes_whoever_waits_for_it_when_it_runs_out_and_not_before() {
        let mut dog = Watchdog::new(WatchdogAction::Pause).unwrap();
        dog.write(COUNT_OFFSET.into(), &1_u32.to_le_bytes());
        dog.write(RUNNING_OFFSET.into(), &1_u32.to_le_bytes());
        let is_readable = |dog: &Watchdog, ms: i32| {
            let mut poll = libc::pollfd { fd: dog.timer(), events: libc::POLLIN, revents: 0 };
            poll_one(&mut poll, ms)
        };
        assert!(!is_readable(&dog, 150), "its guest stands still");
        dog.hold(false);
        assert!(is_readable(&dog, 10_000));
        assert_eq!(dog.take_expiry(), Some(WatchdogAction::Pause));
        dog.hold(true);
        assert!(!is_readable(&dog, 0), "what was pending is forgotten");
    }

    #[expect(unsafe_code, reason = "a test waits for a descriptor by its number")]
    fn poll_one(poll: &mut libc::pollfd, ms: i32) -> bool {
        // SAFETY: one entry, live and ours alone.
        unsafe { libc::poll(poll, 1, ms) == 1 }
    }

    #[test]
    fn states_that_no_watchdog_had_are_refused() {
        let saved = Bench::new().dog.save();
        for (count, left_ns) in [(0, 0), (COUNT_MAX + 1, 0), (1, 100_000_001), (300, u64::MAX)] {
            let state = WatchdogState { count, left_ns, ..saved };
            assert!(Watchdog::restored(state, None).unwrap().is_none(), "{state:?}");
        }
        assert!(Watchdog::restored(saved, None).unwrap().is_some());
    }

    #[test]
    fn only_whole_registers_are_written() {
        let mut bench = Bench::new();
        for (offset, bytes) in
            [(0, 1), (0, 2), (0, 8), (1, 4), (3, 4), (13, 4), (16, 4), (256, 4), (u64::MAX, 4)]
        {
            bench.dog.write(offset, &vec![0xff; bytes]);
            bench.dog.read(offset, &mut vec![0; bytes]);
        }
        assert_eq!([0, 4, 8, 12].map(|offset| bench.read(offset)), [0, 300, 300, 0]);
        bench.write(COUNT_OFFSET, u32::MAX);
        assert_eq!(bench.read(COUNT_OFFSET), COUNT_MAX);
        bench.write(COUNT_OFFSET, 0);
        assert_eq!(bench.read(COUNT_OFFSET), 1);
    }

    proptest! {
        /// Whatever a guest writes and whenever it is held: it counts exactly while it is to, has never more left than it
        /// counts, and what it saves can be gone on from.
        #[test]
        fn whatever_happens_it_is_a_countdown(
            steps in proptest::collection::vec((0_u8..8, any::<u32>(), 0_u64..20_000), 0..60),
        ) {
            let mut bench = Bench::new();
            for (what, value, ms) in steps {
                match what {
                    0..5 => bench.write(what * 4, if value % 2 == 0 { value } else { value % 100 }),
                    5 => bench.dog.hold(value % 2 == 0),
                    _ => {
                        bench.pass(ms);
                        let is_due = bench.dog.deadline.is_some() && bench.dog.left().is_zero();
                        prop_assert_eq!(bench.dog.take_expiry().is_some(), is_due);
                    }
                }
                let dog = &bench.dog;
                prop_assert_eq!(dog.deadline.is_some(), dog.running && !dog.held);
                prop_assert!(dog.left() <= length(dog.count) && (1..=COUNT_MAX).contains(&dog.count));
                prop_assert!(Watchdog::restored(dog.save(), None).unwrap().is_some());
            }
        }
    }
}
