//! ICMP echo to others (RFC 792); answering theirs is the stack's own doing.
//!
//! Must never know: why.

use alloc::vec;
use core::net::Ipv4Addr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::icmp::{Endpoint, PacketBuffer, PacketMetadata, Socket};
use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr, IpAddress};

use crate::machine::Machine;
use crate::stack::Stack;

/// How long an answer is waited for, in nanoseconds.
pub const TIMEOUT_NS: u64 = 1_000_000_000;
/// What is sent along and must come back.
const PAYLOAD: &[u8] = b"wisp guest echo payload, 32 byte";
/// Bytes of a packet in either direction: the payload and eight of header, with room for errors that quote it.
const BUFFER_BYTES: usize = 256;

/// Sends one echo request to `target`; the round trip in nanoseconds, or `None` if no answer came in time.
pub async fn ping(machine: &'static Machine, stack: &'static Stack, target: Ipv4Addr) -> Option<u64> {
    // An identifier of its own, so that pings at the same time do not take each other's answers.
    let ident = stack.ephemeral_port();
    let buffer = || PacketBuffer::new(vec![PacketMetadata::EMPTY; 2], vec![0; BUFFER_BYTES]);
    let handle = stack.add(Socket::new(buffer(), buffer()));
    stack.seek(target, &machine.clock);
    let started_ns = machine.clock.now_ns();
    let request = Icmpv4Repr::EchoRequest { ident, seq_no: 1, data: PAYLOAD };
    let checksums = ChecksumCapabilities::default();
    stack.with(handle, |socket: &mut Socket<'static>, _| {
        socket.bind(Endpoint::Ident(ident)).ok()?;
        let packet = socket.send(request.buffer_len(), target.into()).ok()?;
        request.emit(&mut Icmpv4Packet::new_unchecked(packet), &checksums);
        Some(())
    });
    let answered = || {
        stack.with(handle, |socket: &mut Socket<'static>, _| {
            let (packet, from) = socket.recv().ok()?;
            let packet = Icmpv4Packet::new_checked(packet).ok()?;
            let reply = Icmpv4Repr::parse(&packet, &checksums).ok()?;
            let ours = Icmpv4Repr::EchoReply { ident, seq_no: 1, data: PAYLOAD };
            (reply == ours && from == IpAddress::from(target)).then(|| machine.clock.now_ns() - started_ns)
        })
    };
    let round_trip_ns = machine.wait_until(started_ns + TIMEOUT_NS, answered).await;
    stack.remove(handle);
    round_trip_ns
}
