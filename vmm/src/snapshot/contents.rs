//! What a snapshot has of memory, whatever its form, a MiB at a time.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use super::header::{BLOCK_ENTRY_BYTES, CHUNK_ENTRY_BYTES, Form, Header, TABLE_AT};
use super::packed::{BLOCK_BYTES, BLOCKS, Block, Packer};
use super::write::{ChunkMap, runs};
use super::{Error, file};
use crate::memory::MIB;

/// The pages of a file, as its table has them.
pub(super) struct Contents<'a> {
    from: &'a File,
    memory_at: u64,
    table: Table,
}

enum Table {
    /// For each MiB its pages, and the checksum of these.
    Flat(Vec<(ChunkMap, u32)>),
    Packed(Vec<Block>, Box<Packer>),
}

impl<'a> Contents<'a> {
    /// The table of the snapshot in `from`.
    ///
    /// # Errors
    /// It is damaged.
    pub(super) fn read(from: &'a File, header: &Header) -> Result<Self, Error> {
        let bytes = usize::try_from(header.table_bytes()).expect("invariant: bounded by the memory's size");
        let mut table = vec![0; bytes];
        from.read_exact_at(&mut table, TABLE_AT).map_err(file("read"))?;
        if crc32fast::hash(&table) != header.table_checksum {
            return Err(Error::Damaged("table"));
        }
        let table = match header.form {
            Form::Flat => Table::Flat(
                table.as_chunks::<{ CHUNK_ENTRY_BYTES as usize }>().0.iter().map(flat_entry).collect(),
            ),
            Form::Packed => {
                let entries = table.as_chunks::<{ BLOCK_ENTRY_BYTES as usize }>().0.iter();
                let blocks: Result<_, _> =
                    entries.map(|entry| Block::decode(entry, header.memory_bytes)).collect();
                Table::Packed(blocks?, Box::default())
            }
        };
        Ok(Self { from, memory_at: header.memory_at(), table })
    }

    /// Its blocks, if it is packed.
    pub(super) fn into_blocks(self) -> Option<Vec<Block>> {
        match self.table {
            Table::Flat(_) => None,
            Table::Packed(blocks, _) => Some(blocks),
        }
    }

    /// Reads the pages of a MiB to where they belong in `buffer`; which these are. What is there of others stays.
    ///
    /// # Errors
    /// The file's; or it is damaged.
    pub(super) fn chunk(&mut self, index: u64, buffer: &mut [u8]) -> Result<ChunkMap, Error> {
        let number = usize::try_from(index).expect("invariant: usize has 64 bits");
        let damaged = || Error::DamagedMemory(index * MIB);
        match &mut self.table {
            Table::Flat(entries) => {
                let (map, checksum) = entries[number];
                let at = self.memory_at + index * MIB;
                let mut found = crc32fast::Hasher::new();
                for run in runs(map) {
                    self.from
                        .read_exact_at(&mut buffer[run.clone()], at + run.start as u64)
                        .map_err(file("read"))?;
                    found.update(&buffer[run]);
                }
                if found.finalize() == checksum { Ok(map) } else { Err(damaged()) }
            }
            Table::Packed(blocks, packer) => {
                let mut map = ChunkMap::default();
                let blocks = &blocks[number * BLOCKS..(number + 1) * BLOCKS];
                for (place, block) in blocks.iter().enumerate() {
                    let into = &mut buffer[place * BLOCK_BYTES..(place + 1) * BLOCK_BYTES];
                    packer.unpack(*block, self.from, self.memory_at, into).map_err(|error| match error {
                        Error::Damaged(_) => damaged(),
                        other => other,
                    })?;
                    map[place / 4] |= u64::from(block.pages) << (16 * (place % 4));
                }
                Ok(map)
            }
        }
    }
}

fn flat_entry(entry: &[u8; CHUNK_ENTRY_BYTES as usize]) -> (ChunkMap, u32) {
    let words = entry.as_chunks::<8>().0;
    let checksum = std::array::from_fn(|index| entry[32 + index]);
    (std::array::from_fn(|index| u64::from_le_bytes(words[index])), u32::from_le_bytes(checksum))
}
