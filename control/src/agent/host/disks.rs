//! The disks that control wants of this host: one worker for each, a bounded number at once, and a report for each wish.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;

use super::{Host, HostError};
use crate::agent::protocol::{DiskObserved, DiskWanted};

/// The most disks that are worked on at once: most wishes are a few file operations, a copy keeps a disk busy alone.
const APPLY_MAX: usize = 8;
/// The most disks of which something is wanted, as a bound on what a peer can make us keep.
const DISKS_MAX: usize = 65_536;

/// See the module.
pub(super) struct Disks {
    state: Mutex<State>,
    permits: Arc<Semaphore>,
}

#[derive(Default)]
struct State {
    slots: HashMap<String, Slot>,
    reports: BTreeMap<String, DiskObserved>,
}

struct Slot {
    wanted: DiskWanted,
    /// A worker has it.
    busy: bool,
}

impl Default for Disks {
    fn default() -> Self {
        Self { state: Mutex::default(), permits: Arc::new(Semaphore::new(APPLY_MAX)) }
    }
}

impl Disks {
    fn state(&self) -> MutexGuard<'_, State> {
        // Slots and reports are replaced whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing is wanted of these any more; one that is worked on is left to its worker.
    pub(super) fn forget(&self, ids: &[String]) {
        let mut state = self.state();
        state.slots.retain(|id, slot| slot.busy || !ids.contains(id));
    }

    /// The next report to send.
    pub(super) fn next_report(&self) -> Option<DiskObserved> {
        self.state().reports.pop_first().map(|(_, report)| report)
    }
}

impl Host {
    /// Takes over what is wanted of a disk.
    pub(super) fn want_disk(self: &Arc<Self>, wanted: DiskWanted) -> Result<(), HostError> {
        let id = wanted.id.clone();
        {
            let mut state = self.disks.state();
            let full = state.slots.len() >= DISKS_MAX;
            match state.slots.get_mut(&id) {
                Some(slot) => {
                    slot.wanted = wanted;
                    if slot.busy {
                        return Ok(());
                    }
                    slot.busy = true;
                }
                None if full => return Err(HostError::TooMany),
                None => {
                    state.slots.insert(id.clone(), Slot { wanted, busy: true });
                }
            }
        }
        let host = self.clone();
        self.runtime.spawn(async move { host.work_on_disk(id).await });
        Ok(())
    }

    /// Brings one disk to what is wanted until nothing newer is.
    async fn work_on_disk(self: Arc<Self>, id: String) {
        let mut done = None;
        loop {
            let wanted = {
                let mut state = self.disks.state();
                let Some(slot) = state.slots.get_mut(&id) else { return };
                if done == Some(slot.wanted.generation) {
                    slot.busy = false;
                    return;
                }
                slot.wanted.clone()
            };
            done = Some(wanted.generation);
            let permit = self.disks.permits.clone().acquire_owned().await;
            let (driver, generation) = (self.driver.clone(), wanted.generation);
            let applied = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                driver.apply_disk(&wanted)
            });
            let report = applied.await.unwrap_or_else(|error| {
                tracing::error!(disk.id = id, %error, "the driver failed its own invariants");
                let fault = "the host's driver failed on this disk; its log says where".to_owned();
                DiskObserved { id: id.clone(), generation, bytes: None, fault: Some(fault) }
            });
            self.disks.state().reports.insert(id.clone(), report);
            self.outgoing.notify_one();
        }
    }
}
