//! Memory whose place was taken before it was known what would be there.
#![expect(unsafe_code, reason = "a file is mapped in the place of memory that was not touched")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use vm_memory::{GuestMemoryBackend as _, GuestMemoryRegion as _};

use super::GuestMemory;

/// Maps what lies in `file` from `offset` on where `memory` is, one region after the other. What is written stays here.
///
/// # Errors
/// The kernel's: the memory must not be used any more.
pub(super) fn fill(memory: &GuestMemory, (file, offset): (&File, u64)) -> io::Result<()> {
    let mut at = offset;
    for region in memory.iter() {
        let size = |bytes: u64| usize::try_from(bytes).expect("invariant: usize has 64 bits");
        let beyond = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE | libc::MAP_FIXED;
        let (length, offset) = (size(region.len()), libc::off_t::try_from(at).map_err(beyond)?);
        // SAFETY: it takes the place of the region's own mapping, whole, which `memory` goes on owning; what lay there is
        // nobody's, and whoever has an address in it finds the file.
        let mapped = unsafe {
            libc::mmap(region.as_ptr().cast(), length, protection, flags, file.as_raw_fd(), offset)
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        at += region.len();
    }
    Ok(())
}
