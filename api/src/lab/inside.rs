//! The first process of a lab's host: prepares the host, runs the command, says outside what it said and how it
//! ended. The host ends with the line to the outside.
//!
//! Must never know: anything about the outside beyond the line and the job.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::frame::{BODY_MAX, Frame};
use super::job::{self, Job, Link};

/// What is mounted: type, place, options.
const MOUNTS: [(&str, &str, &str); 8] = [
    ("proc", "/proc", ""),
    ("sysfs", "/sys", ""),
    ("devtmpfs", "/dev", ""),
    ("devpts", "/dev/pts", "ptmxmode=666"),
    ("tmpfs", "/dev/shm", ""),
    ("tmpfs", "/tmp", ""),
    ("tmpfs", "/run", ""),
    ("cgroup2", "/sys/fs/cgroup", ""),
];
/// The size of the file systems in memory, as servers with disks of some GiB ask for.
const DISK_SIZE: &str = "size=64g";
/// How long the port of the line may take to appear after its driver was loaded.
const PORT_PATIENCE: Duration = Duration::from_secs(20);
/// How long output is collected.
const OUTPUT_INTERVAL: Duration = Duration::from_millis(5);
/// What a shell answers for a command that it cannot find.
const NOT_FOUND: u8 = 127;

/// The writing end of the line, shared by the threads that carry the command's output.
type Line = Arc<Mutex<File>>;

/// Runs the job of the ramdisk and ends the machine. Only the first process of a lab's host may be this.
///
/// # Errors
/// If this is not such a process. Everything else is said to the outside, or to the console where there is no line.
pub fn main() -> Result<()> {
    anyhow::ensure!(
        std::process::id() == 1 && Path::new(job::PATH).exists(),
        "this is the first process of a lab's host; `wisp lab` starts it"
    );
    if let Err(error) = run() {
        // To the console: whoever is outside sees its end when the line closes.
        eprintln!("lab: {error:#}");
    }
    nix::unistd::sync();
    reboot(RebootMode::RB_POWER_OFF).map(drop).context("power off")
}

fn run() -> Result<()> {
    for (kind, place, options) in MOUNTS {
        fs::create_dir_all(place).with_context(|| format!("make {place}"))?;
        mount(Some(kind), place, Some(kind), MsFlags::empty(), Some(options))
            .with_context(|| format!("mount {kind} on {place}"))?;
    }
    // What is written to the host's disks is sparse, and its memory is the bound: half of it, the default, is not.
    for place in ["/", "/tmp"] {
        mount(None::<&str>, place, None::<&str>, MsFlags::MS_REMOUNT, Some(DISK_SIZE))
            .with_context(|| format!("size {place}"))?;
    }
    fs::write("/proc/sys/kernel/hostname", "lab").context("name the host")?;
    let job: Job =
        serde_json::from_slice(&fs::read(job::PATH).context("read the job")?).context("read the job")?;
    for path in &job.modules {
        load(path).with_context(|| format!("load {path}"))?;
    }
    let port = open_port()?;
    let line: Line = Arc::new(Mutex::new(port.try_clone().context("share the line")?));
    let outcome =
        job.links.iter().enumerate().try_for_each(|(index, link)| configure(index, link)).and_then(|()| {
            let child = start(&job)?;
            serve(&job, child, port, &line)
        });
    if let Err(error) = outcome {
        send(&line, &Frame::Failure(format!("{error:#}")))?;
    }
    // Ended from outside once the last frame has arrived; ends by itself if the outside is gone.
    loop {
        std::thread::sleep(PORT_PATIENCE);
    }
}

fn load(path: &str) -> Result<()> {
    let file = File::open(path).context("open it")?;
    match finit_module(&file, c"", ModuleInitFlags::empty()) {
        // Another module has asked the kernel for it.
        Ok(()) | Err(nix::Error::EEXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Opens the port that is the line.
fn open_port() -> Result<File> {
    let deadline = Instant::now() + PORT_PATIENCE;
    loop {
        let ports = fs::read_dir("/sys/class/virtio-ports").into_iter().flatten().flatten();
        let port = ports
            .map(|entry| entry.path())
            .find(|path| fs::read_to_string(path.join("name")).is_ok_and(|name| name.trim() == job::PORT));
        if let Some(name) = port.as_deref().and_then(Path::file_name) {
            let path = Path::new("/dev").join(name);
            if let Ok(file) = File::options().read(true).write(true).open(path) {
                return Ok(file);
            }
        }
        anyhow::ensure!(Instant::now() < deadline, "the port {} did not appear", job::PORT);
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn configure(index: usize, link: &Link) -> Result<()> {
    let name = format!("eth{index}");
    let address = format!("{}/{}", link.address, link.prefix);
    ip(&["link", "set", "lo", "up"])?;
    ip(&["address", "add", &address, "dev", &name])?;
    ip(&["link", "set", &name, "up"])?;
    if link.forwards {
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("allow forwarding")?;
    }
    match link.gateway {
        Some(gateway) => ip(&["route", "add", "default", "via", &gateway.to_string()]),
        None => Ok(()),
    }
}

fn ip(words: &[&str]) -> Result<()> {
    let output = Command::new("/usr/bin/busybox").arg("ip").args(words).output().context("run ip")?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "ip {}: {}", words.join(" "), said.trim());
    Ok(())
}

/// Starts the command; an error is that it cannot be.
fn start(job: &Job) -> Result<io::Result<Child>> {
    let (program, words) = job.command.split_first().context("no command")?;
    // A host without links has loopback all the same.
    ip(&["link", "set", "lo", "up"])?;
    let spawned = Command::new(program)
        .args(words)
        .env_clear()
        .envs([("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), ("HOME", job::HOME), ("USER", "root")])
        .envs([("LANG", "C.UTF-8"), ("TERM", "dumb"), ("WISP_LAB", "1")])
        .envs(job.environment.iter().map(|(name, value)| (name, value)))
        .current_dir(job::HOME)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    Ok(spawned)
}

/// Carries the command's input and output until it ends, then brings its files out and says how it ended.
fn serve(job: &Job, child: io::Result<Child>, port: File, line: &Line) -> Result<()> {
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            let said = format!("lab: {}: {error}\n", job.command[0]);
            send(line, &Frame::Error(said.into_bytes()))?;
            return send(line, &Frame::Exit(NOT_FOUND));
        }
    };
    send(line, &Frame::Started)?;
    let output = child.stdout.take().context("invariant: it is piped")?;
    let errors = child.stderr.take().context("invariant: it is piped")?;
    let carriers = [carry(output, line, Frame::Output), carry(errors, line, Frame::Error)];
    let input = child.stdin.take();
    std::thread::spawn(move || feed(port, input));
    let code = reap(Pid::from_raw(i32::try_from(child.id()).context("a process's number")?))?;
    // What the command left running holds its output open, and a disk busy.
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    for carrier in carriers {
        // One that could not go on has lost the line: so will we.
        let _ = carrier.join();
    }
    for (index, path) in job.bring.iter().enumerate() {
        bring(u32::try_from(index).context("too many files")?, path, line)?;
    }
    nix::unistd::sync();
    send(line, &Frame::Exit(code))
}

/// Waits for all processes, as the first one must, until this one ends.
fn reap(child: Pid) -> Result<u8> {
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) if pid == child => {
                return Ok(u8::try_from(code).unwrap_or(u8::MAX));
            }
            // As a shell says it.
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => return Ok(128 + signal as u8),
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error).context("wait for the command"),
        }
    }
}

fn carry(mut from: impl Read + Send + 'static, line: &Line, frame: fn(Vec<u8>) -> Frame) -> JoinHandle<()> {
    let line = Arc::clone(line);
    std::thread::spawn(move || {
        let mut buffer = vec![0; BODY_MAX];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            if send(&line, &frame(buffer[..length].to_vec())).is_err() {
                return;
            }
            // What a guest says byte by byte goes out in lines: each frame costs an emulated interrupt.
            std::thread::sleep(OUTPUT_INTERVAL);
        }
    })
}

/// Feeds the command what comes over the line. The line's end is the outside's, and so the machine's.
fn feed(mut port: File, mut input: Option<std::process::ChildStdin>) {
    loop {
        match Frame::read(&mut port) {
            Ok(Some(Frame::Input(bytes))) => {
                if input.as_mut().is_some_and(|input| input.write_all(&bytes).is_err()) {
                    input = None;
                }
            }
            Ok(Some(Frame::InputEnd)) => input = None,
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => {
                let _ = reboot(RebootMode::RB_POWER_OFF);
            }
        }
    }
}

fn bring(index: u32, path: &str, line: &Line) -> Result<()> {
    let opened = File::open(Path::new(job::HOME).join(path)).and_then(|file| Ok((file.metadata()?, file)));
    let (metadata, mut file) = match opened {
        Ok((metadata, file)) if metadata.is_file() => (metadata, file),
        Ok(_) => return send(line, &Frame::FileMissing { index, said: "it is no regular file".into() }),
        Err(error) => return send(line, &Frame::FileMissing { index, said: error.to_string() }),
    };
    send(line, &Frame::FileBegin { index, mode: metadata.permissions().mode() & 0o7777 })?;
    let mut buffer = vec![0; BODY_MAX];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return send(line, &Frame::FileEnd),
            Ok(length) => send(line, &Frame::FileData(buffer[..length].to_vec()))?,
            Err(error) => return send(line, &Frame::FileMissing { index, said: error.to_string() }),
        }
    }
}

fn send(line: &Line, frame: &Frame) -> Result<()> {
    let mut line = line.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    frame.write(&mut *line).context("write to the line")
}
