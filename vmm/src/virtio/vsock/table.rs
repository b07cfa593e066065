//! All connections of one device, those that are being made, and what the guest has to hear of those that are none.
//!
//! Must never know: queues, guest memory.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use event_manager::{EventOps, EventSet, Events};

use super::super::spec::vsock as spec;
use super::caller::{Caller, Said};
use super::connection::{ANSWER_TIME_MAX, Connection, Fate};
use super::packet::Header;
use crate::backlog::Backlog;
use crate::connector;
use crate::rpc::passing;

/// Connections at a time, of both sides and with those that are being made: each may hold 64 KiB of the guest's bytes.
pub const CONNECTIONS_MAX: usize = 256;
/// Connections that the guest wants and that are being made, at a time.
const WANTED_MAX: usize = 32;
/// Answers that wait for the guest to have room for them; as long as there are so many, nothing of it is heard.
pub const REPLIES_MAX: usize = 256;
/// Ports of the host for connections that it begins; below, well-known ones are.
pub(super) const HOST_PORT_START: u32 = 1 << 30;
/// Connections taken, or answers heard, at one event.
const BATCH_MAX: usize = 16;

/// The ports of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ports {
    pub(super) host: u32,
    pub(super) guest: u32,
}

impl Ports {
    fn of(header: &Header) -> Self {
        Self { host: header.dst_port, guest: header.src_port }
    }
}

/// One that the guest wants.
struct Wanted {
    ports: Ports,
    request: Header,
}

pub(super) struct Table {
    guest_cid: u64,
    /// Where the host's side connects.
    backlog: Option<Backlog>,
    listens: bool,
    /// Who connects for the guest.
    connector: Option<UnixStream>,
    callers: Vec<Caller>,
    wanted: BTreeMap<u32, Wanted>,
    next_number: u32,
    /// The host's port of the next connection that the host begins.
    pub(super) next_port: u32,
    connections: BTreeMap<Ports, Connection>,
    /// The connection that had its turn last.
    last: Option<Ports>,
    replies: VecDeque<Header>,
    /// Streams that the event loop has yet to forget, before they are closed.
    leaving: Vec<UnixStream>,
}

impl Table {
    pub(super) fn new(guest_cid: u64, backlog: Option<Backlog>, connector: Option<UnixStream>) -> Self {
        Self {
            guest_cid,
            backlog,
            listens: false,
            connector,
            callers: Vec::new(),
            wanted: BTreeMap::new(),
            next_number: 0,
            next_port: HOST_PORT_START,
            connections: BTreeMap::new(),
            last: None,
            replies: VecDeque::new(),
            leaving: Vec::new(),
        }
    }

    /// Whether the guest may be heard: an answer would have room.
    pub(super) fn has_room(&self) -> bool {
        self.replies.len() < REPLIES_MAX
    }

    fn count(&self) -> usize {
        self.callers.len() + self.wanted.len() + self.connections.len()
    }

    /// Takes a packet of the guest's; `data` gives what is behind the header, whole.
    pub(super) fn take(&mut self, header: &Header, data: impl FnOnce() -> Vec<u8>, now: Instant) {
        if header.src_cid != self.guest_cid || header.dst_cid != spec::HOST_CID {
            // Nobody is there, and nobody else sends.
            return;
        }
        let ports = Ports::of(header);
        if header.kind != spec::TYPE_STREAM {
            return self.refuse(header);
        }
        let Some(connection) = self.connections.get_mut(&ports) else {
            return self.take_unknown(header, ports);
        };
        let fate = match header.op {
            spec::OP_RW if connection.has_room(header.length) => connection.take_data(header, &data()),
            _ => connection.take(header, ports.host, now),
        };
        self.settle_fate(ports, fate);
    }

    fn take_unknown(&mut self, header: &Header, ports: Ports) {
        let before = self.wanted.iter().find(|(_, wanted)| wanted.ports == ports).map(|(number, _)| *number);
        let was_wanted = before.is_some_and(|number| self.wanted.remove(&number).is_some());
        match header.op {
            spec::OP_REQUEST if !was_wanted => self.want(header, ports),
            spec::OP_RST => {}
            _ => self.refuse(header),
        }
    }

    /// Has a connection made that the guest wants.
    fn want(&mut self, header: &Header, ports: Ports) {
        let number = self.next_number;
        let message = connector::join(number, ports.host);
        let is_free = self.wanted.len() < WANTED_MAX && self.count() < CONNECTIONS_MAX;
        let connector = self.connector.as_ref().filter(|_| is_free);
        // Who does not take a question does not answer it either.
        if connector.is_some_and(|connector| passing::send(connector, &message, &[]).is_ok()) {
            self.next_number = number.wrapping_add(1);
            self.wanted.insert(number, Wanted { ports, request: *header });
        } else {
            self.refuse(header);
        }
    }

    fn refuse(&mut self, header: &Header) {
        if header.op != spec::OP_RST {
            self.reset(Ports::of(header), header.kind);
        }
    }

    /// Tells the guest that there is no such connection.
    fn reset(&mut self, ports: Ports, kind: u16) {
        let mut reply = Header { op: spec::OP_RST, kind, ..Header::default() };
        self.address(&mut reply, ports);
        self.replies.push_back(reply);
    }

    fn address(&self, header: &mut Header, ports: Ports) {
        header.src_cid = spec::HOST_CID;
        header.dst_cid = self.guest_cid;
        header.src_port = ports.host;
        header.dst_port = ports.guest;
    }

    fn settle_fate(&mut self, ports: Ports, fate: Fate) {
        if fate == Fate::Goes {
            return;
        }
        let Some(connection) = self.connections.remove(&ports) else { return };
        if fate == Fate::Reset && connection.is_known() {
            self.reset(ports, spec::TYPE_STREAM);
        }
        self.leave(connection.watched, connection.into_stream());
    }

    fn leave(&mut self, watched: Option<EventSet>, stream: UnixStream) {
        if watched.is_some() {
            self.leaving.push(stream);
        }
    }

    /// The next packet for the guest: its header, and how much of `data` is behind it.
    pub(super) fn next(&mut self, data: &mut [u8], now: Instant) -> Option<Header> {
        if let Some(reply) = self.replies.pop_front() {
            return Some(reply);
        }
        // From the one behind the last on, all around.
        let after = |last: &Ports| (std::ops::Bound::Excluded(*last), std::ops::Bound::Unbounded);
        let behind = self.last.iter().flat_map(|last| self.connections.range(after(last)));
        let order: Vec<Ports> = behind.chain(&self.connections).map(|(ports, _)| *ports).collect();
        for ports in order {
            let Some(connection) = self.connections.get_mut(&ports) else { continue };
            match connection.next(data, now) {
                Ok(None) => {}
                Ok(Some(mut header)) => {
                    self.last = Some(ports);
                    header.kind = spec::TYPE_STREAM;
                    self.address(&mut header, ports);
                    return Some(header);
                }
                Err(fate) => {
                    self.settle_fate(ports, fate);
                    return self.replies.pop_front();
                }
            }
        }
        None
    }

    /// What an event of a stream's, or of the sockets', leads to.
    pub(super) fn happened(&mut self, events: Events, now: Instant) {
        let fd = events.fd();
        if self.backlog.as_mut().is_some_and(|backlog| backlog.is_called(fd)) {
            self.accept();
        } else if self.connector.as_ref().is_some_and(|connector| connector.as_raw_fd() == fd) {
            self.take_answers();
        } else if let Some(index) = self.callers.iter().position(|caller| caller.stream.as_raw_fd() == fd) {
            self.take_call(index, now);
        } else if let Some((ports, connection)) = self.at(fd) {
            let fate = connection.happened(events.event_set(), now);
            self.settle_fate(ports, fate);
        }
    }

    fn at(&mut self, fd: RawFd) -> Option<(Ports, &mut Connection)> {
        let found = self.connections.iter_mut().find(|(_, connection)| connection.stream().as_raw_fd() == fd);
        found.map(|(ports, connection)| (*ports, connection))
    }

    fn accept(&mut self) {
        for _ in 0..BATCH_MAX {
            if self.count() >= CONNECTIONS_MAX {
                return;
            }
            let Some(stream) = self.backlog.as_mut().and_then(Backlog::accept) else { return };
            self.callers.push(Caller::new(stream));
        }
    }

    fn take_call(&mut self, index: usize, now: Instant) {
        let said = self.callers[index].read();
        if said == Said::Nothing {
            return;
        }
        let Caller { stream, watched, .. } = self.callers.swap_remove(index);
        let Said::Port(guest) = said else { return self.leave(watched, stream) };
        let ports = Ports { host: self.free_port(), guest };
        self.connections.insert(ports, Connection::offered(stream, watched, now));
    }

    /// A port of the host's that no connection has, nor one that is being made: there are far more of them than of these.
    fn free_port(&mut self) -> u32 {
        loop {
            let port = self.next_port;
            self.next_port = port.checked_add(1).filter(|next| *next != u32::MAX).unwrap_or(HOST_PORT_START);
            let wanted = self.wanted.values().map(|wanted| &wanted.ports);
            if self.connections.keys().chain(wanted).all(|ports| ports.host != port) {
                return port;
            }
        }
    }

    fn take_answers(&mut self) {
        for _ in 0..BATCH_MAX {
            let Some(connector) = &self.connector else { return };
            let (mut message, mut passed) = ([0; connector::MESSAGE_BYTES], Vec::new());
            let count = match passing::receive(connector, &mut message, &mut passed) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                received => received.unwrap_or(0),
            };
            if count != connector::MESSAGE_BYTES {
                // It is gone: nobody connects any more.
                tracing::warn!("nobody connects for the guest any more: its connector has ended");
                self.leaving.extend(self.connector.take());
                let wanted = std::mem::take(&mut self.wanted);
                return wanted.values().for_each(|wanted| self.reset(wanted.ports, spec::TYPE_STREAM));
            }
            self.take_answer(connector::split(message), passed.pop());
        }
    }

    fn take_answer(&mut self, (number, error): (u32, u32), passed: Option<OwnedFd>) {
        let Some(Wanted { ports, request }) = self.wanted.remove(&number) else { return };
        let stream = passed.filter(|_| error == 0).map(UnixStream::from);
        match stream.filter(|stream| stream.set_nonblocking(true).is_ok()) {
            Some(stream) => {
                self.connections.insert(ports, Connection::accepted(stream, &request));
            }
            None => self.reset(ports, spec::TYPE_STREAM),
        }
    }

    /// Ends what has taken too long.
    pub(super) fn expire(&mut self, now: Instant) {
        let late = |connection: &Connection| connection.deadline.is_some_and(|deadline| deadline <= now);
        let late: Vec<Ports> =
            self.connections.iter().filter(|(_, it)| late(it)).map(|(ports, _)| *ports).collect();
        late.into_iter().for_each(|ports| self.settle_fate(ports, Fate::Reset));
    }

    /// Gives all that is waited for its whole time again: the guest stood still.
    pub(super) fn renew(&mut self, now: Instant) {
        let deadlines = self.connections.values_mut().filter_map(|connection| connection.deadline.as_mut());
        deadlines.for_each(|deadline| *deadline = now + ANSWER_TIME_MAX);
    }

    /// When something will have taken too long.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.connections.values().filter_map(|connection| connection.deadline).min()
    }

    /// Ends all connections, of which the guest knows none any more. Who has called and waits for the guest is kept.
    pub(super) fn clear(&mut self) {
        for (_, connection) in std::mem::take(&mut self.connections) {
            self.leave(connection.watched, connection.into_stream());
        }
        self.wanted.clear();
        self.replies.clear();
        self.last = None;
    }

    /// Has the event loop listen for what is of use now.
    pub(super) fn settle(&mut self, ops: &mut EventOps<'_>) {
        for stream in self.leaving.drain(..) {
            listen(ops, &stream, Some(EventSet::empty()), None);
        }
        for caller in &mut self.callers {
            caller.watched = listen(ops, &caller.stream, caller.watched, Some(EventSet::IN));
        }
        for connection in self.connections.values_mut() {
            let wanted = connection.wanted();
            connection.watched = listen(ops, connection.stream(), connection.watched, wanted);
        }
        let has_room = self.count() < CONNECTIONS_MAX;
        if let Some(backlog) = &self.backlog {
            let listens = has_room && !backlog.rests();
            let [before, after] = [self.listens, listens].map(|listens| listens.then_some(EventSet::IN));
            self.listens = listen(ops, backlog, before, after).is_some();
        }
    }

    /// Listens to whoever connects for the guest, once.
    pub(super) fn start(&mut self, ops: &mut EventOps<'_>) {
        if let Some(connector) = &self.connector {
            super::super::watch(ops, connector, EventSet::IN);
        }
        if let Some(backlog) = &self.backlog {
            super::super::watch(ops, backlog.timer(), EventSet::IN);
        }
        self.settle(ops);
    }
}

/// Changes what the event loop listens for; what it listens for then.
fn listen(
    ops: &mut EventOps<'_>,
    source: &impl AsRawFd,
    before: Option<EventSet>,
    after: Option<EventSet>,
) -> Option<EventSet> {
    let changed = match (before, after) {
        (before, after) if before == after => return after,
        (None, Some(set)) => ops.add(Events::new(source, set)),
        (Some(_), Some(set)) => ops.modify(Events::new(source, set)),
        (_, None) => ops.remove(Events::empty(source)),
    };
    match changed {
        Ok(()) => after,
        Err(error) => {
            tracing::error!(%error, "a socket device cannot change what it listens to");
            before
        }
    }
}
