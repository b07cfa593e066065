//! How a device on PCI interrupts: by MSI-X, with a vector for each queue and one for changes of its configuration.
//!
//! Must never know: registers, and where they lie.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};

use crate::pci::msix::Msix;
use crate::virtio::Interrupt;
use crate::virtio::spec::pci as spec;

/// Interrupts of one device: what happened, and which vector says so.
pub(super) struct PciInterrupt {
    pub(super) msix: Msix,
    pub(super) isr: AtomicU8,
    pub(super) generation: AtomicU8,
    pub(super) broken: AtomicBool,
    pub(super) config_vector: AtomicU16,
    pub(super) queue_vectors: Vec<AtomicU16>,
}

impl PciInterrupt {
    pub(super) fn new(msix: Msix) -> Self {
        let queues = msix.vectors() - 1;
        Self {
            msix,
            isr: AtomicU8::new(0),
            generation: AtomicU8::new(0),
            broken: AtomicBool::new(false),
            config_vector: AtomicU16::new(spec::NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(spec::NO_VECTOR)).collect(),
        }
    }

    /// `vector` if there is such a one, else none (§4.1.5.1.2.1).
    pub(super) fn existing(&self, vector: u16) -> u16 {
        if vector < self.msix.vectors() { vector } else { spec::NO_VECTOR }
    }

    pub(super) fn queue_vector(&self, queue: u16) -> u16 {
        let vector = self.queue_vectors.get(usize::from(queue));
        vector.map_or(spec::NO_VECTOR, |vector| vector.load(Ordering::Acquire))
    }

    fn config_event(&self) {
        self.isr.fetch_or(spec::ISR_CONFIG, Ordering::AcqRel);
        self.msix.trigger(self.config_vector.load(Ordering::Acquire));
    }
}

impl Interrupt for PciInterrupt {
    fn queue_used(&self, index: u16) {
        self.isr.fetch_or(spec::ISR_QUEUE, Ordering::AcqRel);
        self.msix.trigger(self.queue_vector(index));
    }

    fn config_changed(&self, config: &[u8]) {
        self.show_config(config);
        self.config_event();
    }

    /// The driver asks the device itself.
    fn show_config(&self, _config: &[u8]) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    fn needs_reset(&self) {
        if !self.broken.swap(true, Ordering::AcqRel) {
            self.config_event();
        }
    }

    fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    fn reset(&self) {
        self.broken.store(false, Ordering::Release);
        self.isr.store(0, Ordering::Release);
        for vector in self.queue_vectors.iter().chain([&self.config_vector]) {
            vector.store(spec::NO_VECTOR, Ordering::Release);
        }
    }
}
