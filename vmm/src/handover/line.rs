//! The connection between a VMM and its successor: what is sent and received on it is waited for, and not for long.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::rpc::passing;

/// One end.
pub(crate) struct Line {
    stream: UnixStream,
    until: Instant,
}

impl Line {
    /// All that is waited for on it is waited for `patience` together.
    pub(crate) fn new(stream: UnixStream, patience: Duration) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, until: Instant::now() + patience })
    }

    /// Sends all of `bytes`, the first of them with `descriptors`.
    pub(crate) fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let (mut left, mut descriptors) = (bytes, descriptors);
        while !left.is_empty() {
            match passing::send(&self.stream, left, descriptors) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => (left, descriptors) = (&left[sent..], &[]),
                Err(error) => self.wait(error, PollFlags::OUT)?,
            }
        }
        Ok(())
    }

    /// Fills `bytes`.
    pub(crate) fn receive(&self, bytes: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let mut none = Vec::new();
            done += self.receive_some(&mut bytes[done..], &mut none)?;
        }
        Ok(())
    }

    /// The descriptors that come with the next byte.
    pub(crate) fn receive_descriptors(&self) -> io::Result<Vec<OwnedFd>> {
        let (mut byte, mut descriptors) = ([0], Vec::new());
        self.receive_some(&mut byte, &mut descriptors)?;
        Ok(descriptors)
    }

    fn receive_some(&self, bytes: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> io::Result<usize> {
        loop {
            match passing::receive(&self.stream, bytes, descriptors) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => return Ok(count),
                Err(error) => self.wait(error, PollFlags::IN)?,
            }
        }
    }

    /// Waits for what `error` says is not possible yet.
    fn wait(&self, error: io::Error, flags: PollFlags) -> io::Result<()> {
        match error.kind() {
            io::ErrorKind::Interrupted => return Ok(()),
            io::ErrorKind::WouldBlock => {}
            _ => return Err(error),
        }
        let left = self.until.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        match poll(&mut [PollFd::new(&self.stream, flags)], Some(&timeout)) {
            Ok(0) => Err(io::ErrorKind::TimedOut.into()),
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}
