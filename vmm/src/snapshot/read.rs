//! Reading snapshots, which may come from anywhere.

use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use vm_memory::{Bytes as _, GuestMemoryBackend as _, GuestMemoryRegion as _, MemoryRegionAddress};

use super::contents::Contents;
use super::header::{self, FORM_AT, Form, HEADER_BYTES, Header, STATE_BYTES_MAX};
use super::pager::{Lazily, Pager};
use super::write::{CHUNK_BYTES, runs};
use super::{CHAIN_MAX, DEVICES_MAX, Error, MachineState, SnapshotId, file};
use crate::config::HugePages;
use crate::memory::shared::Shared;
use crate::memory::{self, GuestMemory, MIB};

/// A snapshot, checked, with the machine's state and memory.
pub struct Snapshot {
    /// What it says of itself; the newest of the chain's.
    pub header: Header,
    /// All but the memory.
    pub state: MachineState,
    /// The memory, mapped, with all differences in it.
    pub memory: GuestMemory,
    /// What fills it, if it was packed and is filled as it is asked for; to be kept as long as the memory.
    pub pager: Option<Pager>,
}

/// Whether a file, were it a snapshot, would be a packed one: for a process that is not confined yet and must know what to
/// open for it. Nothing else is looked at, and nothing is checked.
#[must_use]
pub fn says_packed(from: &File) -> bool {
    let mut byte = [0];
    from.read_exact_at(&mut byte, FORM_AT).is_ok() && header::form_of(byte[0]) == Some(Form::Packed)
}

/// The header of the snapshot in `from`, checked, together with its file's length.
///
/// # Errors
/// It is none that this program can read.
pub fn read_header(from: &File) -> Result<Header, Error> {
    let mut bytes = [0; HEADER_BYTES];
    match from.read_exact_at(&mut bytes, 0) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Err(Error::NoSnapshot),
        Err(error) => return Err(file("read")(error)),
    }
    let header = Header::decode(&bytes)?;
    // Not by `metadata`, which asks by system calls that a confined process has not.
    let mut end = from;
    let found = end.seek(SeekFrom::End(0)).map_err(file("read"))?;
    let expected = header.file_bytes();
    if found == expected { Ok(header) } else { Err(Error::Length { expected, found }) }
}

/// The state section's bytes.
pub(super) fn state_bytes(from: &File, header: &Header) -> Result<Vec<u8>, Error> {
    let (bytes, checksum) = header.state;
    debug_assert!(bytes <= STATE_BYTES_MAX, "the header was checked");
    let mut state = vec![0; usize::try_from(bytes).expect("invariant: bounded")];
    from.read_exact_at(&mut state, header.state_at()).map_err(file("read"))?;
    if crc32fast::hash(&state) != checksum {
        return Err(Error::Damaged("state"));
    }
    Ok(state)
}

/// The state section.
fn read_state(from: &File, header: &Header) -> Result<MachineState, Error> {
    super::message::decode_state(header, &state_bytes(from, header)?)
}

/// A machine's state as the state section has it.
///
/// # Errors
/// It is none.
pub fn parse_state(bytes: &[u8]) -> Result<MachineState, Error> {
    let (state, rest): (MachineState, &[u8]) = postcard::take_from_bytes(bytes).map_err(Error::State)?;
    if !rest.is_empty() || state.devices.len() > DEVICES_MAX {
        return Err(Error::Invalid("its state"));
    }
    Ok(state)
}

/// Checks all of a snapshot, memory too, which takes as long as reading it.
///
/// # Errors
/// What is wrong with it.
pub fn verify(from: &File) -> Result<Header, Error> {
    let header = read_header(from)?;
    read_state(from, &header)?;
    let mut contents = Contents::read(from, &header)?;
    let mut buffer = vec![0; CHUNK_BYTES];
    for index in 0..u64::from(header.memory_mib) {
        contents.chunk(index, &mut buffer)?;
    }
    Ok(header)
}

impl Snapshot {
    /// Opens a full snapshot and those with differences to it, each to the one before, and has the memory. Of a flat one
    /// it is mapped: time and memory that this takes do not depend on how much the guest has, only on how much is different.
    /// A packed one is unpacked as it is asked for by `lazily`, or at once without.
    ///
    /// # Errors
    /// One of them is none that this program can read, or they do not belong together.
    pub fn open(files: Vec<File>, lazily: Option<Lazily>) -> Result<Self, Error> {
        Self::open_at(files, lazily, |_| None)
    }

    /// The same where `place` has one for so many MiB of RAM, which nobody has touched.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(crate) fn open_at(
        files: Vec<File>,
        lazily: Option<Lazily>,
        place: impl FnOnce(u32) -> Option<GuestMemory>,
    ) -> Result<Self, Error> {
        Self::open_chain(files, |header, full| match header.form {
            Form::Flat if lazily.as_ref().is_some_and(Lazily::has_working_set) => Err(Error::NoWorkingSet),
            Form::Flat => {
                let (all_mib, hotplug_mib) = size_of(header);
                let place = place(all_mib - hotplug_mib);
                let memory = memory::map_private(size_of(header), (full, header.memory_at()), place)?;
                Ok((memory, None))
            }
            Form::Packed => {
                let (all_mib, hotplug_mib) = size_of(header);
                let ram_mib = all_mib - hotplug_mib;
                let ram = place(ram_mib).map_or_else(|| memory::allocate(ram_mib), Ok)?;
                let memory = memory::with_hotplug(&ram, (ram_mib, hotplug_mib), HugePages::None)?;
                let pager = match lazily {
                    Some(lazily) => Some(Pager::start(lazily, full, header, &memory)?),
                    None => {
                        apply(full, header, &memory)?;
                        None
                    }
                };
                Ok((memory, pager))
            }
        })
    }

    /// The same with a copy of the memory in `shared`, which is empty.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(crate) fn open_into(files: Vec<File>, shared: &Shared) -> Result<Self, Error> {
        Self::open_chain(files, |header, full| {
            if header.hotplug_mib > 0 {
                return Err(memory::Error::SharedHotplug.into());
            }
            let memory = shared.allocate(header.memory_mib)?;
            apply(full, header, &memory)?;
            Ok((memory, None))
        })
    }

    /// Opens them; `have` has the memory of the first.
    fn open_chain(
        files: Vec<File>,
        have: impl FnOnce(&Header, &Arc<File>) -> Result<(GuestMemory, Option<Pager>), Error>,
    ) -> Result<Self, Error> {
        if files.len() > CHAIN_MAX {
            return Err(Error::TooMany);
        }
        let mut files = files.into_iter();
        let full = files.next().ok_or(Error::NoSnapshot)?;
        let mut header = read_header(&full)?;
        follows(&header, None)?;
        let mut newest = Arc::new(full);
        let (memory, pager) = have(&header, &newest)?;
        for differences in files {
            let next = read_header(&differences)?;
            follows(&next, Some(header.id))?;
            if size_of(&next) != size_of(&header) {
                return Err(Error::Invalid("its memory, which is another than its base's,"));
            }
            apply(&differences, &next, &memory)?;
            (header, newest) = (next, Arc::new(differences));
        }
        let state = read_state(&newest, &header)?;
        Ok(Self { header, state, memory, pager })
    }
}

/// How much memory there is, and how much of that comes and goes.
fn size_of(header: &Header) -> (u32, u32) {
    (header.memory_mib, header.hotplug_mib)
}

/// Whether a snapshot has the differences to what comes before it.
fn follows(header: &Header, before: Option<SnapshotId>) -> Result<(), Error> {
    match (header.base, before) {
        (None, None) => Ok(()),
        (Some(base), Some(before)) if base == before => Ok(()),
        (Some(base), before) => {
            let before = before.map_or_else(|| "nothing".to_owned(), |before| before.to_string());
            Err(Error::Chain { id: header.id, base, before })
        }
        (None, Some(_)) => Err(Error::Invalid("a full snapshot behind another")),
    }
}

/// Puts what a snapshot has into memory, each page checked.
fn apply(from: &File, header: &Header, guest: &GuestMemory) -> Result<(), Error> {
    let mut contents = Contents::read(from, header)?;
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut index = 0;
    for region in guest.iter() {
        for chunk in 0..region.len() / MIB {
            for run in runs(contents.chunk(index, &mut buffer)?) {
                let place = MemoryRegionAddress(chunk * MIB + run.start as u64);
                region.write_slice(&buffer[run], place).expect("invariant: the chunk lies within its region");
            }
            index += 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::super::mock;
    use super::*;

    fn file(bytes: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file
    }

    fn open(bytes: &[u8]) -> Result<Snapshot, Error> {
        Snapshot::open(vec![file(bytes)], None)
    }

    fn refusal(bytes: &[u8]) -> String {
        open(bytes).err().map_or_else(|| "taken".to_owned(), |error| error.to_string())
    }

    #[test]
    fn snapshot_reads_back_with_its_memory_and_what_is_written_there_stays_here() {
        let bytes = mock::snapshot(&mock::state(Vec::new()));
        let file = file(&bytes);
        verify(&file).unwrap();
        let open = || Snapshot::open(vec![file.try_clone().unwrap()], None).unwrap();
        let (first, second) = (open(), open());
        let read = |snapshot: &Snapshot, page: u64| -> u64 {
            snapshot.memory.read_obj(vm_memory::GuestAddress(page * 4096)).unwrap()
        };
        first.memory.write_obj(9_u64, vm_memory::GuestAddress(4096)).unwrap();
        assert_eq!((read(&first, 1), read(&second, 1)), (9, 1));
        assert_eq!((read(&second, 2), read(&second, 3), read(&second, 200)), (2, 0, 200));
        assert_eq!(second.state.vcpus.len(), 1);
        assert_eq!(crate::memory::ram_ranges(second.header.memory_mib).len(), 1);
    }

    #[test]
    fn form_is_told_by_one_byte_before_anything_is_checked() {
        let mut bytes = mock::snapshot(&mock::state(Vec::new()));
        assert!(!says_packed(&file(&bytes)) && !says_packed(&file(b"")));
        bytes[103] = 1;
        assert!(says_packed(&file(&bytes)));
    }

    #[test]
    fn no_flipped_bit_of_header_or_state_passes() {
        let bytes = mock::snapshot(&mock::state(Vec::new()));
        let file = file(&bytes);
        let header = read_header(&file).unwrap();
        for at in mock::state_range(&bytes).unwrap() {
            for bit in 0..8 {
                file.write_all_at(&[bytes[at] ^ (1 << bit)], at as u64).unwrap();
                let error = read_state(&file, &header).unwrap_err();
                assert!(matches!(error, Error::Damaged("state")), "{at}: {error}");
            }
            file.write_all_at(&bytes[at..=at], at as u64).unwrap();
        }
        read_state(&file, &header).unwrap();
    }

    #[test]
    fn damaged_memory_and_table_are_found_by_whoever_looks() {
        let bytes = mock::snapshot(&mock::state(Vec::new()));
        let header = Header::decode(bytes.first_chunk().unwrap()).unwrap();
        let memory_at = usize::try_from(header.memory_at()).unwrap();
        let verified = |at: usize| {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            verify(&file(&flipped)).unwrap_err().to_string()
        };
        assert!(verified(memory_at + 200 * 4096).contains("the MiB of memory at 0x0 does not match"));
        assert!(verified(HEADER_BYTES).contains("its table does not match"));
    }

    #[test]
    fn other_files_other_lengths_and_other_versions_are_refused_in_a_sentence() {
        let bytes = mock::snapshot(&mock::state(Vec::new()));
        assert_eq!(refusal(b""), "the file is no snapshot");
        assert_eq!(refusal(&bytes[..100]), "the file is no snapshot");
        assert_eq!(refusal(&vec![0; 10_000]), "the file is no snapshot");
        let short = refusal(&bytes[..bytes.len() - 1]);
        assert!(short.contains("is cut off") && short.contains(&bytes.len().to_string()), "{short}");
        assert!(refusal(&[&bytes[..], b"x"].concat()).contains("is cut off"));
        let mut other = bytes.clone();
        other[8] = 1;
        assert_eq!(refusal(&other), "the snapshot is of version 1, and this program reads version 3");
        let many = (0..=CHAIN_MAX).map(|_| file(&bytes)).collect();
        assert!(matches!(Snapshot::open(many, None), Err(Error::TooMany)));
    }

    #[test]
    fn state_that_is_none_is_refused_whatever_its_checksum() {
        let bytes = mock::snapshot(&mock::state(Vec::new()));
        let range = mock::state_range(&bytes).unwrap();
        for fill in [0xff, 0x80] {
            let mut wrong = bytes.clone();
            wrong[range.clone()].fill(fill);
            assert!(mock::seal(&mut wrong));
            assert_eq!(refusal(&wrong), "the snapshot's state cannot be read");
        }
    }
}
