//! What is told of a guest's watchdog.

use serde::{Deserialize, Serialize};

use crate::config::WatchdogAction;

/// How a watchdog is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchdogStatus {
    /// What happens when it runs out.
    pub action: WatchdogAction,
    /// The guest has it run.
    pub armed: bool,
    /// How long it counts, in milliseconds.
    pub timeout_ms: u64,
    /// What is left of that, where it is armed; it stands still while the guest does.
    pub left_ms: Option<u64>,
    /// How often it has run out since this process began.
    pub expiries: u64,
}
