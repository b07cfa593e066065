//! The cell: a user namespace and, in it, a network namespace with nothing but a loopback device that is down. Who starts
//! VMM processes makes it once; each process joins it between fork and exec and has PID, IPC and UTS namespaces of its
//! own there, and a mount namespace later on.
//!
//! One network namespace for all, since making one takes as long as all others together, several times over, and has the
//! kernel tidy up after each: nobody in it has the right to make an interface, an address or a route, nor the system calls
//! for it. The user namespace holds no user but those that processes become; a process in it has lost every right
//! outside, whatever its user.
#![expect(unsafe_code, reason = "what happens between fork and exec is system calls by hand")]

use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What a process needs until it has confined itself: to mount its root, to become its user, to bound its capabilities
/// (capabilities(7): `CAP_SETGID`, `CAP_SETUID`, `CAP_SETPCAP`, `CAP_SYS_ADMIN`).
const NEEDED: [u32; 4] = [6, 7, 8, 21];

/// Why there is no cell.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One step failed.
    #[error("make a cell for VMM processes: {step}")]
    Step {
        /// Which.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn step(step: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Step { step, source }
}

/// See the module. It lives as long as this, or as a process in it.
#[derive(Debug)]
pub struct Cell {
    user: OwnedFd,
    network: OwnedFd,
}

impl Cell {
    /// Makes one in which processes can become any of `users`, and groups of the same numbers; without `users` they stay
    /// who they are. A process joins it once, to see that it can.
    ///
    /// # Errors
    /// The kernel or whoever administers it allows no user namespaces; what was made is gone.
    pub fn make(users: Option<&Range<u32>>) -> Result<Self, Error> {
        let (mut made, made_end) = io::pipe().map_err(step("make a pipe"))?;
        let (wait, wait_end) = io::pipe().map_err(step("make a pipe"))?;
        let (report, waited) = (made_end.as_raw_fd(), wait.as_raw_fd());
        let ours = wait_end.as_raw_fd();
        // SAFETY: in the child only `found` runs, which makes system calls alone (unshare, prctl, close, write, read) on
        // numbers that are open in it, allocates nothing and takes no lock; then it exits.
        let child = unsafe { in_child(|| found(report, waited, ours)) }.map_err(step("start a process"))?;
        drop((made_end, wait));
        let cell = Self::of(child, &mut made, users);
        // It would go by itself as soon as the other end of its pipe is closed, of which a process that another thread has
        // started meanwhile may have a copy: two that found cells at once would wait for each other.
        let told = kill(Pid::from_raw(child), Signal::SIGKILL);
        drop(wait_end);
        let ended = told.map_err(io::Error::from).and_then(|()| wait_for(child));
        let cell = cell?;
        ended.map_err(step("wait for the process that founds it"))?;
        cell.try_out()?;
        Ok(cell)
    }

    fn of(founder: i32, made: &mut PipeReader, users: Option<&Range<u32>>) -> Result<Self, Error> {
        let mut errno = [0; 4];
        made.read_exact(&mut errno).map_err(step("hear of the process that founds it"))?;
        match i32::from_ne_bytes(errno) {
            0 => {}
            errno => return Err(step("make the namespaces")(io::Error::from_raw_os_error(errno))),
        }
        if let Some(users) = users {
            let map = format!("{0} {0} {1}\n", users.start, users.end - users.start);
            for kind in ["uid_map", "gid_map"] {
                // One write, or the kernel refuses it (user_namespaces(7)).
                File::options()
                    .write(true)
                    .open(format!("/proc/{founder}/{kind}"))
                    .and_then(|mut file| file.write_all(map.as_bytes()))
                    .map_err(step("let its users in"))?;
            }
        }
        let open = |kind: &str| {
            let opened = File::open(format!("/proc/{founder}/ns/{kind}"));
            opened.map(OwnedFd::from).map_err(step("hold on to the namespaces"))
        };
        Ok(Self { user: open("user")?, network: open("net")? })
    }

    /// Its descriptors for [`join`], the user namespace's first.
    #[must_use]
    pub fn handles(&self) -> [RawFd; 2] {
        [self.user.as_raw_fd(), self.network.as_raw_fd()]
    }

    fn try_out(&self) -> Result<(), Error> {
        let (mut said, said_end) = io::pipe().map_err(step("make a pipe"))?;
        let (handles, report) = (self.handles(), said_end.as_raw_fd());
        // SAFETY: as above: `join` and `say` make system calls alone.
        let child = unsafe { in_child(|| say(report, join(handles))) }.map_err(step("start a process"))?;
        drop(said_end);
        let mut errno = [0; 4];
        let heard = said.read_exact(&mut errno);
        wait_for(child).map_err(step("wait for the process that tries it"))?;
        heard.map_err(step("hear of the process that tries it"))?;
        match i32::from_ne_bytes(errno) {
            0 => Ok(()),
            errno => Err(step("join it")(io::Error::from_raw_os_error(errno))),
        }
    }
}

/// Has the calling process, whose next child will be the first of a PID namespace, join a cell by its handles. What it
/// needs there for confining itself survives an exec. To be called between fork and exec: it makes system calls alone.
///
/// # Errors
/// The kernel's.
pub fn join([user, network]: [RawFd; 2]) -> io::Result<()> {
    /// capset(2), version 3: the sets' lower halves, then the upper ones.
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    let header = Header { version: 0x2008_0522, pid: 0 };
    let needed = NEEDED.iter().fold(0_u32, |set, number| set | 1 << number);
    // Effective, permitted, inheritable.
    let sets: [[u32; 3]; 2] = [[needed; 3], [0; 3]];
    // SAFETY: all of these take numbers, or pointers to live local values of the layout that the call reads.
    unsafe {
        check(libc::setns(user, libc::CLONE_NEWUSER))?;
        check(libc::setns(network, libc::CLONE_NEWNET))?;
        check(libc::unshare(libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS))?;
        check_long(libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()))?;
        for number in NEEDED {
            let (raise, none) = (libc::PR_CAP_AMBIENT_RAISE as libc::c_ulong, 0 as libc::c_ulong);
            check(libc::prctl(libc::PR_CAP_AMBIENT, raise, libc::c_ulong::from(number), none, none))?;
        }
    }
    Ok(())
}

/// Closes all descriptors from `first` to `last`.
pub(super) fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: takes numbers only; whoever calls it knows that nobody owns what is open under them.
    check_long(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0_u32) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    check_long(result.into())
}

fn check_long(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Runs `body` in a new process, which ends with it; its number.
///
/// # Safety
/// Other threads may hold locks and the allocator at the fork: where there are any, `body` makes system calls alone.
pub(super) unsafe fn in_child(body: impl FnOnce()) -> io::Result<i32> {
    // SAFETY: the child runs what the caller vouches for, and _exit, which runs no handlers.
    unsafe {
        match libc::fork() {
            0 => {
                body();
                libc::_exit(0)
            }
            child if child > 0 => Ok(child),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// In the child: makes the namespaces, says so to `report`, and stays until the other end of `wait` is closed.
fn found(report: RawFd, wait: RawFd, other_end: RawFd) {
    let mut byte = [0_u8; 1];
    // SAFETY: all of these take numbers, and `read` a live buffer of the length given.
    let made = unsafe {
        // First, or it would wait for itself.
        libc::close(other_end);
        // Others of this user may look at it: it has nothing to hide, and is looked at for its namespaces.
        check(libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET))
            .and_then(|()| check(libc::prctl(libc::PR_SET_DUMPABLE, 1 as libc::c_ulong, 0, 0, 0)))
    };
    say(report, made);
    // SAFETY: as above.
    unsafe { libc::read(wait, byte.as_mut_ptr().cast(), byte.len()) };
}

/// Writes an error's number, or zero.
fn say(report: RawFd, result: io::Result<()>) {
    let errno = result.err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO)).to_ne_bytes();
    // SAFETY: the buffer is live and of the length given. Who does not hear it reads the end of the pipe.
    unsafe { libc::write(report, errno.as_ptr().cast(), errno.len()) };
}

pub(super) fn wait_for(child: i32) -> io::Result<()> {
    loop {
        match nix::sys::wait::waitpid(Pid::from_raw(child), None) {
            Ok(_) => return Ok(()),
            Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
