use linux_loader::elf::{Elf64_Ehdr, Elf64_Phdr, PT_LOAD, PT_NOTE};
use linux_loader::loader::bootparam::boot_params;
use linux_loader::start_info::hvm_start_info;
use proptest::prelude::*;
use vm_memory::ByteValued;

use super::*;

/// An ELF image with one segment of code at 1 MiB, and a PVH note if `pvh`.
pub(crate) fn elf(code: &[u8], pvh: bool) -> Vec<u8> {
    let headers = size_of::<Elf64_Ehdr>() + 2 * size_of::<Elf64_Phdr>();
    let mut note = Vec::new();
    if pvh {
        for word in [4_u32, 4, 18] {
            note.extend(word.to_le_bytes());
        }
        note.extend(b"Xen\0");
        note.extend(0x10_0000_u32.to_le_bytes());
    }
    let mut ehdr = Elf64_Ehdr::default();
    ehdr.e_ident[..6].copy_from_slice(b"\x7fELF\x02\x01");
    ehdr.e_machine = 62;
    ehdr.e_entry = 0x10_0000;
    ehdr.e_phoff = size_of::<Elf64_Ehdr>() as u64;
    ehdr.e_phentsize = u16::try_from(size_of::<Elf64_Phdr>()).unwrap();
    ehdr.e_phnum = 2;
    let load = Elf64_Phdr {
        p_type: PT_LOAD,
        p_offset: (headers + note.len()) as u64,
        p_paddr: 0x10_0000,
        p_filesz: code.len() as u64,
        p_memsz: 0x2000,
        ..Default::default()
    };
    let notes = Elf64_Phdr {
        p_type: PT_NOTE,
        p_offset: headers as u64,
        p_filesz: note.len() as u64,
        ..Default::default()
    };
    let mut bytes = ehdr.as_slice().to_vec();
    bytes.extend(load.as_slice());
    bytes.extend(notes.as_slice());
    bytes.extend(&note);
    bytes.extend(code);
    bytes
}

fn boot(image: &[u8], initrd: Option<&[u8]>) -> Result<(GuestMemory, Entry), Error> {
    let guest = memory::allocate(8).unwrap();
    let initrd = initrd.as_ref().map(|bytes| bytes as &dyn Image);
    let entry = load(&guest, &Source { kernel: &image, initrd, cmdline: "a=b" })?;
    Ok((guest, entry))
}

#[test]
fn elf_without_note_enters_by_the_64_bit_protocol() {
    let (guest, entry) = boot(&elf(b"code", false), Some(b"ramdisk")).unwrap();
    assert_eq!(entry, Entry::Linux64 { start: GuestAddress(0x10_0000) });
    let params: boot_params = guest.read_obj(memory::ZERO_PAGE_START).unwrap();
    assert_eq!({ params.acpi_rsdp_addr }, 0xe_0000);
    assert_eq!({ params.e820_entries }, 3);
    let (start, bytes) = ({ params.hdr.ramdisk_image }, { params.hdr.ramdisk_size });
    assert_eq!((start, bytes), (0x7f_f000, 7));
    let mut text = [0; 7];
    guest.read_slice(&mut text, GuestAddress(u64::from(start))).unwrap();
    assert_eq!(&text, b"ramdisk");
    let mut cmdline = [1; 4];
    guest.read_slice(&mut cmdline, GuestAddress(u64::from(params.hdr.cmd_line_ptr))).unwrap();
    assert_eq!(&cmdline, b"a=b\0");
}

#[test]
fn elf_with_a_pvh_note_enters_by_pvh() {
    let (guest, entry) = boot(&elf(b"code", true), Some(b"ramdisk")).unwrap();
    assert_eq!(entry, Entry::Pvh { start: GuestAddress(0x10_0000) });
    let info: hvm_start_info = guest.read_obj(memory::PVH_INFO_START).unwrap();
    assert_eq!((info.magic, info.version, info.rsdp_paddr), (0x336e_c578, 1, 0xe_0000));
    assert_eq!((info.nr_modules, info.memmap_entries), (1, 3));
}

#[test]
fn kernel_larger_than_one_copy_arrives_whole() {
    let code: Vec<u8> = (0..300_000_u32).map(|index| u8::try_from(index % 251).unwrap()).collect();
    let mut image = elf(&code, false);
    // The segment's size in memory: p_memsz of the first program header.
    image[64 + 40..64 + 48].copy_from_slice(&(1_u64 << 20).to_le_bytes());
    let (guest, _) = boot(&image, None).unwrap();
    let mut loaded = vec![0; code.len()];
    guest.read_slice(&mut loaded, memory::HIGH_RAM_START).unwrap();
    assert!(loaded == code);
}

#[test]
fn text_is_not_a_kernel() {
    for image in [&b""[..], b"\x7fEL", b"#!/bin/sh\n", &[0; 4096]] {
        assert!(matches!(boot(image, None), Err(Error::NotAKernel(_))));
    }
}

#[test]
fn kernels_for_32_bit_and_old_ones_are_refused_as_such() {
    let said = |change: fn(&mut Vec<u8>)| {
        let mut image = bzimage(b"payload");
        change(&mut image);
        boot(&image, None).unwrap_err().to_string()
    };
    let sentence = said(|image| image[0x236] = 0);
    assert!(sentence.starts_with("the kernel is a 32-bit kernel"), "{sentence}");
    let sentence = said(|image| image[0x206] = 0x0b);
    assert!(sentence.starts_with("the kernel is too old"), "{sentence}");
    let mut elf = elf(b"code", false);
    elf[18] = 3;
    let sentence = boot(&elf, None).unwrap_err().to_string();
    assert!(sentence.contains("but a 32-bit kernel (an ELF image for i386)"), "{sentence}");
}

#[test]
fn ramdisk_that_does_not_fit_is_refused_with_both_sizes() {
    let large = vec![0; 7 << 20];
    let Err(error) = boot(&elf(b"code", false), Some(&large)) else { panic!("it fits") };
    assert!(matches!(error, Error::TooLarge { needed_bytes, .. } if needed_bytes == 7 << 20), "{error}");
}

#[test]
fn command_line_beyond_linux_limit_is_refused() {
    let guest = memory::allocate(8).unwrap();
    assert!(write_cmdline(&guest, &"x".repeat(memory::CMDLINE_BYTES_MAX - 1)).is_ok());
    assert!(matches!(
        write_cmdline(&guest, &"x".repeat(memory::CMDLINE_BYTES_MAX)),
        Err(Error::CommandLine(memory::CMDLINE_BYTES_MAX))
    ));
    assert!(matches!(write_cmdline(&guest, "a\0b"), Err(Error::CommandLine(3))));
}

#[test]
fn command_line_names_each_device_and_ends_with_the_users_words() {
    let line =
        cmdline(&[(GuestAddress(0xd000_0000), 16), (GuestAddress(0xd000_1000), 17)], "ttyS0", "", "quiet");
    assert!(line.starts_with("console=ttyS0 "), "{line}");
    assert!(
        line.ends_with(" virtio_mmio.device=4K@0xd0000000:16 virtio_mmio.device=4K@0xd0001000:17 quiet"),
        "{line}"
    );
}

#[test]
fn disk_that_chooses_consoles_keeps_them_and_the_owners_words_come_last() {
    let line = cmdline(&[], "ttyS0", "BOOT_IMAGE=/vmlinuz console=tty0 console=ttyS0,115200", "quiet");
    assert!(line.ends_with("BOOT_IMAGE=/vmlinuz console=tty0 console=ttyS0,115200 quiet"), "{line}");
    assert!(!line.contains("console=ttyS0 "), "{line}");
}

/// A bzImage of the newest protocol with `payload` after its one setup sector.
fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 1024];
    bytes[0x1f1] = 1;
    bytes[0x202..0x206].copy_from_slice(b"HdrS");
    bytes[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
    bytes[0x211] = 1;
    bytes[0x214..0x218].copy_from_slice(&0x10_0000_u32.to_le_bytes());
    bytes[0x22c..0x230].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
    bytes[0x236] = 1;
    bytes[0x258..0x260].copy_from_slice(&0x10_0000_u64.to_le_bytes());
    bytes[0x260..0x264].copy_from_slice(&0x10_0000_u32.to_le_bytes());
    bytes.extend(payload);
    bytes
}

#[test]
fn bzimage_enters_at_its_64_bit_entry_point_and_gets_its_header_back() {
    let (guest, entry) = boot(&bzimage(b"payload"), None).unwrap();
    assert_eq!(entry, Entry::Linux64 { start: GuestAddress(0x10_0200) });
    let params: boot_params = guest.read_obj(memory::ZERO_PAGE_START).unwrap();
    assert_eq!(({ params.hdr.version }, { params.hdr.pref_address }), (0x020f, 0x10_0000));
    let mut text = [0; 7];
    guest.read_slice(&mut text, memory::HIGH_RAM_START).unwrap();
    assert_eq!(&text, b"payload");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Eight arbitrary bytes anywhere in the headers: an error or an entry, never a panic.
    #[test]
    fn mangled_elf_headers_never_panic(offset in 0_usize..200, value in any::<u64>(), small in 0_u64..0x300) {
        for value in [value, small, u64::MAX - small, u64::MAX >> 1] {
            let mut image = elf(b"code", true);
            for (slot, byte) in image[offset..].iter_mut().zip(value.to_le_bytes()) {
                *slot = byte;
            }
            let _ = boot(&image, Some(b"ramdisk"));
        }
    }

    #[test]
    fn mangled_bzimage_headers_never_panic(offset in 0x1f0_usize..0x270, value in any::<u64>()) {
        let mut image = bzimage(b"payload");
        image[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
        let _ = boot(&image, Some(b"ramdisk"));
    }

    #[test]
    fn cut_images_never_panic(length in 0_usize..1100) {
        let image = elf(&[0x90; 1000], true);
        let _ = boot(&image[..length.min(image.len())], None);
        let image = bzimage(b"payload");
        let _ = boot(&image[..length.min(image.len())], None);
    }
}
