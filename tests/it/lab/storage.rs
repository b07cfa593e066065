//! Backends of volumes that need what this kernel may not have (device-mapper, NFS): their conformance tests, run by this
//! very program in the lab, whose kernel has it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use storage::backend::{Backend, BackendError, Source};
use storage::file::FileBackend;
use storage::format::Disk;
use storage::format::layers::LAYERS_MAX;
use storage::lvm::LvmBackend;

use super::{lab, text, write};
use crate::harness::{Need, trial};

/// The conformance tests of `storage`, which know nothing of what they test but its trait.
#[allow(clippy::unwrap_used, reason = "as in the unit tests of its crate")]
#[path = "../../../storage/src/backend/conformance.rs"]
mod conformance;

/// The variable by which this program knows that it is inside; its value is the backend to test.
pub(crate) const INSIDE: &str = "WISP_TEST_INSIDE";
/// The volume group and its pool.
const GROUP: &str = "wisp-test";
const POOL: &str = "pool";
/// Where the shared directory is.
const SHARED: &str = "/mnt/shared";
/// A gigabyte is more than the tests write.
const DISK_BYTES: u64 = 1 << 30;

/// A group with a thin pool on the first disk. Extents are small, as the tests' disks are; nobody watches the pool, and
/// no udev makes names.
const LVM: &str = r"
set -e
mkdir -p /etc/lvm /run/lock/lvm
echo 'global { thin_check_executable = ``'' } activation { monitoring = 0 udev_sync = 0 udev_rules = 0 } backup { backup = 0 archive = 0 }' | tr '`' '\x22' >/etc/lvm/lvm.conf
lvm pvcreate --quiet /dev/vda
lvm vgcreate --quiet --physicalextentsize 64k wisp-test /dev/vda
lvm lvcreate --quiet --thin --size 800m --chunksize 64k wisp-test/pool
";
/// A directory on the first disk, served over NFS 4.2 and mounted from there. What mountd and its tables would say to the
/// kernel is said at once: this client may, that directory is the root of what is served.
const NFS: &str = r"
set -e
mkdir -p /srv/shared /mnt/shared
mount -t xfs /dev/vda /srv/shared
mount -t nfsd nfsd /proc/fs/nfsd
echo 10 >/proc/fs/nfsd/nfsv4leasetime
echo 10 >/proc/fs/nfsd/nfsv4gracetime
ip link set lo up
echo -3 +4 +4.2 >/proc/fs/nfsd/versions
echo 1 >/proc/fs/nfsd/threads
echo 'nfsd 127.0.0.1 2147483647 here' >/proc/net/rpc/auth.unix.ip/channel
echo 'here /srv/shared 2147483647 8194 65534 65534 0' >/proc/net/rpc/nfsd.export/channel
echo 'here 1 \x00000000 2147483647 /srv/shared' >/proc/net/rpc/nfsd.fh/channel
mount -t nfs4 -o vers=4.2,sec=sys,addr=127.0.0.1,clientaddr=127.0.0.1 127.0.0.1:/ /mnt/shared
";

/// The tests.
pub(super) fn trials() -> Vec<Trial> {
    vec![
        trial("lab::storage::lvm_conforms", &[Need::Lab, Need::Lvm], lvm_conforms),
        trial("lab::storage::nfs_conforms", &[Need::Lab, Need::DiskTools], nfs_conforms),
    ]
}

fn lvm_conforms() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let disk = disk(directory.path())?;
    let options = ["--module", "storage", "--program", "/usr/sbin/lvm"];
    run(directory.path(), LVM, "lvm", &disk, &options)
}

fn nfs_conforms() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let disk = disk(directory.path())?;
    let made = std::process::Command::new("mkfs.xfs").arg("-q").arg(&disk).status();
    ensure!(made.context("run mkfs.xfs")?.success(), "mkfs.xfs");
    run(directory.path(), NFS, "nfs", &disk, &["--module", "storage", "--module", "nfs"])
}

fn disk(directory: &Path) -> Result<PathBuf> {
    let path = directory.join("disk.img");
    std::fs::File::create(&path)?.set_len(DISK_BYTES)?;
    Ok(path)
}

/// Runs the tests of one backend inside, after a script has made what it needs.
fn run(directory: &Path, script: &str, backend: &str, disk: &Path, options: &[&str]) -> Result<()> {
    let tests = std::env::current_exe().context("find this program")?;
    let name = tests.file_name().and_then(OsStr::to_str).context("this program's name")?;
    let script = write(directory, "host.sh", &format!("{script}\nexec {name}\n"))?;
    let paths = [script, disk.to_owned(), tests.clone()].map(|path| path.display().to_string());
    let variable = format!("{INSIDE}={backend}");
    let fixed = ["--file", &paths[0], "--disk", &paths[1], "--program", &paths[2], "--env", &variable];
    let ran = lab(&[options, &fixed].concat(), &["sh", "host.sh"])?;
    let (said, errors) = (text(&ran.stdout), text(&ran.stderr));
    ensure!(ran.status.success() && said.ends_with("conforms\n"), "{}:\n{said}\n{errors}", ran.status);
    Ok(())
}

/// What this program does inside.
pub(crate) fn inside(backend: &OsStr) {
    let shared = Path::new(SHARED).join("volumes");
    let opened: Box<dyn Backend> = match backend.to_str() {
        Some("lvm") => Box::new(LvmBackend::open(GROUP, POOL).expect("the pool opens")),
        _ => Box::new(FileBackend::open(&shared).expect("the directory opens")),
    };
    conformance::conforms(&*opened);
    println!("conforms");
}
