//! The four functions that compiled code expects of a C library. String instructions: fast natively, small, and
//! the compiler cannot turn them into calls of themselves.
//!
//! Must never know: allocation.

#![expect(unsafe_code, reason = "the C library's memory functions, by their C names")]

use core::arch::asm;

/// # Safety
/// As C's `memcpy`: both areas valid for `count` bytes, not overlapping.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(target: *mut u8, source: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller's promise covers exactly the bytes that are moved; the direction flag is clear by the ABI.
    unsafe {
        asm!("rep movsb", inout("rdi") target => _, inout("rsi") source => _, inout("rcx") count => _,
             options(nostack, preserves_flags));
    }
    target
}

/// # Safety
/// As C's `memmove`: both areas valid for `count` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(target: *mut u8, source: *const u8, count: usize) -> *mut u8 {
    if (target as usize).wrapping_sub(source as usize) >= count {
        // SAFETY: the target does not begin inside the source, so a forward copy is right.
        return unsafe { memcpy(target, source, count) };
    }
    // SAFETY: as the caller promises; copied from the end, since the target begins inside the source; `count` is
    // not zero here, and the direction flag is clear again afterwards.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rdi") target.add(count - 1) => _,
             inout("rsi") source.add(count - 1) => _, inout("rcx") count => _, options(nostack));
    }
    target
}

/// # Safety
/// As C's `memset`: the area valid for `count` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(target: *mut u8, value: i32, count: usize) -> *mut u8 {
    // SAFETY: the caller's promise covers exactly the bytes that are written; the direction flag is clear.
    unsafe {
        asm!("rep stosb", inout("rdi") target => _, inout("rcx") count => _, in("al") value as u8,
             options(nostack, preserves_flags));
    }
    target
}

/// # Safety
/// As C's `memcmp`: both areas valid for `count` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, count: usize) -> i32 {
    for at in 0..count {
        // SAFETY: `at` is below `count`, for which the caller vouches.
        let (a, b) = unsafe { (left.add(at).read_volatile(), right.add(at).read_volatile()) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}

/// # Safety
/// As `memcmp`, of which it is the compiler's second name.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, count: usize) -> i32 {
    // SAFETY: the same promise.
    unsafe { memcmp(left, right, count) }
}
