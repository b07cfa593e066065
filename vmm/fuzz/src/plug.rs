//! A guest at the hot-plug controller, while its host fills slots and takes devices away: what the guest reads and
//! writes decides nothing but when a device goes that it was asked to let go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm::bus::BusDevice;
use vmm::pci::host::PciHost;
use vmm::pci::mock::Device;
use vmm::pci::plug::{PLUG_PORTS, PlugController};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::input::Reader;

/// Operations in one input.
const OPERATIONS_MAX: usize = 600;
/// Where the guest says which slots it has done with, 4 bytes.
const LET_GO: u64 = 16;

/// What has to be so, kept beside the controller.
struct Model {
    plug: PlugController,
    host: PciHost,
    let_go: EventFd,
    /// The slots that are filled, each with whether a driver has it and whether the guest was asked to let it go.
    filled: BTreeMap<u8, (Arc<AtomicBool>, bool)>,
}

pub(crate) fn run(input: &[u8]) {
    let event = || EventFd::new(EFD_NONBLOCK).expect("the fuzzer needs eventfds");
    let clone = |event: &EventFd| event.try_clone().expect("the fuzzer needs eventfds");
    let (host, sci, let_go) = (PciHost::default(), event(), event());
    let plug = PlugController::new(host.clone(), sci, clone(&let_go));
    let mut model = Model { plug, host, let_go, filled: BTreeMap::new() };
    let mut reader = Reader::new(input);
    for _ in 0..OPERATIONS_MAX {
        if reader.is_empty() {
            return;
        }
        model.step(&mut reader);
        for slot in 0..=u8::MAX {
            let there = model.host.is_driven(slot).is_some();
            assert_eq!(there, model.filled.contains_key(&slot), "slot {slot}");
        }
    }
}

impl Model {
    fn step(&mut self, reader: &mut Reader<'_>) {
        match reader.u8() % 5 {
            0 => self.fill(reader.u8() % 34, reader.u8().is_multiple_of(2)),
            1 => self.take_away(reader.u8() % 34),
            2 => {
                // A driver comes or goes.
                if let Some((driven, _)) = self.filled.get(&(reader.u8() % 34)) {
                    driven.fetch_not(Ordering::Relaxed);
                }
            }
            3 => self.read(reader),
            _ => self.write(reader),
        }
    }

    fn fill(&mut self, slot: u8, driven: bool) {
        let driven = Arc::new(AtomicBool::new(driven));
        let filled = self.plug.fill(slot, Box::new(Device(driven.clone())));
        let is_free = (1..32).contains(&slot) && !self.filled.contains_key(&slot);
        assert_eq!(filled.is_ok(), is_free, "slot {slot}");
        if is_free {
            self.filled.insert(slot, (driven, false));
        }
    }

    fn take_away(&mut self, slot: u8) {
        let is_empty = self.plug.take_away(slot);
        let is_driven = self.filled.get(&slot).map(|(driven, _)| driven.load(Ordering::Relaxed));
        assert_eq!(is_empty, is_driven != Some(true), "slot {slot}");
        match is_driven {
            Some(true) => {
                self.filled.entry(slot).and_modify(|(_, leaving)| *leaving = true);
            }
            _ => {
                self.filled.remove(&slot);
            }
        }
    }

    fn read(&mut self, reader: &mut Reader<'_>) {
        let offset = place(reader);
        self.plug.read(offset, &mut [0; 8][..usize::from(reader.u8() % 9)]);
    }

    fn write(&mut self, reader: &mut Reader<'_>) {
        let (offset, length) = (place(reader), usize::from(reader.u8() % 9));
        let value = reader.u64();
        // Asked about before, whoever was told: what is let go by others than the guest is not its doing.
        let _ = self.let_go.read();
        self.plug.write(offset, &value.to_le_bytes()[..length]);
        let goes = |slot: &u8| (offset, length) == (LET_GO, 4) && value >> slot & 1 == 1;
        let before = self.filled.len();
        self.filled.retain(|slot, (_, leaving)| !(*leaving && goes(slot)));
        assert!(self.filled.len() == before || self.let_go.read().is_ok(), "nobody was told");
    }
}

/// Mostly one of the controller's ports.
fn place(reader: &mut Reader<'_>) -> u64 {
    match reader.u8() % 8 {
        0 => reader.u64(),
        1..4 => LET_GO,
        _ => u64::from(reader.u8()) % u64::from(PLUG_PORTS + 4),
    }
}
