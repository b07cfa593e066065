//! Unified kernel images (UAPI.5): a PE program whose sections hold a kernel, its initial ramdisk and its command line.

use std::ops::Range;

use crate::boot::image::Image;

/// The most sections that are looked at; such images have about a dozen.
const SECTIONS_MAX: u16 = 96;
/// The longest command line that is read, in bytes.
const CMDLINE_BYTES_MAX: u64 = 4096;

/// The sections that matter.
pub(super) struct Unified {
    pub(super) linux: Range<u64>,
    pub(super) initrd: Option<Range<u64>>,
    pub(super) cmdline: String,
}

impl Unified {
    /// The sections of `image`, if it is such an image: a PE program with a section named `.linux`.
    pub(super) fn read(image: &dyn Image) -> Option<Self> {
        let size = image.size_bytes().ok()?;
        let read = |offset: u64, buffer: &mut [u8]| image.read_exact_at(buffer, offset).ok();
        let mut dos = [0; 64];
        read(0, &mut dos)?;
        let mut word = [0; 4];
        word.copy_from_slice(&dos[60..]);
        let header = u64::from(u32::from_le_bytes(word));
        let mut coff = [0; 24];
        read(header, &mut coff)?;
        if &dos[..2] != b"MZ" || &coff[..4] != b"PE\0\0" {
            return None;
        }
        let sections = u16::from_le_bytes([coff[6], coff[7]]).min(SECTIONS_MAX);
        let table = header + 24 + u64::from(u16::from_le_bytes([coff[20], coff[21]]));
        let mut found = Self { linux: 0..0, initrd: None, cmdline: String::new() };
        for index in 0..u64::from(sections) {
            let mut section = [0; 40];
            read(table + index * 40, &mut section)?;
            let word = |offset: usize| {
                let mut word = [0; 4];
                word.copy_from_slice(&section[offset..offset + 4]);
                u64::from(u32::from_le_bytes(word))
            };
            // What it has in memory, as far as the file holds it.
            let start = word(20);
            let range = start..start + word(8).min(word(16));
            if range.end > size {
                continue;
            }
            match &section[..8] {
                b".linux\0\0" => found.linux = range,
                b".initrd\0" => found.initrd = Some(range),
                b".cmdline" => {
                    let length = usize::try_from((range.end - range.start).min(CMDLINE_BYTES_MAX)).ok()?;
                    let mut text = vec![0; length];
                    read(start, &mut text)?;
                    let text = String::from_utf8_lossy(&text);
                    text.trim_matches(['\0', '\n', ' ']).clone_into(&mut found.cmdline);
                }
                _ => {}
            }
        }
        (!found.linux.is_empty()).then_some(found)
    }
}
