//! What a VMM is asked about its guest's memory.

use serde::{Deserialize, Serialize};

use super::{Action, Client, ClientError, Reply, VmState};

/// What became of a guest's free memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreeReport {
    /// The guest's state.
    pub state: VmState,
    /// What the guest said to be free.
    pub hinted_bytes: u64,
    /// What of it went back to the host; the guest has written to the rest meanwhile.
    pub returned_bytes: u64,
    /// How long the guest stood still for it, in microseconds.
    pub paused_us: u64,
}

impl Client {
    /// [`Action::SetBalloon`].
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn set_balloon(&mut self, target_mib: u32) -> Result<(), ClientError> {
        self.done(&Action::SetBalloon { target_mib }).map(drop)
    }

    /// [`Action::SetMemory`].
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn set_memory(&mut self, requested_mib: u32) -> Result<(), ClientError> {
        self.done(&Action::SetMemory { requested_mib }).map(drop)
    }

    /// [`Action::GiveBackFree`]. It takes a second at most, and what the guest is still for.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn give_back_free(&mut self) -> Result<FreeReport, ClientError> {
        match self.call(&Action::GiveBackFree)? {
            Reply::Free(report) => Ok(report),
            _ => Err(ClientError::Mismatch),
        }
    }
}
