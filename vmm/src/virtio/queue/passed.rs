//! What went through a queue: counted by whoever works it off, read by whoever asks.
//!
//! Must never know: what a request asks for.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Chain;
use crate::rpc::QueueTraffic;

/// Counts from the device's making on, whatever its driver does: a reset does not begin them anew.
#[derive(Debug, Default)]
pub struct Passed {
    requests: AtomicU64,
    from_guest_bytes: AtomicU64,
    to_guest_bytes: AtomicU64,
}

impl Passed {
    /// Counts a chain that is returned to the driver with `written` bytes. One thread at a time does, the one that has the
    /// device, so nothing needs the bus to itself.
    pub(super) fn count(&self, chain: &Chain, written: u32) {
        let add = |counter: &AtomicU64, more: u64| {
            counter.store(counter.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
        };
        add(&self.requests, 1);
        add(&self.from_guest_bytes, chain.readable_bytes());
        add(&self.to_guest_bytes, written.into());
    }

    /// What it is now.
    #[must_use]
    pub fn traffic(&self) -> QueueTraffic {
        let [requests, from_guest_bytes, to_guest_bytes] =
            [&self.requests, &self.from_guest_bytes, &self.to_guest_bytes]
                .map(|counter| counter.load(Ordering::Relaxed));
        QueueTraffic { requests, from_guest_bytes, to_guest_bytes }
    }
}
