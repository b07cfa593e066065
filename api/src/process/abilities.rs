//! What this host can do, tried rather than believed. Nothing that is made for a try stays.
//!
//! Must never know: how it is shown.
#![expect(unsafe_code, reason = "userfaultfd is asked for by its system call")]

use std::fs::{self, File};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use vmm::config::CpuProfile;
use vmm::kvm::{HostKind, Kvm};
use vmm::virtio::block::ring::Ring;

/// Whether an ability is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// It was tried and works.
    Yes,
    /// It was tried and does not work.
    No,
    /// It could not be tried.
    Unknown,
}

/// One ability of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ability {
    /// What it is.
    pub name: &'static str,
    /// Whether it is there.
    pub found: Found,
    /// What was seen.
    pub detail: String,
    /// Guests cannot run without it.
    pub required: bool,
    /// What follows, and what to do if it is not there.
    pub follows: String,
}

impl Ability {
    /// Whether guests cannot run because of it.
    pub fn blocks(&self) -> bool {
        self.required && self.found != Found::Yes
    }
}

/// Tries everything; `state` is the directory whose file system disks will be on.
pub fn probe(state: &Path) -> Vec<Ability> {
    let mut abilities = vec![root(), kvm(), kvm_kind(), cpu_profiles()];
    abilities.extend(network());
    abilities.extend([io_uring(), userfaultfd(), reflink(state), cgroups(), namespaces()]);
    abilities
}

/// An ability that was tried: the result's text is the detail, its error the reason.
fn tried(
    name: &'static str,
    required: bool,
    result: Result<String, String>,
    with: &'static str,
    without: &'static str,
) -> Ability {
    let (found, detail, follows) = match result {
        Ok(detail) => (Found::Yes, detail, with),
        Err(detail) => (Found::No, detail, without),
    };
    Ability { name, found, detail, required, follows: follows.into() }
}

fn root() -> Ability {
    let uid = nix::unistd::geteuid();
    let result = if uid.is_root() {
        Ok("uid 0".into())
    } else {
        Err(format!("uid {uid}: what needs root is not tried"))
    };
    tried(
        "root",
        true,
        result,
        "taps, bridges and VMM processes' users can be made",
        "no taps and bridges: run with sudo",
    )
}

/// An error with its causes in one line.
fn sentence(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

const NO_KVM: &str = "no guests: enable virtualisation in the firmware, load kvm_intel or kvm_amd, or allow nested \
                      virtualisation";

fn kvm() -> Ability {
    let result = Kvm::open().map(|_| "/dev/kvm, API version 12".into()).map_err(|error| sentence(&error));
    let is_closed = result.is_err() && Path::new("/dev/kvm").exists();
    tried(
        "KVM",
        true,
        result,
        "guests run",
        if is_closed { "no guests as this user: run with sudo" } else { NO_KVM },
    )
}

fn kvm_kind() -> Ability {
    let result = match HostKind::detect() {
        _ if !Path::new("/dev/kvm").exists() => Err("none".into()),
        HostKind::Hardware => Ok("hardware".into()),
        HostKind::Software => Err("software (module kvm_pvm)".into()),
    };
    tried(
        "KVM in hardware",
        false,
        result,
        "any guest runs, at full speed",
        "the tiny guest runs; an unmodified Linux cannot run programs on a software KVM: use a host with VT-x or AMD-V",
    )
}

/// What of the processor guests can be shown.
fn cpu_profiles() -> Ability {
    let profiles =
        Kvm::open().and_then(|kvm| Ok((kvm.profile(CpuProfile::Host)?, kvm.profile(CpuProfile::Baseline)?)));
    let result =
        profiles.map(|(host, baseline)| format!("{host}, {baseline}")).map_err(|error| sentence(&error));
    tried(
        "CPU profiles",
        false,
        result,
        "`wisp vmm boot --cpu baseline` shows a guest x86-64-v2 alone, as on any other host",
        "guests are shown what this host's KVM can run, and nothing else",
    )
}

/// What links and packet filters can do.
fn network() -> Vec<Ability> {
    const REQUIRED: [&str; 3] = ["tun", "bridge", "nftables"];
    match net::probe::probe() {
        Ok(facilities) => facilities
            .into_iter()
            .map(|facility| Ability {
                name: facility.name,
                found: if facility.works { Found::Yes } else { Found::No },
                detail: "tried in a network namespace".into(),
                required: REQUIRED.contains(&facility.name),
                follows: facility.sentence,
            })
            .collect(),
        Err(error) => vec![Ability {
            name: "network",
            found: Found::Unknown,
            detail: sentence(&error),
            required: true,
            follows: "links and packet filters could not be tried: run with sudo".into(),
        }],
    }
}

fn io_uring() -> Ability {
    tried(
        "io_uring",
        false,
        Ring::new().map(|_| "a ring made and restricted".into()).map_err(|error| error.to_string()),
        "disks have many requests under way at a time",
        "disks are served one request after the other: allow it with sysctl kernel.io_uring_disabled=0 (Linux 5.19)",
    )
}

fn userfaultfd() -> Ability {
    // SAFETY: takes flags only; the result is a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    tried(
        "userfaultfd",
        false,
        new_descriptor(fd).map(|_| "made".into()).map_err(|error| error.to_string()),
        "memory can be restored as it is touched",
        "memory is restored by mapping its file",
    )
}

fn new_descriptor(result: i64) -> io::Result<OwnedFd> {
    match RawFd::try_from(result) {
        Ok(fd) if fd >= 0 => {
            // SAFETY: the system call has just made this descriptor for us alone.
            Ok(unsafe { OwnedFd::from_raw_fd(fd) })
        }
        _ => Err(io::Error::last_os_error()),
    }
}

fn reflink(state: &Path) -> Ability {
    let existing: PathBuf =
        state.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/")).to_path_buf();
    tried(
        "reflink",
        false,
        try_reflink(&existing).map(|()| format!("in {}", existing.display())),
        "a root disk is a clone of its image, made in constant time",
        "a root disk is a copy-on-write overlay, as fast to make: XFS and btrfs can clone",
    )
}

fn try_reflink(directory: &Path) -> Result<(), String> {
    use rustix::fs::{Mode, OFlags};
    // Files without a name: nothing stays, whatever happens.
    let unnamed = || -> io::Result<File> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        Ok(rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR)?.into())
    };
    let pair = unnamed().and_then(|source| Ok((source, unnamed()?)));
    let (mut source, clone) = pair.map_err(|error| format!("no file in {}: {error}", directory.display()))?;
    io::Write::write_all(&mut source, &[1; 4096]).map_err(|error| error.to_string())?;
    rustix::fs::ioctl_ficlone(&clone, &source).map_err(|error| format!("{}: {error}", directory.display()))
}

fn cgroups() -> Ability {
    let version_2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let version_1 = Path::new("/sys/fs/cgroup/pids").is_dir();
    let writable = |path: &str| {
        rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok()
            && rustix::fs::statvfs(path)
                .is_ok_and(|found| !found.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY))
    };
    let result = match (version_2, version_1) {
        (true, _) if writable("/sys/fs/cgroup") => Ok("version 2, writable".into()),
        (false, true) if writable("/sys/fs/cgroup/pids") => Ok("version 1, writable".into()),
        (true, _) | (_, true) => Err("there, but not writable by this process".into()),
        (false, false) => Err("not mounted".into()),
    };
    tried(
        "cgroups",
        false,
        result,
        "each instance has a group of its own, outside the agent's",
        "instances share the group that `wisp up` was started in: stop it with its process, not with its group",
    )
}

fn namespaces() -> Ability {
    const KINDS: [&str; 6] = ["ipc", "mnt", "net", "pid", "user", "uts"];
    let missing: Vec<_> = KINDS
        .into_iter()
        .filter(|kind| fs::symlink_metadata(format!("/proc/self/ns/{kind}")).is_err())
        .collect();
    let result =
        if missing.is_empty() { Ok(KINDS.join(", ")) } else { Err(format!("no {}", missing.join(", "))) };
    tried(
        "namespaces",
        false,
        result,
        "VMM processes can be confined, routers isolated",
        "VMM processes are confined by their user and by seccomp alone",
    )
}
