//! VIRTIO 1.3 devices: block, network, entropy, console, sockets, balloon, persistent and hot-plugged memory, and how a driver reaches them.
//!
//! Owns everything between a device's registers and its back end. Must never know: KVM, the address or the
//! interrupt line of a device, tenants, paths.
//!
//! # Parts
//! - [`spec`]: the constants.
//! - [`VirtioDevice`]: what a device is; it knows no transport.
//! - [`Transport`]: what a transport offers the VMM beside its registers: [`mmio::MmioTransport`] for small kernels,
//!   [`pci::PciTransport`] for all others; [`negotiation`] holds what both share (status machine, features, queue
//!   set-up).
//! - [`limiter`]: how fast a device may move data.
//! - [`state`]: what of a device and its transport goes into a snapshot.
//! - [`queue`]: checked access to split virtqueues. Whatever the driver writes, guest memory is the only memory
//!   touched, and nothing panics: a broken ring makes the device ask for a reset.
//! - `mock`: the driver's side, for tests and fuzzers (feature `mock`).
//!
//! # Wiring one device
//! ```text
//! let device = virtio::build_block(&disk_config, disk, (queues, &mut rings))?;          // virtio::Shared
//! let irq = EventFd::new(EFD_NONBLOCK)?;
//! vm.register_irqfd(&irq, gsi)?;                                  // edge: one write, one interrupt
//! let page = RegisterPages::new(1).pages().next()?;                   // which the guest may have as memory
//! let transport = MmioTransport::new(memory.clone(), device.clone(), irq, page)?;
//! for (index, event) in transport.queue_events().iter().enumerate() {
//!     vm.register_ioevent(event, &IoEventAddress::Mmio(base + NOTIFY_OFFSET), index as u32)?;
//! }
//! bus.insert(base, memory::MMIO_WINDOW_BYTES, Box::new(transport)); // registers, on vCPU threads
//! event_manager.add_subscriber(Box::new(device));                 // queues and back end, on the event loop
//! ```
//! [`Shared`] is a `MutEventSubscriber` of the event manager, so `EventManager<Box<dyn MutEventSubscriber>>`
//! holds devices beside anything else. It registers its queue events when it is added, so add it before the
//! vCPUs run.
//!
//! # Threads
//! Registers are accessed by vCPU threads, queues are worked off by the event loop; one mutex per device stands
//! between. Activation happens on the vCPU that writes `DRIVER_OK`; it then kicks every queue once, which is how
//! the event loop learns of it. A reset takes the mutex and waits for what the kernel works on, so after it no request is in
//! flight.

pub mod balloon;
pub mod block;
pub mod console;
pub mod limiter;
pub mod link;
pub mod mem;
pub mod mmio;
#[cfg(any(test, feature = "mock"))]
pub mod mock;
pub mod negotiation;
pub mod net;
pub mod pci;
pub mod pmem;
pub mod queue;
pub mod rng;
pub mod spec;
pub mod state;
#[cfg(test)]
mod tests;
pub mod vsock;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use storage::format::Disk;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::timerfd::TimerFd;

use crate::config::{Addressing, DiskLimits, Traffic};
use crate::memory::GuestMemory;
use crate::rpc::{DiskCounts, DiskEngine, NicStatus};

pub use block::build_block;
pub use net::build_net;
pub use rng::build_rng;
pub use state::{DeviceState, StateError, TransportState};

/// A device shared by its transport (vCPU threads) and the event loop.
pub type Shared = Arc<Mutex<dyn VirtioDevice>>;

/// Why a device or its transport could not be built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel gave no eventfd or timer.
    #[error("make an event descriptor")]
    EventFd(#[source] io::Error),
    /// The tap refused to be set up.
    #[error("set up the tap: {what}")]
    Tap {
        /// The failed step.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The device cannot be a PCI function.
    #[error(transparent)]
    Pci(#[from] crate::pci::Error),
    /// A configured value cannot be offered to a guest.
    #[error("{what} is {value}, allowed are {allowed}")]
    Config {
        /// The value's name.
        what: &'static str,
        /// The value.
        value: String,
        /// What would have been taken.
        allowed: &'static str,
    },
    /// A limit of a device that is none.
    #[error("the {what} is {value}, allowed are 1 to {max}", max = crate::config::LIMIT_MAX)]
    Limit {
        /// Which.
        what: String,
        /// The value.
        value: u64,
    },
}

/// How a device tells the driver that something happened; made by the transport.
///
/// All calls may come from any thread.
pub trait Interrupt: Send + Sync {
    /// Buffers of queue `index` were used (VIRTIO 1.3 §2.9, "used buffer notification").
    fn queue_used(&self, index: u16);
    /// The device's configuration changed, and begins with `config` now (§2.3.2). Called by who holds the device.
    fn config_changed(&self, config: &[u8]);
    /// As [`Self::config_changed`], of a change that the driver has asked for and looks for by itself.
    fn show_config(&self, config: &[u8]);
    /// The device cannot go on: sets `DEVICE_NEEDS_RESET` (§2.1.2) and says so once.
    fn needs_reset(&self);
    /// Whether [`Self::needs_reset`] was called since the last reset.
    fn is_broken(&self) -> bool;
    /// The driver reset the device: nothing is pending.
    fn reset(&self);
}

/// What a driver hands over with `DRIVER_OK`.
pub struct Activation {
    /// The guest's memory.
    pub memory: GuestMemory,
    /// One checked queue per entry of [`VirtioDevice::queue_sizes`], in that order; one that the driver need not set up and
    /// has not is not in use.
    pub queues: Vec<queue::VirtQueue>,
    /// The negotiated features.
    pub features: u64,
    /// The way back to the driver.
    pub interrupt: Arc<dyn Interrupt>,
}

impl Activation {
    /// Tells the driver of what was used of queue `index`, if it wants to hear of it.
    fn signal(&mut self, index: usize) {
        if self.queues[index].take_signal() {
            // A device has a handful of queues.
            self.interrupt.queue_used(index as u16);
        }
    }

    /// The same of all queues.
    fn signal_all(&mut self) {
        (0..self.queues.len()).for_each(|index| self.signal(index));
    }

    /// Has the driver not notify of these queues while the event loop is awake and looks, or notify again: of what it made available
    /// in between the device is told by their `events`. While the guest stands still (`held`), so does its memory: nobody looks,
    /// and nothing is said; once it goes on, all queues are worked off.
    fn watch(
        &mut self,
        queues: impl Iterator<Item = usize>,
        (awake, held): (bool, bool),
        events: &[EventFd],
    ) {
        for index in queues {
            let queue = &mut self.queues[index];
            queue.watch(awake && !held);
            if held || !queue.is_used() {
                continue;
            }
            if awake {
                queue.suppress_notifications();
            } else if queue.allow_notifications() {
                kick(&events[index]);
            }
        }
    }

    /// Grows with whatever is used in any queue.
    fn used(&self) -> u64 {
        self.queues.iter().map(|queue| u64::from(queue.position().next_used)).sum()
    }

    /// What follows when queue `index` was worked off: the driver hears of it, and what was more than a batch is worked off
    /// when the event loop has served its other devices.
    fn settle(
        &mut self,
        index: usize,
        progress: queue::Progress,
        events: &[EventFd],
    ) -> Result<queue::Progress, queue::QueueError> {
        self.signal(index);
        if progress == queue::Progress::More {
            kick(&events[index]);
        }
        Ok(progress)
    }
}

/// One device, without its transport.
///
/// As an event subscriber it registers its queue events in `init` and works off its queues in `process`; before
/// activation and after a reset it drains its events and does nothing else.
pub trait VirtioDevice: MutEventSubscriber + Send {
    /// The device type (VIRTIO 1.3 §5, [`spec::device_type`]).
    fn device_type(&self) -> u32;

    /// The largest size of each queue; powers of two, at most 32768.
    fn queue_sizes(&self) -> &[u16];

    /// Whether a driver that accepted `features` cannot start the device without queue `index`.
    fn needs_queue(&self, _index: usize, _features: u64) -> bool {
        true
    }

    /// One event per queue, written for every notification of the driver.
    fn queue_events(&self) -> &[EventFd];

    /// The features that this type offers; the transport adds `VERSION_1` and the ring features.
    fn features(&self) -> u64;

    /// Reads configuration space; bytes beyond its end read as zeros.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes configuration space; what cannot be written, as in most devices' all of it, is ignored.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// The driver is ready; called once between two resets.
    fn activate(&mut self, activation: Activation);

    /// Back to the state before activation: no queue is touched from here on.
    fn reset(&mut self);

    /// What of the device a guest would miss that goes on elsewhere, with where its queues stand. Called while the guest is
    /// paused and the device held, on the thread of the event loop: nothing is in flight then. What may be made anew
    /// is left out.
    fn save(&self) -> DeviceState;

    /// Takes over the device's own part of what [`Self::save`] gave, before [`Self::activate`]. The device has the
    /// configuration and the back end that it is given now; only what the guest knows of it and would miss is taken over.
    ///
    /// # Errors
    /// It does not fit: the device must not be used.
    fn restore(&mut self, own: &[u8]) -> Result<(), StateError>;

    /// What was taken over is this device's own guest's, in another process: it need not be told what it knows of itself.
    fn continue_as_before(&mut self) {}

    /// Whether something is under way by which a guest learns that it is another, and which another process would not end.
    fn is_introducing(&self) -> bool {
        false
    }

    /// The guest stands still, or goes on: a device whose back end somebody may look at meanwhile changes nothing there
    /// while it is held, and takes up what waits in its queues when it is let go.
    fn hold(&mut self, _held: bool) {}

    /// The network is closed to a guest that goes on and does not know yet that it is another, or it is open: while it is closed, no
    /// packet of a network device goes either way, and what its driver commands is done as ever, since a driver may wait for that
    /// before it does anything else. A device that is held does neither.
    fn close(&mut self, _closed: bool) {}

    /// When it began with what it did since the last call, if that was worth staying awake for: its driver is about to make more
    /// requests.
    fn take_busy(&mut self) -> Option<Instant> {
        None
    }

    /// The event loop stays awake from now on, or no longer: meanwhile it calls [`Self::look`] all the time, so that the driver
    /// need not notify.
    fn stay_awake(&mut self, _awake: bool) {}

    /// Works off what the driver made available without notifying, and what its back end has.
    fn look(&mut self, _ops: &mut EventOps<'_>) {}

    /// Answers otherwise to the guest if it is the network device with that MAC address and answers anything; whether it
    /// is.
    fn readdress(&mut self, _mac: [u8; 6], _addressing: &Addressing) -> bool {
        false
    }

    /// Serves another disk from now on, which has all that the one before had, and tells the guest of its size; nothing if
    /// it is no disk. The file of the one before, if that was in one and can be held on to.
    fn replace_disk(&mut self, _disk: Box<dyn Disk>) -> Option<OwnedFd> {
        None
    }

    /// Holds the guest to something else if this is a disk; whether it is. What waited for a limit is tried anew.
    ///
    /// # Errors
    /// A limit out of range: what held still does.
    fn limit(&mut self, _limits: &DiskLimits) -> Result<bool, Error> {
        Ok(false)
    }

    /// What the guest is held to, if this is a disk.
    fn limits(&self) -> Option<DiskLimits> {
        None
    }

    /// How requests reach the back end, if this is a disk.
    fn engine(&self) -> Option<DiskEngine> {
        None
    }

    /// What became of its requests, if this is a disk.
    fn requests(&self) -> Option<DiskCounts> {
        None
    }

    /// Whether the disk lies encrypted, if this is one.
    fn is_encrypted(&self) -> bool {
        false
    }

    /// Gives its ring away, if it has one, and does without from now on: nobody drives it any more.
    fn take_ring(&mut self) -> Option<block::ring::Ring> {
        None
    }

    /// Carries the answer to a question of the guest's to it, in the VLAN that it was asked in, if this is the network device
    /// with that MAC address; whether it is.
    fn answer(&mut self, _at: ([u8; 6], Option<u16>), _number: u32, _message: &[u8]) -> bool {
        false
    }

    /// Holds the guest's traffic to something else if it is the network device with that MAC address; whether it is.
    ///
    /// # Errors
    /// A limit out of range: what held still does.
    fn reshape(&mut self, _mac: [u8; 6], _traffic: &Traffic) -> Result<bool, Error> {
        Ok(false)
    }

    /// Its pairs of queues with what went through them, if it is a network device.
    fn pairs(&self) -> Option<NicStatus> {
        None
    }

    /// Has its back end show all that the device was given and said to have done.
    ///
    /// # Errors
    /// The back end's.
    fn write_out(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the VMM needs of a transport beside [`crate::bus::BusDevice`].
pub trait Transport: crate::bus::BusDevice {
    /// One event per queue; a write of 1 works the queue off.
    fn queue_events(&self) -> &[EventFd];
    /// Becomes true once a driver has started the device, and stays so.
    fn driven(&self) -> Arc<AtomicBool>;
    /// What went through each queue.
    fn passed(&self) -> &[Arc<queue::Passed>];
    /// Registers and device, while the guest stands still.
    fn save(&self) -> TransportState;
    /// Takes over what [`Self::save`] gave; called once, before a guest has touched a register. If the driver had started
    /// the device, it is started here, and all its queues are due to be looked at.
    ///
    /// # Errors
    /// It does not fit: the transport must not be used.
    fn restore(&mut self, state: &TransportState) -> Result<(), StateError>;
}

/// Copies the part of `space` at `offset` into `data`; bytes beyond the end are zero.
pub(crate) fn read_config_bytes(space: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let Ok(start) = usize::try_from(offset) else { return };
    let Some(rest) = space.get(start..) else { return };
    let length = rest.len().min(data.len());
    data[..length].copy_from_slice(&rest[..length]);
}

/// One event per queue.
pub(crate) fn queue_event_fds(count: usize) -> Result<Vec<EventFd>, Error> {
    (0..count).map(|_| EventFd::new(EFD_NONBLOCK).map_err(Error::EventFd)).collect()
}

/// Registers `source` with the event loop; a refusal leaves the device deaf, which is our own failure.
pub(crate) fn watch(ops: &mut EventOps<'_>, source: &impl AsRawFd, events: EventSet) {
    if let Err(error) = ops.add(Events::new(source, events)) {
        tracing::error!(%error, "a virtio device cannot listen to one of its events");
    }
}

/// Consumes a pending event, if there is one.
pub(crate) fn drain(event: &EventFd) {
    // Not readable means that nothing is pending.
    let _ = event.read();
}

/// Makes an event pending. The write fails only where the counter would overflow: then it is pending already.
pub(crate) fn kick(event: &EventFd) {
    let _ = event.write(1);
}

/// Lets `timer` fire once after `delay`, or not at all; an event of it that is pending is forgotten.
pub(crate) fn arm(timer: &mut TimerFd, delay: Option<Duration>) {
    // A delay of zero would disarm.
    let armed = match delay {
        Some(delay) => timer.reset(delay.max(Duration::from_micros(1)), None),
        None => timer.clear(),
    };
    if let Err(error) = armed {
        tracing::error!(%error, "a device cannot set its timer");
    }
}

/// The driver broke a queue: say so once and ask for a reset.
pub(crate) fn broken(active: &Activation, device_type: u32, error: queue::QueueError) {
    tracing::debug!(device.r#type = device_type, %error, "a guest broke a virtio device's queue");
    active.interrupt.needs_reset();
}
