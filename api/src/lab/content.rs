//! What the host inside finds: programs with their libraries, modules, files, the job.
//!
//! Must never know: how an archive is written, or what runs it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use super::archive::Archive;
use super::error::Error;
use super::job::{self, Job};
use super::modules::{self, Module, Modules};
use super::packages::{self, Packages};

/// Where programs are inside.
pub(super) const PROGRAMS: &str = "/usr/bin";
/// Directories that are links into `/usr`, as everywhere today.
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];
/// Files that programs expect of a host.
const FIXED: [(&str, &str); 5] = [
    ("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"),
    ("/etc/group", "root:x:0:\nnogroup:x:65534:\n"),
    ("/etc/hosts", "127.0.0.1 localhost\n127.0.1.1 lab\n"),
    ("/etc/hostname", "lab\n"),
    ("/etc/resolv.conf", "nameserver 10.0.2.3\n"),
];

/// Writes the ramdisk of one run.
pub(super) struct Content<W> {
    archive: Archive<W>,
    /// Paths inside that are taken.
    placed: BTreeSet<PathBuf>,
}

impl<W: Write> Content<W> {
    /// A host with nothing but its directories.
    pub(super) fn new(out: W) -> Result<Self, Error> {
        let mut content = Self { archive: Archive::new(out), placed: BTreeSet::new() };
        let archive = &mut content.archive;
        let mut skeleton = || {
            for directory in
                ["dev", "etc", "lab", "proc", "root", "run", "sys", "tmp", "var/tmp", "var/lib", "mnt"]
            {
                archive.directory(Path::new(directory))?;
            }
            for name in MERGED {
                archive.directory(&Path::new("usr").join(name))?;
                archive.symlink(Path::new(name), &format!("usr/{name}"))?;
            }
            // The first process's own standard descriptors.
            archive.character_device(Path::new("dev/console"), (5, 1))?;
            FIXED.iter().try_for_each(|(path, text)| archive.bytes(Path::new(path), 0o644, text.as_bytes()))
        };
        skeleton().map_err(Error::Line)?;
        Ok(content)
    }

    /// A program from the outer host, under its own name, with the libraries that it is linked with.
    pub(super) fn program(&mut self, path: &Path) -> Result<(), Error> {
        let name = path.file_name().unwrap_or(path.as_os_str());
        self.program_as(path, &Path::new(PROGRAMS).join(name))
    }

    /// The same under another path inside.
    pub(super) fn program_as(&mut self, path: &Path, inside: &Path) -> Result<(), Error> {
        self.file(path, inside)?;
        for library in libraries(path) {
            if !self.placed.contains(&merged(&library)) {
                self.file(&library, &library)?;
            }
        }
        Ok(())
    }

    /// Busybox with all of its names that no other program has.
    pub(super) fn busybox(&mut self, busybox: &Path) -> Result<(), Error> {
        let names = packages::said(Command::new(busybox).arg("--list"))?;
        self.program_as(busybox, &Path::new(PROGRAMS).join("busybox"))?;
        for name in names.lines() {
            self.symlink(&Path::new(PROGRAMS).join(name), "/usr/bin/busybox")?;
        }
        // Where the kernel looks for it.
        self.symlink(Path::new("/sbin/modprobe"), "/usr/bin/busybox")
    }

    /// A link, unless something has its name.
    pub(super) fn symlink(&mut self, path: &Path, target: &str) -> Result<(), Error> {
        let path = merged(path);
        if !self.placed.insert(path.clone()) {
            return Ok(());
        }
        self.archive.symlink(&path, target).map_err(Error::file("add", path))
    }

    /// A file or a directory with all that is in it.
    pub(super) fn file(&mut self, path: &Path, inside: &Path) -> Result<(), Error> {
        let inside = merged(inside);
        let metadata = fs::metadata(path).map_err(Error::file("read", path))?;
        if metadata.is_dir() {
            self.archive.directory(&inside).map_err(Error::file("add", path))?;
            let mut entries: Vec<_> = fs::read_dir(path)
                .and_then(Iterator::collect::<std::io::Result<Vec<_>>>)
                .map_err(Error::file("list", path))?;
            entries.sort_by_key(fs::DirEntry::file_name);
            for entry in entries {
                let place = inside.join(entry.file_name());
                match fs::read_link(entry.path()) {
                    Ok(target) => self.symlink(&place, &target.to_string_lossy())?,
                    Err(_) => self.file(&entry.path(), &place)?,
                }
            }
            return Ok(());
        }
        let mut file = File::open(path).map_err(Error::file("open", path))?;
        self.placed.insert(inside.clone());
        let mode = metadata.permissions().mode();
        self.archive.file(&inside, mode, metadata.len(), &mut file).map_err(Error::file("add", path))
    }

    /// The modules, with the lists that `modprobe` reads.
    pub(super) fn modules(
        &mut self,
        packages: &Packages,
        from: &Modules,
        modules: &[Module],
    ) -> Result<(), Error> {
        let directory = modules_inside(packages);
        for module in modules {
            let path = from.file(module);
            let bytes = fs::read(&path).map_err(Error::file("read", path))?;
            self.bytes(&directory.join(&module.path), modules::without_signature(&bytes))?;
        }
        for (name, text) in [
            ("modules.dep", modules::dependencies(modules)),
            ("modules.alias", modules::aliases(modules)),
            ("modules.symbols", String::new()),
        ] {
            self.bytes(&directory.join(name), text.as_bytes())?;
        }
        Ok(())
    }

    /// The job; the last thing. What the archive was written to, and its length.
    pub(super) fn finish(mut self, job: &Job) -> Result<(W, u64), Error> {
        let text = serde_json::to_vec(job).expect("invariant: a job is plain data");
        self.bytes(Path::new(job::PATH), &text)?;
        let length = self.archive.len();
        Ok((self.archive.finish().map_err(Error::Line)?, length))
    }

    fn bytes(&mut self, path: &Path, data: &[u8]) -> Result<(), Error> {
        self.archive.bytes(&merged(path), 0o644, data).map_err(Error::file("add", path))
    }
}

/// Where a kernel's modules are inside.
pub(super) fn modules_inside(packages: &Packages) -> PathBuf {
    Path::new("/usr/lib/modules").join(&packages.version)
}

/// A path with the links into `/usr` followed.
fn merged(path: &Path) -> PathBuf {
    let mut parts =
        path.components().filter(|part| !matches!(part, Component::RootDir | Component::CurDir)).peekable();
    let is_merged =
        parts.peek().and_then(|part| part.as_os_str().to_str()).is_some_and(|name| MERGED.contains(&name));
    Path::new(if is_merged { "/usr" } else { "/" }).join(parts.collect::<PathBuf>())
}

/// The libraries that the dynamic linker would load for a program; none for a static one or a script.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let listed = packages::said(Command::new("ldd").arg(program)).unwrap_or_default();
    parse_libraries(&listed)
}

/// Paths of `ldd`'s lines `NAME => PATH (ADDRESS)` and `PATH (ADDRESS)`.
fn parse_libraries(listed: &str) -> Vec<PathBuf> {
    let paths = listed.lines().filter_map(|line| {
        let line = line.trim();
        let path = line.split_once(" => ").map_or(line, |(_, path)| path);
        path.split(" (").next().filter(|path| path.starts_with('/')).map(PathBuf::from)
    });
    paths.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_the_linkers_own_list() {
        let listed = "\tlinux-vdso.so.1 (0x00007)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007)\n\t\
                      /lib64/ld-linux-x86-64.so.2 (0x00007)\n";
        let paths: Vec<_> =
            ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from).into();
        assert_eq!(parse_libraries(listed), paths);
        assert!(parse_libraries("\tnot a dynamic executable\n").is_empty());
    }

    #[test]
    fn links_into_usr_are_followed() {
        assert_eq!(merged(Path::new("/lib64/ld.so")), Path::new("/usr/lib64/ld.so"));
        assert_eq!(merged(Path::new("/root/lib")), Path::new("/root/lib"));
    }

    #[test]
    fn a_program_given_by_name_is_not_replaced_by_busybox() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("cat");
        fs::write(&program, "#!/bin/sh\n").unwrap();
        let mut content = Content::new(Vec::new()).unwrap();
        content.program(&program).unwrap();
        content.symlink(Path::new("/bin/cat"), "/usr/bin/busybox").unwrap();
        let (archive, _) = content
            .finish(&Job {
                command: vec![],
                environment: vec![],
                modules: vec![],
                bring: vec![],
                links: vec![],
            })
            .unwrap();
        let text = String::from_utf8_lossy(&archive);
        assert_eq!(text.matches("usr/bin/cat\0").count(), 1);
        assert!(!text.contains("/usr/bin/busybox"));
    }
}
