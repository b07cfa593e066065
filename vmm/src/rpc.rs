//! The control socket of one VMM process: newline-delimited JSON, one [`Action`] per line, one [`Reply`] per
//! action in order. Descriptors that an action needs come with its line (unix(7), `SCM_RIGHTS`). The socket is the
//! process's only one; whoever can open it controls the guest.
//!
//! A connection on which [`Action::Resolve`] was said gets the guest's questions about names as well, each as a
//! [`Reply::Question`], whenever they come; [`Action::Answer`] alone has no reply.

mod client;
mod device;
mod handover;
mod memory;
mod nic;
pub(crate) mod passing;
mod protection;
mod snapshot;
mod status;
mod waiting;
mod watchdog;

use serde::{Deserialize, Serialize};

use crate::config::{Addressing, DiskConfig, DiskLimits, InheritedFd, NicConfig, Traffic, VmmConfig};
use crate::questions::{Message, Question};

pub use client::{Client, ClientError};
pub use device::{DeviceName, DeviceState, DeviceStatus, DiskCounts, DiskEngine, QueueTraffic, VirtioStatus};
pub use handover::{PATIENCE_MS_MAX, UpgradeStatus};
pub use memory::FreeReport;
pub use nic::{NicStatus, PairStatus, QueueCounts};
pub use protection::{Protection, ProtectionStatus};
pub use snapshot::SnapshotReport;
pub use status::{ExitReason, ExitReport, Status, VmState};
pub use waiting::Streams;
pub use watchdog::WatchdogStatus;

/// The longest request or reply line in bytes; a peer that sends more is cut off.
pub const LINE_BYTES_MAX: usize = 2 << 20;
/// How a VMM's refusal begins of what it does not understand; what is wrong with it follows.
pub const NOT_AN_ACTION: &str = "not an action";
/// The longest request line in bytes: a network device that comes brings the metadata that it answers with, as a whole
/// configuration does.
pub const REQUEST_BYTES_MAX: usize = 4 << 20;
/// The most descriptors that come with one request: a disk's layers, twice over.
pub const REQUEST_FDS_MAX: usize = 32;

/// Everything a VMM can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "action", deny_unknown_fields)]
pub enum Action {
    /// Have this guest: legal once, and before anything else, of a VMM that waits for one (`crate::waiting`). The descriptors in
    /// it are numbers of those that come with the request, from zero, up to [`REQUEST_FDS_MAX`].
    Configure {
        /// What it is made of. Without a control socket it keeps the one that the VMM was asked by.
        config: Box<VmmConfig>,
        /// What it has as a console.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        streams: Option<Streams>,
    },
    /// Run the virtual CPUs for the first time.
    Start,
    /// Stop running the virtual CPUs; legal while running, a no-op while paused.
    Pause,
    /// Run them again; legal while paused, a no-op while running.
    Resume,
    /// Press the power button, or end the process at once when forced. With the reply to that come descriptors of the VM and
    /// of the process's mount namespace: while they are held, the process ends without waiting for the kernel to take these
    /// apart, which happens when they are closed. The process's files and taps are closed by its end.
    Stop {
        /// Do not ask the guest.
        #[serde(default)]
        force: bool,
    },
    /// What is going on.
    Status,
    /// The newest part of a console's log.
    Console {
        /// At most this many bytes, counted from the end.
        bytes_max: u32,
        /// Which console.
        #[serde(default, skip_serializing_if = "ConsoleName::is_serial")]
        console: ConsoleName,
    },
    /// Write out what the guest has written to its disks, so that their files have all of it; legal while paused. Until
    /// the guest is resumed, the files do not change.
    Flush,
    /// Take a snapshot (`crate::snapshot`) into a file that comes with the request, a regular one, opened for reading and
    /// writing, whose content is replaced. A guest that runs is paused for it and goes on then; one that is paused stays so.
    /// The disks are written out first, as by [`Self::Flush`]. The file is not flushed: whoever has it does that.
    Snapshot {
        /// The file, number 0 of those that come with the request.
        file: InheritedFd,
        /// Only what is different from the snapshot before, since which writes were noted.
        #[serde(default)]
        differences: bool,
        /// Note from now on which pages the guest writes to, for one with differences; implied by one with differences.
        #[serde(default)]
        track: bool,
        /// Leave out what the guest, which runs, says to be free by its balloon; not of one with differences.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        hints: bool,
    },
    /// Give back to the host what a guest that runs says to be free by its balloon.
    GiveBackFree,
    /// Answer otherwise to the guest on the network device with this MAC address: as the configuration says of it,
    /// except for the metadata. Legal in every state.
    Readdress {
        /// The device.
        mac: [u8; 6],
        /// What is answered from now on.
        addressing: Box<Addressing>,
    },
    /// Hold the traffic of the network device with this MAC address to something else than the configuration says. Legal
    /// in every state.
    Reshape {
        /// The device.
        mac: [u8; 6],
        /// What is held from now on; the bursts are there anew.
        traffic: Traffic,
    },
    /// From now on, tell this connection what the guest asks about names, and no other.
    Resolve,
    /// The answer to a question; it has no reply itself.
    Answer {
        /// The question's device.
        mac: [u8; 6],
        /// The VLAN of its frames that it was asked in, if it was in one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        vlan: Option<u16>,
        /// The question's number.
        number: u32,
        /// What the guest is told.
        message: Message,
    },
    /// Give the guest a disk, on PCI. Its serial number is no other disk's and not empty. The descriptors in it are
    /// numbers of those that come with the request, from zero. Legal in every state; refused, nothing has changed.
    AddDisk {
        /// The disk.
        disk: Box<DiskConfig>,
    },
    /// Give the guest a network device, likewise. Its MAC address is no other device's.
    AddNic {
        /// The device.
        nic: Box<NicConfig>,
    },
    /// A disk has become larger: serve its files as they are now, which come with the request, from the same serial number
    /// on, and tell the guest. Legal in every state; a disk that is as large as before stays as it is. With the reply comes a
    /// descriptor of the file that a disk was in which has another one now: as long as it is held, that one's locks hold.
    ResizeDisk {
        /// The disk.
        disk: Box<DiskConfig>,
    },
    /// Hold the guest's use of the disk with this serial number to something else than the configuration says. Legal in every
    /// state.
    LimitDisk {
        /// The disk.
        serial: String,
        /// What is held from now on; the bursts are there anew.
        limits: DiskLimits,
    },
    /// Ask the guest's memory balloon to give so many MiB, or to take back what is more. Legal in every state.
    SetBalloon {
        /// The target, up to [`crate::config::MEMORY_MIB_MAX`].
        target_mib: u32,
    },
    /// Ask the guest to have so many MiB of the memory that comes and goes. Legal in every state.
    SetMemory {
        /// The target, an even number up to what there is room for.
        requested_mib: u32,
    },
    /// Hand the guest over to another VMM process (`crate::handover`), which is at the other end of the socket that comes with
    /// the request and has said that it listens. With the reply this process ends, and the control socket is the successor's.
    /// Legal while the guest runs or is paused; refused or failed, it is where it was.
    HandOver {
        /// The socket, number 0 of what comes with the request.
        to: InheritedFd,
        /// How long the successor may take in all, in milliseconds, up to [`PATIENCE_MS_MAX`].
        patience_ms: u32,
    },
    /// Take a device from the guest: at once if no driver has it in use, else when the guest lets it go. Asked again, the
    /// guest is asked again; one that is not there is gone.
    Remove {
        /// The device.
        device: DeviceName,
    },
}

/// One of a guest's consoles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConsoleName {
    /// The serial port.
    #[default]
    Serial,
    /// The virtio console.
    Virtio,
}

impl ConsoleName {
    /// What a VMM of before has.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
    fn is_serial(&self) -> bool {
        *self == Self::Serial
    }
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
    Status(Box<Status>),
    /// Answer to [`Action::Console`]: bytes that are not UTF-8 are replaced.
    Console {
        /// The text.
        text: String,
    },
    /// Answer to [`Action::Snapshot`].
    Snapshot(SnapshotReport),
    /// Answer to [`Action::GiveBackFree`].
    Free(FreeReport),
    /// Answer to [`Action::Remove`].
    Device {
        /// How far it is.
        state: DeviceState,
    },
    /// The guest asks about a name.
    Question(Question),
    /// The action was refused or failed.
    Error {
        /// What to tell the person who asked.
        message: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::VlanAddressing;

    #[test]
    fn what_is_answered_in_vlans_is_read_from_its_line() {
        let carried = VlanAddressing { mac: [2; 6], mtu: 1450, addressing: Addressing::default() };
        let addressing =
            Addressing { vlans: [(7, carried.clone()), (4094, carried)].into(), ..Addressing::default() };
        let action = Action::Readdress { mac: [2, 0, 0, 0, 0, 1], addressing: Box::new(addressing) };
        let line = serde_json::to_string(&action).unwrap();
        assert_eq!(serde_json::from_str::<Action>(&line).unwrap(), action, "{line}");
    }

    #[test]
    fn actions_and_replies_are_these_lines() {
        let line = |action: &Action| serde_json::to_string(action).unwrap();
        assert_eq!(line(&Action::Start), r#"{"action":"start"}"#);
        assert_eq!(line(&Action::Stop { force: true }), r#"{"action":"stop","force":true}"#);
        let (file, differences, track) = (InheritedFd(0), true, false);
        let snapshot = Action::Snapshot { file, differences, track, hints: false };
        assert_eq!(line(&snapshot), r#"{"action":"snapshot","file":0,"differences":true,"track":false}"#);
        let hinted = Action::Snapshot { file, differences: false, track, hints: true };
        let wanted = r#"{"action":"snapshot","file":0,"differences":false,"track":false,"hints":true}"#;
        assert_eq!(line(&hinted), wanted);
        assert_eq!(line(&Action::GiveBackFree), r#"{"action":"give_back_free"}"#);
        let memory = Action::SetMemory { requested_mib: 64 };
        assert_eq!(line(&memory), r#"{"action":"set_memory","requested_mib":64}"#);
        let limits = DiskLimits::default();
        let limited = line(&Action::LimitDisk { serial: "a".to_owned(), limits });
        assert!(
            limited.starts_with(r#"{"action":"limit_disk","serial":"a","limits":{"read":{"#),
            "{limited}"
        );
        let device = DeviceName::Disk("a".to_owned());
        assert_eq!(line(&Action::Remove { device }), r#"{"action":"remove","device":{"disk":"a"}}"#);
        assert_eq!(
            serde_json::from_str::<Action>(r#"{"action":"stop"}"#).unwrap(),
            Action::Stop { force: false }
        );
        let status = Status {
            state: VmState::Running,
            first_run_us: Some(1),
            console_bytes: 2,
            devices: None,
            virtio: Vec::new(),
            balloon: None,
            memory: None,
            watchdog: None,
            upgraded: None,
            protections: None,
        };
        assert_eq!(
            serde_json::to_string(&Reply::Status(Box::new(status))).unwrap(),
            r#"{"reply":"status","state":"running","first_run_us":1,"console_bytes":2,"devices":null}"#
        );
    }
}
