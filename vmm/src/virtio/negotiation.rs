//! What every transport shares: the status machine, feature negotiation and queue set-up (VIRTIO 1.3 §2.1, §2.2,
//! §3.1.1).
//!
//! A driver that breaks the order of initialisation, clears status bits, accepts features that were not offered,
//! or changes a live queue gets `DEVICE_NEEDS_RESET`; it stays there until it resets. Must never know register
//! offsets.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard};

use vmm_sys_util::eventfd::EventFd;

use super::queue::{Passed, QueueLayout, VirtQueue};
use super::spec::{feature, status};
use super::state::{NegotiationState, QueuePosition, QueueState, StateError};
use super::{Activation, Error, Interrupt, Shared, VirtioDevice};
use crate::memory::GuestMemory;
use crate::mutex::lock;

/// The status bits in the only order in which a driver may set them (VIRTIO 1.3 §3.1.1).
const STEPS: [u32; 4] = [status::ACKNOWLEDGE, status::DRIVER, status::FEATURES_OK, status::DRIVER_OK];

/// The ring features that all our queues have, whatever the device type.
const TRANSPORT_FEATURES: u64 = feature::VERSION_1 | feature::RING_EVENT_IDX | feature::RING_INDIRECT_DESC;

/// Which half of a 64-bit value a 32-bit register holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// Bits 0 to 31.
    Low,
    /// Bits 32 to 63.
    High,
}

/// The three addresses of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RingPart {
    /// The descriptor table.
    Descriptors,
    /// The available ring ("driver area").
    Available,
    /// The used ring ("device area").
    Used,
}

#[derive(Debug, Clone, Copy)]
struct QueueSetup {
    layout: QueueLayout,
    size_max: u16,
    ready: bool,
}

impl QueueSetup {
    fn new(size_max: u16) -> Self {
        Self { layout: QueueLayout { size: size_max, ..QueueLayout::default() }, size_max, ready: false }
    }
}

/// The device-independent state of one device.
pub struct Negotiation {
    memory: GuestMemory,
    device: Shared,
    interrupt: Arc<dyn Interrupt>,
    queue_events: Vec<EventFd>,
    device_type: u32,
    offered: u64,
    accepted: u64,
    status: u32,
    queues: Vec<QueueSetup>,
    driven: Arc<AtomicBool>,
    passed: Vec<Arc<Passed>>,
}

impl Negotiation {
    /// Reads what `device` offers; it must not be activated yet.
    pub fn new(memory: GuestMemory, device: Shared, interrupt: Arc<dyn Interrupt>) -> Result<Self, Error> {
        let (device_type, offered, queues, queue_events) = {
            let device = lock(&device);
            let events: Result<Vec<EventFd>, Error> =
                device.queue_events().iter().map(|event| event.try_clone().map_err(Error::EventFd)).collect();
            let queues: Vec<QueueSetup> = device.queue_sizes().iter().copied().map(QueueSetup::new).collect();
            (device.device_type(), device.features() | TRANSPORT_FEATURES, queues, events?)
        };
        Ok(Self {
            memory,
            device,
            interrupt,
            queue_events,
            device_type,
            offered,
            accepted: 0,
            status: 0,
            passed: queues.iter().map(|_| Arc::default()).collect(),
            queues,
            driven: Arc::default(),
        })
    }

    /// The device type.
    pub fn device_type(&self) -> u32 {
        self.device_type
    }

    /// One event per queue.
    pub fn queue_events(&self) -> &[EventFd] {
        &self.queue_events
    }

    /// Becomes true once a driver has started the device, and stays so.
    pub fn driven(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.driven)
    }

    /// What went through each queue.
    pub fn passed(&self) -> &[Arc<Passed>] {
        &self.passed
    }

    /// The status field as the driver reads it.
    pub fn status(&self) -> u32 {
        if self.interrupt.is_broken() { self.status | status::NEEDS_RESET } else { self.status }
    }

    /// One half of the features offered; halves beyond the second are zero.
    pub fn offered_features(&self, half: u32) -> u32 {
        match half {
            0 => low(self.offered),
            1 => high(self.offered),
            _ => 0,
        }
    }

    /// One half of the features accepted, likewise.
    pub fn accepted_features(&self, half: u32) -> u32 {
        match half {
            0 => low(self.accepted),
            1 => high(self.accepted),
            _ => 0,
        }
    }

    /// The driver accepts one half of the features.
    pub fn accept_features(&mut self, half: u32, value: u32) {
        if self.status & status::FEATURES_OK != 0 {
            return self.fault("features written after FEATURES_OK");
        }
        match half {
            0 => set_half(&mut self.accepted, Half::Low, value),
            1 => set_half(&mut self.accepted, Half::High, value),
            // Drivers write the halves that they know of, whatever is in them.
            _ if value == 0 => {}
            _ => self.fault("features beyond bit 63"),
        }
    }

    /// The driver writes the status field.
    pub fn write_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        if self.interrupt.is_broken() || self.status & status::FAILED != 0 {
            return;
        }
        if value & status::FAILED != 0 {
            tracing::debug!(
                device.r#type = self.device_type,
                "the guest's driver gave up on a virtio device"
            );
            self.status |= status::FAILED;
            lock(&self.device).reset();
            return;
        }
        let known: u32 = STEPS.iter().sum();
        if value & !known != 0 || self.status & !value != 0 {
            return self.fault("status bits cleared or unknown");
        }
        let mut before = 0;
        for step in STEPS {
            if value & step != 0 && self.status & step == 0 {
                if self.status != before {
                    return self.fault("status bits set out of order");
                }
                match step {
                    status::FEATURES_OK if !self.features_acceptable() => return,
                    status::DRIVER_OK if !self.activate() => return,
                    _ => self.status |= step,
                }
            }
            before |= step;
        }
        if value & status::DRIVER_OK != 0 {
            self.kick_all();
        }
    }

    /// The largest size of queue `index`; 0 if there is no such queue.
    pub fn queue_size_max(&self, index: u32) -> u16 {
        self.queue(index).map_or(0, |queue| queue.size_max)
    }

    /// The size of queue `index` as the driver chose it, the largest one before; 0 if there is no such queue.
    pub fn queue_size(&self, index: u32) -> u16 {
        self.queue(index).map_or(0, |queue| queue.layout.size)
    }

    /// Where one part of queue `index` lies, as the driver said.
    pub fn queue_address(&self, index: u32, part: RingPart) -> u64 {
        self.queue(index).map_or(0, |queue| match part {
            RingPart::Descriptors => queue.layout.descriptors,
            RingPart::Available => queue.layout.available,
            RingPart::Used => queue.layout.used,
        })
    }

    /// Whether the driver has started the device, and neither stopped nor broken it since.
    pub fn is_running(&self) -> bool {
        let stopped = status::FAILED | status::NEEDS_RESET;
        self.status() & (status::DRIVER_OK | stopped) == status::DRIVER_OK
    }

    /// Whether queue `index` is in use.
    pub fn queue_ready(&self, index: u32) -> bool {
        self.queue(index).is_some_and(|queue| queue.ready)
    }

    /// The driver chooses a queue's size.
    pub fn set_queue_size(&mut self, index: u32, size: u32) {
        let Some(queue) = self.queue_to_set_up(index) else { return };
        match u16::try_from(size) {
            Ok(size) if size.is_power_of_two() && size <= queue.size_max => queue.layout.size = size,
            _ => self.fault("queue size is no power of two up to the maximum"),
        }
    }

    /// The driver places one part of a queue.
    pub fn set_queue_address(&mut self, index: u32, part: RingPart, half: Half, value: u32) {
        let Some(queue) = self.queue_to_set_up(index) else { return };
        let address = match part {
            RingPart::Descriptors => &mut queue.layout.descriptors,
            RingPart::Available => &mut queue.layout.available,
            RingPart::Used => &mut queue.layout.used,
        };
        set_half(address, half, value);
    }

    /// The driver puts a queue to use or takes it out of use.
    ///
    /// A live queue cannot be stopped alone: taking one out of use after `DRIVER_OK` stops the whole device and
    /// asks for a reset.
    pub fn set_queue_ready(&mut self, index: u32, ready: bool) {
        if !ready && self.status & status::DRIVER_OK == 0 {
            if let Some(queue) = self.queue_mut(index) {
                queue.ready = false;
            }
            return;
        }
        if let Some(queue) = self.queue_to_set_up(index) {
            queue.ready = true;
        }
    }

    /// The driver notifies queue `index`.
    pub fn notify(&self, index: u32) {
        if self.status & status::DRIVER_OK == 0 {
            return;
        }
        if let Some(event) = usize::try_from(index).ok().and_then(|index| self.queue_events.get(index)) {
            super::kick(event);
        }
    }

    /// The device, held.
    pub fn device(&self) -> MutexGuard<'_, dyn VirtioDevice + 'static> {
        lock(&self.device)
    }

    /// Reads configuration space.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        lock(&self.device).read_config(offset, data);
    }

    /// Writes configuration space.
    pub fn write_config(&self, offset: u64, data: &[u8]) {
        if self.status & status::DRIVER != 0 {
            lock(&self.device).write_config(offset, data);
        }
    }

    fn queue(&self, index: u32) -> Option<&QueueSetup> {
        self.queues.get(usize::try_from(index).ok()?)
    }

    fn queue_mut(&mut self, index: u32) -> Option<&mut QueueSetup> {
        self.queues.get_mut(usize::try_from(index).ok()?)
    }

    /// The queue, if the driver may set it up now; otherwise that is the driver's fault, except before `DRIVER`,
    /// where nobody has claimed the device yet.
    fn queue_to_set_up(&mut self, index: u32) -> Option<&mut QueueSetup> {
        if self.status & status::DRIVER == 0 || self.interrupt.is_broken() {
            return None;
        }
        let legal =
            self.status & status::DRIVER_OK == 0 && self.queue(index).is_some_and(|queue| !queue.ready);
        if !legal {
            self.fault("a queue that is in use or does not exist was set up");
            return None;
        }
        self.queue_mut(index)
    }

    fn features_acceptable(&self) -> bool {
        self.accepted & !self.offered == 0 && self.accepted & feature::VERSION_1 != 0
    }

    fn activate(&mut self) -> bool {
        let Some(queues) = self.checked_queues() else {
            self.fault("a queue is not ready, or not in guest memory");
            return false;
        };
        self.status |= status::DRIVER_OK;
        self.hand_over(queues);
        true
    }

    /// All queues as the driver laid them out; nothing if one is not ready or not in guest memory.
    fn checked_queues(&self) -> Option<Vec<VirtQueue>> {
        let event_idx = self.accepted & feature::RING_EVENT_IDX != 0;
        let device = lock(&self.device);
        let checked = |(index, queue): (usize, &QueueSetup)| {
            if !queue.ready && !device.needs_queue(index, self.accepted) {
                return Some(VirtQueue::unused(self.memory.clone(), queue.size_max));
            }
            let checked = VirtQueue::new(self.memory.clone(), queue.layout, queue.size_max, event_idx);
            checked.ok().filter(|_| queue.ready)
        };
        let counted = |(queue, passed): (Option<VirtQueue>, &Arc<Passed>)| {
            queue.map(|queue| queue.counted_by(passed.clone()))
        };
        self.queues.iter().enumerate().map(checked).zip(&self.passed).map(counted).collect()
    }

    fn hand_over(&self, queues: Vec<VirtQueue>) {
        self.driven.store(true, Ordering::Release);
        lock(&self.device).activate(Activation {
            memory: self.memory.clone(),
            queues,
            features: self.accepted,
            interrupt: Arc::clone(&self.interrupt),
        });
    }

    /// The device and how far its driver is.
    pub fn save(&self) -> NegotiationState {
        let queue = |queue: &QueueSetup| {
            let QueueLayout { size, descriptors, available, used } = queue.layout;
            QueueState { size, addresses: [descriptors, available, used], ready: queue.ready }
        };
        NegotiationState {
            device_type: self.device_type,
            accepted: self.accepted,
            status: self.status,
            broken: self.interrupt.is_broken(),
            driven: self.driven.load(Ordering::Acquire),
            queues: self.queues.iter().map(queue).collect(),
            device: lock(&self.device).save(),
        }
    }

    /// Takes over what [`Self::save`] gave. The transport has to have taken its own part over before: a device that is
    /// started here may interrupt. It is broken by the transport, if it was.
    pub fn restore(&mut self, state: &NegotiationState) -> Result<(), StateError> {
        self.check(state)?;
        for (queue, saved) in self.queues.iter_mut().zip(&state.queues) {
            let [descriptors, available, used] = saved.addresses;
            queue.layout = QueueLayout { size: saved.size, descriptors, available, used };
            queue.ready = saved.ready;
        }
        (self.accepted, self.status) = (state.accepted, state.status);
        self.driven.store(state.driven, Ordering::Release);
        lock(&self.device).restore(&state.device.own)?;
        let running =
            self.status & (status::DRIVER_OK | status::FAILED) == status::DRIVER_OK && !state.broken;
        if running {
            let positions: &[QueuePosition] = &state.device.queues;
            let queues = self
                .checked_queues()
                .filter(|queues| queues.len() == positions.len())
                .ok_or(StateError::Invalid("a started device's queues are not in guest memory"))?;
            let queues = queues.into_iter().zip(positions);
            self.hand_over(queues.map(|(queue, position)| queue.resumed_at(*position)).collect());
            self.kick_all();
        }
        Ok(())
    }

    /// What a state must have to be one of this device's.
    fn check(&self, state: &NegotiationState) -> Result<(), StateError> {
        let known = STEPS.iter().fold(status::FAILED, |bits, step| bits | step);
        if state.device_type != self.device_type {
            return Err(StateError::Type { saved: state.device_type, given: self.device_type });
        }
        match state.accepted & !self.offered {
            // Features count only once the driver has settled for them; what it tried before is its own affair.
            lacking if lacking != 0 && state.status & status::FEATURES_OK != 0 => {
                return Err(StateError::Features { device: self.device_type, lacking });
            }
            _ => {}
        }
        if state.status & !known != 0 {
            return Err(StateError::Invalid("its status has bits that there are not"));
        }
        let sizes = self.queues.iter().zip(&state.queues);
        let fit = |(queue, saved): (&QueueSetup, &QueueState)| {
            saved.size.is_power_of_two() && saved.size <= queue.size_max
        };
        if state.queues.len() != self.queues.len() || !sizes.into_iter().all(fit) {
            return Err(StateError::Invalid("its queues are others"));
        }
        Ok(())
    }

    /// Tells the event loop to look at all queues once, since it takes no part in activation itself.
    fn kick_all(&self) {
        self.queue_events.iter().for_each(super::kick);
    }

    fn stop(&mut self) {
        lock(&self.device).reset();
        for queue in &mut self.queues {
            *queue = QueueSetup::new(queue.size_max);
        }
    }

    fn reset(&mut self) {
        self.stop();
        self.interrupt.reset();
        self.accepted = 0;
        self.status = 0;
    }

    fn fault(&mut self, reason: &'static str) {
        if self.status == 0 || self.interrupt.is_broken() {
            return;
        }
        tracing::debug!(device.r#type = self.device_type, reason, "a virtio device needs a reset");
        self.stop();
        self.interrupt.needs_reset();
    }
}

fn low(value: u64) -> u32 {
    (value & u64::from(u32::MAX)) as u32
}

fn high(value: u64) -> u32 {
    (value >> 32) as u32
}

fn set_half(value: &mut u64, half: Half, bits: u32) {
    *value = match half {
        Half::Low => (*value & !u64::from(u32::MAX)) | u64::from(bits),
        Half::High => (*value & u64::from(u32::MAX)) | (u64::from(bits) << 32),
    };
}
