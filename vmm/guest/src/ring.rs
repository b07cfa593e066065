//! A split virtqueue as a driver in a hurry sees it (VIRTIO 1.3 §2.7), driven as Linux drives it: with event indices where the
//! device has them (§2.7.7.1, §2.7.10.1), so that the device is told of what it cannot have seen, and interrupts only who sleeps.
//!
//! Must never know: what the chains mean.

#![expect(unsafe_code, reason = "the ring's memory is the device's as well")]

use alloc::boxed::Box;
use core::sync::atomic::{Ordering, fence};

use virtio_drivers::transport::Transport as _;

use crate::clock::Clock;
use crate::entry::interrupts_taken;
use crate::transport::Transport;

/// VIRTIO 1.3 §6 and §2.7.5.
pub const F_EVENT_IDX: u64 = 1 << 29;
/// The device is no legacy one.
pub const F_VERSION_1: u64 = 1 << 32;
/// The chain goes on.
pub const NEXT: u16 = 1;
/// The device writes.
pub const WRITE: u16 = 2;
const NO_NOTIFY: u16 = 1;

/// How long a sleep lasts before the device is looked at without an interrupt, in nanoseconds.
const LOOK_NS: u64 = 10_000_000;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Descriptor {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}

#[repr(C)]
struct Available<const SIZE: usize> {
    flags: u16,
    index: u16,
    ring: [u16; SIZE],
    used_event: u16,
}

#[repr(C, align(4))]
struct Used<const SIZE: usize> {
    flags: u16,
    index: u16,
    ring: [[u32; 2]; SIZE],
    available_event: u16,
}

#[repr(C, align(4096))]
struct Parts<const SIZE: usize> {
    descriptors: [Descriptor; SIZE],
    available: Available<SIZE>,
    used: Used<SIZE>,
}

/// A queue of `SIZE` descriptors, a power of two.
pub struct Ring<const SIZE: usize> {
    parts: Box<Parts<SIZE>>,
    has_events: bool,
    /// What was made available, what the device was told of, and what was taken back.
    given: u16,
    told: u16,
    taken: u16,
}

impl<const SIZE: usize> Ring<SIZE> {
    /// An empty one, for a device with these features.
    pub fn new(features: u64) -> Self {
        let parts = Box::new(Parts {
            descriptors: [Descriptor::default(); SIZE],
            available: Available { flags: 0, index: 0, ring: [0; SIZE], used_event: 0 },
            used: Used { flags: 0, index: 0, ring: [[0; 2]; SIZE], available_event: 0 },
        });
        Ring { parts, has_events: features & F_EVENT_IDX != 0, given: 0, told: 0, taken: 0 }
    }

    /// Shows it to the device as its queue of that number.
    pub fn show(&self, transport: &mut Transport, queue: u16) {
        let address = |part: *const u8| part as u64;
        transport.queue_set(
            queue,
            SIZE as u32,
            address((&raw const self.parts.descriptors).cast()),
            address((&raw const self.parts.available).cast()),
            address((&raw const self.parts.used).cast()),
        );
    }

    /// Writes a descriptor. The device must not have the chain that it is in.
    pub fn describe(&mut self, at: u16, address: u64, length: u32, flags: u16, next: u16) {
        let place = &raw mut self.parts.descriptors[usize::from(at) % SIZE];
        // SAFETY: the descriptor is ours, and the device does not look at it before its chain is given.
        unsafe { place.write_volatile(Descriptor { address, length, flags, next }) };
    }

    /// Makes the chain that begins with this descriptor available.
    pub fn give(&mut self, head: u16) {
        let place = &raw mut self.parts.available.ring[usize::from(self.given) % SIZE];
        self.given = self.given.wrapping_add(1);
        let index = &raw mut self.parts.available.index;
        // SAFETY: both are ours, and the device does not look at the place before it is told by the index.
        unsafe {
            place.write_volatile(head);
            fence(Ordering::Release);
            index.write_volatile(self.given);
        }
    }

    /// Whether the device wants to hear of what was given since this was last asked.
    pub fn must_tell(&mut self) -> bool {
        if self.told == self.given {
            return false;
        }
        fence(Ordering::SeqCst);
        let wanted = if self.has_events {
            // SAFETY: the device's part of the ring, which is ours to read.
            let event = unsafe { (&raw const self.parts.used.available_event).read_volatile() };
            self.given.wrapping_sub(event).wrapping_sub(1) < self.given.wrapping_sub(self.told)
        } else {
            // SAFETY: likewise.
            unsafe { (&raw const self.parts.used.flags).read_volatile() & NO_NOTIFY == 0 }
        };
        self.told = self.given;
        wanted
    }

    /// How many chains the device has used that nobody took.
    pub fn used(&self) -> u16 {
        // SAFETY: the device's part of the ring, which is ours to read.
        let index = unsafe { (&raw const self.parts.used.index).read_volatile() };
        fence(Ordering::Acquire);
        index.wrapping_sub(self.taken)
    }

    /// The first descriptor of the used chain that is `ahead` chains after the next, and how much the device wrote.
    pub fn peek(&self, ahead: u16) -> (u32, u32) {
        let place = &raw const self.parts.used.ring[usize::from(self.taken.wrapping_add(ahead)) % SIZE];
        // SAFETY: as in `used`.
        let [head, length] = unsafe { place.read_volatile() };
        (head, length)
    }

    /// Takes used chains back.
    pub fn take(&mut self, chains: u16) {
        self.taken = self.taken.wrapping_add(chains);
    }

    /// Whether the device shall interrupt for the next chain that it uses.
    pub fn want_interrupt(&mut self, wanted: bool) {
        // One that is long past is not met for as many chains as there are numbers.
        let event = if wanted { self.taken } else { self.taken.wrapping_sub(1) };
        // SAFETY: both are ours to write.
        unsafe {
            (&raw mut self.parts.available.used_event).write_volatile(event);
            (&raw mut self.parts.available.flags).write_volatile(u16::from(!wanted));
        }
        fence(Ordering::SeqCst);
    }
}

/// Waits for a used chain in any of these rings of a device, awake for the first time and then asleep, until one is there or the second
/// has come, both in nanoseconds. An interrupt of any kind may end it early.
pub fn wait<T, const SIZE: usize>(
    all: &mut [T],
    ring: impl Fn(&mut T) -> &mut Ring<SIZE>,
    transport: &mut Transport,
    clock: &Clock,
    (awake_ns, deadline_ns): (u64, u64),
) {
    let are_empty = |all: &mut [T]| all.iter_mut().all(|each| ring(each).used() == 0);
    let awake_until = clock.now_ns() + awake_ns;
    while are_empty(all) {
        let now = clock.now_ns();
        if now >= deadline_ns {
            return;
        }
        if now < awake_until {
            core::hint::spin_loop();
            continue;
        }
        let seen = interrupts_taken();
        all.iter_mut().for_each(|each| ring(each).want_interrupt(true));
        let is_empty = are_empty(all);
        if is_empty {
            clock.sleep_until(Some(deadline_ns.min(now + LOOK_NS)), seen);
            transport.ack_interrupt();
        }
        all.iter_mut().for_each(|each| ring(each).want_interrupt(false));
        if is_empty {
            return;
        }
    }
}
