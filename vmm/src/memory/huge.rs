//! Asking for huge pages where the host has some.
#![expect(unsafe_code, reason = "a mapping is advised of by its address")]

use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{GuestMemoryRegion as _, GuestRegionMmap};

/// Has the host make `region` of huge pages as it is touched. A host that has no such pages does as before, and says so in
/// the log.
pub(super) fn advise(region: &GuestRegionMmap<AtomicBitmap>) {
    let bytes = usize::try_from(region.len()).expect("invariant: usize has 64 bits");
    // SAFETY: the range is the region's own mapping; what it holds stays as it is.
    if unsafe { libc::madvise(region.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) } != 0 {
        let error = std::io::Error::last_os_error();
        tracing::warn!(%error, "the host has no transparent huge pages");
    }
}
