//! The smallest Linux guest: busybox as init, shell and DHCP client, and dropbear for ssh.

use std::path::{Path, PathBuf};

use super::super::cache::{self, Cache, Stamp};
use super::super::packages::{self, Package};
use super::super::progress::Progress;
use super::super::tools;
use super::Error;
use super::tree::{Content, Entry, Tree};

/// Changes when the same inputs shall give another image.
const RECIPE: &str = "busybox image 2";
const SHELL: [&str; 1] = ["busybox-static"];
/// dropbear, and the packages of the libraries in [`LIBRARIES`].
const SSH: [&str; 7] =
    ["dropbear-bin", "libc6", "libcrypt1", "libtomcrypt1", "libtommath1", "libgmp10", "zlib1g"];
/// What dropbear is linked with, and what the C library loads to look up users.
const LIBRARIES: [&str; 7] = [
    "libc.so.6",
    "libcrypt.so.1",
    "libtomcrypt.so.1",
    "libtommath.so.1",
    "libgmp.so.10",
    "libz.so.1",
    "libnss_files.so.2",
];
const LOADER: &str = "ld-linux-x86-64.so.2";
const LIBRARY_DIRECTORIES: [&str; 2] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];

const INITTAB: &str = include_str!("../../../../vmm/guest/images/busybox/inittab");
const START: &str = include_str!("../../../../vmm/guest/images/busybox/start");
pub(super) const UDHCPC: &str = include_str!("../../../../vmm/guest/images/shared/udhcpc");
const POWER: &str = include_str!("../../../../vmm/guest/images/busybox/power");
pub(super) const INSTANCE: &str = include_str!("../../../../vmm/guest/images/shared/wisp-instance");

fn wanted(ssh: bool) -> Result<Vec<Package>, packages::Error> {
    let names: Vec<_> = SHELL.into_iter().chain(SSH.into_iter().filter(|_| ssh)).collect();
    packages::candidates(&names)
}

/// The inputs of such an image.
///
/// # Errors
/// apt does not know a package.
pub fn stamp(ssh: bool) -> Result<Stamp, Error> {
    let mut stamp = Stamp::new(RECIPE);
    for package in wanted(ssh)? {
        stamp.add(format!("{}={}", package.name, package.version).as_bytes());
    }
    for file in [INITTAB, START, UDHCPC, POWER, INSTANCE] {
        stamp.add(file.as_bytes());
    }
    Ok(stamp)
}

/// Its root file system, without a kernel.
///
/// # Errors
/// A package cannot be had, or is not what it was.
pub fn tree(ssh: bool, cache: &Cache, work: &Path, progress: &Progress) -> Result<Tree, Error> {
    tools::require("building a busybox image", &packages::NEEDS)?;
    let unpacked = work.join("unpacked");
    for file in packages::fetch(&wanted(ssh)?, cache, progress)? {
        packages::unpack(&file, &unpacked)?;
    }
    let mut tree = Tree::default();
    for path in ["boot", "dev", "mnt", "proc", "run", "sys", "var/lib", "var/log"] {
        tree.directory(path, 0o755);
    }
    tree.directory("tmp", 0o1777);
    tree.directory("root", 0o700);
    // Before the kernel has mounted its own devices, init wants a console.
    tree.put("dev/console", Entry::new(Content::Character { major: 5, minor: 1 }, 0o600));
    shell(&mut tree, &unpacked)?;
    configuration(&mut tree);
    if ssh {
        dropbear(&mut tree, &unpacked)?;
    }
    Ok(tree)
}

fn shell(tree: &mut Tree, unpacked: &Path) -> Result<(), Error> {
    let busybox = found(unpacked, &["bin", "usr/bin"], "busybox")?;
    let applets = tools::output(tools::command_at(&busybox).arg("--list-full"))?;
    tree.file("bin/busybox", 0o755, &busybox);
    for applet in applets.lines().map(str::trim).filter(|path| !path.is_empty() && *path != "bin/busybox") {
        tree.link(applet, "/bin/busybox");
    }
    tree.link("init", "/bin/busybox");
    tree.link("sbin/init", "/bin/busybox");
    Ok(())
}

fn configuration(tree: &mut Tree) {
    tree.text("etc/inittab", 0o644, INITTAB);
    tree.text("etc/init.d/start", 0o755, START);
    tree.text("etc/udhcpc", 0o755, UDHCPC);
    tree.text("etc/acpi/PWRF/00000080", 0o755, POWER);
    tree.text("usr/sbin/wisp-instance", 0o755, INSTANCE);
    tree.text("etc/hostname", 0o644, "wisp\n");
    tree.text("etc/hosts", 0o644, "127.0.0.1 localhost\n::1 localhost\n");
    tree.text("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\n");
    tree.text("etc/shadow", 0o600, "root:*:19000:0:99999:7:::\n");
    tree.text("etc/group", 0o644, "root:x:0:\ntty:x:5:\n");
    tree.text("etc/shells", 0o644, "/bin/sh\n");
    tree.text("etc/profile", 0o644, "export PATH=/bin:/sbin:/usr/bin:/usr/sbin\n");
    tree.text("etc/os-release", 0o644, "NAME=\"Wisp busybox guest\"\nID=wisp-busybox\n");
    tree.link("etc/mtab", "/proc/self/mounts");
}

fn dropbear(tree: &mut Tree, unpacked: &Path) -> Result<(), Error> {
    for library in LIBRARIES {
        let file = found(unpacked, &LIBRARY_DIRECTORIES, library)?;
        tree.file(&format!("usr/lib/x86_64-linux-gnu/{library}"), 0o755, &file);
    }
    let loader = found(unpacked, &LIBRARY_DIRECTORIES, LOADER)?;
    tree.file(&format!("lib64/{LOADER}"), 0o755, &loader);
    let server = found(unpacked, &["usr/sbin"], "dropbear")?;
    tree.file("usr/sbin/dropbear", 0o755, &server);
    tree.directory("etc/dropbear", 0o700);
    tree.text("etc/nsswitch.conf", 0o644, "passwd: files\ngroup: files\nhosts: files dns\n");
    // Keys of its own are made at the first connection; passwords are not taken.
    let inittab = format!("{INITTAB}::respawn:/usr/sbin/dropbear -F -R -s\n");
    tree.text("etc/inittab", 0o644, &inittab);
    Ok(())
}

/// The file `name` in one of `directories` of what was unpacked, without links.
fn found(unpacked: &Path, directories: &[&str], name: &str) -> Result<PathBuf, Error> {
    for directory in directories {
        let path = unpacked.join(directory).join(name);
        if path.exists() {
            return Ok(path.canonicalize().map_err(cache::Error::io("find", &path))?);
        }
    }
    Err(super::tree::Error::Missing(name.to_owned()).into())
}
