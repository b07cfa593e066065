//! Process start → `WISP-GUEST` on the console, what an idle VMM process costs, and how long its end takes.
//!
//! With `FIRECRACKER_BIN=/path/to/firecracker` or `CLOUD_HYPERVISOR_BIN` the same kernel boots there in the same run,
//! alternating, and is the baseline; without them the baseline is a spawned process that does nothing. With `JAILER_BIN` beside it,
//! Firecracker boots under its jailer, too: confined as its documentation says that it has to be, and as ours always is.

mod measure;

use std::cell::Cell;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use crate::measure::vmm::{export_guest, firecracker, start, write_firecracker_config};
use crate::measure::{Line, Samples, installed};

/// Boots per side.
const RUNS: usize = 50;
/// Guest memory in MiB.
const MEMORY_MIB: u64 = 128;
/// What the guest says first.
const MARK: &[u8] = b"WISP-GUEST";

fn main() -> Result<()> {
    let files = tempfile::tempdir()?;
    let wisp = &installed(Path::new(env!("CARGO_BIN_EXE_wisp")), files.path()).context("install wisp")?;
    let kernel = export_guest(wisp, files.path())?;
    let config = files.path().join("firecracker.json");
    write_firecracker_config(&config, (&kernel, "console=ttyS0"), MEMORY_MIB, json!({}))?;
    let peers = peers(&config, &kernel, files.path())?;
    let (mut ours, mut nothing) = (Samples::default(), Samples::default());
    let mut theirs: Vec<_> = peers.iter().map(|_| Samples::default()).collect();
    for _ in 0..RUNS {
        nothing.push(process_alone()?);
        ours.push(until_mark(&mut our_boot(wisp, &kernel))?);
        for (peer, samples) in peers.iter().zip(&mut theirs) {
            samples.push(until_mark(&mut (peer.command)()?)?);
        }
    }
    let mut baselines: Vec<_> =
        peers.iter().zip(theirs).map(|(peer, samples)| (peer.name, samples)).collect();
    if baselines.is_empty() {
        baselines.push(("starting a process that does nothing", nothing));
    }
    for (of, samples) in &baselines {
        for (name, quantile) in [("p50", 0.5), ("p90", 0.9)] {
            Line {
                what: &format!("process start to WISP-GUEST, {MEMORY_MIB} MiB, {name} of {RUNS}"),
                unit: "ms",
                value: ours.quantile(quantile),
                baseline: samples.quantile(quantile),
                of,
            }
            .print();
        }
    }
    idle_memory(wisp, &kernel)?;
    end(wisp, &kernel, &files.path().join("guest.sock"))
}

/// Another VMM that boots the same kernel.
struct Peer<'a> {
    name: &'static str,
    command: Box<dyn Fn() -> Result<Command> + 'a>,
}

/// Firecracker's jailer, with the directories that it makes roots of.
struct Jail<'a> {
    jailer: PathBuf,
    program: PathBuf,
    kernel: &'a Path,
    cells: PathBuf,
}

impl Jail<'_> {
    /// The jailer with a root of its own, in which kernel and configuration are.
    fn command(&self, number: u32) -> Result<Command> {
        let id = format!("boot-{number}");
        let name = self.program.file_name().context("the program's name")?;
        let root = self.cells.join(name).join(&id).join("root");
        std::fs::create_dir_all(&root)?;
        std::fs::copy(self.kernel, root.join("kernel"))?;
        let kernel = (Path::new("/kernel"), "console=ttyS0");
        write_firecracker_config(&root.join("config.json"), kernel, MEMORY_MIB, json!({}))?;
        let mut command = Command::new(&self.jailer);
        command.args(["--id", &id, "--uid", JAILED, "--gid", JAILED, "--exec-file"]).arg(&self.program);
        command.arg("--chroot-base-dir").arg(&self.cells);
        command.args(["--", "--level", "Error", "--no-api", "--config-file", "/config.json"]);
        Ok(command)
    }
}

/// The user that the jailer becomes, as `nobody`.
const JAILED: &str = "65534";

/// Those that the environment names.
fn peers<'a>(config: &'a Path, kernel: &'a Path, files: &Path) -> Result<Vec<Peer<'a>>> {
    let named = |variable: &'static str| {
        let program = std::env::var_os(variable);
        program.map(|program| installed(Path::new(&program), files).context(variable)).transpose()
    };
    let mut peers = Vec::new();
    if let Some(program) = named("FIRECRACKER_BIN")? {
        if let Some(jailer) = named("JAILER_BIN")? {
            let jail = Jail { jailer, program: program.clone(), kernel, cells: files.join("jail") };
            let (name, count) = ("firecracker under its jailer, same kernel, same run", Cell::new(0));
            let command = move || {
                count.set(count.get() + 1);
                jail.command(count.get())
            };
            peers.push(Peer { name, command: Box::new(command) });
        }
        let command = move || Ok(firecracker(&program, config));
        peers.push(Peer { name: "firecracker, same kernel, same run", command: Box::new(command) });
    }
    if let Some(program) = named("CLOUD_HYPERVISOR_BIN")? {
        let command = move || {
            let mut command = Command::new(&program);
            command.args(["--cpus", "boot=1", "--memory", &format!("size={MEMORY_MIB}M"), "--kernel"]);
            command.arg(kernel).args(["--serial", "tty", "--console", "off"]);
            Ok(command)
        };
        peers.push(Peer { name: "cloud-hypervisor, same kernel, same run", command: Box::new(command) });
    }
    Ok(peers)
}

/// From asking for the end, as an agent does, until the process with all its files and taps is gone; beside it what it
/// takes where whoever ends it does not keep the VM for later.
fn end(wisp: &Path, kernel: &Path, socket: &Path) -> Result<()> {
    let (mut kept, mut killed, mut later) = (Samples::default(), Samples::default(), Samples::default());
    for _ in 0..RUNS {
        for keep in [true, false] {
            let mut command = our_boot(wisp, kernel);
            let mut child = start(command.arg("--control").arg(socket))?;
            wait_for_mark(&mut child)?;
            let mut client = vmm::rpc::Client::connect(socket).context("connect to the VMM")?;
            let started = Instant::now();
            let handles = client.end().context("end the VMM")?;
            if !keep {
                drop(handles);
                child.wait().context("wait for the VMM")?;
                killed.push(started.elapsed().as_secs_f64() * 1e3);
                continue;
            }
            child.wait().context("wait for the VMM")?;
            kept.push(started.elapsed().as_secs_f64() * 1e3);
            let started = Instant::now();
            ensure!(!handles.is_empty(), "the VMM handed nothing over");
            drop(handles);
            later.push(started.elapsed().as_secs_f64() * 1e3);
        }
    }
    for (name, quantile) in [("p50", 0.5), ("p90", 0.9)] {
        Line {
            what: &format!("VMM asked to end until it is gone, {MEMORY_MIB} MiB, {name} of {RUNS}"),
            unit: "ms",
            value: kept.quantile(quantile),
            baseline: killed.quantile(quantile),
            of: "the same, with the kernel's teardown of the VM and its namespace on the path",
        }
        .print();
    }
    Line {
        what: "that teardown, off the path, p50",
        unit: "ms",
        value: later.quantile(0.5),
        baseline: 1.0,
        of: "the aim for what its caller sees",
    }
    .print();
    Ok(())
}

fn our_boot(wisp: &Path, kernel: &Path) -> Command {
    let mut command = Command::new(wisp);
    command.args(["vmm", "boot", "--mem", &MEMORY_MIB.to_string(), "--kernel"]).arg(kernel);
    command
}

fn process_alone() -> Result<f64> {
    let started = Instant::now();
    Command::new("true").status().context("start `true`")?;
    Ok(started.elapsed().as_secs_f64() * 1e3)
}

/// Milliseconds from before the start until the guest's first words; the process is ended then.
fn until_mark(command: &mut Command) -> Result<f64> {
    let started = Instant::now();
    let mut child = start(command)?;
    let outcome = wait_for_mark(&mut child).map(|()| started.elapsed().as_secs_f64() * 1e3);
    child.kill().context("end the VMM")?;
    child.wait().context("wait for the VMM")?;
    outcome
}

fn wait_for_mark(child: &mut Child) -> Result<()> {
    let stdout = child.stdout.as_mut().context("read the console")?;
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    while !seen.windows(MARK.len()).any(|window| window == MARK) {
        match stdout.read(&mut buffer).context("read the console")? {
            0 => bail!("the VMM ended before its guest spoke: {}", String::from_utf8_lossy(&seen)),
            length => seen.extend_from_slice(&buffer[..length]),
        }
    }
    Ok(())
}

/// Private memory of an idle VMM process without the guest's own memory. A second one runs beside it, so that the
/// program's own pages count as shared, as they are on every host.
fn idle_memory(wisp: &Path, kernel: &Path) -> Result<()> {
    let mut second = start(&mut our_boot(wisp, kernel))?;
    let mut child = start(&mut our_boot(wisp, kernel))?;
    wait_for_mark(&mut second)?;
    let measured = wait_for_mark(&mut child).and_then(|()| {
        std::thread::sleep(Duration::from_secs(1));
        private_kib(child.id())
    });
    for vmm in [&mut child, &mut second] {
        vmm.kill().context("end the VMM")?;
        vmm.wait().context("wait for the VMM")?;
    }
    let value = measured? as f64 / 1024.0;
    Line {
        what: "private memory of an idle VMM process, without the guest's",
        unit: "MiB",
        value,
        baseline: 3.0,
        of: "the aim",
    }
    .print();
    Ok(())
}

/// Sums the private pages of all mappings but the guest's memory, which is the one as large as the guest.
fn private_kib(pid: u32) -> Result<u64> {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).context("read smaps")?;
    let (mut sum, mut size) = (0, 0);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let (name, number) =
            (words.next().unwrap_or_default(), words.next().and_then(|word| word.parse::<u64>().ok()));
        match (name, number) {
            ("Size:", Some(kib)) => size = kib,
            ("Private_Clean:" | "Private_Dirty:", Some(kib)) if size < MEMORY_MIB * 1024 / 2 => sum += kib,
            _ => {}
        }
    }
    Ok(sum)
}
