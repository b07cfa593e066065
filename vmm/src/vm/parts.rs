//! What machines are put together of, whether they start or go on: each part in its place on the buses.

use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::EventFd;

use super::{DiskSpec, Error, NicSpec, event};
use crate::bus::{self, Bus};
use crate::ending::EndingSignal;
use crate::pci::host::PciHost;
use crate::pci::plug::{self, PlugController};
use crate::peripherals::Peripherals;
use crate::plugged::{Made, Wires};
use crate::power::{self, KeyboardController, PowerManagement};
use crate::questions::Questions;
use crate::rpc::DeviceName;
use crate::serial::{self, SerialPort};
use crate::virtio::block::ring::Rings;
use crate::watchdog::{WATCHDOG_BYTES, WATCHDOG_PORT, Watchdog};
use crate::{devices, kvm, memory, virtio};

pub(super) fn add_serial(
    vm: &kvm::Vm,
    ports: &mut Bus,
    make: impl FnOnce(EventFd) -> Result<SerialPort, Error>,
) -> Result<Arc<Mutex<SerialPort>>, Error> {
    let interrupt = event()?;
    vm.connect_irq(&interrupt, serial::SERIAL_GSI)?;
    let port = Arc::new(Mutex::new(make(interrupt)?));
    ports.insert(u64::from(serial::SERIAL_PORT), u64::from(serial::SERIAL_BYTES), port.clone())?;
    Ok(port)
}

pub(super) fn add_power(
    ports: &mut Bus,
    sci: &EventFd,
    ending: &EndingSignal,
) -> Result<Arc<Mutex<PowerManagement>>, Error> {
    let sci = sci.try_clone().map_err(Error::Event)?;
    let device = Arc::new(Mutex::new(PowerManagement::new(sci, ending.clone())));
    let bytes = u64::from(power::PM1_EVENT_BYTES) + u64::from(power::PM1_CONTROL_BYTES);
    ports.insert(u64::from(power::PM1_EVENT_PORT), bytes, device.clone())?;
    let keyboard = Arc::new(Mutex::new(KeyboardController::new(ending.clone())));
    ports.insert(u64::from(power::KEYBOARD_PORT), u64::from(power::KEYBOARD_BYTES), keyboard)?;
    Ok(device)
}

pub(super) fn add_watchdog(
    ports: &mut Bus,
    watchdog: Option<Watchdog>,
) -> Result<Option<Arc<Mutex<Watchdog>>>, bus::Error> {
    let Some(watchdog) = watchdog else { return Ok(None) };
    let watchdog = Arc::new(Mutex::new(watchdog));
    ports.insert(u64::from(WATCHDOG_PORT), u64::from(WATCHDOG_BYTES), watchdog.clone())?;
    Ok(Some(watchdog))
}

/// The PCI bus with its hot-plug controller, and whatever else devices need; nothing is on it yet.
pub(super) fn add_bus(
    (vm, guest): (&Arc<kvm::Vm>, &memory::GuestMemory),
    ports: &mut Bus,
    sci: &EventFd,
    (rings, disk_queues): (Rings, u16),
) -> Result<Wires, Error> {
    let let_go = event()?;
    let (host, clone) = (PciHost::default(), |event: &EventFd| event.try_clone().map_err(Error::Event));
    let controller = PlugController::new(host.clone(), clone(sci)?, clone(&let_go)?);
    let controller = Arc::new(Mutex::new(controller));
    ports.insert(u64::from(plug::PLUG_PORT), u64::from(plug::PLUG_PORTS), controller.clone())?;
    let questions = Questions::new().map_err(Error::Event)?;
    let (vm, guest) = (vm.clone(), guest.clone());
    Ok(Wires { vm, guest, host, controller, let_go, questions, rings, disk_queues })
}

/// The devices in the order of their places: disks, network devices, what else was asked for, entropy source.
pub(super) fn build_devices(
    disks: Vec<DiskSpec>,
    nics: Vec<NicSpec>,
    peripherals: &Peripherals,
    wires: &mut Wires,
) -> Result<Vec<Made>, devices::Error> {
    let mut devices = Vec::with_capacity(disks.len() + nics.len() + 1);
    for spec in disks {
        let name = DeviceName::Disk(spec.config.serial.clone());
        let parts = (wires.disk_queues, &mut wires.rings);
        let shared = virtio::build_block(&spec.config, Box::new(spec.disk), parts)?;
        devices.push(Made { name: Some(name), shared, kept: spec.kept });
    }
    for spec in nics {
        let name = DeviceName::Nic(spec.config.mac);
        let shared = virtio::build_net(&spec.config, spec.taps, None, &wires.questions)?;
        devices.push(Made { name: Some(name), shared, kept: spec.kept });
    }
    devices.extend(peripherals.devices().into_iter().map(Made::unnamed));
    devices.push(Made::unnamed(virtio::build_rng()?));
    Ok(devices)
}
