//! An agent killed between any two steps of a router's, and of a whole network's, making and removing: the next one, which
//! knows nothing of it, ends where it would have. A step is a system call that changes something others can see; the kill comes before it.

use std::io::Write;
use std::process::{Child, Stdio};

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::router::{FLOATING, WEB_GUEST, tag, translate, wanted};
use super::*;
use crate::namespace;

/// Tells the test below that it is the agent, and what it shall do.
const TASK: &str = "WISP_TEST_TASK";
const AGENT: &str = "apply::tests::killed::agent_with_a_task";
/// The tests' numbers: their tags.
const ROUTER: u16 = 0x30;
const NETWORK: u16 = 0x31;
/// More than there are; a bound for a test that does not end.
const STEPS_MAX: usize = 500;
/// What counts as a step; `write` does where it is not said to somebody who reads along.
const STEPS: [i64; 13] = [
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_write,
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
    libc::SYS_rename,
    libc::SYS_renameat2,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_setns,
];

fn without_router(tag: OwnerTag) -> HostNetwork {
    HostNetwork { routers: BTreeMap::new(), ..wanted(tag) }
}

fn with_floating_address(tag: OwnerTag) -> HostNetwork {
    let mut network = wanted(tag);
    translate(&mut network, |nat| {
        nat.floating.insert(FLOATING, WEB_GUEST.address);
    });
    network
}

/// Not a test by itself: what the others start, and kill.
#[test]
fn agent_with_a_task() {
    let Ok(task) = std::env::var(TASK) else { return };
    let open = |test| Host::open(tag(test), Namespaces::Own).unwrap();
    let change_router = |steps: [HostNetwork; 2]| {
        let mut host = open(ROUTER);
        for wanted in steps {
            host.converge_router(&wanted, &tag(ROUTER).namespace(1)).unwrap();
        }
    };
    match task.as_str() {
        "make a router" => change_router([wanted(tag(ROUTER)), with_floating_address(tag(ROUTER))]),
        "remove a router" => change_router([wanted(tag(ROUTER)), without_router(tag(ROUTER))]),
        "make a network" => open(NETWORK).converge(&without_router(tag(NETWORK))).unwrap(),
        "remove a network" => open(NETWORK).converge(&HostNetwork::default()).unwrap(),
        other => panic!("no task {other}"),
    }
}

#[test]
fn router_is_right_wherever_its_making_and_its_removing_were_killed() {
    in_own_network(|| {
        let kills = killed_everywhere(tag(ROUTER), "router", [without_router, with_floating_address]);
        assert!(kills > 100, "{kills}");
    });
}

#[test]
fn network_is_right_wherever_its_making_and_its_removing_were_killed() {
    in_own_network(|| {
        let kills = killed_everywhere(tag(NETWORK), "network", [|_| HostNetwork::default(), without_router]);
        assert!(kills > 30, "{kills}");
    });
}

/// Has `what` made and removed again and again, killed before the first step, the second, and so on. How often it was.
fn killed_everywhere(tag: OwnerTag, what: &str, without_and_with: [fn(OwnerTag) -> HostNetwork; 2]) -> usize {
    let [without, with] = without_and_with.map(|wanted| wanted(tag));
    Host::open(tag, Namespaces::Own).unwrap().remove_all().unwrap();
    let mut kills = 0;
    for step in 1..STEPS_MAX {
        goes_on_to(tag, &without, step);
        let made = is_killed_before(&format!("make a {what}"), step);
        goes_on_to(tag, &with, step);
        let removed = is_killed_before(&format!("remove a {what}"), step);
        goes_on_to(tag, &without, step);
        assert!(!namespace::is_there(&tag.namespace(1)), "left after {step} steps");
        kills += usize::from(made) + usize::from(removed);
        if !made && !removed {
            println!("{what}: {kills} kills, {step} steps at most");
            Host::open(tag, Namespaces::Own).unwrap().remove_all().unwrap();
            return kills;
        }
    }
    panic!("it does not end");
}

/// What the next agent does, and that it is all.
fn goes_on_to(tag: OwnerTag, wanted: &HostNetwork, step: usize) {
    let mut host = Host::open(tag, Namespaces::Own).unwrap();
    host.converge(wanted).unwrap_or_else(|error| panic!("killed before step {step}: {error:?}"));
    let observed = host.observe().unwrap();
    assert_eq!(plan(tag, wanted, &observed), [], "killed before step {step}");
    for (name, router) in &wanted.routers {
        assert_eq!(observed.routers[name].nat.as_ref(), Some(&router.nat), "killed before step {step}");
    }
}

/// Has a process do `task` and kills it before its step number `step`. Whether it came so far.
fn is_killed_before(task: &str, step: usize) -> bool {
    #[allow(clippy::zombie_processes, reason = "it is waited for with its threads")]
    let mut agent = start(task);
    let pid = Pid::from_raw(agent.id().cast_signed());
    // Its threads are followed from their beginning.
    ptrace::seize(pid, Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE).unwrap();
    ptrace::interrupt(pid).unwrap();
    agent.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let mut steps = 0;
    loop {
        // Of this thread's only: other tests have processes too.
        let stopped = match waitpid(None, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD)).unwrap() {
            WaitStatus::Exited(ended, code) if ended == pid => {
                assert_eq!(code, 0, "{task} failed");
                return false;
            }
            WaitStatus::Signaled(ended, signal, _) if ended == pid => {
                assert_eq!(signal, Signal::SIGKILL);
                return true;
            }
            WaitStatus::PtraceSyscall(thread) => {
                steps += usize::from(enters_step(thread));
                if steps == step {
                    kill(pid, Signal::SIGKILL).unwrap();
                }
                Some((thread, None))
            }
            WaitStatus::PtraceEvent(thread, ..) => Some((thread, None)),
            WaitStatus::Stopped(thread, signal) => Some((thread, Some(signal))),
            _ => None,
        };
        if let Some((thread, signal)) = stopped {
            match ptrace::syscall(thread, signal) {
                // It is dying.
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => panic!("go on: {errno}"),
            }
        }
    }
}

/// The process waits until it is told to begin, so that nothing of it is missed.
fn start(task: &str) -> Child {
    Command::new("/bin/sh")
        .args(["-c", "read go && exec \"$0\" --exact \"$1\""])
        .arg(std::env::current_exe().unwrap())
        .arg(AGENT)
        .env(TASK, task)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// Whether a thread that has stopped at a system call is about to make a step.
fn enters_step(thread: Pid) -> bool {
    let Ok(registers) = ptrace::getregs(thread) else { return false };
    let begins = registers.rax == u64::from_ne_bytes((-i64::from(libc::ENOSYS)).to_ne_bytes());
    let call = registers.orig_rax.cast_signed();
    begins && STEPS.contains(&call) && (call != libc::SYS_write || registers.rdi > 2)
}
