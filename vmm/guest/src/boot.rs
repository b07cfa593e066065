//! What the loader handed over, by either protocol: command line, ACPI's root pointer, and where the heap may lie.
//!
//! Must never know: devices.

use core::ops::Range;

use crate::entry::BOOTED_BY_PVH;
use crate::physical::{MEMORY_END, Physical};

/// The longest command line read, in bytes: twice what Linux takes on x86.
const CMDLINE_BYTES_MAX: usize = 4096;
/// The most memory map entries read: what `boot_params` can hold.
const MEMORY_MAP_ENTRIES_MAX: usize = 128;
/// Type of an entry that is usable memory, in both protocols.
const USABLE: u32 = 1;
/// `hvm_start_info.magic`.
const PVH_MAGIC: u32 = 0x336e_c578;

/// What was handed over.
pub struct Handover {
    /// The kernel command line; empty if there is none or it is not text.
    pub cmdline: &'static str,
    /// Physical address of ACPI's root pointer, if the loader names it.
    pub rsdp: Option<u64>,
    /// Usable memory from the end of the image on.
    pub free: Range<u64>,
}

/// Reads what `wisp_main` was called with; `image_end` is the first byte after the image.
pub fn read(protocol: u64, info: u64, image_end: u64) -> Option<Handover> {
    if protocol == BOOTED_BY_PVH { read_pvh(info, image_end) } else { read_linux(info, image_end) }
}

/// `struct boot_params` (Linux `Documentation/arch/x86/zero-page.rst`).
fn read_linux(info: u64, image_end: u64) -> Option<Handover> {
    let params = Physical.slice(info, 4096)?;
    let cmdline = u64::from(u32_at(params, 0x228)) | u64::from(u32_at(params, 0x0c8)) << 32;
    let initrd = u64::from(u32_at(params, 0x218)) | u64::from(u32_at(params, 0x0c0)) << 32;
    let entries = usize::from(params[0x1e8]).min(MEMORY_MAP_ENTRIES_MAX);
    let map = params[0x2d0..][..entries * 20]
        .chunks_exact(20)
        .map(|entry| (u64_at(entry, 0), u64_at(entry, 8), u32_at(entry, 16)));
    Some(Handover {
        cmdline: text(cmdline),
        rsdp: Some(u64_at(params, 0x070)).filter(|&rsdp| rsdp != 0),
        free: free_after(image_end, map, [cmdline, initrd, info]),
    })
}

/// `struct hvm_start_info` (Xen `xen/include/public/arch-x86/hvm/start_info.h`).
fn read_pvh(info: u64, image_end: u64) -> Option<Handover> {
    let start = Physical.slice(info, 56)?;
    if u32_at(start, 0) != PVH_MAGIC {
        return None;
    }
    let (cmdline, rsdp) = (u64_at(start, 24), u64_at(start, 32));
    let modules = u64_at(start, 16);
    let module =
        Physical.slice(modules, 16).filter(|_| u32_at(start, 12) != 0).map_or(0, |list| u64_at(list, 0));
    // The memory map came with version 1.
    let entries = if u32_at(start, 4) >= 1 { u32_at(start, 48) as usize } else { 0 };
    let table = Physical.slice(u64_at(start, 40), entries.min(MEMORY_MAP_ENTRIES_MAX) * 24).unwrap_or(&[]);
    let map = table.chunks_exact(24).map(|entry| (u64_at(entry, 0), u64_at(entry, 8), u32_at(entry, 16)));
    Some(Handover {
        cmdline: text(cmdline),
        rsdp: Some(rsdp).filter(|&rsdp| rsdp != 0),
        free: free_after(image_end, map, [cmdline, module, info]),
    })
}

/// The usable memory that begins at `start`, up to the nearest of `kept` above it.
fn free_after(start: u64, map: impl Iterator<Item = (u64, u64, u32)>, kept: [u64; 3]) -> Range<u64> {
    let usable_end = map
        .filter(|&(base, size, kind)| kind == USABLE && base <= start && start - base < size)
        .map(|(base, size, _)| base.saturating_add(size))
        .max()
        .unwrap_or(start);
    let end = kept.into_iter().filter(|&address| address >= start).fold(usable_end, u64::min);
    start..end.min(MEMORY_END)
}

fn text(address: u64) -> &'static str {
    Physical.text(address, CMDLINE_BYTES_MAX).and_then(|bytes| str::from_utf8(bytes).ok()).unwrap_or("")
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}
