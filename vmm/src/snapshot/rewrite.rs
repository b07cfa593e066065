//! Making one snapshot of others, in the form that is wanted.

use std::fs::File;

use vm_memory::{Address as _, Bytes as _, GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion as _};

use super::contents::Contents;
use super::header::{Form, Header, memory_at};
use super::packed::{BLOCK_BYTES, BLOCKS, Packer};
use super::read::{Snapshot, read_header, state_bytes};
use super::write::{CHUNK_BYTES, ChunkMap, checksum_of, complete, flat_entry, not_zero, write_pages};
use super::{CHAIN_MAX, Error, file};
use crate::memory::{GuestMemory, MIB};

/// Writes into `to` what `files` have together: a full snapshot, and those with differences, each to the one before, become
/// a full one; one by itself stays what it is. It has the newest one's name, so differences to that one are differences to
/// it. `progress` is told how many MiB of memory have been gone through. The file is not flushed.
///
/// # Errors
/// One of them is none that this program can read, or they do not belong together; what is in `to` is none then.
pub fn rewrite(
    mut files: Vec<File>,
    form: Form,
    to: &File,
    progress: &mut dyn FnMut(u64),
) -> Result<Header, Error> {
    if files.len() > CHAIN_MAX {
        return Err(Error::TooMany);
    }
    let newest = files.pop().ok_or(Error::NoSnapshot)?;
    let header = read_header(&newest)?;
    let state = state_bytes(&newest, &header)?;
    if files.is_empty() {
        let mut contents = Contents::read(&newest, &header)?;
        let output = Output::begin(to, form, header.memory_mib)?;
        return output.fill(header, &state, progress, |index, buffer| contents.chunk(index, buffer));
    }
    files.push(newest);
    let memory = Snapshot::open(files, None)?.memory;
    let output = Output::begin(to, form, header.memory_mib)?;
    let header = Header { base: None, ..header };
    output.fill(header, &state, progress, |index, buffer| {
        memory.read_slice(buffer, place(index, &memory)).expect("invariant: a MiB of the guest's memory");
        Ok(not_zero(buffer))
    })
}

/// Where a MiB of a guest's memory lies.
fn place(index: u64, memory: &GuestMemory) -> GuestAddress {
    let mut left = index * MIB;
    for region in memory.iter() {
        if left < region.len() {
            return region.start_addr().unchecked_add(left);
        }
        left -= region.len();
    }
    unreachable!("invariant: a MiB of the guest's memory")
}

/// A snapshot that is being written.
struct Output<'a> {
    to: &'a File,
    form: Form,
    memory_at: u64,
    /// Bytes of memory so far, if it is packed.
    packed: u64,
    table: Vec<u8>,
    packer: Packer,
}

impl<'a> Output<'a> {
    fn begin(to: &'a File, form: Form, memory_mib: u32) -> Result<Self, Error> {
        let memory_at = memory_at(memory_mib, form);
        let bytes = match form {
            Form::Flat => u64::from(memory_mib) * MIB,
            Form::Packed => 0,
        };
        to.set_len(0).and_then(|()| to.set_len(memory_at + bytes)).map_err(file("make room for"))?;
        Ok(Self { to, form, memory_at, packed: 0, table: Vec::new(), packer: Packer::default() })
    }

    /// Writes all, with the memory that `chunk` gives a MiB at a time.
    fn fill(
        mut self,
        header: Header,
        state: &[u8],
        progress: &mut dyn FnMut(u64),
        mut chunk: impl FnMut(u64, &mut [u8]) -> Result<ChunkMap, Error>,
    ) -> Result<Header, Error> {
        let mut buffer = vec![0; CHUNK_BYTES];
        for index in 0..u64::from(header.memory_mib) {
            let map = chunk(index, &mut buffer)?;
            self.put(index, &buffer, map)?;
            progress(index + 1);
        }
        let memory_bytes = match self.form {
            Form::Flat => u64::from(header.memory_mib) * MIB,
            Form::Packed => self.packed,
        };
        let table_checksum = crc32fast::hash(&self.table);
        let header = Header { form: self.form, memory_bytes, table_checksum, ..header };
        complete(self.to, &header, &self.table, state)?;
        Ok(header)
    }

    fn put(&mut self, index: u64, buffer: &[u8], map: ChunkMap) -> Result<(), Error> {
        match self.form {
            Form::Flat => {
                write_pages(self.to, self.memory_at + index * MIB, buffer, map).map_err(file("write"))?;
                self.table.extend(flat_entry(map, checksum_of(buffer, map)));
            }
            Form::Packed => {
                for place in 0..BLOCKS {
                    let [low, high, ..] = (map[place / 4] >> (16 * (place % 4))).to_le_bytes();
                    let pages = u16::from_le_bytes([low, high]);
                    let block = &buffer[place * BLOCK_BYTES..(place + 1) * BLOCK_BYTES];
                    let entry = self.packer.pack(block, pages, self.to, (self.memory_at, self.packed))?;
                    self.packed += Packer::length(entry);
                    self.table.extend(entry.encode());
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::super::mock;
    use super::super::{Description, SnapshotId, Writer, verify};
    use super::*;
    use crate::config::HugePages;
    use crate::memory;

    fn rewritten(files: Vec<File>, form: Form) -> (File, Header) {
        let to = tempfile::tempfile().unwrap();
        let mut gone_through = Vec::new();
        let header = rewrite(files, form, &to, &mut |mib| gone_through.push(mib)).unwrap();
        assert_eq!(gone_through.last(), Some(&u64::from(header.memory_mib)));
        assert_eq!(verify(&to).unwrap(), header);
        (to, header)
    }

    fn clone(file: &File) -> File {
        file.try_clone().unwrap()
    }

    fn bytes(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn memory(files: Vec<File>) -> Vec<u8> {
        let snapshot = Snapshot::open(files, None).unwrap();
        let mut bytes = vec![0; 1 << 20];
        snapshot.memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        bytes
    }

    #[test]
    fn packed_is_shorter_has_the_same_memory_and_becomes_the_same_file_again() {
        let flat = tempfile::tempfile().unwrap();
        flat.write_all_at(&mock::snapshot(&mock::state(Vec::new())), 0).unwrap();
        let (packed, header) = rewritten(vec![clone(&flat)], Form::Packed);
        assert!(header.memory_bytes < 3 * 4096, "{}", header.memory_bytes);
        assert_eq!(memory(vec![clone(&packed)]), memory(vec![clone(&flat)]));
        let (again, _) = rewritten(vec![packed], Form::Flat);
        assert!(bytes(&again) == bytes(&flat));
    }

    #[test]
    fn full_one_and_differences_become_a_full_one_of_the_newest_name() {
        let state = mock::state(Vec::new());
        let flat = tempfile::tempfile().unwrap();
        flat.write_all_at(&mock::snapshot(&state), 0).unwrap();
        let base = read_header(&flat).unwrap();
        let guest = memory::allocate(1).unwrap();
        guest.write_obj(77_u64, GuestAddress(2 * 4096)).unwrap();
        let differences = tempfile::tempfile().unwrap();
        let mut writer = Writer::begin(&differences, (1, 0), &guest).unwrap();
        // One page has become zeros.
        writer.differences(&[vec![1 << 1 | 1 << 2, 0, 0, 0]]).unwrap();
        let description = Description { cpu: base.cpu, host: base.host, needs: base.needs.clone() };
        let written = writer.finish(Some(base.id), description, &state).unwrap();
        let (small, _) = rewritten(vec![clone(&differences)], Form::Packed);
        let wanted = memory(vec![clone(&flat), clone(&differences)]);
        for (form, last) in [(Form::Flat, differences), (Form::Packed, small)] {
            let (merged, header) = rewritten(vec![clone(&flat), last], form);
            assert_eq!((header.id, header.base), (written.id, None));
            assert!(memory(vec![merged]) == wanted);
        }
        assert_eq!((wanted[4096], wanted[8192], wanted[200 * 4096]), (0, 77, 200));
    }

    #[test]
    fn those_that_do_not_belong_together_make_none() {
        let file = || {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&mock::snapshot(&mock::state(Vec::new())), 0).unwrap();
            file
        };
        let to = tempfile::tempfile().unwrap();
        assert!(matches!(rewrite(Vec::new(), Form::Flat, &to, &mut |_| ()), Err(Error::NoSnapshot)));
        let two = rewrite(vec![file(), file()], Form::Flat, &to, &mut |_| ());
        assert!(matches!(two, Err(Error::Invalid("a full snapshot behind another"))));
        assert_eq!(to.metadata().unwrap().len(), 0);
        assert_ne!(read_header(&file()).unwrap().id, SnapshotId::default());
    }

    #[test]
    fn memory_above_the_hole_is_found_behind_it() {
        let memory = memory::allocate(3073).unwrap();
        assert_eq!(place(0, &memory), GuestAddress(0));
        assert_eq!(place(3071, &memory), GuestAddress(3071 * MIB));
        assert_eq!(place(3072, &memory), GuestAddress(4096 * MIB));
        let memory = memory::with_hotplug(&memory, (3073, 128), HugePages::None).unwrap();
        assert_eq!(place(3073, &memory), GuestAddress((4096 + 128) * MIB));
    }
}
