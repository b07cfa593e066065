//! The watchdog's table ("Hardware Watchdog Timers Design Specification", Microsoft, 2006; Linux: `wdat_wdt`): which
//! register is read or written to do what.
//!
//! What happens when the countdown runs out is not the guest's to say, so the actions that ask for reboot or shutdown are
//! not there.
//!
//! Must never know: how a watchdog counts.

use acpi_tables::sdt::Sdt;

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::watchdog::{
    COUNT_MAX, COUNT_OFFSET, LEFT_OFFSET, PERIOD_MS, RUNNING_OFFSET, STATUS_OFFSET, WATCHDOG_PORT,
};

/// What is done with a register.
#[derive(Clone, Copy)]
enum Instruction {
    /// The answer is whether it has this value.
    Is(u32),
    /// The answer is what it says.
    Tell,
    /// It is written with this value.
    Set(u32),
    /// It is written with what the guest wants.
    Want,
}

/// Every action, with its number.
const ACTIONS: [(u8, u8, Instruction, u32); 10] = [
    (1, LEFT_OFFSET, Instruction::Set(1), 1),
    (4, LEFT_OFFSET, Instruction::Tell, COUNT_MAX),
    (5, COUNT_OFFSET, Instruction::Tell, COUNT_MAX),
    (6, COUNT_OFFSET, Instruction::Want, COUNT_MAX),
    (8, RUNNING_OFFSET, Instruction::Is(1), 1),
    (9, RUNNING_OFFSET, Instruction::Set(1), 1),
    (10, RUNNING_OFFSET, Instruction::Is(0), 1),
    (11, RUNNING_OFFSET, Instruction::Set(0), 1),
    (32, STATUS_OFFSET, Instruction::Is(1), 1),
    (33, STATUS_OFFSET, Instruction::Set(1), 1),
];

/// The table.
pub(super) fn table() -> Sdt {
    const HEADER_BYTES: u32 = 36;
    const REVISION: u8 = 1;
    /// Bytes of the watchdog's own header.
    const OWN_HEADER_BYTES: u32 = 32;
    /// Segment, bus, device and function of what is not on PCI.
    const NOT_PCI: [u8; 5] = [0xff, 0, 0xff, 0xff, 0xff];
    const COUNT_MIN: u32 = 1;
    const ENABLED: u8 = 1;
    let mut body: Vec<u8> = Vec::new();
    body.extend(OWN_HEADER_BYTES.to_le_bytes());
    body.extend(NOT_PCI);
    body.extend([0; 3]);
    body.extend([PERIOD_MS, COUNT_MAX, COUNT_MIN].iter().flat_map(|number| number.to_le_bytes()));
    body.extend([ENABLED, 0, 0, 0]);
    body.extend(u32::try_from(ACTIONS.len()).expect("invariant: a dozen").to_le_bytes());
    for (action, register, instruction, mask) in ACTIONS {
        let (number, value) = match instruction {
            Instruction::Is(value) => (0, value),
            Instruction::Tell => (1, 0),
            Instruction::Set(value) => (2, value),
            Instruction::Want => (3, 0),
        };
        body.extend([action, number, 0, 0]);
        // A generic address (ACPI 6.5 §5.2.3.2): a port, 32 bits from bit 0, by double words.
        body.extend([1, 32, 0, 3]);
        body.extend(u64::from(WATCHDOG_PORT + u16::from(register)).to_le_bytes());
        body.extend(value.to_le_bytes());
        body.extend(mask.to_le_bytes());
    }
    let mut table = Sdt::new(*b"WDAT", HEADER_BYTES, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&body);
    table
}
