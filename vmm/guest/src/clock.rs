//! Time and sleep: the time stamp counter, calibrated against the local APIC's timer, which also ends sleeps.
//!
//! The timer is taken to count nanoseconds, as that of every hypervisor does; the counter's rate is foreign to the
//! guest on most of them. The first estimate comes from the time that device set-up takes anyway; sleeps refine it.
//!
//! Must never know: what is waited for.

use core::cell::Cell;

use crate::entry::{VECTOR_TIMER, interrupts_taken};
use crate::interrupts::{LVT_MASKED, local_apic};
use crate::service;

const LVT_TIMER: u64 = 0x320;
const INITIAL_COUNT: u64 = 0x380;
const CURRENT_COUNT: u64 = 0x390;
const DIVIDE: u64 = 0x3e0;
/// The divide configuration for 128: 549 s fit into the 32-bit count.
const DIVIDE_BY_128: u32 = 0b1010;
/// Nanoseconds a count of the timer takes.
const NS_PER_COUNT: u64 = 128;
/// The least time a first calibration takes: reading the timer may take 40 µs.
const CALIBRATION_NS_MIN: u64 = 1_000_000;
/// A sleep that the timer ended is a measure only when it dwarfs the time waking up takes.
const FIRED_NS_MIN: u64 = 100_000_000;
/// Once measured over so long, the rate is good to 0.01 %.
const CALIBRATION_NS_ENOUGH: u64 = 4_000_000_000;

/// The clock of the one processor.
pub struct Clock {
    /// A moment: the counter then, and nanoseconds since the start.
    base: Cell<(u64, u64)>,
    /// Nanoseconds per count of the time stamp counter, 32 bits after the point.
    rate: Cell<u64>,
    /// The longest time the rate was measured over, in nanoseconds.
    measured_ns: Cell<u64>,
    /// Whether the timer may still fire.
    armed: Cell<bool>,
}

impl Clock {
    /// Starts measuring; the local APIC must be on. Call [`Clock::calibrate`] before the time is asked for.
    pub fn start() -> Self {
        local_apic(DIVIDE).write(DIVIDE_BY_128);
        local_apic(LVT_TIMER).write(LVT_MASKED);
        local_apic(INITIAL_COUNT).write(u32::MAX);
        Clock {
            base: Cell::new((counter(), 0)),
            rate: Cell::new(0),
            measured_ns: Cell::new(0),
            armed: Cell::new(false),
        }
    }

    /// Ends the first measurement and makes the timer ready to end sleeps.
    pub fn calibrate(&self) {
        let (start, _) = self.base.get();
        loop {
            let elapsed_ns = u64::from(u32::MAX - local_apic(CURRENT_COUNT).read()) * NS_PER_COUNT;
            if elapsed_ns >= CALIBRATION_NS_MIN {
                self.measured(elapsed_ns, counter().wrapping_sub(start));
                break;
            }
            core::hint::spin_loop();
        }
        local_apic(INITIAL_COUNT).write(0);
        local_apic(LVT_TIMER).write(VECTOR_TIMER.into());
    }

    /// Nanoseconds since [`Clock::start`]. Never goes backwards.
    pub fn now_ns(&self) -> u64 {
        let (counted, ns) = self.base.get();
        let elapsed = u128::from(counter().wrapping_sub(counted));
        ns + ((elapsed * u128::from(self.rate.get())) >> 32) as u64
    }

    /// Sleeps until an interrupt is taken or `deadline_ns` has come; returns at once if an interrupt was taken since
    /// `seen` was read with [`interrupts_taken`].
    pub fn sleep_until(&self, deadline_ns: Option<u64>, seen: u32) {
        let count = match deadline_ns.map(|deadline| deadline.saturating_sub(self.now_ns()) / NS_PER_COUNT) {
            Some(0) => return,
            Some(count) => count.min(u64::from(u32::MAX)) as u32,
            None if self.armed.get() => 0,
            None => return service::idle(seen),
        };
        local_apic(INITIAL_COUNT).write(count);
        self.armed.set(count != 0);
        let slept_from = counter();
        service::idle(seen);
        if count != 0 && self.measured_ns.get() < CALIBRATION_NS_ENOUGH {
            self.refine(count, slept_from);
        }
    }

    /// Learns from a sleep that began at `slept_from` with the timer set to `count`.
    fn refine(&self, count: u32, slept_from: u64) {
        let left = local_apic(CURRENT_COUNT).read();
        let slept = counter().wrapping_sub(slept_from);
        let slept_ns = u64::from(count - left.min(count)) * NS_PER_COUNT;
        if slept_ns > self.measured_ns.get() && (left != 0 || slept_ns >= FIRED_NS_MIN) {
            self.measured(slept_ns, slept);
        }
    }

    fn measured(&self, elapsed_ns: u64, counts: u64) {
        let now_ns = if self.rate.get() == 0 { elapsed_ns } else { self.now_ns() };
        self.base.set((counter(), now_ns));
        self.rate.set(((u128::from(elapsed_ns) << 32) / u128::from(counts.max(1))) as u64);
        self.measured_ns.set(elapsed_ns);
    }

    /// Waits `ns` without doing anything else, interrupts or not.
    pub fn pause(&self, ns: u64) {
        let end = self.now_ns() + ns;
        while self.now_ns() < end {
            self.sleep_until(Some(end), interrupts_taken());
        }
    }
}

/// The time stamp counter.
#[expect(unsafe_code, reason = "an instruction without a safe name")]
pub fn counter() -> u64 {
    // SAFETY: RDTSC reads a register; CR4.TSD is clear, so ring 3 may.
    unsafe { core::arch::x86_64::_rdtsc() }
}
