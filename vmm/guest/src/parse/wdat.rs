//! The watchdog's table WDAT ("Hardware Watchdog Timers Design Specification", Microsoft, 2006): which register is read or
//! written to do what.

use super::acpi::{u16_at, u32_at};

/// The most entries looked at; there are some thirty actions.
const ENTRIES_MAX: usize = 64;

/// What is done with a register of 32 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Its I/O port.
    pub port: u16,
    /// What is written, where that is not for the driver to say.
    pub value: u32,
    /// The bits that count.
    pub mask: u32,
}

/// What a driver needs of a watchdog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watchdog {
    /// What it counts in, in milliseconds.
    pub period_ms: u32,
    /// Begins the countdown again.
    pub begin: Step,
    /// Tells how many periods are left.
    pub left: Step,
    /// Says how many periods it counts.
    pub set_count: Step,
    /// Has it run.
    pub run: Step,
    /// Stops it.
    pub stop: Step,
}

/// What `table` says, if it is of a watchdog that is there, not on PCI, with registers of 32 bits at ports.
pub fn read(table: &[u8]) -> Option<Watchdog> {
    const ENABLED: u8 = 1;
    let period_ms = u32_at(table, 48).filter(|period| *period > 0)?;
    if u16_at(table, 40)? != 0xff || table.get(60)? & ENABLED == 0 {
        return None;
    }
    let step = |action: u8, instruction: u8| {
        let mut entries = table.get(68..)?.chunks_exact(24).take(ENTRIES_MAX);
        let entry = entries.find(|entry| entry[..2] == [action, instruction])?;
        // A port, 32 bits from bit 0, by double words.
        (entry[4..8] == [1, 32, 0, 3]).then_some(())?;
        Some(Step { port: u16_at(entry, 8)?, value: u32_at(entry, 16)?, mask: u32_at(entry, 20)? })
    };
    Some(Watchdog {
        period_ms,
        begin: step(1, 2)?,
        left: step(4, 1)?,
        set_count: step(6, 3)?,
        run: step(9, 2)?,
        stop: step(11, 2)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Vec<u8> {
        let mut table = vec![0; 36];
        table.extend([32, 0, 0, 0, 0xff, 0, 0xff, 0xff, 0xff, 0, 0, 0]);
        for number in [100_u32, 0xffff, 1, 1, 5] {
            table.extend(number.to_le_bytes());
        }
        for (action, instruction, port) in [(1, 2, 8_u64), (4, 1, 8), (6, 3, 4), (9, 2, 0), (11, 2, 0)] {
            table.extend([action, instruction, 0, 0, 1, 32, 0, 3]);
            table.extend((0x680 + port).to_le_bytes());
            table.extend(u32::from(action == 9).to_le_bytes());
            table.extend(0xffff_u32.to_le_bytes());
        }
        table
    }

    #[test]
    fn registers_of_a_watchdog_are_found() {
        let watchdog = read(&table()).unwrap();
        assert_eq!(watchdog.period_ms, 100);
        assert_eq!(watchdog.run, Step { port: 0x680, value: 1, mask: 0xffff });
        assert_eq!((watchdog.set_count.port, watchdog.left.port), (0x684, 0x688));
    }

    #[test]
    fn what_is_none_or_of_another_kind_is_left_alone() {
        let whole = table();
        for end in 0..whole.len() {
            assert_eq!(read(&whole[..end]), None, "{end}");
        }
        // A period of nothing, on PCI, switched off, no entry, in memory, of 16 bits.
        for (at, value) in [(48, 0), (40, 0), (60, 0), (68, 7), (72, 0), (75, 2)] {
            let mut changed = whole.clone();
            changed[at] = value;
            assert_eq!(read(&changed), None, "{at}");
        }
    }
}
