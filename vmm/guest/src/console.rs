//! The console: the first serial port, output only. Lines end in CR LF.
//!
//! Must never know: who prints what.

use core::fmt::{self, Write};

use crate::service;

/// I/O port of the first serial port's data register.
const COM1: u16 = 0x3f8;
/// The line status register.
const COM1_LINE_STATUS: u16 = COM1 + 5;
/// Line status: the transmitter takes a byte.
const TRANSMITTER_EMPTY: u8 = 1 << 5;
/// How often a busy transmitter is asked before a line is written anyway: a console that nobody drains must not
/// stop the guest.
const BUSY_POLLS_MAX: u32 = 1000;
/// Bytes handed over at once; a line rarely has more.
const LINE_BYTES: usize = 256;

/// A formatter's target that collects bytes and hands them over together.
struct Line {
    bytes: [u8; LINE_BYTES],
    used: usize,
}

impl Line {
    fn push(&mut self, byte: u8) {
        if self.used == LINE_BYTES {
            self.flush();
        }
        self.bytes[self.used] = byte;
        self.used += 1;
    }

    fn flush(&mut self) {
        for _ in 0..BUSY_POLLS_MAX {
            if service::in8(COM1_LINE_STATUS) & TRANSMITTER_EMPTY != 0 {
                break;
            }
        }
        service::out_bytes(COM1, &self.bytes[..self.used]);
        self.used = 0;
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                self.push(b'\r');
            }
            self.push(byte);
        }
        Ok(())
    }
}

/// Prints `text` and ends the line.
pub fn print_line(text: fmt::Arguments<'_>) {
    let mut line = Line { bytes: [0; LINE_BYTES], used: 0 };
    // A `Line` never fails; a foreign `Display` that does has printed what it could.
    let _ = line.write_fmt(text);
    let _ = line.write_str("\n");
    line.flush();
}

/// Prints a formatted line on the console.
#[macro_export]
macro_rules! println {
    ($($text:tt)*) => { $crate::console::print_line(format_args!($($text)*)) };
}
