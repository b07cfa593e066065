//! Standard output as a guest's console. Whoever reads it may stop, at a terminal by Ctrl-S or with a pager: a guest's processor waits
//! for them a moment, and holds its serial port meanwhile. For ever it must not, or nobody could ask the VMM for anything any more,
//! not even to end. What is said to those who do not come back in that time is lost.
//!
//! Must never know: what is said.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::time::Duration;

/// How long a reader is waited for: far longer than one that reads is kept from it by others, far shorter than who asks a VMM waits.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it is looked whether one reads again. Threads with a guest's processor have no call to wait for that.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// A stream that does not block, or one that does.
#[derive(Debug)]
pub(crate) struct Patient<W> {
    stream: W,
    sleep: fn(Duration),
    /// It was waited for in vain, and nothing was taken since.
    is_stalled: bool,
}

/// Standard output, to be had before the process is confined.
///
/// # Errors
/// There is none.
pub(super) fn standard() -> io::Result<Patient<File>> {
    let stream = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let kind = stream.metadata()?.file_type();
    // Opened anew, so that others who have it, such as a shell, do not find it changed. A file's writers never wait.
    let may_wait = kind.is_fifo() || kind.is_char_device();
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let open = || File::options().write(true).custom_flags(flags).open("/proc/self/fd/1");
    // What cannot be opened, as a socket, blocks.
    let anew = may_wait.then(open).and_then(Result::ok);
    Ok(Patient::of(anew.unwrap_or(stream)))
}

impl Patient<File> {
    /// On a stream that [`standard`] opened, in this process or in the one before.
    pub(crate) fn of(stream: File) -> Self {
        Self::new(stream, std::thread::sleep)
    }

    /// The stream.
    pub(super) fn into_descriptor(self) -> OwnedFd {
        self.stream.into()
    }
}

impl<W> Patient<W> {
    fn new(stream: W, sleep: fn(Duration)) -> Self {
        Self { stream, sleep, is_stalled: false }
    }
}

impl<W: Write> Write for Patient<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut waited = Duration::ZERO;
        loop {
            match self.stream.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.is_stalled || waited >= PATIENCE {
                        self.is_stalled = true;
                        return Err(io::Error::new(io::ErrorKind::TimedOut, "nobody reads it"));
                    }
                    (self.sleep)(LOOK_INTERVAL);
                    waited += LOOK_INTERVAL;
                }
                outcome => {
                    self.is_stalled &= outcome.is_err();
                    return outcome;
                }
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    thread_local! {
        static SLEPT: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    }

    #[test]
    fn reader_who_stops_is_waited_for_once_and_heard_by_when_it_reads_again() {
        let (mut reader, writer) = UnixStream::pair().unwrap();
        writer.set_nonblocking(true).unwrap();
        let mut output = Patient::new(writer, |time| SLEPT.set(SLEPT.get() + time));
        let mut said = 0;
        let refused = loop {
            match output.write(&[7; 4096]) {
                Ok(count) => said += count,
                Err(error) => break error,
            }
        };
        assert_eq!((refused.kind(), SLEPT.get()), (io::ErrorKind::TimedOut, PATIENCE));
        for _ in 0..3 {
            assert!(output.write_all(b"lost").is_err());
        }
        assert_eq!(SLEPT.get(), PATIENCE, "once is enough");
        let mut heard = vec![0; said];
        reader.read_exact(&mut heard).unwrap();
        output.write_all(b"again").unwrap();
        let mut heard = [0; 5];
        reader.read_exact(&mut heard).unwrap();
        assert_eq!((&heard, SLEPT.get()), (b"again", PATIENCE));
        while output.write(&[7; 4096]).is_ok() {}
        assert_eq!(SLEPT.get(), 2 * PATIENCE, "and is waited for anew");
    }
}
