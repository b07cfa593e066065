//! Where everything of a file system lies: how many groups there are, and which blocks each inode has.
//!
//! A group begins with its metadata, and data follows without gaps, group after group. So what is used of a group is
//! always its first blocks, and the bitmaps follow from two numbers.

use super::{BLOCK_BYTES, Ext4Error, FILE_SYSTEM_BYTES_MAX, Inode, Kind, LINKS_MAX, directory};
use super::{CAPABILITY_BYTES_MAX, NAME_BYTES_MAX, TARGET_BYTES_MAX};

/// Blocks of a group: as many as a bitmap of one block has bits.
pub(super) const GROUP_BLOCKS: u64 = 32_768;
/// Inodes of a group at least: mke2fs's usual one for 16 KiB.
const GROUP_INODES_MIN: u64 = 8192;
/// Inodes of a group at most: bits of a bitmap.
const GROUP_INODES_MAX: u64 = 32_768;
/// Inodes in a block of a table.
pub(super) const BLOCK_INODES: u64 = BLOCK_BYTES / super::inode::INODE_BYTES as u64;
/// Descriptors of groups in a block.
pub(super) const BLOCK_DESCRIPTORS: u64 = BLOCK_BYTES / 32;
/// The first inode that is no one's by convention.
pub(super) const FIRST_INODE: u64 = 11;
/// The root directory's inode.
pub(super) const ROOT_INODE: u64 = 2;
/// The journal's inode.
pub(super) const JOURNAL_INODE: u64 = 8;
/// Blocks of the journal: what mke2fs gives file systems of up to 1 GiB.
pub(super) const JOURNAL_BLOCKS: u64 = 4096;
/// Blocks that are free at least: a guest begins to write before it has grown the file system to its disk.
const FREE_BLOCKS_MIN: u64 = 16_384;
/// The longest target that an inode itself holds.
pub(super) const INLINE_TARGET_BYTES_MAX: usize = 59;
/// Extents that an inode itself holds.
pub(super) const INLINE_EXTENTS_MAX: usize = 4;
/// Extents in a block of them.
pub(super) const BLOCK_EXTENTS_MAX: usize = 340;

/// Blocks in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) start: u64,
    pub(super) blocks: u64,
}

/// The blocks of one inode.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// With its content, in order.
    pub(super) extents: Vec<Extent>,
    /// With the list of its extents, if that does not fit the inode.
    pub(super) leaves: Vec<u64>,
    /// How many names it has; of directories, how many refer to it.
    pub(super) links: u32,
    /// The inode of the directory that it is in, of directories.
    pub(super) parent: u64,
}

impl Place {
    /// Blocks in all.
    pub(super) fn blocks(&self) -> u64 {
        self.extents.iter().map(|extent| extent.blocks).sum::<u64>() + self.leaves.len() as u64
    }
}

/// Where everything lies.
#[derive(Debug, Clone)]
pub struct Plan {
    pub(super) uuid: [u8; 16],
    pub(super) groups: u64,
    pub(super) group_inodes: u64,
    pub(super) directories: Vec<u64>,
    pub(super) places: Vec<Place>,
    pub(super) journal: Place,
    sizes: Vec<u64>,
    /// The first block that is not used, and no metadata.
    next: u64,
}

impl Plan {
    /// Plans a file system of `tree`, whose first inode is the root directory and whose others are all named in some
    /// directory, of at most `bytes_max` bytes, with this UUID.
    ///
    /// # Errors
    /// [`Ext4Error::TooLarge`], [`Ext4Error::TooLong`], [`Ext4Error::TooManyLinks`].
    pub fn new(tree: &[Inode], uuid: [u8; 16], bytes_max: u64) -> Result<Self, Ext4Error> {
        let sizes = tree.iter().map(content_bytes).collect::<Result<Vec<_>, _>>()?;
        let blocks: u64 = sizes.iter().map(|size| size.div_ceil(BLOCK_BYTES)).sum();
        let inodes = FIRST_INODE - 1 + tree.len() as u64;
        // One in four stays free, and some of every file system.
        let inodes_wanted = inodes + inodes / 4 + 1024;
        // A group's share of its own metadata is at most a tenth of it, and a block holds the extents of much data.
        let wanted = blocks + blocks / 1024 + JOURNAL_BLOCKS + FREE_BLOCKS_MIN;
        let bytes_max = bytes_max.min(FILE_SYSTEM_BYTES_MAX);
        let too_large = |groups: u64| {
            let size_bytes = groups.saturating_mul(GROUP_BLOCKS * BLOCK_BYTES);
            Ext4Error::TooLarge { size_bytes, bytes_max }
        };
        let mut groups = wanted.div_ceil(GROUP_BLOCKS).max(inodes_wanted.div_ceil(GROUP_INODES_MAX));
        let group_inodes = loop {
            if groups > bytes_max / (GROUP_BLOCKS * BLOCK_BYTES) {
                return Err(too_large(groups));
            }
            let each = inodes_wanted.div_ceil(groups).next_multiple_of(BLOCK_INODES);
            let each = each.clamp(GROUP_INODES_MIN, GROUP_INODES_MAX);
            let room: u64 = (0..groups).map(|group| GROUP_BLOCKS - overhead(group, groups, each)).sum();
            if room >= wanted {
                break each;
            }
            groups += (wanted - room).div_ceil(GROUP_BLOCKS);
        };
        let mut plan = Self {
            uuid,
            groups,
            group_inodes,
            directories: vec![0; usize::try_from(groups).map_err(|_| too_large(groups))?],
            places: vec![Place::default(); tree.len()],
            journal: Place::default(),
            sizes,
            next: 0,
        };
        plan.next = plan.overhead(0);
        plan.journal = plan.allocate(JOURNAL_BLOCKS);
        plan.journal.links = 1;
        for index in 0..tree.len() {
            plan.places[index] = plan.allocate(plan.sizes[index].div_ceil(BLOCK_BYTES));
        }
        plan.link(tree)?;
        Ok(plan)
    }

    /// The size of the file system in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.groups * GROUP_BLOCKS * BLOCK_BYTES
    }

    /// The number of the inode with this index in the tree.
    pub(super) fn number(index: usize) -> u64 {
        if index == 0 { ROOT_INODE } else { FIRST_INODE - 1 + index as u64 }
    }

    pub(super) fn content_bytes(&self, index: usize) -> u64 {
        self.sizes[index]
    }

    pub(super) fn extents(&self, index: usize) -> &[Extent] {
        &self.places[index].extents
    }

    /// Inodes that are in use, which are the first ones.
    pub(super) fn inodes_used(&self) -> u64 {
        FIRST_INODE - 1 + self.places.len() as u64 - 1
    }

    /// Whether a group begins with a copy of the superblock (`sparse_super`).
    pub(super) fn has_superblock(group: u64) -> bool {
        let power_of = |base: u64| {
            let mut power = base;
            while power < group {
                power = power.saturating_mul(base);
            }
            power == group
        };
        group <= 1 || [3, 5, 7].into_iter().any(power_of)
    }

    /// Blocks of a group's metadata, the first ones.
    pub(super) fn overhead(&self, group: u64) -> u64 {
        overhead(group, self.groups, self.group_inodes)
    }

    /// The block with a group's bitmap of blocks; that of inodes and the table follow.
    pub(super) fn bitmaps_start(&self, group: u64) -> u64 {
        group * GROUP_BLOCKS + superblock_blocks(group, self.groups)
    }

    /// Blocks of a group that are in use, which are the first ones.
    pub(super) fn used_blocks(&self, group: u64) -> u64 {
        self.next.saturating_sub(group * GROUP_BLOCKS).clamp(self.overhead(group), GROUP_BLOCKS)
    }

    /// Inodes of a group that are in use, which are the first ones.
    pub(super) fn used_inodes(&self, group: u64) -> u64 {
        self.inodes_used().saturating_sub(group * self.group_inodes).min(self.group_inodes)
    }

    /// The next blocks, in as few runs as the metadata between them allows.
    fn allocate(&mut self, blocks: u64) -> Place {
        let mut place = Place::default();
        let mut left = blocks;
        while left > 0 {
            let run = self.run(left);
            place.extents.push(run);
            left -= run.blocks;
        }
        if place.extents.len() > INLINE_EXTENTS_MAX {
            for _ in 0..place.extents.len().div_ceil(BLOCK_EXTENTS_MAX) {
                place.leaves.push(self.run(1).start);
            }
        }
        place
    }

    /// At most so many blocks in a row, and at least one.
    fn run(&mut self, blocks_max: u64) -> Extent {
        let end = (self.next / GROUP_BLOCKS + 1) * GROUP_BLOCKS;
        let run = Extent { start: self.next, blocks: blocks_max.min(end - self.next) };
        self.next += run.blocks;
        if self.next == end {
            let group = end / GROUP_BLOCKS;
            assert!(group < self.groups, "invariant: the plan has room for all it counted");
            self.next += self.overhead(group);
        }
        run
    }

    /// Counts names, and says of each directory where it is.
    fn link(&mut self, tree: &[Inode]) -> Result<(), Ext4Error> {
        self.places[0].parent = ROOT_INODE;
        self.places[0].links = 1;
        for (index, inode) in tree.iter().enumerate() {
            let Kind::Directory(entries) = &inode.kind else { continue };
            // Its own entry for itself.
            self.places[index].links = self.places[index].links.saturating_add(1);
            let group = (Self::number(index) - 1) / self.group_inodes;
            self.directories[usize::try_from(group).expect("invariant: a group of the plan")] += 1;
            for (_, child) in entries {
                let place = &mut self.places[*child];
                place.links = place.links.saturating_add(1);
                if matches!(tree[*child].kind, Kind::Directory(_)) {
                    place.parent = Self::number(index);
                    self.places[index].links = self.places[index].links.saturating_add(1);
                }
            }
        }
        for (place, inode) in self.places.iter_mut().zip(tree) {
            match inode.kind {
                // More than can be counted is 1 (`dir_nlink`).
                Kind::Directory(_) if place.links > LINKS_MAX => place.links = 1,
                _ if place.links > LINKS_MAX => return Err(Ext4Error::TooManyLinks),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Blocks that a group begins with if it has a copy of the superblock: that, and all descriptors.
fn superblock_blocks(group: u64, groups: u64) -> u64 {
    if Plan::has_superblock(group) { 1 + groups.div_ceil(BLOCK_DESCRIPTORS) } else { 0 }
}

fn overhead(group: u64, groups: u64, group_inodes: u64) -> u64 {
    superblock_blocks(group, groups) + 2 + group_inodes / BLOCK_INODES
}

/// Bytes of an inode that are in blocks.
fn content_bytes(inode: &Inode) -> Result<u64, Ext4Error> {
    if inode.capability.len() > CAPABILITY_BYTES_MAX {
        return Err(Ext4Error::TooLong { what: "file capability" });
    }
    match &inode.kind {
        Kind::Directory(entries) if entries.iter().any(|(name, _)| name.len() > NAME_BYTES_MAX) => {
            Err(Ext4Error::TooLong { what: "name" })
        }
        Kind::Directory(entries) => Ok(directory::bytes(entries)),
        Kind::Symlink(target) if target.len() > TARGET_BYTES_MAX => {
            Err(Ext4Error::TooLong { what: "target of a symbolic link" })
        }
        Kind::Symlink(target) if target.len() > INLINE_TARGET_BYTES_MAX => Ok(target.len() as u64),
        Kind::File(bytes) => Ok((*bytes).min(FILE_SYSTEM_BYTES_MAX)),
        _ => Ok(0),
    }
}
