//! A server's life as pure functions: what an owner may ask in which state, and what a host's report makes of it.
//!
//! Must never know: the store, the clock, the agents.

use jiff::Timestamp;

use crate::agent::protocol::{InstanceObserved, InstanceState, Power};
use crate::error::Error;
use crate::model::compute::{ACTIONS_MAX, ActionRecord, Fault, Server, VmState};

/// How long a guest has to shut itself down when its owner stops it or reboots it softly, in milliseconds (Nova's
/// `shutdown_timeout`); the image property `os_shutdown_timeout`, in seconds, overrides it.
pub const SHUTDOWN_TIMEOUT_MS: u32 = 60_000;
/// The longest such time an image may ask for, in seconds: a host must be able to be emptied.
pub const SHUTDOWN_TIMEOUT_S_MAX: u32 = 3_600;

/// What can be asked of a server's power.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// `os-start`.
    Start,
    /// `os-stop`.
    Stop,
    /// `reboot` of type `SOFT`: the guest is asked first.
    RebootSoft,
    /// `reboot` of type `HARD`.
    RebootHard,
    /// `pause`.
    Pause,
    /// `unpause`.
    Unpause,
}

impl Action {
    /// The name in Nova's messages and instance actions.
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::RebootSoft | Self::RebootHard => "reboot",
            Self::Pause => "pause",
            Self::Unpause => "unpause",
        }
    }

    fn allowed_in(self) -> &'static [VmState] {
        match self {
            Self::Start => &[VmState::Stopped],
            Self::Stop => &[VmState::Active, VmState::Error],
            Self::RebootSoft | Self::Pause => &[VmState::Active],
            Self::RebootHard => &[VmState::Active, VmState::Stopped, VmState::Paused, VmState::Error],
            Self::Unpause => &[VmState::Paused],
        }
    }

    fn task(self) -> &'static str {
        match self {
            Self::Start => "powering-on",
            Self::Stop => "powering-off",
            Self::RebootSoft => "rebooting",
            Self::RebootHard => "rebooting_hard",
            Self::Pause => "pausing",
            Self::Unpause => "unpausing",
        }
    }

    /// Whether it may begin while `task` is under way: a hard reboot breaks into one that hangs.
    fn breaks_into(self, task: &str) -> bool {
        match self {
            Self::RebootHard => matches!(
                task,
                "rebooting" | "rebooting_hard" | "powering-on" | "powering-off" | "pausing" | "unpausing"
            ),
            Self::Start | Self::Stop | Self::RebootSoft | Self::Pause | Self::Unpause => false,
        }
    }
}

/// Writes down that `action` is wanted.
///
/// # Errors
/// [`Error::Conflict`] in Nova's words if the server's state does not allow it.
pub fn ask(server: &mut Server, action: Action, now: Timestamp) -> Result<(), Error> {
    if let Some(task) = &server.task
        && !action.breaks_into(task)
    {
        return Err(wrong_state(server, action.name(), "task_state", task));
    }
    if !action.allowed_in().contains(&server.vm_state) {
        return Err(wrong_state(server, action.name(), "vm_state", server.vm_state.name()));
    }
    if server.launched_at.is_none() || server.host.is_none() || server.discard {
        return Err(never_active(action.name()));
    }
    server.shutdown_timeout_ms = match action {
        Action::Stop | Action::RebootSoft => shutdown_timeout_ms(server),
        Action::Start | Action::RebootHard | Action::Pause | Action::Unpause => 0,
    };
    match action {
        Action::Start | Action::RebootSoft | Action::RebootHard => {
            server.power = Power::Running;
            server.boot += 1;
        }
        Action::Stop => server.power = Power::Stopped,
        Action::Pause => server.power = Power::Paused,
        Action::Unpause => server.power = Power::Running,
    }
    server.task = Some(action.task().to_owned());
    server.generation += 1;
    server.updated_at = now;
    Ok(())
}

/// What is said of a server while an image is made of its disk (`nova.compute.task_states`): asked for, being made by
/// the host, on its way into the store.
pub const IMAGE_TASKS: [&str; 4] =
    ["image_snapshot", "image_backup", "image_pending_upload", "image_uploading"];

/// Whether an image is being made of the server's disk: what its host says of its power does not end that.
pub fn becomes_image(server: &Server) -> bool {
    server.task.as_deref().is_some_and(|task| IMAGE_TASKS.contains(&task))
}

/// Writes down that an image shall be made of the server's disk, by what Nova calls `action`.
///
/// # Errors
/// [`Error::Conflict`] in Nova's words if the server's state does not allow it.
pub fn ask_image(server: &mut Server, action: &str, task: &str, now: Timestamp) -> Result<(), Error> {
    may_become_image(server, action)?;
    server.task = Some(task.to_owned());
    server.updated_at = now;
    Ok(())
}

/// Refuses an image of a server whose state does not allow one.
///
/// # Errors
/// [`Error::Conflict`] in Nova's words.
pub fn may_become_image(server: &Server, action: &str) -> Result<(), Error> {
    if let Some(task) = &server.task {
        return Err(wrong_state(server, action, "task_state", task));
    }
    if !matches!(server.vm_state, VmState::Active | VmState::Stopped | VmState::Paused) {
        return Err(wrong_state(server, action, "vm_state", server.vm_state.name()));
    }
    if server.launched_at.is_none() || server.host.is_none() || server.discard {
        return Err(never_active(action));
    }
    Ok(())
}

/// Writes down that the server shall be gone, in whatever state it is.
pub fn ask_deletion(server: &mut Server, now: Timestamp) {
    if server.power != Power::Deleted {
        server.power = Power::Deleted;
        server.shutdown_timeout_ms = 0;
        server.generation += 1;
    }
    server.task = Some("deleting".to_owned());
    server.updated_at = now;
}

/// Writes down that the server failed before a host ever ran it: it keeps its row, and nothing else.
pub fn fail_building(server: &mut Server, fault: Fault) {
    let now = fault.created_at;
    server.updated_at = now;
    server.vm_state = VmState::Error;
    server.fault = Some(fault);
    end_actions(server, true, now);
    if server.power != Power::Deleted {
        server.task = None;
        server.discard = true;
        server.generation += 1;
    }
}

/// The actions that end when the host has done what was asked: the server has no task any more then.
const HOST_ACTIONS: [&str; 6] = ["create", "start", "stop", "reboot", "pause", "unpause"];

/// Writes down what was asked, by whom, forgetting the oldest beyond [`ACTIONS_MAX`].
pub fn record(server: &mut Server, action: ActionRecord) {
    server.actions.push(action);
    if server.actions.len() > ACTIONS_MAX {
        server.actions.remove(0);
    }
}

/// Takes over what the server's host reports, if it says anything new; the result is whether the row changed.
///
/// Level-triggered: the same report twice changes nothing the second time, and a report about an older generation
/// tells what is seen but ends no task.
pub fn observe(server: &mut Server, report: &InstanceObserved, now: Timestamp) -> bool {
    let before = server.clone();
    if report.generation < server.observed_generation {
        return false;
    }
    server.observed_generation = report.generation;
    server.observed_boot = report.boot;
    server.observed = Some(report.state);
    if server.launched_at.is_none() && matches!(report.state, InstanceState::Running | InstanceState::Paused)
    {
        let first_run =
            report.first_run_us.and_then(|us| Timestamp::from_microsecond(i64::try_from(us).ok()?).ok());
        server.launched_at = Some(first_run.unwrap_or(now));
    }
    if server.power != Power::Deleted && !server.discard && report.generation >= server.generation {
        settle(server, report, now);
    }
    if report.generation >= server.generation {
        plugged(server, report, now);
    }
    if *server == before {
        return false;
    }
    if before.task.is_some() && server.task.is_none() {
        end_actions(server, before.fault != server.fault, now);
    }
    server.updated_at = now;
    true
}

/// What is asked of a server's devices (Nova's instance actions): done when its host has reached the generation,
/// and for a volume that goes, when the guest has let it go.
pub const PLUGGING: [&str; 4] = ["attach_volume", "detach_volume", "attach_interface", "detach_interface"];

fn plugged(server: &mut Server, report: &InstanceObserved, now: Timestamp) {
    let devices = &report.devices;
    let asked = |action: &&mut ActionRecord| {
        action.finished_at.is_none() && PLUGGING.contains(&action.action.as_str())
    };
    for action in server.actions.iter_mut().filter(asked) {
        let is_back = action.action == "detach_volume";
        if is_back && !devices.leaving.is_subset(&devices.fixed) {
            continue;
        }
        action.finished_at = Some(now);
        let failed = if is_back {
            !devices.leaving.is_empty()
        } else {
            action.action.starts_with("attach") && !devices.missing.is_empty()
        };
        action.message = failed.then(|| "Error".to_owned());
    }
}

/// What was asked of the host is done, or has failed. Actions with an end of their own are not looked at.
fn end_actions(server: &mut Server, failed: bool, now: Timestamp) {
    let of_host = |record: &&mut ActionRecord| {
        record.finished_at.is_none() && HOST_ACTIONS.contains(&record.action.as_str())
    };
    for record in server.actions.iter_mut().filter(of_host) {
        record.finished_at = Some(now);
        record.message = failed.then(|| "Error".to_owned());
    }
}

/// What a report about the newest generation means for a server that shall live on.
fn settle(server: &mut Server, report: &InstanceObserved, now: Timestamp) {
    let rest = match (report.state, server.power) {
        (InstanceState::Failed, _) => return fail(server, report, now),
        (InstanceState::Preparing, _) if server.vm_state == VmState::Building => {
            server.task = Some("spawning".to_owned());
            return;
        }
        (InstanceState::Running, Power::Running) if report.boot == server.boot => VmState::Active,
        (InstanceState::Paused, Power::Paused) => VmState::Paused,
        (InstanceState::Stopped, Power::Stopped) => VmState::Stopped,
        (InstanceState::Stopped, Power::Running | Power::Paused) if report.boot == server.boot => {
            // The guest turned itself off: that is from now on what is wanted, or a restart of the host would undo it.
            server.power = Power::Stopped;
            server.generation += 1;
            VmState::Stopped
        }
        _ => return,
    };
    // A server in error leaves that state only because somebody asked something of it.
    if server.task.is_some() || server.vm_state != VmState::Error {
        server.vm_state = rest;
        if !becomes_image(server) {
            server.task = None;
        }
    }
}

fn fail(server: &mut Server, report: &InstanceObserved, now: Timestamp) {
    let message = report.fault.clone().unwrap_or_else(|| "The instance failed on its host.".to_owned());
    let details = server.host.as_ref().map(|host| format!("Reported by host {host}.")).unwrap_or_default();
    let fault = Fault { code: 500, message, details, created_at: now };
    if server.vm_state == VmState::Building {
        return fail_building(server, fault);
    }
    if server.vm_state == VmState::Error && server.task.is_none() && server.power == Power::Stopped {
        return;
    }
    // It ran, so its disk is its owner's: it stays, and nobody starts it again unasked.
    server.vm_state = VmState::Error;
    if !becomes_image(server) {
        server.task = None;
    }
    server.fault = Some(fault);
    if server.power != Power::Stopped {
        server.power = Power::Stopped;
        server.generation += 1;
    }
}

fn never_active(action: &str) -> Error {
    Error::conflict(
        "InstanceInvalidState",
        format!("Cannot '{action}' an instance which has never been active"),
    )
}

pub(super) fn wrong_state(server: &Server, action: &str, attribute: &str, state: &str) -> Error {
    let id = &server.id;
    Error::conflict(
        "InstanceInvalidState",
        format!("Cannot '{action}' instance {id} while it is in {attribute} {state}"),
    )
}

fn shutdown_timeout_ms(server: &Server) -> u32 {
    let wished =
        server.image_properties.get("os_shutdown_timeout").and_then(|value| value.parse::<u32>().ok());
    wished.map_or(SHUTDOWN_TIMEOUT_MS, |seconds| seconds.min(SHUTDOWN_TIMEOUT_S_MAX) * 1000)
}

#[cfg(test)]
mod tests;
