//! The driver's side of a device: a fake guest with its memory, registers and queues, for tests and fuzzers.
//!
//! It drives a device as a guest would: through either transport, with an event loop of its own. It is as free as a
//! guest to do what is forbidden: descriptors, rings and registers take any value.

mod link;
mod queue;
mod saved;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use event_manager::{EventManager, MutEventSubscriber, SubscriberId, SubscriberOps as _};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub use self::link::{PacketSocket, packet_pair};
pub use self::queue::{MockDescriptor, MockQueue, write_descriptor};
use super::mmio::MmioTransport;
use super::pci::{NOTIFY, NOTIFY_MULTIPLIER, PciTransport};
use super::spec::{feature, mmio, pci, status};
use super::{Error, Shared};
use crate::bus::BusDevice;
use crate::memory::registers::RegisterPages;
use crate::memory::{self, GuestMemory};
use crate::mutex::lock;
use crate::pci::PciFunction;
use crate::pci::Wiring;
use crate::pci::msix::Message;

/// The fake guest's memory: two regions with a hole between them, in bytes.
pub const MEMORY: [(GuestAddress, usize); 2] =
    [(GuestAddress(0), 0x20_0000), (GuestAddress(0x40_0000), 0x10_0000)];
/// Where buffers may be put: below, the queues live.
pub const BUFFERS_START: u64 = 0x10_0000;
/// Where queue `index` is put by [`MockGuest::set_up_queue`].
const QUEUES_START: u64 = 0x1_0000;
const QUEUE_STRIDE: u64 = 0x1_0000;
/// Turns of the event loop in [`MockGuest::run`]: a device that needs more for one event spins.
const TURNS_MAX: usize = 256;
/// More of configuration space than any device has.
const CONFIG_BYTES: usize = 128;

/// Where the function's registers begin: where the VMM would put the first one's.
pub const PCI_START: GuestAddress = memory::PCI_WINDOW_START;
/// Vectors that [`MockGuest::over_pci`] programs; a device's own are fewer.
const VECTORS_MAX: u64 = 8;
/// Where the MSI-X table lies in the BAR.
const TABLE: u64 = 0x4000;

/// A fake guest with one device.
pub struct MockGuest {
    /// Its memory.
    pub memory: GuestMemory,
    registers: Registers,
    events: EventManager<Box<dyn MutEventSubscriber>>,
    device: Shared,
    subscriber: SubscriberId,
}

enum Registers {
    Mmio { transport: MmioTransport, irq: EventFd },
    Pci { transport: Box<PciTransport>, wires: Arc<Wires> },
}

/// The machine around a function: counts messages, and keeps doorbells instead of ringing them.
#[derive(Default)]
pub struct Wires {
    messages: AtomicU64,
    doorbells: Mutex<Vec<GuestAddress>>,
}

impl Wires {
    /// The doorbells connected now, in the order in which they were.
    pub fn doorbells(&self) -> Vec<GuestAddress> {
        lock(&self.doorbells).clone()
    }
}

impl Wiring for Wires {
    fn send_message(&self, _message: Message) {
        self.messages.fetch_add(1, Ordering::AcqRel);
    }

    fn connect_doorbell(&self, _event: &EventFd, address: GuestAddress) -> bool {
        lock(&self.doorbells).push(address);
        true
    }

    fn disconnect_doorbell(&self, _event: &EventFd, address: GuestAddress) {
        let mut doorbells = lock(&self.doorbells);
        let before = doorbells.len();
        doorbells.retain(|connected| *connected != address);
        assert_eq!(doorbells.len() + 1, before, "{address:?} was connected once");
    }
}

impl MockGuest {
    /// Puts `device` into a fresh guest, behind a virtio-mmio window.
    pub fn new(device: Shared) -> Result<Self, Error> {
        let irq = EventFd::new(EFD_NONBLOCK).map_err(Error::EventFd)?;
        let irq_end = irq.try_clone().map_err(Error::EventFd)?;
        Self::build(device, |memory, device| {
            let page = RegisterPages::new(1).pages().next().expect("invariant: it is one page");
            Ok(Registers::Mmio { transport: MmioTransport::new(memory, device, irq_end, page)?, irq })
        })
    }

    /// Puts `device` into a fresh guest, behind a PCI function that the driver has switched on: it answers at
    /// [`PCI_START`], and all vectors of MSI-X interrupt.
    pub fn over_pci(device: Shared) -> Result<Self, Error> {
        let wires = Arc::new(Wires::default());
        let mut guest = Self::build(device, |memory, device| {
            let transport = PciTransport::new(memory, device, wires.clone(), PCI_START)?;
            Ok(Registers::Pci { transport: Box::new(transport), wires })
        })?;
        for vector in 0..VECTORS_MAX {
            guest.bus().write(TABLE + 16 * vector + 12, &[0; 4]);
        }
        let msix = guest.capability(0x11, None).expect("invariant: every function has MSI-X");
        guest.function().write_config(msix + 2, &0x8000_u16.to_le_bytes());
        Ok(guest)
    }

    fn build(
        device: Shared,
        registers: impl FnOnce(GuestMemory, Shared) -> Result<Registers, Error>,
    ) -> Result<Self, Error> {
        let memory = GuestMemory::from_ranges(&MEMORY).expect("invariant: the mock's memory is small");
        let registers = registers(memory.clone(), device.clone())?;
        let mut events: EventManager<Box<dyn MutEventSubscriber>> =
            EventManager::new().map_err(|error| Error::EventFd(io::Error::other(error)))?;
        let subscriber = events.add_subscriber(Box::new(device.clone()));
        Ok(Self { memory, registers, events, device, subscriber })
    }

    /// Reads a register of 32 bits.
    pub fn read(&mut self, register: u32) -> u32 {
        let mut bytes = [0; 4];
        self.bus().read(u64::from(register), &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Writes a register of 32 bits.
    pub fn write(&mut self, register: u32, value: u32) {
        self.bus().write(u64::from(register), &value.to_le_bytes());
    }

    /// Reads a register of 16 bits, as the PCI transport has them.
    pub fn read_short(&mut self, register: u64) -> u16 {
        let mut bytes = [0; 2];
        self.bus().read(register, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// Writes a register of 16 bits.
    pub fn write_short(&mut self, register: u64, value: u16) {
        self.bus().write(register, &value.to_le_bytes());
    }

    /// Reads the device's configuration space.
    pub fn read_config<const N: usize>(&mut self, offset: u32) -> [u8; N] {
        let start = match self.registers {
            Registers::Mmio { .. } => mmio::CONFIG,
            Registers::Pci { .. } => 0x2000,
        };
        let mut bytes = [0; N];
        self.bus().read(u64::from(start + offset), &mut bytes);
        bytes
    }

    /// The registers, for accesses of odd widths and places.
    pub fn bus(&mut self) -> &mut dyn BusDevice {
        match &mut self.registers {
            Registers::Mmio { transport, .. } => transport,
            Registers::Pci { transport, .. } => &mut **transport,
        }
    }

    /// The PCI function.
    ///
    /// # Panics
    /// The guest has a virtio-mmio window.
    pub fn function(&mut self) -> &mut dyn PciFunction {
        match &mut self.registers {
            Registers::Mmio { .. } => panic!("the guest has no PCI"),
            Registers::Pci { transport, .. } => &mut **transport,
        }
    }

    /// The machine around the PCI function.
    ///
    /// # Panics
    /// As [`Self::function`].
    pub fn wires(&self) -> Arc<Wires> {
        match &self.registers {
            Registers::Mmio { .. } => panic!("the guest has no PCI"),
            Registers::Pci { wires, .. } => wires.clone(),
        }
    }

    /// Where in configuration space the capability `id` lies, of virtio's the one of `kind`.
    pub fn capability(&mut self, id: u8, kind: Option<u8>) -> Option<usize> {
        let function = self.function();
        let mut byte = |at: usize| {
            let mut bytes = [0];
            function.read_config(at, &mut bytes);
            bytes[0]
        };
        let mut at = usize::from(byte(0x34));
        while at != 0 {
            if byte(at) == id && kind.is_none_or(|kind| byte(at + 3) == kind) {
                return Some(at);
            }
            at = usize::from(byte(at + 1));
        }
        None
    }

    fn is_pci(&self) -> bool {
        matches!(self.registers, Registers::Pci { .. })
    }

    /// The status.
    pub fn status(&mut self) -> u32 {
        if !self.is_pci() {
            return self.read(mmio::STATUS);
        }
        let mut byte = [0];
        self.bus().read(pci::DEVICE_STATUS, &mut byte);
        byte[0].into()
    }

    /// Writes the status.
    pub fn set_status(&mut self, value: u32) {
        if self.is_pci() {
            // Its register has eight bits.
            self.bus().write(pci::DEVICE_STATUS, &[value as u8]);
        } else {
            self.write(mmio::STATUS, value);
        }
    }

    /// The features offered.
    pub fn offered(&mut self) -> u64 {
        let (select, features) = if self.is_pci() {
            (pci::DEVICE_FEATURE_SELECT as u32, pci::DEVICE_FEATURE as u32)
        } else {
            (mmio::DEVICE_FEATURES_SEL, mmio::DEVICE_FEATURES)
        };
        self.write(select, 0);
        let low = self.read(features);
        self.write(select, 1);
        u64::from(low) | u64::from(self.read(features)) << 32
    }

    /// Goes up to `FEATURES_OK` with `features` and `VERSION_1`; the status that results.
    pub fn negotiate(&mut self, features: u64) -> u32 {
        let (select, accept) = if self.is_pci() {
            (pci::DRIVER_FEATURE_SELECT as u32, pci::DRIVER_FEATURE as u32)
        } else {
            (mmio::DRIVER_FEATURES_SEL, mmio::DRIVER_FEATURES)
        };
        self.set_status(0);
        self.set_status(status::ACKNOWLEDGE);
        self.set_status(status::ACKNOWLEDGE | status::DRIVER);
        let features = features | feature::VERSION_1;
        for half in 0..2 {
            self.write(select, half);
            // Truncation is the point: one half at a time.
            self.write(accept, (features >> (32 * half)) as u32);
        }
        self.set_status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
        self.status()
    }

    /// Lays out queue `index` with `size` descriptors and makes it ready.
    pub fn set_up_queue(&mut self, index: u16, size: u16) -> MockQueue {
        let start = QUEUES_START + u64::from(index) * QUEUE_STRIDE;
        let queue = MockQueue::at(start, index, size);
        let zeros = vec![0; QUEUE_STRIDE as usize];
        self.memory
            .write_slice(&zeros, GuestAddress(start))
            .expect("invariant: queues lie in the mock's memory");
        self.place_queue(&queue);
        queue
    }

    /// Tells the device where `queue` lies and makes it ready; over PCI with a vector of its own behind the
    /// configuration's.
    pub fn place_queue(&mut self, queue: &MockQueue) {
        if self.is_pci() {
            return self.place_queue_over_pci(queue);
        }
        self.write(mmio::QUEUE_SEL, u32::from(queue.index));
        self.write(mmio::QUEUE_SIZE, u32::from(queue.size));
        let parts = [
            (mmio::QUEUE_DESC_LOW, mmio::QUEUE_DESC_HIGH, queue.descriptors),
            (mmio::QUEUE_DRIVER_LOW, mmio::QUEUE_DRIVER_HIGH, queue.available),
            (mmio::QUEUE_DEVICE_LOW, mmio::QUEUE_DEVICE_HIGH, queue.used),
        ];
        for (low, high, address) in parts {
            self.write(low, address as u32);
            self.write(high, (address >> 32) as u32);
        }
        self.write(mmio::QUEUE_READY, 1);
    }

    fn place_queue_over_pci(&mut self, queue: &MockQueue) {
        self.write_short(pci::CONFIG_MSIX_VECTOR, 0);
        self.write_short(pci::QUEUE_SELECT, queue.index);
        self.write_short(pci::QUEUE_SIZE, queue.size);
        self.write_short(pci::QUEUE_MSIX_VECTOR, queue.index + 1);
        let parts = [
            (pci::QUEUE_DESC, queue.descriptors),
            (pci::QUEUE_DRIVER, queue.available),
            (pci::QUEUE_DEVICE, queue.used),
        ];
        for (register, address) in parts {
            self.bus().write(register, &address.to_le_bytes());
        }
        self.write_short(pci::QUEUE_ENABLE, 1);
    }

    /// Sets `DRIVER_OK`; the status that results.
    pub fn start(&mut self) -> u32 {
        let all = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
        self.set_status(all);
        self.status()
    }

    /// All of the above: negotiates `features` and starts with one queue per entry of `sizes`.
    pub fn bring_up(&mut self, features: u64, sizes: &[u16]) -> Vec<MockQueue> {
        self.negotiate(features);
        let indices = 0_u16..;
        let queues = indices.zip(sizes).map(|(index, &size)| self.set_up_queue(index, size)).collect();
        self.start();
        self.run();
        queues
    }

    /// Whether the device asks for a reset.
    pub fn needs_reset(&mut self) -> bool {
        self.status() & status::NEEDS_RESET != 0
    }

    /// Notifies queue `index` and lets the device work.
    pub fn kick(&mut self, index: u16) {
        if self.is_pci() {
            self.write_short(u64::from(NOTIFY + u32::from(index) * NOTIFY_MULTIPLIER), index);
        } else {
            self.write(mmio::QUEUE_NOTIFY, u32::from(index));
        }
        self.run();
    }

    /// Lets the device's event loop run until nothing is pending; false if it does not come to rest.
    ///
    /// # Panics
    /// What a driver would read of the configuration then is not the device's, which it is driving.
    pub fn run(&mut self) -> bool {
        let rests = (0..TURNS_MAX).any(|_| self.events.run_with_timeout(0).is_ok_and(|events| events == 0));
        if self.status() & (status::DRIVER_OK | status::NEEDS_RESET | status::FAILED) == status::DRIVER_OK {
            let (shown, mut config) = (self.read_config(0), [0; CONFIG_BYTES]);
            lock(&self.device).read_config(0, &mut config);
            assert_eq!(shown, config, "configuration space");
        }
        rests
    }

    /// Has the event loop stay awake, or sleep from now on.
    pub fn stay_awake(&mut self, awake: bool) {
        lock(&self.device).stay_awake(awake);
    }

    /// Has an event loop that is awake look at the device.
    pub fn look(&mut self) {
        let mut ops = self.events.event_ops(self.subscriber).expect("invariant: it is the loop's");
        lock(&self.device).look(&mut ops);
    }

    /// Lets the device's event loop wait for one event, `timeout_ms` at most.
    pub fn wait(&mut self, timeout_ms: i32) {
        if let Err(error) = self.events.run_with_timeout(timeout_ms) {
            panic!("the event loop failed: {error}");
        }
    }

    /// Interrupts raised since the last call.
    pub fn take_interrupts(&mut self) -> u64 {
        match &self.registers {
            Registers::Mmio { irq, .. } => irq.read().unwrap_or(0),
            Registers::Pci { wires, .. } => wires.messages.swap(0, Ordering::AcqRel),
        }
    }

    /// Writes into guest memory.
    pub fn put(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).expect("invariant: tests write inside memory");
    }

    /// Reads guest memory.
    pub fn get(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory
            .read_slice(&mut bytes, GuestAddress(address))
            .expect("invariant: tests read inside memory");
        bytes
    }
}
