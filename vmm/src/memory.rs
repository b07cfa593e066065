//! Guest memory and the guest's physical address map: where RAM lies, where the hole for devices is, and which
//! low addresses the boot code and the firmware tables use.
//!
//! Must never know: what a device or a kernel does with the bytes.
//!
//! ```text
//! 0x0000_0000            RAM below 1 MiB: boot structures (below), ACPI tables at RSDP_START, SMBIOS tables at
//!                        SMBIOS_START
//! 0x0010_0000            RAM: kernel, initial ramdisk
//! 0xc000_0000            hole of 1 GiB: registers of PCI functions at PCI_WINDOW_START, virtio-mmio windows at
//!                        MMIO_START, PCI configuration space at PCI_ECAM_START, IOAPIC, local APICs, KVM's own pages
//! 0x1_0000_0000          RAM, the rest; behind it, on a multiple of 128 MiB, memory that comes and goes; behind all of
//!                        that, on multiples of 2 MiB, files that are memory (persistent memory)
//! ```

pub mod discard;
pub mod file;
pub mod fragile;
mod huge;
pub mod mapping;
pub mod pages;
mod place;
pub mod registers;
pub mod shared;
pub mod userfault;

use std::fs::File;
use std::sync::Arc;

use vm_memory::bitmap::{AtomicBitmap, BS, NewBitmap as _};
use vm_memory::mmap::{FromRangesError, MmapRegionBuilder, MmapRegionError};
use vm_memory::{
    Address, Bytes as _, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap,
    MmapRegion, VolatileSlice,
};

use crate::config::HugePages;

/// The memory of one guest: private mappings, reserved lazily, of nothing or of a snapshot's file; or shared ones, of a file
/// without a name ([`shared`]). Each region has a bit
/// for each page that this process has written to, which KVM does not see (`crate::snapshot`).
pub type GuestMemory = vm_memory::GuestMemoryMmap<AtomicBitmap>;

/// A piece of guest memory that lies in one region.
pub(crate) type Slice<'a> = VolatileSlice<'a, BS<'a, AtomicBitmap>>;

/// So many bytes of guest memory, if all of them lie in one region.
pub(crate) fn whole_slice(memory: &GuestMemory, address: GuestAddress, bytes: usize) -> Option<Slice<'_>> {
    let (region, at) = memory.to_region_addr(address)?;
    region.get_slice(at, bytes).ok()
}

/// Fills `data` with what lies at `address`; false if not all of it is guest memory.
pub(crate) fn read(memory: &GuestMemory, address: GuestAddress, data: &mut [u8]) -> bool {
    match whole_slice(memory, address, data.len()) {
        Some(slice) => slice.copy_to(data) == data.len(),
        None => memory.read_slice(data, address).is_ok(),
    }
}

/// Copies `data` to `address`; false if not all of it is guest memory.
pub(crate) fn write(memory: &GuestMemory, address: GuestAddress, data: &[u8]) -> bool {
    let Some(slice) = whole_slice(memory, address, data.len()) else {
        return memory.write_slice(data, address).is_ok();
    };
    slice.copy_from(data);
    true
}

/// Bytes in one MiB.
pub const MIB: u64 = 1 << 20;
/// Bytes of a page, the guest's and the host's alike.
pub const PAGE_BYTES: u64 = 4096;

/// The global descriptor table that the 64-bit boot protocol and PVH enter with.
pub const GDT_START: GuestAddress = GuestAddress(0x500);
/// The PVH start structure (`hvm_start_info`).
pub const PVH_INFO_START: GuestAddress = GuestAddress(0x6000);
/// The PVH list of modules: the initial ramdisk.
pub const PVH_MODULES_START: GuestAddress = GuestAddress(0x6040);
/// The PVH memory map.
pub const PVH_MEMMAP_START: GuestAddress = GuestAddress(0x6080);
/// Linux's `boot_params`, the "zero page".
pub const ZERO_PAGE_START: GuestAddress = GuestAddress(0x7000);
/// The boot CPU's stack pointer at entry; the stack grows down.
pub const BOOT_STACK_POINTER: GuestAddress = GuestAddress(0x8ff0);
/// Page tables of the 64-bit entry: one page each of PML4, PDPT and PD.
pub const PAGE_TABLES_START: GuestAddress = GuestAddress(0x9000);
/// The kernel command line, zero-terminated.
pub const CMDLINE_START: GuestAddress = GuestAddress(0x2_0000);
/// The longest command line in bytes with its terminating zero: Linux's `COMMAND_LINE_SIZE` on x86.
pub const CMDLINE_BYTES_MAX: usize = 2048;
/// The end of conventional memory in the memory map: where a PC's extended BIOS data area begins.
pub const LOW_RAM_END: GuestAddress = GuestAddress(0x9_fc00);
/// The generation id, 16 bytes: another one whenever a guest goes on from a snapshot (`crate::acpi`). The first page of
/// the last 64 KiB before the ACPI tables; the memory map leaves it to firmware.
pub const GENERATION_START: GuestAddress = GuestAddress(0xd_0000);
/// The clock page (`crate::clock`).
pub const CLOCK_START: GuestAddress = GuestAddress(0xd_1000);
/// The RSDP; the other ACPI tables follow it. Linux and others also find it here by scanning.
pub const RSDP_START: GuestAddress = GuestAddress(0xe_0000);
/// The end of the area that holds ACPI tables, and the SMBIOS entry point: guests look for it from here on.
pub const SMBIOS_START: GuestAddress = GuestAddress(0xf_0000);
/// The end of the area that holds firmware's tables.
pub const FIRMWARE_END: GuestAddress = GuestAddress(0x10_0000);
/// Where kernels and everything else above the first MiB may be loaded.
pub const HIGH_RAM_START: GuestAddress = GuestAddress(0x10_0000);
/// The beginning of the hole for devices; RAM that does not fit below lies from 4 GiB on.
pub const MMIO_HOLE_START: GuestAddress = GuestAddress(0xc000_0000);
/// The end of that hole.
pub const MMIO_HOLE_END: GuestAddress = GuestAddress(0x1_0000_0000);
/// Where PCI functions' registers may lie.
pub const PCI_WINDOW_START: GuestAddress = GuestAddress(0xc000_0000);
/// The length of that window in bytes: room for a thousand times what 31 virtio functions need.
pub const PCI_WINDOW_BYTES: u64 = 0x1000_0000;
/// PCI configuration space as memory (ECAM), of one bus.
pub const PCI_ECAM_START: GuestAddress = GuestAddress(0xe000_0000);
/// Its length in bytes: 32 slots of 8 functions of 4 KiB.
pub const PCI_ECAM_BYTES: u64 = 0x10_0000;
/// The first virtio-mmio window.
pub const MMIO_START: GuestAddress = GuestAddress(0xd000_0000);
/// The size of one virtio-mmio window in bytes.
pub const MMIO_WINDOW_BYTES: u64 = 0x1000;
/// The IOAPIC that KVM emulates.
pub const IOAPIC_START: u32 = 0xfec0_0000;
/// The local APICs that KVM emulates.
pub const LOCAL_APIC_START: u32 = 0xfee0_0000;
/// A page that KVM needs for real mode on some hardware (`KVM_SET_IDENTITY_MAP_ADDR`).
pub const KVM_IDENTITY_MAP_START: u64 = 0xfeff_c000;
/// Three pages that KVM needs for real mode on some hardware (`KVM_SET_TSS_ADDR`).
pub const KVM_TSS_START: u64 = 0xfeff_d000;

/// Why guest memory could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The size is not within 1 MiB to [`crate::config::MEMORY_MIB_MAX`].
    #[error("a guest needs from 1 to {max} MiB of memory, not {0}", max = crate::config::MEMORY_MIB_MAX)]
    Size(u32),
    /// Memory that comes and goes is of whole pieces.
    #[error(
        "memory that comes and goes is from {HOTPLUG_ALIGNMENT_MIB} MiB on a multiple of that, and with the rest at most {max}, \
         not {0} MiB",
        max = crate::config::MEMORY_MIB_MAX
    )]
    Hotplug(u32),
    /// Memory of huge pages is of whole ones.
    #[error("memory of reserved huge pages is a multiple of 2 MiB, not {0} MiB")]
    HugeSize(u32),
    /// The host has none, or too few.
    #[error(
        "the host has not {size_mib} MiB of free huge pages of 2 MiB: reserve them (sysctl \
         vm.nr_hugepages={}), or take transparent ones, which need no reservation", size_mib / HUGE_PAGE_MIB
    )]
    HugePages {
        /// The size asked for.
        size_mib: u32,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It would have to be in the file, too.
    #[error(
        "memory that comes and goes is its process's alone, so such a guest cannot be one that may be handed over"
    )]
    SharedHotplug,
    /// A file that is memory has no room for it, or is not as large.
    #[error("make room for {size_mib} MiB of guest memory")]
    Room {
        /// The size asked for.
        size_mib: u32,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The host refused the mapping.
    #[error("map {size_mib} MiB of guest memory")]
    Map {
        /// The size asked for.
        size_mib: u32,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Where RAM of `size_mib` MiB lies: start and length in bytes, in ascending order.
#[must_use]
pub fn ram_ranges(size_mib: u32) -> Vec<(GuestAddress, u64)> {
    let size = u64::from(size_mib) * MIB;
    let below = size.min(MMIO_HOLE_START.raw_value());
    let mut ranges = vec![(GuestAddress(0), below)];
    if size > below {
        ranges.push((MMIO_HOLE_END, size - below));
    }
    ranges
}

/// Memory that comes and goes begins and ends on multiples of so many MiB: Linux adds and takes it in such pieces.
pub const HOTPLUG_ALIGNMENT_MIB: u32 = 128;

/// Where all memory lies, if the last `hotplug_mib` of `size_mib` MiB come and go.
#[must_use]
pub fn ranges((size_mib, hotplug_mib): (u32, u32)) -> Vec<(GuestAddress, u64)> {
    let mut ranges = ram_ranges(size_mib.saturating_sub(hotplug_mib));
    if hotplug_mib > 0 {
        let end = ranges.last().map_or(0, |(start, bytes)| start.raw_value() + bytes);
        let alignment = u64::from(HOTPLUG_ALIGNMENT_MIB) * MIB;
        let start = end.max(MMIO_HOLE_END.raw_value()).next_multiple_of(alignment);
        ranges.push((GuestAddress(start), u64::from(hotplug_mib) * MIB));
    }
    ranges
}

/// `ram`, of `ram_mib` MiB, and as much behind it that comes and goes, of pages as they are asked for.
///
/// # Errors
/// A size out of bounds, or a host that refuses the mapping.
pub fn with_hotplug(
    ram: &GuestMemory,
    (ram_mib, hotplug_mib): (u32, u32),
    pages: HugePages,
) -> Result<GuestMemory, Error> {
    if hotplug_mib == 0 {
        return Ok(ram.clone());
    }
    let all_mib = ram_mib.saturating_add(hotplug_mib);
    if !hotplug_mib.is_multiple_of(HOTPLUG_ALIGNMENT_MIB) || all_mib > crate::config::MEMORY_MIB_MAX {
        return Err(Error::Hotplug(hotplug_mib));
    }
    let (start, bytes) = *ranges((all_mib, hotplug_mib)).last().expect("invariant: there is some");
    let failed = |error| Error::Map { size_mib: hotplug_mib, source: reason(error) };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let region = map_region((start, bytes), flags, None).map_err(failed)?;
    if pages == HugePages::Transparent {
        huge::advise(&region);
    }
    ram.insert_region(Arc::new(region)).map_err(|source| failed(source.into()))
}

/// Why memory is not mapped, alone: what is made of it on the way says it again at each step.
fn reason(error: FromRangesError) -> std::io::Error {
    match error {
        FromRangesError::MmapRegion(MmapRegionError::Mmap(error)) => error,
        other => std::io::Error::other(other.to_string()),
    }
}

/// One piece of a guest's memory.
type Region = GuestRegionMmap<AtomicBitmap>;

/// Maps one, of nothing or of what lies in a file.
fn map_region(
    (start, bytes): (GuestAddress, u64),
    flags: libc::c_int,
    content: Option<FileOffset>,
) -> Result<Region, FromRangesError> {
    let size = usize::try_from(bytes).expect("invariant: usize has 64 bits");
    let mut builder = MmapRegionBuilder::new_with_bitmap(size, AtomicBitmap::with_len(size))
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(flags);
    if let Some(content) = content {
        builder = builder.with_file_offset(content);
    }
    Ok(GuestRegionMmap::new(builder.build()?, start).expect("invariant: memory ends far below overflow"))
}

/// Maps what lies in `file` from `offset` on, one range after the other.
fn map_file(
    ranges: &[(GuestAddress, u64)],
    flags: libc::c_int,
    (file, offset): (&Arc<File>, u64),
) -> Result<Vec<Region>, FromRangesError> {
    let (mut regions, mut at) = (Vec::with_capacity(ranges.len()), offset);
    for range in ranges {
        regions.push(map_region(*range, flags, Some(FileOffset::from_arc(file.clone(), at)))?);
        at += range.1;
    }
    Ok(regions)
}

fn check_size(size_mib: u32) -> Result<(), Error> {
    let is_one = (1..=crate::config::MEMORY_MIB_MAX).contains(&size_mib);
    if is_one { Ok(()) } else { Err(Error::Size(size_mib)) }
}

/// MiB of a huge page.
const HUGE_PAGE_MIB: u32 = 2;
/// Its size as `mmap` is told of it: the power of two, from bit 26 on (`linux/mman.h`).
const MAP_HUGE_2MB: libc::c_int = 21 << 26;

/// Maps `size_mib` MiB of guest memory of the host's usual pages. No page is touched.
///
/// # Errors
/// A size out of bounds, or a host that refuses the mapping.
pub fn allocate(size_mib: u32) -> Result<GuestMemory, Error> {
    allocate_of(size_mib, HugePages::None)
}

/// The same of other pages; reserved ones are taken here.
///
/// # Errors
/// As [`allocate`], or there are no such pages.
pub fn allocate_of(size_mib: u32, pages: HugePages) -> Result<GuestMemory, Error> {
    check_size(size_mib)?;
    let flags = match pages {
        HugePages::None | HugePages::Transparent => libc::MAP_NORESERVE,
        HugePages::Reserved if !size_mib.is_multiple_of(HUGE_PAGE_MIB) => {
            return Err(Error::HugeSize(size_mib));
        }
        // With a reservation: without one, a page that is missing would be the process's end.
        HugePages::Reserved => libc::MAP_HUGETLB | MAP_HUGE_2MB,
    };
    let failed = |error| match pages {
        HugePages::Reserved => Error::HugePages { size_mib, source: reason(error) },
        HugePages::None | HugePages::Transparent => Error::Map { size_mib, source: reason(error) },
    };
    let mut regions = Vec::new();
    for range in ram_ranges(size_mib) {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags;
        regions.push(map_region(range, flags, None).map_err(failed)?);
    }
    let memory = GuestMemory::from_regions(regions).map_err(|source| failed(source.into()))?;
    have_pages(&memory, pages);
    Ok(memory)
}

/// Has memory that was made for the host's usual pages, and not touched, be of transparent huge ones, if these are asked for.
pub fn have_pages(memory: &GuestMemory, pages: HugePages) {
    if pages == HugePages::Transparent {
        memory.iter().for_each(huge::advise);
    }
}

/// Whether `memory` lies where RAM of `size_mib` MiB does, and is no more than that.
#[must_use]
pub fn is_of(memory: &GuestMemory, size_mib: u32) -> bool {
    memory.iter().map(|region| (region.start_addr(), region.len())).eq(ram_ranges(size_mib))
}

/// Maps memory of `size_mib` MiB, of which the last `hotplug_mib` come and go, whose content lies in `file` from `offset` on,
/// a multiple of the page size, one range after the other. What is written stays here; what is not is the file's, shared with
/// all who map it. The file must not change meanwhile. RAM that has its `place` already, untouched, is mapped there.
///
/// # Errors
/// As [`allocate`].
pub fn map_private(
    (size_mib, hotplug_mib): (u32, u32),
    (file, offset): (&Arc<File>, u64),
    place: Option<GuestMemory>,
) -> Result<GuestMemory, Error> {
    check_size(size_mib)?;
    if let Some(place) = place.filter(|place| hotplug_mib == 0 && is_of(place, size_mib)) {
        place::fill(&place, (file, offset)).map_err(|source| Error::Map { size_mib, source })?;
        return Ok(place);
    }
    let failed = |error| Error::Map { size_mib, source: reason(error) };
    let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE;
    let regions = map_file(&ranges((size_mib, hotplug_mib)), flags, (file, offset)).map_err(failed)?;
    GuestMemory::from_regions(regions).map_err(|source| failed(source.into()))
}

/// The pages of a region that this process has written to.
#[must_use]
pub fn written(region: &GuestRegionMmap<AtomicBitmap>) -> &AtomicBitmap {
    let mapping: &MmapRegion<AtomicBitmap> = region;
    mapping.bitmap()
}

/// The end of the RAM that lies below the hole.
#[must_use]
pub fn low_ram_end(memory: &GuestMemory) -> GuestAddress {
    memory
        .iter()
        .filter(|region| region.start_addr() < MMIO_HOLE_START)
        .map(|region| region.start_addr().unchecked_add(region.len()))
        .max()
        .unwrap_or_default()
}

/// Where memory that is no RAM may begin: behind all RAM and the hole, on a multiple of what a guest may map at once.
#[must_use]
pub fn behind_ram(memory: &GuestMemory) -> GuestAddress {
    let end = memory.last_addr().unchecked_add(1).max(MMIO_HOLE_END);
    GuestAddress(end.raw_value().next_multiple_of(mapping::ALIGNMENT_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_memory_is_not_there_is_said_once() {
        let no_room = || std::io::Error::from_raw_os_error(libc::ENOMEM);
        let error = MmapRegionError::Mmap(no_room()).into();
        let error = Error::HugePages { size_mib: 64, source: reason(error) };
        let said = crate::run::chain(&error);
        assert!(said.ends_with(&format!("which need no reservation: {}", no_room())), "{said}");
        assert_eq!(said.matches("os error").count(), 1, "{said}");
        let other = reason(MmapRegionError::MapFixed.into());
        let said = crate::run::chain(&Error::Map { size_mib: 64, source: other });
        assert_eq!(said.matches("MAP_FIXED").count(), 1, "{said}");
    }

    #[test]
    fn small_memory_lies_in_one_range_from_zero() {
        assert_eq!(ram_ranges(128), vec![(GuestAddress(0), 128 * MIB)]);
    }

    #[test]
    fn memory_above_three_gib_leaves_the_device_hole_free() {
        assert_eq!(
            ram_ranges(4096),
            vec![(GuestAddress(0), 3072 * MIB), (GuestAddress(1 << 32), 1024 * MIB)]
        );
    }

    #[test]
    fn memory_that_comes_and_goes_lies_behind_the_hole_and_all_ram() {
        let last = |ram, hotplug| *ranges((ram + hotplug, hotplug)).last().unwrap();
        assert_eq!(last(64, 128), (GuestAddress(1 << 32), 128 * MIB));
        assert_eq!(last(3072 + 130, 256), (GuestAddress((4096 + 256) * MIB), 256 * MIB));
        assert_eq!(ranges((64, 0)), ram_ranges(64));
        let ram = allocate(64).unwrap();
        let memory = with_hotplug(&ram, (64, 256), HugePages::None).unwrap();
        assert_eq!((memory.num_regions(), memory.last_addr()), (2, GuestAddress((4096 + 256) * MIB - 1)));
        assert_eq!(behind_ram(&memory), GuestAddress((4096 + 256) * MIB));
        for wrong in [1, 100, 129, u32::MAX] {
            assert!(with_hotplug(&ram, (64, wrong), HugePages::None).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_lies_in_a_file_is_mapped_where_there_is_a_place_for_as_much_and_for_no_more() {
        use std::os::unix::fs::FileExt as _;
        use vm_memory::Bytes as _;
        let file = Arc::new(tempfile::tempfile().unwrap());
        let marks = [(0, b"low"), (3072 * MIB, b"top")];
        for (at, mark) in marks {
            file.write_all_at(mark, 4096 + at).unwrap();
        }
        file.set_len(4096 + 4096 * MIB).unwrap();
        let place = allocate(4096).unwrap();
        let starts = |memory: &GuestMemory| memory.iter().map(|region| region.as_ptr()).collect::<Vec<_>>();
        let taken = starts(&place);
        let memory = map_private((4096, 0), (&file, 4096), Some(place)).unwrap();
        assert_eq!(starts(&memory), taken);
        for ((start, _), (_, mark)) in ram_ranges(4096).into_iter().zip(marks) {
            assert_eq!(memory.read_obj::<[u8; 3]>(start).unwrap(), *mark);
        }
        // What is written stays here.
        memory.write_slice(b"new", GuestAddress(0)).unwrap();
        let mut there = [0; 3];
        file.read_exact_at(&mut there, 4096).unwrap();
        assert_eq!(&there, b"low");
        for other in [(2048, 0), (4096, 128)] {
            let place = allocate(4096).unwrap();
            let taken = starts(&place);
            let elsewhere = map_private(other, (&file, 4096), Some(place.clone())).unwrap();
            assert!(starts(&elsewhere).iter().all(|start| !taken.contains(start)), "{other:?}");
            assert_eq!(place.read_obj::<u8>(GuestAddress(0)).unwrap(), 0);
        }
    }

    #[test]
    fn sizes_out_of_bounds_are_refused() {
        assert!(matches!(allocate(0), Err(Error::Size(0))));
        assert!(matches!(allocate(u32::MAX), Err(Error::Size(_))));
    }

    #[test]
    fn reserved_pages_are_there_or_told_to_be_missing() {
        assert!(matches!(allocate_of(65, HugePages::Reserved), Err(Error::HugeSize(65))));
        // No host has as many.
        let refused =
            allocate_of(crate::config::MEMORY_MIB_MAX, HugePages::Reserved).unwrap_err().to_string();
        assert!(refused.contains("vm.nr_hugepages=524288"), "{refused}");
        match allocate_of(2, HugePages::Reserved) {
            Ok(memory) => assert_eq!(low_ram_end(&memory), GuestAddress(2 * MIB)),
            Err(error) => println!("skipped: {error}"),
        }
    }

    #[test]
    fn transparent_pages_are_taken_where_the_host_has_them() {
        use vm_memory::Bytes as _;
        let memory = allocate_of(64, HugePages::Transparent).unwrap();
        for mib in 0..64 {
            memory.write_obj(7_u8, GuestAddress(mib * MIB)).unwrap();
        }
        let start = format!("{:x}-", memory.iter().next().unwrap().as_ptr() as usize);
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let own = maps.lines().skip_while(|line| !line.starts_with(&start));
        let huge = own.take(30).find(|line| line.starts_with("AnonHugePages:")).unwrap();
        println!("{huge}, of 65536");
        if std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled")
            .is_ok_and(|text| text.contains("[madvise]"))
        {
            let plain = allocate_of(64, HugePages::None).unwrap();
            plain.write_obj(7_u8, GuestAddress(MIB)).unwrap();
            assert_eq!(memory.read_obj::<u8>(GuestAddress(63 * MIB)).unwrap(), 7);
        }
    }

    #[test]
    fn low_ram_ends_at_the_hole() {
        assert_eq!(low_ram_end(&allocate(64).unwrap()), GuestAddress(64 * MIB));
        assert_eq!(low_ram_end(&allocate(4096).unwrap()), MMIO_HOLE_START);
    }
}
