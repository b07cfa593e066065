//! Inodes: what a file is, whose, and where its blocks are (`struct ext4_inode`, 256 bytes each, in a table per group).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::layout::{BLOCK_EXTENTS_MAX, BLOCK_INODES, Extent, INLINE_EXTENTS_MAX, JOURNAL_INODE, Place};
use super::{BLOCK, BLOCK_BYTES, Inode, Kind, Metadata, Plan};

pub(super) const INODE_BYTES: usize = 256;
/// Bytes of the fields behind the first 128; extended attributes follow.
const EXTRA_BYTES: u16 = 32;
const ATTRIBUTES_START: usize = 128 + EXTRA_BYTES as usize;
/// Where the list of extents is, or a short target, or a device's number.
const BLOCKS_START: usize = 40;
/// Its blocks are in extents (`EXT4_EXTENTS_FL`).
const EXTENTS_FLAG: u32 = 0x8_0000;
const EXTENTS_MAGIC: u16 = 0xf30a;
/// Bytes of the head of a list of extents, and of each of them.
const EXTENT_BYTES: usize = 12;
/// Marks extended attributes in an inode (`EXT4_XATTR_MAGIC`).
const ATTRIBUTES_MAGIC: u32 = 0xea02_0000;
/// Names that begin with `security.` (`EXT4_XATTR_INDEX_SECURITY`).
const SECURITY: u8 = 6;
const CAPABILITY: &[u8] = b"capability";

/// The bytes of one inode.
struct Bytes([u8; INODE_BYTES]);

impl Bytes {
    fn u16(&mut self, at: usize, value: u16) {
        self.0[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    fn u32(&mut self, at: usize, value: u32) {
        self.0[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// The halves of a number, which lie apart.
    fn halves(&mut self, low_at: usize, high_at: usize, value: u64) {
        let bytes = value.to_le_bytes();
        self.0[low_at..low_at + 4].copy_from_slice(&bytes[..4]);
        self.0[high_at..high_at + 4].copy_from_slice(&bytes[4..]);
    }

    /// A 16-bit number whose upper half lies elsewhere.
    fn short_halves(&mut self, low_at: usize, high_at: usize, value: u32) {
        let bytes = value.to_le_bytes();
        self.0[low_at..low_at + 2].copy_from_slice(&bytes[..2]);
        self.0[high_at..high_at + 2].copy_from_slice(&bytes[2..]);
    }
}

/// Writes the tables of all groups, and the lists of extents that do not fit inodes.
pub(super) fn write_all(raw: &File, tree: &[Inode], plan: &Plan) -> io::Result<()> {
    write(raw, plan, JOURNAL_INODE, &journal(plan))?;
    write(raw, plan, Plan::number(0), &encode(&tree[0], plan, 0).0)?;
    // The others are in a row: a table's worth of them at once.
    let mut buffer = Vec::new();
    let mut start = Plan::number(1);
    for index in 1..tree.len() {
        buffer.extend_from_slice(&encode(&tree[index], plan, index).0);
        let number = Plan::number(index);
        if number.is_multiple_of(plan.group_inodes) || index + 1 == tree.len() {
            write(raw, plan, start, &buffer)?;
            buffer.clear();
            start = number + 1;
        }
    }
    for place in std::iter::once(&plan.journal).chain(&plan.places) {
        write_leaves(raw, place)?;
    }
    Ok(())
}

/// Writes inodes of one group from this number on.
fn write(raw: &File, plan: &Plan, number: u64, bytes: &[u8]) -> io::Result<()> {
    let (group, index) = ((number - 1) / plan.group_inodes, (number - 1) % plan.group_inodes);
    let table = plan.bitmaps_start(group) + 2;
    debug_assert!(index < plan.group_inodes && BLOCK_INODES > 0);
    raw.write_all_at(bytes, table * BLOCK_BYTES + index * INODE_BYTES as u64)
}

/// The 60 bytes with which an inode says where its blocks are; the superblock has a copy of the journal's.
pub(super) fn journal_blocks(plan: &Plan) -> [u8; 60] {
    let inode = journal(plan);
    inode[BLOCKS_START..BLOCKS_START + 60].try_into().expect("invariant: 60 bytes")
}

fn journal(plan: &Plan) -> [u8; INODE_BYTES] {
    let bytes = super::layout::JOURNAL_BLOCKS * BLOCK_BYTES;
    let metadata = Metadata { mode: 0o600, ..Metadata::default() };
    let mut inode = head(0o100_000, &metadata, bytes, &plan.journal);
    put_extents(&mut inode, &plan.journal);
    inode.0
}

fn encode(inode: &Inode, plan: &Plan, index: usize) -> Bytes {
    let (place, content) = (&plan.places[index], plan.content_bytes(index));
    let (file_type, size_bytes) = match &inode.kind {
        Kind::Fifo => (0o010_000, 0),
        Kind::Character(..) => (0o020_000, 0),
        Kind::Directory(_) => (0o040_000, content),
        Kind::Block(..) => (0o060_000, 0),
        Kind::File(_) => (0o100_000, content),
        Kind::Symlink(target) => (0o120_000, target.len() as u64),
    };
    let mut bytes = head(file_type, &inode.metadata, size_bytes, place);
    match &inode.kind {
        Kind::Character(major, minor) | Kind::Block(major, minor) => put_device(&mut bytes, *major, *minor),
        Kind::Symlink(target) if content == 0 => {
            bytes.0[BLOCKS_START..BLOCKS_START + target.len()].copy_from_slice(target);
        }
        Kind::Fifo => {}
        _ => put_extents(&mut bytes, place),
    }
    put_capability(&mut bytes, &inode.capability);
    bytes
}

/// All but where the blocks are.
fn head(file_type: u16, metadata: &Metadata, size_bytes: u64, place: &Place) -> Bytes {
    let mut bytes = Bytes([0; INODE_BYTES]);
    bytes.u16(0, file_type | (metadata.mode & 0o7777));
    bytes.short_halves(2, 120, metadata.uid);
    bytes.short_halves(24, 122, metadata.gid);
    bytes.halves(4, 108, size_bytes);
    let (seconds, epoch) = time(metadata.modified_s);
    // Read, changed, written, made: 32 bits each, with two more that count epochs.
    for (low, extra) in [(8, 140), (12, 132), (16, 136), (144, 148)] {
        bytes.u32(low, seconds);
        bytes.u32(extra, epoch);
    }
    bytes.u16(26, u16::try_from(place.links).expect("invariant: the plan checked the number of names"));
    let sectors = place.blocks() * (BLOCK_BYTES / 512);
    bytes.u32(28, u32::try_from(sectors & 0xffff_ffff).expect("invariant: 32 bits"));
    bytes.u16(116, u16::try_from(sectors >> 32).unwrap_or(u16::MAX));
    bytes.u16(128, EXTRA_BYTES);
    bytes
}

/// A time as an inode has it: the lower 32 bits, which have a sign, and how often to add 2^32.
fn time(seconds: i64) -> (u32, u32) {
    /// The last second that the format has: in the year 2446.
    const SECONDS_MAX: i64 = 0x3_7fff_ffff;
    let seconds = seconds.clamp(i64::from(i32::MIN), SECONDS_MAX);
    let low = u32::try_from(seconds & 0xffff_ffff).expect("invariant: 32 bits");
    let epoch = (seconds - i64::from(low.cast_signed())) >> 32;
    (low, u32::try_from(epoch & 3).expect("invariant: two bits"))
}

/// A device's number: in 16 bits if it fits, else in 32 (Linux, `old_encode_dev` and `new_encode_dev`).
fn put_device(bytes: &mut Bytes, major: u32, minor: u32) {
    if major < 256 && minor < 256 {
        bytes.u32(BLOCKS_START, (major << 8) | minor);
    } else {
        let (major, minor) = (major & 0xfff, minor & 0xf_ffff);
        bytes.u32(BLOCKS_START + 4, (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12));
    }
}

fn put_capability(bytes: &mut Bytes, value: &[u8]) {
    if value.is_empty() {
        return;
    }
    bytes.u32(ATTRIBUTES_START, ATTRIBUTES_MAGIC);
    let entry = ATTRIBUTES_START + 4;
    // Values are at the end, and their places counted from the first entry.
    let at = INODE_BYTES - value.len().next_multiple_of(4);
    bytes.0[entry] = u8::try_from(CAPABILITY.len()).expect("invariant: ten");
    bytes.0[entry + 1] = SECURITY;
    bytes.u16(entry + 2, u16::try_from(at - entry).expect("invariant: within the inode"));
    bytes.u32(entry + 8, u32::try_from(value.len()).expect("invariant: the plan checked it"));
    bytes.0[entry + 16..entry + 16 + CAPABILITY.len()].copy_from_slice(CAPABILITY);
    bytes.0[at..at + value.len()].copy_from_slice(value);
}

fn put_extents(bytes: &mut Bytes, place: &Place) {
    bytes.u32(32, EXTENTS_FLAG);
    let area = &mut bytes.0[BLOCKS_START..BLOCKS_START + 60];
    if place.leaves.is_empty() {
        put_leaf(area, INLINE_EXTENTS_MAX, 0, &place.extents);
        return;
    }
    put_extents_head(area, place.leaves.len(), INLINE_EXTENTS_MAX, 1);
    let mut logical = 0;
    for (entry, (leaf, extents)) in area[EXTENT_BYTES..]
        .chunks_exact_mut(EXTENT_BYTES)
        .zip(place.leaves.iter().zip(place.extents.chunks(BLOCK_EXTENTS_MAX)))
    {
        entry[..4].copy_from_slice(&low(logical));
        entry[4..8].copy_from_slice(&low(*leaf));
        logical += extents.iter().map(|extent| extent.blocks).sum::<u64>();
    }
}

fn write_leaves(raw: &File, place: &Place) -> io::Result<()> {
    let mut logical = 0;
    for (leaf, extents) in place.leaves.iter().zip(place.extents.chunks(BLOCK_EXTENTS_MAX)) {
        let mut block = [0; BLOCK];
        put_leaf(&mut block, BLOCK_EXTENTS_MAX, logical, extents);
        raw.write_all_at(&block, leaf * BLOCK_BYTES)?;
        logical += extents.iter().map(|extent| extent.blocks).sum::<u64>();
    }
    Ok(())
}

fn put_extents_head(area: &mut [u8], count: usize, most: usize, depth: u16) {
    let short = |value: usize| u16::try_from(value).expect("invariant: few extents").to_le_bytes();
    area[..2].copy_from_slice(&EXTENTS_MAGIC.to_le_bytes());
    area[2..4].copy_from_slice(&short(count));
    area[4..6].copy_from_slice(&short(most));
    area[6..8].copy_from_slice(&depth.to_le_bytes());
}

/// A list of extents: of each its place in the file (4 bytes), its length (2), its place on the disk (2 high, 4 low).
fn put_leaf(area: &mut [u8], most: usize, mut logical: u64, extents: &[Extent]) {
    put_extents_head(area, extents.len(), most, 0);
    for (entry, extent) in area[EXTENT_BYTES..].chunks_exact_mut(EXTENT_BYTES).zip(extents) {
        entry[..4].copy_from_slice(&low(logical));
        let blocks = u16::try_from(extent.blocks).expect("invariant: an extent lies in one group");
        entry[4..6].copy_from_slice(&blocks.to_le_bytes());
        entry[8..12].copy_from_slice(&low(extent.start));
        logical += extent.blocks;
    }
}

/// A block's number: 32 bits are enough for the largest file system here.
fn low(block: u64) -> [u8; 4] {
    u32::try_from(block).expect("invariant: the plan keeps block numbers in 32 bits").to_le_bytes()
}
