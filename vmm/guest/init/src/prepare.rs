//! What a container expects of its surroundings: file systems, devices, names.

use std::fs;
use std::path::Path;

use nix::mount::{MsFlags, mount};

use crate::console::Console;

/// Name servers, as the kernel got them by DHCP.
const LEASE: &str = "/proc/net/pnp";

/// Type, place, options, and whether only an empty directory is covered: what an image has there, it wants.
const MOUNTS: [(&str, &str, &str, bool); 8] = [
    ("proc", "/proc", "", false),
    ("sysfs", "/sys", "", false),
    ("devtmpfs", "/dev", "mode=755", false),
    ("devpts", "/dev/pts", "gid=5,mode=620,ptmxmode=666", false),
    ("tmpfs", "/dev/shm", "mode=1777", false),
    ("tmpfs", "/run", "mode=755", true),
    ("tmpfs", "/tmp", "mode=1777", true),
    ("cgroup2", "/sys/fs/cgroup", "", false),
];

/// Mounts all that can be mounted. The console is not there before, so what fails shows by its absence.
pub(crate) fn file_systems() {
    for (kind, place, options, only_empty) in MOUNTS {
        if only_empty && !is_empty(Path::new(place)) {
            continue;
        }
        // The kernel may have mounted its devices already, and may have no control groups.
        let _ = fs::create_dir(place);
        let flags = MsFlags::MS_NOSUID;
        let _ =
            mount(Some(kind), place, Some(kind), flags, Some(options).filter(|options| !options.is_empty()));
    }
    for (link, target) in [("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")] {
        let _ = std::os::unix::fs::symlink(format!("/proc/self/fd{target}"), format!("/dev/{link}"));
    }
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none())
}

/// The files that a container runtime puts over those of an image: who this is, and who knows names.
pub(crate) fn names(console: &mut Console) {
    let lease = fs::read_to_string(LEASE).unwrap_or_default();
    let resolver: String = lease
        .lines()
        .filter_map(|line| match line.split_once(' ')? {
            // The kernel writes the first of these for an address that it has not got.
            ("nameserver", "0.0.0.0") => None,
            ("domain", domain) => Some(format!("search {domain}\n")),
            ("nameserver", address) => Some(format!("nameserver {address}\n")),
            _ => None,
        })
        .collect();
    if !resolver.is_empty() {
        put("/etc/resolv.conf", &resolver, console);
    }
    let name = hostname();
    if name.is_empty() {
        return;
    }
    put("/etc/hostname", &format!("{name}\n"), console);
    if fs::metadata("/etc/hosts").map_or(0, |file| file.len()) == 0 {
        put("/etc/hosts", &format!("127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {name}\n"), console);
    }
}

/// The host's name, which the kernel got by DHCP.
pub(crate) fn hostname() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    name.filter(|name| name != "(none)").unwrap_or_default()
}

/// Writes a file in the place of whatever is there: a link would lead elsewhere.
fn put(path: &str, text: &str, console: &mut Console) {
    let _ = fs::remove_file(path);
    if let Err(error) = fs::write(path, text) {
        console.say(&format!("{path} cannot be written: {error}"));
    }
}
