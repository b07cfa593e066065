//! Debian with systemd, no more than it takes to be a server: DHCP, ssh, and who it is from the metadata service.

use std::path::Path;
use std::process::Command;

use super::super::cache::{self, Cache, Stamp};
use super::super::packages;
use super::super::progress::Progress;
use super::super::tools::{self, Need};
use super::tree::Tree;
use super::{Error, TIME_SECONDS, busybox};

/// The release that images are made of.
const SUITE: &str = "bookworm";
/// Changes when the same inputs shall give another image.
const RECIPE: &str = "debian image 2";
/// What building a Debian file system needs.
pub(super) const NEEDS: [Need; 2] =
    [Need::Program("mmdebstrap", "mmdebstrap"), Need::Program("apt-get", "apt")];
const PACKAGES: &str = "systemd-sysv,busybox-static,iproute2,netbase,ca-certificates";
const SSH_PACKAGES: &str = "openssh-server";
/// Files of packages that a small guest does without; licences stay.
const EXCLUDED: [&str; 6] = [
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/lintian/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
];
/// Units that a guest made a moment ago, without devices to wait for, has no use for.
const MASKED: [&str; 29] = [
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty-static.service",
    "kmod-static-nodes.service",
    "ldconfig.service",
    "modprobe@.service",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-binfmt.service",
    "systemd-firstboot.service",
    "systemd-hwdb-update.service",
    "systemd-journal-flush.service",
    "systemd-machine-id-commit.service",
    "systemd-modules-load.service",
    "systemd-pcrphase-sysinit.service",
    "systemd-pcrphase.service",
    "systemd-pstore.service",
    "systemd-random-seed.service",
    "systemd-sysusers.service",
    "systemd-update-utmp-runlevel.service",
    "systemd-update-utmp.service",
];
/// The units of the image itself, with the target that wants them.
const UNITS: [(&str, &str); 4] = [
    ("wisp-network.service", include_str!("../../../../vmm/guest/images/debian/wisp-network.service")),
    ("wisp-power.service", include_str!("../../../../vmm/guest/images/debian/wisp-power.service")),
    ("wisp-grow.service", include_str!("../../../../vmm/guest/images/debian/wisp-grow.service")),
    ("wisp-ready.service", include_str!("../../../../vmm/guest/images/debian/wisp-ready.service")),
];
const NETWORK: &str = include_str!("../../../../vmm/guest/images/debian/wisp-network");
const POWER: &str = include_str!("../../../../vmm/guest/images/debian/power");
const SSH_UNIT: &str = include_str!("../../../../vmm/guest/images/debian/ssh.conf");
const SSH_SERVER: &str = include_str!("../../../../vmm/guest/images/debian/sshd.conf");

/// The inputs of such an image.
///
/// # Errors
/// What apt knows cannot be read.
pub fn stamp(ssh: bool) -> Result<Stamp, Error> {
    let mut stamp = Stamp::new(RECIPE);
    stamp.add(&packages::archive_state()?);
    stamp.add(&[u8::from(ssh)]);
    for text in EXCLUDED.iter().chain(&MASKED).chain([&PACKAGES, &NETWORK, &POWER, &SSH_UNIT, &SSH_SERVER]) {
        stamp.add(text.as_bytes());
    }
    for (name, text) in UNITS {
        stamp.add(name.as_bytes());
        stamp.add(text.as_bytes());
    }
    stamp.add(busybox::INSTANCE.as_bytes());
    stamp.add(busybox::UDHCPC.as_bytes());
    Ok(stamp)
}

/// Its root file system, without a kernel.
///
/// # Errors
/// A package cannot be had.
pub fn tree(ssh: bool, _cache: &Cache, work: &Path, progress: &Progress) -> Result<Tree, Error> {
    let packages = if ssh { format!("{PACKAGES},{SSH_PACKAGES}") } else { PACKAGES.to_owned() };
    let mut tree = bootstrap(&Bootstrap { packages: &packages, hook: None }, work, progress)?;
    configure(&mut tree);
    if ssh {
        tree.text("etc/systemd/system/ssh.service.d/host-key.conf", 0o644, SSH_UNIT);
        tree.text("etc/ssh/sshd_config.d/wisp.conf", 0o644, SSH_SERVER);
    }
    Ok(tree)
}

fn configure(tree: &mut Tree) {
    for unit in MASKED {
        tree.link(&format!("etc/systemd/system/{unit}"), "/dev/null");
    }
    // Without udev no device unit appears, so the console's login must not wait for one.
    tree.link("etc/systemd/system-generators/systemd-getty-generator", "/dev/null");
    let wants = "etc/systemd/system/multi-user.target.wants";
    tree.link(&format!("{wants}/console-getty.service"), "/lib/systemd/system/console-getty.service");
    tree.link("etc/systemd/system/default.target", "/lib/systemd/system/multi-user.target");
    for (name, text) in UNITS {
        tree.text(&format!("etc/systemd/system/{name}"), 0o644, text);
        tree.link(&format!("{wants}/{name}"), &format!("/etc/systemd/system/{name}"));
    }
    tree.text("usr/sbin/wisp-network", 0o755, NETWORK);
    tree.text("usr/sbin/wisp-instance", 0o755, busybox::INSTANCE);
    tree.text("usr/lib/wisp/udhcpc", 0o755, busybox::UDHCPC);
    tree.text("etc/acpi/PWRF/00000080", 0o755, POWER);
    tree.text("etc/hostname", 0o644, "wisp\n");
    tree.text("etc/hosts", 0o644, "127.0.0.1 localhost\n::1 localhost\n");
    tree.text("etc/fstab", 0o644, "");
    tree.text("etc/resolv.conf", 0o644, "");
    // Empty: systemd makes one up at every boot of an image, and does not take it for the first.
    tree.text("etc/machine-id", 0o444, "");
    make_general(tree);
}

/// Removes what belongs to one machine only, or to the moment of the build.
pub(super) fn make_general(tree: &mut Tree) {
    let strange = |path: &str| {
        (path.starts_with("etc/ssh/ssh_host_"))
            || (path.starts_with("var/log/") && path.ends_with(".log"))
            || path.starts_with("var/cache/ldconfig/")
            || path.starts_with("var/lib/apt/lists/")
    };
    let paths: Vec<_> =
        tree.entries().map(|(path, _)| path.to_owned()).filter(|path| strange(path)).collect();
    for path in paths {
        tree.remove(&path);
    }
}

/// A Debian file system.
pub(super) struct Bootstrap<'a> {
    /// Packages beside the essential ones, separated by commas.
    pub(super) packages: &'a str,
    /// Options for mmdebstrap and variables for its hooks.
    pub(super) hook: Option<Hook<'a>>,
}

/// What happens in the root directory before it is packed.
pub(super) struct Hook<'a> {
    /// Commands of mmdebstrap's `--customize-hook`, in order.
    pub(super) commands: Vec<String>,
    /// Their environment.
    pub(super) environment: Vec<(&'a str, String)>,
}

/// Attempts at one file system: Debian's own steps fail now and then, as when `/proc` is still in use as it is unmounted.
const ATTEMPTS_MAX: u32 = 2;

/// Runs mmdebstrap and reads what it packed.
pub(super) fn bootstrap(what: &Bootstrap<'_>, work: &Path, progress: &Progress) -> Result<Tree, Error> {
    tools::require("building a Debian image", &NEEDS)?;
    let stage = progress.stage("install Debian's packages", None);
    let archive = work.join("root.tar");
    let mut attempt = 1;
    while let Err(error) = tools::lines(&mut mmdebstrap(what, work, &archive), |line| stage.message(line)) {
        if attempt == ATTEMPTS_MAX {
            return Err(error.into());
        }
        tracing::warn!(%error, "mmdebstrap is run once more");
        attempt += 1;
    }
    let store = work.join("files");
    std::fs::create_dir_all(&store).map_err(cache::Error::io("make the directory", &store))?;
    let tree = Tree::from_tar(&archive, &store)?;
    std::fs::remove_file(&archive).map_err(cache::Error::io("remove", &archive))?;
    stage.done(&format!("{} files and directories", tree.entries().count()));
    Ok(tree)
}

fn mmdebstrap(what: &Bootstrap<'_>, work: &Path, archive: &Path) -> Command {
    let mut command = tools::command_with_own_mounts("mmdebstrap");
    command.env("SOURCE_DATE_EPOCH", TIME_SECONDS.to_string()).env("TMPDIR", work);
    command.args(["--variant=minbase", "--format=tar"]).arg(format!("--include={}", what.packages));
    if let Some(hook) = &what.hook {
        command.envs(hook.environment.iter().map(|(name, value)| (name, value)));
        command.args(hook.commands.iter().map(|command| format!("--customize-hook={command}")));
    } else {
        command.args(EXCLUDED.map(|option| format!("--dpkgopt={option}")));
    }
    command.arg(SUITE).arg(archive);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_enabled_and_what_is_one_machines_own_goes() {
        let mut tree = Tree::default();
        tree.text("etc/ssh/ssh_host_ed25519_key", 0o600, "secret");
        tree.text("etc/ssh/sshd_config", 0o644, "");
        configure(&mut tree);
        assert!(tree.get("etc/ssh/ssh_host_ed25519_key").is_none());
        assert!(tree.get("etc/ssh/sshd_config").is_some());
        for (unit, text) in UNITS {
            assert!(text.contains("[Install]\nWantedBy=multi-user.target"), "{unit}");
            assert!(tree.get(&format!("etc/systemd/system/multi-user.target.wants/{unit}")).is_some());
        }
        assert_eq!(tree.read("etc/machine-id").unwrap(), "");
    }
}
