//! The clock page: which time it was at which value of the time stamp counter, and how often that was interrupted, as the
//! guest reads it ("UAPI.13 VMClock"; Linux: `ptp_vmclock`). A guest that goes on from a snapshot finds the right time
//! there, whatever its own clock says.
//!
//! ```text
//! 0    magic "VCLK"           u32     4    size                    u32
//! 8    version 1              u16     10   counter: TSC or none    u8     11   time: UTC           u8
//! 12   sequence, even         u32     16   disruption marker       u64    24   flags               u64
//! 32   zero               2 bytes     34   status                  u8     35   smearing            u8
//! 36   TAI offset             u16     38   leap seconds            u8     39   period's shift      u8
//! 40   counter then           u64     48   period, 2^-(64+shift) s u64    56   its errors          u64 twice
//! 72   time then, s           u64     80   and 2^-64 s             u64    88   its errors, ns      u64 twice
//! 104  generation counter     u64
//! ```
//! It is written while no vCPU runs, so nobody sees it half done. Between two such moments the host's clock may be disciplined
//! and the guest's is not: the page says that it runs freely.

use std::time::{Duration, SystemTime};

use vm_memory::{Bytes as _, GuestAddress};

use crate::memory::{self, GuestMemory};

const MAGIC: [u8; 4] = *b"VCLK";
/// Bytes that are said to be there.
const SIZE: u32 = 4096;
const COUNTER_TSC: u8 = 1;
const COUNTER_NONE: u8 = 0xff;
/// Flags: the generation counter is there; its changes are notified.
const FLAGS: u64 = 1 << 8 | 1 << 9;
const STATUS_FREE_RUNNING: u8 = 3;
const STATUS_UNKNOWN: u8 = 0;

/// A value of the guest's time stamp counter and its frequency in kHz.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counter {
    /// The value.
    pub value: u64,
    /// The frequency, not zero.
    pub khz: u32,
}

/// Which time it was at which value of a guest's counter; without one, no time can be told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reading {
    counter: Option<Counter>,
    time: Duration,
}

/// Whose page it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// A guest's that is another than that of the page before, if there was one.
    Another,
    /// The same guest's, which stood still for a moment.
    Same,
}

impl Reading {
    /// Of a guest whose counter is `counter` now.
    pub(crate) fn now(counter: Option<Counter>) -> Self {
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { counter, time }
    }

    /// Writes the page of a guest that is in another process now and is itself: a disruption and no generation.
    pub(crate) fn write(self, guest: &GuestMemory) {
        put(guest, self, Whose::Same);
    }
}

/// Writes the page for a guest whose counter is `counter` now; without one, no time can be told. If there is a page
/// already, this is a disruption of it.
pub fn write(guest: &GuestMemory, counter: Option<Counter>) {
    put(guest, Reading::now(counter), Whose::Another);
}

fn put(guest: &GuestMemory, Reading { counter, time }: Reading, whose: Whose) {
    let (sequence, marker, generation) = before(guest);
    let generation = match whose {
        Whose::Another => generation,
        Whose::Same => generation.wrapping_sub(1),
    };
    let page = page(counter, time, (sequence.wrapping_add(2) & !1, marker, generation));
    guest.write_slice(&page, memory::CLOCK_START).expect("invariant: every guest has its first MiB");
}

/// What the page goes on from: sequence, disruption marker and generation counter, the latter two counted on.
fn before(guest: &GuestMemory) -> (u32, u64, u64) {
    let at = |offset: u64| GuestAddress(memory::CLOCK_START.0 + offset);
    let is_there = guest.read_obj::<[u8; 4]>(at(0)).is_ok_and(|magic| magic == MAGIC);
    if !is_there {
        return (0, 0, 0);
    }
    let read = |offset: u64| guest.read_obj::<u64>(at(offset)).unwrap_or(0);
    (guest.read_obj(at(12)).unwrap_or(0), read(16).wrapping_add(1), read(104).wrapping_add(1))
}

fn page(
    counter: Option<Counter>,
    now: Duration,
    (sequence, marker, generation): (u32, u64, u64),
) -> [u8; 112] {
    let mut page = [0; 112];
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &MAGIC);
    put(4, &SIZE.to_le_bytes());
    put(8, &1_u16.to_le_bytes());
    put(10, &[if counter.is_some() { COUNTER_TSC } else { COUNTER_NONE }]);
    put(12, &sequence.to_le_bytes());
    put(16, &marker.to_le_bytes());
    put(24, &FLAGS.to_le_bytes());
    put(34, &[if counter.is_some() { STATUS_FREE_RUNNING } else { STATUS_UNKNOWN }]);
    if let Some(counter) = counter {
        let (period, shift) = period(counter.khz);
        put(39, &[shift]);
        put(40, &counter.value.to_le_bytes());
        put(48, &period.to_le_bytes());
        put(72, &now.as_secs().to_le_bytes());
        // Below 2^64, since the nanoseconds are less than a second.
        let fraction = (u128::from(now.subsec_nanos()) << 64) / 1_000_000_000;
        put(80, &(fraction as u64).to_le_bytes());
    }
    put(104, &generation.to_le_bytes());
    page
}

/// A count's length in parts of 2^(64 + shift) of a second, with as many digits as fit.
fn period(khz: u32) -> (u64, u8) {
    let hz = u64::from(khz) * 1000;
    let shift = (hz - 1).ilog2();
    // Below 2^64, since the frequency is above 2^shift.
    let period = (1_u128 << (64 + shift)) / u128::from(hz);
    (period as u64, u8::try_from(shift).expect("invariant: frequencies have 42 bits"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(page: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(page[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn time_is_what_a_reader_computes_of_the_counter() {
        for khz in [1, 999, 1_048_576, 2_599_998, 5_000_000] {
            let then = Duration::new(1_700_000_000, 999_999_999);
            let page = page(Some(Counter { value: u64::MAX - 5, khz }), then, (2, 0, 0));
            let counts = u64::from(khz) * 1000 * 86_400;
            let (period, shift) = (number(&page, 48), page[39]);
            let fraction =
                ((u128::from(counts) * u128::from(period)) >> shift) + u128::from(number(&page, 80));
            let time = Duration::new(
                number(&page, 72) + (fraction >> 64) as u64,
                (((fraction & u128::from(u64::MAX)) * 1_000_000_000) >> 64) as u32,
            );
            let error = time.abs_diff(then + Duration::from_secs(86_400));
            assert!(error < Duration::from_micros(100), "{khz} kHz: {error:?}");
        }
    }

    #[test]
    fn each_time_it_is_written_is_a_disruption_and_a_generation_of_its_own() {
        let guest = memory::allocate(1).unwrap();
        for count in 0..3 {
            write(&guest, Some(Counter { value: 1, khz: 1 }));
            let mut page = [0; 112];
            guest.read_slice(&mut page, memory::CLOCK_START).unwrap();
            assert_eq!((number(&page, 16), number(&page, 104)), (count, count));
            assert_eq!(u64::from(u32::from_le_bytes(page[12..16].try_into().unwrap())), 2 * count + 2);
        }
    }

    #[test]
    fn guest_in_another_process_has_a_disruption_and_no_other_generation() {
        let guest = memory::allocate(1).unwrap();
        let counter = Some(Counter { value: 1, khz: 1 });
        write(&guest, counter);
        Reading::now(counter).write(&guest);
        let mut page = [0; 112];
        guest.read_slice(&mut page, memory::CLOCK_START).unwrap();
        assert_eq!((number(&page, 16), number(&page, 104)), (1, 0));
    }

    #[test]
    fn without_a_counter_no_time_is_told() {
        let page = page(None, Duration::from_secs(9), (2, 0, 0));
        assert_eq!((page[10], page[34], number(&page, 72)), (0xff, 0, 0));
    }
}
