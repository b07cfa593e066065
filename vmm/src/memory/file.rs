//! Files read to where they lie in guest memory, without a copy on the way.
#![expect(unsafe_code, reason = "the kernel is given addresses in guest memory")]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

/// Fills `target` from `offset` of `file`, whose position is nobody's concern, and notes that it was written.
///
/// # Errors
/// The file's; `UnexpectedEof` beyond the end, with as much filled as there is.
pub fn fill<B: BitmapSlice>(
    file: BorrowedFd<'_>,
    target: &VolatileSlice<'_, B>,
    offset: u64,
) -> io::Result<()> {
    let mut done = 0;
    while done < target.len() {
        let at = offset.checked_add(done as u64).and_then(|at| libc::off_t::try_from(at).ok());
        let at = at.ok_or(io::ErrorKind::UnexpectedEof)?;
        let rest = target.offset(done).map_err(io::Error::other)?;
        let guard = rest.ptr_guard_mut();
        // SAFETY: the slice is guest memory, mapped as long as it is borrowed and never reached by references; a file that is
        // none is an error.
        let count = unsafe { libc::pread(file.as_raw_fd(), guard.as_ptr().cast(), rest.len(), at) };
        match usize::try_from(count) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                rest.bitmap().mark_dirty(0, count);
                done += count;
            }
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd as _;

    use vm_memory::bitmap::Bitmap as _;
    use vm_memory::{Bytes as _, GuestAddress};

    use super::super::{allocate, whole_slice};
    use super::*;

    #[test]
    fn file_lies_in_memory_then_and_was_written() {
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), (0..9000).map(|at| (at % 251) as u8).collect::<Vec<_>>()).unwrap();
        let file = File::open(path.path()).unwrap();
        let memory = allocate(1).unwrap();
        let slice = whole_slice(&memory, GuestAddress(0x3ff0), 8000).unwrap();
        fill(file.as_fd(), &slice, 1000).unwrap();
        let mut read = vec![0; 8002];
        memory.read_slice(&mut read, GuestAddress(0x3fef)).unwrap();
        assert!(
            (read[0], read[8001]) == (0, 0) && (0..8000).all(|at| read[1 + at] == ((1000 + at) % 251) as u8)
        );
        let dirty: Vec<_> = (0..8).map(|page| slice.bitmap().dirty_at(page * 4096)).collect();
        assert_eq!(dirty, [true, true, true, false, false, false, false, false]);
        let end = fill(file.as_fd(), &slice, 1001).map_err(|error| error.kind());
        assert_eq!(end, Err(io::ErrorKind::UnexpectedEof));
        assert!(fill(file.as_fd(), &slice, u64::MAX).is_err());
        let unreadable = File::create(path.path()).unwrap();
        assert!(fill(unreadable.as_fd(), &slice, 0).is_err());
    }
}
