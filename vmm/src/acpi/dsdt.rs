//! The differentiated description table (ACPI 6.5 §5.2.11.1): the machine's devices in AML.
//!
//! Must never know: where the table lies.

mod generation;
mod plug;

use acpi_tables::{Aml, aml};
use vm_memory::Address;

use super::{MmioDevice, bytes};
use crate::devices::Places;
use crate::{memory, pci, power, serial};

/// The body of the table.
pub(super) fn body(places: &Places) -> Vec<u8> {
    let off = power::SLEEP_TYPE_OFF;
    let mut body = bytes(&aml::Name::new("_S5_".into(), &aml::Package::new(vec![&off, &off, &0_u8, &0_u8])));
    body.extend(serial_port());
    for (index, window) in (0_u32..).zip(places.windows()) {
        body.extend(mmio_device(index, window));
    }
    body.extend(host_bridge());
    body.extend(configuration_window());
    body.extend(plug::event());
    body.extend(generation::device());
    body.extend(generation::clock());
    body.extend(generation::event());
    body
}

fn serial_port() -> Vec<u8> {
    bytes(&aml::Device::new(
        "_SB_.COM1".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0501")),
            &aml::Name::new("_UID".into(), &1_u8),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &aml::Interrupt::new(true, true, false, false, serial::SERIAL_GSI),
                    &aml::IO::new(serial::SERIAL_PORT, serial::SERIAL_PORT, 1, serial::SERIAL_BYTES),
                ]),
            ),
        ],
    ))
}

/// A virtio-mmio window, by the id that Linux knows it by.
fn mmio_device(index: u32, device: &MmioDevice) -> Vec<u8> {
    let start = low(device.address.raw_value());
    bytes(&aml::Device::new(
        format!("_SB_.V{index:03}").as_str().into(),
        vec![
            &aml::Name::new("_HID".into(), &"LNRO0005"),
            &aml::Name::new("_UID".into(), &index),
            &aml::Name::new("_CCA".into(), &aml::ONE),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &aml::Memory32Fixed::new(true, start, low(memory::MMIO_WINDOW_BYTES)),
                    &aml::Interrupt::new(true, true, false, false, device.gsi),
                ]),
            ),
        ],
    ))
}

/// The PCI host bridge (PCI Firmware 3.3 §4). No `_PRT`: no function has an INTx pin.
fn host_bridge() -> Vec<u8> {
    let window = memory::PCI_WINDOW_START.raw_value();
    let first = low(window);
    let last = low(window + memory::PCI_WINDOW_BYTES - 1);
    let port = pci::host::CONFIG_PORT;
    let behind = port + pci::host::CONFIG_PORT_BYTES;
    let uncached = aml::AddressSpaceCacheable::NotCacheable;
    bytes(&aml::Device::new(
        "_SB_.PCI0".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0A08")),
            &aml::Name::new("_CID".into(), &aml::EISAName::new("PNP0A03")),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new("_SEG".into(), &aml::ZERO),
            &aml::Name::new("_BBN".into(), &aml::ZERO),
            &aml::Name::new("_CCA".into(), &aml::ONE),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &aml::AddressSpace::new_bus_number(0_u16, 0_u16),
                    &aml::IO::new(port, port, 1, 8),
                    &aml::AddressSpace::new_io(0_u16, port - 1, None),
                    &aml::AddressSpace::new_io(behind, u16::MAX, None),
                    &aml::AddressSpace::new_memory(uncached, true, first, last, None),
                ]),
            ),
            &OperatingSystemCapabilities,
            &plug::Slots,
        ],
    ))
}

/// `_OSC` (ACPI 6.5 §6.2.11): no feature of PCI Express is handed over, since no function has any.
struct OperatingSystemCapabilities;

impl Aml for OperatingSystemCapabilities {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        /// The UUID of host bridges (PCI Firmware 3.3 §4.5.1).
        const HOST_BRIDGE: &str = "33DB4D5B-1FF7-401C-9657-7441C03DD766";
        /// First double word of the answer: the UUID is not known.
        const UNKNOWN_UUID: u8 = 1 << 2;
        let (uuid, buffer) = (aml::Arg(0), aml::Arg(3));
        let (status, control): (aml::Path, aml::Path) = ("CDW1".into(), "CDW3".into());
        aml::Method::new(
            "_OSC".into(),
            4,
            true,
            vec![
                &aml::CreateDWordField::new(&status, &buffer, &aml::ZERO),
                &aml::If::new(
                    &aml::Equal::new(&uuid, &aml::Uuid::new(HOST_BRIDGE)),
                    vec![
                        &aml::CreateDWordField::new(&control, &buffer, &8_u8),
                        &aml::Store::new(&control, &aml::ZERO),
                    ],
                ),
                &aml::Else::new(vec![&aml::Or::new(&status, &status, &UNKNOWN_UUID)]),
                &aml::Return::new(&buffer),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// The motherboard's resource that keeps everybody off PCI's configuration window.
fn configuration_window() -> Vec<u8> {
    let start = low(memory::PCI_ECAM_START.raw_value());
    bytes(&aml::Device::new(
        "_SB_.ECAM".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0C02")),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![&aml::Memory32Fixed::new(
                    true,
                    start,
                    low(memory::PCI_ECAM_BYTES),
                )]),
            ),
        ],
    ))
}

/// Part of the device hole.
fn low(value: u64) -> u32 {
    u32::try_from(value).expect("invariant: the device hole lies below 4 GiB")
}
