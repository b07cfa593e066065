//! Starting a VMM process that is nobody's child: its own session, no descriptors but those meant for it, no parent
//! to die with.
//!
//! The process reads its configuration from a pipe. It is written down before the configuration is sent: one that
//! nobody has written down finds its pipe closed, and ends by itself.
//!
//! Must never know: what the process does.
#![expect(unsafe_code, reason = "what happens between fork and exec is system calls by hand")]

use std::fs::File;
use std::io::{self, PipeWriter, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use vmm::sandbox::cell;

use crate::driver::process_id::ProcessId;

/// The number of the configuration's pipe in the process; those handed over follow it.
const CONFIGURATION_FD: RawFd = 3;

/// What a VMM process is started with.
#[derive(Debug)]
pub(super) struct Spawn<'a> {
    /// The program; this one, unless a test brings another.
    pub(super) program: &'a str,
    /// The instance, for the command line.
    pub(super) instance: &'a str,
    /// The user and group it becomes; nobody else if absent.
    pub(super) user: Option<(u32, u32)>,
    /// The handles of the cell that it joins; none if absent.
    pub(super) cell: Option<[RawFd; 2]>,
    /// Where its standard error goes.
    pub(super) log: File,
    /// What it inherits, each under the number that [`number_of`] names.
    pub(super) fds: Vec<OwnedFd>,
}

/// The number in the process of the descriptor that is at `index` in [`Spawn::fds`].
pub(super) fn number_of(index: usize) -> RawFd {
    let index = RawFd::try_from(index).expect("invariant: an instance has a handful of descriptors");
    CONFIGURATION_FD + 1 + index
}

/// A process that waits for its configuration.
#[derive(Debug)]
pub(super) struct Spawned {
    /// The process.
    pub(super) id: ProcessId,
    /// Takes the configuration; closing it unwritten ends the process.
    pub(super) configuration: PipeWriter,
}

/// Starts the process. When this returns the program runs; an error left nothing.
pub(super) fn spawn(spawn: Spawn<'_>) -> io::Result<Spawned> {
    let (configuration, configuration_writer) = io::pipe()?;
    let (mut number, number_writer) = io::pipe()?;
    let mut command = Command::new(spawn.program);
    command.arg0("wisp").args(["vmm", "run", spawn.instance, "--config-fd", &CONFIGURATION_FD.to_string()]);
    if let Some((uid, gid)) = spawn.user {
        command.args(["--uid", &uid.to_string(), "--gid", &gid.to_string()]);
    }
    if spawn.cell.is_some() {
        command.arg("--cell");
    }
    command.env_clear().current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(spawn.log);

    let mut sources: Vec<RawFd> = vec![configuration.as_raw_fd()];
    sources.extend(spawn.fds.iter().map(AsRawFd::as_raw_fd));
    let (report, cell) = (number_writer.as_raw_fd(), spawn.cell);
    // Made before the fork: afterwards nothing may allocate.
    let mut parked = vec![-1; sources.len()];
    // SAFETY: the closure runs in the forked child and only makes system calls (setns, unshare, capset, prctl, fork, _exit,
    // setsid, write, fcntl, dup2, close_range, rt_sigprocmask), allocates nothing and takes no lock. The descriptors it uses are owned
    // by this function and open until `spawn` below returns.
    unsafe { command.pre_exec(move || detach(report, cell, &sources, &mut parked)) };
    let mut child = command.spawn()?;
    // The child proper ended when it had made the process.
    child.wait()?;
    drop(number_writer);
    let mut bytes = [0; 4];
    number.read_exact(&mut bytes)?;
    let id = ProcessId::of(i32::from_ne_bytes(bytes))?;
    Ok(Spawned { id, configuration: configuration_writer })
}

/// In the forked child: makes the process proper, whose parent is init, says its number, and puts the descriptors
/// in their places.
fn detach(
    report: RawFd,
    cell: Option<[RawFd; 2]>,
    sources: &[RawFd],
    parked: &mut [RawFd],
) -> io::Result<()> {
    if let Some(handles) = cell {
        cell::join(handles)?;
    }
    let check = |result: libc::c_int| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) };
    // SAFETY: all of these take numbers and pointers to live local values only; fork duplicates one thread, and
    // neither side runs anything but system calls until exec or _exit.
    unsafe {
        let child = check(libc::fork())?;
        if child > 0 {
            // By the number that it has out here. Who reads it sees a message that is cut short as none.
            let number = child.to_ne_bytes();
            libc::write(report, number.as_ptr().cast(), number.len());
            libc::_exit(0);
        }
        check(libc::setsid())?;
        // First above all places that will be taken, then into them: neither step hits a source.
        let above = number_of(sources.len());
        for (source, parked) in sources.iter().zip(parked.iter_mut()) {
            *parked = check(libc::fcntl(*source, libc::F_DUPFD_CLOEXEC, above))?;
        }
        for (index, parked) in parked.iter().enumerate() {
            check(libc::dup2(*parked, CONFIGURATION_FD + index as RawFd))?;
        }
        // The rest closes on exec: the standard library's own pipe must live until then.
        let first = above as libc::c_uint - 1;
        if libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut none);
        check(libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()))?;
    }
    Ok(())
}
