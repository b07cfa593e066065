//! Writing a snapshot.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::SystemTime;

use vm_memory::{Bytes as _, GuestMemoryBackend as _, GuestMemoryRegion as _, MemoryRegionAddress};

use super::header::{CHUNK_ENTRY_BYTES, Header, SnapshotId};
use super::{Error, MachineState, PAGE_BYTES, file};
use crate::config::CpuProfile;
use crate::kvm::{CpuNeeds, DirtyPages, HostKind};
use crate::memory::{GuestMemory, MIB};

/// Bytes of what the table has an entry for.
pub(super) const CHUNK_BYTES: usize = MIB as usize;
/// Pages in it.
pub(super) const CHUNK_PAGES: usize = CHUNK_BYTES / PAGE_BYTES;
/// A page without anything.
const ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// Which pages are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind<'a> {
    /// All that are not zeros.
    Full,
    /// These, for each region, whatever is in them, which differ from the snapshot of that name.
    Differences(SnapshotId, &'a [DirtyPages]),
}

/// What the header says beside what is computed.
#[derive(Debug, Clone)]
pub(crate) struct Description {
    pub(crate) cpu: CpuProfile,
    pub(crate) host: HostKind,
    pub(crate) needs: CpuNeeds,
    pub(crate) memory_mib: u32,
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

/// Writes a snapshot of a machine that stands still to `to`, whose content is replaced. It is not flushed.
///
/// # Errors
/// The file's; what is there then is no snapshot.
pub(crate) fn write(
    to: &File,
    kind: Kind<'_>,
    description: Description,
    state: &MachineState,
    guest: &GuestMemory,
) -> Result<Written, Error> {
    let encoded = postcard::to_stdvec(state).expect("invariant: states are plain data");
    let mut id = SnapshotId::default();
    rustix::rand::getrandom(&mut id.0, rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| file("name")(errno.into()))?;
    let vcpus = u8::try_from(state.vcpus.len()).expect("invariant: at most VCPUS_MAX");
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let base = match kind {
        Kind::Full => None,
        Kind::Differences(base, _) => Some(base),
    };
    let mut header = Header {
        id,
        base,
        memory_mib: description.memory_mib,
        vcpus,
        cpu: description.cpu,
        host: description.host,
        needs: description.needs,
        taken_s: since.as_secs(),
        state: (encoded.len() as u64, crc32fast::hash(&encoded)),
        table_checksum: 0,
    };
    to.set_len(0).and_then(|()| to.set_len(header.file_bytes())).map_err(file("make room for"))?;
    let mut table = Vec::with_capacity(usize::try_from(header.table_bytes()).unwrap_or(0));
    let pages = write_memory(to, header.memory_at(), kind, guest, &mut table)?;
    header.table_checksum = crc32fast::hash(&table);
    to.write_all_at(&table, header.table_at()).map_err(file("write"))?;
    to.write_all_at(&encoded, header.state_at()).map_err(file("write"))?;
    to.write_all_at(&header.encode(), 0).map_err(file("write"))?;
    Ok(Written { id, pages, state_bytes: encoded.len() as u64 })
}

/// Writes the pages from `offset` on and fills the table; how many there were.
fn write_memory(
    to: &File,
    offset: u64,
    kind: Kind<'_>,
    guest: &GuestMemory,
    table: &mut Vec<u8>,
) -> Result<u64, Error> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let (mut at, mut pages) = (offset, 0);
    for (number, region) in guest.iter().enumerate() {
        for chunk in 0..region.len() / MIB {
            let wanted = match kind {
                Kind::Full => Wanted::NotZero,
                Kind::Differences(_, dirty) => {
                    let words = dirty.get(number).map_or(&[][..], |words| words);
                    Wanted::These(chunk_of(words, chunk))
                }
            };
            let map = match wanted {
                Wanted::These([0, 0, 0, 0]) => [0; 4],
                _ => {
                    region
                        .read_slice(&mut buffer, MemoryRegionAddress(chunk * MIB))
                        .expect("invariant: the chunk lies within its region");
                    wanted.among(&buffer)
                }
            };
            pages += map.iter().map(|word| u64::from(word.count_ones())).sum::<u64>();
            let checksum = write_chunk(to, at, &buffer, map).map_err(file("write"))?;
            map.iter().for_each(|word| table.extend(word.to_le_bytes()));
            table.extend(checksum.to_le_bytes());
            at += MIB;
        }
    }
    debug_assert_eq!(table.len() as u64 % CHUNK_ENTRY_BYTES, 0, "each entry is as long as the others");
    Ok(pages)
}

/// The pages of one chunk.
pub(super) type ChunkMap = [u64; CHUNK_PAGES / 64];

/// The bits of a chunk among those of a region.
fn chunk_of(words: &[u64], chunk: u64) -> ChunkMap {
    let first = usize::try_from(chunk).unwrap_or(usize::MAX).saturating_mul(CHUNK_PAGES / 64);
    std::array::from_fn(|index| words.get(first.saturating_add(index)).copied().unwrap_or(0))
}

enum Wanted {
    NotZero,
    These(ChunkMap),
}

impl Wanted {
    fn among(&self, chunk: &[u8]) -> ChunkMap {
        match self {
            Self::These(map) => *map,
            Self::NotZero => {
                let mut map = [0; CHUNK_PAGES / 64];
                for (index, page) in chunk.chunks_exact(PAGE_BYTES).enumerate() {
                    if page != ZEROS {
                        map[index / 64] |= 1 << (index % 64);
                    }
                }
                map
            }
        }
    }
}

/// Where the pages of a map lie in their chunk, neighbours together.
pub(super) fn runs(map: ChunkMap) -> impl Iterator<Item = std::ops::Range<usize>> {
    let is_set = move |page: usize| page < CHUNK_PAGES && map[page / 64] >> (page % 64) & 1 != 0;
    let mut next = 0;
    std::iter::from_fn(move || {
        let start = (next..CHUNK_PAGES).find(|page| is_set(*page))?;
        next = (start..=CHUNK_PAGES).find(|page| !is_set(*page)).unwrap_or(CHUNK_PAGES);
        Some(start * PAGE_BYTES..next * PAGE_BYTES)
    })
}

/// Writes the pages of one chunk; their checksum.
fn write_chunk(to: &File, at: u64, chunk: &[u8], map: ChunkMap) -> std::io::Result<u32> {
    let mut checksum = crc32fast::Hasher::new();
    for run in runs(map) {
        checksum.update(&chunk[run.clone()]);
        to.write_all_at(&chunk[run.clone()], at + run.start as u64)?;
    }
    Ok(checksum.finalize())
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
}
