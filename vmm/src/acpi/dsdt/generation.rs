//! The generation id, by which a guest learns that it goes on from a snapshot and is no longer alone ("Virtual Machine
//! Generation ID", Microsoft, 2012): a device that says where 16 bytes lie, and a notification when they are others. Linux
//! draws its random numbers anew then (`drivers/virt/vmgenid.c`), Windows does much more. Beside it the clock page
//! (`crate::clock`), which changes with it.

use acpi_tables::aml;
use vm_memory::Address as _;

use super::low;
use crate::memory;
use crate::pci::plug::GENERATION_EVENT;

/// The notification: the id has changed.
const CHANGED: u8 = 0x80;
/// Bytes of the clock page.
const PAGE_BYTES: u32 = 0x1000;

/// The clock page's device, as Linux knows it.
pub(super) fn clock() -> Vec<u8> {
    let start = low(memory::CLOCK_START.raw_value());
    super::bytes(&aml::Device::new(
        "_SB_.VCLK".into(),
        vec![
            &aml::Name::new("_HID".into(), &"WISP0002"),
            &aml::Name::new("_CID".into(), &"VMCLOCK"),
            &aml::Name::new("_STA".into(), &0xf_u8),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![&aml::Memory32Fixed::new(true, start, PAGE_BYTES)]),
            ),
        ],
    ))
}

/// The device.
pub(super) fn device() -> Vec<u8> {
    let address = low(memory::GENERATION_START.raw_value());
    super::bytes(&aml::Device::new(
        "_SB_.VGEN".into(),
        vec![
            &aml::Name::new("_HID".into(), &"WISP0001"),
            &aml::Name::new("_CID".into(), &"VM_Gen_Counter"),
            &aml::Name::new("_DDN".into(), &"VM_Gen_Counter"),
            // The address's lower and upper half.
            &aml::Name::new("ADDR".into(), &aml::Package::new(vec![&address, &aml::ZERO])),
        ],
    ))
}

/// The general-purpose event's method.
pub(super) fn event() -> Vec<u8> {
    let name = format!("_E{GENERATION_EVENT:02X}");
    let (device, clock) = (aml::Path::new("\\_SB_.VGEN"), aml::Path::new("\\_SB_.VCLK"));
    let (device, clock) = (aml::Notify::new(&device, &CHANGED), aml::Notify::new(&clock, &CHANGED));
    super::bytes(&aml::Scope::new(
        "_GPE".into(),
        vec![&aml::Method::new(name.as_str().into(), 0, true, vec![&device, &clock])],
    ))
}
