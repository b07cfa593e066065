//! The machine of a lab: a QEMU process that ends with us, a line to the host in it, the host's console.
//!
//! Must never know: what goes over the line.
#![expect(
    unsafe_code,
    reason = "what happens between fork and exec: dying with the parent, keeping two descriptors"
)]

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::prctl;
use nix::sys::signal::Signal;

use super::content::PROGRAMS;
use super::error::Error;
use super::job;

/// The last lines of the console that are kept for an error's sake.
const CONSOLE_LINES_MAX: usize = 40;
/// How long QEMU may take to be gone after it closed the line.
const END_PATIENCE: Duration = Duration::from_millis(500);
/// Bytes of one line of it: what a guest prints without a line's end shall not grow.
const LINE_BYTES_MAX: u64 = 4096;

/// A disk of the host inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The file: raw, or qcow2 if it is named so.
    pub path: PathBuf,
    /// It is not written.
    pub read_only: bool,
}

/// A network device of the host inside.
#[derive(Debug)]
pub(super) enum Nic {
    /// QEMU's own network, with ports of loopback forwarded: outside, inside.
    User(Vec<(u16, u16)>),
    /// An open tap.
    Tap(OwnedFd),
}

/// What a machine is made of.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub(super) qemu: &'a Path,
    pub(super) kernel: &'a Path,
    /// The initial ramdisk.
    pub(super) ramdisk: &'a File,
    pub(super) memory_mib: u32,
    pub(super) cpus: u8,
    /// The clock counts instructions.
    pub(super) count_instructions: bool,
    pub(super) disks: &'a [Disk],
    pub(super) nics: &'a [Nic],
    /// Words added to the kernel's command line.
    pub(super) cmdline: &'a str,
    /// Where the whole console goes, besides.
    pub(super) console: Option<File>,
}

/// A machine that runs.
#[derive(Debug)]
pub(super) struct Machine {
    qemu: Child,
    /// The line to the host inside.
    pub(super) line: UnixStream,
    console: Arc<Mutex<VecDeque<String>>>,
    reader: Option<JoinHandle<()>>,
}

impl Machine {
    /// Starts the machine.
    pub(super) fn start(plan: Plan<'_>) -> Result<Self, Error> {
        let (line, inside) = UnixStream::pair().map_err(Error::Line)?;
        let mut command = Command::new(plan.qemu);
        command.args(arguments(&plan, inside.as_raw_fd()));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut kept = vec![inside.as_raw_fd(), plan.ramdisk.as_raw_fd()];
        kept.extend(plan.nics.iter().filter_map(|nic| match nic {
            Nic::Tap(tap) => Some(tap.as_raw_fd()),
            Nic::User(_) => None,
        }));
        let parent = nix::unistd::getpid();
        // SAFETY: the closure runs in the forked child and only makes system calls (prctl, getppid, fcntl); it
        // allocates nothing and takes no lock. The descriptors are owned by the caller and open until `spawn` returns.
        unsafe { command.pre_exec(move || prepare(parent, &kept)) };
        let mut qemu =
            command.spawn().map_err(|source| Error::Start { program: plan.qemu.to_owned(), source })?;
        let console = Arc::new(Mutex::new(VecDeque::new()));
        let reader = qemu.stdout.take().map(|output| {
            let (console, mut copy) = (Arc::clone(&console), plan.console);
            std::thread::spawn(move || keep_last_lines(output, &console, copy.as_mut()))
        });
        if let Some(errors) = qemu.stderr.take() {
            let console = Arc::clone(&console);
            std::thread::spawn(move || keep_last_lines(errors, &console, None));
        }
        Ok(Self { qemu, line, console, reader })
    }

    /// The end of the host's console, what QEMU itself complained of, and how it ended if it did by itself.
    pub(super) fn last_words(&mut self) -> String {
        // One whose line was closed is about to be gone.
        let deadline = Instant::now() + END_PATIENCE;
        let mut ended = self.qemu.try_wait();
        while matches!(ended, Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
            ended = self.qemu.try_wait();
        }
        let ended = ended.ok().flatten().map_or_else(String::new, |status| format!("  QEMU: {status}\n"));
        self.end();
        if let Some(reader) = self.reader.take() {
            // A panicked reader has kept what it had.
            let _ = reader.join();
        }
        let lines = self.console.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        lines.iter().map(|line| format!("  | {line}\n")).chain([ended]).collect()
    }

    fn end(&mut self) {
        // It may have ended already; there is nothing in it that is worth a farewell.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.end();
    }
}

/// In the forked child: it ends when its parent does, and these descriptors stay open.
fn prepare(parent: nix::unistd::Pid, kept: &[RawFd]) -> std::io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if nix::unistd::getppid() != parent {
        return Err(std::io::Error::from_raw_os_error(libc::ESRCH));
    }
    for fd in kept {
        // SAFETY: takes numbers only.
        if unsafe { libc::fcntl(*fd, libc::F_SETFD, 0) } < 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}

fn keep_last_lines(from: impl Read, lines: &Mutex<VecDeque<String>>, mut copy: Option<&mut File>) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while from.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
        if let Some(copy) = &mut copy {
            // The copy is for people; the run does not depend on it.
            let _ = copy.write_all(&line);
        }
        let mut lines = lines.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if lines.len() == CONSOLE_LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(String::from_utf8_lossy(&line).trim_end().to_owned());
        line.clear();
    }
}

fn arguments(plan: &Plan<'_>, line: RawFd) -> Vec<String> {
    let mut words = vec!["-no-user-config".to_owned(), "-nodefaults".to_owned()];
    let mut add = |option: &str, value: String| words.extend([option.to_owned(), value]);
    add("-machine", "pc".to_owned());
    if plan.count_instructions {
        add("-accel", "tcg,thread=single".to_owned());
        // Two to the power of 0 nanoseconds each; where nothing is to be done the clock goes on to what is next.
        add("-icount", "shift=0,sleep=off".to_owned());
    } else {
        add("-accel", "tcg,thread=multi".to_owned());
    }
    add("-cpu", "max".to_owned());
    add("-smp", plan.cpus.to_string());
    add("-m", plan.memory_mib.to_string());
    add("-display", "none".to_owned());
    add("-chardev", "stdio,id=console,signal=off".to_owned());
    add("-serial", "chardev:console".to_owned());
    add("-kernel", plan.kernel.display().to_string());
    add("-initrd", format!("/proc/self/fd/{}", plan.ramdisk.as_raw_fd()));
    add("-append", command_line(plan.cmdline));
    add("-device", "virtio-serial-pci".to_owned());
    add("-chardev", format!("socket,id=line,fd={line}"));
    add("-device", format!("virtserialport,chardev=line,name={}", job::PORT));
    for (index, disk) in plan.disks.iter().enumerate() {
        let format = if disk.path.extension().is_some_and(|name| name == "qcow2") { "qcow2" } else { "raw" };
        let read_only = if disk.read_only { "on" } else { "off" };
        // QEMU's own way to write a comma.
        let path = disk.path.display().to_string().replace(',', ",,");
        add("-drive", format!("if=none,id=disk{index},format={format},readonly={read_only},file={path}"));
        add("-device", format!("virtio-blk-pci,drive=disk{index},serial=disk{index}"));
    }
    for (index, nic) in plan.nics.iter().enumerate() {
        match nic {
            Nic::User(forwards) => {
                let forwards = forwards
                    .iter()
                    .map(|(outside, inside)| format!(",hostfwd=tcp:127.0.0.1:{outside}-:{inside}"));
                add("-netdev", format!("user,id=net{index}{}", forwards.collect::<String>()));
            }
            Nic::Tap(tap) => add("-netdev", format!("tap,id=net{index},fd={}", tap.as_raw_fd())),
        }
        add("-device", format!("virtio-net-pci,netdev=net{index},romfile="));
    }
    words.push("-no-reboot".to_owned());
    words
}

/// The kernel's: our own program is its first process, and its one.
fn command_line(more: &str) -> String {
    format!(
        "console=ttyS0 quiet panic=-1 reboot=t nokaslr mitigations=off rdinit={PROGRAMS}/wisp {more} -- lab-inside"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_device_has_its_back_end() {
        let ramdisk = tempfile::tempfile().unwrap();
        let disks = [
            Disk { path: "/a,b.img".into(), read_only: true },
            Disk { path: "c.qcow2".into(), read_only: false },
        ];
        let nics =
            [Nic::User(vec![(5001, 5000)]), Nic::Tap(std::fs::File::open("/dev/null").unwrap().into())];
        let plan = Plan {
            qemu: Path::new("qemu"),
            kernel: Path::new("vmlinuz"),
            ramdisk: &ramdisk,
            memory_mib: 512,
            cpus: 1,
            count_instructions: false,
            disks: &disks,
            nics: &nics,
            cmdline: "",
            console: None,
        };
        let words = arguments(&plan, 7).join(" ");
        for wanted in [
            "-drive if=none,id=disk0,format=raw,readonly=on,file=/a,,b.img",
            "-drive if=none,id=disk1,format=qcow2,readonly=off,file=c.qcow2",
            "-netdev user,id=net0,hostfwd=tcp:127.0.0.1:5001-:5000",
            "-netdev tap,id=net1,fd=",
            "-chardev socket,id=line,fd=7",
        ] {
            assert!(words.contains(wanted), "{wanted}: {words}");
        }
    }

    #[test]
    fn only_the_end_of_a_console_is_kept() {
        let lines = Mutex::new(VecDeque::new());
        let text: String = (0..100).map(|number| format!("line {number}\n")).collect();
        keep_last_lines(text.as_bytes(), &lines, None);
        let lines = lines.into_inner().unwrap();
        assert_eq!((lines.len(), lines.front().map(String::as_str)), (CONSOLE_LINES_MAX, Some("line 60")));
    }
}
