//! The overlay against a plain model, against power loss, and against hostile files.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::*;

const SECTOR: usize = 512;
type Sector = [u8; SECTOR];

fn base_file(size_bytes: usize) -> (File, Vec<u8>) {
    let content: Vec<u8> = (0..size_bytes).map(|at| (at / 7 % 251) as u8 + 1).collect();
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&content, 0).unwrap();
    (file, content)
}

fn overlay(base: &File, base_size_bytes: u64, virtual_size_bytes: u64) -> (File, Overlay) {
    let file = tempfile::tempfile().unwrap();
    Overlay::create(&file, base_size_bytes, virtual_size_bytes).unwrap();
    let opened = reopen(&file, base).unwrap();
    (file, opened)
}

fn reopen(file: &File, base: &File) -> Result<Overlay, OverlayError> {
    Overlay::open(file.try_clone().unwrap(), base.try_clone().unwrap())
}

fn read(disk: &dyn Disk, offset: u64, length: usize) -> Vec<u8> {
    let mut buffer = vec![0xee; length];
    disk.read_at(&mut buffer, offset).unwrap();
    buffer
}

#[test]
fn new_overlay_reads_as_its_base_then_zeros() {
    let (base, content) = base_file(10_000);
    let (file, disk) = overlay(&base, 10_000, 1 << 20);
    assert_eq!(disk.size_bytes(), 1 << 20);
    assert_eq!(read(&disk, 0, 10_000), content);
    assert!(read(&disk, 10_000, (1 << 20) - 10_000).iter().all(|byte| *byte == 0));
    drop(disk);
    use std::os::unix::fs::MetadataExt as _;
    assert!(file.metadata().unwrap().blocks() <= 16, "a new overlay takes no room");
}

#[test]
fn data_is_found_in_the_base_and_in_the_copy_and_holes_are_passed_over() {
    const MIB: u64 = 1 << 20;
    let (base, _) = base_file(0);
    base.set_len(64 * MIB).unwrap();
    base.write_all_at(&[1], 10 * MIB).unwrap();
    let (_, disk) = overlay(&base, 64 * MIB, 1 << 40);
    disk.write_at(&[2; 4096], 30 * MIB).unwrap();
    disk.write_at(&[2; 4096], 900 * MIB).unwrap();
    // What is here hides what the base has.
    disk.write_zeroes(10 * MIB, 4096, true).unwrap();
    let found = [0, 30 * MIB + 1, 40 * MIB, 900 * MIB + 4096, 1 << 40, u64::MAX]
        .map(|offset| disk.next_data(offset).unwrap());
    assert_eq!(found[0], 30 * MIB);
    assert_eq!(found[1], 30 * MIB + 1);
    // The base's end may pass for data: it is no whole hole.
    assert!([64 * MIB, 900 * MIB].contains(&found[2]), "{}", found[2]);
    assert_eq!(disk.next_data(64 * MIB).unwrap(), 900 * MIB);
    assert_eq!(found[3..], [1 << 40; 3]);
}

#[test]
fn header_is_as_documented() {
    let (base, _) = base_file(10_000);
    let (file, _) = overlay(&base, 10_000, 1 << 30);
    let mut header = [0; 48];
    file.read_exact_at(&mut header, 0).unwrap();
    let mut expected = Vec::from(*b"WISPOVL\x01\x01\0\0\0\x0c\0\0\0");
    for field in [1u64 << 30, 10_000, 4096 + 8 * 4096, 0] {
        expected.extend_from_slice(&field.to_le_bytes());
    }
    assert_eq!(&header[..], expected);
    assert_eq!(file.metadata().unwrap().len(), 4096 + 8 * 4096 + (1 << 30));
}

#[test]
fn writes_hold_after_reopening_and_never_touch_the_base() {
    let (base, content) = base_file(100_000);
    let (file, disk) = overlay(&base, 100_000, 200_704);
    disk.write_at(b"hello", 4094).unwrap();
    disk.write_at(&[9; 20_000], 95_000).unwrap();
    disk.flush().unwrap();
    drop(disk);
    let disk = reopen(&file, &base).unwrap();
    let mut expected = content.clone();
    expected.resize(200_704, 0);
    expected[4094..4099].copy_from_slice(b"hello");
    expected[95_000..115_000].fill(9);
    assert_eq!(read(&disk, 0, 200_704), expected);
    let mut unchanged = vec![0; 100_000];
    base.read_exact_at(&mut unchanged, 0).unwrap();
    assert_eq!(unchanged, content);
}

#[test]
fn unflushed_writes_are_gone_with_the_process_but_the_disk_is_whole() {
    let (base, content) = base_file(8192);
    let (file, disk) = overlay(&base, 8192, 8192);
    disk.write_at(&[9; 4096], 0).unwrap();
    disk.flush().unwrap();
    disk.write_at(&[8; 4096], 4096).unwrap();
    drop(disk);
    let disk = reopen(&file, &base).unwrap();
    assert_eq!(read(&disk, 0, 4096), [9; 4096]);
    assert_eq!(read(&disk, 4096, 4096), content[4096..]);
}

#[test]
fn disk_of_terabytes_is_made_at_once_and_keeps_little_in_memory() {
    let (base, _) = base_file(4096);
    let (file, disk) = overlay(&base, 4096, SIZE_BYTES_MAX);
    let places: Vec<u64> = (0..3 * MAP_PAGES_MAX as u64)
        .map(|n| n * 37 * PAGE_SPAN_BYTES + n * 4096)
        .chain([SIZE_BYTES_MAX - 4096])
        .collect();
    for place in &places {
        disk.write_at(&place.to_le_bytes(), *place).unwrap();
    }
    for place in places.iter().rev() {
        assert_eq!(read(&disk, *place, 8), place.to_le_bytes());
    }
    // Across two pages of the map.
    disk.write_at(&[5; 3000], 5 * PAGE_SPAN_BYTES - 1000).unwrap();
    disk.flush().unwrap();
    drop(disk);
    let disk = reopen(&file, &base).unwrap();
    for place in &places {
        assert_eq!(read(&disk, *place, 8), place.to_le_bytes());
    }
    assert_eq!(read(&disk, 5 * PAGE_SPAN_BYTES - 1000, 3000), [5; 3000]);
}

#[test]
fn impossible_sizes_are_refused() {
    let file = tempfile::tempfile().unwrap();
    for (base, size) in
        [(0, 0), (0, 511), (513, 512), (0, SIZE_BYTES_MAX + 512), (u64::MAX, u64::MAX), (u64::MAX, 512)]
    {
        assert!(
            matches!(Overlay::create(&file, base, size), Err(OverlayError::Size { .. })),
            "{base} {size}"
        );
    }
    Overlay::create(&file, 0, 512).unwrap();
}

#[test]
fn other_base_is_refused() {
    let (base, _) = base_file(4096);
    let (file, _) = overlay(&base, 4096, 8192);
    let (other, _) = base_file(8192);
    assert!(matches!(reopen(&file, &other), Err(OverlayError::Base { found: 8192, expected: 4096 })));
}

#[test]
fn foreign_and_shortened_files_are_refused() {
    let (base, _) = base_file(4096);
    let empty = tempfile::tempfile().unwrap();
    assert!(matches!(reopen(&empty, &base), Err(OverlayError::Header { .. })));
    assert!(matches!(reopen(&base, &base), Err(OverlayError::Header { .. })));
    let (file, _) = overlay(&base, 4096, 8192);
    let length = file.metadata().unwrap().len();
    for shorter in [length - 1, 8192, 4096, 100, 1] {
        file.set_len(shorter).unwrap();
        assert!(matches!(reopen(&file, &base), Err(OverlayError::Header { .. })), "{shorter}");
    }
}

#[test]
fn neighbours_in_one_cluster_may_be_written_at_the_same_time() {
    for _ in 0..50 {
        let (base, content) = base_file(4096);
        let (_file, disk) = overlay(&base, 4096, 4096);
        std::thread::scope(|scope| {
            for n in 0..4u8 {
                let disk = &disk;
                scope.spawn(move || disk.write_at(&[200 + n; 512], u64::from(n) * 1024).unwrap());
            }
            scope.spawn(|| disk.flush().unwrap());
        });
        for n in 0..4u8 {
            let at = usize::from(n) * 1024;
            assert_eq!(read(&disk, at as u64, 512), [200 + n; 512]);
            assert_eq!(read(&disk, at as u64 + 512, 512), content[at + 512..at + 1024]);
        }
    }
}

#[derive(Debug, Clone)]
enum Action {
    Write {
        offset: u64,
        length: usize,
        byte: u8,
    },
    Read {
        offset: u64,
        length: usize,
    },
    Discard {
        offset: u64,
        length: usize,
    },
    Zero {
        offset: u64,
        length: usize,
    },
    /// A write by somebody else that is under way from here on, if it can be located.
    Begin {
        cluster: u64,
        byte: u8,
    },
    /// All that is under way is done.
    Finish,
    Flush,
    Reopen,
}

const MODEL_BYTES: usize = 16 * 4096 + 512;

fn action(unit: usize) -> impl Strategy<Value = Action> {
    let place = (0..MODEL_BYTES / unit, 1..3 * 4096 / unit).prop_map(move |(offset, length)| {
        let offset = offset * unit;
        (offset as u64, (length * unit).min(MODEL_BYTES - offset))
    });
    prop_oneof![
        4 => (place.clone(), 1..=255u8).prop_map(|((offset, length), byte)| Action::Write { offset, length, byte }),
        2 => place.clone().prop_map(|(offset, length)| Action::Read { offset, length }),
        1 => place.clone().prop_map(|(offset, length)| Action::Discard { offset, length }),
        1 => place.prop_map(|(offset, length)| Action::Zero { offset, length }),
        3 => (0..MODEL_BYTES as u64 / CLUSTER_BYTES, 1..=255u8).prop_map(|(cluster, byte)| Action::Begin { cluster, byte }),
        1 => Just(Action::Finish),
        1 => Just(Action::Flush),
        1 => Just(Action::Reopen),
    ]
}

/// A disk in memory whose unsynced writes a power loss may lose, sector by sector.
#[derive(Debug, Clone)]
struct Platter(Arc<Mutex<Sectors>>);

#[derive(Debug, Default)]
struct Sectors {
    size_bytes: u64,
    live: BTreeMap<u64, Sector>,
    durable: BTreeMap<u64, Sector>,
    unsynced: Vec<(u64, Sector)>,
}

impl Platter {
    fn new(size_bytes: u64) -> Self {
        Self(Arc::new(Mutex::new(Sectors { size_bytes, ..Sectors::default() })))
    }

    /// Loses of what was not synced what `arrives` says no to.
    fn power_loss(&self, mut arrives: impl FnMut() -> bool) {
        let mut sectors = self.0.lock().unwrap();
        for (sector, data) in std::mem::take(&mut sectors.unsynced) {
            if arrives() {
                sectors.durable.insert(sector, data);
            }
        }
        sectors.live = sectors.durable.clone();
    }
}

impl Disk for Platter {
    fn size_bytes(&self) -> u64 {
        self.0.lock().unwrap().size_bytes
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let sectors = self.0.lock().unwrap();
        check_within(sectors.size_bytes, offset, length_of(buffer))?;
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let within = (at % 512) as usize;
            let count = (SECTOR - within).min(buffer.len() - done);
            let sector = sectors.live.get(&(at / 512)).unwrap_or(&[0; SECTOR]);
            buffer[done..done + count].copy_from_slice(&sector[within..within + count]);
            done += count;
        }
        Ok(())
    }

    fn write_at(&self, buffer: &[u8], offset: u64) -> io::Result<()> {
        let mut sectors = self.0.lock().unwrap();
        check_within(sectors.size_bytes, offset, length_of(buffer))?;
        assert!(offset.is_multiple_of(512) && buffer.len().is_multiple_of(512), "whole sectors");
        for (index, data) in buffer.chunks(SECTOR).enumerate() {
            let sector = offset / 512 + index as u64;
            let data: Sector = data.try_into().unwrap();
            sectors.live.insert(sector, data);
            sectors.unsynced.push((sector, data));
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let mut sectors = self.0.lock().unwrap();
        sectors.unsynced.clear();
        sectors.durable = sectors.live.clone();
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        assert!(offset.is_multiple_of(512) && length.is_multiple_of(512), "whole sectors");
        self.write_at(&vec![0; length as usize], offset)
    }

    /// Nobody's descriptor: who works there works on the platter.
    fn locate(&self, work: Work, extents: &mut Vec<Extent>) -> io::Result<bool> {
        let (Work::Read { offset, length } | Work::Write { offset, length }) = work else { return Ok(false) };
        let file = Some(crate::format::OpenFile { fd: -1, direct: false });
        extents.push(Extent { file, offset, length });
        Ok(true)
    }
}

/// What each sector may hold after a power loss: what it held at the last flush, and whatever was written since.
struct Allowed(Vec<BTreeSet<Sector>>);

impl Allowed {
    fn exactly(content: &[u8]) -> Self {
        Self(content.chunks(SECTOR).map(|sector| BTreeSet::from([sector.try_into().unwrap()])).collect())
    }

    fn also(&mut self, offset: u64, length: usize, content: &[u8]) {
        let first = offset as usize / SECTOR;
        for sector in first..first + length / SECTOR {
            self.0[sector].insert(content[sector * SECTOR..][..SECTOR].try_into().unwrap());
        }
    }

    fn check(&self, content: &[u8]) {
        for (index, sector) in content.chunks(SECTOR).enumerate() {
            assert!(
                self.0[index].contains(sector),
                "sector {index} holds what was never in it: {:?}",
                &sector[..4]
            );
        }
    }
}

/// Boundaries of interest: a base that ends within a sector's cluster, a disk that ends within a cluster.
const MODEL_BASE_BYTES: usize = 9 * 4096 + 1536;

proptest! {
    #[test]
    fn overlay_behaves_like_a_plain_disk(actions in proptest::collection::vec(action(1), 1..60)) {
        let (base, content) = base_file(MODEL_BASE_BYTES);
        let (file, mut disk) = overlay(&base, MODEL_BASE_BYTES as u64, MODEL_BYTES as u64);
        let mut model = content;
        model.resize(MODEL_BYTES, 0);
        for action in actions {
            match action {
                Action::Write { offset, length, byte } => {
                    disk.write_at(&vec![byte; length], offset).unwrap();
                    model[offset as usize..][..length].fill(byte);
                }
                Action::Read { offset, length } => {
                    prop_assert_eq!(&read(&disk, offset, length)[..], &model[offset as usize..][..length]);
                }
                Action::Discard { offset, length } => {
                    disk.discard(offset, length as u64).unwrap();
                    let after = read(&disk, offset, length);
                    for (now, before) in after.iter().zip(&model[offset as usize..]) {
                        prop_assert!(*now == 0 || now == before);
                    }
                    model[offset as usize..][..length].copy_from_slice(&after);
                }
                Action::Zero { offset, length } => {
                    disk.write_zeroes(offset, length as u64, length % 2 == 0).unwrap();
                    model[offset as usize..][..length].fill(0);
                }
                Action::Begin { cluster, byte } => {
                    let (offset, length) = (cluster * CLUSTER_BYTES, CLUSTER_BYTES);
                    let work = Work::Write { offset, length };
                    prop_assert!(work_at(&disk, work, &mut [byte; 4096]));
                    model[offset as usize..][..4096].fill(byte);
                }
                Action::Finish => {}
                Action::Flush => disk.flush().unwrap(),
                Action::Reopen => {
                    disk.flush().unwrap();
                    disk = reopen(&file, &base).unwrap();
                }
            }
        }
        for offset in (0..MODEL_BYTES).step_by(1000) {
            let data = disk.next_data(offset as u64).unwrap() as usize;
            prop_assert!(model[offset..data].iter().all(|byte| *byte == 0));
        }
        prop_assert_eq!(read(&disk, 0, MODEL_BYTES), model);
    }

    #[test]
    fn power_loss_leaves_each_sector_old_or_new(
        actions in proptest::collection::vec(action(SECTOR), 1..60),
        arrivals in proptest::collection::vec(any::<bool>(), 64),
    ) {
        let geometry = Geometry::new(MODEL_BASE_BYTES as u64, MODEL_BYTES as u64).unwrap();
        let base = Platter::new(MODEL_BASE_BYTES as u64);
        base.write_at(&base_file(MODEL_BASE_BYTES).1, 0).unwrap();
        let platter = Platter::new(geometry.file_size_bytes());
        let mut header = [0; SECTOR];
        header[..HEADER_FIELDS_BYTES].copy_from_slice(&geometry.encode());
        platter.write_at(&header, 0).unwrap();
        platter.flush().unwrap();
        let open = || Overlay::over(Box::new(platter.clone()), Box::new(base.clone())).unwrap();

        let mut disk = open();
        let mut model = read(&disk, 0, MODEL_BYTES);
        let mut allowed = Allowed::exactly(&model);
        let mut arrivals = arrivals.into_iter().cycle();
        let mut under_way: Vec<(u64, u8)> = Vec::new();
        for action in actions {
            if !matches!(action, Action::Begin { .. } | Action::Flush | Action::Reopen) {
                for (offset, byte) in under_way.drain(..) {
                    disk.finish(Work::Write { offset, length: CLUSTER_BYTES }, Ok(())).unwrap();
                    model[offset as usize..][..4096].fill(byte);
                    allowed.also(offset, 4096, &model);
                }
            }
            match action {
                Action::Begin { cluster, byte } => {
                    let (offset, mut extents) = (cluster * CLUSTER_BYTES, Vec::new());
                    // Two at once to one place have no order.
                    if under_way.iter().all(|(begun, _)| *begun != offset) {
                        let work = Work::Write { offset, length: CLUSTER_BYTES };
                        prop_assert!(disk.locate(work, &mut extents).unwrap());
                        platter.write_at(&[byte; 4096], extents[0].offset).unwrap();
                        under_way.push((offset, byte));
                        let mut after = model.clone();
                        after[offset as usize..][..4096].fill(byte);
                        allowed.also(offset, 4096, &after);
                    }
                }
                Action::Finish => {}
                Action::Zero { offset, length } => {
                    disk.write_zeroes(offset, length as u64, true).unwrap();
                    model[offset as usize..][..length].fill(0);
                    allowed.also(offset, length, &model);
                }
                Action::Write { offset, length, byte } => {
                    disk.write_at(&vec![byte; length], offset).unwrap();
                    model[offset as usize..][..length].fill(byte);
                    allowed.also(offset, length, &model);
                }
                Action::Read { offset, length } => {
                    prop_assert_eq!(&read(&disk, offset, length)[..], &model[offset as usize..][..length]);
                }
                Action::Discard { offset, length } => {
                    disk.discard(offset, length as u64).unwrap();
                    let after = read(&disk, offset, length);
                    model[offset as usize..][..length].copy_from_slice(&after);
                    allowed.also(offset, length, &model);
                }
                Action::Flush => {
                    disk.flush().unwrap();
                    allowed = Allowed::exactly(&model);
                    // What is under way may be there or not.
                    for (offset, byte) in &under_way {
                        let mut after = model.clone();
                        after[*offset as usize..][..4096].fill(*byte);
                        allowed.also(*offset, 4096, &after);
                    }
                }
                Action::Reopen => {
                    drop(disk);
                    under_way.clear();
                    platter.power_loss(|| arrivals.next().unwrap());
                    disk = open();
                    model = read(&disk, 0, MODEL_BYTES);
                    allowed.check(&model);
                    allowed = Allowed::exactly(&model);
                }
            }
        }
    }

    /// The interrupted flush: power goes between any two steps of it.
    #[test]
    fn power_loss_within_a_flush_leaves_each_sector_old_or_new(
        writes in proptest::collection::vec((0..MODEL_BYTES / SECTOR, 1..=255u8), 1..20),
        map_arrives in any::<bool>(),
        arrivals in proptest::collection::vec(any::<bool>(), 64),
    ) {
        let geometry = Geometry::new(MODEL_BASE_BYTES as u64, MODEL_BYTES as u64).unwrap();
        let base = Platter::new(MODEL_BASE_BYTES as u64);
        base.write_at(&base_file(MODEL_BASE_BYTES).1, 0).unwrap();
        let platter = Platter::new(geometry.file_size_bytes());
        let mut header = [0; SECTOR];
        header[..HEADER_FIELDS_BYTES].copy_from_slice(&geometry.encode());
        platter.write_at(&header, 0).unwrap();
        platter.flush().unwrap();
        let disk = Overlay::over(Box::new(platter.clone()), Box::new(base.clone())).unwrap();
        let mut model = read(&disk, 0, MODEL_BYTES);
        let mut allowed = Allowed::exactly(&model);
        for (sector, byte) in writes {
            disk.write_at(&[byte; SECTOR], (sector * SECTOR) as u64).unwrap();
            model[sector * SECTOR..][..SECTOR].fill(byte);
            allowed.also((sector * SECTOR) as u64, SECTOR, &model);
        }
        // The first half of a flush: the data is synced, the map is on its way.
        disk.map.persist(&*disk.file).unwrap();
        drop(disk);
        let mut arrivals = arrivals.into_iter().cycle();
        platter.power_loss(|| map_arrives || arrivals.next().unwrap());
        let disk = Overlay::over(Box::new(platter.clone()), Box::new(base)).unwrap();
        let after = read(&disk, 0, MODEL_BYTES);
        allowed.check(&after);
        if map_arrives {
            prop_assert_eq!(after, model);
        }
    }

    #[test]
    fn mangled_file_is_refused_or_read_but_never_panics(
        mangled in proptest::collection::vec((0..64u64, any::<u8>()), 0..12),
        map in proptest::collection::vec(any::<u8>(), 0..64),
        length in proptest::option::of(0..40_000u64),
    ) {
        let (base, _) = base_file(8192);
        let (file, disk) = overlay(&base, 8192, 20_480);
        drop(disk);
        for (at, byte) in mangled {
            file.write_all_at(&[byte], at).unwrap();
        }
        file.write_all_at(&map, 4096).unwrap();
        if let Some(length) = length {
            file.set_len(length).unwrap();
        }
        if let Ok(disk) = reopen(&file, &base) {
            let size = disk.size_bytes();
            let mut buffer = vec![0; 20_480];
            let _ = disk.read_at(&mut buffer, 0);
            let _ = disk.read_at(&mut buffer[..512], size - 512);
            let _ = disk.write_at(&buffer[..512], size - 512);
            let _ = disk.discard(0, size.min(1 << 30));
            let _ = disk.flush();
        }
    }

    #[test]
    fn any_header_is_refused_or_consistent(fields in proptest::collection::vec(prop_oneof![any::<u64>(), 0..1u64 << 44], 3)) {
        let mut header = Geometry::new(0, 512).unwrap().encode();
        for (index, field) in fields.iter().enumerate() {
            header[16 + index * 8..][..8].copy_from_slice(&field.to_le_bytes());
        }
        if let Ok(geometry) = Geometry::decode(&header) {
            prop_assert!(geometry.virtual_size_bytes <= SIZE_BYTES_MAX);
            prop_assert!(geometry.base_size_bytes <= geometry.virtual_size_bytes);
            prop_assert_eq!(geometry.encode(), header);
        }
    }
}

/// Does located work as somebody else would.
fn work_at(disk: &Overlay, work: Work, data: &mut [u8]) -> bool {
    let mut extents = Vec::new();
    if !disk.locate(work, &mut extents).unwrap() {
        assert!(extents.is_empty());
        return false;
    }
    let mut done = 0;
    for extent in extents {
        let part = &mut data[done..done + extent.length as usize];
        let Some(file) = extent.file else {
            part.fill(0);
            done += part.len();
            continue;
        };
        let file = std::fs::File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/self/fd/{}", file.fd))
            .unwrap();
        match work {
            Work::Read { .. } => file.read_exact_at(part, extent.offset).unwrap(),
            Work::Write { .. } => file.write_all_at(part, extent.offset).unwrap(),
            Work::Flush | Work::Discard { .. } => {}
        }
        done += part.len();
    }
    assert_eq!(done, data.len());
    disk.finish(work, Ok(())).unwrap();
    true
}

#[test]
fn located_work_does_what_the_disk_itself_would_do() {
    let (base, mut expected) = base_file(50_000);
    let size = 2 * PAGE_SPAN_BYTES;
    let (file, disk) = overlay(&base, 50_000, size);
    expected.resize(150_000, 0);
    let mut data = vec![7; 8192];
    assert!(work_at(&disk, Work::Write { offset: 8192, length: 8192 }, &mut data));
    expected[8192..16_384].fill(7);
    // A part of a cluster that is here, and of one that is not.
    assert!(work_at(&disk, Work::Write { offset: 8704, length: 512 }, &mut [8; 512]));
    expected[8704..9216].fill(8);
    assert!(!work_at(&disk, Work::Write { offset: 512, length: 512 }, &mut [9; 512]));
    assert!(!work_at(&disk, Work::Flush, &mut []), "bits are still to be written");
    let mut content = vec![1; 150_000];
    assert!(work_at(&disk, Work::Read { offset: 0, length: 150_000 }, &mut content));
    assert!(content == expected);
    // Under two pages of the map.
    let across = PAGE_SPAN_BYTES - 4096;
    assert!(work_at(&disk, Work::Write { offset: across, length: 8192 }, &mut data));
    disk.flush().unwrap();
    assert!(work_at(&disk, Work::Flush, &mut []));
    drop(disk);
    let disk = reopen(&file, &base).unwrap();
    assert_eq!(read(&disk, 0, 150_000), expected);
    assert_eq!(read(&disk, across, 8192), data);
    assert!(work_at(&disk, Work::Discard { offset: 0, length: 8192 }, &mut []), "there is nothing to free");
}

#[test]
fn sync_that_failed_elsewhere_is_the_last_one() {
    let (base, _) = base_file(4096);
    let (_file, disk) = overlay(&base, 4096, 1 << 20);
    let failed = disk.finish(Work::Flush, Err(io::Error::from_raw_os_error(5)));
    assert_eq!(failed.unwrap_err().raw_os_error(), Some(5));
    assert!(disk.flush().is_err());
    assert!(!disk.locate(Work::Flush, &mut Vec::new()).unwrap());
}

#[test]
fn zeroed_clusters_read_as_zeros_whatever_was_there_and_take_no_room() {
    use std::os::unix::fs::MetadataExt as _;
    let (base, mut expected) = base_file(100_000);
    let (file, disk) = overlay(&base, 100_000, 1 << 20);
    // What a crash leaves behind: data without a bit.
    let stale = disk.data_at(40_960);
    file.write_all_at(&[0xee; 8192], stale).unwrap();
    disk.write_zeroes(40_000, 30_000, true).unwrap();
    expected[40_000..70_000].fill(0);
    disk.write_zeroes(200_704, 500_000, true).unwrap();
    expected.resize(1 << 20, 0);
    disk.flush().unwrap();
    drop(disk);
    assert!(file.metadata().unwrap().blocks() < 100, "{}", file.metadata().unwrap().blocks());
    let disk = reopen(&file, &base).unwrap();
    assert!(read(&disk, 0, 1 << 20) == expected);
    disk.write_at(&[3; 4096], 45_056).unwrap();
    disk.write_zeroes(45_056, 4096, false).unwrap();
    assert!(read(&disk, 0, 1 << 20) == expected);
}
