//! The virtio-mmio transport with one thing added: notifications of a queue can be held back and given once for many
//! buffers. Each is a write that the VMM must see.
//!
//! Must never know: which device it carries.

use alloc::rc::Rc;
use core::cell::{Cell, RefCell};

use virtio_drivers::transport::mmio::MmioTransport;
use virtio_drivers::transport::{self, DeviceStatus, DeviceType, InterruptStatus};
use virtio_drivers::{PhysAddr, Result};
use zerocopy::{FromBytes, Immutable, IntoBytes};

type Shared = Rc<RefCell<MmioTransport<'static>>>;

/// A transport whose notifications can be held back.
pub struct Transport {
    mmio: Shared,
    held: Rc<Held>,
}

#[derive(Default)]
struct Held {
    queue: Cell<Option<u16>>,
    pending: Cell<bool>,
}

/// Holds back and gives the notifications of one queue.
pub struct Kicks {
    mmio: Shared,
    held: Rc<Held>,
}

impl Transport {
    /// Takes over `mmio`; nothing is held back yet.
    pub fn new(mmio: MmioTransport<'static>) -> Self {
        Transport { mmio: Rc::new(RefCell::new(mmio)), held: Rc::default() }
    }

    /// The handle that holds back.
    pub fn kicks(&self) -> Kicks {
        Kicks { mmio: self.mmio.clone(), held: self.held.clone() }
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
            transport::Transport::notify(&mut *self.mmio.borrow_mut(), queue);
        }
    }
}

impl transport::Transport for Transport {
    fn notify(&mut self, queue: u16) {
        if self.held.queue.get() == Some(queue) {
            self.held.pending.set(true);
        } else {
            self.mmio.borrow_mut().notify(queue);
        }
    }

    fn device_type(&self) -> DeviceType {
        self.mmio.borrow().device_type()
    }

    fn read_device_features(&mut self) -> u64 {
        self.mmio.borrow_mut().read_device_features()
    }

    fn write_driver_features(&mut self, driver_features: u64) {
        self.mmio.borrow_mut().write_driver_features(driver_features);
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.mmio.borrow_mut().max_queue_size(queue)
    }

    fn get_status(&self) -> DeviceStatus {
        self.mmio.borrow().get_status()
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.mmio.borrow_mut().set_status(status);
    }

    fn set_guest_page_size(&mut self, guest_page_size: u32) {
        self.mmio.borrow_mut().set_guest_page_size(guest_page_size);
    }

    fn requires_legacy_layout(&self) -> bool {
        self.mmio.borrow().requires_legacy_layout()
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver: PhysAddr,
        device: PhysAddr,
    ) {
        self.mmio.borrow_mut().queue_set(queue, size, descriptors, driver, device);
    }

    fn queue_unset(&mut self, queue: u16) {
        self.mmio.borrow_mut().queue_unset(queue);
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.mmio.borrow_mut().queue_used(queue)
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        self.mmio.borrow_mut().ack_interrupt()
    }

    fn read_config_generation(&self) -> u32 {
        self.mmio.borrow().read_config_generation()
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T> {
        self.mmio.borrow().read_config_space(offset)
    }

    fn write_config_space<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) -> Result<()> {
        self.mmio.borrow_mut().write_config_space(offset, value)
    }
}
