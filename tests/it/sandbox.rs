//! The filters of system calls against the calls that VMM processes really make, both ways: a call that is allowed and
//! nobody makes has a reason in the filter's own table, and one that is made is allowed, or its process would be gone.
//!
//! What is watched: a guest of `wisp vmm boot` from its first instruction to its end, with devices that come and go; and
//! a server's VMM, which is paused, asked, stopped and started.
#![expect(unsafe_code, reason = "a tracer waits and goes on by hand where signals have no names")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::{Value, json};
use vmm::rpc::{Client, Protection, VmState};
use vmm::sandbox::filter::{CALLS, Call, PROBES, Thread, Use};

use crate::booted::{booting, export};
use crate::harness::{Cloud, KVM_CLOUD, NewServer, isolate, processes, trial, wisp, within};

/// The tests.
pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("sandbox::filters_are_the_calls_that_are_made", KVM_CLOUD, filters_are_the_calls_that_are_made),
        trial("sandbox::vmm_of_a_server_is_confined", KVM_CLOUD, vmm_of_a_server_is_confined),
    ]
}

/// `seccomp` and `prctl` as they are seen by a tracer.
const SECCOMP: i64 = 317;
/// The number of a call that a tracer sees before it is made (x86-64: `rax` is -ENOSYS then).
const ENTERED: u64 = u64::MAX - 37;

/// Calls by the kind of thread that made them once it was filtered.
type Made = BTreeSet<(Thread, i64)>;

/// Watches all threads of a process until it has ended. To be called before it is confined, or with what its threads are.
fn watch(pid: Pid, threads: &[(Pid, Option<Thread>)], ready: &mpsc::Sender<()>) -> Result<Made> {
    let mut kinds: BTreeMap<Pid, Option<Thread>> = BTreeMap::new();
    let mut made = Made::new();
    for (thread, kind) in threads {
        ptrace::seize(*thread, Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE)
            .context("trace a VMM's thread")?;
        ptrace::interrupt(*thread)?;
        kinds.insert(*thread, *kind);
    }
    // Nobody waits for it where this fails later.
    let _ = ready.send(());
    loop {
        let (thread, status) = match wait() {
            Ok(stopped) => stopped,
            Err(Errno::EINTR) => continue,
            Err(Errno::ECHILD) => return Ok(made),
            Err(error) => return Err(error).context("wait for a VMM"),
        };
        if !libc::WIFSTOPPED(status) {
            if thread == pid {
                return Ok(made);
            }
            continue;
        }
        // What it goes on with: a signal that came to it, and none where the stop is the tracer's own.
        let signal = match (libc::WSTOPSIG(status), status >> 16) {
            (CALL_STOP, 0) => {
                note(thread, &mut kinds, &mut made);
                0
            }
            (_, libc::PTRACE_EVENT_CLONE) => {
                // A thread that comes is as its maker is.
                if let Ok(new) = ptrace::getevent(thread) {
                    let kind = kinds.get(&thread).copied().flatten();
                    kinds.insert(Pid::from_raw(new as i32), kind);
                }
                0
            }
            (signal, 0) => signal,
            _ => 0,
        };
        match go_on(thread, signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error).context("let a VMM go on"),
        }
    }
}

/// A stop at a system call, where a tracer has asked for that form (PTRACE_O_TRACESYSGOOD).
const CALL_STOP: i32 = libc::SIGTRAP | 0x80;

/// Waits for any of this thread's tracees. By hand, since vCPUs are kicked by a realtime signal, which has no name.
fn wait() -> nix::Result<(Pid, i32)> {
    let mut status = 0;
    // SAFETY: `status` is a live local that the call writes.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
    Errno::result(pid).map(|pid| (Pid::from_raw(pid), status))
}

/// Lets a thread run to its next system call, with the signal that it was about to get.
fn go_on(thread: Pid, signal: i32) -> nix::Result<()> {
    // SAFETY: takes numbers only; the thread is a tracee of this one, or the call fails.
    let done = unsafe { libc::ptrace(libc::PTRACE_SYSCALL, thread.as_raw(), 0_usize, signal as usize) };
    Errno::result(done).map(drop)
}

/// Notes the call that a thread is about to make; its filter makes a main thread of it, the next one a vCPU's.
fn note(thread: Pid, kinds: &mut BTreeMap<Pid, Option<Thread>>, made: &mut Made) {
    let Ok(registers) = ptrace::getregs(thread) else { return };
    let call = registers.orig_rax.cast_signed();
    let kind = kinds.entry(thread).or_insert(None);
    if registers.rax == ENTERED {
        if let Some(kind) = *kind {
            made.insert((kind, call));
        }
    } else if call == SECCOMP && registers.rax == 0 {
        *kind = Some(if kind.is_none() { Thread::Main } else { Thread::Vcpu });
    }
}

/// Has a thread of its own watch, since only that may; returns when it does.
fn watched(pid: Pid, threads: Vec<(Pid, Option<Thread>)>) -> Result<std::thread::JoinHandle<Result<Made>>> {
    let (ready, is_ready) = mpsc::channel();
    let watching = std::thread::spawn(move || watch(pid, &threads, &ready));
    if is_ready.recv().is_err() {
        watching.join().map_err(|_| anyhow::anyhow!("the tracer panicked"))??;
        bail!("the tracer ended early");
    }
    Ok(watching)
}

fn ended(watching: std::thread::JoinHandle<Result<Made>>) -> Result<Made> {
    watching.join().map_err(|_| anyhow::anyhow!("the tracer panicked"))?
}

fn ok(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A guest with a terminal's console, whose devices come and go.
fn alone(directory: &Path) -> Result<Made> {
    let path = |name: &str| directory.join(name);
    let (kernel, socket) = (path("tiny"), path("guest.sock"));
    export(&kernel)?;
    for (name, bytes) in [("first", 1 << 20), ("second", 2 << 20)] {
        std::fs::File::create(path(name))?.set_len(bytes)?;
    }
    for tap in ["sand0", "sand1"] {
        ok(Command::new("ip").args(["tuntap", "add", "mode", "tap", "vnet_hdr", "multi_queue", tap]))?;
        ok(Command::new("ip").args(["link", "set", tap, "up"]))?;
    }
    let mut command =
        booting(&["--mem", "64", "--cpus", "2", "--transport", "pci", "--tap", "sand0,queues=2"]);
    command.arg("--kernel").arg(&kernel).arg("--disk").arg(path("first")).arg("--control").arg(&socket);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("boot a guest")?;
    let pid = Pid::from_raw(child.id().cast_signed());
    let watching = watched(pid, vec![(pid, None)])?;
    let done = used(&mut child, &socket, directory);
    // Were it not over, the tracer would wait without end.
    let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
    let made = ended(watching)?;
    done?;
    Ok(made)
}

fn used(child: &mut Child, socket: &Path, directory: &Path) -> Result<()> {
    let mut stdout = child.stdout.take().context("its console")?;
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    while !String::from_utf8_lossy(&seen).contains("WISP-GUEST") {
        let count = stdout.read(&mut buffer)?;
        ensure!(count > 0, "the guest ended: {}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buffer[..count]);
    }
    // Read to the end, or the guest would wait for it.
    std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
    child.stdin.as_mut().context("its input")?.write_all(b"x\n")?;
    let mut client = Client::connect(socket)?;
    let status = client.status()?;
    let held = status.protections.context("no protections in the status")?;
    let filtered = held.iter().find(|one| one.protection == Protection::SystemCalls);
    ensure!(filtered.is_some_and(|one| one.missing.is_none()), "{held:?}");
    ensure!(client.pause()? == VmState::Paused);
    client.flush()?;
    ensure!(client.resume()? == VmState::Running);
    let vmm = |words: &[&str], file: &str| {
        ok(Command::new(wisp()).arg("vmm").arg(words[0]).arg(socket).arg(file).args(&words[1..]))
    };
    let second = directory.join("second");
    let second = second.to_str().context("a path")?;
    vmm(&["attach-disk"], second)?;
    std::fs::File::options().write(true).open(second)?.set_len(3 << 20)?;
    vmm(&["resize-disk"], second)?;
    vmm(&["attach-nic"], "sand1,queues=2")?;
    std::thread::sleep(Duration::from_millis(300));
    vmm(&["detach", "--wait", "10"], "second")?;
    ok(Command::new(wisp()).args(["vmm", "status"]).arg(socket))?;
    // What takes long to take apart is this process's from here on: the VM, and the namespace with nothing but an empty root.
    let handles = client.end()?;
    let names = handles.iter().map(|handle| {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", handle.as_raw_fd()))?;
        Ok(link.to_string_lossy().into_owned())
    });
    let names: Vec<String> = names.collect::<Result<_>>()?;
    let has = |start: &str| names.iter().any(|name| name.starts_with(start));
    ensure!(names.len() == 2 && has("anon_inode:kvm-vm") && has("mnt:["), "{names:?}");
    Ok(())
}

/// The VMM process of the one server that runs.
fn of_server(server: &str) -> Result<Pid> {
    let found = processes(&format!("vmm run {server}"))?;
    let [(pid, _)] = found[..] else { bail!("not one VMM: {found:?}") };
    Ok(Pid::from_raw(pid))
}

fn threads_of(pid: Pid) -> Result<Vec<(Pid, Option<Thread>)>> {
    let mut threads = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let entry = entry?;
        let name = std::fs::read_to_string(entry.path().join("comm"))?;
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let thread = Pid::from_raw(number.context("a thread's number")?);
        // Others are the kernel's own, which work for KVM in the process's name.
        if thread == pid {
            threads.push((thread, Some(Thread::Main)));
        } else if name.starts_with("vcpu") {
            threads.push((thread, Some(Thread::Vcpu)));
        }
    }
    Ok(threads)
}

/// A server's VMM, from its guest's first words to its end.
fn in_cloud() -> Result<Made> {
    let (cloud, rest, network) = Cloud::start_open()?;
    let new = NewServer { name: "watched", image: "", flavor: "m1.nano", network: &network, user_data: "" };
    let server = cloud.server(&rest, &new)?;
    cloud.wait_status(&rest, &server, "ACTIVE")?;
    let pid = of_server(&server)?;
    let watching = watched(pid, threads_of(pid)?)?;
    let act = |action: Value, status: &str| -> Result<()> {
        let (code, body) = rest.post(&format!("/compute/v2.1/servers/{server}/action"), &action)?;
        ensure!(code == 202, "{action}: {code} {body}");
        cloud.wait_status(&rest, &server, status).map(drop)
    };
    let done = (|| {
        cloud.wait_console(&rest, &server, "ready")?;
        act(json!({"pause": null}), "PAUSED")?;
        act(json!({"unpause": null}), "ACTIVE")?;
        act(json!({"os-stop": null}), "SHUTOFF")
    })();
    if done.is_err() {
        // Were it not over, the tracer would wait without end.
        let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
    }
    let made = ended(watching)?;
    done?;
    Ok(made)
}

fn filters_are_the_calls_that_are_made() -> Result<()> {
    isolate()?;
    let directory = tempfile::tempdir()?;
    let mut made = alone(directory.path())?;
    made.extend(in_cloud()?);
    ensure!(made.len() > 40, "too little was seen: {made:?}");
    let probed = |call: i64| PROBES.iter().any(|(number, ..)| *number == call);
    let mut wrong = Vec::new();
    for (thread, kind) in [(Thread::Main, "the main thread"), (Thread::Vcpu, "a vCPU thread")] {
        let listed = |call: &Call| match thread {
            Thread::Main => call.main,
            Thread::Vcpu => call.vcpu,
        };
        for (_, number) in made.iter().filter(|(of, number)| *of == thread && !probed(*number)) {
            let call = CALLS.iter().find(|call| call.number == *number);
            if call.and_then(listed).is_none() {
                wrong.push(format!("{kind} makes call {number}, which kills it"));
            }
        }
        for call in CALLS {
            if listed(call) == Some(Use::Made) && !made.contains(&(thread, call.number)) {
                wrong.push(format!("{kind} may make {}, does not, and no reason is given", call.name));
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

fn vmm_of_a_server_is_confined() -> Result<()> {
    isolate()?;
    let (cloud, rest, network) = Cloud::start_open()?;
    let new = NewServer { name: "confined", image: "", flavor: "m1.nano", network: &network, user_data: "" };
    let server = cloud.server(&rest, &new)?;
    cloud.wait_status(&rest, &server, "ACTIVE")?;
    let pid = of_server(&server)?;
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).context("of the VMM");
    let status = read("status")?;
    let field = |name: &str| -> Result<&str> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        Ok(line.with_context(|| format!("no {name}"))?.trim())
    };
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        ensure!(field(set)?.bytes().all(|digit| digit == b'0'), "{set} {status}");
    }
    ensure!(field("NoNewPrivs:")? == "1" && field("Seccomp:")? == "2", "{status}");
    ensure!(field("Groups:")?.is_empty() && !field("Uid:")?.split('\t').any(|uid| uid == "0"), "{status}");
    let numbers: Vec<_> = field("NSpid:")?.split_whitespace().collect();
    ensure!(numbers.len() >= 2 && numbers.last() == Some(&"1"), "no PID namespace of its own: {numbers:?}");
    for kind in ["user", "mnt", "pid", "net", "ipc", "uts"] {
        let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/{kind}"));
        ensure!(of(&pid.to_string())? != of("self")?, "it is in the host's {kind} namespace");
    }
    ensure!(std::fs::read_dir(format!("/proc/{pid}/root"))?.next().is_none(), "its root is not empty");
    ensure!(read("mountinfo")?.lines().count() == 1, "{}", read("mountinfo")?);
    ensure!(read("limits")?.lines().any(|line| line.starts_with("Max core file size        0")), "cores");
    // Filters of threads: a vCPU's has one more than the main thread's.
    let filters = |thread: Pid| -> Result<u32> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/task/{thread}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("Seccomp_filters:"));
        line.context("no count of filters")?.trim().parse().context("a count of filters")
    };
    let main = filters(pid)?;
    for (thread, kind) in threads_of(pid)? {
        let expected = main + u32::from(kind == Some(Thread::Vcpu));
        ensure!(filters(thread)? == expected, "{kind:?} has {} filters", filters(thread)?);
    }
    // Nothing but itself, its namespace, which is as empty, and what it was given.
    let room = std::fs::read_link(format!("/proc/{pid}/ns/mnt"))?;
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        let target = std::fs::read_link(entry?.path())?;
        let target = target.to_string_lossy();
        let known = ["anon_inode:", "socket:", "pipe:", "/dev/kvm", "/dev/net/tun", "/dev/null"];
        let is_given = known.iter().any(|start| target.starts_with(start))
            || ["/run/", "/images/", "/volumes/"].iter().any(|part| target.contains(part));
        ensure!(is_given || target == room.to_string_lossy(), "it has {target}");
    }
    let deleted = rest.delete(&format!("/compute/v2.1/servers/{server}"))?;
    ensure!(deleted == 204, "{deleted}");
    within(10, || {
        ensure!(processes(&format!("vmm run {server}"))?.is_empty(), "the VMM runs still");
        Ok(())
    })
}
