//! The memory-mapped transport (VIRTIO 1.3 §4.2), version 2.
//!
//! Owns the register map and the interrupt status; all meaning is in [`super::negotiation`]. Must never know at
//! which address or on which interrupt line a device sits.
//!
//! What a driver reads lies in its [page](RegisterPage), there before it looks: reading changes nothing (§4.2.2), so a guest
//! can have it as memory and reads without an exit. What it writes is an exit, and changes what it reads next.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::EventFd;

use super::negotiation::{Half, Negotiation, RingPart};
use super::queue::Passed;
use super::spec::{mmio as reg, status};
use super::state::{MmioState, StateError, TransportState};
use super::{Error, Interrupt, Shared, Transport};
use crate::bus::BusDevice;
use crate::memory::GuestMemory;
use crate::memory::registers::RegisterPage;
use crate::mutex::lock;

/// Offset of the register to which an ioeventfd belongs: four bytes wide, matching the queue's index.
pub const NOTIFY_OFFSET: u64 = reg::QUEUE_NOTIFY as u64;
/// Offset of the register with which a driver says that it has handled an interrupt.
pub const ACKNOWLEDGE_OFFSET: u64 = reg::INTERRUPT_ACK as u64;
/// What a driver writes there, four bytes wide, when buffers were used and nothing else happened. Nobody need hear of it:
/// [`INTERRUPT_STATUS`](reg::INTERRUPT_STATUS) may go on saying so, since a driver that looks finds nothing new.
pub const ACKNOWLEDGE_USED: u32 = reg::INTERRUPT_QUEUE;

/// As much of configuration space as any device has.
const CONFIG_BYTES_MAX: usize = 64;

/// One device's registers.
pub struct MmioTransport {
    negotiation: Negotiation,
    interrupt: Arc<MmioInterrupt>,
    device_features_select: u32,
    driver_features_select: u32,
    queue_select: u32,
}

impl MmioTransport {
    /// Puts `device` behind the registers in `page`; `irq` is written once for every interrupt, as an edge.
    pub fn new(memory: GuestMemory, device: Shared, irq: EventFd, page: RegisterPage) -> Result<Self, Error> {
        let broken = AtomicBool::new(false);
        let interrupt = Arc::new(MmioInterrupt { irq, page, broken, showing: Mutex::default() });
        let negotiation = Negotiation::new(memory, device, Arc::clone(&interrupt) as Arc<dyn Interrupt>)?;
        let constants = [
            (reg::MAGIC_VALUE, reg::MAGIC),
            (reg::VERSION, reg::VERSION_MODERN),
            (reg::DEVICE_ID, negotiation.device_type()),
            (reg::VENDOR_ID, reg::VENDOR),
        ];
        // No shared memory region exists (§4.2.2.1): all ones.
        let regions = (reg::SHM_LEN_LOW..=reg::SHM_BASE_HIGH).step_by(4).map(|offset| (offset, u32::MAX));
        for (offset, value) in constants.into_iter().chain(regions) {
            interrupt.page.register(offset).store(value, Ordering::Release);
        }
        let transport = Self {
            negotiation,
            interrupt,
            device_features_select: 0,
            driver_features_select: 0,
            queue_select: 0,
        };
        transport.show();
        transport.show_config();
        Ok(transport)
    }

    /// Shows what depends on what the driver wrote.
    fn show(&self) {
        let (negotiation, page) = (&self.negotiation, &self.interrupt.page);
        let show = |offset, value| page.register(offset).store(value, Ordering::Release);
        show(reg::DEVICE_FEATURES, negotiation.offered_features(self.device_features_select));
        show(reg::QUEUE_SIZE_MAX, negotiation.queue_size_max(self.queue_select).into());
        show(reg::QUEUE_READY, negotiation.queue_ready(self.queue_select).into());
        let _showing = lock(&self.interrupt.showing);
        show(reg::STATUS, negotiation.status());
    }

    /// Shows the device's configuration: a device tells nobody what becomes of it while no driver has started it, and a driver
    /// that is about to begins with the status.
    fn show_config(&self) {
        let mut config = [0; CONFIG_BYTES_MAX];
        let device = self.negotiation.device();
        device.read_config(0, &mut config);
        self.interrupt.page.put(reg::CONFIG, &config);
    }

    fn write_register(&mut self, offset: u32, value: u32) {
        use {Half::*, RingPart::*};
        let queue = self.queue_select;
        let negotiation = &mut self.negotiation;
        match offset {
            reg::DEVICE_FEATURES_SEL => self.device_features_select = value,
            reg::DRIVER_FEATURES_SEL => self.driver_features_select = value,
            reg::DRIVER_FEATURES => negotiation.accept_features(self.driver_features_select, value),
            reg::QUEUE_SEL => self.queue_select = value,
            reg::QUEUE_SIZE => negotiation.set_queue_size(queue, value),
            reg::QUEUE_READY => negotiation.set_queue_ready(queue, value & 1 != 0),
            reg::QUEUE_NOTIFY => negotiation.notify(value),
            reg::INTERRUPT_ACK => {
                self.interrupt.status().fetch_and(!value, Ordering::AcqRel);
            }
            reg::STATUS => negotiation.write_status(value),
            reg::QUEUE_DESC_LOW => negotiation.set_queue_address(queue, Descriptors, Low, value),
            reg::QUEUE_DESC_HIGH => negotiation.set_queue_address(queue, Descriptors, High, value),
            reg::QUEUE_DRIVER_LOW => negotiation.set_queue_address(queue, Available, Low, value),
            reg::QUEUE_DRIVER_HIGH => negotiation.set_queue_address(queue, Available, High, value),
            reg::QUEUE_DEVICE_LOW => negotiation.set_queue_address(queue, Used, Low, value),
            reg::QUEUE_DEVICE_HIGH => negotiation.set_queue_address(queue, Used, High, value),
            _ => {}
        }
    }
}

/// The offset of a 32-bit register, if the access is one: aligned and four bytes wide (§4.2.2.2).
fn register(offset: u64, length: usize) -> Option<u32> {
    let offset = u32::try_from(offset).ok()?;
    (length == 4 && offset.is_multiple_of(4) && offset < reg::CONFIG).then_some(offset)
}

impl BusDevice for MmioTransport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.interrupt.page.read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(u64::from(reg::CONFIG)) {
            self.negotiation.write_config(offset, data);
            return self.show_config();
        }
        if let (Some(offset), Ok(bytes)) = (register(offset, data.len()), <[u8; 4]>::try_from(data)) {
            self.write_register(offset, u32::from_le_bytes(bytes));
            self.show();
            if offset == reg::STATUS {
                self.show_config();
            }
        }
    }
}

impl Transport for MmioTransport {
    fn queue_events(&self) -> &[EventFd] {
        self.negotiation.queue_events()
    }

    fn driven(&self) -> Arc<AtomicBool> {
        self.negotiation.driven()
    }

    fn passed(&self) -> &[Arc<Passed>] {
        self.negotiation.passed()
    }

    fn save(&self) -> TransportState {
        TransportState::Mmio(MmioState {
            negotiation: self.negotiation.save(),
            interrupt_status: self.interrupt.status().load(Ordering::Acquire),
            generation: self.interrupt.generation().load(Ordering::Acquire),
            selected: [self.device_features_select, self.driver_features_select, self.queue_select],
        })
    }

    fn restore(&mut self, state: &TransportState) -> Result<(), StateError> {
        let TransportState::Mmio(state) = state else { return Err(StateError::Transport) };
        [self.device_features_select, self.driver_features_select, self.queue_select] = state.selected;
        self.interrupt.status().store(state.interrupt_status, Ordering::Release);
        self.interrupt.generation().store(state.generation, Ordering::Release);
        self.interrupt.broken.store(state.negotiation.broken, Ordering::Release);
        let restored = self.negotiation.restore(&state.negotiation);
        self.show();
        self.show_config();
        restored
    }
}

/// Interrupt status and line of one device.
struct MmioInterrupt {
    irq: EventFd,
    page: RegisterPage,
    broken: AtomicBool,
    /// Held while the status, which both the driver's and the device's threads show, is found out and shown. The
    /// configuration is shown by who holds the device.
    showing: Mutex<()>,
}

impl MmioInterrupt {
    fn status(&self) -> &AtomicU32 {
        self.page.register(reg::INTERRUPT_STATUS)
    }

    fn generation(&self) -> &AtomicU32 {
        self.page.register(reg::CONFIG_GENERATION)
    }

    fn raise(&self, bits: u32) {
        self.status().fetch_or(bits, Ordering::AcqRel);
        if let Err(error) = self.irq.write(1) {
            tracing::trace!(%error, "interrupt is pending already");
        }
    }
}

impl Interrupt for MmioInterrupt {
    fn queue_used(&self, _index: u16) {
        self.raise(reg::INTERRUPT_QUEUE);
    }

    fn config_changed(&self, config: &[u8]) {
        self.show_config(config);
        self.raise(reg::INTERRUPT_CONFIG);
    }

    fn show_config(&self, config: &[u8]) {
        self.page.put(reg::CONFIG, config);
        self.generation().fetch_add(1, Ordering::AcqRel);
    }

    fn needs_reset(&self) {
        if !self.broken.swap(true, Ordering::AcqRel) {
            {
                let _showing = lock(&self.showing);
                self.page.register(reg::STATUS).fetch_or(status::NEEDS_RESET, Ordering::AcqRel);
            }
            self.raise(reg::INTERRUPT_CONFIG);
        }
    }

    fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    fn reset(&self) {
        self.broken.store(false, Ordering::Release);
        self.status().store(0, Ordering::Release);
    }
}
