//! A load for whoever measures a VMM's disks: 4 KiB at random places of the first disk, read and written, one at a time and
//! many at a time, each for as long as the word `load=MILLISECONDS` of the command line says. What is on the disk is lost.
//!
//! The queue is driven as Linux drives it, with event indices where the device has them (VIRTIO 1.3 §2.7.7.1, §2.7.10.1): the
//! device is told of what it cannot have seen, and interrupts only who sleeps.
//!
//! Must never know: who measures.

#![expect(unsafe_code, reason = "the queue's memory is the device's as well")]

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{Ordering, fence};

use virtio_drivers::transport::{DeviceStatus, Transport as _};

use crate::clock::Clock;
use crate::entry::interrupts_taken;
use crate::transport::Transport;
use crate::{console, println};

/// Descriptors: three for each request.
const SIZE: u16 = 128;
/// Requests at a time, at the most.
const DEPTH_MAX: u16 = 32;
/// Bytes of a request.
const BLOCK_BYTES: usize = 4096;
const SECTORS: u64 = BLOCK_BYTES as u64 / 512;
/// How long outcomes are waited for awake, in nanoseconds.
const AWAKE_NS: u64 = 50_000;
/// How long a sleep lasts before the device is looked at without an interrupt, in nanoseconds.
const LOOK_NS: u64 = 10_000_000;

/// VIRTIO 1.3 §6, §5.2.6 and §2.7.5.
const F_EVENT_IDX: u64 = 1 << 29;
const F_VERSION_1: u64 = 1 << 32;
const F_FLUSH: u64 = 1 << 9;
const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const NO_NOTIFY: u16 = 1;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Descriptor {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}

#[repr(C)]
struct Available {
    flags: u16,
    index: u16,
    ring: [u16; SIZE as usize],
    used_event: u16,
}

#[repr(C, align(4))]
struct Used {
    flags: u16,
    index: u16,
    ring: [[u32; 2]; SIZE as usize],
    available_event: u16,
}

#[repr(C, align(4096))]
struct Queue {
    descriptors: [Descriptor; SIZE as usize],
    available: Available,
    used: Used,
}

#[repr(C, align(4096))]
struct Slot {
    data: [u8; BLOCK_BYTES],
    kind: u32,
    reserved: u32,
    sector: u64,
    status: u8,
}

/// The first disk, for a load.
pub struct Load {
    transport: Transport,
    queue: Box<Queue>,
    slots: Vec<Box<Slot>>,
    has_events: bool,
    blocks: u64,
    /// What was made available, what the device was told of, and what was taken back.
    given: u16,
    told: u16,
    taken: u16,
    random: u64,
}

impl Load {
    /// Takes the device over; none that is smaller than a block.
    pub fn new(mut transport: Transport) -> Option<Self> {
        transport.set_status(DeviceStatus::empty());
        // Step by step: there are devices that take no two at once.
        transport.set_status(DeviceStatus::ACKNOWLEDGE);
        transport.set_status(DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER);
        let features = transport.read_device_features() & (F_EVENT_IDX | F_VERSION_1 | F_FLUSH);
        transport.write_driver_features(features);
        let ready = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER | DeviceStatus::FEATURES_OK;
        transport.set_status(ready);
        // In two halves, as far as a register window goes.
        let [low, high]: [u32; 2] =
            [transport.read_config_space(0).ok()?, transport.read_config_space(4).ok()?];
        let sectors = u64::from(high) << 32 | u64::from(low);
        let mut queue = Box::new(Queue {
            descriptors: [Descriptor::default(); SIZE as usize],
            available: Available { flags: 0, index: 0, ring: [0; SIZE as usize], used_event: 0 },
            used: Used { flags: 0, index: 0, ring: [[0; 2]; SIZE as usize], available_event: 0 },
        });
        let slot = || Slot { data: [0x5a; BLOCK_BYTES], kind: 0, reserved: 0, sector: 0, status: 0 };
        let slots: Vec<Box<Slot>> = (0..DEPTH_MAX).map(|_| Box::new(slot())).collect();
        for (number, slot) in (0..).step_by(3).zip(&slots) {
            let at = usize::from(number);
            let part = |address: u64, length: u32, flags: u16, next: u16| Descriptor {
                address,
                length,
                flags,
                next,
            };
            queue.descriptors[at] = part(&raw const slot.kind as u64, 16, NEXT, number + 1);
            queue.descriptors[at + 1] =
                part(&raw const slot.data as u64, BLOCK_BYTES as u32, NEXT, number + 2);
            queue.descriptors[at + 2] = part(&raw const slot.status as u64, 1, WRITE, 0);
        }
        let address = |part: *const u8| part as u64;
        transport.queue_set(
            0,
            SIZE.into(),
            address((&raw const queue.descriptors).cast()),
            address((&raw const queue.available).cast()),
            address((&raw const queue.used).cast()),
        );
        transport.set_status(ready | DeviceStatus::DRIVER_OK);
        let (blocks, has_events) = (sectors / SECTORS, features & F_EVENT_IDX != 0);
        let load = Load {
            transport,
            queue,
            slots,
            has_events,
            blocks,
            given: 0,
            told: 0,
            taken: 0,
            random: 0x5851_f42d_4c95_7f2d,
        };
        (blocks > 0).then_some(load)
    }

    /// Runs all of it, and says on the console when each part begins and what came of it.
    pub fn run(&mut self, clock: &Clock, milliseconds: u64) {
        for (name, kind) in [("read", T_IN), ("write", T_OUT)] {
            for depth in [1, DEPTH_MAX] {
                println!("load: begin {name} {depth}");
                console::flush();
                let started = clock.now_ns();
                let (count, failed) = self.part(clock, kind, depth, started + milliseconds * 1_000_000);
                let us = (clock.now_ns() - started) / 1000;
                println!("load: end {name} {depth} {count} requests {failed} failed {us} us");
                console::flush();
            }
        }
        println!("load: done");
        console::flush();
    }

    fn part(&mut self, clock: &Clock, kind: u32, depth: u16, until_ns: u64) -> (u64, u64) {
        let (mut count, mut failed) = (0, 0);
        (0..depth).for_each(|slot| self.give(slot, kind));
        self.tell();
        let mut under_way = depth;
        while under_way > 0 {
            let number = self.take(clock);
            count += 1;
            failed += u64::from(self.status(number) != 0);
            if clock.now_ns() < until_ns {
                self.give(number, kind);
                // What else is done goes along.
                if !self.has_used() {
                    self.tell();
                }
            } else {
                under_way -= 1;
            }
        }
        (count, failed)
    }

    fn status(&self, number: u16) -> u8 {
        // SAFETY: a byte of a slot of ours, which the device has written.
        unsafe { (&raw const self.slots[usize::from(number)].status).read_volatile() }
    }

    /// Makes one request available.
    fn give(&mut self, number: u16, kind: u32) {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let slot = &raw mut *self.slots[usize::from(number)];
        let data = &raw mut self.queue.descriptors[usize::from(number) * 3 + 1].flags;
        let place = &raw mut self.queue.available.ring[usize::from(self.given % SIZE)];
        self.given = self.given.wrapping_add(1);
        let index = &raw mut self.queue.available.index;
        // SAFETY: all of these are ours, and the device does not look at them before it is told by the index.
        unsafe {
            (&raw mut (*slot).kind).write_volatile(kind);
            (&raw mut (*slot).sector).write_volatile(self.random % self.blocks * SECTORS);
            (&raw mut (*slot).status).write_volatile(0xff);
            data.write_volatile(if kind == T_IN { NEXT | WRITE } else { NEXT });
            place.write_volatile(number * 3);
            fence(Ordering::Release);
            index.write_volatile(self.given);
        }
    }

    /// Notifies the device, if it wants to hear of what was given since.
    fn tell(&mut self) {
        fence(Ordering::SeqCst);
        let wanted = if self.has_events {
            // SAFETY: the device's part of the ring, which is ours to read.
            let event = unsafe { (&raw const self.queue.used.available_event).read_volatile() };
            self.given.wrapping_sub(event).wrapping_sub(1) < self.given.wrapping_sub(self.told)
        } else {
            // SAFETY: likewise.
            unsafe { (&raw const self.queue.used.flags).read_volatile() & NO_NOTIFY == 0 }
        };
        self.told = self.given;
        if wanted {
            self.transport.notify(0);
        }
    }

    fn has_used(&self) -> bool {
        // SAFETY: the device's part of the ring, which is ours to read.
        unsafe { (&raw const self.queue.used.index).read_volatile() != self.taken }
    }

    /// Waits for one request, awake for a while, then asleep; its number.
    fn take(&mut self, clock: &Clock) -> u16 {
        let awake_until = clock.now_ns() + AWAKE_NS;
        while !self.has_used() {
            if clock.now_ns() < awake_until {
                core::hint::spin_loop();
                continue;
            }
            let seen = interrupts_taken();
            self.want_interrupt(true);
            if !self.has_used() {
                clock.sleep_until(Some(clock.now_ns() + LOOK_NS), seen);
                self.transport.ack_interrupt();
            }
            self.want_interrupt(false);
        }
        fence(Ordering::Acquire);
        let place = &raw const self.queue.used.ring[usize::from(self.taken % SIZE)][0];
        self.taken = self.taken.wrapping_add(1);
        // SAFETY: the device's part of the ring, which is ours to read.
        let head = unsafe { place.read_volatile() };
        // What the device may not say is taken for the first request.
        u16::try_from(head / 3).ok().filter(|number| *number < DEPTH_MAX).unwrap_or(0)
    }

    fn want_interrupt(&mut self, wanted: bool) {
        // One that is long past is not met for as many requests as there are numbers.
        let event = if wanted { self.taken } else { self.taken.wrapping_sub(1) };
        // SAFETY: both are ours to write.
        unsafe {
            (&raw mut self.queue.available.used_event).write_volatile(event);
            (&raw mut self.queue.available.flags).write_volatile(u16::from(!wanted));
        }
        fence(Ordering::SeqCst);
    }
}
