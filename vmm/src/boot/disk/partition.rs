//! Partition tables: GPT (UEFI 2.10 §5.3) and MBR with logical partitions (UEFI 2.10 §5.2; extended boot records are
//! a convention without a standard).
//!
//! ```text
//! MBR   446  four entries of 16 bytes: status, CHS, type, CHS, first sector (4), sectors (4)      510  55 aa
//! GPT   sector 1, and the last: "EFI PART", revision, header size, CRC, …, entries' sector (72), how many (80),
//!       the size of each (84), their CRC (88); an entry: type (16), own GUID (16), first, last sector, …
//! ```

use std::io;

use super::source::Source;

/// The most entries of a GPT that are looked at: what every tool makes.
const GPT_ENTRIES_MAX: u32 = 128;
/// The largest GPT entry in bytes; all tools make 128.
const GPT_ENTRY_BYTES_MAX: u32 = 4096;
/// The most logical partitions: Linux numbers no more by default.
const LOGICAL_MAX: u32 = 59;
/// An MBR counts in these, whatever the disk's own sectors.
const SECTOR_BYTES: u64 = 512;

/// How a disk is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheme {
    Gpt,
    Mbr,
}

/// A range of a disk that is meant for one filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Partition {
    /// Counted as Linux and GRUB do: from one, logical partitions from five.
    pub(super) number: u32,
    pub(super) scheme: Scheme,
    /// The first byte on the disk.
    pub(super) start: u64,
    /// The size, which may lead beyond a truncated disk's end.
    pub(super) size_bytes: u64,
    /// An EFI system partition.
    pub(super) is_efi: bool,
}

/// Reads the partition table. Empty: there is none.
///
/// # Errors
/// The disk cannot be read.
pub(super) fn read(disk: &Source) -> io::Result<Vec<Partition>> {
    for sector_bytes in [512, 4096] {
        if let Some(partitions) = read_gpt(disk, sector_bytes)? {
            return Ok(partitions);
        }
    }
    read_mbr(disk)
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    let mut array = [0; 4];
    array.copy_from_slice(&bytes[offset..offset + 4]);
    u32::from_le_bytes(array)
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from(u32_at(bytes, offset)) | u64::from(u32_at(bytes, offset + 4)) << 32
}

/// The table from the first header that is sound, or from the copy at the disk's end.
fn read_gpt(disk: &Source, sector_bytes: u64) -> io::Result<Option<Vec<Partition>>> {
    let last = (disk.size_bytes() / sector_bytes).saturating_sub(1);
    for header in [1, last] {
        if let Some(partitions) = read_gpt_at(disk, sector_bytes, header)? {
            return Ok(Some(partitions));
        }
    }
    Ok(None)
}

fn read_gpt_at(disk: &Source, sector_bytes: u64, sector: u64) -> io::Result<Option<Vec<Partition>>> {
    const HEADER_BYTES: usize = 92;
    const SIGNATURE: &[u8] = b"EFI PART";
    /// The type of an EFI system partition, C12A7328-F81F-11D2-BA4B-00A0C93EC93B.
    const EFI_SYSTEM: [u8; 16] =
        [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b];
    let place = sector * sector_bytes;
    if place.saturating_add(sector_bytes) > disk.size_bytes() {
        return Ok(None);
    }
    let mut header: [u8; HEADER_BYTES] = disk.array(place)?;
    if &header[..8] != SIGNATURE || u32_at(&header, 12) as usize != HEADER_BYTES {
        return Ok(None);
    }
    let stored = u32_at(&header, 16);
    header[16..20].fill(0);
    let checksum = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC);
    if checksum.checksum(&header) != stored {
        return Ok(None);
    }
    let (count, entry_bytes) = (u32_at(&header, 80), u32_at(&header, 84));
    if !(128..=GPT_ENTRY_BYTES_MAX).contains(&entry_bytes) {
        return Ok(None);
    }
    let Some(entries) = u64_at(&header, 72).checked_mul(sector_bytes) else { return Ok(None) };
    let mut partitions = Vec::new();
    for index in 0..count.min(GPT_ENTRIES_MAX) {
        let Some(place) = entries.checked_add(u64::from(index) * u64::from(entry_bytes)) else { break };
        let entry: [u8; 48] = match disk.array(place) {
            Ok(entry) => entry,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error),
        };
        let kind = &entry[..16];
        let (first, last) = (u64_at(&entry, 32), u64_at(&entry, 40));
        let sectors = last.checked_sub(first).and_then(|sectors| sectors.checked_add(1));
        let range = sectors
            .and_then(|sectors| Some((first.checked_mul(sector_bytes)?, sectors.checked_mul(sector_bytes)?)));
        if let Some((start, size_bytes)) = range
            && kind.iter().any(|&byte| byte != 0)
        {
            let (number, is_efi) = (index + 1, kind == EFI_SYSTEM);
            partitions.push(Partition { number, scheme: Scheme::Gpt, start, size_bytes, is_efi });
        }
    }
    Ok(Some(partitions))
}

/// One entry of an MBR or of an extended boot record.
#[derive(Debug, Clone, Copy)]
struct Entry {
    kind: u8,
    first: u64,
    sectors: u64,
}

impl Entry {
    fn is_extended(self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }

    fn partition(self, number: u32, base: u64) -> Partition {
        Partition {
            number,
            scheme: Scheme::Mbr,
            start: (base + self.first) * SECTOR_BYTES,
            size_bytes: self.sectors * SECTOR_BYTES,
            is_efi: self.kind == 0xef,
        }
    }
}

/// The four entries of the boot record at `sector`; `None` if there is none, or one that is a filesystem's own.
fn read_record(disk: &Source, sector: u64) -> io::Result<Option<[Entry; 4]>> {
    let Some(place) = sector.checked_mul(SECTOR_BYTES) else { return Ok(None) };
    if place.saturating_add(SECTOR_BYTES) > disk.size_bytes() {
        return Ok(None);
    }
    let record: [u8; 512] = disk.array(place)?;
    if record[510..] != [0x55, 0xaa] {
        return Ok(None);
    }
    let entry = |index: usize| {
        let entry = &record[446 + 16 * index..][..16];
        let (first, sectors) = (u64::from(u32_at(entry, 8)), u64::from(u32_at(entry, 12)));
        (entry[0] & 0x7f == 0).then_some(Entry { kind: entry[4], first, sectors })
    };
    Ok(match [entry(0), entry(1), entry(2), entry(3)] {
        [Some(a), Some(b), Some(c), Some(d)] => Some([a, b, c, d]),
        _ => None,
    })
}

fn read_mbr(disk: &Source) -> io::Result<Vec<Partition>> {
    let Some(entries) = read_record(disk, 0)? else { return Ok(Vec::new()) };
    let mut partitions = Vec::new();
    let mut logical = Vec::new();
    for (number, entry) in (1..).zip(entries) {
        if entry.kind == 0 || entry.sectors == 0 || entry.first == 0 {
            continue;
        }
        if entry.is_extended() {
            if logical.is_empty() {
                logical = read_logical(disk, entry.first)?;
            }
        } else {
            partitions.push(entry.partition(number, 0));
        }
    }
    partitions.extend(logical);
    Ok(partitions)
}

/// The chain of extended boot records: each holds one partition, relative to itself, and the next record, relative to
/// the extended partition.
fn read_logical(disk: &Source, extended: u64) -> io::Result<Vec<Partition>> {
    let mut partitions = Vec::new();
    let mut at = extended;
    for _ in 0..LOGICAL_MAX {
        let Some(entries) = read_record(disk, at)? else { break };
        let is_used = |entry: &&Entry| entry.kind != 0 && entry.sectors != 0;
        let used = entries.iter().filter(is_used);
        if let Some(entry) = used.clone().find(|entry| !entry.is_extended()) {
            let number = 5 + u32::try_from(partitions.len()).expect("invariant: few partitions");
            partitions.push(entry.partition(number, at));
        }
        match used.clone().find(|entry| entry.is_extended()) {
            Some(next) if next.first != 0 => at = extended + next.first,
            _ => break,
        }
    }
    Ok(partitions)
}
