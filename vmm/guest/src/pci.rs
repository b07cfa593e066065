//! PCI, as far as virtio needs it: the functions of the first bus, found through ECAM, and message-signalled interrupts
//! for them.
//!
//! Must never know: what a device does.

#![expect(unsafe_code, reason = "a function's registers are reached through their addresses")]

use core::cell::Cell;

use virtio_drivers::transport::pci::bus::{Cam, DeviceFunction, MmioCam, PciRoot};
use virtio_drivers::transport::pci::{PciTransport, VIRTIO_VENDOR_ID};

use crate::entry::VECTOR_DEVICE;
use crate::interrupts::local_apic_id;
use crate::memory::Identity;
use crate::physical::MEMORY_END;
use crate::register::Register;

/// Slots of a bus.
const SLOTS: u8 = 32;
/// The most capabilities looked at in one function.
const CAPABILITIES_MAX: usize = 48;
/// Queues of one device of which the notification's address is kept: those of a network device with eight pairs.
const QUEUES_MAX: usize = 17;
/// Registers of configuration space: numbers, command, first BAR, pointer to the capabilities.
const NUMBERS: u64 = 0x00;
const COMMAND: u64 = 0x04;
const BAR0: u64 = 0x10;
const CAPABILITIES: u64 = 0x34;
/// Capability ids.
const VENDOR_SPECIFIC: u8 = 0x09;
const MSIX: u8 = 0x11;
/// `cfg_type` of virtio's capabilities (VIRTIO 1.3 §4.1.4).
const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
/// Registers of the common configuration (§4.1.4.3).
const CONFIG_MSIX_VECTOR: u64 = 16;
const QUEUE_SELECT: u64 = 22;
const QUEUE_MSIX_VECTOR: u64 = 26;
const QUEUE_NOTIFY_OFF: u64 = 30;

/// One virtio function.
pub struct Function {
    slot: u8,
    config: u64,
    /// The common configuration.
    common: u64,
    /// The region of notifications, and the bytes between two of them.
    notify: u64,
    notify_multiplier: u64,
    doorbells: [Cell<u64>; QUEUES_MAX],
}

/// The virtio functions of the first bus, whose configuration space is at `ecam`.
pub fn functions(ecam: u64) -> impl Iterator<Item = Function> {
    (0..SLOTS).filter_map(move |slot| Function::find(ecam, slot))
}

/// The virtio function in `slot`, likewise.
pub fn function_in(ecam: u64, slot: u8) -> Option<Function> {
    (slot < SLOTS).then(|| Function::find(ecam, slot))?
}

impl Function {
    /// Its slot.
    pub fn slot(&self) -> u8 {
        self.slot
    }

    fn find(ecam: u64, slot: u8) -> Option<Self> {
        let config = ecam.checked_add(u64::from(slot) << 15)?;
        let register = |at: u64| Some(Register::at(config + at)?.read());
        if register(NUMBERS)? as u16 != VIRTIO_VENDOR_ID {
            return None;
        }
        let mut function = Function {
            slot,
            config,
            common: 0,
            notify: 0,
            notify_multiplier: 0,
            doorbells: [const { Cell::new(0) }; QUEUES_MAX],
        };
        let mut table = None;
        let mut at = u64::from(register(CAPABILITIES)? & 0xfc);
        for _ in 0..CAPABILITIES_MAX {
            if at == 0 {
                break;
            }
            let [id, next, _, kind] = register(at)?.to_le_bytes();
            match (id, kind) {
                (MSIX, _) => {
                    table = Some((at, function.place(register(at + 4)? & 7, register(at + 4)? & !7)?))
                }
                (VENDOR_SPECIFIC, COMMON) => {
                    function.common = function.place(register(at + 4)? & 0xff, register(at + 8)?)?;
                }
                (VENDOR_SPECIFIC, NOTIFY) => {
                    function.notify = function.place(register(at + 4)? & 0xff, register(at + 8)?)?;
                    function.notify_multiplier = register(at + 16)?.into();
                }
                _ => {}
            }
            at = u64::from(next & 0xfc);
        }
        let usable = function.common != 0 && function.notify != 0;
        let (capability, table) = table.filter(|_| usable)?;
        function.switch_on(capability, table)?;
        Some(function)
    }

    /// Where `offset` in base address register `bar` lies: in memory's place for devices, below 4 GiB.
    fn place(&self, bar: u32, offset: u32) -> Option<u64> {
        let address = Register::at(self.config + BAR0 + 4 * u64::from(bar.min(5)))?.read();
        // An I/O BAR has bit 0 set; a 64-bit one goes on in the next register.
        let wide =
            address & 7 == 4 && Register::at(self.config + BAR0 + 4 + 4 * u64::from(bar.min(4)))?.read() != 0;
        let place = u64::from(address & !0xf).checked_add(offset.into())?;
        (address & 1 == 0 && !wide && place >= MEMORY_END && place < 1 << 32).then_some(place)
    }

    /// Lets the function answer and interrupt: entry 0 of its table is this processor's vector for devices.
    fn switch_on(&self, capability: u64, table: u64) -> Option<()> {
        const MEMORY_AND_BUS_MASTER: u32 = 6;
        const ENABLE: u32 = 1 << 31;
        const MASK_ALL: u32 = 1 << 30;
        const MESSAGES: u32 = 0xfee0_0000;
        Register::at(self.config + COMMAND)?.write(MEMORY_AND_BUS_MASTER);
        let entry = [MESSAGES | local_apic_id() << 12, 0, VECTOR_DEVICE.into(), 0];
        for (index, value) in (0..).zip(entry) {
            Register::at(table + 4 * index)?.write(value);
        }
        let control = Register::at(self.config + capability)?;
        control.write(control.read() & !MASK_ALL | ENABLE);
        Some(())
    }

    /// The driver's view of the function.
    pub fn transport(&self) -> Option<PciTransport> {
        let device = DeviceFunction { bus: 0, device: self.slot, function: 0 };
        let ecam = self.config - (u64::from(self.slot) << 15);
        // SAFETY: configuration space lies outside of memory (`find` read it through a register) and is mapped for
        // good; only this bus is reached through it, one function at a time.
        let mut root = PciRoot::new(unsafe { MmioCam::new(ecam as *mut u8, Cam::Ecam) });
        PciTransport::new::<Identity, _>(&mut root, device).ok()
    }

    /// Sends the interrupts of `queue` to this processor, and notes where to notify it. Before the queue is enabled.
    pub fn prepare(&self, queue: u16) {
        self.write_common(QUEUE_SELECT, queue);
        self.write_common(QUEUE_MSIX_VECTOR, 0);
        let at = self.common + QUEUE_NOTIFY_OFF;
        // SAFETY: a register of the common configuration, which `place` put outside of memory; aligned as its offset.
        let offset = unsafe { core::ptr::read_volatile(at as usize as *const u16) };
        if let Some(doorbell) = self.doorbells.get(usize::from(queue)) {
            doorbell.set(self.notify + u64::from(offset) * self.notify_multiplier);
        }
    }

    /// Sends the interrupts of changes of the device's configuration to this processor.
    pub fn hear_changes(&self) {
        self.write_common(CONFIG_MSIX_VECTOR, 0);
    }

    /// Notifies `queue`; false if nobody noted where.
    pub fn notify(&self, queue: u16) -> bool {
        let doorbell = self.doorbells.get(usize::from(queue)).map_or(0, Cell::get);
        if doorbell < MEMORY_END || doorbell >= 1 << 32 || !doorbell.is_multiple_of(2) {
            return false;
        }
        // SAFETY: a register outside of memory, aligned, mapped for good.
        unsafe { core::ptr::write_volatile(doorbell as usize as *mut u16, queue) };
        true
    }

    fn write_common(&self, offset: u64, value: u16) {
        // SAFETY: a register of the common configuration, which `place` put outside of memory; aligned as its offset.
        unsafe { core::ptr::write_volatile((self.common + offset) as usize as *mut u16, value) }
    }
}
