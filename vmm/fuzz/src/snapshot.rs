//! Snapshots that somebody changed: files, with checksums that are wrong or right, and devices that go on from states that
//! no device ever saved.

use std::fs::File;
use std::io::Write as _;
use std::sync::OnceLock;

use vmm::snapshot::{self, Snapshot, mock};
use vmm::virtio::mock::{BUFFERS_START, MockDescriptor, MockGuest};
use vmm::virtio::state::{decode, encode};
use vmm::virtio::{Shared, TransportState};

use crate::input::Reader;
use crate::queue;

/// Changes in one input.
const CHANGES_MAX: u8 = 16;
/// Bytes of a snapshot's header.
const HEADER_BYTES: usize = 4096;
/// How many kinds of devices there are.
const DEVICES: u8 = 8;

/// A guest with that device, started, of which one request is answered.
fn guest(kind: u8, over_pci: bool) -> MockGuest {
    let build = if over_pci { MockGuest::over_pci } else { MockGuest::new };
    let device = device(kind);
    let sizes = vec![16; device.lock().expect("invariant: nobody panicked").queue_sizes().len()];
    let mut guest = build(device).expect("the fuzzer needs eventfds");
    let offered = guest.offered();
    let mut queues = guest.bring_up(offered, &sizes);
    queues[0].submit(&guest.memory, &[MockDescriptor::writable(BUFFERS_START, 64)]);
    guest.kick(0);
    guest
}

fn device(kind: u8) -> Shared {
    queue::device(kind % DEVICES).0
}

/// The bytes of a snapshot with a device of each kind on each transport.
fn whole() -> &'static [u8] {
    static WHOLE: OnceLock<Vec<u8>> = OnceLock::new();
    WHOLE.get_or_init(|| {
        let kinds = (0..DEVICES).flat_map(|kind| [(kind, false), (kind, true)]);
        mock::snapshot(&mock::state(kinds.map(|(kind, over_pci)| guest(kind, over_pci).save()).collect()))
    })
}

fn change(reader: &mut Reader<'_>, bytes: &mut [u8], start: usize, length: usize) {
    for _ in 0..1 + reader.u8() % CHANGES_MAX {
        let place = start + usize::from(reader.u16()) % length.max(1);
        let width = 1 << (reader.u8() % 4);
        let value = reader.u64().to_le_bytes();
        if let Some(place) = bytes.get_mut(place..place + width) {
            place.copy_from_slice(&value[..width]);
        }
    }
}

pub(crate) fn run(input: &[u8]) {
    let mut reader = Reader::new(input);
    match reader.u8() % 5 {
        0 => changed_file(&mut reader, false),
        1 => changed_file(&mut reader, true),
        2 => {
            // An error is an answer.
            let length = usize::from(reader.u16());
            let _ = snapshot::parse_state(reader.bytes(length));
        }
        3 => changed_memory(&mut reader),
        _ => changed_device(&mut reader),
    }
}

/// A file with some bytes changed, of its header or from its state on, or cut off. The memory between is looked at by
/// who asks for it alone.
fn changed_file(reader: &mut Reader<'_>, sealed: bool) {
    let mut bytes = whole().to_vec();
    let range = mock::state_range(&bytes).expect("invariant: a snapshot");
    let (start, length) = match (sealed, reader.u8() % 2) {
        (true, _) => (range.start, range.len()),
        (false, 0) => (0, HEADER_BYTES),
        (false, _) => (range.start, bytes.len() - range.start),
    };
    change(reader, &mut bytes, start, length);
    if sealed {
        mock::seal(&mut bytes);
    } else if reader.u8().is_multiple_of(8) {
        bytes.truncate(reader.u32() as usize % bytes.len());
    }
    let mut file = tempfile::tempfile().expect("the fuzzer needs a file");
    file.write_all(&bytes).expect("the fuzzer needs room");
    let clone = |file: &File| file.try_clone().expect("the fuzzer needs a descriptor");
    let same = |part: std::ops::Range<usize>| bytes.get(part.clone()) == whole().get(part);
    let untouched = bytes.len() == whole().len() && same(0..HEADER_BYTES) && same(range);
    let opened = Snapshot::open(vec![clone(&file)], None);
    assert!(sealed || untouched || opened.is_err(), "a change that no checksum found");
    let _ = snapshot::verify(&file);
}

/// A packed file whose table or memory was changed, with the right checksum of the table: what is unpacked is what was
/// packed, or is refused.
fn changed_memory(reader: &mut Reader<'_>) {
    static PACKED: OnceLock<Vec<u8>> = OnceLock::new();
    let packed = PACKED.get_or_init(|| mock::packed(&mock::state(Vec::new())));
    let mut bytes = packed.clone();
    let end = mock::state_range(packed).expect("invariant: a snapshot").start;
    change(reader, &mut bytes, HEADER_BYTES, end - HEADER_BYTES);
    mock::seal(&mut bytes);
    let mut file = tempfile::tempfile().expect("the fuzzer needs a file");
    file.write_all(&bytes).expect("the fuzzer needs room");
    let clone = || file.try_clone().expect("the fuzzer needs a descriptor");
    let opened = Snapshot::open(vec![clone()], None);
    assert_eq!(opened.is_ok(), snapshot::verify(&file).is_ok(), "who looks finds what who goes on finds");
    let to = tempfile::tempfile().expect("the fuzzer needs a file");
    let flat = snapshot::rewrite(vec![clone()], snapshot::Form::Flat, &to, &mut |_| ());
    assert_eq!(opened.is_ok(), flat.is_ok());
}

/// A device that goes on from a changed state, and is used.
fn changed_device(reader: &mut Reader<'_>) {
    let kind = reader.u8();
    let mut before = guest(kind, reader.u8().is_multiple_of(2));
    let mut bytes = encode(&before.save());
    let length = bytes.len();
    change(reader, &mut bytes, 0, length);
    let Ok(state) = decode::<TransportState>(&bytes) else { return };
    let Ok(mut after) = before.go_on(device(kind), &state) else { return };
    assert!(after.run(), "the device comes to rest");
    for index in 0..2 {
        after.kick(index);
    }
    after.set_status(0);
    let offered = after.offered();
    let sizes = vec![16; device(kind).lock().expect("invariant: nobody panicked").queue_sizes().len()];
    after.bring_up(offered, &sizes);
    assert!(!after.needs_reset(), "a reset mends everything");
}
