//! Disks as distributions make them, by the tools they are made with.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use storage::format::raw::RawFile;
use tempfile::TempDir;

use super::*;
use crate::testing::skipped;

pub(super) const MIB: u64 = 1 << 20;
pub(super) const UUID: &str = "8f1c1c9e-2b9e-4f9d-9d9c-0a1b2c3d4e5f";

/// The tools that a test needs, each with its Debian package; where one is missing, the test says so and is skipped.
pub(super) fn have(tools: &[(&str, &str)]) -> bool {
    let missing: Vec<_> = tools.iter().filter(|(tool, _)| find_tool(tool).is_none()).collect();
    if missing.is_empty() {
        return true;
    }
    skipped(&format!("needs {missing:?}"));
    false
}

pub(super) const EXT4: (&str, &str) = ("mkfs.ext4", "e2fsprogs");
pub(super) const XFS: (&str, &str) = ("mkfs.xfs", "xfsprogs");
pub(super) const BTRFS: (&str, &str) = ("mkfs.btrfs", "btrfs-progs");
pub(super) const FAT: (&str, &str) = ("mkfs.vfat", "dosfstools");
pub(super) const MTOOLS: (&str, &str) = ("mcopy", "mtools");
pub(super) const SFDISK: (&str, &str) = ("sfdisk", "fdisk");

fn find_tool(name: &str) -> Option<PathBuf> {
    ["/usr/sbin", "/sbin", "/usr/bin", "/bin"]
        .map(|directory| Path::new(directory).join(name))
        .into_iter()
        .find(|path| path.exists())
}

pub(super) fn run(tool: &str, arguments: &[&str]) {
    run_with(tool, arguments, "");
}

fn run_with(tool: &str, arguments: &[&str], input: &str) {
    let mut child = Command::new(find_tool(tool).unwrap())
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{tool}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A directory that becomes a filesystem, and the images next to it.
pub(super) struct Workshop {
    directory: TempDir,
}

impl Workshop {
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("tree")).unwrap();
        Self { directory }
    }

    pub(super) fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    /// Writes a file of the tree.
    pub(super) fn file(&self, path: &str, content: impl AsRef<[u8]>) -> &Self {
        let path = self.directory.path().join("tree").join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
        self
    }

    pub(super) fn link(&self, path: &str, target: &str) -> &Self {
        let path = self.directory.path().join("tree").join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(target, path).unwrap();
        self
    }

    fn blank(&self, name: &str, size: u64) -> String {
        let path = self.path(name);
        File::create(&path).unwrap().set_len(size).unwrap();
        path
    }

    /// Makes the tree an ext4 filesystem in the file `name`.
    pub(super) fn ext4(&self, name: &str, size: u64, options: &[&str]) -> String {
        let (image, tree) = (self.blank(name, size), self.path("tree"));
        let mut arguments = vec!["-q", "-F", "-U", UUID, "-L", "system", "-d", &tree];
        arguments.extend(options);
        arguments.push(&image);
        run("mkfs.ext4", &arguments);
        image
    }

    /// Makes the tree an XFS filesystem, by a prototype file.
    pub(super) fn xfs(&self, name: &str, size: u64, options: &[&str]) -> String {
        let image = self.blank(name, size);
        let prototype = self.path("prototype");
        let mut text = String::from("/\n0 0\nd--755 0 0\n");
        prototype_of(Path::new(&self.path("tree")), &mut text);
        text.push_str("$\n");
        std::fs::write(&prototype, text).unwrap();
        let uuid = format!("uuid={UUID}");
        let mut arguments = vec!["-q", "-L", "system", "-m", &uuid, "-p", &prototype];
        arguments.extend(options);
        arguments.push(&image);
        run("mkfs.xfs", &arguments);
        image
    }

    pub(super) fn btrfs(&self, name: &str, size: u64, uuid: &str) -> String {
        let (image, tree) = (self.blank(name, size), self.path("tree"));
        run("mkfs.btrfs", &["-q", "-U", uuid, "-L", "system", "--rootdir", &tree, &image]);
        image
    }

    pub(super) fn fat(&self, name: &str, size: u64, width: &str) -> String {
        let (image, tree) = (self.blank(name, size), self.path("tree"));
        run("mkfs.vfat", &["-F", width, "-i", "1234abcd", "-n", "SYSTEM", &image]);
        for entry in std::fs::read_dir(tree).unwrap() {
            run("mcopy", &["-s", "-i", &image, entry.unwrap().path().to_str().unwrap(), "::"]);
        }
        image
    }

    /// Makes a disk of `table` (sfdisk's script) with filesystems put at their first bytes.
    pub(super) fn disk(&self, size: u64, table: &str, filesystems: &[(u64, &str)]) -> String {
        let image = self.blank("disk", size);
        run_with("sfdisk", &["--quiet", "--no-reread", "--no-tell-kernel", &image], table);
        let mut disk = File::options().write(true).open(&image).unwrap();
        for (start, filesystem) in filesystems {
            disk.seek(SeekFrom::Start(*start)).unwrap();
            std::io::copy(&mut File::open(filesystem).unwrap(), &mut disk).unwrap();
        }
        image
    }
}

fn prototype_of(directory: &Path, text: &mut String) {
    use std::fmt::Write as _;
    for entry in std::fs::read_dir(directory).unwrap() {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name())).unwrap();
        let name = name.to_str().unwrap();
        let kind = path.symlink_metadata().unwrap().file_type();
        if kind.is_dir() {
            writeln!(text, "{name} d--755 0 0").unwrap();
            prototype_of(&path, text);
            writeln!(text, "$").unwrap();
        } else if kind.is_symlink() {
            let target = std::fs::read_link(&path).unwrap();
            writeln!(text, "{name} l--777 0 0 {}", target.display()).unwrap();
        } else {
            writeln!(text, "{name} ---644 0 0 {}", path.display()).unwrap();
        }
    }
}

/// A filesystem that the host's kernel has mounted, for what the tools cannot make; it goes with this.
pub(super) struct Mount(PathBuf);

impl Mount {
    /// Mounts an image, where root may do so and the kernel has the filesystem; else says why not. Mounting is not
    /// what a test is about, so that it may be missing anywhere.
    pub(super) fn new(image: &str, options: &str, workshop: &Workshop) -> Option<Self> {
        let place = PathBuf::from(workshop.path("mounted"));
        std::fs::create_dir_all(&place).unwrap();
        let output = Command::new("mount").args(["-o", options, image]).arg(&place).output().ok()?;
        if output.status.success() {
            return Some(Self(place));
        }
        skipped(&format!("needs to mount: {}", String::from_utf8_lossy(&output.stderr)));
        None
    }

    pub(super) fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // A test that failed has said why already.
        let _ = Command::new("umount").arg(&self.0).output();
    }
}

/// What the disk in a file boots.
pub(super) fn plan(image: &str) -> Result<Plan, Error> {
    find(Arc::new(RawFile::whole(File::open(image).unwrap(), true).unwrap()))
}

pub(super) fn bytes(image: &dyn Image) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(image.size_bytes().unwrap()).unwrap()];
    image.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// Bytes that tell their place.
pub(super) fn pattern(length: usize, seed: u32) -> Vec<u8> {
    (0..u32::try_from(length).unwrap())
        .map(|index| (index.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13).to_le_bytes()[0])
        .collect()
}

/// An error as people read it.
pub(super) fn sentence(image: &str) -> String {
    match plan(image) {
        Ok(plan) => panic!("it boots {}", plan.description),
        Err(error) => chain(&error),
    }
}
