//! Memory that is packed: blocks of 64 KiB, which is as far back as LZ4 looks, each compressed by itself (LZ4's block
//! format) or as it is where that is not shorter. So any block can be had alone, by whoever needs it first.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use lz4_flex::block::{compress_into, decompress_into, get_maximum_output_size};

use super::header::BLOCK_ENTRY_BYTES;
use super::write::CHUNK_BYTES;
use super::{Error, PAGE_BYTES, file};

/// Bytes of guest memory in a block.
pub(super) const BLOCK_BYTES: usize = 64 << 10;
/// Pages in it.
const BLOCK_PAGES: usize = BLOCK_BYTES / PAGE_BYTES;
/// Blocks of what a flat snapshot's table has an entry for.
pub(super) const BLOCKS: usize = CHUNK_BYTES / BLOCK_BYTES;
/// Bytes of an entry.
const ENTRY_BYTES: usize = BLOCK_ENTRY_BYTES as usize;

/// Where a block lies, and what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Block {
    /// Behind the beginning of memory.
    at: u64,
    /// So many bytes, fewer than its pages have if they are compressed; none if there is nothing.
    bytes: u32,
    /// CRC-32 of these.
    checksum: u32,
    /// A bit for each page that there is, the first one's lowest.
    pub(super) pages: u16,
}

impl Block {
    /// Bytes of its pages.
    fn page_bytes(self) -> usize {
        PAGE_BYTES * usize::try_from(self.pages.count_ones()).expect("invariant: at most 16")
    }

    /// Where its pages lie in it.
    fn places(self) -> impl Iterator<Item = std::ops::Range<usize>> {
        let has = move |page: &usize| self.pages >> *page & 1 != 0;
        (0..BLOCK_PAGES).filter(has).map(|page| page * PAGE_BYTES..(page + 1) * PAGE_BYTES)
    }

    /// Its entry in the table.
    pub(super) fn encode(self) -> [u8; ENTRY_BYTES] {
        let mut entry = [0; ENTRY_BYTES];
        entry[..8].copy_from_slice(&self.at.to_le_bytes());
        entry[8..12].copy_from_slice(&self.bytes.to_le_bytes());
        entry[12..16].copy_from_slice(&self.checksum.to_le_bytes());
        entry[16..18].copy_from_slice(&self.pages.to_le_bytes());
        entry
    }

    /// What an entry says, if that can be in memory of so many bytes.
    pub(super) fn decode(entry: &[u8; ENTRY_BYTES], memory_bytes: u64) -> Result<Self, Error> {
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|index| entry[at + index]));
        let block = Self {
            at: u64::from_le_bytes(std::array::from_fn(|index| entry[index])),
            bytes: word(8),
            checksum: word(12),
            pages: u16::from_le_bytes([entry[16], entry[17]]),
        };
        let fits = block.at.checked_add(u64::from(block.bytes)).is_some_and(|end| end <= memory_bytes);
        let length = usize::try_from(block.bytes).unwrap_or(usize::MAX);
        let cannot_be = length > block.page_bytes() || (length == 0) != (block.pages == 0);
        if !fits || cannot_be || entry[18..] != [0; ENTRY_BYTES - 18] {
            return Err(Error::Invalid("a block of its memory"));
        }
        Ok(block)
    }
}

/// Packs and unpacks, with room for one block.
pub(super) struct Packer {
    packed: Vec<u8>,
    pages: Vec<u8>,
}

impl Default for Packer {
    fn default() -> Self {
        Self { packed: vec![0; get_maximum_output_size(BLOCK_BYTES)], pages: vec![0; BLOCK_BYTES] }
    }
}

impl Packer {
    /// Writes those pages of `block` that `pages` names to `to`, where memory begins at `memory_at`, `at` bytes behind that.
    pub(super) fn pack(
        &mut self,
        block: &[u8],
        pages: u16,
        to: &File,
        (memory_at, at): (u64, u64),
    ) -> Result<Block, Error> {
        let mut entry = Block { at, pages, ..Block::default() };
        if pages == 0 {
            return Ok(entry);
        }
        let whole = entry.page_bytes();
        for (place, slot) in entry.places().zip(self.pages.chunks_exact_mut(PAGE_BYTES)) {
            slot.copy_from_slice(&block[place]);
        }
        let compressed = compress_into(&self.pages[..whole], &mut self.packed).ok();
        let bytes = match compressed.filter(|bytes| *bytes < whole) {
            Some(bytes) => &self.packed[..bytes],
            None => &self.pages[..whole],
        };
        entry.bytes = u32::try_from(bytes.len()).expect("invariant: a block is small");
        entry.checksum = crc32fast::hash(bytes);
        to.write_all_at(bytes, memory_at + at).map_err(file("write"))?;
        Ok(entry)
    }

    /// Reads a block to where its pages belong in `into`; what is there of others stays.
    ///
    /// # Errors
    /// The file's; or it is damaged.
    pub(super) fn unpack(
        &mut self,
        block: Block,
        from: &File,
        memory_at: u64,
        into: &mut [u8],
    ) -> Result<(), Error> {
        if block.pages == 0 {
            return Ok(());
        }
        let damaged = || Error::Damaged("block of memory");
        let packed = &mut self.packed[..usize::try_from(block.bytes).expect("invariant: a block is small")];
        from.read_exact_at(packed, memory_at + block.at).map_err(file("read"))?;
        if crc32fast::hash(packed) != block.checksum {
            return Err(damaged());
        }
        let pages = &mut self.pages[..block.page_bytes()];
        if packed.len() == pages.len() {
            pages.copy_from_slice(packed);
        } else if decompress_into(packed, pages).ok() != Some(pages.len()) {
            return Err(damaged());
        }
        for (place, page) in block.places().zip(pages.chunks_exact(PAGE_BYTES)) {
            into[place].copy_from_slice(page);
        }
        Ok(())
    }

    /// How much longer the file has become by a block.
    pub(super) fn length(block: Block) -> u64 {
        u64::from(block.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A block whose pages can be packed by turns and cannot.
    fn block() -> Vec<u8> {
        let mut number = 1_u64;
        (0..BLOCK_BYTES)
            .map(|at| {
                number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                if (at / PAGE_BYTES).is_multiple_of(2) { 7 } else { number.to_be_bytes()[0] }
            })
            .collect()
    }

    fn packed(pages: u16) -> (File, Block) {
        let file = tempfile::tempfile().unwrap();
        let entry = Packer::default().pack(&block(), pages, &file, (100, 11)).unwrap();
        (file, entry)
    }

    #[test]
    fn block_comes_back_page_by_page_and_leaves_others_alone() {
        for (pages, shorter) in [(0xffff, true), (0b10, false), (0b101, true), (0, false), (1 << 15, false)] {
            let (file, entry) = packed(pages);
            assert_eq!(Packer::length(entry) < entry.page_bytes() as u64, shorter, "{pages:#b}");
            let decoded = Block::decode(&entry.encode(), 11 + u64::from(entry.bytes)).unwrap();
            assert_eq!(decoded, entry);
            let mut into = vec![0xee; BLOCK_BYTES];
            Packer::default().unpack(decoded, &file, 100, &mut into).unwrap();
            let original = block();
            for page in 0..BLOCK_PAGES {
                let range = page * PAGE_BYTES..(page + 1) * PAGE_BYTES;
                let wanted =
                    if pages >> page & 1 != 0 { &original[range.clone()] } else { &[0xee; PAGE_BYTES][..] };
                assert_eq!(&into[range], wanted, "{pages:#b} {page}");
            }
        }
    }

    #[test]
    fn entries_that_cannot_be_are_refused() {
        let (_, entry) = packed(0b101);
        let end = 11 + u64::from(entry.bytes);
        let refused = |block: Block| Block::decode(&block.encode(), end).is_err();
        assert!(!refused(entry));
        assert!(Block::decode(&entry.encode(), end - 1).is_err());
        for wrong in [
            Block { at: u64::MAX, ..entry },
            Block { bytes: 0, ..entry },
            Block { bytes: 8193, at: 0, ..entry },
            Block { pages: 0, ..entry },
        ] {
            assert!(refused(wrong), "{wrong:?}");
        }
        let mut bytes = entry.encode();
        bytes[20] = 1;
        assert!(Block::decode(&bytes, end).is_err());
    }

    #[test]
    fn damage_is_found_whatever_the_checksum_says() {
        let (file, entry) = packed(0xffff);
        let mut packer = Packer::default();
        let mut into = vec![0; BLOCK_BYTES];
        let mut unpack = |entry| packer.unpack(entry, &file, 100, &mut into).unwrap_err().to_string();
        let wanted = "the snapshot is damaged: its block of memory does not match its checksum";
        assert_eq!(unpack(Block { checksum: 0, ..entry }), wanted);
        // Shorter by a byte: what is compressed ends too early.
        let shorter = Block { bytes: entry.bytes - 1, ..entry };
        let mut bytes = vec![0; usize::try_from(shorter.bytes).unwrap()];
        file.read_exact_at(&mut bytes, 111).unwrap();
        assert_eq!(unpack(Block { checksum: crc32fast::hash(&bytes), ..shorter }), wanted);
        assert!(unpack(Block { at: 1 << 40, ..entry }).contains("read the snapshot"));
    }
}
