//! The endpoint against frames made by hand and a TCP client of its own.

use std::collections::BTreeMap;

use dhcproto::v4::{self, DhcpOption, MessageType, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable, Encoder};
use etherparse::{ArpEthIpv4Packet, ArpOperation, ArpPacket, PacketBuilder, PacketHeaders, TransportHeader};

use super::*;
use crate::config::Ipv4Config;

mod ipv6;
mod resolver;
mod vlan;

const GUEST_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 7];
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 7);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const GATEWAY_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 1];
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

fn config() -> EndpointConfig {
    let metadata = [
        ("/openstack/latest/meta_data.json".to_owned(), r#"{"uuid":"1"}"#.into()),
        ("/latest/user-data".to_owned(), "x".repeat(100_000).into()),
    ];
    let ipv4 = Ipv4Config {
        address: GUEST,
        prefix_len: 24,
        gateway: Some(GATEWAY),
        dhcp_server: SERVER,
        dns: vec![Ipv4Addr::new(9, 9, 9, 9)],
        routes: vec![(Ipv4Addr::new(10, 1, 2, 3), 16, GATEWAY)],
        options: Vec::new(),
    };
    let addressing = Addressing {
        ipv4: Some(ipv4),
        hostname: "web".to_owned(),
        domain: "example.org".to_owned(),
        lease_s: 86400,
        neighbours: BTreeMap::from([(GATEWAY, GATEWAY_MAC)]),
        ..Addressing::default()
    };
    EndpointConfig { addressing, metadata: metadata.into() }
}

fn endpoint() -> Endpoint {
    Endpoint::new(config(), GUEST_MAC, 1442)
}

fn chosen(name: &str, value: &str) -> crate::config::DhcpOption {
    crate::config::DhcpOption { name: name.to_owned(), value: value.to_owned() }
}

fn arp_request(target: Ipv4Addr, operation: ArpOperation) -> Vec<u8> {
    let packet = ArpEthIpv4Packet {
        operation,
        sender_mac: GUEST_MAC,
        sender_ipv4: GUEST.octets(),
        target_mac: [0; 6],
        target_ipv4: target.octets(),
    };
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(GUEST_MAC, [0xff; 6]).arp(ArpPacket::from(packet)).write(&mut frame).unwrap();
    frame
}

#[test]
fn arp_is_answered_for_the_configured_addresses_only() {
    let now = Instant::now();
    let mut endpoint = endpoint();
    for (address, mac) in
        [(GATEWAY, GATEWAY_MAC), (SERVER, mac_of(SERVER)), (METADATA_ADDRESS, mac_of(METADATA_ADDRESS))]
    {
        assert_eq!(endpoint.from_guest(&arp_request(address, ArpOperation::REQUEST), now), Verdict::Taken);
        let answer = endpoint.next_answer(now).unwrap();
        assert_eq!(answer[..6], GUEST_MAC);
        let reply = ArpPacket::from_slice(&answer[14..]).unwrap().try_eth_ipv4().unwrap();
        assert_eq!((reply.sender_mac, reply.operation), (mac, ArpOperation::REPLY));
        assert_eq!((reply.target_mac, reply.target_ipv4), (GUEST_MAC, GUEST.octets()));
    }
    let stranger = arp_request(Ipv4Addr::new(10, 0, 0, 9), ArpOperation::REQUEST);
    assert_eq!(endpoint.from_guest(&stranger, now), Verdict::Forward);
    assert_eq!(endpoint.from_guest(&arp_request(GATEWAY, ArpOperation::REPLY), now), Verdict::Forward);
    assert_eq!(endpoint.from_guest(&arp_request(GUEST, ArpOperation::REQUEST), now), Verdict::Forward);
    assert_eq!(endpoint.next_answer(now), None);
}

#[test]
fn answers_that_are_not_fetched_are_bounded() {
    let now = Instant::now();
    let mut endpoint = endpoint();
    for _ in 0..1000 {
        endpoint.from_guest(&arp_request(GATEWAY, ArpOperation::REQUEST), now);
    }
    let fetched = std::iter::from_fn(|| endpoint.next_answer(now)).count();
    assert_eq!(fetched, ANSWERS_MAX);
}

fn dhcp_frame(change: impl FnOnce(&mut v4::Message)) -> Vec<u8> {
    let mut message = v4::Message::default();
    message.set_chaddr(&GUEST_MAC).set_xid(0x1234_5678);
    change(&mut message);
    let mut payload = Vec::new();
    message.encode(&mut Encoder::new(&mut payload)).unwrap();
    udp_frame(&payload)
}

fn udp_frame(payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(GUEST_MAC, [0xff; 6])
        .ipv4([0; 4], [255; 4], 64)
        .udp(68, 67)
        .write(&mut frame, payload)
        .unwrap();
    frame
}

fn ask(endpoint: &mut Endpoint, frame: &[u8]) -> Option<(v4::Message, Vec<u8>)> {
    let now = Instant::now();
    assert_eq!(endpoint.from_guest(frame, now), Verdict::Taken, "DHCP never leaves");
    let answer = endpoint.next_answer(now)?;
    let parsed = PacketHeaders::from_ethernet_slice(&answer).unwrap();
    let Some(TransportHeader::Udp(udp)) = parsed.transport else { panic!("no UDP") };
    assert_eq!((udp.source_port, udp.destination_port), (67, 68));
    let message = v4::Message::decode(&mut Decoder::new(parsed.payload.slice())).unwrap();
    Some((message, answer))
}

fn kind(message: &v4::Message) -> MessageType {
    message.opts().msg_type().unwrap()
}

#[test]
fn discover_is_offered_the_address_with_all_options() {
    let frame = dhcp_frame(|message| {
        message.opts_mut().insert(DhcpOption::MessageType(MessageType::Discover));
    });
    let (offer, answer) = ask(&mut endpoint(), &frame).unwrap();
    assert_eq!((kind(&offer), offer.yiaddr(), offer.xid()), (MessageType::Offer, GUEST, 0x1234_5678));
    assert_eq!(answer[..6], GUEST_MAC);
    let option = |code| offer.opts().get(code).cloned();
    assert_eq!(option(OptionCode::SubnetMask), Some(DhcpOption::SubnetMask([255, 255, 255, 0].into())));
    assert_eq!(option(OptionCode::Router), Some(DhcpOption::Router(vec![GATEWAY])));
    assert_eq!(option(OptionCode::InterfaceMtu), Some(DhcpOption::InterfaceMtu(1442)));
    assert_eq!(option(OptionCode::Hostname), Some(DhcpOption::Hostname("web".to_owned())));
    assert_eq!(option(OptionCode::DomainName), Some(DhcpOption::DomainName("example.org".to_owned())));
    assert_eq!(option(OptionCode::AddressLeaseTime), Some(DhcpOption::AddressLeaseTime(86400)));
    assert_eq!(option(OptionCode::ServerIdentifier), Some(DhcpOption::ServerIdentifier(SERVER)));
    let routes = DhcpOption::ClasslessStaticRoute(vec![
        ("169.254.169.254/32".parse().unwrap(), SERVER),
        ("0.0.0.0/0".parse().unwrap(), GATEWAY),
        ("10.1.0.0/16".parse().unwrap(), GATEWAY),
    ]);
    assert_eq!(option(OptionCode::ClasslessStaticRoute), Some(routes));
}

#[test]
fn server_at_the_metadata_services_own_address_leads_to_it_by_the_gateway_or_on_the_link() {
    for (gateway, next_hop) in [(Some(GATEWAY), GATEWAY), (None, Ipv4Addr::UNSPECIFIED)] {
        let mut config = config();
        let ipv4 = config.addressing.ipv4.as_mut().unwrap();
        (ipv4.dhcp_server, ipv4.gateway, ipv4.routes) = (METADATA_ADDRESS, gateway, Vec::new());
        let frame = dhcp_frame(|message| {
            message.opts_mut().insert(DhcpOption::MessageType(MessageType::Discover));
        });
        let (offer, _) = ask(&mut Endpoint::new(config, GUEST_MAC, 1442), &frame).unwrap();
        let mut routes = vec![("169.254.169.254/32".parse().unwrap(), next_hop)];
        routes.extend(gateway.map(|gateway| ("0.0.0.0/0".parse().unwrap(), gateway)));
        let option = offer.opts().get(OptionCode::ClasslessStaticRoute);
        assert_eq!(option, Some(&DhcpOption::ClasslessStaticRoute(routes)));
        let server = offer.opts().get(OptionCode::ServerIdentifier);
        assert_eq!(server, Some(&DhcpOption::ServerIdentifier(METADATA_ADDRESS)));
    }
}

#[test]
fn each_destination_is_routed_once() {
    let mut config = config();
    config.addressing.ipv4.as_mut().unwrap().routes = vec![
        (super::METADATA_ADDRESS, 32, GATEWAY),
        (Ipv4Addr::UNSPECIFIED, 0, GUEST),
        (Ipv4Addr::new(10, 1, 0, 0), 16, GATEWAY),
        (Ipv4Addr::new(10, 1, 2, 3), 16, GUEST),
    ];
    let frame = dhcp_frame(|message| {
        message.opts_mut().insert(DhcpOption::MessageType(MessageType::Discover));
    });
    let (offer, _) = ask(&mut Endpoint::new(config, GUEST_MAC, 1442), &frame).unwrap();
    let routes = DhcpOption::ClasslessStaticRoute(vec![
        ("169.254.169.254/32".parse().unwrap(), SERVER),
        ("0.0.0.0/0".parse().unwrap(), GATEWAY),
        ("10.1.0.0/16".parse().unwrap(), GATEWAY),
    ]);
    assert_eq!(offer.opts().get(OptionCode::ClasslessStaticRoute), Some(&routes));
}

#[test]
fn options_of_the_port_stand_in_the_place_of_others_or_beside_them() {
    let mut config = config();
    config.addressing.ipv4.as_mut().unwrap().options = vec![
        chosen("mtu", "1280"),
        chosen("bootfile-name", "pxelinux.0"),
        chosen("server-ip-address", "10.0.0.9"),
        chosen("router", ""),
        chosen("no-such-option", "x"),
    ];
    let frame = dhcp_frame(|message| {
        message.opts_mut().insert(DhcpOption::MessageType(MessageType::Discover));
    });
    let (offer, _) = ask(&mut Endpoint::new(config, GUEST_MAC, 1442), &frame).unwrap();
    assert_eq!(offer.opts().get(OptionCode::InterfaceMtu), Some(&DhcpOption::InterfaceMtu(1280)));
    let file = offer.opts().get(OptionCode::BootfileName);
    assert_eq!(file, Some(&DhcpOption::BootfileName(b"pxelinux.0".to_vec())));
    assert_eq!(offer.siaddr(), Ipv4Addr::new(10, 0, 0, 9));
    assert_eq!(offer.opts().get(OptionCode::Router), None);
}

#[test]
fn without_an_address_nothing_is_answered_by_ipv4() {
    let now = Instant::now();
    let mut endpoint = Endpoint::new(EndpointConfig::default(), GUEST_MAC, 1442);
    let frame = dhcp_frame(|message| {
        message.opts_mut().insert(DhcpOption::MessageType(MessageType::Discover));
    });
    assert_eq!(endpoint.from_guest(&frame, now), Verdict::Forward);
    assert_eq!(
        endpoint.from_guest(&arp_request(METADATA_ADDRESS, ArpOperation::REQUEST), now),
        Verdict::Forward
    );
    assert_eq!(endpoint.next_answer(now), None);
    endpoint.readdress(config().addressing, now);
    assert_eq!(endpoint.from_guest(&frame, now), Verdict::Taken);
    assert!(endpoint.next_answer(now).is_some());
}

#[test]
fn request_is_acknowledged_or_refused_by_what_it_asks_for() {
    let request = |wanted: Option<Ipv4Addr>, server: Option<Ipv4Addr>, current: Ipv4Addr| {
        let frame = dhcp_frame(|message| {
            message.set_ciaddr(current);
            let options = message.opts_mut();
            options.insert(DhcpOption::MessageType(MessageType::Request));
            wanted.map(|wanted| options.insert(DhcpOption::RequestedIpAddress(wanted)));
            server.map(|server| options.insert(DhcpOption::ServerIdentifier(server)));
        });
        ask(&mut endpoint(), &frame).map(|(message, frame)| (kind(&message), frame[..6].to_vec()))
    };
    let (ack, nak) = (MessageType::Ack, MessageType::Nak);
    let none = Ipv4Addr::UNSPECIFIED;
    let other = Ipv4Addr::new(10, 0, 0, 99);
    assert_eq!(request(Some(GUEST), Some(SERVER), none), Some((ack, GUEST_MAC.to_vec())), "selecting");
    assert_eq!(request(Some(GUEST), None, none), Some((ack, GUEST_MAC.to_vec())), "rebooting");
    assert_eq!(request(None, None, GUEST), Some((ack, GUEST_MAC.to_vec())), "renewing");
    assert_eq!(request(Some(other), None, none), Some((nak, vec![0xff; 6])));
    assert_eq!(request(None, None, other), Some((nak, vec![0xff; 6])));
    assert_eq!(request(None, None, none), Some((nak, vec![0xff; 6])));
    assert_eq!(request(Some(GUEST), Some(other), none), None, "another server was chosen");
}

#[test]
fn inform_is_told_options_without_a_lease_and_release_is_silent() {
    let send = |kind| {
        dhcp_frame(|message| {
            message.set_ciaddr(GUEST);
            message.opts_mut().insert(DhcpOption::MessageType(kind));
        })
    };
    let (message, _) = ask(&mut endpoint(), &send(MessageType::Inform)).unwrap();
    assert_eq!((kind(&message), message.yiaddr()), (MessageType::Ack, Ipv4Addr::UNSPECIFIED));
    assert!(message.opts().get(OptionCode::AddressLeaseTime).is_none());
    assert!(ask(&mut endpoint(), &send(MessageType::Release)).is_none());
    assert!(ask(&mut endpoint(), &send(MessageType::Decline)).is_none());
}

#[test]
fn broadcast_flag_is_honoured() {
    let frame = dhcp_frame(|message| {
        message.set_flags(v4::Flags::default().set_broadcast());
        message.opts_mut().insert(DhcpOption::MessageType(MessageType::Discover));
    });
    assert_eq!(ask(&mut endpoint(), &frame).unwrap().1[..6], [0xff; 6]);
}

#[test]
fn dhcp_of_strangers_and_garbage_is_swallowed() {
    let stranger = dhcp_frame(|message| {
        message.set_chaddr(&[1; 6]).opts_mut().insert(DhcpOption::MessageType(MessageType::Discover));
    });
    assert!(ask(&mut endpoint(), &stranger).is_none());
    let mut long_address = dhcp_frame(|message| {
        message.opts_mut().insert(DhcpOption::MessageType(MessageType::Discover));
    });
    long_address[14 + 20 + 8 + 2] = 255;
    assert!(ask(&mut endpoint(), &long_address).is_none());
    for length in [0, 1, 239, 240, 241] {
        assert!(ask(&mut endpoint(), &udp_frame(&vec![0xff; length])).is_none());
    }
}

#[test]
fn other_dhcp_servers_do_not_reach_the_guest() {
    let mut rogue = Vec::new();
    PacketBuilder::ethernet2([9; 6], GUEST_MAC)
        .ipv4([10, 0, 0, 66], GUEST.octets(), 64)
        .udp(67, 68)
        .write(&mut rogue, &[0; 300])
        .unwrap();
    let endpoint = endpoint();
    assert!(!endpoint.from_link(&rogue));
    let mut other = Vec::new();
    PacketBuilder::ethernet2([9; 6], GUEST_MAC)
        .ipv4([10, 0, 0, 66], GUEST.octets(), 64)
        .udp(53, 5353)
        .write(&mut other, &[0; 300])
        .unwrap();
    assert!(endpoint.from_link(&other));
    assert!(endpoint.from_link(&[0; 3]));
}

/// A minimal TCP client: no retransmission, it acknowledges whatever comes in order.
struct Client {
    /// By IPv6 from this address, else by IPv4.
    from: Option<Ipv6Addr>,
    to: (Ipv4Addr, u16),
    port: u16,
    sequence: u32,
    acknowledged: u32,
    received: Vec<u8>,
    finished: bool,
    reset: bool,
}

#[derive(Default, Clone, Copy)]
struct Flags {
    syn: bool,
    fin: bool,
}

impl Client {
    fn new(port: u16) -> Self {
        Self {
            from: None,
            to: (METADATA_ADDRESS, 80),
            port,
            sequence: 1000,
            acknowledged: 0,
            received: Vec::new(),
            finished: false,
            reset: false,
        }
    }

    fn segment(&mut self, flags: Flags, payload: &[u8]) -> Vec<u8> {
        let ethernet = PacketBuilder::ethernet2(GUEST_MAC, GATEWAY_MAC);
        let ip = match self.from {
            None => ethernet.ipv4(GUEST.octets(), self.to.0.octets(), 64),
            Some(address) => ethernet.ipv6(address.octets(), METADATA_ADDRESS_V6.octets(), 64),
        };
        let builder = ip.tcp(self.port, self.to.1, self.sequence, 64000);
        let builder = if flags.syn { builder.syn() } else { builder.ack(self.acknowledged) };
        let builder = if flags.fin { builder.fin() } else { builder };
        let mut frame = Vec::new();
        builder.write(&mut frame, payload).unwrap();
        // A guest with checksum offload leaves them unfinished.
        frame[14 + if self.from.is_some() { 40 } else { 20 } + 16] ^= 0x55;
        self.sequence += payload.len() as u32 + u32::from(flags.syn) + u32::from(flags.fin);
        frame
    }

    /// Reads all answers, acknowledging each, until there are no more.
    fn converse(&mut self, endpoint: &mut Endpoint, now: Instant) {
        while let Some(frame) = endpoint.next_answer(now) {
            assert_eq!(frame[..6], GUEST_MAC);
            let parsed = PacketHeaders::from_ethernet_slice(&frame).unwrap();
            let Some(TransportHeader::Tcp(tcp)) = parsed.transport else { panic!("no TCP") };
            if tcp.destination_port != self.port {
                continue;
            }
            self.reset |= tcp.rst;
            if tcp.syn {
                self.acknowledged = tcp.sequence_number.wrapping_add(1);
            } else if tcp.sequence_number == self.acknowledged {
                let payload = parsed.payload.slice();
                self.received.extend_from_slice(payload);
                self.acknowledged += payload.len() as u32 + u32::from(tcp.fin);
                self.finished |= tcp.fin;
                if payload.is_empty() && !tcp.fin {
                    continue;
                }
            }
            let ack = self.segment(Flags::default(), &[]);
            assert_eq!(endpoint.from_guest(&ack, now), Verdict::Taken);
        }
    }

    fn open(&mut self, endpoint: &mut Endpoint, now: Instant) {
        let syn = self.segment(Flags { syn: true, ..Flags::default() }, &[]);
        assert_eq!(endpoint.from_guest(&syn, now), Verdict::Taken);
        self.converse(endpoint, now);
        let ack = self.segment(Flags::default(), &[]);
        endpoint.from_guest(&ack, now);
    }

    fn request(&mut self, endpoint: &mut Endpoint, request: &str, now: Instant) -> String {
        let data = self.segment(Flags::default(), request.as_bytes());
        endpoint.from_guest(&data, now);
        self.converse(endpoint, now);
        String::from_utf8(std::mem::take(&mut self.received)).unwrap()
    }
}

#[test]
fn metadata_is_served_over_a_kept_connection() {
    let now = Instant::now();
    let mut endpoint = endpoint();
    let mut client = Client::new(5000);
    client.open(&mut endpoint, now);
    let answer = client.request(
        &mut endpoint,
        "GET /openstack/latest/meta_data.json HTTP/1.1\r\nHost: m\r\n\r\n",
        now,
    );
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with(r#"{"uuid":"1"}"#), "{answer}");
    let answer = client.request(&mut endpoint, "GET / HTTP/1.1\r\n\r\n", now);
    assert!(answer.ends_with("\r\n\r\nlatest\nopenstack"), "{answer}");
    let answer = client.request(&mut endpoint, "GET /x HTTP/1.1\r\nConnection: close\r\n\r\n", now);
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    assert!(client.finished);
    let fin = client.segment(Flags { fin: true, ..Flags::default() }, &[]);
    endpoint.from_guest(&fin, now);
    client.converse(&mut endpoint, now);
    assert!(endpoint.tcp.is_none(), "the stack is gone with its last connection");
    assert_eq!(endpoint.poll_delay(now), None);
}

#[test]
fn large_body_arrives_whole() {
    let now = Instant::now();
    let mut endpoint = endpoint();
    let mut client = Client::new(5001);
    client.open(&mut endpoint, now);
    let answer = client.request(&mut endpoint, "GET /latest/user-data HTTP/1.0\r\n\r\n", now);
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    assert_eq!(body.len(), 100_000);
    assert!(client.finished);
}

#[test]
fn request_in_pieces_and_requests_in_one_piece_are_answered() {
    let now = Instant::now();
    let mut endpoint = endpoint();
    let mut client = Client::new(5002);
    client.open(&mut endpoint, now);
    assert_eq!(client.request(&mut endpoint, "GET /lat", now), "");
    let answer = client.request(&mut endpoint, "est HTTP/1.1\r\n\r\nGET /x HTTP/1.1\r\n\r\n", now);
    assert!(answer.contains("user-data") && answer.contains("404 Not Found"), "{answer}");
}

#[test]
fn connections_are_bounded_and_idle_ones_are_cut() {
    let now = Instant::now();
    let mut endpoint = endpoint();
    for port in 0..50 {
        Client::new(6000 + port).open(&mut endpoint, now);
    }
    while endpoint.next_answer(now).is_some() {}
    assert!(!endpoint.tcp.as_ref().unwrap().is_idle());
    let delay = endpoint.poll_delay(now).unwrap();
    assert!(delay <= tcp::IDLE_MAX, "{delay:?}");
    let later = now + tcp::IDLE_MAX;
    endpoint.poll(later);
    assert!(std::iter::from_fn(|| endpoint.next_answer(later)).count() >= tcp::CONNECTIONS_MAX, "resets");
    assert!(endpoint.tcp.is_none());
}

#[test]
fn metadata_is_for_the_guests_own_address_and_for_tcp_only() {
    let now = Instant::now();
    let mut endpoint = endpoint();
    let mut syn = Client::new(5003).segment(Flags { syn: true, ..Flags::default() }, &[]);
    syn[14 + 15] = 99;
    assert_eq!(endpoint.from_guest(&syn, now), Verdict::Taken);
    let mut udp = Vec::new();
    PacketBuilder::ethernet2(GUEST_MAC, GATEWAY_MAC)
        .ipv4(GUEST.octets(), METADATA_ADDRESS.octets(), 64)
        .udp(1, 80)
        .write(&mut udp, &[])
        .unwrap();
    assert_eq!(endpoint.from_guest(&udp, now), Verdict::Taken);
    assert_eq!(endpoint.next_answer(now), None);
    assert!(endpoint.tcp.is_none());
}

#[test]
fn closed_ports_are_refused_and_leave_nothing() {
    let now = Instant::now();
    let mut endpoint = endpoint();
    let mut client = Client::new(5004);
    let mut syn = client.segment(Flags { syn: true, ..Flags::default() }, &[]);
    syn[14 + 20 + 3] = 81;
    endpoint.from_guest(&syn, now);
    client.converse(&mut endpoint, now);
    assert!(client.reset);
    assert!(endpoint.tcp.is_none());
}

#[test]
fn random_frames_never_panic() {
    use proptest::test_runner::{Config, TestRunner};
    let now = Instant::now();
    let mut seeds = vec![
        arp_request(GATEWAY, ArpOperation::REQUEST),
        dhcp_frame(|message| {
            message.opts_mut().insert(DhcpOption::MessageType(MessageType::Discover));
        }),
        Client::new(5005).segment(Flags { syn: true, ..Flags::default() }, &[]),
        Client::new(5005).segment(Flags::default(), b"GET / HTTP/1.1\r\n\r\n"),
    ];
    seeds.extend(ipv6::seeds());
    seeds.push(vec![0; 60]);
    let mut runner = TestRunner::new(Config::with_cases(2000));
    let changes = proptest::collection::vec((0..seeds.len(), 0..400_usize, proptest::num::u8::ANY), 1..12);
    runner
        .run(&changes, |changes| {
            let mut endpoint = ipv6::endpoint();
            for (seed, place, value) in changes {
                let mut frame = seeds[seed].clone();
                let place = place % frame.len();
                frame[place] = value;
                frame.truncate(frame.len() - usize::from(value) % 7);
                endpoint.from_guest(&frame, now);
                endpoint.from_link(&frame);
                endpoint.poll(now + Duration::from_millis(u64::from(value) * 100));
            }
            assert!(endpoint.answers.len() <= ANSWERS_MAX);
            Ok(())
        })
        .unwrap();
}

#[test]
fn only_tcp_to_others_is_let_by_unseen() {
    let endpoint = endpoint();
    let to = |address: Ipv4Addr, tcp: bool| {
        let builder =
            PacketBuilder::ethernet2(GUEST_MAC, GATEWAY_MAC).ipv4(GUEST.octets(), address.octets(), 64);
        let mut frame = Vec::new();
        match tcp {
            true => builder.tcp(1, 80, 1, 1).write(&mut frame, b"x").unwrap(),
            false => builder.udp(1, 80).write(&mut frame, b"x").unwrap(),
        }
        frame
    };
    let other = Ipv4Addr::new(10, 0, 0, 9);
    assert!(endpoint.lets_by(&to(other, true)));
    assert!(!endpoint.lets_by(&to(other, false)) && !endpoint.lets_by(&to(METADATA_ADDRESS, true)));
    for ours in [METADATA_ADDRESS_V6, "2001:db8::1".parse().unwrap()] {
        let builder = PacketBuilder::ethernet2(GUEST_MAC, GATEWAY_MAC).ipv6([3; 16], ours.octets(), 64);
        let mut frame = Vec::new();
        builder.tcp(1, 80, 1, 1).write(&mut frame, b"x").unwrap();
        assert_eq!(endpoint.lets_by(&frame), ours != METADATA_ADDRESS_V6);
    }
    let mut tagged = to(other, true);
    tagged.splice(12..12, [0x81, 0, 0, 7]);
    assert!(
        !endpoint.lets_by(&tagged) && !endpoint.lets_by(&to(other, true)[..33]) && !endpoint.lets_by(&[])
    );
}
