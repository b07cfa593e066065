//! Memory that comes and goes: plugged from the lowest block on and given back from the highest, as the host asks. It is
//! read and written by commands, as persistent memory is, whether it is plugged or not.
//!
//! Must never know: what the bytes are.

use alloc::rc::Rc;
use core::cell::{Cell, RefCell};

use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::Transport as _;

use crate::machine::Machine;
use crate::memory::Identity;
use crate::pmem::Pmem;
use crate::transport::{Acknowledge, Transport};

/// VIRTIO 1.3 §5.15 and §6.
const F_VERSION_1: u64 = 1 << 32;
const CONFIG_BLOCK: usize = 0;
const CONFIG_ADDRESS: usize = 16;
const CONFIG_REGION: usize = 24;
const CONFIG_PLUGGED: usize = 40;
const CONFIG_REQUESTED: usize = 48;
const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const ACK: [u8; 2] = [0, 0];
/// Blocks that come or go at once.
const BLOCKS_AT_ONCE: u64 = 16;

type Queue = VirtQueue<Identity, 8>;

/// One device.
pub struct Hotplug {
    inner: RefCell<Inner>,
    acknowledge: Acknowledge,
    /// The device may have something new to say.
    changed: Cell<bool>,
}

struct Inner {
    transport: Transport,
    queue: Queue,
    start: u64,
    bytes: u64,
    block_bytes: u64,
    /// Blocks that are plugged.
    plugged: u64,
}

impl Hotplug {
    /// Sets the device up.
    pub fn new(mut transport: Transport) -> Result<Self, virtio_drivers::Error> {
        let acknowledge = transport.acknowledge();
        transport.begin();
        transport.hear_changes();
        transport.accept(F_VERSION_1);
        let queue = Queue::new(&mut transport, 0, false, false)?;
        transport.finish();
        let number = |at| number(&transport, at);
        let (start, bytes, block_bytes) =
            (number(CONFIG_ADDRESS)?, number(CONFIG_REGION)?, number(CONFIG_BLOCK)?.max(1));
        let plugged = number(CONFIG_PLUGGED)? / block_bytes;
        let inner = Inner { transport, queue, start, bytes, block_bytes, plugged };
        Ok(Hotplug { inner: RefCell::new(inner), acknowledge, changed: Cell::new(true) })
    }

    /// Acknowledges an interrupt, if it is this device's.
    pub fn acknowledge(&self) {
        self.acknowledge.give();
        self.changed.set(true);
    }

    /// The memory, if it lies where it can be reached.
    pub fn memory(&self) -> Option<Pmem> {
        let inner = self.inner.borrow();
        Pmem::at(inner.start, inner.bytes)
    }
}

/// A number of the configuration space, which is read by halves.
fn number(transport: &Transport, at: usize) -> Result<u64, virtio_drivers::Error> {
    let [low, high]: [u32; 2] = [transport.read_config_space(at)?, transport.read_config_space(at + 4)?];
    Ok(u64::from(high) << 32 | u64::from(low))
}

impl Inner {
    /// Plugs or gives back until it is as the host asks, or the host does not want to.
    fn follow(&mut self) -> Result<(), virtio_drivers::Error> {
        let wanted = number(&self.transport, CONFIG_REQUESTED)? / self.block_bytes;
        while self.plugged != wanted {
            let (kind, first, count) = if wanted > self.plugged {
                (PLUG, self.plugged, (wanted - self.plugged).min(BLOCKS_AT_ONCE))
            } else {
                let count = (self.plugged - wanted).min(BLOCKS_AT_ONCE);
                (UNPLUG, self.plugged - count, count)
            };
            let mut request = [0; 24];
            request[..2].copy_from_slice(&kind.to_le_bytes());
            request[8..16].copy_from_slice(&(self.start + first * self.block_bytes).to_le_bytes());
            request[16..18].copy_from_slice(&(count as u16).to_le_bytes());
            let mut response = [0xff; 10];
            self.queue.add_notify_wait_pop(&[&request], &mut [&mut response], &mut self.transport)?;
            if response[..2] != ACK {
                crate::println!("hotplug: refused");
                return Ok(());
            }
            self.plugged = if kind == PLUG { first + count } else { first };
        }
        Ok(())
    }
}

/// Does what the host asks, for good.
pub async fn serve(machine: &'static Machine, hotplug: Rc<Hotplug>) {
    loop {
        machine.wait(|| hotplug.changed.take().then_some(())).await;
        if let Err(error) = hotplug.inner.borrow_mut().follow() {
            crate::println!("hotplug: {error}");
        }
    }
}
