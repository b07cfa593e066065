//! Memory of a packed snapshot, unpacked as it is asked for: by a thread that knows who waits for a page
//! (`crate::memory::userfault`) and gives them the block that it is in.
//!
//! What a guest asks for first, after it went on, is nearly the same each time: its **working set**. A file can keep it.
//! One that has it already says what is unpacked before anybody asks; into another it is written when a guest has run for
//! a second. All numbers little-endian:
//!
//! ```text
//! 0      magic        8 bytes  "WISPWSET"
//! +8     version      u32      1
//! +12    count        u32      at most as many as memory has blocks
//! +16    snapshot    16 bytes  whose memory it is of
//! +32    blocks       u32      count of them, in the order in which they were asked for: 64 KiB of memory each, by number
//!        checksum     u32      CRC-32 of all before
//! ```
//!
//! A working set that is damaged, or of another snapshot, is none, and is written anew; a file that has something else in it is
//! refused.

use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::contents::Contents;
use super::header::{Header, SnapshotId};
use super::packed::{BLOCK_BYTES, Block, Packer};
use super::{Error, PAGE_BYTES, file};
use crate::ending::EndingSignal;
use crate::memory::GuestMemory;
use crate::memory::userfault::{Filled, Userfault};
use crate::rpc::ExitReason;

/// How long it is noted what a guest asks for.
const NOTED_FOR: Duration = Duration::from_secs(1);
/// The first bytes of a working set.
const MAGIC: [u8; 8] = *b"WISPWSET";
/// Its version.
const WORKING_SET_VERSION: u32 = 1;
/// Bytes before its blocks.
const HEAD_BYTES: usize = 32;
/// A block's bytes as an address counts.
const BLOCK: u64 = BLOCK_BYTES as u64;

/// How packed memory is had as it is asked for.
pub struct Lazily {
    /// What says who waits for a page.
    pub userfault: Userfault,
    /// Keeps the working set; opened for reading and writing.
    pub working_set: Option<File>,
    /// Learns if a block cannot be had, without which the guest cannot go on.
    pub ending: EndingSignal,
}

impl Lazily {
    pub(super) fn has_working_set(&self) -> bool {
        self.working_set.is_some()
    }
}

/// The thread; ended when dropped. Memory that was not asked for is zeros from then on.
pub struct Pager {
    quit: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Pager {
    /// Begins to fill `guest`, which nobody has touched, with what the packed snapshot in `from` has.
    pub(super) fn start(
        lazily: Lazily,
        from: &Arc<File>,
        header: &Header,
        guest: &GuestMemory,
    ) -> Result<Self, Error> {
        let Lazily { userfault, working_set, ending } = lazily;
        let blocks = Contents::read(from, header)?.into_blocks().unwrap_or_default();
        if let Some(set) = &working_set {
            check_working_set(set)?;
        }
        let ranges = userfault.watch(guest).map_err(file("watch the memory of"))?;
        let known = working_set.as_ref().and_then(|set| read_working_set(set, header.id, blocks.len()));
        let noted = working_set.filter(|_| known.is_none()).map(|to| Noted {
            to,
            of: header.id,
            blocks: Vec::new(),
            until: Instant::now() + NOTED_FOR,
        });
        let quit = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let quit = Arc::new(quit.map_err(|errno| file("unpack")(errno.into()))?);
        let work = Work {
            userfault,
            quit: quit.clone(),
            from: from.clone(),
            memory_at: header.memory_at(),
            filled: vec![false; blocks.len()],
            blocks,
            ranges,
            packer: Packer::default(),
            buffer: vec![0; BLOCK_BYTES],
            known: known.unwrap_or_default().into_iter(),
            noted,
            ending,
        };
        let thread = std::thread::Builder::new().name("pager".to_owned()).spawn(move || work.run());
        Ok(Self { quit, thread: Some(thread.map_err(file("unpack"))?) })
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        if let Err(error) = rustix::io::write(&*self.quit, &1_u64.to_ne_bytes()) {
            tracing::debug!(%error, "the pager was told more often than anyone can count");
        }
        if let Some(thread) = self.thread.take() {
            // It has said why, if it panicked.
            let _ = thread.join();
        }
    }
}

/// What is being noted.
struct Noted {
    to: File,
    of: SnapshotId,
    blocks: Vec<u32>,
    until: Instant,
}

/// What the thread has.
struct Work {
    userfault: Userfault,
    quit: Arc<OwnedFd>,
    from: Arc<File>,
    memory_at: u64,
    blocks: Vec<Block>,
    /// Of each block whether it was put into memory. Pages of it may have been given back since.
    filled: Vec<bool>,
    ranges: Vec<Filled>,
    packer: Packer,
    buffer: Vec<u8>,
    known: std::vec::IntoIter<u32>,
    noted: Option<Noted>,
    ending: EndingSignal,
}

impl Work {
    /// Whoever waits comes first; then what is known to be asked for soon.
    fn run(mut self) {
        let ended = loop {
            match self.userfault.next() {
                Ok(Some(address)) => match self.serve(address) {
                    Ok(()) => continue,
                    Err(error) => break Err(error),
                },
                Ok(None) => {}
                Err(error) => break Err(file("learn what is asked for of")(error)),
            }
            if let Some(block) = self.known.next() {
                match self.fill(usize::try_from(block).unwrap_or(usize::MAX)) {
                    Ok(()) => continue,
                    Err(error) => break Err(error),
                }
            }
            match self.wait() {
                Ok(true) => break Ok(()),
                Ok(false) => {}
                Err(error) => break Err(error),
            }
        };
        self.write_noted();
        if let Err(error) = ended {
            let error = crate::run::chain(&error);
            self.ending.say(ExitReason::Crashed, format!("the guest's memory cannot be had: {error}"));
            // With the descriptor goes the watch: who waits finds zeros, and the guest's end.
        }
    }

    /// Waits until somebody waits for a page, or what was noted is to be written; true if it is over.
    fn wait(&mut self) -> Result<bool, Error> {
        let left = self.noted.as_ref().map(|noted| noted.until.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            self.write_noted();
            return Ok(false);
        }
        let timeout = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        });
        let both = [self.userfault.as_fd(), (*self.quit).as_fd()];
        let mut both = both.map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN));
        match poll(&mut both, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(!both[1].revents().is_empty()),
            Err(errno) => Err(file("wait for who wants")(errno.into())),
        }
    }

    /// Gives whoever waits at `address` what is there.
    fn serve(&mut self, address: u64) -> Result<(), Error> {
        let Some(block) = self.block_at(address) else { return Ok(()) };
        if !self.filled[block] {
            if let Some(noted) = &mut self.noted {
                noted.blocks.extend(u32::try_from(block));
            }
            return self.fill(block);
        }
        // It was given back meanwhile, or another was faster.
        let page = address & !(PAGE_BYTES as u64 - 1);
        let at = usize::try_from(page - self.address_of(block)).expect("invariant: a block is small");
        self.unpack(block)?;
        self.put(page, at..at + PAGE_BYTES)
    }

    fn fill(&mut self, block: usize) -> Result<(), Error> {
        if self.filled[block] {
            return Ok(());
        }
        self.unpack(block)?;
        self.filled[block] = true;
        let address = self.address_of(block);
        self.put(address, 0..BLOCK_BYTES)
    }

    /// Gives a part of the buffer to who waits at `address`. What is not watched any more has other memory in its place
    /// (`crate::memory::discard::empty`), which is there.
    fn put(&self, address: u64, part: std::ops::Range<usize>) -> Result<(), Error> {
        let pages = &self.buffer[part];
        let put = match self.userfault.put(address, pages) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                self.userfault.wake(address, pages.len() as u64)
            }
            put => put,
        };
        put.map_err(file("give pages of"))
    }

    fn unpack(&mut self, block: usize) -> Result<(), Error> {
        self.buffer.fill(0);
        let unpacked = self.packer.unpack(self.blocks[block], &self.from, self.memory_at, &mut self.buffer);
        unpacked.map_err(|error| match error {
            Error::Damaged(_) => Error::DamagedMemory(block as u64 * BLOCK),
            other => other,
        })
    }

    /// The block whose memory an address is in. Ranges begin at addresses that are multiples of a page and no more.
    fn block_at(&self, address: u64) -> Option<usize> {
        let mut before = 0;
        for range in &self.ranges {
            match address.checked_sub(range.start) {
                Some(offset) if offset < range.bytes => {
                    return usize::try_from(before + offset / BLOCK).ok();
                }
                _ => before += range.bytes / BLOCK,
            }
        }
        None
    }

    /// Where a block's memory is.
    fn address_of(&self, block: usize) -> u64 {
        let mut left = block as u64;
        for range in &self.ranges {
            let blocks = range.bytes / BLOCK;
            if left < blocks {
                return range.start + left * BLOCK;
            }
            left -= blocks;
        }
        unreachable!("invariant: a working set's blocks and those that are asked for are memory's")
    }

    fn write_noted(&mut self) {
        let Some(noted) = self.noted.take() else { return };
        if let Err(error) = write_working_set(&noted) {
            tracing::warn!(%error, "the working set cannot be written");
        }
    }
}

fn write_working_set(noted: &Noted) -> std::io::Result<()> {
    let mut bytes = Vec::with_capacity(HEAD_BYTES + 4 * noted.blocks.len() + 4);
    bytes.extend(MAGIC);
    bytes.extend(WORKING_SET_VERSION.to_le_bytes());
    bytes.extend(u32::try_from(noted.blocks.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend(noted.of.0);
    noted.blocks.iter().for_each(|block| bytes.extend(block.to_le_bytes()));
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    noted.to.set_len(0)?;
    noted.to.write_all_at(&bytes, 0)
}

/// Whether a file may be written over: it is empty, or begins as a working set does.
fn check_working_set(mut of: &File) -> Result<(), Error> {
    let mut magic = MAGIC;
    let length = of.seek(SeekFrom::End(0)).map_err(file("read the working set of"))?;
    let begins = length == 0 || (of.read_exact_at(&mut magic, 0).is_ok() && magic == MAGIC);
    if begins { Ok(()) } else { Err(Error::OtherThanWorkingSet) }
}

/// The blocks that a working set names, if it is one of that snapshot's.
fn read_working_set(mut from: &File, of: SnapshotId, blocks: usize) -> Option<Vec<u32>> {
    let length = usize::try_from(from.seek(SeekFrom::End(0)).ok()?).ok()?;
    let longest = HEAD_BYTES + 4 * blocks + 4;
    if !(HEAD_BYTES + 4..=longest).contains(&length) {
        return None;
    }
    let mut bytes = vec![0; length];
    from.read_exact_at(&mut bytes, 0).ok()?;
    let (content, checksum) = bytes.split_last_chunk::<4>()?;
    let (head, set) = content.split_at_checked(HEAD_BYTES)?;
    let word = |at: usize| Some(u32::from_le_bytes(head.get(at..at + 4)?.try_into().ok()?));
    let set: Vec<u32> = set.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
    let is_one = head.starts_with(&MAGIC)
        && word(8) == Some(WORKING_SET_VERSION)
        && word(12).and_then(|count| usize::try_from(count).ok()) == Some(set.len())
        && head[16..] == of.0
        && u32::from_le_bytes(*checksum) == crc32fast::hash(content)
        && set.iter().all(|block| usize::try_from(*block).is_ok_and(|block| block < blocks));
    is_one.then_some(set)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use vm_memory::{Bytes as _, GuestAddress};

    use super::super::{Form, Snapshot, mock, read_header, rewrite};
    use super::*;
    use crate::memory::discard::{Emptied, empty};

    fn packed() -> File {
        let flat = tempfile::tempfile().unwrap();
        flat.write_all_at(&mock::snapshot(&mock::state(Vec::new())), 0).unwrap();
        let to = tempfile::tempfile().unwrap();
        rewrite(vec![flat], Form::Packed, &to, &mut |_| ()).unwrap();
        to
    }

    /// Opened lazily, where the kernel allows it.
    fn open(file: &File, working_set: Option<&File>) -> Option<(Snapshot, EndingSignal)> {
        let userfault = match Userfault::open() {
            Ok(userfault) => userfault,
            Err(error) => {
                crate::testing::skipped(&error.to_string());
                return None;
            }
        };
        let ending = EndingSignal::new().unwrap();
        let working_set = working_set.map(|file| file.try_clone().unwrap());
        let lazily = Lazily { userfault, working_set, ending: ending.clone() };
        Some((Snapshot::open(vec![file.try_clone().unwrap()], Some(lazily)).unwrap(), ending))
    }

    fn read(snapshot: &Snapshot, page: u64) -> u64 {
        snapshot.memory.read_obj(GuestAddress(page * 4096)).unwrap()
    }

    #[test]
    fn memory_is_there_when_it_is_asked_for_and_again_when_it_was_given_back() {
        let file = packed();
        let Some((snapshot, ending)) = open(&file, None) else { return };
        assert_eq!([200, 1, 2, 3, 255].map(|page| read(&snapshot, page)), [200, 1, 2, 0, 0]);
        snapshot.memory.write_obj(9_u64, GuestAddress(4096)).unwrap();
        assert_eq!(read(&snapshot, 1), 9);
        let given_back = crate::memory::discard::discard(&snapshot.memory, GuestAddress(8192), 4096);
        assert_eq!(given_back, 4096);
        assert_eq!([1, 2].map(|page| read(&snapshot, page)), [9, 2]);
        assert_eq!(ending.said(), None);
    }

    #[test]
    fn memory_that_took_the_place_of_what_is_watched_stays() {
        let file = packed();
        let set = tempfile::tempfile().unwrap();
        let Some((snapshot, _)) = open(&file, Some(&set)) else { return };
        assert_eq!(read(&snapshot, 200), 200);
        drop(snapshot);
        // Known to be asked for, so that it is given unasked.
        let (snapshot, ending) = open(&file, Some(&set)).unwrap();
        let block = GuestAddress(12 * BLOCK);
        empty(&snapshot.memory, block, BLOCK, Emptied::Replaced).unwrap();
        assert_eq!([200, 1, 192].map(|page| read(&snapshot, page)), [0, 1, 0]);
        assert_eq!(ending.said(), None);
    }

    #[test]
    fn working_set_is_noted_once_and_unpacked_before_anybody_asks() {
        let file = packed();
        let mut set = tempfile::tempfile().unwrap();
        let Some((snapshot, _)) = open(&file, Some(&set)) else { return };
        assert_eq!([200, 1].map(|page| read(&snapshot, page)), [200, 1]);
        drop(snapshot);
        let id = read_header(&file).unwrap().id;
        assert_eq!(read_working_set(&set, id, 16), Some(vec![12, 0]));
        let mut before = Vec::new();
        set.rewind().unwrap();
        set.read_to_end(&mut before).unwrap();
        let (snapshot, _) = open(&file, Some(&set)).unwrap();
        assert_eq!([200, 1, 100].map(|page| read(&snapshot, page)), [200, 1, 0]);
        drop(snapshot);
        let mut after = Vec::new();
        set.rewind().unwrap();
        set.read_to_end(&mut after).unwrap();
        assert_eq!(after, before, "it is known");
        // Of another snapshot, of less memory, damaged: none.
        assert_eq!(read_working_set(&set, SnapshotId([1; 16]), 16), None);
        assert_eq!(read_working_set(&set, id, 12), None);
        for at in 0..before.len() {
            set.write_all_at(&[before[at] ^ 1], at as u64).unwrap();
            assert_eq!(read_working_set(&set, id, 16), None, "{at}");
            set.write_all_at(&before[at..=at], at as u64).unwrap();
        }
    }

    #[test]
    fn what_is_no_working_set_is_not_written_over() {
        let check = |bytes: &[u8]| {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(bytes, 0).unwrap();
            check_working_set(&file)
        };
        for own in [&b""[..], b"WISPWSET", b"WISPWSET and what is damaged"] {
            assert!(check(own).is_ok());
        }
        for other in [&b"W"[..], b"WISPWSE", b"WISPSNAP of somebody's", &[0; 4096]] {
            assert!(matches!(check(other), Err(Error::OtherThanWorkingSet)));
        }
        let set = tempfile::tempfile().unwrap();
        set.write_all_at(b"a disk", 0).unwrap();
        let Ok(userfault) = Userfault::open() else { return };
        let ending = EndingSignal::new().unwrap();
        let lazily = Lazily { userfault, working_set: Some(set.try_clone().unwrap()), ending };
        let opened = Snapshot::open(vec![packed()], Some(lazily));
        assert!(matches!(opened.err(), Some(Error::OtherThanWorkingSet)));
        let mut bytes = [0; 6];
        set.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"a disk");
    }

    #[test]
    fn guest_whose_memory_is_damaged_learns_it_and_nobody_waits_for_ever() {
        let file = packed();
        let at = read_header(&file).unwrap().memory_at();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
        let Some((snapshot, ending)) = open(&file, None) else { return };
        assert_eq!(read(&snapshot, 1), 0);
        drop(snapshot);
        let said = ending.said().unwrap();
        assert_eq!(said.reason, ExitReason::Crashed);
        assert!(said.message.contains("the MiB of memory at 0x0 does not match"), "{}", said.message);
    }
}
