//! An instance's root disk and the images it begins as. Images are the control process's files: they are opened
//! without following links, by ids that cannot be paths.
//!
//! Where the disk is an overlay over its image, the image's file gets a second name beside it, so that the image can
//! be deleted while instances of it exist.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};
use storage::format::Disk;
use storage::root_disk::{Frozen, RootDisk, RootDiskError, create_root_disk, find_root_disk};
use vmm::config::{DiskFormat, InheritedFd};

use crate::driver::instance_id_is_safe;

/// Sizes of disks are multiples of this many bytes (VIRTIO 1.3 §5.2.4).
const SECTOR_BYTES: u64 = 512;

/// Why there is no root disk.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The image it begins as.
    #[error("open the image {id}")]
    Image {
        /// Which.
        id: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The disk itself.
    #[error(transparent)]
    Disk(#[from] RootDiskError),
    /// The image below the disk.
    #[error("keep the image of the root disk")]
    Base(#[source] io::Error),
}

/// Opens an image's file for reading. The directory is another, less privileged user's: no link is followed on the
/// way, and what somebody else owns is no image.
pub(super) fn open_image(images: &Path, id: &str) -> Result<File, Error> {
    let open = || {
        if !instance_id_is_safe(id) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the image's id is not one"));
        }
        let file = open_regular(&images.join(id))?;
        if file.metadata()?.uid() != fs::symlink_metadata(images)?.uid() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it is not the image directory's owner's",
            ));
        }
        Ok(file)
    };
    open().map_err(|source| Error::Image { id: id.chars().take(64).collect(), source })
}

fn open_regular(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = rustix::fs::openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
    let file = File::from(file);
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not a regular file"));
    }
    Ok(file)
}

/// Whether there is a root disk.
pub(super) fn exists(disks: &Path) -> bool {
    // One that cannot be looked for is not to be thrown away.
    !matches!(find_root_disk(disks), Ok(None))
}

/// Makes the root disk of `size_bytes` (0: the image's) if there is none, and opens it; `inherit` says under which
/// number the process finds a file.
pub(super) fn open_root(
    disks: &Path,
    images: &Path,
    image_id: &str,
    size_bytes: u64,
    mut inherit: impl FnMut(File) -> InheritedFd,
) -> Result<DiskFormat, Error> {
    let disk = match find_root_disk(disks)? {
        Some(disk) => disk,
        None => {
            let image = open_image(images, image_id)?;
            let image_bytes =
                image.metadata().map_err(|source| Error::Image { id: image_id.into(), source })?.len();
            let size_bytes = if size_bytes == 0 { image_bytes } else { size_bytes };
            create_root_disk(disks, &image, size_bytes.next_multiple_of(SECTOR_BYTES))?
        }
    };
    let file = inherit(disk.open()?);
    match disk {
        RootDisk::Reflink(_) => Ok(DiskFormat::Raw { file }),
        RootDisk::Overlay(_) => {
            Ok(DiskFormat::Overlay { file, base: inherit(open_base(disks, images, image_id)?) })
        }
    }
}

/// The root disk as it is now, to be read for as long as it takes, after it has been frozen.
pub(super) fn open_frozen(
    frozen: Frozen,
    disks: &Path,
    images: &Path,
    image_id: &str,
) -> Result<Box<dyn Disk>, Error> {
    let base = frozen.needs_base().then(|| open_base(disks, images, image_id)).transpose()?;
    Ok(frozen.open(base)?)
}

/// Opens the image below an overlay by its name beside it, which is made if it is missing.
fn open_base(disks: &Path, images: &Path, image_id: &str) -> Result<File, Error> {
    let base: PathBuf = disks.join("base");
    match open_regular(&base) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        opened => return opened.map_err(Error::Base),
    }
    let image = open_image(images, image_id)?;
    // The very file that was opened, whatever has its name by now.
    let opened = format!("/proc/self/fd/{}", image.as_raw_fd());
    if let Err(error) = rustix::fs::linkat(CWD, opened, CWD, &base, AtFlags::SYMLINK_FOLLOW) {
        // On another file system, say: then the image has to stay where it is.
        tracing::debug!(%error, "the image of a root disk cannot be given a second name");
    }
    Ok(image)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_on_the_way_to_an_image_are_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let images = directory.path().join("images");
        fs::create_dir(&images).unwrap();
        fs::write(images.join("real"), "an image").unwrap();
        symlink(images.join("real"), images.join("link")).unwrap();
        symlink(&images, directory.path().join("elsewhere")).unwrap();
        fs::create_dir(images.join("directory")).unwrap();
        assert!(open_image(&images, "real").is_ok());
        for (images, id) in [
            (images.clone(), "link"),
            (images.clone(), "directory"),
            (images.clone(), "missing"),
            (images.clone(), "../images/real"),
            (directory.path().join("elsewhere"), "real"),
        ] {
            assert!(open_image(&images, id).is_err(), "{id} in {}", images.display());
        }
    }

    #[test]
    fn image_below_an_overlay_can_be_deleted() {
        let directory = tempfile::tempdir().unwrap();
        let (images, disks) = (directory.path().join("images"), directory.path().join("disk"));
        fs::create_dir(&images).unwrap();
        fs::create_dir(&disks).unwrap();
        fs::write(images.join("image"), [7; 1024]).unwrap();
        let open = || open_root(&disks, &images, "image", 4096, |_| InheritedFd(4));
        let first = open().unwrap();
        fs::remove_file(images.join("image")).unwrap();
        assert_eq!(open().unwrap(), first, "and the disk can still be opened");
    }
}
