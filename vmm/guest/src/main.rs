//! Wisp's tiny guest: a freestanding program that boots under any VMM in milliseconds.
#![no_std]
#![no_main]

mod console;
mod entry;
mod mem;
mod panic;
mod power;
mod service;

/// The first Rust code, in ring 3 on a stack of its own: how we were booted and what was handed over.
pub extern "C" fn wisp_main(protocol: u64, info: u64) -> ! {
    println!("guest {} protocol {protocol} info {info:#x}", env!("CARGO_PKG_VERSION"));
    power::off()
}
