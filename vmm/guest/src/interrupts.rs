//! Interrupt routing: the local APIC on, the old interrupt controllers off, I/O APIC pins to vectors.
//!
//! Every pin is programmed as an edge, active high: the devices here either pulse their line or hold it until they
//! are acknowledged, and both begin with an edge.
//!
//! Must never know: what a device does when it interrupts.

use crate::entry::VECTOR_SPURIOUS;
use crate::parse::acpi::{IO_APICS_MAX, IoApic};
use crate::register::Register;
use crate::service;

/// Physical address of the local APIC's registers.
const LOCAL_APIC: u64 = 0xfee0_0000;
/// The I/O APIC that every machine has, for those without a MADT.
const DEFAULT_IO_APIC: IoApic = IoApic { address: 0xfec0_0000, gsi_base: 0 };
/// Set in a local vector table entry, it masks it.
pub const LVT_MASKED: u32 = 1 << 16;

/// A register of the local APIC (Intel SDM volume 3, table 12-1).
pub fn local_apic(offset: u64) -> Register {
    Register::at(LOCAL_APIC + offset).expect("invariant: offsets are aligned constants")
}

/// This processor's number, as messages name it.
pub fn local_apic_id() -> u32 {
    const LOCAL_APIC_ID: u64 = 0x020;
    local_apic(LOCAL_APIC_ID).read() >> 24
}

/// Turns the local APIC on and shuts the 8259s up: their default vectors are those of exceptions.
pub fn start() {
    const SPURIOUS: u64 = 0x0f0;
    const LINT0: u64 = 0x350;
    const SOFTWARE_ENABLE: u32 = 1 << 8;
    local_apic(LINT0).write(LVT_MASKED);
    local_apic(SPURIOUS).write(SOFTWARE_ENABLE | u32::from(VECTOR_SPURIOUS));
    for pic_mask_port in [0x21, 0xa1] {
        service::out8(pic_mask_port, 0xff);
    }
}

/// The machine's I/O APICs.
pub struct Pins([Option<IoApic>; IO_APICS_MAX]);

impl Pins {
    /// Those of the MADT, or the default one.
    pub fn new(mut io_apics: [Option<IoApic>; IO_APICS_MAX]) -> Self {
        if io_apics.iter().all(Option::is_none) {
            io_apics[0] = Some(DEFAULT_IO_APIC);
        }
        Pins(io_apics)
    }

    /// Sends the global system interrupt `gsi` to `vector` of this processor; false if no pin has it.
    pub fn route(&self, gsi: u32, vector: u8) -> bool {
        let nearest =
            self.0.iter().flatten().filter(|chip| chip.gsi_base <= gsi).max_by_key(|chip| chip.gsi_base);
        let Some((chip, select)) = nearest.and_then(|chip| Some((chip, Register::at(chip.address.into())?)))
        else {
            return false;
        };
        let Some(window) = Register::at(u64::from(chip.address) + 0x10) else { return false };
        let pin = gsi - chip.gsi_base;
        select.write(1);
        let pins = (window.read() >> 16 & 0xff) + 1;
        if pin >= pins {
            return false;
        }
        select.write(0x11 + 2 * pin);
        window.write(local_apic_id() << 24);
        select.write(0x10 + 2 * pin);
        window.write(vector.into());
        true
    }
}
