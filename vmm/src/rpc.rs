//! The control socket of one VMM process: newline-delimited JSON, one [`Action`] per line, one [`Reply`] per
//! action in order. Descriptors that an action needs come with its line (unix(7), `SCM_RIGHTS`). The socket is the
//! process's only one; whoever can open it controls the guest.
//!
//! A connection on which [`Action::Resolve`] was said gets the guest's questions about names as well, each as a
//! [`Reply::Question`], whenever they come; [`Action::Answer`] alone has no reply.

mod handover;
mod memory;
mod nic;
pub(crate) mod passing;
mod protection;
mod snapshot;
mod watchdog;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::config::{Addressing, DiskConfig, InheritedFd, NicConfig, Traffic};
use crate::questions::{Message, Question};
use crate::virtio::balloon::BalloonStatus;
use crate::virtio::mem::MemStatus;

pub use handover::{PATIENCE_MS_MAX, UpgradeStatus};
pub use memory::FreeReport;
pub use nic::{NicStatus, PairStatus, QueueCounts};
pub use snapshot::SnapshotReport;

pub use self::protection::{Protection, ProtectionStatus};
pub use self::watchdog::WatchdogStatus;

/// The longest request or reply line in bytes; a peer that sends more is cut off.
pub const LINE_BYTES_MAX: usize = 2 << 20;
/// The longest request line in bytes: a network device that comes brings the metadata that it answers with, as a whole
/// configuration does.
pub const REQUEST_BYTES_MAX: usize = 4 << 20;
/// The most descriptors that come with one request: a disk's layers, twice over.
pub const REQUEST_FDS_MAX: usize = 32;

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
    /// on, and tell the guest. Legal in every state; a disk that is as large as before stays as it is.
    ResizeDisk {
        /// The disk.
        disk: Box<DiskConfig>,
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

/// What a device is known by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceName {
    /// A disk, by its serial number.
    Disk(String),
    /// A network device, by its MAC address.
    Nic([u8; 6]),
}

/// How far a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceState {
    /// The guest has it, and it can be taken away.
    Present,
    /// The guest has it until it ends: it is on virtio-mmio.
    Fixed,
    /// The guest was asked to let it go, and has it still.
    Leaving,
    /// It is not there.
    Gone,
}

/// One device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// Which.
    pub device: DeviceName,
    /// How far it is.
    pub state: DeviceState,
    /// A disk's size in bytes.
    #[serde(default)]
    pub bytes: Option<u64>,
    /// How a disk's files are read and written.
    #[serde(default)]
    pub engine: Option<DiskEngine>,
    /// A network device's queues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nic: Option<NicStatus>,
}

/// How a disk's requests reach its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskEngine {
    /// Many at a time, by the kernel's io_uring.
    IoUring,
    /// One after the other: the kernel allows no io_uring, or the disk does not say where its bytes lie.
    Synchronous,
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

/// The longest that a VMM may take to answer: holding vCPUs waits for device work of theirs, which may wait for a
/// disk.
const ANSWER_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// Why a VMM did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens at the socket: the process is over.
    #[error("connect to the VMM's control socket")]
    Connect(#[source] io::Error),
    /// The connection broke, or the answer took too long.
    #[error("talk to the VMM")]
    Talk(#[source] io::Error),
    /// The answer is longer than [`LINE_BYTES_MAX`].
    #[error("the VMM's answer is longer than {LINE_BYTES_MAX} bytes")]
    TooLong,
    /// The answer is not one.
    #[error("understand the VMM's answer")]
    Parse(#[source] serde_json::Error),
    /// The VMM refused.
    #[error("the VMM refused: {0}")]
    Refused(String),
    /// An answer to something else.
    #[error("the VMM answered something else than was asked")]
    Mismatch,
}

/// A blocking client of one VMM's control socket.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the socket at `path`; each answer may take ten seconds.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        Self::new(UnixStream::connect(path).map_err(ClientError::Connect)?)
    }

    /// Talks over an open connection.
    ///
    /// # Errors
    /// The socket's.
    pub fn new(stream: UnixStream) -> Result<Self, ClientError> {
        let client = Self { stream: BufReader::new(stream) };
        client.set_timeout(ANSWER_TIMEOUT_DEFAULT)?;
        Ok(client)
    }

    /// Bounds how long sending, and then each piece of an answer, may take; not zero.
    ///
    /// # Errors
    /// A timeout of zero.
    pub fn set_timeout(&self, timeout: Duration) -> Result<(), ClientError> {
        let stream = self.stream.get_ref();
        stream.set_read_timeout(Some(timeout)).map_err(ClientError::Talk)?;
        stream.set_write_timeout(Some(timeout)).map_err(ClientError::Talk)
    }

    /// Sends one action and returns its reply. After an error other than `Refused` the connection is of no use.
    ///
    /// # Errors
    /// The connection's, or the VMM's refusal.
    pub fn call(&mut self, action: &Action) -> Result<Reply, ClientError> {
        self.call_with(action, &[])
    }

    fn call_with(&mut self, action: &Action, descriptors: &[BorrowedFd<'_>]) -> Result<Reply, ClientError> {
        // It may hold the key of a disk.
        let mut line = Zeroizing::new(serde_json::to_vec(action).expect("invariant: actions are plain data"));
        line.push(b'\n');
        let stream = self.stream.get_mut();
        let sent = passing::send(stream, &line, descriptors).map_err(ClientError::Talk)?;
        stream.write_all(&line[sent..]).map_err(ClientError::Talk)?;
        let mut answer = Vec::new();
        let bytes_max = LINE_BYTES_MAX as u64 + 1;
        (&mut self.stream).take(bytes_max).read_until(b'\n', &mut answer).map_err(ClientError::Talk)?;
        match answer.pop() {
            Some(b'\n') => {}
            Some(_) if answer.len() >= LINE_BYTES_MAX => return Err(ClientError::TooLong),
            _ => return Err(ClientError::Talk(io::ErrorKind::UnexpectedEof.into())),
        }
        match serde_json::from_slice(&answer).map_err(ClientError::Parse)? {
            Reply::Error { message } => Err(ClientError::Refused(message)),
            reply => Ok(reply),
        }
    }

    fn done(&mut self, action: &Action) -> Result<VmState, ClientError> {
        match self.call(action)? {
            Reply::Done { state } => Ok(state),
            _ => Err(ClientError::Mismatch),
        }
    }

    /// [`Action::Start`]; the state it led to.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn start(&mut self) -> Result<VmState, ClientError> {
        self.done(&Action::Start)
    }

    /// [`Action::Pause`]; the state it led to.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn pause(&mut self) -> Result<VmState, ClientError> {
        self.done(&Action::Pause)
    }

    /// [`Action::Resume`]; the state it led to.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn resume(&mut self) -> Result<VmState, ClientError> {
        self.done(&Action::Resume)
    }

    /// [`Action::Flush`]; the state, which stays paused. It takes as long as the disks do.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn flush(&mut self) -> Result<VmState, ClientError> {
        self.done(&Action::Flush)
    }

    /// [`Action::Readdress`]; the state, which stays as it is.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn readdress(&mut self, mac: [u8; 6], addressing: Addressing) -> Result<VmState, ClientError> {
        self.done(&Action::Readdress { mac, addressing: Box::new(addressing) })
    }

    /// [`Action::AddDisk`], with the files that `disk` numbers from zero.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn add_disk(&mut self, disk: DiskConfig, files: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        self.done_with(&Action::AddDisk { disk: Box::new(disk) }, files)
    }

    /// [`Action::ResizeDisk`], likewise.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn resize_disk(&mut self, disk: DiskConfig, files: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        self.done_with(&Action::ResizeDisk { disk: Box::new(disk) }, files)
    }

    /// [`Action::AddNic`], whose tap's queues are numbered in their order, from zero.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn add_nic(&mut self, nic: NicConfig, tap: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        self.done_with(&Action::AddNic { nic: Box::new(nic) }, tap)
    }

    fn done_with(&mut self, action: &Action, descriptors: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        match self.call_with(action, descriptors)? {
            Reply::Done { .. } => Ok(()),
            _ => Err(ClientError::Mismatch),
        }
    }

    /// [`Action::Remove`]; how far the device is.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn remove(&mut self, device: DeviceName) -> Result<DeviceState, ClientError> {
        match self.call(&Action::Remove { device })? {
            Reply::Device { state } => Ok(state),
            _ => Err(ClientError::Mismatch),
        }
    }

    /// [`Action::Reshape`]; the state, which stays as it is.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn reshape(&mut self, mac: [u8; 6], traffic: Traffic) -> Result<VmState, ClientError> {
        self.done(&Action::Reshape { mac, traffic })
    }

    /// [`Action::Stop`]; the state it led to. The process ends on its own afterwards.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn stop(&mut self, force: bool) -> Result<VmState, ClientError> {
        self.done(&Action::Stop { force })
    }

    /// [`Action::Stop`] by force; handles of what takes long to take apart, to be closed where nobody waits. A VMM of before
    /// hands fewer over, or none.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn end(&mut self) -> Result<Vec<OwnedFd>, ClientError> {
        let line =
            serde_json::to_vec(&Action::Stop { force: true }).expect("invariant: actions are plain data");
        let stream = self.stream.get_mut();
        stream.write_all(&[&line[..], b"\n"].concat()).map_err(ClientError::Talk)?;
        // Nothing is in the buffer between calls: a reply is read to its end, and is the last that came.
        let (mut reply, mut handles, mut buffer) = (Vec::new(), Vec::new(), [0; 256]);
        while reply.last() != Some(&b'\n') {
            match passing::receive(stream, &mut buffer, &mut handles).map_err(ClientError::Talk)? {
                0 => return Err(ClientError::Talk(io::ErrorKind::UnexpectedEof.into())),
                count => reply.extend_from_slice(&buffer[..count]),
            }
            if reply.len() > LINE_BYTES_MAX {
                return Err(ClientError::TooLong);
            }
        }
        match serde_json::from_slice(&reply).map_err(ClientError::Parse)? {
            Reply::Error { message } => Err(ClientError::Refused(message)),
            Reply::Done { .. } => Ok(handles),
            _ => Err(ClientError::Mismatch),
        }
    }

    /// [`Action::Status`].
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn status(&mut self) -> Result<Status, ClientError> {
        match self.call(&Action::Status)? {
            Reply::Status(status) => Ok(*status),
            _ => Err(ClientError::Mismatch),
        }
    }

    /// [`Action::Console`]: the newest `bytes_max` bytes of the serial console's output at most.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn console(&mut self, bytes_max: u32) -> Result<String, ClientError> {
        self.console_of(ConsoleName::Serial, bytes_max)
    }

    /// The same of any console.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn console_of(&mut self, console: ConsoleName, bytes_max: u32) -> Result<String, ClientError> {
        match self.call(&Action::Console { bytes_max, console })? {
            Reply::Console { text } => Ok(text),
            _ => Err(ClientError::Mismatch),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::VlanAddressing;

    /// What the client makes of a VMM that answers `answer` to everything.
    fn status_of(answer: &'static [u8]) -> Result<Status, ClientError> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let server = std::thread::spawn(move || {
            let mut theirs = BufReader::new(theirs);
            theirs.read_until(b'\n', &mut Vec::new()).unwrap();
            // The client may hang up in the middle.
            let _ = theirs.get_mut().write_all(answer);
        });
        let mut client = Client::new(ours).unwrap();
        client.set_timeout(Duration::from_millis(200)).unwrap();
        let status = client.status();
        drop(client);
        server.join().unwrap();
        status
    }

    #[test]
    fn broken_answers_are_errors() {
        assert!(matches!(status_of(b"{}\n"), Err(ClientError::Parse(_))));
        assert!(matches!(
            status_of(b"{\"reply\":\"done\",\"state\":\"running\"}\n"),
            Err(ClientError::Mismatch)
        ));
        assert!(matches!(
            status_of(b"{\"reply\":\"error\",\"message\":\"no\"}\n"),
            Err(ClientError::Refused(_))
        ));
        assert!(matches!(status_of(b"{\"reply\""), Err(ClientError::Talk(_))));
        static LONG: [u8; LINE_BYTES_MAX + 2] = [b'x'; LINE_BYTES_MAX + 2];
        assert!(matches!(status_of(&LONG), Err(ClientError::TooLong)));
    }

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
