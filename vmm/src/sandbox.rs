//! Confining a VMM process before it touches anything a guest, an image or a client made: namespaces and an empty root, an
//! unprivileged user, no capabilities, Landlock, and a filter of system calls for each kind of thread.
//!
//! What is confined stays so for the life of the process and for every thread it makes afterwards. Whatever a host does
//! not offer is left out and told, except for the filter: without it nothing of a guest's is touched.

pub mod cell;
pub mod filter;
mod landlock;
mod panic;
mod probe;
mod program;
mod room;

use std::os::fd::{OwnedFd, RawFd};

use nix::sched::CloneFlags;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::rpc::{Protection, ProtectionStatus};

pub use self::probe::probe;

/// Where a process's namespaces come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Namespaces {
    /// It stays in those that it is in: one thread of several cannot leave them alone.
    #[default]
    Stay,
    /// Who started it had it join a [`cell::Cell`]; what is left to do is the empty root.
    Cell,
    /// It makes its own, without a PID namespace, whose first process would have to be another one, and without a network
    /// namespace, which takes longer to make than everything else.
    Own,
}

/// How a process is confined.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sandbox {
    /// The user to become; with privileges only. Absent: stay.
    pub uid: Option<u32>,
    /// The group to become, alone. Absent: stay.
    pub gid: Option<u32>,
    /// Its namespaces.
    pub namespaces: Namespaces,
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
    /// The filter cannot be installed.
    #[error("confine the process: filter system calls")]
    Filter(#[from] seccompiler::Error),
}

fn step<E: Into<std::io::Error>>(step: &'static str) -> impl FnOnce(E) -> Error {
    move |source| {
        let number = source.into().raw_os_error().unwrap_or(libc::EIO);
        Error::Step { step, source: nix::Error::from_raw(number) }
    }
}

/// What confines a process.
#[derive(Debug, Default)]
pub struct Held {
    /// Which protections hold, in the order in which they were taken.
    pub protections: Vec<ProtectionStatus>,
    /// Its mount namespace, if it has one of its own: whoever holds this spares its end the waiting that taking that
    /// apart is.
    pub room: Option<OwnedFd>,
}

impl Held {
    fn add(&mut self, protection: Protection, outcome: Result<(), String>) {
        self.protections.push(ProtectionStatus { protection, missing: outcome.err() });
    }

    fn add_room(&mut self, made: Result<Option<OwnedFd>, String>) {
        let made = made.map(|room| self.room = room);
        self.add(Protection::MountNamespace, made);
    }
}

impl Sandbox {
    /// Confines the calling process, and says what holds. All descriptors it will ever need must be open, and no other
    /// thread running.
    ///
    /// # Errors
    /// The step that failed; the process is then partly confined and has to end.
    pub fn enter(&self) -> Result<Held, Error> {
        let filter = filter::build(filter::Thread::Main);
        use_one_heap();
        let mut held = self.confine()?;
        panic::be_heard();
        seccompiler::apply_filter(&filter)?;
        held.add(Protection::SystemCalls, Ok(()));
        Ok(held)
    }

    /// All but the filter.
    fn confine(self) -> Result<Held, Error> {
        let mut held = Held::default();
        setrlimit(Resource::RLIMIT_CORE, 0, 0)
            .map_err(step("forbid core dumps, which would hold guest memory"))?;
        self.leave_namespaces(&mut held);
        let bounded = bound_capabilities();
        self.become_user(&mut held)?;
        drop_capabilities()?;
        held.add(Protection::Capabilities, bounded);
        nix::sys::prctl::set_no_new_privs().map_err(step("give up gaining privileges"))?;
        held.add(Protection::NoNewPrivileges, Ok(()));
        nix::sys::prctl::set_dumpable(false)
            .map_err(step("keep others of the same user out of its memory"))?;
        held.add(Protection::CoreDumps, Ok(()));
        held.add(Protection::Landlock, landlock::deny_all());
        Ok(held)
    }

    fn leave_namespaces(self, held: &mut Held) {
        use Protection::{IpcNamespace, MountNamespace, NetworkNamespace, PidNamespace, UtsNamespace};
        const AROUND: [Protection; 3] = [NetworkNamespace, IpcNamespace, UtsNamespace];
        let told = |kinds: &[Protection], held: &mut Held, outcome: &Result<(), String>| {
            kinds.iter().for_each(|kind| held.add(*kind, outcome.clone()));
        };
        match self.namespaces {
            Namespaces::Stay => {
                let none = Err("it was started without any".to_owned());
                told(&[MountNamespace, PidNamespace], held, &none);
                told(&AROUND, held, &none);
            }
            Namespaces::Cell => {
                held.add_room(room::make().map_err(|error| error.to_string()));
                told(&[PidNamespace], held, &Ok(()));
                told(&AROUND, held, &Ok(()));
            }
            Namespaces::Own => {
                let kinds = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
                let made = unshare_alone(kinds)
                    .map_err(|error| format!("user namespaces cannot be made: {}", error.desc()));
                let room = made.clone().and_then(|()| room::make().map_err(|error| error.to_string()));
                held.add_room(room);
                let alone = "it is in its terminal's session, whose shell waits for it".to_owned();
                held.add(PidNamespace, Err(alone));
                let slow =
                    "making one takes longer than the rest of its start; no filter knows sockets".to_owned();
                held.add(NetworkNamespace, Err(slow));
                told(&[IpcNamespace, UtsNamespace], held, &made);
            }
        }
    }

    fn become_user(self, held: &mut Held) -> Result<(), Error> {
        if let Some(gid) = self.gid.map(Gid::from_raw) {
            setgroups(&[]).map_err(step("leave all groups"))?;
            setresgid(gid, gid, gid).map_err(step("change the group"))?;
        }
        if let Some(uid) = self.uid.map(Uid::from_raw) {
            setresuid(uid, uid, uid).map_err(step("change the user"))?;
        }
        let own = self.uid.map(drop).ok_or_else(|| "it is the user's who started it".to_owned());
        held.add(Protection::User, own);
        Ok(())
    }
}

/// Leaves namespaces that only the one thread of a process may leave. Another that was waited for may still be on its way out:
/// the kernel says that it is over before it counts it no more.
fn unshare_alone(kinds: CloneFlags) -> nix::Result<()> {
    const TRIES: usize = 10_000;
    let others = || std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() > 1);
    let mut is_alone = false;
    for _ in 0..TRIES {
        match nix::sched::unshare(kinds) {
            // Tried once more after there was nobody else: the last may go between.
            Err(nix::Error::EINVAL) if !is_alone => is_alone = !others(),
            other => return other,
        }
        std::thread::yield_now();
    }
    Err(nix::Error::EINVAL)
}

/// Lets the C library's allocator have one heap for all threads. With more it looks into files: for the number of processors
/// when the ninth thread allocates, and for how memory is overcommitted when a thread's own heap becomes smaller first. A
/// thread begins sooner so, and takes less memory.
#[expect(unsafe_code, reason = "no safe wrapper sets it")]
pub(crate) fn use_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes numbers only. Where it fails, a process may end as at any call that is not allowed.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Bounds what any program could gain to nothing.
fn bound_capabilities() -> Result<(), String> {
    for capability in CapabilitySet::all().iter() {
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // One that this kernel does not know.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(format!("there are none, but their bound stays: {error}")),
        }
    }
    Ok(())
}

fn drop_capabilities() -> Result<(), Error> {
    let none = CapabilitySet::empty();
    rustix::thread::clear_ambient_capability_set().map_err(step("give up ambient capabilities"))?;
    rustix::thread::set_capabilities(
        None,
        CapabilitySets { effective: none, permitted: none, inheritable: none },
    )
    .map_err(step("give up capabilities"))
}

/// Closes every descriptor from 3 on but `kept`, which nobody in the process may own.
///
/// # Errors
/// The kernel's; it is older than 5.9.
pub fn close_all_but(kept: &[RawFd]) -> std::io::Result<()> {
    let mut kept: Vec<u32> = kept.iter().filter_map(|fd| u32::try_from(*fd).ok()).collect();
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept.into_iter().chain([u32::MAX]) {
        if fd > first {
            cell::close_range(first, fd - u32::from(fd != u32::MAX))?;
        }
        first = first.max(fd.saturating_add(1));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
