//! The empty directory that is all of the file system to a confined process.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

/// Where it is mounted first: a directory that every host has.
const PLACE: &str = "/proc";
/// It is empty, and stays so.
const OPTIONS: &str = "size=4k,nr_inodes=1,mode=555";

/// Leaves the mount namespace for one of our own, whose root is an empty directory that cannot be written.
///
/// A handle of the namespace is returned, as far as there is one: taking the namespace apart has the kernel wait for all
/// processors, which is not the end of the process's matter while somebody holds it.
pub(super) fn make() -> io::Result<Option<OwnedFd>> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    // As long as there is a /proc.
    let handle = File::open("/proc/self/ns/mnt").map(OwnedFd::from).ok();
    let none = None::<&Path>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), PLACE, Some("tmpfs"), flags, Some(OPTIONS))?;
    std::env::set_current_dir(PLACE)?;
    // The old root comes to lie on the new one, and goes with all that is mounted in it (pivot_root(2)).
    nix::unistd::pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    std::env::set_current_dir("/")?;
    Ok(handle)
}
