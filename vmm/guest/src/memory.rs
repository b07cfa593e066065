//! The heap, and memory as virtio devices see it: the same addresses.
//!
//! Must never know: who allocates.

#![expect(unsafe_code, reason = "hands raw memory to the allocator and to devices")]

use alloc::alloc::{alloc_zeroed, dealloc};
use core::alloc::Layout;
use core::ops::Range;
use core::ptr::NonNull;

use linked_list_allocator::LockedHeap;
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

/// The most heap used, in bytes: everything the guest holds at once is bounded to far less.
const HEAP_BYTES_MAX: u64 = 16 << 20;
/// The least heap that the devices' queues and the sockets' buffers fit in.
const HEAP_BYTES_MIN: u64 = 2 << 20;

#[global_allocator]
static HEAP: LockedHeap = LockedHeap::empty();

unsafe extern "C" {
    static wisp_image_end: u8;
}

/// The first byte after the image, on a page boundary.
pub fn image_end() -> u64 {
    &raw const wisp_image_end as u64
}

/// Gives `free` to the heap, once; returns how many bytes the heap has, or `None` if that is too little.
pub fn start_heap(free: Range<u64>) -> Option<u64> {
    let bytes = (free.end - free.start).min(HEAP_BYTES_MAX);
    if bytes < HEAP_BYTES_MIN {
        return None;
    }
    // SAFETY: the range is usable memory after the image that nothing else refers to (`boot::Handover::free`),
    // mapped for good; the caller does this once, before any allocation.
    unsafe { HEAP.lock().init(free.start as *mut u8, bytes as usize) };
    Some(bytes)
}

/// The devices' view of memory: physical addresses, which are also ours.
pub struct Identity;

// SAFETY: allocations come zeroed and page-aligned from the heap and alias nothing; buffers need no copy or
// mapping, since a device sees the whole memory at the addresses that we use.
unsafe impl Hal for Identity {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let area = pages_layout(pages)
            // SAFETY: `pages_layout` never gives a layout of no bytes.
            .and_then(|layout| NonNull::new(unsafe { alloc_zeroed(layout) }));
        // An address of 0 is how the interface says that there is no memory.
        area.map_or((0, NonNull::dangling()), |area| (area.as_ptr() as PhysAddr, area))
    }

    unsafe fn dma_dealloc(_paddr: PhysAddr, vaddr: NonNull<u8>, pages: usize) -> i32 {
        if let Some(layout) = pages_layout(pages) {
            // SAFETY: the caller gives back what `dma_alloc` allocated with the same layout.
            unsafe { dealloc(vaddr.as_ptr(), layout) };
        }
        0
    }

    unsafe fn mmio_phys_to_virt(paddr: PhysAddr, _size: usize) -> NonNull<u8> {
        NonNull::new(paddr as *mut u8).expect("invariant: no device has registers at address 0")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        buffer.cast::<u8>().as_ptr() as PhysAddr
    }

    unsafe fn unshare(_paddr: PhysAddr, _buffer: NonNull<[u8]>, _direction: BufferDirection) {}
}

fn pages_layout(pages: usize) -> Option<Layout> {
    Layout::from_size_align(pages.checked_mul(PAGE_SIZE)?, PAGE_SIZE).ok().filter(|layout| layout.size() != 0)
}
