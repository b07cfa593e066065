//! The event loop of the main thread: one loop serves the supervisor and all devices.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use event_manager::{EventManager, SubscriberId, SubscriberOps};

use crate::ending::{Ending, EndingSignal};
use crate::plugged::{Change, DeviceKey};
use crate::supervisor::Supervisor;
use crate::vm::{Machine, Subscriber};

/// How many ready descriptors are taken from the kernel at once; more simply wait for the next turn.
const READY_EVENTS_MAX: usize = 32;

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
    let mut manager: EventManager<Subscriber> =
        EventManager::new_with_capacity(READY_EVENTS_MAX).map_err(Error)?;
    let supervisor = Rc::new(RefCell::new(supervisor));
    let mut devices = BTreeMap::new();
    follow(&mut manager, &mut devices, &supervisor);
    manager.add_subscriber(Box::new(supervisor.clone()));
    started(&mut supervisor.borrow_mut());
    loop {
        manager.run().map_err(Error)?;
        follow(&mut manager, &mut devices, &supervisor);
        if let Some(said) = ending.said() {
            // Drops the loop's share of the supervisor, and with it every device's descriptors.
            drop(manager);
            let supervisor =
                Rc::into_inner(supervisor).expect("invariant: only the loop shared the supervisor");
            return Ok((said, supervisor.into_inner().into_machine()));
        }
    }
}

/// Has the loop serve the devices that came, and those that went no more.
fn follow(
    manager: &mut EventManager<Subscriber>,
    devices: &mut BTreeMap<DeviceKey, SubscriberId>,
    supervisor: &RefCell<Supervisor>,
) {
    for change in supervisor.borrow_mut().machine_mut().devices_mut().take_changes() {
        match change {
            Change::Added(key, device) => {
                devices.insert(key, manager.add_subscriber(device));
            }
            Change::Removed(key) => {
                let removed = devices.remove(&key).map(|id| manager.remove_subscriber(id).map(drop));
                if let Some(Err(error)) = removed {
                    tracing::error!(%error, "a device that is gone is still served");
                }
            }
        }
    }
}
