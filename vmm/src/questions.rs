//! Questions of the guest that its VMM cannot answer itself, since it has no network of its own: about names. They wait
//! here, few and for a moment, for whoever asked for them at the control socket.
//!
//! Must never know: what is in a message.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::mutex::lock;

/// The longest question in bytes: a name has at most 255, and what is said beside it a few dozen.
pub const QUESTION_BYTES_MAX: usize = 1024;
/// The longest answer in bytes: far more than names need, and a line of the control socket holds it.
pub const ANSWER_BYTES_MAX: usize = 16 << 10;
/// Questions that wait for somebody to take them, of all devices together; further ones are lost, as on any network.
const WAITING_MAX: usize = 64;
/// Who asked has asked again after this time, or given up.
const AGE_MAX: Duration = Duration::from_secs(5);

/// A DNS message (RFC 1035 §4), at most [`ANSWER_BYTES_MAX`] long; in JSON base64.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Message(Vec<u8>);

impl Message {
    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for Message {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl From<Message> for String {
    fn from(message: Message) -> Self {
        STANDARD.encode(message.0)
    }
}

/// A text that is no message.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// It is no base64.
    #[error("a message is no base64")]
    Encoding(#[from] base64::DecodeError),
    /// It is longer than [`ANSWER_BYTES_MAX`].
    #[error("a message is longer than {ANSWER_BYTES_MAX} bytes")]
    TooLong,
}

impl TryFrom<String> for Message {
    type Error = MessageError;

    fn try_from(text: String) -> Result<Self, MessageError> {
        let bytes = STANDARD.decode(text)?;
        if bytes.len() > ANSWER_BYTES_MAX { Err(MessageError::TooLong) } else { Ok(Self(bytes)) }
    }
}

/// One question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// The device on which it was asked.
    pub mac: [u8; 6],
    /// The VLAN of its frames, if it was asked in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
    /// What the answer is found by.
    pub number: u32,
    /// Asked over TCP, where an answer needs no cutting.
    pub tcp: bool,
    /// The longest answer that the guest can be given, in bytes.
    pub answer_bytes_max: u32,
    /// The question as the guest wrote it, at most [`QUESTION_BYTES_MAX`] bytes.
    pub message: Message,
}

/// Where questions wait, shared by the devices of a machine and its supervisor. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Questions(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    waiting: Mutex<VecDeque<(Instant, Question)>>,
    bell: EventFd,
}

impl Questions {
    /// Without any.
    ///
    /// # Errors
    /// The kernel gives no event descriptor.
    pub fn new() -> std::io::Result<Self> {
        let bell = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Self(Arc::new(Shared { waiting: Mutex::default(), bell })))
    }

    /// Adds one.
    pub fn push(&self, question: Question, now: Instant) {
        let mut waiting = self.waiting();
        while waiting.front().is_some_and(|(since, _)| is_old(*since, now)) {
            waiting.pop_front();
        }
        if waiting.len() < WAITING_MAX {
            waiting.push_back((now, question));
            crate::virtio::kick(&self.0.bell);
        }
    }

    /// Takes the oldest that somebody still waits for.
    #[must_use]
    pub fn pop(&self, now: Instant) -> Option<Question> {
        let mut waiting = self.waiting();
        std::iter::from_fn(|| waiting.pop_front())
            .find(|(since, _)| !is_old(*since, now))
            .map(|(_, question)| question)
    }

    /// Rings when one is added; to be listened to and read.
    #[must_use]
    pub fn bell(&self) -> &EventFd {
        &self.0.bell
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<(Instant, Question)>> {
        // Entries are added and taken whole.
        lock(&self.0.waiting)
    }
}

fn is_old(since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(since) > AGE_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(number: u32) -> Question {
        let message = Message::from(vec![0, 1, 0xff]);
        Question { mac: [2, 0, 0, 0, 0, 1], vlan: None, number, tcp: false, answer_bytes_max: 512, message }
    }

    #[test]
    fn questions_are_taken_in_their_order_unless_they_are_old_or_too_many() {
        let questions = Questions::new().unwrap();
        let start = Instant::now();
        (0..100).for_each(|number| questions.push(question(number), start));
        assert!(questions.bell().read().is_ok());
        assert_eq!(questions.pop(start).unwrap().number, 0);
        let later = start + AGE_MAX + Duration::from_millis(1);
        questions.push(question(200), later);
        assert_eq!(questions.pop(later).unwrap().number, 200, "the others are old");
        assert_eq!(questions.pop(later), None);
        (0..100).for_each(|number| questions.push(question(number), later));
        assert_eq!(std::iter::from_fn(|| questions.pop(later)).count(), WAITING_MAX);
    }

    #[test]
    fn question_is_this_line_and_what_is_too_long_is_none() {
        let line = r#"{"mac":[2,0,0,0,0,1],"number":7,"tcp":false,"answer_bytes_max":512,"message":"AAH/"}"#;
        assert_eq!(serde_json::to_string(&question(7)).unwrap(), line);
        assert_eq!(serde_json::from_str::<Question>(line).unwrap(), question(7));
        for text in ["*".to_owned(), STANDARD.encode(vec![0; ANSWER_BYTES_MAX + 1])] {
            assert!(Message::try_from(text).is_err());
        }
    }
}
