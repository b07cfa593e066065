//! The host's monotonic clock, which is one for all of its processes.
#![expect(
    unsafe_code,
    reason = "the safe wrapper at hand looks for the kernel's fast way by a call that is not allowed here"
)]

use std::time::Duration;

/// The time since some moment before all processes.
pub(crate) fn monotonic() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one `timespec`, to which the pointer is; this clock is there on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// The same in nanoseconds.
pub(crate) fn monotonic_ns() -> u64 {
    u64::try_from(monotonic().as_nanos()).unwrap_or(u64::MAX)
}
