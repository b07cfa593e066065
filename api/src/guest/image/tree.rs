//! A root file system as a list: every path with what is there, who owns it and since when.
//!
//! Nothing of it lies on a disk with its real owner, so building needs no rights.
//!
//! Must never know: how file systems are written.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::super::cache;

/// Entries of one tree: several times a distribution with a desktop; an archive with more is refused.
const ENTRIES_MAX: usize = 1 << 20;
/// Links followed when a path is looked up: what Linux follows.
const LINKS_MAX: usize = 40;

/// Why a tree cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file.
    #[error(transparent)]
    Cache(#[from] cache::Error),
    /// An archive.
    #[error("read the archive {}", path.display())]
    Archive {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A path that no file system image should have.
    #[error("the path {0:?} is not plain: absolute, or with '..', a quote, a line break, or not UTF-8")]
    Path(String),
    /// Too many entries.
    #[error("the tree has more than {ENTRIES_MAX} entries")]
    Entries,
    /// Something that has to be there.
    #[error("the tree has no {0}")]
    Missing(String),
}

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A directory.
    Directory,
    /// A file with the content of another one on this machine.
    File(PathBuf),
    /// A file with this content.
    Bytes(Vec<u8>),
    /// A symbolic link.
    Link(String),
    /// A character device.
    Character {
        /// Its major number.
        major: u32,
        /// Its minor number.
        minor: u32,
    },
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What is there.
    pub content: Content,
    /// Permission bits, 07777 at most.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// When it was changed, in seconds since the Unix epoch; absent: with the image.
    pub mtime_seconds: Option<u64>,
    /// Extended attributes, for example `security.capability`.
    pub attributes: BTreeMap<String, Vec<u8>>,
}

impl Entry {
    /// Something of root's.
    #[must_use]
    pub fn new(content: Content, mode: u32) -> Self {
        Self { content, mode, uid: 0, gid: 0, mtime_seconds: None, attributes: BTreeMap::new() }
    }
}

/// The entries by path: relative, without `.` and `..`. A directory comes before what is in it.
#[derive(Debug, Default)]
pub struct Tree {
    entries: BTreeMap<String, Entry>,
}

impl Tree {
    /// All entries in order.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(path, entry)| (path.as_str(), entry))
    }

    /// What is at `path` itself.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<&Entry> {
        self.entries.get(path)
    }

    /// Puts `entry` at `path`, with the directories above it, following links of the tree among them.
    pub fn put(&mut self, path: &str, entry: Entry) {
        let path = match path.rsplit_once('/') {
            Some((parent, name)) => format!("{}/{name}", self.resolve(parent)),
            None => path.to_owned(),
        };
        let mut above = String::new();
        for part in path.split('/').rev().skip(1).collect::<Vec<_>>().into_iter().rev() {
            above.push_str(part);
            let directory = || Entry::new(Content::Directory, 0o755);
            self.entries.entry(above.clone()).or_insert_with(directory);
            above.push('/');
        }
        self.entries.insert(path, entry);
    }

    /// Puts a directory.
    pub fn directory(&mut self, path: &str, mode: u32) {
        self.put(path, Entry::new(Content::Directory, mode));
    }

    /// Puts a file with `text`.
    pub fn text(&mut self, path: &str, mode: u32, text: &str) {
        self.put(path, Entry::new(Content::Bytes(text.as_bytes().to_vec()), mode));
    }

    /// Puts a symbolic link to `target`.
    pub fn link(&mut self, path: &str, target: &str) {
        self.put(path, Entry::new(Content::Link(target.to_owned()), 0o777));
    }

    /// Puts the content of `file` on this machine.
    pub fn file(&mut self, path: &str, mode: u32, file: &Path) {
        self.put(path, Entry::new(Content::File(file.to_owned()), mode));
    }

    /// Removes `path` and all below it.
    pub fn remove(&mut self, path: &str) {
        let below = format!("{path}/");
        self.entries.retain(|entry, _| entry != path && !entry.starts_with(&below));
    }

    /// Takes all below the directory `path` out into a tree of its own; the directory stays.
    #[must_use]
    pub fn split_off(&mut self, path: &str) -> Self {
        let below = format!("{path}/");
        let mut taken = Self::default();
        self.entries.retain(|entry, content| match entry.strip_prefix(&below) {
            Some(rest) => {
                taken.entries.insert(rest.to_owned(), content.clone());
                false
            }
            None => true,
        });
        taken
    }

    /// Where `path` leads when links of the tree are followed; a loop leads nowhere new.
    fn resolve(&self, path: &str) -> String {
        let mut path = path.to_owned();
        for _ in 0..LINKS_MAX {
            let prefixes = path.match_indices('/').map(|(at, _)| at).chain([path.len()]).collect::<Vec<_>>();
            let link = prefixes.into_iter().find_map(|at| match &self.entries.get(&path[..at])?.content {
                Content::Link(target) => Some((at, target.clone())),
                _ => None,
            });
            let Some((at, target)) = link else { return path };
            let (start, rest) = (&path[..at], &path[at..]);
            let base = match target.strip_prefix('/') {
                Some(absolute) => absolute.to_owned(),
                None => {
                    start.rsplit_once('/').map_or(target.clone(), |(above, _)| format!("{above}/{target}"))
                }
            };
            path = normalized(&format!("{base}{rest}"));
        }
        path
    }

    /// Reads a tar archive; contents of files are put below `store`, which must be empty.
    ///
    /// # Errors
    /// The archive is broken or strange.
    pub fn from_tar(archive: &Path, store: &Path) -> Result<Self, Error> {
        let broken = |source| Error::Archive { path: archive.to_owned(), source };
        let file = File::open(archive).map_err(cache::Error::io("open", archive))?;
        let mut reader = tar::Archive::new(io::BufReader::new(file));
        let mut tree = Self::default();
        for (number, entry) in reader.entries().map_err(broken)?.enumerate() {
            if number > ENTRIES_MAX {
                return Err(Error::Entries);
            }
            tree.take(entry.map_err(broken)?, &store.join(number.to_string()), broken)?;
        }
        Ok(tree)
    }

    fn take(
        &mut self,
        mut member: tar::Entry<'_, impl Read>,
        stored: &Path,
        broken: impl Fn(io::Error) -> Error,
    ) -> Result<(), Error> {
        let plain = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes).into_owned();
            let path = text.trim_start_matches("./").trim_matches('/').to_owned();
            let strange = path.split('/').any(|part| part == "..") || !printable(&text);
            if strange { Err(Error::Path(text)) } else { Ok(path) }
        };
        let path = plain(&member.path_bytes())?;
        if path.is_empty() || path == "." {
            return Ok(());
        }
        let kind = member.header().entry_type();
        let link = member.link_name_bytes().map(|name| name.into_owned()).unwrap_or_default();
        let content = match kind {
            tar::EntryType::Directory => Content::Directory,
            tar::EntryType::Regular | tar::EntryType::Continuous => {
                let mut file = File::create(stored).map_err(cache::Error::io("make", stored))?;
                io::copy(&mut member, &mut file).map_err(&broken)?;
                Content::File(stored.to_owned())
            }
            tar::EntryType::Symlink => {
                let target = String::from_utf8_lossy(&link).into_owned();
                if !printable(&target) {
                    return Err(Error::Path(target));
                }
                Content::Link(target)
            }
            // A second name becomes a second file with the same content.
            tar::EntryType::Link => {
                let target = plain(&link)?;
                let entry = self.entries.get(&target).cloned().ok_or(Error::Missing(target))?;
                self.entries.insert(path, entry);
                return Ok(());
            }
            tar::EntryType::Char => Content::Character {
                major: member.header().device_major().map_err(&broken)?.unwrap_or(0),
                minor: member.header().device_minor().map_err(&broken)?.unwrap_or(0),
            },
            // Block devices, pipes: made anew at every boot.
            _ => return Ok(()),
        };
        let header = member.header();
        let number = |value: u64| u32::try_from(value).map_err(|_| Error::Path(path.clone()));
        let mut entry = Entry::new(content, header.mode().map_err(&broken)? & 0o7777);
        entry.uid = number(header.uid().map_err(&broken)?)?;
        entry.gid = number(header.gid().map_err(&broken)?)?;
        entry.mtime_seconds = Some(header.mtime().map_err(&broken)?);
        entry.attributes = attributes(&mut member).map_err(&broken)?;
        self.entries.insert(path, entry);
        Ok(())
    }

    /// The content of a file of the tree.
    ///
    /// # Errors
    /// It is not there, not a file, or not text.
    pub fn read(&self, path: &str) -> Result<String, Error> {
        match self.entries.get(&self.resolve(path)).map(|entry| &entry.content) {
            Some(Content::Bytes(bytes)) => Ok(String::from_utf8_lossy(bytes).into_owned()),
            Some(Content::File(file)) => {
                Ok(fs::read_to_string(file).map_err(cache::Error::io("read", file))?)
            }
            _ => Err(Error::Missing(path.to_owned())),
        }
    }
}

/// Extended attributes as GNU tar and bsdtar write them.
fn attributes(member: &mut tar::Entry<'_, impl Read>) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let mut attributes = BTreeMap::new();
    if let Some(extensions) = member.pax_extensions()? {
        for extension in extensions {
            let extension = extension?;
            let key = extension.key().ok().and_then(|key| key.strip_prefix("SCHILY.xattr."));
            if let Some(name) = key.filter(|name| printable(name)) {
                attributes.insert(name.to_owned(), extension.value_bytes().to_vec());
            }
        }
    }
    Ok(attributes)
}

/// Whether a name can stand in quotes in a script of lines.
fn printable(name: &str) -> bool {
    !name.chars().any(|letter| letter.is_control() || matches!(letter, '"' | char::REPLACEMENT_CHARACTER))
}

/// Without empty parts, `.` and `..`.
fn normalized(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_lands_where_the_links_above_it_lead() {
        let mut tree = Tree::default();
        tree.directory("usr/lib", 0o755);
        tree.link("lib", "usr/lib");
        tree.link("usr/lib64", "../lib/./x");
        tree.text("lib64/a", 0o644, "1");
        tree.text("lib/b", 0o600, "2");
        tree.text("usr/lib64/c", 0o644, "3");
        let paths: Vec<_> = tree.entries().map(|(path, _)| path).collect();
        let wanted = [
            "lib",
            "lib64",
            "lib64/a",
            "usr",
            "usr/lib",
            "usr/lib/b",
            "usr/lib/x",
            "usr/lib/x/c",
            "usr/lib64",
        ];
        assert_eq!(paths, wanted);
        assert_eq!(tree.read("lib/b").unwrap(), "2");
        tree.remove("usr/lib");
        assert!(tree.get("usr/lib/b").is_none() && tree.get("usr/lib64").is_some());
    }

    #[test]
    fn a_loop_of_links_ends() {
        let mut tree = Tree::default();
        tree.link("a", "b");
        tree.link("b", "a");
        assert!(tree.read("a/x").is_err());
    }

    fn archive(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> (tempfile::TempDir, Result<Tree, Error>) {
        let directory = tempfile::tempdir().unwrap();
        let mut builder = tar::Builder::new(Vec::new());
        build(&mut builder);
        let path = directory.path().join("tar");
        fs::write(&path, builder.into_inner().unwrap()).unwrap();
        let store = directory.path().join("store");
        fs::create_dir(&store).unwrap();
        let tree = Tree::from_tar(&path, &store);
        (directory, tree)
    }

    #[test]
    fn archive_keeps_owners_modes_times_and_attributes() {
        let (_directory, tree) = archive(|tar| {
            let mut header = tar::Header::new_gnu();
            header.set_size(2);
            header.set_mode(0o4755);
            header.set_uid(7);
            header.set_gid(8);
            header.set_mtime(9);
            tar.append_pax_extensions([("SCHILY.xattr.security.capability", &b"\x01\x00"[..])]).unwrap();
            tar.append_data(&mut header, "./bin/x y", &b"ab"[..]).unwrap();
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Link);
            header.set_size(0);
            tar.append_link(&mut header, "bin/z", "./bin/x y").unwrap();
        });
        let tree = tree.unwrap();
        let entry = tree.get("bin/x y").unwrap();
        assert_eq!((entry.mode, entry.uid, entry.gid, entry.mtime_seconds), (0o4755, 7, 8, Some(9)));
        assert_eq!(entry.attributes["security.capability"], [1, 0]);
        assert_eq!(tree.get("bin/z"), Some(entry));
        assert_eq!(tree.read("bin/z").unwrap(), "ab");
    }

    #[test]
    fn hostile_archive_is_refused() {
        let name = |path: &'static str| {
            archive(move |tar| {
                let mut header = tar::Header::new_gnu();
                header.set_size(0);
                header.set_mode(0o644);
                header.set_uid(0);
                header.set_gid(0);
                header.set_mtime(0);
                let name = &mut header.as_gnu_mut().unwrap().name;
                name[..path.len()].copy_from_slice(path.as_bytes());
                header.set_cksum();
                tar.append(&header, &b""[..]).unwrap();
            })
            .1
        };
        for path in ["../x", "a/../../x", "a\nrm b", "a\"b"] {
            assert!(matches!(name(path), Err(Error::Path(_))), "{path}");
        }
        assert!(name("a/b").is_ok());
    }
}
