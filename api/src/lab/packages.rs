//! What the lab is made of: QEMU, Debian's cloud kernel with its modules, busybox. Installed ones are used as they
//! are; a kernel or busybox that is not installed is downloaded by apt and unpacked into a cache.
//!
//! Must never know: what the lab does with them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::error::Error;

const QEMU: &str = "qemu-system-x86_64";
/// The package whose only dependency is the newest kernel for virtual machines.
const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";
const KERNEL_END: &str = "-cloud-amd64";

/// Where everything is.
#[derive(Debug)]
pub(super) struct Packages {
    /// The emulator.
    pub(super) qemu: PathBuf,
    /// The kernel's image.
    pub(super) kernel: PathBuf,
    /// The directory of its modules.
    pub(super) modules: PathBuf,
    /// Its version.
    pub(super) version: String,
    /// A busybox; linked statically or not.
    pub(super) busybox: PathBuf,
}

impl Packages {
    /// Finds what is there and downloads the rest below `cache`; `progress` hears of a download.
    pub(super) fn find(cache: &Path, progress: &dyn Fn(&str)) -> Result<Self, Error> {
        let qemu = in_path(QEMU).ok_or(Error::Missing {
            what: "QEMU",
            advice: "apt-get install --no-install-recommends qemu-system-x86",
        })?;
        let busybox = in_path("busybox");
        if let (Some(busybox), Some(kernel)) = (&busybox, newest_kernel(Path::new("/"))) {
            return Ok(Self::of(qemu, busybox.clone(), Path::new("/"), kernel));
        }
        let (root, version) = match unpacked(cache) {
            Some(found) => found,
            None => download(cache, progress)?,
        };
        Ok(Self::of(qemu, root.join("bin/busybox"), &root, version))
    }

    fn of(qemu: PathBuf, busybox: PathBuf, root: &Path, version: String) -> Self {
        Self {
            qemu,
            kernel: root.join("boot").join(format!("vmlinuz-{version}")),
            modules: root.join("lib/modules").join(&version),
            busybox,
            version,
        }
    }
}

/// The program of this name that a shell would run.
pub(super) fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|path| path.is_file())
}

/// Runs a helper to its end; its standard output.
pub(super) fn said(command: &mut Command) -> Result<String, Error> {
    let program = || {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    };
    let name = program();
    let failed = |said: String| Error::Program { program: name.clone(), said };
    let output = command
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A copy of a program without what only debuggers read, kept in the cache: a ramdisk is unpacked by an emulated
/// processor, and half of an unoptimised program is such. None where it cannot be made.
pub(super) fn stripped(program: &Path, cache: &Path) -> Option<PathBuf> {
    let metadata = fs::metadata(program).ok()?;
    let changed = metadata.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?.as_nanos();
    let directory = cache.join("stripped");
    let place = directory.join(format!("{}-{changed}", metadata.len()));
    if place.is_file() {
        return Some(place);
    }
    // Earlier builds' copies are of no use; whoever reads one has it open.
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).ok()?;
    let work = directory.join(format!(".{}", std::process::id()));
    said(Command::new("strip").args(["--strip-debug", "-o"]).arg(&work).arg(program)).ok()?;
    fs::rename(&work, &place).ok()?;
    Some(place)
}

/// The newest kernel below a root that has both image and modules.
fn newest_kernel(root: &Path) -> Option<String> {
    let versions = fs::read_dir(root.join("boot")).ok()?.filter_map(|entry| {
        let name = entry.ok()?.file_name().into_string().ok()?;
        let version = name.strip_prefix("vmlinuz-").filter(|version| version.ends_with(KERNEL_END))?;
        root.join("lib/modules").join(version).join("kernel").is_dir().then(|| version.to_owned())
    });
    versions.max_by_key(|version| numbers(version))
}

/// A version's numbers, for comparing.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

/// The newest kernel with busybox that was unpacked earlier: its root and version.
fn unpacked(cache: &Path) -> Option<(PathBuf, String)> {
    let roots = fs::read_dir(cache).ok()?.filter_map(|entry| {
        let path = entry.ok()?.path();
        let version = newest_kernel(&path)?;
        (path.join("bin/busybox").is_file() && path.file_name()? == version.as_str())
            .then_some((path, version))
    });
    roots.max_by_key(|(_, version)| numbers(version))
}

fn download(cache: &Path, progress: &dyn Fn(&str)) -> Result<(PathBuf, String), Error> {
    if in_path("apt-get").is_none() || in_path("dpkg-deb").is_none() {
        return Err(Error::Missing {
            what: "Debian's cloud kernel and busybox",
            advice: "on Debian: apt-get install linux-image-cloud-amd64 busybox-static",
        });
    }
    progress("download Debian's cloud kernel and busybox");
    let listed = said(Command::new("apt-cache").args(["depends", KERNEL_PACKAGE])).unwrap_or_default();
    let package = listed
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-") && name.ends_with(KERNEL_END))
        .ok_or(Error::Missing {
            what: "Debian's cloud kernel, which apt does not know here",
            advice: "apt-get update, then try again",
        })?;
    fs::create_dir_all(cache).map_err(Error::file("make the cache", cache))?;
    let work = cache.join(format!(".download-{}", std::process::id()));
    fs::create_dir_all(&work).map_err(Error::file("make", &work))?;
    let outcome = unpack(cache, &work, package);
    let _ = fs::remove_dir_all(&work);
    outcome
}

fn unpack(cache: &Path, work: &Path, package: &str) -> Result<(PathBuf, String), Error> {
    // apt's own user may not enter the cache.
    let options = ["-o", "APT::Sandbox::User=root", "-q", "download"];
    said(Command::new("apt-get").args(options).args([package, "busybox-static"]).current_dir(work))?;
    let root = work.join("root");
    for entry in fs::read_dir(work).map_err(Error::file("list", work))? {
        let path = entry.map_err(Error::file("list", work))?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            said(Command::new("dpkg-deb").arg("-x").arg(&path).arg(&root))?;
        }
    }
    let version = newest_kernel(&root).ok_or_else(|| Error::Program {
        program: format!("dpkg-deb -x {package}"),
        said: "the package has no kernel".to_owned(),
    })?;
    let place = cache.join(&version);
    match fs::rename(&root, &place) {
        Ok(()) => Ok((place, version)),
        // Somebody else was faster.
        Err(_) if place.join("bin/busybox").is_file() => Ok((place, version)),
        Err(source) => Err(Error::File { action: "make", path: place, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_kernel_is_by_number_and_has_its_modules() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("boot")).unwrap();
        for (version, has_modules) in [
            ("6.1.0-9-cloud-amd64", true),
            ("6.1.0-10-cloud-amd64", true),
            ("6.1.0-11-cloud-amd64", false),
            ("7.0-amd64", true),
        ] {
            fs::write(root.path().join(format!("boot/vmlinuz-{version}")), "").unwrap();
            if has_modules {
                fs::create_dir_all(root.path().join(format!("lib/modules/{version}/kernel"))).unwrap();
            }
        }
        assert_eq!(newest_kernel(root.path()).as_deref(), Some("6.1.0-10-cloud-amd64"));
    }

    #[test]
    fn a_helper_that_fails_says_why() {
        let error = said(Command::new("sh").args(["-c", "echo no such thing >&2; exit 3"])).unwrap_err();
        assert!(error.to_string().ends_with("failed: no such thing"), "{error}");
    }
}
