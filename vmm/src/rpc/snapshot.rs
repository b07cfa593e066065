//! What is said of snapshots.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Action, Client, ClientError, Reply, VmState};
use crate::config::InheritedFd;

/// The longest that taking a snapshot may take: a terabyte on a slow disk.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(4 * 3600);

/// A snapshot that was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotReport {
    /// The guest's state.
    pub state: VmState,
    /// The snapshot's id, in hexadecimal.
    pub id: String,
    /// Pages of memory in it, of 4096 bytes.
    pub pages: u64,
    /// Bytes of all else in it.
    pub state_bytes: u64,
    /// How long the guest stood still for it, in microseconds; absent for one that was paused and still is.
    pub paused_us: Option<u64>,
}

impl Client {
    /// [`Action::Snapshot`] into `file`. It takes as long as writing does.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn snapshot(
        &mut self,
        file: &File,
        differences: bool,
        track: bool,
    ) -> Result<SnapshotReport, ClientError> {
        self.set_timeout(SNAPSHOT_TIMEOUT)?;
        let action = Action::Snapshot { file: InheritedFd(0), differences, track };
        let reply = self.call_with(&action, &[file.as_fd()])?;
        self.set_timeout(super::ANSWER_TIMEOUT_DEFAULT)?;
        match reply {
            Reply::Snapshot(report) => Ok(report),
            _ => Err(ClientError::Mismatch),
        }
    }
}
