//! The first serial port: a 16550 whose output goes to a bounded log file or to a terminal.
//!
//! The log is a plain text file in order. When it has reached its bound, its newer half is moved to the front and the
//! rest cut off, so that each byte is moved at most once and the newest bytes always stay.
//!
//! Must never know: who reads the console.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Seek as _, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};
use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;
use crate::config::CONSOLE_LOG_BYTES_MAX;
use crate::ending::EndingSignal;
use crate::panic::PanicWatch;

/// The I/O port of the first serial port.
pub const SERIAL_PORT: u16 = 0x3f8;
/// The length of its range in bytes.
pub const SERIAL_BYTES: u8 = 8;
/// Its interrupt: the pin that every PC has given it.
pub const SERIAL_GSI: u32 = 4;
/// The most input that waits for the guest, in bytes; what is typed beyond is lost.
const INPUT_BYTES_MAX: usize = 4096;
/// How much is moved at once when the log is cut.
const MOVE_BYTES: usize = 8 << 10;

/// Where console output goes.
pub enum Console {
    /// Nowhere; it is only counted.
    None,
    /// A bounded file.
    Log(ConsoleLog),
    /// A stream, such as standard output.
    Stream(Box<dyn Write + Send>),
}

impl Console {
    /// Hands `bytes` over in one piece.
    ///
    /// # Errors
    /// The file's or the stream's.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::None => Ok(()),
            Self::Log(log) => log.append(bytes),
            Self::Stream(stream) => stream.write_all(bytes).and_then(|()| stream.flush()),
        }
    }

    /// The newest `bytes_max` bytes at most; empty if they are not kept.
    ///
    /// # Errors
    /// The log file's.
    pub(crate) fn tail(&self, bytes_max: u64) -> io::Result<Vec<u8>> {
        match self {
            Self::Log(log) => log.tail(bytes_max),
            Self::None | Self::Stream(_) => Ok(Vec::new()),
        }
    }
}

/// A log file that never grows beyond a bound.
pub struct ConsoleLog {
    file: File,
    length: u64,
    bytes_max: u64,
}

impl ConsoleLog {
    /// Continues the log in `file`, bounded by [`CONSOLE_LOG_BYTES_MAX`].
    ///
    /// # Errors
    /// The file's.
    pub fn new(file: File) -> io::Result<Self> {
        Self::with_bound(file, CONSOLE_LOG_BYTES_MAX)
    }

    fn with_bound(file: File, bytes_max: u64) -> io::Result<Self> {
        // Not by `metadata`, which asks by system calls that a confined process has not.
        let length = (&file).seek(SeekFrom::End(0))?;
        Ok(Self { file, length, bytes_max })
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        // One piece is at most half of the log, so that a cut always makes enough room.
        let piece_max = usize::try_from(self.bytes_max / 2).expect("invariant: usize has 64 bits");
        for piece in bytes.chunks(piece_max) {
            if self.length + piece.len() as u64 > self.bytes_max {
                self.keep_newest(self.bytes_max / 2)?;
            }
            self.file.write_all_at(piece, self.length)?;
            self.length += piece.len() as u64;
        }
        Ok(())
    }

    fn keep_newest(&mut self, keep: u64) -> io::Result<()> {
        let from = self.length.saturating_sub(keep);
        let mut buffer = [0; MOVE_BYTES];
        let mut moved = 0;
        while from + moved < self.length {
            let count = self.file.read_at(&mut buffer, from + moved)?;
            if count == 0 {
                break;
            }
            self.file.write_all_at(&buffer[..count], moved)?;
            moved += count as u64;
        }
        self.file.set_len(moved)?;
        self.length = moved;
        Ok(())
    }

    /// The newest `bytes_max` bytes at most.
    fn tail(&self, bytes_max: u64) -> io::Result<Vec<u8>> {
        let count = self.length.min(bytes_max).min(self.bytes_max);
        let mut bytes = vec![0; usize::try_from(count).expect("invariant: bounded by the log's size")];
        self.file.read_exact_at(&mut bytes, self.length - count)?;
        Ok(bytes)
    }
}

/// The writer behind the 16550: collects the bytes of one exit.
struct Output {
    console: Console,
    pending: Vec<u8>,
    written: u64,
    failed: bool,
    watch: Option<PanicWatch>,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Output {
    /// Hands what one exit brought to the console in one piece.
    fn finish(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        self.written += self.pending.len() as u64;
        if let Some(watch) = &mut self.watch {
            watch.hear(&self.pending);
        }
        if let Err(error) = self.console.write(&self.pending)
            && !self.failed
        {
            // Once: the guest decides how often it writes.
            self.failed = true;
            tracing::warn!(%error, "console output is lost");
        }
        self.pending.clear();
    }
}

struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;
    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// What a snapshot has of the port: its registers by their names in the 16550's data sheet, and what was typed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    /// DLL, DLM, IER, IIR, LCR, LSR, MCR, MSR, SCR.
    registers: [u8; 9],
    /// Input in the port's own queue.
    queued: Vec<u8>,
    /// Input behind that.
    waiting: Vec<u8>,
}

/// The serial port.
pub struct SerialPort {
    port: Serial<Interrupt, NoEvents, Output>,
    /// Input for which the port's own queue has no room yet.
    waiting: VecDeque<u8>,
}

impl SerialPort {
    /// A port that pulses `interrupt` and writes to `console`.
    #[must_use]
    pub fn new(interrupt: EventFd, console: Console) -> Self {
        let output = Output { console, pending: Vec::new(), written: 0, failed: false, watch: None };
        Self { port: Serial::new(Interrupt(interrupt), output), waiting: VecDeque::new() }
    }

    /// Tells `ending` of a kernel that panics while it boots.
    pub fn watch_for_panics(&mut self, ending: EndingSignal) {
        self.port.writer_mut().watch = Some(PanicWatch::new(ending));
    }

    /// How many bytes the guest has written.
    #[must_use]
    pub fn console_bytes(&self) -> u64 {
        self.port.writer().written
    }

    /// Counts on from what was written in another process.
    pub(crate) fn count_from(&mut self, written: u64) {
        self.port.writer_mut().written = written;
    }

    /// The newest part of the console log; empty if it is not kept.
    ///
    /// # Errors
    /// The log file's.
    pub fn console_tail(&self, bytes_max: u64) -> io::Result<Vec<u8>> {
        self.port.writer().console.tail(bytes_max)
    }

    /// Gives the guest input; what exceeds [`INPUT_BYTES_MAX`] is lost.
    pub fn input(&mut self, bytes: &[u8]) {
        let room = INPUT_BYTES_MAX - self.waiting.len();
        self.waiting.extend(&bytes[..bytes.len().min(room)]);
        self.pass_input();
    }

    /// The port's state, for a snapshot. The console's log is the host's and stays with it.
    #[must_use]
    pub fn save(&self) -> SerialState {
        let state = self.port.state();
        SerialState {
            registers: [
                state.baud_divisor_low,
                state.baud_divisor_high,
                state.interrupt_enable,
                state.interrupt_identification,
                state.line_control,
                state.line_status,
                state.modem_control,
                state.modem_status,
                state.scratch,
            ],
            queued: state.in_buffer,
            waiting: self.waiting.iter().copied().collect(),
        }
    }

    /// A port in that state, likewise made of `interrupt` and `console`; nothing if no port can be in it.
    #[must_use]
    pub fn restored(state: &SerialState, interrupt: EventFd, console: Console) -> Option<Self> {
        if state.waiting.len() > INPUT_BYTES_MAX {
            return None;
        }
        let output = Output { console, pending: Vec::new(), written: 0, failed: false, watch: None };
        let [
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
        ] = state.registers;
        let saved = vm_superio::SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer: state.queued.clone(),
        };
        let port = Serial::from_state(&saved, Interrupt(interrupt), NoEvents, output).ok()?;
        Some(Self { port, waiting: state.waiting.iter().copied().collect() })
    }

    fn pass_input(&mut self) {
        let count = self.waiting.len().min(self.port.fifo_capacity());
        if count == 0 {
            return;
        }
        let bytes: Vec<u8> = self.waiting.drain(..count).collect();
        if let Err(error) = self.port.enqueue_raw_bytes(&bytes) {
            tracing::debug!(%error, "the serial port's interrupt is pending already");
        }
    }

    fn write_byte(&mut self, offset: u64, byte: u8) {
        if let Ok(offset) = u8::try_from(offset)
            && let Err(error) = self.port.write(offset, byte)
        {
            tracing::debug!(%error, "the serial port's interrupt is pending already");
        }
    }
}

impl BusDevice for SerialPort {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        // The port is eight bits wide; wider accesses see its first register only.
        if let (Ok(offset), Some(byte)) = (u8::try_from(offset), data.first_mut()) {
            *byte = self.port.read(offset);
            self.pass_input();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(&byte) = data.first() {
            self.write_byte(offset, byte);
            self.port.writer_mut().finish();
        }
    }

    fn write_string(&mut self, offset: u64, item_bytes: usize, data: &[u8]) {
        for item in data.chunks(item_bytes.max(1)) {
            self.write_byte(offset, item[0]);
        }
        self.port.writer_mut().finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(bytes_max: u64) -> ConsoleLog {
        ConsoleLog::with_bound(tempfile::tempfile().unwrap(), bytes_max).unwrap()
    }

    #[test]
    fn log_keeps_the_newest_bytes_in_order_and_never_exceeds_its_bound() {
        let mut log = log(100);
        let text: Vec<u8> = (0..1000_u32).flat_map(|number| number.to_string().into_bytes()).collect();
        for piece in text.chunks(7) {
            log.append(piece).unwrap();
            assert!(log.file.metadata().unwrap().len() <= 100);
        }
        let kept = log.tail(u64::MAX).unwrap();
        assert!(kept.len() >= 50 && text.ends_with(&kept));
        assert_eq!(log.tail(3).unwrap(), b"999");
    }

    #[test]
    fn piece_larger_than_the_log_leaves_its_end() {
        let mut log = log(10);
        log.append(b"0123456789abcdefghijklmnop").unwrap();
        assert!(b"0123456789abcdefghijklmnop".ends_with(&log.tail(100).unwrap()));
    }

    #[test]
    fn string_output_arrives_whole_and_is_counted() {
        let event = EventFd::new(0).unwrap();
        let mut port = SerialPort::new(event, Console::Log(log(100)));
        port.write_string(0, 1, b"hello\n");
        port.write(0, b"x");
        assert_eq!(port.console_bytes(), 7);
        assert_eq!(port.console_tail(100).unwrap(), b"hello\nx");
    }

    #[test]
    fn input_reaches_the_guest_byte_by_byte() {
        let mut port = SerialPort::new(EventFd::new(0).unwrap(), Console::None);
        port.input(b"ok");
        let mut byte = [0];
        port.read(0, &mut byte);
        assert_eq!(&byte, b"o");
        port.read(0, &mut byte);
        assert_eq!(&byte, b"k");
        let text: Vec<u8> = (0..INPUT_BYTES_MAX).map(|index| u8::try_from(index % 251).unwrap()).collect();
        port.input(&text);
        port.input(&text);
        for expected in text.iter().take(INPUT_BYTES_MAX) {
            port.read(0, &mut byte);
            assert_eq!(byte[0], *expected);
        }
    }

    #[test]
    fn restored_port_has_registers_and_input_and_writes_to_its_new_console() {
        let mut port = SerialPort::new(EventFd::new(0).unwrap(), Console::None);
        port.write(7, &[0x5a]);
        port.write(1, &[1]);
        let text: Vec<u8> = (0..100).collect();
        port.input(&text);
        let state = port.save();
        let mut port =
            SerialPort::restored(&state, EventFd::new(0).unwrap(), Console::Log(log(100))).unwrap();
        let mut byte = [0];
        port.read(7, &mut byte);
        assert_eq!(byte, [0x5a]);
        for expected in text {
            port.read(0, &mut byte);
            assert_eq!(byte, [expected]);
        }
        port.write(0, b"x");
        assert_eq!(port.console_tail(9).unwrap(), b"x");
        let long = SerialState { waiting: vec![0; INPUT_BYTES_MAX + 1], ..state.clone() };
        assert!(SerialPort::restored(&long, EventFd::new(0).unwrap(), Console::None).is_none());
        let long = SerialState { queued: vec![0; 4096], ..state };
        assert!(SerialPort::restored(&long, EventFd::new(0).unwrap(), Console::None).is_none());
    }

    #[test]
    fn wide_and_far_accesses_are_harmless() {
        let mut port = SerialPort::new(EventFd::new(0).unwrap(), Console::None);
        for offset in 0..8 {
            let mut data = [0xaa; 8];
            port.read(offset, &mut data);
            port.write(offset, &data);
        }
        port.write(1 << 20, &[1]);
        port.read(1 << 20, &mut [0; 8]);
    }
}
