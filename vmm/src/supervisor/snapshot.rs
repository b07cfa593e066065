//! Snapshots, as the control socket asks for them.

use std::fs::File;
use std::os::fd::OwnedFd;

use super::{Supervisor, not_those};
use crate::config::InheritedFd;
use crate::inherited::{Descriptors as _, PassedFds};
use crate::rpc::{Reply, SnapshotReport};
use crate::run::chain;
use crate::vm::Wanted;

impl Supervisor {
    pub(super) fn snapshot(&mut self, file: InheritedFd, wanted: Wanted, passed: Vec<OwnedFd>) -> Reply {
        let Some(mut passed) = PassedFds::new(passed, &[file]) else { return not_those() };
        match self.machine.snapshot(wanted, &File::from(passed.take(file))) {
            Ok(taken) => Reply::Snapshot(SnapshotReport {
                state: self.machine.state(),
                id: taken.written.id.to_string(),
                pages: taken.written.pages,
                state_bytes: taken.written.state_bytes,
                paused_us: taken.paused.map(|paused| u64::try_from(paused.as_micros()).unwrap_or(u64::MAX)),
                hinted_pages: taken.hinted_pages,
            }),
            Err(error) => Reply::Error { message: chain(&error) },
        }
    }
}
