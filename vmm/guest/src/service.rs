//! What ring 3 asks of ring 0: port I/O, sleeping, the last-resort reset. A call is one `ud2`, some 20 µs where
//! ring 0 is emulated, and whatever the port's owner takes.
//!
//! Must never know: what the ports mean.

#![expect(unsafe_code, reason = "calls the assembly of `entry.s`")]

use core::arch::asm;

/// Writes all of `bytes` to the 8-bit `port`.
pub fn out_bytes(port: u16, bytes: &[u8]) {
    // SAFETY: service 0 reads `rcx` bytes at `rsi`, which are those of `bytes`, and changes only rsi, rcx and flags.
    unsafe {
        asm!("call wisp_service", in("eax") 0, in("dx") port, inout("rsi") bytes.as_ptr() => _,
             inout("rcx") bytes.len() => _);
    }
}

/// Sleeps until an interrupt is taken, or returns at once if one was taken since `seen` was read with
/// [`crate::entry::interrupts_taken`].
pub fn idle(seen: u32) {
    // SAFETY: service 1 touches no memory but the interrupt counter.
    unsafe { asm!("call wisp_service", in("eax") 1, in("edi") seen) }
}

macro_rules! port_reads {
    ($($name:ident $number:literal $width:ty;)*) => {$(
        /// Reads `port` at the width of the result.
        pub fn $name(port: u16) -> $width {
            let value: u32;
            // SAFETY: the service executes one IN and changes eax alone.
            unsafe { asm!("call wisp_service", inout("eax") $number => value, in("dx") port) }
            value as $width
        }
    )*};
}

port_reads! {
    in8 2 u8;
    in16 3 u16;
    in32 7 u32;
}

macro_rules! port_writes {
    ($($name:ident $number:literal $width:ty;)*) => {$(
        /// Writes `value` to `port` at its own width.
        pub fn $name(port: u16, value: $width) {
            // SAFETY: the service executes one OUT and changes eax alone.
            unsafe { asm!("call wisp_service", inout("eax") $number => _, in("dx") port, in("ecx") u32::from(value)) }
        }
    )*};
}

port_writes! {
    out8 4 u8;
    out16 5 u16;
    out32 8 u32;
}

/// Ends the machine by a triple fault, for when nothing better works.
pub fn triple_fault() -> ! {
    // SAFETY: service 6 never returns; the processor resets.
    unsafe { asm!("call wisp_service", in("eax") 6, options(noreturn)) }
}
