//! Free page hints (VIRTIO 1.3 §5.5.6.6): the device asks which pages are free, under a number; the driver says that number,
//! then its free pages, which it keeps from its system meanwhile, then that it has no more. Until the device says that it is
//! done.
//!
//! A driver may let a page go and its system write to it before its hint is heard. So a hint alone is worth nothing here:
//! whoever asks notes from before on what is written ([`crate::kvm::Vm::track_writes`]), and takes no page for free
//! that was.
//!
//! Must never know: what the pages are wanted for.

use crate::memory::GuestMemory;
use crate::memory::pages::PageSet;
use crate::virtio::queue::Chain;
use crate::virtio::spec::balloon as spec;

/// How far the driver is.
#[derive(Debug)]
enum Stage {
    /// Nobody asks.
    Idle,
    /// Asked, and it has not said the number yet.
    Asked(PageSet),
    /// It gives hints.
    Hinting(PageSet),
    /// It has no more.
    Ended(PageSet),
}

/// The device's side of it.
#[derive(Debug)]
pub(super) struct Hints {
    /// What the driver reads.
    command: u32,
    /// The number of the last request, or where they begin.
    number: u32,
    stage: Stage,
}

impl Hints {
    /// Nobody has asked. Requests are numbered from behind `number` on: a driver that goes on with another device passes over
    /// a number that it has answered.
    pub(super) fn new(number: u32) -> Self {
        Self { command: spec::HINTS_STOP, number, stage: Stage::Idle }
    }

    /// What the driver reads of it.
    pub(super) fn command(&self) -> u32 {
        self.command
    }

    /// Asks for the free pages of `memory`; those that were told of for a request before are forgotten.
    pub(super) fn ask(&mut self, memory: &GuestMemory) {
        self.number = self.number.wrapping_add(1).max(spec::HINTS_FIRST);
        self.command = self.number;
        self.stage = Stage::Asked(PageSet::none_of(memory));
    }

    /// Whether the driver has no more to say, or is not asked.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.stage, Stage::Idle | Stage::Ended(_))
    }

    /// What the driver said to be free, as far as it got. It says no more, and keeps that from its system still.
    pub(super) fn stop(&mut self) -> PageSet {
        self.command = spec::HINTS_STOP;
        match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Idle => PageSet::default(),
            Stage::Asked(pages) | Stage::Hinting(pages) | Stage::Ended(pages) => pages,
        }
    }

    /// The driver begins anew: it holds nothing.
    pub(super) fn forget(&mut self) {
        self.command = spec::HINTS_STOP;
        self.stage = Stage::Idle;
    }

    /// What the driver told of, to whomever, its system may use again.
    pub(super) fn done(&mut self) {
        self.command = spec::HINTS_DONE;
        self.stage = Stage::Idle;
    }

    /// Takes one buffer: a number, or pages.
    pub(super) fn take(&mut self, memory: &GuestMemory, chain: &Chain) {
        let mut number = [0; 4];
        if chain.read_at(memory, 0, &mut number) == number.len() {
            let number = u32::from_le_bytes(number);
            self.stage = match std::mem::replace(&mut self.stage, Stage::Idle) {
                Stage::Asked(pages) if number == self.command => Stage::Hinting(pages),
                // It has been asked anew meanwhile, or says what nobody asked for.
                Stage::Hinting(pages) if number != self.command => Stage::Ended(pages),
                before => before,
            };
        }
        if let Stage::Hinting(pages) = &mut self.stage {
            for segment in chain.writable() {
                pages.add(memory, segment.address, segment.length.into());
            }
        }
    }
}
