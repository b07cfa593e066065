//! The memory-mapped transport (VIRTIO 1.3 §4.2), version 2.
//!
//! Owns the register map and the interrupt status; all meaning is in [`super::negotiation`]. Must never know at
//! which address or on which interrupt line a device sits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

use super::negotiation::{Half, Negotiation, RingPart};
use super::queue::Passed;
use super::spec::mmio as reg;
use super::state::{MmioState, StateError, TransportState};
use super::{Error, Interrupt, Shared, Transport};
use crate::bus::BusDevice;
use crate::memory::GuestMemory;

pub use super::spec::mmio::WINDOW_BYTES;

/// Offset of the register to which an ioeventfd belongs: four bytes wide, matching the queue's index.
pub const NOTIFY_OFFSET: u64 = reg::QUEUE_NOTIFY as u64;

/// One device's registers.
pub struct MmioTransport {
    negotiation: Negotiation,
    interrupt: Arc<MmioInterrupt>,
    device_features_select: u32,
    driver_features_select: u32,
    queue_select: u32,
}

impl MmioTransport {
    /// Puts `device` behind registers; `irq` is written once for every interrupt, as an edge.
    pub fn new(memory: GuestMemory, device: Shared, irq: EventFd) -> Result<Self, Error> {
        let interrupt = Arc::new(MmioInterrupt {
            irq,
            status: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            broken: AtomicBool::new(false),
        });
        let negotiation = Negotiation::new(memory, device, Arc::clone(&interrupt) as Arc<dyn Interrupt>)?;
        Ok(Self {
            negotiation,
            interrupt,
            device_features_select: 0,
            driver_features_select: 0,
            queue_select: 0,
        })
    }

    fn read_register(&self, offset: u32) -> u32 {
        let negotiation = &self.negotiation;
        match offset {
            reg::MAGIC_VALUE => reg::MAGIC,
            reg::VERSION => reg::VERSION_MODERN,
            reg::DEVICE_ID => negotiation.device_type(),
            reg::VENDOR_ID => reg::VENDOR,
            reg::DEVICE_FEATURES => negotiation.offered_features(self.device_features_select),
            reg::QUEUE_SIZE_MAX => u32::from(negotiation.queue_size_max(self.queue_select)),
            reg::QUEUE_READY => u32::from(negotiation.queue_ready(self.queue_select)),
            reg::INTERRUPT_STATUS => self.interrupt.status.load(Ordering::Acquire),
            reg::STATUS => negotiation.status(),
            reg::CONFIG_GENERATION => self.interrupt.generation.load(Ordering::Acquire),
            // No shared memory region exists (§4.2.2.1): all ones.
            reg::SHM_LEN_LOW..=reg::SHM_BASE_HIGH => u32::MAX,
            _ => 0,
        }
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
                self.interrupt.status.fetch_and(!value, Ordering::AcqRel);
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
        if let Some(offset) = offset.checked_sub(u64::from(reg::CONFIG)) {
            return self.negotiation.read_config(offset, data);
        }
        data.fill(0);
        if let Some(offset) = register(offset, data.len()) {
            data.copy_from_slice(&self.read_register(offset).to_le_bytes());
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(u64::from(reg::CONFIG)) {
            return self.negotiation.write_config(offset, data);
        }
        if let (Some(offset), Ok(bytes)) = (register(offset, data.len()), <[u8; 4]>::try_from(data)) {
            self.write_register(offset, u32::from_le_bytes(bytes));
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
            interrupt_status: self.interrupt.status.load(Ordering::Acquire),
            generation: self.interrupt.generation.load(Ordering::Acquire),
            selected: [self.device_features_select, self.driver_features_select, self.queue_select],
        })
    }

    fn restore(&mut self, state: &TransportState) -> Result<(), StateError> {
        let TransportState::Mmio(state) = state else { return Err(StateError::Transport) };
        [self.device_features_select, self.driver_features_select, self.queue_select] = state.selected;
        self.interrupt.status.store(state.interrupt_status, Ordering::Release);
        self.interrupt.generation.store(state.generation, Ordering::Release);
        self.interrupt.broken.store(state.negotiation.broken, Ordering::Release);
        self.negotiation.restore(&state.negotiation)
    }
}

/// Interrupt status and line of one device.
struct MmioInterrupt {
    irq: EventFd,
    status: AtomicU32,
    generation: AtomicU32,
    broken: AtomicBool,
}

impl MmioInterrupt {
    fn raise(&self, bits: u32) {
        self.status.fetch_or(bits, Ordering::AcqRel);
        if let Err(error) = self.irq.write(1) {
            tracing::trace!(%error, "interrupt is pending already");
        }
    }
}

impl Interrupt for MmioInterrupt {
    fn queue_used(&self, _index: u16) {
        self.raise(reg::INTERRUPT_QUEUE);
    }

    fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.raise(reg::INTERRUPT_CONFIG);
    }

    fn needs_reset(&self) {
        if !self.broken.swap(true, Ordering::AcqRel) {
            self.raise(reg::INTERRUPT_CONFIG);
        }
    }

    fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    fn reset(&self) {
        self.broken.store(false, Ordering::Release);
        self.status.store(0, Ordering::Release);
    }
}
