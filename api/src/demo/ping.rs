//! ICMP echo (RFC 792) from the host to a guest.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, recv, sendto, socket_with,
};

/// Marks our echo requests among others'.
const PATTERN: &[u8; 16] = b"wisp demo echo\r\n";

/// A socket that pings one address.
pub struct Pinger {
    socket: OwnedFd,
    target: SocketAddrV4,
    sequence: u16,
}

impl Pinger {
    /// Opens a raw ICMP socket; needs CAP_NET_RAW.
    pub fn open(target: Ipv4Addr) -> Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::INET, SocketType::RAW, flags, Some(ipproto::ICMP))
            .context("open a raw ICMP socket")?;
        Ok(Self { socket, target: SocketAddrV4::new(target, 0), sequence: 0 })
    }

    /// Sends one echo request and waits this long for its answer: the round trip, or `None`.
    pub fn once(&mut self, patience: Duration) -> Result<Option<Duration>> {
        self.sequence = self.sequence.wrapping_add(1);
        let sent = Instant::now();
        // A host that has no way to the guest yet answers with an error; that is "not yet".
        if sendto(&self.socket, &echo_request(self.sequence), SendFlags::empty(), &self.target).is_err() {
            std::thread::sleep(patience);
            return Ok(None);
        }
        loop {
            let left = patience.saturating_sub(sent.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            let timeout = left.try_into().context("convert the timeout")?;
            poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&timeout))
                .context("wait for an echo reply")?;
            let mut buffer = [0; 512];
            let Ok((length, _)) = recv(&self.socket, &mut buffer[..], RecvFlags::DONTWAIT) else { continue };
            if is_reply(&buffer[..length], *self.target.ip(), self.sequence) {
                return Ok(Some(sent.elapsed()));
            }
        }
    }

    /// Pings until the first answer, at most this long: when it came.
    pub fn until_answer(&mut self, at_most: Duration) -> Result<Option<Instant>> {
        let deadline = Instant::now() + at_most;
        while Instant::now() < deadline {
            if self.once(Duration::from_millis(5))?.is_some() {
                return Ok(Some(Instant::now()));
            }
        }
        Ok(None)
    }
}

fn echo_request(sequence: u16) -> [u8; 24] {
    let mut packet = [0; 24];
    packet[0] = 8;
    packet[4..6].copy_from_slice(&identifier().to_be_bytes());
    packet[6..8].copy_from_slice(&sequence.to_be_bytes());
    packet[8..].copy_from_slice(PATTERN);
    let sum = checksum(&packet);
    packet[2..4].copy_from_slice(&sum.to_be_bytes());
    packet
}

fn identifier() -> u16 {
    (std::process::id() & 0xffff) as u16
}

/// Whether an IPv4 packet is the answer to our request.
fn is_reply(packet: &[u8], from: Ipv4Addr, sequence: u16) -> bool {
    let Some(header) = packet.get(..20) else { return false };
    let icmp = packet.get(usize::from(header[0] & 0xf) * 4..).unwrap_or_default();
    header[12..16] == from.octets()
        && icmp.len() >= 24
        && icmp[0] == 0
        && icmp[4..6] == identifier().to_be_bytes()
        && icmp[6..8] == sequence.to_be_bytes()
        && icmp[8..24] == *PATTERN
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_carries_a_valid_checksum_and_only_its_reply_counts() {
        let request = echo_request(7);
        assert_eq!(checksum(&request), 0);
        let mut packet = vec![0x45; 1];
        packet.resize(20, 0);
        packet[12..16].copy_from_slice(&[10, 0, 0, 5]);
        packet.extend_from_slice(&request);
        assert!(!is_reply(&packet, Ipv4Addr::new(10, 0, 0, 5), 7), "a request is no reply");
        packet[20] = 0;
        assert!(is_reply(&packet, Ipv4Addr::new(10, 0, 0, 5), 7));
        assert!(!is_reply(&packet, Ipv4Addr::new(10, 0, 0, 6), 7));
        assert!(!is_reply(&packet, Ipv4Addr::new(10, 0, 0, 5), 8));
        assert!(!is_reply(&packet[..30], Ipv4Addr::new(10, 0, 0, 5), 7));
    }
}
