//! The ACPI tables (ACPI 6.5 §5.2): what the guest's firmware would say of this machine.
//!
//! ```text
//! RSDP_START  RSDP (36 bytes)
//! +64         FACS (64 bytes, aligned to 64)
//! +128        DSDT, FADT, MADT, MCFG, WDAT if there is a watchdog, XSDT, each on a multiple of 16
//! ```
//!
//! Must never know: what a virtio device does.

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Address, Bytes, GuestAddress};

use crate::devices::Places;
use crate::memory::{self, GuestMemory};
use crate::pci::plug;
use crate::power;

mod dsdt;
mod wdat;

const OEM_ID: [u8; 6] = *b"WISP  ";
const OEM_TABLE_ID: [u8; 8] = *b"WISPVM  ";
const OEM_REVISION: u32 = 1;
const TABLE_ALIGNMENT: u64 = 16;
const FACS_OFFSET: u64 = 64;
const TABLES_OFFSET: u64 = 128;

/// Why the tables cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// They grew out of their area.
    #[error("the ACPI tables do not fit into their area")]
    TooLarge,
    /// The guest's memory is too small for them.
    #[error("write the ACPI tables into guest memory")]
    Write(#[from] vm_memory::GuestMemoryError),
}

/// A virtio-mmio device as the guest finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmioDevice {
    /// Where its registers begin.
    pub address: GuestAddress,
    /// Its interrupt.
    pub gsi: u32,
}

/// Writes all tables, the RSDP at [`memory::RSDP_START`]; `watchdog` says whether there is one.
///
/// # Errors
/// They do not fit.
pub fn write(guest: &GuestMemory, vcpus: u8, places: &Places, watchdog: bool) -> Result<(), Error> {
    let facs = memory::RSDP_START.unchecked_add(FACS_OFFSET);
    guest.write_slice(&bytes(&FACS::new()), facs)?;
    let mut writer = Writer { guest, next: memory::RSDP_START.unchecked_add(TABLES_OFFSET) };
    let dsdt = writer.write(dsdt(places).as_slice())?;
    let fadt = writer.write(&bytes(&fadt(dsdt, facs)))?;
    let madt = writer.write(madt(vcpus).as_slice())?;
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt.raw_value());
    xsdt.add_entry(madt.raw_value());
    xsdt.add_entry(writer.write(&bytes(&mcfg()))?.raw_value());
    if watchdog {
        xsdt.add_entry(writer.write(wdat::table().as_slice())?.raw_value());
    }
    let xsdt = writer.write(&bytes(&xsdt))?;
    guest.write_slice(&bytes(&Rsdp::new(OEM_ID, xsdt.raw_value())), memory::RSDP_START)?;
    Ok(())
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

struct Writer<'a> {
    guest: &'a GuestMemory,
    next: GuestAddress,
}

impl Writer<'_> {
    fn write(&mut self, table: &[u8]) -> Result<GuestAddress, Error> {
        let start = self.next;
        let end = start.unchecked_add(table.len() as u64);
        if end > memory::SMBIOS_START {
            return Err(Error::TooLarge);
        }
        self.guest.write_slice(table, start)?;
        self.next = GuestAddress(end.raw_value().next_multiple_of(TABLE_ALIGNMENT));
        Ok(start)
    }
}

/// The fixed description table: fixed power button, reset register, no timer, one general-purpose event.
fn fadt(dsdt: GuestAddress, facs: GuestAddress) -> acpi_tables::fadt::FADT {
    /// Boot architecture flags: no VGA, no CMOS clock.
    const NO_VGA_NO_CMOS_CLOCK: u16 = (1 << 2) | (1 << 5);
    let port = |port: u16, bits: u8, access: AccessSize| {
        GAS::new(AddressSpace::SystemIo, bits, 0, access, u64::from(port))
    };
    let low = |address: GuestAddress| {
        u32::try_from(address.raw_value()).expect("invariant: tables lie below 1 MiB")
    };
    let mut table = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    table.dsdt = low(dsdt).into();
    table.x_dsdt = dsdt.raw_value().into();
    table.firmware_ctrl = low(facs).into();
    table.sci_int = u16::try_from(power::SCI_GSI).expect("invariant: a pin's number").into();
    table.pm1a_evt_blk = u32::from(power::PM1_EVENT_PORT).into();
    table.pm1_evt_len = power::PM1_EVENT_BYTES;
    table.x_pm1a_evt_blk = port(power::PM1_EVENT_PORT, 8 * power::PM1_EVENT_BYTES, AccessSize::WordAccess);
    table.pm1a_cnt_blk = u32::from(power::PM1_CONTROL_PORT).into();
    table.pm1_cnt_len = power::PM1_CONTROL_BYTES;
    table.x_pm1a_cnt_blk =
        port(power::PM1_CONTROL_PORT, 8 * power::PM1_CONTROL_BYTES, AccessSize::WordAccess);
    table.gpe0_blk = u32::from(plug::PLUG_PORT).into();
    table.gpe0_blk_len = plug::EVENT_BYTES;
    table.x_gpe0_blk = port(plug::PLUG_PORT, 8 * plug::EVENT_BYTES, AccessSize::ByteAccess);
    table.iapc_boot_arch = NO_VGA_NO_CMOS_CLOCK.into();
    let reset = power::KEYBOARD_PORT + u16::from(power::KEYBOARD_COMMAND_OFFSET);
    table.reset_reg = port(reset, 8, AccessSize::ByteAccess);
    table.reset_value = power::KEYBOARD_RESET;
    // No C2, no C3.
    table.p_lvl2_lat = 0xffff.into();
    table.p_lvl3_lat = 0xffff.into();
    table.finalize()
}

/// The interrupt controllers and processors (§5.2.12).
fn madt(vcpus: u8) -> Sdt {
    const HEADER_BYTES: u32 = 36;
    const REVISION: u8 = 5;
    /// The structures' types and lengths.
    const LOCAL_APIC: [u8; 2] = [0, 8];
    const IO_APIC: [u8; 2] = [1, 12];
    const SOURCE_OVERRIDE: [u8; 2] = [2, 10];
    const LOCAL_APIC_NMI: [u8; 2] = [4, 6];
    const ENABLED: u32 = 1;
    /// Edge-triggered, active high.
    const EDGE_HIGH: u16 = (1 << 2) | 1;
    let mut body: Vec<u8> = Vec::new();
    body.extend(memory::LOCAL_APIC_START.to_le_bytes());
    body.extend(0_u32.to_le_bytes());
    for id in 0..vcpus {
        body.extend(LOCAL_APIC);
        body.extend([id, id]);
        body.extend(ENABLED.to_le_bytes());
    }
    body.extend(IO_APIC);
    body.extend([0, 0]);
    body.extend(memory::IOAPIC_START.to_le_bytes());
    body.extend(0_u32.to_le_bytes());
    // Without this a guest takes the system control interrupt for level-triggered.
    body.extend(SOURCE_OVERRIDE);
    body.extend([0, u8::try_from(power::SCI_GSI).expect("invariant: a pin's number")]);
    body.extend(power::SCI_GSI.to_le_bytes());
    body.extend(EDGE_HIGH.to_le_bytes());
    // Non-maskable interrupts arrive at LINT1 of every processor.
    body.extend(LOCAL_APIC_NMI);
    body.extend([0xff, 0, 0, 1]);
    let mut table = Sdt::new(*b"APIC", HEADER_BYTES, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&body);
    table
}

/// The devices in AML.
fn dsdt(places: &Places) -> Sdt {
    const HEADER_BYTES: u32 = 36;
    const REVISION: u8 = 6;
    let mut table = Sdt::new(*b"DSDT", HEADER_BYTES, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&dsdt::body(places));
    table
}

/// Where PCI's configuration space lies in memory (PCI Firmware 3.3 §4.1.2).
fn mcfg() -> MCFG {
    let mut table = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.add_ecam(memory::PCI_ECAM_START.raw_value(), 0, 0, 0);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(guest: &GuestMemory, start: u64) -> Vec<u8> {
        let length: u32 = guest.read_obj(GuestAddress(start + 4)).unwrap();
        let mut bytes = vec![0; length as usize];
        guest.read_slice(&mut bytes, GuestAddress(start)).unwrap();
        assert_eq!(bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0, "checksum");
        bytes
    }

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn a_guest_that_follows_the_pointers_finds_power_registers_and_processors() {
        let guest = memory::allocate(8).unwrap();
        let devices = [MmioDevice { address: memory::MMIO_START, gsi: 16 }];
        write(&guest, 2, &Places::Mmio(devices.to_vec()), false).unwrap();
        let mut rsdp = [0; 36];
        guest.read_slice(&mut rsdp, memory::RSDP_START).unwrap();
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        let xsdt = table(&guest, u64_at(&rsdp, 24));
        assert_eq!(&xsdt[..4], b"XSDT");
        let fadt = table(&guest, u64_at(&xsdt, 36));
        assert_eq!(&fadt[..4], b"FACP");
        assert_eq!(u16::from_le_bytes([fadt[46], fadt[47]]), 23, "SCI_INT");
        assert_eq!((u32_at(&fadt, 56), u32_at(&fadt, 64)), (0x600, 0x604), "PM1a blocks");
        assert_eq!(u32_at(&fadt, 112) & (1 << 4), 0, "the fixed power button is there");
        let dsdt = table(&guest, u64_at(&fadt, 140));
        assert!(dsdt.windows(8).any(|part| part == b"LNRO0005"));
        assert!(dsdt.windows(4).any(|part| part == b"PCI0"), "what is plugged later is on PCI");
        assert_eq!((u32_at(&fadt, 80), fadt[92]), (0x608, 2), "GPE0 block");
        let madt = table(&guest, u64_at(&xsdt, 44));
        assert_eq!((&madt[..4], madt.len()), (&b"APIC"[..], 36 + 8 + 2 * 8 + 12 + 10 + 6));
    }

    #[test]
    fn machine_with_pci_names_its_configuration_window_and_its_bridge() {
        let guest = memory::allocate(8).unwrap();
        write(&guest, 1, &Places::Pci, false).unwrap();
        let mut rsdp = [0; 36];
        guest.read_slice(&mut rsdp, memory::RSDP_START).unwrap();
        let xsdt = table(&guest, u64_at(&rsdp, 24));
        let mcfg = table(&guest, u64_at(&xsdt, 52));
        assert_eq!((&mcfg[..4], mcfg.len()), (&b"MCFG"[..], 36 + 8 + 16));
        assert_eq!(u64_at(&mcfg, 44), 0xe000_0000);
        assert_eq!(mcfg[52..56], [0, 0, 0, 0], "segment and buses");
        let dsdt = table(&guest, u64_at(&table(&guest, u64_at(&xsdt, 36)), 140));
        for name in [b"PCI0", b"_E01", b"PCST", b"S31_"] {
            assert!(dsdt.windows(4).any(|part| part == name));
        }
        assert!(!dsdt.windows(8).any(|part| part == b"LNRO0005"));
    }

    #[test]
    fn machine_with_a_watchdog_says_which_register_does_what() {
        let guest = memory::allocate(8).unwrap();
        write(&guest, 1, &Places::Pci, true).unwrap();
        let mut rsdp = [0; 36];
        guest.read_slice(&mut rsdp, memory::RSDP_START).unwrap();
        let wdat = table(&guest, u64_at(&table(&guest, u64_at(&rsdp, 24)), 60));
        assert_eq!((&wdat[..4], u32_at(&wdat, 36)), (&b"WDAT"[..], 32));
        assert_eq!(wdat[40..45], [0xff, 0, 0xff, 0xff, 0xff], "it is not on PCI");
        assert_eq!([48, 52, 56, 64].map(|at| u32_at(&wdat, at)), [100, 0xffff, 1, 10]);
        assert_eq!(wdat.len(), 36 + 32 + 10 * 24);
        let set_running = &wdat[68 + 5 * 24..][..24];
        assert_eq!(set_running[..8], [9, 2, 0, 0, 1, 32, 0, 3]);
        assert_eq!((u64_at(set_running, 8), u64_at(set_running, 16)), (0x680, 1 << 32 | 1));
    }

    #[test]
    fn the_largest_machine_fits() {
        let guest = memory::allocate(8).unwrap();
        let devices: Vec<_> = (0..u64::from(crate::kvm::IOAPIC_PINS))
            .map(|index| MmioDevice { address: GuestAddress(0xd000_0000 + index * 0x1000), gsi: 16 })
            .collect();
        write(&guest, crate::config::VCPUS_MAX, &Places::Mmio(devices), true).unwrap();
        write(&guest, crate::config::VCPUS_MAX, &Places::Pci, true).unwrap();
    }
}
