//! The options of `wisp vmm boot` for devices beside disks and network devices.

use std::ffi::OsStr;
use std::io::stdin;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::Context;
use vmm::config::{BalloonConfig, WatchdogAction};
use vmm::connector;
use vmm::interactive::{ConsoleOption, VsockOption};

use super::words;

/// The address that a guest has unless said: the first that one can have.
const CID: u32 = 3;

/// What is asked for; nothing is there unless it is.
#[derive(Debug, Default, clap::Args)]
pub(super) struct Options {
    /// A virtio console (hvc0) beside the serial port: `tty` for one on the terminal, which is the guest's console then
    /// while the serial port is heard by nobody; `file=PATH` for one whose newest MiB is kept there; `socket=PATH` for
    /// one that whoever connects to a Unix socket made there has, the last who came. With the last two, the guest's
    /// console stays the serial one unless `--cmdline console=hvc0` says otherwise.
    #[arg(long, value_name = "tty|file=PATH|socket=PATH", value_parser = console)]
    pub(super) console: Option<ConsoleOption>,
    /// Sockets between guest and host (virtio-vsock, AF_VSOCK), as Firecracker has them. Who connects to the Unix socket
    /// made at PATH and sends `CONNECT PORT` and a line feed is connected to that port of the guest and told `OK` and a
    /// port; where the guest connects to a port of the host (CID 2), that is the Unix socket PATH_PORT. The guest's own
    /// address is 3 unless said.
    #[arg(long, value_name = words::VSOCK, value_parser = words::read_by(vsock))]
    pub(super) vsock: Option<Vsock>,
    /// A memory balloon (virtio-balloon), which asks the guest to give MIB MiB back; `wisp vmm balloon` asks for more or
    /// less. Whatever it asks for, memory that the guest reports as free goes back to the host. With `,firm`, not even a
    /// guest that has no memory left takes any back by itself.
    #[arg(long, value_name = "MIB[,firm]", value_parser = balloon)]
    pub(super) balloon: Option<BalloonConfig>,
    /// Room for so many MiB more of memory (virtio-mem), a multiple of 128, which the guest has and gives back as `wisp vmm
    /// memory` asks it to. Linux brings it into use by itself with `--cmdline memhp_default_state=online`, or `online_movable`,
    /// of which it gives more back.
    #[arg(long, value_name = "MIB", conflicts_with = "restore")]
    pub(super) hotplug_memory: Option<u32>,
    /// A file that is memory of the guest's (virtio-pmem, /dev/pmem0 for Linux), without a copy of it anywhere else: with
    /// `,ro` a root that many guests share, `--cmdline 'root=/dev/pmem0 ro'` (and `rootflags=dax` where its file system can).
    /// It must not become shorter. May be repeated.
    #[arg(long = "pmem", value_name = words::PMEM, value_parser = words::read_by(words::pmem))]
    pub(super) pmem: Vec<(PathBuf, bool)>,
    /// A hardware watchdog, which ACPI names (/dev/watchdog by Linux's wdat_wdt), and what happens when a guest that armed it
    /// leaves it alone for too long: the guest ends, as by a reset or powered off; it is paused; or it is counted, as in all
    /// cases, for `wisp vmm status`. It stands still while the guest is paused.
    #[arg(long, value_name = "ACTION")]
    pub(super) watchdog: Option<Watchdog>,
}

/// The words of `--watchdog`.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(super) enum Watchdog {
    Reset,
    Poweroff,
    Pause,
    Report,
}

impl From<Watchdog> for WatchdogAction {
    fn from(watchdog: Watchdog) -> Self {
        match watchdog {
            Watchdog::Reset => Self::Reset,
            Watchdog::Poweroff => Self::PowerOff,
            Watchdog::Pause => Self::Pause,
            Watchdog::Report => Self::Report,
        }
    }
}

fn balloon(text: &str) -> Result<BalloonConfig, String> {
    let (number, firm) = text.strip_suffix(",firm").map_or((text, false), |number| (number, true));
    let target_mib = number.parse().map_err(|_| "it is not MIB or MIB,firm, as in 0 or 512,firm")?;
    Ok(BalloonConfig { target_mib, firm })
}

/// What `--vsock` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Vsock {
    path: PathBuf,
    cid: u32,
}

impl Vsock {
    /// Starts the process that connects for the guest: see [`connect_for`].
    pub(super) fn start(self) -> anyhow::Result<VsockOption> {
        let (ours, theirs) = connector::pair()?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("wisp").args(["vmm", "connector"]).arg(&self.path).process_group(0);
        // It ends when this process does, so nobody waits for it.
        let started = command.stdin(Stdio::from(theirs)).stdout(Stdio::null()).spawn();
        started.context("start the process that connects for the guest")?;
        Ok(VsockOption { cid: self.cid, path: self.path, connector: ours })
    }
}

/// Connects for the guest of the VMM at the other end of standard input, confined to that.
pub(super) fn connect_for(path: &Path) -> anyhow::Result<ExitCode> {
    // For people only.
    let _ = rustix::thread::set_name(c"wisp-connector");
    let socket: OwnedFd = stdin().as_fd().try_clone_to_owned().context("take the socket over")?;
    connector::confine()?;
    connector::serve(socket, path)?;
    Ok(ExitCode::SUCCESS)
}

fn vsock(text: &OsStr) -> Result<Vsock, String> {
    let (path, said) = words::split(text, words::VSOCK)?;
    let cid = match said.get("cid") {
        None => CID,
        Some(number) => number
            .to_str()
            .and_then(|number| number.parse().ok())
            .filter(|cid| (CID..u32::MAX).contains(cid))
            .ok_or("a guest's CID is a number from 3 to 4294967294")?,
    };
    Ok(Vsock { path: path.into(), cid })
}

fn console(text: &str) -> Result<ConsoleOption, String> {
    match text.split_once('=') {
        None if text == "tty" => Ok(ConsoleOption::Terminal),
        Some(("file", path)) if !path.is_empty() => Ok(ConsoleOption::File(path.into())),
        Some(("socket", path)) if !path.is_empty() => Ok(ConsoleOption::Socket(path.into())),
        _ => Err("it is none of tty, file=PATH and socket=PATH".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vsock_is_a_path_and_perhaps_an_address() {
        let parse = |text: &str| vsock(OsStr::new(text));
        assert_eq!(parse("/run/v.sock"), Ok(Vsock { path: "/run/v.sock".into(), cid: 3 }));
        assert_eq!(parse("a,b,cid=52"), Ok(Vsock { path: "a,b".into(), cid: 52 }));
        for wrong in ["", ",cid=3", "v,cid=", "v,cid=2", "v,cid=4294967295", "v,cid=x", "v,ro", "v,port=1"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn balloon_is_a_number_and_perhaps_firm() {
        assert_eq!(balloon("512"), Ok(BalloonConfig { target_mib: 512, firm: false }));
        assert_eq!(balloon("0,firm"), Ok(BalloonConfig { target_mib: 0, firm: true }));
        for wrong in ["", "-1", ",firm", "1,soft", "4294967296"] {
            assert!(balloon(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn console_is_the_terminal_a_file_or_a_socket() {
        assert_eq!(console("tty"), Ok(ConsoleOption::Terminal));
        assert_eq!(console("file=a=b"), Ok(ConsoleOption::File("a=b".into())));
        assert_eq!(console("socket=/run/c"), Ok(ConsoleOption::Socket("/run/c".into())));
        for wrong in ["", "pty", "file", "file=", "socket=", "tty=1", "null"] {
            assert!(console(wrong).is_err(), "{wrong}");
        }
    }
}
