//! Directories and long targets of links: the blocks that hold names (`struct ext4_dir_entry_2`).
//!
//! An entry is the inode's number (4 bytes), the entry's length (2), the name's length (1), what it is (1), the name,
//! and as much as it takes to end at a multiple of four. The last one of a block ends with the block.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::{BLOCK, BLOCK_BYTES, Inode, Kind, Name, Plan};

const HEAD_BYTES: usize = 8;

/// One name of a directory.
struct Entry<'n> {
    inode: u64,
    kind: u8,
    name: &'n [u8],
}

fn entry_bytes(name: &[u8]) -> usize {
    (HEAD_BYTES + name.len()).next_multiple_of(4)
}

/// The size of a directory with these entries.
pub(super) fn bytes(entries: &[Name]) -> u64 {
    let (mut blocks, mut used) = (1, entry_bytes(b".") + entry_bytes(b".."));
    for (name, _) in entries {
        let more = entry_bytes(name);
        if used + more > BLOCK {
            blocks += 1;
            used = 0;
        }
        used += more;
    }
    blocks * BLOCK_BYTES
}

/// What an entry says of its inode (`EXT4_FT_…`).
fn kind(inode: &Inode) -> u8 {
    match inode.kind {
        Kind::File(_) => 1,
        Kind::Directory(_) => 2,
        Kind::Character(..) => 3,
        Kind::Block(..) => 4,
        Kind::Fifo => 5,
        Kind::Symlink(_) => 7,
    }
}

/// Writes the blocks of all directories, and of the links whose targets do not fit their inodes.
pub(super) fn write_all(raw: &File, tree: &[Inode], plan: &Plan) -> io::Result<()> {
    for (index, inode) in tree.iter().enumerate() {
        match &inode.kind {
            Kind::Directory(entries) => write_directory(raw, tree, plan, (index, entries))?,
            Kind::Symlink(target) if plan.content_bytes(index) > 0 => {
                raw.write_all_at(target, plan.extents(index)[0].start * BLOCK_BYTES)?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn write_directory(
    raw: &File,
    tree: &[Inode],
    plan: &Plan,
    (index, entries): (usize, &[Name]),
) -> io::Result<()> {
    let own = [
        Entry { inode: Plan::number(index), kind: 2, name: b"." },
        Entry { inode: plan.places[index].parent, kind: 2, name: b".." },
    ];
    let others = entries.iter().map(|(name, child)| Entry {
        inode: Plan::number(*child),
        kind: kind(&tree[*child]),
        name,
    });
    let mut blocks = plan
        .extents(index)
        .iter()
        .flat_map(|extent| extent.start..extent.start + extent.blocks)
        .map(|block| block * BLOCK_BYTES);
    let mut next = || blocks.next().expect("invariant: the plan counted the same entries");
    let (mut block, mut used, mut last) = (vec![0; BLOCK], 0, 0);
    for entry in own.into_iter().chain(others) {
        let length = entry_bytes(entry.name);
        if used + length > BLOCK {
            end(&mut block, last);
            raw.write_all_at(&block, next())?;
            block.fill(0);
            used = 0;
        }
        put(&mut block[used..used + length], &entry);
        last = used;
        used += length;
    }
    end(&mut block, last);
    raw.write_all_at(&block, next())
}

fn put(to: &mut [u8], entry: &Entry<'_>) {
    let length = u16::try_from(to.len()).expect("invariant: an entry fits a block");
    let name_length = u8::try_from(entry.name.len()).expect("invariant: the plan checked names");
    to[..4].copy_from_slice(&number(entry.inode));
    to[4..6].copy_from_slice(&length.to_le_bytes());
    to[6] = name_length;
    to[7] = entry.kind;
    to[HEAD_BYTES..HEAD_BYTES + entry.name.len()].copy_from_slice(entry.name);
}

/// The last entry of a block reaches to its end.
fn end(block: &mut [u8], last: usize) {
    let length = u16::try_from(BLOCK - last).expect("invariant: a block has 4096 bytes");
    block[last + 4..last + 6].copy_from_slice(&length.to_le_bytes());
}

fn number(inode: u64) -> [u8; 4] {
    u32::try_from(inode).expect("invariant: the plan numbers inodes in 32 bits").to_le_bytes()
}
