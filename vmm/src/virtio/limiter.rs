//! How fast a device may move data: buckets of bytes and of operations, for reads, writes and both together. An operation
//! is a disk's request or a network device's packet.
//!
//! A bucket fills at its rate up to its burst, and a request takes what it moves from every bucket that counts it, or
//! waits. One that is larger than a bucket is let through once that bucket is full and leaves it in debt: nothing
//! waits for ever, and over time the rate holds all the same. So within any time no more is moved than burst
//! and rate × time allow, plus what one such request exceeds the burst by.
//!
//! Must never know: what a request is beyond its direction and size, what time it is.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::Error;
use crate::config::{DiskLimits, LIMIT_MAX, RateLimit, TransferLimits};

/// The longest time that is waited before a bucket is looked at again: far from what overflows a timer.
const WAIT_MAX: Duration = Duration::from_secs(3600);
/// Levels are counted in billionths of a token: a rate is then tokens per nanosecond in the same unit.
const PER_TOKEN: i128 = 1_000_000_000;
/// A burst that nobody gave is what the rate allows in a tenth of a second, as QEMU has it.
const BURSTS_PER_SECOND: u64 = 10;

/// Tells the time; a test may have one of its own.
pub type Clock = Box<dyn Fn() -> Instant + Send>;

/// Which way data goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Direction {
    /// To the guest.
    Read,
    /// From the guest.
    Write,
}

/// What one request takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// Which way.
    pub direction: Direction,
    /// Bytes moved; may be none.
    pub bytes: u64,
    /// One, or as many as packets are made of it.
    pub operations: u64,
}

/// What a bucket counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Operations.
    Operations,
}

/// What one bucket has left, for a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketState {
    /// What it counts.
    pub unit: Unit,
    /// Which way; absent: both.
    pub direction: Option<Direction>,
    /// In billionths of what it counts; less than nothing is a debt.
    pub level: i128,
}

/// The limits of one device, and how much of them is left.
#[derive(Debug)]
pub struct Limiter {
    buckets: Vec<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    unit: Unit,
    /// Absent: both.
    direction: Option<Direction>,
    /// Tokens per second.
    rate: u64,
    /// Tokens that fit.
    burst: u64,
    /// What is there, in parts of a token; less than nothing is a debt.
    level: i128,
    /// When that was so.
    at: Instant,
}

impl Limiter {
    /// A limiter with full buckets.
    ///
    /// # Errors
    /// A rate or a burst that is not 1 to [`LIMIT_MAX`].
    pub fn new(limits: &DiskLimits, now: Instant) -> Result<Self, Error> {
        let DiskLimits { read, write, total } = limits;
        let mut buckets = Vec::new();
        let parts = [
            (read, Some(Direction::Read), "read"),
            (write, Some(Direction::Write), "written"),
            (total, None, "read and written"),
        ];
        for (TransferLimits { bytes, operations }, direction, what) in parts {
            for (limit, unit) in [(bytes, Unit::Bytes), (operations, Unit::Operations)] {
                if let Some(limit) = limit {
                    buckets.push(Bucket::new(*limit, unit, direction, now).map_err(|(part, value)| {
                        let unit = if unit == Unit::Bytes { "bytes" } else { "operations" };
                        Error::Limit { what: format!("{part} of {unit} {what}"), value }
                    })?);
                }
            }
        }
        Ok(Self { buckets })
    }

    /// Whether nothing is limited.
    #[must_use]
    pub fn is_unlimited(&self) -> bool {
        self.buckets.is_empty()
    }

    /// What is left, for a snapshot.
    #[must_use]
    pub fn save(&self) -> Vec<BucketState> {
        let state = |bucket: &Bucket| BucketState {
            unit: bucket.unit,
            direction: bucket.direction,
            level: bucket.level,
        };
        self.buckets.iter().map(state).collect()
    }

    /// Goes on from what was left, where the limits are of the same kinds still: no bucket becomes fuller by it.
    pub fn restore(&mut self, saved: &[BucketState]) {
        for bucket in &mut self.buckets {
            let same =
                |saved: &&BucketState| saved.unit == bucket.unit && saved.direction == bucket.direction;
            if let Some(saved) = saved.iter().find(same) {
                let debt_max = -i128::from(LIMIT_MAX) * PER_TOKEN;
                bucket.level = bucket.level.min(saved.level).max(debt_max);
            }
        }
    }

    /// Lets a request through, or says how long it has to wait before it is worth asking again. Nothing is taken
    /// for one that waits.
    ///
    /// # Errors
    /// The time to wait, above zero.
    pub fn admit(&mut self, cost: Cost, now: Instant) -> Result<(), Duration> {
        let counting = |bucket: &&mut Bucket| bucket.taken_by(cost) > 0;
        let wait = self.buckets.iter_mut().filter(counting).map(|bucket| bucket.wait(cost, now)).max();
        if let Some(wait) = wait.filter(|wait| !wait.is_zero()) {
            return Err(wait.min(WAIT_MAX));
        }
        for bucket in self.buckets.iter_mut().filter(counting) {
            bucket.level -= i128::from(bucket.taken_by(cost)) * PER_TOKEN;
        }
        Ok(())
    }
}

impl Bucket {
    /// A full bucket, or what of the limit is out of range and its value.
    fn new(
        limit: RateLimit,
        unit: Unit,
        direction: Option<Direction>,
        now: Instant,
    ) -> Result<Self, (&'static str, u64)> {
        let rate = limit.per_second;
        let burst = limit.burst.unwrap_or_else(|| (rate / BURSTS_PER_SECOND).max(1));
        for (part, value) in [("rate", rate), ("burst", burst)] {
            if !(1..=LIMIT_MAX).contains(&value) {
                return Err((part, value));
            }
        }
        Ok(Self { unit, direction, rate, burst, level: i128::from(burst) * PER_TOKEN, at: now })
    }

    /// The tokens that a request takes.
    fn taken_by(&self, cost: Cost) -> u64 {
        match self.unit {
            _ if self.direction.is_some_and(|own| own != cost.direction) => 0,
            Unit::Bytes => cost.bytes,
            Unit::Operations => cost.operations,
        }
    }

    /// Fills the bucket up to now, and says how long a request has to wait for it. Time that runs backwards fills
    /// nothing.
    fn wait(&mut self, cost: Cost, now: Instant) -> Duration {
        let elapsed = now.saturating_duration_since(self.at);
        self.at = self.at.max(now);
        // At most 2^40 a second for at most 2^80 nanoseconds, which are millions of years: no overflow.
        let elapsed_ns = i128::try_from(elapsed.as_nanos()).unwrap_or(i128::MAX).min(1 << 80);
        let full = i128::from(self.burst) * PER_TOKEN;
        self.level = (self.level + elapsed_ns * i128::from(self.rate)).min(full);
        let missing = i128::from(self.taken_by(cost).min(self.burst)) * PER_TOKEN - self.level;
        // Rounded up: a wait that is over is enough.
        let wait_ns = missing.max(0).unsigned_abs().div_ceil(u128::from(self.rate));
        Duration::from_nanos(u64::try_from(wait_ns).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests;
