//! What a VMM is asked about its guest's memory.

use super::{Action, Client, ClientError};

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
}
