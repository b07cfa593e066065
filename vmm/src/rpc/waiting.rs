//! What a VMM that waits for its guest (`crate::waiting`) is told.

use std::os::fd::BorrowedFd;

use serde::{Deserialize, Serialize};

use super::{Action, Client, ClientError, Reply, VmState};
use crate::config::{InheritedFd, VmmConfig};
use crate::vm::MainConsole;

/// Somebody's standard streams, which a guest has as its console.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Streams {
    /// What the guest reads.
    pub input: InheritedFd,
    /// What it writes to.
    pub output: InheritedFd,
    /// The console that they are; the serial port is not kept in a log then.
    #[serde(default)]
    pub console: MainConsole,
}

impl Client {
    /// [`Action::Configure`] with the descriptors that `config` and `streams` number from zero, up to
    /// [`super::REQUEST_FDS_MAX`]; the guest is there then, and does not run yet.
    ///
    /// # Errors
    /// As [`Self::call`]. A VMM that refuses what it has begun to make a guest of ends.
    pub fn configure(
        &mut self,
        config: VmmConfig,
        streams: Option<Streams>,
        files: &[BorrowedFd<'_>],
    ) -> Result<VmState, ClientError> {
        let action = Action::Configure { config: Box::new(config), streams };
        match self.call_with(&action, files)? {
            Reply::Done { state } => Ok(state),
            _ => Err(ClientError::Mismatch),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_is_asked_for_by_its_name() {
        let config = serde_json::json!({"memory_mib": 0, "vcpus": 0, "boot": "disk"});
        let config: Box<VmmConfig> = Box::new(serde_json::from_value(config).unwrap());
        let streams = Streams { input: InheritedFd(0), output: InheritedFd(1), console: MainConsole::Serial };
        let told = serde_json::to_value(Action::Configure { config, streams: Some(streams) }).unwrap();
        assert_eq!(told["action"], "configure");
        assert_eq!(told["streams"], serde_json::json!({"input": 0, "output": 1, "console": "serial"}));
        let told: Action = serde_json::from_value(told).unwrap();
        assert!(matches!(told, Action::Configure { streams: Some(told), .. } if told == streams));
    }
}
