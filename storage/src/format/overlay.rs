//! A copy-on-write overlay: a disk that begins as an immutable base and keeps what is written in a file of its own.
//!
//! # Layout
//! All integers are little-endian. A cluster is 4096 bytes, the unit in which most filesystems write, so that most writes
//! need no copy of the base.
//!
//! | offset | length | what |
//! |---|---|---|
//! | 0 | 8 | magic `WISPOVL\x01` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | cluster size as a power of two, 12 |
//! | 16 | 8 | size of the disk in bytes, a multiple of 512, at most [`SIZE_BYTES_MAX`] |
//! | 24 | 8 | size of the base in bytes, at most that of the disk |
//! | 32 | 8 | offset of the data, which follows from the disk's size |
//! | 40 | 4056 | zeros |
//! | 4096 | one bit per cluster, in pages of 4096 bytes | the map: 1 if the cluster is here, 0 if it is the base's; the lowest bit of a byte is its first cluster |
//! | data | size of the disk | the clusters, each at the place that its number gives |
//!
//! The file is sparse, so the filesystem allocates; a new overlay is one written sector. Since a cluster's place follows
//! from its number, no map, however damaged or hostile, leads outside the disk or makes two clusters share bytes. Beyond
//! the base's end a cluster that is not here reads as zeros.
//!
//! # Power loss
//! A bit is written only once its cluster's data is durable: [`Disk::flush`] syncs the data, writes the changed pages of
//! the map, and syncs again. Until then the bits are in memory alone, and the disk falls back to what the base says. A
//! cluster whose bit is durable is written in place. A discarded cluster is a hole in the data and keeps its bit, so it
//! reads as zeros; one that was never here stays the base's (VIRTIO 1.3 §5.2.6 allows either). A cluster that is made zeros
//! is made so in the file before its bit is set, whatever a crash left there. The header is one sector and is written once.
//!
//! Whoever writes clusters where they were located sets their bits afterwards ([`Disk::finish`]), so all of this holds with
//! many writes under way: a flush covers those that were done when it began.
//!
//! # Memory
//! At most [`MAP_PAGES_MAX`] pages of the map are in memory, 256 KiB, whatever the disk's size.
//!
//! Must never know: paths, which filesystem lies below.

mod located;
mod map;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use self::map::{CLUSTERS_PER_PAGE, Map, PAGE_BYTES};
use super::raw::file_size_bytes;
use super::{Disk, Extent, RawFile, Work, check_within, length_of};

pub use self::map::MAP_PAGES_MAX;

/// The unit of copying.
pub const CLUSTER_BYTES: u64 = 1 << CLUSTER_SHIFT;
/// The largest disk: half of what ext4 allows in one file.
pub const SIZE_BYTES_MAX: u64 = 1 << 43;

const CLUSTER_SHIFT: u32 = 12;
const MAGIC: [u8; 8] = *b"WISPOVL\x01";
const VERSION: u32 = 1;
const HEADER_BYTES: u64 = 4096;
/// What of the header is not zero; within one sector.
const HEADER_FIELDS_BYTES: usize = 40;
/// What the smallest unit of the guest's is (VIRTIO 1.3 §5.2.4).
const SECTOR_BYTES: u64 = 512;
/// The bytes of the disk that one page of the map stands for.
const PAGE_SPAN_BYTES: u64 = CLUSTERS_PER_PAGE * CLUSTER_BYTES;

/// Why a file is no overlay that can be used.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// Reading or writing failed.
    #[error("{step}")]
    Io {
        /// What failed.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The sizes are not ones an overlay can have.
    #[error(
        "an overlay of {virtual_size_bytes} bytes over a base of {base_size_bytes} bytes is not possible: {reason}"
    )]
    Size {
        /// The disk's size.
        virtual_size_bytes: u64,
        /// The base's size.
        base_size_bytes: u64,
        /// Why not.
        reason: &'static str,
    },
    /// The file does not begin as an overlay does.
    #[error("not an overlay: {reason}")]
    Header {
        /// What is wrong.
        reason: &'static str,
    },
    /// The base is not as long as the one that the overlay was made for, so it is another.
    #[error("the base has {found} bytes; the overlay was made over one of {expected}")]
    Base {
        /// The base's size.
        found: u64,
        /// The size in the overlay's header.
        expected: u64,
    },
}

impl OverlayError {
    fn io(step: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { step, source }
    }
}

/// The sizes from which everything's place follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Geometry {
    virtual_size_bytes: u64,
    base_size_bytes: u64,
}

impl Geometry {
    fn new(base_size_bytes: u64, virtual_size_bytes: u64) -> Result<Self, OverlayError> {
        let reason = match virtual_size_bytes {
            0 => "a disk has at least one sector",
            size if size > SIZE_BYTES_MAX => "larger than the largest disk",
            size if !size.is_multiple_of(SECTOR_BYTES) => "not whole sectors",
            size if size < base_size_bytes => "smaller than its base",
            _ => return Ok(Self { virtual_size_bytes, base_size_bytes }),
        };
        Err(OverlayError::Size { virtual_size_bytes, base_size_bytes, reason })
    }

    fn map_pages(self) -> u64 {
        self.virtual_size_bytes.div_ceil(PAGE_SPAN_BYTES)
    }

    fn data_offset(self) -> u64 {
        HEADER_BYTES + self.map_pages() * PAGE_BYTES as u64
    }

    /// Whole clusters, also where the disk ends within one.
    fn file_size_bytes(self) -> u64 {
        self.data_offset() + self.virtual_size_bytes.next_multiple_of(CLUSTER_BYTES)
    }

    fn encode(self) -> [u8; HEADER_FIELDS_BYTES] {
        let mut header = [0; HEADER_FIELDS_BYTES];
        header[..8].copy_from_slice(&MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[12..16].copy_from_slice(&CLUSTER_SHIFT.to_le_bytes());
        header[16..24].copy_from_slice(&self.virtual_size_bytes.to_le_bytes());
        header[24..32].copy_from_slice(&self.base_size_bytes.to_le_bytes());
        header[32..40].copy_from_slice(&self.data_offset().to_le_bytes());
        header
    }

    fn decode(header: &[u8; HEADER_FIELDS_BYTES]) -> Result<Self, OverlayError> {
        let refuse = |reason| Err(OverlayError::Header { reason });
        let u32_at =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if header[..8] != MAGIC {
            return refuse("it does not begin with the magic");
        }
        if u32_at(8) != VERSION {
            return refuse("its version is unknown");
        }
        if u32_at(12) != CLUSTER_SHIFT {
            return refuse("its cluster size is unknown");
        }
        let geometry = Self::new(u64_at(24), u64_at(16))?;
        if u64_at(32) != geometry.data_offset() {
            return refuse("its data is not where its size says");
        }
        Ok(geometry)
    }
}

/// An overlay with its base.
pub struct Overlay {
    geometry: Geometry,
    file: Box<dyn Disk>,
    base: Box<dyn Disk>,
    map: Map,
}

impl std::fmt::Debug for Overlay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Overlay").field("geometry", &self.geometry).finish_non_exhaustive()
    }
}

impl Overlay {
    /// Makes `file`, whatever it held, a new overlay over a base of `base_size_bytes`, as a disk of
    /// `virtual_size_bytes`, in constant time. Durable when it returns; the file's name is the caller's to sync.
    ///
    /// # Errors
    /// [`OverlayError::Size`] and [`OverlayError::Io`].
    pub fn create(file: &File, base_size_bytes: u64, virtual_size_bytes: u64) -> Result<(), OverlayError> {
        let geometry = Geometry::new(base_size_bytes, virtual_size_bytes)?;
        file.set_len(0).map_err(OverlayError::io("empty the overlay's file"))?;
        file.set_len(geometry.file_size_bytes()).map_err(OverlayError::io("size the overlay's file"))?;
        file.write_all_at(&geometry.encode(), 0).map_err(OverlayError::io("write the overlay's header"))?;
        file.sync_all().map_err(OverlayError::io("sync the overlay's file"))
    }

    /// Opens an overlay: `file` for reading and writing, `base` for reading.
    ///
    /// # Errors
    /// See [`OverlayError`].
    pub fn open(file: File, base: File) -> Result<Self, OverlayError> {
        let base = RawFile::whole(base, true).map_err(OverlayError::io("size the base"))?;
        let file_size_bytes = file_size_bytes(&file).map_err(OverlayError::io("size the overlay's file"))?;
        Self::over(Box::new(RawFile::new(file, file_size_bytes)), Box::new(base))
    }

    /// The same over anything that is a disk, such as a base in another format.
    ///
    /// # Errors
    /// See [`OverlayError`].
    pub fn over(file: Box<dyn Disk>, base: Box<dyn Disk>) -> Result<Self, OverlayError> {
        let mut header = [0; HEADER_FIELDS_BYTES];
        if file.size_bytes() < HEADER_BYTES {
            return Err(OverlayError::Header { reason: "it is too short" });
        }
        file.read_at(&mut header, 0).map_err(OverlayError::io("read the overlay's header"))?;
        let geometry = Geometry::decode(&header)?;
        if file.size_bytes() < geometry.file_size_bytes() {
            return Err(OverlayError::Header { reason: "it is shorter than its size says" });
        }
        if base.size_bytes() != geometry.base_size_bytes {
            return Err(OverlayError::Base { found: base.size_bytes(), expected: geometry.base_size_bytes });
        }
        Ok(Self { geometry, file, base, map: Map::new(HEADER_BYTES) })
    }

    /// Writes all that the overlay in `file` has into its base, and makes it one that has nothing, over what the base is then.
    /// Whatever interrupts it, doing it again does the rest; until then neither can be used. At its very end it may leave an
    /// empty file: the base has all of the disk by then.
    ///
    /// # Errors
    /// See [`OverlayError`]; both are to be committed again.
    pub fn commit(file: &File, base: &File) -> Result<(), OverlayError> {
        let duplicate = |file: &File| file.try_clone().map_err(OverlayError::io("duplicate a descriptor"));
        let file_bytes = file_size_bytes(file).map_err(OverlayError::io("size the overlay's file"))?;
        let mut header = [0; HEADER_FIELDS_BYTES];
        file.read_exact_at(&mut header, 0).map_err(OverlayError::io("read the overlay's header"))?;
        let geometry = Geometry::decode(&header)?;
        let (base_bytes, size_bytes) = (geometry.base_size_bytes, geometry.virtual_size_bytes);
        // One that was interrupted may have made it longer.
        let found = file_size_bytes(base).map_err(OverlayError::io("size the base"))?;
        if found != base_bytes && found != size_bytes {
            return Err(OverlayError::Base { found, expected: base_bytes });
        }
        let own = RawFile::new(duplicate(file)?, file_bytes);
        let below = RawFile::new_read_only(duplicate(base)?, base_bytes);
        let overlay = Self::over(Box::new(own), Box::new(below))?;
        if size_bytes > base_bytes {
            base.set_len(size_bytes).map_err(OverlayError::io("size the base"))?;
        }
        let mut piece = vec![0; usize_of(CLUSTER_BYTES)];
        for page in 0..geometry.map_pages() {
            let last =
                CLUSTERS_PER_PAGE.min((size_bytes - page * PAGE_SPAN_BYTES).div_ceil(CLUSTER_BYTES)) - 1;
            let mut first = 0;
            while first <= last {
                let run = overlay.map.page(&*overlay.file, page).map(|guard| guard.run(first, last));
                let (here, clusters) = run.map_err(OverlayError::io("read the overlay's map"))?;
                for cluster in (first..first + clusters).filter(|_| here) {
                    let at = page * PAGE_SPAN_BYTES + cluster * CLUSTER_BYTES;
                    let part = &mut piece[..usize_of(CLUSTER_BYTES.min(size_bytes - at))];
                    overlay.read_at(part, at).map_err(OverlayError::io("read the overlay"))?;
                    base.write_all_at(part, at).map_err(OverlayError::io("write to the base"))?;
                }
                first += clusters;
            }
        }
        base.sync_all().map_err(OverlayError::io("sync the base"))?;
        Self::create(file, size_bytes, size_bytes)
    }

    /// The size of the base that it was made for.
    #[must_use]
    pub fn base_size_bytes(&self) -> u64 {
        self.geometry.base_size_bytes
    }

    fn data_at(&self, offset: u64) -> u64 {
        self.geometry.data_offset() + offset
    }

    /// Reads what the base has, with zeros after its end.
    fn read_base(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let left = self.geometry.base_size_bytes.saturating_sub(offset).min(length_of(buffer));
        let (from_base, zeros) = buffer.split_at_mut(usize_of(left));
        zeros.fill(0);
        if from_base.is_empty() { Ok(()) } else { self.base.read_at(from_base, offset) }
    }

    /// Writes `piece`, which lies under one page of the map. Whoever brings clusters here holds the map meanwhile, so
    /// that two writes to one new cluster do not undo each other.
    fn write_piece(&self, piece: &[u8], offset: u64) -> io::Result<()> {
        let page = offset / PAGE_SPAN_BYTES;
        let first = cluster_in_page(offset);
        let last = cluster_in_page(offset + length_of(piece) - 1);
        let mut guard = self.map.page(&*self.file, page)?;
        if guard.all_here(first, last) {
            drop(guard);
            return self.file.write_at(piece, self.data_at(offset));
        }
        let head = usize_of(offset % CLUSTER_BYTES);
        let tail = (head + piece.len()) % usize_of(CLUSTER_BYTES);
        let mut rest = piece;
        let mut at = offset;
        if head != 0 && !guard.is_here(first) {
            let (part, after) = rest.split_at(rest.len().min(usize_of(CLUSTER_BYTES) - head));
            self.copy_up(part, at)?;
            rest = after;
            at += length_of(part);
        }
        // The head's copy may have been the tail's too.
        if tail != 0 && !rest.is_empty() && !guard.is_here(last) {
            let (before, part) = rest.split_at(rest.len().saturating_sub(tail));
            self.copy_up(part, at + length_of(before))?;
            rest = before;
        }
        if !rest.is_empty() {
            self.file.write_at(rest, self.data_at(at))?;
        }
        guard.set_here(first, last);
        Ok(())
    }

    /// Makes whole clusters under one page of the map zeros. Where neither this file nor the base has anything, they are.
    fn zero_clusters(&self, offset: u64, length: u64, free: bool) -> io::Result<()> {
        let last = cluster_in_page(offset + length - 1);
        let mut at = offset;
        while at < offset + length {
            let mut guard = self.map.page(&*self.file, offset / PAGE_SPAN_BYTES)?;
            let first = cluster_in_page(at);
            let (here, clusters) = guard.run(first, last);
            let run = (clusters * CLUSTER_BYTES).min(offset + length - at);
            if here || at < self.geometry.base_size_bytes {
                // What a crash left there without a bit is as good as anything that was never written.
                self.file.write_zeroes(self.data_at(at), run, free)?;
                if !here {
                    guard.set_here(first, first + clusters - 1);
                }
            }
            at += run;
        }
        Ok(())
    }

    /// Brings one cluster of the base here, with `part` written over it.
    fn copy_up(&self, part: &[u8], offset: u64) -> io::Result<()> {
        let mut cluster = [0; CLUSTER_BYTES as usize];
        let start = offset - offset % CLUSTER_BYTES;
        self.read_base(&mut cluster, start)?;
        let head = usize_of(offset - start);
        cluster[head..head + part.len()].copy_from_slice(part);
        self.file.write_at(&cluster, self.data_at(start))
    }
}

impl Disk for Overlay {
    fn size_bytes(&self) -> u64 {
        self.geometry.virtual_size_bytes
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        check_within(self.size_bytes(), offset, length_of(buffer))?;
        let end = offset + length_of(buffer);
        let mut rest = buffer;
        let mut at = offset;
        while !rest.is_empty() {
            let (here, run) = self.run_at(at, end)?;
            let (part, after) = rest.split_at_mut(usize_of(run));
            if here {
                self.file.read_at(part, self.data_at(at))?;
            } else {
                self.read_base(part, at)?;
            }
            rest = after;
            at += run;
        }
        Ok(())
    }

    fn write_at(&self, buffer: &[u8], offset: u64) -> io::Result<()> {
        check_within(self.size_bytes(), offset, length_of(buffer))?;
        let mut rest = buffer;
        let mut at = offset;
        while !rest.is_empty() {
            let span = length_of(rest).min(PAGE_SPAN_BYTES - at % PAGE_SPAN_BYTES);
            let (piece, after) = rest.split_at(usize_of(span));
            self.write_piece(piece, at)?;
            rest = after;
            at += span;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.map.persist(&*self.file)?;
        self.map.sync(&*self.file)
    }

    fn next_data(&self, offset: u64) -> io::Result<u64> {
        let end = self.size_bytes();
        let mut at = offset.min(end);
        while at < end {
            let (here, run) = self.run_at(at, end)?;
            let found = if here {
                self.file.next_data(self.data_at(at))?.saturating_sub(self.data_at(0))
            } else if at < self.geometry.base_size_bytes {
                self.base.next_data(at)?
            } else {
                end
            };
            if found < at + run {
                return Ok(found);
            }
            at += run;
        }
        Ok(end)
    }

    /// Frees what is here; what is the base's stays as it is.
    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        check_within(self.size_bytes(), offset, length)?;
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let (here, run) = self.run_at(at, end)?;
            if here {
                self.file.discard(self.data_at(at), run)?;
            }
            at += run;
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, length: u64, free: bool) -> io::Result<()> {
        check_within(self.size_bytes(), offset, length)?;
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let span = (end - at).min(PAGE_SPAN_BYTES - at % PAGE_SPAN_BYTES);
            let inside = at % CLUSTER_BYTES;
            if inside != 0 || span < CLUSTER_BYTES {
                let part = span.min(CLUSTER_BYTES - inside);
                self.write_piece(&[0; CLUSTER_BYTES as usize][..usize_of(part)], at)?;
                at += part;
            } else {
                let whole = span - span % CLUSTER_BYTES;
                self.zero_clusters(at, whole, free)?;
                at += whole;
            }
        }
        Ok(())
    }

    /// A read may be of several files. A write is located if no cluster has to be copied for it: it replaces clusters as a
    /// whole, or those that it touches are here.
    fn locate(&self, work: Work, extents: &mut Vec<Extent>) -> io::Result<bool> {
        let known = extents.len();
        let located = match work {
            Work::Read { offset, length } => self.locate_read(offset, length, extents),
            Work::Write { offset, length } => {
                check_within(self.size_bytes(), offset, length)?;
                let place = Work::Write { offset: self.data_at(offset), length };
                let is_whole = offset.is_multiple_of(CLUSTER_BYTES) && length.is_multiple_of(CLUSTER_BYTES);
                if is_whole || self.is_here(offset, length)? {
                    self.file.locate(place, extents)
                } else {
                    Ok(false)
                }
            }
            Work::Flush if self.map.is_written() => self.file.locate(Work::Flush, extents),
            Work::Flush => Ok(false),
            Work::Discard { offset, length } => self.locate_discard(offset, length, extents),
        };
        if !matches!(located, Ok(true)) {
            extents.truncate(known);
        }
        located
    }

    /// Clusters that were written are here from now on, in memory until the next flush. A sync that failed is the last one.
    fn finish(&self, work: Work, result: io::Result<()>) -> io::Result<()> {
        match work {
            Work::Write { offset, length } => {
                result?;
                self.pages(offset, length).try_for_each(|(page, first, last)| {
                    let mut guard = self.map.page(&*self.file, page)?;
                    if !guard.all_here(first, last) {
                        guard.set_here(first, last);
                    }
                    Ok(())
                })
            }
            Work::Flush => self.map.synced(result),
            Work::Read { .. } | Work::Discard { .. } => result,
        }
    }
}

/// The number of the cluster at `offset` within its page of the map.
fn cluster_in_page(offset: u64) -> u64 {
    offset % PAGE_SPAN_BYTES / CLUSTER_BYTES
}

/// For lengths that came from a buffer's length or are shorter than a page's span.
fn usize_of(length: u64) -> usize {
    usize::try_from(length).expect("invariant: as long as a buffer at most")
}
