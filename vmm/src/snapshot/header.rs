//! A snapshot's first page: what the file is, what it needs, and where its parts lie.

use vm_memory::GuestAddress;

use super::{Error, PAGE_BYTES};
use crate::config::{CpuProfile, MEMORY_MIB_MAX, VCPUS_MAX};
use crate::kvm::{CpuNeeds, FeatureWord, HostKind, WORDS_MAX};
use crate::memory::{self, HOTPLUG_ALIGNMENT_MIB, MIB};

/// The first bytes of every snapshot.
pub(super) const MAGIC: [u8; 8] = *b"WISPSNAP";
/// The version that this program writes, and the only one that it reads.
pub const VERSION: u32 = 3;
/// Bytes of the header.
pub(super) const HEADER_BYTES: usize = PAGE_BYTES;
/// The largest state section in bytes: of 254 vCPUs and all devices with room to spare.
pub(super) const STATE_BYTES_MAX: u64 = 16 << 20;
/// Bytes of a chunk's entry in the table of a flat snapshot.
pub(super) const CHUNK_ENTRY_BYTES: u64 = 36;
/// Bytes of a block's entry in the table of a packed one.
pub(super) const BLOCK_ENTRY_BYTES: u64 = 24;
/// Blocks of a MiB.
pub(super) const BLOCKS_OF_CHUNK: u64 = 16;
/// Where the checksum of the header lies: its last four bytes.
const CHECKSUM_AT: usize = HEADER_BYTES - 4;
/// Where the form of its memory stands.
pub(super) const FORM_AT: u64 = 103;
/// Where the feature words begin.
const WORDS_AT: usize = 160;
/// Bytes of a feature word.
const WORD_BYTES: usize = 16;

/// What names a snapshot: drawn at random when it is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct SnapshotId(pub [u8; 16]);

impl std::fmt::Display for SnapshotId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

/// How memory lies in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Every page has its place, with holes where there is none: it can be mapped.
    Flat,
    /// What there is, compressed, one block after the other.
    Packed,
}

/// What a snapshot says of itself before anything else is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Its name.
    pub id: SnapshotId,
    /// The snapshot whose memory this one only has the differences from.
    pub base: Option<SnapshotId>,
    /// Guest memory in MiB, that which comes and goes included.
    pub memory_mib: u32,
    /// How much of it comes and goes.
    pub hotplug_mib: u32,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// The profile that the guest was started with.
    pub cpu: CpuProfile,
    /// The kind of KVM that it ran on.
    pub host: HostKind,
    /// What the guest was shown of its processor.
    pub needs: CpuNeeds,
    /// When it was taken, in seconds since the Unix epoch.
    pub taken_s: u64,
    /// How memory lies in the file.
    pub form: Form,
    /// Bytes that memory takes there, holes included.
    pub memory_bytes: u64,
    /// Bytes of the state section, and its checksum.
    pub(super) state: (u64, u32),
    /// The checksum of the table.
    pub(super) table_checksum: u32,
}

/// Where the table lies.
pub(super) const TABLE_AT: u64 = HEADER_BYTES as u64;

/// Bytes of the table of a guest with so much memory.
fn table_bytes(memory_mib: u32, form: Form) -> u64 {
    u64::from(memory_mib)
        * match form {
            Form::Flat => CHUNK_ENTRY_BYTES,
            Form::Packed => BLOCKS_OF_CHUNK * BLOCK_ENTRY_BYTES,
        }
}

/// Where its memory lies, page-aligned.
pub(super) fn memory_at(memory_mib: u32, form: Form) -> u64 {
    (TABLE_AT + table_bytes(memory_mib, form)).next_multiple_of(PAGE_BYTES as u64)
}

impl Header {
    /// Where the state section lies.
    pub(super) fn state_at(&self) -> u64 {
        self.memory_at() + self.memory_bytes
    }

    /// Bytes of the table.
    pub(super) fn table_bytes(&self) -> u64 {
        table_bytes(self.memory_mib, self.form)
    }

    /// Where memory lies, page-aligned.
    pub(super) fn memory_at(&self) -> u64 {
        memory_at(self.memory_mib, self.form)
    }

    /// Bytes of the whole file.
    pub(super) fn file_bytes(&self) -> u64 {
        self.state_at() + self.state.0
    }

    /// The header as bytes.
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut put = |at: usize, part: &[u8]| bytes[at..at + part.len()].copy_from_slice(part);
        put(0, &MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(12, &u32::from(self.base.is_some()).to_le_bytes());
        put(16, &self.id.0);
        put(32, &self.base.unwrap_or_default().0);
        put(48, &self.taken_s.to_le_bytes());
        put(56, &self.state_at().to_le_bytes());
        put(64, &self.state.0.to_le_bytes());
        put(72, &self.state.1.to_le_bytes());
        put(76, &self.table_checksum.to_le_bytes());
        put(80, &TABLE_AT.to_le_bytes());
        put(88, &self.memory_at().to_le_bytes());
        put(96, &self.memory_mib.to_le_bytes());
        put(100, &[self.vcpus, profile_number(self.cpu), host_number(self.host), form_number(self.form)]);
        let ram_mib = self.memory_mib.saturating_sub(self.hotplug_mib);
        for (index, (start, length)) in memory::ram_ranges(ram_mib).into_iter().enumerate() {
            put(104 + 16 * index, &start.0.to_le_bytes());
            put(112 + 16 * index, &length.to_le_bytes());
        }
        put(136, &self.needs.vendor);
        put(148, &self.hotplug_mib.to_le_bytes());
        let words = u32::try_from(self.needs.words.len()).expect("invariant: at most WORDS_MAX");
        put(152, &words.to_le_bytes());
        for (index, word) in self.needs.words.iter().enumerate() {
            let at = WORDS_AT + WORD_BYTES * index;
            for (part, value) in
                [word.function, word.index, u32::from(word.register), word.bits].into_iter().enumerate()
            {
                put(at + 4 * part, &value.to_le_bytes());
            }
        }
        let checksum = crc32fast::hash(&bytes[..CHECKSUM_AT]);
        bytes[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// What `bytes` say, if they are the header of a snapshot that this program can read.
    ///
    /// # Errors
    /// They are not.
    pub(super) fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, Error> {
        let fields = Fields(bytes);
        if !bytes.starts_with(&MAGIC) {
            return Err(Error::NoSnapshot);
        }
        // Before the checksum: another version's may lie elsewhere.
        match fields.double_word(8) {
            VERSION => {}
            other => return Err(Error::Version(other)),
        }
        if fields.double_word(CHECKSUM_AT) != crc32fast::hash(&bytes[..CHECKSUM_AT]) {
            return Err(Error::Damaged("header"));
        }
        let base = match fields.double_word(12) {
            0 => None,
            1 => Some(SnapshotId(fields.bytes(32))),
            _ => return Err(Error::Invalid("its kind")),
        };
        let [vcpus, cpu, host, form] = fields.bytes(100);
        let mut header = Self {
            id: SnapshotId(fields.bytes(16)),
            base,
            memory_mib: fields.double_word(96),
            hotplug_mib: fields.double_word(148),
            vcpus,
            cpu: profile_of(cpu).ok_or(Error::Invalid("its CPU profile"))?,
            host: host_of(host).ok_or(Error::Invalid("its kind of host"))?,
            needs: CpuNeeds { vendor: fields.bytes(136), words: words(&fields)? },
            taken_s: fields.quad_word(48),
            state: (fields.quad_word(64), fields.double_word(72)),
            table_checksum: fields.double_word(76),
            form: form_of(form).ok_or(Error::Invalid("the form of its memory"))?,
            memory_bytes: 0,
        };
        // Whatever cannot be is too much.
        header.memory_bytes = fields.quad_word(56).checked_sub(header.memory_at()).unwrap_or(u64::MAX);
        header.check(&fields)?;
        Ok(header)
    }

    /// Bounds, and that everything lies where this version has it.
    fn check(&self, fields: &Fields<'_>) -> Result<(), Error> {
        if self.memory_mib == 0 || self.memory_mib > MEMORY_MIB_MAX {
            return Err(Error::Invalid("its memory size"));
        }
        if self.hotplug_mib >= self.memory_mib || !self.hotplug_mib.is_multiple_of(HOTPLUG_ALIGNMENT_MIB) {
            return Err(Error::Invalid("the size of its memory that comes and goes"));
        }
        if self.vcpus == 0 || self.vcpus > VCPUS_MAX {
            return Err(Error::Invalid("its number of vCPUs"));
        }
        if self.state.0 > STATE_BYTES_MAX {
            return Err(Error::Invalid("the length of its state"));
        }
        let places = [(80, TABLE_AT), (88, self.memory_at())];
        let whole = u64::from(self.memory_mib) * MIB;
        let fits = match self.form {
            Form::Flat => self.memory_bytes == whole,
            Form::Packed => self.memory_bytes <= whole,
        };
        if !fits || places.iter().any(|(at, place)| fields.quad_word(*at) != *place) {
            return Err(Error::Invalid("where its parts lie"));
        }
        let range = |at: usize| (GuestAddress(fields.quad_word(at)), fields.quad_word(at + 8));
        let mut ranges = memory::ram_ranges(self.memory_mib - self.hotplug_mib);
        ranges.resize(2, (GuestAddress(0), 0));
        if ranges != [range(104), range(120)] {
            return Err(Error::Invalid("where its memory lies"));
        }
        Ok(())
    }
}

fn words(fields: &Fields<'_>) -> Result<Vec<FeatureWord>, Error> {
    let count = usize::try_from(fields.double_word(152)).unwrap_or(usize::MAX);
    if count > WORDS_MAX {
        return Err(Error::Invalid("its number of feature words"));
    }
    let word = |index: usize| {
        let part = |part: usize| fields.double_word(WORDS_AT + WORD_BYTES * index + 4 * part);
        let register = u8::try_from(part(2)).ok().filter(|register| *register < 4)?;
        Some(FeatureWord { function: part(0), index: part(1), register, bits: part(3) })
    };
    (0..count).map(|index| word(index).ok_or(Error::Invalid("a feature word"))).collect()
}

fn profile_number(profile: CpuProfile) -> u8 {
    match profile {
        CpuProfile::Host => 0,
        CpuProfile::Baseline => 1,
    }
}

fn profile_of(number: u8) -> Option<CpuProfile> {
    [CpuProfile::Host, CpuProfile::Baseline].into_iter().find(|profile| profile_number(*profile) == number)
}

fn host_number(host: HostKind) -> u8 {
    match host {
        HostKind::Hardware => 0,
        HostKind::Software => 1,
    }
}

fn host_of(number: u8) -> Option<HostKind> {
    [HostKind::Hardware, HostKind::Software].into_iter().find(|host| host_number(*host) == number)
}

fn form_number(form: Form) -> u8 {
    match form {
        Form::Flat => 0,
        Form::Packed => 1,
    }
}

pub(super) fn form_of(number: u8) -> Option<Form> {
    [Form::Flat, Form::Packed].into_iter().find(|form| form_number(*form) == number)
}

/// Little-endian fields at fixed places.
struct Fields<'a>(&'a [u8; HEADER_BYTES]);

impl Fields<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        self.0[at..at + N].try_into().expect("invariant: the places are within the header")
    }

    fn double_word(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }

    fn quad_word(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }
}

/// A header for tests.
#[cfg(test)]
pub(super) fn example() -> Header {
    Header {
        id: SnapshotId([7; 16]),
        base: None,
        memory_mib: 4,
        hotplug_mib: 0,
        vcpus: 2,
        cpu: CpuProfile::Baseline,
        host: HostKind::Hardware,
        needs: CpuNeeds {
            vendor: *b"GenuineIntel",
            words: vec![FeatureWord { function: 1, index: 0, register: 2, bits: 1 << 20 }],
        },
        taken_s: 1_700_000_000,
        form: Form::Flat,
        memory_bytes: 4 * MIB,
        state: (5, 6),
        table_checksum: 8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_reads_back_as_it_was_written() {
        for memory_mib in [1, 128, 5000, MEMORY_MIB_MAX] {
            let memory_bytes = u64::from(memory_mib) * MIB;
            let base = Some(SnapshotId([1; 16]));
            let hotplug_mib = if memory_mib > 1000 { 512 } else { 0 };
            let header = Header { memory_mib, hotplug_mib, memory_bytes, base, ..example() };
            assert_eq!(Header::decode(&header.encode()).unwrap(), header);
            let packed = Header { form: Form::Packed, memory_bytes: memory_bytes / 3, ..header };
            assert_eq!(Header::decode(&packed.encode()).unwrap(), packed);
        }
        let header = example();
        assert_eq!((header.memory_at(), header.state_at()), (8192, 8192 + (4 << 20)));
        assert_eq!(header.file_bytes(), 8192 + (4 << 20) + 5);
    }

    #[test]
    fn every_bit_of_the_header_counts() {
        let bytes = example().encode();
        for at in 0..HEADER_BYTES {
            for bit in 0..8 {
                let mut flipped = bytes;
                flipped[at] ^= 1 << bit;
                let error = Header::decode(&flipped).unwrap_err();
                match at {
                    0..8 => assert!(matches!(error, Error::NoSnapshot), "{at}: {error}"),
                    8..12 => assert!(matches!(error, Error::Version(_)), "{at}: {error}"),
                    _ => assert!(matches!(error, Error::Damaged("header")), "{at}: {error}"),
                }
            }
        }
    }

    #[test]
    fn values_out_of_bounds_are_refused_whatever_their_checksum() {
        let with = |change: &dyn Fn(&mut [u8; HEADER_BYTES])| {
            let mut bytes = example().encode();
            change(&mut bytes);
            let checksum = crc32fast::hash(&bytes[..CHECKSUM_AT]);
            bytes[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
            Header::decode(&bytes).unwrap_err().to_string()
        };
        for (at, value, what) in [
            (12, 2, "its kind"),
            (56, 9, "where its parts lie"),
            (70, 1, "the length of its state"),
            (96, 0, "its memory size"),
            (99, 0x7f, "its memory size"),
            (100, 0, "its number of vCPUs"),
            (101, 9, "its CPU profile"),
            (102, 9, "its kind of host"),
            (103, 9, "the form of its memory"),
            (105, 1, "where its memory lies"),
            (121, 1, "where its memory lies"),
            (148, 4, "the size of its memory that comes and goes"),
            (149, 1, "the size of its memory that comes and goes"),
            (153, 1, "its number of feature words"),
            (168, 4, "a feature word"),
        ] {
            let error = with(&|bytes| bytes[at] = value);
            assert!(error.contains(what), "{at}: {error}");
        }
    }
}
