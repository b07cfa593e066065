//! Address resolution (RFC 826) for the addresses that the VMM or the cloud's routers stand for.

use std::net::Ipv4Addr;

use etherparse::{ArpEthIpv4Packet, ArpOperation, ArpPacket, PacketBuilder};

/// The frame that answers `payload`, if it asks for an address that `mac_of` knows.
///
/// A probe for an address in use (RFC 5227, sender 0.0.0.0) is answered as well: the address is taken.
pub(super) fn answer(payload: &[u8], mac_of: impl Fn(Ipv4Addr) -> Option<[u8; 6]>) -> Option<Vec<u8>> {
    let request = ArpPacket::from_slice(payload).ok()?.try_eth_ipv4().ok()?;
    if request.operation != ArpOperation::REQUEST || request.sender_ipv4 == request.target_ipv4 {
        return None;
    }
    let mac = mac_of(Ipv4Addr::from(request.target_ipv4))?;
    let reply = ArpEthIpv4Packet {
        operation: ArpOperation::REPLY,
        sender_mac: mac,
        sender_ipv4: request.target_ipv4,
        target_mac: request.sender_mac,
        target_ipv4: request.sender_ipv4,
    };
    let builder = PacketBuilder::ethernet2(mac, request.sender_mac).arp(ArpPacket::from(reply));
    let mut frame = Vec::with_capacity(builder.size());
    builder.write(&mut frame).ok()?;
    Some(frame)
}
