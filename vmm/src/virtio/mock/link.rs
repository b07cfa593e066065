//! A link in place of a tap.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::super::link::Link;

/// A link that is one end of a packet socket, in place of a tap.
#[derive(Debug)]
pub struct PacketSocket {
    socket: OwnedFd,
    /// The features last announced by [`Link::set_offloads`].
    pub offloads: u64,
}

/// A link for a device, and its far end.
pub fn packet_pair() -> io::Result<(PacketSocket, OwnedFd)> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (near, far) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    Ok((PacketSocket { socket: near, offloads: 0 }, far))
}

impl Link for PacketSocket {
    fn set_offloads(&mut self, features: u64) -> io::Result<()> {
        self.offloads = features;
        Ok(())
    }

    fn receive(&mut self, packet: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::net::recv(&self.socket, packet, RecvFlags::empty())?.0)
    }

    fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        rustix::net::send(&self.socket, packet, SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

impl AsRawFd for PacketSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
