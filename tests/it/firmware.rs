//! The firmware tables that guests find, as the reference tool for them sees them.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use vm_memory::{Bytes, GuestAddress};
use vmm::config::{Transport, VCPUS_MAX};
use vmm::devices::Places;
use vmm::memory::{self, GuestMemory};

use crate::harness::{Need, trial};

/// The tests.
pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("firmware::iasl_reads_and_rebuilds_the_tables_of_mmio", &[Need::Iasl], || {
            rebuilt(Transport::Mmio, 2, 3, true)
        }),
        trial("firmware::iasl_reads_and_rebuilds_the_tables_of_pci", &[Need::Iasl], || {
            rebuilt(Transport::Pci, 2, 3, false)
        }),
        trial("firmware::iasl_reads_and_rebuilds_the_largest_tables", &[Need::Iasl], || {
            rebuilt(Transport::Mmio, VCPUS_MAX, 15, true)
        }),
    ]
}

/// Every table disassembles without a complaint, and what comes out compiles without one.
fn rebuilt(transport: Transport, vcpus: u8, devices: usize, watchdog: bool) -> Result<()> {
    let guest = memory::allocate(8)?;
    let places = Places::choose(transport, true, devices)?;
    vmm::acpi::write(&guest, vcpus, &places, watchdog)?;
    let directory = tempfile::tempdir()?;
    let tables = tables(&guest)?;
    let names: Vec<_> = tables.iter().map(|(name, _)| name.as_str()).collect();
    let wanted = ["FACP", "APIC", "MCFG", "WDAT", "DSDT", "FACS"];
    ensure!(wanted.iter().filter(|name| watchdog || **name != "WDAT").eq(&names), "{names:?}");
    for (name, bytes) in &tables {
        let source = disassembled(directory.path(), name, bytes)?;
        ensure!(!source.contains("Incorrect checksum") && !source.contains("Invalid"), "{source}");
        let said = iasl(directory.path(), &["-ve", &format!("{name}.dsl")])?;
        ensure!(said.contains(" 0 Errors"), "{name}: {said}\n{source}");
        if name != "DSDT" {
            // Data tables come out as they went in; AML does too but for the compiler's own marks.
            let again = std::fs::read(directory.path().join(format!("{name}.aml")))?;
            ensure!(again.get(36..) == bytes.get(36..), "{name} is another table when it is built again");
        }
    }
    Ok(())
}

fn disassembled(directory: &Path, name: &str, bytes: &[u8]) -> Result<String> {
    let table = format!("{name}.dat");
    std::fs::write(directory.join(&table), bytes)?;
    let said = iasl(directory, &["-d", &table])?;
    for complaint in ["Error", "Warning", "Invalid", "unknown"] {
        ensure!(!said.contains(complaint), "{name}: {said}");
    }
    std::fs::read_to_string(directory.join(format!("{name}.dsl"))).context("read the disassembled table")
}

fn iasl(directory: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new("iasl").args(arguments).current_dir(directory).output().context("run iasl")?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    ensure!(output.status.success(), "iasl {arguments:?}: {}\n{said}", output.status);
    Ok(said)
}

/// The tables in the order in which a guest comes to them: those of the XSDT, then what the FADT points at.
fn tables(guest: &GuestMemory) -> Result<Vec<(String, Vec<u8>)>> {
    let xsdt = table(guest, number(guest, memory::RSDP_START.0 + 24)?)?;
    let mut tables = Vec::new();
    for entry in xsdt.1[36..].chunks_exact(8) {
        tables.push(table(guest, u64::from_le_bytes(entry.try_into()?))?);
    }
    let fadt = tables.first().context("no table")?.1.clone();
    let pointer = |at: usize| -> Result<u64> { Ok(u64::from_le_bytes(fadt[at..at + 8].try_into()?)) };
    tables.push(table(guest, pointer(140)?)?);
    tables.push(table(guest, u64::from(u32::from_le_bytes(fadt[36..40].try_into()?)))?);
    Ok(tables)
}

fn number(guest: &GuestMemory, address: u64) -> Result<u64> {
    Ok(guest.read_obj::<u64>(GuestAddress(address))?)
}

fn table(guest: &GuestMemory, address: u64) -> Result<(String, Vec<u8>)> {
    let length: u32 = guest.read_obj(GuestAddress(address + 4))?;
    let mut bytes = vec![0; length as usize];
    guest.read_slice(&mut bytes, GuestAddress(address))?;
    Ok((String::from_utf8(bytes[..4].to_vec())?, bytes))
}
