//! Handing a guest that runs to another VMM process, such as a newer program's.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use vmm::handover::HELLO;
use vmm::rpc::{DeviceName, UpgradeStatus};
use vmm::sandbox::{self, Namespaces, Sandbox};

use super::plug::connect;
use crate::process::terminal::{say, tell};

/// How long a successor may take to start, and then to take the guest over.
const PATIENCE: Duration = Duration::from_secs(10);

/// Hand a guest that runs to another process, which this command starts: of this program or of another version of it.
///
/// The guest stands still for some milliseconds and does not boot. It keeps its memory, disks, network devices, consoles and
/// the control socket; connections to its virtio console and its vsock are made anew. If the other process cannot have it, it
/// stays where it is. The process that had it ends with exit code 0, so whoever waits for that one must not start another.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    sudo wisp vmm boot --kernel tiny.elf --upgradable --control guest.sock </dev/null >console.log &\n  \
    sudo wisp vmm upgrade guest.sock                  # to this program\n  \
    sudo wisp vmm upgrade guest.sock --to ./wisp-new --errors guest.log")]
pub(in crate::command) struct Upgrade {
    /// The control socket (`wisp vmm boot --control`) of a guest that was booted with `--upgradable`.
    socket: PathBuf,
    /// The program; this one unless said.
    #[arg(long, value_name = "BINARY")]
    to: Option<PathBuf>,
    /// Where the new process says what goes wrong, at the end of a file; nowhere unless said.
    #[arg(long, value_name = "FILE")]
    errors: Option<PathBuf>,
}

pub(super) fn run(arguments: &Upgrade) -> anyhow::Result<ExitCode> {
    let mut client = connect(&arguments.socket)?;
    let devices = client.status()?.devices.unwrap_or_default();
    let disks = devices.iter().filter(|device| matches!(device.device, DeviceName::Disk(_))).count();
    let (ours, theirs) = UnixStream::pair().context("make the line between both processes")?;
    let mut successor = start(arguments, disks, theirs)?;
    let handed = hello(&ours).and_then(|()| Ok(client.hand_over(ours.as_fd(), PATIENCE)?));
    // With our copy gone, the line ends where either of both does.
    drop(ours);
    if let Err(error) = handed {
        return Err(explained(error, &mut successor));
    }
    let upgraded = connect(&arguments.socket)?.status()?.upgraded;
    say(line(&upgraded.context("the guest does not say that it is in another process")?))?;
    Ok(ExitCode::SUCCESS)
}

/// Starts the successor, with the line for its standard input.
fn start(arguments: &Upgrade, disks: usize, line: UnixStream) -> anyhow::Result<Child> {
    let program = match &arguments.to {
        Some(program) => OsString::from(program),
        None => "/proc/self/exe".into(),
    };
    let errors = arguments.errors.as_ref().map(|path| {
        let opened = File::options().append(true).create(true).open(path);
        opened.with_context(|| format!("open {}", path.display()))
    });
    let mut command = Command::new(&program);
    command.arg0("wisp").args(["vmm", "successor", "--disks", &disks.to_string()]);
    command.stdin(Stdio::from(std::os::fd::OwnedFd::from(line))).stdout(Stdio::null());
    command.stderr(errors.transpose()?.map_or_else(Stdio::null, Stdio::from));
    command.spawn().with_context(|| format!("start {}", program.display()))
}

/// Waits until it is confined and listens.
fn hello(line: &UnixStream) -> anyhow::Result<()> {
    line.set_read_timeout(Some(PATIENCE))?;
    let (mut said, mut line) = ([0; HELLO.len()], line);
    line.read_exact(&mut said).context("the new process does not say that it is there")?;
    ensure!(said == HELLO, "the new process says something else than that it is there");
    Ok(())
}

/// Why the guest stays where it is. The successor, which has nothing, ends.
fn explained(error: anyhow::Error, successor: &mut Child) -> anyhow::Error {
    // It may be over already.
    let _ = successor.kill();
    let _ = successor.wait();
    error.context("the guest stays where it is")
}

fn line(upgraded: &UpgradeStatus) -> String {
    match upgraded.standstill_us {
        Some(us) => {
            let stood = Duration::from_micros(us).as_secs_f64() * 1e3;
            format!("the guest is in another process; it stood still for {stood:.1} ms")
        }
        None => "the guest is in another process, and stands still as before".to_owned(),
    }
}

/// A successor's process, whose standard input is the line to the VMM that has the guest.
pub(super) fn succeed(disks: usize) -> anyhow::Result<ExitCode> {
    // For people only: the kernel names a process after its file.
    let _ = rustix::thread::set_name(c"wisp-vmm");
    sandbox::close_all_but(&[]).context("close what was inherited")?;
    // What happens at the caller's terminal is not meant for the guest.
    rustix::process::setsid().context("leave the caller's session")?;
    let line = std::io::stdin().as_fd().try_clone_to_owned().context("take the line over")?;
    if disks > DISKS_MAX {
        bail!("no guest has {disks} disks");
    }
    let sandbox = Sandbox { namespaces: Namespaces::Own, ..Sandbox::default() };
    let report = vmm::handover::take_over(line.into(), disks, sandbox);
    tell(&report.message);
    Ok(ExitCode::from(vmm::run::exit_code(&report)))
}

/// As many devices as a guest has.
const DISKS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_says_how_long_the_guest_stood_still() {
        let upgraded = UpgradeStatus { times: 1, standstill_us: Some(4321) };
        assert_eq!(line(&upgraded), "the guest is in another process; it stood still for 4.3 ms");
        let paused = UpgradeStatus { standstill_us: None, ..upgraded };
        assert_eq!(line(&paused), "the guest is in another process, and stands still as before");
    }
}
