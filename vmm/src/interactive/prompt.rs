//! Output of a guest's processor that others read at once.
//!
//! The kernel takes whoever writes to a pipe for about to wait, and puts the reader that it wakes on the writer's processor. A
//! guest's processor does not wait: its reader would come to run when the scheduler ends the guest's turn, 3 ms later, though
//! other processors stand idle. So the writer gives up its turn for it, now and then.
//!
//! Must never know: what is said.

use std::io::{self, Write};
use std::time::{Duration, Instant};

/// How often in the long run: where others wait for the processor, each costs the guest a turn.
const EVERY: Duration = Duration::from_millis(100);
/// How often at a time.
const BURST: u32 = 8;

/// See the module.
#[derive(Debug)]
pub(super) struct Prompt<W> {
    stream: W,
    /// Gives up the turn.
    give_way: fn(),
    /// What has gathered since the turn was given up, at most [`BURST`] times [`EVERY`].
    credit: Duration,
    credited: Instant,
    /// The last that was written ended a line.
    is_at_end: bool,
}

impl<W> Prompt<W> {
    pub(super) fn new(stream: W) -> Self {
        Self::with(stream, std::thread::yield_now)
    }

    fn with(stream: W, give_way: fn()) -> Self {
        Self { stream, give_way, credit: BURST * EVERY, credited: Instant::now(), is_at_end: false }
    }

    /// It is worth it for the first bytes after a while, and for a line.
    fn is_due(&mut self, now: Instant) -> bool {
        let full = BURST * EVERY;
        self.credit = full.min(self.credit + now.saturating_duration_since(self.credited));
        self.credited = now;
        let is_due = self.credit == full || (self.credit >= EVERY && self.is_at_end);
        if is_due {
            self.credit -= EVERY;
        }
        is_due
    }
}

impl<W: Write> Write for Prompt<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.stream.write(bytes)?;
        self.is_at_end = bytes[..written].ends_with(b"\n");
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()?;
        if self.is_due(Instant::now()) {
            (self.give_way)();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn turn_is_given_up_for_first_bytes_and_lines_and_not_too_often() {
        static GIVEN: AtomicU32 = AtomicU32::new(0);
        let mut written = Vec::new();
        let mut output = Prompt::with(&mut written, || _ = GIVEN.fetch_add(1, Ordering::Relaxed));
        let mut given_after = |bytes: &[u8], waited: Duration| {
            output.credited -= waited;
            output.write_all(bytes).unwrap();
            output.flush().unwrap();
            GIVEN.load(Ordering::Relaxed)
        };
        assert_eq!(given_after(b"l", Duration::ZERO), 1, "the first byte");
        assert_eq!(given_after(b"o", Duration::ZERO), 1);
        assert_eq!(given_after(b"gin:\n", Duration::ZERO), 2, "a line");
        for line in 3..100 {
            assert!(given_after(b"more\n", Duration::ZERO) <= line.min(BURST + 1), "not too often");
        }
        let before = given_after(b"", Duration::ZERO);
        assert_eq!(given_after(b".", EVERY), before, "credit for one");
        assert_eq!(given_after(b"\n", Duration::ZERO), before + 1);
        assert_eq!(given_after(b".", BURST * EVERY), before + 2, "as at first");
        assert!(written.starts_with(b"login:\nmore\n") && written.ends_with(b"more\n.\n."));
    }
}
