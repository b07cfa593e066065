//! Powering off, and the ACPI power button that asks for it.
//!
//! Must never know: who asked.

use core::cell::Cell;

use crate::clock::Clock;
use crate::entry::{VECTOR_SCI, acpi_interrupts_taken};
use crate::interrupts::Pins;
use crate::parse::acpi::{Acpi, Button, Sleep};
use crate::register::Register;
use crate::{console, println, service};

/// The keyboard controller's command port.
const I8042_COMMAND: u16 = 0x64;
/// Its command that pulses the processor's reset line; a microVM takes it as its end.
const I8042_RESET: u8 = 0xfe;
/// The power button's bit in the fixed hardware's status and enable registers.
const POWER_BUTTON: u16 = 1 << 8;
/// How long each way of powering off is given before the next, in nanoseconds.
const PATIENCE_NS: u64 = 500_000_000;

/// What the machine offers for powering off.
pub struct Power {
    sleep: Option<Sleep>,
    button: Option<Button>,
    /// ACPI interrupts looked at so far.
    seen: Cell<u32>,
}

impl Power {
    /// Takes the power button into use.
    pub fn start(acpi: &Acpi, pins: &Pins) -> Self {
        let button = acpi.button.filter(|button| pins.route(button.gsi, VECTOR_SCI));
        if let Some(button) = button {
            service::out16(button.enable_port, POWER_BUTTON);
        }
        // One press short, so that a press before the pin was routed is seen.
        Power { sleep: acpi.sleep, button, seen: Cell::new(acpi_interrupts_taken().wrapping_sub(1)) }
    }

    /// Whether ACPI has interrupted since the last call.
    pub fn interrupted(&self) -> bool {
        let taken = acpi_interrupts_taken();
        self.seen.replace(taken) != taken
    }

    /// Whether the power button was pressed since the last call.
    pub fn button_pressed(&self) -> bool {
        let Some(button) = self.button else { return false };
        let status = service::in16(button.status_port);
        // Ones clear what they meet.
        service::out16(button.status_port, status);
        status & POWER_BUTTON != 0
    }

    /// Powers off: by ACPI, else by the keyboard controller's reset, else by a triple fault.
    pub fn off(&self, clock: &Clock) -> ! {
        println!("power: off");
        console::flush();
        match self.sleep {
            Some(Sleep::Fixed { port, value }) => service::out16(port, value),
            Some(Sleep::Reduced { port: true, address, value }) => service::out8(address as u16, value),
            Some(Sleep::Reduced { port: false, address, value }) => {
                if let Some(register) = Register::at(address) {
                    register.write_byte(value);
                }
            }
            None => {}
        }
        if self.sleep.is_some() {
            clock.pause(PATIENCE_NS);
        }
        service::out8(I8042_COMMAND, I8042_RESET);
        clock.pause(PATIENCE_NS);
        service::triple_fault()
    }
}

/// Ends a guest that is wrong, knowing nothing about the machine.
pub fn give_up() -> ! {
    console::flush();
    service::out8(I8042_COMMAND, I8042_RESET);
    service::triple_fault()
}
