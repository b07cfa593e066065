//! The few ACPI tables that matter here (ACPI 6.5): where the power button reports, how to power off, where the
//! I/O APICs are, where PCI's configuration space is, and what drives the watchdog.

use core::ops::Range;

use super::wdat::{self, Watchdog};

/// Where the RSDP is looked for when nobody says: the BIOS area, on 16-byte boundaries (§5.2.5.1).
pub const RSDP_AREA: Range<u64> = 0xe_0000..0x10_0000;
/// The most tables looked at; real machines have a dozen.
const TABLES_MAX: usize = 64;
/// The longest table read, in bytes; a DSDT of a virtual machine has a few KiB.
const TABLE_BYTES_MAX: usize = 1 << 20;
/// The most I/O APICs kept.
pub const IO_APICS_MAX: usize = 4;
/// The sleep type of S5 when the DSDT does not say: the one that virtual machines agree on.
const S5_SLEEP_TYPE: u8 = 5;

/// Gives the bytes at a physical address, if it is memory.
pub trait Memory {
    /// `len` bytes at `address`.
    fn bytes(&self, address: u64, len: usize) -> Option<&[u8]>;
}

/// What the tables say.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Acpi {
    /// The system control interrupt's global system interrupt, and the fixed hardware's event registers.
    pub button: Option<Button>,
    /// How to enter S5.
    pub sleep: Option<Sleep>,
    /// The I/O APICs of the MADT.
    pub io_apics: [Option<IoApic>; IO_APICS_MAX],
    /// Physical address of the first PCI bus's configuration space.
    pub ecam: Option<u64>,
    /// General-purpose events.
    pub events: Option<Events>,
    /// I/O port of the registers that say which slots of the PCI bus were filled, shall be let go, and were, 32 bits each.
    pub slots_port: Option<u16>,
    /// Physical address of the generation id ("Virtual Machine Generation ID", Microsoft, 2012), 16 bytes.
    pub generation: Option<u64>,
    /// Physical address of the clock page ("UAPI.13 VMClock").
    pub clock: Option<u64>,
    /// The watchdog.
    pub watchdog: Option<Watchdog>,
}

/// The general-purpose event block 0 (§4.8.4.1), of which only the first eight events matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Events {
    /// I/O port of the first events' status, 8 bits, written with ones to clear.
    pub status_port: u16,
    /// I/O port of the bits that enable them.
    pub enable_port: u16,
    /// The event that tells of slots.
    pub slots: u8,
    /// The event that tells of another generation id, if there is one.
    pub generation: Option<u8>,
}

/// The fixed power button (§4.8.3.1): bit 8 of both registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Button {
    /// The global system interrupt it raises.
    pub gsi: u32,
    /// I/O port of `PM1a_STS`, 16 bits, written with ones to clear.
    pub status_port: u16,
    /// I/O port of `PM1a_EN`, 16 bits.
    pub enable_port: u16,
}

/// How to power off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sleep {
    /// Fixed hardware: a 16-bit write to the port `PM1a_CNT` (§4.8.3.2).
    Fixed {
        /// The port.
        port: u16,
        /// What to write: `SLP_EN` and the type of S5.
        value: u16,
    },
    /// Hardware-reduced: an 8-bit write to `SLEEP_CONTROL_REG` (§4.8.3.7).
    Reduced {
        /// Whether the address is an I/O port, else it is memory.
        port: bool,
        /// The address.
        address: u64,
        /// What to write.
        value: u8,
    },
}

/// One I/O APIC (§5.2.12.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoApic {
    /// Physical address of its registers.
    pub address: u32,
    /// The global system interrupt of its pin 0.
    pub gsi_base: u32,
}

/// Looks for the RSDP in [`RSDP_AREA`].
pub fn find_rsdp(memory: &impl Memory) -> Option<u64> {
    RSDP_AREA.step_by(16).find(|&address| is_rsdp(memory, address))
}

fn is_rsdp(memory: &impl Memory, address: u64) -> bool {
    memory.bytes(address, 20).is_some_and(|rsdp| rsdp.starts_with(b"RSD PTR ") && sums_to_zero(rsdp))
}

fn sums_to_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) == 0
}

/// Reads the tables that the RSDP at `rsdp` leads to; `None` if there is no RSDP or no root table.
pub fn read(memory: &impl Memory, rsdp: u64) -> Option<Acpi> {
    if !is_rsdp(memory, rsdp) {
        return None;
    }
    let pointer = memory.bytes(rsdp, 36).or_else(|| memory.bytes(rsdp, 20))?;
    let (root, entry_bytes) = match (pointer.get(15).copied(), u64_at(pointer, 24)) {
        (Some(2..), Some(xsdt)) if xsdt != 0 => (table(memory, xsdt)?, 8),
        _ => (table(memory, u32_at(pointer, 16)?.into())?, 4),
    };
    let mut acpi = Acpi::default();
    for entry in root.get(36..)?.chunks_exact(entry_bytes).take(TABLES_MAX) {
        let address = if entry_bytes == 8 { u64_at(entry, 0)? } else { u32_at(entry, 0)?.into() };
        let Some(table) = table(memory, address) else { continue };
        match table.get(..4) {
            Some(b"FACP") => read_fadt(memory, table, &mut acpi),
            Some(b"APIC") => read_madt(table, &mut acpi),
            Some(b"WDAT") => acpi.watchdog = wdat::read(table),
            Some(b"MCFG") => acpi.ecam = acpi.ecam.or_else(|| first_bus(table)),
            _ => {}
        }
    }
    Some(acpi)
}

fn table(memory: &impl Memory, address: u64) -> Option<&[u8]> {
    let len = u32_at(memory.bytes(address, 36)?, 4)? as usize;
    (36..=TABLE_BYTES_MAX).contains(&len).then(|| memory.bytes(address, len))?
}

/// The FADT (§5.2.9): offsets as in its table 5.9.
fn read_fadt(memory: &impl Memory, fadt: &[u8], acpi: &mut Acpi) {
    const HW_REDUCED_ACPI: u32 = 1 << 20;
    let flags = u32_at(fadt, 112).unwrap_or(0);
    let dsdt = u64_at(fadt, 140).filter(|&address| address != 0).or(u32_at(fadt, 40).map(u64::from));
    let dsdt = dsdt.and_then(|address| table(memory, address)).unwrap_or(&[]);
    let sleep_type = s5_sleep_type(dsdt).unwrap_or(S5_SLEEP_TYPE) & 7;
    if flags & HW_REDUCED_ACPI != 0 {
        let (Some(&space), Some(address)) = (fadt.get(244), u64_at(fadt, 248)) else { return };
        if address != 0 && space <= 1 {
            acpi.sleep = Some(Sleep::Reduced { port: space == 1, address, value: 1 << 5 | sleep_type << 2 });
        }
        return;
    }
    let port = |at| u32_at(fadt, at).and_then(|port| u16::try_from(port).ok()).filter(|&port| port != 0);
    if let Some(port) = port(64) {
        acpi.sleep = Some(Sleep::Fixed { port, value: 1 << 13 | u16::from(sleep_type) << 10 });
    }
    if let (Some(status_port), Some(gsi), Some(&len)) = (port(56), u16_at(fadt, 46), fadt.get(88)) {
        let enable_port = status_port.wrapping_add(u16::from(len / 2));
        acpi.button = Some(Button { gsi: gsi.into(), status_port, enable_port });
    }
    if let (Some(status_port), Some(&len), Some(slots)) = (port(80), fadt.get(92), slots_event(dsdt)) {
        let enable_port = status_port.wrapping_add(u16::from(len / 2));
        acpi.generation = generation(dsdt);
        acpi.clock = clock(dsdt);
        let generation = acpi.generation.and_then(|_| other_event(dsdt, slots));
        acpi.events = Some(Events { status_port, enable_port, slots, generation });
        acpi.slots_port = slots_port(dsdt);
    }
}

/// The address in `Name (ADDR, Package (2) { low, high })`, found by its bytes, where a device is a `VM_Gen_Counter`.
fn generation(dsdt: &[u8]) -> Option<u64> {
    const ID: &[u8] = b"VM_Gen_Counter";
    const NAME: &[u8] = b"\x08ADDR\x12";
    const DOUBLE_WORD: u8 = 0x0c;
    dsdt.windows(ID.len()).position(|bytes| bytes == ID)?;
    let at = dsdt.windows(NAME.len()).position(|bytes| bytes == NAME)? + NAME.len();
    // The package's length, its number of elements, the kind of the first one.
    (dsdt.get(at + 2) == Some(&DOUBLE_WORD)).then(|| u32_at(dsdt, at + 3).map(u64::from))?
}

/// The memory of the device that is a `VMCLOCK`: a 32-bit fixed range (§6.4.3.4) behind its name.
fn clock(dsdt: &[u8]) -> Option<u64> {
    const ID: &[u8] = b"VMCLOCK\0";
    const RANGE: &[u8] = b"\x86\x09\0";
    let rest = dsdt.get(dsdt.windows(ID.len()).position(|bytes| bytes == ID)?..)?;
    let at = rest.windows(RANGE.len()).position(|bytes| bytes == RANGE)?;
    u32_at(rest, at + 4).map(u64::from)
}

/// The number of the first general-purpose event with a method that is not `known`.
fn other_event(dsdt: &[u8], known: u8) -> Option<u8> {
    let scope = dsdt.windows(4).position(|bytes| bytes == b"_GPE")?;
    let methods = dsdt.get(scope + 4..)?.windows(4).filter(|bytes| bytes.starts_with(b"_E0"));
    let mut events = methods.filter_map(|method| method.get(3)?.checked_sub(b'0'));
    events.find(|&event| event < 8 && event != known)
}

/// The number of the first general-purpose event with a method, `_Exx`, found by its bytes.
fn slots_event(dsdt: &[u8]) -> Option<u8> {
    let scope = dsdt.windows(4).position(|bytes| bytes == b"_GPE")?;
    let method = dsdt.get(scope + 4..)?.windows(4).find(|bytes| bytes.starts_with(b"_E0"))?;
    method.get(3).and_then(|digit| digit.checked_sub(b'0')).filter(|&event| event < 8)
}

/// Where `OperationRegion (PCST, SystemIO, …)` begins, found by its bytes.
fn slots_port(dsdt: &[u8]) -> Option<u16> {
    const REGION: &[u8] = b"\x5b\x80PCST\x01";
    const WORD: u8 = 0x0b;
    let at = dsdt.windows(REGION.len()).position(|bytes| bytes == REGION)? + REGION.len();
    u16_at(dsdt, at + 1).filter(|_| dsdt.get(at) == Some(&WORD))
}

/// The first number of `Name (_S5_, Package () { … })`, found by its bytes: there is no AML interpreter here.
fn s5_sleep_type(dsdt: &[u8]) -> Option<u8> {
    let at = dsdt.windows(5).position(|bytes| bytes == b"_S5_\x12")? + 5;
    // PkgLength: the top two bits of its first byte count further bytes (§20.2.4); then the number of elements.
    let package = at + 1 + usize::from(dsdt.get(at)? >> 6) + 1;
    match dsdt.get(package)? {
        0x0a => dsdt.get(package + 1).copied(),
        small @ 0..=1 => Some(*small),
        _ => None,
    }
}

/// The MADT (§5.2.12): records of type and length from offset 44.
fn read_madt(madt: &[u8], acpi: &mut Acpi) {
    const IO_APIC: u8 = 1;
    let mut records = madt.get(44..).unwrap_or(&[]);
    let mut slots = acpi.io_apics.iter_mut();
    while let [kind, len, ..] = *records {
        let Some((record, rest)) = records.split_at_checked(usize::from(len.max(2))) else { return };
        if kind == IO_APIC
            && let (Some(address), Some(gsi_base)) = (u32_at(record, 4), u32_at(record, 8))
        {
            let Some(slot) = slots.next() else { return };
            *slot = Some(IoApic { address, gsi_base });
        }
        records = rest;
    }
}

/// The MCFG (PCI Firmware 3.3 §4.1.2): records of 16 bytes from offset 44, of which the first bus's counts.
fn first_bus(mcfg: &[u8]) -> Option<u64> {
    let first = |record: &&[u8]| u16_at(record, 8) == Some(0) && record.get(10) == Some(&0);
    u64_at(mcfg.get(44..)?.chunks_exact(16).find(first)?, 0)
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Memory from address 0.
    struct Flat(Vec<u8>);

    impl Memory for Flat {
        fn bytes(&self, address: u64, len: usize) -> Option<&[u8]> {
            let start = usize::try_from(address).ok()?;
            self.0.get(start..start.checked_add(len)?)
        }
    }

    const XSDT: usize = 0x200;
    const FADT: usize = 0x400;
    const MADT: usize = 0x800;
    const DSDT: usize = 0xa00;
    const RSDP: usize = 0xe_0010;

    fn put(memory: &mut [u8], at: usize, bytes: &[u8]) {
        memory[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn put_header(memory: &mut [u8], at: usize, signature: &[u8], len: u32) {
        put(memory, at, signature);
        put(memory, at + 4, &len.to_le_bytes());
    }

    /// A machine with a power button, a MADT with one I/O APIC, and S5 as type 3.
    fn machine(flags: u32) -> Flat {
        let mut bytes = vec![0; 1 << 20];
        let memory = bytes.as_mut_slice();
        put(memory, RSDP, b"RSD PTR ");
        memory[RSDP + 15] = 2;
        put(memory, RSDP + 24, &(XSDT as u64).to_le_bytes());
        memory[RSDP + 8] = memory[RSDP..RSDP + 20].iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
        put_header(memory, XSDT, b"XSDT", 36 + 16);
        put(memory, XSDT + 36, &(FADT as u64).to_le_bytes());
        put(memory, XSDT + 44, &(MADT as u64).to_le_bytes());
        put_header(memory, FADT, b"FACP", 276);
        put(memory, FADT + 46, &9u16.to_le_bytes());
        put(memory, FADT + 56, &0x600u32.to_le_bytes());
        put(memory, FADT + 64, &0x604u32.to_le_bytes());
        memory[FADT + 88] = 4;
        put(memory, FADT + 112, &flags.to_le_bytes());
        put(memory, FADT + 140, &(DSDT as u64).to_le_bytes());
        memory[FADT + 244] = 1;
        put(memory, FADT + 248, &0x3c0u64.to_le_bytes());
        put_header(memory, DSDT, b"DSDT", 36 + 14);
        put(memory, DSDT + 37, b"\x08_S5_\x12\x06\x04\x0a\x03\x00\x00\x00");
        put_header(memory, MADT, b"APIC", 44 + 8 + 12);
        put(memory, MADT + 44, &[0, 8, 0, 0, 1, 0, 0, 0]);
        put(memory, MADT + 52, &[1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
        Flat(bytes)
    }

    #[test]
    fn fixed_hardware_gives_button_sleep_and_io_apic() {
        let memory = machine(0);
        let acpi = read(&memory, find_rsdp(&memory).unwrap()).unwrap();
        assert_eq!(acpi.button, Some(Button { gsi: 9, status_port: 0x600, enable_port: 0x602 }));
        assert_eq!(acpi.sleep, Some(Sleep::Fixed { port: 0x604, value: 0x2000 | 3 << 10 }));
        assert_eq!(acpi.io_apics[0], Some(IoApic { address: 0xfec0_0000, gsi_base: 0 }));
        assert_eq!(acpi.io_apics[1], None);
    }

    #[test]
    fn event_and_registers_of_slots_are_found_in_the_methods() {
        let mut memory = machine(0);
        put(&mut memory.0, FADT + 80, &0x608u32.to_le_bytes());
        memory.0[FADT + 92] = 2;
        assert_eq!(read(&memory, RSDP as u64).unwrap().events, None, "no method for any");
        put_header(&mut memory.0, DSDT, b"DSDT", 36 + 60);
        put(&mut memory.0, DSDT + 52, b"\x5b\x80PCST\x01\x0b\x10\x06\x0a\x0c");
        put(&mut memory.0, DSDT + 70, b"\x10\x1b_GPE\x14\x16_E01\x08");
        let acpi = read(&memory, RSDP as u64).unwrap();
        assert_eq!(
            acpi.events,
            Some(Events { status_port: 0x608, enable_port: 0x609, slots: 1, generation: None })
        );
        assert_eq!(acpi.slots_port, Some(0x610));
    }

    #[test]
    fn generation_id_and_clock_are_found_with_their_event() {
        let mut memory = machine(0);
        put(&mut memory.0, FADT + 80, &0x608u32.to_le_bytes());
        memory.0[FADT + 92] = 2;
        put_header(&mut memory.0, DSDT, b"DSDT", 36 + 160);
        put(&mut memory.0, DSDT + 60, b"\x10\x1b_GPE\x14\x16_E01\x08");
        put(&mut memory.0, DSDT + 76, b"VM_Gen_Counter\0\x08ADDR\x12\x08\x02\x0c\0\0\x0d\0\0");
        put(&mut memory.0, DSDT + 110, b"VMCLOCK\0\x08_CRS\x86\x09\0\x01\0\x10\x0d\0\0\x10\0\0");
        put(&mut memory.0, DSDT + 150, b"\x10\x1b_GPE\x14\x16_E02\x08");
        let acpi = read(&memory, RSDP as u64).unwrap();
        assert_eq!((acpi.generation, acpi.clock), (Some(0xd_0000), Some(0xd_1000)));
        assert_eq!(acpi.events.map(|events| events.generation), Some(Some(2)));
    }

    #[test]
    fn first_bus_of_the_first_segment_is_found_among_others() {
        let record = |address: u64, segment: u16, bus: u8| {
            let mut record = address.to_le_bytes().to_vec();
            record.extend(segment.to_le_bytes());
            record.extend([bus, 255, 0, 0, 0, 0]);
            record
        };
        let table = |records: &[Vec<u8>]| [vec![0; 44], records.concat()].concat();
        assert_eq!(first_bus(&table(&[record(1, 1, 0), record(2, 0, 1), record(3, 0, 0)])), Some(3));
        assert_eq!(first_bus(&table(&[record(1, 1, 0)])), None);
        assert_eq!(first_bus(&table(&[record(3, 0, 0)])[..59]), None);
        assert_eq!(first_bus(&[0; 40]), None);
    }

    #[test]
    fn hardware_reduced_machine_sleeps_by_its_register_and_has_no_fixed_button() {
        let memory = machine(1 << 20);
        let acpi = read(&memory, RSDP as u64).unwrap();
        assert_eq!(acpi.sleep, Some(Sleep::Reduced { port: true, address: 0x3c0, value: 0x20 | 3 << 2 }));
        assert_eq!(acpi.button, None);
    }

    #[test]
    fn memory_without_tables_gives_nothing() {
        let memory = Flat(vec![0; 1 << 20]);
        assert_eq!(find_rsdp(&memory), None);
        assert_eq!(read(&memory, 0x1000), None);
        assert_eq!(read(&memory, u64::MAX), None);
    }

    #[test]
    fn truncated_and_lying_tables_never_panic() {
        let whole = machine(0);
        for (at, value) in [
            (XSDT + 4, 0xff),
            (XSDT + 7, 0xff),
            (FADT + 4, 37),
            (MADT + 53, 0),
            (MADT + 53, 255),
            (MADT + 4, 45),
            (DSDT + 43, 0xff),
            (FADT + 147, 0xff),
        ] {
            let mut memory = Flat(whole.0.clone());
            memory.0[at] = value;
            let _ = read(&memory, RSDP as u64);
        }
    }
}
