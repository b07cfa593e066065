//! One connection between a port of the guest and a stream of the host, with the credit of both sides (VIRTIO 1.3
//! §5.10.6.3).
//!
//! What the guest sends waits here as long as the host's side does not take it, as much of it as the guest was told that
//! there is room for. What the host's side sends is read when the guest has a buffer and credit, so it waits in the
//! stream.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use event_manager::EventSet;

use super::super::spec::vsock as spec;
use super::packet::Header;

/// Bytes of the guest's that wait for the host's side at most; the guest is told of them.
pub const BUFFER_BYTES_MAX: u32 = 64 << 10;
/// Room that became free before the guest is told of it in a packet of its own.
const CREDIT_STEP_BYTES: u32 = BUFFER_BYTES_MAX / 2;
/// How long the guest may take to answer a request, and to end a connection that is over.
pub(super) const ANSWER_TIME_MAX: Duration = Duration::from_secs(2);

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The host's side has asked, and the guest has not answered.
    Offered,
    /// Both sides have it.
    Open,
}

/// What has to be said to the guest, each once.
#[derive(Debug, Clone, Copy, Default)]
struct Due {
    request: bool,
    response: bool,
    credit_request: bool,
    credit_update: bool,
    /// Which directions are shut down that the guest has not heard of.
    shutdown: u32,
}

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes on.
    Goes,
    /// It is over, and the guest has to hear of it.
    Reset,
    /// It is over for both.
    Over,
}

pub(super) struct Connection {
    stream: UnixStream,
    phase: Phase,
    /// The guest's buffer, what it has passed on, and what it was sent, the last two wrapping.
    guest_buffer: u32,
    guest_passed: u32,
    sent: u32,
    /// The guest's bytes that wait for the host's side.
    buffer: VecDeque<u8>,
    /// Those that it has taken in all, and the number that the guest was told last, wrapping.
    passed: u32,
    told: u32,
    due: Due,
    /// The directions that the guest has shut down.
    guest_shut: u32,
    /// The guest's end of sending was passed on.
    passed_end: bool,
    /// The stream may have something to read.
    pub(super) readable: bool,
    /// The host's side sends no more, and hears no more.
    ended: bool,
    hung_up: bool,
    pub(super) deadline: Option<Instant>,
    /// What the event loop listens for; nothing if it does not know of the stream.
    pub(super) watched: Option<EventSet>,
}

impl Connection {
    fn new(stream: UnixStream, phase: Phase) -> Self {
        Self {
            stream,
            phase,
            guest_buffer: 0,
            guest_passed: 0,
            sent: 0,
            buffer: VecDeque::new(),
            passed: 0,
            told: 0,
            due: Due::default(),
            guest_shut: 0,
            passed_end: false,
            readable: false,
            ended: false,
            hung_up: false,
            deadline: None,
            watched: None,
        }
    }

    /// One that somebody on the host wants.
    pub(super) fn offered(stream: UnixStream, watched: Option<EventSet>, now: Instant) -> Self {
        let mut connection = Self::new(stream, Phase::Offered);
        connection.due.request = true;
        connection.deadline = Some(now + ANSWER_TIME_MAX);
        connection.watched = watched;
        connection
    }

    /// One that the guest wanted by `request`, and that was made.
    pub(super) fn accepted(stream: UnixStream, request: &Header) -> Self {
        let mut connection = Self::new(stream, Phase::Open);
        connection.due.response = true;
        connection.take_credit(request);
        connection
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Whether the guest knows of it.
    pub(super) fn is_known(&self) -> bool {
        !self.due.request
    }

    pub(super) fn into_stream(self) -> UnixStream {
        self.stream
    }

    fn take_credit(&mut self, header: &Header) {
        self.guest_buffer = header.buf_alloc;
        self.guest_passed = header.fwd_cnt;
    }

    /// Bytes that the guest can take. One that counts wrongly gets no more than its own buffers hold.
    fn credit(&self) -> u32 {
        self.guest_buffer.saturating_sub(self.sent.wrapping_sub(self.guest_passed))
    }

    /// Takes a packet of the guest's but for its data.
    pub(super) fn take(&mut self, header: &Header, host_port: u32, now: Instant) -> Fate {
        self.take_credit(header);
        match (header.op, self.phase) {
            (spec::OP_RST, _) => return Fate::Over,
            (spec::OP_RESPONSE, Phase::Offered) => {
                self.phase = Phase::Open;
                self.deadline = None;
                // A stream that nothing was written to has room for it.
                if self.stream.write_all(format!("OK {host_port}\n").as_bytes()).is_err() {
                    return Fate::Reset;
                }
            }
            (spec::OP_CREDIT_UPDATE, Phase::Open) => {}
            (spec::OP_CREDIT_REQUEST, Phase::Open) => self.due.credit_update = true,
            (spec::OP_SHUTDOWN, Phase::Open) => {
                self.guest_shut |= header.flags & spec::SHUTDOWN_BOTH;
                if self.guest_shut & spec::SHUTDOWN_RECEIVE != 0 {
                    // What it has sent so far is not wanted either.
                    let _ = self.stream.shutdown(Shutdown::Read);
                    self.readable = false;
                }
                if self.guest_shut == spec::SHUTDOWN_BOTH {
                    self.deadline = Some(now + ANSWER_TIME_MAX);
                }
                return self.flush();
            }
            _ => return Fate::Reset,
        }
        Fate::Goes
    }

    /// Whether the guest may send `length` bytes of data now.
    pub(super) fn has_room(&self, length: u32) -> bool {
        let waiting = u32::try_from(self.buffer.len()).unwrap_or(u32::MAX);
        let open = self.phase == Phase::Open && self.guest_shut & spec::SHUTDOWN_SEND == 0;
        open && length <= BUFFER_BYTES_MAX.saturating_sub(waiting)
    }

    /// Takes data of the guest's, for which there is room.
    pub(super) fn take_data(&mut self, header: &Header, data: &[u8]) -> Fate {
        self.take_credit(header);
        self.buffer.extend(data);
        self.flush()
    }

    /// Passes on what the host's side takes of the guest's bytes.
    pub(super) fn flush(&mut self) -> Fate {
        while !self.buffer.is_empty() {
            match self.stream.write(self.buffer.as_slices().0) {
                Ok(0) => return Fate::Reset,
                Ok(count) => {
                    self.buffer.drain(..count);
                    // At most BUFFER_BYTES_MAX.
                    self.passed = self.passed.wrapping_add(count as u32);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Fate::Goes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Fate::Reset,
            }
        }
        if self.guest_shut == spec::SHUTDOWN_BOTH {
            return Fate::Reset;
        }
        if self.guest_shut & spec::SHUTDOWN_SEND != 0 && !self.passed_end {
            self.passed_end = true;
            // Who has hung up hears no end.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        Fate::Goes
    }

    /// What became of the stream, as the event loop says.
    pub(super) fn happened(&mut self, set: EventSet, now: Instant) -> Fate {
        if set.intersects(EventSet::HANG_UP | EventSet::ERROR) {
            self.hung_up = true;
            if self.phase == Phase::Offered {
                return Fate::Reset;
            }
            if self.ended {
                self.shut(spec::SHUTDOWN_BOTH, now);
            }
        }
        self.readable |= self.phase == Phase::Open
            && !self.ended
            && self.guest_shut & spec::SHUTDOWN_RECEIVE == 0
            && set.intersects(EventSet::IN | EventSet::HANG_UP | EventSet::ERROR);
        if set.contains(EventSet::OUT) { self.flush() } else { Fate::Goes }
    }

    fn shut(&mut self, flags: u32, now: Instant) {
        self.due.shutdown |= flags;
        if flags == spec::SHUTDOWN_BOTH {
            self.deadline.get_or_insert(now + ANSWER_TIME_MAX);
        }
    }

    /// The next packet for the guest, whose data is put into `data`; what it says of both ends is for the caller to fill in.
    pub(super) fn next(&mut self, data: &mut [u8], now: Instant) -> Result<Option<Header>, Fate> {
        let unheard = self.passed.wrapping_sub(self.told);
        self.due.credit_update |= unheard >= CREDIT_STEP_BYTES;
        let mut header = Header::default();
        if std::mem::take(&mut self.due.request) {
            header.op = spec::OP_REQUEST;
        } else if std::mem::take(&mut self.due.response) {
            header.op = spec::OP_RESPONSE;
        } else if std::mem::take(&mut self.due.credit_update) {
            header.op = spec::OP_CREDIT_UPDATE;
        } else if self.readable && self.read(data, &mut header, now)? {
            header.op = spec::OP_RW;
        } else if std::mem::take(&mut self.due.credit_request) {
            header.op = spec::OP_CREDIT_REQUEST;
        } else if self.due.shutdown != 0 {
            header.op = spec::OP_SHUTDOWN;
            header.flags = std::mem::take(&mut self.due.shutdown);
        } else {
            return Ok(None);
        }
        header.buf_alloc = BUFFER_BYTES_MAX;
        header.fwd_cnt = self.passed;
        self.told = self.passed;
        Ok(Some(header))
    }

    /// Reads what the guest has credit for; whether there was anything.
    fn read(&mut self, data: &mut [u8], header: &mut Header, now: Instant) -> Result<bool, Fate> {
        let credit = self.credit();
        if credit == 0 {
            // Asked once: `readable` is set again when the guest has answered.
            self.readable = false;
            self.due.credit_request = true;
            return Ok(false);
        }
        let room = data.len().min(usize::try_from(credit).unwrap_or(usize::MAX));
        if room == 0 {
            // To a buffer without room for data, a stream that goes on reads as one that has ended.
            return Ok(false);
        }
        match self.stream.read(&mut data[..room]) {
            Ok(0) => {
                self.readable = false;
                self.ended = true;
                self.shut(if self.hung_up { spec::SHUTDOWN_BOTH } else { spec::SHUTDOWN_SEND }, now);
                Ok(false)
            }
            Ok(count) => {
                // At most the length of the guest's buffer.
                header.length = count as u32;
                self.sent = self.sent.wrapping_add(header.length);
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                Ok(false)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            Err(_) => Err(Fate::Reset),
        }
    }

    /// What the event loop has to listen for; nothing if it must not know of the stream.
    pub(super) fn wanted(&self) -> Option<EventSet> {
        let mut set = EventSet::empty();
        let reads = self.phase == Phase::Open && !self.ended && self.guest_shut & spec::SHUTDOWN_RECEIVE == 0;
        // Without credit, the stream is read again when the guest has told of some.
        set.set(EventSet::IN, reads && !self.readable && self.credit() > 0);
        set.set(EventSet::OUT, !self.buffer.is_empty());
        // That it hangs up is always said; once that is known, it would be said again and again.
        let hears = !self.hung_up && (self.phase == Phase::Offered || self.ended);
        (hears || !set.is_empty()).then_some(set)
    }
}
