//! Somebody of the host's who has connected and has yet to say to which of the guest's ports: `CONNECT PORT` and a line
//! feed.

use std::io::{self, Read as _};
use std::os::unix::net::UnixStream;

use event_manager::EventSet;

/// The longest line in bytes: the word, a space, ten digits, and what some end lines with.
const LINE_BYTES_MAX: usize = 32;

pub(super) struct Caller {
    pub(super) stream: UnixStream,
    line: Vec<u8>,
    pub(super) watched: Option<EventSet>,
}

/// What became of one.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// Nothing whole yet.
    Nothing,
    /// It wants that port of the guest.
    Port(u32),
    /// It is gone, or talks nonsense.
    Nonsense,
}

impl Caller {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, line: Vec::new(), watched: None }
    }

    /// Reads what there is of the line, and nothing behind it: that is for the guest.
    pub(super) fn read(&mut self) -> Said {
        let mut byte = [0];
        while self.line.len() < LINE_BYTES_MAX {
            match self.stream.read(&mut byte) {
                Ok(0) => return Said::Nonsense,
                Ok(_) if byte == *b"\n" => return port(&self.line).map_or(Said::Nonsense, Said::Port),
                Ok(_) => self.line.push(byte[0]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Said::Nothing,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Said::Nonsense,
            }
        }
        Said::Nonsense
    }
}

fn port(line: &[u8]) -> Option<u32> {
    let mut words = str::from_utf8(line).ok()?.split_ascii_whitespace();
    let is_call = words.next()?.eq_ignore_ascii_case("connect");
    let port = words.next()?.parse().ok()?;
    (is_call && words.next().is_none()).then_some(port)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn line_is_read_in_pieces_and_no_further_and_nonsense_is_refused() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut caller = Caller::new(ours);
        theirs.write_all(b"CONN").unwrap();
        assert_eq!(caller.read(), Said::Nothing);
        theirs.write_all(b"ECT 52\nearly").unwrap();
        assert_eq!(caller.read(), Said::Port(52));
        let mut rest = [0; 5];
        caller.stream.read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"early");
        for (line, wanted) in [("connect 4294967295\r", Some(u32::MAX)), ("CONNECT  7", Some(7))] {
            assert_eq!(port(line.as_bytes()), wanted);
        }
        for wrong in ["", "CONNECT", "CONNECT 4294967296", "CONNECT -1", "CONNECT 1 2", "OK 1", "\u{e9}"] {
            assert_eq!(port(wrong.as_bytes()), None, "{wrong}");
        }
        theirs.write_all(&[b'x'; LINE_BYTES_MAX]).unwrap();
        caller.line.clear();
        assert_eq!(caller.read(), Said::Nonsense);
    }
}
