//! Questions about names, and their answers.

use super::*;
use crate::endpoint::resolver::{OUTSTANDING_MAX, PATIENCE, PORT};
use crate::questions::{ANSWER_BYTES_MAX, QUESTION_BYTES_MAX, Question};

const QUESTION: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03web\0\0\x01\0\x01";
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 7);

fn resolving() -> Endpoint {
    let mut config = config();
    config.addressing.resolver = true;
    Endpoint::new(config, GUEST_MAC, 1442)
}

fn asked(source: Ipv4Addr, target: Ipv4Addr, message: &[u8]) -> Vec<u8> {
    let builder =
        PacketBuilder::ethernet2(GUEST_MAC, mac_of(target)).ipv4(source.octets(), target.octets(), 64);
    let mut frame = Vec::new();
    builder.udp(40_000, PORT).write(&mut frame, message).unwrap();
    frame
}

fn answers_of(endpoint: &mut Endpoint, now: Instant) -> Vec<Vec<u8>> {
    std::iter::from_fn(|| endpoint.next_answer(now)).collect()
}

#[test]
fn question_by_udp_is_carried_on_and_its_answer_back_to_who_asked() {
    let now = Instant::now();
    let mut endpoint = resolving();
    assert_eq!(endpoint.from_guest(&asked(GUEST, SERVER, QUESTION), now), Verdict::Taken);
    let question = endpoint.next_question().unwrap();
    assert_eq!((question.mac, question.tcp, question.answer_bytes_max), (GUEST_MAC, false, 1232));
    assert_eq!(question.message.as_bytes(), QUESTION);
    assert_eq!((endpoint.next_question(), endpoint.next_answer(now)), (None, None));
    endpoint.answered(question.number.wrapping_add(1), b"another's", now);
    assert_eq!(endpoint.next_answer(now), None);
    endpoint.answered(question.number, b"an answer", now);
    endpoint.answered(question.number, b"a second one", now);
    let frames = answers_of(&mut endpoint, now);
    assert_eq!(frames.len(), 1);
    assert_eq!((&frames[0][..6], &frames[0][6..12]), (&GUEST_MAC[..], &mac_of(SERVER)[..]));
    let packet = PacketHeaders::from_ethernet_slice(&frames[0]).unwrap();
    let Some(etherparse::NetHeaders::Ipv4(ip, _)) = packet.net else { panic!("no IPv4") };
    assert_eq!((ip.source, ip.destination), (SERVER.octets(), GUEST.octets()));
    let Some(TransportHeader::Udp(udp)) = packet.transport else { panic!("no UDP") };
    assert_eq!((udp.source_port, udp.destination_port), (PORT, 40_000));
    assert_eq!(packet.payload.slice(), b"an answer");
}

#[test]
fn only_the_guest_itself_is_carried_for_and_only_where_there_is_a_resolver() {
    let now = Instant::now();
    let mut endpoint = resolving();
    let elsewhere = Ipv4Addr::new(9, 9, 9, 9);
    assert_eq!(endpoint.from_guest(&asked(GUEST, elsewhere, QUESTION), now), Verdict::Forward);
    let mut of_another = asked(GUEST, SERVER, QUESTION);
    of_another[6..12].copy_from_slice(&GATEWAY_MAC);
    let mut fragment = asked(GUEST, SERVER, QUESTION);
    fragment[20] = 0x20;
    for frame in [asked(GATEWAY, SERVER, QUESTION), of_another, fragment] {
        assert_eq!(endpoint.from_guest(&frame, now), Verdict::Taken);
    }
    for message in [&QUESTION[..11], &[0; QUESTION_BYTES_MAX + 1]] {
        assert_eq!(endpoint.from_guest(&asked(GUEST, SERVER, message), now), Verdict::Taken);
    }
    assert_eq!(endpoint.next_question(), None);
    let mut without = super::endpoint();
    assert_eq!(without.from_guest(&asked(GUEST, SERVER, QUESTION), now), Verdict::Forward);
    let mut addressing = config().addressing;
    addressing.resolver = true;
    without.readdress(addressing, now);
    assert_eq!(without.from_guest(&asked(GUEST, SERVER, QUESTION), now), Verdict::Taken);
    assert!(without.next_question().is_some());
}

#[test]
fn questions_are_bounded_and_forgotten_after_a_while() {
    let now = Instant::now();
    let mut endpoint = resolving();
    for _ in 0..100 {
        endpoint.from_guest(&asked(GUEST, SERVER, QUESTION), now);
    }
    let questions: Vec<Question> = std::iter::from_fn(|| endpoint.next_question()).collect();
    assert_eq!(questions.len(), OUTSTANDING_MAX);
    let later = now + PATIENCE;
    endpoint.from_guest(&asked(GUEST, SERVER, QUESTION), later);
    assert!(endpoint.next_question().is_some(), "the others are forgotten");
    endpoint.answered(questions[0].number, b"too late", later);
    assert_eq!(endpoint.next_answer(later), None);
}

#[test]
fn questions_over_tcp_are_answered_one_after_the_other_whatever_their_answers_length() {
    let now = Instant::now();
    let mut endpoint = resolving();
    let mut client = Client { to: (SERVER, PORT), ..Client::new(5000) };
    client.open(&mut endpoint, now);
    let framed = |message: &[u8]| [&(message.len() as u16).to_be_bytes()[..], message].concat();
    let two = [framed(QUESTION), framed(QUESTION)].concat();
    let (first, rest) = two.split_at(5);
    for part in [first, rest] {
        assert_eq!(endpoint.next_question(), None);
        let segment = client.segment(Flags::default(), part);
        endpoint.from_guest(&segment, now);
        client.converse(&mut endpoint, now);
    }
    for length in [9_000, ANSWER_BYTES_MAX] {
        let question = endpoint.next_question().unwrap();
        assert_eq!((question.tcp, question.answer_bytes_max as usize), (true, ANSWER_BYTES_MAX));
        assert_eq!(question.message.as_bytes(), QUESTION);
        assert_eq!(endpoint.next_question(), None, "the next one waits for its answer");
        endpoint.answered(question.number, &vec![7; length], now);
        client.converse(&mut endpoint, now);
        assert_eq!(std::mem::take(&mut client.received), framed(&vec![7; length]));
    }
    let fin = client.segment(Flags { fin: true, ..Flags::default() }, &[]);
    endpoint.from_guest(&fin, now);
    client.converse(&mut endpoint, now);
    assert_eq!(endpoint.poll_delay(now), None, "the stack is gone with its last connection");
}

#[test]
fn connection_that_asks_for_too_much_or_for_nothing_ends() {
    let now = Instant::now();
    let mut endpoint = resolving();
    let mut client = Client { to: (SERVER, PORT), ..Client::new(5001) };
    client.open(&mut endpoint, now);
    let segment = client.segment(Flags::default(), &[0xff, 0xff, 0]);
    endpoint.from_guest(&segment, now);
    client.converse(&mut endpoint, now);
    assert!(client.finished);
    let mut idle = Client { to: (SERVER, PORT), ..Client::new(5002) };
    idle.open(&mut endpoint, now);
    endpoint.poll(now + tcp::IDLE_MAX);
    idle.converse(&mut endpoint, now + tcp::IDLE_MAX);
    assert!(idle.reset);
}

#[test]
fn questions_by_ipv6_go_to_the_address_that_is_the_same_everywhere() {
    let now = Instant::now();
    let mut endpoint = resolving();
    let asked = |source: Ipv6Addr| {
        let builder = PacketBuilder::ethernet2(GUEST_MAC, OWN_MAC);
        let builder = builder.ipv6(source.octets(), METADATA_ADDRESS_V6.octets(), 64);
        let mut frame = Vec::new();
        builder.udp(40_000, PORT).write(&mut frame, QUESTION).unwrap();
        frame
    };
    let global = "2001:db8::7".parse().unwrap();
    assert_eq!(endpoint.from_guest(&asked(global), now), Verdict::Taken);
    assert_eq!(endpoint.next_question(), None);
    assert_eq!(endpoint.from_guest(&asked(LINK_LOCAL), now), Verdict::Taken);
    let question = endpoint.next_question().unwrap();
    endpoint.answered(question.number, b"an answer", now);
    let frame = answers_of(&mut endpoint, now).pop().unwrap();
    let packet = PacketHeaders::from_ethernet_slice(&frame).unwrap();
    let Some(etherparse::NetHeaders::Ipv6(ip, _)) = packet.net else { panic!("no IPv6") };
    assert_eq!((ip.source, ip.destination), (METADATA_ADDRESS_V6.octets(), LINK_LOCAL.octets()));
    assert_eq!(packet.payload.slice(), b"an answer");
    let mut client = Client { from: Some(LINK_LOCAL), to: (SERVER, PORT), ..Client::new(5003) };
    client.open(&mut endpoint, now);
    let message = [&(QUESTION.len() as u16).to_be_bytes()[..], QUESTION].concat();
    let segment = client.segment(Flags::default(), &message);
    endpoint.from_guest(&segment, now);
    assert!(endpoint.next_question().unwrap().tcp);
}
