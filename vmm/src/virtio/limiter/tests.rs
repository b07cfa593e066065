//! Buckets, by a clock that stands still unless it is moved.

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn rate(per_second: u64, burst: Option<u64>) -> Option<RateLimit> {
    Some(RateLimit { per_second, burst })
}

fn bytes(limit: Option<RateLimit>) -> TransferLimits {
    TransferLimits { bytes: limit, operations: None }
}

fn operations(limit: Option<RateLimit>) -> TransferLimits {
    TransferLimits { bytes: None, operations: limit }
}

fn read(bytes: u64) -> Cost {
    Cost { direction: Direction::Read, bytes, operations: 1 }
}

fn write(bytes: u64) -> Cost {
    Cost { direction: Direction::Write, bytes, operations: 1 }
}

#[test]
fn burst_goes_at_once_and_the_rest_at_the_rate() {
    let start = Instant::now();
    let limits = DiskLimits { read: bytes(rate(1000, Some(4096))), ..DiskLimits::default() };
    let mut limiter = Limiter::new(&limits, start).unwrap();
    for _ in 0..8 {
        assert_eq!(limiter.admit(read(512), start), Ok(()));
    }
    assert_eq!(limiter.admit(read(512), start), Err(Duration::from_millis(512)));
    assert_eq!(limiter.admit(read(512), start + Duration::from_millis(511)), Err(Duration::from_millis(1)));
    assert_eq!(limiter.admit(read(512), start + Duration::from_millis(512)), Ok(()));
    assert_eq!(limiter.admit(write(1 << 20), start), Ok(()), "writes are not limited");
}

#[test]
fn bucket_holds_no_more_than_its_burst_however_long_nothing_is_asked() {
    let start = Instant::now();
    let limits = DiskLimits { write: operations(rate(10, Some(3))), ..DiskLimits::default() };
    let mut limiter = Limiter::new(&limits, start).unwrap();
    let later = start + Duration::from_secs(1_000_000);
    let admitted = (0..100).filter(|_| limiter.admit(write(512), later).is_ok()).count();
    assert_eq!(admitted, 3);
    assert_eq!(limiter.admit(write(512), later), Err(Duration::from_millis(100)));
}

#[test]
fn burst_that_nobody_gave_is_a_tenth_of_a_second_and_at_least_one() {
    let start = Instant::now();
    for (per_second, burst) in [(1000, 100), (5, 1), (1, 1)] {
        let limits = DiskLimits { total: operations(rate(per_second, None)), ..DiskLimits::default() };
        let mut limiter = Limiter::new(&limits, start).unwrap();
        assert_eq!((0..1000).filter(|_| limiter.admit(read(1), start).is_ok()).count(), burst);
    }
}

#[test]
fn reads_and_writes_share_the_total_and_not_each_others_limits() {
    let start = Instant::now();
    let limits = DiskLimits {
        read: operations(rate(1, Some(2))),
        write: operations(rate(1, Some(4))),
        total: bytes(rate(100, Some(50))),
    };
    let mut limiter = Limiter::new(&limits, start).unwrap();
    assert_eq!(limiter.admit(read(10), start), Ok(()));
    assert_eq!(limiter.admit(read(10), start), Ok(()));
    assert_eq!(limiter.admit(read(10), start), Err(SECOND), "reads are used up");
    assert_eq!(limiter.admit(write(30), start), Ok(()), "and took nothing when they had to wait");
    assert_eq!(limiter.admit(write(10), start), Err(Duration::from_millis(100)), "the total is used up");
    assert_eq!(limiter.admit(write(0), start), Ok(()), "what moves no bytes is no matter of bytes");
}

#[test]
fn request_above_the_burst_waits_for_a_full_bucket_and_leaves_a_debt() {
    let start = Instant::now();
    let limits = DiskLimits { write: bytes(rate(1000, Some(1000))), ..DiskLimits::default() };
    let mut limiter = Limiter::new(&limits, start).unwrap();
    assert_eq!(limiter.admit(write(1), start), Ok(()));
    assert_eq!(limiter.admit(write(5000), start), Err(Duration::from_millis(1)));
    let full = start + Duration::from_millis(1);
    assert_eq!(limiter.admit(write(5000), full), Ok(()));
    assert_eq!(limiter.admit(write(1), full), Err(Duration::from_millis(4001)));
    assert_eq!(limiter.admit(write(5000), full), Err(5 * SECOND));
    assert_eq!(limiter.admit(write(5000), full + 5 * SECOND), Ok(()));
}

#[test]
fn limits_out_of_range_are_refused_with_their_name() {
    let now = Instant::now();
    for (limit, says) in [
        (rate(0, None), "rate of operations written is 0"),
        (rate(LIMIT_MAX + 1, None), "rate of operations written is 1099511627777"),
        (rate(1, Some(0)), "burst of operations written is 0"),
        (rate(1, Some(u64::MAX)), "burst of operations written is 18446744073709551615"),
    ] {
        let limits = DiskLimits { write: operations(limit), ..DiskLimits::default() };
        let error = Limiter::new(&limits, now).unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("1 to 1099511627776"), "{error}");
    }
    assert!(Limiter::new(&DiskLimits::default(), now).unwrap().is_unlimited());
}

#[test]
fn extremes_neither_overflow_nor_wait_without_bound() {
    let start = Instant::now();
    let slow = DiskLimits { total: bytes(rate(1, Some(1))), ..DiskLimits::default() };
    let mut limiter = Limiter::new(&slow, start).unwrap();
    assert_eq!(limiter.admit(read(u64::MAX), start), Ok(()));
    assert_eq!(limiter.admit(read(u64::MAX), start), Err(WAIT_MAX));
    let fast = DiskLimits { total: bytes(rate(LIMIT_MAX, Some(LIMIT_MAX))), ..DiskLimits::default() };
    let mut limiter = Limiter::new(&fast, start).unwrap();
    assert_eq!(limiter.admit(write(u64::MAX), start), Ok(()));
    assert_eq!(limiter.admit(write(1), start + Duration::from_secs(1 << 32)), Ok(()));
    assert_eq!(limiter.admit(write(1), start), Ok(()), "time runs backwards");
}

proptest! {
    /// Whoever waits as told is let through then, and whatever is asked, in no time more is moved than burst, rate
    /// and the largest request's excess allow.
    #[test]
    fn nothing_waits_for_ever_and_the_rate_holds(
        per_second in 1_u64..100_000,
        burst in 1_u64..10_000,
        requests in prop::collection::vec((0_u64..20_000, 0_u64..2_000_000_000), 1..60),
    ) {
        let start = Instant::now();
        let limits = DiskLimits { total: bytes(rate(per_second, Some(burst))), ..DiskLimits::default() };
        let mut limiter = Limiter::new(&limits, start).unwrap();
        let mut now = start;
        let mut moved: Vec<(Instant, u64)> = Vec::new();
        for (size, pause_ns) in requests {
            now += Duration::from_nanos(pause_ns);
            if let Err(wait) = limiter.admit(read(size), now) {
                prop_assert!(!wait.is_zero());
                now += wait;
                prop_assert_eq!(limiter.admit(read(size), now), Ok(()));
            }
            moved.push((now, size));
        }
        for first in 0..moved.len() {
            let mut sum = 0;
            for &(at, size) in &moved[first..] {
                sum += size;
                let seconds = (at - moved[first].0).as_secs_f64();
                let excess = moved.iter().map(|&(_, size)| size.saturating_sub(burst)).max().unwrap_or(0);
                let allowed = (burst + excess) as f64 + per_second as f64 * seconds + 1.0;
                prop_assert!(sum as f64 <= allowed, "{sum} in {seconds} s");
            }
        }
    }
}
