//! A disk whose bytes are a file's bytes.
//!
//! Must never know: what is in them, where the file lies.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::{Disk, check_within, length_of};

/// A raw disk over an open file.
#[derive(Debug)]
pub struct RawFile {
    file: File,
    size_bytes: u64,
    read_only: bool,
}

impl RawFile {
    /// The first `size_bytes` of `file`. Where the file is shorter, the disk reads as zeros, and writes make the file
    /// longer, though never longer than the disk.
    #[must_use]
    pub fn new(file: File, size_bytes: u64) -> Self {
        Self { file, size_bytes, read_only: false }
    }

    /// The same, refusing writes with `ReadOnlyFilesystem` and ignoring discards.
    #[must_use]
    pub fn new_read_only(file: File, size_bytes: u64) -> Self {
        Self { file, size_bytes, read_only: true }
    }

    /// The whole of `file`, a regular file or a block device.
    ///
    /// # Errors
    /// Where the size cannot be found out.
    pub fn whole(file: File, read_only: bool) -> io::Result<Self> {
        let size_bytes = file_size_bytes(&file)?;
        Ok(Self { file, size_bytes, read_only })
    }

    fn check_writable(&self) -> io::Result<()> {
        if self.read_only { Err(io::ErrorKind::ReadOnlyFilesystem.into()) } else { Ok(()) }
    }
}

impl Disk for RawFile {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        check_within(self.size_bytes, offset, length_of(buffer))?;
        let mut done = 0;
        while done < buffer.len() {
            match self.file.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => {
                    buffer[done..].fill(0);
                    return Ok(());
                }
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write_at(&self, buffer: &[u8], offset: u64) -> io::Result<()> {
        check_within(self.size_bytes, offset, length_of(buffer))?;
        self.check_writable()?;
        self.file.write_all_at(buffer, offset)
    }

    fn flush(&self) -> io::Result<()> {
        if self.read_only { Ok(()) } else { self.file.sync_data() }
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        check_within(self.size_bytes, offset, length)?;
        if self.read_only || length == 0 {
            return Ok(());
        }
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, hole, offset, length) {
            // A filesystem or device that has no holes keeps the bytes, which the contract allows.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// The size of a regular file or a block device. Its position moves.
pub(crate) fn file_size_bytes(file: &File) -> io::Result<u64> {
    let mut file = file;
    io::Seek::seek(&mut file, io::SeekFrom::End(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(size_bytes: u64, content: &[u8]) -> RawFile {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(content, 0).unwrap();
        RawFile::new(file, size_bytes)
    }

    #[test]
    fn bytes_beyond_the_file_read_as_zeros_until_written() {
        let disk = raw(8192, b"head");
        let mut buffer = [0xff; 8];
        disk.read_at(&mut buffer, 0).unwrap();
        assert_eq!(&buffer, b"head\0\0\0\0");
        disk.read_at(&mut buffer, 8184).unwrap();
        assert_eq!(buffer, [0; 8]);
        disk.write_at(b"the tail", 8184).unwrap();
        disk.read_at(&mut buffer, 8184).unwrap();
        assert_eq!(&buffer, b"the tail");
        disk.flush().unwrap();
    }

    #[test]
    fn nothing_beyond_the_end_is_reached() {
        let disk = raw(4096, b"");
        let mut buffer = [0; 2];
        for offset in [4095, 4096, u64::MAX - 1, u64::MAX] {
            assert_eq!(disk.read_at(&mut buffer, offset).unwrap_err().kind(), io::ErrorKind::InvalidInput);
            assert_eq!(disk.write_at(&buffer, offset).unwrap_err().kind(), io::ErrorKind::InvalidInput);
            assert_eq!(disk.discard(offset, 2).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
        assert_eq!(disk.file.metadata().unwrap().len(), 0);
        disk.read_at(&mut [], 4096).unwrap();
    }

    #[test]
    fn read_only_disk_refuses_writes() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let disk = RawFile::whole(file, true).unwrap();
        assert_eq!(disk.size_bytes(), 4096);
        assert_eq!(disk.write_at(b"x", 0).unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
        disk.discard(0, 4096).unwrap();
        disk.flush().unwrap();
    }

    #[test]
    fn discarded_bytes_are_zeros_or_as_before_and_their_neighbours_stay() {
        let disk = raw(16384, &[7; 16384]);
        disk.discard(4096, 8192).unwrap();
        let mut buffer = [0; 16384];
        disk.read_at(&mut buffer, 0).unwrap();
        assert!(buffer[..4096].iter().chain(&buffer[12288..]).all(|byte| *byte == 7));
        let inside = buffer[4096];
        assert!(inside == 0 || inside == 7);
        assert!(buffer[4096..12288].iter().all(|byte| *byte == inside));
    }
}
