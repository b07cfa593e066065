//! What happens when the guest itself is wrong: one line on the console, then reset.
//!
//! Must never know: how to go on.

#![expect(unsafe_code, reason = "the symbol that the exception handlers return to")]

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::{power, println};

/// Set by the first failure: a second one while reporting it resets at once.
static FAILED: AtomicBool = AtomicBool::new(false);

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    end(format_args!("panic: {info}"))
}

/// Where ring 0 sends ring 3 after an exception: the vector, the address of the instruction, the error code and
/// the address of a page fault.
#[unsafe(no_mangle)]
pub extern "C" fn wisp_exception(vector: u64, instruction: u64, error: u64, address: u64) -> ! {
    end(format_args!("exception {vector} at {instruction:#x}, error {error:#x}, address {address:#x}"))
}

fn end(what: core::fmt::Arguments<'_>) -> ! {
    if FAILED.swap(true, Ordering::Relaxed) {
        crate::service::triple_fault();
    }
    println!("{what}");
    power::give_up()
}

/// Named by the landing pads in the precompiled `alloc`, which nothing reaches: a panic here never unwinds.
#[unsafe(no_mangle)]
pub extern "C" fn _Unwind_Resume() -> ! {
    power::give_up()
}
