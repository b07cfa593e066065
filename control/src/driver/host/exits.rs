//! Noticing the end of processes that are nobody's children: one thread waits on all their handles.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use crate::driver::Wake;

/// How many ends are taken at once.
const EVENTS: usize = 64;

/// All processes that are waited for.
#[derive(Clone)]
pub(super) struct Exits(Arc<Shared>);

struct Shared {
    epoll: OwnedFd,
    watched: Mutex<Watched>,
    wake: OnceLock<Wake>,
}

#[derive(Default)]
struct Watched {
    next_key: u64,
    processes: HashMap<u64, (String, Arc<OwnedFd>)>,
}

impl Shared {
    fn watched(&self) -> MutexGuard<'_, Watched> {
        // Entries are inserted and removed whole.
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Exits {
    /// Starts the thread.
    pub(super) fn start() -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let shared = Arc::new(Shared { epoll, watched: Mutex::default(), wake: OnceLock::new() });
        let thread = Arc::downgrade(&shared);
        let exits = Self(shared);
        let waiting = exits.0.epoll.try_clone()?;
        std::thread::Builder::new().name("exits".into()).spawn(move || {
            loop {
                let mut events = Vec::with_capacity(EVENTS);
                match epoll::wait(&waiting, rustix::buffer::spare_capacity(&mut events), None) {
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(error) => {
                        tracing::error!(%error, "ends of VMM processes are no longer noticed");
                        return;
                    }
                }
                let Some(shared) = thread.upgrade() else { return };
                for event in events {
                    ended(&shared, event.data.u64());
                }
            }
        })?;
        Ok(exits)
    }

    /// Whom to tell; once.
    pub(super) fn tell(&self, wake: Wake) {
        // A second agent on the same driver does not exist.
        let _ = self.0.wake.set(wake);
    }

    /// Has an instance looked at, for another reason than its end.
    pub(super) fn look_at(&self, instance: &str) {
        if let Some(wake) = self.0.wake.get() {
            wake(instance);
        }
    }

    /// Tells when this process ends.
    pub(super) fn watch(&self, instance: &str, process: Arc<OwnedFd>) -> io::Result<()> {
        let mut watched = self.0.watched();
        let key = watched.next_key;
        watched.next_key += 1;
        epoll::add(&self.0.epoll, &process, EventData::new_u64(key), EventFlags::IN | EventFlags::ONESHOT)?;
        watched.processes.insert(key, (instance.to_string(), process));
        Ok(())
    }
}

fn ended(shared: &Shared, key: u64) {
    let Some((instance, process)) = shared.watched().processes.remove(&key) else { return };
    // Closing our handle is not enough while another copy of it is open.
    let _ = epoll::delete(&shared.epoll, &process);
    if let Some(wake) = shared.wake.get() {
        wake(&instance);
    }
}
