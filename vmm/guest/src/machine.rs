//! All there is, and the loop that drives it: the network stacks are polled, then every task is asked to go on, what waits for the console leaves, and at last the processor sleeps until an interrupt or the earliest moment that somebody waits for.
//!
//! Must never know: what the tasks do.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::future::{Future, poll_fn};
use core::pin::Pin;
use core::task::{Context, Poll, Waker};

use crate::clock::Clock;
use crate::console;
use crate::disk::{self, Disk};
use crate::entry::interrupts_taken;
use crate::metadata::Metadata;
use crate::power::Power;
use crate::stack::Stack;

/// A piece of work that waits by returning `Pending`; it is asked again after whatever happens.
pub type Task = Pin<Box<dyn Future<Output = ()>>>;

/// What every task can reach.
pub struct Machine {
    /// Time.
    pub clock: Clock,
    /// Powering off.
    pub power: Power,
    /// One IP stack for each network device.
    pub stacks: Vec<Stack>,
    /// The disks.
    pub disks: Vec<Disk>,
    /// What the metadata service said, once it has.
    pub metadata: RefCell<Option<Metadata>>,
    /// The earliest moment that a task waits for.
    wake_at_ns: Cell<u64>,
}

impl Machine {
    /// Puts the parts together.
    pub fn new(clock: Clock, power: Power, stacks: Vec<Stack>, disks: Vec<Disk>) -> Self {
        Machine { clock, power, stacks, disks, metadata: RefCell::new(None), wake_at_ns: Cell::new(u64::MAX) }
    }

    /// Disk number `index`.
    pub fn disk(&self, index: usize) -> Result<&Disk, disk::Error> {
        self.disks.get(index).ok_or(disk::Error::NoDisk)
    }

    /// Powers off.
    pub fn off(&self) -> ! {
        self.power.off(&self.clock)
    }

    /// Waits until `ready` gives something, or until `deadline_ns`: then `None`.
    pub async fn wait_until<T>(&self, deadline_ns: u64, mut ready: impl FnMut() -> Option<T>) -> Option<T> {
        poll_fn(|_| match ready() {
            Some(value) => Poll::Ready(Some(value)),
            None if self.clock.now_ns() >= deadline_ns => Poll::Ready(None),
            None => {
                self.wake_at_ns.set(self.wake_at_ns.get().min(deadline_ns));
                Poll::Pending
            }
        })
        .await
    }

    /// Waits until `ready` gives something.
    pub async fn wait<T>(&self, mut ready: impl FnMut() -> Option<T>) -> T {
        poll_fn(|_| ready().map_or(Poll::Pending, Poll::Ready)).await
    }

    /// Waits for `ns` nanoseconds.
    pub async fn pause(&self, ns: u64) {
        let deadline = self.clock.now_ns().saturating_add(ns);
        self.wait_until(deadline, || None::<()>).await;
    }

    /// Runs `tasks` for good.
    pub fn run(&self, mut tasks: Vec<Task>) -> ! {
        let mut context = Context::from_waker(Waker::noop());
        let mut acknowledged = interrupts_taken().wrapping_sub(1);
        loop {
            let seen = interrupts_taken();
            if seen != acknowledged {
                acknowledged = seen;
                if self.power.button_pressed() {
                    crate::println!("power: button pressed");
                    self.off();
                }
                self.stacks.iter().for_each(Stack::acknowledge);
            }
            self.poll_stacks();
            self.wake_at_ns.set(u64::MAX);
            tasks.retain_mut(|task| task.as_mut().poll(&mut context).is_pending());
            // What the tasks left in sockets goes out now; if that moved a socket, its task is asked again.
            if self.poll_stacks() || self.stacks.iter().any(Stack::has_frames) || console::send_part() {
                continue;
            }
            let deadlines = self.stacks.iter().filter_map(|stack| stack.poll_at_ns(&self.clock));
            let deadline = deadlines.fold(self.wake_at_ns.get(), u64::min);
            self.clock.sleep_until((deadline != u64::MAX).then_some(deadline), seen);
        }
    }

    fn poll_stacks(&self) -> bool {
        self.stacks.iter().fold(false, |moved, stack| stack.poll(&self.clock) | moved)
    }
}
