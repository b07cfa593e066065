//! Kernel images: the tiny guest's and hand-made headers with bytes changed, at sizes that do not fit.

use vmm::boot::{self, Source};
use vmm::memory;

use crate::input::Reader;

/// Bytes of the images' beginning in which changes hit something that is looked at.
const HEADERS_BYTES: usize = 0x300;

/// The smallest bzImage header that is recognised: boot flag, "HdrS", a version and a 64-bit entry.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 0x2000];
    image[0x1f1] = 1;
    image[0x1fe..0x200].copy_from_slice(&0xaa55_u16.to_le_bytes());
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
    image[0x211] = 1;
    image[0x236] = 1;
    image[0x214..0x218].copy_from_slice(&0x10_0000_u32.to_le_bytes());
    image[0x22c..0x230].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
    image
}

pub(crate) fn run(input: &[u8]) {
    let mut reader = Reader::new(input);
    let mut image = match reader.u8() % 3 {
        0 => bzimage(),
        1 => vmm::guest::TINY[..vmm::guest::TINY.len().min(0x4000)].to_vec(),
        _ => vmm::guest::TINY.to_vec(),
    };
    let changes = reader.u8() % 8;
    for _ in 0..changes {
        let place = usize::from(reader.u16()) % HEADERS_BYTES;
        let wide = reader.u64().to_le_bytes();
        let width = 1 << (reader.u8() % 4);
        if let Some(bytes) = image.get_mut(place..place + width) {
            bytes.copy_from_slice(&wide[..width]);
        }
    }
    if reader.u8().is_multiple_of(4) {
        image.truncate(usize::from(reader.u16()));
    }
    let initrd = vec![0xee; usize::from(reader.u16())];
    let length = usize::from(reader.u8());
    let cmdline = String::from_utf8_lossy(reader.bytes(length)).into_owned();
    let guest = memory::allocate(1 + u32::from(reader.u8() % 40)).expect("the fuzzer needs some memory");
    let kernel: &[u8] = &image;
    let initrd: &[u8] = &initrd;
    // An error is an answer; only panics are bugs.
    let _ = boot::load(&guest, &Source { kernel: &kernel, initrd: Some(&initrd), cmdline: &cmdline });
}
