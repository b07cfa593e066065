//! The block device with a ring: many requests under way, in several queues, and what is not as usual.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};

use storage::format::{DiskKey, EncryptedDisk, Extent, OpenFile, Overlay, RawFile, Work};

use super::super::block::ring::Rings;
use super::super::mock::{BUFFERS_START, MockDescriptor, MockQueue};
use super::super::spec::block;
use super::*;
use crate::testing::skipped;

const HEADERS: u64 = BUFFERS_START;
const STATUSES: u64 = BUFFERS_START + 0x2000;
const DATA: u64 = BUFFERS_START + 0x1_0000;
const DEPTH: u64 = 32;

struct Driver {
    guest: MockGuest,
    queues: Vec<MockQueue>,
    submitted: u64,
}

fn ring() -> Option<super::super::block::ring::Ring> {
    let ring = Rings::for_disks(1, false).take();
    if ring.is_none() {
        skipped("no io_uring");
    }
    ring
}

impl Driver {
    /// Nothing without io_uring.
    fn new(disk: Box<dyn Disk>, queues: u16) -> Option<(Self, Shared)> {
        let block = Block::with(disk, false, "ring", (queues, Some(ring()?))).unwrap();
        let device: Shared = Arc::new(Mutex::new(block));
        let mut guest = MockGuest::new(device.clone()).unwrap();
        let features = if queues > 1 { BLOCK_FEATURES | block::F_MQ } else { BLOCK_FEATURES };
        let queues = guest.bring_up(features, &vec![128; queues.into()]);
        Some((Self { guest, queues, submitted: 0 }, device))
    }

    fn submit(&mut self, queue: usize, kind: u32, sector: u64, data: &[MockDescriptor]) {
        let header = HEADERS + 16 * self.submitted;
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&sector.to_le_bytes());
        self.guest.put(header, &bytes);
        self.guest.put(STATUSES + self.submitted, &[0xee]);
        let status = MockDescriptor::writable(STATUSES + self.submitted, 1);
        let parts = [&[MockDescriptor::readable(header, 16)][..], data, &[status]].concat();
        self.queues[queue].submit(&self.guest.memory, &parts);
        self.submitted += 1;
    }

    fn done(&mut self) -> usize {
        let Self { guest, queues, .. } = self;
        queues.iter_mut().map(|queue| std::iter::from_fn(|| queue.take_used(&guest.memory)).count()).sum()
    }

    /// Waits for so many requests.
    fn wait_for(&mut self, count: usize) {
        let mut done = self.done();
        while done < count {
            self.guest.wait(PATIENCE_MS);
            done += self.done();
        }
        assert_eq!(done, count);
    }

    fn status(&self, number: u64) -> u8 {
        self.guest.get(STATUSES + number, 1)[0]
    }

    /// One request to its end; its status.
    fn one(&mut self, kind: u32, sector: u64, data: &[MockDescriptor]) -> u8 {
        self.submitted = 0;
        self.submit(0, kind, sector, data);
        self.guest.kick(0);
        self.wait_for(1);
        self.status(0)
    }
}

/// A disk that says that its bytes lie in a pipe, from which a read waits for as long as nobody writes.
struct Piped {
    reader: OwnedFd,
    /// Whoever asks the disk itself is given 0x77.
    asked: Arc<AtomicBool>,
}

impl Disk for Piped {
    fn size_bytes(&self) -> u64 {
        1 << 20
    }
    fn read_at(&self, buffer: &mut [u8], _offset: u64) -> io::Result<()> {
        self.asked.store(true, Ordering::Relaxed);
        buffer.fill(0x77);
        Ok(())
    }
    fn write_at(&self, _buffer: &[u8], _offset: u64) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(28))
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn discard(&self, _offset: u64, _length: u64) -> io::Result<()> {
        Ok(())
    }
    fn locate(&self, work: Work, extents: &mut Vec<Extent>) -> io::Result<bool> {
        let (Work::Read { length, .. } | Work::Write { length, .. }) = work else { return Ok(false) };
        let file = Some(OpenFile { fd: self.reader.as_raw_fd(), direct: true });
        extents.push(Extent { file, offset: 0, length });
        Ok(true)
    }
}

fn piped() -> Option<(Driver, Shared, io::PipeWriter, Arc<AtomicBool>)> {
    let (reader, writer) = io::pipe().unwrap();
    let asked = Arc::default();
    let disk = Piped { reader: reader.into(), asked: Arc::clone(&asked) };
    let (driver, device) = Driver::new(Box::new(disk), 2)?;
    Some((driver, device, writer, asked))
}

#[test]
fn whole_depth_of_both_queues_is_under_way_at_the_same_time() {
    let Some((mut driver, _device, mut writer, asked)) = piped() else { return };
    for number in 0..2 * DEPTH {
        let data = [MockDescriptor::writable(DATA + 512 * number, 512)];
        driver.submit((number % 2) as usize, block::T_IN, number, &data);
    }
    driver.guest.kick(0);
    driver.guest.kick(1);
    assert_eq!(driver.done(), 0);
    assert_eq!(driver.guest.take_interrupts(), 0);
    for number in 0..2 * DEPTH {
        io::Write::write_all(&mut writer, &[number as u8 + 1; 512]).unwrap();
    }
    driver.wait_for(2 * DEPTH as usize);
    assert!(driver.guest.take_interrupts() > 0);
    let mut seen: Vec<u8> =
        (0..2 * DEPTH).map(|number| driver.guest.get(DATA + 512 * number, 512)[511]).collect();
    seen.sort_unstable();
    assert!(seen.into_iter().eq(1..=2 * DEPTH as u8), "each read took a part of its own");
    assert!((0..2 * DEPTH).all(|number| driver.status(number) == block::S_OK));
    assert!(!asked.load(Ordering::Relaxed), "nothing went through the buffer");
}

#[test]
fn device_that_is_held_or_reset_waits_for_what_is_under_way() {
    let Some((mut driver, device, mut writer, _)) = piped() else { return };
    driver.submit(0, block::T_IN, 0, &[MockDescriptor::writable(DATA, 512)]);
    driver.guest.kick(0);
    let later = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        io::Write::write_all(&mut writer, &[9; 512]).unwrap();
        writer
    });
    device.lock().unwrap().hold(true);
    assert_eq!(driver.done(), 1, "its driver has it back by then");
    assert_eq!(driver.guest.get(DATA, 512), [9; 512]);
    let saved = device.lock().unwrap().save();
    assert_eq!(saved.queues.iter().map(|queue| queue.next_used).collect::<Vec<_>>(), [1, 0]);
    device.lock().unwrap().hold(false);
    let mut writer = later.join().unwrap();
    driver.submitted = 0;
    driver.submit(1, block::T_IN, 0, &[MockDescriptor::writable(DATA, 512)]);
    driver.guest.kick(1);
    let later = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        io::Write::write_all(&mut writer, &[8; 512]).unwrap();
    });
    driver.guest.negotiate(BLOCK_FEATURES);
    assert_eq!(
        driver.guest.get(DATA, 512),
        [8; 512],
        "nothing is written to the guest's memory after the reset"
    );
    assert_eq!(driver.done(), 0);
    later.join().unwrap();
    driver.guest.run();
}

#[test]
fn short_reads_are_asked_of_the_disk_and_errors_are_the_drivers() {
    let Some((mut driver, _device, writer, asked)) = piped() else { return };
    // Nobody writes any more: a read ends at once, with nothing.
    drop(writer);
    assert_eq!(driver.one(block::T_IN, 0, &[MockDescriptor::writable(DATA, 512)]), block::S_OK);
    assert!(asked.load(Ordering::Relaxed));
    assert_eq!(driver.guest.get(DATA, 512), [0x77; 512]);
    // The end of a pipe that is read is written to by nobody.
    assert_eq!(driver.one(block::T_OUT, 0, &[MockDescriptor::readable(DATA, 512)]), block::S_IOERR);
}

fn file(bytes: u64, direct: bool) -> (tempfile::NamedTempFile, File) {
    use std::os::unix::fs::OpenOptionsExt as _;
    let named = tempfile::NamedTempFile::new().unwrap();
    named.as_file().set_len(bytes).unwrap();
    let flags = if direct { libc::O_DIRECT } else { 0 };
    let opened = File::options().read(true).write(true).custom_flags(flags).open(named.path());
    let opened = opened.unwrap_or_else(|error| {
        println!("not direct: {error}");
        named.reopen().unwrap()
    });
    (named, opened)
}

/// Reads, writes, flushes, frees and zeroes; what is stored is seen by `stored_at`.
fn exercise(disk: Box<dyn Disk>, stored_at: &dyn Fn(&mut [u8], u64)) {
    let Some((mut driver, _)) = Driver::new(disk, 1) else { return };
    let pattern: Vec<u8> = (0..16_384_u32).map(|index| (index % 251) as u8 + 1).collect();
    driver.guest.put(DATA, &pattern);
    let out = [MockDescriptor::readable(DATA, 4096), MockDescriptor::readable(DATA + 4096, 12_288)];
    assert_eq!(driver.one(block::T_OUT, 64, &out), block::S_OK);
    // From an odd address, which no direct file takes, and a part of a block.
    driver.guest.put(DATA + 0x1_0001, &[0xab; 512]);
    assert_eq!(driver.one(block::T_OUT, 66, &[MockDescriptor::readable(DATA + 0x1_0001, 512)]), block::S_OK);
    let mut expected = pattern;
    expected[1024..1536].fill(0xab);
    assert_eq!(driver.one(block::T_FLUSH, 0, &[]), block::S_OK);
    let back =
        [MockDescriptor::writable(DATA + 0x2_0003, 1000), MockDescriptor::writable(DATA + 0x3_0000, 15_384)];
    assert_eq!(driver.one(block::T_IN, 64, &back), block::S_OK);
    let read = [driver.guest.get(DATA + 0x2_0003, 1000), driver.guest.get(DATA + 0x3_0000, 15_384)].concat();
    assert!(read == expected);
    let mut stored = vec![0; 16_384];
    stored_at(&mut stored, 64 * 512);
    assert!(stored == expected);
    let range = |sector: u64, sectors: u32, flags: u32| {
        [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
    };
    driver.guest.put(DATA, &range(72, 8, 0));
    let one = [MockDescriptor::readable(DATA, 16)];
    assert_eq!(driver.one(block::T_DISCARD, 0, &one), block::S_OK);
    driver.guest.put(DATA, &range(83, 10, block::WRITE_ZEROES_FLAG_UNMAP));
    assert_eq!(driver.one(block::T_WRITE_ZEROES, 0, &one), block::S_OK);
    assert_eq!(driver.one(block::T_IN, 64, &[MockDescriptor::writable(DATA, 16_384)]), block::S_OK);
    expected[83 * 512 - 64 * 512..93 * 512 - 64 * 512].fill(0);
    let read = driver.guest.get(DATA, 16_384);
    assert!(read[4096..8192].iter().all(|byte| *byte == 0) || read[4096..8192] == expected[4096..8192]);
    assert!(read[..4096] == expected[..4096] && read[8192..] == expected[8192..]);
    // All of it at once, over and over.
    driver.submitted = 0;
    for number in 0..DEPTH {
        driver.guest.put(DATA + 4096 * number, &[number as u8 + 1; 4096]);
        driver.submit(
            0,
            block::T_OUT,
            8 * (number % 16),
            &[MockDescriptor::readable(DATA + 4096 * (number % 16), 4096)],
        );
    }
    driver.guest.kick(0);
    driver.wait_for(DEPTH as usize);
    assert!((0..DEPTH).all(|number| driver.status(number) == block::S_OK));
    // What is flushed is what was done before (§5.2.6.2).
    assert_eq!(driver.one(block::T_FLUSH, 0, &[]), block::S_OK);
    for number in 0..16 {
        let mut block = [0; 4096];
        stored_at(&mut block, 4096 * number);
        assert_eq!(block[0], number as u8 + 1);
    }
}

#[test]
fn files_are_read_written_flushed_freed_and_zeroed_directly_and_by_the_page_cache() {
    for direct in [false, true] {
        let (named, opened) = file(1 << 20, direct);
        let check = named.reopen().unwrap();
        let stored = |bytes: &mut [u8], at| check.read_exact_at(bytes, at).unwrap();
        exercise(Box::new(RawFile::whole(opened, false).unwrap()), &stored);
    }
}

#[test]
fn overlays_are_too_and_their_bases_stay_as_they_were() {
    for direct in [false, true] {
        let (base_name, base) = file(1 << 20, false);
        base.write_all_at(&[0x33; 1 << 19], 0).unwrap();
        let (named, opened) = file(0, direct);
        Overlay::create(named.as_file(), 1 << 20, 1 << 20).unwrap();
        let overlay = Overlay::open(opened, base).unwrap();
        let check = named.reopen().unwrap();
        exercise(Box::new(overlay), &|bytes, at| check.read_exact_at(bytes, 8192 + at).unwrap());
        let mut unchanged = vec![0; 1 << 19];
        base_name.as_file().read_exact_at(&mut unchanged, 0).unwrap();
        assert!(unchanged.iter().all(|byte| *byte == 0x33));
        let reopened = Overlay::open(named.reopen().unwrap(), base_name.reopen().unwrap()).unwrap();
        let mut block = [0; 4096];
        reopened.read_at(&mut block, 4096 * 3).unwrap();
        assert!(block == [4; 4096]);
        reopened.read_at(&mut block, 4096 * 100).unwrap();
        assert!(block == [0x33; 4096]);
    }
}

#[test]
fn encrypted_disks_are_served_by_a_ring_and_nothing_is_stored_in_the_clear() {
    let key = DiskKey::random(512).unwrap();
    for (direct, layered) in [(false, false), (true, false), (true, true)] {
        let (named, opened) = file(if layered { 0 } else { 1 << 20 }, direct);
        let stored: Box<dyn Disk> = if layered {
            Overlay::create(named.as_file(), 1 << 20, 1 << 20).unwrap();
            Box::new(Overlay::open(opened, file(1 << 20, false).1).unwrap())
        } else {
            Box::new(RawFile::whole(opened, false).unwrap())
        };
        // The overlay's clusters lie in their order behind its map.
        let at = if layered { 8192 } else { 0 };
        let (check, cipher) = (named.reopen().unwrap(), EncryptedDisk::new(MemoryDisk::new(1 << 20), &key));
        let seen = |bytes: &mut [u8], from: u64| {
            check.read_exact_at(bytes, at + from).unwrap();
            let is_clear = |bytes: &[u8]| bytes[0] != 0 && bytes.iter().all(|byte| *byte == bytes[0]);
            assert!(!bytes.windows(8).any(is_clear), "in the clear");
            cipher.stored().unwrap().decrypt(bytes, from);
        };
        exercise(Box::new(EncryptedDisk::new(stored, &key)), &seen);
    }
}

#[test]
fn depth_of_an_encrypted_disk_is_under_way_at_the_same_time_and_what_is_copied_is_bounded() {
    let key = DiskKey::random(256).unwrap();
    let (reader, mut writer) = io::pipe().unwrap();
    let asked = Arc::default();
    let disk = EncryptedDisk::new(Piped { reader: reader.into(), asked: Arc::clone(&asked) }, &key);
    let Some((mut driver, _device)) = Driver::new(Box::new(disk), 1) else { return };
    for number in 0..DEPTH {
        driver.submit(0, block::T_IN, 0, &[MockDescriptor::writable(DATA + 512 * number, 512)]);
    }
    driver.guest.kick(0);
    assert_eq!(driver.done(), 0);
    let cipher = EncryptedDisk::new(MemoryDisk::new(512), &key);
    for number in 0..DEPTH {
        let mut sector = [number as u8 + 1; 512];
        cipher.stored().unwrap().encrypt(&mut sector, 0);
        io::Write::write_all(&mut writer, &sector).unwrap();
    }
    driver.wait_for(DEPTH as usize);
    let mut seen: Vec<u8> =
        (0..DEPTH).map(|number| driver.guest.get(DATA + 512 * number, 512)[511]).collect();
    seen.sort_unstable();
    assert!(seen.into_iter().eq(1..=DEPTH as u8), "each was decrypted");
    assert!(!asked.load(Ordering::Relaxed), "nothing went through the buffer");
    // Half a megabyte each: some wait until others are done, which they are when nobody writes any more.
    driver.submitted = 0;
    for _ in 0..DEPTH {
        driver.submit(0, block::T_IN, 0, &[MockDescriptor::writable(DATA, 1 << 19)]);
    }
    driver.guest.kick(0);
    assert_eq!(driver.done(), 0);
    drop(writer);
    driver.wait_for(DEPTH as usize);
    assert!((0..DEPTH).all(|number| driver.status(number) == block::S_OK));
}

#[test]
fn what_the_kernel_wrote_to_guest_memory_is_noted_for_snapshots() {
    use vm_memory::bitmap::Bitmap as _;
    use vm_memory::{GuestMemoryBackend as _, GuestMemoryRegion as _};
    for direct in [true, false] {
        let (_named, opened) = file(1 << 20, direct);
        let disk = Box::new(RawFile::whole(opened, false).unwrap());
        let Some((mut driver, _)) = Driver::new(disk, 1) else { return };
        let memory = driver.guest.memory.clone();
        let region = memory.iter().next().unwrap().bitmap();
        // The second time it is known to be in the page cache, and is copied without a call.
        for page in [DATA as usize + 0x8000, DATA as usize + 0x1_0000] {
            assert!(!region.dirty_at(page));
            let data = [MockDescriptor::writable(page as u64, 8192)];
            assert_eq!(driver.one(block::T_IN, 0, &data), block::S_OK);
            assert!(region.dirty_at(page) && region.dirty_at(page + 4096) && !region.dirty_at(page + 8192));
        }
    }
}

/// A disk that serves a file, and no other once another takes its place.
#[test]
fn file_in_the_page_cache_is_served_until_it_is_replaced_or_cut_short() {
    let (first, opened) = file(1 << 20, false);
    let (second, other) = file(1 << 20, false);
    let raw = |file| Box::new(RawFile::whole(file, false).unwrap());
    let Some((mut driver, device)) = Driver::new(raw(opened), 1) else { return };
    let data = [MockDescriptor::writable(DATA, 4096)];
    let send = [MockDescriptor::readable(DATA, 4096)];
    for byte in 1..=5 {
        driver.guest.put(DATA, &[byte; 4096]);
        assert_eq!(driver.one(block::T_OUT, 16, &send), block::S_OK);
        driver.guest.put(DATA, &[0xee; 4096]);
        assert_eq!(driver.one(block::T_IN, 16, &data), block::S_OK);
        assert_eq!(driver.guest.get(DATA, 4096), [byte; 4096]);
        assert_eq!(std::fs::read(first.path()).unwrap()[8192..12288], [byte; 4096]);
    }
    assert_eq!(driver.one(block::T_FLUSH, 0, &[]), block::S_OK);
    let is_mapped = |file: &tempfile::NamedTempFile| {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.contains(file.path().to_str().unwrap())
    };
    assert!(is_mapped(&first));
    device.lock().unwrap().replace_disk(raw(other));
    assert!(!is_mapped(&first));
    for _ in 0..3 {
        assert_eq!(driver.one(block::T_IN, 16, &data), block::S_OK);
        assert!(driver.guest.get(DATA, 4096) != [5; 4096], "it is the other's");
    }
    // What is gone reads as a call finds it, and the guest goes on.
    second.as_file().set_len(0).unwrap();
    let status = driver.one(block::T_IN, 16, &data);
    for _ in 0..3 {
        assert_eq!(driver.one(block::T_IN, 16, &data), status);
    }
    second.as_file().set_len(1 << 20).unwrap();
    assert_eq!(driver.one(block::T_IN, 16, &data), block::S_OK);
    assert_eq!(driver.guest.get(DATA, 4096), [0; 4096]);
    drop((driver, device));
    assert!(!is_mapped(&second));
}

#[test]
fn several_queues_are_offered_and_as_many_are_used_as_the_driver_likes() {
    let disk = MemoryDisk::new(1 << 20);
    let block = Block::with(Box::new(disk), false, "", (4, None)).unwrap();
    let mut guest = MockGuest::over_pci(Arc::new(Mutex::new(block))).unwrap();
    assert!(guest.offered() & block::F_MQ != 0);
    assert_eq!(u16::from_le_bytes(guest.read_config(34)), 4);
    assert_eq!((guest.read_config::<1>(24), guest.read_config::<1>(56)), ([3], [1]));
    // Two of the four.
    let mut queues = guest.bring_up(BLOCK_FEATURES | block::F_MQ, &[16, 16]);
    guest.put(HEADERS, &[block::T_FLUSH as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    for (index, queue) in (0..).zip(&mut queues) {
        let parts = [MockDescriptor::readable(HEADERS, 16), MockDescriptor::writable(STATUSES, 1)];
        queue.submit(&guest.memory, &parts);
        guest.kick(index);
        assert!(queue.take_used(&guest.memory).is_some(), "queue {index}");
    }
}

#[test]
fn limits_hold_for_all_queues_together_and_starve_none() {
    use crate::config::{DiskLimits, RateLimit, TransferLimits};
    let one = Some(RateLimit { per_second: 1000, burst: Some(1) });
    let limits =
        DiskLimits { total: TransferLimits { bytes: None, operations: one }, ..DiskLimits::default() };
    let (start, moved) = (std::time::Instant::now(), Arc::new(std::sync::atomic::AtomicU64::new(0)));
    let passed = Arc::clone(&moved);
    let clock = move || start + std::time::Duration::from_millis(passed.load(Ordering::Relaxed));
    let block = Block::with(Box::new(MemoryDisk::new(1 << 20)), false, "", (2, None)).unwrap();
    let block = block.limited(&limits, Box::new(clock)).unwrap();
    let mut guest = MockGuest::new(Arc::new(Mutex::new(block))).unwrap();
    let queues = guest.bring_up(BLOCK_FEATURES | block::F_MQ, &[64, 64]);
    let mut driver = Driver { guest, queues, submitted: 0 };
    for number in 0..20 {
        driver.submit(number % 2, block::T_IN, 0, &[MockDescriptor::writable(DATA, 512)]);
    }
    driver.guest.kick(0);
    driver.guest.kick(1);
    assert_eq!(driver.done(), 1, "one queue's request is the other's limit");
    let mut done = [0; 2];
    while done.iter().sum::<usize>() < 8 {
        moved.fetch_add(1, Ordering::Relaxed);
        driver.guest.wait(PATIENCE_MS);
        let Driver { guest, queues, .. } = &mut driver;
        for (count, queue) in done.iter_mut().zip(queues) {
            *count += std::iter::from_fn(|| queue.take_used(&guest.memory)).count();
        }
    }
    assert!(done.iter().all(|count| *count > 0), "{done:?}");
}
