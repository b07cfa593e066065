//! Devices that come to the PCI bus and go from it: what the machine says of its slots, and what is said back.
//!
//! Must never know: what is in a slot.

use crate::parse::acpi::Acpi;
use crate::service;

/// The machine's hot-plug controller.
pub struct Plug {
    /// Where PCI's configuration space is.
    pub ecam: u64,
    status_port: u16,
    event: u8,
    registers_port: u16,
}

/// Slots, a bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slots {
    /// Those that were filled.
    pub filled: u32,
    /// Those that shall be let go.
    pub emptied: u32,
}

impl Plug {
    /// Takes the controller into use, if the tables tell of one. What it has to say interrupts as ACPI does.
    pub fn start(acpi: &Acpi) -> Option<Self> {
        let (events, registers_port) = (acpi.events?, acpi.slots_port?);
        let plug = Plug {
            ecam: acpi.ecam?,
            status_port: events.status_port,
            event: 1 << events.slots,
            registers_port,
        };
        service::out8(events.enable_port, service::in8(events.enable_port) | plug.event);
        Some(plug)
    }

    /// What there is to do, if anything; each thing once.
    pub fn take(&self) -> Option<Slots> {
        if service::in8(self.status_port) & self.event == 0 {
            return None;
        }
        // Before the registers are read: what comes after that interrupts anew.
        service::out8(self.status_port, self.event);
        let register = |index: u16| service::in32(self.registers_port + 4 * index);
        Some(Slots { filled: register(0), emptied: register(1) })
    }

    /// Says that `slot` is not in use any more.
    pub fn let_go(&self, slot: u8) {
        service::out32(self.registers_port + 8, 1 << (slot & 31));
    }
}
