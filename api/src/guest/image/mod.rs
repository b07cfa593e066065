//! Root file systems and disks as image files.
//!
//! A kind of image makes a [`Tree`] of Debian's packages and the files below `vmm/guest/images`; the rest is the same
//! for all: the slim kernel into `/boot` with an entry of the Boot Loader Specification, the tree as ext4, the file
//! system alone or in the partitions of a disk, and the format asked for.
//!
//! Must never know: how a guest is run.

pub mod busybox;
pub mod debian;
pub mod ext4;
pub mod generic;
pub mod partition;
pub mod tree;

use std::fs;
use std::path::{Path, PathBuf};

use super::cache::{self, Cache, Stamp};
use super::kernel::{self, Flavor, Kernel};
use super::packages;
use super::progress::Progress;
use super::tools::{self, Need};
use tree::Tree;

/// The time of everything in an image that has none of its own: fixed, so that images can be built again.
const TIME_SECONDS: u64 = 1_735_689_600;

/// What an image holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Busybox as init and shell, a few MiB.
    Busybox,
    /// Debian with systemd, and what it needs to be reached.
    Debian,
    /// Debian as it is published for clouds: partitions, GRUB, its own kernel and initial ramdisk, cloud-init.
    DebianGeneric,
}

impl Kind {
    /// Its name on the command line and in files' names.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Busybox => "busybox",
            Self::Debian => "debian",
            Self::DebianGeneric => "debian-generic",
        }
    }
}

/// How an image is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// The disk's bytes, with holes.
    Raw,
    /// Compressed qcow2.
    Qcow2,
}

impl Format {
    /// What OpenStack and qemu-img call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// What it holds.
    pub kind: Kind,
    /// Whether it can be reached by ssh; generic images always can.
    pub ssh: bool,
    /// How it is written.
    pub format: Format,
    /// The kernel in it; absent: the slim one that suits.
    pub kernel: Option<PathBuf>,
    /// The disk's size in MiB; absent: what it takes, and some room.
    pub size_mib: Option<u64>,
    /// Whether `/boot` is a partition of its own, which only generic images have.
    pub boot_partition: bool,
    /// A second kernel in a generic image, installed and not the default.
    pub second_kernel: bool,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    /// A tool is missing or failed.
    #[error(transparent)]
    Tool(#[from] tools::Error),
    /// A package.
    #[error(transparent)]
    Package(#[from] packages::Error),
    /// The cache.
    #[error(transparent)]
    Cache(#[from] cache::Error),
    /// The tree.
    #[error(transparent)]
    Tree(#[from] tree::Error),
    /// The file system.
    #[error(transparent)]
    FileSystem(#[from] ext4::Error),
    /// The partitions.
    #[error(transparent)]
    Partition(#[from] partition::Error),
    /// An option that this kind has no use for.
    #[error("--{option} is nothing for an image of the kind {kind}")]
    Option {
        /// Which.
        option: &'static str,
        /// The kind.
        kind: &'static str,
    },
    /// The kernel's file name cannot be written into a boot entry.
    #[error("the kernel {0} is not a file")]
    KernelFile(PathBuf),
    /// The same inputs gave other bytes.
    #[error("built again, the image differs from {} from byte {offset} on; what was built is in {}", path.display(), again.display())]
    Differs {
        /// The image in the cache.
        path: PathBuf,
        /// What was built now.
        again: PathBuf,
        /// The first byte that differs.
        offset: u64,
    },
}

/// An image that was built.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its file in the cache.
    pub path: PathBuf,
    /// Whether it was there already.
    pub reused: bool,
}

/// Builds what is asked for, or finds it in the cache.
///
/// # Errors
/// Anything missing, or a tool that fails.
pub fn build(request: &Request, cache: &Cache, progress: &Progress) -> Result<Image, Error> {
    Plan::new(request, cache, progress)?.image(cache, progress)
}

/// Builds again what is in the cache, or both times if it is not, and compares them byte for byte. What differs stays beside
/// the image in the cache, for whoever wants to know why.
///
/// # Errors
/// As for [`build`]; they differ.
pub fn verify(request: &Request, cache: &Cache, progress: &Progress) -> Result<Image, Error> {
    let plan = Plan::new(request, cache, progress)?;
    let image = plan.image(cache, progress)?;
    let work = cache.work(cache::BUILD)?;
    let written = plan.write(cache, work.path(), progress)?;
    let stage = progress.stage("compare", None);
    if let Some(offset) = cache::first_difference(&image.path, &written)? {
        let again = image.path.with_added_extension("again");
        fs::rename(&written, &again).map_err(cache::Error::io("move into place", &again))?;
        return Err(Error::Differs { path: image.path, again, offset });
    }
    stage.done("the same bytes");
    Ok(image)
}

/// All that an image is made of.
struct Plan<'a> {
    request: &'a Request,
    kernel: Option<Kernel>,
    stamp: Stamp,
}

impl<'a> Plan<'a> {
    fn new(request: &'a Request, cache: &Cache, progress: &Progress) -> Result<Self, Error> {
        check(request)?;
        let mut stamp = match request.kind {
            Kind::Busybox => busybox::stamp(request.ssh)?,
            Kind::Debian => debian::stamp(request.ssh)?,
            Kind::DebianGeneric => generic::stamp(request)?,
        };
        let kernel = match request.kind {
            Kind::DebianGeneric => None,
            _ => Some(slim_kernel(request.kernel.as_deref(), cache, progress)?),
        };
        if let Some(kernel) = &kernel {
            stamp.add(kernel.release.as_bytes());
            stamp.add_file(&kernel.path)?;
        }
        stamp.add(&request.size_mib.unwrap_or(0).to_le_bytes());
        Ok(Self { request, kernel, stamp })
    }

    /// Where it is kept.
    fn place(&self, cache: &Cache) -> Result<PathBuf, Error> {
        let (kind, format) = (self.request.kind.name(), self.request.format.name());
        Ok(cache.directory("images")?.join(format!("{kind}-{}.{format}", self.stamp.text())))
    }

    /// It, from the cache or built.
    fn image(&self, cache: &Cache, progress: &Progress) -> Result<Image, Error> {
        let path = self.place(cache)?;
        if path.is_file() {
            return Ok(Image { path, reused: true });
        }
        let work = cache.work(cache::BUILD)?;
        let written = self.write(cache, work.path(), progress)?;
        fs::rename(&written, &path).map_err(cache::Error::io("move into place", &path))?;
        Ok(Image { path, reused: false })
    }

    /// Makes it below `work`.
    fn write(&self, cache: &Cache, work: &Path, progress: &Progress) -> Result<PathBuf, Error> {
        if self.request.format == Format::Qcow2 {
            tools::require("writing qcow2", &[Need::Program("qemu-img", "qemu-utils")])?;
        }
        let raw = match &self.kernel {
            Some(kernel) => slim(self.request, kernel, &self.stamp, cache, work, progress)?,
            None => generic::build(self.request, &self.stamp, cache, work, progress)?,
        };
        match self.request.format {
            Format::Raw => Ok(raw),
            Format::Qcow2 => qcow2(&raw, progress),
        }
    }
}

fn check(request: &Request) -> Result<(), Error> {
    let refuse = |option| Err(Error::Option { option, kind: request.kind.name() });
    match request.kind {
        Kind::DebianGeneric if request.kernel.is_some() => refuse("kernel"),
        Kind::DebianGeneric if !request.ssh => refuse("no-ssh"),
        Kind::DebianGeneric => Ok(()),
        _ if request.boot_partition => refuse("boot-partition"),
        _ if request.second_kernel => refuse("second-kernel"),
        _ => Ok(()),
    }
}

/// The kernel that was given, or the small slim one.
fn slim_kernel(given: Option<&Path>, cache: &Cache, progress: &Progress) -> Result<Kernel, Error> {
    let Some(path) = given else {
        return Ok(kernel::build(Flavor::Small, cache, progress)?);
    };
    let name = path.file_name().and_then(|name| name.to_str()).filter(|_| path.is_file());
    let name = name.ok_or_else(|| Error::KernelFile(path.to_owned()))?;
    let release = name.strip_prefix("vmlinux-").or_else(|| name.strip_prefix("vmlinuz-")).unwrap_or(name);
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "._+-".contains(letter);
    if !release.chars().all(plain) {
        return Err(Error::KernelFile(path.to_owned()));
    }
    Ok(Kernel { path: path.to_owned(), release: release.to_owned() })
}

/// A slim image: the file system without partitions, the kernel in it.
fn slim(
    request: &Request,
    kernel: &Kernel,
    stamp: &Stamp,
    cache: &Cache,
    work: &Path,
    progress: &Progress,
) -> Result<PathBuf, Error> {
    let mut tree = match request.kind {
        Kind::Busybox => busybox::tree(request.ssh, cache, work, progress)?,
        _ => debian::tree(request.ssh, cache, work, progress)?,
    };
    boot_entry(&mut tree, kernel);
    let image = work.join("image.raw");
    write_file_system(&tree, stamp, request.size_mib, &image, work, progress)?;
    Ok(image)
}

/// Puts the kernel into `/boot`, with an entry that says how it is started.
fn boot_entry(tree: &mut Tree, kernel: &Kernel) {
    let release = &kernel.release;
    tree.file(&format!("boot/vmlinux-{release}"), 0o644, &kernel.path);
    let entry = format!(
        "title Wisp slim guest\n\
         version {release}\n\
         linux /boot/vmlinux-{release}\n\
         options root=/dev/vda rootfstype=ext4 rw quiet\n"
    );
    tree.text("loader/entries/wisp.conf", 0o644, &entry);
}

fn write_file_system(
    tree: &Tree,
    stamp: &Stamp,
    size_mib: Option<u64>,
    image: &Path,
    work: &Path,
    progress: &Progress,
) -> Result<(), Error> {
    tools::require("writing a file system", &ext4::NEEDS)?;
    let stage = progress.stage("write the file system", None);
    let format =
        ext4::Format { label: "wisp-root", uuid: stamp.uuid(), size_mib, time_seconds: TIME_SECONDS };
    ext4::write(tree, &format, image, work)?;
    let size = fs::metadata(image).map_err(cache::Error::io("look at", image))?.len();
    stage.done(&format!("{} entries, {} MiB", tree.entries().count(), size >> 20));
    Ok(())
}

fn qcow2(raw: &Path, progress: &Progress) -> Result<PathBuf, Error> {
    let stage = progress.stage("write qcow2", None);
    let image = raw.with_extension("qcow2");
    let mut convert = tools::command("qemu-img");
    tools::output(convert.args(["convert", "-c", "-f", "raw", "-O", "qcow2"]).arg(raw).arg(&image))?;
    let size = fs::metadata(&image).map_err(cache::Error::io("look at", &image))?.len();
    stage.done(&format!("{:.1} MiB", size as f64 / f64::from(1 << 20)));
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(kind: Kind) -> Request {
        Request {
            kind,
            ssh: true,
            format: Format::Raw,
            kernel: None,
            size_mib: None,
            boot_partition: false,
            second_kernel: false,
        }
    }

    #[test]
    fn option_that_would_do_nothing_is_refused() {
        for kind in [Kind::Busybox, Kind::Debian, Kind::DebianGeneric] {
            check(&request(kind)).unwrap();
        }
        let boot = Request { boot_partition: true, ..request(Kind::Debian) };
        assert!(check(&boot).unwrap_err().to_string().starts_with("--boot-partition"));
        let kernel = Request { kernel: Some("k".into()), ..request(Kind::DebianGeneric) };
        assert!(check(&kernel).is_err());
    }

    #[test]
    fn kernel_goes_into_boot_with_an_entry_that_names_it() {
        let mut tree = Tree::default();
        boot_entry(&mut tree, &Kernel { path: "/k".into(), release: "6.12.1-x".into() });
        assert!(tree.get("boot/vmlinux-6.12.1-x").is_some());
        assert!(tree.read("loader/entries/wisp.conf").unwrap().contains("linux /boot/vmlinux-6.12.1-x\n"));
    }

    #[test]
    fn kernel_with_a_strange_name_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(Some(directory.path())).unwrap();
        let path = directory.path().join("a b");
        fs::write(&path, "").unwrap();
        for path in [path, directory.path().join("absent")] {
            let error = slim_kernel(Some(&path), &cache, &Progress::default()).unwrap_err();
            assert!(matches!(error, Error::KernelFile(_)), "{error}");
        }
    }
}
