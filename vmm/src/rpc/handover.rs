//! What is said of a guest that is handed over to another VMM process (`crate::handover`).

use std::os::fd::BorrowedFd;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::client::ANSWER_TIMEOUT_DEFAULT;
use super::{Action, Client, ClientError, Reply};
use crate::config::InheritedFd;

/// The longest that a VMM waits for a successor, in milliseconds. Its guest stands still meanwhile, and nobody else is
/// answered.
pub const PATIENCE_MS_MAX: u32 = 60_000;

/// How a guest came to the process that it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpgradeStatus {
    /// How often it was handed over since it was started.
    pub times: u32,
    /// How long it stood still for the last time, in microseconds; absent for one that was paused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standstill_us: Option<u64>,
}

impl Client {
    /// [`Action::HandOver`] to the successor at the other end of `line`. Whoever wants to ask further connects anew.
    ///
    /// # Errors
    /// As [`Self::call`]; refused, the guest is where it was.
    pub fn hand_over(&mut self, line: BorrowedFd<'_>, patience: Duration) -> Result<(), ClientError> {
        let patience_ms = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX).min(PATIENCE_MS_MAX);
        self.set_timeout(patience + ANSWER_TIMEOUT_DEFAULT)?;
        let action = Action::HandOver { to: InheritedFd(0), patience_ms };
        match self.call_with(&action, &[line])? {
            Reply::Done { .. } => Ok(()),
            _ => Err(ClientError::Mismatch),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handover_is_asked_for_by_its_name_and_what_became_of_it_is_told_in_short() {
        let action = Action::HandOver { to: InheritedFd(0), patience_ms: 10_000 };
        assert_eq!(
            serde_json::to_string(&action).unwrap(),
            r#"{"action":"hand_over","to":0,"patience_ms":10000}"#
        );
        let status = UpgradeStatus { times: 2, standstill_us: Some(3000) };
        assert_eq!(serde_json::to_string(&status).unwrap(), r#"{"times":2,"standstill_us":3000}"#);
        let paused = UpgradeStatus { standstill_us: None, ..status };
        assert_eq!(serde_json::to_string(&paused).unwrap(), r#"{"times":2}"#);
    }
}
