//! What a guest says to be free, for whoever asks: a snapshot that leaves it out, or the host, which gets it back.

use std::io;
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use vm_memory::GuestAddress;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::Machine;
use crate::kvm;
use crate::lifecycle::Event;
use crate::memory::PAGE_BYTES;
use crate::memory::discard::discard;
use crate::memory::pages::PageSet;
use crate::rpc::VmState;

/// How long a guest may take to say what is free; what it has said until then is taken. Its devices wait meanwhile.
const HINTS_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a guest is not asked what is free.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It stands still, or has not started.
    #[error("only a guest that runs can say what of its memory is free")]
    NotRunning,
    /// Nobody to ask.
    #[error("the guest has no memory balloon whose driver gives hints of free pages")]
    NoHints,
    /// A snapshot with differences is what was written since the one before, whatever is free.
    #[error("a snapshot with differences leaves out nothing that is free")]
    Differences,
    /// What is noted is for somebody else.
    #[error(
        "what the guest writes is noted for a snapshot with differences; a full snapshot that does not track ends that"
    )]
    Tracked,
    /// An event descriptor.
    #[error("make an event descriptor")]
    Event(#[source] io::Error),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] kvm::Error),
}

/// What became of a guest's free memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GivenBack {
    /// What it said to be free.
    pub hinted_bytes: u64,
    /// What of that was given back to the host: what nobody wrote to meanwhile, and zeros.
    pub returned_bytes: u64,
    /// How long the guest stood still for it.
    pub paused: Duration,
}

impl Machine {
    /// Gives back to the host what the guest says to be free. Its writes are noted from before it is asked, so what it uses again
    /// at once stays.
    ///
    /// # Errors
    /// It cannot be asked; it goes on.
    pub fn give_back_free(&mut self) -> Result<GivenBack, Error> {
        self.check_hints()?;
        if self.origin.base.is_some() {
            return Err(Error::Tracked);
        }
        let wires = self.devices.wires();
        let (vm, guest) = (wires.vm.clone(), wires.guest.clone());
        vm.track_writes()?;
        let given = self.gather_hints().and_then(|mut pages| {
            let hinted = pages.count();
            // A guest that empties what it takes hold of has written zeros to it; whoever reads finds them without the page.
            pages.remove_unless_zero(&guest, &vm.take_dirty()?);
            let began = Instant::now();
            self.apply(Event::Pause).expect("invariant: a guest that runs can be paused");
            let given = vm.take_dirty().map(|written| {
                pages.remove(&written);
                let give = |(start, bytes): (GuestAddress, u64)| discard(&guest, start, bytes);
                pages.runs(&guest).into_iter().map(give).sum::<u64>()
            });
            self.apply(Event::Resume).expect("invariant: it was paused here");
            let (hinted_bytes, returned_bytes) = (hinted * PAGE_BYTES, given?);
            Ok(GivenBack { hinted_bytes, returned_bytes, paused: began.elapsed() })
        });
        self.end_hints();
        vm.stop_tracking()?;
        let given = given?;
        if let Some(mut balloon) = self.peripherals.balloon() {
            balloon.count_returned(given.returned_bytes);
        }
        Ok(given)
    }

    /// Whether the guest can be asked at all.
    pub(super) fn check_hints(&self) -> Result<(), Error> {
        match self.state {
            VmState::Running if self.peripherals.balloon().is_some() => Ok(()),
            VmState::Running => Err(Error::NoHints),
            _ => Err(Error::NotRunning),
        }
    }

    /// Asks the guest what is free, and waits until it has said it or its time is up. Whoever asks notes from before on what is
    /// written, and calls [`Self::end_hints`] at last.
    pub(super) fn gather_hints(&self) -> Result<PageSet, Error> {
        let mut balloon = self.peripherals.balloon().ok_or(Error::NoHints)?;
        let events = Epoll::new().map_err(Error::Event)?;
        let (event, wanted) = (balloon.hint_event().as_raw_fd(), EpollEvent::new(EventSet::IN, 0));
        events.ctl(ControlOperation::Add, event, wanted).map_err(Error::Event)?;
        if !balloon.ask_for_hints() {
            return Err(Error::NoHints);
        }
        drop(balloon);
        let until = Instant::now() + HINTS_TIMEOUT;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            // Locked for no longer than it takes: the guest may reach for its registers meanwhile.
            let mut balloon = self.peripherals.balloon().ok_or(Error::NoHints)?;
            if balloon.take_hints() || left.is_zero() {
                return Ok(balloon.stop_hints());
            }
            drop(balloon);
            let ms = i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX);
            // Whatever it says, it is looked again.
            let _ = events.wait(ms, &mut [EpollEvent::default()]);
        }
    }

    /// The guest may use again what it said to be free.
    pub(super) fn end_hints(&self) {
        if let Some(mut balloon) = self.peripherals.balloon() {
            balloon.end_hints();
        }
    }
}
