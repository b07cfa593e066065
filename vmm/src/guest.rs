//! The tiny guest, and the first program of container images, as bytes: built from `vmm/guest` by this crate's build script.
//!
//! Must never know: how a kernel is loaded.

/// Page-aligned, so that it can be mapped or copied by whole pages.
#[repr(C, align(4096))]
struct PageAligned<Bytes: ?Sized>(Bytes);

static IMAGE: &PageAligned<[u8]> = &PageAligned(*include_bytes!(concat!(env!("OUT_DIR"), "/tiny.elf")));

/// The tiny guest: a static ELF for x86-64, linked at 1 MiB, that any VMM can boot by the Linux 64-bit boot protocol
/// (its ELF entry) or by PVH (its ELF note). Needs 32 MiB of memory. Its first console output is `WISP-GUEST`.
pub static TINY: &[u8] = &IMAGE.0;

/// The first program of a container image's disk: a static ELF that needs a Linux kernel and nothing else. Where it has to
/// be, and what it reads there, whoever makes the disk knows.
pub static INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/init.elf"));

/// The first program's pure half, whose tests run here.
#[cfg(test)]
#[path = "../guest/init/src/parse.rs"]
#[allow(dead_code, unreachable_pub, reason = "written for the program, which uses all of it")]
mod init;

/// The guest's pure half, whose tests run here: the guest itself has no test harness.
#[cfg(test)]
#[path = "../guest/src/parse/mod.rs"]
#[allow(dead_code, unreachable_pub, reason = "written for the guest, which uses all of it")]
mod parse;

#[cfg(test)]
mod tests {
    use super::TINY;

    /// Type of the ELF note that names the PVH entry (Xen `XEN_ELFNOTE_PHYS32_ENTRY`).
    const PHYS32_ENTRY: u32 = 18;

    fn u16_at(at: usize) -> usize {
        usize::from(u16::from_le_bytes(TINY[at..at + 2].try_into().unwrap()))
    }

    fn u32_at(at: usize) -> u32 {
        u32::from_le_bytes(TINY[at..at + 4].try_into().unwrap())
    }

    fn u64_at(at: usize) -> u64 {
        u64::from_le_bytes(TINY[at..at + 8].try_into().unwrap())
    }

    /// The program headers as (type, file offset, physical address, bytes in memory).
    fn segments() -> Vec<(u32, usize, u64, u64)> {
        let (table, size, count) = (u64_at(32) as usize, u16_at(54), u16_at(56));
        (0..count)
            .map(|n| table + n * size)
            .map(|at| (u32_at(at), u64_at(at + 8) as usize, u64_at(at + 24), u64_at(at + 40)))
            .collect()
    }

    #[test]
    fn image_is_a_page_aligned_static_elf_for_x86_64() {
        assert_eq!(TINY.as_ptr() as usize % 4096, 0);
        assert_eq!(TINY[..6], *b"\x7fELF\x02\x01");
        assert_eq!(u16_at(16), 2, "ET_EXEC");
        assert_eq!(u16_at(18), 62, "EM_X86_64");
        assert!(segments().iter().all(|segment| matches!(segment.0, 1 | 4)), "only PT_LOAD and PT_NOTE");
    }

    #[test]
    fn both_entries_lie_in_the_one_segment_which_fits_the_smallest_memory() {
        let loads: Vec<_> = segments().into_iter().filter(|segment| segment.0 == 1).collect();
        let &[(_, _, start, bytes)] = loads.as_slice() else { panic!("one PT_LOAD, not {loads:?}") };
        assert_eq!(start, 0x10_0000);
        assert!(start + bytes <= 8 << 20, "ends at {:#x}", start + bytes);
        let (_, note, ..) = segments().into_iter().find(|segment| segment.0 == 4).unwrap();
        assert_eq!((u32_at(note), u32_at(note + 4), u32_at(note + 8)), (4, 8, PHYS32_ENTRY));
        for entry in [u64_at(24), u64_at(note + 16)] {
            assert!((start..start + bytes).contains(&entry), "{entry:#x}");
        }
    }
}
