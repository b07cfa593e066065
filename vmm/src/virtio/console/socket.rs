//! A console's socket: a listening one, and the one connection that has the console. Who connects takes it from whoever
//! had it before.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use event_manager::{EventOps, EventSet, Events};

/// The most output that waits for a connection, in bytes: some screens of it.
pub(super) const OUTPUT_BYTES_MAX: usize = 64 << 10;
/// Connections taken at one event; further ones are the next one's.
const ACCEPTED_MAX: usize = 4;

pub(super) struct Socket {
    listener: UnixListener,
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
    pub(super) fn new(listener: UnixListener) -> Self {
        Self { listener, client: None }
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
        if events.fd() == self.listener.as_raw_fd() {
            for _ in 0..ACCEPTED_MAX {
                let Ok((stream, _)) = self.listener.accept() else { break };
                if stream.set_nonblocking(true).is_ok() {
                    self.drop_client(ops);
                    let output = VecDeque::new();
                    self.client = Some(Client { stream, output, is_over: false, watched: None });
                }
            }
        } else if let Some(client) = &mut self.client {
            client.flush();
            client.read(input_max, input);
        }
    }

    /// Has the event loop listen for what is of use now, and lets go a connection that is over.
    pub(super) fn settle(&mut self, has_room: bool, ops: &mut EventOps<'_>) {
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

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.listener.as_raw_fd()
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
