//! Snapshots of guests that never were, for tests and fuzzers.

use std::fs::File;
use std::io::Read as _;

use vm_memory::Bytes as _;
use vmm_sys_util::eventfd::EventFd;

use super::header::{HEADER_BYTES, Header};
use super::{Description, MachineState, SavedDevice, Writer};
use crate::config::{CpuProfile, WatchdogAction};
use crate::kvm::{CpuNeeds, HostKind, VcpuState, VmState};
use crate::memory;
use crate::pci::host::PciHost;
use crate::pci::plug::PlugController;
use crate::power::PowerManagement;
use crate::serial::{Console, SerialPort};
use crate::virtio::TransportState;
use crate::watchdog::Watchdog;

fn event() -> EventFd {
    EventFd::new(0).expect("the test needs a few descriptors")
}

/// A machine with these devices, on virtio-mmio or in slots.
#[must_use]
pub fn state(devices: Vec<TransportState>) -> MachineState {
    let host = PciHost::default();
    let ending = crate::ending::EndingSignal::new().expect("the test needs a few descriptors");
    let saved = |(slot, transport): (u8, TransportState)| {
        let slot = matches!(transport, TransportState::Pci(_)).then_some(slot);
        SavedDevice { name: None, slot, transport }
    };
    MachineState {
        vm: VmState::example(),
        vcpus: vec![VcpuState::example()],
        serial: SerialPort::new(event(), Console::None).save(),
        power: PowerManagement::new(event(), ending).save(),
        watchdog: Watchdog::new(WatchdogAction::Reset).ok().map(|watchdog| watchdog.save()),
        plug: PlugController::new(host.clone(), event(), event()).save(),
        bus: host.save(),
        devices: (1..).zip(devices).map(saved).collect(),
    }
}

/// The bytes of a snapshot with that state and one MiB of memory, of which a few pages are there.
///
/// # Panics
/// Without room for a temporary file.
#[must_use]
pub fn snapshot(state: &MachineState) -> Vec<u8> {
    let guest = memory::allocate(1).expect("the test needs some memory");
    for page in [1_u64, 2, 200] {
        guest.write_obj(page, vm_memory::GuestAddress(page * 4096)).expect("invariant: it is in memory");
    }
    let description = Description {
        cpu: CpuProfile::Host,
        host: HostKind::Hardware,
        needs: CpuNeeds { vendor: *b"GenuineIntel", words: Vec::new() },
    };
    let mut file = File::from(
        rustix::fs::memfd_create("snapshot", rustix::fs::MemfdFlags::CLOEXEC).expect("the test needs a file"),
    );
    let mut writer = Writer::begin(&file, (1, 0), &guest).expect("the test needs room");
    writer.all(|_| true, &[]).expect("the test needs room");
    writer.finish(None, description, state).expect("the test needs room");
    let mut bytes = Vec::new();
    std::io::Seek::rewind(&mut file).expect("invariant: a regular file");
    file.read_to_end(&mut bytes).expect("the test needs memory");
    bytes
}

/// The same, packed.
///
/// # Panics
/// Without room for temporary files.
#[must_use]
pub fn packed(state: &MachineState) -> Vec<u8> {
    let file = || {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        File::from(rustix::fs::memfd_create("snapshot", flags).expect("the test needs a file"))
    };
    let (mut flat, mut to) = (file(), file());
    std::io::Write::write_all(&mut flat, &snapshot(state)).expect("the test needs room");
    super::rewrite(vec![flat], super::Form::Packed, &to, &mut |_| ()).expect("the test needs room");
    let mut bytes = Vec::new();
    std::io::Seek::rewind(&mut to).expect("invariant: a regular file");
    to.read_to_end(&mut bytes).expect("the test needs memory");
    bytes
}

/// Where the state section lies in a snapshot's bytes; nothing if they are none.
#[must_use]
pub fn state_range(bytes: &[u8]) -> Option<std::ops::Range<usize>> {
    let header = Header::decode(bytes.first_chunk::<HEADER_BYTES>()?).ok()?;
    let start = usize::try_from(header.state_at()).ok()?;
    Some(start..start.checked_add(usize::try_from(header.state.0).ok()?)?)
}

/// Makes checksums of header, table and state right, whatever is in them; false if that is no header.
pub fn seal(bytes: &mut [u8]) -> bool {
    let Some(range) = state_range(bytes) else { return false };
    let table = bytes.first_chunk::<HEADER_BYTES>().and_then(|bytes| Header::decode(bytes).ok());
    let table = table.and_then(|header| {
        let bytes = usize::try_from(header.table_bytes()).ok()?;
        Some(HEADER_BYTES..HEADER_BYTES + bytes)
    });
    for (at, range) in [(72, Some(range)), (76, table)] {
        let Some(checksum) = range.and_then(|range| bytes.get(range)).map(crc32fast::hash) else {
            return false;
        };
        bytes[at..at + 4].copy_from_slice(&checksum.to_le_bytes());
    }
    let checksum = crc32fast::hash(&bytes[..HEADER_BYTES - 4]);
    bytes[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
    true
}
