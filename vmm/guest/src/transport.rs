//! Either transport of virtio with one thing added: notifications of a queue can be held back and given once for many
//! buffers. Each is a write that the VMM must see.
//!
//! Must never know: which device it carries.

use alloc::rc::Rc;
use core::cell::{Cell, RefCell};
use core::mem::ManuallyDrop;

use virtio_drivers::transport::mmio::MmioTransport;
use virtio_drivers::transport::{
    self, DeviceStatus, DeviceType, InterruptStatus, SomeTransport, Transport as _,
};
use virtio_drivers::{PhysAddr, Result};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::pci::Function;

type Shared = Rc<RefCell<Registers>>;

/// A device's registers, and for PCI what the driver's crate leaves to others.
struct Registers {
    /// It would reset the device when it is dropped, and wait for that without end: for ever, where the device has gone
    /// meanwhile, as one that is not in use may.
    transport: ManuallyDrop<SomeTransport<'static>>,
    function: Option<Function>,
}

/// The device's features are chosen.
const ACCEPTED: DeviceStatus =
    DeviceStatus::ACKNOWLEDGE.union(DeviceStatus::DRIVER).union(DeviceStatus::FEATURES_OK);

/// How often a device that is reset is asked whether it is: each time is an exit.
const RESET_POLLS_MAX: u32 = 100;

impl Drop for Registers {
    fn drop(&mut self) {
        transport::Transport::set_status(&mut *self.transport, DeviceStatus::empty());
        for _ in 0..RESET_POLLS_MAX {
            if transport::Transport::get_status(&*self.transport).is_empty() {
                break;
            }
        }
    }
}

impl Registers {
    fn notify(&mut self, queue: u16) {
        if !self.function.as_ref().is_some_and(|function| function.notify(queue)) {
            transport::Transport::notify(&mut *self.transport, queue);
        }
    }

    fn acknowledge(&mut self) -> InterruptStatus {
        // A message needs no acknowledgement, and asking costs an exit.
        if self.function.is_some() {
            return InterruptStatus::QUEUE_INTERRUPT;
        }
        transport::Transport::ack_interrupt(&mut *self.transport)
    }
}

/// A transport whose notifications can be held back.
pub struct Transport {
    registers: Shared,
    held: Rc<Held>,
}

#[derive(Default)]
struct Held {
    queue: Cell<Option<u16>>,
    pending: Cell<bool>,
}

/// Acknowledges a device's interrupts where its driver does not.
pub struct Acknowledge {
    registers: Shared,
}

impl Acknowledge {
    /// Acknowledges what there is.
    pub fn give(&self) {
        self.registers.borrow_mut().acknowledge();
    }
}

/// Holds back and gives the notifications of one queue.
pub struct Kicks {
    registers: Shared,
    held: Rc<Held>,
}

impl Transport {
    /// Takes over `mmio`; nothing is held back yet.
    pub fn mmio(mmio: MmioTransport<'static>) -> Self {
        Self::new(Registers { transport: ManuallyDrop::new(mmio.into()), function: None })
    }

    /// Takes over a PCI function; nothing is held back yet.
    pub fn pci(function: Function) -> Option<Self> {
        let transport = ManuallyDrop::new(function.transport()?.into());
        Some(Self::new(Registers { transport, function: Some(function) }))
    }

    fn new(registers: Registers) -> Self {
        Transport { registers: Rc::new(RefCell::new(registers)), held: Rc::default() }
    }

    /// The same device's transport once more, for a driver that comes after this one's.
    pub fn again(&self) -> Self {
        Transport { registers: self.registers.clone(), held: Rc::default() }
    }

    /// Begins with the device anew, step by step, since there are devices that take no two at once (VIRTIO 1.3 §3.1.1): the
    /// features that it offers.
    pub fn begin(&mut self) -> u64 {
        self.set_status(DeviceStatus::empty());
        self.set_status(DeviceStatus::ACKNOWLEDGE);
        self.set_status(DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER);
        self.read_device_features()
    }

    /// Says which features are used; queues are shown next.
    pub fn accept(&mut self, features: u64) {
        self.write_driver_features(features);
        self.set_status(ACCEPTED);
    }

    /// Says that all is there.
    pub fn finish(&mut self) {
        self.set_status(ACCEPTED | DeviceStatus::DRIVER_OK);
    }

    /// The function's slot, if it is one.
    pub fn slot(&self) -> Option<u8> {
        self.registers.borrow().function.as_ref().map(Function::slot)
    }

    /// Has the device interrupt when its configuration changes; to be called after a reset.
    pub fn hear_changes(&self) {
        self.registers.borrow().function.iter().for_each(Function::hear_changes);
    }

    /// The handle that acknowledges.
    pub fn acknowledge(&self) -> Acknowledge {
        Acknowledge { registers: self.registers.clone() }
    }

    /// The handle that holds back.
    pub fn kicks(&self) -> Kicks {
        Kicks { registers: self.registers.clone(), held: self.held.clone() }
    }
}

impl Kicks {
    /// From now on, notifications of `queue` wait for [`Kicks::give`].
    pub fn hold(&self, queue: u16) {
        self.held.queue.set(Some(queue));
    }

    /// Gives the notification, if one waits.
    pub fn give(&self) {
        if self.held.pending.take()
            && let Some(queue) = self.held.queue.get()
        {
            self.registers.borrow_mut().notify(queue);
        }
    }
}

impl transport::Transport for Transport {
    fn notify(&mut self, queue: u16) {
        if self.held.queue.get() == Some(queue) {
            self.held.pending.set(true);
        } else {
            self.registers.borrow_mut().notify(queue);
        }
    }

    fn device_type(&self) -> DeviceType {
        self.registers.borrow().transport.device_type()
    }

    fn read_device_features(&mut self) -> u64 {
        self.registers.borrow_mut().transport.read_device_features()
    }

    fn write_driver_features(&mut self, driver_features: u64) {
        self.registers.borrow_mut().transport.write_driver_features(driver_features);
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.registers.borrow_mut().transport.max_queue_size(queue)
    }

    fn get_status(&self) -> DeviceStatus {
        self.registers.borrow().transport.get_status()
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.registers.borrow_mut().transport.set_status(status);
    }

    fn set_guest_page_size(&mut self, guest_page_size: u32) {
        self.registers.borrow_mut().transport.set_guest_page_size(guest_page_size);
    }

    fn requires_legacy_layout(&self) -> bool {
        self.registers.borrow().transport.requires_legacy_layout()
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver: PhysAddr,
        device: PhysAddr,
    ) {
        let mut registers = self.registers.borrow_mut();
        if let Some(function) = &registers.function {
            function.prepare(queue);
        }
        registers.transport.queue_set(queue, size, descriptors, driver, device);
    }

    fn queue_unset(&mut self, queue: u16) {
        self.registers.borrow_mut().transport.queue_unset(queue);
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.registers.borrow_mut().transport.queue_used(queue)
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        self.registers.borrow_mut().acknowledge()
    }

    fn read_config_generation(&self) -> u32 {
        self.registers.borrow().transport.read_config_generation()
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T> {
        self.registers.borrow().transport.read_config_space(offset)
    }

    fn write_config_space<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) -> Result<()> {
        self.registers.borrow_mut().transport.write_config_space(offset, value)
    }
}
