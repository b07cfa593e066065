//! The SMBIOS tables (SMBIOS 3.6): what the machine says of itself. `cloud-init` and others decide by them where to
//! look for metadata.
//!
//! ```text
//! SMBIOS_START  entry point, 64-bit (24 bytes)
//! +32           BIOS information, system information, chassis, end of table
//! ```
//!
//! Must never know: a cloud, or why a machine has the name it has.

use vm_memory::{Address, Bytes};

use crate::config::{SYSTEM_TEXT_BYTES_MAX, SystemIdentity};
use crate::memory::{self, GuestMemory};

const STRUCTURES_OFFSET: u64 = 32;
/// The version of the standard that the structures follow.
const VERSION: [u8; 2] = [3, 6];
const VENDOR: &str = "Wisp";
/// When the tables last changed. Linux takes a machine of the last century for one with a broken PCI bus.
const RELEASE_DATE: &str = "11/22/2026";

/// Why the tables cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A text is too long, or not one that every reader takes.
    #[error(
        "the machine's {what} has {bytes} bytes or characters other than printable ASCII; at most \
         {SYSTEM_TEXT_BYTES_MAX} bytes are allowed"
    )]
    Text {
        /// Which.
        what: &'static str,
        /// Its length.
        bytes: usize,
    },
    /// The guest's memory is too small for them.
    #[error("write the SMBIOS tables into guest memory")]
    Write(#[from] vm_memory::GuestMemoryError),
}

/// Writes the entry point at [`memory::SMBIOS_START`] and the structures behind it.
///
/// # Errors
/// A text that cannot be told, or too little memory.
pub fn write(guest: &GuestMemory, system: &SystemIdentity) -> Result<(), Error> {
    let structures = structures(system)?;
    let start = memory::SMBIOS_START.unchecked_add(STRUCTURES_OFFSET);
    guest.write_slice(&structures, start)?;
    let length = u32::try_from(structures.len()).expect("invariant: a few short texts");
    guest.write_slice(&entry_point(start.raw_value(), length), memory::SMBIOS_START)?;
    Ok(())
}

/// §5.2.2: anchor, checksum, length, version, revision, the structures' bytes at most and their address.
fn entry_point(address: u64, bytes_max: u32) -> [u8; 24] {
    let mut entry = [0; 24];
    entry[..5].copy_from_slice(b"_SM3_");
    entry[6] = 24;
    entry[7..9].copy_from_slice(&VERSION);
    // The revision of the entry point itself.
    entry[10] = 1;
    entry[12..16].copy_from_slice(&bytes_max.to_le_bytes());
    entry[16..].copy_from_slice(&address.to_le_bytes());
    entry[5] = entry.iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte));
    entry
}

fn structures(system: &SystemIdentity) -> Result<Vec<u8>, Error> {
    for (what, text) in [
        ("manufacturer", &system.manufacturer),
        ("product", &system.product),
        ("version", &system.version),
        ("serial number", &system.serial),
    ] {
        let printable = text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        if text.len() > SYSTEM_TEXT_BYTES_MAX || !printable {
            return Err(Error::Text { what, bytes: text.len() });
        }
    }
    let mut table = Table::default();
    table.bios();
    table.system(system);
    table.chassis(system);
    table.structure(127, &[], &[]);
    Ok(table.bytes)
}

/// Structures one behind the other (§6.1): type, length, handle, the formatted part, the texts, two zeros.
#[derive(Default)]
struct Table {
    bytes: Vec<u8>,
    next_handle: u16,
}

impl Table {
    fn structure(&mut self, kind: u8, formatted: &[u8], texts: &[&str]) {
        let length = u8::try_from(formatted.len() + 4).expect("invariant: structures are short");
        self.bytes.extend([kind, length]);
        self.bytes.extend(self.next_handle.to_le_bytes());
        self.bytes.extend(formatted);
        let mut told = texts.iter().filter(|text| !text.is_empty()).peekable();
        if told.peek().is_none() {
            self.bytes.push(0);
        }
        for text in told {
            self.bytes.extend(text.as_bytes());
            self.bytes.push(0);
        }
        self.bytes.push(0);
        self.next_handle += 1;
    }

    /// Type 0 (§7.1).
    fn bios(&mut self) {
        /// Characteristics, bit 3: none are told. Their second extension byte, bit 4: a virtual machine.
        const NOTHING_TOLD: u64 = 1 << 3;
        const VIRTUAL_MACHINE: u8 = 1 << 4;
        let texts = [VENDOR, env!("CARGO_PKG_VERSION"), RELEASE_DATE];
        // Vendor, version, where it begins (nowhere), date, its size (none).
        let mut body = vec![1, 2, 0, 0, 3, 0];
        body.extend(NOTHING_TOLD.to_le_bytes());
        // Extension bytes; versions of the BIOS and of the embedded controller: unknown.
        body.extend([0, VIRTUAL_MACHINE, 0xff, 0xff, 0xff, 0xff]);
        self.structure(0, &body, &texts);
    }

    /// Type 1 (§7.2).
    fn system(&mut self, system: &SystemIdentity) {
        const WOKEN_BY_POWER_SWITCH: u8 = 6;
        let texts = [&*system.manufacturer, &system.product, &system.version, &system.serial, VENDOR];
        let [manufacturer, product, version, serial, family] = numbers(texts);
        let mut body = vec![manufacturer, product, version, serial];
        body.extend(wire_uuid(system.uuid));
        body.extend([WOKEN_BY_POWER_SWITCH, 0, family]);
        self.structure(1, &body, &texts);
    }

    /// Type 3 (§7.4).
    fn chassis(&mut self, system: &SystemIdentity) {
        const OTHER: u8 = 1;
        const SAFE: u8 = 3;
        const NO_SECURITY: u8 = 3;
        let texts = [&*system.manufacturer, &system.version, &system.serial];
        let [manufacturer, version, serial] = numbers(texts);
        // Manufacturer, type, version, serial, asset tag; boot-up, power and thermal state; security; then OEM's four
        // bytes, height, power cords and no contained elements.
        let mut body = vec![manufacturer, OTHER, version, serial, 0, SAFE, SAFE, SAFE, NO_SECURITY];
        body.extend([0; 9]);
        self.structure(3, &body, &texts);
    }
}

/// Each text's number in its structure: they count from one, and an empty one is not told.
fn numbers<const N: usize>(texts: [&str; N]) -> [u8; N] {
    let mut next = 1;
    texts.map(|text| {
        if text.is_empty() {
            return 0;
        }
        next += 1;
        next - 1
    })
}

/// A UUID as the table has it: its first three fields are little-endian (§7.2.1).
fn wire_uuid(uuid: [u8; 16]) -> [u8; 16] {
    let mut wire = uuid;
    wire[..4].reverse();
    wire[4..6].reverse();
    wire[6..8].reverse();
    wire
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestAddress;

    use super::*;

    fn nova() -> SystemIdentity {
        SystemIdentity {
            manufacturer: "OpenStack Foundation".to_owned(),
            product: "OpenStack Nova".to_owned(),
            version: String::new(),
            serial: "00112233-4455-6677-8899-aabbccddeeff".to_owned(),
            uuid: [
                0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff,
            ],
        }
    }

    /// Type, formatted part with its header, texts.
    type Structure = (u8, Vec<u8>, Vec<String>);

    /// Finds the entry point as Linux does, and reads the structures behind it.
    fn read(guest: &GuestMemory) -> Vec<Structure> {
        let mut area = vec![0; 0x1_0000];
        guest.read_slice(&mut area, GuestAddress(0xf_0000)).unwrap();
        let entry = area.chunks(16).position(|part| part.starts_with(b"_SM3_")).unwrap() * 16;
        let entry = &area[entry..entry + 24];
        assert_eq!(entry.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0, "checksum");
        let bytes_max = u32::from_le_bytes(entry[12..16].try_into().unwrap());
        let mut bytes = vec![0; bytes_max as usize];
        let address = u64::from_le_bytes(entry[16..].try_into().unwrap());
        guest.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        let mut rest = &bytes[..];
        let mut found = Vec::new();
        while !rest.is_empty() {
            let (formatted, tail) = rest.split_at(usize::from(rest[1]));
            let end = tail.windows(2).position(|pair| pair == [0, 0]).unwrap();
            let texts = String::from_utf8(tail[..end].to_vec()).unwrap();
            let texts = texts.split('\0').filter(|text| !text.is_empty()).map(str::to_owned).collect();
            found.push((formatted[0], formatted.to_vec(), texts));
            rest = &tail[end + 2..];
        }
        found
    }

    #[test]
    fn guest_finds_maker_product_serial_and_uuid() {
        let guest = memory::allocate(8).unwrap();
        write(&guest, &nova()).unwrap();
        let found = read(&guest);
        assert_eq!(found.iter().map(|structure| structure.0).collect::<Vec<_>>(), [0, 1, 3, 127]);
        let (_, system, texts) = &found[1];
        assert_eq!(system.len(), 27);
        let text = |at: usize| system[at].checked_sub(1).map(|index| texts[usize::from(index)].as_str());
        assert_eq!((text(4), text(5), text(6)), (Some("OpenStack Foundation"), Some("OpenStack Nova"), None));
        assert_eq!(text(7), Some("00112233-4455-6677-8899-aabbccddeeff"));
        assert_eq!(system[8..16], [0x33, 0x22, 0x11, 0, 0x55, 0x44, 0x77, 0x66]);
        assert_eq!(system[16..24], [0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff]);
        assert_eq!((found[0].1.len(), found[2].1.len(), found[3].1.len()), (24, 22, 4));
    }

    #[test]
    fn texts_that_are_too_long_or_not_printable_are_refused() {
        let guest = memory::allocate(8).unwrap();
        for text in ["x".repeat(65), "a\0b".to_owned(), "grün".to_owned()] {
            let system = SystemIdentity { product: text, ..nova() };
            let error = write(&guest, &system).unwrap_err().to_string();
            assert!(error.contains("product"), "{error}");
        }
        write(&guest, &SystemIdentity { product: "x".repeat(64), ..nova() }).unwrap();
    }
}
