//! One connection to the control socket: lines with descriptors come in, replies go out, as far as it goes without waiting.

use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use zeroize::Zeroizing;

use super::READ_BYTES;
use crate::rpc::{REQUEST_BYTES_MAX, passing};

/// One connection, with what is read of the next request and what is left of the last reply.
pub(super) struct Client {
    pub(super) stream: UnixStream,
    input: Vec<u8>,
    /// How much of `input` has no end of a line.
    looked_at: usize,
    /// What came with it.
    pub(super) descriptors: Vec<OwnedFd>,
    pub(super) output: Vec<u8>,
    /// How much of `output` is sent.
    sent: usize,
    /// What goes with it.
    pub(super) handles: Vec<OwnedFd>,
}

impl Client {
    pub(super) fn new(stream: UnixStream) -> Self {
        let (input, descriptors, output) = (Vec::new(), Vec::new(), Vec::new());
        Self { stream, input, looked_at: 0, descriptors, output, sent: 0, handles: Vec::new() }
    }

    /// Sends what is left; false if the client does not take it now.
    pub(super) fn flush(&mut self) -> io::Result<bool> {
        while self.sent < self.output.len() {
            let left = &self.output[self.sent..];
            let handles: Vec<_> = self.handles.iter().map(AsFd::as_fd).collect();
            let sent = match &handles[..] {
                [] => self.stream.write(left),
                handles => passing::send(&self.stream, left, handles),
            };
            match sent {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.sent += count;
                    self.handles.clear();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        // Give a large reply's memory back.
        self.output = Vec::new();
        self.sent = 0;
        Ok(true)
    }

    /// The next whole line, if there is one. It may hold the key of a disk.
    pub(super) fn next_line(&mut self) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
        loop {
            let found = self.input[self.looked_at..].iter().position(|&byte| byte == b'\n');
            if let Some(end) = found.map(|at| self.looked_at + at) {
                let rest = self.input.split_off(end + 1);
                let mut line = Zeroizing::new(std::mem::replace(&mut self.input, rest));
                line.pop();
                self.looked_at = 0;
                return Ok(Some(line));
            }
            self.looked_at = self.input.len();
            if self.input.len() > REQUEST_BYTES_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "its line is too long"));
            }
            let mut buffer = [0; READ_BYTES];
            match passing::receive(&self.stream, &mut buffer, &mut self.descriptors) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.input.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}
