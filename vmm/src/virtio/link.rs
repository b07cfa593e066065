//! The far side of a network device: something that takes and gives whole packets, each behind a
//! `virtio_net_hdr` of [`net::HEADER_BYTES`].
#![expect(
    unsafe_code,
    reason = "a tap is set up with two ioctls that no crate wraps, and the kernel is given addresses in guest memory"
)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use super::Error;
use super::spec::net;

/// The host's end of a guest's network device; non-blocking.
pub trait Link: AsRawFd + Send {
    /// Tells the host what the driver takes: checksum and segmentation offloads among `features`.
    fn set_offloads(&mut self, features: u64) -> io::Result<()>;
    /// Takes one packet that is waiting; `WouldBlock` if there is none, 0 bytes if the other end is gone.
    fn receive(&mut self, packet: &mut [u8]) -> io::Result<usize>;
    /// Gives one packet to the host; `WouldBlock` if it takes none now.
    fn send(&mut self, packet: &[u8]) -> io::Result<()>;
    /// As [`Self::receive`], with the first bytes in `head` and the rest where `rest` points.
    ///
    /// # Safety
    /// `rest` points at memory of this process that nobody holds a reference to, such as a guest's.
    unsafe fn receive_apart(&mut self, head: &mut [u8], rest: &[libc::iovec]) -> io::Result<usize> {
        let head = libc::iovec { iov_base: head.as_mut_ptr().cast(), iov_len: head.len() };
        let vectors: Vec<_> = std::iter::once(head).chain(rest.iter().copied()).collect();
        // SAFETY: `head` is a live exclusive slice, and the rest is as the caller says.
        count(unsafe { libc::readv(self.as_raw_fd(), vectors.as_ptr(), length(&vectors)) })
    }
    /// As [`Self::send`], with the first bytes in `head` and the rest where `rest` points.
    ///
    /// # Safety
    /// As of [`Self::receive_apart`].
    unsafe fn send_apart(&mut self, head: &[u8], rest: &[libc::iovec]) -> io::Result<()> {
        let head = libc::iovec { iov_base: head.as_ptr().cast_mut().cast(), iov_len: head.len() };
        let vectors: Vec<_> = std::iter::once(head).chain(rest.iter().copied()).collect();
        // SAFETY: `head` is a live slice that the kernel only reads, and the rest is as the caller says.
        count(unsafe { libc::writev(self.as_raw_fd(), vectors.as_ptr(), length(&vectors)) }).map(drop)
    }
}

/// More than the kernel takes is an error of its own.
fn length(vectors: &[libc::iovec]) -> libc::c_int {
    libc::c_int::try_from(vectors.len()).unwrap_or(libc::c_int::MAX)
}

fn count(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// A tap with `IFF_VNET_HDR`.
#[derive(Debug)]
pub struct Tap(File);

impl Tap {
    /// Sets up an attached tap: twelve header bytes, non-blocking, no offloads yet.
    pub fn new(tap: OwnedFd) -> Result<Self, Error> {
        let set_up = |what: &'static str| move |source: io::Error| Error::Tap { what, source };
        let flags = rustix::fs::fcntl_getfl(&tap).map_err(|errno| set_up("read its flags")(errno.into()))?;
        rustix::fs::fcntl_setfl(&tap, flags | rustix::fs::OFlags::NONBLOCK)
            .map_err(|errno| set_up("make it non-blocking")(errno.into()))?;
        let header_bytes = net::HEADER_BYTES as libc::c_int;
        // SAFETY: `tap` is an open descriptor, and the request reads one int from a pointer to a live int.
        let result = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header_bytes) };
        if result < 0 {
            return Err(set_up("set the header size")(io::Error::last_os_error()));
        }
        let mut tap = Self(File::from(tap));
        tap.set_offloads(0).map_err(set_up("clear its offloads"))?;
        Ok(tap)
    }
}

/// The tap's offload flags for what the driver accepts; without checksums the kernel takes no segments either.
fn offload_flags(features: u64) -> libc::c_uint {
    if features & net::F_GUEST_CSUM == 0 {
        return 0;
    }
    let flag = |feature: u64, flag: libc::c_uint| if features & feature == 0 { 0 } else { flag };
    libc::TUN_F_CSUM | flag(net::F_GUEST_TSO4, libc::TUN_F_TSO4) | flag(net::F_GUEST_TSO6, libc::TUN_F_TSO6)
}

impl Link for Tap {
    fn set_offloads(&mut self, features: u64) -> io::Result<()> {
        // SAFETY: the descriptor is open, and the request takes its argument by value.
        let result = unsafe {
            libc::ioctl(self.0.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offload_flags(features)))
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn receive(&mut self, packet: &mut [u8]) -> io::Result<usize> {
        self.0.read(packet)
    }

    fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        self.0.write(packet).map(drop)
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
