//! Devices of one guest by its command line, as a person asks for them: `wisp vmm boot` and its control socket.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;

use crate::booted::{Files, PATIENCE, vmm};
use crate::harness::{Need, trial};

/// The tests.
pub(crate) fn trials() -> Vec<Trial> {
    vec![trial(
        "peripherals::guest_gives_its_memory_back_and_reaches_the_hosts_sockets",
        &[Need::Kvm],
        guest_gives_its_memory_back_and_reaches_the_hosts_sockets,
    )]
}

/// KiB of the host's memory that a process has written and nobody shares. What it has only read comes and goes with other
/// processes of the same program.
fn private_kib(process: u32) -> Result<u64> {
    let rollup = std::fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?;
    let line = rollup.lines().find(|line| line.starts_with("Private_Dirty:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    number.context("no private memory is told of")
}

/// Waits until `wanted` is a part of what is said.
fn until(wanted: &str, say: impl Fn() -> Result<String>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let said = say()?;
        if said.contains(wanted) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{said}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn guest_gives_its_memory_back_and_reaches_the_hosts_sockets() -> Result<()> {
    const TOUCHED_MIB: u64 = 64;
    let files = Files::new()?;
    let path = |name: &str| files.path(name);
    let (kernel, sockets) = (path("tiny.elf"), format!("{},cid=9", path("v.sock")));
    let beside = ["--vsock", &sockets, "--hotplug-memory", "128", "--watchdog", "report"];
    let (guest, mut typist) =
        files.boot(&[&["--kernel", &kernel, "--mem", "128", "--balloon", "0"][..], &beside].concat())?;

    let before = private_kib(guest.0.id())?;
    let touched = typist.say(&format!("touch {TOUCHED_MIB}"))?;
    ensure!(touched == format!("command: touch ok {TOUCHED_MIB}"), "{touched}");
    let full = private_kib(guest.0.id())?;
    ensure!(full >= before + TOUCHED_MIB * 1024, "{before} KiB, {full} KiB");
    vmm(&["balloon", &path("control"), &TOUCHED_MIB.to_string()])?;
    let deadline = Instant::now() + PATIENCE;
    let said = loop {
        let said = vmm(&["balloon", &path("control")])?;
        // The guest may take longer to say how its memory is than the command waits.
        let has_given = said.starts_with(&format!("target {TOUCHED_MIB} MiB, given {TOUCHED_MIB} MiB\n"));
        if has_given && said.contains(" MiB in all") {
            break said;
        }
        ensure!(Instant::now() < deadline, "{said}");
    };
    ensure!(said.contains(&format!("returned to the host so far {TOUCHED_MIB} MiB\n")), "{said}");
    ensure!(said.contains(" MiB free"), "{said}");
    let given = private_kib(guest.0.id())?;
    ensure!(given + TOUCHED_MIB * 1024 * 9 / 10 <= full, "{before} KiB, {full} KiB, and now {given} KiB");

    // Asked what it has free, it keeps the size of its memory and loses what is in that.
    vmm(&["balloon", &path("control"), "0"])?;
    until("target 0 MiB, given 0 MiB\n", || vmm(&["balloon", &path("control")]))?;
    typist.say(&format!("touch {TOUCHED_MIB}"))?;
    let full = private_kib(guest.0.id())?;
    let said = vmm(&["balloon", &path("control"), "--hints"])?;
    ensure!(said.contains(" MiB of them went to the host; the guest stood still for "), "{said}");
    let given = private_kib(guest.0.id())?;
    ensure!(given + TOUCHED_MIB * 1024 * 9 / 10 <= full, "{said}: {full} KiB, and now {given} KiB");
    let said = vmm(&["snapshot", &path("control"), &path("snapshot"), "--hints"])?;
    ensure!(said.contains(" KiB of memory, ") && said.contains(" MiB are free; the guest stood"), "{said}");

    vmm(&["memory", &path("control"), "64"])?;
    until("requested 64 MiB, plugged 64 MiB, room for 128 MiB\n", || vmm(&["memory", &path("control")]))?;
    typist.say("watchdog arm 60000")?;
    until("of 60.0 s left; running out is counted; ran out 0 times", || vmm(&["status", &path("control")]))?;

    // By the process that connects for the guest.
    let refused = typist.say("vsock 52 hello")?;
    ensure!(refused == "command: vsock 52 failed: connection refused", "{refused}");
    let listener = UnixListener::bind(path("v.sock_52"))?;
    let serving = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, mut bytes) = (listener.accept()?.0, [0; 5]);
        stream.read_exact(&mut bytes)?;
        stream.write_all(&bytes)
    });
    let answered = typist.say("vsock 52 hello")?;
    ensure!(answered == "command: vsock 52 ok hello", "{answered}");
    serving.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
    let mut call = BufReader::new(UnixStream::connect(path("v.sock"))?);
    call.get_ref().set_read_timeout(Some(PATIENCE))?;
    call.get_mut().write_all(b"CONNECT 7\n")?;
    let mut line = String::new();
    call.read_line(&mut line)?;
    ensure!(line.starts_with("OK "), "{line}");
    Ok(())
}
