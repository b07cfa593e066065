//! Debian as it is published for clouds, built from its packages: a GPT, ext4, GRUB's configuration as `update-grub`
//! writes it, the stock cloud kernel with the initial ramdisk that initramfs-tools makes, cloud-init, openssh.
//!
//! The boot loader itself is not installed: nothing here runs one.

use std::path::{Path, PathBuf};

use super::super::cache::{self, Cache, Stamp};
use super::super::packages;
use super::super::progress::Progress;
use super::super::tools;
use super::debian::{self, Bootstrap, Hook};
use super::partition::{self, Partition, Role};
use super::tree::Tree;
use super::{Error, Request, TIME_SECONDS, ext4};

/// Changes when the same inputs shall give another image.
const RECIPE: &str = "debian generic image 3";
const PACKAGES: &str = "systemd-sysv,systemd-resolved,udev,dbus,libpam-systemd,linux-image-cloud-amd64,initramfs-tools,\
    grub-pc-bin,grub2-common,cloud-init,cloud-guest-utils,netplan.io,openssh-server,sudo,iproute2,iputils-ping,netbase,\
    ca-certificates,e2fsprogs,kmod,lsb-release";
/// Depends on the newest kernel of the next series, which is the second kernel of an image.
const SECOND_KERNEL: &str = "linux-image-6.12-cloud-amd64";
const CUSTOMIZE: &str = include_str!("../../../../vmm/guest/images/generic/customize");
/// The size of a `/boot` of its own: two kernels with their ramdisks and room.
const BOOT_MIB: u64 = 512;
/// What is free on the root file system at least; it grows to its disk at the first boot.
const ROOT_ROOM_MIB: u64 = 128;

/// The inputs of such an image.
///
/// # Errors
/// What apt knows cannot be read.
pub fn stamp(request: &Request) -> Result<Stamp, Error> {
    let mut stamp = Stamp::new(RECIPE);
    stamp.add(&packages::archive_state()?);
    stamp.add(&[u8::from(request.boot_partition), u8::from(request.second_kernel)]);
    stamp.add(PACKAGES.as_bytes());
    stamp.add(CUSTOMIZE.as_bytes());
    Ok(stamp)
}

/// Builds the disk.
///
/// # Errors
/// A package cannot be had, or a tool fails.
pub fn build(
    request: &Request,
    stamp: &Stamp,
    cache: &Cache,
    work: &Path,
    progress: &Progress,
) -> Result<PathBuf, Error> {
    let uuid_of = |what: &str| {
        let mut stamp = stamp.clone();
        stamp.add(what.as_bytes());
        stamp.uuid()
    };
    let (root_uuid, boot_uuid) = (uuid_of("root"), uuid_of("boot"));
    let script = work.join("customize");
    cache::write_whole(&script, CUSTOMIZE.as_bytes())?;
    let mut commands = Vec::new();
    if request.second_kernel {
        let file = second_kernel(cache, progress)?;
        commands.push("mkdir -p \"$1/var/lib/second-kernel\"".to_owned());
        commands.push(format!("cp '{}' \"$1/var/lib/second-kernel/\"", file.display()));
    }
    commands.push(format!("sh '{}' \"$1\"", script.display()));
    let mut environment = vec![("ROOT_UUID", root_uuid.to_string())];
    if request.boot_partition {
        environment.push(("BOOT_UUID", boot_uuid.to_string()));
    }
    let hook = Hook { commands, environment };
    let mut tree = debian::bootstrap(&Bootstrap { packages: PACKAGES, hook: Some(hook) }, work, progress)?;
    debian::make_general(&mut tree);

    tools::require("writing a file system", &ext4::NEEDS)?;
    let stage = progress.stage("write the file systems", None);
    let mut partitions = vec![Partition { number: 14, role: Role::BiosBoot, size_mib: 3, content: None }];
    let file_system = |tree: &Tree, name: &str, uuid, size_mib: Option<u64>| {
        let work = work.join(format!("{name}.work"));
        std::fs::create_dir_all(&work).map_err(cache::Error::io("make the directory", &work))?;
        let image = work.join("image");
        let format = ext4::Format { label: name, uuid, size_mib, time_seconds: TIME_SECONDS };
        ext4::write(tree, &format, &image, &work)?;
        let bytes = std::fs::metadata(&image).map_err(cache::Error::io("look at", &image))?.len();
        Ok::<_, Error>((bytes >> 20, image))
    };
    if request.boot_partition {
        let boot = tree.split_off("boot");
        let (size_mib, content) = file_system(&boot, "boot", boot_uuid, Some(BOOT_MIB))?;
        partitions.push(Partition { number: 16, role: Role::Linux, size_mib, content: Some(content) });
    }
    let used_mib = 2 + partitions.iter().map(|partition| partition.size_mib).sum::<u64>();
    let size_mib = match request.size_mib {
        Some(disk_mib) => disk_mib.saturating_sub(used_mib),
        None => ext4::needed_mib(&tree)? + ROOT_ROOM_MIB,
    };
    let (size_mib, content) = file_system(&tree, "root", root_uuid, Some(size_mib))?;
    partitions.push(Partition { number: 1, role: Role::Linux, size_mib, content: Some(content) });
    let image = work.join("image.raw");
    partition::write(&partitions, uuid_of("disk"), &image)?;
    stage.done(&format!("{} entries, {size_mib} MiB", tree.entries().count()));
    Ok(image)
}

/// The package with the second kernel.
fn second_kernel(cache: &Cache, progress: &Progress) -> Result<PathBuf, Error> {
    let name = packages::depends(SECOND_KERNEL)?
        .into_iter()
        .find(|name| name.starts_with("linux-image-"))
        .ok_or_else(|| packages::Error::Unknown(SECOND_KERNEL.to_owned()))?;
    let mut files = packages::fetch(&[packages::candidate(&name)?], cache, progress)?;
    Ok(files.pop().expect("invariant: a file for each package"))
}
