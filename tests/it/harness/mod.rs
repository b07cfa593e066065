//! What the system tests share: needs and skips, a network namespace per test, a cloud of its own.

mod cloud;
mod debian;
mod lab;
mod netns;
pub(crate) mod preparation;
mod remains;
mod rest;
mod s3;
mod shell;
mod slim;
mod venv;

use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use libtest_mimic::{Completion, Failed, Trial};

pub(crate) use self::cloud::{Cloud, LAB_INSIDE, LAB_RELAY_PORT, NewServer, shown};
pub(crate) use self::debian::{Stock, stock};
pub(crate) use self::lab::cache as lab_cache;
pub(crate) use self::netns::{ip, isolate, links};
pub(crate) use self::remains::{Remains, processes};
pub(crate) use self::rest::Rest;
pub(crate) use self::s3::S3Server;
pub(crate) use self::shell::Shell;
pub(crate) use self::slim::{cache as guest_cache, image as guest_image, kernel as slim_kernel};

/// What is found out once, however many tests ask, and whatever it comes to.
pub(crate) fn once<T: Clone>(
    cell: &OnceLock<Result<T, String>>,
    find: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    cell.get_or_init(|| find().map_err(|error| format!("{error:#}")))
        .clone()
        .map_err(|error| anyhow::anyhow!(error))
}

/// What every test of a real cloud needs.
pub(crate) const KVM_CLOUD: &[Need] = &[Need::Root, Need::Kvm, Need::Tun];

/// What a test cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// The rights of root: namespaces, links, users.
    Root,
    /// /dev/kvm.
    Kvm,
    /// /dev/net/tun.
    Tun,
    /// The `openstack` command, from PyPI.
    OpenStack,
    /// A server of Amazon's S3, from PyPI.
    Moto,
    /// `qemu-img`.
    QemuImg,
    /// `iasl`, the ACPI compiler.
    Iasl,
    /// What makes disks: sfdisk and mkfs.ext4.
    DiskTools,
    /// LVM's commands.
    Lvm,
    /// The nested lab: QEMU, and Debian's kernel and busybox, installed or downloaded.
    Lab,
    /// The slim kernel, built from Debian's source.
    SlimKernel,
    /// Debian's kernel with its own ramdisk: mmdebstrap and Debian's packages.
    Debian,
}

impl Need {
    /// Waits for what makes it, if that is under way.
    fn prepared(self) {
        let preparation = match self {
            Self::OpenStack => &preparation::OPENSTACK,
            Self::Moto => &preparation::S3,
            Self::Lab => &preparation::LAB,
            Self::Debian => &preparation::DEBIAN,
            Self::SlimKernel => &preparation::SLIM,
            _ => return,
        };
        preparation.wait();
    }

    /// Why it is not met here, if it is not.
    fn unmet(self) -> Option<String> {
        self.prepared();
        let usable = |path: &str| std::fs::File::options().read(true).write(true).open(path).err();
        match self {
            Self::Root => (!nix::unistd::geteuid().is_root()).then(|| "needs root".to_owned()),
            Self::Kvm => usable("/dev/kvm").map(|error| format!("needs /dev/kvm: {error}")),
            Self::Tun => usable("/dev/net/tun").map(|error| format!("needs /dev/net/tun: {error}")),
            Self::OpenStack => {
                venv::openstack().err().map(|error| format!("needs the openstack command: {error:#}"))
            }
            Self::Moto => venv::moto().err().map(|error| format!("needs a server of S3: {error:#}")),
            Self::QemuImg => {
                let found = std::process::Command::new("qemu-img").arg("--version").output();
                found.err().map(|error| format!("needs qemu-img: {error}"))
            }
            Self::Iasl => {
                let found = std::process::Command::new("iasl").arg("-v").output();
                found.err().map(|error| format!("needs iasl of acpica-tools: {error}"))
            }
            Self::DiskTools => ["mkfs.ext4", "sfdisk"].into_iter().find_map(|tool| {
                let found = std::process::Command::new(tool).arg("-V").output();
                found.err().map(|error| format!("needs {tool}: {error}"))
            }),
            Self::Lvm => (!Path::new("/usr/sbin/lvm").exists()).then(|| "needs lvm of lvm2".to_owned()),
            Self::Debian => debian::stock().err().map(|error| format!("needs Debian's kernel: {error:#}")),
            Self::Lab => lab::ready().err().map(|error| format!("needs the nested lab: {error:#}")),
            Self::SlimKernel => slim::ready().err().map(|error| format!("needs the slim kernel: {error:#}")),
        }
    }
}

/// The needs of every test by its name.
static NEEDS: Mutex<Vec<(String, &'static [Need])>> = Mutex::new(Vec::new());

/// Whether one of the tests that were made, and whose name is `selected`, has this need.
pub(crate) fn any_needs(need: Need, selected: impl Fn(&str) -> bool) -> bool {
    let all = NEEDS.lock().unwrap_or_else(PoisonError::into_inner);
    all.iter().any(|(name, needs)| needs.contains(&need) && selected(name))
}

/// A test that runs where its needs are met, and is counted as skipped where they are not.
pub(crate) fn trial(name: &str, needs: &'static [Need], run: fn() -> anyhow::Result<()>) -> Trial {
    NEEDS.lock().unwrap_or_else(PoisonError::into_inner).push((name.to_owned(), needs));
    Trial::ignorable_test(name, move || {
        if let Some(reason) = needs.iter().find_map(|need| need.unmet()) {
            if std::env::var_os("WISP_REQUIRE_ALL").is_some_and(|value| value == "1") {
                return Err(Failed::from(format!(
                    "skipped: {reason}; WISP_REQUIRE_ALL=1 makes that a failure"
                )));
            }
            return Ok(Completion::ignored_with(format!("skipped: {reason}")));
        }
        run().map(|()| Completion::Completed).map_err(|error| Failed::from(format!("{error:#}")))
    })
}

/// The Python that the `openstack` command runs with, and its libraries.
pub(crate) fn openstack_python() -> anyhow::Result<std::path::PathBuf> {
    Ok(venv::openstack()?.with_file_name("python"))
}

/// Makes the `openstack` command ready; like all of these, it leaves to the tests to say why that fails.
pub(crate) fn prepare_openstack() {
    let _ = venv::openstack();
}

/// Makes the server of S3 ready.
pub(crate) fn prepare_s3() {
    let _ = venv::moto();
}

/// Makes the nested lab ready.
pub(crate) fn prepare_lab() {
    let _ = lab::ready();
}

/// Builds the slim kernel.
pub(crate) fn prepare_slim_kernel() {
    let _ = slim::ready();
}

/// The binary under test, which leaves the processors to whatever else wants them.
pub(crate) fn wisp_in_background() -> std::process::Command {
    wisp_with_niceness("2")
}

/// The binary under test, for what takes one processor longest, however many others are idle at the end. Not by much:
/// other tests have their limits in seconds.
pub(crate) fn wisp_before_others() -> std::process::Command {
    wisp_with_niceness("-2")
}

fn wisp_with_niceness(niceness: &str) -> std::process::Command {
    let mut command = std::process::Command::new("nice");
    command.args(["-n", niceness]).arg(wisp());
    command
}

/// The binary under test.
pub(crate) fn wisp() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_wisp"))
}

/// Tries until it holds, at most this many seconds; then says why the last try did not. The longer it takes, the rarer
/// are the tries: what is waited for needs the processors.
pub(crate) fn within<T>(seconds: u64, mut attempt: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let (shortest, longest) = (Duration::from_millis(20), Duration::from_secs(4));
    let started = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if started.elapsed().as_secs() > seconds => return Err(error),
            Err(_) => std::thread::sleep((started.elapsed() / 20).clamp(shortest, longest)),
        }
    }
}
