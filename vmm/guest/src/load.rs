//! A load for whoever measures a VMM's disks: 4 KiB at random places of the first disk, read and written, one at a time and
//! many at a time, each for as long as the word `load=MILLISECONDS` of the command line says. What is on the disk is lost.
//!
//! Must never know: who measures.

#![expect(unsafe_code, reason = "requests' memory is the device's as well")]

use alloc::boxed::Box;
use alloc::vec::Vec;

use virtio_drivers::transport::Transport as _;

use crate::clock::Clock;
use crate::ring::{F_EVENT_IDX, F_VERSION_1, NEXT, Ring, WRITE, wait};
use crate::transport::Transport;
use crate::{console, println};

/// Descriptors: three for each request.
const SIZE: usize = 128;
/// Requests at a time, at the most.
const DEPTH_MAX: u16 = 32;
/// Bytes of a request.
const BLOCK_BYTES: usize = 4096;
const SECTORS: u64 = BLOCK_BYTES as u64 / 512;
/// How long outcomes are waited for awake, in nanoseconds.
const AWAKE_NS: u64 = 50_000;
/// VIRTIO 1.3 §5.2.6.
const F_FLUSH: u64 = 1 << 9;
const T_IN: u32 = 0;
const T_OUT: u32 = 1;

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
    ring: Ring<SIZE>,
    slots: Vec<Box<Slot>>,
    blocks: u64,
    random: u64,
}

impl Load {
    /// Takes the device over; none that is smaller than a block.
    pub fn new(mut transport: Transport) -> Option<Self> {
        let features = transport.begin() & (F_EVENT_IDX | F_VERSION_1 | F_FLUSH);
        transport.accept(features);
        // In two halves, as far as a register window goes.
        let [low, high]: [u32; 2] =
            [transport.read_config_space(0).ok()?, transport.read_config_space(4).ok()?];
        let sectors = u64::from(high) << 32 | u64::from(low);
        let mut ring = Ring::new(features);
        let slot = || Slot { data: [0x5a; BLOCK_BYTES], kind: 0, reserved: 0, sector: 0, status: 0 };
        let slots: Vec<Box<Slot>> = (0..DEPTH_MAX).map(|_| Box::new(slot())).collect();
        for (at, slot) in (0..).step_by(3).zip(&slots) {
            ring.describe(at, &raw const slot.kind as u64, 16, NEXT, at + 1);
            ring.describe(at + 1, &raw const slot.data as u64, BLOCK_BYTES as u32, NEXT, at + 2);
            ring.describe(at + 2, &raw const slot.status as u64, 1, WRITE, 0);
        }
        ring.show(&mut transport, 0);
        ring.want_interrupt(false);
        transport.finish();
        let blocks = sectors / SECTORS;
        let load = Load { transport, ring, slots, blocks, random: 0x5851_f42d_4c95_7f2d };
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
                if self.ring.used() == 0 {
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
        let data = &raw const self.slots[usize::from(number)].data as u64;
        // SAFETY: the slot is ours, and the device does not look at it before it is given.
        unsafe {
            (&raw mut (*slot).kind).write_volatile(kind);
            (&raw mut (*slot).sector).write_volatile(self.random % self.blocks * SECTORS);
            (&raw mut (*slot).status).write_volatile(0xff);
        }
        let flags = if kind == T_IN { NEXT | WRITE } else { NEXT };
        self.ring.describe(number * 3 + 1, data, BLOCK_BYTES as u32, flags, number * 3 + 2);
        self.ring.give(number * 3);
    }

    /// Notifies the device, if it wants to hear of what was given since.
    fn tell(&mut self) {
        if self.ring.must_tell() {
            self.transport.notify(0);
        }
    }

    /// Waits for one request, awake for a while, then asleep; its number.
    fn take(&mut self, clock: &Clock) -> u16 {
        while self.ring.used() == 0 {
            wait(&mut [&mut self.ring], |ring| ring, &mut self.transport, clock, (AWAKE_NS, u64::MAX));
        }
        let (head, _) = self.ring.peek(0);
        self.ring.take(1);
        // What the device may not say is taken for the first request.
        u16::try_from(head / 3).ok().filter(|number| *number < DEPTH_MAX).unwrap_or(0)
    }
}
