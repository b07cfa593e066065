//! What other programs of this version have written.

use super::header::{HEADER_BYTES, Header};
use super::*;

/// What a snapshot of version 3 said of a guest on PCI with memory that comes and goes, 6 MiB of 128, when that version's first
/// sample of it was made: its header and its state section, one behind the other. Such a guest is not handed over, so
/// `crate::handover::tests` have none. `tests/tiny_guest/samples.rs` made it and makes one of another version; this one stays as long as
/// version 3 is read, whatever later programs write.
const WITH_MEMORY: &[u8] = include_bytes!("tests/version-3-memory.state");

/// The machine's state in it.
pub(crate) fn sample_with_memory() -> MachineState {
    let (head, state) = WITH_MEMORY.split_first_chunk().unwrap();
    message::decode_state(&Header::decode(head).unwrap(), state).unwrap()
}

/// As that of what is handed over: a form that changes and keeps its version is told by this.
#[test]
fn what_version_3_said_of_a_guest_is_read_and_would_be_said_again() {
    let (head, rest) = WITH_MEMORY.split_first_chunk::<HEADER_BYTES>().unwrap();
    let header = Header::decode(head).unwrap();
    assert_eq!(VERSION, 3, "the sample is of another version");
    assert_eq!((header.memory_mib, header.hotplug_mib, header.vcpus, header.form), (160, 128, 1, Form::Flat));
    assert!(header.encode() == *head, "the header's form");
    let description = Description { cpu: header.cpu, host: header.host, needs: header.needs.clone() };
    let state = message::decode_state(&header, rest).unwrap();
    let memory_mib = (header.memory_mib, header.hotplug_mib);
    let (_, again) = message::encode(memory_mib, description, &state).unwrap();
    assert!(again == rest, "the form of the machine's state");
}
