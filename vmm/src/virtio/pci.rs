//! The PCI transport (VIRTIO 1.3 §4.1), without its legacy form: one function with one BAR.
//!
//! ```text
//! BAR 0  0x0000  common configuration
//!        0x1000  ISR status
//!        0x2000  device configuration
//!        0x3000  notifications: queue n at 4 × n
//!        0x4000  MSI-X table
//!        0x5000  MSI-X pending bits
//! ```
//! Each queue has a vector of its own, and changes of the configuration have one. Notifications become doorbells when
//! the driver starts the device, and follow the BAR. There is no INTx: a driver that does not switch MSI-X on sees
//! what happened in the ISR status and in its rings only.
//!
//! Owns registers and capabilities; all meaning is in [`super::negotiation`]. Must never know in which slot it sits.

mod interrupt;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::{Address, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use self::interrupt::PciInterrupt;
use super::negotiation::{Half, Negotiation, RingPart};
use super::queue::Passed;
use super::spec::{device_type, pci as spec};
use super::state::{PciState, StateError, TransportState};
use super::{Error, Interrupt, Shared, Transport};
use crate::bus::BusDevice;
use crate::memory::GuestMemory;
use crate::mutex::lock;
use crate::pci::config::{ConfigSpace, Identity};
use crate::pci::msix::Msix;
use crate::pci::{PciFunction, Wiring, host};

/// Bytes of the BAR.
pub const BAR_BYTES: u32 = 0x8000;
const REGION_BYTES: u32 = 0x1000;
const COMMON: u32 = 0x0000;
const ISR: u32 = 0x1000;
const DEVICE: u32 = 0x2000;
/// Where the notifications' region lies in the BAR.
pub const NOTIFY: u32 = 0x3000;
const TABLE: u32 = 0x4000;
const PENDING: u32 = 0x5000;
/// Bytes between the notification addresses of two queues.
pub const NOTIFY_MULTIPLIER: u32 = 4;

/// One device's function.
pub struct PciTransport {
    space: ConfigSpace,
    /// Where in configuration space the MSI-X capability lies.
    msix_at: usize,
    /// And that for access to the BAR through configuration space.
    access_at: usize,
    negotiation: Negotiation,
    interrupt: Arc<PciInterrupt>,
    wiring: Arc<dyn Wiring>,
    /// Each queue's doorbell, where one is connected.
    doorbells: Vec<Option<GuestAddress>>,
    device_feature_select: u32,
    driver_feature_select: u32,
    queue_select: u16,
    told_of_msix: bool,
}

impl PciTransport {
    /// Puts `device` behind a function whose registers begin at `start`, a multiple of [`BAR_BYTES`].
    ///
    /// # Errors
    /// The device cannot be a PCI function, or there is no descriptor left.
    pub fn new(
        memory: GuestMemory,
        device: Shared,
        wiring: Arc<dyn Wiring>,
        start: GuestAddress,
    ) -> Result<Self, Error> {
        let queues = lock(&device).queue_sizes().len();
        // One vector more than queues, for changes of the configuration.
        let vectors = u16::try_from(queues + 1).unwrap_or(u16::MAX);
        let interrupt = Arc::new(PciInterrupt::new(Msix::new(vectors, Arc::clone(&wiring))?));
        let negotiation = Negotiation::new(memory, device, Arc::clone(&interrupt) as Arc<dyn Interrupt>)?;
        let mut space = ConfigSpace::new(&identity(negotiation.device_type()));
        space.add_registers(start, BAR_BYTES)?;
        let msix_at = interrupt.msix.add_capability(&mut space, TABLE, PENDING)?;
        add_region(&mut space, spec::CAP_COMMON, COMMON, spec::COMMON_BYTES, None)?;
        add_region(&mut space, spec::CAP_NOTIFY, NOTIFY, REGION_BYTES, Some(NOTIFY_MULTIPLIER))?;
        add_region(&mut space, spec::CAP_ISR, ISR, 1, None)?;
        add_region(&mut space, spec::CAP_DEVICE, DEVICE, REGION_BYTES, None)?;
        let access_at = add_access(&mut space)?;
        Ok(Self {
            space,
            msix_at,
            access_at,
            doorbells: vec![None; negotiation.queue_events().len()],
            negotiation,
            interrupt,
            wiring,
            device_feature_select: 0,
            driver_feature_select: 0,
            queue_select: 0,
            told_of_msix: false,
        })
    }

    /// A register of the common configuration, if the access has its width (§4.1.3.1).
    fn read_common(&self, offset: u64, length: usize) -> u64 {
        let queue = u32::from(self.queue_select);
        let negotiation = &self.negotiation;
        match (offset, length) {
            (spec::DEVICE_FEATURE_SELECT, 4) => self.device_feature_select.into(),
            (spec::DEVICE_FEATURE, 4) => negotiation.offered_features(self.device_feature_select).into(),
            (spec::DRIVER_FEATURE_SELECT, 4) => self.driver_feature_select.into(),
            (spec::DRIVER_FEATURE, 4) => negotiation.accepted_features(self.driver_feature_select).into(),
            (spec::CONFIG_MSIX_VECTOR, 2) => self.interrupt.config_vector.load(Ordering::Acquire).into(),
            (spec::NUM_QUEUES, 2) => self.doorbells.len() as u64,
            (spec::DEVICE_STATUS, 1) => negotiation.status().into(),
            (spec::CONFIG_GENERATION, 1) => self.interrupt.generation.load(Ordering::Acquire).into(),
            (spec::QUEUE_SELECT, 2) => self.queue_select.into(),
            (spec::QUEUE_SIZE, 2) => negotiation.queue_size(queue).into(),
            (spec::QUEUE_MSIX_VECTOR, 2) => self.interrupt.queue_vector(self.queue_select).into(),
            (spec::QUEUE_ENABLE, 2) => negotiation.queue_ready(queue).into(),
            (spec::QUEUE_NOTIFY_OFF, 2) if negotiation.queue_size_max(queue) > 0 => queue.into(),
            _ => match address_register(offset, length) {
                Some((part, Half::Low)) => negotiation.queue_address(queue, part),
                Some((part, Half::High)) => negotiation.queue_address(queue, part) >> 32,
                None => 0,
            },
        }
    }

    fn write_common(&mut self, offset: u64, length: usize, value: u64) {
        let queue = u32::from(self.queue_select);
        // Truncation is the point: the low bits, and those of a 64-bit register's second half apart.
        let (low, high, short) = (value as u32, (value >> 32) as u32, value as u16);
        match (offset, length) {
            (spec::DEVICE_FEATURE_SELECT, 4) => self.device_feature_select = low,
            (spec::DRIVER_FEATURE_SELECT, 4) => self.driver_feature_select = low,
            (spec::DRIVER_FEATURE, 4) => self.negotiation.accept_features(self.driver_feature_select, low),
            (spec::CONFIG_MSIX_VECTOR, 2) => {
                let vector = self.interrupt.existing(short);
                self.interrupt.config_vector.store(vector, Ordering::Release);
            }
            (spec::DEVICE_STATUS, 1) => self.write_status(low),
            (spec::QUEUE_SELECT, 2) => self.queue_select = short,
            (spec::QUEUE_SIZE, 2) => self.negotiation.set_queue_size(queue, low),
            (spec::QUEUE_MSIX_VECTOR, 2) => {
                let vector = self.interrupt.existing(short);
                if let Some(place) = self.interrupt.queue_vectors.get(usize::from(self.queue_select)) {
                    place.store(vector, Ordering::Release);
                }
            }
            // Zero is what a driver must not write (§4.1.4.3.2).
            (spec::QUEUE_ENABLE, 2) if short == 1 => self.negotiation.set_queue_ready(queue, true),
            _ => {
                if let Some((part, half)) = address_register(offset, length) {
                    self.negotiation.set_queue_address(queue, part, half, low);
                    if length == 8 {
                        self.negotiation.set_queue_address(queue, part, Half::High, high);
                    }
                }
            }
        }
    }

    fn write_status(&mut self, value: u32) {
        self.negotiation.write_status(value);
        if self.negotiation.is_running() && !self.interrupt.msix.is_enabled() && !self.told_of_msix {
            self.told_of_msix = true;
            tracing::warn!(
                device.r#type = self.negotiation.device_type(),
                "a guest drives a virtio PCI device without MSI-X, the only kind of interrupt that it has"
            );
        }
        self.settle_doorbells();
    }

    /// Connects, moves or disconnects the doorbells, as the device runs and its BAR lies now.
    fn settle_doorbells(&mut self) {
        let registers = self.space.registers().filter(|_| self.negotiation.is_running());
        let notify = registers
            .filter(|(start, bytes)| host::forwards(*start, *bytes))
            .map(|(start, _)| start.unchecked_add(u64::from(NOTIFY)));
        let events = self.negotiation.queue_events();
        for ((index, connected), event) in (0_u64..).zip(&mut self.doorbells).zip(events) {
            let wanted = notify.map(|start| start.unchecked_add(index * u64::from(NOTIFY_MULTIPLIER)));
            if *connected == wanted {
                continue;
            }
            if let Some(old) = connected.take() {
                self.wiring.disconnect_doorbell(event, old);
            }
            *connected = wanted.filter(|address| self.wiring.connect_doorbell(event, *address));
        }
    }

    /// What the capability for access through configuration space (§4.1.4.9) points at, if that is allowed: an offset
    /// in the BAR and a width.
    fn accessed(&self) -> Option<(u64, usize)> {
        let bar = self.space.byte(self.access_at + spec::CAP_BAR_AT);
        let offset = self.space.double_word(self.access_at + spec::CAP_OFFSET_AT);
        let length = self.space.double_word(self.access_at + spec::CAP_LENGTH_AT);
        let allowed = bar == 0 && matches!(length, 1 | 2 | 4) && offset.is_multiple_of(length);
        let inside = offset < BAR_BYTES;
        (allowed && inside).then_some((u64::from(offset), length as usize))
    }

    /// Whether `length` bytes at `register` touch the window of that capability.
    fn is_access(&self, register: usize, length: usize) -> bool {
        let data = self.access_at + spec::CAP_DATA_AT;
        register < data + 4 && register.saturating_add(length) > data
    }
}

/// A half of one of the three addresses; eight bytes from the low half are both.
fn address_register(offset: u64, length: usize) -> Option<(RingPart, Half)> {
    let (part, start) = match offset {
        spec::QUEUE_DESC..spec::QUEUE_DRIVER => (RingPart::Descriptors, spec::QUEUE_DESC),
        spec::QUEUE_DRIVER..spec::QUEUE_DEVICE => (RingPart::Available, spec::QUEUE_DRIVER),
        _ => (RingPart::Used, spec::QUEUE_DEVICE),
    };
    match (offset.checked_sub(start)?, length) {
        (0, 4 | 8) => Some((part, Half::Low)),
        (4, 4) => Some((part, Half::High)),
        _ => None,
    }
}

/// What the function says it is: numbers of §4.1.2, and a class that lets a guest sort it.
fn identity(device_type: u32) -> Identity {
    let class = match device_type {
        device_type::NET => [0x02, 0x00, 0x00],
        device_type::BLOCK => [0x01, 0x80, 0x00],
        _ => [0xff, 0x00, 0x00],
    };
    // Device types are small numbers.
    let device = spec::DEVICE_BASE + device_type as u16;
    Identity {
        vendor: spec::VENDOR,
        device,
        revision: spec::REVISION,
        class,
        subsystem: [spec::VENDOR, spec::SUBSYSTEM],
    }
}

/// `struct virtio_pci_cap` (§4.1.4) from its third byte on, for BAR 0.
fn capability(kind: u8, offset: u32, length: u32, extra: Option<u32>) -> Vec<u8> {
    // cap_len u8, cfg_type u8, bar u8, id u8, padding 2, offset u32, length u32.
    let mut body = vec![0, kind, 0, 0, 0, 0];
    body.extend(offset.to_le_bytes());
    body.extend(length.to_le_bytes());
    if let Some(extra) = extra {
        body.extend(extra.to_le_bytes());
    }
    body[0] = u8::try_from(body.len() + 2).expect("invariant: at most 20 bytes");
    body
}

fn add_region(
    space: &mut ConfigSpace,
    kind: u8,
    offset: u32,
    length: u32,
    extra: Option<u32>,
) -> Result<(), Error> {
    let body = capability(kind, offset, length, extra);
    space.add_capability(spec::CAP_VENDOR, &body, &vec![0; body.len()])?;
    Ok(())
}

/// The capability through which firmware reaches the BAR: bar, offset, length and data are the guest's.
fn add_access(space: &mut ConfigSpace) -> Result<usize, Error> {
    let body = capability(spec::CAP_PCI, 0, 0, Some(0));
    let mut writable = vec![0; body.len()];
    // The body begins two bytes behind the capability.
    writable[spec::CAP_BAR_AT - 2] = 0xff;
    writable[spec::CAP_OFFSET_AT - 2..].fill(0xff);
    Ok(space.add_capability(spec::CAP_VENDOR, &body, &writable)?)
}

impl BusDevice for PciTransport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let (region, place) = split(offset);
        match region {
            COMMON => {
                let value = self.read_common(place, data.len()).to_le_bytes();
                let length = data.len().min(value.len());
                data[..length].copy_from_slice(&value[..length]);
            }
            ISR if place == 0 => {
                if let Some(byte) = data.first_mut() {
                    *byte = self.interrupt.isr.swap(0, Ordering::AcqRel);
                }
            }
            DEVICE => self.negotiation.read_config(place, data),
            TABLE => self.interrupt.msix.read_table(place, data),
            PENDING => self.interrupt.msix.read_pending(place, data),
            _ => {}
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let (region, place) = split(offset);
        match region {
            COMMON if data.len() <= 8 => {
                let mut value = [0; 8];
                value[..data.len()].copy_from_slice(data);
                self.write_common(place, data.len(), u64::from_le_bytes(value));
            }
            DEVICE => self.negotiation.write_config(place, data),
            NOTIFY if place.is_multiple_of(u64::from(NOTIFY_MULTIPLIER)) => {
                let queue = place / u64::from(NOTIFY_MULTIPLIER);
                self.negotiation.notify(u32::try_from(queue).unwrap_or(u32::MAX));
            }
            TABLE => self.interrupt.msix.write_table(place, data),
            _ => {}
        }
    }
}

/// The region of the BAR and the offset in it; what lies beyond has a region that does not exist.
fn split(offset: u64) -> (u32, u64) {
    let region = u32::try_from(offset).map_or(u32::MAX, |offset| offset / REGION_BYTES * REGION_BYTES);
    (region, offset % u64::from(REGION_BYTES))
}

impl PciFunction for PciTransport {
    fn read_config(&mut self, register: usize, data: &mut [u8]) {
        if self.is_access(register, data.len())
            && let Some((offset, length)) = self.accessed()
        {
            let mut bytes = [0; 4];
            self.read(offset, &mut bytes[..length]);
            self.space.write(self.access_at + spec::CAP_DATA_AT, &bytes);
        }
        self.space.read(register, data);
    }

    fn write_config(&mut self, register: usize, data: &[u8]) {
        self.space.write(register, data);
        if self.is_access(register, data.len())
            && let Some((offset, length)) = self.accessed()
        {
            let mut bytes = [0; 4];
            self.space.read(self.access_at + spec::CAP_DATA_AT, &mut bytes);
            self.write(offset, &bytes[..length]);
        }
        self.interrupt.msix.control_written(&self.space, self.msix_at);
        self.settle_doorbells();
    }

    fn registers(&self) -> Option<(GuestAddress, u64)> {
        self.space.registers()
    }

    fn is_driven(&self) -> bool {
        self.negotiation.status() != 0
    }

    fn save(&self) -> TransportState {
        Transport::save(self)
    }

    fn restore(&mut self, state: &TransportState) -> Result<(), StateError> {
        Transport::restore(self, state)
    }
}

/// A function that is taken out of its slot touches neither guest memory nor KVM any more.
impl Drop for PciTransport {
    fn drop(&mut self) {
        self.negotiation.write_status(0);
        self.settle_doorbells();
    }
}

impl Transport for PciTransport {
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
        let interrupt = &self.interrupt;
        let chosen = [&interrupt.config_vector].into_iter().chain(&interrupt.queue_vectors);
        TransportState::Pci(PciState {
            negotiation: self.negotiation.save(),
            space: self.space.bytes().to_vec(),
            vectors: interrupt.msix.save(),
            isr: interrupt.isr.load(Ordering::Acquire),
            generation: interrupt.generation.load(Ordering::Acquire),
            chosen_vectors: chosen.map(|vector| vector.load(Ordering::Acquire)).collect(),
            selected: [self.device_feature_select, self.driver_feature_select],
            queue_selected: self.queue_select,
        })
    }

    fn restore(&mut self, state: &TransportState) -> Result<(), StateError> {
        let TransportState::Pci(state) = state else { return Err(StateError::Transport) };
        let interrupt = &self.interrupt;
        if state.chosen_vectors.len() != interrupt.queue_vectors.len() + 1
            || !self.space.restore(&state.space)
            || !interrupt.msix.restore(&state.vectors)
        {
            return Err(StateError::Invalid("its PCI function is another"));
        }
        let chosen = [&interrupt.config_vector].into_iter().chain(&interrupt.queue_vectors);
        for (vector, saved) in chosen.zip(&state.chosen_vectors) {
            vector.store(interrupt.existing(*saved), Ordering::Release);
        }
        interrupt.isr.store(state.isr, Ordering::Release);
        interrupt.generation.store(state.generation, Ordering::Release);
        interrupt.broken.store(state.negotiation.broken, Ordering::Release);
        [self.device_feature_select, self.driver_feature_select] = state.selected;
        self.queue_select = state.queue_selected;
        interrupt.msix.control_written(&self.space, self.msix_at);
        self.negotiation.restore(&state.negotiation)?;
        self.settle_doorbells();
        Ok(())
    }
}
