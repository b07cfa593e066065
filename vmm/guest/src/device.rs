//! Finding the virtio devices that the command line names.
//!
//! Must never know: what is done with them.

#![expect(unsafe_code, reason = "register windows are reached through their addresses")]

use alloc::vec::Vec;
use core::ptr::NonNull;

use virtio_drivers::transport::mmio::{MmioTransport, VirtIOHeader};
use virtio_drivers::transport::{DeviceType, Transport as _};

use crate::disk::{DISKS_MAX, Disk};
use crate::entry::VECTOR_DEVICE;
use crate::interrupts::Pins;
use crate::nic::{NICS_MAX, Nic};
use crate::parse::cmdline::{MmioDevice, mmio_devices};
use crate::physical::MEMORY_END;
use crate::println;
use crate::transport::Transport;

/// Devices looked at; a machine of this kind has a dozen interrupt pins for them.
const DEVICES_MAX: usize = 32;

/// The devices that the guest can use, in the order of the command line.
#[derive(Default)]
pub struct Devices {
    /// Network devices.
    pub nics: Vec<Nic>,
    /// Disks.
    pub disks: Vec<Disk>,
}

impl Devices {
    /// Sets up every device of `cmdline`; one that fails is named on the console and left out.
    pub fn find(cmdline: &str, pins: &Pins) -> Self {
        let mut devices = Devices::default();
        for device in mmio_devices(cmdline).take(DEVICES_MAX) {
            // An empty slot has no device type and is none of our business.
            let Some(transport) = transport(device) else { continue };
            let wanted = match transport.device_type() {
                DeviceType::Network => devices.nics.len() < NICS_MAX,
                DeviceType::Block => devices.disks.len() < DISKS_MAX,
                _ => false,
            };
            if !wanted {
                continue;
            }
            if !pins.route(device.gsi, VECTOR_DEVICE) {
                println!("device {:#x}: no pin for interrupt {}", device.base, device.gsi);
                continue;
            }
            let result = match transport.device_type() {
                DeviceType::Network => Nic::new(Transport::new(transport)).map(|nic| devices.nics.push(nic)),
                _ => Disk::new(transport).map(|disk| devices.disks.push(disk)),
            };
            if let Err(error) = result {
                println!("device {:#x}: {error}", device.base);
            }
        }
        devices
    }
}

fn transport(device: MmioDevice) -> Option<MmioTransport<'static>> {
    if device.base < MEMORY_END {
        return None;
    }
    let header = NonNull::new(device.base as *mut VirtIOHeader)?;
    // SAFETY: aligned and at least 256 bytes long (`parse::cmdline` made sure), mapped for good, outside of memory;
    // each window is used once, and a window without a device reads as something that is refused.
    unsafe { MmioTransport::new(header, device.size as usize) }.ok()
}
