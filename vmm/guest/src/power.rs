//! Powering off.
//!
//! Must never know: who asked for it.

use crate::{println, service};

/// The keyboard controller's command port.
const I8042_COMMAND: u16 = 0x64;
/// Its command that pulses the processor's reset line; a microVM takes it as its end.
const I8042_RESET: u8 = 0xfe;

/// Powers off: by ACPI, else by the keyboard controller's reset, else by a triple fault.
pub fn off() -> ! {
    println!("power: off");
    service::out8(I8042_COMMAND, I8042_RESET);
    // A VMM stops the processor before the next instruction; one without this controller ignores the write.
    service::triple_fault()
}
