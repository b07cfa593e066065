use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};

use proptest::prelude::*;

use super::pages::REGION_BYTES;
use super::*;
use crate::memory::PAGE_BYTES;
use crate::testing::skipped;

static PLENTY: Budget = Budget::of(1 << 20);

/// A file of so many pages, each full of its number; nothing where temporary files do not say whether a read would wait.
fn file(pages: u64) -> Option<File> {
    let file = tempfile::tempfile().unwrap();
    for page in 0..pages {
        file.write_all_at(&[page as u8; PAGE_BYTES as usize], page * PAGE_BYTES).unwrap();
    }
    // SAFETY: the file is open.
    let known = unsafe { MappedFile::new(file.as_raw_fd()) };
    if known.is_none() {
        skipped("temporary files lie on a file system that does not know what a read waits for");
    }
    known.map(|_| file)
}

fn copy(mapped: &mut Mapped, direction: Direction, file: &File, bytes: &mut [u8], offset: u64) -> bool {
    // In two pieces.
    let (first, second) = bytes.split_at_mut(bytes.len() / 3);
    let vectors = [first, second]
        .map(|piece| libc::iovec { iov_base: piece.as_mut_ptr().cast(), iov_len: piece.len() });
    let length = vectors.iter().map(|vector| vector.iov_len as u64).sum();
    // SAFETY: the vectors are of the bytes, which are borrowed until it returns.
    unsafe { mapped.copy(direction, file.as_raw_fd(), &vectors, (offset, length)) }
}

fn read(mapped: &mut Mapped, file: &File, offset: u64, length: u64) -> Option<Vec<u8>> {
    let mut bytes = vec![0xee; length as usize];
    copy(mapped, Direction::Read, file, &mut bytes, offset).then_some(bytes)
}

fn write(mapped: &mut Mapped, file: &File, offset: u64, bytes: &[u8]) -> bool {
    copy(mapped, Direction::Write, file, &mut bytes.to_vec(), offset)
}

fn note(mapped: &mut Mapped, direction: Direction, file: &File, part: (u64, u64)) {
    // SAFETY: the tests' files are open for longer than what is mapped.
    unsafe { mapped.note(direction, file.as_raw_fd(), part) };
}

#[test]
fn what_a_call_has_read_is_copied_from_then_on() {
    let Some(file) = file(4) else { return };
    let mut mapped = Mapped::within(&PLENTY);
    assert_eq!(read(&mut mapped, &file, 0, PAGE_BYTES), None);
    note(&mut mapped, Direction::Read, &file, (PAGE_BYTES, 2 * PAGE_BYTES));
    let whole = read(&mut mapped, &file, PAGE_BYTES, 2 * PAGE_BYTES).unwrap();
    assert!(whole.iter().enumerate().all(|(at, &byte)| byte as usize == 1 + at / PAGE_BYTES as usize));
    assert_eq!(read(&mut mapped, &file, 2 * PAGE_BYTES - 3, 6).unwrap(), [1, 1, 1, 2, 2, 2]);
    assert_eq!(read(&mut mapped, &file, 3 * PAGE_BYTES - 3, 6), None);
    assert_eq!(read(&mut mapped, &file, u64::MAX, 6), None);
    // What others write is seen, as by a call.
    file.write_all_at(&[9], PAGE_BYTES).unwrap();
    assert_eq!(read(&mut mapped, &file, PAGE_BYTES, 2).unwrap(), [9, 1]);
    mapped.forget();
    assert_eq!(read(&mut mapped, &file, PAGE_BYTES, 2), None);
}

#[test]
fn what_two_calls_have_written_is_copied_to_until_it_is_flushed() {
    let Some(file) = file(4) else { return };
    let mut mapped = Mapped::within(&PLENTY);
    for _ in 0..2 {
        assert!(!write(&mut mapped, &file, PAGE_BYTES, &[7; 9]));
        note(&mut mapped, Direction::Write, &file, (0, 2 * PAGE_BYTES));
    }
    assert!(write(&mut mapped, &file, PAGE_BYTES - 1, &[7, 8]));
    let mut bytes = [0; 4];
    file.read_exact_at(&mut bytes, PAGE_BYTES - 2).unwrap();
    assert_eq!(bytes, [0, 7, 8, 1]);
    mapped.flush();
    assert!(!write(&mut mapped, &file, PAGE_BYTES, &[7; 9]));
    assert!(read(&mut mapped, &file, PAGE_BYTES, 9).is_some());
    note(&mut mapped, Direction::Write, &file, (0, 2 * PAGE_BYTES));
    assert!(!write(&mut mapped, &file, PAGE_BYTES, &[7; 9]));
}

#[test]
fn files_that_take_no_writes_or_make_each_durable_are_only_read() {
    if file(1).is_none() {
        return;
    }
    let named = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(named.path(), [5; PAGE_BYTES as usize]).unwrap();
    let open = |flags| OpenOptions::new().read(true).write(true).custom_flags(flags).open(named.path());
    for file in [File::open(named.path()), open(libc::O_DSYNC), open(libc::O_SYNC)] {
        let (file, mut mapped) = (file.unwrap(), Mapped::within(&PLENTY));
        for _ in 0..3 {
            note(&mut mapped, Direction::Write, &file, (0, PAGE_BYTES));
        }
        assert!(!write(&mut mapped, &file, 0, &[7]));
        assert_eq!(read(&mut mapped, &file, 0, 1).unwrap(), [5]);
    }
    // What cannot be mapped at all.
    let (pipe, _writer) = std::io::pipe().unwrap();
    let only_written = OpenOptions::new().write(true).open(named.path()).unwrap();
    for file in [File::from(std::os::fd::OwnedFd::from(pipe)), only_written, File::open("/").unwrap()] {
        let mut mapped = Mapped::within(&PLENTY);
        for _ in 0..3 {
            note(&mut mapped, Direction::Write, &file, (0, PAGE_BYTES));
        }
        assert!(!write(&mut mapped, &file, 0, &[7]));
        assert_eq!(read(&mut mapped, &file, 0, 1), None);
    }
}

#[test]
fn file_that_is_cut_short_is_left_to_calls_for_a_while() {
    let Some(file) = file(4) else { return };
    let mut mapped = Mapped::within(&PLENTY);
    let mut rest = REST_MIN;
    for _ in 0..3 {
        file.set_len(4 * PAGE_BYTES).unwrap();
        note(&mut mapped, Direction::Read, &file, (0, 4 * PAGE_BYTES));
        assert!(read(&mut mapped, &file, 0, 4 * PAGE_BYTES).is_some());
        file.set_len(2 * PAGE_BYTES).unwrap();
        assert_eq!(read(&mut mapped, &file, PAGE_BYTES, 2 * PAGE_BYTES), None);
        for _ in 0..rest {
            note(&mut mapped, Direction::Read, &file, (0, PAGE_BYTES));
            assert_eq!(read(&mut mapped, &file, 0, 1), None);
        }
        note(&mut mapped, Direction::Read, &file, (0, PAGE_BYTES));
        assert!(read(&mut mapped, &file, 0, 1).is_some());
        rest *= 2;
    }
}

#[test]
fn copy_that_had_to_wait_is_the_last_for_a_while() {
    let Some(file) = file(4) else { return };
    file.sync_all().unwrap();
    let mut mapped = Mapped::within(&PLENTY);
    note(&mut mapped, Direction::Read, &file, (0, PAGE_BYTES));
    // The kernel drops what no page table has yet.
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    assert!(read(&mut mapped, &file, 0, 1).is_some());
    assert_eq!((mapped.rest.left, mapped.files.len()), (REST_MIN, 0));
    assert_eq!(mapped.rest.next, 2 * REST_MIN);
    // Copies that never wait are looked after ever more rarely, and the next rest is a short one again.
    mapped.rest.left = 0;
    note(&mut mapped, Direction::Read, &file, (0, PAGE_BYTES));
    for _ in 0..4 * INTERVAL_MAX {
        assert!(read(&mut mapped, &file, 0, 1).is_some());
    }
    assert_eq!((mapped.interval, mapped.rest.next), (INTERVAL_MAX, REST_MIN));
}

#[test]
fn writes_are_calls_for_a_while_where_pages_go_to_the_medium_after_each() {
    let Some(file) = file(1) else { return };
    let mut mapped = Mapped::within(&PLENTY);
    let mut copies = 0;
    loop {
        for _ in 0..2 {
            note(&mut mapped, Direction::Write, &file, (0, PAGE_BYTES));
        }
        if !write(&mut mapped, &file, 0, &[7]) {
            break;
        }
        copies += 1;
        assert!(copies < 20 * SAMPLE, "each of them is a fault");
        // Those that are not looked at need not be.
        if copies % SAMPLE == 0 {
            file.sync_data().unwrap();
        }
    }
    // Reads go on.
    for _ in 1..REST_MIN {
        assert!(!write(&mut mapped, &file, 0, &[7]));
        assert!(read(&mut mapped, &file, 0, 1).is_some());
    }
    for _ in 0..2 {
        note(&mut mapped, Direction::Write, &file, (0, PAGE_BYTES));
    }
    assert!(write(&mut mapped, &file, 0, &[8]));
    assert_eq!(mapped.write_rest.next, 2 * REST_MIN);
    for _ in 0..2 * SAMPLES_MIN * SAMPLE {
        assert!(write(&mut mapped, &file, 0, &[8]));
    }
    assert_eq!(mapped.write_rest.next, REST_MIN);
}

#[test]
fn file_that_grows_beyond_its_room_is_mapped_anew() {
    let Some(file) = file(1) else { return };
    let mut mapped = Mapped::within(&PLENTY);
    note(&mut mapped, Direction::Read, &file, (0, PAGE_BYTES));
    let far = 1 << 30;
    file.write_all_at(&[3; PAGE_BYTES as usize], far).unwrap();
    for _ in 0..2 {
        assert_eq!(read(&mut mapped, &file, far, 1), None);
        note(&mut mapped, Direction::Read, &file, (far, PAGE_BYTES));
    }
    assert_eq!(read(&mut mapped, &file, far, 1).unwrap(), [3]);
}

#[test]
fn beyond_the_budget_what_is_wanted_now_comes_in_the_end() {
    static ONE: Budget = Budget::of(1);
    let Some(file) = file(1) else { return };
    file.set_len(2 * REGION_BYTES).unwrap();
    let mut mapped = Mapped::within(&ONE);
    note(&mut mapped, Direction::Read, &file, (0, PAGE_BYTES));
    for _ in 0..DECLINED_MAX {
        assert_eq!(read(&mut mapped, &file, REGION_BYTES, 1), None);
        note(&mut mapped, Direction::Read, &file, (REGION_BYTES, PAGE_BYTES));
    }
    note(&mut mapped, Direction::Read, &file, (REGION_BYTES, PAGE_BYTES));
    assert!(read(&mut mapped, &file, REGION_BYTES, 1).is_some());
    assert_eq!(read(&mut mapped, &file, 0, 1), None);
    drop(mapped);
    assert_eq!(ONE.left(), 1);
}

#[derive(Debug, Clone)]
enum Step {
    Read { offset: u64, length: u64 },
    Write { offset: u64, length: u64, byte: u8 },
    Flush,
    Free { page: u64 },
    Cut { bytes: u64 },
}

const PAGES: u64 = 16;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let part = || {
        (0..PAGES * 8, 1..40_u64)
            .prop_map(|(at, count)| (at * 512, (count * 512).min((PAGES * 8 - at) * 512)))
    };
    let step = prop_oneof![
        6 => part().prop_map(|(offset, length)| Step::Read { offset, length }),
        6 => (part(), any::<u8>()).prop_map(|((offset, length), byte)| Step::Write { offset, length, byte }),
        1 => Just(Step::Flush),
        1 => (0..PAGES).prop_map(|page| Step::Free { page }),
        1 => (0..PAGES * PAGE_BYTES).prop_map(|bytes| Step::Cut { bytes }),
    ];
    prop::collection::vec(step, 1..200)
}

proptest! {
    /// A disk that copies where it may and calls where it must is the same as one in memory, whatever happens to its file.
    #[test]
    fn same_as_by_calls(steps in steps()) {
        let Some(file) = file(PAGES) else { return Ok(()) };
        let mut model: Vec<u8> = (0..PAGES).flat_map(|page| [page as u8; PAGE_BYTES as usize]).collect();
        let mut mapped = Mapped::within(&PLENTY);
        for step in steps {
            // So that what is cut short is soon copied again.
            mapped.rest.left = mapped.rest.left.min(3);
            match step {
                Step::Read { offset, length } => {
                    let found = read(&mut mapped, &file, offset, length).unwrap_or_else(|| {
                        let mut bytes = vec![0; length as usize];
                        file.read_exact_at(&mut bytes, offset).unwrap();
                        note(&mut mapped, Direction::Read, &file, (offset, length));
                        bytes
                    });
                    let expected = &model[offset as usize..(offset + length) as usize];
                    prop_assert!(found == expected, "{length} bytes at {offset}");
                }
                Step::Write { offset, length, byte } => {
                    let bytes = vec![byte; length as usize];
                    if !write(&mut mapped, &file, offset, &bytes) {
                        file.write_all_at(&bytes, offset).unwrap();
                        note(&mut mapped, Direction::Write, &file, (offset, length));
                    }
                    model[offset as usize..(offset + length) as usize].copy_from_slice(&bytes);
                }
                Step::Flush => {
                    mapped.flush();
                    file.sync_data().unwrap();
                }
                Step::Free { page } => {
                    use rustix::fs::{FallocateFlags, fallocate};
                    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                    fallocate(&file, hole, page * PAGE_BYTES, PAGE_BYTES).unwrap();
                    model[(page * PAGE_BYTES) as usize..][..PAGE_BYTES as usize].fill(0);
                }
                Step::Cut { bytes } => {
                    file.set_len(bytes).unwrap();
                    // A copy finds nothing there, and a call says so.
                    let whole = PAGES * PAGE_BYTES;
                    if bytes <= whole - PAGE_BYTES {
                        prop_assert_eq!(read(&mut mapped, &file, whole - PAGE_BYTES, PAGE_BYTES), None);
                    }
                    file.set_len(whole).unwrap();
                    model[bytes as usize..].fill(0);
                }
            }
        }
        let mut found = vec![0; model.len()];
        file.read_exact_at(&mut found, 0).unwrap();
        prop_assert!(found == model);
    }
}
