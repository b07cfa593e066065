//! Which pages of guest memory were written to: by the guest, which KVM's log knows, and by this process, which each
//! region's own bitmap knows.

use kvm_bindings::KVM_MEM_LOG_DIRTY_PAGES;
use vm_memory::{GuestMemoryBackend as _, GuestMemoryRegion as _};

use super::{Error, Vm, step};
use crate::memory;

/// A bit for each page of one region, the first page's lowest.
pub type DirtyPages = Vec<u64>;

impl Vm {
    /// From now on notes which pages are written to. Each page's first write costs the guest an exit that KVM handles.
    ///
    /// # Errors
    /// The kernel's.
    pub fn track_writes(&self) -> Result<(), Error> {
        self.set_slots(KVM_MEM_LOG_DIRTY_PAGES)?;
        self.layout.memory.iter().for_each(|region| memory::written(region).reset());
        Ok(())
    }

    /// The guest's writes are no longer noted, and cost nothing.
    ///
    /// # Errors
    /// The kernel's.
    pub fn stop_tracking(&self) -> Result<(), Error> {
        self.set_slots(0)
    }

    fn set_slots(&self, flags: u32) -> Result<(), Error> {
        for slot in self.layout.memory_slots(flags) {
            // SAFETY: the slot is the same as when the VM was made, for which the mapping is kept; only its flags change.
            unsafe { self.fd.set_user_memory_region(slot) }.map_err(step("note what the guest writes"))?;
        }
        Ok(())
    }

    /// The pages written to since [`Self::track_writes`] or the last call, for each region.
    ///
    /// # Errors
    /// The kernel's.
    pub fn take_dirty(&self) -> Result<Vec<DirtyPages>, Error> {
        let mut all = Vec::new();
        for (slot, region) in (0_u32..).zip(self.layout.memory.iter()) {
            let bytes = usize::try_from(region.len()).expect("invariant: usize has 64 bits");
            let mut pages =
                self.fd.get_dirty_log(slot, bytes).map_err(step("tell what the guest has written"))?;
            let ours = memory::written(region).get_and_reset();
            pages.resize(pages.len().max(ours.len()), 0);
            pages.iter_mut().zip(ours).for_each(|(pages, ours)| *pages |= ours);
            all.push(pages);
        }
        Ok(all)
    }
}
