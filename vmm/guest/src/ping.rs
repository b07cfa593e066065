//! ICMP echo to others (RFC 792, RFC 4443); answering theirs is the stack's own doing.
//!
//! Must never know: why.

use alloc::rc::Rc;
use alloc::vec;
use core::net::{IpAddr, Ipv6Addr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::icmp::{Endpoint, PacketBuffer, PacketMetadata, Socket};
use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpAddress};

use crate::machine::Machine;
use crate::stack::Stack;

/// How long an answer is waited for, in nanoseconds.
pub const TIMEOUT_NS: u64 = 1_000_000_000;
/// What is sent along and must come back.
const PAYLOAD: &[u8] = b"wisp guest echo payload, 32 byte";
/// Bytes of a packet in either direction: the payload and eight of header, with room for errors that quote it.
const BUFFER_BYTES: usize = 256;

/// Sends one echo request to `target`; the round trip in nanoseconds, or `None` if no answer came in time.
pub async fn ping(machine: &'static Machine, stack: &Rc<Stack>, target: IpAddr) -> Option<u64> {
    // An identifier of its own, so that pings at the same time do not take each other's answers.
    let ident = stack.ephemeral_port();
    let buffer = || PacketBuffer::new(vec![PacketMetadata::EMPTY; 2], vec![0; BUFFER_BYTES]);
    let handle = stack.add(Socket::new(buffer(), buffer()));
    if let IpAddr::V4(target) = target {
        stack.seek(target, &machine.clock);
    }
    let started_ns = machine.clock.now_ns();
    stack.with(handle, |socket: &mut Socket<'static>, _| {
        socket.bind(Endpoint::Ident(ident)).ok()?;
        request(socket, target, ident)
    });
    let answered = || {
        stack.with(handle, |socket: &mut Socket<'static>, _| {
            let (packet, from) = socket.recv().ok()?;
            (from == IpAddress::from(target) && is_reply(packet, target, ident))
                .then(|| machine.clock.now_ns() - started_ns)
        })
    };
    let round_trip_ns = machine.wait_until(started_ns + TIMEOUT_NS, answered).await;
    stack.remove(handle);
    round_trip_ns
}

/// Hands the request to the stack, which fills in the checksum that depends on our address.
fn request(socket: &mut Socket<'static>, target: IpAddr, ident: u16) -> Option<()> {
    let checksums = ChecksumCapabilities::default();
    match target {
        IpAddr::V4(_) => {
            let request = Icmpv4Repr::EchoRequest { ident, seq_no: 1, data: PAYLOAD };
            let packet = socket.send(request.buffer_len(), target.into()).ok()?;
            request.emit(&mut Icmpv4Packet::new_unchecked(packet), &checksums);
        }
        IpAddr::V6(address) => {
            let request = Icmpv6Repr::EchoRequest { ident, seq_no: 1, data: PAYLOAD };
            let packet = socket.send(request.buffer_len(), target.into()).ok()?;
            let packet = &mut Icmpv6Packet::new_unchecked(packet);
            request.emit(&Ipv6Addr::UNSPECIFIED, &address, packet, &checksums);
        }
    }
    Some(())
}

/// Whether a packet, whose checksum the stack has looked at, answers our request.
fn is_reply(packet: &[u8], target: IpAddr, ident: u16) -> bool {
    let checksums = ChecksumCapabilities::ignored();
    match target {
        IpAddr::V4(_) => {
            let ours = Icmpv4Repr::EchoReply { ident, seq_no: 1, data: PAYLOAD };
            let packet = Icmpv4Packet::new_checked(packet);
            packet.is_ok_and(|packet| Icmpv4Repr::parse(&packet, &checksums).is_ok_and(|reply| reply == ours))
        }
        IpAddr::V6(address) => {
            let ours = Icmpv6Repr::EchoReply { ident, seq_no: 1, data: PAYLOAD };
            let packet = Icmpv6Packet::new_checked(packet);
            packet.is_ok_and(|packet| {
                Icmpv6Repr::parse(&address, &Ipv6Addr::UNSPECIFIED, &packet, &checksums)
                    .is_ok_and(|reply| reply == ours)
            })
        }
    }
}
