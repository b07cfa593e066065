//! Knowing a process again: its number together with the moment it started, which no later process shares.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};

/// A process, as it is written down to be found again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number.
    pub pid: i32,
    /// When it started, in clock ticks since the host's boot (proc(5), `/proc/PID/stat` field 22).
    pub start_ticks: u64,
}

impl ProcessId {
    /// This process.
    pub fn current() -> io::Result<Self> {
        Self::of(rustix::process::getpid().as_raw_pid())
    }

    /// The process that has this number now.
    pub fn of(pid: i32) -> io::Result<Self> {
        Ok(Self { pid, start_ticks: start_ticks(pid)? })
    }

    /// A handle of the process if it still runs.
    pub fn open(self) -> Option<OwnedFd> {
        let pidfd = rustix::process::pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // Looked at after the handle was made: from here on the number cannot become another's.
        (start_ticks(self.pid).ok()? == self.start_ticks).then_some(pidfd)
    }
}

fn start_ticks(pid: i32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "/proc/PID/stat is malformed");
    // The second field is the name in parentheses and may itself hold spaces and parentheses.
    let (_, rest) = stat.rsplit_once(')').ok_or_else(malformed)?;
    // Field 22 of the line is the 20th after the name.
    rest.split_whitespace().nth(19).and_then(|field| field.parse().ok()).ok_or_else(malformed)
}

/// Asks the process to end, waits, and ends it by force after `patience`. Returns whether force was needed.
pub fn end(pidfd: &OwnedFd, patience: Duration) -> io::Result<bool> {
    signal(pidfd, Signal::TERM)?;
    if has_ended_within(pidfd, patience)? {
        return Ok(false);
    }
    signal(pidfd, Signal::KILL)?;
    has_ended_within(pidfd, patience)?;
    Ok(true)
}

fn signal(pidfd: &OwnedFd, signal: Signal) -> io::Result<()> {
    match rustix::process::pidfd_send_signal(pidfd, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Whether the process has ended, waiting at most so long.
pub fn has_ended_within(pidfd: &OwnedFd, patience: Duration) -> io::Result<bool> {
    let deadline = std::time::Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let timeout = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 });
        let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
