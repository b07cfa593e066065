//! VMM processes that wait for their guest, by the command line.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::booted::{Ended, Files, Guest, PATIENCE, Typist, booting, refused, vmm};
use crate::harness::{Need, trial, wisp, within};

/// The tests.
pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial(
            "waiting::guest_in_a_vmm_that_waited_is_as_one_in_its_own",
            &[Need::Kvm],
            guest_in_a_vmm_that_waited_is_as_one_in_its_own,
        ),
        trial(
            "waiting::what_cannot_be_given_a_guest_is_told_and_nothing_stays",
            &[Need::Kvm],
            what_cannot_be_given_a_guest_is_told,
        ),
    ]
}

/// A VMM that waits there.
fn wait(socket: &str) -> Result<Guest> {
    let mut command = Command::new(wisp());
    command.args(["vmm", "wait", socket]).stdin(Stdio::null()).stderr(Stdio::piped());
    let waits = Guest::start(&mut command)?;
    within(PATIENCE.as_secs(), || Ok(vmm::rpc::Client::connect(Path::new(socket))?))?;
    Ok(waits)
}

fn boot(socket: &str, arguments: &[&str]) -> Result<Guest> {
    let mut command = booting(&["--in", socket]);
    Guest::start(command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()))
}

fn guest_in_a_vmm_that_waited_is_as_one_in_its_own() -> Result<()> {
    let files = Files::new()?;
    let path = |name: &str| files.path(name);
    for (name, bytes) in [("disk", 1 << 20), ("data", 2 << 20)] {
        std::fs::File::create(path(name))?.set_len(bytes)?;
    }
    let control = path("control");
    let mut waits = wait(&control)?;
    let console = format!("socket={}", path("hvc0"));
    let (kernel, disk) = (path("tiny.elf"), path("disk"));
    let mut guest =
        boot(&control, &["--kernel", &kernel, "--mem", "32", "--disk", &disk, "--console", &console])?;
    let mut typist = Typist::connect(Path::new(&path("hvc0")))?;
    // All that is asked of a guest is asked at the socket where it was waited for.
    let status = vmm(&["status", &control])?;
    ensure!(status.starts_with("running") && status.contains("disk0"), "{status}");
    vmm(&["attach-disk", &control, &path("data"), "--serial", "data"])?;
    vmm(&["detach", &control, "data"])?;
    // Its disks are locked by it alone: what it let go another may have.
    let locked = refused(&["boot", "--kernel", &kernel, "--disk", &disk])?;
    ensure!(locked.contains("is in use"), "{locked}");
    vmm(&["snapshot", &control, &path("snap")])?;
    typist.say("touch 1")?;
    // Who ends the command that brought it ends it, and hears how it ended.
    kill(Pid::from_raw(guest.0.id().cast_signed()), Signal::SIGTERM)?;
    let said = guest.output()?;
    let errors = String::from_utf8_lossy(&said.stderr);
    ensure!(said.status.success() && errors.contains("stopped on request"), "{} {errors}", said.status);
    ensure!(String::from_utf8_lossy(&said.stdout).contains("WISP-GUEST"), "its console is not the command's");
    ensure!(waits.output()?.status.success(), "the VMM does not end with its guest");

    // Another goes on from it, and outlives a command that is killed.
    let mut waits = wait(&control)?;
    let _ended = Ended(control.clone().into());
    let mut guest = boot(&control, &["--restore", &path("snap"), "--disk", &disk, "--console", &console])?;
    let mut typist = Typist::connect(Path::new(&path("hvc0")))?;
    guest.0.kill()?;
    guest.0.wait()?;
    typist.say("touch 1")?;
    let status = vmm(&["status", &control])?;
    ensure!(status.starts_with("running"), "{status}");
    vmm(&["stop", &control, "--force"])?;
    ensure!(waits.output()?.status.success(), "the VMM does not end with its guest");
    Ok(())
}

fn what_cannot_be_given_a_guest_is_told() -> Result<()> {
    let files = Files::new()?;
    let path = |name: &str| files.path(name);
    let (control, kernel) = (path("control"), path("tiny.elf"));
    let nobody = refused(&["boot", "--in", &control, "--kernel", &kernel])?;
    ensure!(nobody.contains("wisp vmm wait"), "{nobody}");

    // Told to end, it ends, with a guest or without.
    let mut waits = wait(&control)?;
    let early = refused(&["status", &control])?;
    ensure!(early.contains("waits for its guest"), "{early}");
    kill(Pid::from_raw(waits.0.id().cast_signed()), Signal::SIGTERM)?;
    let said = waits.output()?;
    let errors = String::from_utf8_lossy(&said.stderr);
    ensure!(said.status.success() && errors.contains("had no guest"), "{} {errors}", said.status);

    let mut waits = wait(&control)?;
    let missing = refused(&["boot", "--in", &control, "--kernel", &path("none")])?;
    ensure!(missing.contains("No such file"), "{missing}");
    // It waits on for one that can be opened, and ends with one that is none.
    std::fs::write(path("text"), "no kernel\n")?;
    let none = refused(&["boot", "--in", &control, "--kernel", &path("text")])?;
    ensure!(none.contains("neither an ELF image"), "{none}");
    let said = waits.output()?;
    ensure!(said.status.code() == Some(1), "{}", said.status);
    Ok(())
}
