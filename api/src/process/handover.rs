//! What the supervisor hands a child of its own: one JSON document in a memory file whose descriptor, like those
//! the document names, the child inherits.
//!
//! Must never know: what the children do with it.
#![expect(unsafe_code, reason = "taking ownership of inherited descriptors by their numbers")]

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};

use anyhow::Context;
use rustix::fs::MemfdFlags;
use rustix::io::FdFlags;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A descriptor's number in the child.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Inherited(RawFd);

impl Inherited {
    /// The number under which a child started by [`spawn`] will find `fd`.
    pub fn of(fd: &impl AsFd) -> Self {
        Self(fd.as_fd().as_raw_fd())
    }

    /// The descriptor by this number, named on the command line.
    pub fn numbered(number: RawFd) -> Self {
        Self(number)
    }

    /// Takes the descriptor over. To be called once for each number in a child, before it opens anything.
    pub fn take(self) -> io::Result<OwnedFd> {
        take(self.0)
    }
}

/// Takes over an inherited descriptor, and has it closed on exec from now on.
fn take(number: RawFd) -> io::Result<OwnedFd> {
    if number <= 2 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a standard stream is nothing to take over"));
    }
    // SAFETY: fcntl with F_GETFD on any number is harmless; it fails for one that is not open.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, was inherited for us, and is taken once (the callers' documented duty, kept
    // before anything else is opened), so nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    Ok(fd)
}

/// Starts this program again as `command --handover N` in a process group of its own (a terminal's Ctrl-C is for the
/// supervisor alone), with `document` as its handover and `fds` inherited under their present numbers.
///
/// The child begins in `directory`, which it need not be able to reach by its path.
///
/// Must not run while another thread of this process starts a program: for a moment the descriptors are inheritable.
pub fn spawn<T: Serialize>(
    command: &str,
    document: &T,
    fds: &[&dyn AsFdDyn],
    directory: &Path,
) -> anyhow::Result<Child> {
    let mut file = File::from(rustix::fs::memfd_create("handover", MemfdFlags::CLOEXEC)?);
    serde_json::to_writer(&mut file, document)?;
    file.flush()?;
    file.rewind()?;
    let mut inherited: Vec<&dyn AsFdDyn> = fds.to_vec();
    inherited.push(&file);
    for fd in &inherited {
        rustix::io::fcntl_setfd(fd.as_fd_dyn(), FdFlags::empty())?;
    }
    let child = Command::new("/proc/self/exe")
        .arg0("wisp")
        .args([command, "--handover", &file.as_raw_fd().to_string()])
        .current_dir(directory)
        .process_group(0)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn();
    for fd in &inherited {
        rustix::io::fcntl_setfd(fd.as_fd_dyn(), FdFlags::CLOEXEC)?;
    }
    child.with_context(|| format!("start the {command} process"))
}

/// Reads the handover of a child that [`spawn`] started.
pub fn receive<T: DeserializeOwned>(number: RawFd) -> anyhow::Result<T> {
    // Started as `/proc/self/exe`, the process would be called `exe`; the name is for people only.
    let _ = rustix::thread::set_name(c"wisp");
    let mut file = File::from(take(number).context("take over the handover")?);
    let mut document = Vec::new();
    file.read_to_end(&mut document).context("read the handover")?;
    serde_json::from_slice(&document).context("the handover is not one of this program's")
}

/// [`AsFd`] as an object.
pub trait AsFdDyn {
    /// The descriptor.
    fn as_fd_dyn(&self) -> std::os::fd::BorrowedFd<'_>;
}

impl<T: AsFd> AsFdDyn for T {
    fn as_fd_dyn(&self) -> std::os::fd::BorrowedFd<'_> {
        self.as_fd()
    }
}
