//! Persistent memory (VIRTIO 1.3 §5.19): a file that lies in the guest's address space. The device itself only tells where,
//! and makes durable what was written.
//!
//! Must never know: where the file is, KVM.

use std::sync::{Arc, Mutex};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use serde::{Deserialize, Serialize};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use super::queue::{Chain, Handled, Progress, QueueError};
use super::spec::{device_type, pmem as spec};
use super::state::decode;
use super::{Activation, DeviceState, Error, Shared, StateError, VirtioDevice};
use crate::memory::mapping::Mapping;

/// Descriptors in the queue: 32 flushes of two descriptors.
pub const QUEUE_SIZE_MAX: u16 = 64;
/// Flushes answered before the event loop serves its other devices: one makes durable what all of them are about.
const BATCH_REQUESTS_MAX: u16 = 32;

/// One persistent memory.
pub struct Pmem {
    mapping: Arc<Mapping>,
    start: GuestAddress,
    queue_events: Vec<EventFd>,
    active: Option<Activation>,
    chain: Chain,
    held: bool,
}

/// What it saves: the guest keeps file systems there.
#[derive(Serialize, Deserialize, PartialEq)]
struct OwnState {
    start: u64,
    bytes: u64,
    read_only: bool,
}

/// Makes the device of `mapping`, which the guest has at `start`.
///
/// # Errors
/// The kernel gives no event descriptor.
pub fn build_pmem(mapping: Arc<Mapping>, start: GuestAddress) -> Result<Shared, Error> {
    let queue_events = super::queue_event_fds(1)?;
    let chain = Chain::new();
    Ok(Arc::new(Mutex::new(Pmem { mapping, start, queue_events, active: None, chain, held: false })))
}

impl Pmem {
    fn own(&self) -> OwnState {
        OwnState { start: self.start.0, bytes: self.mapping.bytes(), read_only: self.mapping.is_read_only() }
    }

    fn work(&mut self) {
        let Self { active, chain, mapping, .. } = self;
        let Some(running) = active.as_mut() else { return };
        let worked = work_off(&mut running.queues[0], chain, mapping);
        if let Err(error) = worked.and_then(|progress| running.settle(0, progress, &self.queue_events)) {
            super::broken(running, device_type::PMEM, error);
            *active = None;
        }
    }
}

/// Answers what is there.
fn work_off(
    queue: &mut super::queue::VirtQueue,
    chain: &mut Chain,
    mapping: &Mapping,
) -> Result<Progress, QueueError> {
    // What comes meanwhile may be about later writes: the next turn's.
    let mut flushed = None;
    queue.work_off(chain, BATCH_REQUESTS_MAX, |memory, chain| {
        if chain.writable_bytes() < spec::RESPONSE_BYTES as u64 {
            return Err(QueueError::Outcome);
        }
        let mut request = [0xff; spec::REQUEST_BYTES];
        let is_flush = chain.read_at(memory, 0, &mut request) == request.len()
            && u32::from_le_bytes(request) == spec::REQUEST_FLUSH;
        let done = is_flush
            && *flushed.get_or_insert_with(|| {
                let flushed = mapping.flush();
                flushed
                    .inspect_err(|error| tracing::debug!(%error, "a guest's memory is not durable"))
                    .is_ok()
            });
        let response = if done { spec::RESPONSE_OK } else { spec::RESPONSE_FAILED };
        chain.write_at(memory, 0, &response.to_le_bytes());
        Ok(Handled::Used(spec::RESPONSE_BYTES as u32))
    })
}

impl VirtioDevice for Pmem {
    fn device_type(&self) -> u32 {
        device_type::PMEM
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE_MAX]
    }

    fn queue_events(&self) -> &[EventFd] {
        &self.queue_events
    }

    fn features(&self) -> u64 {
        0
    }

    /// start u64 @0, size u64 @8 (§5.19.4).
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut space = [0; 16];
        space[..8].copy_from_slice(&self.start.0.to_le_bytes());
        space[8..].copy_from_slice(&self.mapping.bytes().to_le_bytes());
        super::read_config_bytes(&space, offset, data);
    }

    fn activate(&mut self, activation: Activation) {
        self.active = Some(activation);
    }

    fn reset(&mut self) {
        self.active = None;
    }

    fn save(&self) -> DeviceState {
        DeviceState::of(self.active.as_ref()).with(&self.own())
    }

    fn restore(&mut self, own: &[u8]) -> Result<(), StateError> {
        let fits = decode::<OwnState>(own)? == self.own();
        if fits {
            Ok(())
        } else {
            Err(StateError::Invalid("its persistent memory is of another size or kind"))
        }
    }

    fn hold(&mut self, held: bool) {
        self.held = held;
        if !held {
            super::kick(&self.queue_events[0]);
        }
    }

    fn write_out(&mut self) -> std::io::Result<()> {
        self.mapping.flush()
    }
}

impl MutEventSubscriber for Pmem {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        super::watch(ops, &self.queue_events[0], EventSet::IN);
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        super::drain(&self.queue_events[0]);
        if !self.held {
            self.work();
        }
    }
}
