//! Finding the virtio devices: those that the command line names, and those on the PCI bus.
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
use crate::pci;
use crate::physical::MEMORY_END;
use crate::println;
use crate::transport::Transport;

/// Devices looked at; a machine of this kind has a dozen interrupt pins for them.
const DEVICES_MAX: usize = 32;

/// The devices that the guest can use, in the order of the command line and of the bus.
#[derive(Default)]
pub struct Devices {
    /// Network devices.
    pub nics: Vec<Nic>,
    /// Disks.
    pub disks: Vec<Disk>,
}

impl Devices {
    /// Sets up every device of `cmdline`, then those of the PCI bus whose configuration space is at `ecam`; one that
    /// fails is named on the console and left out.
    pub fn find(cmdline: &str, ecam: Option<u64>, pins: &Pins) -> Self {
        let mut devices = Devices::default();
        for device in mmio_devices(cmdline).take(DEVICES_MAX) {
            // An empty slot has no device type and is none of our business.
            let Some(transport) = transport(device) else { continue };
            if !devices.want(transport.device_type()) {
                continue;
            }
            if !pins.route(device.gsi, VECTOR_DEVICE) {
                println!("device {:#x}: no pin for interrupt {}", device.base, device.gsi);
                continue;
            }
            if let Err(error) = devices.add(Transport::mmio(transport)) {
                println!("device {:#x}: {error}", device.base);
            }
        }
        for (index, function) in ecam.into_iter().flat_map(pci::functions).enumerate() {
            let Some(transport) = Transport::pci(function) else { continue };
            if !devices.want(transport.device_type()) {
                continue;
            }
            if let Err(error) = devices.add(transport) {
                println!("pci device {index}: {error}");
            }
        }
        devices
    }

    fn want(&self, device_type: DeviceType) -> bool {
        match device_type {
            DeviceType::Network => self.nics.len() < NICS_MAX,
            DeviceType::Block => self.disks.len() < DISKS_MAX,
            _ => false,
        }
    }

    fn add(&mut self, transport: Transport) -> Result<(), virtio_drivers::Error> {
        match transport.device_type() {
            DeviceType::Network => Nic::new(transport).map(|nic| self.nics.push(nic)),
            _ => Disk::new(transport).map(|disk| self.disks.push(disk)),
        }
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
