//! A tree written as an ext4 file system, with e2fsprogs and without mounting anything.
//!
//! Every entry is written in the tree's order with times and identifiers that are given, so that the same tree gives
//! the same bytes; `mkfs.ext4 -d` takes order and times from the directory it copies.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::Path;

use uuid::Uuid;

use super::super::cache;
use super::super::tools::{self, Need};
use super::tree::{Content, Entry, Tree};

/// What writing needs.
pub const NEEDS: [Need; 3] = [
    Need::Program("mke2fs", "e2fsprogs"),
    Need::Program("debugfs", "e2fsprogs"),
    Need::Program("e2fsck", "e2fsprogs"),
];

/// What every reader of the last ten years knows; named, so that a host's own defaults do not matter.
const FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,\
    sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum";
const BLOCK_BYTES: u64 = 4096;
/// One inode for so many bytes, as for any root file system.
const BYTES_PER_INODE: u64 = 16384;
const MIB: u64 = 1 << 20;

/// Why a file system could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file.
    #[error(transparent)]
    Cache(#[from] cache::Error),
    /// e2fsprogs failed.
    #[error(transparent)]
    Tool(#[from] tools::Error),
    /// debugfs complained.
    #[error("write the file system: {0}")]
    Refused(String),
    /// It is too small.
    #[error("{size_mib} MiB are too little for this file system; it needs {needed_mib} MiB")]
    TooSmall {
        /// What was asked for.
        size_mib: u64,
        /// What it takes.
        needed_mib: u64,
    },
}

/// What a file system is like.
#[derive(Debug, Clone)]
pub struct Format<'a> {
    /// Its label, 16 bytes at most.
    pub label: &'a str,
    /// Its identifier.
    pub uuid: Uuid,
    /// Its size in MiB; absent: what the tree needs, and a third of that to work in.
    pub size_mib: Option<u64>,
    /// Seconds since the Unix epoch of all that is made with it.
    pub time_seconds: u64,
}

/// Writes `tree` as the file system `image`; `work` is a directory for what is needed on the way.
///
/// # Errors
/// It does not fit, or a tool fails.
pub fn write(tree: &Tree, format: &Format<'_>, image: &Path, work: &Path) -> Result<(), Error> {
    let needed_mib = needed_mib(tree)?;
    let size_mib = format.size_mib.unwrap_or(needed_mib + needed_mib / 3);
    if size_mib < needed_mib {
        return Err(Error::TooSmall { size_mib, needed_mib });
    }
    let file = File::create(image).map_err(cache::Error::io("make", image))?;
    file.set_len(size_mib * MIB).map_err(cache::Error::io("resize", image))?;
    drop(file);
    let time = format.time_seconds.to_string();
    let uuid = format.uuid.to_string();
    let mut mke2fs = tools::command("mke2fs");
    mke2fs.env("E2FSPROGS_FAKE_TIME", &time).env("SOURCE_DATE_EPOCH", &time);
    mke2fs.args(["-q", "-F", "-T", "default", "-O", FEATURES, "-I", "256", "-m", "0", "-L", format.label]);
    mke2fs.args(["-U", &uuid, "-b", &BLOCK_BYTES.to_string(), "-i", &BYTES_PER_INODE.to_string()]);
    mke2fs.args(["-J", &format!("size={}", journal_mib(size_mib))]);
    // The tables of a new file are zero already: nothing is left for the guest's kernel to zero.
    mke2fs.args(["-E", &format!("hash_seed={uuid},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0")]);
    tools::output(mke2fs.arg(image))?;

    let script = work.join("debugfs.script");
    let commands = script_of(tree, work)?;
    fs::write(&script, commands).map_err(cache::Error::io("write", &script))?;
    let mut debugfs = tools::command("debugfs");
    debugfs.env("E2FSPROGS_FAKE_TIME", &time).env("SOURCE_DATE_EPOCH", &time).env("DEBUGFS_PAGER", "cat");
    complaints(debugfs.arg("-w").arg("-f").arg(&script).arg(image))?;
    forget_writes(image, &time)?;
    let mut check = tools::command("e2fsck");
    tools::output(check.env("E2FSPROGS_FAKE_TIME", &time).args(["-f", "-n"]).arg(image))?;
    Ok(())
}

/// Sets the count of what was ever written to the file system to what one session's end writes: it tells how e2fsprogs went
/// about its work, which depends on how the files that it read lie on the disk.
fn forget_writes(image: &Path, time: &str) -> Result<(), Error> {
    let mut debugfs = tools::command("debugfs");
    debugfs.env("E2FSPROGS_FAKE_TIME", time).env("DEBUGFS_PAGER", "cat");
    complaints(debugfs.args(["-w", "-R", "set_super_value kbytes_written 0"]).arg(image))
}

/// The journal's size: the least there can be up to 128 MiB, then a share of the disk up to 64 MiB.
fn journal_mib(size_mib: u64) -> u64 {
    (size_mib / 32).clamp(4, 64)
}

/// What the entries need with tables and journal.
///
/// # Errors
/// A file of the tree cannot be looked at.
pub fn needed_mib(tree: &Tree) -> Result<u64, Error> {
    let mut bytes = 0;
    for (_, entry) in tree.entries() {
        let length = match &entry.content {
            Content::File(path) => fs::metadata(path).map_err(cache::Error::io("look at", path))?.len(),
            Content::Bytes(content) => content.len() as u64,
            Content::Directory => BLOCK_BYTES,
            Content::Link(_) | Content::Character { .. } => 0,
        };
        // An inode and its share of the tables is counted as a block of its own.
        bytes += length.next_multiple_of(BLOCK_BYTES) + 512;
    }
    let inodes_mib = tree.entries().count() as u64 * BYTES_PER_INODE / MIB;
    let content_mib = bytes.div_ceil(MIB).max(inodes_mib * 3 / 4);
    Ok(content_mib + content_mib / 20 + 4 + journal_mib(content_mib))
}

/// debugfs ends successfully whatever happened: what it writes to standard error decides.
fn complaints(command: &mut std::process::Command) -> Result<(), Error> {
    let start = |source| tools::Error::Start { program: "debugfs".to_owned(), source };
    let output = command.output().map_err(start)?;
    let said = String::from_utf8_lossy(&output.stderr);
    // Its first line is its version.
    let complaint = said.lines().skip(1).take(10).collect::<Vec<_>>().join("\n");
    if output.status.success() && complaint.is_empty() { Ok(()) } else { Err(Error::Refused(complaint)) }
}

/// The commands that make all entries.
fn script_of(tree: &Tree, work: &Path) -> Result<String, Error> {
    let mut script = String::new();
    let contents = work.join("contents");
    fs::create_dir_all(&contents).map_err(cache::Error::io("make the directory", &contents))?;
    let mut directory = "";
    for (number, (path, entry)) in tree.entries().enumerate() {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        if parent != directory {
            line(&mut script, format_args!("cd \"/{parent}\""));
            directory = parent;
        }
        let stored = contents.join(number.to_string());
        match &entry.content {
            // mke2fs makes this one.
            Content::Directory if path == "lost+found" => {}
            Content::Directory => line(&mut script, format_args!("mkdir \"{name}\"")),
            Content::Link(target) => line(&mut script, format_args!("symlink \"{name}\" \"{target}\"")),
            Content::Character { major, minor } => {
                line(&mut script, format_args!("mknod \"{name}\" c {major} {minor}"));
            }
            Content::File(source) => {
                line(&mut script, format_args!("write \"{}\" \"{name}\"", source.display()));
            }
            Content::Bytes(bytes) => {
                fs::write(&stored, bytes).map_err(cache::Error::io("write", &stored))?;
                line(&mut script, format_args!("write \"{}\" \"{name}\"", stored.display()));
            }
        }
        inode(&mut script, name, entry);
        for (attribute, value) in &entry.attributes {
            let file = contents.join(format!("{number}.{attribute}"));
            fs::write(&file, value).map_err(cache::Error::io("write", &file))?;
            line(&mut script, format_args!("ea_set -f \"{}\" \"{name}\" {attribute}", file.display()));
        }
    }
    Ok(script)
}

/// Owner, mode and time of the entry `name` of the current directory.
fn inode(script: &mut String, name: &str, entry: &Entry) {
    /// The type bits of `st_mode`.
    const DIRECTORY: u32 = 0o040_000;
    const CHARACTER: u32 = 0o020_000;
    const REGULAR: u32 = 0o100_000;
    let mut set = |field: &str, value: String| {
        line(script, format_args!("set_inode_field \"{name}\" {field} {value}"));
    };
    let kind = match entry.content {
        Content::Directory => Some(DIRECTORY),
        Content::File(_) | Content::Bytes(_) => Some(REGULAR),
        Content::Character { .. } => Some(CHARACTER),
        Content::Link(_) => None,
    };
    if let Some(kind) = kind {
        set("mode", format!("0{:o}", kind | entry.mode));
    }
    if entry.uid != 0 {
        set("uid", entry.uid.to_string());
    }
    if entry.gid != 0 {
        set("gid", entry.gid.to_string());
    }
    if let Some(time) = entry.mtime_seconds {
        set("mtime", format!("@{time}"));
    }
}

fn line(script: &mut String, command: std::fmt::Arguments<'_>) {
    writeln!(script, "{command}").expect("invariant: writing to a string never fails");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installed() -> bool {
        let there = tools::require("the test", &NEEDS).is_ok();
        assert!(there || std::env::var_os("WISP_REQUIRE_ALL").is_none(), "e2fsprogs is not installed");
        if !there {
            println!("skipped: e2fsprogs is not installed");
        }
        there
    }

    fn tree() -> Tree {
        let mut tree = Tree::default();
        tree.text("etc/a file", 0o640, "content\n");
        tree.link("bin", "usr/bin");
        tree.link("long", &"x".repeat(200));
        tree.text("bin/tool", 0o4755, &"y".repeat(100_000));
        let mut owned = Entry::new(Content::Bytes(b"z".to_vec()), 0o600);
        (owned.uid, owned.gid, owned.mtime_seconds) = (7, 70_000, Some(1_000_000_000));
        owned.attributes.insert("security.capability".to_owned(), vec![1, 0, 0, 2]);
        tree.put("var/x", owned);
        tree.put("dev/console", Entry::new(Content::Character { major: 5, minor: 1 }, 0o600));
        tree
    }

    fn format() -> Format<'static> {
        Format { label: "root", uuid: Uuid::from_u128(5), size_mib: None, time_seconds: 1_700_000_000 }
    }

    #[test]
    fn the_same_tree_gives_the_same_bytes_and_a_sound_file_system() {
        if !installed() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let image = |name: &str| {
            let work = directory.path().join(format!("work-{name}"));
            fs::create_dir(&work).unwrap();
            let image = directory.path().join(name);
            write(&tree(), &format(), &image, &work).unwrap();
            image
        };
        let (first, second) = (image("1"), image("2"));
        assert!(fs::read(&first).unwrap() == fs::read(&second).unwrap());
        let show = |command: &str| {
            tools::output(tools::command("debugfs").args(["-R", command]).arg(&first)).unwrap()
        };
        assert_eq!(show("cat \"/etc/a file\""), "content\n");
        let stat = show("stat /var/x");
        for word in ["User:     7", "Group: 70000", "Mode:  0600", "security.capability", "0x3b9aca00"] {
            assert!(stat.contains(word), "{word}: {stat}");
        }
        assert!(show("stat /usr/bin/tool").contains("Mode:  04755"));
        assert!(show("stat /dev/console").contains("Device major/minor number: 05:01"));
        assert!(show("stat /long").contains("Size: 200"));
    }

    #[test]
    fn a_size_that_cannot_hold_the_tree_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let format = Format { size_mib: Some(2), ..format() };
        let error = write(&tree(), &format, &directory.path().join("x"), directory.path()).unwrap_err();
        assert!(matches!(error, Error::TooSmall { size_mib: 2, .. }), "{error}");
    }
}
