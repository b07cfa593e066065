//! Knowing a process again: its number together with the moment it started, which no later process shares.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
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

/// The signal that a process died of, which need not be a child: kernels from 6.15 on tell whoever holds its handle, once
/// its parent has taken notice (`linux/pidfd.h`, `PIDFD_GET_INFO`).
#[expect(unsafe_code, reason = "no safe wrapper asks a handle for it")]
pub fn killed_by(pidfd: &OwnedFd) -> Option<i32> {
    /// struct pidfd_info, version 0: what is asked for and answered, the control group, eleven ids, the status as wait(2)
    /// gives it.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        mask: u64,
        cgroup: u64,
        ids: [u32; 11],
        status: i32,
    }
    /// _IOWR(0xff, 11, struct pidfd_info).
    const GET_INFO: libc::c_ulong = 0xc040_ff0b;
    const EXIT: u64 = 1 << 3;
    let mut info = Info { mask: EXIT, ..Info::default() };
    // SAFETY: the kernel reads and writes the 64 bytes that the request says, which are `info`'s and live.
    let asked = unsafe { libc::ioctl(pidfd.as_raw_fd(), GET_INFO, &raw mut info) };
    let is_told = asked == 0 && info.mask & EXIT != 0 && libc::WIFSIGNALED(info.status);
    is_told.then(|| libc::WTERMSIG(info.status))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signal_that_a_process_died_of_is_told_by_its_handle() {
        for (command, expected) in [("kill -SYS $$", Some(libc::SIGSYS)), ("exit 3", None)] {
            let mut child = std::process::Command::new("sh").args(["-c", command]).spawn().unwrap();
            let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
            let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).unwrap();
            child.wait().unwrap();
            let told = killed_by(&pidfd);
            // Kernels before 6.15 do not tell.
            assert!(told == expected || told.is_none(), "{command}: {told:?}");
            println!("{command}: {told:?}");
        }
    }
}
