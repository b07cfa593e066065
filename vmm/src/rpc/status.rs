//! What a VMM says of itself and of its guest's life, and why it ended.

use serde::{Deserialize, Serialize};

use super::{DeviceStatus, ProtectionStatus, UpgradeStatus, VirtioStatus, WatchdogStatus};
use crate::virtio::balloon::BalloonStatus;
use crate::virtio::mem::MemStatus;

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
    /// The disks and network devices; absent where they cannot come and go, as in VMMs of before.
    #[serde(default)]
    pub devices: Option<Vec<DeviceStatus>>,
    /// All virtio devices, with what went through each of their queues; none in VMMs of before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub virtio: Vec<VirtioStatus>,
    /// The memory balloon, if there is one. Asking has the guest asked for new statistics, which are there a moment later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balloon: Option<BalloonStatus>,
    /// Memory that comes and goes, if there is any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemStatus>,
    /// The watchdog, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watchdog: Option<WatchdogStatus>,
    /// How the guest came to this process, if it was another's before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgraded: Option<UpgradeStatus>,
    /// What confines the process, and what does not; absent in VMMs of before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protections: Option<Vec<ProtectionStatus>>,
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
