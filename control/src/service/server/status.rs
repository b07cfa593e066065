//! How a server's row reads in Nova's words: status, vm_state, task_state, power_state. Pure.

use crate::agent::protocol::{InstanceState, Power};
use crate::model::compute::{Server, VmState};

/// What `GET /servers/{id}` says about a server's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status<'a> {
    /// `ACTIVE`, `BUILD`, ….
    pub status: &'static str,
    /// `OS-EXT-STS:vm_state`.
    pub vm_state: &'static str,
    /// `OS-EXT-STS:task_state`.
    pub task_state: Option<&'a str>,
    /// `OS-EXT-STS:power_state`: 0 none, 1 running, 3 paused, 4 shut down, 6 crashed.
    pub power_state: u8,
}

/// The state of a server in Nova's words (`nova.api.openstack.common._STATE_MAP`).
pub fn status(server: &Server) -> Status<'_> {
    let task = server.task.as_deref();
    let status = match (server.vm_state, task) {
        (VmState::Active, Some("rebooting")) => "REBOOT",
        (VmState::Active | VmState::Stopped | VmState::Paused | VmState::Error, Some("rebooting_hard")) => {
            "HARD_REBOOT"
        }
        (VmState::Building, _) => "BUILD",
        (VmState::Active, _) => "ACTIVE",
        (VmState::Paused, _) => "PAUSED",
        (VmState::Stopped, _) => "SHUTOFF",
        (VmState::Error, _) => "ERROR",
    };
    Status { status, vm_state: server.vm_state.name(), task_state: task, power_state: power_state(server) }
}

/// Whether a server's row says what its host does: nothing is wanted of it that has not been reached.
pub fn settled(server: &Server) -> bool {
    server.observed_generation == server.generation && server.task.is_none()
}

/// Every status that a client may filter by and a server here can have.
pub const STATUSES: [&str; 7] = ["ACTIVE", "BUILD", "ERROR", "HARD_REBOOT", "PAUSED", "REBOOT", "SHUTOFF"];

fn power_state(server: &Server) -> u8 {
    match server.observed {
        Some(InstanceState::Running | InstanceState::Stopping) => 1,
        Some(InstanceState::Paused) => 3,
        Some(InstanceState::Stopped) => 4,
        Some(InstanceState::Failed) if server.launched_at.is_some() => 6,
        // A guest that is being started again was off before.
        Some(InstanceState::Preparing) if server.launched_at.is_some() && server.power != Power::Deleted => 4,
        Some(InstanceState::Failed | InstanceState::Preparing | InstanceState::Deleted) | None => 0,
    }
}
