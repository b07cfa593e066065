//! Booting a whole disk without firmware: its partitions, its filesystems, its boot loader's configuration, and from
//! there the kernel, the initial ramdisks and the command line.
//!
//! All of it is foreign and read anew at every boot, inside the confined process. Nothing is ever written. Every
//! loop is bounded, above all by how many bytes may be read ([`source::SEARCH_BYTES_MAX`]).
//!
//! What is looked for, in this order: GRUB's configuration on any filesystem but an EFI system partition; GRUB's there;
//! entries of the Boot Loader Specification (systemd-boot); extlinux's configuration. The first that boots a Linux
//! kernel is taken.
//!
//! Must never know: paths on the host, KVM.

mod bls;
mod extlinux;
mod filesystem;
mod grub;
mod image;
#[cfg(any(test, feature = "mock"))]
pub mod mock;
mod partition;
mod source;
mod unified;
mod version;
mod volumes;

use std::io;
use std::sync::Arc;

use storage::format::Disk;

use self::filesystem::{Found, chain};
use self::grub::Choice;
use self::image::{Concatenation, Part};
use self::unified::Unified;
use self::volumes::{FileName, Volumes};
use super::image::Image;
use super::{INITRD_BYTES_MAX, KERNEL_BYTES_MAX};

/// Where a GRUB configuration lies, seen from the filesystem's root: with /boot in it, or as /boot.
const GRUB_PATHS: [&str; 4] =
    ["/boot/grub/grub.cfg", "/boot/grub2/grub.cfg", "/grub/grub.cfg", "/grub2/grub.cfg"];
/// How many directories at a Btrfs's top level may be subvolumes with a root filesystem in them.
const SUBVOLUMES_MAX: usize = 64;
/// How many vendors' directories an EFI system partition may have.
const VENDORS_MAX: usize = 64;
/// The most initial ramdisks of one entry.
const INITRDS_MAX: usize = 32;

/// Why a disk cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk itself cannot be read.
    #[error("read the first disk")]
    Read(#[source] io::Error),
    /// Neither a partition table nor a filesystem.
    #[error("the first disk has no partition table and no filesystem that is known{0}")]
    Nothing(String),
    /// Nothing on it can be read.
    #[error("nothing on the first disk can be read: {0}")]
    Unreadable(String),
    /// No boot loader's configuration.
    #[error("no boot loader configuration is on the first disk: {0}")]
    NoConfiguration(String),
    /// There is one, which boots no Linux kernel.
    #[error("the boot loader configuration {0}")]
    Configuration(String),
    /// A file that is named cannot be opened.
    #[error("open the {what} {path} on {place}, which `{title}` names")]
    Open {
        /// What it is for.
        what: &'static str,
        /// Its path.
        path: String,
        /// Where.
        place: String,
        /// The entry.
        title: String,
        /// Why.
        #[source]
        source: filesystem::Error,
    },
    /// More ramdisks than any entry has.
    #[error("`{title}` names {count} initial ramdisks")]
    Initrds {
        /// The entry.
        title: String,
        /// How many.
        count: usize,
    },
}

/// What a disk boots.
pub struct Plan {
    /// The kernel.
    pub kernel: Box<dyn Image>,
    /// All initial ramdisks as one.
    pub initrd: Option<Box<dyn Image>>,
    /// The command line that the disk's configuration says.
    pub cmdline: String,
    /// What it is, for people: the entry, the kernel and where it lies.
    pub description: String,
}

/// Finds out what `disk` boots.
///
/// # Errors
/// Why it boots nothing, in one sentence with its causes.
pub fn find(disk: Arc<dyn Disk>) -> Result<Plan, Error> {
    let first = first_bytes(&*disk).map_err(Error::Read)?;
    let volumes = Volumes::open(disk).map_err(Error::Read)?;
    if volumes.indices().is_empty() {
        return Err(match volumes.unreadable() {
            [] => Error::Nothing(first),
            unreadable => Error::Unreadable(unreadable.join("; ")),
        });
    }
    let choice = choose(&volumes)?;
    open(&volumes, choice)
}

/// The disk's beginning for people who wonder what it is.
fn first_bytes(disk: &dyn Disk) -> io::Result<String> {
    let mut bytes = [0; 8];
    if disk.size_bytes() < bytes.len() as u64 {
        return Ok(format!("; it has {} bytes", disk.size_bytes()));
    }
    disk.read_at(&mut bytes, 0)?;
    if bytes.iter().all(|&byte| byte == 0) {
        return Ok("; it begins with zeros".to_owned());
    }
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("; it begins with {text}"))
}

/// The choice of the first boot loader that makes one.
fn choose(volumes: &Volumes) -> Result<Choice, Error> {
    let mut complaints = Vec::new();
    for file in grub_files(volumes) {
        match grub::choose(volumes, &file) {
            Ok(choice) => return Ok(choice),
            Err(error) => {
                let place = volumes.describe(file.volume);
                complaints.push(format!("{} on {place} boots nothing: {}", file.path, chain(&error)));
            }
        }
    }
    if let Some(choice) = bls::choose(volumes).or_else(|| extlinux::choose(volumes)) {
        return Ok(choice);
    }
    if !complaints.is_empty() {
        return Err(Error::Configuration(complaints.join("; ")));
    }
    Err(Error::NoConfiguration(what_there_is(volumes)))
}

/// What was looked at and what was not found, for people.
fn what_there_is(volumes: &Volumes) -> String {
    let mut parts = Vec::new();
    for volume in volumes.indices() {
        let tried =
            "no grub.cfg in /boot/grub, /boot/grub2, /grub or /grub2, no /loader/entries, no extlinux.conf";
        let is_windows = ["/bootmgr", "/EFI/Microsoft/Boot/bootmgfw.efi"]
            .iter()
            .any(|path| volumes.volume(volume).resolve(path).is_ok());
        let other = if is_windows { ", but Windows's boot loader" } else { "" };
        // A directory that cannot be read has nothing in it, unless somebody asks.
        let broken = GRUB_PATHS.iter().find_map(|path| {
            let error = volumes.volume(volume).resolve(path).err()?;
            (!error.is_absence()).then(|| format!(", and {path}: {}", chain(&error)))
        });
        let broken = broken.unwrap_or_default();
        parts.push(format!("{} has {tried}{other}{broken}", volumes.describe(volume)));
    }
    parts.extend(volumes.unreadable().iter().cloned());
    parts.join("; ")
}

/// All GRUB configurations, in the order in which they are tried.
fn grub_files(volumes: &Volumes) -> Vec<FileName> {
    let mut files = Vec::new();
    let (efi, other): (Vec<_>, Vec<_>) = volumes.indices().partition(|&volume| volumes.is_efi(volume));
    for volume in other {
        let mut roots = vec![String::new()];
        if volumes.volume(volume).kind == "Btrfs" {
            let names = volumes.volume(volume).list("/").unwrap_or_default();
            roots.extend(names.into_iter().take(SUBVOLUMES_MAX).map(|name| format!("/{name}")));
        }
        for root in roots {
            files.extend(GRUB_PATHS.map(|path| FileName { volume, path: format!("{root}{path}") }));
        }
    }
    for volume in efi {
        files.extend(GRUB_PATHS.map(|path| FileName { volume, path: path.to_owned() }));
        let vendors = volumes.volume(volume).list("/EFI").unwrap_or_default();
        let file = |vendor: String| FileName { volume, path: format!("/EFI/{vendor}/grub.cfg") };
        files.extend(vendors.into_iter().take(VENDORS_MAX).map(file));
    }
    files.retain(|file| matches!(volumes.found(file), Some(Found::File { .. })));
    files
}

fn open(volumes: &Volumes, choice: Choice) -> Result<Plan, Error> {
    let Choice { title, kernel, initrds, mut cmdline } = choice;
    if initrds.len() > INITRDS_MAX {
        return Err(Error::Initrds { title, count: initrds.len() });
    }
    let open = |what, file: &FileName, max| {
        volumes.file(file, max).map_err(|source| Error::Open {
            what,
            path: file.path.clone(),
            place: volumes.describe(file.volume),
            title: title.clone(),
            source,
        })
    };
    let description = format!("`{title}`: {} on {}", kernel.path, volumes.describe(kernel.volume));
    let image = open("kernel", &kernel, KERNEL_BYTES_MAX)?;
    let mut parts = Vec::with_capacity(initrds.len() + 1);
    for initrd in &initrds {
        parts.push(Part::whole(Box::new(open("initial ramdisk", initrd, INITRD_BYTES_MAX)?)));
    }
    let mut boxed: Box<dyn Image> = Box::new(image);
    if let Some(sections) = Unified::read(&*boxed) {
        if let Some(initrd) = sections.initrd {
            let image = Box::new(open("kernel", &kernel, KERNEL_BYTES_MAX)?);
            parts.insert(0, Part::of(image, initrd));
        }
        if cmdline.is_empty() {
            cmdline = sections.cmdline;
        }
        boxed = Box::new(Concatenation::new(vec![Part::of(boxed, sections.linux)]));
    }
    let initrd: Option<Box<dyn Image>> =
        if parts.is_empty() { None } else { Some(Box::new(Concatenation::new(parts))) };
    Ok(Plan { kernel: boxed, initrd, cmdline, description })
}

#[cfg(test)]
pub(crate) mod tests;
