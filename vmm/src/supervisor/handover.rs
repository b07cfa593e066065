//! A handover, as the control socket asks for it.

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::{Supervisor, not_those};
use crate::config::InheritedFd;
use crate::inherited::{Descriptors as _, PassedFds};
use crate::rpc::{ExitReason, PATIENCE_MS_MAX, Reply};
use crate::run::chain;

impl Supervisor {
    pub(super) fn hand_over(&mut self, to: InheritedFd, patience_ms: u32, passed: Vec<OwnedFd>) -> Reply {
        let Some(mut passed) = PassedFds::new(passed, &[to]) else { return not_those() };
        let line = UnixStream::from(passed.take(to));
        let patience = Duration::from_millis(patience_ms.min(PATIENCE_MS_MAX).into());
        let listener = self.backlog.as_ref().map(|backlog| backlog.listener().as_fd());
        match self.machine.hand_over(line, listener, patience) {
            Ok(()) => {
                self.ending.say(ExitReason::Killed, "the guest was handed over to another process");
                Reply::Done { state: self.machine.state() }
            }
            Err(error) => Reply::Error { message: chain(&error) },
        }
    }
}
