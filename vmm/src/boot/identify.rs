//! What an image is that cannot be booted, and whether one that can be is Linux: by its first bytes, for a sentence
//! that helps.
//!
//! Must never know: how a kernel is loaded.

use linux_loader::elf::{Elf64_Ehdr, Elf64_Phdr, PT_NOTE};

use super::image::{Image, NOTE_BYTES_MAX, PROGRAM_HEADERS_MAX, begins_with_elf, read_struct};

/// How much of an image's beginning is looked at, in bytes: what is told by its place lies in the first two sectors.
const START_BYTES: usize = 1024;
/// Where an ISO 9660 image has its mark.
const ISO_MARK_OFFSET: u64 = 0x8001;
/// Marks at the very beginning, and what has them.
const BEGINNINGS: &[(&[u8], &str)] = &[
    (b"\x1f\x8b", "a file compressed by gzip; unpack it first"),
    (b"\xfd7zXZ\0", "a file compressed by xz; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a file compressed by zstd; unpack it first"),
    (b"BZh", "a file compressed by bzip2; unpack it first"),
    (b"\x02\x21\x4c\x18", "a file compressed by lz4; unpack it first"),
    (b"\x04\x22\x4d\x18", "a file compressed by lz4; unpack it first"),
    (b"QFI\xfb", "a qcow2 disk image"),
    (b"KDMV", "a VMDK disk image"),
    (b"vhdxfile", "a VHDX disk image"),
    (b"conectix", "a VHD disk image"),
    (b"hsqs", "a squashfs filesystem"),
    (b"070701", "an initial ramdisk (cpio)"),
    (b"070702", "an initial ramdisk (cpio)"),
    (b"!<arch>\n", "an ar archive (as a Debian package is)"),
    (b"PK\x03\x04", "a zip archive"),
    (b"#!", "a script"),
    (b"<", "a page of HTML or XML, as failed downloads leave it"),
    (b"\x27\x05\x19\x56", "a U-Boot image, which this processor has no use for"),
    (b"\xd0\x0d\xfe\xed", "a device tree or FIT image, which this processor has no use for"),
];

/// What `image`, which is no kernel that can be booted, is: "a …", as the end of a sentence.
#[must_use]
pub fn describe(image: &dyn Image) -> &'static str {
    const UNKNOWN: &str = "of a format that is not known here";
    let Ok(size) = image.size_bytes() else { return UNKNOWN };
    if size == 0 {
        return "an empty file";
    }
    let mut start = vec![0; usize::try_from(size).map_or(START_BYTES, |size| size.min(START_BYTES))];
    if image.read_exact_at(&mut start, 0).is_err() {
        return UNKNOWN;
    }
    if let Some((_, what)) = BEGINNINGS.iter().find(|(mark, _)| start.starts_with(mark)) {
        return what;
    }
    if start.starts_with(b"\x7fELF") {
        return elf(&start);
    }
    let has = |at: usize, mark: &[u8]| start.get(at..at + mark.len()) == Some(mark);
    let mut iso = [0; 5];
    // An Image for ARM or RISC-V begins like an EFI program, which it also is.
    if has(0x38, b"ARM\x64") {
        "a Linux kernel for 64-bit ARM, not for this processor"
    } else if has(0x38, b"RSC\x05") {
        "a Linux kernel for RISC-V, not for this processor"
    } else if has(0, b"MZ") && has(4, b"zimg") {
        "a compressed EFI kernel (zboot); unpack the kernel in it first"
    } else if has(0x202, b"HdrS") {
        "a broken bzImage: it is cut off"
    } else if has(0, b"MZ") {
        "an EFI program that is not a bzImage"
    } else if has(512, b"EFI PART") || has(510, b"\x55\xaa") {
        "a disk image with partitions: give it as a disk, without a kernel"
    } else if image.read_exact_at(&mut iso, ISO_MARK_OFFSET).is_ok() && &iso == b"CD001" {
        "an ISO 9660 image"
    } else if start.iter().all(|byte| *byte == 0) {
        "a file that begins with nothing but zeros"
    } else if start.iter().all(|byte| matches!(byte, b' '..=b'~' | b'\n' | b'\r' | b'\t')) {
        "a text"
    } else {
        UNKNOWN
    }
}

/// An ELF image of another machine, or one that is cut off.
fn elf(start: &[u8]) -> &'static str {
    const CLASS_32: u8 = 1;
    match (start.get(4), start.get(18..20)) {
        (_, Some([3, 0])) => "a 32-bit kernel (an ELF image for i386)",
        (_, Some([0xb7, 0])) => "an ELF image for 64-bit ARM, not for this processor",
        (_, Some([0xf3, 0])) => "an ELF image for RISC-V, not for this processor",
        (Some(&CLASS_32), Some([62, 0])) => "an ELF image for x32",
        (_, Some([62, 0])) => "an ELF image for x86-64 that is cut off or broken",
        (_, Some(_)) => "an ELF image for another processor",
        _ => "an ELF image that is cut off",
    }
}

/// Whether a kernel is Linux, so far as its image tells: a bzImage that names a version as Linux does, or an ELF image
/// with one of the notes that every vmlinux has. What cannot be read is not.
#[must_use]
pub fn is_linux(image: &dyn Image) -> bool {
    match begins_with_elf(image) {
        Ok(true) => has_linux_note(image),
        Ok(false) => names_a_version(image),
        Err(_) => false,
    }
}

/// The boot protocol's `kernel_version` (Linux, Documentation/arch/x86/boot.rst): "6.1.0-…".
fn names_a_version(image: &dyn Image) -> bool {
    const MAGIC_OFFSET: u64 = 0x202;
    const POINTER_OFFSET: u64 = 0x20e;
    /// The pointer is relative to here.
    const BASE: u64 = 0x200;
    let (mut magic, mut pointer, mut text) = ([0; 4], [0; 2], [0; 3]);
    let read = image.read_exact_at(&mut magic, MAGIC_OFFSET).is_ok()
        && image.read_exact_at(&mut pointer, POINTER_OFFSET).is_ok()
        && image.read_exact_at(&mut text, BASE + u64::from(u16::from_le_bytes(pointer))).is_ok();
    let [major, dot, minor] = text;
    read && &magic == b"HdrS"
        && pointer != [0, 0]
        && major.is_ascii_digit()
        && (dot == b'.' || dot.is_ascii_digit())
        && (minor.is_ascii_digit() || minor == b'.')
}

/// A note of the owner "Linux" of the types 0x100 or 0x101, salt and LTO, as `init/version.c` puts there.
fn has_linux_note(image: &dyn Image) -> bool {
    const OWNER: &[u8] = b"Linux\0\0\0";
    let Ok(header) = read_struct::<Elf64_Ehdr>(image, 0) else { return false };
    let segments = (0..u64::from(header.e_phnum.min(PROGRAM_HEADERS_MAX))).filter_map(|index| {
        let offset = header.e_phoff.checked_add(index * size_of::<Elf64_Phdr>() as u64)?;
        read_struct::<Elf64_Phdr>(image, offset).ok()
    });
    segments.filter(|segment| segment.p_type == PT_NOTE && segment.p_filesz <= NOTE_BYTES_MAX).any(
        |segment| {
            let mut notes = vec![0; usize::try_from(segment.p_filesz).unwrap_or(0)];
            if image.read_exact_at(&mut notes, segment.p_offset).is_err() {
                return false;
            }
            // Size of the owner's name, of the description, the type, then the name; notes are aligned to four bytes.
            let mut words = notes.chunks_exact(4).enumerate();
            words.any(|(index, word)| {
                matches!(word, [0 | 1, 1, 0, 0])
                    && notes.get(4 * (index + 1)..).is_some_and(|name| name.starts_with(OWNER))
            })
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(bytes: &[u8]) -> &'static str {
        describe(&bytes)
    }

    fn at(place: usize, mark: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0xee; 0x9000];
        bytes[place..place + mark.len()].copy_from_slice(mark);
        bytes
    }

    #[test]
    fn what_people_give_for_a_kernel_is_named() {
        for (bytes, part) in [
            (b"\x1f\x8b\x08\0".to_vec(), "gzip"),
            (b"\xfd7zXZ\0\0".to_vec(), "xz"),
            (b"QFI\xfb\0\0\0\x03".to_vec(), "qcow2"),
            (b"070701000".to_vec(), "initial ramdisk"),
            (b"#!/bin/sh\n".to_vec(), "a script"),
            (b"<!DOCTYPE html>".to_vec(), "HTML"),
            (b"hello, world\n".to_vec(), "a text"),
            (b"".to_vec(), "an empty file"),
            (vec![0; 4096], "zeros"),
            (at(0x38, b"ARM\x64"), "64-bit ARM"),
            (at(510, b"\x55\xaa"), "as a disk"),
            (at(512, b"EFI PART"), "as a disk"),
            (at(0x8001, b"CD001"), "ISO 9660"),
            ([&b"MZ\0\0zimg"[..], &[0xee; 100]].concat(), "zboot"),
            ([&b"MZ"[..], &[0xee; 100]].concat(), "EFI program"),
            (at(0x202, b"HdrS")[..0x240].to_vec(), "cut off"),
            (at(100, b"?"), "not known"),
            (vec![0xee], "not known"),
        ] {
            assert!(described(&bytes).contains(part), "{part}: {}", described(&bytes));
        }
    }

    #[test]
    fn elf_images_of_other_machines_are_told_apart() {
        let elf = |class: u8, machine: u8| {
            let mut bytes = vec![0; 64];
            bytes[..5].copy_from_slice(&[0x7f, b'E', b'L', b'F', class]);
            bytes[18] = machine;
            bytes
        };
        for (class, machine, part) in [
            (1, 3, "32-bit kernel"),
            (2, 0xb7, "ARM"),
            (2, 0xf3, "RISC-V"),
            (1, 62, "x32"),
            (2, 8, "another"),
        ] {
            assert!(described(&elf(class, machine)).contains(part), "{part}");
        }
        assert!(described(b"\x7fELF").contains("cut off"));
    }

    #[test]
    fn linux_is_known_by_its_version_and_by_its_notes() {
        let mut bzimage = vec![0; 0x2000];
        bzimage[0x202..0x206].copy_from_slice(b"HdrS");
        let is = |bytes: &[u8]| is_linux(&bytes);
        assert!(!is(&bzimage), "it names no version");
        bzimage[0x20e..0x210].copy_from_slice(&0x1000_u16.to_le_bytes());
        assert!(!is(&bzimage));
        bzimage[0x1200..0x1209].copy_from_slice(b"6.1.0-56-");
        assert!(is(&bzimage));
        bzimage[0x1200..0x1209].copy_from_slice(b"memtest86");
        assert!(!is(&bzimage));

        let plain = crate::boot::tests::elf(b"code", true);
        assert!(!is(&plain));
        // The note of PVH becomes one of Linux's, of the same length.
        let place = plain.windows(4).position(|bytes| bytes == b"Xen\0").unwrap();
        let mut vmlinux = plain.clone();
        vmlinux[place - 12..place + 8].copy_from_slice(b"\x06\0\0\0\0\0\0\0\x00\x01\0\0Linux\0\0\0");
        assert!(is(&vmlinux));
        for length in 0..vmlinux.len() {
            is(&vmlinux[..length]);
        }
        assert!(!is(crate::guest::TINY));
        assert!(!is(b""));
    }
}
