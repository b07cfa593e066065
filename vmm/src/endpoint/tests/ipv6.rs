//! The endpoint's IPv6: announcements, neighbours, DHCPv6, metadata.

use dhcproto::v6::{self, Status};
use dhcproto::{Decodable, Decoder, Encodable, Encoder};
use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};

use super::*;
use crate::config::{AnnouncedPrefix, Announcement, Dhcpv6Config, Ipv6Config};

const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, 7);
const LEASED: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x77);
const DNS: Ipv6Addr = Ipv6Addr::new(0x2620, 0xfe, 0, 0, 0, 0, 0, 0xfe);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const ALL_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
const ROUTER_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, 1);

fn announcement() -> Announcement {
    Announcement {
        router: Some(GATEWAY_MAC),
        is_default: true,
        managed: false,
        other: true,
        prefixes: vec![AnnouncedPrefix { prefix: "2001:db8::/64".parse().unwrap(), autonomous: true }],
        routes: vec!["2001:db8:1::/48".parse().unwrap()],
        dns: vec![DNS],
    }
}

fn ipv6_config() -> EndpointConfig {
    let mut config = config();
    config.addressing.ipv6 = Ipv6Config {
        announcements: vec![announcement()],
        others_announce: false,
        dhcp: Some(Dhcpv6Config {
            addresses: vec![LEASED],
            on_link: vec!["2001:db8::/64".parse().unwrap()],
            dns: vec![DNS],
            options: vec![chosen("bootfile-url", "http://x/")],
        }),
    };
    config
}

pub(super) fn endpoint() -> Endpoint {
    Endpoint::new(ipv6_config(), GUEST_MAC, 1442)
}

fn icmp(source: Ipv6Addr, target: Ipv6Addr, kind: u8, hop_limit: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(GUEST_MAC, [0x33, 0x33, 0, 0, 0, 2])
        .ipv6(source.octets(), target.octets(), hop_limit)
        .icmpv6_raw(kind, 0, [0; 4])
        .write(&mut frame, payload)
        .unwrap();
    frame
}

fn router_solicitation() -> Vec<u8> {
    icmp(LINK_LOCAL, ALL_ROUTERS, 133, 255, &[])
}

fn neighbour_solicitation(source: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    icmp(source, ALL_ROUTERS, 135, 255, &target.octets())
}

/// A message as its bytes after the type and the transaction's id.
fn dhcp_frame(kind: u8, options: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(GUEST_MAC, [0x33, 0x33, 0, 1, 0, 2])
        .ipv6(LINK_LOCAL.octets(), ALL_SERVERS.octets(), 1)
        .udp(546, 547)
        .write(&mut frame, &[&[kind, 1, 2, 3], options].concat())
        .unwrap();
    frame
}

fn encoded(options: Vec<v6::DhcpOption>) -> Vec<u8> {
    let mut bytes = Vec::new();
    v6::DhcpOptions::from_iter(options).encode(&mut Encoder::new(&mut bytes)).unwrap();
    bytes
}

fn client() -> v6::DhcpOption {
    v6::DhcpOption::ClientId(vec![0, 3, 0, 1, 2, 0, 0, 0, 0, 7])
}

fn server() -> v6::DhcpOption {
    v6::DhcpOption::ServerId([&[0, 3, 0, 1][..], &OWN_MAC].concat())
}

fn association(id: u32, addresses: &[Ipv6Addr]) -> v6::DhcpOption {
    let lease = |addr: &Ipv6Addr| v6::IAAddr {
        addr: *addr,
        preferred_life: 0,
        valid_life: 0,
        opts: Default::default(),
    };
    let opts = addresses.iter().map(|address| v6::DhcpOption::IAAddr(lease(address))).collect();
    v6::DhcpOption::IANA(v6::IANA { id, t1: 0, t2: 0, opts })
}

fn ask(kind: v6::MessageType, options: Vec<v6::DhcpOption>) -> Option<v6::Message> {
    let now = Instant::now();
    let mut endpoint = endpoint();
    endpoint.announcer.solicited(LINK_LOCAL, GUEST_MAC, now);
    assert_eq!(endpoint.from_guest(&dhcp_frame(kind.into(), &encoded(options)), now), Verdict::Taken);
    let answer = endpoint.next_answer(now)?;
    assert_eq!(endpoint.next_answer(now), None);
    let packet = SlicedPacket::from_ethernet(&answer).unwrap();
    let Some(TransportSlice::Udp(udp)) = packet.transport else { panic!("no UDP") };
    assert_eq!((udp.source_port(), udp.destination_port()), (547, 546));
    assert_eq!(answer[..6], GUEST_MAC);
    assert_eq!(answer[14 + 24..14 + 40], LINK_LOCAL.octets());
    Some(v6::Message::decode(&mut Decoder::new(udp.payload())).unwrap())
}

/// The addresses with their lifetimes, and the status, of a message's first association.
fn leases(message: &v6::Message) -> (Vec<(Ipv6Addr, u32)>, Option<Status>) {
    let Some(v6::DhcpOption::IANA(association)) = message.opts().get(v6::OptionCode::IANA) else {
        panic!("no association in {message:?}")
    };
    let mut status = None;
    let addresses = association.opts.iter().filter_map(|option| match option {
        v6::DhcpOption::IAAddr(lease) => Some((lease.addr, lease.valid_life)),
        v6::DhcpOption::StatusCode(code) => {
            status = Some(code.status);
            None
        }
        _ => None,
    });
    (addresses.collect(), status)
}

/// Frames of the kinds that are read, for others to break.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let solicit = encoded(vec![client(), v6::DhcpOption::RapidCommit, association(1, &[LEASED])]);
    let mut connection = Client::new(5006);
    connection.from = Some(LINK_LOCAL);
    vec![
        router_solicitation(),
        neighbour_solicitation(LINK_LOCAL, METADATA_ADDRESS_V6),
        dhcp_frame(1, &solicit),
        dhcp_frame(4, &solicit),
        connection.segment(Flags { syn: true, ..Flags::default() }, &[]),
    ]
}

#[test]
fn solicited_router_is_announced_under_its_own_address() {
    let now = Instant::now();
    let mut endpoint = endpoint();
    assert_eq!(endpoint.from_guest(&router_solicitation(), now), Verdict::Taken);
    let frame = endpoint.next_answer(now).unwrap();
    assert_eq!(endpoint.next_answer(now), None, "one answer to one question");
    let packet = SlicedPacket::from_ethernet(&frame).unwrap();
    let Some(TransportSlice::Icmpv6(icmp)) = packet.transport else { panic!("no ICMPv6") };
    assert!(icmp.is_checksum_valid(ROUTER_LINK_LOCAL.octets(), LINK_LOCAL.octets()));
    assert_eq!((&frame[..6], &frame[6..12]), (&GUEST_MAC[..], &GATEWAY_MAC[..]));
    assert_eq!(frame[14 + 7], 255, "hop limit");
    let expected = [
        // Type, code and checksum; hop limit, O, a lifetime of half an hour; times that are not said.
        &[134, 0, frame[56], frame[57], 64, 0x40, 0x07, 0x08][..],
        &[0; 8],
        &[1, 1, 2, 0, 0, 0, 0, 1],
        &[5, 1, 0, 0, 0, 0, 0x05, 0xa2],
        &[3, 4, 64, 0xc0, 0, 1, 0x51, 0x80, 0, 0, 0x38, 0x40, 0, 0, 0, 0],
        &"2001:db8::".parse::<Ipv6Addr>().unwrap().octets(),
        &[24, 2, 48, 0, 0, 0, 0x07, 0x08, 0x20, 0x01, 0x0d, 0xb8, 0, 1, 0, 0],
        &[25, 3, 0, 0, 0, 0, 0x07, 0x08],
        &DNS.octets(),
        &[31, 3, 0, 0, 0, 0, 0x07, 0x08],
        b"\x07example\x03org\0\0\0\0",
    ]
    .concat();
    assert_eq!(frame[54..], expected);
}

#[test]
fn guest_that_speaks_ipv6_is_told_at_once_and_every_ten_minutes() {
    let now = Instant::now();
    let mut endpoint = endpoint();
    assert_eq!(endpoint.poll_delay(now), None, "nobody is told who does not speak IPv6");
    let probe = neighbour_solicitation(Ipv6Addr::UNSPECIFIED, LINK_LOCAL);
    assert_eq!(endpoint.from_guest(&probe, now), Verdict::Forward);
    let frame = endpoint.next_answer(now).unwrap();
    assert_eq!((&frame[..6], frame[54]), (&[0x33, 0x33, 0, 0, 0, 1][..], 134));
    assert_eq!(endpoint.next_answer(now), None);
    assert_eq!(endpoint.poll_delay(now), Some(neighbour::INTERVAL));
    let later = now + neighbour::INTERVAL;
    endpoint.poll(later);
    assert_eq!(endpoint.next_answer(later).unwrap()[54], 134);
    assert_eq!(endpoint.poll_delay(later), Some(neighbour::INTERVAL));
}

#[test]
fn without_a_router_the_link_is_announced_and_no_way_out() {
    let mut config = ipv6_config();
    config.addressing.ipv6.announcements =
        vec![Announcement { prefixes: announcement().prefixes, managed: true, ..Announcement::default() }];
    let now = Instant::now();
    let mut endpoint = Endpoint::new(config, GUEST_MAC, 1442);
    endpoint.from_guest(&router_solicitation(), now);
    let frame = endpoint.next_answer(now).unwrap();
    assert_eq!(frame[6..12], OWN_MAC);
    assert_eq!(frame[14 + 8..14 + 24], packet::link_local(OWN_MAC).octets());
    assert_eq!(frame[54 + 4..54 + 8], [64, 0x80, 0, 0]);
}

#[test]
fn solicitations_go_on_to_others_that_announce_or_when_nothing_is_announced() {
    let now = Instant::now();
    let mut rogue = router_solicitation();
    rogue[54] = 134;
    let mut config = ipv6_config();
    config.addressing.ipv6.others_announce = true;
    let mut shared = Endpoint::new(config.clone(), GUEST_MAC, 1442);
    assert_eq!(shared.from_guest(&router_solicitation(), now), Verdict::Forward);
    assert!(shared.next_answer(now).is_some());
    assert!(shared.from_link(&rogue));
    config.addressing.ipv6 = Ipv6Config::default();
    let mut silent = Endpoint::new(config, GUEST_MAC, 1442);
    assert_eq!(silent.from_guest(&router_solicitation(), now), Verdict::Forward);
    assert_eq!(silent.from_guest(&dhcp_frame(1, &encoded(vec![client()])), now), Verdict::Forward);
    assert_eq!(silent.next_answer(now), None);
    assert!(silent.from_link(&rogue));
    assert!(!endpoint().from_link(&rogue), "who announces alone is heard alone");
}

#[test]
fn what_is_announced_no_longer_is_withdrawn_at_once() {
    let now = Instant::now();
    let mut endpoint = endpoint();
    endpoint.from_guest(&router_solicitation(), now);
    while endpoint.next_answer(now).is_some() {}
    // The router leaves; its prefix stays on the link.
    let mut addressing = ipv6_config().addressing;
    addressing.ipv6.announcements =
        vec![Announcement { prefixes: announcement().prefixes, ..Announcement::default() }];
    endpoint.readdress(addressing.clone(), now);
    let farewell = endpoint.next_answer(now).unwrap();
    assert_eq!(farewell[6..12], GATEWAY_MAC);
    assert_eq!(farewell[54 + 6..54 + 8], [0, 0], "it is no default router any more");
    let rest = &farewell[54 + 16 + 16..];
    assert_eq!(
        rest[..8],
        [24, 2, 48, 0, 0, 0, 0, 0],
        "nor does it lead anywhere, and the prefix is not withdrawn"
    );
    assert_eq!(rest[16..24], [25, 3, 0, 0, 0, 0, 0, 0]);
    assert_eq!(endpoint.next_answer(now).unwrap()[6..12], OWN_MAC);
    assert_eq!(endpoint.next_answer(now), None);
    // Saying the same again says nothing of an end.
    endpoint.readdress(addressing, now);
    assert_eq!(endpoint.next_answer(now).unwrap()[6..12], OWN_MAC);
    assert_eq!(endpoint.next_answer(now), None);
    // The subnet goes.
    endpoint.readdress(config().addressing, now);
    let gone = endpoint.next_answer(now).unwrap();
    assert_eq!(gone[54 + 16 + 16..][..12], [3, 4, 64, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!((endpoint.next_answer(now), endpoint.poll_delay(now)), (None, None));
    // One comes: who speaks IPv6 is told, though it has asked long ago.
    endpoint.readdress(ipv6_config().addressing, now);
    assert_eq!(endpoint.next_answer(now).unwrap()[6..12], GATEWAY_MAC);
}

#[test]
fn neighbours_are_answered_for_own_addresses_only() {
    let now = Instant::now();
    let mut endpoint = Endpoint::new(config(), GUEST_MAC, 1442);
    for own in [METADATA_ADDRESS_V6, packet::link_local(OWN_MAC)] {
        for (source, flags, mac) in
            [(LINK_LOCAL, 0x60, GUEST_MAC), (Ipv6Addr::UNSPECIFIED, 0x20, [0x33, 0x33, 0, 0, 0, 1])]
        {
            assert_eq!(endpoint.from_guest(&neighbour_solicitation(source, own), now), Verdict::Taken);
            let frame = endpoint.next_answer(now).unwrap();
            assert_eq!((&frame[..6], frame[54], frame[58]), (&mac[..], 136, flags));
            assert_eq!(frame[62..78], own.octets());
            assert_eq!(frame[78..], [&[2, 1][..], &OWN_MAC].concat());
        }
    }
    let stranger = neighbour_solicitation(LINK_LOCAL, ROUTER_LINK_LOCAL);
    assert_eq!(endpoint.from_guest(&stranger, now), Verdict::Forward);
    let routed = icmp(LINK_LOCAL, ALL_ROUTERS, 135, 64, &METADATA_ADDRESS_V6.octets());
    assert_eq!(endpoint.from_guest(&routed, now), Verdict::Forward, "it passed a router");
    assert_eq!(endpoint.next_answer(now), None);
}

#[test]
fn solicit_is_advertised_the_ports_address_or_given_it_at_once() {
    let options = vec![client(), association(9, &[])];
    let advertise = ask(v6::MessageType::Solicit, options.clone()).unwrap();
    assert_eq!((advertise.msg_type(), advertise.xid()), (v6::MessageType::Advertise, [1, 2, 3]));
    assert_eq!(leases(&advertise), (vec![(LEASED, 86400)], None));
    let option = |code| advertise.opts().get(code).cloned();
    assert_eq!(option(v6::OptionCode::ClientId), Some(client()));
    assert_eq!(option(v6::OptionCode::ServerId), Some(server()));
    assert_eq!(option(v6::OptionCode::Preference), Some(v6::DhcpOption::Preference(255)));
    assert_eq!(option(v6::OptionCode::DomainNameServers), Some(v6::DhcpOption::DomainNameServers(vec![DNS])));
    let rapid = [options, vec![v6::DhcpOption::RapidCommit]].concat();
    let reply = ask(v6::MessageType::Solicit, rapid).unwrap();
    assert_eq!(reply.msg_type(), v6::MessageType::Reply);
    assert!(reply.opts().get(v6::OptionCode::RapidCommit).is_some());
    assert_eq!(leases(&reply), (vec![(LEASED, 86400)], None));
}

#[test]
fn only_what_is_asked_for_is_told() {
    let oro = v6::DhcpOption::ORO(v6::ORO { opts: vec![v6::OptionCode::from(59)] });
    let reply = ask(v6::MessageType::InformationRequest, vec![client(), oro]).unwrap();
    assert!(reply.opts().get(v6::OptionCode::DomainNameServers).is_none());
    assert!(reply.opts().iter().any(|option| u16::from(v6::OptionCode::from(option)) == 59));
}

#[test]
fn requests_and_renewals_are_for_this_server_and_end_what_is_not_the_ports() {
    let other: Ipv6Addr = "2001:db8::99".parse().unwrap();
    for kind in [v6::MessageType::Request, v6::MessageType::Renew] {
        let reply = ask(kind, vec![client(), server(), association(9, &[other])]).unwrap();
        assert_eq!(reply.msg_type(), v6::MessageType::Reply);
        assert_eq!(leases(&reply), (vec![(LEASED, 86400), (other, 0)], None));
        assert!(ask(kind, vec![client(), association(9, &[])]).is_none(), "for no server");
        let stranger = v6::DhcpOption::ServerId(vec![0, 3, 0, 1, 9, 9, 9, 9, 9, 9]);
        assert!(ask(kind, vec![client(), stranger, association(9, &[])]).is_none());
        assert!(ask(kind, vec![server(), association(9, &[])]).is_none(), "of nobody");
    }
    let rebound = ask(v6::MessageType::Rebind, vec![client(), association(9, &[LEASED])]).unwrap();
    assert_eq!(leases(&rebound), (vec![(LEASED, 86400)], None));
    assert!(ask(v6::MessageType::Solicit, vec![client(), server()]).is_none());
}

#[test]
fn second_association_and_prefixes_are_refused() {
    let prefix = v6::IAPD { id: 5, t1: 0, t2: 0, opts: Default::default() };
    let options = vec![client(), association(1, &[]), association(2, &[]), v6::DhcpOption::IAPD(prefix)];
    let advertise = ask(v6::MessageType::Solicit, options).unwrap();
    let statuses: Vec<_> = advertise
        .opts()
        .iter()
        .filter_map(|option| {
            let opts = match option {
                v6::DhcpOption::IANA(association) => &association.opts,
                v6::DhcpOption::IAPD(association) => &association.opts,
                _ => return None,
            };
            opts.iter().find_map(|option| match option {
                v6::DhcpOption::StatusCode(code) => Some(code.status),
                _ => None,
            })
        })
        .collect();
    assert_eq!(statuses, [Status::NoAddrsAvail, Status::NoPrefixAvail]);
}

#[test]
fn confirm_says_whether_addresses_fit_the_link() {
    let status = |addresses: &[Ipv6Addr]| {
        let reply = ask(v6::MessageType::Confirm, vec![client(), association(1, addresses)])?;
        reply.opts().iter().find_map(|option| match option {
            v6::DhcpOption::StatusCode(code) => Some(code.status),
            _ => None,
        })
    };
    assert_eq!(status(&[LEASED]), Some(Status::Success));
    assert_eq!(status(&[LEASED, "2001:db8:9::1".parse().unwrap()]), Some(Status::NotOnLink));
    assert_eq!(status(&[]), None);
}

#[test]
fn release_and_decline_are_acknowledged_and_garbage_is_swallowed() {
    for kind in [v6::MessageType::Release, v6::MessageType::Decline] {
        let reply = ask(kind, vec![client(), server(), association(1, &[LEASED])]).unwrap();
        assert!(reply.opts().get(v6::OptionCode::StatusCode).is_some());
    }
    for kind in [v6::MessageType::Reply, v6::MessageType::RelayForw, v6::MessageType::Unknown(99)] {
        assert!(ask(kind, vec![client(), association(1, &[])]).is_none());
    }
    let now = Instant::now();
    let mut endpoint = endpoint();
    endpoint.announcer.solicited(LINK_LOCAL, GUEST_MAC, now);
    let long = [&[0, 1, 0, 200][..], &[7; 200]].concat();
    for broken in [&[][..], &[0, 1], &[0, 1, 0xff, 0xff, 0], &long] {
        assert_eq!(endpoint.from_guest(&dhcp_frame(1, broken), now), Verdict::Taken);
        assert_eq!(endpoint.next_answer(now), None);
    }
}

#[test]
fn other_dhcp_servers_do_not_reach_the_guest_by_ipv6() {
    let mut rogue = Vec::new();
    PacketBuilder::ethernet2([9; 6], GUEST_MAC)
        .ipv6(ROUTER_LINK_LOCAL.octets(), LINK_LOCAL.octets(), 64)
        .udp(547, 546)
        .write(&mut rogue, &[2, 0, 0, 0])
        .unwrap();
    assert!(!endpoint().from_link(&rogue));
    assert!(Endpoint::new(config(), GUEST_MAC, 1442).from_link(&rogue));
}

#[test]
fn metadata_is_served_by_ipv6_to_link_local_addresses() {
    let now = Instant::now();
    let mut endpoint = Endpoint::new(config(), GUEST_MAC, 1442);
    let mut client = Client::new(5000);
    client.from = Some(LINK_LOCAL);
    client.open(&mut endpoint, now);
    let answer = client.request(
        &mut endpoint,
        "GET /openstack/latest/meta_data.json HTTP/1.1\r\nHost: m\r\n\r\n",
        now,
    );
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with(r#"{"uuid":"1"}"#), "{answer}");
    let mut foreign = Client::new(5001);
    foreign.from = Some(LEASED);
    let syn = foreign.segment(Flags { syn: true, ..Flags::default() }, &[]);
    assert_eq!(endpoint.from_guest(&syn, now), Verdict::Taken);
    assert_eq!(endpoint.next_answer(now), None);
}
