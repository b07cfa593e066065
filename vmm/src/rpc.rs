//! The control socket of one VMM process: newline-delimited JSON, one [`Action`] per line, one [`Reply`] per
//! action in order. The socket is the process's only one; whoever can open it controls the guest.

use serde::{Deserialize, Serialize};

/// The longest request or reply line in bytes; a peer that sends more is cut off.
pub const LINE_BYTES_MAX: usize = 2 << 20;
/// The longest request line in bytes: an action is far shorter, and several clients may send one.
pub const REQUEST_BYTES_MAX: usize = 16 << 10;

/// Everything a VMM can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "action", deny_unknown_fields)]
pub enum Action {
    /// Run the virtual CPUs for the first time.
    Start,
    /// Stop running the virtual CPUs; legal while running, a no-op while paused.
    Pause,
    /// Run them again; legal while paused, a no-op while running.
    Resume,
    /// Press the power button, or end the process at once when forced.
    Stop {
        /// Do not ask the guest.
        #[serde(default)]
        force: bool,
    },
    /// What is going on.
    Status,
    /// The newest part of the console log.
    Console {
        /// At most this many bytes, counted from the end.
        bytes_max: u32,
    },
}

/// What a VMM answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reply", deny_unknown_fields)]
pub enum Reply {
    /// The action was taken; the state it led to.
    Done {
        /// The state.
        state: VmState,
    },
    /// Answer to [`Action::Status`].
    Status(Status),
    /// Answer to [`Action::Console`]: bytes that are not UTF-8 are replaced.
    Console {
        /// The text.
        text: String,
    },
    /// The action was refused or failed.
    Error {
        /// What to tell the person who asked.
        message: String,
    },
}

/// The states of a guest's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// Built, not yet run.
    Created,
    /// The virtual CPUs run.
    Running,
    /// The virtual CPUs stand still.
    Paused,
    /// The power button is pressed; the guest is expected to end.
    Stopping,
    /// The guest is over; the process is about to end.
    Stopped,
}

/// What a VMM says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The guest's state.
    pub state: VmState,
    /// When the first guest instruction ran, in microseconds since the Unix epoch.
    pub first_run_us: Option<u64>,
    /// Console bytes written since the start.
    pub console_bytes: u64,
}

/// Why a VMM process ended; written to the configuration's `exit_report`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitReport {
    /// The reason.
    pub reason: ExitReason,
    /// One clear sentence for a person.
    pub message: String,
    /// When the first guest instruction ran, in microseconds since the Unix epoch.
    pub first_run_us: Option<u64>,
}

/// Why a VMM process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// The guest powered itself off.
    PoweredOff,
    /// The guest asked for a reset.
    Reset,
    /// The control socket asked for a forced stop, or the process was told to end.
    Killed,
    /// The guest could not be built or booted: a bad kernel, a bad disk, no memory.
    BootFailed,
    /// The guest crashed: a triple fault, or an instruction that this host's KVM cannot run.
    Crashed,
}
