//! Snapshots: taking one, what is different since, going on from one, and many guests that go on from the same.
//!
//! Guests are the tiny guest without devices, which writes to 1 MiB of its memory ten times a second. "First words" are what it
//! says when it has taken up its new generation id; their baseline is booting the same guest in the same run. "Heard" is a guest
//! that talks all the time (`say=1`): it is heard as soon as its first instructions after the restore have run; from the start of
//! its process on, or from the request to a process that waits for one, which knows how much memory it will have or does not. Where
//! there is no baseline of the kind, it is the aim.
//!
//! With `FIRECRACKER_BIN=/path/to/firecracker` the same guests' snapshots are taken and loaded there in the same run, and
//! are the baseline.

#[path = "snapshot/firecracker.rs"]
mod firecracker;
mod measure;

use std::io::Read;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use vm_memory::{Bytes as _, GuestAddress, GuestMemory};
use vmm::config::InheritedFd;
use vmm::rpc::{Client, Streams};
use vmm::vm::MainConsole;

use crate::firecracker::Firecracker;
use crate::measure::vmm::export_guest;
use crate::measure::{Samples, installed, line, milliseconds};

/// Guests per figure.
const RUNS: usize = 30;
/// Snapshots of a guest that talks: what it is about when one is taken says what it does first when it goes on.
const SNAPSHOTS: usize = 6;
/// Guests at once.
const FORKS: usize = 100;
/// Sizes of guests in MiB.
const SMALL_MIB: u32 = 128;
const LARGE_MIB: u32 = 1024;
/// What a booted guest says first, and one that goes on.
const BOOTED: &[u8] = b"WISP-GUEST";
const GONE_ON: &[u8] = b"generation:";
/// What a guest says before it begins to write.
const TOUCHES: &[u8] = b"touch: 1024 KiB";
/// The command line of a guest that talks all the time, and the end of whatever it says.
const TALKS: &str = "say=1";
const HEARD: &[u8] = b"\r\n";
/// What only one says that has begun to.
const BEGUN: &[u8] = b"\r\n.\r\n.\r\n";
/// The aims: half of what Firecracker 1.12 took for a full snapshot of 128 MiB on a machine with a software KVM, and what a
/// difference of 1 MiB may take anywhere.
const FULL_AIM_MS: f64 = 105.0;
const DIFFERENCES_AIM_MS: f64 = 5.0;
/// How long a VMM that waits takes to be ready, at the most.
const READY_MAX: Duration = Duration::from_secs(10);
/// Longer than the guest pauses between two turns of writing.
const TURN: Duration = Duration::from_millis(250);

fn main() -> Result<()> {
    let files = tempfile::tempdir()?;
    let wisp = installed(Path::new(env!("CARGO_BIN_EXE_wisp")), files.path()).context("install wisp")?;
    let bench = Bench { wisp, files: files.path().to_owned() };
    export_guest(&bench.wisp, &bench.files)?;
    let fulls = bench.take()?;
    let small = bench.go_on(SMALL_MIB)?;
    let large = bench.go_on(LARGE_MIB)?;
    let what = |mib: u32| format!("process start to a restored guest's first words, {mib} MiB, p50");
    let boot = bench.boots(SMALL_MIB)?;
    line(&what(SMALL_MIB), "ms", small, boot, "process start to a booted guest's first words");
    line(&what(LARGE_MIB), "ms", large, small, "the same with 128 MiB");
    let heard = [bench.heard(SMALL_MIB)?, bench.heard(LARGE_MIB)?];
    let what = |mib: u32| format!("process start to a restored guest that is heard, {mib} MiB, p50");
    let asked = |mib: u32| format!("request to a restored guest that is heard, {mib} MiB, p50");
    let expected = |mib: u32| format!("the same of a process that expects {mib} MiB, p50");
    line(&what(LARGE_MIB), "ms", heard[1].started, heard[0].started, "the same with 128 MiB");
    line(&asked(SMALL_MIB), "ms", heard[0].asked, heard[0].started, "from the start of its process");
    line(&asked(LARGE_MIB), "ms", heard[1].asked, heard[0].asked, "the same with 128 MiB");
    line(&expected(SMALL_MIB), "ms", heard[0].expected, heard[0].asked, "of one that does not");
    line(&expected(LARGE_MIB), "ms", heard[1].expected, heard[0].expected, "the same with 128 MiB");
    if let Some(peer) = Firecracker::named(files.path())? {
        for (index, mib) in [SMALL_MIB, LARGE_MIB].into_iter().enumerate() {
            let theirs = peer.figures(&bench.kernel(), mib)?;
            line(&what(mib), "ms", heard[index].started, theirs.heard, "firecracker, same guest, same run");
            let of = "firecracker, from the request to a process that waits for it";
            line(&asked(mib), "ms", heard[index].asked, theirs.heard_from_request, of);
            line(&expected(mib), "ms", heard[index].expected, theirs.heard_from_request, of);
            let full = format!("a full snapshot, {mib} MiB, p50");
            line(&full, "ms", fulls[index], theirs.full, "firecracker's, paused");
        }
    }
    bench.forks()?;
    writes()
}

/// What it costs that the VMM's writes to guest memory are noted: a used ring's entry, and a block.
fn writes() -> Result<()> {
    let plain = vm_memory::GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), GUEST_BYTES)])?;
    let noting = vmm::memory::allocate(u32::try_from(GUEST_BYTES >> 20)?)?;
    for bytes in [8, 4096] {
        let without = each_write(&plain, bytes)?;
        let with = each_write(&noting, bytes)?;
        line(&format!("a write of {bytes} bytes to guest memory, noted"), "ns", with, without, "not noted");
    }
    Ok(())
}

/// Memory that is written to here.
const GUEST_BYTES: usize = 16 << 20;
const WRITES: usize = 2_000_000;

fn each_write<M: GuestMemory>(memory: &M, bytes: usize) -> Result<f64> {
    let data = vec![7; bytes];
    let started = Instant::now();
    for index in 0..WRITES {
        let at = index * bytes % (GUEST_BYTES - bytes);
        memory.write_slice(&data, GuestAddress(at as u64)).context("write to guest memory")?;
    }
    Ok(milliseconds(started) * 1e6 / WRITES as f64)
}

/// Milliseconds until a guest that goes on is heard, p50.
struct Heard {
    /// From the start of its process.
    started: f64,
    /// From the request to a process that waits.
    asked: f64,
    /// The same to one that knows how much memory its guest will have.
    expected: f64,
}

struct Bench {
    wisp: PathBuf,
    files: PathBuf,
}

/// A guest, ended when this goes.
struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        // It may be over already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Guest {
    fn wait_for(&mut self, mark: &[u8]) -> Result<()> {
        wait_for(self.0.stdout.as_mut().context("read the console")?, mark)
    }

    /// Reads what it says from now on, so that it can go on talking.
    fn let_talk(&mut self) -> Result<()> {
        let mut stdout = self.0.stdout.take().context("read the console")?;
        std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
        Ok(())
    }
}

fn wait_for(console: &mut impl Read, mark: &[u8]) -> Result<()> {
    let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
    while !seen.windows(mark.len()).any(|window| window == mark) {
        match console.read(&mut buffer).context("read the console")? {
            0 => bail!("the VMM ended before its guest spoke: {}", String::from_utf8_lossy(&seen)),
            length => seen.extend_from_slice(&buffer[..length]),
        }
    }
    Ok(())
}

/// A VMM that waits there for its guest, once it does nothing else.
fn connect(socket: &Path) -> Result<Client> {
    let began = Instant::now();
    loop {
        match Client::connect(socket) {
            Ok(mut client) => {
                // It refuses whatever is not a guest.
                ensure!(client.status().is_err(), "the VMM has a guest");
                return Ok(client);
            }
            Err(error) if began.elapsed() > READY_MAX => {
                return Err(error).context("reach the VMM that waits");
            }
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

impl Bench {
    fn kernel(&self) -> PathBuf {
        self.files.join("tiny.elf")
    }

    fn snapshot(&self, mib: u32) -> PathBuf {
        self.files.join(format!("{mib}.snap"))
    }

    fn start(&self, change: impl FnOnce(&mut Command)) -> Result<Guest> {
        let mut command = Command::new(&self.wisp);
        command.args(["vmm", "boot"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        change(&mut command);
        Ok(Guest(command.spawn().context("start the VMM")?))
    }

    fn boot(&self, mib: u32, control: Option<&Path>) -> Result<Guest> {
        self.boot_with(mib, "touch=1024", control)
    }

    fn boot_with(&self, mib: u32, cmdline: &str, control: Option<&Path>) -> Result<Guest> {
        self.start(|command| {
            command.args(["--mem", &mib.to_string(), "--cmdline", cmdline, "--kernel"]).arg(self.kernel());
            if let Some(socket) = control {
                command.arg("--control").arg(socket);
            }
        })
    }

    fn restore(&self, snapshot: &Path) -> Result<Guest> {
        self.start(|command| {
            command.arg("--restore").arg(snapshot);
        })
    }

    /// What taking snapshots takes: as the caller sees it, and how long the guest stands still.
    ///
    /// # Returns
    /// Milliseconds of a full one of each size.
    fn take(&self) -> Result<[f64; 2]> {
        let mut fulls = [0.0; 2];
        for (mib, whole) in [SMALL_MIB, LARGE_MIB].into_iter().zip(&mut fulls) {
            let socket = self.files.join("socket");
            let mut guest = self.boot(mib, Some(&socket))?;
            guest.wait_for(TOUCHES)?;
            let mut client = Client::connect(&socket)?;
            let (mut full, mut full_paused) = (Samples::default(), Samples::default());
            let (mut differences, mut paused, mut pages) =
                (Samples::default(), Samples::default(), Samples::default());
            for round in 0..RUNS {
                let file = file(&self.snapshot(mib))?;
                let started = Instant::now();
                let report = client.snapshot(&file, false, round + 1 == RUNS)?;
                full.push(milliseconds(started));
                full_paused.push(ms(report.paused_us));
            }
            let other = file(&self.files.join("differences"))?;
            for _ in 0..RUNS {
                std::thread::sleep(TURN);
                let started = Instant::now();
                let report = client.snapshot(&other, true, false)?;
                differences.push(milliseconds(started));
                paused.push(ms(report.paused_us));
                pages.push(report.pages as f64 / 256.0);
            }
            let p50 = |samples: &Samples| samples.quantile(0.5);
            let what = |what: &str| format!("{what}, {mib} MiB, p50");
            line(&what("a full snapshot"), "ms", p50(&full), FULL_AIM_MS, "the aim, of 128 MiB");
            line(
                &what("the guest stands still for it"),
                "ms",
                p50(&full_paused),
                p50(&full),
                "the whole call",
            );
            let written = format!("differences of {:.1} MiB", p50(&pages));
            line(&what(&written), "ms", p50(&differences), DIFFERENCES_AIM_MS, "the aim, of 1 MiB");
            line(
                &what("the guest stands still for these"),
                "ms",
                p50(&paused),
                p50(&differences),
                "the whole call",
            );
            *whole = p50(&full);
        }
        Ok(fulls)
    }

    /// Until a guest goes on, in milliseconds.
    fn go_on(&self, mib: u32) -> Result<f64> {
        let mut samples = Samples::default();
        for _ in 0..RUNS {
            let started = Instant::now();
            let mut guest = self.restore(&self.snapshot(mib))?;
            guest.wait_for(GONE_ON)?;
            samples.push(milliseconds(started));
        }
        Ok(samples.quantile(0.5))
    }

    /// Until a guest that goes on is heard.
    fn heard(&self, mib: u32) -> Result<Heard> {
        let (socket, path) = (self.files.join("talks.socket"), self.files.join("talks.snap"));
        let mut samples = Samples::default();
        let (mut asked, mut expected) = (Samples::default(), Samples::default());
        for _ in 0..SNAPSHOTS {
            let mut guest = self.boot_with(mib, TALKS, Some(&socket))?;
            guest.wait_for(BEGUN)?;
            guest.let_talk()?;
            Client::connect(&socket)?.snapshot(&file(&path)?, false, false)?;
            drop(guest);
            for _ in 0..RUNS / SNAPSHOTS {
                let started = Instant::now();
                let mut guest = self.restore(&path)?;
                guest.wait_for(HEARD)?;
                samples.push(milliseconds(started));
                drop(guest);
                asked.push(self.heard_from_request(&path, None)?);
                expected.push(self.heard_from_request(&path, Some(mib))?);
            }
        }
        let p50 = |samples: &Samples| samples.quantile(0.5);
        Ok(Heard { started: p50(&samples), asked: p50(&asked), expected: p50(&expected) })
    }

    fn heard_from_request(&self, snapshot: &Path, expected_mib: Option<u32>) -> Result<f64> {
        let socket = self.files.join("waits.socket");
        let mut command = Command::new(&self.wisp);
        command.args(["vmm", "wait"]).arg(&socket).stdin(Stdio::null()).stderr(Stdio::null());
        if let Some(mib) = expected_mib {
            command.args(["--mem", &mib.to_string()]);
        }
        let _waits = Guest(command.spawn().context("start the VMM that waits")?);
        let mut client = connect(&socket)?;
        let (mut reader, writer) = std::io::pipe()?;
        let silent = std::fs::File::open("/dev/null")?;
        let config = json!({"memory_mib": 0, "vcpus": 0, "boot": {"snapshot": {"files": [0]}}});
        let streams = Streams { input: InheritedFd(1), output: InheritedFd(2), console: MainConsole::Serial };
        let started = Instant::now();
        let files = [std::fs::File::open(snapshot)?.into(), silent.into(), writer.into()];
        let files: Vec<_> = files.iter().map(OwnedFd::as_fd).collect();
        client.configure(serde_json::from_value(config)?, Some(streams), &files)?;
        client.start()?;
        wait_for(&mut reader, HEARD)?;
        Ok(milliseconds(started))
    }

    fn boots(&self, mib: u32) -> Result<f64> {
        let mut samples = Samples::default();
        for _ in 0..RUNS {
            let started = Instant::now();
            let mut guest = self.boot(mib, None)?;
            guest.wait_for(BOOTED)?;
            samples.push(milliseconds(started));
        }
        Ok(samples.quantile(0.5))
    }

    /// Many guests of one snapshot, all there at the end.
    fn forks(&self) -> Result<()> {
        let started = Instant::now();
        let mut guests: Vec<Guest> =
            (0..FORKS).map(|_| self.restore(&self.snapshot(SMALL_MIB))).collect::<Result<_>>()?;
        for guest in &mut guests {
            guest.wait_for(GONE_ON)?;
        }
        let each = milliseconds(started) / FORKS as f64;
        line(&format!("{FORKS} forks of one guest, each"), "ms", each, 1.0, "the aim, with 8 processors");
        let kib: u64 = guests.iter().map(|guest| private_kib(guest.0.id())).sum::<Result<u64>>()?;
        let each = kib as f64 / 1024.0 / FORKS as f64;
        line(
            "private memory of a fork, its guest's included",
            "MiB",
            each,
            f64::from(SMALL_MIB),
            "its guest's",
        );
        Ok(())
    }
}

fn ms(microseconds: Option<u64>) -> f64 {
    microseconds.unwrap_or(0) as f64 / 1e3
}

fn file(path: &Path) -> Result<std::fs::File> {
    let opened = std::fs::File::options().read(true).write(true).create(true).truncate(false).open(path);
    opened.with_context(|| format!("make {}", path.display()))
}

fn private_kib(pid: u32) -> Result<u64> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).context("read smaps_rollup")?;
    let of = |line: &str| {
        let mut words = line.split_whitespace();
        let counts = words.next().is_some_and(|name| name.starts_with("Private_"));
        words.next().and_then(|word| word.parse::<u64>().ok()).filter(|_| counts)
    };
    Ok(rollup.lines().filter_map(of).sum())
}
