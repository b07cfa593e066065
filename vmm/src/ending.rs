//! How a guest comes to its end: said once, from any thread, and heard by the event loop.

use std::io;
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::mutex::lock;
use crate::rpc::ExitReason;

/// The end of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// Why.
    pub reason: ExitReason,
    /// One clear sentence for a person.
    pub message: String,
}

/// Where an end is announced; the first one wins. Clones announce to the same place.
#[derive(Clone)]
pub struct EndingSignal {
    said: Arc<Mutex<Option<Ending>>>,
    panic: Arc<Mutex<Option<String>>>,
    event: Arc<EventFd>,
}

impl EndingSignal {
    /// A signal nobody has given.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new() -> io::Result<Self> {
        let event = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        Ok(Self { said: Arc::default(), panic: Arc::default(), event })
    }

    /// Notes that the guest's kernel gave up, and how it said so: a reset that follows is a crash.
    pub fn panicked(&self, message: String) {
        lock(&self.panic).get_or_insert(message);
    }

    /// Announces the end.
    pub fn say(&self, reason: ExitReason, message: impl Into<String>) {
        let panic = lock(&self.panic).clone();
        let (reason, message) = match panic.filter(|_| reason == ExitReason::Reset) {
            Some(panic) => (ExitReason::Crashed, panic),
            None => (reason, message.into()),
        };
        let mut said = lock(&self.said);
        said.get_or_insert_with(|| Ending { reason, message });
        if let Err(error) = self.event.write(1) {
            // The counter is full of announcements already; the loop will wake.
            tracing::debug!(%error, "an ending was announced more often than anyone can count");
        }
    }

    /// The end, if it was announced.
    #[must_use]
    pub fn said(&self) -> Option<Ending> {
        lock(&self.said).clone()
    }

    /// Readable once the end was announced.
    #[must_use]
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}
