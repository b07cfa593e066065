//! A Linux kernel that panics while it boots, heard on the serial console: no device tells, and a guest that starts
//! again and again tells nobody why.
//!
//! Must never know: where the console goes.

use std::time::{Duration, Instant};

use crate::ending::EndingSignal;

/// How every Linux says it (`kernel/panic.c`).
const PANIC: &[u8] = b"Kernel panic - not syncing: ";
/// Bytes of a line that are looked at: a time stamp, the words above and a sentence.
const LINE_BYTES_MAX: usize = 256;
/// Until when a panic is one of the boot, which the next boot would repeat: slow hosts need minutes for a boot.
const BOOT_TIME_MAX: Duration = Duration::from_secs(300);

/// Listens to the console.
pub(crate) struct PanicWatch {
    line: Vec<u8>,
    began: Instant,
    ending: EndingSignal,
}

impl PanicWatch {
    /// A watch that tells `ending`.
    pub(crate) fn new(ending: EndingSignal) -> Self {
        Self { line: Vec::new(), began: Instant::now(), ending }
    }

    /// Hears what the guest wrote.
    pub(crate) fn hear(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            match byte {
                b'\r' | b'\n' => {
                    self.look();
                    self.line.clear();
                }
                _ if self.line.len() < LINE_BYTES_MAX => self.line.push(byte),
                _ => {}
            }
        }
    }

    fn look(&self) {
        let Some(start) = self.line.windows(PANIC.len()).position(|words| words == PANIC) else { return };
        if self.began.elapsed() < BOOT_TIME_MAX {
            let reason = String::from_utf8_lossy(&self.line[start + PANIC.len()..]);
            // What a guest says is shown to people: nothing that moves a cursor.
            let reason = reason.chars().filter(|letter| !letter.is_control()).collect::<String>();
            self.ending.panicked(format!("the guest's kernel panicked while it booted: {}", reason.trim()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::ExitReason;

    fn after(console: &[&str]) -> crate::ending::Ending {
        let ending = EndingSignal::new().unwrap();
        let mut watch = PanicWatch::new(ending.clone());
        for piece in console {
            watch.hear(piece.as_bytes());
        }
        ending.say(ExitReason::Reset, "the guest asked for a reset");
        ending.said().unwrap()
    }

    #[test]
    fn reset_after_a_panic_is_a_crash_that_says_why() {
        let said =
            after(&["[ 1.2] Kernel pa", "nic - not syncing: VFS: no \x1b[1mroot\r\n", "[ 1.3] Rebooting\n"]);
        assert_eq!(said.reason, ExitReason::Crashed);
        assert_eq!(said.message, "the guest's kernel panicked while it booted: VFS: no [1mroot");
    }

    #[test]
    fn reset_without_a_panic_is_a_reset() {
        for console in
            [&["Kernel panic - not"][..], &["\n"], &[], &["x".repeat(1000).as_str(), PANIC_TEXT, "\n"]]
        {
            assert_eq!(after(console).reason, ExitReason::Reset, "{console:?}");
        }
    }

    const PANIC_TEXT: &str = "Kernel panic - not syncing: far behind";
}
