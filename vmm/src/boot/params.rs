//! What a kernel is told at its entry: Linux's zero page (Documentation/arch/x86/boot.rst) and PVH's start
//! structure (Xen, docs/misc/pvh.pandoc), each with the memory map.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::image::{HEADER_MAGIC, Kernel};
use super::{Error, Initrd};
use crate::memory::{self, GuestMemory};

/// ACPI's address range types, which Linux's E820 and PVH share.
const RANGE_RAM: u32 = 1;
const RANGE_RESERVED: u32 = 2;

/// The memory map: start, length, type.
fn memory_map(guest: &GuestMemory) -> Vec<(u64, u64, u32)> {
    let firmware = memory::RSDP_START.raw_value()..memory::FIRMWARE_END.raw_value();
    let mut map = vec![
        (0, memory::LOW_RAM_END.raw_value(), RANGE_RAM),
        (firmware.start, firmware.end - firmware.start, RANGE_RESERVED),
    ];
    for region in guest.iter() {
        let start = region.start_addr().max(memory::HIGH_RAM_START);
        let end = region.start_addr().unchecked_add(region.len());
        if end > start {
            map.push((start.raw_value(), end.unchecked_offset_from(start), RANGE_RAM));
        }
    }
    map
}

pub(super) fn write_zero_page(
    guest: &GuestMemory,
    kernel: &Kernel,
    initrd: Option<Initrd>,
    cmdline: &str,
) -> Result<(), Error> {
    /// What stands in the header, beside its magic, for an ELF image that brings no header of its own.
    const BOOT_FLAG: u16 = 0xaa55;
    const PROTOCOL_VERSION: u16 = 0x020f;
    const KERNEL_ALIGNMENT: u32 = 0x100_0000;
    /// A boot loader without an assigned number.
    const LOADER_UNDEFINED: u8 = 0xff;
    let mut params = boot_params::default();
    if let Some(header) = kernel.header {
        params.hdr = header;
    } else {
        params.hdr.boot_flag = BOOT_FLAG;
        params.hdr.header = HEADER_MAGIC;
        params.hdr.version = PROTOCOL_VERSION;
        params.hdr.kernel_alignment = KERNEL_ALIGNMENT;
    }
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = low_half(memory::CMDLINE_START.raw_value());
    params.hdr.cmdline_size = low_half(cmdline.len() as u64);
    if let Some(initrd) = initrd {
        params.hdr.ramdisk_image = low_half(initrd.start.raw_value());
        params.hdr.ramdisk_size = low_half(initrd.bytes);
    }
    params.acpi_rsdp_addr = memory::RSDP_START.raw_value();
    let map = memory_map(guest);
    params.e820_entries = u8::try_from(map.len()).expect("invariant: a handful of ranges");
    let mut table = params.e820_table;
    for (slot, (addr, size, type_)) in table.iter_mut().zip(map) {
        *slot = boot_e820_entry { addr, size, r#type: type_ };
    }
    params.e820_table = table;
    guest.write_obj(params, memory::ZERO_PAGE_START)?;
    Ok(())
}

pub(super) fn write_pvh_info(guest: &GuestMemory, initrd: Option<Initrd>) -> Result<(), Error> {
    const START_MAGIC: u32 = 0x336e_c578;
    const VERSION_WITH_MEMORY_MAP: u32 = 1;
    let map = memory_map(guest);
    let mut info = hvm_start_info {
        magic: START_MAGIC,
        version: VERSION_WITH_MEMORY_MAP,
        cmdline_paddr: memory::CMDLINE_START.raw_value(),
        rsdp_paddr: memory::RSDP_START.raw_value(),
        memmap_paddr: memory::PVH_MEMMAP_START.raw_value(),
        memmap_entries: u32::try_from(map.len()).expect("invariant: a handful of ranges"),
        ..Default::default()
    };
    if let Some(initrd) = initrd {
        let module =
            hvm_modlist_entry { paddr: initrd.start.raw_value(), size: initrd.bytes, ..Default::default() };
        guest.write_obj(module, memory::PVH_MODULES_START)?;
        info.nr_modules = 1;
        info.modlist_paddr = memory::PVH_MODULES_START.raw_value();
    }
    guest.write_obj(info, memory::PVH_INFO_START)?;
    let mut at: GuestAddress = memory::PVH_MEMMAP_START;
    for (addr, size, type_) in map {
        guest.write_obj(hvm_memmap_table_entry { addr, size, type_, reserved: 0 }, at)?;
        at = at.unchecked_add(size_of::<hvm_memmap_table_entry>() as u64);
    }
    Ok(())
}

/// An address or length that lies below the device hole, which is below 4 GiB.
fn low_half(value: u64) -> u32 {
    u32::try_from(value).expect("invariant: boot structures and ramdisks lie below 4 GiB")
}
