//! A hostile child in the sandbox: with the filter, without it, and on a vCPU's thread.
#![expect(unsafe_code, reason = "a process that was taken over makes system calls as it likes")]

use std::io::{self, Read as _};
use std::net::TcpListener;
use std::os::fd::AsRawFd as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use super::filter::{CALLS, PROBES, Thread};
use super::*;
use crate::testing::skipped;

/// Instructions of a filter: each costs time at every start, and the kernel takes 4096 (`BPF_MAXINSNS`).
const INSTRUCTIONS_MAX: usize = 160;

/// What is outside for a hostile child to reach.
struct Outside {
    /// The process that it came from.
    parent: i32,
    /// A port of the host's that somebody listens on.
    port: u16,
    /// The abstract name of a socket that somebody listens on.
    name: String,
}

/// One forbidden act.
struct Act {
    name: &'static str,
    act: fn(&Outside) -> i64,
    /// What is left of it without the filter: it fails with one of these, or nothing else stops it.
    otherwise: &'static [i32],
}

/// What became of a child.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    KilledBySignal(i32),
    Failed(i32),
    Done,
}

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

macro_rules! calls {
    ($number:ident $(, $argument:expr)*) => {
        // SAFETY: the arguments are numbers, or pointers to what lives through the call; this is a child that ends
        // right afterwards, whatever comes of it.
        unsafe { libc::syscall(libc::$number $(, $argument)*) }
    };
}

fn open(path: &std::ffi::CStr, flags: i32) -> i64 {
    calls!(SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, 0o600)
}

/// Makes a socket and connects it to an IPv4 address.
fn connect(kind: i32, address: [u8; 4], port: u16) -> i64 {
    let to = libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address) },
        sin_zero: [0; 8],
    };
    let fd = calls!(SYS_socket, libc::AF_INET, kind, 0);
    if fd < 0 { fd } else { calls!(SYS_connect, fd, &raw const to, size_of_val(&to)) }
}

fn connect_abstract(outside: &Outside) -> i64 {
    // SAFETY: plain old data.
    let mut to: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    to.sun_family = libc::AF_UNIX as u16;
    for (to, from) in to.sun_path[1..].iter_mut().zip(outside.name.bytes()) {
        *to = from.cast_signed();
    }
    let fd = calls!(SYS_socket, libc::AF_UNIX, libc::SOCK_STREAM, 0);
    let length = size_of::<u16>() + 1 + outside.name.len();
    if fd < 0 { fd } else { calls!(SYS_connect, fd, &raw const to, length) }
}

const NO_FILE: &[i32] = &[libc::ENOENT, libc::EACCES, libc::EROFS];
const NO_RIGHT: &[i32] = &[libc::EPERM, libc::EACCES, libc::EINVAL, libc::ESRCH];
/// Nothing but the filter.
const FILTER: &[i32] = &[];

const ACTS: &[Act] = &[
    Act { name: "read a file", act: |_| open(c"/etc/passwd", libc::O_RDONLY), otherwise: NO_FILE },
    Act { name: "make a file", act: |_| open(c"/x", libc::O_CREAT | libc::O_RDWR), otherwise: NO_FILE },
    Act {
        name: "list a directory",
        act: |_| open(c"/", libc::O_DIRECTORY | libc::O_RDONLY),
        otherwise: NO_FILE,
    },
    Act { name: "open a device", act: |_| open(c"/dev/kvm", libc::O_RDWR), otherwise: NO_FILE },
    Act { name: "open its own memory", act: |_| open(c"/proc/self/mem", libc::O_RDWR), otherwise: NO_FILE },
    Act { name: "write to proc", act: |_| open(c"/proc/sysrq-trigger", libc::O_WRONLY), otherwise: NO_FILE },
    Act {
        name: "make a directory",
        act: |_| calls!(SYS_mkdirat, libc::AT_FDCWD, c"/d".as_ptr(), 0o700),
        otherwise: NO_FILE,
    },
    Act {
        name: "make a device",
        act: |_| calls!(SYS_mknodat, libc::AT_FDCWD, c"/n".as_ptr(), libc::S_IFCHR, 0x103),
        otherwise: &[libc::EPERM, libc::EROFS, libc::EACCES],
    },
    Act {
        name: "execute a program",
        act: |_| {
            let words = [c"/bin/sh".as_ptr(), std::ptr::null()];
            calls!(SYS_execve, c"/bin/sh".as_ptr(), words.as_ptr(), &words[1])
        },
        otherwise: NO_FILE,
    },
    Act { name: "fork", act: |_| calls!(SYS_clone, libc::SIGCHLD, 0, 0, 0, 0), otherwise: FILTER },
    Act { name: "fork by its old name", act: |_| calls!(SYS_vfork), otherwise: FILTER },
    Act {
        name: "connect to the host",
        act: |outside| connect(libc::SOCK_STREAM, [127, 0, 0, 1], outside.port),
        otherwise: &[libc::ENETUNREACH, libc::EACCES, libc::EADDRNOTAVAIL],
    },
    Act {
        name: "reach the network",
        act: |_| connect(libc::SOCK_DGRAM, [198, 51, 100, 1], 53),
        otherwise: &[libc::ENETUNREACH],
    },
    Act {
        name: "connect to an abstract socket",
        act: connect_abstract,
        otherwise: &[libc::ECONNREFUSED, libc::EPERM],
    },
    Act {
        name: "ask about links",
        act: |_| calls!(SYS_socket, libc::AF_NETLINK, libc::SOCK_RAW, 0),
        otherwise: FILTER,
    },
    Act {
        name: "trace its parent",
        act: |outside| calls!(SYS_ptrace, libc::PTRACE_SEIZE, outside.parent, 0, 0),
        otherwise: NO_RIGHT,
    },
    Act {
        name: "kill its parent",
        act: |outside| calls!(SYS_kill, outside.parent, libc::SIGCONT),
        otherwise: NO_RIGHT,
    },
    Act {
        name: "kill a thread of its parent",
        act: |outside| calls!(SYS_tgkill, outside.parent, outside.parent, libc::SIGCONT),
        otherwise: NO_RIGHT,
    },
    Act { name: "kill everybody", act: |_| calls!(SYS_kill, -1, libc::SIGCONT), otherwise: FILTER },
    Act {
        name: "read its parent's memory",
        act: |outside| {
            let mut byte = 0_u8;
            let to = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
            calls!(SYS_process_vm_readv, outside.parent, &raw const to, 1, &raw const to, 1, 0)
        },
        otherwise: NO_RIGHT,
    },
    Act {
        name: "change its parent's limits",
        act: |outside| {
            let limit = libc::rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
            let none = std::ptr::null_mut::<libc::rlimit>();
            calls!(SYS_prlimit64, outside.parent, libc::RLIMIT_NOFILE, &raw const limit, none)
        },
        otherwise: NO_RIGHT,
    },
    Act {
        name: "mount",
        act: |_| {
            let none = std::ptr::null::<libc::c_char>();
            calls!(SYS_mount, c"x".as_ptr(), c"/".as_ptr(), c"tmpfs".as_ptr(), 0, none)
        },
        otherwise: NO_RIGHT,
    },
    Act {
        name: "unmount",
        act: |_| calls!(SYS_umount2, c"/".as_ptr(), libc::MNT_DETACH),
        otherwise: NO_RIGHT,
    },
    Act { name: "change its root", act: |_| calls!(SYS_chroot, c"/".as_ptr()), otherwise: NO_RIGHT },
    Act { name: "become root", act: |_| calls!(SYS_setuid, 0), otherwise: NO_RIGHT },
    Act { name: "join root's group", act: |_| calls!(SYS_setgid, 0), otherwise: NO_RIGHT },
    Act {
        name: "name the host",
        act: |_| calls!(SYS_sethostname, c"x".as_ptr(), 1),
        otherwise: &[libc::EPERM],
    },
    Act { name: "make namespaces", act: |_| calls!(SYS_unshare, libc::CLONE_NEWUSER), otherwise: FILTER },
    Act {
        name: "map code that it can write",
        act: |_| {
            let (rights, flags) =
                (libc::PROT_WRITE | libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            calls!(SYS_mmap, 0, 4096, rights, flags, -1, 0).min(0)
        },
        otherwise: FILTER,
    },
    Act {
        name: "make memory executable",
        act: |_| {
            let (rights, flags) = (libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            let page = calls!(SYS_mmap, 0, 4096, rights, flags, -1, 0);
            calls!(SYS_mprotect, page, 4096, rights | libc::PROT_EXEC)
        },
        otherwise: FILTER,
    },
    Act {
        name: "make a file of memory to execute",
        act: |_| calls!(SYS_memfd_create, c"x".as_ptr(), 0),
        otherwise: FILTER,
    },
    Act {
        name: "type in its terminal's name",
        act: |_| calls!(SYS_ioctl, 0, libc::TIOCSTI, c"x".as_ptr()),
        otherwise: &[libc::ENOTTY, libc::EIO, libc::EPERM, libc::EBADF],
    },
    Act {
        name: "let itself be dumped",
        act: |_| calls!(SYS_prctl, libc::PR_SET_DUMPABLE, 1),
        otherwise: FILTER,
    },
    Act {
        name: "hold somebody's process",
        act: |outside| calls!(SYS_pidfd_open, outside.parent, 0),
        otherwise: FILTER,
    },
    Act { name: "load a program into the kernel", act: |_| calls!(SYS_bpf, 0, 0, 0), otherwise: NO_RIGHT },
    Act { name: "handle its own faults", act: |_| calls!(SYS_userfaultfd, 1), otherwise: FILTER },
    Act { name: "make a ring", act: |_| calls!(SYS_io_uring_setup, 0, 0), otherwise: &[libc::EFAULT] },
    Act {
        name: "measure the host",
        act: |_| calls!(SYS_perf_event_open, 0, 0, -1, -1, 0),
        otherwise: &[libc::EFAULT, libc::EACCES, libc::EPERM, libc::ENOSYS],
    },
    Act { name: "look at keys", act: |_| calls!(SYS_keyctl, 0, -3, 1), otherwise: FILTER },
    Act {
        name: "share memory by a key",
        act: |_| calls!(SYS_shmget, 0, 4096, libc::IPC_CREAT | 0o600),
        otherwise: FILTER,
    },
    Act { name: "set the clock", act: |_| calls!(SYS_settimeofday, 0, 0).min(-1), otherwise: FILTER },
    Act { name: "load a module", act: |_| calls!(SYS_init_module, 0, 0, c"".as_ptr()), otherwise: NO_RIGHT },
    Act {
        name: "open by a handle",
        act: |_| {
            // Eight bytes of a handle of type 1.
            let handle = [8_u32, 1, 2, 0];
            calls!(SYS_open_by_handle_at, libc::AT_FDCWD, handle.as_ptr(), libc::O_RDONLY)
        },
        otherwise: &[libc::EPERM],
    },
    Act { name: "speak as a 32-bit program", act: |_| calls!(SYS_execveat, 0x4000_0000), otherwise: FILTER },
];

/// What only vCPU threads may not, beyond all above.
const VCPU_ACTS: &[Act] = &[
    Act { name: "make a VM", act: |_| calls!(SYS_ioctl, 0, 0xae01, 0), otherwise: FILTER },
    Act { name: "make a processor", act: |_| calls!(SYS_ioctl, 0, 0xae41, 0), otherwise: FILTER },
    Act { name: "give a guest memory", act: |_| calls!(SYS_ioctl, 0, 0x4020_ae46, 0), otherwise: FILTER },
    Act { name: "change a terminal", act: |_| calls!(SYS_ioctl, 0, libc::TCSETS, 0), otherwise: FILTER },
    Act { name: "answer the control socket", act: |_| calls!(SYS_accept4, 0, 0, 0, 0), otherwise: FILTER },
    Act { name: "take descriptors", act: |_| calls!(SYS_recvmsg, 0, 0, 0), otherwise: FILTER },
    Act { name: "pass descriptors on", act: |_| calls!(SYS_sendmsg, 0, 0, 0), otherwise: FILTER },
    Act {
        name: "make a thread",
        act: |_| calls!(SYS_clone, libc::CLONE_THREAD, 0, 0, 0, 0),
        otherwise: FILTER,
    },
    Act { name: "change its filter", act: |_| calls!(SYS_seccomp, 1, 0, 0), otherwise: FILTER },
    Act { name: "hear signals", act: |_| calls!(SYS_signalfd4, -1, 0, 8, 0), otherwise: FILTER },
];

/// Has a child confine itself by `confine`, and then do `act`.
fn outcome(confine: impl FnOnce() -> Result<(), Error>, act: impl FnOnce() -> i64) -> Outcome {
    let (mut said, say) = io::pipe().unwrap();
    // SAFETY: the child has this thread alone; the C library leaves its allocator usable after a fork, and nothing else
    // that other threads may hold is used.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        let done = match confine() {
            Ok(()) if act() >= 0 => 0,
            Ok(()) => errno(),
            Err(_) => -1,
        };
        let bytes = done.to_ne_bytes();
        // SAFETY: the buffer is live; the child ends without running anything of the test's.
        unsafe {
            libc::write(say.as_raw_fd(), bytes.as_ptr().cast(), bytes.len());
            libc::_exit(0)
        }
    }
    drop(say);
    let mut bytes = [0; 4];
    let heard = said.read_exact(&mut bytes);
    let mut status = 0;
    // SAFETY: `status` is a live local; the child is this thread's.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    match (ExitStatus::from_raw(status).signal(), i32::from_ne_bytes(bytes)) {
        (Some(signal), _) => Outcome::KilledBySignal(signal),
        (None, -1) => panic!("the child cannot be confined"),
        (None, 0) => {
            heard.unwrap();
            Outcome::Done
        }
        (None, errno) => Outcome::Failed(errno),
    }
}

fn own() -> Sandbox {
    Sandbox { namespaces: Namespaces::Own, ..Sandbox::default() }
}

/// A cell in which everybody stays who they are; why there is none, where the kernel allows none.
fn cell() -> Option<cell::Cell> {
    let made = cell::Cell::make(None);
    made.inspect_err(|error| skipped(&format!("{error}: {:?}", std::error::Error::source(error)))).ok()
}

/// All but the filter, in a cell. What does not hold fails the test with its acts.
fn without_filter(cell: &cell::Cell) -> Result<(), Error> {
    cell::join(cell.handles()).map_err(step("join"))?;
    let sandbox = Sandbox { namespaces: Namespaces::Cell, ..Sandbox::default() };
    sandbox.confine().map(drop)
}

fn with_outside(body: impl FnOnce(&Outside)) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let name = format!("wisp-test-{}-{:?}", std::process::id(), std::thread::current().id());
    let _listens =
        UnixListener::bind_addr(&SocketAddr::from_abstract_name(name.as_bytes()).unwrap()).unwrap();
    let parent = std::process::id().cast_signed();
    body(&Outside { parent, port: listener.local_addr().unwrap().port(), name });
}

#[test]
fn every_forbidden_act_is_possible_outside() {
    // Else the tests below would show nothing.
    with_outside(|outside| {
        for name in ["read a file", "fork", "connect to the host", "connect to an abstract socket"] {
            let act = ACTS.iter().find(|act| act.name == name).unwrap();
            assert_eq!(outcome(|| Ok(()), || (act.act)(outside)), Outcome::Done, "{name}");
        }
    });
}

#[test]
fn hostile_child_is_killed_at_each_forbidden_act() {
    with_outside(|outside| {
        for act in ACTS {
            let confine = || own().enter().map(drop);
            let outcome = outcome(confine, || (act.act)(outside));
            assert_eq!(outcome, Outcome::KilledBySignal(libc::SIGSYS), "{}", act.name);
        }
    });
}

#[test]
fn hostile_child_without_a_filter_finds_nothing_either() {
    let Some(cell) = cell() else { return };
    with_outside(|outside| {
        for act in ACTS.iter().filter(|act| !act.otherwise.is_empty()) {
            let outcome = outcome(|| without_filter(&cell), || (act.act)(outside));
            let Outcome::Failed(errno) = outcome else { panic!("{}: {outcome:?}", act.name) };
            // Some calls a kernel may have been built without.
            let is_expected = errno == libc::ENOSYS || act.otherwise.contains(&errno);
            assert!(is_expected, "{}: {}", act.name, io::Error::from_raw_os_error(errno));
        }
    });
}

#[test]
fn vcpu_thread_is_killed_at_what_the_main_thread_may() {
    with_outside(|outside| {
        let main = || own().enter().map(drop);
        for act in VCPU_ACTS {
            let vcpu = || {
                own().enter()?;
                seccompiler::apply_filter(&filter::build(Thread::Vcpu))?;
                Ok(())
            };
            let killed = Outcome::KilledBySignal(libc::SIGSYS);
            assert_ne!(outcome(main, || (act.act)(outside)), killed, "{}, on the main thread", act.name);
            assert_eq!(outcome(vcpu, || (act.act)(outside)), killed, "{}", act.name);
        }
    });
}

#[test]
fn probes_fail_and_threads_can_be_made_by_the_library() {
    for (number, name, _) in PROBES {
        // SAFETY: the call does not come to the kernel's work.
        let act = || unsafe { libc::syscall(*number, 0, 0, 0, 0, 0, 0) };
        assert_eq!(outcome(|| own().enter().map(drop), act), Outcome::Failed(libc::ENOSYS), "{name}");
    }
    let thread = || i64::from(std::thread::spawn(|| 7).join().is_ok_and(|seven| seven == 7)) - 1;
    assert_eq!(outcome(|| own().enter().map(drop), thread), Outcome::Done);
}

/// The C library makes a heap for each thread at first, and then asks how many it may make.
#[test]
fn many_threads_can_allocate() {
    let threads = || {
        let together = std::sync::Barrier::new(40);
        std::thread::scope(|scope| {
            for size in 0..40 {
                let together = &together;
                scope.spawn(move || {
                    together.wait();
                    std::hint::black_box(vec![1_u8; 1000 + size]);
                    together.wait();
                });
            }
        });
        0
    };
    assert_eq!(outcome(|| own().enter().map(drop), threads), Outcome::Done);
}

#[test]
fn no_call_is_listed_twice_and_no_probe_is_allowed() {
    let mut numbers: Vec<_> = CALLS.iter().map(|call| call.number).collect();
    numbers.extend(PROBES.iter().map(|(number, ..)| *number));
    numbers.sort_unstable();
    assert!(numbers.windows(2).all(|pair| pair[0] != pair[1]));
    for call in CALLS {
        assert!(call.main.is_some(), "{}: vCPU threads come through the main thread's filter", call.name);
    }
}

#[test]
fn filters_are_short() {
    for thread in [Thread::Main, Thread::Vcpu] {
        let length = filter::build(thread).len();
        assert!(length < INSTRUCTIONS_MAX, "{thread:?}: {length} instructions");
    }
}

#[test]
fn descriptors_that_are_not_named_are_closed() {
    let file = tempfile::tempfile().unwrap();
    let others: Vec<_> = (0..8).map(|_| file.try_clone().unwrap()).collect();
    let kept = [others[6].as_raw_fd(), others[2].as_raw_fd()];
    let is_open = |fd: i32| calls!(SYS_fcntl, fd, libc::F_GETFD) >= 0;
    let act = || {
        // What tells the outcome is among those that go.
        if close_all_but(&kept).is_err() {
            // SAFETY: the child ends here.
            unsafe { libc::_exit(1) }
        }
        let open: Vec<i32> = (3..1024).filter(|fd| is_open(*fd)).collect();
        let mut kept = kept;
        kept.sort_unstable();
        // SAFETY: as above; a signal tells what happened.
        unsafe {
            if open == kept {
                libc::raise(libc::SIGUSR1);
            }
            libc::_exit(1)
        }
    };
    assert_eq!(outcome(|| Ok(()), act), Outcome::KilledBySignal(libc::SIGUSR1));
}

#[test]
fn process_in_a_cell_becomes_its_user_and_is_alone() {
    const USER: u32 = 1_900_000_001;
    let made = if nix::unistd::geteuid().is_root() {
        cell::Cell::make(Some(&(USER - 1..USER + 100)))
    } else {
        cell::Cell::make(None)
    };
    let cell = match made {
        Ok(cell) => cell,
        Err(error) => return skipped(&format!("{error}: {:?}", std::error::Error::source(&error))),
    };
    let user = nix::unistd::geteuid().is_root().then_some(USER);
    let handles = cell.handles();
    let inside = || {
        // The next child is the first of its namespace.
        if cell::join(handles).is_err() {
            return -1;
        }
        let sandbox = Sandbox { uid: user, gid: user, namespaces: Namespaces::Cell };
        let alone = outcome(
            || match sandbox.enter()? {
                held if held.protections.iter().all(|one| one.missing.is_none() || user.is_none()) => Ok(()),
                held => {
                    eprintln!("{held:?}");
                    Err(step("hold")(io::Error::from_raw_os_error(libc::EPERM)))
                }
            },
            || i64::from(std::process::id() == 1) - 1,
        );
        i64::from(alone == Outcome::Done) - 1
    };
    assert_eq!(outcome(|| Ok(()), inside), Outcome::Done);
}

/// The kernel says that a thread is over before it counts it no more, and gives namespaces to a process of one thread alone.
#[test]
fn process_waits_for_a_thread_that_is_on_its_way_out_and_has_namespaces_of_its_own_as_any() {
    let alone = outcome(|| told(&own().enter()?), || 0);
    let one_leaves = || {
        std::thread::spawn(|| std::thread::sleep(std::time::Duration::from_millis(3)));
        told(&own().enter()?)
    };
    assert_eq!(outcome(one_leaves, || 0), alone);
}

/// That it has namespaces of its own.
fn told(held: &Held) -> Result<(), Error> {
    let missing = held
        .protections
        .iter()
        .any(|one| one.protection == Protection::IpcNamespace && one.missing.is_some());
    if missing { Err(step("hold")(io::Error::from_raw_os_error(libc::EINVAL))) } else { Ok(()) }
}

/// From a fork to the child's end, with what it does for its confinement between.
#[test]
#[ignore = "a measurement"]
fn measure_confinement() {
    const ROUNDS: usize = 101;
    let median = |confine: &dyn Fn() -> Result<(), Error>| {
        let mut times: Vec<_> = (0..ROUNDS)
            .map(|_| {
                let start = std::time::Instant::now();
                assert_eq!(outcome(confine, || 0), Outcome::Done);
                start.elapsed()
            })
            .collect();
        times.sort();
        times[ROUNDS / 2]
    };
    let filters = || {
        std::hint::black_box(filter::build(Thread::Main));
        Ok(())
    };
    println!("nothing               {:?}", median(&|| Ok(())));
    println!("the filter, compiled  {:?}", median(&filters));
    println!("all but namespaces    {:?}", median(&|| Sandbox::default().enter().map(drop)));
    println!("all, with its own     {:?}", median(&|| own().enter().map(drop)));
    let cell = cell().expect("user namespaces");
    let network = || nix::sched::unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET);
    println!("a network namespace   {:?}", median(&|| network().map_err(step("make it"))));
    let joined = || cell::join(cell.handles()).map_err(step("join"));
    println!("a cell, joined        {:?}", median(&joined));
    let within = || {
        joined()?;
        Sandbox { namespaces: Namespaces::Cell, ..Sandbox::default() }.enter().map(drop)
    };
    println!("all, in a cell        {:?}", median(&within));
}

/// Each founder's child inherits the others' pipes.
#[test]
fn cells_made_at_once_do_not_wait_for_each_other() {
    let make = || (0..4).for_each(|_| drop(cell::Cell::make(None)));
    std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(make))));
}

/// Wherever its callers are asked for, which a process of its own begins with.
#[test]
fn panic_of_a_confined_process_is_heard() {
    let name = "sandbox::tests::panic_of_a_confined_process_is_heard";
    const ASKED: &str = "WISP_TEST_PANIC";
    if std::env::var_os(ASKED).is_some() {
        let panics = || {
            let thread = std::thread::Builder::new().name("vcpu7".to_owned());
            let ended = thread.spawn(|| panic!("why it ends")).map(std::thread::JoinHandle::join);
            i64::from(ended.is_ok_and(|ended| ended.is_err())) - 1
        };
        assert_eq!(outcome(|| own().enter().map(drop), panics), Outcome::Done);
        return;
    }
    let this = std::env::current_exe().unwrap();
    let mut ran = std::process::Command::new(this);
    ran.args([name, "--exact", "--nocapture"]).env(ASKED, "1").env("RUST_BACKTRACE", "1");
    let ran = ran.output().unwrap();
    let (said, errors) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success() && said.contains("1 passed"), "{said}{errors}");
    let place = concat!("thread vcpu7 panicked at ", file!());
    assert!(errors.contains(place) && errors.contains("why it ends"), "{errors}");
}
