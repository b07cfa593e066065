//! Network namespaces for routers, kept by name where `ip netns` looks for them, so that they outlive whoever made them.
//!
//! A namespace that is there is whole: it forwards, and answers ARP only for what its links really have, before it
//! gets its name. What is needed to work in one is handed out as descriptors, for which `CAP_NET_ADMIN` suffices; to
//! make, enter or remove one takes `CAP_SYS_ADMIN`, which [`crate::keeper`] can have in the place of whoever uses them.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{FsType, fstatfs};

use crate::names::is_namespace_name;
use crate::netlink::{self, Connection, Request};

/// Where namespaces have their names.
pub const DIRECTORY: &str = "/run/netns";

/// The type of the files that namespaces are (`NSFS_MAGIC`).
const NSFS: FsType = FsType(0x6e73_6673);

/// What makes a namespace a router, by file below `/proc/sys/net`. It answers ARP for what the asked link has, from the
/// address it is asked at, and says when a link comes up with an address or gets a MAC.
const SETTINGS: [(&str, &str); 9] = [
    ("ipv4/ip_forward", "1"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/conf/all/arp_ignore", "1"),
    ("ipv4/conf/all/arp_announce", "2"),
    ("ipv4/conf/all/arp_notify", "1"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv6/conf/default/accept_dad", "0"),
    // Guests are told the link-local address that the MAC gives.
    ("ipv6/conf/default/addr_gen_mode", "0"),
];

/// What went wrong with a namespace.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No name of a namespace of ours.
    #[error("{0:?} is no name of a router's namespace")]
    Name(String),
    /// There is none of that name.
    #[error("there is no network namespace {0}")]
    Missing(String),
    /// A step that the kernel refused.
    #[error("{step} network namespace {name}")]
    Step {
        /// What was done.
        step: &'static str,
        /// The namespace.
        name: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A setting of the namespace's.
    #[error("write {path} in network namespace {name}")]
    Setting {
        /// The namespace.
        name: String,
        /// The file.
        path: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A socket in it.
    #[error("work in network namespace {name}")]
    Netlink {
        /// The namespace.
        name: String,
        /// What was wrong.
        #[source]
        source: netlink::Error,
    },
    /// The thread that was to do it.
    #[error("start a thread for network namespace {name}")]
    Thread {
        /// The namespace.
        name: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The list of those that are there.
    #[error("list {DIRECTORY}")]
    List(#[source] io::Error),
}

/// What is needed to work in a namespace. It lives on, without its name, while this does.
#[derive(Debug)]
pub struct Namespace {
    /// The namespace, for links to be put into.
    pub handle: OwnedFd,
    /// A socket of rtnetlink in it.
    pub links: OwnedFd,
    /// A socket of nfnetlink in it.
    pub filters: OwnedFd,
}

/// Makes a namespace that must not be there yet.
///
/// # Errors
/// As [`Error`] says; then there is none of that name.
pub fn create(name: &str) -> Result<Namespace, Error> {
    let path = path_of(name)?;
    let step = |step| move |source| Error::Step { step, name: name.to_owned(), source };
    fs::create_dir_all(DIRECTORY).map_err(step("make a directory for"))?;
    if open_file(name).is_ok() {
        return Err(step("make")(io::ErrorKind::AlreadyExists.into()));
    }
    // A file that is no namespace is what a making that was cut off has left.
    match fs::remove_file(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(step("make a name for")(error)),
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o444);
    options.open(&path).map_err(step("make a name for"))?;
    let made = on_a_thread(name, || {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| step("make")(errno.into()))?;
        for (setting, value) in SETTINGS {
            set(name, setting, value)?;
        }
        let failed = |source| Error::Netlink { name: name.to_owned(), source };
        let mut links = netlink::Client::open().map_err(failed)?;
        links.execute(vec![Request::set_up("lo", true)]).map_err(failed)?;
        let own = Path::new("/proc/thread-self/ns/net");
        let namespace = open_inside(name, File::open(own).map_err(step("open"))?.into())?;
        mount(Some(own), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(|errno| step("name")(errno.into()))?;
        Ok(namespace)
    });
    if made.is_err() {
        // The first failure is the one to tell of.
        let _ = fs::remove_file(&path);
    }
    made
}

/// Opens a namespace.
///
/// # Errors
/// [`Error::Missing`] if there is none of that name, else as [`Error`] says.
pub fn open(name: &str) -> Result<Namespace, Error> {
    let handle = open_file(name)?;
    on_a_thread(name, || {
        setns(&handle, CloneFlags::CLONE_NEWNET).map_err(|errno| Error::Step {
            step: "enter",
            name: name.to_owned(),
            source: errno.into(),
        })?;
        let handle = handle.try_clone().map_err(|source| Error::Step {
            step: "hold",
            name: name.to_owned(),
            source,
        })?;
        open_inside(name, handle.into())
    })
}

/// Takes a namespace's name away, if it is there: with its last user it is gone.
///
/// # Errors
/// As [`Error`] says.
pub fn remove(name: &str) -> Result<(), Error> {
    let path = path_of(name)?;
    let step = |step| move |source: io::Error| Error::Step { step, name: name.to_owned(), source };
    while open_file(name).is_ok() {
        umount2(&path, MntFlags::MNT_DETACH).map_err(|errno| step("detach")(errno.into()))?;
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(step("remove")(error)),
        _ => Ok(()),
    }
}

/// The names of all namespaces that have the form of ours, of whichever cloud.
///
/// # Errors
/// As [`Error`] says.
pub fn names() -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(DIRECTORY) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::List(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(Error::List)?.file_name();
        names.extend(name.into_string().ok().filter(|name| is_namespace_name(name)));
    }
    Ok(names)
}

/// Whether there is a namespace of this name.
#[must_use]
pub fn is_there(name: &str) -> bool {
    open_file(name).is_ok()
}

fn path_of(name: &str) -> Result<PathBuf, Error> {
    if !is_namespace_name(name) {
        return Err(Error::Name(name.chars().take(64).collect()));
    }
    Ok(Path::new(DIRECTORY).join(name))
}

/// The namespace behind a name, if there is one.
fn open_file(name: &str) -> Result<File, Error> {
    let missing = || Error::Missing(name.to_owned());
    let file = File::open(path_of(name)?).map_err(|_| missing())?;
    let kind = fstatfs(&file).map_err(|_| missing())?.filesystem_type();
    if kind == NSFS { Ok(file) } else { Err(missing()) }
}

/// The sockets of the namespace that this thread is in.
fn open_inside(name: &str, handle: OwnedFd) -> Result<Namespace, Error> {
    let socket = |protocol| {
        let opened = Connection::open(protocol).map(Connection::into_descriptor);
        opened.map_err(|source| Error::Netlink { name: name.to_owned(), source })
    };
    Ok(Namespace { handle, links: socket(NETLINK_ROUTE)?, filters: socket(NETLINK_NETFILTER)? })
}

fn set(name: &str, setting: &str, value: &str) -> Result<(), Error> {
    let path = format!("/proc/sys/net/{setting}");
    match fs::write(&path, value) {
        Ok(()) => Ok(()),
        // A kernel without IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound && setting.starts_with("ipv6/") => Ok(()),
        Err(source) => Err(Error::Setting { name: name.to_owned(), path, source }),
    }
}

/// Runs something on a thread of its own, whose namespace nobody else has.
fn on_a_thread<T: Send>(name: &str, work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    thread::scope(|scope| {
        let started = thread::Builder::new().name("namespace".to_owned()).spawn_scoped(scope, work);
        let thread = started.map_err(|source| Error::Thread { name: name.to_owned(), source })?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
