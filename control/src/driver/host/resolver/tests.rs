//! The resolver with a VMM's end of the line and a name server, both by hand.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use domain::base::iana::Rtype;
use domain::base::{Message as Dns, MessageBuilder};
use vmm::questions::Message;
use vmm::rpc::{Action, Reply, VmState};

use super::*;
use crate::driver::test::instance_wanted;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const PATIENCE: Duration = Duration::from_secs(20);

fn zone(network: &str, host: &str, address: &str) -> ZoneWanted {
    ZoneWanted {
        id: network.into(),
        domain: "cloud.example".into(),
        names: [(host.to_owned(), [address.parse().unwrap()].into())].into(),
        prefixes: ["10.0.0.0/24".parse().unwrap()].into(),
    }
}

fn question(text: &str, kind: Rtype) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_id(7);
    let mut question = builder.question();
    question.push((message::name(text), kind)).unwrap();
    question.finish()
}

/// A VMM's end of the line.
struct Vmm {
    directory: tempfile::TempDir,
    listener: UnixListener,
    line: Option<BufReader<UnixStream>>,
    next: u32,
}

impl Vmm {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("control.sock")).unwrap();
        Self { directory, listener, line: None, next: 0 }
    }

    fn serve(&self, resolver: &Resolver) {
        let mut wanted = instance_wanted("i");
        wanted.nics = [(MAC, "red"), (OTHER_MAC, "blue")]
            .map(|(mac, network)| {
                let port = serde_json::json!({
                    "port_id": network, "network_id": network, "mac": mac, "address": null, "allowed_addresses": [],
                    "gateway": null, "dhcp": true, "dhcp_server": null, "dns": [], "routes": [], "mtu": 1450,
                    "port_security": true, "groups": [], "domain": "", "zone": network,
                });
                serde_json::from_value(port).unwrap()
            })
            .into();
        resolver.serve(&wanted, &self.directory.path().join("control.sock"));
    }

    /// Waits until somebody asks for questions.
    fn connected(&mut self) -> &mut BufReader<UnixStream> {
        let (stream, _) = self.listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut line = BufReader::new(stream);
        assert!(matches!(heard(&mut line), Action::Resolve));
        self.line.insert(line)
    }

    fn say(&mut self, reply: &Reply) {
        let mut text = serde_json::to_vec(reply).unwrap();
        text.push(b'\n');
        self.line.as_mut().unwrap().get_mut().write_all(&text).unwrap();
    }

    fn put(&mut self, mac: [u8; 6], tcp: bool, message: Vec<u8>) -> u32 {
        self.next += 1;
        let (number, message) = (self.next, Message::from(message));
        let answer_bytes_max = if tcp { 16_384 } else { 1232 };
        self.say(&Reply::Question(Question { mac, vlan: None, number, tcp, answer_bytes_max, message }));
        number
    }

    /// Asks and waits for the answer: its code and its addresses.
    fn ask(&mut self, mac: [u8; 6], tcp: bool, text: &str) -> (Rcode, Vec<String>) {
        let expected = self.put(mac, tcp, question(text, Rtype::A));
        let Action::Answer { mac: found, number, message, .. } = heard(self.line.as_mut().unwrap()) else {
            panic!()
        };
        assert_eq!((found, number), (mac, expected));
        let message = Dns::from_octets(message.as_bytes().to_vec()).unwrap();
        assert_eq!(message.header().id(), 7);
        let records = message.answer().unwrap().limit_to::<domain::rdata::A>();
        (message.header().rcode(), records.map(|record| record.unwrap().data().to_string()).collect())
    }
}

fn heard(line: &mut BufReader<UnixStream>) -> Action {
    let mut text = String::new();
    line.read_line(&mut text).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// A name server that answers everything with this address; over UDP after answers that are none.
fn name_server(address: &'static str) -> SocketAddr {
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = udp.local_addr().unwrap();
    let tcp = TcpListener::bind(at).unwrap();
    let answer = move |bytes: &[u8]| {
        let Heard::Question(asked) = message::read(bytes) else { panic!("no question") };
        asked.with_addresses(&[address.parse().unwrap()])
    };
    std::thread::spawn(move || {
        let mut bytes = [0; 2000];
        while let Ok((length, from)) = udp.recv_from(&mut bytes) {
            let mut false_one = answer(&bytes[..length]);
            false_one[1] ^= 1;
            udp.send_to(&false_one, from).unwrap();
            udp.send_to(&[], from).unwrap();
            udp.send_to(&answer(&bytes[..length]), from).unwrap();
        }
    });
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            let mut stream = stream.unwrap();
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut bytes).unwrap();
            let answer = answer(&bytes);
            stream.write_all(&[&(answer.len() as u16).to_be_bytes()[..], &answer].concat()).unwrap();
        }
    });
    at
}

fn found(address: &str) -> (Rcode, Vec<String>) {
    (Rcode::NOERROR, vec![address.to_owned()])
}

#[test]
fn names_are_those_of_the_network_that_is_asked_on_and_change_while_the_line_stands() {
    let resolver = Resolver::start(Forwarders::Listed(vec![name_server("203.0.113.1")])).unwrap();
    resolver.know(&[zone("red", "web", "10.0.0.5"), zone("blue", "db", "10.0.0.6")], &[], true);
    let mut vmm = Vmm::new();
    vmm.serve(&resolver);
    vmm.connected();
    vmm.say(&Reply::Done { state: VmState::Running });
    assert_eq!(vmm.ask(MAC, false, "web.cloud.example"), found("10.0.0.5"));
    assert_eq!(vmm.ask(OTHER_MAC, true, "db"), found("10.0.0.6"));
    let nothing = (Rcode::NXDOMAIN, vec![]);
    assert_eq!(vmm.ask(OTHER_MAC, false, "web.cloud.example"), nothing, "another network's");
    resolver.know(&[zone("red", "www", "10.0.0.5")], &["blue".to_owned()], false);
    assert_eq!(vmm.ask(MAC, false, "www.cloud.example"), found("10.0.0.5"));
    assert_eq!(vmm.ask(MAC, false, "web.cloud.example"), nothing);
    for tcp in [false, true] {
        assert_eq!(vmm.ask(MAC, tcp, "www.example.com"), found("203.0.113.1"), "over TCP: {tcp}");
    }
    vmm.put(OTHER_MAC, false, question("db.cloud.example", Rtype::A));
    assert_eq!(vmm.ask(MAC, false, "www"), found("10.0.0.5"), "a network that is gone has no answers");
}

#[test]
fn line_is_taken_up_again_and_strangers_have_no_answer() {
    let resolver = Resolver::start(Forwarders::Listed(Vec::new())).unwrap();
    resolver.know(&[zone("red", "web", "10.0.0.5")], &[], true);
    let mut vmm = Vmm::new();
    vmm.serve(&resolver);
    vmm.connected();
    vmm.serve(&resolver);
    vmm.line = None;
    vmm.connected();
    vmm.put([9; 6], false, question("web", Rtype::A));
    vmm.put(MAC, false, vec![0; 5]);
    assert_eq!(vmm.ask(MAC, false, "web"), found("10.0.0.5"));
    assert_eq!(
        vmm.ask(MAC, false, "www.example.com"),
        (Rcode::SERVFAIL, vec![]),
        "nobody is there to be asked"
    );
    assert_eq!(vmm.ask(MAC, true, "www.example.com"), (Rcode::SERVFAIL, vec![]));
    resolver.forget("i");
    let mut rest = Vec::new();
    vmm.line.as_mut().unwrap().read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"", "it is forgotten");
}

#[test]
fn vmm_of_before_is_asked_once() {
    let resolver = Resolver::start(Forwarders::Listed(Vec::new())).unwrap();
    resolver.know(&[], &[], true);
    let mut vmm = Vmm::new();
    vmm.serve(&resolver);
    vmm.connected();
    vmm.say(&Reply::Error { message: "not an action".into() });
    let mut rest = Vec::new();
    vmm.line.as_mut().unwrap().read_to_end(&mut rest).unwrap();
    vmm.listener.set_nonblocking(true).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(vmm.listener.accept().is_err());
}
