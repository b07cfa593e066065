//! An instance's root disk and the images it begins as. Images are the control process's files: they are opened
//! without following links, by ids that cannot be paths.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::driver::instance_id_is_safe;

/// Opens an image's file for reading.
pub(super) fn open_image(images: &Path, id: &str) -> io::Result<File> {
    if !instance_id_is_safe(id) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the image's id is not one"));
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(images.join(id), flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the image is not a regular file"));
    }
    Ok(file)
}

/// The root disk's file.
pub(super) fn root(disks: &Path) -> PathBuf {
    disks.join("root")
}

/// Makes the root disk from its image, whole or not at all.
pub(super) fn create_root(disks: &Path, image: &File, size_bytes: u64) -> io::Result<()> {
    let unfinished = disks.join("root.new");
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = File::from(rustix::fs::open(&unfinished, flags, Mode::RUSR | Mode::WUSR)?);
    if rustix::fs::ioctl_ficlone(&file, image).is_err() {
        io::copy(&mut &*image, &mut &file)?;
    }
    if size_bytes > image.metadata()?.len() {
        file.set_len(size_bytes)?;
    }
    std::fs::rename(unfinished, root(disks))
}

/// Opens the root disk for reading and writing.
pub(super) fn open_root(disks: &Path) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(File::from(rustix::fs::open(root(disks), flags, Mode::empty())?))
}
