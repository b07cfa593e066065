//! What is said of snapshots.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::client::ANSWER_TIMEOUT_DEFAULT;
use super::{Action, Client, ClientError, Reply, VmState};
use crate::config::InheritedFd;
use crate::vm::Wanted;

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
    /// Pages that the guest said to be free, if it was asked. They are left out, but for those that it wrote meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hinted_pages: Option<u64>,
}

impl Client {
    /// [`Action::Snapshot`] into `file`, of all there is or of the differences. It takes as long as writing does.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn snapshot(
        &mut self,
        file: &File,
        differences: bool,
        track: bool,
    ) -> Result<SnapshotReport, ClientError> {
        self.snapshot_as(file, Wanted { differences, track, hints: false })
    }

    /// The same as it is wanted.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn snapshot_as(&mut self, file: &File, wanted: Wanted) -> Result<SnapshotReport, ClientError> {
        self.set_timeout(SNAPSHOT_TIMEOUT)?;
        let Wanted { differences, track, hints } = wanted;
        let action = Action::Snapshot { file: InheritedFd(0), differences, track, hints };
        let reply = self.call_with(&action, &[file.as_fd()])?;
        self.set_timeout(ANSWER_TIMEOUT_DEFAULT)?;
        match reply {
            Reply::Snapshot(report) => Ok(report),
            _ => Err(ClientError::Mismatch),
        }
    }
}
