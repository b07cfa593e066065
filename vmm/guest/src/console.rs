//! The console: the first serial port, output only. Lines end in CR LF.
//!
//! Lines wait in a ring and leave when there is nothing better to do, a few bytes at a time: a byte is an exit to
//! the VMM, which takes 40 µs where ring 0 is emulated, and the network must not wait for that.
//!
//! Must never know: who prints what.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use crate::service;

/// I/O port of the first serial port's data register.
const COM1: u16 = 0x3f8;
/// The line status register.
const COM1_LINE_STATUS: u16 = COM1 + 5;
/// Line status: the transmitter takes a byte.
const TRANSMITTER_EMPTY: u8 = 1 << 5;
/// How often a busy transmitter is asked before bytes are written anyway: a console that nobody drains must not
/// stop the guest.
const BUSY_POLLS_MAX: u32 = 1000;
/// Bytes handed over between two looks at the network.
const PART_BYTES: usize = 32;
/// Bytes that may wait; when more are printed at once, printing waits. A power of two.
const RING_BYTES: usize = 8192;

/// There is one processor and no preemption; atomics make that safe to write down.
static RING: [AtomicU8; RING_BYTES] = [const { AtomicU8::new(0) }; RING_BYTES];
/// Bytes ever put into the ring, wrapping.
static PRINTED: AtomicUsize = AtomicUsize::new(0);
/// Bytes ever taken out of it, wrapping.
static SENT: AtomicUsize = AtomicUsize::new(0);

fn waiting() -> usize {
    PRINTED.load(Ordering::Relaxed).wrapping_sub(SENT.load(Ordering::Relaxed))
}

fn push(byte: u8) {
    if waiting() == RING_BYTES {
        send_part();
    }
    let at = PRINTED.fetch_add(1, Ordering::Relaxed);
    RING[at % RING_BYTES].store(byte, Ordering::Relaxed);
}

/// Hands a few waiting bytes to the serial port; false if none were waiting.
pub fn send_part() -> bool {
    let mut part = [0; PART_BYTES];
    let count = waiting().min(PART_BYTES);
    if count == 0 {
        return false;
    }
    let from = SENT.fetch_add(count, Ordering::Relaxed);
    for (offset, byte) in part[..count].iter_mut().enumerate() {
        *byte = RING[from.wrapping_add(offset) % RING_BYTES].load(Ordering::Relaxed);
    }
    for _ in 0..BUSY_POLLS_MAX {
        if service::in8(COM1_LINE_STATUS) & TRANSMITTER_EMPTY != 0 {
            break;
        }
    }
    service::out_bytes(COM1, &part[..count]);
    true
}

/// Hands over all that waits.
pub fn flush() {
    while send_part() {}
}

/// A formatter's target.
struct Ring;

impl Write for Ring {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                push(b'\r');
            }
            push(byte);
        }
        Ok(())
    }
}

/// Prints `text` and ends the line.
pub fn print_line(text: fmt::Arguments<'_>) {
    // The ring never fails; a foreign `Display` that does has printed what it could.
    let _ = Ring.write_fmt(text);
    let _ = Ring.write_str("\n");
}

/// Prints a formatted line on the console.
#[macro_export]
macro_rules! println {
    ($($text:tt)*) => { $crate::console::print_line(format_args!($($text)*)) };
}
