//! A function's message-signalled interrupts (PCI 3.0 §6.8.2, MSI-X): the table of messages, the pending bits, and the
//! capability's two switches.
//!
//! Must never know: what an interrupt means.

use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};

use super::config::ConfigSpace;
use super::{Error, Wiring};
use crate::mutex::lock;

/// The capability's id.
const CAPABILITY_ID: u8 = 0x11;
/// The message control register, behind the capability's header.
const CONTROL: usize = 2;
/// Message control: interrupts are messages.
const ENABLE: u16 = 1 << 15;
/// Message control: none is sent for the time being.
const MASK_ALL: u16 = 1 << 14;
/// Bytes of one entry: address u64, data u32, control u32.
const ENTRY_BYTES: usize = 16;
/// Entry's control: it is masked.
const ENTRY_MASKED: u32 = 1;
/// The most vectors here; the standard allows 2048, and two pages hold table and pending bits of these.
pub const VECTORS_MAX: u16 = 128;

/// What the guest wants written where to interrupt it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Message {
    /// The address, which names the processor.
    pub address: u64,
    /// The value, which names the vector.
    pub data: u32,
}

/// One entry of the table, for a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VectorState {
    /// Where the message is written.
    pub address: u64,
    /// The message.
    pub data: u32,
    /// None is sent.
    pub masked: bool,
    /// One waits for that to end.
    pub pending: bool,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    message: Message,
    control: u32,
    pending: bool,
}

struct State {
    entries: Vec<Entry>,
    enabled: bool,
    masked: bool,
}

/// The table of one function, shared by whoever interrupts and whoever serves the guest's accesses.
pub struct Msix {
    state: Mutex<State>,
    wiring: Arc<dyn Wiring>,
}

impl Msix {
    /// A table of `vectors` entries, all masked, switched off.
    ///
    /// # Errors
    /// None, or more than [`VECTORS_MAX`].
    pub fn new(vectors: u16, wiring: Arc<dyn Wiring>) -> Result<Self, Error> {
        if vectors == 0 || vectors > VECTORS_MAX {
            return Err(Error::Function("so many interrupts"));
        }
        let entry = Entry { message: Message::default(), control: ENTRY_MASKED, pending: false };
        let entries = vec![entry; usize::from(vectors)];
        Ok(Self { state: Mutex::new(State { entries, enabled: false, masked: false }), wiring })
    }

    /// Adds the capability, with the table at `table` and the pending bits at `pending` in BAR 0 (multiples of 8);
    /// returns where it lies.
    ///
    /// # Errors
    /// It does not fit.
    pub fn add_capability(&self, space: &mut ConfigSpace, table: u32, pending: u32) -> Result<usize, Error> {
        // The control register holds the number of the last entry.
        let control = self.vectors() - 1;
        let mut body = control.to_le_bytes().to_vec();
        body.extend(table.to_le_bytes());
        body.extend(pending.to_le_bytes());
        let mut writable = (ENABLE | MASK_ALL).to_le_bytes().to_vec();
        writable.resize(body.len(), 0);
        space.add_capability(CAPABILITY_ID, &body, &writable)
    }

    /// How many vectors there are.
    #[must_use]
    pub fn vectors(&self) -> u16 {
        u16::try_from(self.lock().entries.len()).expect("invariant: at most VECTORS_MAX")
    }

    /// Whether the guest has switched messages on.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.lock().enabled
    }

    /// Takes over the capability at `capability` after the guest wrote configuration space.
    pub fn control_written(&self, space: &ConfigSpace, capability: usize) {
        let control = space.word(capability + CONTROL);
        let mut state = self.lock();
        state.enabled = control & ENABLE != 0;
        state.masked = control & MASK_ALL != 0;
        let due = state.take_due();
        drop(state);
        self.send(&due);
    }

    /// Interrupts by entry `vector`, now or once it is unmasked; without messages switched on, and for a vector that
    /// does not exist, nothing happens.
    pub fn trigger(&self, vector: u16) {
        let mut state = self.lock();
        if !state.enabled {
            return;
        }
        let masked = state.masked;
        let Some(entry) = state.entries.get_mut(usize::from(vector)) else { return };
        if masked || entry.control & ENTRY_MASKED != 0 {
            entry.pending = true;
            return;
        }
        let message = entry.message;
        drop(state);
        self.wiring.send_message(message);
    }

    /// The guest reads the table: 4 or 8 bytes at a multiple of their number (§6.8.2); anything else reads as zeros.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Some((index, at)) = place(offset, data.len()) else { return };
        if let Some(entry) = self.lock().entries.get(index) {
            data.copy_from_slice(&entry.bytes()[at..at + data.len()]);
        }
    }

    /// The guest writes the table, likewise.
    pub fn write_table(&self, offset: u64, data: &[u8]) {
        let Some((index, at)) = place(offset, data.len()) else { return };
        let mut state = self.lock();
        let Some(entry) = state.entries.get_mut(index) else { return };
        let mut bytes = entry.bytes();
        bytes[at..at + data.len()].copy_from_slice(data);
        entry.set(&bytes);
        let due = state.take_due();
        drop(state);
        self.send(&due);
    }

    /// The guest reads the pending bits, eight vectors a byte.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        let state = self.lock();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, byte) in data.iter_mut().enumerate() {
            let first = start.saturating_add(index).saturating_mul(8);
            let bits = state.entries.iter().skip(first).take(8).enumerate();
            *byte = bits.fold(0, |sum, (bit, entry)| sum | u8::from(entry.pending) << bit);
        }
    }

    /// The table, for a snapshot; the capability's switches are in configuration space.
    #[must_use]
    pub fn save(&self) -> Vec<VectorState> {
        let vector = |entry: &Entry| VectorState {
            address: entry.message.address,
            data: entry.message.data,
            masked: entry.control & ENTRY_MASKED != 0,
            pending: entry.pending,
        };
        self.lock().entries.iter().map(vector).collect()
    }

    /// Takes over what [`Self::save`] gave; false if that is no table of as many entries.
    #[must_use]
    pub fn restore(&self, vectors: &[VectorState]) -> bool {
        let mut state = self.lock();
        if vectors.len() != state.entries.len() {
            return false;
        }
        for (entry, saved) in state.entries.iter_mut().zip(vectors) {
            let control = if saved.masked { ENTRY_MASKED } else { 0 };
            let message = Message { address: saved.address, data: saved.data };
            *entry = Entry { message, control, pending: saved.pending };
        }
        true
    }

    fn send(&self, messages: &[Message]) {
        for message in messages {
            self.wiring.send_message(*message);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    /// What was pending and is masked no longer.
    fn take_due(&mut self) -> Vec<Message> {
        if !self.enabled || self.masked {
            return Vec::new();
        }
        let due = self.entries.iter_mut().filter(|entry| entry.pending && entry.control & ENTRY_MASKED == 0);
        due.map(|entry| {
            entry.pending = false;
            entry.message
        })
        .collect()
    }
}

impl Entry {
    fn bytes(&self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        bytes[..8].copy_from_slice(&self.message.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.message.data.to_le_bytes());
        bytes[12..].copy_from_slice(&self.control.to_le_bytes());
        bytes
    }

    fn set(&mut self, bytes: &[u8; ENTRY_BYTES]) {
        let double_word =
            |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        self.message.address = u64::from(double_word(0)) | u64::from(double_word(4)) << 32;
        self.message.data = double_word(8);
        self.control = double_word(12) & ENTRY_MASKED;
    }
}

/// The entry and the place in it, if the access is one that the standard allows.
fn place(offset: u64, length: usize) -> Option<(usize, usize)> {
    let offset = usize::try_from(offset).ok()?;
    let allowed = matches!(length, 4 | 8) && offset.is_multiple_of(length);
    allowed.then_some((offset / ENTRY_BYTES, offset % ENTRY_BYTES))
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestAddress;
    use vmm_sys_util::eventfd::EventFd;

    use super::super::config::Identity;
    use super::*;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<Message>>);

    impl Wiring for Recorder {
        fn send_message(&self, message: Message) {
            self.0.lock().unwrap().push(message);
        }
        fn connect_doorbell(&self, _event: &EventFd, _address: GuestAddress) -> bool {
            false
        }
        fn disconnect_doorbell(&self, _event: &EventFd, _address: GuestAddress) {}
    }

    struct Fixture {
        msix: Msix,
        space: ConfigSpace,
        capability: usize,
        sent: Arc<Recorder>,
    }

    fn fixture(vectors: u16) -> Fixture {
        let sent = Arc::new(Recorder::default());
        let msix = Msix::new(vectors, sent.clone()).unwrap();
        let identity = Identity { vendor: 1, device: 2, revision: 0, class: [0; 3], subsystem: [0; 2] };
        let mut space = ConfigSpace::new(&identity);
        let capability = msix.add_capability(&mut space, 0x4000, 0x5000).unwrap();
        Fixture { msix, space, capability, sent }
    }

    impl Fixture {
        fn control(&mut self, control: u16) {
            self.space.write(self.capability + CONTROL, &control.to_le_bytes());
            self.msix.control_written(&self.space, self.capability);
        }

        fn entry(&self, index: u64, data: u32, control: u32) {
            self.msix.write_table(16 * index, &0xfee0_1000_u64.to_le_bytes());
            self.msix.write_table(16 * index + 8, &data.to_le_bytes());
            self.msix.write_table(16 * index + 12, &control.to_le_bytes());
        }

        fn sent(&self) -> Vec<u32> {
            self.sent.0.lock().unwrap().drain(..).map(|message| message.data).collect()
        }

        fn pending(&self) -> u64 {
            let mut bytes = [0; 8];
            self.msix.read_pending(0, &mut bytes);
            u64::from_le_bytes(bytes)
        }
    }

    #[test]
    fn enabled_and_unmasked_vector_sends_its_message() {
        let mut fixture = fixture(3);
        fixture.entry(1, 0x41, 0);
        fixture.msix.trigger(1);
        assert!(fixture.sent().is_empty(), "switched off");
        fixture.control(ENABLE);
        fixture.msix.trigger(1);
        assert_eq!(fixture.sent(), [0x41]);
        assert_eq!(fixture.pending(), 0);
    }

    #[test]
    fn masked_vector_is_pending_until_it_is_unmasked() {
        let mut fixture = fixture(3);
        fixture.control(ENABLE);
        fixture.entry(2, 0x42, 1);
        fixture.msix.trigger(2);
        fixture.msix.trigger(2);
        assert_eq!((fixture.sent(), fixture.pending()), (vec![], 1 << 2));
        fixture.entry(2, 0x43, 0);
        assert_eq!((fixture.sent(), fixture.pending()), (vec![0x43], 0));
        fixture.control(ENABLE | MASK_ALL);
        fixture.msix.trigger(2);
        assert_eq!((fixture.sent(), fixture.pending()), (vec![], 1 << 2));
        fixture.control(ENABLE);
        assert_eq!((fixture.sent(), fixture.pending()), (vec![0x43], 0));
    }

    #[test]
    fn capability_says_where_the_table_lies_and_how_long_it_is() {
        let fixture = fixture(3);
        let at = fixture.capability;
        assert_eq!(fixture.space.word(at + 2), 2);
        assert_eq!((fixture.space.double_word(at + 4), fixture.space.double_word(at + 8)), (0x4000, 0x5000));
    }

    #[test]
    fn vectors_and_places_that_do_not_exist_are_harmless() {
        let mut fixture = fixture(2);
        fixture.control(ENABLE);
        fixture.msix.trigger(2);
        fixture.msix.trigger(u16::MAX);
        for (offset, length) in [(0, 1), (2, 4), (4, 8), (32, 4), (u64::MAX - 7, 8), (12, 8)] {
            let mut data = vec![0xaa; length];
            fixture.msix.write_table(offset, &data);
            fixture.msix.read_table(offset, &mut data);
            assert!(data.iter().all(|byte| *byte == 0), "{offset:#x}+{length}");
        }
        let mut data = [0xaa; 8];
        fixture.msix.read_pending(u64::MAX - 3, &mut data);
        assert!(fixture.sent().is_empty());
        assert!(Msix::new(0, fixture.sent.clone()).is_err());
        assert!(Msix::new(VECTORS_MAX + 1, fixture.sent.clone()).is_err());
    }
}
