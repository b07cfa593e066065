//! Giving up privileges for good, before a process does anything else.
//!
//! Must never know: which process it is for, beyond the two shapes below.

use anyhow::{Context, bail};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::process::{Pid, Signal};
use rustix::thread::{CapabilitySet, CapabilitySets};

/// The user that the control process becomes where nobody else is named: in the range 60578 to 61183 that
/// distributions leave unused.
pub const CONTROL_UID: u32 = 60_900;

/// An ordinary user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

impl User {
    /// Who runs this process.
    pub fn current() -> Self {
        Self { uid: nix::unistd::geteuid().as_raw(), gid: nix::unistd::getegid().as_raw() }
    }
}

/// What the agent keeps of root, each for something it does:
/// links, taps and rules (`NET_ADMIN`); giving VMM processes their own user (`SETUID`, `SETGID`) and their files
/// (`CHOWN`, `DAC_OVERRIDE`, `FOWNER`); ending them (`KILL`); their limits (`SYS_RESOURCE`).
const AGENT_CAPABILITIES: CapabilitySet = CapabilitySet::NET_ADMIN
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::CHOWN)
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SYS_RESOURCE);

/// Becomes `user` without any capability and without a way back; a no-op for whoever is that user already. Only for
/// a process that still has one thread.
pub fn become_user(user: User) -> anyhow::Result<()> {
    if user.uid == 0 {
        bail!("invariant: nothing is gained by becoming root");
    }
    bound_capabilities(CapabilitySet::empty())?;
    if nix::unistd::geteuid().is_root() {
        setgroups(&[]).context("leave all groups")?;
        let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
        setresgid(gid, gid, gid).with_context(|| format!("become group {}", user.gid))?;
        setresuid(uid, uid, uid).with_context(|| format!("become user {}", user.uid))?;
    }
    keep_capabilities(CapabilitySet::empty())
}

/// Keeps of root what an agent needs, if this is root. Only for a process that still has one thread.
///
/// With `block_devices`, what the kernel asks of those who make logical volumes or map images of Ceph's, too.
pub fn keep_agent_capabilities(block_devices: bool) -> anyhow::Result<()> {
    let kept = match (nix::unistd::geteuid().is_root(), block_devices) {
        (false, _) => CapabilitySet::empty(),
        (true, false) => AGENT_CAPABILITIES,
        (true, true) => AGENT_CAPABILITIES.union(CapabilitySet::SYS_ADMIN).union(CapabilitySet::MKNOD),
    };
    keep_capabilities(kept)
}

fn keep_capabilities(kept: CapabilitySet) -> anyhow::Result<()> {
    let before = rustix::thread::capabilities(None).context("read the capabilities")?;
    // In a container some may be missing from the start.
    let kept = kept & before.permitted;
    bound_capabilities(kept)?;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).context("give up capabilities")?;
    rustix::thread::set_no_new_privs(true).context("give up gaining privileges")
}

/// Bounds what any later program of this process could gain, where that is allowed.
fn bound_capabilities(kept: CapabilitySet) -> anyhow::Result<()> {
    let before = rustix::thread::capabilities(None).context("read the capabilities")?;
    if !before.effective.contains(CapabilitySet::SETPCAP) {
        return Ok(());
    }
    for capability in CapabilitySet::all().iter().filter(|capability| !kept.contains(*capability)) {
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // A capability that this kernel does not know.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(error).context("bound the capabilities"),
        }
    }
    Ok(())
}

/// Has the kernel end this process with its parent. To be called after the user has changed, which resets it.
pub fn die_with_parent(parent: i32) -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .context("ask to end with the parent")?;
    // It may have died just before.
    if rustix::process::getppid().map(Pid::as_raw_pid) != Some(parent) {
        bail!("the process that started this one has ended");
    }
    Ok(())
}

/// Raises the soft limit of open files to the hard one: a cloud's clients and instances each need some.
pub fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}
