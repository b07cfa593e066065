//! Grows the root to its disk: an image's file system is as large as its content, a server's disk as its flavor says.

#![expect(unsafe_code, reason = "the ioctl has no safe wrapper")]

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;

use nix::sys::stat::{major, minor};

use crate::console::Console;

const SECTOR_BYTES: u64 = 512;
/// Of the file systems that are made of images.
const BLOCK_BYTES: u64 = 4096;

nix::ioctl_write_ptr!(
    /// `EXT4_IOC_RESIZE_FS` (Linux, `include/uapi/linux/ext4.h`).
    resize, b'f', 16, u64
);

/// Grows the root as far as its disk reaches.
pub(crate) fn root(console: &mut Console) {
    if let Err(error) = grow() {
        console.say(&format!("the root could not be grown to its disk: {error}"));
    }
}

fn grow() -> std::io::Result<()> {
    let root = File::open("/")?;
    let device = root.metadata()?.dev();
    let sectors =
        std::fs::read_to_string(format!("/sys/dev/block/{}:{}/size", major(device), minor(device)))?;
    let sectors: u64 = sectors.trim().parse().map_err(std::io::Error::other)?;
    let blocks = sectors * SECTOR_BYTES / BLOCK_BYTES;
    // SAFETY: the descriptor is open, and the number lives through the call, which only reads it.
    unsafe { resize(root.as_raw_fd(), &raw const blocks) }?;
    Ok(())
}
