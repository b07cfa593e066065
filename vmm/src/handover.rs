//! Handing a guest that runs to another VMM process, such as a newer program's: the guest stands still for some milliseconds
//! and is itself afterwards.
//!
//! KVM's VM and vCPUs belong to the address space of the process that made them, so they stay behind. Everything else goes:
//! the guest's memory, which is a file without a name that both map ([`crate::memory::shared`]), so that nothing is copied;
//! the machine's state, as a snapshot has it; disks' files, taps, the console, sockets, as descriptors (unix(7),
//! `SCM_RIGHTS`). The successor makes a VM on the same memory, takes the state over, and says so. Only then is the guest its
//! own. Whatever fails before, the VMM that has the guest lets it go on, and the successor, which has written nowhere, ends.
//!
//! **Who starts the successor.** A confined VMM starts no program, opens no path and connects to nothing, and need not
//! learn to. Whoever asks for the handover starts the successor, with one end of a pair of sockets, and passes the other end
//! to the VMM with its request. So the VMM gets one descriptor and gives what it has to it; the caller needs no more than what
//! starting any guest takes, and never has the guest's memory or descriptors; and the successor opens /dev/kvm and is confined
//! before it reads a byte of what comes from a process that a guest may have taken over.
//!
//! All numbers little-endian:
//!
//! ```text
//! successor → caller:  "WISPHAND": it is confined and listens; the caller passes the other end on
//! VMM → successor:
//!   0     magic             8 bytes  "WISPHAND"
//!   +8    version           u32      1
//!   +12   document's length u32      at most 8 MiB
//!   +16   descriptors       u32      at most 1024
//!   +20   zero              u32
//!   +24   header            4096 bytes, of a snapshot
//!   …     document          a [`Document`] as JSON; its descriptors are numbered from zero
//!   …     state             the snapshot's state section, as long as its header says
//!   …     a zero for each 32 descriptors, or as many as are left, with which they come
//! successor → VMM:     length u32, at most 4096, and so many bytes of why it cannot; none of them: it can
//! VMM → successor:     1: the guest is yours. Where the connection ends instead, it is not
//! ```
//!
//! Must never know: control sockets, paths.

mod line;
mod process;
mod time;

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::config::{self, Boot, DiskConfig, InheritedFd, NicConfig, VmmConfig};
use crate::inherited::{self, Descriptors, PassedFds};
use crate::memory::shared::Shared;
use crate::rpc::REQUEST_FDS_MAX;
use crate::snapshot::message::{self, HEAD_BYTES};
use crate::snapshot::{self, Header, MachineState};
use crate::vm::MainConsole;

pub(crate) use line::Line;
pub use process::{HELLO, take_over};
pub(crate) use time::{monotonic, monotonic_ns};

/// The version of what is sent.
const VERSION: u32 = 1;
/// The first bytes of both directions.
const MAGIC: [u8; 8] = *b"WISPHAND";
/// Bytes before the snapshot's header.
const PREFIX_BYTES: usize = 24;
/// The longest document: twice a configuration, which is most of it.
const DOCUMENT_BYTES_MAX: usize = 8 << 20;
/// The most descriptors: those of 30 disks of 16 layers each, and of all else twice over.
const DESCRIPTORS_MAX: usize = 1024;
/// The longest sentence of why a successor cannot.
const REASON_BYTES_MAX: usize = 4096;
/// What says that the guest is the successor's.
const YOURS: u8 = 1;

/// Why a guest cannot be handed over. It is where it was, and goes on there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its memory is the process's own.
    #[error(
        "the guest cannot be handed over: its memory is this process's alone (`--upgradable` at its start changes that)"
    )]
    NotUpgradable,
    /// Somebody types there.
    #[error("the guest cannot be handed over: its console is a terminal whose shell waits for this process")]
    Terminal,
    /// It is not running, or on its way out.
    #[error("a guest is handed over that runs or is paused, and this one does neither")]
    NotThere,
    /// It has just gone on from a snapshot.
    #[error(
        "the guest is about to learn that it is another than that of its snapshot; it can be handed over in a moment"
    )]
    Introduced,
    /// A descriptor cannot be kept for it.
    #[error("keep a descriptor for a handover")]
    Keep(#[source] io::Error),
    /// The disks cannot be written out.
    #[error("write the guest's disks out")]
    WriteOut(#[source] io::Error),
    /// The machine's state cannot be told.
    #[error("save the guest's state")]
    Save(#[source] Box<crate::vm::Error>),
    /// It has more than fits.
    #[error("the guest cannot be handed over: it has too many {0}")]
    TooMuch(&'static str),
    /// The connection.
    #[error("{step}")]
    Talk {
        /// What was tried.
        step: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The successor says so.
    #[error("the successor cannot take the guest over: {0}")]
    Refused(String),
    /// What came is of another version.
    #[error(
        "the guest comes from a VMM that hands over by version {0}, and this program takes version {VERSION}"
    )]
    Version(u32),
    /// What came is no guest.
    #[error("what came is no guest: {0}")]
    Invalid(&'static str),
    /// Its document says something else.
    #[error("the guest has what this program does not know, as one of a newer program may")]
    Document(#[source] serde_json::Error),
    /// Its state.
    #[error(transparent)]
    Snapshot(#[from] snapshot::Error),
}

/// Names what was tried on the connection.
fn talk(step: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Talk { step, source }
}

/// What a disk or a network device was made of, with the descriptors in the order in which its configuration names them.
pub(crate) enum Kept {
    Disk(Box<DiskConfig>, Vec<OwnedFd>),
    Nic(Box<NicConfig>, Vec<OwnedFd>),
}

/// What a machine that can be handed over keeps of what it was made of, beside its devices'.
pub struct Estate {
    pub(crate) memory: Shared,
    pub(crate) console_log: Option<OwnedFd>,
    pub(crate) exit_report: Option<OwnedFd>,
    pub(crate) peripherals: (config::Peripherals, Vec<OwnedFd>),
    /// Standard input and output of a process that somebody started for its guest alone.
    pub(crate) streams: Option<[OwnedFd; 2]>,
    /// Standard input is a terminal.
    pub(crate) terminal: bool,
}

impl Estate {
    /// Nothing but memory.
    pub(crate) fn of(memory: Shared) -> Self {
        let peripherals = Default::default();
        Self { memory, console_log: None, exit_report: None, peripherals, streams: None, terminal: false }
    }
}

/// What is said of a guest that is handed over.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Document {
    /// What its machine is made of; what is booted is nothing.
    pub(crate) config: VmmConfig,
    pub(crate) memory: InheritedFd,
    /// Standard input and output.
    pub(crate) streams: Option<[InheritedFd; 2]>,
    pub(crate) life: Life,
}

/// How far it is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Life {
    pub(crate) main_console: MainConsole,
    /// It ran, and shall go on at once.
    pub(crate) runs: bool,
    /// When its state was saved, and since when it stands still for this, in nanoseconds of the host's monotonic clock.
    pub(crate) saved_ns: u64,
    pub(crate) stopped_ns: Option<u64>,
    pub(crate) first_run_us: Option<u64>,
    pub(crate) console_bytes: u64,
    /// How often it was handed over before.
    pub(crate) times: u32,
}

/// Descriptors that go, numbered as they are added.
#[derive(Default)]
pub(crate) struct Given<'a>(Vec<BorrowedFd<'a>>);

impl<'a> Given<'a> {
    pub(crate) fn add(&mut self, descriptor: BorrowedFd<'a>) -> InheritedFd {
        self.0.push(descriptor);
        InheritedFd(i32::try_from(self.0.len() - 1).unwrap_or(i32::MAX))
    }

    /// The same configuration with the numbers that its descriptors have here.
    pub(crate) fn disk(&mut self, config: &DiskConfig, files: &'a [OwnedFd]) -> DiskConfig {
        let mut config = config.clone();
        for (number, file) in inherited::of_disk_mut(&mut config).into_iter().zip(files) {
            *number = self.add(file.as_fd());
        }
        config
    }

    /// Likewise.
    pub(crate) fn nic(&mut self, config: &NicConfig, queues: &'a [OwnedFd]) -> NicConfig {
        let mut config = config.clone();
        let NicConfig { tap, more_queues, .. } = &mut config;
        for (number, queue) in std::iter::once(tap).chain(more_queues).zip(queues) {
            *number = self.add(queue.as_fd());
        }
        config
    }

    pub(crate) fn peripherals(
        &mut self,
        (config, files): &'a (config::Peripherals, Vec<OwnedFd>),
    ) -> config::Peripherals {
        let mut config = config.clone();
        for (number, file) in config.descriptors_mut().into_iter().zip(files) {
            *number = self.add(file.as_fd());
        }
        config
    }
}

/// A guest that came.
pub(crate) struct Arrived {
    pub(crate) header: Header,
    pub(crate) state: MachineState,
    pub(crate) document: Document,
    pub(crate) descriptors: PassedFds,
}

/// Sends a guest to its successor, hears whether that can have it, and says that it has.
pub(crate) fn send(
    line: &Line,
    (header, state): (&[u8; HEAD_BYTES], &[u8]),
    document: &Document,
    given: &Given<'_>,
) -> Result<(), Error> {
    // It may hold keys of disks.
    let text = Zeroizing::new(serde_json::to_vec(document).expect("invariant: documents are plain data"));
    if text.len() > DOCUMENT_BYTES_MAX {
        return Err(Error::TooMuch("things to say of it"));
    }
    if given.0.len() > DESCRIPTORS_MAX {
        return Err(Error::TooMuch("descriptors"));
    }
    let mut prefix = [0; PREFIX_BYTES];
    prefix[..8].copy_from_slice(&MAGIC);
    let numbers = [VERSION as usize, text.len(), given.0.len()];
    for (place, number) in prefix[8..].as_chunks_mut::<4>().0.iter_mut().zip(numbers) {
        *place = u32::try_from(number).expect("invariant: bounded").to_le_bytes();
    }
    let to_it = || talk("send the guest to its successor");
    for part in [&prefix[..], header, &text, state] {
        line.send(part, &[]).map_err(to_it())?;
    }
    for some in given.0.chunks(REQUEST_FDS_MAX) {
        line.send(&[0], some).map_err(to_it())?;
    }
    let from_it = || talk("hear whether the successor can have the guest");
    let mut length = [0; 4];
    line.receive(&mut length).map_err(from_it())?;
    let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    if length > REASON_BYTES_MAX {
        return Err(Error::Invalid("the successor's answer is too long"));
    }
    let mut reason = vec![0; length];
    line.receive(&mut reason).map_err(from_it())?;
    if !reason.is_empty() {
        return Err(Error::Refused(String::from_utf8_lossy(&reason).into_owned()));
    }
    line.send(&[YOURS], &[]).map_err(talk("give the guest to its successor"))
}

/// Receives one.
pub(crate) fn receive(line: &Line) -> Result<Arrived, Error> {
    let from_it = || talk("receive the guest");
    let mut prefix = [0; PREFIX_BYTES];
    line.receive(&mut prefix).map_err(from_it())?;
    if !prefix.starts_with(&MAGIC) {
        return Err(Error::Invalid("its first bytes"));
    }
    let number = |at: usize| u32::from_le_bytes(std::array::from_fn(|index| prefix[at + index]));
    if number(8) != VERSION {
        return Err(Error::Version(number(8)));
    }
    let size = |at: usize, max: usize| usize::try_from(number(at)).ok().filter(|size| *size <= max);
    let text = size(12, DOCUMENT_BYTES_MAX).ok_or(Error::Invalid("its document is too long"))?;
    let count = size(16, DESCRIPTORS_MAX).ok_or(Error::Invalid("it has too many descriptors"))?;
    let mut head = [0; HEAD_BYTES];
    line.receive(&mut head).map_err(from_it())?;
    let (header, state) = message::decode_head(&head)?;
    if header.hotplug_mib > 0 {
        return Err(snapshot::Error::from(crate::memory::Error::SharedHotplug).into());
    }
    let (mut text, mut state) = (Zeroizing::new(vec![0; text]), vec![0; state]);
    line.receive(&mut text).map_err(from_it())?;
    line.receive(&mut state).map_err(from_it())?;
    let state = message::decode_state(&header, &state)?;
    let mut passed = Vec::with_capacity(count);
    while passed.len() < count {
        let some = line.receive_descriptors().map_err(from_it())?;
        if some.is_empty() || passed.len() + some.len() > count {
            return Err(Error::Invalid("its descriptors are others than were said"));
        }
        passed.extend(some);
    }
    let document: Document = serde_json::from_slice(&text).map_err(Error::Document)?;
    if document.config.boot != Boot::Disk {
        return Err(Error::Invalid("something is to be booted"));
    }
    let mut named = inherited::all(&document.config);
    named.push(document.memory);
    named.extend(document.streams.into_iter().flatten());
    let descriptors = PassedFds::new(passed, &named)
        .ok_or(Error::Invalid("its descriptors are not those that its document names"))?;
    Ok(Arrived { header, state, document, descriptors })
}

/// Answers: the guest can be had, or why not.
fn answer(line: &Line, reason: Option<&str>) -> Result<(), Error> {
    let reason = reason.unwrap_or_default().as_bytes();
    let reason = &reason[..reason.len().min(REASON_BYTES_MAX)];
    let length = u32::try_from(reason.len()).expect("invariant: bounded").to_le_bytes();
    line.send(&[&length[..], reason].concat(), &[]).map_err(talk("answer whether the guest can be had"))
}

/// Waits until the guest is this process's.
fn wait_until_given(line: &Line) -> Result<(), Error> {
    let mut byte = [0];
    line.receive(&mut byte).map_err(talk("be given the guest"))?;
    if byte == [YOURS] { Ok(()) } else { Err(Error::Invalid("what it was given by")) }
}

/// Descriptors of which copies are kept as they are taken, if that is wanted.
pub(crate) struct Keeping<'a> {
    from: &'a mut dyn Descriptors,
    kept: Option<io::Result<Vec<OwnedFd>>>,
}

impl<'a> Keeping<'a> {
    pub(crate) fn new(from: &'a mut dyn Descriptors, keep: bool) -> Self {
        Self { from, kept: keep.then(|| Ok(Vec::new())) }
    }

    /// The copies, in the order in which their originals were taken.
    pub(crate) fn kept(self) -> Result<Option<Vec<OwnedFd>>, Error> {
        self.kept.transpose().map_err(Error::Keep)
    }
}

impl Descriptors for Keeping<'_> {
    fn take(&mut self, fd: InheritedFd) -> OwnedFd {
        let taken = self.from.take(fd);
        if let Some(Ok(kept)) = &mut self.kept {
            match taken.try_clone() {
                Ok(copy) => kept.push(copy),
                Err(error) => self.kept = Some(Err(error)),
            }
        }
        taken
    }
}

#[cfg(test)]
pub(crate) mod tests;
