//! The image's program: begun as its image says, told to end when the machine is to, and waited for.

#![expect(unsafe_code, reason = "a program's groups are set between fork and exec")]

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Gid, Pid, Uid, setgid, setgroups, setsid, setuid};

use crate::console::Console;
use crate::end::{Event, Signals};
use crate::parse::{Identity, Run, identity, signal_name};
use crate::prepare;

/// Where programs are looked for if the image does not say.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long the program may take to end once it is asked to.
const END_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs it until it ends; how it ended, as a sentence.
pub(crate) fn run(run: &Run, signals: &Signals, console: &mut Console) -> String {
    let program = run.arguments.first().map_or("", String::as_str);
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let identity = match identity(&run.user, &read("/etc/passwd"), &read("/etc/group")) {
        Ok(identity) => identity,
        Err(stranger) => return format!("{program} is not run: the image has no user or group {stranger}"),
    };
    console.give_to(identity.uid);
    let child = match command(run, identity, console).spawn() {
        Ok(child) => child,
        Err(error) => return format!("{program} cannot be run: {error}"),
    };
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
    let stop = stop_signal(&run.stop);
    let mut killed_at: Option<Instant> = None;
    loop {
        if let Some(ended) = reap(pid) {
            return match ended {
                WaitStatus::Signaled(_, signal, _) => format!("{program} was ended by {signal}"),
                WaitStatus::Exited(_, code) => format!("{program} ended with {code}"),
                other => format!("{program} ended: {other:?}"),
            };
        }
        match signals.wait(killed_at.map(|at| at.saturating_duration_since(Instant::now()))) {
            Event::Child => {}
            Event::End if killed_at.is_none() => {
                console.say("the machine is asked to end");
                let _ = kill(pid, stop);
                killed_at = Some(Instant::now() + END_TIMEOUT);
            }
            Event::End => {}
            Event::Timeout => {
                console.say(&format!("{program} does not end"));
                let _ = kill(pid, Signal::SIGKILL);
                killed_at = Some(Instant::now() + END_TIMEOUT);
            }
        }
    }
}

/// Waits for all that has ended; how the program did, if it has.
fn reap(program: Pid) -> Option<WaitStatus> {
    let mut ended = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(_) => return ended,
            Ok(status) if status.pid() == Some(program) => ended = Some(status),
            Ok(_) => {}
        }
    }
}

fn stop_signal(wish: &str) -> Signal {
    let wished = signal_name(wish).and_then(|name| match name.parse::<i32>() {
        Ok(number) => Signal::try_from(number).ok(),
        Err(_) => name.parse().ok(),
    });
    wished.unwrap_or(Signal::SIGTERM)
}

fn command(run: &Run, identity: Identity, console: &Console) -> Command {
    let (program, arguments) =
        run.arguments.split_first().map_or(("", &[][..]), |(first, rest)| (first, rest));
    let directory = if run.directory.is_empty() { "/" } else { &run.directory };
    // A container runtime makes it if it is not there.
    let _ = fs::create_dir_all(directory);
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", &identity.home)
        .env("HOSTNAME", prepare::hostname())
        .envs(run.environment.iter().filter(|(name, _)| !name.is_empty()).map(|(name, value)| (name, value)))
        .current_dir(directory)
        .stdin(console.for_program())
        .stdout(console.for_program())
        .stderr(console.for_program());
    let groups: Vec<Gid> = identity.groups.into_iter().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    let become_it = move || {
        setsid()?;
        setgroups(&groups)?;
        setgid(gid)?;
        setuid(uid)?;
        Ok(())
    };
    // SAFETY: between fork and exec, the closure makes system calls and no allocation.
    unsafe { command.pre_exec(become_it) };
    command
}
