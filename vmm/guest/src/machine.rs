//! All there is, and the loop that drives it: the network stacks are polled, then every task is asked to go on, what waits for the console leaves, and at last the processor sleeps until an interrupt or the earliest moment that somebody waits for.
//!
//! Must never know: what the tasks do.

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::future::{Future, poll_fn};
use core::pin::Pin;
use core::task::{Context, Poll, Waker};

use crate::balloon::Balloon;
use crate::clock::Clock;
use crate::console;
use crate::device::{self, Device};
use crate::disk::{self, Disk};
use crate::entry::interrupts_taken;
use crate::generation::Generation;
use crate::hotplug::Hotplug;
use crate::hvc::Hvc;
use crate::metadata::Metadata;
use crate::parse::wdat::Watchdog;
use crate::plug::Plug;
use crate::pmem::Pmem;
use crate::power::Power;
use crate::stack::Stack;
use crate::vsock::Vsock;

/// A piece of work that waits by returning `Pending`; it is asked again after whatever happens.
pub struct Task {
    work: Pin<Box<dyn Future<Output = ()>>>,
    /// The slot of the network device without which it cannot go on.
    slot: Rc<Cell<Option<u8>>>,
}

impl Task {
    /// `work`, which ends with the network device in `slot`.
    pub fn new(work: impl Future<Output = ()> + 'static, slot: Rc<Cell<Option<u8>>>) -> Self {
        Task { work: Box::pin(work), slot }
    }
}

/// Makes what is done over a stack.
pub type Serve = fn(&'static Machine, &Rc<Stack>) -> Vec<Task>;

/// What every task can reach.
pub struct Machine {
    /// Time.
    pub clock: Clock,
    /// Powering off.
    pub power: Power,
    plug: Option<Plug>,
    /// Which of the guests that go on from one snapshot this is.
    pub generation: Generation,
    /// The watchdog.
    pub watchdog: Option<Watchdog>,
    /// One IP stack for each network device; a place that is empty had one that went.
    stacks: RefCell<Vec<Option<Rc<Stack>>>>,
    /// The disks, likewise.
    disks: RefCell<Vec<Option<Rc<Disk>>>>,
    hvc: RefCell<Option<Rc<Hvc>>>,
    vsock: RefCell<Option<Rc<Vsock>>>,
    balloon: RefCell<Option<Rc<Balloon>>>,
    hotplug: RefCell<Option<Rc<Hotplug>>>,
    pmem: RefCell<Vec<Pmem>>,
    /// What the metadata service said, once it has.
    pub metadata: RefCell<Option<Metadata>>,
    /// The earliest moment that a task waits for.
    wake_at_ns: Cell<u64>,
    /// A task did what another one waits for.
    stirred: Cell<bool>,
}

impl Machine {
    /// Puts the parts together; what comes later comes by `plug`.
    pub fn new(
        clock: Clock,
        power: Power,
        plug: Option<Plug>,
        generation: Generation,
        watchdog: Option<Watchdog>,
    ) -> Self {
        Machine {
            clock,
            power,
            plug,
            generation,
            watchdog,
            stacks: RefCell::default(),
            disks: RefCell::default(),
            hvc: RefCell::default(),
            vsock: RefCell::default(),
            balloon: RefCell::default(),
            hotplug: RefCell::default(),
            pmem: RefCell::default(),
            metadata: RefCell::new(None),
            wake_at_ns: Cell::new(u64::MAX),
            stirred: Cell::new(false),
        }
    }

    /// Disk number `index`.
    pub fn disk(&self, index: usize) -> Result<Rc<Disk>, disk::Error> {
        self.disks.borrow().get(index).cloned().flatten().ok_or(disk::Error::NoDisk)
    }

    /// The disks with their numbers.
    pub fn disks(&self) -> Vec<(usize, Rc<Disk>)> {
        let disks = self.disks.borrow();
        disks.iter().enumerate().filter_map(|(index, disk)| Some((index, disk.clone()?))).collect()
    }

    /// The stacks.
    pub fn stacks(&self) -> Vec<Rc<Stack>> {
        self.stacks.borrow().iter().flatten().cloned().collect()
    }

    /// The virtio console.
    pub fn hvc(&self) -> Option<Rc<Hvc>> {
        self.hvc.borrow().clone()
    }

    /// The socket device.
    pub fn vsock(&self) -> Option<Rc<Vsock>> {
        self.vsock.borrow().clone()
    }

    /// The memory balloon.
    pub fn balloon(&self) -> Option<Rc<Balloon>> {
        self.balloon.borrow().clone()
    }

    /// Memory that comes and goes.
    pub fn hotplug(&self) -> Option<Rc<Hotplug>> {
        self.hotplug.borrow().clone()
    }

    /// The persistent memories, and that which comes and goes.
    pub fn pmem(&self) -> Vec<Pmem> {
        self.pmem.borrow().clone()
    }

    /// Takes a device into use; its stack, if it has one.
    pub fn add(&self, device: Device) -> Option<Rc<Stack>> {
        match device {
            Device::Disk(disk) => {
                place(&mut self.disks.borrow_mut(), |_| Rc::new(disk));
                None
            }
            Device::Console(hvc) => {
                self.hvc.replace(Some(Rc::new(hvc)));
                None
            }
            Device::Balloon(balloon) => {
                self.balloon.replace(Some(Rc::new(balloon)));
                None
            }
            Device::Hotplug(hotplug) => {
                self.pmem.borrow_mut().extend(hotplug.memory());
                self.hotplug.replace(Some(Rc::new(hotplug)));
                None
            }
            Device::Pmem(pmem) => {
                self.pmem.borrow_mut().push(pmem);
                None
            }
            Device::Vsock(vsock) => {
                self.vsock.replace(Some(Rc::new(vsock)));
                None
            }
            // Run before the machine has anything to do.
            Device::Load(_) | Device::Wire(_) => None,
            Device::Nic(nic, slot) => Some(place(&mut self.stacks.borrow_mut(), |index| {
                Rc::new(Stack::new(nic, slot, index, &self.clock))
            })),
        }
    }

    /// Has every task asked again before the processor sleeps.
    pub fn stir(&self) {
        self.stirred.set(true);
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

    /// Runs `tasks` for good, and what `serve` makes for network devices that come.
    pub fn run(&'static self, mut tasks: Vec<Task>, serve: Serve) -> ! {
        let mut context = Context::from_waker(Waker::noop());
        let mut acknowledged = interrupts_taken().wrapping_sub(1);
        loop {
            let seen = interrupts_taken();
            if seen != acknowledged {
                acknowledged = seen;
                if self.power.interrupted() {
                    if self.power.button_pressed() {
                        crate::println!("power: button pressed");
                        self.off();
                    }
                    self.generation.look();
                    self.look_at_slots(&mut tasks, serve);
                }
                self.each_stack(Stack::acknowledge);
                self.hvc.borrow().iter().for_each(|hvc| hvc.acknowledge());
                self.vsock.borrow().iter().for_each(|vsock| vsock.acknowledge());
                self.balloon.borrow().iter().for_each(|balloon| balloon.acknowledge());
                self.hotplug.borrow().iter().for_each(|hotplug| hotplug.acknowledge());
            }
            self.poll_stacks();
            self.wake_at_ns.set(u64::MAX);
            tasks.retain_mut(|task| task.work.as_mut().poll(&mut context).is_pending());
            // What the tasks left in sockets goes out now; if that moved a socket, its task is asked again.
            if self.stirred.take() || self.poll_stacks() || self.has_frames() || console::send_part() {
                continue;
            }
            let mut deadline = self.wake_at_ns.get();
            self.each_stack(|stack| {
                deadline = deadline.min(stack.poll_at_ns(&self.clock).unwrap_or(u64::MAX));
            });
            self.clock.sleep_until((deadline != u64::MAX).then_some(deadline), seen);
        }
    }

    fn each_stack(&self, mut act: impl FnMut(&Stack)) {
        self.stacks.borrow().iter().flatten().for_each(|stack| act(stack));
    }

    fn has_frames(&self) -> bool {
        self.stacks.borrow().iter().flatten().any(|stack| stack.has_frames())
    }

    fn poll_stacks(&self) -> bool {
        let mut moved = false;
        self.each_stack(|stack| moved |= stack.poll(&self.clock));
        moved
    }

    /// Takes into use what came to the bus, and lets go what shall go.
    fn look_at_slots(&'static self, tasks: &mut Vec<Task>, serve: Serve) {
        let Some(plug) = &self.plug else { return };
        let Some(slots) = plug.take() else { return };
        let in_bits = |bits: u32| (0..32).filter(move |slot| bits >> slot & 1 != 0);
        for slot in in_bits(slots.emptied) {
            tasks.retain(|task| task.slot.get() != Some(slot));
            let is_free = let_go(&mut self.stacks.borrow_mut(), |stack| stack.slot() == Some(slot), "net")
                && let_go(&mut self.disks.borrow_mut(), |disk| disk.slot() == Some(slot), "disk");
            if is_free {
                plug.let_go(slot);
            }
        }
        for slot in in_bits(slots.filled) {
            let stacks = self.stacks();
            let disks = self.disks();
            let is_known = stacks.iter().any(|stack| stack.slot() == Some(slot))
                || disks.iter().any(|(_, disk)| disk.slot() == Some(slot));
            let is_wanted = |kind| device::is_wanted_beside(stacks.len(), disks.len(), kind);
            let found = if is_known { None } else { device::in_slot(plug.ecam, slot, is_wanted) };
            let Some(found) = found else { continue };
            match self.add(found) {
                Some(stack) => {
                    stack.introduce();
                    tasks.extend(serve(self, &stack));
                }
                None => {
                    let came = self.disks().into_iter().find(|(_, disk)| disk.slot() == Some(slot));
                    came.into_iter().for_each(|(index, disk)| disk.introduce(index));
                }
            }
        }
    }
}

/// Puts what `make` makes of its number into the first empty place.
fn place<T>(list: &mut Vec<Option<Rc<T>>>, make: impl FnOnce(usize) -> Rc<T>) -> Rc<T> {
    let index = list.iter().position(Option::is_none).unwrap_or(list.len());
    let item = make(index);
    if index == list.len() {
        list.push(None);
    }
    list[index] = Some(item.clone());
    item
}

/// Takes what `is_meant` out of a list, and with it its driver, which resets the device; whether nobody uses it.
fn let_go<T>(list: &mut [Option<Rc<T>>], is_meant: impl Fn(&T) -> bool, what: &str) -> bool {
    let Some(index) = list.iter().position(|item| item.as_ref().is_some_and(|item| is_meant(item))) else {
        return true;
    };
    if list[index].as_ref().is_some_and(|item| Rc::strong_count(item) > 1) {
        crate::println!("{what} {index}: in use");
        return false;
    }
    list[index] = None;
    crate::println!("{what} {index}: gone");
    true
}
