//! A console's socket: a listening one, and the one connection that has the console. Who connects takes it from whoever
//! had it before.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;

use event_manager::{EventOps, EventSet, Events};

use crate::backlog::Backlog;

/// The most output that waits for a connection, in bytes: some screens of it.
pub(super) const OUTPUT_BYTES_MAX: usize = 64 << 10;
/// Connections taken at one event; further ones are the next one's.
const ACCEPTED_MAX: usize = 4;

pub(super) struct Socket {
    backlog: Backlog,
    /// The event loop listens for connections.
    listens: bool,
    client: Option<Client>,
}

struct Client {
    stream: UnixStream,
    output: VecDeque<u8>,
    /// Nothing more comes from it, or goes to it.
    is_over: bool,
    /// What the event loop listens for; nothing if it does not know of it.
    watched: Option<EventSet>,
}

impl Socket {
    pub(super) fn new(backlog: Backlog) -> Self {
        Self { backlog, listens: false, client: None }
    }

    /// Has the event loop listen for connections.
    pub(super) fn start(&mut self, ops: &mut EventOps<'_>) {
        super::super::watch(ops, &self.backlog, EventSet::IN);
        super::super::watch(ops, self.backlog.timer(), EventSet::IN);
        self.listens = true;
    }

    /// Sends `bytes`, or keeps them; what there is no room for is lost.
    pub(super) fn send(&mut self, bytes: &[u8]) {
        let Some(client) = &mut self.client else { return };
        let room = OUTPUT_BYTES_MAX - client.output.len();
        client.output.extend(&bytes[..bytes.len().min(room)]);
        client.flush();
    }

    /// Takes connections and input, of which `input` may hold `input_max`.
    pub(super) fn serve(
        &mut self,
        events: Events,
        input_max: usize,
        input: &mut VecDeque<u8>,
        ops: &mut EventOps<'_>,
    ) {
        if self.backlog.is_called(events.fd()) {
            for _ in 0..ACCEPTED_MAX {
                let Some(stream) = self.backlog.accept() else { break };
                self.drop_client(ops);
                let output = VecDeque::new();
                self.client = Some(Client { stream, output, is_over: false, watched: None });
            }
        } else if let Some(client) = &mut self.client {
            client.flush();
            client.read(input_max, input);
        }
    }

    /// Has the event loop listen for what is of use now, and lets go a connection that is over.
    pub(super) fn settle(&mut self, has_room: bool, ops: &mut EventOps<'_>) {
        let listens = !self.backlog.rests();
        if self.listens != listens {
            let set = if listens { EventSet::IN } else { EventSet::empty() };
            match ops.modify(Events::new(&self.backlog, set)) {
                Ok(()) => self.listens = listens,
                Err(error) => tracing::error!(%error, "a console cannot change what it listens to"),
            }
        }
        if self.client.as_ref().is_some_and(|client| client.is_over) {
            return self.drop_client(ops);
        }
        let Some(client) = &mut self.client else { return };
        let mut wanted = EventSet::empty();
        wanted.set(EventSet::IN, has_room);
        wanted.set(EventSet::OUT, !client.output.is_empty());
        // One that is listened to for nothing would still say, again and again, that it hung up.
        let wanted = Some(wanted).filter(|wanted| !wanted.is_empty());
        let changed = match (client.watched, wanted) {
            (before, after) if before == after => return,
            (None, Some(set)) => ops.add(Events::new(&client.stream, set)),
            (Some(_), Some(set)) => ops.modify(Events::new(&client.stream, set)),
            (_, None) => ops.remove(Events::empty(&client.stream)),
        };
        match changed {
            Ok(()) => client.watched = wanted,
            Err(error) => tracing::error!(%error, "a console cannot change what it listens to"),
        }
    }

    fn drop_client(&mut self, ops: &mut EventOps<'_>) {
        if let Some(client) = self.client.take()
            && client.watched.is_some()
            && let Err(error) = ops.remove(Events::empty(&client.stream))
        {
            tracing::error!(%error, "a console's closed connection is still watched");
        }
    }
}

impl Client {
    fn flush(&mut self) {
        while !self.output.is_empty() && !self.is_over {
            match self.stream.write(self.output.as_slices().0) {
                Ok(0) => self.is_over = true,
                Ok(count) => drop(self.output.drain(..count)),
                Err(error) => return self.failed(&error),
            }
        }
    }

    fn read(&mut self, input_max: usize, input: &mut VecDeque<u8>) {
        let room = input_max.saturating_sub(input.len());
        if room == 0 || self.is_over {
            return;
        }
        let mut bytes = vec![0; room];
        match self.stream.read(&mut bytes) {
            Ok(0) => self.is_over = true,
            Ok(count) => input.extend(&bytes[..count]),
            Err(error) => self.failed(&error),
        }
    }

    fn failed(&mut self, error: &io::Error) {
        self.is_over = !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted);
    }
}
