//! One netlink socket: framing, sequence numbers, acknowledgements, dumps. Knows no message's meaning.

#![expect(unsafe_code, reason = "sockets are passed between processes as descriptors")]

use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE,
    NLMSG_ERROR, NetlinkBuffer, NlasIterator,
};
use netlink_sys::{Socket, SocketAddr};
use rustix::net::sockopt;

/// The largest part of an answer in bytes: the kernel builds dumps in parts of at most 32 KiB, and one message may
/// be a page more.
const RECEIVE_SIZE: usize = 128 << 10;

/// How long to wait for an answer. The kernel answers within the send itself, so this only ends a wait for an answer
/// that was lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How much of our own may wait in the kernel, in bytes: one whole transaction of rules must fit in one send.
const SEND_BUFFER_SIZE: usize = 16 << 20;

/// How often a dump is repeated that changed while it was read; each repetition needs a change by somebody else.
const DUMP_ATTEMPTS_MAX: u32 = 16;

/// Bytes of a message header.
const HEADER_SIZE: usize = 16;

/// `NLMSGERR_ATTR_MSG`: the kernel's own words about an error.
const ERROR_ATTRIBUTE_TEXT: u16 = 1;

/// What went wrong between us and the kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No socket: no netlink of this kind in the kernel, or no right to it.
    #[error("open a netlink socket of protocol {protocol}")]
    Open {
        /// The `NETLINK_*` number.
        protocol: isize,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The messages could not be sent.
    #[error("send to netlink")]
    Send(#[source] io::Error),
    /// The answer could not be read.
    #[error("read from netlink")]
    Receive(#[source] io::Error),
    /// The answer is none that netlink knows.
    #[error("netlink answered {0}")]
    Malformed(String),
    /// The kernel refused a message.
    #[error("{subject}{}", in_words(words))]
    Refused {
        /// What was asked for, such as "create bridge wb1a2b-00000001".
        subject: String,
        /// The kernel's own words, if it had any.
        words: Option<String>,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// What was listed kept changing while it was read.
    #[error("list of {0} changed each of {DUMP_ATTEMPTS_MAX} times while it was read")]
    Unstable(&'static str),
}

fn in_words(words: &Option<String>) -> String {
    words.as_ref().map(|words| format!(" (the kernel: {words})")).unwrap_or_default()
}

impl Error {
    /// The error number the kernel refused a message with.
    #[must_use]
    pub fn refusal(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

/// A message to send: its body without the header.
#[derive(Debug)]
pub(crate) struct Message {
    /// What it asks for, for the error.
    pub(crate) subject: String,
    /// The netlink message type.
    pub(crate) kind: u16,
    /// Flags beside `NLM_F_REQUEST`.
    pub(crate) flags: u16,
    /// The body.
    pub(crate) body: Vec<u8>,
}

/// A message received, without its header.
pub(crate) struct Received {
    pub(crate) body: Vec<u8>,
}

/// One answer of the kernel to one message.
struct Answer {
    sequence: u32,
    result: Result<(), (io::Error, Option<String>)>,
}

/// A netlink socket, bound to the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Connection {
    /// Opens a socket of a `NETLINK_*` protocol.
    pub(crate) fn open(protocol: isize) -> Result<Self, Error> {
        let failed = |source| Error::Open { protocol, source };
        let mut socket = Socket::new(protocol).map_err(failed)?;
        socket.bind_auto().map_err(failed)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(failed)?;
        socket.set_cap_ack(true).map_err(failed)?;
        socket.set_ext_ack(true).map_err(failed)?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(ANSWER_TIMEOUT))
            .map_err(|errno| failed(errno.into()))?;
        // Without the right to force it, the default suffices for small transactions.
        let _ = sockopt::set_socket_send_buffer_size_force(&socket, SEND_BUFFER_SIZE);
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(RECEIVE_SIZE) })
    }

    /// Works with a socket that [`Connection::into_descriptor`] gave away.
    pub(crate) fn of(descriptor: OwnedFd) -> Self {
        // SAFETY: the descriptor is owned, and from here on the socket alone owns it.
        let socket = unsafe { Socket::from_raw_fd(descriptor.into_raw_fd()) };
        Self { socket, sequence: 0, buffer: Vec::with_capacity(RECEIVE_SIZE) }
    }

    /// The bare socket, for another process.
    pub(crate) fn into_descriptor(self) -> OwnedFd {
        // SAFETY: the socket gives its descriptor up, and from here on the result alone owns it.
        unsafe { OwnedFd::from_raw_fd(self.socket.into_raw_fd()) }
    }

    /// Sends messages in one call and reads every one's acknowledgement: the refused ones, in order.
    pub(crate) fn acknowledged(&mut self, messages: &[Message]) -> Result<Vec<Error>, Error> {
        let first = self.send(messages, |_| NLM_F_ACK)?;
        let mut refused = Vec::new();
        let mut missing = messages.len();
        while missing > 0 {
            for answer in self.receive_answers()? {
                let Some(message) = message_of(messages, first, answer.sequence) else { continue };
                missing = missing.saturating_sub(1);
                refused.extend(refusal(message, answer));
            }
        }
        Ok(refused)
    }

    /// Sends messages that the kernel takes all or none of, and reads until the last one's acknowledgement. The first
    /// and last are the transaction's own begin and end, which are not acknowledged.
    pub(crate) fn transaction(&mut self, messages: &[Message]) -> Result<(), Error> {
        let last_index =
            messages.len().checked_sub(2).expect("invariant: a transaction has a begin and an end");
        let first = self.send(messages, |index| if index == last_index { NLM_F_ACK } else { 0 })?;
        let last = first.wrapping_add(last_index as u32);
        let mut refused = Vec::new();
        loop {
            for answer in self.receive_answers()? {
                let Some(message) = message_of(messages, first, answer.sequence) else { continue };
                // Whoever has no right to it is told so at the begin, and nothing after it is answered.
                let is_last = answer.sequence == last || (answer.sequence == first && answer.result.is_err());
                refused.extend(refusal(message, answer));
                if is_last {
                    return refused.into_iter().next().map_or(Ok(()), Err);
                }
            }
        }
    }

    /// Asks for one thing and reads it.
    pub(crate) fn ask(&mut self, message: Message) -> Result<Received, Error> {
        let messages = [message];
        let sequence = self.send(&messages, |_| 0)?;
        loop {
            self.receive()?;
            let mut rest = self.buffer.as_slice();
            while let Some(part) = next_message(&mut rest)? {
                if part.sequence_number() != sequence {
                    continue;
                }
                if part.message_type() != NLMSG_ERROR {
                    return Ok(Received { body: part.payload().to_vec() });
                }
                let [message] = &messages;
                let nothing = || Error::Malformed(format!("nothing to: {}", message.subject));
                return Err(refusal(message, answer(&part)?).unwrap_or_else(nothing));
            }
        }
    }

    /// Asks for a list and reads it whole.
    pub(crate) fn dump(
        &mut self,
        what: &'static str,
        kind: u16,
        body: &[u8],
    ) -> Result<Vec<Received>, Error> {
        for _ in 0..DUMP_ATTEMPTS_MAX {
            let subject = format!("list {what}");
            let message = Message { subject, kind, flags: NLM_F_DUMP, body: body.to_vec() };
            if let Some(received) = self.dump_once(message)? {
                return Ok(received);
            }
        }
        Err(Error::Unstable(what))
    }

    /// The list, unless it changed while it was read.
    fn dump_once(&mut self, message: Message) -> Result<Option<Vec<Received>>, Error> {
        let messages = [message];
        let sequence = self.send(&messages, |_| 0)?;
        let mut received = Vec::new();
        let mut is_whole = true;
        loop {
            self.receive()?;
            let mut rest = self.buffer.as_slice();
            while let Some(part) = next_message(&mut rest)? {
                if part.sequence_number() != sequence {
                    continue;
                }
                is_whole &= part.flags() & NLM_F_DUMP_INTR == 0;
                match part.message_type() {
                    NLMSG_DONE => return Ok(is_whole.then_some(received)),
                    NLMSG_ERROR => {
                        let [message] = messages;
                        let answer = answer(&part)?;
                        return refusal(&message, answer).map_or(Ok(Some(received)), Err);
                    }
                    _ => received.push(Received { body: part.payload().to_vec() }),
                }
            }
        }
    }

    /// Sends messages in one call: the first one's sequence number, the others follow it.
    fn send(&mut self, messages: &[Message], flags: impl Fn(usize) -> u16) -> Result<u32, Error> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::with_capacity(messages.iter().map(|m| HEADER_SIZE + m.body.len() + 3).sum());
        for (index, message) in messages.iter().enumerate() {
            self.sequence = self.sequence.wrapping_add(1);
            let mut header = NetlinkBuffer::new([0; HEADER_SIZE]);
            header.set_length((HEADER_SIZE + message.body.len()) as u32);
            header.set_message_type(message.kind);
            header.set_flags(NLM_F_REQUEST | message.flags | flags(index));
            header.set_sequence_number(self.sequence);
            bytes.extend_from_slice(&header.into_inner());
            bytes.extend_from_slice(&message.body);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        let sent = self.socket.send(&bytes, 0).map_err(Error::Send)?;
        if sent != bytes.len() {
            return Err(Error::Send(io::ErrorKind::WriteZero.into()));
        }
        Ok(first)
    }

    fn receive(&mut self) -> Result<(), Error> {
        self.buffer.clear();
        loop {
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(0) => return Err(Error::Malformed("nothing".to_owned())),
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::Receive(error)),
            }
        }
    }

    fn receive_answers(&mut self) -> Result<Vec<Answer>, Error> {
        self.receive()?;
        let mut answers = Vec::new();
        let mut rest = self.buffer.as_slice();
        while let Some(part) = next_message(&mut rest)? {
            if part.message_type() == NLMSG_ERROR {
                answers.push(answer(&part)?);
            }
        }
        Ok(answers)
    }
}

fn message_of(messages: &[Message], first: u32, sequence: u32) -> Option<&Message> {
    messages.get(sequence.wrapping_sub(first) as usize)
}

fn refusal(message: &Message, answer: Answer) -> Option<Error> {
    let (source, words) = answer.result.err()?;
    Some(Error::Refused { subject: message.subject.clone(), words, source })
}

/// Cuts the next message off, if there is one.
fn next_message<'a>(rest: &mut &'a [u8]) -> Result<Option<NetlinkBuffer<&'a [u8]>>, Error> {
    if rest.is_empty() {
        return Ok(None);
    }
    let part = NetlinkBuffer::new_checked(*rest).map_err(|error| Error::Malformed(error.to_string()))?;
    let length = (part.length() as usize).clamp(HEADER_SIZE, rest.len());
    let next = length.next_multiple_of(4).min(rest.len());
    let part = NetlinkBuffer::new(&rest[..length]);
    *rest = &rest[next..];
    Ok(Some(part))
}

/// Reads a `struct nlmsgerr`: error number (4 bytes), header of the message it is about (16 bytes), and attributes.
fn answer(part: &NetlinkBuffer<&[u8]>) -> Result<Answer, Error> {
    let body = part.payload();
    let Some((code, about)) = body.split_first_chunk::<4>() else {
        return Err(Error::Malformed("an error without a number".to_owned()));
    };
    let code = i32::from_ne_bytes(*code);
    if code == 0 {
        return Ok(Answer { sequence: part.sequence_number(), result: Ok(()) });
    }
    let has_words = part.flags() & NLM_F_ACK_TLVS != 0 && part.flags() & NLM_F_CAPPED != 0;
    let words = about.get(HEADER_SIZE..).filter(|_| has_words).and_then(|attributes| {
        NlasIterator::new(attributes)
            .flatten()
            .find(|nla| nla.kind() == ERROR_ATTRIBUTE_TEXT)
            .map(|nla| String::from_utf8_lossy(nla.value()).trim_end_matches('\0').to_owned())
    });
    let source = io::Error::from_raw_os_error(code.wrapping_neg());
    Ok(Answer { sequence: part.sequence_number(), result: Err((source, words)) })
}
