//! Confining a VMM process before it touches anything a guest, an image or a client made: no new privileges, an
//! unprivileged user, small resource limits, and a filter of system calls.
//!
//! What is confined stays so for the life of the process and for every thread it makes afterwards.

use std::collections::BTreeMap;

use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// How a process is confined.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sandbox {
    /// The user to become; with privileges only. Absent: stay.
    pub uid: Option<u32>,
    /// The group to become, alone. Absent: stay.
    pub gid: Option<u32>,
}

/// Why a process cannot be confined. It must not go on then.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One step failed.
    #[error("confine the process: {step}")]
    Step {
        /// Which.
        step: &'static str,
        /// Why.
        #[source]
        source: nix::Error,
    },
    /// The filter cannot be built or installed.
    #[error("confine the process: filter system calls")]
    Filter(#[from] seccompiler::Error),
}

fn step(step: &'static str) -> impl FnOnce(nix::Error) -> Error {
    move |source| Error::Step { step, source }
}

impl Sandbox {
    /// Confines the calling process. All descriptors it will ever need must be open, and no other thread running.
    ///
    /// # Errors
    /// The step that failed; the process is then partly confined and has to end.
    pub fn enter(&self) -> Result<(), Error> {
        let filter = filter()?;
        setrlimit(Resource::RLIMIT_CORE, 0, 0)
            .map_err(step("forbid core dumps, which would hold guest memory"))?;
        nix::sys::prctl::set_no_new_privs().map_err(step("give up gaining privileges"))?;
        nix::sys::prctl::set_dumpable(false)
            .map_err(step("keep others of the same user out of its memory"))?;
        if let Some(gid) = self.gid.map(Gid::from_raw) {
            setgroups(&[]).map_err(step("leave all groups"))?;
            setresgid(gid, gid, gid).map_err(step("change the group"))?;
        }
        if let Some(uid) = self.uid.map(Uid::from_raw) {
            setresuid(uid, uid, uid).map_err(step("change the user"))?;
        }
        seccompiler::apply_filter(&filter)?;
        Ok(())
    }
}

/// System calls that are allowed whatever their arguments: they work on descriptors that are open, on the process's
/// own memory and threads, or tell the time. None opens, connects, executes, or reaches another process.
const ALLOWED: &[libc::c_long] = &[
    // Descriptors.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_close,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_signalfd4,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_dup,
    // The control socket: accept and talk, never connect or bind.
    libc::SYS_accept4,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    // Memory.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    // Threads and signals within the process.
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Time and randomness.
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
];

/// The fcntl commands that descriptors' owners use.
const FCNTL_COMMANDS: [libc::c_int; 5] =
    [libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_SETFL, libc::F_DUPFD_CLOEXEC];

/// ioctl requests by their number's bits: mask and value. KVM's (type 0xae), and the upper ones of type 'T', which are
/// tun's; a terminal's lie below, among them one that types in another's name.
const IOCTL_GROUPS: [(u64, u64); 2] = [(0xff00, 0xae00), (0xffc0, 0x54c0)];
/// Single ioctl requests: descriptor flags, a terminal's modes, which must be restored at the end, and its size, which
/// changes while a guest has it as its console.
const IOCTL_REQUESTS: [libc::c_ulong; 7] = [
    libc::FIONBIO,
    libc::FIOCLEX,
    libc::TCGETS,
    libc::TCSETS,
    libc::TCSETSW,
    libc::TCSETSF,
    libc::TIOCGWINSZ,
];

fn condition(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, Error> {
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
        .map_err(seccompiler::Error::Backend)?;
    Ok(SeccompRule::new(vec![condition]).map_err(seccompiler::Error::Backend)?)
}

/// The filter. A call outside it fails as one that the kernel does not know: nothing is gained by it, a library's
/// harmless probe does not cost a guest its life, and glibc makes threads by `clone`, whose flags can be checked, when
/// there is no `clone3`.
fn filter() -> Result<BpfProgram, Error> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = ALLOWED.iter().map(|&call| (call, Vec::new())).collect();
    // No memory that can be written becomes code.
    let executable = bits(libc::PROT_EXEC);
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![condition(2, SeccompCmpOp::MaskedEq(executable), 0)?]);
    }
    let mut ioctls = Vec::new();
    for (mask, value) in IOCTL_GROUPS {
        ioctls.push(condition(1, SeccompCmpOp::MaskedEq(mask), value)?);
    }
    for request in IOCTL_REQUESTS {
        ioctls.push(condition(1, SeccompCmpOp::Eq, request)?);
    }
    rules.insert(libc::SYS_ioctl, ioctls);
    let commands: Result<Vec<_>, Error> =
        FCNTL_COMMANDS.iter().map(|&command| condition(1, SeccompCmpOp::Eq, bits(command))).collect();
    rules.insert(libc::SYS_fcntl, commands?);
    // Threads of this process, never a process.
    let thread = bits(libc::CLONE_THREAD);
    rules.insert(libc::SYS_clone, vec![condition(0, SeccompCmpOp::MaskedEq(thread), thread)?]);
    rules.insert(libc::SYS_tgkill, vec![condition(0, SeccompCmpOp::Eq, u64::from(std::process::id()))?]);
    rules.insert(libc::SYS_prctl, vec![condition(0, SeccompCmpOp::Eq, bits(libc::PR_SET_NAME))?]);
    let arch = std::env::consts::ARCH.try_into().map_err(seccompiler::Error::Backend)?;
    let denied = SeccompAction::Errno(u32::try_from(libc::ENOSYS).expect("invariant: an error number"));
    let filter =
        SeccompFilter::new(rules, denied, SeccompAction::Allow, arch).map_err(seccompiler::Error::Backend)?;
    Ok(filter.try_into().map_err(seccompiler::Error::Backend)?)
}

/// A flag or command as the filter compares it.
fn bits(value: libc::c_int) -> u64 {
    u64::try_from(value).expect("invariant: flags and commands are not negative")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filter_is_far_below_the_kernels_bound() {
        const KERNEL_MAX: usize = 4096;
        let length = filter().unwrap().len();
        assert!(length < KERNEL_MAX / 4, "{length} instructions");
    }

    /// On a thread of its own: the filter stays with the thread.
    #[test]
    fn files_and_sockets_cannot_be_opened_and_threads_can_be_made() {
        std::thread::spawn(|| {
            seccompiler::apply_filter(&filter().unwrap()).unwrap();
            let error = std::fs::File::open("/dev/null").unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENOSYS));
            let error = std::os::unix::net::UnixStream::connect("/nowhere").unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENOSYS));
            assert_eq!(std::thread::spawn(|| 7).join().unwrap(), 7);
        })
        .join()
        .unwrap();
    }
}
