//! Persistent memory: read and written where it lies, above the first 4 GiB.
//!
//! Must never know: what the bytes are.

#![expect(unsafe_code, reason = "memory is reached by its address, and mapped first")]

use alloc::string::String;
use alloc::vec::Vec;
use core::cell::Cell;

use virtio_drivers::{BufferDirection, Hal as _, PAGE_SIZE};

use crate::memory::Identity;
use crate::parse::cmdline::MmioDevice;
use crate::register::Register;

/// VIRTIO 1.3 §4.2.2 and §5.19.
const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const DEVICE_ID: u64 = 0x008;
const CONFIG: u64 = 0x100;
const PMEM: u32 = 27;
/// Where it may lie: what one page directory maps.
const START: u64 = 4 << 30;
const END: u64 = 5 << 30;
/// Bytes read at once by a command.
const READ_BYTES_MAX: usize = 64;

unsafe extern "C" {
    static mut wisp_pdpt: [u64; 512];
}

/// One memory.
#[derive(Debug, Clone, Copy)]
pub struct Pmem {
    start: u64,
    bytes: u64,
}

/// What the window of `device` says, if it is a persistent memory's.
pub fn find(device: MmioDevice) -> Option<Pmem> {
    let register = |offset: u64| Some(Register::at(device.base + offset)?.read());
    if register(0)? != MAGIC || register(DEVICE_ID)? != PMEM {
        return None;
    }
    let number = |offset: u64| {
        Some(u64::from(register(CONFIG + offset)?) | u64::from(register(CONFIG + offset + 4)?) << 32)
    };
    let (start, bytes) = (number(0)?, number(8)?);
    Pmem::at(start, bytes)
}

/// Maps the fifth GiB onto itself, once; whether it is.
fn map() -> bool {
    struct Once(Cell<bool>);
    // SAFETY: there is one processor and no preemption.
    unsafe impl Sync for Once {}
    static MAPPED: Once = Once(Cell::new(false));
    const LARGE_PAGE_BYTES: u64 = 2 << 20;
    /// Present, writable, open to ring 3, accessed, dirty, large.
    const LARGE_PAGE: u64 = 0xe7;
    const TABLE: u64 = 0x27;
    if MAPPED.0.get() {
        return true;
    }
    let (directory, place) = Identity::dma_alloc(1, BufferDirection::Both);
    if directory == 0 {
        return false;
    }
    let entries = place.as_ptr().cast::<u64>();
    for index in 0..PAGE_SIZE / 8 {
        let page = START + index as u64 * LARGE_PAGE_BYTES;
        // SAFETY: a page of our own, of so many entries.
        unsafe { entries.add(index).write_volatile(page | LARGE_PAGE) };
    }
    // SAFETY: the table above all others, in which nothing is there yet: so no processor remembers anything of it.
    unsafe { (&raw mut wisp_pdpt).cast::<u64>().add(4).write_volatile(directory | TABLE) };
    MAPPED.0.set(true);
    true
}

impl Pmem {
    /// Memory that lies there, if it can be reached.
    pub fn at(start: u64, bytes: u64) -> Option<Self> {
        (start >= START && start.checked_add(bytes)? <= END && map()).then_some(Pmem { start, bytes })
    }

    /// The size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn place(&self, offset: u64, bytes: usize) -> Option<*mut u8> {
        let end = offset.checked_add(bytes as u64)?;
        (end <= self.bytes).then_some((self.start + offset) as *mut u8)
    }

    /// The text at `offset`, up to a NUL.
    pub fn read(&self, offset: u64) -> Result<String, &'static str> {
        let place = self.place(offset, READ_BYTES_MAX).ok_or("past the end")?;
        // SAFETY: within the memory, which `find` had mapped.
        let byte = |index: usize| unsafe { place.add(index).read_volatile() };
        let bytes: Vec<u8> = (0..READ_BYTES_MAX).map(byte).take_while(|byte| *byte != 0).collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Writes `text` at `offset`.
    pub fn write(&self, offset: u64, text: &[u8]) -> Result<(), &'static str> {
        let place = self.place(offset, text.len()).ok_or("past the end")?;
        for (index, byte) in text.iter().enumerate() {
            // SAFETY: as in `read`; what is read-only swallows it.
            unsafe { place.add(index).write_volatile(*byte) };
        }
        Ok(())
    }
}
