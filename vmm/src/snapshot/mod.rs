//! Snapshots: one file from which any number of guests go on.
//!
//! Version 3, all numbers little-endian; `M` is rounded up to a multiple of 4096:
//!
//! ```text
//! 0      header, 4096 bytes
//!    +0    magic               8 bytes  "WISPSNAP"
//!    +8    version             u32      3
//!    +12   kind                u32      0 full, 1 differences
//!    +16   id                 16 bytes  random
//!    +32   base's id          16 bytes  of what the differences are to; else zeros
//!    +48   taken               u64      seconds since the Unix epoch
//!    +56   state's offset      u64      S: behind the memory
//!    +64   state's length      u64      at most 16 MiB
//!    +72   state's checksum    u32
//!    +76   table's checksum    u32
//!    +80   table's offset      u64      4096
//!    +88   memory's offset     u64      M: behind the table
//!    +96   memory              u32      MiB, those that come and go included
//!    +100  vCPUs               u8
//!    +101  CPU profile         u8       0 host, 1 baseline
//!    +102  host                u8       0 KVM in hardware, 1 in software
//!    +103  memory's form       u8       0 flat, 1 packed
//!    +104  RAM ranges         32 bytes  twice: guest address u64, length u64; zeros where there is no second
//!    +136  processor's maker  12 bytes  CPUID leaf 0: EBX, EDX, ECX
//!    +148  comes and goes      u32      MiB of memory that do: behind the RAM ranges and 4 GiB, on a multiple of 128 MiB
//!    +152  feature words       u32      at most 32
//!    +156  zero                4 bytes
//!    +160  each word          16 bytes  CPUID leaf u32, subleaf u32, register u32 (EAX, EBX, ECX, EDX), bits u32: what the
//!                                       guest was shown and may use
//!    …     zeros
//!    +4092 checksum            u32      of the 4092 bytes before
//! 4096   table, of flat memory: for each MiB, in order
//!    +0    pages              32 bytes  a bit for each page that the file has of it, the first page's lowest
//!    +32   checksum            u32      of these pages, one after the other
//!        of packed memory: for each 64 KiB, in order
//!    +0    offset              u64      behind M
//!    +8    length              u32      at most as many bytes as the pages have, and as they are if as many
//!    +12   checksum            u32      of so many bytes
//!    +16   pages               u16      a bit for each page that the file has of it, the first page's lowest
//!    +18   zero                6 bytes
//! M      memory. Flat: as many bytes as the RAM ranges and what comes and goes together, one after the other. Packed: the
//!        pages of each block, one after the other, as one block of LZ4's format, without holes
//! S      state: a `MachineState` in Postcard's wire format, to the end of the file
//! ```
//! Checksums are CRC-32 (IEEE 802.3). A page of memory that the table does not name is in a flat file a hole; in a full
//! snapshot it is zeros, in one of differences it is as in the base. KVM's structures in the state are those of
//! `linux/kvm.h` for x86-64.
//!
//! The header is written last, so what was cut off while it was being written is no snapshot. What has a wrong checksum in
//! header or state, is shorter or longer than it says, or is of another version is refused. Flat memory is mapped and not
//! read when a guest goes on, since reading it would take as long as it is large; so its checksums are for whoever asks
//! ([`verify`]). Packed memory is checked as it is unpacked ([`pager`]).
//!
//! Guests' memory is written flat, since what they write meanwhile takes the place of what they wrote before; [`rewrite`]
//! packs it.
//!
//! A file must not be written to or become shorter while guests go on from it: they have it mapped, or unpack it still.
//!
//! Must never know: control sockets, paths, what devices do with their states.

mod contents;
mod header;
pub(crate) mod message;
#[cfg(any(test, feature = "mock"))]
pub mod mock;
mod packed;
pub mod pager;
mod read;
mod rewrite;
mod write;

use serde::{Deserialize, Serialize};

use crate::kvm::{self, VcpuState};
use crate::pci::host::HostState;
use crate::pci::plug::PlugState;
use crate::power::PowerState;
use crate::rpc::DeviceName;
use crate::serial::SerialState;
use crate::virtio::TransportState;
use crate::virtio::spec::device_type::name;
use crate::watchdog::WatchdogState;

pub use header::{Form, Header, SnapshotId, VERSION};
pub use pager::{Lazily, Pager};
pub use read::{Snapshot, parse_state, read_header, says_packed, verify};
pub use rewrite::rewrite;
pub use write::Written;
pub(crate) use write::{Description, Writer};

/// Bytes of a page.
pub(crate) const PAGE_BYTES: usize = 4096;
/// The most devices of a machine: every slot's, and every window's.
const DEVICES_MAX: usize = 64;
/// The most snapshots that one guest goes on from: a full one and differences, each to the one before.
pub const CHAIN_MAX: usize = 16;

/// Why a snapshot cannot be made or gone on from.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something else.
    #[error("the file is no snapshot")]
    NoSnapshot,
    /// Another version.
    #[error("the snapshot is of version {0}, and this program reads version {VERSION}")]
    Version(u32),
    /// A checksum does not match.
    #[error("the snapshot is damaged: its {0} does not match its checksum")]
    Damaged(&'static str),
    /// A piece of memory does not match its checksum.
    #[error("the snapshot is damaged: the MiB of memory at {0:#x} does not match its checksum")]
    DamagedMemory(u64),
    /// It has another length than it says.
    #[error(
        "the snapshot is cut off or has something behind its end: it should have {expected} bytes and has {found}"
    )]
    Length {
        /// What the header says.
        expected: u64,
        /// What the file has.
        found: u64,
    },
    /// A value that no snapshot has.
    #[error("the snapshot is none: {0} cannot be")]
    Invalid(&'static str),
    /// Its state cannot be read.
    #[error("the snapshot's state cannot be read")]
    State(#[source] postcard::Error),
    /// A device is given that the guest does not know of.
    #[error("a {} is given, which the guest of the snapshot does not have", name(*.0))]
    Stranger(u32),
    /// A watchdog is given to a guest that does not know of one.
    #[error("a watchdog is given, which the guest of the snapshot does not have")]
    NoWatchdog,
    /// Differences come before what they are to, or to something else.
    #[error("the snapshot {id} has the differences to {base}, and what comes before it is {before}")]
    Chain {
        /// The differences.
        id: SnapshotId,
        /// What they are to.
        base: SnapshotId,
        /// What is there.
        before: String,
    },
    /// Too many.
    #[error("a guest goes on from a snapshot and at most {max} with differences to it", max = CHAIN_MAX - 1)]
    TooMany,
    /// Only what is unpacked piece by piece is asked for piece by piece.
    #[error("a working set is of a packed snapshot, and this one is not packed")]
    NoWorkingSet,
    /// What somebody has there is not ours to write over.
    #[error(
        "the file for the working set has something else in it, which stays: name another, or one that is not there"
    )]
    OtherThanWorkingSet,
    /// Differences to nothing.
    #[error("nothing has been noted of what the guest wrote: take a full snapshot that begins with it first")]
    NotTracked,
    /// One was asked for with other memory or vCPUs than it has.
    #[error(
        "the snapshot's guest has {memory_mib} MiB of memory and {vcpus} vCPUs, and other numbers were given"
    )]
    Sizes {
        /// MiB.
        memory_mib: u32,
        /// vCPUs.
        vcpus: u8,
    },
    /// Another kind of KVM.
    #[error("the snapshot was taken on {taken}, and this host has {here}")]
    Host {
        /// The snapshot's.
        taken: &'static str,
        /// The host's.
        here: &'static str,
    },
    /// Other devices than the guest has.
    #[error("the snapshot's guest has {saved} {kind}, and {given} were given")]
    Devices {
        /// Which.
        kind: &'static str,
        /// How many the guest has.
        saved: usize,
        /// How many there are.
        given: usize,
    },
    /// The guest runs, or has never run.
    #[error("a snapshot is taken of a guest that is paused or running, and this one is neither")]
    NotPaused,
    /// What is written to it lands at its end, wherever it belongs.
    #[error("the snapshot's file is open for appending (O_APPEND): open it for writing alone")]
    Appends,
    /// The file.
    #[error("{step} the snapshot")]
    File {
        /// What was tried.
        step: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Its memory cannot be mapped.
    #[error(transparent)]
    Memory(#[from] crate::memory::Error),
}

/// Names what was tried.
fn file(step: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::File { step, source }
}

/// One device where it was.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SavedDevice {
    /// What it is known by; nothing for what is there in every machine.
    pub(crate) name: Option<DeviceName>,
    /// Its slot; virtio-mmio's windows go by order.
    pub(crate) slot: Option<u8>,
    /// Registers and device.
    pub(crate) transport: TransportState,
}

/// All of a machine but its memory.
#[derive(Debug, Serialize, Deserialize)]
pub struct MachineState {
    pub(crate) vm: kvm::VmState,
    pub(crate) vcpus: Vec<VcpuState>,
    pub(crate) serial: SerialState,
    pub(crate) power: PowerState,
    pub(crate) watchdog: Option<WatchdogState>,
    pub(crate) bus: HostState,
    pub(crate) plug: PlugState,
    pub(crate) devices: Vec<SavedDevice>,
}

#[cfg(test)]
pub(crate) mod tests;
