//! A socket on which a process is called, and what it does when it can take no call: the process, or the host, has no
//! descriptor left (`EMFILE`, `ENFILE`), or no memory. The call waits in the kernel then and the socket stays readable, so
//! an event loop that went on listening to it would do nothing else. It rests for a while instead.
//!
//! Must never know: what a call is about.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

use crate::virtio;

/// How long nobody is taken after somebody could not be: a person does not notice it, and a process hardly works for it.
const REST: Duration = Duration::from_secs(1);
/// How often it is told, at most.
const WARNING_EVERY: Duration = Duration::from_secs(600);

/// One that does not block.
pub(crate) struct Backlog {
    listener: UnixListener,
    /// What it is, for people.
    what: &'static str,
    /// Ends the rest.
    timer: TimerFd,
    rests: bool,
    warned: Option<Instant>,
}

impl Backlog {
    /// `listener`, which people know as `what`.
    ///
    /// # Errors
    /// The kernel gives no timer, or the listener cannot be made one that does not block.
    pub(crate) fn new(listener: UnixListener, what: &'static str) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listener, what, timer: TimerFd::new()?, rests: false, warned: None })
    }

    /// The socket.
    pub(crate) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// What is to be listened to at all times: it ends the rest.
    pub(crate) fn timer(&self) -> &TimerFd {
        &self.timer
    }

    /// Whether the socket is not to be listened to now.
    pub(crate) fn rests(&self) -> bool {
        self.rests
    }

    /// Whether `fd` is one of its own two; if it is the timer's, the rest is over. Then somebody may wait.
    pub(crate) fn is_called(&mut self, fd: RawFd) -> bool {
        let is_over = self.timer.as_raw_fd() == fd;
        if is_over {
            self.go_on();
        }
        is_over || self.listener.as_raw_fd() == fd
    }

    /// Ends the rest, if it is one.
    pub(crate) fn go_on(&mut self) {
        virtio::arm(&mut self.timer, None);
        self.rests = false;
    }

    /// The socket, for whoever listens to it from now on.
    pub(crate) fn into_listener(self) -> UnixListener {
        self.listener
    }

    /// Takes the next connection, which does not block either; none if nobody waits, or nobody can be taken.
    pub(crate) fn accept(&mut self) -> Option<UnixStream> {
        loop {
            match self.listener.accept().and_then(|(stream, _)| stream.set_nonblocking(true).map(|()| stream))
            {
                Ok(stream) => return Some(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.rest(&error);
                    return None;
                }
            }
        }
    }

    fn rest(&mut self, error: &io::Error) {
        self.rests = true;
        virtio::arm(&mut self.timer, Some(REST));
        if self.warned.is_none_or(|warned| warned.elapsed() >= WARNING_EVERY) {
            self.warned = Some(Instant::now());
            tracing::warn!(%error, "{} cannot take who connects: they wait until it can", self.what);
        }
    }
}

impl AsRawFd for Backlog {
    fn as_raw_fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }
}
