//! VLANs that a device carries.

use super::*;
use crate::config::VlanAddressing;

const CARRIED_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 8];
const CARRIED: Ipv4Addr = Ipv4Addr::new(10, 5, 0, 8);

/// Another subnet's port, in a VLAN.
fn carried(mac: [u8; 6]) -> VlanAddressing {
    let Addressing { ipv4, .. } = config().addressing;
    let server = Ipv4Addr::new(10, 5, 0, 2);
    let ipv4 = ipv4.map(|ipv4| Ipv4Config { address: CARRIED, dhcp_server: server, gateway: None, ..ipv4 });
    VlanAddressing {
        mac,
        mtu: 1400,
        addressing: Addressing { ipv4, resolver: true, ..Addressing::default() },
    }
}

fn trunk() -> Endpoints {
    let mut config = config();
    config.addressing.vlans = [(100, carried(CARRIED_MAC)), (200, carried([0x02, 0, 0, 0, 0, 9]))].into();
    Endpoints::new(config, GUEST_MAC, 1442)
}

fn tagged(vlan: u16, frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &[0x81, 0], &(0x6000 | vlan).to_be_bytes(), &frame[12..]].concat()
}

fn discover(mac: [u8; 6]) -> Vec<u8> {
    let mut frame = dhcp_frame(|message| {
        message.set_chaddr(&mac).opts_mut().insert(DhcpOption::MessageType(MessageType::Discover));
    });
    frame[6..12].copy_from_slice(&mac);
    frame
}

/// What is answered, with the tag's VLAN.
fn answer(endpoints: &mut Endpoints, frame: &[u8]) -> Option<(Option<u16>, Vec<u8>)> {
    let (now, mut sent) = (Instant::now(), frame.to_vec());
    let verdict = endpoints.from_guest(&mut sent, now);
    assert_eq!(sent, frame, "a frame stays as it is");
    let answer = endpoints.next_answer(now);
    assert_eq!(answer.is_some(), verdict == Verdict::Taken);
    let mut answer = answer?;
    let vlan = (answer[12..14] == [0x81, 0]).then(|| {
        let tag: Vec<u8> = answer.drain(12..16).collect();
        u16::from_be_bytes([tag[2], tag[3]])
    });
    Some((vlan, answer))
}

fn offered(answer: &[u8]) -> (Ipv4Addr, Vec<u8>) {
    let packet = PacketHeaders::from_ethernet_slice(answer).unwrap();
    let message = v4::Message::decode(&mut Decoder::new(packet.payload.slice())).unwrap();
    (message.yiaddr(), answer[..6].to_vec())
}

#[test]
fn guest_has_its_addresses_in_each_vlan_by_the_mac_that_it_has_there() {
    let mut endpoints = trunk();
    let (vlan, offer) = answer(&mut endpoints, &tagged(100, &discover(CARRIED_MAC))).unwrap();
    assert_eq!((vlan, offered(&offer)), (Some(100), (CARRIED, CARRIED_MAC.to_vec())));
    let (vlan, offer) = answer(&mut endpoints, &discover(GUEST_MAC)).unwrap();
    assert_eq!((vlan, offered(&offer)), (None, (GUEST, GUEST_MAC.to_vec())));
    // Another port's MAC is answered nowhere, and a VLAN that nobody has is not ours.
    for (vlan, mac) in [(100, GUEST_MAC), (200, CARRIED_MAC)] {
        let mut frame = tagged(vlan, &discover(mac));
        assert_eq!(endpoints.from_guest(&mut frame, Instant::now()), Verdict::Taken, "DHCP never leaves");
        assert_eq!(endpoints.next_answer(Instant::now()), None);
    }
    assert_eq!(answer(&mut endpoints, &tagged(300, &discover(CARRIED_MAC))), None);
    assert_eq!(answer(&mut endpoints, &tagged(100, &[0; 14])[..16]), None);
}

#[test]
fn metadata_is_served_in_a_vlan_to_the_address_there() {
    let mut endpoints = trunk();
    let open = |source: Ipv4Addr| {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(CARRIED_MAC, [2; 6])
            .ipv4(source.octets(), METADATA_ADDRESS.octets(), 64)
            .tcp(40_000, 80, 1, 1000)
            .syn()
            .write(&mut frame, &[])
            .unwrap();
        tagged(100, &frame)
    };
    let (vlan, reply) = answer(&mut endpoints, &open(CARRIED)).unwrap();
    let packet = PacketHeaders::from_ethernet_slice(&reply).unwrap();
    let Some(TransportHeader::Tcp(tcp)) = packet.transport else { panic!("{packet:?}") };
    assert_eq!((vlan, tcp.syn && tcp.ack), (Some(100), true));
    let mut spoofed = open(GUEST);
    assert_eq!(endpoints.from_guest(&mut spoofed, Instant::now()), Verdict::Taken);
    assert_eq!(endpoints.next_answer(Instant::now()), None);
}

#[test]
fn other_servers_reach_the_guest_in_no_vlan_that_is_answered() {
    let mut endpoints = trunk();
    let mut rogue = Vec::new();
    PacketBuilder::ethernet2([2; 6], CARRIED_MAC)
        .ipv4([10, 5, 0, 66], [255; 4], 64)
        .udp(67, 68)
        .write(&mut rogue, b"offer")
        .unwrap();
    assert!(!endpoints.from_link(&mut tagged(100, &rogue)));
    assert!(!endpoints.from_link(&mut rogue));
    assert!(endpoints.from_link(&mut tagged(300, &rogue)));
}

#[test]
fn vlans_come_and_go_while_the_guest_runs() {
    let mut endpoints = trunk();
    let now = Instant::now();
    let mut addressing = config().addressing;
    let moved = Ipv4Addr::new(10, 5, 0, 9);
    let mut changed = carried(CARRIED_MAC);
    changed.addressing.ipv4.as_mut().unwrap().address = moved;
    addressing.vlans = [(100, changed), (300, carried(GUEST_MAC))].into();
    endpoints.readdress(addressing.clone(), now);
    for (vlan, mac, address) in [(100, CARRIED_MAC, moved), (300, GUEST_MAC, CARRIED)] {
        let (on, offer) = answer(&mut endpoints, &tagged(vlan, &discover(mac))).unwrap();
        assert_eq!((on, offered(&offer).0), (Some(vlan), address));
    }
    assert_eq!(answer(&mut endpoints, &tagged(200, &discover([0x02, 0, 0, 0, 0, 9]))), None);
    addressing.vlans.clear();
    endpoints.readdress(addressing, now);
    assert_eq!(answer(&mut endpoints, &tagged(100, &discover(CARRIED_MAC))), None);
    assert!(answer(&mut endpoints, &discover(GUEST_MAC)).is_some());
}

#[test]
fn questions_tell_their_vlan_and_answers_find_it() {
    let mut endpoints = trunk();
    let now = Instant::now();
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(CARRIED_MAC, [2; 6])
        .ipv4(CARRIED.octets(), [10, 5, 0, 2], 64)
        .udp(5000, 53)
        .write(&mut frame, &[0; 20])
        .unwrap();
    assert_eq!(endpoints.from_guest(&mut tagged(100, &frame), now), Verdict::Taken);
    let question = endpoints.next_question().unwrap();
    assert_eq!(question.vlan, Some(100));
    let message = [0x55; 20];
    for vlan in [None, Some(200), Some(7)] {
        endpoints.answered(vlan, question.number, &message, now);
        assert_eq!(endpoints.next_answer(now), None, "{vlan:?}");
    }
    endpoints.answered(Some(100), question.number, &message, now);
    let answer = endpoints.next_answer(now).unwrap();
    assert_eq!(&answer[12..16], &[0x81, 0, 0, 100]);
}
