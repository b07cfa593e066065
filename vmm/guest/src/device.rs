//! Finding the virtio devices: those that the command line names, or those on the PCI bus, and those that come there
//! later.
//!
//! Must never know: what is done with them.

#![expect(unsafe_code, reason = "register windows are reached through their addresses")]

use alloc::vec::Vec;
use core::ops::Range;
use core::ptr::NonNull;

use virtio_drivers::transport::mmio::{MmioTransport, VirtIOHeader};
use virtio_drivers::transport::{DeviceType, Transport as _};

use crate::balloon::Balloon;
use crate::disk::{DISKS_MAX, Disk};
use crate::entry::VECTOR_DEVICE;
use crate::hotplug::Hotplug;
use crate::hvc::Hvc;
use crate::interrupts::Pins;
use crate::load::Load;
use crate::nic::{NICS_MAX, Nic};
use crate::parse::cmdline::{MmioDevice, load_ms, mmio_devices};
use crate::pci;
use crate::physical::MEMORY_END;
use crate::pmem::{self, Pmem};
use crate::transport::Transport;
use crate::vsock::Vsock;
use crate::wire::Wire;
use crate::{println, traffic};

/// Devices looked at; a machine of this kind has a dozen interrupt pins for them.
const DEVICES_MAX: usize = 32;

/// A device that the guest can use.
pub enum Device {
    /// A network device, with its slot if it is on PCI.
    Nic(Nic, Option<u8>),
    /// A disk.
    Disk(Disk),
    /// A console.
    Console(Hvc),
    /// A socket device.
    Vsock(Vsock),
    /// A memory balloon.
    Balloon(Balloon),
    /// Memory that comes and goes.
    Hotplug(Hotplug),
    /// A persistent memory.
    Pmem(Pmem),
    /// A disk for a load.
    Load(Load),
    /// A network device for a load.
    Wire(Wire),
}

/// Sets up every device of `cmdline`; without one there, those of the PCI bus whose configuration space is at `ecam`. In
/// the order of the command line or the bus; one that fails is named on the console and left out.
///
/// Where the command line names devices, a bus is there for those that come later, and looking through its slots would
/// cost more than all the rest. Of `spare`, memory that nobody uses, a balloon may give.
pub fn find(cmdline: &str, ecam: Option<u64>, pins: &Pins, spare: &Range<u64>) -> Vec<Device> {
    let mut devices = Vec::new();
    let mut named = false;
    let mut measured =
        Measured { disk: load_ms(cmdline) > 0, network: crate::parse::cmdline::traffic(cmdline).is_some() };
    for device in mmio_devices(cmdline).take(DEVICES_MAX) {
        named = true;
        // The driver's crate does not know these.
        if let Some(pmem) = pmem::find(device) {
            devices.push(Device::Pmem(pmem));
            continue;
        }
        // An empty slot has no device type and is none of our business.
        let Some(transport) = transport(device) else { continue };
        if !is_wanted(&devices, transport.device_type()) {
            continue;
        }
        if !pins.route(device.gsi, VECTOR_DEVICE) {
            println!("device {:#x}: no pin for interrupt {}", device.base, device.gsi);
            continue;
        }
        let transport = Transport::mmio(transport);
        let transport = match measured.take(transport) {
            Ok(device) => {
                devices.extend(device);
                continue;
            }
            Err(transport) => transport,
        };
        match set_up(transport, spare) {
            Ok(found) => devices.push(found),
            Err(error) => println!("device {:#x}: {error}", device.base),
        }
    }
    for function in ecam.filter(|_| !named).into_iter().flat_map(pci::functions) {
        let Some(transport) = Transport::pci(function) else { continue };
        match measured.take(transport) {
            Ok(device) => devices.extend(device),
            Err(transport) => devices.extend(on_pci(transport, spare, |kind| is_wanted(&devices, kind))),
        }
    }
    devices
}

/// What the command line has measured, of each the first device of its kind.
struct Measured {
    disk: bool,
    network: bool,
}

impl Measured {
    /// Takes the device for its load, if that is asked for, or gives it back. One that is not fit for it is nobody's.
    fn take(&mut self, transport: Transport) -> Result<Option<Device>, Transport> {
        match transport.device_type() {
            DeviceType::Block if core::mem::take(&mut self.disk) => {
                Ok(Load::new(transport).map(Device::Load))
            }
            DeviceType::Network if core::mem::take(&mut self.network) => {
                let wire = Wire::new(transport);
                if wire.is_none() {
                    println!("traffic: failed: {}", traffic::Error::Device);
                }
                Ok(wire.map(Device::Wire))
            }
            _ => Err(transport),
        }
    }
}

/// Sets up what came to a slot of the PCI bus, if `is_wanted` says so of its type; one that fails is named on the console.
pub fn in_slot(ecam: u64, slot: u8, is_wanted: impl FnOnce(DeviceType) -> bool) -> Option<Device> {
    on_pci(Transport::pci(pci::function_in(ecam, slot)?)?, &(0..0), is_wanted)
}

fn on_pci(
    transport: Transport,
    spare: &Range<u64>,
    is_wanted: impl FnOnce(DeviceType) -> bool,
) -> Option<Device> {
    let slot = transport.slot();
    if !is_wanted(transport.device_type()) {
        return None;
    }
    set_up(transport, spare).map_err(|error| println!("pci slot {}: {error}", slot.unwrap_or_default())).ok()
}

fn is_wanted(devices: &[Device], kind: DeviceType) -> bool {
    let count = |is: fn(&Device) -> bool| devices.iter().filter(|device| is(device)).count();
    match kind {
        DeviceType::Console => count(|device| matches!(device, Device::Console(_))) == 0,
        DeviceType::MemoryBalloon => count(|device| matches!(device, Device::Balloon(_))) == 0,
        DeviceType::Memory => count(|device| matches!(device, Device::Hotplug(_))) == 0,
        DeviceType::Socket => count(|device| matches!(device, Device::Vsock(_))) == 0,
        _ => {
            let nics = count(|device| matches!(device, Device::Nic(..)));
            is_wanted_beside(nics, count(|device| matches!(device, Device::Disk(_))), kind)
        }
    }
}

/// Whether a device of that type, one that may come while we run, can be used beside so many network devices and disks.
pub fn is_wanted_beside(nics: usize, disks: usize, kind: DeviceType) -> bool {
    match kind {
        DeviceType::Network => nics < NICS_MAX,
        DeviceType::Block => disks < DISKS_MAX,
        _ => false,
    }
}

fn set_up(transport: Transport, spare: &Range<u64>) -> Result<Device, virtio_drivers::Error> {
    let slot = transport.slot();
    match transport.device_type() {
        DeviceType::Network => Nic::new(transport).map(|nic| Device::Nic(nic, slot)),
        DeviceType::Console => Hvc::new(transport).map(Device::Console),
        DeviceType::Socket => Vsock::new(transport).map(Device::Vsock),
        DeviceType::MemoryBalloon => Balloon::new(transport, spare.clone()).map(Device::Balloon),
        DeviceType::Memory => Hotplug::new(transport).map(Device::Hotplug),
        _ => Disk::new(transport).map(Device::Disk),
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
