//! A disk whose bytes are a file's bytes.
//!
//! A file that was opened for direct access (`O_DIRECT`) takes whole blocks into memory that begins at one. What is not so is
//! read and written here by way of a piece of such memory; whoever knows that his is so does better with
//! [`Disk::locate`].
//!
//! Must never know: what is in them, where the file lies.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};

use rustix::fs::{FallocateFlags, OFlags, SeekFrom};
use rustix::io::Errno;

use super::{Disk, Extent, OpenFile, Work, check_within, length_of};

/// What direct access is done in: as much as any device of today wants.
const BLOCK_BYTES: u64 = 4096;
/// How much is read or written directly at once.
const PIECE_BYTES: u64 = 256 << 10;
/// How much is written to the page cache by one call, and never across a multiple of it. File systems with large folios (ext4
/// from Linux 6.16 on) cache a file in pieces of what was first written at once, and go through all blocks of one whenever
/// anything is written into it: measured on ext4, 4 KiB at a random place take 25 µs where a file was written by 1 MiB, 4 µs where
/// it was by 64 KiB, and 2 µs by 4 KiB; and the file's first writing goes at 3.3, 2.3 and 1.0 GiB/s.
pub const CACHED_WRITE_BYTES_MAX: u64 = 64 << 10;

/// How much one call writes to the page cache from `offset` on, at the most: one byte at the least.
#[must_use]
pub fn cached_write_room(offset: u64) -> usize {
    // At most the maximum, which fits.
    (CACHED_WRITE_BYTES_MAX - offset % CACHED_WRITE_BYTES_MAX) as usize
}

/// A raw disk over an open file.
#[derive(Debug)]
pub struct RawFile {
    file: File,
    size_bytes: u64,
    read_only: bool,
    direct: bool,
}

impl RawFile {
    /// The first `size_bytes` of `file`. Where the file is shorter, the disk reads as zeros, and writes make the file
    /// longer, though never longer than the disk.
    #[must_use]
    pub fn new(file: File, size_bytes: u64) -> Self {
        Self::of(file, size_bytes, false)
    }

    /// The same, refusing writes with `ReadOnlyFilesystem` and ignoring discards.
    #[must_use]
    pub fn new_read_only(file: File, size_bytes: u64) -> Self {
        Self::of(file, size_bytes, true)
    }

    /// The whole of `file`, a regular file or a block device.
    ///
    /// # Errors
    /// Where the size cannot be found out.
    pub fn whole(file: File, read_only: bool) -> io::Result<Self> {
        let size_bytes = file_size_bytes(&file)?;
        Ok(Self::of(file, size_bytes, read_only))
    }

    fn of(file: File, size_bytes: u64, read_only: bool) -> Self {
        // A file that does not tell its flags has none.
        let direct = rustix::fs::fcntl_getfl(&file).is_ok_and(|flags| flags.contains(OFlags::DIRECT));
        Self { file, size_bytes, read_only, direct }
    }

    fn read_direct(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut memory = Aligned::for_bytes(length_of(buffer));
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let start = at - at % BLOCK_BYTES;
            let wanted = (offset + length_of(buffer)).next_multiple_of(BLOCK_BYTES) - start;
            let read = match self.file.read_at(memory.first(wanted), start) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            // Less than a block, so it fits.
            let skipped = (at - start) as usize;
            if read <= skipped {
                buffer[done..].fill(0);
                return Ok(());
            }
            let count = (read - skipped).min(buffer.len() - done);
            buffer[done..done + count].copy_from_slice(&memory.first(wanted)[skipped..skipped + count]);
            done += count;
        }
        Ok(())
    }

    /// Whoever calls this has seen to it that nobody writes to the blocks at either end meanwhile.
    fn write_direct(&self, buffer: &[u8], offset: u64) -> io::Result<()> {
        let end = offset + length_of(buffer);
        let mut memory = Aligned::for_bytes(length_of(buffer));
        let mut at = offset;
        while at < end {
            let start = at - at % BLOCK_BYTES;
            let until = end.min(start + memory.room());
            // The disk's end may be within a block.
            let stop = until.next_multiple_of(BLOCK_BYTES).min(self.size_bytes.max(until));
            let piece = memory.first(stop - start);
            if at != start || until != stop {
                self.read_direct(piece, start)?;
            }
            let (from, to) = ((at - offset) as usize, (until - offset) as usize);
            piece[(at - start) as usize..(until - start) as usize].copy_from_slice(&buffer[from..to]);
            self.file.write_all_at(piece, start)?;
            at = until;
        }
        Ok(())
    }

    fn check_writable(&self) -> io::Result<()> {
        if self.read_only { Err(io::ErrorKind::ReadOnlyFilesystem.into()) } else { Ok(()) }
    }
}

impl Disk for RawFile {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn file(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        check_within(self.size_bytes, offset, length_of(buffer))?;
        if self.direct {
            return self.read_direct(buffer, offset);
        }
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
        if self.direct { self.write_direct(buffer, offset) } else { write_cached(&self.file, buffer, offset) }
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

    fn write_zeroes(&self, offset: u64, length: u64, free: bool) -> io::Result<()> {
        check_within(self.size_bytes, offset, length)?;
        self.check_writable()?;
        if length == 0 {
            return Ok(());
        }
        let how = if free { FallocateFlags::PUNCH_HOLE } else { FallocateFlags::ZERO_RANGE };
        match rustix::fs::fallocate(&self.file, how | FallocateFlags::KEEP_SIZE, offset, length) {
            Ok(()) => Ok(()),
            // One that can do neither, or only in larger units than these.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV | Errno::INVAL) => {
                super::write_zeros(self, offset, length)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn next_data(&self, offset: u64) -> io::Result<u64> {
        let offset = offset.min(self.size_bytes);
        match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(found) => Ok(found.min(self.size_bytes)),
            // Holes are all that is left, or what is behind the file's end.
            Err(Errno::NXIO) => Ok(self.size_bytes),
            // A file system that does not know where its holes are.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(offset),
            Err(error) => Err(error.into()),
        }
    }

    fn locate(&self, work: Work, extents: &mut Vec<Extent>) -> io::Result<bool> {
        let (offset, length) = match work {
            Work::Read { offset, length } => (offset, length),
            Work::Write { offset, length } => {
                self.check_writable()?;
                (offset, length)
            }
            // There is nothing to do.
            Work::Flush | Work::Discard { .. } if self.read_only => return Ok(true),
            Work::Flush => (0, 0),
            Work::Discard { length: 0, .. } => return Ok(true),
            Work::Discard { offset, length } => (offset, length),
        };
        check_within(self.size_bytes, offset, length)?;
        let file = OpenFile { fd: self.file.as_raw_fd(), direct: self.direct };
        extents.push(Extent { file: Some(file), offset, length });
        Ok(true)
    }
}

/// Writes to a file's page cache, in pieces that let it be rewritten at random places; see [`CACHED_WRITE_BYTES_MAX`].
pub(crate) fn write_cached(file: &File, buffer: &[u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        let at = offset + done as u64;
        let until = buffer.len().min(done + cached_write_room(at));
        file.write_all_at(&buffer[done..until], at)?;
        done = until;
    }
    Ok(())
}

/// Memory that begins at a block's boundary.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
}

impl Aligned {
    /// Enough for `length` bytes at any offset, or for a piece of them.
    fn for_bytes(length: u64) -> Self {
        let room = (length.min(PIECE_BYTES) + 2 * BLOCK_BYTES).next_multiple_of(BLOCK_BYTES);
        // A piece and a few blocks fit everywhere.
        let bytes = vec![0; (room + BLOCK_BYTES) as usize];
        let start = bytes.as_ptr().align_offset(BLOCK_BYTES as usize);
        Self { bytes, start }
    }

    /// Bytes that fit, whole blocks.
    fn room(&self) -> u64 {
        let room = (self.bytes.len() - self.start) as u64;
        room - room % BLOCK_BYTES
    }

    /// The first `wanted` bytes, or as many as there are.
    fn first(&mut self, wanted: u64) -> &mut [u8] {
        let length = self.room().min(wanted);
        &mut self.bytes[self.start..self.start + length as usize]
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
    fn data_is_found_behind_holes_and_there_is_none_behind_the_last() {
        let disk = raw(1 << 30, b"");
        assert_eq!(disk.next_data(0).unwrap(), 1 << 30, "an empty file");
        disk.write_at(&[1; 4096], 1 << 29).unwrap();
        for (offset, found) in [(0, 1 << 29), ((1 << 29) + 7, (1 << 29) + 7), ((1 << 29) + 4096, 1 << 30)] {
            assert_eq!(disk.next_data(offset).unwrap(), found);
        }
        assert_eq!(disk.next_data(u64::MAX).unwrap(), 1 << 30);
    }

    #[test]
    fn what_is_written_in_pieces_is_all_there() {
        let most = CACHED_WRITE_BYTES_MAX as usize;
        let content: Vec<u8> = (0..3 * most).map(|at| (at % 251) as u8).collect();
        for (offset, length) in
            [(0, 3 * most), (1, most), (most - 1, 2), (most, most), (5, 2 * most + 7), (9, 0)]
        {
            let disk = raw(4 << 20, b"");
            disk.write_at(&content[..length], offset as u64).unwrap();
            assert_eq!(
                file_size_bytes(&disk.file).unwrap(),
                if length > 0 { (offset + length) as u64 } else { 0 }
            );
            let mut found = vec![1; length];
            disk.read_at(&mut found, offset as u64).unwrap();
            assert!(found == content[..length], "{length} bytes at {offset}");
        }
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
    fn zeroed_bytes_are_zeros_with_and_without_their_room_and_their_neighbours_stay() {
        for free in [false, true] {
            let disk = raw(16384, &[7; 16384]);
            disk.write_zeroes(4000, 5000, free).unwrap();
            let mut buffer = [1; 16384];
            disk.read_at(&mut buffer, 0).unwrap();
            assert!(buffer[4000..9000].iter().all(|byte| *byte == 0));
            assert!(buffer[..4000].iter().chain(&buffer[9000..]).all(|byte| *byte == 7));
            assert!(disk.write_zeroes(16384, 1, free).is_err());
        }
    }

    #[test]
    fn work_is_located_in_the_file_and_nothing_of_a_read_only_one_is_written() {
        let disk = raw(8192, b"");
        let mut extents = Vec::new();
        assert!(disk.locate(Work::Write { offset: 512, length: 1024 }, &mut extents).unwrap());
        let file = Some(OpenFile { fd: disk.file.as_raw_fd(), direct: false });
        assert_eq!(extents, [Extent { file, offset: 512, length: 1024 }]);
        assert!(disk.locate(Work::Read { offset: 8000, length: 512 }, &mut extents).is_err());
        let disk = RawFile::new_read_only(tempfile::tempfile().unwrap(), 8192);
        extents.clear();
        assert!(disk.locate(Work::Write { offset: 0, length: 512 }, &mut extents).is_err());
        assert!(disk.locate(Work::Flush, &mut extents).unwrap());
        assert!(disk.locate(Work::Discard { offset: 0, length: 512 }, &mut extents).unwrap());
        assert!(extents.is_empty());
    }

    #[test]
    fn directly_opened_file_takes_any_offset_and_keeps_its_neighbours() {
        let path = tempfile::NamedTempFile::new().unwrap();
        path.as_file().set_len(1 << 20).unwrap();
        let flags = OFlags::RDWR | OFlags::DIRECT;
        let Ok(opened) = rustix::fs::open(path.path(), flags, rustix::fs::Mode::empty()) else {
            println!("skipped: this file system has no direct access");
            return;
        };
        let disk = RawFile::whole(opened.into(), false).unwrap();
        assert!(disk.direct);
        let mut expected = vec![0; 1 << 20];
        for (offset, length, byte) in [
            (0_usize, 4096_usize, 1_u8),
            (5000, 10, 2),
            (4096 * 3 - 1, 2, 3),
            (100, 600_000, 4),
            ((1 << 20) - 512, 512, 5),
        ] {
            disk.write_at(&vec![byte; length], offset as u64).unwrap();
            expected[offset..offset + length].fill(byte);
        }
        let mut content = vec![9; 1 << 20];
        disk.read_at(&mut content, 0).unwrap();
        assert!(content == expected);
        let mut part = [9; 700];
        disk.read_at(&mut part, 599_900).unwrap();
        assert_eq!(part[..], expected[599_900..600_600]);
        assert_eq!(std::fs::metadata(path.path()).unwrap().len(), 1 << 20);
        // Behind the file's end.
        path.as_file().set_len(4096).unwrap();
        disk.read_at(&mut part, 4000).unwrap();
        assert_eq!((part[95], part[96]), (expected[4095], 0));
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
