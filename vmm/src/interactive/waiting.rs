//! A guest with its console on the terminal, in a VMM process that waits for one (`crate::waiting`).

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::MemfdFlags;
use rustix::io::Errno;

use super::{BootOptions, Error, balloon_target, main_console, open, output};
use crate::ending::Ending;
use crate::rpc::{Client, ClientError, ExitReason, ExitReport, REQUEST_FDS_MAX, Streams};
use crate::supervisor;
use crate::terminal::RawTerminal;

/// Has the VMM that waits at `socket` run a guest with this process's standard input and output as its console, and returns how
/// it ended. Whatever asks this process to end ends the guest.
///
/// What `options` say of a VMM before it has a guest does not hold: its memory is not pinned, and it boots what is known to come
/// far alone.
///
/// # Errors
/// Nobody waits there, or anything that keeps the guest from running.
pub fn boot_in(socket: &Path, options: BootOptions) -> Result<Ending, Error> {
    let heard = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
    supervisor::block_signals().map_err(crate::run::Error::from)?;
    let signals = SignalFd::with_flags(&heard, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC);
    let signals = signals.map_err(|errno| Error::Terminal(errno.into()))?;
    // Before anything is made for a guest that nobody waits for.
    let vmm = Client::connect(socket);
    let mut vmm = vmm.map_err(|source| Error::NobodyWaits { path: socket.to_owned(), source })?;
    let (target, console) = (balloon_target(&options), main_console(&options));
    let (mut config, mut files) = open::open(options)?;
    let kept = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map_err(Error::Terminal);
    let report = rustix::fs::memfd_create("report", MemfdFlags::CLOEXEC);
    let report = File::from(report.map_err(|errno| Error::Terminal(errno.into()))?);
    let input = File::from(kept(io::stdin().as_fd())?);
    let output = output::standard().map_err(Error::Terminal)?.into_descriptor();
    config.exit_report = Some(files.add(kept(report.as_fd())?));
    let streams = Streams { input: files.add(kept(input.as_fd())?), output: files.add(output), console };
    if files.0.len() > REQUEST_FDS_MAX {
        return Err(Error::Files(files.0.len()));
    }
    let terminal = RawTerminal::new(&input).map_err(Error::Terminal)?;
    let passed: Vec<_> = files.0.iter().map(OwnedFd::as_fd).collect();
    vmm.configure(config, Some(streams), &passed)?;
    // They are the guest's alone from here on, and so are the disks' locks.
    drop(passed);
    drop(files);
    if let Some(target) = target {
        vmm.set_balloon(target)?;
    }
    vmm.start()?;
    wait(&mut vmm, &signals).map_err(ClientError::Talk)?;
    drop(terminal);
    Ok(told(report))
}

/// Waits until the VMM is gone, and ends it when this process is told to end.
fn wait(vmm: &mut Client, signals: &SignalFd) -> io::Result<()> {
    loop {
        let mut polled =
            [PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN), PollFd::new(vmm, PollFlags::IN)];
        match poll(&mut polled, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if !polled[1].revents().is_empty() {
            // It says nothing that it was not asked.
            return Ok(());
        }
        if signals.read_signal()?.is_some()
            && let Err(error) = vmm.stop(true)
        {
            tracing::debug!(%error, "the guest is ending already");
        }
    }
}

/// What the VMM left.
fn told(mut report: File) -> Ending {
    let mut text = Vec::new();
    let read = report.rewind().and_then(|()| report.read_to_end(&mut text));
    match read.ok().and_then(|_| serde_json::from_slice::<ExitReport>(&text).ok()) {
        Some(ExitReport { reason, message, .. }) => Ending { reason, message },
        None => Ending {
            reason: ExitReason::Crashed,
            message: "the VMM ended without a word: it was killed, or its guest was handed over to another"
                .to_owned(),
        },
    }
}
