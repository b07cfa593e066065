//! What a file system says of itself: the superblock with its copies, the groups' descriptors and bitmaps, and the empty
//! journal (`struct ext4_super_block`, `struct ext4_group_desc`, `struct journal_superblock_s`).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::layout::{FIRST_INODE, GROUP_BLOCKS, JOURNAL_BLOCKS, JOURNAL_INODE};
use super::{BLOCK, BLOCK_BYTES, Plan, inode};

const SUPERBLOCK_BYTES: usize = 1024;
const DESCRIPTOR_BYTES: usize = 32;
/// `has_journal`, `ext_attr`, `dir_index`: directories that a guest makes large get an index.
const COMPATIBLE: u32 = 0x4 | 0x8 | 0x20;
/// `filetype`, `extent`.
const INCOMPATIBLE: u32 = 0x2 | 0x40;
/// `sparse_super`, `large_file`, `dir_nlink`, `extra_isize`.
const READ_ONLY_COMPATIBLE: u32 = 0x1 | 0x2 | 0x20 | 0x40;
/// `user_xattr`, `acl`: what mke2fs has mounts begin with.
const MOUNT_OPTIONS: u32 = 0x4 | 0x8;
/// Hashes of names take letters for unsigned numbers, on any machine.
const UNSIGNED_HASH: u32 = 2;
const LABEL: &[u8] = b"wisp-root";

/// Writes all of it.
pub(super) fn write(raw: &File, plan: &Plan) -> io::Result<()> {
    let descriptors = descriptors(plan);
    for group in 0..plan.groups {
        let start = group * GROUP_BLOCKS * BLOCK_BYTES;
        if Plan::has_superblock(group) {
            // The first one leaves room for a boot sector.
            let at = if group == 0 { SUPERBLOCK_BYTES as u64 } else { start };
            raw.write_all_at(&superblock(plan, group), at)?;
            raw.write_all_at(&descriptors, start + BLOCK_BYTES)?;
        }
        let bitmaps = plan.bitmaps_start(group) * BLOCK_BYTES;
        raw.write_all_at(&bitmap(plan.used_blocks(group), GROUP_BLOCKS), bitmaps)?;
        raw.write_all_at(&bitmap(plan.used_inodes(group), plan.group_inodes), bitmaps + BLOCK_BYTES)?;
    }
    raw.write_all_at(&journal(plan), plan.journal.extents[0].start * BLOCK_BYTES)
}

/// The first `used` bits are set, and those that stand for nothing, from `all` on.
fn bitmap(used: u64, all: u64) -> Vec<u8> {
    let mut bits = vec![0_u8; BLOCK];
    let bit = |index: u64| index < used || index >= all;
    for (byte, first) in bits.iter_mut().zip((0_u64..).step_by(8)) {
        *byte = (0..8).filter(|offset| bit(first + offset)).fold(0, |byte, offset| byte | (1 << offset));
    }
    bits
}

fn descriptors(plan: &Plan) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (group, directories) in (0..plan.groups).zip(&plan.directories) {
        let mut descriptor = [0; DESCRIPTOR_BYTES];
        let bitmaps = plan.bitmaps_start(group);
        for (field, block) in descriptor.chunks_exact_mut(4).zip([bitmaps, bitmaps + 1, bitmaps + 2]) {
            field.copy_from_slice(&word(block));
        }
        let counts = [
            GROUP_BLOCKS - plan.used_blocks(group),
            plan.group_inodes - plan.used_inodes(group),
            *directories,
        ];
        for (field, count) in descriptor[12..].chunks_exact_mut(2).zip(counts) {
            let count = u16::try_from(count).expect("invariant: counts of a group have 16 bits");
            field.copy_from_slice(&count.to_le_bytes());
        }
        bytes.extend_from_slice(&descriptor);
    }
    bytes
}

fn superblock(plan: &Plan, group: u64) -> [u8; SUPERBLOCK_BYTES] {
    let mut bytes = [0; SUPERBLOCK_BYTES];
    let free_blocks: u64 = (0..plan.groups).map(|group| GROUP_BLOCKS - plan.used_blocks(group)).sum();
    let inodes = plan.groups * plan.group_inodes;
    let words: [(usize, u64); 22] = [
        (0, inodes),
        (4, plan.groups * GROUP_BLOCKS),
        (12, free_blocks),
        (16, inodes - plan.inodes_used()),
        // Blocks and clusters have 2^(10 + 2) bytes.
        (24, 2),
        (28, 2),
        (32, GROUP_BLOCKS),
        (36, GROUP_BLOCKS),
        (40, plan.group_inodes),
        // Never a check because of its age.
        (52, 0xffff_0000),
        // The magic number, and that it is clean.
        (56, 0x1_ef53),
        // What errors do: nothing but a line in the log. The revision that has features.
        (60, 1),
        (76, 1),
        (84, FIRST_INODE),
        (88, inode::INODE_BYTES as u64 | (group << 16)),
        (92, u64::from(COMPATIBLE)),
        (96, u64::from(INCOMPATIBLE)),
        (100, u64::from(READ_ONLY_COMPATIBLE)),
        (224, JOURNAL_INODE),
        (256, u64::from(MOUNT_OPTIONS)),
        // Inodes have room for 32 bytes of extra fields, and all have them.
        (348, 32 | (32 << 16)),
        (352, u64::from(UNSIGNED_HASH)),
    ];
    for (at, value) in words {
        bytes[at..at + 4].copy_from_slice(&word(value));
    }
    bytes[104..120].copy_from_slice(&plan.uuid);
    bytes[120..120 + LABEL.len()].copy_from_slice(LABEL);
    // The seed and the kind of hashes (half MD4); then, that a copy of the journal's inode follows further down.
    bytes[236..252].copy_from_slice(&plan.uuid);
    bytes[252] = 1;
    bytes[253] = 1;
    bytes[268..328].copy_from_slice(&inode::journal_blocks(plan));
    let journal_bytes = JOURNAL_BLOCKS * BLOCK_BYTES;
    bytes[328..332].copy_from_slice(&word(journal_bytes >> 32));
    bytes[332..336].copy_from_slice(&word(journal_bytes));
    bytes
}

/// The journal's own superblock, big-endian: of blocks of 4096 bytes, with nothing in it.
fn journal(plan: &Plan) -> [u8; SUPERBLOCK_BYTES] {
    let mut bytes = [0; SUPERBLOCK_BYTES];
    let blocks = u32::try_from(JOURNAL_BLOCKS).expect("invariant: 4096");
    // Magic, superblock of the second version; block size, length, first block, first sequence number.
    for (at, value) in [(0, 0xc03b_3998), (4, 4), (12, 4096), (16, blocks), (20, 1), (24, 1)] {
        bytes[at..at + 4].copy_from_slice(&u32::to_be_bytes(value));
    }
    bytes[48..64].copy_from_slice(&plan.uuid);
    // One file system uses it.
    bytes[64..68].copy_from_slice(&1_u32.to_be_bytes());
    bytes
}

fn word(value: u64) -> [u8; 4] {
    u32::try_from(value).expect("invariant: the plan keeps numbers in 32 bits").to_le_bytes()
}
