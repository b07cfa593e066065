//! Opening what the guest sees as disks: from descriptors to [`Disk`].
//!
//! Must never know: paths, queues.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};

use rustix::fs::{FallocateFlags, fallocate};
use storage::format::Disk;

/// A disk whose bytes are a file's or a block device's, one to one.
pub struct RawDisk {
    file: File,
    size_bytes: u64,
    is_device: bool,
}

impl RawDisk {
    /// Serves `file` as it is. Its size is taken once.
    ///
    /// # Errors
    /// The file's; `InvalidInput` if it is neither a regular file nor a block device.
    pub fn new(mut file: File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let is_device = metadata.file_type().is_block_device();
        if !is_device && !metadata.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "neither a regular file nor a block device",
            ));
        }
        let size_bytes = if is_device { file.seek(SeekFrom::End(0))? } else { metadata.len() };
        Ok(Self { file, size_bytes, is_device })
    }

    fn check(&self, offset: u64, length: u64) -> io::Result<()> {
        match offset.checked_add(length) {
            Some(end) if end <= self.size_bytes => Ok(()),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

impl Disk for RawDisk {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.check(offset, buffer.len() as u64)?;
        self.file.read_exact_at(buffer, offset)
    }

    fn write_at(&self, buffer: &[u8], offset: u64) -> io::Result<()> {
        self.check(offset, buffer.len() as u64)?;
        self.file.write_all_at(buffer, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.check(offset, length)?;
        if length == 0 || self.is_device {
            return Ok(());
        }
        match fallocate(&self.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, length) {
            // A file system without holes keeps the bytes, which the contract allows.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> RawDisk {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        RawDisk::new(file).unwrap()
    }

    #[test]
    fn what_is_written_is_read_and_discarded_bytes_read_as_zeros_or_as_before() {
        let disk = disk();
        disk.write_at(b"hello", 4096).unwrap();
        let mut text = [0; 5];
        disk.read_at(&mut text, 4096).unwrap();
        assert_eq!(&text, b"hello");
        disk.discard(4096, 4096).unwrap();
        disk.flush().unwrap();
        disk.read_at(&mut text, 4096).unwrap();
        assert!(&text == b"hello" || text == [0; 5]);
        assert_eq!(disk.size_bytes(), 8192);
    }

    #[test]
    fn access_beyond_the_end_is_refused_and_does_not_grow_the_file() {
        let disk = disk();
        for offset in [8192, 8191, u64::MAX] {
            assert_eq!(disk.write_at(b"xy", offset).unwrap_err().kind(), io::ErrorKind::InvalidInput);
            assert_eq!(disk.read_at(&mut [0; 2], offset).unwrap_err().kind(), io::ErrorKind::InvalidInput);
            assert_eq!(disk.discard(offset, 2).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
        assert_eq!(disk.file.metadata().unwrap().len(), 8192);
    }

    #[test]
    fn a_pipe_is_not_a_disk() {
        let (reader, _writer) = io::pipe().unwrap();
        let error = RawDisk::new(File::from(std::os::fd::OwnedFd::from(reader))).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
