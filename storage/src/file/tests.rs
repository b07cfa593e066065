use super::*;
use crate::backend::conformance::conforms;
use crate::format::Disk as _;

#[test]
fn file_backend_conforms_where_the_tests_run() {
    let directory = tempfile::tempdir().unwrap();
    conforms(&FileBackend::open(directory.path()).unwrap());
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn file_backend_conforms_without_shared_blocks() {
    let directory = tempfile::tempdir().unwrap();
    conforms(&FileBackend::open_without_sharing(directory.path()).unwrap());
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

/// A filesystem of its own in a file, mounted for one test.
struct Mounted {
    directory: tempfile::TempDir,
}

impl Mounted {
    /// None where the machine cannot; it says why.
    fn new(filesystem: &str) -> Option<Self> {
        use std::process::{Command, Stdio};
        let directory = tempfile::tempdir().unwrap();
        let (image, at) = (directory.path().join("image"), directory.path().join("at"));
        File::create(&image).unwrap().set_len(512 << 20).unwrap();
        fs::create_dir(&at).unwrap();
        let ran = |command: &mut Command| {
            let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
            status.is_ok_and(|status| status.success())
        };
        let made = ran(Command::new(format!("mkfs.{filesystem}")).arg("-q").arg(&image))
            && ran(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at));
        if !made {
            println!("skipped: a {filesystem} in a loop device needs root and mkfs.{filesystem}");
        }
        made.then_some(Self { directory })
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("at")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // What is still mounted would keep the directory; the test has failed then already.
        let _ = std::process::Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

fn conforms_on(filesystem: &str) {
    let Some(mounted) = Mounted::new(filesystem) else { return };
    let backend = FileBackend::open(&mounted.path().join("volumes")).unwrap();
    assert!(backend.capabilities().copies_in_use, "{filesystem} shares blocks");
    conforms(&backend);
    backend.create("v", 1 << 20, Source::Nothing).unwrap();
    let guest = backend.export("v", false).unwrap().open(false).unwrap();
    guest.write_at(&[1; 512], 0).unwrap();
    backend.snapshot("s", "v", true).unwrap();
    guest.write_at(&[2; 512], 0).unwrap();
    assert_eq!(backend.export("v", true).unwrap().layers.len(), 1, "no overlay is needed");
    full_disk_is_an_error_and_leaves_the_old(&mounted.path(), &backend);
}

fn full_disk_is_an_error_and_leaves_the_old(mount: &Path, backend: &FileBackend) {
    let hog = File::create(mount.join("hog")).unwrap();
    let piece = vec![7; 1 << 20];
    let mut at = 0;
    while std::os::unix::fs::FileExt::write_all_at(&hog, &piece, at).is_ok() {
        at += 1 << 20;
    }
    let _ = hog.sync_all();
    let guest = backend.export("v", false).unwrap().open(false).unwrap();
    let mut refused = false;
    for piece_number in 0..64 {
        refused |=
            guest.write_at(&vec![3; 16 << 10], piece_number << 14).and_then(|()| guest.flush()).is_err();
    }
    let mut byte = [0];
    backend.export("s", true).unwrap().open(true).unwrap().read_at(&mut byte, 0).unwrap();
    assert_eq!(byte, [1], "the snapshot is what it was (a write was refused: {refused})");
    fs::remove_file(mount.join("hog")).unwrap();
    backend.delete("v").unwrap();
    backend.delete("s").unwrap();
}

#[test]
fn file_backend_conforms_on_xfs() {
    conforms_on("xfs");
}

#[test]
fn file_backend_conforms_on_btrfs() {
    conforms_on("btrfs");
}

#[test]
fn what_a_crash_left_half_done_is_cleared() {
    let directory = tempfile::tempdir().unwrap();
    for name in [".a.new", ".b.gone"] {
        fs::create_dir(directory.path().join(name)).unwrap();
        fs::write(directory.path().join(name).join("0.raw"), "half").unwrap();
    }
    let backend = FileBackend::open(directory.path()).unwrap();
    assert_eq!(backend.list().unwrap(), Vec::<String>::new());
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    fs::create_dir(directory.path().join(".a.new")).unwrap();
    backend.create("a", 4096, Source::Nothing).unwrap();
    assert_eq!(backend.size_bytes("a").unwrap(), Some(4096));
}

#[test]
fn disk_cut_off_while_it_was_replaced_is_what_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let backend = FileBackend::open(directory.path()).unwrap();
    backend.create("v", 4096, Source::Nothing).unwrap();
    backend.create("w", 4096, Source::Nothing).unwrap();
    fs::rename(directory.path().join("v"), directory.path().join(".v.old")).unwrap();
    fs::create_dir(directory.path().join(".w.old")).unwrap();
    let backend = FileBackend::open(directory.path()).unwrap();
    assert_eq!(backend.list().unwrap(), ["v", "w"]);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
}

#[test]
fn snapshot_cut_off_after_the_source_was_frozen_is_made_by_the_next_call() {
    let directory = tempfile::tempdir().unwrap();
    let backend = FileBackend::open_without_sharing(directory.path()).unwrap();
    backend.create("v", 4096, Source::Nothing).unwrap();
    backend.snapshot("s", "v", false).unwrap();
    // As if the name had never been given.
    fs::rename(directory.path().join("s"), directory.path().join(".s.new")).unwrap();
    backend.snapshot("s", "v", false).unwrap();
    assert_eq!(backend.export("s", true).unwrap().layers.len(), 2);
    assert_eq!(backend.export("v", true).unwrap().open(true).unwrap().size_bytes(), 4096);
}

#[test]
fn disk_in_use_is_copied_only_where_blocks_are_shared() {
    let directory = tempfile::tempdir().unwrap();
    let backend = FileBackend::open_without_sharing(directory.path()).unwrap();
    backend.create("v", 4096, Source::Nothing).unwrap();
    assert!(!backend.capabilities().copies_in_use);
    let refused = backend.snapshot("s", "v", true);
    assert!(matches!(refused, Err(BackendError::InUse { .. })), "{refused:?}");
    assert_eq!(backend.list().unwrap(), ["v"]);
    assert_eq!(backend.export("v", false).unwrap().layers.len(), 1, "the source is as it was");
}

#[test]
fn overlay_in_use_grows_and_shows_what_was_written_meanwhile() {
    let directory = tempfile::tempdir().unwrap();
    let backend = FileBackend::open_without_sharing(directory.path()).unwrap();
    backend.create("v", 4096, Source::Nothing).unwrap();
    backend.create("c", 4096, Source::Disk { id: "v", in_use: false }).unwrap();
    let guest = backend.export("c", false).unwrap().open(false).unwrap();
    backend.extend("c", 8192).unwrap();
    guest.write_at(&[5; 512], 0).unwrap();
    guest.flush().unwrap();
    let disk = backend.export("c", true).unwrap().open(true).unwrap();
    let mut byte = [0];
    disk.read_at(&mut byte, 0).unwrap();
    assert_eq!((disk.size_bytes(), byte), (8192, [5]));
}
