//! Frames of a guest and of the link: whole ones with a few bytes changed, and TCP conversations out of order; in a VLAN or
//! in none.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use etherparse::{ArpEthIpv4Packet, ArpOperation, ArpPacket, PacketBuilder, TransportSlice};
use ipnet::Ipv6Net;
use vmm::config::{
    Addressing, AnnouncedPrefix, Announcement, DhcpOption, Dhcpv6Config, EndpointConfig, Ipv4Config,
    Ipv6Config, VlanAddressing,
};
use vmm::endpoint::{Endpoints, METADATA_ADDRESS, METADATA_ADDRESS_V6};

use crate::input::Reader;

pub(crate) const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 7);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const GUEST_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, 7);
const ALL_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
/// The VLAN of those that are in one.
const VLAN: u16 = 5;
/// Frames per input.
const FRAMES_MAX: usize = 64;

pub(crate) fn config() -> EndpointConfig {
    let ipv4 = Ipv4Config {
        address: GUEST,
        prefix_len: 24,
        gateway: Some(GATEWAY),
        dhcp_server: SERVER,
        dns: vec![GATEWAY],
        routes: vec![],
        options: vec![DhcpOption { name: "bootfile-name".to_owned(), value: "file".to_owned() }],
    };
    let prefix = Ipv6Net::new(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 64);
    let prefix = prefix.expect("invariant: a length that is one");
    let announcement = Announcement {
        router: Some([2, 0, 0, 0, 0, 1]),
        is_default: true,
        managed: true,
        prefixes: vec![AnnouncedPrefix { prefix, autonomous: true }],
        routes: vec![prefix],
        dns: vec![GUEST_V6],
        ..Announcement::default()
    };
    let dhcp = Dhcpv6Config { addresses: vec![GUEST_V6], on_link: vec![prefix], ..Dhcpv6Config::default() };
    let addressing = Addressing {
        ipv4: Some(ipv4),
        ipv6: Ipv6Config { announcements: vec![announcement], others_announce: false, dhcp: Some(dhcp) },
        hostname: "fuzz".to_owned(),
        domain: "fuzz.example".to_owned(),
        lease_s: 3600,
        resolver: true,
        neighbours: BTreeMap::from([(GATEWAY, [2, 0, 0, 0, 0, 1])]),
        vlans: BTreeMap::new(),
    };
    let metadata = BTreeMap::from([
        ("/latest/user-data".to_owned(), "x".repeat(20_000).into()),
        ("/openstack/latest/meta_data.json".to_owned(), "{}".into()),
    ]);
    EndpointConfig { addressing, metadata }
}

/// A frame of the kind that the input asks for, with as many bytes changed as it says.
pub(crate) fn frame(reader: &mut Reader<'_>) -> Vec<u8> {
    let mut frame = match reader.u8() % 14 {
        0 => arp(),
        1 => dhcp(reader),
        2 => reader.bytes(64).to_vec(),
        3 | 4 => dhcpv6(reader),
        5 | 6 => discovery(reader),
        7 | 8 => question(reader),
        _ => tcp(reader),
    };
    let changes = reader.u8() % 16;
    for _ in 0..changes.saturating_sub(11) {
        let place = usize::from(reader.u16()) % frame.len().max(1);
        if let Some(byte) = frame.get_mut(place) {
            *byte = reader.u8();
        }
    }
    let cut = usize::from(reader.u8());
    if cut >= 0xf0 {
        frame.truncate(frame.len().saturating_sub(cut - 0xe0));
    }
    frame
}

fn arp() -> Vec<u8> {
    let packet = ArpEthIpv4Packet {
        operation: ArpOperation::REQUEST,
        sender_mac: GUEST_MAC,
        sender_ipv4: GUEST.octets(),
        target_mac: [0; 6],
        target_ipv4: GATEWAY.octets(),
    };
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(GUEST_MAC, [0xff; 6]).arp(ArpPacket::from(packet));
    builder.write(&mut frame).expect("invariant: a vector takes all");
    frame
}

/// A DHCP request of the guest's MAC whose options are the input's.
fn dhcp(reader: &mut Reader<'_>) -> Vec<u8> {
    let mut message = vec![0; 236];
    message[..4].copy_from_slice(&[1, 1, 6, 0]);
    message[28..34].copy_from_slice(&GUEST_MAC);
    message.extend_from_slice(&[99, 130, 83, 99, 53, 1, reader.u8() % 10]);
    let length = usize::from(reader.u8());
    message.extend_from_slice(reader.bytes(length));
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(GUEST_MAC, [0xff; 6])
        .ipv4([0; 4], [255; 4], 64)
        .udp(68, 67)
        .write(&mut frame, &message)
        .expect("invariant: a vector takes all");
    frame
}

/// A DHCPv6 message whose options are whole ones and the input's.
fn dhcpv6(reader: &mut Reader<'_>) -> Vec<u8> {
    let mut message = vec![reader.u8() % 14, 1, 2, 3];
    for _ in 0..reader.u8() % 6 {
        match reader.u8() % 6 {
            0 => message.extend_from_slice(&[0, 1, 0, 10, 0, 3, 0, 1, 2, 0, 0, 0, 0, 7]),
            1 => message.extend_from_slice(&[0, 2, 0, 10, 0, 3, 0, 1, 2, 0, 169, 254, 169, 254]),
            2 => message.extend_from_slice(&[0, 3, 0, 12, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
            3 => message.extend_from_slice(&[0, 14, 0, 0, 0, 6, 0, 4, 0, 23, 0, 24]),
            _ => {
                let length = reader.u8();
                message.extend_from_slice(&[0, reader.u8() % 40, 0, length]);
                message.extend_from_slice(reader.bytes(usize::from(length)));
            }
        }
    }
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(GUEST_MAC, [0x33, 0x33, 0, 1, 0, 2])
        .ipv6(LINK_LOCAL.octets(), ALL_SERVERS.octets(), 1)
        .udp(546, 547)
        .write(&mut frame, &message)
        .expect("invariant: a vector takes all");
    frame
}

/// A message of neighbour or router discovery.
fn discovery(reader: &mut Reader<'_>) -> Vec<u8> {
    let source = if reader.u8().is_multiple_of(2) { Ipv6Addr::UNSPECIFIED } else { LINK_LOCAL };
    let target = if reader.u8().is_multiple_of(2) { METADATA_ADDRESS_V6 } else { GUEST_V6 };
    let mut payload = target.octets().to_vec();
    let length = usize::from(reader.u8() % 64);
    payload.extend_from_slice(reader.bytes(length));
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(GUEST_MAC, [0x33, 0x33, 0, 0, 0, 2])
        .ipv6(source.octets(), METADATA_ADDRESS_V6.octets(), 255)
        .icmpv6_raw(133 + reader.u8() % 5, 0, [0; 4])
        .write(&mut frame, &payload)
        .expect("invariant: a vector takes all");
    frame
}

/// A question about a name, by either version of IP.
fn question(reader: &mut Reader<'_>) -> Vec<u8> {
    let mut message = QUESTION.to_vec();
    let length = usize::from(reader.u8());
    message.extend_from_slice(reader.bytes(length));
    message.truncate(usize::from(reader.u8()) * 8);
    let ethernet = PacketBuilder::ethernet2(GUEST_MAC, [2, 0, 0, 0, 0, 1]);
    let ip = if reader.u8().is_multiple_of(2) {
        ethernet.ipv4(GUEST.octets(), SERVER.octets(), 64)
    } else {
        ethernet.ipv6(LINK_LOCAL.octets(), METADATA_ADDRESS_V6.octets(), 64)
    };
    let mut frame = Vec::new();
    ip.udp(5353, 53).write(&mut frame, &message).expect("invariant: a vector takes all");
    frame
}

const QUESTION: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03web\0\0\x01\0\x01";
/// The same as TCP has it.
const QUESTION_WITH_LENGTH: &[u8] = b"\0\x15\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03web\0\0\x01\0\x01";

const REQUESTS: [&str; 6] = [
    "GET / HTTP/1.1\r\n\r\n",
    "GET /latest/user-data HTTP/1.0\r\n\r\n",
    "HEAD /openstack HTTP/1.1\r\nConnection: close\r\n\r\n",
    "PUT /latest/api/token HTTP/1.1\r\nContent-Length: 3\r\n\r\n",
    "GET /openstack/latest/me",
    "ta_data.json HTTP/1.1\r\n",
];

/// A segment of one of a few connections; sequence numbers follow none but the input.
fn tcp(reader: &mut Reader<'_>) -> Vec<u8> {
    let port = 1000 + u16::from(reader.u8() % 12);
    let sequence = match reader.u8() % 4 {
        0 => reader.u32(),
        step => 1000 + u32::from(step) * 18,
    };
    let acknowledged = reader.u32();
    let flags = reader.u8();
    let ethernet = PacketBuilder::ethernet2(GUEST_MAC, [2, 0, 0, 0, 0, 1]);
    let to_resolver = port % 3 == 0;
    // A connection is by one version of IP or the other.
    let ip = if port % 2 == 0 {
        let server = if to_resolver { SERVER } else { METADATA_ADDRESS };
        ethernet.ipv4(GUEST.octets(), server.octets(), 64)
    } else {
        ethernet.ipv6(LINK_LOCAL.octets(), METADATA_ADDRESS_V6.octets(), 64)
    };
    let mut builder = ip.tcp(port, if to_resolver { 53 } else { 80 }, sequence, reader.u16());
    if flags & 3 == 0 {
        builder = builder.syn();
    } else {
        builder = builder.ack(acknowledged);
    }
    if flags & 0x0c == 4 {
        builder = builder.fin();
    }
    if flags & 0xf0 == 0x10 {
        builder = builder.rst();
    }
    let request = REQUESTS.get(usize::from(reader.u8() % 12)).copied().unwrap_or_default();
    let payload = if to_resolver && !request.is_empty() { QUESTION_WITH_LENGTH } else { request.as_bytes() };
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).expect("invariant: a vector takes all");
    frame
}

/// Makes a TCP frame continue the conversation that `answer` belongs to, so that conversations get somewhere.
fn follow(frame: &mut [u8], answer: &[u8]) {
    let before = frame.to_vec();
    let (Ok(ours), Ok(theirs)) =
        (etherparse::SlicedPacket::from_ethernet(&before), etherparse::SlicedPacket::from_ethernet(answer))
    else {
        return;
    };
    let (Some(TransportSlice::Tcp(ours)), Some(TransportSlice::Tcp(theirs))) =
        (ours.transport, theirs.transport)
    else {
        return;
    };
    if ours.syn() {
        return;
    }
    let taken = theirs.payload().len() as u32 + u32::from(theirs.syn()) + u32::from(theirs.fin());
    let port = theirs.destination_port().to_be_bytes();
    let sequence = theirs.acknowledgment_number().to_be_bytes();
    let acknowledged = theirs.sequence_number().wrapping_add(taken).to_be_bytes();
    let segment_bytes = ours.slice().len();
    let start = frame.len() - segment_bytes;
    frame[start..start + 2].copy_from_slice(&port);
    frame[start + 2..start + 4].copy_from_slice(&theirs.source_port().to_be_bytes());
    frame[start + 4..start + 8].copy_from_slice(&sequence);
    frame[start + 8..start + 12].copy_from_slice(&acknowledged);
}

/// Puts what is answered into a VLAN, where the device answers nothing by itself.
fn in_vlan(addressing: Addressing, mtu: u16) -> Addressing {
    let carried = VlanAddressing { mac: GUEST_MAC, mtu, addressing };
    Addressing { vlans: BTreeMap::from([(VLAN, carried)]), ..Addressing::default() }
}

pub(crate) fn run(input: &[u8]) {
    let mut reader = Reader::new(input);
    let first = reader.u8();
    let (is_tagged, mtu) = (first & 0x80 != 0, 576 + u16::from(first));
    let place = |addressing| if is_tagged { in_vlan(addressing, mtu) } else { addressing };
    let EndpointConfig { addressing, metadata } = config();
    let config_there = EndpointConfig { addressing: place(addressing), metadata };
    let mut endpoint = Endpoints::new(config_there, GUEST_MAC, mtu);
    let mut now = Instant::now();
    let mut last = Vec::new();
    for _ in 0..FRAMES_MAX {
        if reader.is_empty() {
            break;
        }
        let mut frame = frame(&mut reader);
        let how = reader.u8();
        if how & 1 == 0 {
            follow(&mut frame, &last);
        }
        if is_tagged && frame.len() >= 12 {
            frame.splice(12..12, [0x81, 0, how & 0xf0, VLAN as u8]);
        }
        endpoint.from_guest(&mut frame, now);
        endpoint.from_link(&mut frame);
        while let Some(question) = endpoint.next_question() {
            if how & 0x10 == 0 {
                endpoint.answered(question.vlan, question.number, &frame, now);
            }
        }
        if how & 2 == 0 {
            now += Duration::from_millis(u64::from(how) * 50);
            endpoint.poll(now);
        }
        if how & 4 == 0 {
            while let Some(answer) = endpoint.next_answer(now) {
                last = answer;
            }
        }
        if how & 0xf8 == 0xf8 {
            let mut addressing = config().addressing;
            addressing.ipv6.announcements.truncate(usize::from(how & 1));
            addressing.resolver = how & 2 == 0;
            endpoint.readdress(place(addressing), now);
        }
        endpoint.poll_delay(now);
    }
    // Left alone and fetched, everything comes to an end.
    for _ in 0..100 {
        now += Duration::from_secs(5);
        endpoint.poll(now);
        while endpoint.next_answer(now).is_some() {}
    }
    // Routers are announced every ten minutes, and nothing is due before.
    for _ in 0..2 {
        now += endpoint.poll_delay(now).unwrap_or_default();
        endpoint.poll(now);
        while endpoint.next_answer(now).is_some() {}
    }
    let delay = endpoint.poll_delay(now);
    assert!(
        delay.is_none_or(|delay| delay == Duration::from_secs(600)),
        "connections outlive their guest's silence: {delay:?}"
    );
}
