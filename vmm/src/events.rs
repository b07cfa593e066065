//! The event loop of the main thread: one loop serves the supervisor and all devices.
//!
//! It sleeps until something happens, and after that stays awake for a moment where more is likely to come at once: a packet
//! and its answer, one segment of a stream after the other. Meanwhile drivers need not notify, and nobody has to be woken, each
//! of which takes longer than passing a packet does.

mod awake;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Instant;

use event_manager::{EventManager, SubscriberId, SubscriberOps};

use crate::ending::{Ending, EndingSignal};
use crate::mutex::lock;
use crate::plugged::{Change, DeviceKey};
use crate::supervisor::Supervisor;
use crate::virtio::Shared;
use crate::vm::{Machine, Subscriber};

use awake::Awake;

/// How many ready descriptors are taken from the kernel at once; more simply wait for the next turn.
const READY_EVENTS_MAX: usize = 32;
/// How long a turn waits for events, in milliseconds: until there are some, or not at all.
const UNTIL_SOME: i32 = -1;
const NOT_AT_ALL: i32 = 0;
/// How often an event loop that is awake looks at the devices that keep it so, until it asks what else is ready.
const LOOKS_OF_TURN: u32 = 8;

/// The event loop failed, which only a lack of descriptors or memory explains.
#[derive(Debug, thiserror::Error)]
#[error("run the event loop: {0}")]
pub struct Error(event_manager::Error);

/// Serves until the guest's end was announced to `ending`; returns the machine, held.
///
/// `started` is called once everything is being listened to.
///
/// # Errors
/// The loop's own.
pub fn serve(
    supervisor: Supervisor,
    ending: &EndingSignal,
    started: impl FnOnce(&mut Supervisor),
) -> Result<(Ending, Machine), Error> {
    let manager = EventManager::new_with_capacity(READY_EVENTS_MAX).map_err(Error)?;
    let supervisor = Rc::new(RefCell::new(supervisor));
    let mut events = EventLoop { manager, supervisor, devices: BTreeMap::new(), awake: Awake::default() };
    events.follow();
    events.manager.add_subscriber(Box::new(events.supervisor.clone()));
    started(&mut events.supervisor.borrow_mut());
    loop {
        events.turn(UNTIL_SOME)?;
        events.stay_awake(ending)?;
        if let Some(said) = ending.said() {
            return Ok((said, events.into_machine()));
        }
    }
}

struct EventLoop {
    manager: EventManager<Subscriber>,
    supervisor: Rc<RefCell<Supervisor>>,
    devices: BTreeMap<DeviceKey, (SubscriberId, Shared)>,
    awake: Awake,
}

impl EventLoop {
    /// Serves what is ready, once something is or without waiting.
    fn turn(&mut self, wait_ms: i32) -> Result<(), Error> {
        self.manager.run_with_timeout(wait_ms).map_err(Error)?;
        self.follow();
        Ok(())
    }

    /// Looks for more as long as more comes, if it is likely to.
    fn stay_awake(&mut self, ending: &EndingSignal) -> Result<(), Error> {
        let began = self.devices.values().filter_map(|(_, device)| lock(device).take_busy()).min();
        let mut now = Instant::now();
        let Some(mut until) = began.and_then(|began| self.awake.after(began, now)) else { return Ok(()) };
        self.each_device(|device| lock(device).stay_awake(true));
        for look in (1..=LOOKS_OF_TURN).cycle() {
            if look == LOOKS_OF_TURN {
                self.turn(NOT_AT_ALL)?;
                now = Instant::now();
            }
            if ending.said().is_some() {
                break;
            }
            if now > until {
                self.awake.gives_up(now);
                break;
            }
            let began = self.look();
            now = Instant::now();
            if let Some(began) = began {
                self.awake.found();
                until = self.awake.after(began, now).unwrap_or(until);
            }
        }
        self.each_device(|device| lock(device).stay_awake(false));
        Ok(())
    }

    /// Has the devices look for what came; when they began with it, if something did.
    fn look(&mut self) -> Option<Instant> {
        let looked = self.devices.values().filter_map(|(id, device)| {
            // A device that the loop has is a subscriber of it.
            let mut ops = self.manager.event_ops(*id).ok()?;
            let mut device = lock(device);
            device.look(&mut ops);
            device.take_busy()
        });
        looked.min()
    }

    fn each_device(&self, visit: impl Fn(&Shared)) {
        self.devices.values().for_each(|(_, device)| visit(device));
    }

    /// Serves the devices that came, and those that went no more.
    fn follow(&mut self) {
        for change in self.supervisor.borrow_mut().machine_mut().devices_mut().take_changes() {
            match change {
                Change::Added(key, device) => {
                    let id = self.manager.add_subscriber(Box::new(device.clone()));
                    self.devices.insert(key, (id, device));
                }
                Change::Removed(key) => {
                    let removed = self.devices.remove(&key);
                    let removed = removed.map(|(id, _)| self.manager.remove_subscriber(id).map(drop));
                    if let Some(Err(error)) = removed {
                        tracing::error!(%error, "a device that is gone is still served");
                    }
                }
            }
        }
    }

    fn into_machine(self) -> Machine {
        // Drops the loop's share of the supervisor, and with it every device's descriptors.
        drop(self.manager);
        let supervisor =
            Rc::into_inner(self.supervisor).expect("invariant: only the loop shared the supervisor");
        supervisor.into_inner().into_machine()
    }
}
