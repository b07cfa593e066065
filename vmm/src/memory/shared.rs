//! Guest memory that another process can map too: a file without a name (memfd_create(2)), which goes from one to the other
//! as a descriptor.
//!
//! It is for guests that may be handed over (`crate::handover`) and for no others: pages of such a file are kept track of
//! by the file and by the process, so touching one for the first time costs more, and what goes on from a snapshot cannot
//! share the snapshot's pages.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::sync::Arc;

use rustix::fs::MemfdFlags;
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::mmap::FromRangesError;
use vm_memory::{GuestMemoryBackend as _, MmapRegion};

use super::{Error, GuestMemory, HUGE_PAGE_MIB, MIB, Region, check_size, huge, map_file, ram_ranges, reason};
use crate::config::HugePages;

/// The file, with or without memory in it.
#[derive(Debug, Clone)]
pub struct Shared {
    file: Arc<File>,
    pages: HugePages,
}

impl Shared {
    /// An empty one, whose memory will be of such pages; to be made before the process is confined, whose filter does not
    /// have this.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(pages: HugePages) -> io::Result<Self> {
        let huge = match pages {
            HugePages::Reserved => MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
            HugePages::None | HugePages::Transparent => MemfdFlags::empty(),
        };
        let file = rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC | huge)?;
        Ok(Self::of(file.into(), pages))
    }

    /// One that another process made.
    #[must_use]
    pub fn of(file: File, pages: HugePages) -> Self {
        Self { file: Arc::new(file), pages }
    }

    /// The same of other pages than those that it was made for; neither are reserved ones.
    #[must_use]
    pub fn of_pages(self, pages: HugePages) -> Self {
        Self { pages, ..self }
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What pages it is of.
    #[must_use]
    pub fn pages(&self) -> HugePages {
        self.pages
    }

    /// Makes room for `size_mib` MiB in an empty file, and maps it. Reserved pages are taken here.
    ///
    /// # Errors
    /// As `super::allocate_of`.
    pub fn allocate(&self, size_mib: u32) -> Result<GuestMemory, Error> {
        if self.pages == HugePages::Reserved && !size_mib.is_multiple_of(HUGE_PAGE_MIB) {
            return Err(Error::HugeSize(size_mib));
        }
        check_size(size_mib)?;
        self.file.set_len(u64::from(size_mib) * MIB).map_err(|source| Error::Room { size_mib, source })?;
        self.map(size_mib)
    }

    /// Maps the `size_mib` MiB that are there.
    ///
    /// # Errors
    /// The file is smaller, or the host refuses.
    pub fn map(&self, size_mib: u32) -> Result<GuestMemory, Error> {
        check_size(size_mib)?;
        let room = |source| Error::Room { size_mib, source };
        // Not by `metadata`, which asks by system calls that a confined process has not.
        let bytes = (&*self.file).seek(SeekFrom::End(0)).map_err(room)?;
        if bytes < u64::from(size_mib) * MIB {
            return Err(room(io::ErrorKind::UnexpectedEof.into()));
        }
        let failed = |error: FromRangesError| match self.pages {
            HugePages::Reserved => Error::HugePages { size_mib, source: reason(error) },
            HugePages::None | HugePages::Transparent => Error::Map { size_mib, source: reason(error) },
        };
        let regions = map_file(&ram_ranges(size_mib), libc::MAP_SHARED, (&self.file, 0)).map_err(failed)?;
        if self.pages == HugePages::Transparent {
            regions.iter().for_each(huge::advise);
        }
        GuestMemory::from_regions(regions).map_err(|source| failed(source.into()))
    }
}

/// Whether all of a guest's memory is in files that others may have mapped.
pub(crate) fn are_all_shared(memory: &GuestMemory) -> bool {
    memory.iter().all(is_shared)
}

/// Whether a region's pages are those of a file that others may have mapped.
pub(super) fn is_shared(region: &Region) -> bool {
    let mapping: &MmapRegion<AtomicBitmap> = region;
    mapping.flags() & libc::MAP_SHARED != 0
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;
    use std::time::Instant;

    use vm_memory::{Bytes as _, GuestAddress};

    use super::*;
    use crate::memory::discard::discard;

    #[test]
    fn what_one_writes_another_that_has_the_file_reads_and_what_is_given_back_is_gone_for_both() {
        let shared = Shared::new(HugePages::None).unwrap();
        let first = shared.allocate(3073).unwrap();
        let second = Shared::of(shared.file().try_clone().unwrap(), HugePages::None).map(3073).unwrap();
        let above = GuestAddress(4 << 30);
        first.write_obj(7_u64, GuestAddress(4096)).unwrap();
        second.write_obj(8_u64, above).unwrap();
        assert_eq!(second.read_obj::<u64>(GuestAddress(4096)).unwrap(), 7);
        assert_eq!(first.read_obj::<u64>(above).unwrap(), 8);
        let blocks = || shared.file().metadata().unwrap().blocks();
        let before = blocks();
        assert_eq!(discard(&first, GuestAddress(4096), 4096), 4096);
        assert_eq!(second.read_obj::<u64>(GuestAddress(4096)).unwrap(), 0);
        assert!(before >= 16, "{before}");
        assert!(matches!(shared.map(4096), Err(Error::Room { .. })));
        assert!(matches!(shared.allocate(0), Err(Error::Size(0))));
    }

    #[test]
    fn reserved_pages_are_there_or_told_to_be_missing() {
        let Ok(shared) = Shared::new(HugePages::Reserved) else {
            println!("skipped: no huge pages");
            return;
        };
        assert!(matches!(shared.allocate(65), Err(Error::HugeSize(65))));
        match shared.allocate(2) {
            Ok(memory) => memory.write_obj(1_u8, GuestAddress(MIB)).unwrap(),
            Err(error) => assert!(error.to_string().contains("vm.nr_hugepages=1"), "{error}"),
        }
    }

    /// Prints what the first touch of a page costs, for whoever thinks of making this the memory of all guests.
    #[test]
    fn first_touch_of_a_page_is_told_beside_that_of_memory_of_one_process() {
        const TOUCHED_MIB: u32 = 64;
        let touch = |memory: &GuestMemory| {
            let began = Instant::now();
            let pages = u64::from(TOUCHED_MIB) * MIB / 4096;
            (0..pages).for_each(|page| memory.write_obj(1_u8, GuestAddress(page * 4096)).unwrap());
            began.elapsed().as_nanos() / u128::from(pages)
        };
        let own = touch(&super::super::allocate(TOUCHED_MIB).unwrap());
        let shared = touch(&Shared::new(HugePages::None).unwrap().allocate(TOUCHED_MIB).unwrap());
        println!("first touch of a page: {own} ns, of shared memory {shared} ns");
    }
}
