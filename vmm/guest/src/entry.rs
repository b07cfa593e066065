//! The way in and all of ring 0: both boot entries, descriptor tables, page tables, interrupt handlers that count
//! and acknowledge, and the services that ring 3 asks for with `ud2`.
//!
//! Must never know: devices, memory maps, anything that Rust code can do in ring 3. Ring 0 may be emulated
//! slowly (a software KVM does so at about a million instructions a second), hence so little of it, and only
//! plain instructions.
//!
//! Entries, both of which put `WISP-GUEST` on the first serial port before all else:
//! - `wisp_entry64`, the ELF entry: Linux x86 64-bit boot protocol (`Documentation/arch/x86/boot.rst`), long mode,
//!   `rsi` = physical address of `boot_params`;
//! - `wisp_entry32`, named by the ELF note `XEN_ELFNOTE_PHYS32_ENTRY`: PVH (Xen `docs/misc/pvh.pandoc`), 32-bit
//!   protected mode, `ebx` = physical address of `hvm_start_info`.

#![expect(unsafe_code, reason = "ring 0 is assembly; its counters are read through their addresses")]

use core::arch::global_asm;

/// `rdi` of [`crate::wisp_main`] when `rsi` is a `boot_params`.
pub const BOOTED_BY_LINUX_PROTOCOL: u64 = 1;
/// `rdi` of [`crate::wisp_main`] when `rsi` is an `hvm_start_info`.
pub const BOOTED_BY_PVH: u64 = 2;

/// Vector of every device's pin; ring 3 asks all devices anyway.
pub const VECTOR_DEVICE: u8 = 0x30;
/// Vector of the ACPI system control interrupt.
pub const VECTOR_SCI: u8 = 0x31;
/// Vector of the local APIC's timer.
pub const VECTOR_TIMER: u8 = 0x32;
/// Vector of spurious interrupts, which must not be acknowledged.
pub const VECTOR_SPURIOUS: u8 = 0x3f;

/// Bytes of the stack in ring 3. The deepest path is an HTTP request formatted into TCP.
const STACK3_BYTES: usize = 128 << 10;
/// Bytes of the stack in ring 0: two interrupt frames and a few registers.
const STACK0_BYTES: usize = 4096;

global_asm!(
    include_str!("entry.s"),
    linux = const BOOTED_BY_LINUX_PROTOCOL,
    pvh = const BOOTED_BY_PVH,
    stack0 = const STACK0_BYTES,
    stack3 = const STACK3_BYTES,
    main = sym crate::wisp_main,
    exception = sym crate::panic::wisp_exception,
    options(att_syntax)
);

unsafe extern "C" {
    static wisp_irq_total: u32;
    static wisp_irq_sci: u32;
}

/// How many interrupts were taken since the start, wrapping.
pub fn interrupts_taken() -> u32 {
    // SAFETY: the counter is an aligned u32 in the image that only ring 0 writes, one instruction at a time.
    unsafe { core::ptr::read_volatile(&raw const wisp_irq_total) }
}

/// How many of them were ACPI's, wrapping.
pub fn acpi_interrupts_taken() -> u32 {
    // SAFETY: as in `interrupts_taken`.
    unsafe { core::ptr::read_volatile(&raw const wisp_irq_sci) }
}
