//! A file as memory of a guest's: what the guest reads and writes there is the file, without a copy in between.
#![expect(unsafe_code, reason = "a file is mapped")]

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;

use vm_memory::{Address as _, GuestAddress};

/// Mappings are of whole multiples of this, in bytes, as guests with pages of this size want them; behind the file's end
/// is memory that is nobody's.
pub const ALIGNMENT_BYTES: u64 = 2 << 20;
/// The largest file in bytes: as much as a guest can have memory.
pub const BYTES_MAX: u64 = 1 << 40;

/// One file, mapped.
pub struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
    file: File,
    read_only: bool,
}

// SAFETY: it is an address and a length; what lies there is only reached by guests, through KVM.
unsafe impl Send for Mapping {}
// SAFETY: as above; the file may be flushed by any thread.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the whole of `file`, which must not become shorter: who reads what is gone ends.
    ///
    /// # Errors
    /// It is empty or too large, or the host refuses.
    pub fn new(file: File, read_only: bool) -> io::Result<Self> {
        // Not by `metadata`, which asks by system calls that a confined process has not.
        let length = (&file).seek(SeekFrom::End(0))?;
        if length == 0 || length > BYTES_MAX {
            let why = "memory is made of files from 1 byte to 1 TiB";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let size = |bytes: u64| usize::try_from(bytes).expect("invariant: usize has 64 bits");
        let (bytes, of_file) = (size(length.next_multiple_of(ALIGNMENT_BYTES)), size(length));
        let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let both = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, both, anonymous, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).expect("invariant: mmap never maps page zero unasked");
        let mapping = Self { start, bytes, file, read_only };
        let access = if read_only { libc::PROT_READ } else { both };
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        // SAFETY: it takes the place of the beginning of the mapping above, which is ours alone; the descriptor is open.
        let mapped = unsafe {
            libc::mmap(mapping.start.as_ptr().cast(), of_file, access, flags, mapping.file.as_raw_fd(), 0)
        };
        if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(mapping) }
    }

    /// Where it lies in this process.
    #[must_use]
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Its length, a multiple of [`ALIGNMENT_BYTES`].
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    /// Whether it cannot be written to.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Makes what was written durable.
    ///
    /// # Errors
    /// The file's.
    pub fn flush(&self) -> io::Result<()> {
        if self.read_only { Ok(()) } else { self.file.sync_data() }
    }
}

/// A mapping, and where a guest has it.
#[derive(Clone)]
pub struct Placed {
    /// What lies there.
    pub mapping: Arc<Mapping>,
    /// Where it begins.
    pub start: GuestAddress,
}

/// Places `mappings` from `start` on, a multiple of [`ALIGNMENT_BYTES`], one behind the other.
#[must_use]
pub fn place(mappings: &[Arc<Mapping>], mut start: GuestAddress) -> Vec<Placed> {
    let put = |mapping: &Arc<Mapping>| {
        let placed = Placed { mapping: mapping.clone(), start };
        start = start.unchecked_add(mapping.bytes());
        placed
    };
    mappings.iter().map(put).collect()
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this address and length, and nothing borrows from it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    fn file(bytes: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        file
    }

    #[test]
    fn what_is_written_is_in_the_file_and_behind_its_end_is_memory() {
        let file = file(5000);
        let mapping = Mapping::new(file.try_clone().unwrap(), false).unwrap();
        assert_eq!(mapping.bytes(), ALIGNMENT_BYTES);
        for offset in [0, 4999, 1 << 20] {
            // SAFETY: within the mapping, which is of bytes.
            unsafe { mapping.start().add(offset).write_volatile(7) };
        }
        let mut bytes = [0; 5000];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!((bytes[0], bytes[1], bytes[4999]), (7, 0, 7));
        mapping.flush().unwrap();
        assert_eq!(file.metadata().unwrap().len(), 5000);
    }

    #[test]
    fn empty_files_and_files_that_cannot_be_written_are_refused() {
        assert!(Mapping::new(file(0), true).is_err());
        assert!(Mapping::new(file(BYTES_MAX + 1), true).is_err());
        let path = tempfile::NamedTempFile::new().unwrap();
        path.as_file().set_len(4096).unwrap();
        let opened = || File::open(path.path()).unwrap();
        assert!(Mapping::new(opened(), false).is_err());
        assert!(Mapping::new(opened(), true).unwrap().is_read_only());
    }
}
