//! Writing a snapshot. Memory may be written while the guest runs, if what it writes meanwhile is written again.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::SystemTime;

use rustix::fs::OFlags;
use vm_memory::{Bytes as _, GuestMemoryBackend as _, GuestMemoryRegion as _, MemoryRegionAddress};

use super::header::{self, Form, Header, SnapshotId};
use super::{Error, MachineState, PAGE_BYTES, file};
use crate::config::CpuProfile;
use crate::kvm::{CpuNeeds, DirtyPages, HostKind};
use crate::memory::pages::neighbours;
use crate::memory::{GuestMemory, MIB};

/// Bytes of what the table has an entry for.
pub(super) const CHUNK_BYTES: usize = MIB as usize;
/// Pages in it.
pub(super) const CHUNK_PAGES: usize = CHUNK_BYTES / PAGE_BYTES;
/// A page without anything.
const ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// What the header says beside what is computed.
#[derive(Debug, Clone)]
pub(crate) struct Description {
    pub(crate) cpu: CpuProfile,
    pub(crate) host: HostKind,
    pub(crate) needs: CpuNeeds,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// The snapshot's name.
    pub id: SnapshotId,
    /// Pages of memory.
    pub pages: u64,
    /// Bytes of the state section.
    pub state_bytes: u64,
}

/// A snapshot that is being written. What is in its file is none before [`Self::finish`].
pub(crate) struct Writer<'a> {
    to: &'a File,
    guest: &'a GuestMemory,
    size_mib: (u32, u32),
    /// For each chunk what of it is in the file.
    table: Vec<(ChunkMap, u32)>,
    buffer: Vec<u8>,
}

impl<'a> Writer<'a> {
    /// Whether a snapshot can be written to `file` at all, which stays as it is.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn check(to: &File) -> Result<(), Error> {
        let flags = rustix::fs::fcntl_getfl(to).map_err(|errno| file("look at the file of")(errno.into()))?;
        if flags.contains(OFlags::APPEND) { Err(Error::Appends) } else { Ok(()) }
    }

    /// Begins a snapshot of a guest with `memory_mib` MiB, of which `hotplug_mib` come and go, in `to`, whose content is gone.
    ///
    /// # Errors
    /// The file's.
    pub(crate) fn begin(
        to: &'a File,
        (memory_mib, hotplug_mib): (u32, u32),
        guest: &'a GuestMemory,
    ) -> Result<Self, Error> {
        let chunks = usize::try_from(memory_mib).expect("invariant: usize has 64 bits");
        let end = header::memory_at(memory_mib, Form::Flat) + u64::from(memory_mib) * MIB;
        to.set_len(0).and_then(|()| to.set_len(end)).map_err(file("make room for"))?;
        let table = vec![(ChunkMap::default(), 0); chunks];
        Ok(Self { to, guest, size_mib: (memory_mib, hotplug_mib), table, buffer: vec![0; CHUNK_BYTES] })
    }

    /// Writes all pages that are not zeros; of memory that comes and goes only those of each MiB that `is_there`, by its number
    /// in the region, and none of `free`, a set for each region or for none.
    ///
    /// # Errors
    /// The file's.
    pub(crate) fn all(&mut self, is_there: impl Fn(u64) -> bool, free: &[DirtyPages]) -> Result<(), Error> {
        let ram_regions = self.guest.num_regions() - usize::from(self.size_mib.1 > 0);
        let wanted = |region: usize, chunk: u64| {
            if region < ram_regions || is_there(chunk) {
                chunk_of(free, region, chunk).map(|free| !free)
            } else {
                ChunkMap::default()
            }
        };
        self.each_chunk(wanted, Keep::NotZero)
    }

    /// Writes pages that have changed since they were written, those of `dirty` for each region.
    ///
    /// # Errors
    /// The file's.
    pub(crate) fn again(&mut self, dirty: &[DirtyPages]) -> Result<(), Error> {
        self.each_chunk(|region, chunk| chunk_of(dirty, region, chunk), Keep::NotZero)
    }

    /// Writes the pages of `dirty` and nothing else, whatever is in them.
    ///
    /// # Errors
    /// The file's.
    pub(crate) fn differences(&mut self, dirty: &[DirtyPages]) -> Result<(), Error> {
        self.each_chunk(|region, chunk| chunk_of(dirty, region, chunk), Keep::All)
    }

    fn each_chunk(&mut self, wanted: impl Fn(usize, u64) -> ChunkMap, keep: Keep) -> Result<(), Error> {
        let mut at = header::memory_at(self.size_mib.0, Form::Flat);
        let mut entries = self.table.iter_mut();
        for (number, region) in self.guest.iter().enumerate() {
            for chunk in 0..region.len() / MIB {
                let wanted = wanted(number, chunk);
                let (map, checksum) = entries.next().expect("invariant: an entry for each MiB");
                if wanted != ChunkMap::default() {
                    region
                        .read_slice(&mut self.buffer, MemoryRegionAddress(chunk * MIB))
                        .expect("invariant: the chunk lies within its region");
                    let kept = match keep {
                        Keep::All => wanted,
                        Keep::NotZero => both(wanted, not_zero(&self.buffer)),
                    };
                    // What was in the file stays in it, though it be zeros now.
                    map.iter_mut().zip(kept).for_each(|(map, kept)| *map |= kept);
                    write_pages(self.to, at, &self.buffer, both(*map, wanted)).map_err(file("write"))?;
                    *checksum = checksum_of(&self.buffer, *map);
                }
                at += MIB;
            }
        }
        Ok(())
    }

    /// Writes everything else: the memory is the differences to `base`, or all there is. The file is not flushed.
    ///
    /// # Errors
    /// The file's.
    pub(crate) fn finish(
        self,
        base: Option<SnapshotId>,
        description: Description,
        state: &MachineState,
    ) -> Result<Written, Error> {
        let (mut header, encoded) = describe(self.size_mib, description, state)?;
        let mut table = Vec::with_capacity(self.table.len() * CHUNK_PAGES);
        self.table.iter().for_each(|(map, checksum)| table.extend(flat_entry(*map, *checksum)));
        header.base = base;
        header.table_checksum = crc32fast::hash(&table);
        let id = header.id;
        complete(self.to, &header, &table, &encoded)?;
        let pages = self.table.iter().flat_map(|(map, _)| map).map(|word| u64::from(word.count_ones())).sum();
        Ok(Written { id, pages, state_bytes: encoded.len() as u64 })
    }
}

/// The header of a full, flat snapshot of a guest with so many MiB, and so many of these that come and go, whose table is empty
/// still, and its state section.
pub(super) fn describe(
    (memory_mib, hotplug_mib): (u32, u32),
    description: Description,
    state: &MachineState,
) -> Result<(Header, Vec<u8>), Error> {
    let encoded = postcard::to_stdvec(state).expect("invariant: states are plain data");
    let mut id = SnapshotId::default();
    rustix::rand::getrandom(&mut id.0, rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| file("name")(errno.into()))?;
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let header = Header {
        id,
        base: None,
        memory_mib,
        hotplug_mib,
        vcpus: u8::try_from(state.vcpus.len()).expect("invariant: at most VCPUS_MAX"),
        cpu: description.cpu,
        host: description.host,
        needs: description.needs,
        taken_s: since.as_secs(),
        form: Form::Flat,
        memory_bytes: u64::from(memory_mib) * MIB,
        state: (encoded.len() as u64, crc32fast::hash(&encoded)),
        table_checksum: 0,
    };
    Ok((header, encoded))
}

/// Writes all but the memory, the header last.
pub(super) fn complete(to: &File, header: &Header, table: &[u8], state: &[u8]) -> Result<(), Error> {
    to.write_all_at(table, header::TABLE_AT).map_err(file("write"))?;
    to.write_all_at(state, header.state_at()).map_err(file("write"))?;
    to.write_all_at(&header.encode(), 0).map_err(file("write"))
}

/// A chunk's entry in the table.
pub(super) fn flat_entry(map: ChunkMap, checksum: u32) -> impl Iterator<Item = u8> {
    map.into_iter().flat_map(u64::to_le_bytes).chain(checksum.to_le_bytes())
}

/// What of the wanted pages is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    All,
    NotZero,
}

fn both(one: ChunkMap, other: ChunkMap) -> ChunkMap {
    std::array::from_fn(|index| one[index] & other[index])
}

/// The pages of a chunk that are not zeros.
pub(super) fn not_zero(chunk: &[u8]) -> ChunkMap {
    let mut map = ChunkMap::default();
    for (index, page) in chunk.chunks_exact(PAGE_BYTES).enumerate() {
        if page != ZEROS {
            map[index / 64] |= 1 << (index % 64);
        }
    }
    map
}

/// The pages of one chunk.
pub(super) type ChunkMap = [u64; CHUNK_PAGES / 64];

/// The bits of a chunk among those of its region.
fn chunk_of(dirty: &[DirtyPages], region: usize, chunk: u64) -> ChunkMap {
    let words = dirty.get(region).map_or(&[][..], |words| words);
    let first = usize::try_from(chunk).unwrap_or(usize::MAX).saturating_mul(CHUNK_PAGES / 64);
    std::array::from_fn(|index| words.get(first.saturating_add(index)).copied().unwrap_or(0))
}

/// Where the pages of a map lie in their chunk, neighbours together.
pub(super) fn runs(map: ChunkMap) -> impl Iterator<Item = std::ops::Range<usize>> {
    neighbours(map).map(|pages| pages.start * PAGE_BYTES..pages.end * PAGE_BYTES)
}

pub(super) fn write_pages(to: &File, at: u64, chunk: &[u8], map: ChunkMap) -> std::io::Result<()> {
    runs(map).try_for_each(|run| to.write_all_at(&chunk[run.clone()], at + run.start as u64))
}

/// The checksum of a chunk's pages.
pub(super) fn checksum_of(chunk: &[u8], map: ChunkMap) -> u32 {
    let mut checksum = crc32fast::Hasher::new();
    runs(map).for_each(|run| checksum.update(&chunk[run]));
    checksum.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_pages_are_written_together() {
        let pages =
            |map| runs(map).map(|run| (run.start / PAGE_BYTES, run.end / PAGE_BYTES)).collect::<Vec<_>>();
        assert_eq!(pages([0; 4]), []);
        assert_eq!(pages([u64::MAX; 4]), [(0, 256)]);
        assert_eq!(pages([0b1011, 0, 1 << 63, 1 | 1 << 63]), [(0, 2), (3, 4), (191, 193), (255, 256)]);
    }

    /// A guest of one MiB, of which pages 1 to 4 begin with their numbers.
    fn guest() -> GuestMemory {
        let guest = crate::memory::allocate(1).unwrap();
        (1..5).for_each(|page| put(&guest, page, page));
        guest
    }

    fn put(guest: &GuestMemory, page: u64, value: u64) {
        guest.write_obj(value, vm_memory::GuestAddress(page * 4096)).unwrap();
    }

    #[test]
    fn file_that_is_open_for_appending_is_refused_as_it_is() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "something").unwrap();
        let open = |append| File::options().write(true).append(append).open(&file).unwrap();
        Writer::check(&open(false)).unwrap();
        assert!(matches!(Writer::check(&open(true)), Err(Error::Appends)));
        assert_eq!(std::fs::read(&file).unwrap(), b"something");
    }

    #[test]
    fn page_that_changed_is_written_again_and_one_that_became_zeros_is_zeros_in_the_file() {
        let guest = guest();
        let file = tempfile::tempfile().unwrap();
        let mut writer = Writer::begin(&file, (1, 0), &guest).unwrap();
        writer.all(|_| true, &[]).unwrap();
        put(&guest, 1, 11);
        put(&guest, 2, 0);
        put(&guest, 3, 33);
        put(&guest, 9, 99);
        // Page 3 was not noted, so nobody looks at it.
        let dirty = vec![vec![1 << 1 | 1 << 2 | 1 << 9, 0, 0, 0]];
        writer.again(&dirty).unwrap();
        assert_eq!(writer.table[0].0, [0b10_0001_1110, 0, 0, 0]);
        let read = |page: u64| {
            let mut word = [0; 8];
            file.read_exact_at(&mut word, header::memory_at(1, Form::Flat) + page * 4096).unwrap();
            u64::from_le_bytes(word)
        };
        assert_eq!([1, 2, 3, 4, 9].map(read), [11, 0, 3, 4, 99]);
    }

    #[test]
    fn free_page_is_left_out_unless_it_was_written_to_meanwhile() {
        let guest = guest();
        let file = tempfile::tempfile().unwrap();
        let mut writer = Writer::begin(&file, (1, 0), &guest).unwrap();
        writer.all(|_| true, &[vec![1 << 2 | 1 << 3, 0, 0, 0]]).unwrap();
        assert_eq!(writer.table[0].0, [0b1_0010, 0, 0, 0]);
        put(&guest, 3, 33);
        writer.again(&[vec![1 << 3, 0, 0, 0]]).unwrap();
        assert_eq!(writer.table[0].0, [0b1_1010, 0, 0, 0]);
        let mut words = [0; 3 * 4096];
        file.read_exact_at(&mut words, header::memory_at(1, Form::Flat) + 4096).unwrap();
        assert_eq!([words[0], words[4096], words[2 * 4096]], [1, 0, 33], "what is left out is zeros");
    }
}
