//! The filters of system calls, one for each kind of thread. What is allowed works on descriptors that are open, on the
//! process's own memory and threads, or tells the time: nothing opens, connects, executes, or reaches another process.
//!
//! **Everything else kills the process** (`SECCOMP_RET_KILL_PROCESS`): no correct VMM makes such a call, and whoever has
//! taken one over shall learn nothing and try nothing twice. The kernel's log names the call, and whoever holds the
//! process's handle learns that it died of SIGSYS. Only what libraries ask for to see whether it is there, and do
//! without, fails as a call that the kernel does not know ([`PROBES`]).
//!
//! vCPU threads come into the main thread's filter when they are made, and add their own to it before they first enter
//! a guest: what a guest does with registers runs on them, and needs neither the control socket nor threads nor a VM.

use std::collections::BTreeMap;

use seccompiler::BpfProgram;

use super::program::{Condition, Verdict, assemble};

/// A kind of thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Thread {
    /// The first one: it builds the machine, runs the event loop with all devices, and answers the control socket.
    Main,
    /// One that runs a virtual CPU.
    Vcpu,
}

/// Whether the tests make a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// They do.
    Made,
    /// They need not, and it is allowed all the same, for this reason.
    Kept(&'static str),
}

/// A system call that is allowed.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// Its number.
    pub number: libc::c_long,
    /// Its name, for people.
    pub name: &'static str,
    /// Whether it is made by the main thread.
    pub main: Option<Use>,
    /// Whether it is made by vCPU threads.
    pub vcpu: Option<Use>,
}

macro_rules! call {
    ($number:ident, $main:expr, $vcpu:expr) => {
        Call { number: libc::$number, name: stringify!($number), main: $main, vcpu: $vcpu }
    };
}

const MADE: Option<Use> = Some(Use::Made);
const NO: Option<Use> = None;

const fn kept(reason: &'static str) -> Option<Use> {
    Some(Use::Kept(reason))
}

const FORMATS: Option<Use> = kept("disks, frames and logs are read and written in whatever form suits them");
const RING: Option<Use> = kept("disks are read, written and flushed by rings that can do nothing else");
const CACHED: Option<Use> =
    kept("a disk's pages are copied where they are in the host's cache, and waits for them are counted");
const FLUSH: Option<Use> = kept("a guest flushes, discards or writes zeroes");
const RESET: Option<Use> = kept("a guest resets a device, which lets go of what it had");
const WATCHDOG: Option<Use> =
    kept("a guest resets a device, which lets go of what it had, or begins its watchdog anew");
const TIMER: Option<Use> =
    kept("a limit, a connection or a link has to wait, which the tests' guests may never have to");
const ALLOCATOR: Option<Use> = kept("the allocator gives memory back, or grows, when it likes");
const LIBRARY: Option<Use> = kept("the C library makes it at times of its own");
const PROMPT: Option<Use> = kept("a guest that talks to a pipe gives its turn to whoever reads");
const INTERRUPTED: Option<Use> = kept("the kernel makes it after a stop by a debugger");
const ABORT: Option<Use> = kept("how a process ends that has found itself broken");
const LOOP: Option<Use> = kept("the event loop and libraries wait in any of these");
const STREAM: Option<Use> = kept("libraries send and receive on streams in any of these");
const PANIC: Option<Use> = kept("a thread that panics tells why");

/// All calls that are allowed; some only with the arguments that [`build`] names.
pub const CALLS: &[Call] = &[
    // Descriptors.
    call!(SYS_read, MADE, RESET),
    call!(SYS_write, MADE, MADE),
    call!(SYS_readv, FORMATS, FORMATS),
    call!(SYS_writev, FORMATS, PANIC),
    call!(SYS_pread64, MADE, FORMATS),
    call!(SYS_pwrite64, MADE, FORMATS),
    call!(SYS_preadv, FORMATS, FORMATS),
    call!(SYS_pwritev, FORMATS, FORMATS),
    call!(SYS_preadv2, FORMATS, FORMATS),
    call!(SYS_pwritev2, FORMATS, FORMATS),
    call!(SYS_lseek, FORMATS, FORMATS),
    call!(SYS_fstat, FORMATS, FORMATS),
    call!(SYS_fsync, FLUSH, FLUSH),
    call!(SYS_fdatasync, FLUSH, FLUSH),
    call!(SYS_fallocate, FLUSH, FLUSH),
    call!(SYS_ftruncate, FORMATS, FORMATS),
    // Rings are made and restricted before the filter holds; neither making nor changing one is allowed.
    call!(SYS_io_uring_enter, RING, RESET),
    call!(SYS_close, MADE, RESET),
    call!(SYS_epoll_create1, MADE, NO),
    call!(SYS_epoll_ctl, MADE, RESET),
    call!(SYS_epoll_wait, LOOP, NO),
    call!(SYS_epoll_pwait, LOOP, NO),
    call!(SYS_eventfd2, MADE, RESET),
    call!(SYS_signalfd4, MADE, NO),
    call!(SYS_timerfd_create, MADE, NO),
    call!(SYS_timerfd_settime, TIMER, WATCHDOG),
    call!(SYS_timerfd_gettime, LOOP, RESET),
    call!(SYS_poll, LOOP, NO),
    call!(SYS_ppoll, LOOP, NO),
    call!(SYS_dup, LIBRARY, NO),
    call!(SYS_fcntl, MADE, RESET),
    call!(SYS_ioctl, MADE, MADE),
    // The control socket: accept and talk, never connect or bind.
    call!(SYS_accept4, MADE, NO),
    call!(SYS_recvfrom, STREAM, NO),
    call!(SYS_sendto, STREAM, NO),
    call!(SYS_recvmsg, MADE, NO),
    call!(SYS_sendmsg, STREAM, NO),
    call!(SYS_shutdown, STREAM, NO),
    // Memory; none that can be written becomes code.
    call!(SYS_mmap, MADE, ALLOCATOR),
    call!(SYS_munmap, MADE, ALLOCATOR),
    call!(SYS_mprotect, MADE, ALLOCATOR),
    call!(SYS_mremap, ALLOCATOR, ALLOCATOR),
    call!(SYS_madvise, ALLOCATOR, ALLOCATOR),
    call!(SYS_brk, ALLOCATOR, ALLOCATOR),
    // Threads and signals within the process.
    call!(SYS_clone, MADE, NO),
    call!(SYS_futex, MADE, MADE),
    call!(SYS_set_robust_list, MADE, NO),
    call!(SYS_rseq, MADE, NO),
    call!(SYS_sched_yield, LIBRARY, PROMPT),
    call!(SYS_sched_getaffinity, MADE, NO),
    call!(SYS_gettid, MADE, ABORT),
    call!(SYS_getpid, MADE, ABORT),
    call!(SYS_tgkill, MADE, ABORT),
    call!(SYS_rt_sigaction, MADE, ABORT),
    call!(SYS_rt_sigprocmask, MADE, LIBRARY),
    call!(SYS_rt_sigreturn, LIBRARY, MADE),
    call!(SYS_sigaltstack, MADE, LIBRARY),
    call!(SYS_prctl, MADE, NO),
    call!(SYS_seccomp, MADE, NO),
    call!(SYS_restart_syscall, INTERRUPTED, INTERRUPTED),
    call!(SYS_exit, LIBRARY, LIBRARY),
    call!(SYS_exit_group, MADE, ABORT),
    // Time and randomness.
    call!(SYS_clock_gettime, LIBRARY, LIBRARY),
    call!(SYS_clock_nanosleep, LIBRARY, LIBRARY),
    call!(SYS_nanosleep, LIBRARY, LIBRARY),
    call!(SYS_gettimeofday, LIBRARY, LIBRARY),
    call!(SYS_getrandom, MADE, LIBRARY),
    call!(SYS_getrusage, CACHED, NO),
];

/// Calls that fail as if the kernel did not know them, each with who asks and what it does then.
pub const PROBES: &[(libc::c_long, &str, &str)] = &[
    (libc::SYS_clone3, "SYS_clone3", "the C library makes threads by clone then, whose flags can be checked"),
    (libc::SYS_statx, "SYS_statx", "the standard library asks fstat for a file's length then"),
    (
        libc::SYS_copy_file_range,
        "SYS_copy_file_range",
        "the standard library copies by reading and writing then",
    ),
    (libc::SYS_membarrier, "SYS_membarrier", "libraries fence by themselves then"),
];

/// The fcntl commands that descriptors' owners use.
const FCNTL_COMMANDS: [libc::c_int; 5] =
    [libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_SETFL, libc::F_DUPFD_CLOEXEC];

/// ioctl requests of the main thread by their number's bits: mask and value. KVM's (type 0xae), and the upper ones of
/// type 'T', which are tun's; a terminal's lie below, among them one that types in another's name. And userfaultfd's (type
/// 0xaa), with which a snapshot's memory is filled.
const MAIN_IOCTL_GROUPS: [(u32, u32); 3] = [(0xff00, 0xae00), (0xffc0, 0x54c0), (0xff00, 0xaa00)];
/// Those of vCPU threads: of KVM's none that make a VM, a processor or memory, which are below 0x60.
const VCPU_IOCTL_GROUPS: [(u32, u32); 3] = [(0xff80, 0xae80), (0xffe0, 0xae60), (0xffc0, 0x54c0)];
/// Single requests of the main thread: descriptor flags, a terminal's modes, which must be restored at the end, and its
/// size, which changes while a guest has it as its console.
const MAIN_IOCTL_REQUESTS: [libc::c_ulong; 7] = [
    libc::FIONBIO,
    libc::FIOCLEX,
    libc::TCGETS,
    libc::TCSETS,
    libc::TCSETSW,
    libc::TCSETSF,
    libc::TIOCGWINSZ,
];
/// What the main thread may say of itself: its name, and that it takes a narrower filter.
const MAIN_PRCTLS: [libc::c_int; 3] = [libc::PR_SET_NAME, libc::PR_SET_NO_NEW_PRIVS, libc::PR_GET_SECCOMP];

fn condition(argument: u8, mask: u32, value: u32) -> Condition {
    Condition { argument, mask, value }
}

fn any_of(argument: u8, values: &[libc::c_int]) -> Verdict {
    Verdict::AllowIf(values.iter().map(|&value| condition(argument, u32::MAX, bits(value))).collect())
}

/// Requests are compared as the kernel takes them, by 32 bits.
fn ioctls(groups: &[(u32, u32)], requests: &[libc::c_ulong]) -> Verdict {
    let groups = groups.iter().map(|&(mask, value)| condition(1, mask, value));
    let requests = requests.iter().map(|&request| {
        condition(1, u32::MAX, u32::try_from(request).expect("invariant: a request has 32 bits"))
    });
    Verdict::AllowIf(groups.chain(requests).collect())
}

/// What `thread` may.
pub(super) fn verdicts(thread: Thread) -> BTreeMap<u32, Verdict> {
    let number = |call: libc::c_long| u32::try_from(call).expect("invariant: a system call's number");
    let is_allowed = |call: &&Call| match thread {
        Thread::Main => call.main.is_some(),
        Thread::Vcpu => call.vcpu.is_some(),
    };
    let mut verdicts: BTreeMap<u32, Verdict> =
        CALLS.iter().filter(is_allowed).map(|call| (number(call.number), Verdict::Allow)).collect();
    let mut narrow = |call: libc::c_long, verdict: Verdict| {
        if let Some(place) = verdicts.get_mut(&number(call)) {
            *place = verdict;
        }
    };
    let executable = bits(libc::PROT_EXEC);
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        narrow(call, Verdict::AllowIf(vec![condition(2, executable, 0)]));
    }
    narrow(
        libc::SYS_ioctl,
        match thread {
            Thread::Main => ioctls(&MAIN_IOCTL_GROUPS, &MAIN_IOCTL_REQUESTS),
            Thread::Vcpu => ioctls(&VCPU_IOCTL_GROUPS, &[]),
        },
    );
    narrow(libc::SYS_fcntl, any_of(1, &FCNTL_COMMANDS));
    // Threads of this process, never a process.
    let of_this_process = bits(libc::CLONE_THREAD);
    narrow(libc::SYS_clone, Verdict::AllowIf(vec![condition(0, of_this_process, of_this_process)]));
    narrow(libc::SYS_tgkill, Verdict::AllowIf(vec![condition(0, u32::MAX, std::process::id())]));
    narrow(libc::SYS_prctl, any_of(0, &MAIN_PRCTLS));
    let another = libc::SECCOMP_SET_MODE_FILTER;
    narrow(libc::SYS_seccomp, Verdict::AllowIf(vec![condition(0, u32::MAX, another)]));
    for (call, _, _) in PROBES {
        verdicts.insert(number(*call), Verdict::Unknown);
    }
    verdicts
}

/// The filter of `thread`.
#[must_use]
pub fn build(thread: Thread) -> BpfProgram {
    assemble(&verdicts(thread))
}

/// The filter for vCPU threads of a process that is confined; none in one that is not.
pub(crate) fn of_vcpus() -> Option<BpfProgram> {
    is_filtered().then(|| build(Thread::Vcpu))
}

/// Whether this thread has a filter.
#[expect(unsafe_code, reason = "no safe wrapper asks for it")]
fn is_filtered() -> bool {
    // SAFETY: takes a number and answers with one (PR_GET_SECCOMP; 2 is SECCOMP_MODE_FILTER); the filters allow it.
    unsafe { libc::prctl(libc::PR_GET_SECCOMP) == 2 }
}

/// A flag or command as the filter compares it.
fn bits(value: libc::c_int) -> u32 {
    u32::try_from(value).expect("invariant: flags and commands are not negative")
}
