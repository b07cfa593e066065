//! A host's KVM that is opened beside something else.

use std::panic::resume_unwind;
use std::thread::{Builder, JoinHandle};

use super::{Error, Kvm};
use crate::memory::GuestMemory;
use crate::{beside, sandbox};

/// A [`Kvm`] on its way, with what takes longest of making a VM and depends on no guest: the kernel does that on one processor
/// while the process that wants it finds out on another what to run.
#[derive(Debug)]
pub struct Opening(Option<JoinHandle<Result<Kvm, Error>>>);

impl Opening {
    /// Begins, on a thread that is over when [`Self::finish`] returns; on none where the host has none to give.
    #[must_use]
    pub fn begin() -> Self {
        Self::begin_at(None)
    }

    /// As [`Self::begin`], for a guest whose memory will be at `place`, where nothing was touched yet.
    #[must_use]
    pub fn begin_at(place: Option<GuestMemory>) -> Self {
        sandbox::use_one_heap();
        let thread = beside::begin(|begun| {
            Builder::new().name("kvm".to_owned()).spawn(move || {
                begun.say();
                open(place)
            })
        });
        Self(thread.ok())
    }

    /// Leaves all of it to [`Self::finish`].
    #[must_use]
    pub fn later() -> Self {
        Self(None)
    }

    /// Waits for it.
    ///
    /// # Errors
    /// The node is missing, not ours to open, or of another version.
    pub fn finish(mut self) -> Result<Kvm, Error> {
        match self.0.take() {
            Some(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
            None => open(None),
        }
    }
}

/// One that nobody wants any more is waited for as well: what it opens is closed then, and not while others open files.
impl Drop for Opening {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            // What came of it is nobody's matter.
            let _ = thread.join();
        }
    }
}

fn open(place: Option<GuestMemory>) -> Result<Kvm, Error> {
    let kvm = Kvm::open()?;
    kvm.prepare(place);
    Ok(kvm)
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestMemoryBackend as _;

    use super::super::Layout;
    use super::*;
    use crate::memory::{self, registers::RegisterPages};
    use crate::mutex::lock;
    use crate::testing::skipped;

    #[test]
    fn what_takes_long_is_done_when_it_is_finished() {
        match (Opening::begin().finish(), Opening::later().finish()) {
            (Ok(kvm), Ok(later)) => {
                for kvm in [kvm, later] {
                    assert!(lock(&kvm.spare).is_some() && kvm.supported.get().is_some());
                }
            }
            (Err(error), Err(later)) => {
                assert_eq!(error.to_string(), later.to_string());
                skipped(&error.to_string());
            }
            (one, other) => panic!("{:?} and {:?}", one.err(), other.err()),
        }
        // What nobody wants is over when it is dropped.
        drop(Opening::begin());
    }

    #[test]
    fn place_of_a_guest_s_memory_is_there_for_as_much_until_a_vm_is_made() {
        let place = memory::allocate(32).unwrap();
        let kvm = match Opening::begin_at(Some(place.clone())).finish() {
            Ok(kvm) => kvm,
            Err(error) => return skipped(&error.to_string()),
        };
        let start = |memory: &GuestMemory| memory.iter().next().unwrap().as_ptr();
        assert_eq!(kvm.place(32).as_ref().map(start), Some(start(&place)));
        assert!(kvm.place(33).is_none());
        // Whether the guest has that memory, other memory, or registers beside it.
        let other = memory::allocate(64).unwrap();
        for memory in [place, other] {
            let kvm = Opening::begin_at(Some(memory::allocate(32).unwrap())).finish().unwrap();
            let memory = kvm.place(32).filter(|_| memory::is_of(&memory, 32)).unwrap_or(memory);
            let registers = Some(RegisterPages::new(2));
            let layout = Layout { registers, tracked: true, ..Layout::of(memory) };
            let vm = kvm.create_vm(layout, Default::default()).unwrap();
            assert!(kvm.place(32).is_none(), "it is taken");
            assert!(vm.take_dirty().unwrap()[0].iter().all(|word| *word == 0));
            let both: Result<Vec<_>, _> = (0..2).map(|id| vm.create_vcpu(id, 2)).collect();
            assert!(both.is_ok() && vm.create_vcpu(0, 2).is_err());
        }
    }
}
