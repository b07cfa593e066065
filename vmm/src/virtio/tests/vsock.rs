//! The socket device.

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use super::super::VirtioDevice as _;
use super::super::mock::{BUFFERS_START, MockDescriptor, MockGuest, MockQueue};
use super::super::spec::vsock as spec;
use super::super::vsock::{BUFFER_BYTES_MAX, CONNECTIONS_MAX, Header, REPLIES_MAX, Vsock, build_vsock};
use super::*;
use crate::connector;
use crate::rpc::passing;

const CID: u32 = 52;
const RX_BYTES: u64 = 4096;
const RX_BUFFERS: u64 = 16;
/// Behind the buffers of the receive queue.
const TX: u64 = BUFFERS_START + RX_BYTES * RX_BUFFERS;
/// The guest's side of a connection in these tests.
const GUEST_PORT: u32 = 1000;

struct Driver {
    device: Arc<Mutex<Vsock>>,
    guest: MockGuest,
    rx: MockQueue,
    tx: MockQueue,
    event: MockQueue,
    /// Where the host's side connects.
    path: PathBuf,
    /// What the guest's connections are asked of.
    connector: UnixStream,
    _directory: tempfile::TempDir,
}

impl Driver {
    /// A guest that has offered all of its receive buffers.
    fn new() -> Self {
        let mut driver = Self::starved();
        (0..RX_BUFFERS).for_each(|_| driver.offer());
        driver.guest.kick(0);
        driver
    }

    /// One that has offered none.
    fn starved() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("v.sock");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (ours, theirs) = connector::pair().unwrap();
        let theirs = UnixStream::from(theirs);
        theirs.set_nonblocking(true).unwrap();
        let device = build_vsock(CID, Some(listener), Some(theirs)).unwrap();
        let mut guest = MockGuest::new(device.clone()).unwrap();
        let queues = guest.bring_up(spec::F_STREAM, &[16, 16, 4]);
        let connector = UnixStream::from(ours);
        let (rx, tx, event) = (queues[0], queues[1], queues[2]);
        Self { device, guest, rx, tx, event, path, connector, _directory: directory }
    }

    fn offer(&mut self) {
        // As many buffers as descriptors: a descriptor's buffer is always its own.
        let next = u64::from(self.rx.submit(&self.guest.memory, &[MockDescriptor::default()]));
        let buffer = MockDescriptor::writable(BUFFERS_START + next * RX_BYTES, RX_BYTES as u32);
        self.rx.write_descriptor(&self.guest.memory, next as u16, buffer);
    }

    /// Has the guest send a packet.
    fn send(&mut self, header: Header, data: &[u8]) {
        let length = if header.length == 0 { data.len() as u32 } else { header.length };
        let header = Header { length, ..header };
        self.guest.put(TX, &header.encode());
        self.guest.put(TX + spec::HEADER_BYTES as u64, data);
        let bytes = (spec::HEADER_BYTES + data.len()) as u32;
        self.tx.submit(&self.guest.memory, &[MockDescriptor::readable(TX, bytes)]);
        self.guest.kick(1);
        assert!(!self.guest.needs_reset());
    }

    fn taken(&mut self) -> bool {
        self.tx.take_used(&self.guest.memory).is_some()
    }

    /// The next packet for the guest, whose buffer it offers again.
    fn next(&mut self) -> Option<(Header, Vec<u8>)> {
        self.guest.run();
        let (head, length) = self.rx.take_used(&self.guest.memory)?;
        let bytes = self.guest.get(BUFFERS_START + u64::from(head) * RX_BYTES, length as usize);
        let header = Header::parse(bytes[..spec::HEADER_BYTES].try_into().unwrap());
        assert_eq!((header.src_cid, header.dst_cid), (2, u64::from(CID)));
        assert_eq!(header.length as usize, bytes.len() - spec::HEADER_BYTES);
        self.offer();
        self.guest.kick(0);
        Some((header, bytes[spec::HEADER_BYTES..].to_vec()))
    }

    /// The next packet's operation and data; there is one.
    fn said(&mut self) -> (u16, Vec<u8>) {
        let (header, data) = self.next().expect("a packet for the guest");
        (header.op, data)
    }

    /// A connection that the guest asked for, to the host's port 80; the host's end.
    fn connected(&mut self) -> UnixStream {
        self.send(packet(spec::OP_REQUEST, 80), &[]);
        let (number, port) = self.asked().unwrap();
        assert_eq!(port, 80);
        let (ours, theirs) = UnixStream::pair().unwrap();
        passing::send(&self.connector, &connector::join(number, 0), &[theirs.as_fd()]).unwrap();
        assert_eq!(self.said().0, spec::OP_RESPONSE);
        ours.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        ours
    }

    /// What the connector is asked, if anything.
    fn asked(&mut self) -> Option<(u32, u32)> {
        self.guest.run();
        self.connector.set_nonblocking(true).unwrap();
        let mut message = [0; connector::MESSAGE_BYTES];
        let count = passing::receive(&self.connector, &mut message, &mut Vec::new()).ok()?;
        assert_eq!(count, message.len());
        Some(connector::split(message))
    }

    fn call(&mut self, line: &str) -> UnixStream {
        let mut stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.write_all(line.as_bytes()).unwrap();
        self.guest.run();
        stream
    }
}

/// A packet of the guest's from its port to one of the host's.
fn packet(op: u16, host_port: u32) -> Header {
    Header {
        src_cid: CID.into(),
        dst_cid: spec::HOST_CID,
        src_port: GUEST_PORT,
        dst_port: host_port,
        kind: spec::TYPE_STREAM,
        op,
        buf_alloc: 1 << 16,
        ..Header::default()
    }
}

fn heard(stream: &mut UnixStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn guest_knows_its_address_and_strange_addresses_are_refused() {
    let mut driver = Driver::new();
    assert_eq!(driver.guest.read_config::<8>(0), u64::from(CID).to_le_bytes());
    for cid in [0, 1, 2, u32::MAX] {
        assert!(build_vsock(cid, None, None).is_err(), "{cid}");
    }
}

#[test]
fn guest_connects_to_a_port_of_the_host_and_both_are_heard() {
    let mut driver = Driver::new();
    let mut host = driver.connected();
    driver.send(packet(spec::OP_RW, 80), b"from the guest");
    assert_eq!(heard(&mut host, 14), b"from the guest");
    host.write_all(b"from the host").unwrap();
    assert_eq!(driver.said(), (spec::OP_RW, b"from the host".to_vec()));
    // Both ways are closed by the guest.
    let flags = spec::SHUTDOWN_BOTH;
    driver.send(Header { flags, ..packet(spec::OP_SHUTDOWN, 80) }, &[]);
    assert_eq!(driver.said().0, spec::OP_RST);
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
    // The same ports may be used again.
    driver.connected();
}

#[test]
fn host_connects_to_a_port_of_the_guest_and_hears_of_its_own() {
    let mut driver = Driver::new();
    let mut host = driver.call("CONNECT 1000\nearly");
    let (request, _) = driver.next().unwrap();
    assert_eq!((request.op, request.dst_port), (spec::OP_REQUEST, GUEST_PORT));
    let port = request.src_port;
    assert!(driver.next().is_none(), "what comes early waits for the answer");
    driver.send(packet(spec::OP_RESPONSE, port), &[]);
    let ok = format!("OK {port}\n");
    assert_eq!(heard(&mut host, ok.len()), ok.as_bytes());
    assert_eq!(driver.said(), (spec::OP_RW, b"early".to_vec()));
    driver.send(packet(spec::OP_RW, port), b"answer");
    assert_eq!(heard(&mut host, 6), b"answer");
    drop(host);
    let (end, _) = driver.next().unwrap();
    assert_eq!((end.op, end.flags), (spec::OP_SHUTDOWN, spec::SHUTDOWN_BOTH));
    driver.send(packet(spec::OP_RST, port), &[]);
    assert!(driver.next().is_none(), "a reset has no answer");
}

#[test]
fn who_is_refused_by_the_guest_or_talks_nonsense_is_hung_up_on() {
    let mut driver = Driver::new();
    let mut host = driver.call("CONNECT 1000\n");
    let port = driver.next().unwrap().0.src_port;
    driver.send(packet(spec::OP_RST, port), &[]);
    assert_eq!(host.read(&mut [0; 8]).unwrap(), 0);
    let mut nonsense = driver.call("GET / HTTP/1.1\r\n");
    assert_eq!(nonsense.read(&mut [0; 8]).unwrap(), 0);
    // Who goes before the guest has answered leaves nothing.
    drop(driver.call("CONNECT 1000\n"));
    assert_eq!(driver.said().0, spec::OP_REQUEST);
    assert_eq!(driver.said().0, spec::OP_RST);
    assert!(driver.next().is_none());
}

#[test]
fn guest_that_does_not_answer_is_not_waited_for_for_ever() {
    let mut driver = Driver::new();
    let mut host = driver.call("CONNECT 1000\n");
    assert_eq!(driver.said().0, spec::OP_REQUEST);
    driver.guest.wait(5000);
    assert_eq!(driver.said().0, spec::OP_RST);
    assert_eq!(host.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn buffer_that_has_room_for_a_header_alone_does_not_end_what_the_host_sends() {
    let mut driver = Driver::new();
    let mut host = driver.connected();
    let small = |driver: &mut Driver| {
        let next = u64::from(driver.rx.submit(&driver.guest.memory, &[MockDescriptor::default()]));
        let buffer = MockDescriptor::writable(BUFFERS_START + next * RX_BYTES, spec::HEADER_BYTES as u32);
        driver.rx.write_descriptor(&driver.guest.memory, next as u16, buffer);
    };
    // All but one of those that were offered are used up, and what comes in their place is small.
    for _ in 0..RX_BUFFERS {
        driver.send(packet(spec::OP_CREDIT_REQUEST, 80), &[]);
        driver.guest.run();
        assert!(driver.rx.take_used(&driver.guest.memory).is_some());
        small(&mut driver);
        driver.taken();
    }
    driver.guest.kick(0);
    host.write_all(b"from the host").unwrap();
    driver.guest.run();
    assert_eq!(driver.rx.take_used(&driver.guest.memory), None, "its bytes wait");
    driver.send(packet(spec::OP_CREDIT_REQUEST, 80), &[]);
    assert_eq!(driver.said().0, spec::OP_CREDIT_UPDATE, "what has no data goes all the same");
    host.write_all(b".").unwrap();
    assert!(driver.guest.run(), "and nothing spins");
}

#[test]
fn host_gets_no_port_that_the_guest_is_being_connected_to() {
    let mut driver = Driver::new();
    drop(driver.call("CONNECT 7\n"));
    let first = driver.next().unwrap().0.src_port;
    while driver.next().is_some() {}
    // The guest asks for the port that the host would give its next caller, and that is one of the same port of its own.
    driver.send(packet(spec::OP_REQUEST, first + 1), &[]);
    let (number, port) = driver.asked().unwrap();
    assert_eq!(port, first + 1);
    let mut caller = driver.call("CONNECT 1000\n");
    let (request, _) = driver.next().unwrap();
    assert_eq!((request.op, request.dst_port), (spec::OP_REQUEST, GUEST_PORT));
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    passing::send(&driver.connector, &connector::join(number, 0), &[theirs.as_fd()]).unwrap();
    assert_eq!(driver.said().0, spec::OP_RESPONSE);
    // Both are there, each for itself.
    driver.send(packet(spec::OP_RESPONSE, request.src_port), &[]);
    let ok = format!("OK {}\n", request.src_port);
    assert_eq!(heard(&mut caller, ok.len()), ok.as_bytes());
    ours.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    driver.send(packet(spec::OP_RW, first + 1), b"asked");
    assert_eq!(heard(&mut ours, 5), b"asked");
}

#[test]
fn one_direction_may_end_before_the_other() {
    let mut driver = Driver::new();
    let mut host = driver.connected();
    // The host's side sends no more, and still hears.
    host.write_all(b"last words").unwrap();
    host.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(driver.said(), (spec::OP_RW, b"last words".to_vec()));
    let (end, _) = driver.next().unwrap();
    assert_eq!((end.op, end.flags), (spec::OP_SHUTDOWN, spec::SHUTDOWN_SEND));
    driver.send(packet(spec::OP_RW, 80), b"answer");
    assert_eq!(heard(&mut host, 6), b"answer");
    driver.send(Header { flags: spec::SHUTDOWN_SEND, ..packet(spec::OP_SHUTDOWN, 80) }, &[]);
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
    // Now both are over.
    let (end, _) = driver.next().unwrap();
    assert_eq!((end.op, end.flags), (spec::OP_SHUTDOWN, spec::SHUTDOWN_BOTH));

    // The guest sends no more, and still hears.
    driver.send(packet(spec::OP_RST, 80), &[]);
    let mut host = driver.connected();
    driver.send(Header { flags: spec::SHUTDOWN_SEND, ..packet(spec::OP_SHUTDOWN, 80) }, &[]);
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
    host.write_all(b"answer").unwrap();
    assert_eq!(driver.said(), (spec::OP_RW, b"answer".to_vec()));
    driver.send(packet(spec::OP_RW, 80), b"it said that it would not");
    assert_eq!(driver.said().0, spec::OP_RST);
}

#[test]
fn guest_is_given_no_more_than_it_has_room_for() {
    let mut driver = Driver::new();
    let mut host = driver.connected();
    driver.send(Header { buf_alloc: 10, ..packet(spec::OP_CREDIT_UPDATE, 80) }, &[]);
    host.write_all(b"0123456789abcdefghij").unwrap();
    assert_eq!(driver.said(), (spec::OP_RW, b"0123456789".to_vec()));
    assert_eq!(driver.said().0, spec::OP_CREDIT_REQUEST);
    assert!(driver.next().is_none(), "asked once");
    let update = Header { buf_alloc: 10, fwd_cnt: 4, ..packet(spec::OP_CREDIT_UPDATE, 80) };
    driver.send(update, &[]);
    assert_eq!(driver.said(), (spec::OP_RW, b"abcd".to_vec()));
    // One that says to have passed on what it never got gains nothing but what its own buffers hold.
    driver.send(Header { buf_alloc: u32::MAX, fwd_cnt: 1 << 31, ..update }, &[]);
    assert_eq!(driver.said().0, spec::OP_CREDIT_REQUEST);
    assert_eq!(driver.said(), (spec::OP_RW, b"efghij".to_vec()));
}

#[test]
fn guests_bytes_wait_for_a_slow_host_and_more_than_there_is_room_for_ends_it() {
    let mut driver = Driver::new();
    let mut host = driver.connected();
    let piece = vec![7; 8192];
    let (mut sent, mut told) = (0_u32, 0_u32);
    while sent - told < BUFFER_BYTES_MAX {
        driver.send(packet(spec::OP_RW, 80), &piece);
        assert!(driver.taken());
        sent += 8192;
        while let Some((update, _)) = driver.next() {
            assert_eq!((update.op, update.buf_alloc), (spec::OP_CREDIT_UPDATE, BUFFER_BYTES_MAX));
            told = update.fwd_cnt;
        }
    }
    assert!(sent > BUFFER_BYTES_MAX, "the socket holds some: {sent}");
    driver.send(packet(spec::OP_CREDIT_REQUEST, 80), &[]);
    let (update, _) = driver.next().unwrap();
    assert_eq!(update.op, spec::OP_CREDIT_UPDATE);
    assert_eq!(heard(&mut host, 8192), piece);
    assert!(driver.guest.run());
    // What is there is passed on before the end is.
    let (mut all, mut bytes) = (8192, vec![0; 1 << 16]);
    driver.send(Header { flags: spec::SHUTDOWN_SEND, ..packet(spec::OP_SHUTDOWN, 80) }, &[]);
    loop {
        driver.guest.run();
        let count = host.read(&mut bytes).unwrap();
        if count == 0 {
            break;
        }
        all += count;
    }
    assert_eq!(all, sent as usize);

    driver.send(packet(spec::OP_RST, 80), &[]);
    while driver.next().is_some() {}
    let _host = driver.connected();
    for _ in 0..200 {
        driver.send(packet(spec::OP_RW, 80), &piece);
        if let Some((header, _)) = driver.next()
            && header.op == spec::OP_RST
        {
            return;
        }
    }
    panic!("it was never too much");
}

#[test]
fn what_belongs_to_no_connection_is_reset_and_what_is_no_packet_ignored() {
    let mut driver = Driver::new();
    for op in [spec::OP_RESPONSE, spec::OP_SHUTDOWN, spec::OP_RW, spec::OP_CREDIT_REQUEST, 0, 99] {
        driver.send(packet(op, 80), b"");
        let (reply, _) = driver.next().unwrap();
        assert_eq!((reply.op, reply.src_port, reply.dst_port), (spec::OP_RST, 80, GUEST_PORT), "{op}");
    }
    driver.send(Header { kind: 2, ..packet(spec::OP_REQUEST, 80) }, &[]);
    assert_eq!(driver.said().0, spec::OP_RST, "packets of another kind of socket");
    driver.send(packet(spec::OP_RST, 80), &[]);
    driver.send(Header { src_cid: 53, ..packet(spec::OP_REQUEST, 80) }, &[]);
    driver.send(Header { dst_cid: 1, ..packet(spec::OP_REQUEST, 80) }, &[]);
    driver.tx.submit(&driver.guest.memory, &[MockDescriptor::readable(TX, 43)]);
    driver.guest.kick(1);
    assert!(driver.next().is_none() && driver.asked().is_none());

    // A length that is not there, or that nothing holds.
    for length in [100, u32::MAX, BUFFER_BYTES_MAX + 1] {
        driver.connected();
        driver.send(Header { length, ..packet(spec::OP_RW, 80) }, b"short");
        assert_eq!(driver.said().0, spec::OP_RST);
    }
    // A request of what is there already, and one twice.
    driver.connected();
    driver.send(packet(spec::OP_REQUEST, 80), &[]);
    assert_eq!(driver.said().0, spec::OP_RST);
    driver.send(packet(spec::OP_REQUEST, 80), &[]);
    driver.send(packet(spec::OP_REQUEST, 80), &[]);
    assert_eq!(driver.said().0, spec::OP_RST);
}

#[test]
fn port_at_which_nobody_is_and_a_connector_that_is_gone_are_refusals() {
    let mut driver = Driver::new();
    driver.send(packet(spec::OP_REQUEST, 80), &[]);
    let (number, _) = driver.asked().unwrap();
    let refused = connector::join(number, libc::ECONNREFUSED.unsigned_abs());
    passing::send(&driver.connector, &refused, &[]).unwrap();
    assert_eq!(driver.said().0, spec::OP_RST);
    // An answer to nothing is nothing.
    passing::send(&driver.connector, &connector::join(999, 0), &[driver.connector.as_fd()]).unwrap();
    assert!(driver.next().is_none());

    driver.send(packet(spec::OP_REQUEST, 80), &[]);
    let (_, theirs) = UnixStream::pair().unwrap();
    driver.connector = theirs;
    assert_eq!(driver.said().0, spec::OP_RST);
    driver.send(packet(spec::OP_REQUEST, 80), &[]);
    assert_eq!(driver.said().0, spec::OP_RST);
    assert!(driver.guest.run());
}

#[test]
fn connections_are_bounded_on_both_sides() {
    let mut driver = Driver::new();
    let mut callers = Vec::new();
    while callers.len() < CONNECTIONS_MAX + 8 {
        let Ok(stream) = UnixStream::connect(&driver.path) else { break };
        callers.push(stream);
        driver.guest.run();
    }
    assert!(callers.len() > CONNECTIONS_MAX, "more wait in the backlog");
    assert!(driver.guest.run(), "and nothing spins");
    driver.send(packet(spec::OP_REQUEST, 80), &[]);
    assert_eq!(driver.said().0, spec::OP_RST, "no room");
    callers.clear();
    driver.guest.run();
    driver.connected();
}

#[test]
fn guest_that_hears_nothing_is_not_heard_either() {
    let mut driver = Driver::starved();
    let mut taken = 0;
    for _ in 0..REPLIES_MAX + 8 {
        driver.send(packet(spec::OP_RW, 80), &[]);
        if !driver.taken() {
            break;
        }
        taken += 1;
    }
    assert_eq!(taken, REPLIES_MAX);
    (0..RX_BUFFERS).for_each(|_| driver.offer());
    driver.guest.kick(0);
    while let Some((reply, _)) = driver.next() {
        assert_eq!(reply.op, spec::OP_RST);
    }
    assert!(driver.taken(), "it goes on");
}

#[test]
fn guest_that_stands_still_sees_nothing_and_goes_on_where_it_was() {
    let mut driver = Driver::new();
    let mut host = driver.connected();
    driver.device.lock().unwrap().hold(true);
    host.write_all(b"meanwhile").unwrap();
    driver.guest.put(TX, &packet(spec::OP_CREDIT_UPDATE, 80).encode());
    driver.tx.submit(&driver.guest.memory, &[MockDescriptor::readable(TX, 44)]);
    driver.guest.kick(1);
    assert!(driver.next().is_none() && driver.guest.run(), "nothing spins");
    driver.device.lock().unwrap().hold(false);
    assert_eq!(driver.said(), (spec::OP_RW, b"meanwhile".to_vec()));
}

#[test]
fn connections_that_are_forgotten_are_an_event_and_a_reset_ends_them_all() {
    let mut driver = Driver::new();
    let mut host = driver.connected();
    driver.device.lock().unwrap().forget_connections();
    driver.guest.run();
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
    driver.event.submit(&driver.guest.memory, &[MockDescriptor::writable(TX, 4)]);
    driver.guest.put(TX, &[0xff; 4]);
    driver.guest.kick(2);
    assert_eq!(driver.event.take_used(&driver.guest.memory), Some((0, 4)));
    assert_eq!(driver.guest.get(TX, 4), [0; 4]);

    let mut host = driver.connected();
    driver.guest.set_status(0);
    driver.guest.run();
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
}

#[test]
fn connection_of_many_packets_loses_none() {
    let mut driver = Driver::new();
    let mut host = driver.connected();
    host.set_nonblocking(true).unwrap();
    let text: Vec<u8> = (0..4 << 20).map(|index: u32| (index % 251) as u8).collect();
    let (mut written, mut received) = (0, Vec::new());
    while received.len() < text.len() {
        written += host.write(&text[written..]).unwrap_or(0);
        while let Some((header, data)) = driver.next() {
            match header.op {
                spec::OP_RW => received.extend(data),
                spec::OP_CREDIT_REQUEST => {
                    let fwd_cnt = received.len() as u32;
                    driver.send(Header { fwd_cnt, ..packet(spec::OP_CREDIT_UPDATE, 80) }, &[]);
                    assert!(driver.taken());
                }
                other => panic!("operation {other}"),
            }
        }
    }
    assert!(received == text);
}
