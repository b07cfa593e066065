//! The conformance tests on a Ceph of this machine (`tests/ceph/cluster`). Where the kernel has no client of Ceph's, images
//! are files of a file system of `rbd-fuse`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use super::command::{Ceph, Marks};
use super::device::Devices;
use super::*;
use crate::backend::conformance;

/// A cluster that ends with the test.
struct Cluster {
    directory: tempfile::TempDir,
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/ceph/cluster")
}

impl Cluster {
    /// None, having said why, where a program is missing.
    fn start() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let cluster = Self { directory };
        let output = Command::new(script()).arg("start").arg(cluster.path()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.code() == Some(3) {
            println!("skipped: {}", said.trim());
            return None;
        }
        assert!(output.status.success(), "{}: {said}", output.status);
        Some(cluster)
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn configuration(&self) -> PathBuf {
        self.path().join("ceph.conf")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = Command::new(script()).arg("stop").arg(self.path()).status();
    }
}

/// A file system for each image.
struct Files {
    ceph: Ceph,
    configuration: PathBuf,
    root: PathBuf,
    running: Mutex<Vec<(String, Child)>>,
}

impl Devices for Files {
    fn mapped(&self, name: &str) -> Result<Option<PathBuf>> {
        let running = self.running.lock().unwrap();
        Ok(running.iter().any(|(running, _)| running == name).then(|| self.root.join(name).join(name)))
    }

    fn all(&self) -> Result<Vec<String>> {
        Ok(self.running.lock().unwrap().iter().map(|(name, _)| name.clone()).collect())
    }

    fn map(&self, name: &str, _: bool) -> Result<PathBuf> {
        let root = self.root.join(name);
        std::fs::create_dir_all(&root).unwrap();
        let child = Command::new("rbd-fuse")
            .args([OsStr::new("-f"), OsStr::new("-c"), self.configuration.as_os_str()])
            .args(["-p", self.ceph.pool(), "-r", name])
            .arg(&root)
            .env("CEPH_ARGS", self.ceph.user().map(|user| format!("--id {user}")).unwrap_or_default())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.running.lock().unwrap().push((name.to_owned(), child));
        let path = root.join(name);
        for _ in 0..600 {
            if path.exists() {
                return Ok(path);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("rbd-fuse shows nothing at {}", path.display());
    }

    fn unmap(&self, name: &str) -> Result<()> {
        let mut running = self.running.lock().unwrap();
        let Some(at) = running.iter().position(|(running, _)| running == name) else { return Ok(()) };
        let root = self.root.join(name);
        let said = Command::new("umount").arg(&root).stderr(Stdio::null()).status().unwrap();
        if said.success() {
            let (_, mut child) = running.swap_remove(at);
            child.wait().unwrap();
            std::fs::remove_dir(root).unwrap();
        }
        Ok(())
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        for (name, mut child) in self.running.get_mut().unwrap().drain(..) {
            let _ = Command::new("umount").arg("-l").arg(self.root.join(name)).status();
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn backend(cluster: &Cluster) -> CephBackend {
    let ceph = Ceph::new("wisp", Some("volumes")).unwrap().configured(cluster.configuration());
    let files = Files {
        ceph: ceph.clone(),
        configuration: cluster.configuration(),
        root: cluster.path().join("files"),
        running: Mutex::default(),
    };
    CephBackend::open_with(ceph, Box::new(files)).unwrap()
}

#[test]
fn conforms_and_heals_what_a_crash_leaves() {
    let Some(cluster) = Cluster::start() else { return };
    if Command::new("rbd-fuse").arg("--help").output().is_err() || !Path::new("/dev/fuse").exists() {
        println!("skipped: rbd-fuse is not there (package rbd-fuse, /dev/fuse)");
        return;
    }
    let backend = backend(&cluster);
    conformance::conforms(&backend);
    clones_that_stand_upon_too_many_become_independent(&backend);
    what_a_crash_left_is_healed(&cluster, backend);
}

/// Whoever has a cluster and a kernel with a client of Ceph's names pool and user; `tests/ceph/lab` does.
#[test]
fn kernel_devices_conform() {
    let Ok(named) = std::env::var("WISP_TEST_CEPH") else {
        println!("skipped: WISP_TEST_CEPH names no POOL/USER of a cluster that this kernel reaches");
        return;
    };
    let (pool, user) = named.split_once('/').unwrap();
    let backend = CephBackend::open(pool, Some(user)).unwrap();
    conformance::conforms_in_short(&backend);
    assert_eq!(backend.devices.devices.all().unwrap(), Vec::<String>::new(), "no device is left");
}

fn clones_that_stand_upon_too_many_become_independent(backend: &CephBackend) {
    backend.create("d0", 1 << 20, Source::Nothing).unwrap();
    let last = DEPTH_MAX + 1;
    for number in 1..=last {
        let of = format!("d{}", number - 1);
        backend.create(&format!("d{number}"), 1 << 20, Source::Disk { id: &of, in_use: false }).unwrap();
        backend.delete(&of).unwrap();
    }
    assert_eq!(backend.ceph.marks(&format!("wisp-d{last}")).unwrap().depth, 0);
    let trash: Vec<serde_json::Value> =
        backend.ceph.report(&["trash", "ls", "--all", "--format", "json", "wisp"], "wisp").unwrap();
    assert!(trash.is_empty(), "what nobody stands upon any more is gone: {trash:?}");
    backend.delete(&format!("d{last}")).unwrap();
}

/// As after each step of what is done in several.
fn what_a_crash_left_is_healed(cluster: &Cluster, before: CephBackend) {
    let ceph = before.ceph.clone();
    before.create("v", 1 << 20, Source::Nothing).unwrap();
    // A snapshot that was taken and nothing cloned from it; one that was cloned.
    ceph.run(&["snap", "create", "--no-progress", "wisp/wisp-v@wisp-s"], "v").unwrap();
    before.snapshot("s", "v", false).unwrap();
    ceph.clone_image("wisp-v", "wisp-t", "wisp-t.new").unwrap();
    before.snapshot("t", "v", false).unwrap();
    // A successor that is not whole, and one that is; with the disk there and without.
    ceph.create("wisp-v.new", 1 << 19).unwrap();
    ceph.create("wisp-w.new", 1 << 19).unwrap();
    ceph.mark("wisp-w.new", &Marks { whole: true, ..Marks::default() }).unwrap();
    ceph.create("wisp-x.new", 1 << 19).unwrap();
    drop(before);
    let after = backend(cluster);
    assert_eq!(after.list().unwrap(), ["s", "t", "v", "w"]);
    assert_eq!(after.size_bytes("v").unwrap(), Some(1 << 20));
    ceph.run(&["snap", "create", "--no-progress", "wisp/wisp-v@left"], "v").unwrap();
    for id in ["v", "w", "s", "t"] {
        after.delete(id).unwrap();
    }
    assert_eq!(ceph.list().unwrap(), Vec::<String>::new());
}

#[test]
fn marks_are_read_as_they_are_written() {
    let marks = Marks { depth: 3, frozen: true, whole: false, reverted: Some(7) };
    assert_eq!((marks.write().as_str(), Marks::read(&marks.write())), ("depth=3 frozen reverted=7", marks));
    assert_eq!(Marks::read(" later=1 whole\n"), Marks { whole: true, ..Marks::default() });
}

#[test]
fn names_that_could_be_options_are_refused() {
    for (pool, user) in [("", None), ("-p", None), ("a b", None), ("a/b", None), ("a", Some("--id"))] {
        assert!(matches!(CephBackend::open(pool, user), Err(BackendError::Id { .. })), "{pool} {user:?}");
    }
}
