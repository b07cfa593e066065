//! Taps: made and opened through `/dev/net/tun` by the ioctls of `linux/if_tun.h`.
//!
//! A tap's descriptor carries whole Ethernet frames, each behind a virtio-net header of [`VNET_HEADER_SIZE`] bytes
//! (VIRTIO 1.3 §5.1.6, with `num_buffers`). Knows no bridge and no rule.
//!
//! A tap has as many queues as it is opened times, if it was made to have several (`IFF_MULTI_QUEUE`), and one if not; which it is
//! stays so as long as the tap is there. The kernel spreads flows over the queues that are open: each must be read. Only taps that
//! several queues are wanted of are made so, since the kernel has room for 256 in each of these.

#![expect(unsafe_code, reason = "the tun ioctls have no safe wrapper")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use crate::names::is_interface_name;

/// The header before each frame, in bytes: `struct virtio_net_hdr_v1`.
pub const VNET_HEADER_SIZE: u32 = 12;

const CLONE_DEVICE: &str = "/dev/net/tun";

const FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// What went wrong with a tap.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name is not one for a link.
    #[error("{0:?} is no interface name")]
    Name(String),
    /// The device that makes taps could not be opened: no tun in the kernel, or not the right to.
    #[error("open {CLONE_DEVICE}")]
    CloneDevice(#[source] io::Error),
    /// The tap could not be made or attached to. "Busy" means that it exists (create) or that someone else has it
    /// open (open).
    #[error("attach to tap {name}")]
    Attach {
        /// The tap.
        name: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// It was made to have one queue.
    #[error(
        "tap {name} was made to have one queue and cannot have more: make it anew (`ip tuntap add {name} mode tap multi_queue`), or take one"
    )]
    SingleQueue {
        /// The tap.
        name: String,
    },
    /// An attribute of the tap could not be set or told.
    #[error("set {what} of tap {name}")]
    Set {
        /// The tap.
        name: String,
        /// The attribute.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Whether the link is no tap, or none of the kind that was asked for.
    fn is_invalid(&self) -> bool {
        matches!(self, Self::Attach { source, .. } if source.raw_os_error() == Some(libc::EINVAL))
    }

    /// Whether somebody else has the tap open (or, on creation, it exists).
    #[must_use]
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Attach { source, .. } if source.raw_os_error() == Some(libc::EBUSY))
    }
}

/// Makes a tap that must not exist yet. It vanishes with the descriptor until [`persist`] is called on it.
///
/// The descriptor does not block and is closed on exec. Needs `CAP_NET_ADMIN`.
///
/// # Errors
/// As [`Error`] says; "busy" if a link of this name exists.
pub fn create(name: &str) -> Result<OwnedFd, Error> {
    attach(name, libc::IFF_TUN_EXCL)
}

/// The same with so many queues, one at the least, each by a descriptor of its own.
///
/// # Errors
/// As of [`create`].
pub fn create_queues(name: &str, queues: u16) -> Result<Vec<OwnedFd>, Error> {
    if queues <= 1 {
        return Ok(vec![create(name)?]);
    }
    let first = attach(name, libc::IFF_TUN_EXCL | libc::IFF_MULTI_QUEUE)?;
    more_queues(name, first, queues)
}

/// Opens an existing tap, or makes it as [`create`] does; a bridge it is a port of takes its frames at once (see
/// [`settle`]). One that was made to have several queues has one.
///
/// # Errors
/// As [`Error`] says; "busy" while somebody else has the tap open, "invalid" if the link is no tap.
pub fn open(name: &str) -> Result<OwnedFd, Error> {
    let tap = match attach(name, 0) {
        // What a tap is asked to be that it is not is as invalid as what is no tap.
        Err(error) if error.is_invalid() => {
            check_alone(name, 0)?;
            let tap = attach(name, libc::IFF_MULTI_QUEUE).map_err(|_| error)?;
            check_alone(name, 1)?;
            tap
        }
        attached => attached?,
    };
    settle(name)?;
    Ok(tap)
}

/// The same with so many queues, one at the least, each by a descriptor of its own.
///
/// # Errors
/// As of [`open`]; [`Error::SingleQueue`] if it is a tap that cannot have as many, and nobody has it open.
pub fn open_queues(name: &str, queues: u16) -> Result<Vec<OwnedFd>, Error> {
    if queues <= 1 {
        return Ok(vec![open(name)?]);
    }
    check_alone(name, 0)?;
    let first = match attach(name, libc::IFF_MULTI_QUEUE) {
        Err(error) if error.is_invalid() => {
            return Err(match attach(name, 0) {
                Ok(_) => Error::SingleQueue { name: name.to_owned() },
                Err(busy) if busy.is_busy() => busy,
                Err(_) => error,
            });
        }
        attached => attached?,
    };
    let taps = more_queues(name, first, queues)?;
    check_alone(name, queues)?;
    settle(name)?;
    Ok(taps)
}

/// Whether nobody has a tap's queues beside so many of ours: the kernel lets anybody open more of a tap that may have several, who
/// then gets a part of its frames. A tap that is not there is nobody's.
///
/// # Errors
/// "Busy". A kernel that does not tell how many queues a tap has (before 5.17) lets it pass.
fn check_alone(name: &str, queues: u16) -> Result<(), Error> {
    const ETHTOOL_GCHANNELS: u32 = 0x3c;
    // `struct ethtool_channels`: command, four maxima, then how many receive, send, do other things, and both receive and send.
    let mut channels = [0_u32; 9];
    channels[0] = ETHTOOL_GCHANNELS;
    match ask_ethtool(name, "number of queues", channels) {
        Ok([.., combined]) if combined > u32::from(queues) => {
            Err(Error::Attach { name: name.to_owned(), source: io::Error::from_raw_os_error(libc::EBUSY) })
        }
        Err(Error::Set { source, .. })
            if matches!(source.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENODEV)) =>
        {
            Ok(())
        }
        told => told.map(drop),
    }
}

/// The first queue of a tap, and as many more as it takes.
fn more_queues(name: &str, first: OwnedFd, queues: u16) -> Result<Vec<OwnedFd>, Error> {
    let more = (1..queues).map(|_| attach(name, libc::IFF_MULTI_QUEUE));
    std::iter::once(Ok(first)).chain(more).collect()
}

/// Lets the tap outlive its descriptor.
///
/// # Errors
/// The kernel's answer.
pub fn persist(tap: &OwnedFd, name: &str) -> Result<(), Error> {
    set(tap, name, "persistence", libc::TUNSETPERSIST, 1)
}

/// Lets a user open the tap without `CAP_NET_ADMIN`.
///
/// # Errors
/// The kernel's answer.
pub fn set_owner(tap: &OwnedFd, name: &str, uid: u32) -> Result<(), Error> {
    set(tap, name, "owner", libc::TUNSETOWNER, libc::c_ulong::from(uid))
}

/// Lets what follows from the tap having been opened take effect now.
///
/// The kernel tells a bridge that one of its ports has a carrier with up to a second's delay, and the bridge drops what
/// the port sends until then; asking for the carrier (`ETHTOOL_GLINK`) makes it tell at once.
///
/// # Errors
/// The kernel's answer.
pub fn settle(name: &str) -> Result<(), Error> {
    const ETHTOOL_GLINK: u32 = 0x0a;
    // `struct ethtool_value`: command, answer.
    ask_ethtool(name, "carrier", [ETHTOOL_GLINK, 0]).map(drop)
}

/// Asks the kernel with a structure of numbers that begins with the command; the structure as it is answered. `what` names it.
fn ask_ethtool<const N: usize>(
    name: &str,
    what: &'static str,
    mut structure: [u32; N],
) -> Result<[u32; N], Error> {
    let failed = |source| Error::Set { name: name.to_owned(), what, source };
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)
        .map_err(|errno| failed(errno.into()))?;
    let mut request = interface_request(name)?;
    request.ifr_ifru.ifru_data = structure.as_mut_ptr().cast();
    // SAFETY: the descriptor is open; SIOCETHTOOL reads one `ifreq` and reads and writes the structure it points to, which is as
    // long as its command says, and both outlive the call.
    let status = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    if status < 0 { Err(failed(io::Error::last_os_error())) } else { Ok(structure) }
}

fn interface_request(name: &str) -> Result<libc::ifreq, Error> {
    if !is_interface_name(name) {
        return Err(Error::Name(name.chars().take(64).collect()));
    }
    // SAFETY: `ifreq` is plain old data, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
}

fn attach(name: &str, extra_flags: libc::c_int) -> Result<OwnedFd, Error> {
    let mut request = interface_request(name)?;
    let device: File = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(CLONE_DEVICE)
        .map_err(Error::CloneDevice)?;
    request.ifr_ifru.ifru_flags = (FLAGS | extra_flags) as libc::c_short;
    // SAFETY: the descriptor is open, and TUNSETIFF reads and writes one `ifreq`, which outlives the call; its name
    // ends in a zero, since `is_interface_name` leaves at least one of its 16 bytes.
    let status = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    if status < 0 {
        return Err(Error::Attach { name: name.to_owned(), source: io::Error::last_os_error() });
    }
    let tap = OwnedFd::from(device);
    set_vnet_header_size(&tap, name)?;
    Ok(tap)
}

fn set_vnet_header_size(tap: &OwnedFd, name: &str) -> Result<(), Error> {
    let size = VNET_HEADER_SIZE.cast_signed();
    // SAFETY: the descriptor is open, and TUNSETVNETHDRSZ reads one `int`, which outlives the call.
    let status = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ as _, &raw const size) };
    if status < 0 {
        let source = io::Error::last_os_error();
        return Err(Error::Set { name: name.to_owned(), what: "virtio-net header size", source });
    }
    Ok(())
}

fn set(
    tap: &OwnedFd,
    name: &str,
    what: &'static str,
    request: libc::Ioctl,
    value: libc::c_ulong,
) -> Result<(), Error> {
    // SAFETY: the descriptor is open, and the requests that reach here take their argument by value.
    let status = unsafe { libc::ioctl(tap.as_raw_fd(), request, value) };
    if status < 0 {
        return Err(Error::Set { name: name.to_owned(), what, source: io::Error::last_os_error() });
    }
    Ok(())
}
