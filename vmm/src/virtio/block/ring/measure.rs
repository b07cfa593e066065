//! What registering files and memory with a ring is worth: 4 KiB at random places of a file, past the page cache, one and 32
//! at a time. Printed, and decided by a person.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::time::{Duration, Instant};

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use rustix::time::{ClockId, clock_gettime};

const FILE_BYTES: u64 = 256 << 20;
const BLOCK_BYTES: usize = 4096;
/// As much as a guest's memory.
const MEMORY_BYTES: usize = 128 << 20;
const PART: Duration = Duration::from_millis(700);
const ROUNDS: usize = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Registered {
    Nothing,
    File,
    /// The file and a guest's whole memory.
    Memory,
    /// The file and a pool that is copied from and to.
    Pool,
}

struct Memory(Vec<u8>);

impl Memory {
    fn at(&mut self, block: usize) -> *mut u8 {
        let start = self.0.as_ptr().align_offset(BLOCK_BYTES);
        self.0[start + block * BLOCK_BYTES..].as_mut_ptr()
    }
}

/// Thousands of requests a second, and microseconds of this thread for each.
fn run(file: &File, memory: &mut Memory, how: Registered, depth: u32, writes: bool) -> (f64, f64) {
    let mut builder = IoUring::<squeue::Entry, cqueue::Entry>::builder();
    builder.setup_coop_taskrun();
    let mut ring = builder.build(64).unwrap();
    let mut pool = Memory(vec![1; (depth as usize + 1) * BLOCK_BYTES]);
    if how != Registered::Nothing {
        ring.submitter().register_files_sparse(16).unwrap();
        ring.submitter().register_files_update(3, &[file.as_raw_fd()]).unwrap();
    }
    let blocks = MEMORY_BYTES / BLOCK_BYTES - 1;
    let region = match how {
        Registered::Memory => {
            Some(libc::iovec { iov_base: memory.at(0).cast(), iov_len: blocks * BLOCK_BYTES })
        }
        Registered::Pool => {
            Some(libc::iovec { iov_base: pool.at(0).cast(), iov_len: depth as usize * BLOCK_BYTES })
        }
        _ => None,
    };
    // SAFETY: the memory outlives the ring.
    region.into_iter().for_each(|region| unsafe { ring.submitter().register_buffers(&[region]) }.unwrap());
    let mut random = 88_172_645_463_325_252_u64;
    let mut next = |bound: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % bound
    };
    let cpu = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
    };
    let (began, cpu_began) = (Instant::now(), cpu());
    let (mut done, mut under_way) = (0_u64, 0);
    let mut free: Vec<u64> = (0..u64::from(depth)).collect();
    let mut places = vec![0; depth as usize];
    while began.elapsed() < PART || under_way > 0 {
        while let Some(slot) = free.pop().filter(|_| began.elapsed() < PART) {
            let place = next(blocks as u64) as usize;
            places[slot as usize] = place;
            let guest = memory.at(place);
            let offset = next(FILE_BYTES / BLOCK_BYTES as u64) * BLOCK_BYTES as u64;
            let length = BLOCK_BYTES as u32;
            let buffer = if how == Registered::Pool { pool.at(slot as usize) } else { guest };
            if how == Registered::Pool && writes {
                // SAFETY: both are a block, and lie apart.
                unsafe { std::ptr::copy_nonoverlapping(guest, buffer, BLOCK_BYTES) };
            }
            let (fd, fixed) = (types::Fd(file.as_raw_fd()), types::Fixed(3));
            let entry = match (how, writes) {
                (Registered::Nothing, false) => opcode::Read::new(fd, buffer, length).offset(offset).build(),
                (Registered::Nothing, true) => opcode::Write::new(fd, buffer, length).offset(offset).build(),
                (Registered::File, false) => opcode::Read::new(fixed, buffer, length).offset(offset).build(),
                (Registered::File, true) => opcode::Write::new(fixed, buffer, length).offset(offset).build(),
                (_, false) => opcode::ReadFixed::new(fixed, buffer, length, 0).offset(offset).build(),
                (_, true) => opcode::WriteFixed::new(fixed, buffer, length, 0).offset(offset).build(),
            };
            // SAFETY: memory and pool outlive the ring's work, which is waited for.
            unsafe { ring.submission().push(&entry.user_data(slot)) }.unwrap();
            under_way += 1;
        }
        ring.submit_and_wait(1.min(under_way)).unwrap();
        let outcomes: Vec<_> = ring.completion().map(|entry| (entry.user_data(), entry.result())).collect();
        for (slot, result) in outcomes {
            assert_eq!(result, BLOCK_BYTES as i32);
            if how == Registered::Pool && !writes {
                let (from, to) = (pool.at(slot as usize), memory.at(places[slot as usize]));
                // SAFETY: as above.
                unsafe { std::ptr::copy_nonoverlapping(from, to, BLOCK_BYTES) };
            }
            free.push(slot);
            under_way -= 1;
            done += 1;
        }
    }
    let (took, used) = (began.elapsed().as_secs_f64(), cpu() - cpu_began);
    (done as f64 / took / 1e3, used / done as f64)
}

#[test]
#[ignore = "a measurement"]
fn measure_registration() {
    let named = tempfile::NamedTempFile::new_in(".").unwrap();
    for at in (0..FILE_BYTES).step_by(1 << 20) {
        named.as_file().write_all_at(&[0x5a; 1 << 20], at).unwrap();
    }
    named.as_file().sync_all().unwrap();
    let file = File::options().read(true).write(true).custom_flags(libc::O_DIRECT).open(named.path());
    let file = file.unwrap();
    let mut memory = Memory(vec![1; MEMORY_BYTES]);
    for writes in [false, true] {
        for depth in [1, 32] {
            let ways = [Registered::Nothing, Registered::File, Registered::Memory, Registered::Pool];
            let mut found = ways.map(|_| Vec::new());
            for _ in 0..ROUNDS {
                for (way, found) in ways.iter().zip(&mut found) {
                    found.push(run(&file, &mut memory, *way, depth, writes));
                }
            }
            for (way, mut found) in ways.iter().zip(found) {
                found.sort_by(|one, other| one.0.total_cmp(&other.0));
                let (rate, used) = found[ROUNDS / 2];
                println!(
                    "writes {writes}, depth {depth}, registered {way:?}: {rate:.1} kIOPS, {used:.2} us each"
                );
            }
        }
    }
    for mib in [128, 1024] {
        let ring = IoUring::new(8).unwrap();
        let guest = crate::memory::allocate(mib).unwrap();
        let host = vm_memory::GuestMemoryBackend::iter(&guest).next().unwrap().as_ptr();
        let region = libc::iovec { iov_base: host.cast(), iov_len: (mib as usize) << 20 };
        let began = Instant::now();
        // SAFETY: the memory outlives the ring.
        unsafe { ring.submitter().register_buffers(&[region]) }.unwrap();
        println!(
            "{mib} MiB that nobody touched are registered in {:.1} ms",
            began.elapsed().as_secs_f64() * 1e3
        );
    }
}
