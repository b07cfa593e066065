//! What is typed at the guest's console, and what of it is meant for the VMM.

use std::io::{self, Read};
use std::os::fd::AsRawFd;

use event_manager::{EventOps, Events};

use super::{READ_BYTES, Supervisor};
use crate::rpc::ExitReason;
use crate::terminal;

/// Where console input comes from.
pub(super) struct Input {
    pub(super) source: Box<dyn ReadFd>,
    /// The escape character was typed last.
    escaped: bool,
}

/// Something readable with a descriptor.
pub trait ReadFd: Read + AsRawFd {}
impl<T: Read + AsRawFd> ReadFd for T {}

/// The escape character of an interactive console, Ctrl-A; followed by `x` it ends the guest, twice it is itself.
const ESCAPE: u8 = 0x01;

impl Supervisor {
    /// Lets the guest read `source` as its console's input.
    pub fn set_input(&mut self, source: Box<dyn ReadFd>) {
        self.input = Some(Input { source, escaped: false });
        self.take_size();
    }

    /// Tells the guest how large the terminal is, if it is one.
    pub(super) fn take_size(&self) {
        let size = self.input.as_ref().and_then(|input| terminal::size(input.source.as_raw_fd()));
        size.into_iter().for_each(|size| self.machine.resize_console(size));
    }

    pub(super) fn take_input(&mut self, ops: &mut EventOps<'_>) {
        let Some(input) = &mut self.input else { return };
        let mut buffer = [0; READ_BYTES];
        match input.source.read(&mut buffer) {
            Ok(0) => {}
            Ok(count) => {
                let (typed, end) = input.unescape(&buffer[..count]);
                self.machine.input(&typed);
                if end {
                    self.ending.say(ExitReason::Killed, "the guest was ended at its console");
                }
                return;
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {
                return;
            }
            Err(error) => tracing::debug!(%error, "console input ended"),
        }
        let fd = input.source.as_raw_fd();
        if let Err(error) = ops.remove(Events::empty_raw(fd)) {
            tracing::error!(?error, "console input is still watched");
        }
        self.input = None;
    }
}

impl Input {
    /// Takes the escape sequences out; true if the guest shall end.
    fn unescape(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        let mut typed = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            match (std::mem::take(&mut self.escaped), byte) {
                (false, ESCAPE) => self.escaped = true,
                (true, b'x') => return (typed, true),
                (true, other) if other != ESCAPE => typed.extend([ESCAPE, other]),
                (_, other) => typed.push(other),
            }
        }
        (typed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_x_ends_and_escape_escape_is_the_character_itself() {
        let mut input = Input { source: Box::new(io::stdin()), escaped: false };
        assert_eq!(input.unescape(b"ab\x01"), (b"ab".to_vec(), false));
        assert_eq!(input.unescape(b"\x01c"), (b"\x01c".to_vec(), false));
        assert_eq!(input.unescape(b"\x01q"), (b"\x01q".to_vec(), false));
        assert_eq!(input.unescape(b"d\x01xe"), (b"d".to_vec(), true));
    }
}
